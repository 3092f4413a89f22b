"""Scores finished runs against measured transfer."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtransfer.arguments import checked_methods
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
from jaxtransfer.figures import retrieval_curves
from jaxtransfer.files import write_csv
from jaxtransfer.runs.load import load_run


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What an oracle says of one method of a run.

    Attributes:
        curve: Hits at every K.
        bands: How sure they are.
        correlations: Of the rankings, for every target.
    """

    curve: RetrievalCurve
    bands: RetrievalBands
    correlations: dict[str, RankCorrelation]

    def shares(self, quantity: Quantity, k: int) -> tuple[float, tuple[float, float] | None]:
        """Precision or recall at K, and its band over networks."""
        value, band = float(getattr(self.curve, quantity)[k - 1]), self.bands.networks
        if band is None:
            return value, None
        low, high = (float(self.curve.share(quantity, edge)[k - 1]) for edge in band)
        return value, (low, high)

    def mean_correlation(self, name: str) -> float:
        """The mean of a field of `RankCorrelation` over the targets where it is known; NaN where there is none."""
        known = [value for each in self.correlations.values() if not math.isnan(value := getattr(each, name))]
        return statistics.fmean(known) if known else math.nan


def evaluate_run(
    directory: str | Path, oracle: Oracle, *, relevant: int = 5, methods: str | Sequence[str] | None = None
) -> dict[str, Evaluation]:
    """Scores a finished run against an oracle.

    The directory receives `evaluation.csv` (hits, precision and recall at every K beside what a random order gets, and
    95 % bands of the hits), `evaluation_by_target.csv` (rank correlations) and `evaluation.png`; they take the place of
    an earlier evaluation's.

    Args:
        directory: The run.
        oracle: What really happened.
        relevant: How many of a target's sources are relevant.
        methods: One or some of the run's; None: all there are.

    Returns:
        What is to be said of every method.

    Raises:
        JaxTransferError: `directory` holds no finished run, or one that has nothing in common with the oracle.
    """
    directory = Path(directory)
    affinity = load_run(directory)
    found = {
        method: evaluate(affinity, oracle, method, relevant)
        for method in (affinity.methods if methods is None else checked_methods(methods))
    }
    write_evaluation(directory, found, oracle)
    return found


def evaluate(affinity: Affinity, oracle: Oracle, method: str, relevant: int) -> Evaluation:
    """All that an oracle says of one method; see `retrieval_curve`, `retrieval_bands` and `rank_correlations`."""
    return Evaluation(
        retrieval_curve(affinity, oracle, relevant=relevant, method=method),
        retrieval_bands(affinity, oracle, relevant=relevant, method=method),
        rank_correlations(affinity, oracle, method=method),
    )


def write_evaluation(directory: Path, found: Mapping[str, Evaluation], oracle: Oracle) -> None:
    """Writes `evaluation.csv`, `evaluation_by_target.csv` and `evaluation.png` into a directory."""
    columns = ("hits", "precision", "recall", "random_precision", "random_recall")
    rows = []
    for method, each in found.items():
        bands = [edge for band in (each.bands.images, each.bands.networks) for edge in band or (None, None)]
        rows += [
            [
                method,
                k + 1,
                *(getattr(each.curve, column)[k] for column in columns),
                *(None if edge is None else edge[k] for edge in bands),
            ]
            for k in range(len(each.curve.hits))
        ]
    edges = [f"hits_{edge}_over_{what}" for what in ("images", "networks") for edge in ("low", "high")]
    write_csv(directory / "evaluation.csv", [["method", "k", *columns, *edges], *rows])
    by_target = [
        [method, target, *dataclasses.astuple(correlation)]
        for method, each in found.items()
        for target, correlation in each.correlations.items()
    ]
    fields = [field.name for field in dataclasses.fields(RankCorrelation)]
    write_csv(directory / "evaluation_by_target.csv", [["method", "target", *fields], *by_target])
    curves = {method: each.curve for method, each in found.items()}
    targets = len(next(iter(curves.values())).targets)
    bands = {method: each.bands for method, each in found.items()}
    retrieval_curves(curves, directory / "evaluation.png", f"Against {oracle.name}, {targets} targets", bands=bands)
