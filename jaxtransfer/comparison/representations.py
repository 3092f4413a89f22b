"""Measures that compare representations instead of attribution maps: RSA, DEPARA, linear CKA, SVCCA.

All take one array [images, units] per network, which may lie on disk; the number of units may differ. They are computed
on the host in float64. None is a mean over images, so standard errors come from the jackknife over groups of images.
All warn if unrelated networks would score high on the given images, see `Comparison.chance`.
"""

import itertools
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.defaults import EDGE_WEIGHT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import Point, chunks

LINEAR_PREDICTIVITY = "linear_predictivity"
RELATIVES = (LINEAR_PREDICTIVITY, "rsa", "depara", "cka", "cka_biased", "svcca")

Units = Float[np.ndarray, "images units"] | Point
Representations = Mapping[str, Units]

# Numbers of 8 bytes that are held at a time.
_MAX_ELEMENTS = 32 * 2**20
_GROUPS, _GROUPS_OF_SVCCA = 20, 10
# Similarities that agree to this number of decimals are tied.
_DECIMALS = 9
# If the variance is less than this share of the mean square, a representation is constant up to rounding.
_CONSTANT_SHARE = 1e-12
# A value that unrelated networks reach by chance causes a warning from here on.
_HIGH_CHANCE = 0.1


class Comparison(NamedTuple):
    """Holds the values of a measure for all pairs of networks.

    Attributes:
        values: The values: symmetric, diagonal 1.
        pseudo_values: Jackknife pseudo-values of groups of images (see `statistics.pseudo_values`), with pairs in the
            order of `scipy.spatial.distance.squareform`.
        groups: The images of each group.
        usable: Which images are usable for which network; an image that is not usable for all networks is left out for
            all.
        chance: The value that two unrelated networks would have on these images: the networks' representations stay the
            same, but the images of one network are permuted. Root mean square over all permutations for `rsa`, the
            edges of `depara` and `cka`, whose mean is 0; mean for `cka_biased`; root mean square of the canonical
            correlations, an upper bound, for `svcca`. Symmetric, diagonal 1.
    """

    values: Float[np.ndarray, "networks networks"]
    pseudo_values: Float[np.ndarray, "groups pairs"]
    groups: tuple[Int[np.ndarray, " images"], ...]
    usable: Bool[np.ndarray, "networks images"]
    chance: Float[np.ndarray, "networks networks"]


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
    comparison = _aligned(representations, biased=False)
    _warn_of_chance("cka", representations, comparison)
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
    comparison = _aligned(representations, biased=True)
    _warn_of_chance("cka_biased", representations, comparison)
    return comparison


def _aligned(representations: Representations, *, biased: bool) -> Comparison:
    """Computes linear CKA from tiles of the Gram matrices, of all images and without each group."""
    usable = finite_images(representations)
    # Unbiased values need four images, also when the jackknife has left one out.
    order, groups = _grouped(np.all(usable, axis=0), _GROUPS, least=4 if biased else 5)
    count, networks = len(order), len(representations)
    means = [_mean(units, order) for units in representations.values()]
    traces = np.zeros(networks)
    for i, ((name, units), mean) in enumerate(zip(representations.items(), means, strict=True)):
        spread, squares = 0.0, 0.0
        for start, stop in _pieces(units, order):
            piece = _centred(units, order[start:stop], mean)
            spread, squares = spread + np.square(piece).sum(), squares + np.square(piece + mean).sum()
        _check_varies(name, spread > _CONSTANT_SHARE * squares)
        traces[i] = spread
    size = max(1, min(int((_MAX_ELEMENTS / networks) ** 0.5), _MAX_ELEMENTS // (2 * max(map(len, means)))))
    # Products of two networks' Gram matrices, summed over the rows of a group, and over its rows and columns.
    rows, within = (np.zeros((len(groups), networks, networks)) for _ in range(2))
    row_sums = np.zeros((networks, count, len(groups)))
    for start, stop in chunks(count, size):
        for first, last in chunks(stop, size):
            tile = np.stack(
                [
                    _centred(units, order[start:stop], mean) @ _centred(units, order[first:last], mean).T
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
        total = sums.sum(1)
        of_rows, of_total = (kept, kept**2) if biased else (kept - 2, (kept - 1) * (kept - 2))
        centred = products - 2 / of_rows * sums @ sums.T + np.outer(total, total) / of_total
        for name, before, after in zip(representations, np.diagonal(products), np.diagonal(centred), strict=True):
            if biased:
                _check_varies(name, after > _CONSTANT_SHARE * before)
            elif not after > _CONSTANT_SHARE * before:
                raise JaxTransferError(
                    f"Network {name!r} gives unbiased CKA nothing to compare: all pairs of probe images are equally "
                    "similar for it, or one image differs and all others are identical. Take other images."
                )
        return centred

    def alignment(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        products = inner_products(left_out)
        own = np.diagonal(products)
        return products / np.sqrt(np.outer(own, own))

    def chance() -> Float[np.ndarray, "networks networks"]:
        if not biased:
            return np.full((networks, networks), np.sqrt(2 / (count * (count - 3))))
        dimensions = traces**2 / np.diagonal(inner_products(None))
        return np.sqrt(np.outer(dimensions, dimensions)) / (count - 1)

    return _jackknifed(alignment, chance, order, groups, usable)


def rsa(representations: Representations) -> Comparison:
    """Representation similarity analysis (Dwivedi and Roig, CVPR 2019): -1 to 1.

    For every network the Pearson correlations, over units, between the representations of every two images are
    computed, after the mean over images is removed; networks are compared by the Spearman correlation of these lists.
    Correlations that agree to 9 decimals are tied and share their mean rank. An image without a correlation, because
    its representation minus the mean is the same in all units, is not usable.

    Warns:
        UserWarning: Unrelated networks would score 0.1 or more by chance.

    Raises:
        JaxTransferError: Fewer than four images that are usable for all networks, or a network all of whose
            correlations are tied.
    """
    comparison = _by_pairs(representations, centred=True)
    _warn_of_chance("rsa", representations, comparison)
    return comparison


def depara(
    representations: Representations, nodes: Float[np.ndarray, "images pairs"], *, edge_weight: float = EDGE_WEIGHT
) -> Comparison:
    """Deep attribution graphs (Song et al., CVPR 2020): similarity of nodes and of edges, each -1 to 1.

    Nodes are compared as attribution maps are. Edges are, for every network, the cosines between the representations of
    every two images; they are compared by the Spearman correlation of these lists. Cosines that agree to 9 decimals are
    tied and share their mean rank. The value is (nodes + edge_weight x edges) / (1 + edge_weight), in the order of the
    paper's sum. An image without a cosine, because its representation is zero, is not usable for edges.

    Args:
        representations: The representations of each network.
        nodes: Similarities of the input x gradient maps for every image, pairs as in `Comparison`; NaN: not usable.
        edge_weight: The paper's lambda; in its code 0.25, 0.03 and 0.27 for Taskonomy, COCO and indoor scenes.

    Warns:
        UserWarning: The edges of unrelated networks would add 0.1 or more to the value by chance.

    Raises:
        JaxTransferError: Fewer than four images that are usable for all networks, or a network all of whose cosines are
            tied.
    """
    from scipy.spatial.distance import squareform

    edges = _by_pairs(representations, centred=False)
    known, count = np.nan_to_num(nodes.astype(np.float64)), (~np.isnan(nodes)).astype(np.float64)
    total, images = known.sum(0), count.sum(0)
    whole = total / images
    without = np.array([(total - known[g].sum(0)) / (images - count[g].sum(0)) for g in edges.groups])
    of_nodes = pseudo_values(whole, without)
    of_edges = squareform(edges.values, checks=False)
    values = squareform((whole + edge_weight * of_edges) / (1 + edge_weight)) + np.eye(len(edges.values))
    values_of_groups = (of_nodes + edge_weight * edges.pseudo_values) / (1 + edge_weight)
    chance = edges.chance * edge_weight / (1 + edge_weight)
    np.fill_diagonal(chance, 1)
    comparison = edges._replace(values=values, pseudo_values=values_of_groups, chance=chance)
    _warn_of_chance("depara", representations, comparison)
    return comparison


def svcca(representations: Representations, *, variance: float = 0.99) -> Comparison:
    """Singular vector canonical correlation analysis (Raghu et al., NeurIPS 2017): 0 to 1.

    Every representation, its mean over images removed, is reduced to the fewest principal directions that hold
    `variance` of its variance; the value is the mean canonical correlation of the reduced representations. The smaller
    of the matrices images x images and units x units is decomposed; the latter is summed over chunks of images. The
    number of directions is discontinuous, so the jackknife overestimates the error rather than underestimating it. For
    unrelated networks that keep p and q directions the mean squared correlation is max(p, q) / (images - 1).

    Warns:
        UserWarning: The root of that is 0.1 or more. It is 1 for a network that keeps images - 1 directions, the most
            there can be, and so correlates perfectly with every network.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    usable = finite_images(representations)
    order, groups = _grouped(np.all(usable, axis=0), _GROUPS_OF_SVCCA)
    directions: list[int] = []

    def correlation(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        kept = order if left_out is None else np.delete(order, groups[left_out])
        values = np.eye(len(representations))
        with _Scratch() as scratch:
            bases = []
            for name, units in representations.items():
                basis = _principal(units, kept, variance)
                _check_varies(name, basis.size > 0)
                if left_out is None:
                    directions.append(basis.shape[1])
                bases.append(scratch.keep(basis))
            for i, basis in enumerate(bases):
                for j, other in enumerate(bases[:i]):
                    product = basis.T @ other if basis.shape[1] <= other.shape[1] else other.T @ basis
                    squares = np.linalg.eigvalsh(product @ product.T)
                    values[i, j] = values[j, i] = np.sqrt(np.clip(squares, 0, 1)).mean()
        return values

    def chance() -> Float[np.ndarray, "networks networks"]:
        return np.sqrt(np.maximum.outer(directions, directions) / (len(order) - 1))

    comparison = _jackknifed(correlation, chance, order, groups, usable)
    _warn_of_chance("svcca", representations, comparison)
    return comparison


def _by_pairs(representations: Representations, *, centred: bool) -> Comparison:
    """Computes Spearman correlations between the similarities of all pairs of images."""
    from scipy.stats import rankdata

    usable = finite_images(representations)
    finite = np.flatnonzero(np.all(usable, axis=0))
    with _Scratch() as scratch:
        products, levels = [], []
        for i, units in enumerate(representations.values()):
            width = units.shape[1]
            mean = _mean(units, finite) if centred else np.zeros(width)
            product, level, squares = _products(units, finite, mean)
            own = np.diagonal(product) - (width * level**2 if centred else 0)
            usable[i, finite] = own > _CONSTANT_SHARE * squares
            products.append(scratch.keep(product))
            levels.append(level)
        order, groups = _grouped(np.all(usable, axis=0), _GROUPS)
        places = np.searchsorted(finite, order)
        of_images = np.empty(len(products))

        def spearman(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
            kept = places if left_out is None else np.delete(places, groups[left_out])
            upper = np.triu_indices(len(kept), 1)
            lists = scratch.empty((len(products), len(upper[0])))
            for i, (name, units) in enumerate(representations.items()):
                product, level = products[i][np.ix_(kept, kept)], levels[i][kept]
                if centred:  # by the mean of just these images, then by each image's mean over units
                    product = product - product.mean(0) - product.mean(1)[:, None] + product.mean()
                    level = level - level.mean()
                    product = product - units.shape[1] * np.outer(level, level)
                norms = np.sqrt(np.maximum(np.diagonal(product), np.finfo(float).tiny))
                ranks = rankdata(np.round((product / np.outer(norms, norms))[upper], _DECIMALS))
                ranks -= ranks.mean()
                _check_varies(name, ranks.any())
                lists[i] = ranks / np.linalg.norm(ranks)
                if left_out is None:
                    of_images[i] = _share_of_images(lists[i], upper)
            parts = (lists[:, start:stop] for start, stop in chunks(lists.shape[1], _MAX_ELEMENTS // len(lists)))
            return np.clip(sum(part @ part.T for part in parts), -1, 1)

        def chance() -> Float[np.ndarray, "networks networks"]:
            # The part that is additive in the two images of a pair, and the rest, are permuted within separate spaces,
            # of images - 1 and of images (images - 3) / 2 dimensions.
            count = len(order)
            squares = np.outer(of_images, of_images) / (count - 1)
            squares += np.outer(1 - of_images, 1 - of_images) * 2 / (count * (count - 3))
            return np.sqrt(squares)

        return _jackknifed(spearman, chance, order, groups, usable)


def _share_of_images(
    pairs: Float[np.ndarray, " pairs"], upper: tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]
) -> float:
    """Returns the share of the variance over pairs of images that is a sum of one term for each of the two images.

    Values of pairs have mean 0 and length 1.
    """
    count = 1 + int(upper[1].max())
    sums = sum(np.bincount(side, pairs, count) for side in upper)
    return float(np.square(sums).sum() / (count - 2))


def _jackknifed(
    statistic: Callable[[int | None], Float[np.ndarray, "networks networks"]],
    chance: Callable[[], Float[np.ndarray, "networks networks"]],
    order: Int[np.ndarray, " kept"],
    groups: list[slice],
    usable: Bool[np.ndarray, "networks images"],
) -> Comparison:
    """Computes a statistic of all images, and without each group; `chance` is called after the former."""
    values = statistic(None)
    by_chance = chance()
    for matrix in (values, by_chance):
        np.fill_diagonal(matrix, 1)
    upper = np.triu_indices(len(values), 1)
    without = np.array([statistic(group)[upper] for group in range(len(groups))])
    of_groups = tuple(order[group] for group in groups)
    return Comparison(values, pseudo_values(values[upper], without), of_groups, usable, by_chance)


def _warn_of_chance(method: str, representations: Representations, comparison: Comparison) -> None:
    """Warns if unrelated networks would reach high values, and names the pair for which that is worst."""
    upper = np.triu_indices(len(comparison.chance), 1)
    chance = comparison.chance[upper]
    if not (high := chance >= _HIGH_CHANCE).any():
        return
    worst = int(chance.argmax())
    names = list(representations)
    images = int(comparison.usable.all(0).sum())
    advice = ", or the method cka" if method in ("cka_biased", "svcca") else ""
    warnings.warn(
        f"On {images} images {method} cannot be trusted: networks that have nothing in common would reach "
        f"{chance[worst]:.2f} by chance ({names[upper[0][worst]]} and {names[upper[1][worst]]}), and {high.sum()} of "
        f"{len(chance)} pairs {_HIGH_CHANCE} or more. Take more images{advice}.",
        stacklevel=3,
    )


def finite_images(representations: Representations) -> Bool[np.ndarray, "networks images"]:
    """Returns which images have a finite representation."""
    finite = []
    for units in representations.values():
        pieces = chunks(len(units), max(1, _MAX_ELEMENTS // math.prod(units.shape[1:])))
        finite.append(
            np.concatenate([np.isfinite(units[start:stop]).reshape(stop - start, -1).all(1) for start, stop in pieces])
        )
    return np.array(finite)


def _grouped(
    usable: Bool[np.ndarray, " images"], groups: int, least: int = 4
) -> tuple[Int[np.ndarray, " kept"], list[slice]]:
    """Returns the usable images in a random order that is always the same, and groups of them as slices of that."""
    kept = np.flatnonzero(usable)
    if len(kept) < least:
        raise JaxTransferError(
            f"Representations are compared on {least} or more images that all networks can use; there are {len(kept)}."
        )
    bounds = np.linspace(0, len(kept), min(groups, len(kept)) + 1).round().astype(int)
    slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    return np.random.default_rng(0).permutation(kept), slices


def _within(groups: list[slice], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """Yields the groups that overlap a range, with their slices of it."""
    for number, group in enumerate(groups):
        first, last = max(group.start, start), min(group.stop, stop)
        if first < last:
            yield number, slice(first - start, last - start)


def _pieces(units: Units, images: Int[np.ndarray, " kept"]) -> Iterable[tuple[int, int]]:
    return chunks(len(images), max(1, _MAX_ELEMENTS // units.shape[1]))


def _centred(
    units: Units, images: Int[np.ndarray, " kept"], mean: Float[np.ndarray, " units"]
) -> Float[np.ndarray, "kept units"]:
    return units[images].astype(np.float64) - mean


def _mean(units: Units, images: Int[np.ndarray, " kept"]) -> Float[np.ndarray, " units"]:
    pieces = (units[images[start:stop]].sum(0, dtype=np.float64) for start, stop in _pieces(units, images))
    return np.asarray(sum(pieces)) / len(images)


def _products(
    units: Units, images: Int[np.ndarray, " kept"], mean: Float[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, "kept kept"], Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Returns inner products of centred images, their means over units, and their squared norms before centring."""
    product = np.empty((len(images), len(images)))
    level, squares = np.empty(len(images)), np.empty(len(images))
    for start, stop in _pieces(units, images):
        centred = _centred(units, images[start:stop], mean)
        level[start:stop] = centred.mean(1)
        squares[start:stop] = np.square(centred + mean).sum(1)
        for first, last in _pieces(units, images[:stop]):
            part = centred @ _centred(units, images[first:last], mean).T
            product[start:stop, first:last] = part
            product[first:last, start:stop] = part.T
    return product, level, squares


def _principal(units: Units, images: Int[np.ndarray, " kept"], variance: float) -> Float[np.ndarray, "kept directions"]:
    """Returns orthonormal coordinates of images along the principal directions; none if the images are all the same."""
    mean = _mean(units, images)
    width = units.shape[1]
    if width < len(images):
        squares, products = 0.0, np.zeros((width, width))
        for start, stop in _pieces(units, images):
            piece = _centred(units, images[start:stop], mean)
            products += piece.T @ piece
            squares += np.square(piece + mean).sum()
    else:
        products, _, before = _products(units, images, mean)
        squares = before.sum()
    variances, vectors = np.linalg.eigh(products)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    if variances.sum() <= _CONSTANT_SHARE * squares:
        return np.empty((len(images), 0))
    count = 1 + int(np.searchsorted(np.cumsum(variances), variance * variances.sum()))
    if width >= len(images):
        return vectors[:, :count]
    directions = vectors[:, :count] / np.sqrt(variances[:count])
    pieces = _pieces(units, images)
    return np.concatenate([_centred(units, images[start:stop], mean) @ directions for start, stop in pieces])


def _check_varies(name: str, varies: bool | np.bool_) -> None:
    """Raises an error if a network's representation does not vary."""
    if not varies:
        raise JaxTransferError(f"Network {name!r} gives all probe images the same representation; take other images.")


class _Scratch(tempfile.TemporaryDirectory):
    """Holds arrays in a temporary directory instead of memory."""

    def __enter__(self) -> "_Scratch":
        super().__enter__()
        self._count = 0
        return self

    def empty(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """Creates an array on disk."""
        self._count += 1
        return np.lib.format.open_memmap(Path(self.name) / f"{self._count}.npy", "w+", np.float64, shape)

    def keep(self, array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Copies an array to disk."""
        copy = self.empty(array.shape)
        copy[...] = array
        return copy
