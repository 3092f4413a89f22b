"""Linear centred kernel alignment of representations, from tiles of their Gram matrices."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison import jackknife, streaming
from jaxtransfer.comparison.jackknife import Comparison, grouped, jackknifed, warn_of_chance
from jaxtransfer.comparison.streaming import (
    CONSTANT_SHARE,
    Representations,
    Units,
    centred,
    check_varies,
    finite_images,
    flat,
    mean_over_images,
    pieces,
)
from jaxtransfer.errors import NetworkError
from jaxtransfer.points.store import chunks


def cka(representations: Representations) -> Comparison:
    """Unbiased linear centred kernel alignment: -1 to 1, around 0 for unrelated networks.

    HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with the unbiased HSIC of Song et al. (JMLR 2012, equation 5), as Nguyen et
    al. (ICLR 2021) use it. It is the cosine between U-centred Gram matrices (Szekely and Rizzo 2014). The numerator is
    unbiased for any number of images, the ratio has mean 0 over permutations of one network's images. Gram matrices are
    computed in tiles, so that memory does not hold images x images.

    Warns:
        UserWarning: Fewer than 16 images: unrelated networks score 0.1 or more by chance.

    Raises:
        JaxTransferError: Fewer than five images that are usable (finite) for all networks; a network whose
            representation is the same for all of them, or has nothing left when U-centred, because all pairs of images
            are equally similar or one image differs from all others, which are identical.
    """
    comparison = _aligned(flat(representations), biased=False)
    warn_of_chance("cka", representations, comparison)
    return comparison


def cka_biased(representations: Representations) -> Comparison:
    """Linear centred kernel alignment as first published (Kornblith et al., ICML 2019): 0 to 1, biased upwards.

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of representations X and Y whose mean over images is removed; it is
    computed from tiles of the Gram matrices XX' and YY'. Of unrelated networks with effective dimensions d and
    e it is sqrt(d e) / (images - 1) on average, where d = (sum of variances)^2 / (sum of squared variances) over the
    principal directions; with many more units than images that is nearly 1.

    Warns:
        UserWarning: Unrelated networks would score 0.1 or more on average.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    comparison = _aligned(flat(representations), biased=True)
    warn_of_chance("cka_biased", representations, comparison)
    return comparison


def _aligned(representations: Mapping[str, Units], *, biased: bool) -> Comparison:
    """Computes linear CKA from tiles of the Gram matrices, of all images and without each group."""
    usable = finite_images(representations)
    # Unbiased values need four images, also when the jackknife has left one out.
    order, groups = grouped(usable, representations, jackknife.GROUPS, least=4 if biased else 5)
    count, networks = len(order), len(representations)
    means = [mean_over_images(units, order) for units in representations.values()]
    traces = np.zeros(networks)
    for i, ((name, units), mean) in enumerate(zip(representations.items(), means, strict=True)):
        spread, squares = 0.0, 0.0
        for start, stop in pieces(units, order):
            piece = centred(units, order[start:stop], mean)
            spread, squares = spread + np.square(piece).sum(), squares + np.square(piece + mean).sum()
        check_varies(name, spread > CONSTANT_SHARE * squares)
        traces[i] = spread
    size = max(
        1, min(int((streaming.MAX_ELEMENTS / networks) ** 0.5), streaming.MAX_ELEMENTS // (2 * max(map(len, means))))
    )
    # Products of two networks' Gram matrices, summed over the rows of a group, and over its rows and columns.
    rows, within = (np.zeros((len(groups), networks, networks)) for _ in range(2))
    row_sums = np.zeros((networks, count, len(groups)))
    for start, stop in chunks(count, size):
        for first, last in chunks(stop, size):
            tile = np.stack(
                [
                    centred(units, order[start:stop], mean) @ centred(units, order[first:last], mean).T
                    for units, mean in zip(representations.values(), means, strict=True)
                ]
            )
            if first == start and not biased:
                diagonal = np.arange(stop - start)
                tile[:, diagonal, diagonal] = 0
            for g, tile_rows in _within(groups, start, stop):
                for h, tile_columns in _within(groups, first, last):
                    part = tile[:, tile_rows, tile_columns]
                    flat = part.reshape(networks, -1)
                    product = flat @ flat.T
                    row_sums[:, start:stop, h][:, tile_rows] += part.sum(2)
                    rows[g] += product
                    within[g] += product * (g == h)
                    if first < start:  # the tile on the other side of the diagonal
                        row_sums[:, first:last, g][:, tile_columns] += part.sum(1)
                        rows[h] += product
                        within[h] += product * (g == h)

    def inner_products(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        """Inner products of the Gram matrices, centred, or U-centred if unbiased."""
        products, sums, kept = rows.sum(0), row_sums.sum(2), count
        if left_out is not None:
            products = products - 2 * rows[left_out] + within[left_out]
            sums = sums - row_sums[:, :, left_out]
            sums[:, groups[left_out]] = 0
            kept -= len(order[groups[left_out]])
        if not biased:
            return u_centred("unbiased CKA", representations, products, sums, kept)
        total = sums.sum(1)
        products_centred = products - 2 / kept * sums @ sums.T + np.outer(total, total) / kept**2
        for name, before, after in zip(
            representations, np.diagonal(products), np.diagonal(products_centred), strict=True
        ):
            check_varies(name, after > CONSTANT_SHARE * before)
        return products_centred

    def alignment(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        return cosines(inner_products(left_out))

    def chance() -> Float[np.ndarray, "networks networks"]:
        if not biased:
            return chance_of_u_centred(networks, count)
        dimensions = traces**2 / np.diagonal(inner_products(None))
        return np.sqrt(np.outer(dimensions, dimensions)) / (count - 1)

    return jackknifed(alignment, chance, order, groups, usable)


def u_centred(
    measure: str,
    names: Iterable[str],
    products: Float[np.ndarray, "networks networks"],
    sums: Float[np.ndarray, "networks images"],
    count: int,
) -> Float[np.ndarray, "networks networks"]:
    """Computes inner products of U-centred matrices (Szekely and Rizzo 2014) from those of the matrices themselves.

    Args:
        measure: What an error calls the measure.
        names: Names of the networks.
        products: Inner products of symmetric matrices, images x images, whose diagonals are zero.
        sums: The sums of the matrices' rows.
        count: The number of images.

    Raises:
        JaxTransferError: Nothing is left of a matrix.
    """
    total = sums.sum(1)
    remaining = products - 2 / (count - 2) * sums @ sums.T + np.outer(total, total) / ((count - 1) * (count - 2))
    for name, before, after in zip(names, np.diagonal(products), np.diagonal(remaining), strict=True):
        if not after > CONSTANT_SHARE * before:
            raise NetworkError(
                name,
                f"Network {name!r} gives {measure} nothing to compare: all pairs of probe images are equally "
                "similar for it, or one image differs and all others are identical. Take other images.",
            )
    return remaining


def cosines(products: Float[np.ndarray, "networks networks"]) -> Float[np.ndarray, "networks networks"]:
    """Divides inner products by the norms on their diagonal."""
    own = np.diagonal(products)
    return products / np.sqrt(np.outer(own, own))


def chance_of_u_centred(networks: int, count: int) -> Float[np.ndarray, "networks networks"]:
    """Returns the root mean square of the cosine between two U-centred matrices over all orders of one's images.

    They lie in a space of images (images - 3) / 2 dimensions, within which a permutation favours no direction.
    """
    return np.full((networks, networks), np.sqrt(2 / (count * (count - 3))))


def _within(groups: list[slice], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """Yields the groups that overlap a range, with their slices of it."""
    for number, group in enumerate(groups):
        first, last = max(group.start, start), min(group.stop, stop)
        if first < last:
            yield number, slice(first - start, last - start)
