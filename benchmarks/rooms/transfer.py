"""Measures transfer: a small readout learns a target from few examples, on top of a source's frozen encoder.

After Zamir et al. (CVPR 2018), sections 3.2 and 3.3.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from benchmarks.rooms import learning
from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.learning import Prior
from benchmarks.rooms.settings import Protocol
from benchmarks.rooms.training import readout, views
from jaxtransfer.devices import default_mesh
from jaxtransfer.networks.network import Network
from jaxtransfer.rooms import Task
from jaxtransfer.rooms.networks import PixelReadout, VectorReadout
from jaxtransfer.training.fit import Problem, fit, map_examples, start

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
    for first in range(0, len(examples), _BATCH):
        batch = examples.take(np.arange(first, min(first + _BATCH, len(examples))))
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

    def __init__(self, task: Task, settings: Protocol, train: Examples, held_out: Examples) -> None:
        """Reads the labels.

        Args:
            task: The target task.
            settings: How readouts are trained.
            train: Training sets of all seeds, concatenated.
            held_out: Test examples.
        """
        self.task, self.settings = task, settings
        self.prior: Prior = learning.prior(task, train, settings.every)
        self._labels, self._test_labels = (_labels(part.of(task, settings.every)) for part in (train, held_out))
        self._graph = nnx.split(nnx.eval_shape(self._fresh, jax.random.key(0)))[0]
        self._problem = Problem(self._training_losses, learning.optimiser(settings))

    def measure(
        self, few: Float[np.ndarray, "images h w channels"], many: Float[np.ndarray, "held_out h w channels"]
    ) -> Measured:
        """Trains a readout for every seed and tests it.

        Args:
            few: A source's representations of the training sets.
            many: The source's representations of the held-out examples.
        """
        settings, mesh, count = self.settings, default_mesh(), len(few) // self.settings.seeds
        # Makes the result independent of the scale of the source's representation.
        scale = np.sqrt(np.square(few, dtype=np.float32).mean())
        train = {"features": few / scale, "labels": self._labels}
        for_weights, for_batches = jax.vmap(jax.random.split, out_axes=1)(
            jax.random.split(jax.random.key(0), settings.seeds)
        )
        weights = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(self._fresh(key))))(for_weights)
        indices = np.asarray(_drawn_batches(for_batches, count, settings.steps, settings.batch))
        indices = indices + count * np.arange(settings.seeds)[:, None, None]
        state = start(self._problem, weights, (), mesh, validated=False)
        rates = np.ones(settings.seeds, np.float32)
        ((_, state),) = fit(
            self._problem, state, rates, lambda *_: (train, indices), mesh, steps=settings.steps, chunk=settings.steps
        )
        parts = []
        for first in range(0, len(many), _BATCH):
            batch = slice(first, first + _BATCH)
            examples = {"features": many[batch] / scale, "labels": self._test_labels[batch]}
            numbers = np.tile(np.arange(len(examples["labels"])), (settings.seeds, 1))
            parts.append(map_examples(self._losses, state.weights, (), examples, numbers, mesh, batch=_BATCH))
        losses, counts = (np.concatenate(part, 1) for part in zip(*parts, strict=True))
        return Measured(losses, counts[0])

    def _fresh(self, key: Array) -> PixelReadout | VectorReadout:
        return readout(self.task, self.settings, nnx.Rngs(key))

    def _losses(self, weights: PyTree, _: PyTree, examples: dict[str, Array]) -> tuple[Array, Array]:
        predictions = nnx.merge(self._graph, weights)(examples["features"].astype(jnp.float32))
        predictions += self.prior.predictions[None] if self.settings.from_prior else 0
        return learning.losses(self.task, self.prior.units, predictions, examples["labels"])

    def _training_losses(self, weights: PyTree, _: PyTree, examples: dict[str, Array]) -> tuple[Array, Array, PyTree]:
        return *self._losses(weights, _, examples), ()


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _drawn_batches(keys: Key[Array, " seeds"], count: int, steps: int, batch: int) -> Int[Array, "seeds steps batch"]:
    """Draws the examples of every step without repetitions."""

    def draw(key: Key[Array, ""], step: Int[Array, ""]) -> Int[Array, " batch"]:
        return jax.random.choice(jax.random.fold_in(key, step), count, (batch,), replace=False)

    return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys, jnp.arange(steps))


def _labels(examples: Examples) -> np.ndarray:
    return np.asarray(unpacked({"label": jnp.asarray(examples["label"])})["label"])
