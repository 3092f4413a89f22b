"""Compares all measures of the package with measured transfer between real networks and sets."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.table import Table

import jaxtransfer as jt
from benchmarks.agreement import agreement, static_scores
from benchmarks.wild.measure import Pooled, Transfer, divide, of_target, parts
from benchmarks.wild.settings import Measuring, Settings, Source
from jaxtransfer.attribution.maps import METHODS
from jaxtransfer.comparison.representations import RELATIVES
from jaxtransfer.comparison.statistics import jackknife_stderr
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import WILD, scores_with
from jaxtransfer.evaluation.references import SECOND, references
from jaxtransfer.figures import dendrogram
from jaxtransfer.files import json_hash, read_records, write_csv

Progress = Callable[[int, int, str], None]
Matrix = Float[np.ndarray, "targets sources"]
STATIC, AGAIN = "mean accuracy on the other sets", "measured again with other examples"
_IN_ROOMS = {STATIC: "mean transfer to the other targets"}
_RELEVANT = 5  # sources of a target that count as good ones, as for Rooms
_MATRIX = "linear_predictivity"  # of the tree
_TRUTH = "(truth)"


class Row(NamedTuple):
    """The agreement of a measure with measured transfer.

    Attributes:
        measured_with: Number of labelled examples of the measured transfer; 0: all there are.
        given: What the measure is given: a number of labels, probe photos, or the truth.
        measure: The measure.
        targets: Number of targets.
        best: Share of targets whose first source is the best one.
        p1: P@1: share of targets whose first source is one of the five best.
        p3: P@3: share of the first three sources that are among the five best.
        spearman: Spearman's rank correlation, mean over targets.
        stderr_targets: Its standard error over targets.
        stderr_networks: Its jackknife standard error over networks.
        regret: Accuracy of the best source less that of the first, mean over targets.
        rooms: Spearman's rank correlation on Rooms; None where it is not known.
    """

    measured_with: int
    given: str
    measure: str
    targets: int
    best: float | None
    p1: float
    p3: float
    spearman: float
    stderr_targets: float | None
    stderr_networks: float | None
    regret: float | None
    rooms: float | None


class Grouping(NamedTuple):
    """A Mantel test of whether networks that have something in common are near each other.

    Attributes:
        measure: The measure of nearness.
        common: What they have in common.
        correlation: Correlation of nearness with having it in common.
        p_value: Share of relabellings with one at least as large.
    """

    measure: str
    common: str
    correlation: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What `evaluate` computes.

    Attributes:
        measured: The table of measured transfers.
        rows: The agreement of all measures.
        groupings: The Mantel tests.
        networks: The affinities of the networks on photos; None without photos.
        tasks: The task of each network.
    """

    measured: list[Transfer]
    rows: list[Row]
    groupings: list[Grouping]
    networks: jt.Affinity | None
    tasks: Mapping[str, str]


def evaluate(
    work: Path,
    networks: Sequence[jt.Network],
    tasks: Sequence[jt.LabelledTask],
    chosen: Settings,
    photos: UInt8[np.ndarray, "n h w 3"] | None,
    progress: Progress | None = None,
) -> Result:
    """Scores the networks for the tasks with examples that measured transfer has not seen, and compares.

    Args:
        work: Folder of `measure`, with its table; features and scores are kept there.
        networks: The networks.
        tasks: The tasks.
        chosen: The settings.
        photos: Probe photos for measures without labels; None: leaves these out.
        progress: Called as `progress(done, total, name)`.
    """
    measured = read_table(work / "wild.csv")
    truths = oracles(measured, [network.name for network in networks])
    again = oracles(read_table(work / "wild1.csv"), [network.name for network in networks])
    tables = label_scores(work, networks, tasks, chosen.measuring, progress)
    affinity = None
    if photos is not None:
        affinity, by_photos = photo_scores(work, networks, tasks, chosen.measuring, photos, progress)
        tables.update(by_photos)
    rows = []
    for count, truth in truths.items():
        own = {(_TRUTH, STATIC): static_table(truth)}
        if count in again:
            own[_TRUTH, AGAIN] = _table(again[count])
        for (given, measure), table in (own | tables).items():
            if row := judge(count, given, measure, table, truth):
                rows.append(row)
        rows.append(_second_measurement(count, truth))
    sources = [chosen.sources[network.name] for network in networks]
    groupings = [] if affinity is None else mantel_tests(affinity, sources)
    return Result(measured, rows, groupings, affinity, {source.name: source.task for source in sources})


def read_table(file: Path) -> list[Transfer]:
    """Reads a table of measured transfers; empty if there is none."""
    if not file.exists():
        return []
    types = Transfer.__annotations__
    return [Transfer(**{name: types[name](row[name]) for name in Transfer._fields}) for row in read_records(file)]


def oracles(rows: Iterable[Transfer], names: Sequence[str]) -> dict[int, jt.Oracle]:
    """Returns the measured transfer of networks by the number of labelled examples; 0: with the most of each task."""
    own = [row._asdict() for row in rows if row.source in names]
    result = {}
    for count in dict.fromkeys([0, *(row["labels"] for row in own)]):
        scores, stderr = scores_with(count or None, own)
        if scores:
            result[count] = jt.Oracle("wild", scores, stderr=stderr)
    return result


def write_oracle(rows: Sequence[Transfer], names: Sequence[str], file: Path = WILD) -> None:
    """Writes the measured transfer of networks, without that of controls, as `jaxtransfer.Oracle.wild` reads it."""
    own = [row for row in rows if row.source in names]
    numbers = [(row.source, row.target, row.labels, f"{row.score:.6f}", f"{row.stderr:.6f}") for row in own]
    write_csv(file, [("source", "target", "labels", "score", "stderr"), *numbers])


def label_scores(
    work: Path,
    networks: Sequence[jt.Network],
    tasks: Sequence[jt.LabelledTask],
    measuring: Measuring,
    progress: Progress | None,
) -> dict[tuple[str, str], jt.Affinity]:
    """Scores the networks' mean features by all measures of labelled tasks, with few and many labels."""
    pooled = [dataclasses.replace(network, apply=Pooled(network.apply)) for network in networks]
    tables = {}
    for count in measuring.score_counts:
        few = {task.name: with_few_labels(task, count, measuring) for task in tasks}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # classes with a single example are left out
            scores = jt.score(pooled, [*few.values()], measures="all", directory=work, progress=progress)
        for measure in scores.methods:
            matrix = {measure: scores[measure]}
            tables[f"{count} labels", measure] = jt.Affinity.of(scores.sources, matrix, targets=[*few])
    return tables


def with_few_labels(task: jt.LabelledTask, count: int, measuring: Measuring) -> jt.LabelledTask:
    """Returns a task of the same images, of which only some that transfer is not measured with have a label."""
    scored, _ = divide(task, max(measuring.score_counts))
    (_, kept), *_ = parts(task.labels, scored, {count: 1}, 0)
    labels = np.where(np.isin(np.arange(len(task.labels)), kept), task.labels, "")
    sha256 = json_hash([task.sha256, kept.tolist()])
    return dataclasses.replace(task, name=f"{task.name}-{count}", labels=labels, sha256=sha256)


def photo_scores(
    work: Path,
    networks: Sequence[jt.Network],
    tasks: Sequence[jt.LabelledTask],
    measuring: Measuring,
    photos: UInt8[np.ndarray, "n h w 3"],
    progress: Progress | None,
) -> tuple[jt.Affinity, dict[tuple[str, str], jt.Affinity]]:
    """Compares the networks with one that is trained on each task's scored examples, on photos without labels.

    Returns:
        The affinities of the networks, and those of the tasks' own networks (rows) with them by measure.
    """
    own = {task.name: of_target(task, measuring, work / "own_networks") for task in tasks}
    affinity = jt.affinity_matrix(
        [*networks, *own.values()],
        photos[: measuring.photos],
        methods=[*METHODS, *RELATIVES],
        directory=work / "photos",
        progress=progress,
    )
    names = [network.name for network in networks]
    of_tasks = affinity.only(targets=[network.name for network in own.values()], sources=names)
    tables = {}
    for method in of_tasks.methods:
        table = jt.Affinity.of(names, {method: of_tasks.nearness(method)}, targets=[*own])
        tables[f"{measuring.photos} photos", method] = table
    return affinity.only(names), tables


def static_table(truth: jt.Oracle) -> jt.Affinity:
    """Returns one list of networks for all tasks: their mean accuracy on the others."""
    table = _table(truth)
    scores = static_scores(table["score"]) if len(table.targets) > 1 else np.zeros(table["score"].shape)
    return jt.Affinity.of(table.sources, {STATIC: scores}, targets=table.targets)


def _table(truth: jt.Oracle) -> jt.Affinity:
    sources = [*dict.fromkeys(source for of_target in truth.scores.values() for source in of_target)]
    targets = [*truth.scores]
    return jt.Affinity.of(sources, {"score": truth.table(truth.scores, sources, targets=targets)}, targets=targets)


def judge(count: int, given: str, measure: str, table: jt.Affinity, truth: jt.Oracle) -> Row | None:
    """Compares a measure with measured transfer; None if it ranks no target."""
    (method,) = table.methods
    known = [task for task in table.targets if task in truth.scores and table.rank(task, method=method)]
    if not known:
        return None
    table = table.only(targets=known)
    result = agreement(table, truth, method)
    without = []
    for left_out in table.sources:
        others = [name for name in table.sources if name != left_out]
        correlations = jt.rank_correlations(table.only(targets=known, sources=others), truth, method=method)
        without.append(np.nan_to_num([value.spearman for value in correlations.values()]).mean())
    p1, p3 = (jt.precision_at_k(table, truth, k, relevant=_RELEVANT, method=method) for k in (1, 3))
    return Row(
        measured_with=count,
        given=given,
        measure=measure,
        targets=len(known),
        best=result["precision_at_1"],
        p1=p1,
        p3=p3,
        spearman=result["mean"],
        stderr_targets=result["stderr"],
        stderr_networks=float(jackknife_stderr(np.array(without))),
        regret=result["regret"],
        rooms=rooms_spearman(given, measure),
    )


def _second_measurement(count: int, truth: jt.Oracle) -> Row:
    """Returns what another measurement of the same transfers would score, given its standard errors."""
    table = static_table(truth)
    second = references(table, truth, STATIC, _RELEVANT)[SECOND]
    values = np.nan_to_num([value.spearman for value in second.correlations.values()])
    p1, p3 = (second.shares("precision", k)[0] for k in (1, 3))
    return Row(
        measured_with=count,
        given=_TRUTH,
        measure=SECOND,
        targets=len(values),
        best=None,
        p1=p1,
        p3=p3,
        spearman=float(values.mean()),
        stderr_targets=float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None,
        stderr_networks=None,
        regret=None,
        rooms=rooms_spearman(_TRUTH, SECOND),
    )


def rooms_spearman(given: str, measure: str) -> float | None:
    """Returns the published rank correlation of a measure on Rooms, with as many labels or photos."""
    results = Path(__file__).parents[1] / "results"
    measure = _IN_ROOMS.get(measure, measure)
    number = given.split()[0]
    for file, column in (("rooms_labelled.csv", "examples"), ("rooms_evaluation.csv", "probe")):
        wanted = number if column == "examples" else given
        for row in read_records(results / file):
            if row[column] == wanted and row["measure"] == measure:
                return float(row["spearman"])
    return None


def mantel_tests(affinity: jt.Affinity, sources: Sequence[Source]) -> list[Grouping]:
    """Tests by every measure whether networks of one task, or of one architecture, are near each other.

    Of several layers of a network, only the first takes part.
    """
    groupings, by_file = [], {(source.package, source.file): source for source in reversed(sources)}
    sources = [source for source in sources if by_file[source.package, source.file] is source]
    affinity = affinity.only([source.name for source in sources])
    for common in ("task", "family"):
        labels = np.array([getattr(source, common) for source in sources])
        same = (labels[:, None] == labels).astype(float)
        for method in affinity.methods:
            directed = affinity.measure(method).directed
            try:
                test = jt.mantel_test(affinity.nearness(method), same, directed=directed)
            except JaxTransferError:  # a network has no value
                continue
            groupings.append(Grouping(method, common, *test))
    return groupings


def show(result: Result, console: Console) -> None:
    """Prints the agreement with the accuracies of the most examples, and the Mantel tests."""
    table = Table("given", "measure", "best", "P@1", "P@3", "Spearman", "Rooms", "regret", title="Order of networks")
    rows = [row for row in result.rows if row.measured_with == 0]
    for row in sorted(rows, key=lambda row: -row.spearman):
        error = max(row.stderr_networks or 0, row.stderr_targets or 0)
        table.add_row(
            row.given,
            row.measure,
            *("" if value is None else f"{value:.2f}" for value in (row.best, row.p1, row.p3)),
            f"{row.spearman:.2f} ± {error:.2f}",
            "" if row.rooms is None else f"{row.rooms:.2f}",
            "" if row.regret is None else f"{100 * row.regret:.1f} %",
        )
    console.print(table)
    if result.groupings:
        table = Table("measure", "common", "correlation", "p", title="Are networks near that have something in common?")
        for grouping in result.groupings:
            table.add_row(*grouping[:2], f"{grouping.correlation:.2f}", f"{grouping.p_value:.4f}")
        console.print(table)


def write(result: Result, out: Path) -> None:
    """Writes the tables, and the tree of the networks."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "wild.csv", [Transfer._fields, *(_cells(row) for row in result.measured)])
    write_csv(out / "wild_evaluation.csv", [Row._fields, *(_cells(row) for row in result.rows)])
    if result.networks is not None:
        write_csv(out / "wild_groups.csv", [Grouping._fields, *(_cells(row) for row in result.groupings)])
        tree = jt.task_tree(result.networks, method=_MATRIX)
        title = "Real networks by linear predictivity on photos"
        dendrogram.tree(tree, out / "wild_tree.png", title, groups=result.tasks)


def _cells(row: Sequence[Any]) -> list[Any]:
    return [f"{value:.4f}" if isinstance(value, float) else value for value in row]
