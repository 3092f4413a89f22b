"""How a run's rankings agree with measured transfer."""

import functools
import math

from jaxtransfer import figures
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.retrieval import Quantity
from jaxtransfer.report.drawings import Drawing
from jaxtransfer.runs.evaluation import evaluate

_COLUMNS: tuple[tuple[Quantity, int], ...] = (("precision", 1), ("precision", 5), ("recall", 5), ("recall", 10))


class Scores:
    """The agreement of every method of a run with an oracle.

    Attributes:
        name: The name of the oracle.
        relevant: The number of sources of each target that count as relevant.
        targets: The targets that were scored.
    """

    def __init__(self, affinity: Affinity, oracle: Oracle, relevant: int) -> None:
        self._evaluations = {method: evaluate(affinity, oracle, method, relevant) for method in affinity.methods}
        self._curve = next(iter(self._evaluations.values())).curve
        self.name = oracle.name
        self.relevant = relevant
        self.targets = self._curve.targets

    def drawing(self) -> Drawing:
        """Returns the figure of the curves."""
        title = f"Against {self.name}, {len(self.targets)} targets"
        curves = {method: evaluation.curve for method, evaluation in self._evaluations.items()}
        bands = {method: evaluation.bands for method, evaluation in self._evaluations.items()}
        return "curves", functools.partial(figures.retrieval_curves, curves, title=title, bands=bands)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns the header and the rows of a table with the curves' values at a few K."""
        columns: list[tuple[Quantity, int]] = [(quantity, k) for quantity, k in _COLUMNS if k <= len(self._curve.hits)]
        rows = []
        for method, evaluation in self._evaluations.items():
            shares = []
            for quantity, k in columns:
                share, band = evaluation.shares(quantity, k)
                shares.append(f"{share:.3f}" if band is None else f"{share:.3f} ({band[0]:.2f} to {band[1]:.2f})")
            mean = evaluation.mean_correlation("spearman")
            rows.append([method, *shares, "unknown" if math.isnan(mean) else f"{mean:.3f}"])
        chance = [f"{getattr(self._curve, f'random_{quantity}')[k - 1]:.3f}" for quantity, k in columns]
        header = ["method", *(f"{quantity[0].upper()}@{k}" for quantity, k in columns), "mean Spearman"]
        return header, [*rows, ["random order", *chance, "0.000"]]
