"""How good a ranking of sources is: agreement of an affinity with measured transfer."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.affinity import Affinity
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.oracle import Oracle


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
        return self.hits / self.seen

    @property
    def recall(self) -> Float[np.ndarray, " K"]:
        """R@K: the share of the relevant that is among the K nearest."""
        return self.hits / self.relevant

    @property
    def random_precision(self) -> Float[np.ndarray, " K"]:
        """P@K expected of a random order."""
        return self.random_hits / self.seen

    @property
    def random_recall(self) -> Float[np.ndarray, " K"]:
        """R@K expected of a random order."""
        return self.random_hits / self.relevant


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
    rows = {}
    for target, sources in _common(affinity, oracle, method).items():
        scores = np.array([score for _, score in sources.values()])
        order = np.argsort([-affinity for affinity, _ in sources.values()], kind="stable")
        worst = np.sort(scores)[::-1][min(relevant, len(scores)) - 1]
        rows[target] = (scores >= worst)[order]
    length = max(map(len, rows.values()))
    ks = np.arange(1, length + 1)
    hits, seen, expected = np.zeros(length, int), np.zeros(length, int), np.zeros(length)
    for row in rows.values():
        hits += _padded(np.cumsum(row), length)
        among = np.minimum(ks, len(row))
        seen += among
        expected += among * row.mean()
    return RetrievalCurve(tuple(rows), hits, seen, int(hits[-1]), expected)


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

    found = {}
    for target, sources in _common(affinity, oracle, method).items():
        affinities, scores = np.array(list(sources.values()), np.float64).T
        values = (math.nan,) * 3
        if np.ptp(affinities) > 0 and np.ptp(scores) > 0:
            values = [
                float(np.asarray(correlation(affinities, scores))[0])
                for correlation in (stats.spearmanr, stats.kendalltau, stats.weightedtau)
            ]
        found[target] = RankCorrelation(*values, sources=len(scores))
    return found


def _common(affinity: Affinity, oracle: Oracle, method: str | None) -> dict[str, dict[str, tuple[float, float]]]:
    """(affinity, score) of every target's sources of which both are known, in the order of the affinity's names."""
    found = {}
    for target, row in zip(affinity.names, affinity[method], strict=True):
        scores: Mapping[str, float] = oracle.scores.get(oracle.own_name(target), {})
        sources = {
            name: (float(value), scores[oracle.own_name(name)])
            for name, value in zip(affinity.names, row, strict=True)
            if name != target and oracle.own_name(name) in scores and not math.isnan(value)
        }
        if len(sources) > 1:
            found[target] = sources
    if not found:
        raise JaxTransferError(
            f"The oracle {oracle.name} scores no target here with two sources or more: it knows "
            f"{_some(oracle.scores)}, and here are {_some(affinity.names)}."
        )
    return found


def _some(names: Mapping[str, object] | tuple[str, ...]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def _padded(row: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " length"]:
    return np.pad(row, (0, length - len(row)), mode="edge")


def _at(k: int, values: np.ndarray) -> np.generic:
    if not 1 <= k <= len(values):
        raise JaxTransferError(f"K must be from 1 to {len(values)}, the number of sources, not {k}.")
    return values[k - 1]
