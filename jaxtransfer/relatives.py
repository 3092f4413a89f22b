"""Measures that compare representations instead of attribution maps: RSA, DEPARA, linear CKA, SVCCA.

All take one array [images, units] per network, which may lie on disk; units may differ in number. They are computed on
the host in float64. None is a mean over images, so their errors come from the jackknife over groups of images.
"""

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points import Point, chunks

RELATIVES = ("rsa", "depara", "cka", "svcca")

Representations = Mapping[str, Float[np.ndarray, "images units"] | Point]

# Numbers of 8 bytes that are held at once.
_HELD = 32 * 2**20
_GROUPS, _GROUPS_OF_SVCCA = 20, 10
# Similarities that agree to so many decimals are tied.
_DECIMALS = 9
# Where less than this share of the squares varies, the rest is rounding.
_CONSTANT = 1e-12


class Comparison(NamedTuple):
    """What a measure says about all pairs of networks.

    Attributes:
        values: Symmetric, diagonal 1.
        pseudo_values: For each of G groups of images: G x value - (G - 1) x value without it (Tukey 1958), with pairs
            in the order of `scipy.spatial.distance.squareform`.
        groups: The images of each group.
        usable: Which images are usable for which network; what is not usable for all was left out for all.
    """

    values: Float[np.ndarray, "networks networks"]
    pseudo_values: Float[np.ndarray, "groups pairs"]
    groups: tuple[Int[np.ndarray, " images"], ...]
    usable: Bool[np.ndarray, "networks images"]


def cka(representations: Representations) -> Comparison:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019), the biased form: 0 to 1.

    |Y'X|^2 / (|X'X| |Y'Y|) in Frobenius norms, of representations X and Y whose mean over images is removed; the same
    as of the Gram matrices XX' and YY'. These are made in tiles, so that memory does not hold images x images.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    usable = _finite(representations)
    order, groups = _grouped(np.all(usable, axis=0), _GROUPS)
    count, networks = len(order), len(representations)
    means = [_mean(each, order) for each in representations.values()]
    for (name, each), mean in zip(representations.items(), means, strict=True):
        spread, squares = 0.0, 0.0
        for start, stop in _pieces(each, order):
            piece = _centred(each, order[start:stop], mean)
            spread, squares = spread + np.square(piece).sum(), squares + np.square(piece + mean).sum()
        _check_varies(name, spread > _CONSTANT * squares)
    size = max(1, min(int((_HELD / networks) ** 0.5), _HELD // (2 * max(map(len, means)))))
    # Products of two networks' Gram matrices, summed over the rows of a group, and over its rows and columns.
    rows, within = (np.zeros((len(groups), networks, networks)) for _ in range(2))
    row_sums = np.zeros((networks, count, len(groups)))
    for start, stop in chunks(count, size):
        for first, last in chunks(stop, size):
            tile = np.stack(
                [
                    _centred(each, order[start:stop], mean) @ _centred(each, order[first:last], mean).T
                    for each, mean in zip(representations.values(), means, strict=True)
                ]
            )
            for g, above in _within(groups, start, stop):
                for h, across in _within(groups, first, last):
                    part = tile[:, above, across]
                    flat = part.reshape(networks, -1)
                    product = flat @ flat.T
                    row_sums[:, start:stop, h][:, above] += part.sum(2)
                    rows[g] += product
                    within[g] += product * (g == h)
                    if first < start:  # the tile on the other side of the diagonal
                        row_sums[:, first:last, g][:, across] += part.sum(1)
                        rows[h] += product
                        within[h] += product * (g == h)

    def alignment(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        products, sums, kept = rows.sum(0), row_sums.sum(2), count
        if left_out is not None:
            products = products - 2 * rows[left_out] + within[left_out]
            sums = sums - row_sums[:, :, left_out]
            sums[:, groups[left_out]] = 0
            kept -= len(order[groups[left_out]])
        total = sums.sum(1)
        centred = products - 2 / kept * sums @ sums.T + np.outer(total, total) / kept**2
        own = np.diagonal(centred)
        for name, before, after in zip(representations, np.diagonal(products), own, strict=True):
            _check_varies(name, after > _CONSTANT * before)
        return centred / np.sqrt(np.outer(own, own))

    return _jackknifed(alignment, order, groups, usable)


def rsa(representations: Representations) -> Comparison:
    """Representation similarity analysis (Dwivedi and Roig, CVPR 2019): -1 to 1.

    Of every network the Pearson correlations, over units, between the representations of each two images, after the
    mean over images is removed; networks are compared by the Spearman correlation of these lists. Correlations that
    agree to 9 decimals are tied and share their mean rank. An image without a correlation, because what is left of its
    representation is the same in all units, is not usable.

    Raises:
        JaxTransferError: Fewer than four images that are usable for all networks, or a network all of whose
            correlations are tied.
    """
    return _by_pairs(representations, centred=True)


def depara(
    representations: Representations, nodes: Float[np.ndarray, "images pairs"], *, edge_weight: float = 0.25
) -> Comparison:
    """Deep attribution graphs (Song et al., CVPR 2020): nodes and edges, each alike from -1 to 1.

    Nodes are alike as attribution maps are. Edges are, of every network, the cosines between the representations of
    each two images; they are alike by the Spearman correlation of these lists. Cosines that agree to 9 decimals are
    tied and share their mean rank. The value is (nodes + edge_weight x edges) / (1 + edge_weight), in the order of the
    paper's sum. An image without a cosine, because its representation is zero, is not usable for edges.

    Args:
        representations: Of each network.
        nodes: Similarity of the input x gradient maps of every image, pairs as in `Comparison`; NaN: not usable.
        edge_weight: The paper's lambda; in its code 0.25, 0.03 and 0.27 for Taskonomy, COCO and indoor scenes.

    Raises:
        JaxTransferError: Fewer than four images that are usable for all networks, or a network all of whose cosines are
            tied.
    """
    from scipy.spatial.distance import squareform

    found = _by_pairs(representations, centred=False)
    known, count = np.nan_to_num(nodes.astype(np.float64)), (~np.isnan(nodes)).astype(np.float64)
    total, images = known.sum(0), count.sum(0)
    whole = total / images
    without = np.array([(total - known[g].sum(0)) / (images - count[g].sum(0)) for g in found.groups])
    of_nodes = len(without) * whole - (len(without) - 1) * without
    of_edges = squareform(found.values, checks=False)
    values = squareform((whole + edge_weight * of_edges) / (1 + edge_weight)) + np.eye(len(found.values))
    pseudo_values = (of_nodes + edge_weight * found.pseudo_values) / (1 + edge_weight)
    return found._replace(values=values, pseudo_values=pseudo_values)


def svcca(representations: Representations, *, variance: float = 0.99) -> Comparison:
    """Singular vector canonical correlation analysis (Raghu et al., NeurIPS 2017): 0 to 1.

    Every representation, its mean over images removed, is reduced to the fewest principal directions that hold
    `variance` of its variance; the value is the mean canonical correlation of what two networks keep. What is
    decomposed is the smaller of images x images and units x units, and the latter is summed over pieces of images. The
    number of directions jumps, so the error from the jackknife is too large rather than too small.

    Warns:
        UserWarning: A network needs as many directions as its images can have, and so correlates fully with any.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    usable = _finite(representations)
    order, groups = _grouped(np.all(usable, axis=0), _GROUPS_OF_SVCCA)
    full: list[str] = []

    def correlation(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        kept = order if left_out is None else np.delete(order, groups[left_out])
        values = np.eye(len(representations))
        with _Scratch() as scratch:
            bases = []
            for name, each in representations.items():
                basis = _principal(each, kept, variance)
                _check_varies(name, basis.size > 0)
                if left_out is None and basis.shape[1] == len(kept) - 1:
                    full.append(name)
                bases.append(scratch.keep(basis))
            for i, one in enumerate(bases):
                for j, other in enumerate(bases[:i]):
                    product = one.T @ other if one.shape[1] <= other.shape[1] else other.T @ one
                    squares = np.linalg.eigvalsh(product @ product.T)
                    values[i, j] = values[j, i] = np.sqrt(np.clip(squares, 0, 1)).mean()
        return values

    found = _jackknifed(correlation, order, groups, usable)
    if full:
        warnings.warn(
            f"SVCCA of {', '.join(full)} keeps all directions that {len(order)} images have, so it is 1 with "
            "any network; it needs more images.",
            stacklevel=2,
        )
    return found


def _by_pairs(representations: Representations, *, centred: bool) -> Comparison:
    """Spearman correlations between the similarities of all pairs of images."""
    from scipy.stats import rankdata

    usable = _finite(representations)
    finite = np.flatnonzero(np.all(usable, axis=0))
    with _Scratch() as scratch:
        products, levels = [], []
        for i, each in enumerate(representations.values()):
            units = each.shape[1]
            mean = _mean(each, finite) if centred else np.zeros(units)
            product, level, squares = _products(each, finite, mean)
            own = np.diagonal(product) - (units * level**2 if centred else 0)
            usable[i, finite] = own > _CONSTANT * squares
            products.append(scratch.keep(product))
            levels.append(level)
        order, groups = _grouped(np.all(usable, axis=0), _GROUPS)
        places = np.searchsorted(finite, order)

        def spearman(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
            kept = places if left_out is None else np.delete(places, groups[left_out])
            upper = np.triu_indices(len(kept), 1)
            lists = scratch.empty((len(products), len(upper[0])))
            for i, (name, each) in enumerate(representations.items()):
                product, level = products[i][np.ix_(kept, kept)], levels[i][kept]
                if centred:  # by the mean of just these images, then by each image's mean over units
                    product = product - product.mean(0) - product.mean(1)[:, None] + product.mean()
                    level = level - level.mean()
                    product = product - each.shape[1] * np.outer(level, level)
                norms = np.sqrt(np.maximum(np.diagonal(product), np.finfo(float).tiny))
                ranks = rankdata(np.round((product / np.outer(norms, norms))[upper], _DECIMALS))
                ranks -= ranks.mean()
                _check_varies(name, ranks.any())
                lists[i] = ranks / np.linalg.norm(ranks)
            parts = (lists[:, start:stop] for start, stop in chunks(lists.shape[1], _HELD // len(lists)))
            return np.clip(sum(part @ part.T for part in parts), -1, 1)

        return _jackknifed(spearman, order, groups, usable)


def _jackknifed(
    statistic: Callable[[int | None], Float[np.ndarray, "networks networks"]],
    order: Int[np.ndarray, " kept"],
    groups: list[slice],
    usable: Bool[np.ndarray, "networks images"],
) -> Comparison:
    """The statistic of all images, and of all but each group."""
    values = statistic(None)
    np.fill_diagonal(values, 1)
    upper = np.triu_indices(len(values), 1)
    without = np.array([statistic(group)[upper] for group in range(len(groups))])
    pseudo_values = len(groups) * values[upper] - (len(groups) - 1) * without
    return Comparison(values, pseudo_values, tuple(order[group] for group in groups), usable)


def _finite(representations: Representations) -> Bool[np.ndarray, "networks images"]:
    found = []
    for each in representations.values():
        pieces = chunks(len(each), max(1, _HELD // each.shape[1]))
        found.append(np.concatenate([np.isfinite(each[start:stop]).all(1) for start, stop in pieces]))
    return np.array(found)


def _grouped(usable: Bool[np.ndarray, " images"], groups: int) -> tuple[Int[np.ndarray, " kept"], list[slice]]:
    """The usable images in an order drawn once and for all, and the groups as slices of it."""
    kept = np.flatnonzero(usable)
    if len(kept) < 4:
        raise JaxTransferError(
            f"Representations are compared over four images or more that all networks can use; here are {len(kept)}."
        )
    bounds = np.linspace(0, len(kept), min(groups, len(kept)) + 1).round().astype(int)
    slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    return np.random.default_rng(0).permutation(kept), slices


def _within(groups: list[slice], start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """The groups that reach into a range, with their places in it."""
    for number, group in enumerate(groups):
        first, last = max(group.start, start), min(group.stop, stop)
        if first < last:
            yield number, slice(first - start, last - start)


def _pieces(each: Float[np.ndarray, "images units"], images: Int[np.ndarray, " kept"]) -> Iterable[tuple[int, int]]:
    return chunks(len(images), max(1, _HELD // each.shape[1]))


def _centred(
    each: Float[np.ndarray, "images units"], images: Int[np.ndarray, " kept"], mean: Float[np.ndarray, " units"]
) -> Float[np.ndarray, "kept units"]:
    return each[images].astype(np.float64) - mean


def _mean(each: Float[np.ndarray, "images units"], images: Int[np.ndarray, " kept"]) -> Float[np.ndarray, " units"]:
    pieces = (each[images[start:stop]].sum(0, dtype=np.float64) for start, stop in _pieces(each, images))
    return np.asarray(sum(pieces)) / len(images)


def _products(
    each: Float[np.ndarray, "images units"], images: Int[np.ndarray, " kept"], mean: Float[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, "kept kept"], Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Inner products of centred images, their means over units, and their squared norms before they were centred."""
    product = np.empty((len(images), len(images)))
    level, squares = np.empty(len(images)), np.empty(len(images))
    for start, stop in _pieces(each, images):
        above = _centred(each, images[start:stop], mean)
        level[start:stop] = above.mean(1)
        squares[start:stop] = np.square(above + mean).sum(1)
        for first, last in _pieces(each, images[:stop]):
            part = above @ _centred(each, images[first:last], mean).T
            product[start:stop, first:last] = part
            product[first:last, start:stop] = part.T
    return product, level, squares


def _principal(
    each: Float[np.ndarray, "images units"], images: Int[np.ndarray, " kept"], variance: float
) -> Float[np.ndarray, "kept directions"]:
    """Orthonormal coordinates of images along the principal directions; none where nothing varies."""
    mean = _mean(each, images)
    units = each.shape[1]
    if units < len(images):
        squares, products = 0.0, np.zeros((units, units))
        for start, stop in _pieces(each, images):
            piece = _centred(each, images[start:stop], mean)
            products += piece.T @ piece
            squares += np.square(piece + mean).sum()
    else:
        products, _, before = _products(each, images, mean)
        squares = before.sum()
    variances, vectors = np.linalg.eigh(products)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    if variances.sum() <= _CONSTANT * squares:
        return np.empty((len(images), 0))
    count = 1 + int(np.searchsorted(np.cumsum(variances), variance * variances.sum()))
    if units >= len(images):
        return vectors[:, :count]
    directions = vectors[:, :count] / np.sqrt(variances[:count])
    pieces = _pieces(each, images)
    return np.concatenate([_centred(each, images[start:stop], mean) @ directions for start, stop in pieces])


def _check_varies(name: str, varies: bool | np.bool_) -> None:
    if not varies:
        raise JaxTransferError(f"Network {name!r} represents all probe images alike, so it cannot be compared by that.")


class _Scratch(tempfile.TemporaryDirectory):
    """A temporary directory for arrays that need not be in memory."""

    def __enter__(self) -> "_Scratch":
        super().__enter__()
        self._count = 0
        return self

    def empty(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """An array on disk."""
        self._count += 1
        return np.lib.format.open_memmap(Path(self.name) / f"{self._count}.npy", "w+", np.float64, shape)

    def keep(self, array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """A copy on disk."""
        copy = self.empty(array.shape)
        copy[...] = array
        return copy
