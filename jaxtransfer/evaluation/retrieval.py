"""How good a ranking of sources is: agreement of an affinity with measured transfer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle

Quantity = Literal["precision", "recall"]


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalCurve:
    """Relevant sources among the K nearest, for K from 1 to the largest number of sources; summed over targets.

    Attributes:
        targets: That were scored: those the oracle and the affinity both know, with two known sources or more.
        hits: Relevant sources among the K nearest; integers [K].
        seen: Sources among the K nearest, K for each target that has so many; integers [K].
        relevant: Relevant sources of all targets.
        random_hits: The exact expectation of `hits` for sources in random order; [K].
    """

    targets: tuple[str, ...]
    hits: Int[np.ndarray, " K"]
    seen: Int[np.ndarray, " K"]
    relevant: int
    random_hits: Float[np.ndarray, " K"]

    @property
    def precision(self) -> Float[np.ndarray, " K"]:
        """P@K: the share of the K nearest that is relevant."""
        return self.share("precision", self.hits)

    @property
    def recall(self) -> Float[np.ndarray, " K"]:
        """R@K: the share of the relevant that is among the K nearest."""
        return self.share("recall", self.hits)

    @property
    def random_precision(self) -> Float[np.ndarray, " K"]:
        """P@K expected of a random order."""
        return self.share("precision", self.random_hits)

    @property
    def random_recall(self) -> Float[np.ndarray, " K"]:
        """R@K expected of a random order."""
        return self.share("recall", self.random_hits)

    def share(self, quantity: Quantity, hits: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """Hits for K from 1 as precision or as recall."""
        return hits / (self.seen if quantity == "precision" else self.relevant)


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """Agreement of the order of a target's sources with the oracle's, each from -1 to 1; nan where one is constant.

    Attributes:
        spearman: Spearman's rank correlation.
        kendall: Kendall's tau-b.
        weighted_kendall: Kendall's tau with hyperbolic weights, so that the best places count most (Vigna 2015).
        sources: How many there were.
    """

    spearman: float
    kendall: float
    weighted_kendall: float
    sources: int


def retrieval_curve(
    affinity: Affinity, oracle: Oracle, *, relevant: int = 5, method: str | None = None
) -> RetrievalCurve:
    """Counts relevant sources among the nearest (Song et al., NeurIPS 2019, section 4.2).

    For every target, sources are those that both the affinity and the oracle know. Relevant are the oracle's best
    `relevant` of them, and those tied with the last. Equal affinities come in the order of `affinity.names`; a
    missing one (NaN) is not known.

    Args:
        affinity: To be judged.
        oracle: What really happened.
        relevant: How many of a target's sources are relevant.
        method: May be omitted where there is only one.

    Raises:
        JaxTransferError: Nothing in common with the oracle, `relevant` smaller than 1, or an unknown method.
    """
    if relevant < 1:
        raise JaxTransferError(f"One source or more must be relevant, not {relevant}.")
    pairs = scored_pairs(affinity, oracle, method)
    found = pairs.relevant(relevant)
    sources = pairs.known.sum(1)
    ks = np.arange(1, sources.max() + 1)
    seen = np.minimum(ks, sources[:, None])
    hits = pairs.hits(pairs.affinities, found).sum(0)
    expected = (seen * (found.sum(1) / sources)[:, None]).sum(0)
    return RetrievalCurve(pairs.targets, hits, seen.sum(0), int(hits[-1]), expected)


def hits_at_k(affinity: Affinity, oracle: Oracle, k: int, *, relevant: int = 5, method: str | None = None) -> int:
    """Relevant sources among the `k` nearest, summed over targets; see `retrieval_curve`."""
    return int(_at(k, retrieval_curve(affinity, oracle, relevant=relevant, method=method).hits))


def precision_at_k(
    affinity: Affinity, oracle: Oracle, k: int, *, relevant: int = 5, method: str | None = None
) -> float:
    """The share of the `k` nearest that is relevant, 0 to 1; see `retrieval_curve`."""
    return float(_at(k, retrieval_curve(affinity, oracle, relevant=relevant, method=method).precision))


def recall_at_k(affinity: Affinity, oracle: Oracle, k: int, *, relevant: int = 5, method: str | None = None) -> float:
    """The share of the relevant that is among the `k` nearest, 0 to 1; see `retrieval_curve`."""
    return float(_at(k, retrieval_curve(affinity, oracle, relevant=relevant, method=method).recall))


def rank_correlations(affinity: Affinity, oracle: Oracle, *, method: str | None = None) -> dict[str, RankCorrelation]:
    """For every target the rank correlations of its sources' affinities with the oracle's scores.

    Args:
        affinity: To be judged.
        oracle: What really happened.
        method: May be omitted where there is only one.

    Raises:
        JaxTransferError: Nothing in common with the oracle, or an unknown method.
    """
    from scipy import stats

    pairs = scored_pairs(affinity, oracle, method)
    found = {}
    for target, known, *values in zip(pairs.targets, pairs.known, pairs.affinities, pairs.scores, strict=True):
        affinities, scores = (row[known].astype(np.float64) for row in values)
        correlations = (math.nan,) * 3
        if np.ptp(affinities) > 0 and np.ptp(scores) > 0:
            correlations = [
                float(np.asarray(correlation(affinities, scores))[0])
                for correlation in (stats.spearmanr, stats.kendalltau, stats.weightedtau)
            ]
        found[target] = RankCorrelation(*correlations, sources=len(scores))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredPairs:
    """What an affinity and an oracle both know: targets with two known sources or more.

    Attributes:
        names: The networks, as columns.
        targets: The rows.
        rows: Where the targets stand in `names`.
        known: Which networks are sources of a target.
        affinities: Meaningful where known.
        scores: The oracle's; minus infinity where not known.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    rows: Int[np.ndarray, " targets"]
    known: Bool[np.ndarray, "targets networks"]
    affinities: Float[np.ndarray, "targets networks"]
    scores: Float[np.ndarray, "targets networks"]

    def relevant(self, count: int) -> Bool[np.ndarray, "targets networks"]:
        """The best `count` sources of each target by score, and those tied with the last."""
        sources = self.known.sum(1)
        ordered = np.sort(self.scores, axis=1)[:, ::-1]
        last = np.take_along_axis(ordered, np.minimum(count, sources)[:, None] - 1, axis=1)
        return self.known & (self.scores >= last)

    def order(self, affinities: Float[np.ndarray, "*n targets networks"]) -> Int[np.ndarray, "*n targets networks"]:
        """Each target's sources, nearest first, equal ones in the order of `names`; then what is not known."""
        return np.argsort(np.where(self.known, -affinities, np.inf), axis=-1, kind="stable")

    def hits(
        self, affinities: Float[np.ndarray, "*n targets networks"], relevant: Bool[np.ndarray, "targets networks"]
    ) -> Int[np.ndarray, "*n targets K"]:
        """Relevant sources among each target's K nearest, for K to the largest number of sources."""
        order = self.order(affinities)
        found = np.take_along_axis(np.broadcast_to(relevant, order.shape), order, axis=-1)
        return np.cumsum(found, axis=-1)[..., : self.known.sum(1).max()]


def scored_pairs(affinity: Affinity, oracle: Oracle, method: str | None) -> ScoredPairs:
    """What both know.

    Raises:
        JaxTransferError: Nothing, or an unknown method.
    """
    names = affinity.names
    own_names = [oracle.own_name(name) for name in names]
    scores = np.full((len(names), len(names)), -np.inf)
    for row, target in enumerate(own_names):
        of_target: Mapping[str, float] = oracle.scores.get(target, {})
        for column, source in enumerate(own_names):
            if row != column:
                scores[row, column] = of_target.get(source, -np.inf)
    known = np.isfinite(scores) & ~np.isnan(affinity[method])
    rows = np.flatnonzero(known.sum(1) > 1)
    if not rows.size:
        raise JaxTransferError(
            f"The oracle {oracle.name} scores no target here with two sources or more: it knows "
            f"{_some(oracle.scores)}, and here are {_some(names)}."
        )
    scores = np.where(known, scores, -np.inf)
    targets = tuple(names[row] for row in rows)
    return ScoredPairs(names, targets, rows, known[rows], affinity[method][rows], scores[rows])


def _some(names: Mapping[str, object] | tuple[str, ...]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def _at(k: int, values: np.ndarray) -> np.generic:
    if not 1 <= k <= len(values):
        raise JaxTransferError(f"K must be from 1 to {len(values)}, the number of sources, not {k}.")
    return values[k - 1]
