"""How a run's rankings agree with measured transfer."""

import functools
from collections.abc import Sequence

from jaxtransfer import figures
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import evaluate_all
from jaxtransfer.evaluation.retrieval import Quantity
from jaxtransfer.evaluation.summary import score_table
from jaxtransfer.report.drawings import Drawing

_COLUMNS: tuple[tuple[Quantity, int], ...] = (("precision", 1), ("precision", 5), ("recall", 5), ("recall", 10))


class Scores:
    """The agreement of every method of a run with an oracle.

    Attributes:
        name: The name of the oracle.
        relevant: The number of sources of each target that count as relevant.
        targets: The targets that were scored.
        sampled: What the bands of a method are over: "images", "restarts" or "labelled examples".
    """

    def __init__(self, affinity: Affinity, methods: Sequence[str], oracle: Oracle, relevant: int) -> None:
        self._evaluations = evaluate_all(affinity, oracle, methods, relevant)
        self.name = oracle.name
        self.relevant = relevant
        first = next(iter(self._evaluations.by_method.values()))
        self.targets = first.curve.targets
        self.sampled = first.bands.sampled

    def drawing(self) -> Drawing:
        """Returns the figure of the curves."""
        return "curves", functools.partial(figures.retrieval_curves, self._evaluations.by_method, oracle_name=self.name)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Returns the header and the rows of a table with the curves' values at a few K."""
        scores = score_table(self._evaluations, _COLUMNS, ["spearman"])
        rows = [[name, *cells] for name, cells in (scores.rows | scores.references).items()]
        return ["method", *scores.header, "mean Spearman"], rows
