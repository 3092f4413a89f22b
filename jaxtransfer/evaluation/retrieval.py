"""Compares rankings of sources with measured transfer: retrieval curves and rank correlations."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle

Quantity = Literal["precision", "recall"]


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalCurve:
    """Counts relevant sources among the K nearest, for K from 1 to the largest number of sources, over all targets.

    Attributes:
        targets: The targets that were scored: known to both the oracle and the affinity, with two known sources or
            more.
        hits: Number of relevant sources among the K nearest; integers [K].
        seen: Number of sources among the K nearest: K for each target with K sources or more; integers [K].
        relevant: Number of relevant sources of all targets.
        random_hits: Exact expectation of `hits` for sources in random order; [K].
    """

    targets: tuple[str, ...]
    hits: Int[np.ndarray, " K"]
    seen: Int[np.ndarray, " K"]
    relevant: int
    random_hits: Float[np.ndarray, " K"]

    @property
    def precision(self) -> Float[np.ndarray, " K"]:
        """Computes P@K: the share of the K nearest that is relevant."""
        return self.share("precision", self.hits)

    @property
    def recall(self) -> Float[np.ndarray, " K"]:
        """Computes R@K: the share of the relevant sources that is among the K nearest."""
        return self.share("recall", self.hits)

    @property
    def random_precision(self) -> Float[np.ndarray, " K"]:
        """Computes the expected P@K of a random order."""
        return self.share("precision", self.random_hits)

    @property
    def random_recall(self) -> Float[np.ndarray, " K"]:
        """Computes the expected R@K of a random order."""
        return self.share("recall", self.random_hits)

    def share(self, quantity: Quantity, hits: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """Turns hits for K from 1 into precision or recall."""
        return hits / (self.seen if quantity == "precision" else self.relevant)


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """Holds rank correlations of a target's sources with the oracle, from -1 to 1; NaN where one side is constant.

    Attributes:
        spearman: Spearman's rank correlation.
        kendall: Kendall's tau-b.
        weighted_kendall: Kendall's tau with hyperbolic weights, so that the best places count most (Vigna 2015).
        sources: Number of sources.
    """

    spearman: float
    kendall: float
    weighted_kendall: float
    sources: int


def retrieval_curve(
    affinity: Affinity, oracle: Oracle, *, relevant: int = RELEVANT, method: str | None = None
) -> RetrievalCurve:
    """Counts relevant sources among the nearest (Song et al., NeurIPS 2019, section 4.2).

    The sources of a target are those that both the affinity and the oracle know. The oracle's best `relevant` of them
    are relevant, and those tied with the last of these. Equal affinities keep the order of `affinity.sources`;
    sources with a missing one (NaN) and the target itself are left out.

    Args:
        affinity: The affinities to judge.
        oracle: Measured transfer.
        relevant: Number of sources of each target that count as relevant.
        method: The method to judge; may be omitted where there is only one.

    Raises:
        JaxTransferError: Nothing in common with the oracle, `relevant` smaller than 1, or an unknown method.

    Examples:
        >>> oracle = jt.Oracle("measured", {"a": {"b": 3, "c": 2, "d": 1}, "b": {"a": 1, "c": 3, "d": 2}})
        >>> affinity = jt.Affinity.of("abcd", {"m": [[1, 0.9, 0.5, 0.1], [0.9, 1, 0.2, 0.4], [0.5, 0.2, 1, 0.3],
        ...                                          [0.1, 0.4, 0.3, 1]]})
        >>> curve = jt.retrieval_curve(affinity, oracle, relevant=1)
        >>> curve.hits
        array([1, 1, 2])
        >>> print(f"P@1 {curve.precision[0]:.2f}, of a random order {curve.random_precision[0]:.2f}")
        P@1 0.50, of a random order 0.33
    """
    if relevant < 1:
        raise JaxTransferError(f"One source or more must be relevant, not {relevant}.")
    pairs = scored_pairs(affinity, oracle, method)
    is_relevant = pairs.relevant(relevant)
    sources = pairs.known.sum(1)
    ks = np.arange(1, sources.max() + 1)
    seen = np.minimum(ks, sources[:, None])
    hits = pairs.hits(pairs.nearness, is_relevant).sum(0)
    expected = (seen * (is_relevant.sum(1) / sources)[:, None]).sum(0)
    return RetrievalCurve(pairs.targets, hits, seen.sum(0), int(hits[-1]), expected)


def hits_at_k(
    affinity: Affinity, oracle: Oracle, k: int, *, relevant: int = RELEVANT, method: str | None = None
) -> int:
    """Counts the relevant sources among the `k` nearest over all targets; see `retrieval_curve`."""
    return int(_at(k, retrieval_curve(affinity, oracle, relevant=relevant, method=method).hits))


def precision_at_k(
    affinity: Affinity, oracle: Oracle, k: int, *, relevant: int = RELEVANT, method: str | None = None
) -> float:
    """Computes the share of the `k` nearest that is relevant, 0 to 1; see `retrieval_curve`."""
    return float(_at(k, retrieval_curve(affinity, oracle, relevant=relevant, method=method).precision))


def recall_at_k(
    affinity: Affinity, oracle: Oracle, k: int, *, relevant: int = RELEVANT, method: str | None = None
) -> float:
    """Computes the share of the relevant sources among the `k` nearest, 0 to 1; see `retrieval_curve`."""
    return float(_at(k, retrieval_curve(affinity, oracle, relevant=relevant, method=method).recall))


def rank_correlations(affinity: Affinity, oracle: Oracle, *, method: str | None = None) -> dict[str, RankCorrelation]:
    """Computes for every target the rank correlations of its sources with the oracle's scores.

    Nearer sources rank higher, whatever the sign of the measure.

    Args:
        affinity: The affinities to judge.
        oracle: Measured transfer.
        method: The method to judge; may be omitted where there is only one.

    Raises:
        JaxTransferError: Nothing in common with the oracle, or an unknown method.
    """
    from scipy import stats

    pairs = scored_pairs(affinity, oracle, method)
    by_target = {}
    for target, known, *values in zip(pairs.targets, pairs.known, pairs.nearness, pairs.scores, strict=True):
        nearness, scores = (row[known].astype(np.float64) for row in values)
        correlations = (math.nan,) * 3
        if np.ptp(nearness) > 0 and np.ptp(scores) > 0:
            correlations = [
                float(np.asarray(correlation(nearness, scores))[0])
                for correlation in (stats.spearmanr, stats.kendalltau, stats.weightedtau)
            ]
        by_target[target] = RankCorrelation(*correlations, sources=len(scores))
    return by_target


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Holds the pairs that an affinity and an oracle both know, of targets with two known sources or more.

    Attributes:
        sources: The sources, as columns.
        targets: The targets, as rows.
        rows: Rows of the targets in the affinity.
        own: Column of the source that is the target itself, which is not known; -1 where there is none.
        known: Whether a network is a source of a target.
        nearness: Values of the affinity, with the sign that makes larger ones nearer; meaningful where known.
        scores: Scores of the oracle; minus infinity where not known.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    rows: Int[np.ndarray, " targets"]
    own: Int[np.ndarray, " targets"]
    known: Bool[np.ndarray, "targets sources"]
    nearness: Float[np.ndarray, "targets sources"]
    scores: Float[np.ndarray, "targets sources"]

    def relevant(self, count: int) -> Bool[np.ndarray, "targets sources"]:
        """Marks the best `count` sources of each target by score, and those tied with the last."""
        sources = self.known.sum(1)
        ordered = np.sort(self.scores, axis=1)[:, ::-1]
        last = np.take_along_axis(ordered, np.minimum(count, sources)[:, None] - 1, axis=1)
        return self.known & (self.scores >= last)

    def order(self, nearness: Float[np.ndarray, "*n targets sources"]) -> Int[np.ndarray, "*n targets sources"]:
        """Sorts each target's sources, nearest first, equal ones in the order of `sources`, unknown ones last."""
        return np.argsort(np.where(self.known, -nearness, np.inf), axis=-1, kind="stable")

    def hits(
        self, nearness: Float[np.ndarray, "*n targets sources"], relevant: Bool[np.ndarray, "targets sources"]
    ) -> Int[np.ndarray, "*n targets K"]:
        """Counts relevant sources among each target's K nearest, for K up to the largest number of sources."""
        order = self.order(nearness)
        by_rank = np.take_along_axis(np.broadcast_to(relevant, order.shape), order, axis=-1)
        return np.cumsum(by_rank, axis=-1)[..., : self.known.sum(1).max()]


def methods_with_pairs(affinity: Affinity, oracle: Oracle, methods: Sequence[str]) -> list[str]:
    """Returns the methods that rank two or more sources of a target that the oracle ranks too."""
    measured = np.isfinite(oracle.table(oracle.scores, affinity.sources, targets=affinity.targets))
    known = {method: (measured & ~np.isnan(affinity[method])).sum(1) for method in methods}
    return [method for method in methods if (known[method] > 1).any()]


def scored_pairs(affinity: Affinity, oracle: Oracle, method: str | None) -> ScoredPairs:
    """Collects the pairs that an affinity and an oracle both know.

    Raises:
        JaxTransferError: There are none, or the method is unknown.
    """
    scores = oracle.table(oracle.scores, affinity.sources, targets=affinity.targets)
    known = np.isfinite(scores) & ~np.isnan(affinity[method])
    rows = np.flatnonzero(known.sum(1) > 1)
    if not rows.size:
        raise JaxTransferError(
            f"The oracle {oracle.name} scores no target here with two sources or more: it knows "
            f"{_some(oracle.scores)}, and here are {_some(affinity.targets)}."
        )
    scores = np.where(known, scores, -np.inf)
    targets, own = tuple(affinity.targets[row] for row in rows), rows
    if not affinity.square:
        columns = [oracle.own_name(source) for source in affinity.sources]
        tasks = [oracle.own_name(target) for target in targets]
        own = np.array([columns.index(task) if task in columns else -1 for task in tasks])
    nearness = affinity.nearness(method)[rows]
    return ScoredPairs(affinity.sources, targets, rows, own, known[rows], nearness, scores[rows])


def _some(names: Mapping[str, object] | tuple[str, ...]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def _at(k: int, values: np.ndarray) -> np.generic:
    if not 1 <= k <= len(values):
        raise JaxTransferError(f"K must be from 1 to {len(values)}, the number of sources, not {k}.")
    return values[k - 1]
