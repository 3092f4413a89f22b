"""Trains models on the folds of a task, chooses steps and learning rates, and judges them on held-out examples."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

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

    def first(self, count: int) -> "_Judged":
        """Returns the results of the first trainings."""
        return _Judged(self.loss[:count], self.step[:count], {name: v[:count] for name, v in self.metrics.items()})


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
            # The last training is repeated for devices that would have none.
            own = [*runs[first:last], *[runs[last - 1]] * ((first - last) % mesh.size)]
            state = train(model, fold, learning, own, mesh, folder=checkpoints, report=report)
            judged = _judge(model, target, fold, own, state, mesh).first(last - first)
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


def train(
    model: Model,
    fold: Int[np.ndarray, " n"],
    learning: Learning,
    runs: Sequence[Run],
    mesh: Mesh,
    *,
    folder: Path | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> State:
    """Trains at the same time, and keeps the weights with the smallest validation loss.

    Args:
        model: The model.
        fold: Fold of each example; -1: it takes no part.
        learning: How the model is trained.
        runs: The trainings. Their number is a multiple of that of the devices.
        mesh: Devices that share the trainings.
        folder: Where the state is kept and resumed from; None: nowhere.
        report: Called with the number of steps done.

    Returns:
        The state after the last step, [runs, ...].
    """
    splits = [split(fold, run.fold, run.seed) for run in runs]
    *others, _, _ = np.sort(np.bincount(fold[fold >= 0]))
    batch = min(learning.batch, sum(others))  # the size of the smallest training set of all folds and seeds

    def batches(first: int, last: int) -> tuple[PyTree, Int[np.ndarray, "runs steps batch"]]:
        indices = [
            batch_indices(part.train, (run.seed, run.fold), first, last, batch)
            for run, part in zip(runs, splits, strict=True)
        ]
        return model.examples, np.stack(indices)

    indices, counted = _stacked([part.validation for part in splits])
    validation = Validation(model.examples, indices, counted, learning.interval, model.batch)
    rates = np.array([learning.rates[run.rate] for run in runs], np.float32)
    state = start(model.problem, *model.start(runs, splits), mesh, validated=True)
    with open_checkpoints(folder) as checkpoints:
        done, state = checkpoints.restore(state)
        trainings = fit(
            model.problem, state, rates, batches, mesh,
            steps=learning.steps, chunk=learning.chunk, done=done, validation=validation,
        )  # fmt: skip
        for step, state in trainings:
            checkpoints.save(step, state)
            report(step)
    return state


def _judge(
    model: Model, target: Target, fold: Int[np.ndarray, " n"], runs: Sequence[Run], state: State, mesh: Mesh
) -> _Judged:
    """Judges the best weights of trainings on their held-out examples."""
    assert state.best is not None
    splits = [split(fold, run.fold, run.seed) for run in runs]
    indices, counted = _stacked([part.held_out for part in splits])
    predictions = map_examples(
        model.predict, state.best.weights, state.statistics, model.examples, indices, mesh, batch=model.batch
    )
    judged = []
    for part, mask, values in zip(splits, counted, predictions, strict=True):
        centre, _ = label_units(target.target_type, values.shape[-1], target.values[part.train])
        judged.append(judge(target.target_type, values[mask], target.values[part.held_out], centre))
    metrics = {name: np.array([values[name] for values in judged]) for name in judged[0]}
    return _Judged(np.asarray(state.best.loss), np.asarray(state.best.step), metrics)


def _stacked(indices: Sequence[Int[np.ndarray, " count"]]) -> tuple[
    Int[np.ndarray, "runs count"], np.ndarray
]:  # fmt: skip
    """Stacks indices of different numbers, filled up with their first; the second array is False there."""
    most = max(map(len, indices))
    counted = np.array([np.arange(most) < len(part) for part in indices])
    return np.stack([np.resize(part, most) for part in indices]).astype(np.int32), counted
