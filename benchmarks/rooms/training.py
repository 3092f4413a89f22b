"""Encoders from scratch: each with a readout, on one task."""

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

_AT_ONCE = 250


def convolve(images: Array, kernel: Array, strides: tuple[int, int], padding: Any, **_: Any) -> Array:
    """A convolution whose gradient is fast on CPUs too, as `flax.nnx.Conv` wants one."""
    return convolution(images, kernel, strides[0], kernel.shape[0] // 2)


def readout(task: Task, settings: Learning, rngs: nnx.Rngs) -> PixelReadout | VectorReadout:
    """A fresh readout for a task."""
    of_representation = WIDTH * task.views, settings.hidden, task.outputs
    if task.pixels:
        return PixelReadout(*of_representation, settings.kernel, 8 // settings.every, convolve=convolve, rngs=rngs)
    return VectorReadout(*of_representation, convolve=convolve, rngs=rngs)


class Model(nnx.Module):
    """An encoder and a readout of what it makes of all views."""

    def __init__(self, task: Task, settings: Learning, *, rngs: nnx.Rngs) -> None:
        channels = 1 if preprocess(task.name).lightness else 3
        self.encoder = Encoder(channels, convolve=convolve, rngs=rngs)
        self.readout = readout(task, settings, rngs)

    def __call__(self, views: Float[Array, "images views h w c"]) -> Float[Array, "images ..."]:
        """Answers to the task's question."""
        images, number = views.shape[:2]
        found = self.encoder(views.reshape(images * number, *views.shape[2:]))
        found = found.reshape(images, number, *found.shape[1:])
        return self.readout(jnp.concatenate([found[:, view] for view in range(number)], -1))


def views(task: Task, example: dict[str, Array]) -> Float[Array, "images views h w 3"]:
    """What a task shows of some examples, in [0, 1]."""
    images = jax.vmap(task.input)(example)
    return images if task.views > 1 else images[:, None]


class State(NamedTuple):
    """Of training: what an optimiser moves, what batch normalisation has seen, and the optimiser's own."""

    weights: PyTree
    seen: PyTree
    optimiser: PyTree


class Trained(NamedTuple):
    """What training ends with.

    Attributes:
        encoder: Its weights, as nested dicts.
        losses: Of every test image.
        counts: 1 where the image has a loss, else 0.
    """

    encoder: PyTree
    losses: Float[np.ndarray, " images"]
    counts: Float[np.ndarray, " images"]


class Trainer:
    """One task: steps of the optimiser, with checkpoints from which they go on; compiled once for all seeds."""

    def __init__(self, task: Task, settings: Learning, prior: Prior) -> None:
        """Takes the task.

        Args:
            task: What to learn.
            settings: How.
            prior: What the training labels are like.
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
        """Trains from the last checkpoint on, and tests.

        Args:
            seed: Of the weights and of the order of examples.
            train: What to train on.
            test: What to test on.
            progress: Called with steps done.
            checkpoints: Where the last one is kept; None: nowhere.
            every: Steps between checkpoints.
        """
        steps = self.settings.steps
        train, test = (each.of(self.task, self.settings.every) for each in (train, test))
        with contextlib.ExitStack() as stack:
            kept, state, done = None, self._first(seed), 0
            if checkpoints is not None:
                last: Any = ocp.training.preservation_policies.LatestN(1)
                kept = ocp.training.Checkpointer(str(checkpoints.absolute()), preservation_policy=last)
                stack.enter_context(kept)
                if kept.latest is not None:
                    done, state = kept.latest.step, kept.load(kept.latest, jax.tree.map(_here, state))
            for step in range(done, steps):
                rng = np.random.default_rng([seed, step])
                state = self._step(state, train.some(np.sort(rng.choice(len(train), self.settings.batch, False))))
                if kept is not None and ((step + 1) % every == 0 or step + 1 == steps):
                    kept.save(step + 1, state)
                progress(step + 1)
        found = []
        for start in range(0, len(test), _AT_ONCE):
            batch = test.some(np.arange(start, min(start + _AT_ONCE, len(test))))
            found.append([np.asarray(part) for part in self._test(state, batch)])
        each, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Trained(_together(state.weights["encoder"], state.seen["encoder"]), each, counts)

    def _model(self, seed: int) -> Model:
        model = Model(self.task, self.settings, rngs=nnx.Rngs(seed))
        return nnx.with_attributes(model, only=nnx.BatchNorm, momentum=self.settings.momentum)

    def _first(self, seed: int) -> State:
        """Fresh weights."""
        _, weights, seen = nnx.split(self._model(seed), nnx.Param, ...)
        weights, seen = nnx.to_pure_dict(weights), nnx.to_pure_dict(seen)
        return State(weights, seen, self._optimiser.init(weights))

    def _one_step(self, state: State, batch: dict[str, Array]) -> State:
        def loss(weights: PyTree) -> tuple[Array, PyTree]:
            model = nnx.merge(self._graph, weights, state.seen, copy=True)
            each, counts = self._losses(model, batch)
            _, _, seen = nnx.split(model, nnx.Param, ...)
            return learning.mean_loss(each, counts), nnx.to_pure_dict(seen)

        gradient, seen = jax.grad(loss, has_aux=True)(state.weights)
        change, optimiser = self._optimiser.update(gradient, state.optimiser, state.weights)
        return State(optax.apply_updates(state.weights, change), seen, optimiser)

    def _test_losses(self, state: State, batch: dict[str, Array]) -> tuple[Array, Array]:
        model = nnx.view(nnx.merge(self._graph, state.weights, state.seen), use_running_average=True)
        return self._losses(model, batch)

    def _losses(self, model: Model, batch: dict[str, Array]) -> tuple[Array, Array]:
        example = unpacked(batch)
        shown = views(self.task, example)
        inputs = self._preprocess(shown.reshape(-1, *shown.shape[2:])).reshape(*shown.shape[:-1], -1)
        answers = model(inputs) + (self.prior.answers[None] if self.settings.from_prior else 0)
        return learning.losses(self.task, self.prior.units, answers, example["label"])


def untrained(name: str, examples: Examples) -> Network:
    """An encoder with fresh weights, whose normalisation has seen some images."""
    encoder = nnx.with_attributes(Encoder(3, rngs=nnx.Rngs(0)), only=nnx.BatchNorm, momentum=0.0)
    images = unpacked({"image": jnp.asarray(examples.some(np.arange(min(_AT_ONCE, len(examples))))["image"])})["image"]
    encoder(preprocess(name)(images))
    _, weights, seen = nnx.split(encoder, nnx.Param, ...)
    return Network(name, encode, _together(nnx.to_pure_dict(weights), nnx.to_pure_dict(seen)), preprocess(name))


def _here(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def _together(*trees: PyTree) -> PyTree:
    """One of several trees that have no leaf in common; the numbers in its paths become strings, as in a zoo."""
    leaves = {path: leaf for tree in trees for path, leaf in traverse_util.flatten_dict(tree).items()}
    return traverse_util.unflatten_dict({tuple(map(str, path)): np.asarray(leaf) for path, leaf in leaves.items()})
