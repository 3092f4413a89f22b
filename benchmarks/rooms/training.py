"""Trains encoders from scratch, together with a readout, on a single task."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int, PyTree

from benchmarks.rooms import learning
from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.learning import Prior
from benchmarks.rooms.settings import Learning
from jaxtransfer.devices import default_mesh
from jaxtransfer.networks.network import Network
from jaxtransfer.pge.layers import convolution
from jaxtransfer.rooms import Task
from jaxtransfer.rooms.networks import WIDTH, Encoder, PixelReadout, VectorReadout, encode, preprocess
from jaxtransfer.training.checkpoints import open_checkpoints
from jaxtransfer.training.fit import Problem, fit, map_examples, start

_BATCH = 250


def convolve(images: Array, kernel: Array, strides: tuple[int, int], padding: Any, **_: Any) -> Array:
    """Convolves as `flax.nnx.Conv` expects, with a gradient that is fast on CPUs too."""
    return convolution(images, kernel, strides[0], kernel.shape[0] // 2)


def readout(task: Task, settings: Learning, rngs: nnx.Rngs) -> PixelReadout | VectorReadout:
    """Makes an untrained readout for a task."""
    widths = WIDTH * task.views, settings.hidden, task.outputs
    if task.pixels:
        return PixelReadout(*widths, settings.kernel, 8 // settings.every, convolve=convolve, rngs=rngs)
    return VectorReadout(*widths, convolve=convolve, rngs=rngs)


class Model(nnx.Module):
    """An encoder, and a readout of its representations of all views."""

    def __init__(self, task: Task, settings: Learning, *, rngs: nnx.Rngs) -> None:
        channels = 1 if preprocess(task.name).lightness else 3
        self.encoder = Encoder(channels, convolve=convolve, rngs=rngs)
        self.readout = readout(task, settings, rngs)

    def __call__(self, views: Float[Array, "images views h w c"]) -> Float[Array, "images ..."]:
        """Returns the predictions."""
        images, number = views.shape[:2]
        features = self.encoder(views.reshape(images * number, *views.shape[2:]))
        features = features.reshape(images, number, *features.shape[1:])
        return self.readout(jnp.concatenate([features[:, view] for view in range(number)], -1))


def views(task: Task, example: dict[str, Array]) -> Float[Array, "images views h w 3"]:
    """Returns the inputs of a task, in [0, 1], with an axis for the views."""
    images = jax.vmap(task.input)(example)
    return images if task.views > 1 else images[:, None]


class Trained(NamedTuple):
    """The result of training.

    Attributes:
        encoder: Weights of the encoder as nested dicts.
        losses: Loss of every test image.
        counts: 1 where the image has a loss, else 0.
    """

    encoder: PyTree
    losses: Float[np.ndarray, " images"]
    counts: Float[np.ndarray, " images"]


class Trainer:
    """Trains encoders on a task and resumes from checkpoints; the programs are compiled once for all seeds."""

    def __init__(self, task: Task, settings: Learning, prior: Prior) -> None:
        """Compiles nothing yet.

        Args:
            task: The task.
            settings: How to train.
            prior: Best constant prediction, and units of the labels.
        """
        self.task, self.settings, self.prior = task, settings, prior
        self._preprocess = preprocess(task.name)
        self._graph = nnx.split(nnx.eval_shape(lambda: self._model(0)))[0]
        self._problem = Problem(self._training_losses, learning.optimiser(settings))

    def run(
        self,
        seed: int,
        train: Examples,
        test: Examples,
        progress: Callable[[int], None],
        *,
        checkpoints: Path | None = None,
        every: int = 0,
    ) -> Trained:
        """Trains, resuming from the last checkpoint if there is one, and tests.

        Args:
            seed: Seed of the initial weights and of the order of examples.
            train: Training examples.
            test: Test examples.
            progress: Called with the number of finished steps.
            checkpoints: Folder for the last checkpoint; None writes none.
            every: Steps between checkpoints.
        """
        steps, mesh = self.settings.steps, default_mesh()
        train, test = (part.of(self.task, self.settings.every) for part in (train, test))

        def batches(first: int, last: int) -> tuple[dict[str, np.ndarray], Int[np.ndarray, "1 steps batch"]]:
            rngs = [np.random.default_rng([seed, step]) for step in range(first, last)]
            numbers = [np.sort(rng.choice(len(train), self.settings.batch, False)) for rng in rngs]
            return train.take(np.concatenate(numbers)), np.arange(np.size(numbers)).reshape(1, last - first, -1)

        state = start(self._problem, *self._first(seed), mesh, validated=False)
        with open_checkpoints(checkpoints) as kept:
            done, state = kept.restore(state)
            trainings = fit(
                self._problem, state, np.ones(1, np.float32), batches, mesh, steps=steps, chunk=1, done=done
            )
            for step, state in trainings:
                if checkpoints is not None and (step % every == 0 or step == steps):
                    kept.save(step, state, seconds=0)
                progress(step)
        parts = []
        for first in range(0, len(test), _BATCH):
            batch = test.take(np.arange(first, min(first + _BATCH, len(test))))
            numbers = np.arange(len(batch["label"]))[None]
            weights, seen = state.weights, state.statistics
            parts.append(map_examples(self._test_losses, weights, seen, batch, numbers, mesh, batch=_BATCH))
        losses, counts = (np.concatenate(part, 1)[0] for part in zip(*parts, strict=True))
        weights, seen = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (state.weights, state.statistics))
        return Trained(_merge(weights["encoder"], seen["encoder"]), losses, counts)

    def _model(self, seed: int) -> Model:
        model = Model(self.task, self.settings, rngs=nnx.Rngs(seed))
        return nnx.with_attributes(model, only=nnx.BatchNorm, momentum=self.settings.momentum)

    def _first(self, seed: int) -> tuple[PyTree, PyTree]:
        """Returns the weights and the statistics of batch normalisation before the first step, of one training."""
        _, weights, seen = nnx.split(self._model(seed), nnx.Param, ...)
        return jax.tree.map(lambda leaf: leaf[None], (nnx.to_pure_dict(weights), nnx.to_pure_dict(seen)))

    def _training_losses(self, weights: PyTree, seen: PyTree, batch: dict[str, Array]) -> tuple[Array, Array, PyTree]:
        model = nnx.merge(self._graph, weights, seen, copy=True)
        losses, counts = self._losses(model, batch)
        _, _, seen = nnx.split(model, nnx.Param, ...)
        return losses, counts, nnx.to_pure_dict(seen)

    def _test_losses(self, weights: PyTree, seen: PyTree, batch: dict[str, Array]) -> tuple[Array, Array]:
        model = nnx.view(nnx.merge(self._graph, weights, seen), use_running_average=True)
        return self._losses(model, batch)

    def _losses(self, model: Model, batch: dict[str, Array]) -> tuple[Array, Array]:
        example = unpacked(batch)
        images = views(self.task, example)
        inputs = self._preprocess(images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:-1], -1)
        predictions = model(inputs) + (self.prior.predictions[None] if self.settings.from_prior else 0)
        return learning.losses(self.task, self.prior.units, predictions, example["label"])


def untrained(name: str, examples: Examples) -> Network:
    """Makes an encoder with untrained weights; batch normalisation uses the statistics of some images."""
    encoder = nnx.with_attributes(Encoder(3, rngs=nnx.Rngs(0)), only=nnx.BatchNorm, momentum=0.0)
    images = unpacked({"image": jnp.asarray(examples.take(np.arange(min(_BATCH, len(examples))))["image"])})["image"]
    encoder(preprocess(name)(images))
    _, weights, seen = nnx.split(encoder, nnx.Param, ...)
    return Network(name, encode, _merge(nnx.to_pure_dict(weights), nnx.to_pure_dict(seen)), preprocess(name))


def _merge(*trees: PyTree) -> PyTree:
    """Merges trees without common leaves; integers in their paths become strings, as in a zoo."""
    leaves = {path: leaf for tree in trees for path, leaf in traverse_util.flatten_dict(tree).items()}
    return traverse_util.unflatten_dict({tuple(map(str, path)): np.asarray(leaf) for path, leaf in leaves.items()})
