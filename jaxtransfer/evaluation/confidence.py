"""How sure: what other probe images, and other networks, would have said."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.affinity import Affinity, pair_columns
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.retrieval import ScoredPairs, retrieval_curve, scored_pairs
from jaxtransfer.points.store import chunks

# Affinities of resampled probes that are held at once.
_HELD = 8 * 2**20


class Band(NamedTuple):
    """Hits, from and to, for K from 1; over `RetrievalCurve.seen` they are precisions, over `.relevant` recalls."""

    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalBands:
    """Bands in which the expected curve lies, K by K.

    Attributes:
        images: Of these networks, over probes of so many images; None where the affinity has no `pseudo_values`.
        networks: Over networks and probes of so many; None where there is only one target.
    """

    images: Band | None
    networks: Band | None


class RankedSource(NamedTuple):
    """A source of a target.

    Attributes:
        name: Its name.
        affinity: With the target.
        stderr: The standard error of that.
        above_next: Probability that it ranks above the one that comes next; None for the last, or if not known.
        more_images: Probe images that would make that probability `confidence`, beyond those there are: about so many
            if they are like those there are. 0: it is so already. None: not known.
    """

    name: str
    affinity: float
    stderr: float
    above_next: float | None
    more_images: int | None


def certain_ranking(
    affinity: Affinity, target: str, *, method: str | None = None, confidence: float = 0.95
) -> list[RankedSource]:
    """`Affinity.rank`, with how sure every place is.

    Two sources are compared image by image (or group of images by group), so that what is common to both does not
    count: with a mean difference d and its standard error s, the probability is that of Student's t at d / s. Where
    nothing is known image by image, errors are taken as normal and independent.

    Args:
        affinity: The affinities.
        target: Name of a network.
        method: May be omitted where there is only one.
        confidence: The probability that `more_images` aims at; between 0.5 and 1.

    Raises:
        JaxTransferError: Unknown target or method, or a confidence that is none.
    """
    if not 0.5 < confidence < 1:
        raise JaxTransferError(f"The confidence must lie between 0.5 and 1, not {confidence}.")
    ranked = affinity.rank(target, method=method)
    places = [affinity.names.index(name) for name, _, _ in ranked]
    orders = _orders(affinity, affinity.names.index(target), places[:-1], places[1:], method, confidence)
    return [RankedSource(*each, *order) for each, order in zip(ranked, [*orders, (None, None)], strict=False)]


def probability_above(affinity: Affinity, target: str, one: str, other: str, *, method: str | None = None) -> float:
    """The probability that one source ranks above another for a target; see `certain_ranking`.

    Raises:
        JaxTransferError: An unknown network or method, or errors that are not known.
    """
    if unknown := [name for name in (target, one, other) if name not in affinity.names]:
        raise JaxTransferError(f"There is no network {unknown[0]!r}; there are: {', '.join(affinity.names)}.")
    row, above, below = (affinity.names.index(name) for name in (target, one, other))
    ((found, _),) = _orders(affinity, row, [above], [below], method, 0.95)
    if found is None:
        raise JaxTransferError("The errors of these affinities are not known, so no order of them has a probability.")
    return found


def _orders(
    affinity: Affinity, row: int, ones: list[int], others: list[int], method: str | None, confidence: float
) -> list[tuple[float | None, int | None]]:
    """For pairs of sources the probability that the first is above, and how many more images would make it enough."""
    from scipy import stats

    values, counts = affinity[method][row].astype(np.float64), affinity.counts(method)[row]
    difference = values[ones] - values[others]
    parts = affinity.pseudo_values(method)
    if parts is None:
        stderr = np.hypot(*(affinity.stderr(method)[row][some].astype(np.float64) for some in (ones, others)))
        degrees = np.full(len(ones), np.inf)
    else:
        count = len(affinity.names)
        one, other = (parts[:, pair_columns(count, np.array(row), np.array(some, int))] for some in (ones, others))
        by_part = one.astype(np.float64) - other
        known = ~np.isnan(by_part)
        degrees = known.sum(0) - 1.0
        mean = np.nan_to_num(by_part).sum(0) / np.maximum(degrees + 1, 1)
        squares = np.square(np.nan_to_num(by_part - mean)).sum(0)
        stderr = np.where(degrees > 0, np.sqrt(squares / np.maximum(degrees * (degrees + 1), 1)), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        above = stats.t.cdf(difference / stderr, degrees)
        images = np.minimum(counts[ones], counts[others])
        wanted = images * np.square(stats.t.ppf(confidence, degrees) * stderr / difference)
    found: list[tuple[float | None, int | None]] = []
    for d, error, p, there, total in zip(difference, stderr, above, images, wanted, strict=True):
        if not 0 < error < np.inf:
            found.append((None, None) if error else (0.5 if d == 0 else float(d > 0), None))
        elif p >= confidence:
            found.append((float(p), 0))
        else:
            told = there > 0 and d > 0 and total < np.inf
            found.append((float(p), math.ceil(total) - int(there) if told else None))
    return found


def retrieval_bands(
    affinity: Affinity,
    oracle: Oracle,
    *,
    relevant: int = 5,
    method: str | None = None,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> RetrievalBands:
    """Bands for `retrieval_curve`: how far it could lie from what would be seen on average.

    Over images: the variance of hits when images are drawn again with replacement (Efron 1979). The affinities they
    vary about are first drawn together within each target, by as much as their noise has spread them, since noise put
    on noise would change the order less than noise does.

    Over networks: hits are a sum over pairs of networks, and pairs that share one are not independent. Their variance
    is that of dyadic data (Snijders and Borgatti 1999; Aronow, Samii and Assenova 2015): the influence of a network, as
    a target and as a source, squared and summed, less the influence of the pairs, which is in it twice; not less than
    the variance between targets. The influence of a pair on a count among the K nearest is that of a trimmed sum: a
    source among them takes the place of one that would be a hit as often as those at rank K. Variance over images that
    all targets share is added, and the sum is not less than the variance over images.

    Either variance gives the number of independent trials that would have it, and that the Wilson interval with
    Student's t (Korn and Graubard 1998), between the fewest and the most hits there can be.

    Args:
        affinity: What was judged.
        oracle: What really happened.
        relevant: How many of a target's sources are relevant.
        method: May be omitted where there is only one.
        confidence: Of the bands.
        resamples: How often images are drawn again.
        seed: For the draws.

    Raises:
        JaxTransferError: What `retrieval_curve` raises, or a confidence that is none.
    """
    if not 0 < confidence < 1:
        raise JaxTransferError(f"The confidence must lie between 0 and 1, not {confidence}.")
    curve = retrieval_curve(affinity, oracle, relevant=relevant, method=method)
    pairs = scored_pairs(affinity, oracle, method)
    found = pairs.relevant(relevant)
    fewest, most = (each.sum(0) for each in _bounds(pairs, found))

    def band(variance: Float[np.ndarray, " K"], degrees: int, at_most: float) -> Band:
        from scipy import stats

        quantile = float(stats.t.ppf((1 + confidence) / 2, degrees))
        span = np.maximum(most - fewest, 1)
        low, high = _wilson((curve.hits - fewest) / span, variance / span**2, quantile, span, at_most)
        return Band(*(np.where(most > fewest, fewest + span * each, curve.hits) for each in (low, high)))

    images, shared, over_images = None, *np.zeros((2, len(curve.hits)))
    parts = affinity.pseudo_values(method)
    if parts is not None and len(parts) > 1:
        over_images, shared = _over_images(pairs, found, parts, resamples, seed)
        images = band(over_images, len(parts) - 1, math.inf)
    targets = len(pairs.targets)
    if targets < 2:
        return RetrievalBands(images, None)
    over_networks = np.maximum(_over_networks(pairs, found) + shared, over_images)
    return RetrievalBands(images, band(over_networks, targets - 1, targets))


def _bounds(
    pairs: ScoredPairs, relevant: Bool[np.ndarray, "targets networks"]
) -> tuple[Int[np.ndarray, "targets K"], Int[np.ndarray, "targets K"]]:
    """The fewest and the most hits that each target could have."""
    sources, count = pairs.known.sum(1)[:, None], relevant.sum(1)[:, None]
    seen = np.minimum(np.arange(1, sources.max() + 1), sources)
    return np.maximum(seen + count - sources, 0), np.minimum(seen, count)


def _over_images(
    pairs: ScoredPairs,
    relevant: Bool[np.ndarray, "targets networks"],
    parts: Float[np.ndarray, "parts pairs"],
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """The variance of hits over resampled images, and as much of it as is not each target's own."""
    rng = np.random.default_rng(seed)
    usable = (~np.isnan(parts)).astype(np.float32)
    values = np.nan_to_num(parts)
    columns = pair_columns(len(pairs.names), pairs.rows[:, None], np.arange(len(pairs.names)))
    mean = values.sum(0) / np.maximum(usable.sum(0), 1)
    centre = _without_noise(pairs, parts, columns)
    sums: list[np.ndarray] = []
    own, own_squares = 0.0, 0.0
    for start, stop in chunks(resamples, max(1, _HELD // columns.size)):
        weights = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), stop - start).astype(np.float32)
        seen = weights @ usable
        moved = np.where(seen > 0, weights @ values / np.maximum(seen, 1) - mean, 0)
        hits = pairs.hits(centre + moved[:, columns], relevant)
        sums += list(hits.sum(1))
        own, own_squares = own + hits.sum(0), own_squares + np.square(hits).sum(0)
    variance = np.var(sums, axis=0, ddof=1)
    of_targets = (own_squares - np.square(own) / resamples) / (resamples - 1)
    return variance, np.maximum(variance - np.asarray(of_targets).sum(0), 0)


def _without_noise(
    pairs: ScoredPairs, parts: Float[np.ndarray, "parts pairs"], columns: Int[np.ndarray, "targets networks"]
) -> Float[np.ndarray, "targets networks"]:
    """Affinities with the spread within a target that they would have without noise."""
    found = pairs.affinities.astype(np.float64)
    for row, known, column in zip(found, pairs.known, columns, strict=True):
        of_target = parts[:, column[known]].astype(np.float64)
        of_target = of_target[~np.isnan(of_target).all(1)]
        # What all sources of a target have in common does not change their order.
        deviations = np.nan_to_num(of_target - np.nanmean(of_target, axis=1, keepdims=True))
        noise = deviations.var(0, ddof=1).mean() / len(deviations) if len(deviations) > 1 else np.inf
        spread = row[known].var(ddof=1)
        if spread > 0:
            row[known] = row[known].mean() + np.sqrt(max(1 - noise / spread, 0)) * (row[known] - row[known].mean())
    return found


def _over_networks(pairs: ScoredPairs, relevant: Bool[np.ndarray, "targets networks"]) -> Float[np.ndarray, " K"]:
    """The variance of hits over networks, from the influence of every pair."""
    targets, networks = pairs.known.shape
    sources, count = pairs.known.sum(1), relevant.sum(1)
    order = pairs.order(pairs.affinities)
    place = np.argsort(order, axis=1)  # of every source; those not known come last
    by_place = np.take_along_axis(relevant, order, axis=1)
    by_score = np.argsort(np.where(pairs.known, -pairs.scores, np.inf), axis=1, kind="stable")
    all_hits, (fewest, most) = pairs.hits(pairs.affinities, relevant), _bounds(pairs, relevant)
    share = (all_hits - fewest).sum(0) / np.maximum((most - fewest).sum(0), 1)
    as_targets = all_hits - fewest - share * (most - fewest)
    variances = []
    for k in range(1, sources.max() + 1):
        near = pairs.known & (place < k)
        # How often the source at rank K is relevant, and the least of the relevant near: what a place is worth.
        at_k = np.concatenate([by_place[sources >= k, k - 1], by_place[sources > k, k]] if k < networks else [by_place])
        borders = [np.take_along_axis(by_score, np.minimum(count + i, sources - 1)[:, None], 1) for i in (-1, 0)]
        at_border = np.concatenate([np.take_along_axis(near, each, axis=1) for each in borders])
        influence = (near & relevant) - at_k.mean() * near - at_border.mean() * relevant
        influence = np.where(pairs.known, influence - (influence.sum(1) / sources)[:, None], 0)
        as_target = as_targets[:, k - 1]
        matrix = np.zeros((networks, networks))
        matrix[pairs.rows] = influence
        of_network = matrix.sum(0)
        of_network[pairs.rows] += as_target
        of_pairs = np.square(np.triu(matrix + matrix.T, 1)).sum()
        variances.append(max(np.square(of_network).sum() - of_pairs, np.square(as_target).sum()))
    return np.array(variances) * targets / (targets - 1)


def _wilson(
    share: Float[np.ndarray, " K"],
    variance: Float[np.ndarray, " K"],
    quantile: float,
    trials: Float[np.ndarray, " K"],
    at_most: float,
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Wilson's interval for a share with a variance; a share of 0 or 1 counts as half a trial away from it.

    `at_most` independent trials are believed in where the share is 0 or 1.
    """
    inside = np.clip(share, 0.5 / trials, 1 - 0.5 / trials)
    with np.errstate(divide="ignore"):
        number = inside * (1 - inside) / variance
    number = np.where((share <= 0) | (share >= 1) | (variance == 0), np.minimum(number, at_most), number)
    centre = (share + quantile**2 / (2 * number)) / (1 + quantile**2 / number)
    half = quantile * np.sqrt(share * (1 - share) / number + quantile**2 / (4 * number**2)) / (1 + quantile**2 / number)
    return centre - half, centre + half
