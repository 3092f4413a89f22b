"""Trains encoders from scratch, together with a readout, on a single task."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, traverse_util
from jaxtyping import Array, Float, PyTree
from orbax.checkpoint import v1 as ocp

from benchmarks.rooms import learning
from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.learning import Prior
from benchmarks.rooms.settings import Learning
from jaxtransfer.networks.network import Network
from jaxtransfer.pge.layers import convolution
from jaxtransfer.rooms import Task
from jaxtransfer.rooms.networks import WIDTH, Encoder, PixelReadout, VectorReadout, encode, preprocess

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


class State(NamedTuple):
    """The state of training.

    Attributes:
        weights: Trained weights.
        seen: Running statistics of batch normalisation.
        optimiser: State of the optimiser.
    """

    weights: PyTree
    seen: PyTree
    optimiser: PyTree


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
        self._optimiser = learning.optimiser(settings)
        self._graph = nnx.split(nnx.eval_shape(lambda: self._model(0)))[0]
        self._step = jax.jit(self._one_step)
        self._test = jax.jit(self._test_losses)

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
        steps = self.settings.steps
        train, test = (part.of(self.task, self.settings.every) for part in (train, test))
        with contextlib.ExitStack() as stack:
            checkpointer, state, done = None, self._first(seed), 0
            if checkpoints is not None:
                last: Any = ocp.training.preservation_policies.LatestN(1)
                checkpointer = ocp.training.Checkpointer(str(checkpoints.absolute()), preservation_policy=last)
                stack.enter_context(checkpointer)
                if checkpointer.latest is not None:
                    latest = checkpointer.latest
                    done, state = latest.step, checkpointer.load(latest, jax.tree.map(_on_this_device, state))
            for step in range(done, steps):
                rng = np.random.default_rng([seed, step])
                state = self._step(state, train.take(np.sort(rng.choice(len(train), self.settings.batch, False))))
                if checkpointer is not None and ((step + 1) % every == 0 or step + 1 == steps):
                    checkpointer.save(step + 1, state)
                progress(step + 1)
        parts = []
        for start in range(0, len(test), _BATCH):
            batch = test.take(np.arange(start, min(start + _BATCH, len(test))))
            parts.append([np.asarray(part) for part in self._test(state, batch)])
        losses, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Trained(_merge(state.weights["encoder"], state.seen["encoder"]), losses, counts)

    def _model(self, seed: int) -> Model:
        model = Model(self.task, self.settings, rngs=nnx.Rngs(seed))
        return nnx.with_attributes(model, only=nnx.BatchNorm, momentum=self.settings.momentum)

    def _first(self, seed: int) -> State:
        """Returns the state before the first step."""
        _, weights, seen = nnx.split(self._model(seed), nnx.Param, ...)
        weights, seen = nnx.to_pure_dict(weights), nnx.to_pure_dict(seen)
        return State(weights, seen, self._optimiser.init(weights))

    def _one_step(self, state: State, batch: dict[str, Array]) -> State:
        def loss(weights: PyTree) -> tuple[Array, PyTree]:
            model = nnx.merge(self._graph, weights, state.seen, copy=True)
            losses, counts = self._losses(model, batch)
            _, _, seen = nnx.split(model, nnx.Param, ...)
            return learning.mean_loss(losses, counts), nnx.to_pure_dict(seen)

        gradient, seen = jax.grad(loss, has_aux=True)(state.weights)
        change, optimiser = self._optimiser.update(gradient, state.optimiser, state.weights)
        return State(optax.apply_updates(state.weights, change), seen, optimiser)

    def _test_losses(self, state: State, batch: dict[str, Array]) -> tuple[Array, Array]:
        model = nnx.view(nnx.merge(self._graph, state.weights, state.seen), use_running_average=True)
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


def _on_this_device(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def _merge(*trees: PyTree) -> PyTree:
    """Merges trees without common leaves; integers in their paths become strings, as in a zoo."""
    leaves = {path: leaf for tree in trees for path, leaf in traverse_util.flatten_dict(tree).items()}
    return traverse_util.unflatten_dict({tuple(map(str, path)): np.asarray(leaf) for path, leaf in leaves.items()})
