"""Trains several models at the same time by gradient descent; readouts, whole networks and encoders share this code.

Trainings are independent of each other. They are the first axis, `runs`, of weights and of everything else that
differs between them, and all devices of a mesh share that axis. Its length is a multiple of the number of devices.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxtransfer.devices import DATA, MODEL, compiler_options, gather_to_host

LossFn = Callable[[PyTree, PyTree, PyTree], tuple[Float[Array, " batch"], Float[Array, " batch"], PyTree]]
"""`loss(weights, statistics, examples)`: the loss of each example, 1 where it has one and else 0, and statistics."""

BatchesFn = Callable[[int, int], tuple[PyTree, Int[np.ndarray, "runs steps batch"]]]
"""`batches(first, last)`: examples, and the indices of those of each run's steps from `first` to before `last`."""

_RUNS, _ALL = PartitionSpec((MODEL, DATA)), PartitionSpec()


class Problem(NamedTuple):
    """Says what is minimised and how; equal problems share their compiled programs.

    Attributes:
        loss: The loss of examples, for one training.
        optimiser: The optimiser. Its updates are multiplied by the learning rate of the training.
    """

    loss: LossFn
    optimiser: optax.GradientTransformation


class Best(NamedTuple):
    """Holds the weights of each training at the step with the smallest validation loss so far.

    Attributes:
        weights: The weights, [runs, ...].
        loss: The validation loss; infinite before the first validation.
        step: The number of steps after which the weights had it.
    """

    weights: PyTree
    loss: Float[Array | np.ndarray, " runs"]
    step: Int[Array | np.ndarray, " runs"]


class State(NamedTuple):
    """Holds the state of trainings.

    Attributes:
        weights: What is trained, [runs, ...].
        statistics: What else the loss depends on and may update, [runs, ...].
        optimiser: States of the optimiser, [runs, ...].
        best: Weights with the smallest validation loss; None where nothing is validated.
    """

    weights: PyTree
    statistics: PyTree
    optimiser: PyTree
    best: Best | None


class Validation(NamedTuple):
    """Holds the examples on which trainings are validated.

    Attributes:
        examples: Examples, [examples, ...].
        indices: Indices of each training's validation examples.
        counted: False for indices that only fill the array.
        interval: Number of steps between validations.
        batch: Most examples that a device holds at once of each training.
    """

    examples: PyTree
    indices: Int[np.ndarray, "runs validation"]
    counted: Bool[np.ndarray, "runs validation"]
    interval: int
    batch: int


def start(problem: Problem, weights: PyTree, statistics: PyTree, mesh: Mesh, *, validated: bool) -> State:
    """Returns the state before the first step, on the devices of a mesh.

    Args:
        problem: The problem.
        weights: Initial weights, [runs, ...].
        statistics: Initial statistics, [runs, ...].
        mesh: Devices that share the trainings.
        validated: Whether the training is validated.
    """
    runs = len(jax.tree.leaves(weights)[0])
    best = Best(weights, np.full(runs, np.inf, np.float32), np.zeros(runs, np.int32)) if validated else None
    state = State(weights, statistics, jax.vmap(problem.optimiser.init)(weights), best)
    return jax.device_put(state, NamedSharding(mesh, _RUNS))


def fit(
    problem: Problem,
    state: State,
    rates: Float[np.ndarray, " runs"],
    batches: BatchesFn,
    mesh: Mesh,
    *,
    steps: int,
    chunk: int,
    done: int = 0,
    validation: Validation | None = None,
) -> Iterator[tuple[int, State]]:
    """Trains, and yields the number of steps done and the state after every `chunk` steps.

    The numbers do not depend on which states are kept: a training that resumes from a yielded state has the same bits.

    Args:
        problem: What is minimised and how.
        state: The state after `done` steps.
        rates: Learning rate of each training, which multiplies the optimiser's updates.
        batches: Gives the examples of steps.
        mesh: Devices that share the trainings.
        steps: Number of steps in all.
        chunk: Number of steps in one program.
        done: Number of steps that are done.
        validation: Examples for early stopping; their interval is a multiple of `chunk`. None: none.
    """
    advance = _advance(problem, mesh)
    for first in range(done, steps, chunk):
        last = min(first + chunk, steps)
        state = advance(state, rates, *batches(first, last))
        if validation is not None and (last % validation.interval == 0 or last == steps):
            assert state.best is not None
            losses = _validation_losses(problem, state, validation, mesh)
            state = state._replace(best=_better(state.best, state.weights, losses, np.int32(last)))
        yield last, state


def map_examples(
    function: Callable[[PyTree, PyTree, PyTree], PyTree],
    weights: PyTree,
    statistics: PyTree,
    examples: PyTree,
    indices: Int[np.ndarray, "runs count"],
    mesh: Mesh,
    *,
    batch: int,
) -> PyTree:
    """Applies a function of weights, statistics and examples to examples of each training.

    Args:
        function: The function; equal ones share their compiled programs.
        weights: Weights, [runs, ...].
        statistics: Statistics, [runs, ...].
        examples: Examples, [examples, ...].
        indices: Indices of the examples of each training.
        mesh: Devices that share the trainings.
        batch: Most examples that a device holds at once of each training.

    Returns:
        What the function returns, on the host, [runs, count, ...].
    """
    program, count = _mapped(function, mesh), indices.shape[1]
    batch = -(-count // -(-count // batch))
    filled = np.pad(indices, ((0, 0), (0, -count % batch)), mode="edge")
    parts = [program(weights, statistics, examples, part) for part in np.split(filled, filled.shape[1] // batch, 1)]
    return jax.tree.map(lambda *leaves: np.concatenate([*map(gather_to_host, leaves)], 1)[:, :count], *parts)


def mean_loss(values: Float[Array, " batch"], counts: Float[Array, " batch"]) -> Float[Array, ""]:
    """Averages the losses of the examples whose count is 1; 0 where there are none."""
    return (values * counts).sum() / jnp.maximum(counts.sum(), 1)


def _validation_losses(
    problem: Problem, state: State, validation: Validation, mesh: Mesh
) -> Float[np.ndarray, " runs"]:
    """Returns the mean loss of each training on its validation examples; infinite where it is not finite."""
    values, counts = map_examples(
        _LossOnly(problem.loss), state.weights, state.statistics, validation.examples, validation.indices, mesh,
        batch=validation.batch,
    )  # fmt: skip
    counts = counts * validation.counted
    with np.errstate(invalid="ignore", over="ignore"):
        losses = np.where(counts > 0, values, 0).sum(1, dtype=np.float64) / np.maximum(counts.sum(1), 1)
    return np.where(np.isfinite(losses), losses, np.inf).astype(np.float32)


class _LossOnly(NamedTuple):
    """The losses and counts of a loss, without the statistics."""

    loss: LossFn

    def __call__(self, weights: PyTree, statistics: PyTree, examples: PyTree) -> tuple[Array, Array]:
        values, counts, _ = self.loss(weights, statistics, examples)
        return values, counts


@functools.lru_cache(maxsize=64)
def _advance(problem: Problem, mesh: Mesh) -> Callable[..., State]:
    """Returns the program that takes some steps of all trainings."""
    # On each device's own trainings: without `shard_map` XLA gathers the weights of convolutions over the runs.
    program = jax.shard_map(
        _over_runs(functools.partial(_steps, problem)),
        mesh=mesh,
        in_specs=(_RUNS, _RUNS, _ALL, _RUNS),
        out_specs=_RUNS,
        check_vma=False,
    )
    return jax.jit(program, compiler_options=compiler_options(mesh))


@functools.lru_cache(maxsize=64)
def _mapped(function: Callable[..., PyTree], mesh: Mesh) -> Callable[..., PyTree]:
    """Returns the program that applies a function to some examples of each training."""

    def of_run(weights: PyTree, statistics: PyTree, examples: PyTree, indices: Int[Array, " batch"]) -> PyTree:
        return function(weights, statistics, _take(examples, indices))

    program = jax.shard_map(
        _over_runs(of_run),
        mesh=mesh,
        in_specs=(_RUNS, _RUNS, _ALL, _RUNS),
        out_specs=_RUNS,
        check_vma=False,
    )
    return jax.jit(program, compiler_options=compiler_options(mesh))


def _over_runs(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Maps a function of a run's arguments, all examples and a run's indices over the runs of a device."""

    def mapped(first: PyTree, second: PyTree, examples: PyTree, indices: Int[Array, "runs ..."]) -> PyTree:
        if len(indices) > 1:
            return jax.vmap(function, in_axes=(0, 0, None, 0))(first, second, examples, indices)
        # Without `vmap`, which makes grouped convolutions.
        first, second = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (first, second))
        return jax.tree.map(lambda leaf: leaf[None], function(first, second, examples, indices[0]))

    return mapped


def _steps(
    problem: Problem, state: State, rate: Float[Array, ""], examples: PyTree, indices: Int[Array, "steps batch"]
) -> State:
    """Takes steps of one training."""

    def step(state: State, indices: Int[Array, " batch"]) -> tuple[State, None]:
        batch = _take(examples, indices)

        def mean(weights: PyTree) -> tuple[Array, PyTree]:
            values, counts, statistics = problem.loss(weights, state.statistics, batch)
            return mean_loss(values, counts), statistics

        gradient, statistics = jax.grad(mean, has_aux=True)(state.weights)
        with jax.numpy_dtype_promotion("standard"):  # Optax's optimisers and schedules mix integers and floats
            updates, optimiser = problem.optimiser.update(gradient, state.optimiser, state.weights)
        updates = jax.tree.map(lambda update: rate * update, updates)
        weights = optax.apply_updates(state.weights, updates)
        return state._replace(weights=weights, statistics=statistics, optimiser=optimiser), None

    if len(indices) == 1:  # XLA computes gradients of convolutions in loops many times slower on CPUs
        return step(state, indices[0])[0]
    return jax.lax.scan(step, state, indices)[0]


@jax.jit
def _better(best: Best, weights: PyTree, losses: Float[Array, " runs"], step: Int[Array, ""]) -> Best:
    """Replaces the best weights of the trainings whose validation loss has fallen."""
    better = losses < best.loss

    def choose(new: Any, old: Any) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (jnp.ndim(new) - 1)), new, old)

    return jax.tree.map(choose, Best(weights, losses, jnp.full_like(best.step, step)), best)


def _take(examples: PyTree, indices: Int[Array, " batch"]) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[indices], examples)
