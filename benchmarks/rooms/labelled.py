"""Scores the encoders by labelled examples of every task, and compares the scores with the measured transfer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from benchmarks.rooms import scores, transfer
from benchmarks.rooms.examples import Examples, Progress, unpacked
from benchmarks.rooms.scores import Matrix
from jaxtransfer import rooms
from jaxtransfer.comparison.statistics import jackknife_stderr
from jaxtransfer.data.datasets import LabelledTask, TargetType
from jaxtransfer.files import read_arrays, write_arrays
from jaxtransfer.scores.measures import MEASURES
from jaxtransfer.scores.target import Target

COUNTS = (30, 100, 300, 1000)
"""Numbers of labelled examples."""
_EVERY = 2  # stride of the pixels whose labels are used, as in the transfers


class Row(NamedTuple):
    """The agreement of a measure with the measured transfer.

    Attributes:
        examples: Number of labelled examples.
        measure: The measure.
        targets: Number of targets whose labels the measure allows.
        p1: P@1: share of those targets whose first source is among the five best.
        p5: P@5.
        spearman: Spearman's rank correlation with measured transfer, mean over targets.
        stderr: Jackknife standard error of `spearman` over networks.
        lowest: Spearman's rank correlation of the target with the lowest.
        ridge: Spearman's rank correlation of ridge, mean over the same targets.
        less_ridge: `spearman` less `ridge`.
        less_ridge_stderr: Its standard error over targets.
    """

    examples: int
    measure: str
    targets: int
    p1: float
    p5: float
    spearman: float
    stderr: float
    lowest: float
    ridge: float
    less_ridge: float
    less_ridge_stderr: float


def target_type(task: rooms.Task) -> TargetType:
    """Returns what the labels of a task are; yes-no labels of pixels are numbers."""
    if task.pixels:
        return "dense_classes" if task.loss == "softmax" else "dense"
    return "classes" if task.loss == "softmax" else "numbers"


def target(task: rooms.Task, examples: Examples) -> Target:
    """Encodes the labels of examples."""
    kind = target_type(task)
    labels = np.asarray(unpacked({"label": jnp.asarray(examples.of(task, _EVERY)["label"])})["label"])
    if kind == "dense":
        labels = labels.astype(np.float32)
        labels = np.where(labels < 0, np.nan, labels) if task.loss == "logistic" else labels
    elif kind == "classes":
        labels = np.array(["" if label < 0 else str(label) for label in labels.tolist()])
    elif kind == "dense_classes":
        labels = np.maximum(labels.astype(np.int32), -1)
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)  # a target does not depend on them
    return Target.of(LabelledTask(task.name, "", images, labels, kind, ""))


def measure_sources(
    work: Path, examples: Examples, progress: Progress, counts: Sequence[int] = COUNTS
) -> dict[tuple[int, str], Matrix]:
    """Scores every encoder for every task by every measure; stored scores are not computed again.

    Returns:
        By number of examples and measure a matrix [targets, sources], NaN where a measure does not allow the labels.
    """
    names, zoo = [*rooms.TASKS], rooms.zoo()
    matrices = {(count, measure): np.full((len(names),) * 2, np.nan) for count in counts for measure in MEASURES}
    folder = work / "labelled"
    folder.mkdir(parents=True, exist_ok=True)
    features, seen = [], None
    for done, task in enumerate(sorted(rooms.TASKS.values(), key=_input_name), 1):
        file = folder / f"{task.name}.npz"
        stored = read_arrays(file) if file.exists() else {}
        targets = {count: target(task, examples.part(0, count)) for count in counts}
        if missing := [key for key in matrices if _label(*key) not in stored and _allows(key[1], targets[key[0]])]:
            if not features or seen != task.input:  # tasks with the same input follow each other
                features = [transfer.represent(zoo[name], task, examples).astype(np.float32) for name in names]
                seen = task.input
            for count, measure in missing:
                of_count = [MEASURES[measure].run(of_one[:count], targets[count]).value for of_one in features]
                stored[_label(count, measure)] = np.array(of_count)
            write_arrays(file, stored)
        for key, matrix in matrices.items():
            if (label := _label(*key)) in stored:
                matrix[names.index(task.name)] = stored[label]
        progress(done, len(names))
    return matrices


def _input_name(task: rooms.Task) -> str:
    return task.input.__name__


def _allows(measure: str, labels: Target) -> bool:
    return labels.target_type in MEASURES[measure].target_types and not MEASURES[measure].needs_probabilities


def _label(count: int, measure: str) -> str:
    return f"{measure}-{count}"


def score_all(matrices: Mapping[tuple[int, str], Matrix], truth: Matrix) -> list[Row]:
    """Compares all scores with the measured transfer."""
    rows = []
    for (count, measure), values in matrices.items():
        allowed = np.any(~np.isnan(values), axis=1)
        if not allowed.any():
            continue
        of_targets, of_ridge = (_agreement(matrix, truth, allowed) for matrix in (values, matrices[count, "ridge"]))
        without_network = [
            _without(values, truth, allowed, network).mean() for network in range(len(values))
        ]  # fmt: skip
        difference = of_targets - of_ridge
        rows.append(
            Row(
                count,
                measure,
                int(allowed.sum()),
                _precision(values, truth, allowed, 1),
                _precision(values, truth, allowed, scores.RELEVANT),
                float(of_targets.mean()),
                float(jackknife_stderr(np.array(without_network))),
                float(of_targets.min()),
                float(of_ridge.mean()),
                float(difference.mean()),
                float(difference.std(ddof=1) / np.sqrt(len(difference))),
            )
        )
    return rows


def _agreement(values: Matrix, truth: Matrix, allowed: np.ndarray) -> Float[np.ndarray, " targets"]:
    filled = np.where(allowed[:, None], values, np.arange(len(values))[None])
    return scores.agreement(filled, truth)[allowed]


def _without(values: Matrix, truth: Matrix, allowed: np.ndarray, network: int) -> Float[np.ndarray, " targets"]:
    """Returns the agreement without a network, as a source and as a target."""
    kept = np.delete(np.arange(len(values)), network)
    square = np.ix_(kept, kept)
    return _agreement(values[square], truth[square], allowed[kept])


def _precision(values: Matrix, truth: Matrix, allowed: np.ndarray, k: int) -> float:
    """Returns the share of the k first sources that are among the best, other than the target's own encoder."""
    hits = []
    for row in np.flatnonzero(allowed):
        others = np.delete(np.arange(len(values)), row)
        places = rankdata(-truth[row, others], method="ordinal")
        first = np.argsort(-values[row, others], kind="stable")[:k]
        hits.append((places[first] <= scores.RELEVANT).mean())
    return float(np.mean(hits))
