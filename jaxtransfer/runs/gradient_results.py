"""What principal gradients and alignments say of tasks: tables, rankings and sentences, and the files they go to."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.data.datasets import LabelledTask
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.figures.drawings import heat_map
from jaxtransfer.files import read_records, read_table, write_csv
from jaxtransfer.pge.alignment import AlignmentEstimation
from jaxtransfer.pge.estimator import PrincipalGradient
from jaxtransfer.pge.gap import Form, gap

Measure = Literal["gap", "alignment"]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class GradientResults:
    """What a run found out about its tasks.

    Attributes:
        measure: "gap", of which smaller is nearer, or "alignment", of which larger is.
        tasks: In the order of the rows.
        values: Gaps or alignments; NaN where a task's gradient cannot be told from none.
        stderr: Their standard errors; NaN there too.
        control: For each task what its value rests on, and whether it reads the labels; None: not known.
        remarks: What is to be said of the tasks, in sentences.
    """

    measure: Measure
    tasks: tuple[LabelledTask, ...]
    values: Float[np.ndarray, "tasks tasks"]
    stderr: Float[np.ndarray, "tasks tasks"]
    control: tuple[Row, ...]
    remarks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(task.name for task in self.tasks)

    def rank(self, target: str) -> list[tuple[str, float, float]]:
        """The other tasks as sources for one: (name, value, standard error), nearest first, without what is missing."""
        row = self.names.index(target)
        found = [
            (name, float(self.values[row, i]), float(self.stderr[row, i]))
            for i, name in enumerate(self.names)
            if i != row and not np.isnan(self.values[row, i])
        ]
        return sorted(found, key=lambda each: each[1] if self.measure == "gap" else -each[1])


def gaps(
    tasks: Sequence[LabelledTask], gradients: Mapping[str, PrincipalGradient], form: Form, tolerance: float
) -> GradientResults:
    """The gaps between all tasks.

    Args:
        tasks: The tasks.
        gradients: Of every task by name.
        form: Which gap.
        tolerance: Signal-to-noise that is wanted.
    """
    count = len(tasks)
    values, stderr = (np.full((count, count), np.nan) for _ in range(2))
    np.fill_diagonal(values, 0)
    np.fill_diagonal(stderr, 0)
    found = list(gradients.values())
    seen = [each.squared_norm.value > 2 * each.squared_norm.stderr for each in found]
    for i in range(count):
        for j in range(i):
            if seen[i] and seen[j]:
                estimate = gap(found[i], found[j], form)
                if math.isfinite(estimate.stderr):
                    values[i, j] = values[j, i] = estimate.value
                    stderr[i, j] = stderr[j, i] = estimate.stderr
    rows, remarks = [], []
    for (name, each), visible in zip(gradients.items(), seen, strict=True):
        distance = each.label_signal
        rows.append(
            {
                "task": name,
                "restarts": each.restarts,
                "squared_norm": each.squared_norm.value,
                "squared_norm_stderr": each.squared_norm.stderr,
                "signal_to_noise": each.signal_to_noise,
                "split_half": each.split_half,
                "restarts_needed": _needed(each.restarts, each.signal_to_noise, tolerance),
                "squared_distance_to_control": None if distance is None else distance.value,
                "squared_distance_stderr": None if distance is None else distance.stderr,
                "reads_labels": False if each.label_blind else each.reads_labels,
                "label_blind": each.label_blind,
            }
        )
        remarks += [(name, sentence) for sentence in each.remarks(tolerance)]
        if not visible:
            remarks.append((name, "Its gradient cannot be told from none at all, so its gaps are left empty."))
    return GradientResults("gap", tuple(tasks), values, stderr, tuple(rows), _gathered(remarks, count))


def alignments(tasks: Sequence[LabelledTask], estimation: AlignmentEstimation, tolerance: float) -> GradientResults:
    """The alignments of all tasks.

    Args:
        tasks: The tasks.
        estimation: Of the tasks, in their order; where there is a control, followed by their shuffled copies.
        tolerance: Signal-to-noise that is wanted.
    """
    count = len(tasks)
    control = len(estimation.names) > count
    own = estimation.own()
    seen = [name for name in estimation.names if own[name].value > 2 * own[name].stderr]
    values, stderr = (np.full((len(own), len(own)), np.nan, np.float32) for _ in range(2))
    if seen:
        affinity = estimation.result(seen)
        where = np.ix_(*[[estimation.names.index(name) for name in seen]] * 2)
        values[where], stderr[where] = affinity["alignment"], affinity.stderr("alignment")
    unknown = ~(np.isfinite(values) & np.isfinite(stderr))
    values[unknown] = stderr[unknown] = np.nan
    np.fill_diagonal(values, 1)
    np.fill_diagonal(stderr, 0)
    rows, remarks = [], []
    for i, task in enumerate(tasks):
        name, (value, error) = task.name, own[task.name]
        blind = name in estimation.label_blind
        signal_to_noise = (value / error) ** 2 if value > 0 < error else math.inf if value > 0 else 0.0
        needed = _needed(estimation.done, signal_to_noise, tolerance)
        same, same_error = (values[i, count + i], stderr[i, count + i]) if control else (math.nan, math.nan)
        distance = estimation.squared_distance(name, shuffled_copy(name)) if control else None
        reads = False if blind else None if distance is None else distance.value > 2 * distance.stderr
        rows.append(
            {
                "task": name,
                "restarts": estimation.done,
                "signal_to_noise": signal_to_noise,
                "restarts_needed": needed,
                "squared_distance_to_control": None if distance is None else distance.value,
                "squared_distance_stderr": None if distance is None else distance.stderr,
                "alignment_with_control": same,
                "alignment_with_control_stderr": same_error,
                "reads_labels": reads,
                "label_blind": blind,
            }
        )
        if signal_to_noise < tolerance:
            more = f"about {needed - estimation.done} more restarts" if needed else "many more restarts"
            remarks.append((name, f"Not resolved: a signal-to-noise of {tolerance:g} needs {more}."))
        if name not in seen:
            remarks.append(
                (name, "Its batches have no gradient in common that could be told; its cells are left empty.")
            )
        if blind:
            remarks.append(
                (name, "The head is drawn without looking at the task, so this does not depend on the labels.")
            )
        elif distance is not None:
            said = f"With permuted labels it moves by {distance.value:.3g} ± {distance.stderr:.2g} (squared)"
            verdict = "reads the labels" if reads else "cannot be told from one that ignores the labels"
            remarks.append((name, f"{said}: it {verdict}."))
    square = slice(count), slice(count)
    return GradientResults(
        "alignment", tuple(tasks), values[square], stderr[square], tuple(rows), _gathered(remarks, count)
    )


def shuffled_copy(name: str) -> str:
    """What a task with permuted labels is called beside it; no task's own name has a slash."""
    return f"{name}/shuffled"


def _needed(restarts: int, signal_to_noise: float, tolerance: float) -> int | None:
    """Estimated restarts to a signal-to-noise; None where no signal is seen yet."""
    return math.ceil(restarts * tolerance / signal_to_noise) if signal_to_noise > 0 else None


def _gathered(remarks: Iterable[tuple[str, str]], count: int) -> tuple[str, ...]:
    """One line for every sentence, with the names it is said of."""
    names: dict[str, list[str]] = {}
    for name, sentence in remarks:
        names.setdefault(sentence, []).append(name)
    return tuple(
        f"{'All tasks' if len(of) == count > 1 else ', '.join(of)}: {sentence}" for sentence, of in names.items()
    )


def write_results(out: Path, found: GradientResults, what: str) -> None:
    """Writes the tables and the heat map into a directory, each whole or not at all.

    Args:
        out: The directory.
        found: The findings.
        what: Stands above the heat map.
    """
    names = found.names
    for kind, table in (("", found.values), ("_stderr", found.stderr)):
        rows = [[name, *row] for name, row in zip(names, table, strict=True)]
        write_csv(out / f"{found.measure}{kind}.csv", [["", *names], *rows])
    ranking = [[target, rank, *source] for target in names for rank, source in enumerate(found.rank(target), 1)]
    write_csv(out / "ranking.csv", [["target", "rank", "source", found.measure, "stderr"], *ranking])
    write_csv(out / "control.csv", [list(found.control[0]), *(list(row.values()) for row in found.control)])
    nearer = "smaller is nearer" if found.measure == "gap" else "larger is nearer"
    heat_map(
        found.values,
        names,
        out / f"{found.measure}.png",
        f"{found.measure.capitalize()} of principal gradients ({what})",
        quantity=f"{found.measure}, {nearer}",
        smaller_is_nearer=found.measure == "gap",
    )


def read_results(directory: Path, measure: Measure) -> Affinity:
    """Reads the tables that `write_results` wrote as affinities of which larger is nearer.

    Args:
        directory: The run directory.
        measure: "gap" or "alignment": the name of the one method.

    Returns:
        Alignments, or gaps with their sign turned; NaN where there is none. The counts are restarts.

    Raises:
        JaxTransferError: A table is missing or damaged.
    """
    try:
        names, values = read_table(directory / f"{measure}.csv", np.float32, missing="nan")
        others, stderr = read_table(directory / f"{measure}_stderr.csv", np.float32, missing="nan")
        restarts = np.array([int(row["restarts"]) for row in read_control(directory)])
        if others != names or len(restarts) != len(names):
            raise ValueError("its tables are of different tasks")
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise JaxTransferError(f"{directory} does not hold a finished run: {type(error).__name__}: {error}") from error
    nearness = 0 - values if measure == "gap" else values  # 0 - 0 is 0, where -0 would be printed
    return Affinity(names, "cosine", {measure: MethodResult(nearness, stderr, np.minimum.outer(restarts, restarts))})


def read_control(directory: Path) -> list[dict[str, str]]:
    """The rows of `control.csv`, as text."""
    return read_records(directory / "control.csv")
