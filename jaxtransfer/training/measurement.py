"""Trains models on the folds of a task, chooses steps and learning rates, and judges them on held-out examples."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jaxtransfer.devices import gather_to_host
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays, write_arrays
from jaxtransfer.points.store import chunks
from jaxtransfer.scores.target import Target
from jaxtransfer.training.checkpoints import open_checkpoints
from jaxtransfer.training.fit import Problem, State, Validation, fit, map_examples, start
from jaxtransfer.training.metrics import judge
from jaxtransfer.training.readout import label_units
from jaxtransfer.training.splits import Split, batch_indices, split

StepsFn = Callable[[int, int], None]
"""Called with the number of steps done and of all steps."""


class Run(NamedTuple):
    """Names one training: the fold that is held out, its seed, and the index of its learning rate."""

    fold: int
    seed: int
    rate: int


@dataclasses.dataclass(frozen=True)
class Learning:
    """Says how models are trained.

    Attributes:
        steps: Number of optimiser steps.
        batch: Examples in a step.
        interval: Steps between validations.
        chunk: Steps in one program; divides `interval`.
        rates: Learning rates to choose from.
    """

    steps: int
    batch: int
    interval: int
    chunk: int
    rates: tuple[float, ...]

    def with_steps(self, steps: int | None) -> "Learning":
        """Returns the same with another number of steps; None: with the same."""
        return self if steps is None else dataclasses.replace(self, steps=steps)


class Model(NamedTuple):
    """Describes what is trained on a task.

    Attributes:
        problem: The loss of examples, and the optimiser.
        predict: `predict(weights, statistics, examples)`: predictions, as `metrics.judge` takes them.
        start: Returns initial weights and statistics, [runs, ...], of trainings with these runs and splits.
        examples: The examples of the task, [n, ...].
        at_once: Number of trainings at the same time.
        batch: Most examples that are predicted at once for each training.
    """

    problem: Problem
    predict: Callable[[PyTree, PyTree, PyTree], Array]
    start: Callable[[Sequence[Run], Sequence[Split]], tuple[PyTree, PyTree]]
    examples: PyTree
    at_once: int
    batch: int


class Outcome(NamedTuple):
    """Holds the results of a model on a task.

    Attributes:
        metrics: By name, a metric on each held-out fold for each seed; NaN where it has no value.
        rate: The learning rate that was chosen for each fold.
        step: The number of steps after which the weights were kept.
    """

    metrics: dict[str, Float[np.ndarray, "folds seeds"]]
    rate: Float[np.ndarray, " folds"]
    step: Int[np.ndarray, "folds seeds"]


class _Judged(NamedTuple):
    """Holds the results of trainings: validation loss and step of the weights kept, and metrics by name."""

    loss: Float[np.ndarray, " runs"]
    step: Int[np.ndarray, " runs"]
    metrics: dict[str, Float[np.ndarray, " runs"]]


def measure(
    model: Model,
    target: Target,
    fold: Int[np.ndarray, " n"],
    learning: Learning,
    seeds: int,
    mesh: Mesh,
    *,
    folder: Path | None = None,
    progress: StepsFn | None = None,
) -> Outcome:
    """Trains a model for every fold, seed and learning rate, and judges it on the fold that was held out.

    A training never sees its held-out fold. One of the other folds, another one for each seed, is for validation: it
    chooses the step whose weights are kept, and the mean of its losses over seeds chooses the learning rate.

    Args:
        model: The model.
        target: The labels.
        fold: Fold of each example, see `folds_of`; -1: it takes no part.
        learning: How the model is trained.
        seeds: Number of trainings for each fold and learning rate.
        mesh: Devices that share the trainings.
        folder: Where unfinished trainings are kept and resumed from; None: nowhere.
        progress: Called with the steps done and all steps.

    Raises:
        JaxTransferError: The loss is not finite at any learning rate.
    """
    folds, rates = int(fold.max()) + 1, len(learning.rates)
    runs = [Run(*run) for run in itertools.product(range(folds), range(seeds), range(rates))]
    groups = [*chunks(len(runs), model.at_once)]
    parts: list[_Judged] = []
    for number, (first, last) in enumerate(groups):

        def report(done: int, before: int = number * learning.steps) -> None:
            if progress is not None:
                progress(before + done, len(groups) * learning.steps)

        file = folder and folder / f"{number}.npz"
        if (judged := file and _read(file)) is None:
            checkpoints = folder and folder / str(number)
            judged = _train(model, target, fold, learning, runs[first:last], mesh, checkpoints, report)
            if file:
                write_arrays(file, {"loss": judged.loss, "step": judged.step, **judged.metrics})
        report(learning.steps)
        parts.append(judged)
    shape = folds, seeds, rates
    losses, steps = (np.concatenate(part).reshape(shape) for part in list(zip(*parts, strict=True))[:2])
    with np.errstate(invalid="ignore"):
        chosen = losses.mean(1).argmin(1)
    if not np.isfinite(losses.mean(1).min(1)).all():
        raise JaxTransferError("training gives losses that are not finite at any learning rate.")
    own = np.arange(folds), slice(None), chosen
    metrics = {name: np.concatenate([part.metrics[name] for part in parts]) for name in parts[0].metrics}
    return Outcome(
        {name: values.reshape(shape)[own] for name, values in metrics.items()},
        np.array(learning.rates)[chosen],
        steps[own],
    )


def _read(file: Path) -> _Judged | None:
    """Reads the results of trainings; None where the file is missing or damaged."""
    try:
        arrays = read_arrays(file)
        return _Judged(arrays.pop("loss"), arrays.pop("step"), arrays)
    except (OSError, ValueError, KeyError):
        return None


def _train(
    model: Model,
    target: Target,
    fold: Int[np.ndarray, " n"],
    learning: Learning,
    runs: Sequence[Run],
    mesh: Mesh,
    folder: Path | None,
    report: Callable[[int], None],
) -> _Judged:
    """Trains and judges at the same time; the last run is repeated for devices that would have none."""
    filled = [*runs, *[runs[-1]] * (-len(runs) % mesh.size)]
    splits = [split(fold, run.fold, run.seed) for run in filled]
    batch = min(learning.batch, min(len(part.train) for part in splits))

    def batches(first: int, last: int) -> tuple[PyTree, Int[np.ndarray, "runs steps batch"]]:
        indices = [
            batch_indices(part.train, (run.seed, run.fold), first, last, batch)
            for run, part in zip(filled, splits, strict=True)
        ]
        return model.examples, np.stack(indices)

    indices, counted = _stacked([part.validation for part in splits])
    validation = Validation(model.examples, indices, counted, learning.interval, model.batch)
    rates = np.array([learning.rates[run.rate] for run in filled], np.float32)
    state = start(model.problem, *model.start(filled, splits), mesh, validated=True)
    with open_checkpoints(folder) as checkpoints:
        done, state = checkpoints.restore(state)
        trainings = fit(
            model.problem, state, rates, batches, mesh,
            steps=learning.steps, chunk=learning.chunk, done=done, validation=validation,
        )  # fmt: skip
        for step, state in trainings:
            checkpoints.save(step, state)
            report(step)
    return _judge(model, target, splits, state, mesh, len(runs))


def _judge(model: Model, target: Target, splits: Sequence[Split], state: State, mesh: Mesh, count: int) -> _Judged:
    """Judges the best weights of the first `count` trainings on their held-out examples."""
    assert state.best is not None
    indices, counted = _stacked([part.held_out for part in splits])
    predictions = map_examples(
        model.predict, state.best.weights, state.statistics, model.examples, indices, mesh, batch=model.batch
    )
    judged = []
    for i in range(count):
        centre, _ = label_units(target.target_type, predictions.shape[-1], target.values[splits[i].train])
        labels = target.values[splits[i].held_out]
        judged.append(judge(target.target_type, predictions[i][counted[i]], labels, centre))
    metrics = {name: np.array([values[name] for values in judged]) for name in judged[0]}
    return _Judged(gather_to_host(state.best.loss)[:count], gather_to_host(state.best.step)[:count], metrics)


def _stacked(indices: Sequence[Int[np.ndarray, " count"]]) -> tuple[
    Int[np.ndarray, "runs count"], np.ndarray
]:  # fmt: skip
    """Stacks indices of different numbers, filled up with their first; the second array is False there."""
    most = max(map(len, indices))
    counted = np.array([np.arange(most) < len(part) for part in indices])
    return np.stack([np.resize(part, most) for part in indices]).astype(np.int32), counted
