"""Judges methods against measured transfer, and tabulates the results."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.evaluation.confidence import RetrievalBands, retrieval_bands
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.retrieval import (
    Quantity,
    RankCorrelation,
    RetrievalCurve,
    rank_correlations,
    retrieval_curve,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Holds the agreement of one method with an oracle.

    Attributes:
        curve: Hits at every K.
        bands: Confidence bands of the hits.
        correlations: Rank correlations for every target.
    """

    curve: RetrievalCurve
    bands: RetrievalBands
    correlations: dict[str, RankCorrelation]

    def shares(self, quantity: Quantity, k: int) -> tuple[float, tuple[float, float] | None]:
        """Returns precision or recall at K, and its band over networks; None where there is only one target."""
        value, band = float(getattr(self.curve, quantity)[k - 1]), self.bands.networks
        if band is None:
            return value, None
        low, high = (float(self.curve.share(quantity, edge)[k - 1]) for edge in band)
        return value, (low, high)

    def mean_correlation(self, name: str) -> float:
        """Averages a field of `RankCorrelation` over the targets where it is not NaN; NaN where there is none."""
        values = [getattr(correlation, name) for correlation in self.correlations.values()]
        known = [value for value in values if not math.isnan(value)]
        return statistics.fmean(known) if known else math.nan


class Evaluations(NamedTuple):
    """Holds the agreement of several methods with an oracle, and that of the references they are compared with.

    Attributes:
        by_method: The evaluation of each method.
        references: Evaluations of rankings that need no networks, and of a second measurement of the oracle, by name;
            see `jaxtransfer.evaluation.references`.
    """

    by_method: dict[str, Evaluation]
    references: dict[str, Evaluation]


def evaluate(affinity: Affinity, oracle: Oracle, method: str, relevant: int) -> Evaluation:
    """Judges one method; see `retrieval_curve`, `retrieval_bands` and `rank_correlations`."""
    return Evaluation(
        retrieval_curve(affinity, oracle, relevant=relevant, method=method),
        retrieval_bands(affinity, oracle, relevant=relevant, method=method),
        rank_correlations(affinity, oracle, method=method),
    )


class ScoreTable(NamedTuple):
    """Holds precision, recall and mean rank correlations as text.

    Attributes:
        header: "P@1", "R@10" and so on; correlations have no header here.
        rows: The cells of each method, with a band beside each share where it is known, then the correlations.
        references: The cells expected of a random order, and those of the references.
    """

    header: list[str]
    rows: dict[str, list[str]]
    references: dict[str, list[str]]


def score_table(
    evaluations: Evaluations,
    columns: Sequence[tuple[Quantity, int]],
    correlations: Sequence[str],
    *,
    band: str = " ({:.2f} to {:.2f})",
) -> ScoreTable:
    """Tabulates precision, recall and mean rank correlations of methods beside those of the references.

    Args:
        evaluations: The evaluations of methods against one oracle.
        columns: Precision or recall, and its K; columns with more sources than there are get left out.
        correlations: Fields of `RankCorrelation` to average over targets.
        band: Format of a band's bounds.
    """
    curve = next(iter(evaluations.by_method.values())).curve
    columns = [(quantity, k) for quantity, k in columns if k <= len(curve.hits)]

    def row(evaluation: Evaluation) -> list[str]:
        cells = []
        for quantity, k in columns:
            share, bounds = evaluation.shares(quantity, k)
            cells.append(f"{share:.3f}" + ("" if bounds is None else band.format(*bounds)))
        means = [evaluation.mean_correlation(name) for name in correlations]
        return [*cells, *("unknown" if math.isnan(mean) else f"{mean:.3f}" for mean in means)]

    chance = [f"{getattr(curve, f'random_{quantity}')[k - 1]:.3f}" for quantity, k in columns]
    return ScoreTable(
        [f"{quantity[0].upper()}@{k}" for quantity, k in columns],
        {method: row(evaluation) for method, evaluation in evaluations.by_method.items()},
        {"random order": [*chance, *["0.000"] * len(correlations)]}
        | {name: row(evaluation) for name, evaluation in evaluations.references.items()},
    )
