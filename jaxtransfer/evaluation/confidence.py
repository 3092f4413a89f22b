"""Tells how certain rankings and retrieval curves are, over other samples and over other networks."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.measure import Sampled
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.retrieval import ScoredPairs, retrieval_curve, scored_pairs
from jaxtransfer.points.store import chunks

_MAX_RESAMPLED_VALUES = 8 * 2**20  # affinities of resampled probes that are held at once


class Band(NamedTuple):
    """Holds the bounds of a band of hits for K from 1.

    Divided by `RetrievalCurve.seen` they are precisions, by `RetrievalCurve.relevant` recalls.
    """

    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalBands:
    """Holds bands in which the expected curve lies, K by K.

    Attributes:
        images: Band for these networks over other probes of as many images (or restarts, where those were sampled);
            None where the affinity has no `pseudo_values`.
        networks: Band over other networks and other probes, of the same numbers; None where there is only one target.
        sampled: What a probe is made of: "images", "restarts" or "labelled examples".
    """

    images: Band | None
    networks: Band | None
    sampled: Sampled = "images"


class RankedSource(NamedTuple):
    """Describes a source of a target.

    Attributes:
        name: Name of the source.
        affinity: Its value with the target: an affinity, or a gap where the measure is one.
        stderr: Standard error of the value.
        above_next: Probability that the source truly ranks above the next one; None for the last, or if not known.
        more_images: About how many more images (or restarts, see `Measure.sampled`) like the present ones would raise
            `above_next` to `confidence`; 0 if it is that high already, None if not known.
    """

    name: str
    affinity: float
    stderr: float
    above_next: float | None
    more_images: int | None


def certain_ranking(
    affinity: Affinity, target: str, *, method: str | None = None, confidence: float = 0.95
) -> list[RankedSource]:
    """Ranks sources as `Affinity.rank` does, and tells how certain each place is.

    Two sources are compared sample by sample (an image, or a group of images), so that noise common to both cancels:
    with a mean difference d and its standard error s, the probability is that of Student's t at d / s. Without
    `pseudo_values`, errors are taken as normal and independent.

    Args:
        affinity: The affinities.
        target: Name of a target.
        method: The method to rank by; may be omitted where there is only one.
        confidence: The probability that `more_images` aims at; between 0.5 and 1.

    Returns:
        The sources, nearest first.

    Raises:
        JaxTransferError: Unknown target or method, or a confidence outside its range.

    Examples:
        >>> networks = [jt.Network(name, lambda w, x: x.mean((1, 2)) @ w, w)
        ...             for name, w in {"red": np.float32([1, 0, 0]), "dull": np.float32([2, 1, 1]),
        ...                             "blue": np.float32([0, 0, 1])}.items()]
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
        >>> affinity = jt.affinity_matrix(networks, images, methods=["input_x_gradient"])
        >>> first, second = jt.certain_ranking(affinity, "red")
        >>> print(f"{first.name} is above {second.name} with probability {first.above_next:.2f}")
        dull is above blue with probability 1.00
    """
    if not 0.5 < confidence < 1:
        raise JaxTransferError(f"The confidence must lie between 0.5 and 1, not {confidence}.")
    ranked = affinity.rank(target, method=method)
    sources = [affinity.column(name) for name, _, _ in ranked]
    orders = _orders(affinity, affinity.row(target), sources[:-1], sources[1:], method, confidence)
    return [RankedSource(*source, *order) for source, order in zip(ranked, [*orders, (None, None)], strict=False)]


def probability_above(affinity: Affinity, target: str, one: str, other: str, *, method: str | None = None) -> float:
    """Computes the probability that a source truly ranks above another for a target; see `certain_ranking`.

    Args:
        affinity: The affinities.
        target: Name of a target.
        one: The source that may rank above.
        other: The source that may rank below.
        method: The method to rank by; may be omitted where there is only one.

    Raises:
        JaxTransferError: An unknown target, source or method, or errors that are not known.
    """
    above, below = affinity.column(one), affinity.column(other)
    ((probability, _),) = _orders(affinity, affinity.row(target), [above], [below], method, 0.95)
    if probability is None:
        raise JaxTransferError("The errors of these affinities are not known, so no order of them has a probability.")
    return probability


def _orders(
    affinity: Affinity, row: int, above: list[int], below: list[int], method: str | None, confidence: float
) -> list[tuple[float | None, int | None]]:
    """Returns for pairs of sources the probability of their order, and the samples still needed for `confidence`."""
    from scipy import stats

    nearness, counts = affinity.nearness(method)[row].astype(np.float64), affinity.counts(method)[row]
    difference = nearness[above] - nearness[below]
    samples = affinity.pseudo_values(method)
    if samples is None:
        stderr = np.hypot(*(affinity.stderr(method)[row][sources].astype(np.float64) for sources in (above, below)))
        degrees = np.full(len(above), np.inf)
    else:
        first, second = (
            samples[:, affinity.pair_columns(method, np.array(row), np.array(sources, int))]
            for sources in (above, below)
        )
        differences = first.astype(np.float64) - second
        known = ~np.isnan(differences)
        degrees = known.sum(0) - 1.0
        mean = np.nan_to_num(differences).sum(0) / np.maximum(degrees + 1, 1)
        squares = np.square(np.nan_to_num(differences - mean)).sum(0)
        stderr = np.where(degrees > 0, np.sqrt(squares / np.maximum(degrees * (degrees + 1), 1)), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        probability = stats.t.cdf(difference / stderr, degrees)
        present = np.minimum(counts[above], counts[below])
        needed = present * np.square(stats.t.ppf(confidence, degrees) * stderr / difference)
    orders: list[tuple[float | None, int | None]] = []
    for d, error, p, done, total in zip(difference, stderr, probability, present, needed, strict=True):
        if not 0 < error < np.inf:
            orders.append((None, None) if error else (0.5 if d == 0 else float(d > 0), None))
        elif p >= confidence:
            orders.append((float(p), 0))
        else:
            reachable = done > 0 and d > 0 and total < np.inf
            orders.append((float(p), math.ceil(total) - int(done) if reachable else None))
    return orders


def retrieval_bands(
    affinity: Affinity,
    oracle: Oracle,
    *,
    relevant: int = RELEVANT,
    method: str | None = None,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> RetrievalBands:
    """Computes confidence bands for `retrieval_curve`.

    Over images (or what else was sampled): the variance of hits in a bootstrap over the samples (Efron 1979).
    Affinities are first shrunk towards their target's mean, which removes the spread due to noise; resampling unshrunk
    values would understate rank changes.

    Over networks: hits are a sum over pairs of networks, and pairs that share a network are not independent. Their
    variance is that of dyadic data (Snijders and Borgatti 1999; Aronow, Samii and Assenova 2015): the sum of squared
    influences of networks, as targets and as sources, minus that of pairs, which it counts twice; at least the variance
    between targets. Of a rectangle, targets and sources are networks of their own, except where the oracle knows both
    by one name; degrees of freedom are those of the smaller number of them. The influence of a pair on a count among
    the K nearest is that of a trimmed sum: a source among them displaces one that would be a hit as often as those at
    rank K. The variance over images that all targets share is added, and the sum is at least the variance over images.

    Each variance gives an equivalent number of independent trials, and these the Wilson interval with Student's t (Korn
    and Graubard 1998), between the fewest and the most possible hits.

    Args:
        affinity: The affinities to judge.
        oracle: Measured transfer.
        relevant: Number of sources of each target that count as relevant.
        method: The method to judge; may be omitted where there is only one.
        confidence: Coverage of the bands, between 0 and 1.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        JaxTransferError: As for `retrieval_curve`, or a confidence outside its range.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> names = [f"n{i}" for i in range(9)]
        >>> oracle = jt.Oracle("measured", {t: {s: rng.normal() for s in names if s != t} for t in names})
        >>> bands = jt.retrieval_bands(jt.Affinity.of(names, {"random": rng.normal(size=(9, 9))}), oracle, relevant=3)
        >>> low, high = bands.networks
        >>> print(f"P@1: {low[0] / 9:.2f} to {high[0] / 9:.2f}")
        P@1: 0.09 to 0.72
    """
    if not 0 < confidence < 1:
        raise JaxTransferError(f"The confidence must lie between 0 and 1, not {confidence}.")
    curve = retrieval_curve(affinity, oracle, relevant=relevant, method=method)
    pairs = scored_pairs(affinity, oracle, method)
    is_relevant = pairs.relevant(relevant)
    fewest, most = (of_targets.sum(0) for of_targets in _bounds(pairs, is_relevant))

    def band(variance: Float[np.ndarray, " K"], degrees: int, at_most: float) -> Band:
        from scipy import stats

        quantile = float(stats.t.ppf((1 + confidence) / 2, degrees))
        span = np.maximum(most - fewest, 1)
        low, high = _wilson((curve.hits - fewest) / span, variance / span**2, quantile, span, at_most)
        return Band(*(np.where(most > fewest, fewest + span * share, curve.hits) for share in (low, high)))

    images, shared, over_images = None, *np.zeros((2, len(curve.hits)))
    samples, measure = affinity.pseudo_values(method), affinity.measure(method)
    if samples is not None and len(samples) > 1:
        columns = affinity.pair_columns(method, pairs.rows[:, None], np.arange(len(pairs.sources)))
        over_images, shared = _over_images(pairs, is_relevant, measure.nearness(samples), columns, resamples, seed)
        images = band(over_images, len(samples) - 1, math.inf)
    # In a square matrix all targets are sources.
    independent = min(len(pairs.targets), len(pairs.sources))
    if independent < 2:
        return RetrievalBands(images, None, measure.sampled)
    over_networks = _over_networks(pairs, is_relevant) * independent / (independent - 1)
    over_networks = np.maximum(over_networks + shared, over_images)
    return RetrievalBands(images, band(over_networks, independent - 1, independent), measure.sampled)


def _bounds(
    pairs: ScoredPairs, relevant: Bool[np.ndarray, "targets sources"]
) -> tuple[Int[np.ndarray, "targets K"], Int[np.ndarray, "targets K"]]:
    """Returns the fewest and the most hits that each target can have."""
    sources, count = pairs.known.sum(1)[:, None], relevant.sum(1)[:, None]
    seen = np.minimum(np.arange(1, sources.max() + 1), sources)
    return np.maximum(seen + count - sources, 0), np.minimum(seen, count)


def _over_images(
    pairs: ScoredPairs,
    relevant: Bool[np.ndarray, "targets sources"],
    samples: Float[np.ndarray, "samples pairs"],
    columns: Int[np.ndarray, "targets sources"],
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Returns the variance of hits over resampled images, and the part of it that targets share."""
    rng = np.random.default_rng(seed)
    usable = (~np.isnan(samples)).astype(np.float32)
    values = np.nan_to_num(samples)
    mean = values.sum(0) / np.maximum(usable.sum(0), 1)
    centre = _without_noise(pairs, samples, columns)
    sums: list[np.ndarray] = []
    own, own_squares = 0.0, 0.0
    for start, stop in chunks(resamples, max(1, _MAX_RESAMPLED_VALUES // columns.size)):
        uniform = np.full(len(samples), 1 / len(samples))
        weights = rng.multinomial(len(samples), uniform, stop - start).astype(np.float32)
        seen = weights @ usable
        moved = np.where(seen > 0, weights @ values / np.maximum(seen, 1) - mean, 0)
        hits = pairs.hits(centre + moved[:, columns], relevant)
        sums += list(hits.sum(1))
        own, own_squares = own + hits.sum(0), own_squares + np.square(hits).sum(0)
    variance = np.var(sums, axis=0, ddof=1)
    of_targets = (own_squares - np.square(own) / resamples) / (resamples - 1)
    return variance, np.maximum(variance - np.asarray(of_targets).sum(0), 0)


def _without_noise(
    pairs: ScoredPairs, samples: Float[np.ndarray, "samples pairs"], columns: Int[np.ndarray, "targets sources"]
) -> Float[np.ndarray, "targets sources"]:
    """Shrinks each target's values to the spread that they would have without noise."""
    shrunk = pairs.nearness.astype(np.float64)
    for row, known, column in zip(shrunk, pairs.known, columns, strict=True):
        of_target = samples[:, column[known]].astype(np.float64)
        of_target = of_target[~np.isnan(of_target).all(1)]
        # What all sources of a target have in common does not change their order.
        deviations = np.nan_to_num(of_target - np.nanmean(of_target, axis=1, keepdims=True))
        noise = deviations.var(0, ddof=1).mean() / len(deviations) if len(deviations) > 1 else np.inf
        spread = row[known].var(ddof=1)
        if spread > 0:
            row[known] = row[known].mean() + np.sqrt(max(1 - noise / spread, 0)) * (row[known] - row[known].mean())
    return shrunk


def _over_networks(pairs: ScoredPairs, relevant: Bool[np.ndarray, "targets sources"]) -> Float[np.ndarray, " K"]:
    """Computes the variance of hits over networks from the influence of every pair."""
    sources, count = pairs.known.sum(1), relevant.sum(1)
    order = pairs.order(pairs.nearness)
    place = np.argsort(order, axis=1)  # of every source; unknown ones come last
    by_place = np.take_along_axis(relevant, order, axis=1)
    by_score = np.argsort(np.where(pairs.known, -pairs.scores, np.inf), axis=1, kind="stable")
    all_hits, (fewest, most) = pairs.hits(pairs.nearness, relevant), _bounds(pairs, relevant)
    share = (all_hits - fewest).sum(0) / np.maximum((most - fewest).sum(0), 1)
    as_targets = all_hits - fewest - share * (most - fewest)
    # Sources come first, then the targets that are no sources.
    apart = pairs.own < 0
    nodes = np.where(apart, len(pairs.sources) - 1 + np.cumsum(apart), pairs.own)
    networks = len(pairs.sources) + int(apart.sum())
    variances = []
    for k in range(1, sources.max() + 1):
        near = pairs.known & (place < k)
        # What a place is worth: how often the source at rank K is relevant, and the last relevant source is near.
        at_k = np.concatenate([by_place[sources > i, i] for i in (k - 1, k) if i < len(pairs.sources)])
        borders = [np.take_along_axis(by_score, np.minimum(count + i, sources - 1)[:, None], 1) for i in (-1, 0)]
        at_border = np.concatenate([np.take_along_axis(near, border, axis=1) for border in borders])
        influence = (near & relevant) - at_k.mean() * near - at_border.mean() * relevant
        influence = np.where(pairs.known, influence - (influence.sum(1) / sources)[:, None], 0)
        as_target = as_targets[:, k - 1]
        matrix = np.zeros((networks, networks))
        np.add.at(matrix[:, : len(pairs.sources)], nodes, influence)
        of_network = matrix.sum(0)
        np.add.at(of_network, nodes, as_target)
        of_pairs = np.square(np.triu(matrix + matrix.T, 1)).sum()
        variances.append(max(np.square(of_network).sum() - of_pairs, np.square(as_target).sum()))
    return np.array(variances)


def _wilson(
    share: Float[np.ndarray, " K"],
    variance: Float[np.ndarray, " K"],
    quantile: float,
    trials: Float[np.ndarray, " K"],
    at_most: float,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Computes Wilson's interval for a share with a variance.

    A share of 0 or 1 is moved by half a trial, and its equivalent number of trials is limited to `at_most`.
    """
    inside = np.clip(share, 0.5 / trials, 1 - 0.5 / trials)
    with np.errstate(divide="ignore"):
        number = inside * (1 - inside) / variance
    number = np.where((share <= 0) | (share >= 1) | (variance == 0), np.minimum(number, at_most), number)
    centre = (share + quantile**2 / (2 * number)) / (1 + quantile**2 / number)
    half = quantile * np.sqrt(share * (1 - share) / number + quantile**2 / (4 * number**2)) / (1 + quantile**2 / number)
    return centre - half, centre + half
