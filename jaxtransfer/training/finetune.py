"""The protocol "finetune": all weights of a network are trained, with a new linear readout."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, Shaped

from jaxtransfer.devices import compiler_options, is_cpu, replicate
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import ApplyFn, Network, is_key
from jaxtransfer.networks.preprocess import PreprocessFn
from jaxtransfer.points.passes import preprocessed
from jaxtransfer.scores.features import layers_of_outputs
from jaxtransfer.scores.target import Target
from jaxtransfer.training.fit import Problem
from jaxtransfer.training.frozen import adam, labels_for, units_of
from jaxtransfer.training.measurement import Learning, Model, Run
from jaxtransfer.training.random_weights import shuffled
from jaxtransfer.training.readout import Readout
from jaxtransfer.training.splits import Split

LEARNING = Learning(steps=300, batch=32, interval=30, chunk=10, rates=(1e-4, 1e-3))
"""How networks are trained. The rates are those of the network's weights; that of the readout is ten times as high."""

_READOUT_RATE = 10.0
# Training examples whose features give the scale of the readout's input.
_SCALE_EXAMPLES = 64
# Names of running statistics in Flax, PyTorch and Keras. Networks are in inference mode, where they are constants;
# gradient steps could make a variance negative.
_STATISTICS = frozenset({"mean", "var", "running_mean", "running_var", "moving_mean", "moving_variance"})


class _Leaf(NamedTuple):
    """Says where a leaf of a network's weights comes from.

    Attributes:
        dtype: Type of a weight that is trained, in float32; None: it is a constant.
        impl: Name of a key's generator; None: the leaf is no key.
        number: A Python number; None: the leaf is an array.
    """

    dtype: Any = None
    impl: str | None = None
    number: bool | int | float | None = None


class _Architecture(NamedTuple):
    """A network without its arrays, and the readout of its features; equal ones share their compiled programs."""

    apply: ApplyFn
    preprocess: PreprocessFn | None
    structure: Any
    leaves: tuple[_Leaf, ...]
    readout: Readout

    def features(
        self, weights: Sequence[Array], constants: Sequence[Array], images: Shaped[Array, "n h w c"]
    ) -> Float[Array, "n ..."]:
        """Computes features, as the readout takes them, from images as they are stored."""
        given = iter(weights), iter(constants)
        params = jax.tree.unflatten(self.structure, [_restored(leaf, *given) for leaf in self.leaves])
        scaled = images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images.astype(jnp.float32)
        layers = layers_of_outputs(self.apply(params, preprocessed(self.preprocess, scaled)))
        return jnp.concatenate(self.readout.pool([layer.astype(jnp.float32) for layer in layers]), -1)


def finetune_learning(mesh: Mesh) -> Learning:
    """Returns how networks are trained on these devices."""
    return dataclasses.replace(LEARNING, chunk=1) if is_cpu(mesh) else LEARNING


def finetune_model(
    network: Network,
    images: Shaped[np.ndarray, "n h w c"],
    target: Target,
    learning: Learning,
    mesh: Mesh,
    *,
    from_scratch: bool,
) -> Model:
    """Describes a network that is trained with a new readout.

    Floating-point arrays are trained in float32, whatever their type. Running statistics of normalisation (arrays
    called `mean`, `var`, `running_var`, ...), integers and single Python numbers are constants.

    Args:
        network: The network whose weights training starts from.
        images: Images of the task, uint8 or floating point.
        target: The labels.
        learning: How the network is trained.
        mesh: Devices that share the trainings.
        from_scratch: Whether training starts from shuffled weights, other ones for each seed.

    Raises:
        JaxTransferError: The network has no weights that can be trained, or no output besides a head.
    """
    readout = Readout.of(target)
    architecture, *_ = _taken_apart(network, readout)
    features = jax.jit(architecture.features, compiler_options=compiler_options(mesh))

    def start(runs: Sequence[Run], splits: Sequence[Split]) -> tuple[PyTree, PyTree]:
        weights, statistics = [], []
        for run, part in zip(runs, splits, strict=True):
            params = shuffled(network.params, run.seed) if from_scratch else network.params
            _, trained, constants = _taken_apart(dataclasses.replace(network, params=params), readout)
            values = np.asarray(features(trained, constants, images[part.train[:_SCALE_EXAMPLES]]))
            weights.append({"network": trained, "readout": readout.init(values.shape[-1])})
            units = units_of(readout, values, target.values[part.train])
            statistics.append({"constants": constants, "units": units})
        return _stacked(weights), _stacked(statistics)

    return Model(
        Problem(_Loss(architecture), _optimiser(learning.steps)),
        _Predict(architecture),
        start,
        replicate({"images": images, "labels": labels_for(target)}, mesh),
        at_once=mesh.size,
        batch=learning.batch,
    )


def _taken_apart(
    network: Network, readout: Readout
) -> tuple[_Architecture, list[Float[np.ndarray, "..."]], list[Shaped[np.ndarray, "..."]]]:
    """Takes a network apart into what is static, weights that are trained in float32, and arrays that are constants."""
    paths, structure = jax.tree_util.tree_flatten_with_path(network.params)
    leaves: list[_Leaf] = []
    trained, constants = [], []
    for path, leaf in paths:
        name = re.findall(r"\w+", jax.tree_util.keystr(path)) or [""]
        if isinstance(leaf, bool | int | float):
            leaves.append(_Leaf(number=leaf))
        elif is_key(leaf):
            leaves.append(_Leaf(impl=str(jax.random.key_impl(leaf))))
            constants.append(np.asarray(jax.random.key_data(leaf)))
        elif jnp.issubdtype(leaf.dtype, jnp.floating) and name[-1] not in _STATISTICS:
            leaves.append(_Leaf(dtype=jnp.result_type(leaf)))
            trained.append(np.asarray(leaf, np.float32))
        else:
            leaves.append(_Leaf())
            constants.append(np.asarray(leaf, jnp.result_type(leaf)))
    if not trained:
        raise JaxTransferError(
            "it has no floating-point weights that could be trained; measure it with the protocol frozen."
        )
    return _Architecture(network.apply, network.preprocess, structure, (*leaves,), readout), trained, constants


def _restored(leaf: _Leaf, trained: Iterator[Array], constants: Iterator[Array]) -> Any:
    """Returns a leaf of a network's weights, from the next of the arrays that it belongs to."""
    if leaf.number is not None:
        return leaf.number
    if leaf.dtype is not None:
        return next(trained).astype(leaf.dtype)
    array = next(constants)
    return array if leaf.impl is None else jax.random.wrap_key_data(array, impl=leaf.impl)


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    """Stacks the arrays of trees, one of each run."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@functools.lru_cache(maxsize=16)
def _optimiser(steps: int) -> optax.GradientTransformation:
    """Returns Adam with a higher rate for the readout."""

    def scale(updates: PyTree, _: PyTree) -> PyTree:
        return {**updates, "readout": jax.tree.map(lambda update: _READOUT_RATE * update, updates["readout"])}

    return optax.chain(adam(steps), optax.stateless(scale))


class _Predict(NamedTuple):
    """The predictions of a network with a readout."""

    architecture: _Architecture

    def __call__(self, weights: PyTree, statistics: PyTree, examples: PyTree) -> Array:
        features = self.architecture.features(weights["network"], statistics["constants"], examples["images"])
        return self.architecture.readout(weights["readout"], statistics["units"], features)


class _Loss(NamedTuple):
    """The loss of a network with a readout."""

    architecture: _Architecture

    def __call__(self, weights: PyTree, statistics: PyTree, examples: PyTree) -> tuple[Array, Array, PyTree]:
        predictions = _Predict(self.architecture)(weights, statistics, examples)
        losses = self.architecture.readout.losses(statistics["units"], predictions, examples["labels"])
        return *losses, statistics
