"""Mutual nearest neighbours: whether two networks find the same images near."""

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison import jackknife, streaming
from jaxtransfer.comparison.image_similarities import cosine_kernel
from jaxtransfer.comparison.jackknife import Comparison, grouped, jackknifed, warn_of_chance
from jaxtransfer.comparison.rsa import DECIMALS
from jaxtransfer.comparison.streaming import Representations, Scratch, finite_images, flat
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import chunks

# Similarities that are compared at a time, so that they stay in a processor's cache.
_TILE = 2**17


def mutual_knn(representations: Representations, *, neighbours: int = 10) -> Comparison:
    """Computes the mean share of an image's nearest neighbours that two networks have in common: 0 to 1.

    The nearest neighbours of an image are the `neighbours` images of highest cosine to it, after the mean over images
    is removed (mutual k-nearest neighbours, Huh et al., ICML 2024). Cosines that agree to 9 decimals are tied; images
    that are tied for the last places are neighbours by the same fraction, and the share in common is then the cosine
    between the fractions of two networks. Unrelated networks have neighbours / (images - 1) in common on average. An
    image that equals the mean in all units is not usable.

    Args:
        representations: The representations of each network.
        neighbours: The number of neighbours; > 0.

    Warns:
        UserWarning: Unrelated networks would have 0.1 or more in common: with ten neighbours, on fewer than 102 images.

    Raises:
        JaxTransferError: `neighbours` is below 1, or there are too few images that are usable for all networks: 12 or
            more for ten neighbours, so that an image has ten others also when the jackknife leaves a group out.
    """
    if neighbours < 1:
        raise JaxTransferError(f"The number of neighbours must be 1 or more, not {neighbours}.")
    views = flat(representations)
    networks = len(views)
    usable = finite_images(views)
    images = np.flatnonzero(np.all(usable, axis=0))
    with Scratch() as scratch:
        kernels = []
        for i, units in enumerate(views.values()):
            usable[i, images], kernel = cosine_kernel(units, images, scratch)
            kernels.append(kernel)
        # Also when a group is left out, an image must have enough others.
        least = neighbours + 1 + -(-(neighbours + 1) // (jackknife.GROUPS - 1))
        order, groups = grouped(usable, views, jackknife.GROUPS, least=least)
        totals = np.empty(networks)
        rows_at_a_time = max(1, min(_TILE, streaming.MAX_ELEMENTS // networks) // len(images))

        def in_common(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
            kept = np.isin(images, order if left_out is None else np.delete(order, groups[left_out]))
            tiles = [kernel(kept) for kernel in kernels]
            values, of_networks = np.zeros((networks, networks)), np.zeros(networks)
            everything = slice(0, len(images))
            for start, stop in chunks(len(images), rows_at_a_time):
                rows = slice(start, stop)
                parts = np.zeros((networks, stop - start, len(images)))
                for part, tile in zip(parts, tiles, strict=True):
                    similarities = np.where(kept, tile(rows, everything), -np.inf)
                    similarities[np.arange(stop - start), np.arange(start, stop)] = -np.inf  # to itself
                    part[kept[rows]] = _nearest(similarities[kept[rows]], neighbours)
                shares = parts.reshape(networks, -1)
                values += shares @ shares.T
                of_networks += shares.sum(1)
            if left_out is None:
                totals[:] = of_networks
            return values / kept.sum()

        def chance() -> Float[np.ndarray, "networks networks"]:
            count = len(order)
            return np.outer(totals, totals) / (count**2 * (count - 1))

        comparison = jackknifed(in_common, chance, order, groups, usable)
    warn_of_chance("mutual_knn", representations, comparison)
    return comparison


def _nearest(similarities: Float[np.ndarray, "rows images"], neighbours: int) -> Float[np.ndarray, "rows images"]:
    """Returns by which fraction each image is one of the nearest of a row; rows are scaled to length 1."""
    similarities = np.round(similarities, DECIMALS)
    last = np.partition(similarities, -neighbours, axis=1)[:, -neighbours, None]
    fractions = (similarities >= last).astype(np.float64)
    candidates = fractions.sum(1)
    for row in np.flatnonzero(candidates > neighbours):
        tied = similarities[row] == last[row]
        fractions[row, tied] = 1 - (candidates[row] - neighbours) / tied.sum()
    return fractions / np.linalg.norm(fractions, axis=1, keepdims=True)
