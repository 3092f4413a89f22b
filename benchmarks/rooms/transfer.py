"""Measures transfer: a small readout learns a target from few examples, on top of a source's frozen encoder.

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

_BATCH = 250


class Measured(NamedTuple):
    """The losses of a source's readouts on a target.

    Attributes:
        losses: Loss of every seed and held-out image.
        counts: 1 where the image has a loss, else 0.
    """

    losses: Float[np.ndarray, "seeds images"]
    counts: Float[np.ndarray, " images"]


def represent(network: Network, task: Task, examples: Examples) -> Float[np.ndarray, "images h w channels"]:
    """Computes an encoder's representations of a task's inputs, concatenated over views; float16."""
    parts, examples = [], examples.of(task)
    for start in range(0, len(examples), _BATCH):
        batch = examples.take(np.arange(start, min(start + _BATCH, len(examples))))
        parts.append(np.asarray(_represent_batch(network.apply, network.preprocess, task, network.params, batch)))
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _represent_batch(apply, preprocess, task: Task, params: PyTree, batch: dict[str, Array]) -> Array:
    all_views = views(task, unpacked(batch))
    images, number = all_views.shape[:2]
    inputs = all_views.reshape(images * number, *all_views.shape[2:])
    features = apply(params, inputs if preprocess is None else preprocess(inputs))
    features = features.reshape(images, number, *features.shape[1:]).astype(jnp.float16)
    return jnp.concatenate([features[:, view] for view in range(number)], -1)


class Target:
    """A target task with its held-out examples and its small training sets, one per seed."""

    def __init__(self, task: Task, settings: Transfer, train: Examples, held_out: Examples) -> None:
        """Reads the labels.

        Args:
            task: The target task.
            settings: How readouts are trained.
            train: Training sets of all seeds, concatenated.
            held_out: Test examples.
        """
        self.task, self._settings = task, settings
        self.prior: Prior = learning.prior(task, train, settings.every)
        labels, self._test_labels = (_labels(part.of(task, settings.every)) for part in (train, held_out))
        self._labels = labels.reshape(settings.seeds, -1, *labels.shape[1:])
        self._graph = nnx.split(nnx.eval_shape(self._fresh, jax.random.key(0)))[0]
        self._learn = jax.jit(jax.vmap(self._one_seed, in_axes=(0, 0, 0)))
        self._test = jax.jit(jax.vmap(self._losses, in_axes=(0, None, None)))

    def measure(
        self, few: Float[np.ndarray, "images h w channels"], many: Float[np.ndarray, "held_out h w channels"]
    ) -> Measured:
        """Trains a readout for every seed and tests it.

        Args:
            few: A source's representations of the training sets.
            many: The source's representations of the held-out examples.
        """
        few = few.reshape(*self._labels.shape[:2], *few.shape[1:])
        keys = jax.random.split(jax.random.key(0), self._settings.seeds)
        # Makes the result independent of the scale of the source's representation.
        scale = np.sqrt(np.square(few, dtype=np.float32).mean())
        weights = self._learn(keys, few / scale, self._labels)
        parts = []
        for start in range(0, len(many), _BATCH):
            batch = slice(start, start + _BATCH)
            parts.append(self._test(weights, many[batch] / scale, self._test_labels[batch]))
        losses, counts = (np.concatenate([np.asarray(part[i]) for part in parts], axis=-1) for i in range(2))
        return Measured(losses, counts[0])

    def _fresh(self, key: Array) -> PixelReadout | VectorReadout:
        return readout(self.task, self._settings, nnx.Rngs(key))

    def _losses(self, weights: PyTree, features: Array, labels: Array) -> tuple[Array, Array]:
        predictions = nnx.merge(self._graph, weights)(features.astype(jnp.float32))
        predictions += self.prior.predictions[None] if self._settings.from_prior else 0
        return learning.losses(self.task, self.prior.units, predictions, labels)

    def _one_seed(self, key: Array, features: Array, labels: Array) -> PyTree:
        """Trains a readout and returns its weights."""
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
