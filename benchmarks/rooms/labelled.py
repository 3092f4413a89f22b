"""Scores the encoders by labelled examples of every task, and compares the scores with the measured transfer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jaxtransfer as jt
from benchmarks.rooms import transfer
from benchmarks.rooms.examples import Examples, Progress, unpacked
from benchmarks.rooms.scores import RELEVANT, Matrix
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


def score_all(matrices: Mapping[tuple[int, str], Matrix], oracle: jt.Oracle) -> list[Row]:
    """Compares all scores with the measured transfer."""
    names, rows = [*rooms.TASKS], []
    for (count, measure), values in matrices.items():
        allowed = np.flatnonzero(np.any(~np.isnan(values), axis=1)).tolist()
        if not allowed:
            continue
        both = {name: matrices[count, name][allowed] for name in (measure, "ridge")}
        affinity = jt.Affinity.of(names, both, targets=[names[row] for row in allowed])
        of_targets, of_ridge = (_agreement(affinity, oracle, name) for name in (measure, "ridge"))
        without_network = [
            _agreement(
                affinity.only(
                    targets=[name for name in affinity.targets if name != left_out],
                    sources=[name for name in names if name != left_out],
                ),
                oracle,
                measure,
            ).mean()
            for left_out in names
        ]
        difference = of_targets - of_ridge
        rows.append(
            Row(
                count,
                measure,
                len(allowed),
                *(jt.precision_at_k(affinity, oracle, k, relevant=RELEVANT, method=measure) for k in (1, RELEVANT)),
                spearman=float(of_targets.mean()),
                stderr=float(jackknife_stderr(np.array(without_network))),
                lowest=float(of_targets.min()),
                ridge=float(of_ridge.mean()),
                less_ridge=float(difference.mean()),
                less_ridge_stderr=float(difference.std(ddof=1) / np.sqrt(len(difference))),
            )
        )
    return rows


def _agreement(affinity: jt.Affinity, oracle: jt.Oracle, measure: str) -> Float[np.ndarray, " targets"]:
    """Computes the rank correlation of every target; 0 if all values are equal."""
    correlations = jt.rank_correlations(affinity, oracle, method=measure).values()
    return np.nan_to_num([correlation.spearman for correlation in correlations])
