"""Compares the protocols by which transfer was measured, and all measures of the package under each of them."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

import jaxtransfer as jt
from benchmarks.rooms import labelled, scores
from benchmarks.rooms.evaluate import FURTHER, relatives, stored_affinity
from benchmarks.rooms.examples import Examples, Progress
from benchmarks.rooms.scores import RELEVANT, Matrix, jackknife
from jaxtransfer import rooms
from jaxtransfer.attribution.maps import METHODS
from jaxtransfer.comparison.statistics import stderr_of_mean
from jaxtransfer.evaluation.references import noise_ceiling, other_direction, static_ranking

STATIC, REVERSE = "mean transfer to the other targets", "the other direction"
SECOND, SPLIT = "a second measurement, by standard errors", "a second measurement, by seeds"
REFERENCE = "linear_predictivity"
_TRUTH = "(truth)"
_LABELS = (30, 100, 300)
# The folder of each call of `affinity_matrix`, its number of images and its methods.
_PROBES = {
    "representations": (1000, {"methods": relatives(1000)}),
    "cubic": (250, {"methods": [method for method in relatives(250) if method not in relatives(1000)]}),
    "maps": (250, {"methods": METHODS}),
    **FURTHER,
}
_LEVEL = 1.96  # standard errors of a difference that is significant at 95 %

Rankings = Mapping[tuple[str, str], Matrix]
"""Values of a measure, larger is better, by what it is given (images or labels) and its name; NaN where unknown."""


class Row(NamedTuple):
    """The agreement of a measure with the transfer that a protocol measured.

    Attributes:
        protocol: The protocol.
        given: What the measure is given: a number of images or labels, or the truth.
        measure: The measure.
        targets: Number of targets.
        spearman: Spearman's rank correlation, mean over targets.
        stderr: Its jackknife standard error over networks.
        p1: P@1: share of targets whose first source is among the five best.
        p3: P@3.
        p5: P@5.
        less: `spearman` less that of linear predictivity, mean over the same targets.
        less_stderr: Its standard error over targets.
    """

    protocol: str
    given: str
    measure: str
    targets: int
    spearman: float
    stderr: float | None = None
    p1: float | None = None
    p3: float | None = None
    p5: float | None = None
    less: float | None = None
    less_stderr: float | None = None


class Agreement(NamedTuple):
    """The agreement of two protocols on the sources of every target.

    Attributes:
        protocol: A protocol.
        other: Another one.
        spearman: Spearman's rank correlation, mean over targets.
        stderr: Its standard error over targets.
        same_best: Share of targets whose best source is the same.
        shared: Share of the five best sources that the protocols have in common.
    """

    protocol: str
    other: str
    spearman: float
    stderr: float
    same_best: float
    shared: float


class Wins(NamedTuple):
    """How often a source beats training from scratch on the same examples.

    Attributes:
        protocol: The protocol.
        source: The source.
        better: Number of other targets for which the source has the smaller loss.
        significantly: Number of them where this is significant.
        worse: Number of other targets for which it has a significantly larger loss.
    """

    protocol: str
    source: str
    better: int
    significantly: int
    worse: int


def measure_networks(work: Path, progress: Progress) -> dict[tuple[str, str], Matrix]:
    """Computes the affinities of the tasks' encoders by all measures on the same rooms, and stores them in `work`.

    Measures of representations see all 1,000 rooms, and others the first of them, since they take longer.

    Args:
        work: Folder for intermediate results; what exists there is not computed again.
        progress: Called with the number of finished steps and of all steps.
    """
    zoo = rooms.zoo()
    networks, images = [zoo[task] for task in rooms.TASKS], rooms.probe(max(count for count, _ in _PROBES.values()))
    rankings = {}
    for done, (what, (count, settings)) in enumerate(_PROBES.items(), 1):
        affinity = stored_affinity(work / "evaluate" / f"rooms-{count}" / what, networks, images[:count], settings)
        for method in affinity.methods:
            rankings[f"{count} rooms", method] = affinity.nearness(method).astype(np.float64)
        progress(done, len(_PROBES))
    return rankings


def score_labels(work: Path, examples: Examples, progress: Progress) -> dict[tuple[str, str], Matrix]:
    """Scores the encoders by labelled examples of every task; stored scores are not computed again."""
    matrices = labelled.measure_sources(work, examples, progress, _LABELS)
    return {(f"{count} labels", measure): values for (count, measure), values in matrices.items()}


def score_all(protocol: str, rankings: Rankings) -> list[Row]:
    """Compares all measures, and rankings by other measured transfers, with the transfer that a protocol measured."""
    oracle, names = jt.Oracle.rooms(protocol), [*rooms.TASKS]
    truths = {(_TRUTH, STATIC): static_ranking(oracle, names), (_TRUTH, REVERSE): other_direction(oracle, names)}
    reference = next(values for (_, measure), values in rankings.items() if measure == REFERENCE)
    rows = [
        _score(protocol, given, measure, values, reference, oracle)
        for (given, measure), values in {**truths, **rankings}.items()
        if not np.isnan(values).all()
    ]
    return [*rows, *_second_measurements(protocol, oracle)]


def _score(protocol: str, given: str, measure: str, values: Matrix, reference: Matrix, oracle: jt.Oracle) -> Row:
    names = tuple(rooms.TASKS)
    transfer = scores.truth(oracle, names)
    correlations = agreement(values, transfer)
    known = np.flatnonzero(~np.isnan(correlations)).tolist()
    less = (correlations - agreement(reference, transfer))[known]
    affinity = jt.Affinity.of(names, {measure: values[known]}, targets=[names[target] for target in known])
    precision = jt.retrieval_curve(affinity, oracle, relevant=RELEVANT).precision
    return Row(
        protocol,
        given,
        measure,
        len(known),
        float(correlations[known].mean()),
        jackknife(lambda *matrices: float(np.nanmean(agreement(*matrices))), values, transfer),
        *(float(precision[k - 1]) for k in (1, 3, 5)),
        less=float(less.mean()),
        less_stderr=float(stderr_of_mean(less)),
    )


def _second_measurements(protocol: str, oracle: jt.Oracle) -> Iterator[Row]:
    """Yields how another measurement of the same transfers would agree, by their standard errors and by seeds."""
    names = [*rooms.TASKS]
    table = jt.Affinity.of(names, {STATIC: static_ranking(oracle, names)})
    ceiling = noise_ceiling(table, oracle, STATIC, RELEVANT)
    assert ceiling is not None
    p1, p3, p5 = (ceiling.shares("precision", k)[0] for k in (1, 3, 5))
    spearman = ceiling.mean_correlation("spearman")
    yield Row(protocol, _TRUTH, SECOND, len(names), spearman, p1=p1, p3=p3, p5=p5)
    losses = rooms.transfers(protocol).seed_losses[:, : len(names)].transpose(0, 2, 1)
    if len(losses):
        stderr = jackknife(lambda *seeds: reliability(np.stack(seeds)), *losses)
        yield Row(protocol, _TRUTH, SPLIT, len(names), reliability(losses), stderr)


def agreement(values: Matrix, transfer: Matrix) -> Float[np.ndarray, " targets"]:
    """Computes Spearman's correlation over the sources of every target; NaN where a target has no values."""
    unknown = np.all(np.isnan(values), axis=1)
    return np.where(unknown, np.nan, scores.agreement(np.where(unknown[:, None], 0, values), transfer))


def reliability(losses: Float[np.ndarray, "seeds targets sources"]) -> float:
    """Estimates the rank correlation of two measurements with all these seeds each from those between seeds.

    With the reliability p of a single seed, that of the mean of k seeds is p_k = k p / (1 + (k - 1) p) (Spearman and
    Brown, 1910), and the expected correlation r of a single seed with the mean of the k others is the root of p p_k.
    This is solved for p, and the result is the reliability of the mean of all k + 1 seeds. r is Spearman's correlation,
    averaged over targets and seeds.

    All seeds have the same encoders and test images: only training examples, weights and batches make a difference.
    """
    others = len(losses) - 1
    correlations = [
        scores.agreement(losses[seed], np.delete(losses, seed, 0).mean(0)).mean() for seed in range(len(losses))
    ]
    square = max(float(np.mean(correlations)), 0) ** 2
    single = ((others - 1) * square + np.sqrt(((others - 1) * square) ** 2 + 4 * others * square)) / (2 * others)
    return (others + 1) * single / (1 + others * single)


def agreements(transfers: Mapping[str, Matrix]) -> list[Agreement]:
    """Compares the protocols pair by pair.

    Args:
        transfers: Measured transfer by protocol, larger is better.
    """
    rows = []
    for (name, first), (other, second) in itertools.combinations(transfers.items(), 2):
        correlations = scores.agreement(first, second)
        orders = [np.argsort(-np.nan_to_num(values, nan=-np.inf), 1) for values in (first, second)]
        same = np.mean([a[0] == b[0] for a, b in zip(*orders, strict=True)])
        shared = np.mean([np.isin(a[:RELEVANT], b[:RELEVANT]) for a, b in zip(*orders, strict=True)])
        mean, stderr = correlations.mean(), stderr_of_mean(correlations)
        rows.append(Agreement(name, other, *map(float, (mean, stderr, same, shared))))
    return rows


def wins(protocol: str, transfers: rooms.Transfers) -> list[Wins]:
    """Counts for every source the other tasks for which it beats training from scratch.

    A difference of losses is significant at 95 % if it exceeds 1.96 times the root of the sum of the squared standard
    errors of both. These contain what all test images have in common for both, so the test is conservative.
    """
    scratch = transfers.sources.index("scratch")
    difference = transfers.loss[scratch] - transfers.loss
    error = np.hypot(transfers.stderr[scratch], transfers.stderr)
    rows = []
    for number, source in enumerate(rooms.TASKS):
        others = np.array([target != source for target in transfers.targets])
        gains, limits = difference[number, others], _LEVEL * error[number, others]
        counts = (int(np.count_nonzero(where)) for where in (gains > 0, gains > limits, gains < -limits))
        rows.append(Wins(protocol, source, *counts))
    return rows


def show_agreements(rows: list[Agreement], console: Console) -> None:
    """Prints how far the protocols agree."""
    table = Table(
        "protocols", "Spearman", "same best source", "shared of the best five", title="Agreement of protocols"
    )
    for row in rows:
        table.add_row(
            f"{row.protocol}, {row.other}",
            f"{row.spearman:.2f} ± {row.stderr:.2f}",
            f"{row.same_best:.0%}",
            f"{row.shared:.0%}",
        )
    console.print(table)


def show_wins(rows: list[Wins], console: Console) -> None:
    """Prints the sources that beat training from scratch."""
    table = Table(
        "source", *rooms.PROTOCOLS, title="Targets for which a source beats training from scratch (significantly)"
    )
    for source in rooms.TASKS:
        by_protocol = {row.protocol: row for row in rows if row.source == source}
        own = [by_protocol[protocol] for protocol in rooms.PROTOCOLS]
        table.add_row(source, *(f"{row.better} ({row.significantly})" for row in own))
    totals = [np.sum([row[2:] for row in rows if row.protocol == protocol], axis=0) for protocol in rooms.PROTOCOLS]
    shares = np.array(totals) / (len(rooms.TASKS) * (len(rooms.TASKS) - 1))
    table.add_row("all", *(f"{better} ({significantly})" for better, significantly, _ in totals))
    table.add_row("share", *(f"{better:.0%} ({significantly:.0%})" for better, significantly, _ in shares))
    table.add_row("significantly worse", *(f"{worse:.0%}" for *_, worse in shares))
    console.print(table)


def show_measures(rows: list[Row], console: Console) -> None:
    """Prints the agreement of the measures with the transfer of each protocol."""
    table = Table("given", "measure", "targets", *rooms.PROTOCOLS, title="Spearman (P@1, P@3, P@5)")
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: -row.spearman):
        error = "" if row.stderr is None else f" ± {row.stderr:.2f}"
        shares = "" if row.p1 is None else f" ({row.p1:.2f}, {row.p3:.2f}, {row.p5:.2f})"
        cells.setdefault((row.given, row.measure, row.targets), {})[row.protocol] = f"{row.spearman:.2f}{error}{shares}"
    for (given, measure, targets), by_protocol in cells.items():
        table.add_row(given, measure, str(targets), *(by_protocol.get(protocol, "") for protocol in rooms.PROTOCOLS))
    console.print(table)
