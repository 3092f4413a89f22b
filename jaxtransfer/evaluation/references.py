"""Ranks sources without looking at the networks, which says what the scores of a measure are worth."""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.measure import Measure
from jaxtransfer.evaluation.confidence import RetrievalBands
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.retrieval import RankCorrelation, methods_with_pairs, retrieval_curve, scored_pairs
from jaxtransfer.evaluation.summary import Evaluation, Evaluations, evaluate

STATIC = "mean rank over the other targets"
REVERSE = "the other direction"
SECOND = "a second measurement"
_MAX_COMPARED_VALUES = 2**20  # pairs of sources of a target, over draws, that are compared at once


def evaluate_all(affinity: Affinity, oracle: Oracle, methods: Sequence[str], relevant: int) -> Evaluations:
    """Judges methods, and the references on the pairs of the first of them.

    Methods that rank no target of the oracle are left out if there are others, with a warning.
    """
    judged = methods_with_pairs(affinity, oracle, methods) or methods
    if left_out := [method for method in methods if method not in judged]:
        warnings.warn(f"{oracle.name} has no target that these methods rank: {', '.join(left_out)}.", stacklevel=3)
    methods = judged
    by_method = {method: evaluate(affinity, oracle, method, relevant) for method in methods}
    return Evaluations(by_method, references(affinity, oracle, methods[0], relevant))


def references(affinity: Affinity, oracle: Oracle, method: str, relevant: int) -> dict[str, Evaluation]:
    """Judges rankings that need no networks, and another measurement of the oracle, on the pairs of a method.

    Returns:
        The evaluations of those that the oracle allows, of three: of a ranking by the mean rank over the other targets
        (`static_ranking`), by the transfer in the other direction (`other_direction`), and of a second measurement of
        the oracle (`noise_ceiling`).
    """
    pairs = scored_pairs(affinity, oracle, method)
    targets = None if affinity.square else affinity.targets
    rankings = {
        STATIC: static_ranking(oracle, affinity.sources, targets=targets),
        REVERSE: other_direction(oracle, affinity.sources, targets=targets),
    }
    evaluations = {}
    for name, ranks in rankings.items():
        if (ranks[pairs.rows][pairs.known] != 0).any():
            predicted = Affinity.of(
                affinity.sources,
                {name: np.where(np.isnan(affinity[method]), np.nan, ranks)},
                targets=targets,
                measures={name: Measure("rank", directed=True)},
            )
            evaluations[name] = evaluate(predicted, oracle, name, relevant)
    if (ceiling := noise_ceiling(affinity, oracle, method, relevant)) is not None:
        evaluations[SECOND] = ceiling
    return evaluations


def static_ranking(
    oracle: Oracle, names: Sequence[str], *, targets: Sequence[str] | None = None
) -> Float[np.ndarray, "targets sources"]:
    """Computes the mean rank of every source over the other targets of the oracle: one list of sources for all.

    The row of a target never depends on the oracle's scores for that target. Ranks are those of `oracle_ranks`; a
    source that no other target has is 0, in the middle.

    Args:
        oracle: Measured transfer.
        names: The sources, in the order of columns.
        targets: The targets, in the order of rows; None: the sources.
    """
    ranks = oracle_ranks(oracle)
    sources = list(dict.fromkeys(source for of_target in ranks.values() for source in of_target))
    table = np.array([[of_target.get(source, math.nan) for source in sources] for of_target in ranks.values()])
    known = ~np.isnan(table)
    columns, rows = {source: i for i, source in enumerate(sources)}, names if targets is None else targets
    result = np.zeros((len(rows), len(names)))
    for row, name in enumerate(map(oracle.own_name, rows)):
        if name in oracle.scores:
            others = np.array([target != name for target in ranks], bool)
            sums, counts = np.nansum(table[others], 0), known[others].sum(0)
            means = np.append(sums / np.maximum(counts, 1), 0)
            result[row] = means[[columns.get(oracle.own_name(source), -1) for source in names]]
    return result


def other_direction(
    oracle: Oracle, names: Sequence[str], *, targets: Sequence[str] | None = None
) -> Float[np.ndarray, "targets sources"]:
    """Computes for every target and source the rank of the target as a source for the source.

    Ranks are those of `oracle_ranks`, since scores of several targets need not have one scale. Where the other
    direction was not measured, the value is 0, in the middle.

    Args:
        oracle: Measured transfer.
        names: The sources, in the order of columns.
        targets: The targets, in the order of rows; None: the sources.
    """
    ranks, own = oracle_ranks(oracle), [oracle.own_name(name) for name in names]
    rows = own if targets is None else [oracle.own_name(name) for name in targets]
    empty: Mapping[str, float] = {}
    return np.array([[ranks.get(source, empty).get(target, 0.0) for source in own] for target in rows])


def oracle_ranks(oracle: Oracle) -> dict[str, dict[str, float]]:
    """Ranks the sources of every target from -1, the worst, to 1; equal scores have the mean of their ranks.

    Targets with a single source are left out.
    """
    from scipy.stats import rankdata

    ranks = {}
    for target, of_target in oracle.scores.items():
        scores = {source: score for source, score in of_target.items() if source != target}
        if (count := len(scores)) > 1:
            places = (2 * rankdata([*scores.values()]) - count - 1) / (count - 1)
            ranks[target] = dict(zip(scores, places.tolist(), strict=True))
    return ranks


def noise_ceiling(
    affinity: Affinity, oracle: Oracle, method: str, relevant: int, *, draws: int = 100, seed: int = 0
) -> Evaluation | None:
    """Estimates how a second measurement of the same transfer would score against the oracle.

    A score y is the true transfer plus an error of standard error s. The true values of a target's sources are taken as
    normal, with the mean of the scores and the variance T = var(y) - mean(s^2), at least 0. Given y, a second
    measurement then is normal around mean + r (y - mean), with variance (1 + r) s^2, where r = T / (T + s^2). It is
    drawn and scored like an affinity. Neither errors added to y alone, which would count those in y as true and score
    too high, nor two errors added to y, which would spread the values too widely, have this expectation.

    The estimate is slightly too high where T is 0 or a target has few sources. It is too low where errors are shared by
    the sources of a target, since these are drawn apart.

    Args:
        affinity: Affinities whose known pairs with the oracle are scored; its values are not used.
        oracle: Measured transfer.
        method: A method of the affinities.
        relevant: Number of sources of each target that count as relevant.
        draws: Number of second measurements; correlations of targets with more than 100 sources use fewer.
        seed: Seed of the draws.

    Returns:
        Mean hits and mean correlations over the draws, without bands; None where the oracle lacks the standard error of
        a scored pair.
    """
    pairs = scored_pairs(affinity, oracle, method)
    stderr = oracle.table(oracle.stderr, pairs.sources, targets=pairs.targets)
    if np.isnan(stderr[pairs.known]).any():
        return None
    rng = np.random.default_rng(seed)
    drawn = np.zeros((draws, *stderr.shape))
    correlations = {}
    for row, (target, known) in enumerate(zip(pairs.targets, pairs.known, strict=True)):
        scores, errors = pairs.scores[row, known], stderr[row, known]
        spread = max(scores.var(ddof=1) - np.square(errors).mean(), 0)
        kept = np.divide(spread, spread + np.square(errors), out=np.ones_like(errors), where=errors > 0)
        noise = np.sqrt(1 + kept) * errors * rng.normal(size=(draws, len(errors)))
        values = scores.mean() + kept * (scores - scores.mean()) + noise
        drawn[:, row, known] = values
        correlations[target] = _mean_correlation(values[: max(1, _MAX_COMPARED_VALUES // errors.size**2)], scores)
    curve = retrieval_curve(affinity, oracle, relevant=relevant, method=method)
    hits = pairs.hits(drawn, pairs.relevant(relevant)).sum(1).mean(0)
    return Evaluation(dataclasses.replace(curve, hits=hits), RetrievalBands(None, None), correlations)


def _mean_correlation(
    values: Float[np.ndarray, "draws sources"], scores: Float[np.ndarray, " sources"]
) -> RankCorrelation:
    """Averages rank correlations over draws; SciPy, which takes one draw at a time, is fifty times slower."""
    if not np.ptp(scores) > 0:
        return RankCorrelation(math.nan, math.nan, math.nan, sources=len(scores))
    drawn = np.sign(values[:, :, None] - values[:, None, :])
    wanted = np.broadcast_to(np.sign(scores[:, None] - scores), drawn.shape)

    def correlation(weights: Float[np.ndarray, "draws #sources sources"] | float) -> Float[np.ndarray, " draws"]:
        squares = [(weights * signs**2).sum((1, 2)) for signs in (drawn, wanted)]
        return (weights * drawn * wanted).sum((1, 2)) / np.sqrt(squares[0] * squares[1])

    def hyperbolic(
        first: Float[np.ndarray, "draws sources sources"], second: Float[np.ndarray, "draws sources sources"]
    ) -> Float[np.ndarray, "draws sources sources"]:
        """Returns Vigna's weights (2015) by the places in `first`, whose ties `second` breaks."""
        weight = 1 / (1 + (np.where(first == 0, second, first) < 0).sum(2))
        return weight[:, :, None] + weight[:, None, :]

    ranks = [signs.sum(2) for signs in (drawn, wanted)]
    spearman = (ranks[0] * ranks[1]).sum(1) / np.sqrt(np.square(ranks[0]).sum(1) * np.square(ranks[1]).sum(1))
    weighted = (correlation(hyperbolic(drawn, wanted)) + correlation(hyperbolic(wanted, drawn))) / 2
    return RankCorrelation(
        float(spearman.mean()), float(correlation(1.0).mean()), float(weighted.mean()), sources=len(scores)
    )
