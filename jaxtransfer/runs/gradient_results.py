"""Computes gaps and alignments of tasks with what they rest on, and writes and reads their tables."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.comparison.measure import ALIGNMENT, GAP, Measure
from jaxtransfer.data.datasets import LabelledTask
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.figures import heat_map
from jaxtransfer.files import read_records, read_table, write_csv
from jaxtransfer.pge.alignment import AlignmentEstimation
from jaxtransfer.pge.estimator import PrincipalGradient
from jaxtransfer.pge.gap import Form, gap
from jaxtransfer.pge.options import GradientMeasure
from jaxtransfer.pge.remarks import label_dependence, unresolved

Row = dict[str, Any]
_MEASURES: dict[GradientMeasure, Measure] = {"gap": GAP, "alignment": ALIGNMENT}


@dataclasses.dataclass(frozen=True, eq=False)
class GradientResults:
    """Holds the results of a run of principal gradients.

    Attributes:
        measure: What the values are: gaps or alignments.
        tasks: The tasks, in the order of the rows.
        values: Gaps or alignments; NaN where the gradient of a task cannot be distinguished from zero.
        stderr: Standard errors of the values; NaN in the same places.
        control: A row for each task: what its values rest on, and whether it reads the labels; None: not known.
        remarks: Sentences on the tasks for the user.
    """

    measure: Measure
    tasks: tuple[LabelledTask, ...]
    values: Float[np.ndarray, "tasks tasks"]
    stderr: Float[np.ndarray, "tasks tasks"]
    control: tuple[Row, ...]
    remarks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Lists the names of the tasks."""
        return tuple(task.name for task in self.tasks)

    def rank(self, target: str) -> list[tuple[str, float, float]]:
        """Ranks the other tasks as sources for a target, nearest first, without those that have no value.

        Returns:
            (name, value, standard error) of each source.
        """
        return self.measure.rank(self.names, target, self.values, self.stderr)


def gaps(
    tasks: Sequence[LabelledTask], gradients: Mapping[str, PrincipalGradient], form: Form, tolerance: float
) -> GradientResults:
    """Computes the gaps between all tasks.

    Args:
        tasks: The tasks.
        gradients: The principal gradient of each task by name, in the order of the tasks.
        form: The form of the gap, see `jaxtransfer.gap`.
        tolerance: The signal-to-noise ratio from which a gradient counts as resolved.
    """
    count = len(tasks)
    values, stderr = (np.full((count, count), np.nan) for _ in range(2))
    np.fill_diagonal(values, 0)
    np.fill_diagonal(stderr, 0)
    estimates = list(gradients.values())
    visible = [gradient.squared_norm.value > 2 * gradient.squared_norm.stderr for gradient in estimates]
    for i in range(count):
        for j in range(i):
            if visible[i] and visible[j]:
                estimate = gap(estimates[i], estimates[j], form)
                if math.isfinite(estimate.stderr):
                    values[i, j] = values[j, i] = estimate.value
                    stderr[i, j] = stderr[j, i] = estimate.stderr
    rows, remarks = [], []
    for (name, gradient), is_visible in zip(gradients.items(), visible, strict=True):
        distance = gradient.label_signal
        rows.append(
            {
                "task": name,
                "restarts": gradient.restarts,
                "squared_norm": gradient.squared_norm.value,
                "squared_norm_stderr": gradient.squared_norm.stderr,
                "signal_to_noise": gradient.signal_to_noise,
                "split_half": gradient.split_half,
                "restarts_needed": _restarts_needed(gradient.restarts, gradient.signal_to_noise, tolerance),
                "squared_distance_to_control": None if distance is None else distance.value,
                "squared_distance_stderr": None if distance is None else distance.stderr,
                "reads_labels": False if gradient.label_blind else gradient.reads_labels,
                "label_blind": gradient.label_blind,
            }
        )
        remarks += [(name, sentence) for sentence in gradient.remarks(tolerance)]
        if not is_visible:
            remarks.append((name, "Its gradient cannot be distinguished from zero, so its gaps are left empty."))
    return GradientResults(GAP, tuple(tasks), values, stderr, tuple(rows), _by_sentence(remarks, count))


def alignments(tasks: Sequence[LabelledTask], estimation: AlignmentEstimation, tolerance: float) -> GradientResults:
    """Computes the alignments of all tasks.

    Args:
        tasks: The tasks.
        estimation: The finished estimation of the tasks, in their order; where there is a control, followed by their
            shuffled copies.
        tolerance: The signal-to-noise ratio from which a task counts as resolved.
    """
    count = len(tasks)
    has_control = len(estimation.names) > count
    own = estimation.own()
    visible = [name for name in estimation.names if own[name].value > 2 * own[name].stderr]
    values, stderr = (np.full((len(own), len(own)), np.nan, np.float32) for _ in range(2))
    if visible:
        affinity = estimation.result(visible)
        square = np.ix_(*[[estimation.names.index(name) for name in visible]] * 2)
        values[square], stderr[square] = affinity["alignment"], affinity.stderr("alignment")
    unknown = ~(np.isfinite(values) & np.isfinite(stderr))
    values[unknown] = stderr[unknown] = np.nan
    np.fill_diagonal(values, 1)
    np.fill_diagonal(stderr, 0)
    rows, remarks = [], []
    for i, task in enumerate(tasks):
        name, (value, error) = task.name, own[task.name]
        blind = name in estimation.label_blind
        signal_to_noise = (value / error) ** 2 if value > 0 < error else math.inf if value > 0 else 0.0
        needed = _restarts_needed(estimation.done, signal_to_noise, tolerance)
        with_control = (values[i, count + i], stderr[i, count + i]) if has_control else (math.nan, math.nan)
        distance = estimation.squared_distance(name, shuffled_copy(name)) if has_control else None
        reads = False if blind else None if distance is None else distance.value > 2 * distance.stderr
        rows.append(
            {
                "task": name,
                "restarts": estimation.done,
                "signal_to_noise": signal_to_noise,
                "restarts_needed": needed,
                "squared_distance_to_control": None if distance is None else distance.value,
                "squared_distance_stderr": None if distance is None else distance.stderr,
                "alignment_with_control": with_control[0],
                "alignment_with_control_stderr": with_control[1],
                "reads_labels": reads,
                "label_blind": blind,
            }
        )
        if signal_to_noise < tolerance:
            remarks.append((name, unresolved(tolerance, None if needed is None else needed - estimation.done)))
        if name not in visible:
            common = "Its batches have no common gradient that can be distinguished from zero"
            remarks.append((name, f"{common}; its cells are left empty."))
        if blind:
            remarks.append(
                (
                    name,
                    "The head is drawn at random for every gradient, so the alignment does not depend on the labels.",
                )
            )
        elif distance is not None:
            remarks.append((name, label_dependence(distance, depends=reads)))
    square = slice(count), slice(count)
    return GradientResults(
        ALIGNMENT, tuple(tasks), values[square], stderr[square], tuple(rows), _by_sentence(remarks, count)
    )


def shuffled_copy(name: str) -> str:
    """Returns the name of a task's copy with permuted labels; no name of a task has a slash."""
    return f"{name}/shuffled"


def _restarts_needed(restarts: int, signal_to_noise: float, tolerance: float) -> int | None:
    """Estimates the restarts for a signal-to-noise ratio of `tolerance`; None while there is no signal."""
    return math.ceil(restarts * tolerance / signal_to_noise) if signal_to_noise > 0 else None


def _by_sentence(remarks: Iterable[tuple[str, str]], count: int) -> tuple[str, ...]:
    """Joins the names of the tasks that share a sentence."""
    names: dict[str, list[str]] = {}
    for name, sentence in remarks:
        names.setdefault(sentence, []).append(name)
    return tuple(
        f"{'All tasks' if len(tasks) == count > 1 else ', '.join(tasks)}: {sentence}"
        for sentence, tasks in names.items()
    )


def write_results(out: Path, results: GradientResults, title: str) -> None:
    """Writes the tables and the heat map into a directory, each whole or not at all.

    Args:
        out: The directory.
        results: What the run computed.
        title: Stands in parentheses in the title of the heat map.
    """
    names, measure = results.names, results.measure
    for ending, table in (("", results.values), ("_stderr", results.stderr)):
        rows = [[name, *row] for name, row in zip(names, table, strict=True)]
        write_csv(out / f"{measure.name}{ending}.csv", [["", *names], *rows])
    ranking = [[target, rank, *source] for target in names for rank, source in enumerate(results.rank(target), 1)]
    write_csv(out / "ranking.csv", [["target", "rank", "source", measure.name, "stderr"], *ranking])
    write_csv(out / "control.csv", [list(results.control[0]), *(list(row.values()) for row in results.control)])
    heat_map(
        results.values,
        names,
        out / f"{measure.name}.png",
        f"{measure.name.capitalize()} of principal gradients ({title})",
        quantity=f"{measure.name}, {measure.direction}",
        smaller_is_nearer=measure.smaller_is_nearer,
    )


def read_results(directory: Path, measure: GradientMeasure) -> Affinity:
    """Reads the tables that `write_results` wrote.

    Args:
        directory: The run directory.
        measure: "gap" or "alignment", which is the name of the only method too.

    Returns:
        Gaps or alignments, with their measure; NaN where there is none. The counts are restarts.

    Raises:
        JaxTransferError: A table is missing or damaged.
    """
    try:
        names, values = read_table(directory / f"{measure}.csv", np.float32, missing="nan")
        others, stderr = read_table(directory / f"{measure}_stderr.csv", np.float32, missing="nan")
        restarts = np.array([int(row["restarts"]) for row in read_control(directory)], np.int64)
        if others != names or len(restarts) != len(names):
            raise ValueError("its tables are of different tasks")
    except JaxTransferError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        raise JaxTransferError(f"{directory} does not hold a finished run: {error}.") from error
    result = MethodResult(values, stderr, np.minimum.outer(restarts, restarts), measure=_MEASURES[measure])
    return Affinity(names, "cosine", {measure: result})


def read_control(directory: Path) -> list[dict[str, str]]:
    """Reads the rows of `control.csv` as text."""
    return read_records(directory / "control.csv", ("task", "restarts", "restarts_needed", "reads_labels"))
