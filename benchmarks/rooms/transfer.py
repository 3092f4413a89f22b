"""Measured transfer: a source's encoder is frozen, and a small readout learns a target from few examples.

After Zamir et al. (CVPR 2018), sections 3.2 and 3.3.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from benchmarks.rooms import learning
from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.learning import Prior
from benchmarks.rooms.settings import Transfer
from benchmarks.rooms.training import readout, views
from jaxtransfer.networks.network import Network
from jaxtransfer.rooms import Task
from jaxtransfer.rooms.networks import PixelReadout, VectorReadout

_AT_ONCE = 250


class Measured(NamedTuple):
    """What a readout of one source costs on one target.

    Attributes:
        losses: Of every seed and held-out image.
        counts: 1 where the image has a loss, else 0.
    """

    losses: Float[np.ndarray, "seeds images"]
    counts: Float[np.ndarray, " images"]


def represented(network: Network, task: Task, examples: Examples) -> Float[np.ndarray, "images h w channels"]:
    """What an encoder makes of what a task shows, all views side by side; float16."""
    found, examples = [], examples.of(task)
    for start in range(0, len(examples), _AT_ONCE):
        batch = examples.some(np.arange(start, min(start + _AT_ONCE, len(examples))))
        found.append(np.asarray(_represent(network.apply, network.preprocess, task, network.params, batch)))
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _represent(apply, preprocess, task: Task, params: PyTree, batch: dict[str, Array]) -> Array:
    shown = views(task, unpacked(batch))
    images, number = shown.shape[:2]
    inputs = shown.reshape(images * number, *shown.shape[2:])
    found = apply(params, inputs if preprocess is None else preprocess(inputs))
    found = found.reshape(images, number, *found.shape[1:]).astype(jnp.float16)
    return jnp.concatenate([found[:, view] for view in range(number)], -1)


class Target:
    """One task as a target: its small training sets, one for each seed, and its held-out examples."""

    def __init__(self, task: Task, settings: Transfer, train: Examples, held_out: Examples) -> None:
        """Takes labels.

        Args:
            task: The target.
            settings: How readouts are trained.
            train: The training sets of all seeds, one after the other.
            held_out: To test on.
        """
        self.task, self._settings = task, settings
        self.prior: Prior = learning.prior(task, train, settings.every)
        labels, self._wanted = (_labels(each.of(task, settings.every)) for each in (train, held_out))
        self._labels = labels.reshape(settings.seeds, -1, *labels.shape[1:])
        self._graph = nnx.split(nnx.eval_shape(self._fresh, jax.random.key(0)))[0]
        self._learn = jax.jit(jax.vmap(self._one_seed, in_axes=(0, 0, 0)))
        self._test = jax.jit(jax.vmap(self._losses, in_axes=(0, None, None)))

    def measure(
        self, few: Float[np.ndarray, "images h w channels"], many: Float[np.ndarray, "held_out h w channels"]
    ) -> Measured:
        """Trains a readout for every seed and tests it.

        Args:
            few: What a source makes of the training sets.
            many: And of the held-out examples.
        """
        few = few.reshape(*self._labels.shape[:2], *few.shape[1:])
        keys = jax.random.split(jax.random.key(0), self._settings.seeds)
        # Readouts are not to care how large a source's units are.
        size = np.sqrt(np.square(few, dtype=np.float32).mean())
        learned = self._learn(keys, few / size, self._labels)
        found = []
        for start in range(0, len(many), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            found.append(self._test(learned, many[some] / size, self._wanted[some]))
        each, counts = (np.concatenate([np.asarray(part[i]) for part in found], axis=-1) for i in range(2))
        return Measured(each, counts[0])

    def _fresh(self, key: Array) -> PixelReadout | VectorReadout:
        return readout(self.task, self._settings, nnx.Rngs(key))

    def _losses(self, weights: PyTree, features: Array, labels: Array) -> tuple[Array, Array]:
        answers = nnx.merge(self._graph, weights)(features.astype(jnp.float32))
        answers += self.prior.answers[None] if self._settings.from_prior else 0
        return learning.losses(self.task, self.prior.units, answers, labels)

    def _one_seed(self, key: Array, features: Array, labels: Array) -> PyTree:
        """The weights of a readout after training."""
        settings = self._settings
        for_weights, for_batches = jax.random.split(key)
        weights = nnx.to_pure_dict(nnx.state(self._fresh(for_weights)))
        optimiser = learning.optimiser(settings)

        def step(state: tuple[PyTree, PyTree], number: Int[Array, ""]) -> tuple[tuple[PyTree, PyTree], None]:
            weights, own = state
            for_batch = jax.random.fold_in(for_batches, number)
            chosen = jax.random.choice(for_batch, len(features), (settings.batch,), replace=False)

            def loss(weights: PyTree) -> Array:
                return learning.mean_loss(*self._losses(weights, features[chosen], labels[chosen]))

            change, own = optimiser.update(jax.grad(loss)(weights), own, weights)
            return (optax.apply_updates(weights, change), own), None

        (weights, _), _ = jax.lax.scan(step, (weights, optimiser.init(weights)), jnp.arange(settings.steps))
        return weights


def _labels(examples: Examples) -> np.ndarray:
    return np.asarray(unpacked({"label": jnp.asarray(examples["label"])})["label"])
