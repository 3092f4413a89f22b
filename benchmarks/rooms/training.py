"""Trains encoders, together with a readout, on a single task."""

import functools
from collections.abc import Callable, Sequence
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
from jaxtransfer.devices import default_mesh, is_cpu
from jaxtransfer.networks.network import Network
from jaxtransfer.pge.layers import convolution, products
from jaxtransfer.rooms import Task
from jaxtransfer.rooms.networks import WIDTH, Encoder, PixelReadout, VectorReadout, encode, preprocess
from jaxtransfer.training.checkpoints import open_checkpoints
from jaxtransfer.training.fit import Problem, fit, map_examples, start

_BATCH = 250
_MAX_IMAGES = 2000  # that encoders are tested on at once


def convolve(images: Array, kernel: Array, strides: tuple[int, int], padding: Any, **_: Any) -> Array:
    """Convolves as `flax.nnx.Conv` expects, with a gradient that is fast on CPUs, and elsewhere under `vmap`."""
    stride, padding = strides[0], kernel.shape[0] // 2
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(convolution, stride=stride, padding=padding),
        default=functools.partial(products, stride=stride, padding=padding),
    )


def readout(task: Task, settings: Learning, rngs: nnx.Rngs) -> PixelReadout | VectorReadout:
    """Makes an untrained readout for a task."""
    widths = WIDTH * task.views, settings.hidden, task.outputs
    if task.pixels:
        return PixelReadout(*widths, settings.kernel, 8 // settings.every, convolve=convolve, rngs=rngs)
    return VectorReadout(*widths, convolve=convolve, rngs=rngs)


class Model(nnx.Module):
    """An encoder of images of some channels, and a readout of its representations of all views."""

    def __init__(self, task: Task, channels: int, settings: Learning, *, rngs: nnx.Rngs) -> None:
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


class Start(NamedTuple):
    """Says where a training starts.

    Attributes:
        seed: Seed of the weights that are drawn and of the order of examples.
        first: Number of its first training example.
        encoder: Weights of the encoder, as in a zoo; None: they are drawn, too.
    """

    seed: int
    first: int = 0
    encoder: PyTree | None = None


class Trained(NamedTuple):
    """The results of trainings.

    Attributes:
        encoders: Weights of each encoder as nested dicts.
        losses: Loss of every test image.
        counts: 1 where the image has a loss, else 0.
    """

    encoders: list[PyTree]
    losses: Float[np.ndarray, "trainings images"]
    counts: Float[np.ndarray, " images"]


class Trainer:
    """Trains encoders on a task and resumes from checkpoints; the programs are compiled once for all trainings."""

    def __init__(self, task: Task, settings: Learning, prior: Prior, source: str | None = None) -> None:
        """Compiles nothing yet.

        Args:
            task: The task.
            settings: How to train.
            prior: Best constant prediction, and units of the labels.
            source: Task whose encoder's preprocessing is taken; None: `task`.
        """
        self.task, self.settings, self.prior = task, settings, prior
        self._preprocess = preprocess(source or task.name)
        self._graph = nnx.split(nnx.eval_shape(lambda: self._model(0)))[0]
        self._problem = Problem(self._training_losses, learning.optimiser(settings))

    def run(
        self,
        starts: Sequence[Start],
        train: Examples,
        test: Examples,
        progress: Callable[[int], None],
        *,
        count: int | None = None,
        checkpoints: Path | None = None,
        every: int = 0,
    ) -> Trained:
        """Trains at the same time, resuming from the last checkpoint if there is one, and tests.

        Args:
            starts: Where the trainings start.
            train: Training examples.
            test: Test examples.
            progress: Called with the number of finished steps.
            count: Number of training examples of each training; None: all.
            checkpoints: Folder for the last checkpoint; None writes none.
            every: Steps between checkpoints.
        """
        settings, mesh = self.settings, default_mesh()
        train, test = (part.of(self.task, settings.every) for part in (train, test))
        chunk = 1 if is_cpu(mesh) else every or settings.steps

        def draw(start: Start, step: int) -> Int[np.ndarray, " batch"]:
            drawn = np.random.default_rng([start.seed, step]).choice(count or len(train), settings.batch, False)
            return start.first + np.sort(drawn)

        def batches(first: int, last: int) -> tuple[PyTree, Int[np.ndarray, "trainings steps batch"]]:
            numbers = np.array([[draw(start, step) for step in range(first, last)] for start in starts])
            if chunk > 1:
                return on_device, numbers
            return train.take(numbers.ravel()), np.arange(numbers.size).reshape(numbers.shape)

        on_device = jax.device_put(train.all()) if chunk > 1 else {}
        state = start(self._problem, *self._first(starts), mesh, validated=False)
        with open_checkpoints(checkpoints) as kept:
            done, state = kept.restore(state)
            rates = np.ones(len(starts), np.float32)
            trainings = fit(self._problem, state, rates, batches, mesh, steps=settings.steps, chunk=chunk, done=done)
            for step, state in trainings:
                if checkpoints is not None and (step % every == 0 or step == settings.steps):
                    kept.save(step, state, seconds=0)
                progress(step)
        parts = []
        for first in range(0, len(test), _BATCH):
            batch = test.take(np.arange(first, min(first + _BATCH, len(test))))
            numbers = np.tile(np.arange(len(batch["label"])), (len(starts), 1))
            weights, seen = state.weights, state.statistics
            at_once = max(1, min(_BATCH, _MAX_IMAGES // len(starts)))
            parts.append(map_examples(self._test_losses, weights, seen, batch, numbers, mesh, batch=at_once))
        losses, counts = (np.concatenate(part, 1) for part in zip(*parts, strict=True))
        weights, seen = (jax.tree.map(np.asarray, tree["encoder"]) for tree in (state.weights, state.statistics))
        encoders = [_merge(*_at((weights, seen), i)) for i in range(len(starts))]
        return Trained(encoders, losses, counts[0])

    def _model(self, seed: int) -> Model:
        channels = 1 if self._preprocess.lightness else 3
        model = Model(self.task, channels, self.settings, rngs=nnx.Rngs(seed))
        return nnx.with_attributes(model, only=nnx.BatchNorm, momentum=self.settings.momentum)

    def _first(self, starts: Sequence[Start]) -> tuple[PyTree, PyTree]:
        """Returns the weights and the statistics of batch normalisation before the first step, of all trainings."""
        fresh, firsts = {}, []
        for seed in {of_training.seed for of_training in starts}:
            _, weights, seen = nnx.split(self._model(seed), nnx.Param, ...)
            fresh[seed] = jax.tree.map(np.asarray, (nnx.to_pure_dict(weights), nnx.to_pure_dict(seen)))
        for seed, _, encoder in starts:
            trees = fresh[seed]
            if encoder is not None:
                trees = [tree | {"encoder": _part(encoder, tree["encoder"])} for tree in trees]
            firsts.append(tuple(trees))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *firsts)

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


def _part(params: PyTree, like: PyTree) -> PyTree:
    """Returns the weights of an encoder, as in a zoo, at the paths of another tree; float32."""
    flat = traverse_util.flatten_dict(params)
    paths = traverse_util.flatten_dict(like)
    return traverse_util.unflatten_dict({path: np.asarray(flat[*map(str, path)], np.float32) for path in paths})


def _at(trees: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], trees)
