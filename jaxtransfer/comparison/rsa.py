"""Correlations between the similarities of all pairs of images: RSA and the edges of DEPARA."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison import jackknife, streaming
from jaxtransfer.comparison.jackknife import Comparison, grouped, jackknifed, warn_of_chance
from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.comparison.streaming import (
    CONSTANT_SHARE,
    Representations,
    Scratch,
    Units,
    check_varies,
    finite_images,
    flat,
    inner_products,
    mean_over_images,
    standardised,
)
from jaxtransfer.defaults import EDGE_WEIGHT
from jaxtransfer.points.store import chunks

# Similarities that agree to this number of decimals are tied.
DECIMALS = 9


def rsa(representations: Representations) -> Comparison:
    """Representation similarity analysis (Dwivedi and Roig, CVPR 2019): -1 to 1.

    For every network the Pearson correlations, over units, between the representations of every two images are
    computed, after each unit's mean over images is removed; networks are compared by the Spearman correlation of these
    lists. `rsa_raw` removes nothing first, `rsa_zscored` z-scores units over images. On Taskonomy the mean Spearman
    correlation of RSA with measured transfer was .749 with means removed, .832 with nothing removed and .860 z-scored
    (Dwivedi et al., ECCV 2020), where the target counted as its own source.

    Correlations that agree to 9 decimals are tied and share their mean rank. An image without a correlation, because
    its representation minus the mean is the same in all units, is not usable.

    Warns:
        UserWarning: Unrelated networks would score 0.1 or more by chance.

    Raises:
        JaxTransferError: Fewer than four images that are usable for all networks, or a network all of whose
            correlations are tied.
    """
    comparison = _by_pairs(flat(representations), over_images=True, over_units=True)
    warn_of_chance("rsa", representations, comparison)
    return comparison


def rsa_raw(representations: Representations) -> Comparison:
    """Computes `rsa` of the representations as they are: no mean is removed from any unit.

    Of the standardisations of RSA on Taskonomy (see `rsa`) this one scored .832. Warnings and errors are those of
    `rsa`; an image is not usable if its representation is the same in all units.
    """
    comparison = _by_pairs(flat(representations), over_units=True)
    warn_of_chance("rsa_raw", representations, comparison)
    return comparison


def rsa_zscored(representations: Representations) -> Comparison:
    """Computes `rsa` of units that are z-scored over images; a unit that does not vary is divided by 1.

    Of the standardisations of RSA on Taskonomy (see `rsa`) this one scored .860. When the jackknife leaves out a group
    of images, units keep the standard deviation of all images. Warnings and errors are those of `rsa`.
    """
    comparison = _by_pairs(standardised(flat(representations)), over_images=True, over_units=True)
    warn_of_chance("rsa_zscored", representations, comparison)
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

    edges = _by_pairs(flat(representations))
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
    warn_of_chance("depara", representations, comparison)
    return comparison


def _by_pairs(
    representations: Mapping[str, Units], *, over_images: bool = False, over_units: bool = False
) -> Comparison:
    """Computes Spearman correlations between the cosines of all pairs of images.

    Each unit's mean over images is removed first, and then each image's mean over units, where so asked.
    """
    usable = finite_images(representations)
    images = np.flatnonzero(np.all(usable, axis=0))
    with Scratch() as scratch:
        products, levels = [], []
        for i, units in enumerate(representations.values()):
            width = units.shape[1]
            mean = mean_over_images(units, images) if over_images else np.zeros(width)
            product, level, squares = inner_products(units, images, mean)
            own = np.diagonal(product) - (width * level**2 if over_units else 0)
            usable[i, images] = own > CONSTANT_SHARE * squares
            products.append(scratch.keep(product))
            levels.append(level)
        order, groups = grouped(usable, representations, jackknife.GROUPS)
        places = np.searchsorted(images, order)
        of_images = np.empty(len(products))
        # As many networks at a time as there are processors, if memory holds them.
        workers = max(1, min(os.cpu_count() or 1, streaming.MAX_ELEMENTS // len(order) ** 2))
        all_ranks = scratch.empty((len(products), len(order) * (len(order) - 1) // 2))

        def spearman(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
            kept = places if left_out is None else np.delete(places, groups[left_out])
            lists = all_ranks[:, : len(kept) * (len(kept) - 1) // 2]

            def rank(i: int, name: str, units: Units) -> None:
                product, level = products[i][np.ix_(kept, kept)], levels[i][kept]
                level = level - level.mean() if over_images else level
                ranks = _ranks(_cosines(product, over_images, level, units.shape[1] if over_units else 0))
                ranks -= ranks.mean()
                check_varies(name, ranks.any())
                lists[i] = ranks / np.linalg.norm(ranks)
                if left_out is None:
                    of_images[i] = _share_of_images(lists[i], len(kept))

            with ThreadPoolExecutor(workers) as pool:
                for ranked in [pool.submit(rank, i, *item) for i, item in enumerate(representations.items())]:
                    ranked.result()
            ranges = chunks(lists.shape[1], streaming.MAX_ELEMENTS // len(lists))
            parts = (lists[:, start:stop] for start, stop in ranges)
            return np.clip(sum(part @ part.T for part in parts), -1, 1)

        def chance() -> Float[np.ndarray, "networks networks"]:
            # The part that is additive in the two images of a pair, and the rest, are permuted within separate spaces,
            # of images - 1 and of images (images - 3) / 2 dimensions.
            count = len(order)
            squares = np.outer(of_images, of_images) / (count - 1)
            squares += np.outer(1 - of_images, 1 - of_images) * 2 / (count * (count - 3))
            return np.sqrt(squares)

        return jackknifed(spearman, chance, order, groups, usable)


def _cosines(
    products: Float[np.ndarray, "images images"], over_images: bool, level: Float[np.ndarray, " images"], width: int
) -> Float[np.ndarray, " pairs"]:
    """Computes cosines from inner products, for pairs in the order of `np.triu_indices`.

    Args:
        products: Inner products of images.
        over_images: Whether the mean over images is removed first.
        level: Each image's mean over units, of which the mean over images has been removed if `over_images`.
        width: The number of units if each image's mean over units is removed, otherwise 0.
    """
    count = len(products)
    columns, rows, whole = np.zeros(count), np.zeros(count), 0.0
    if over_images:
        columns, rows, whole = products.mean(0), products.mean(1), products.mean()
    own = np.diagonal(products) - columns - rows + whole - width * (level * level)
    norms = np.sqrt(np.maximum(own, np.finfo(float).tiny))
    cosines = np.empty(count * (count - 1) // 2)
    end = 0
    for row in range(count - 1):  # a row stays in a processor's cache
        start, end = end, end + count - 1 - row
        others = slice(row + 1, None)
        part = products[row, others] - columns[others] - rows[row] + whole - width * (level[row] * level[others])
        np.divide(part, norms[row] * norms[others], out=cosines[start:end])
    return cosines


def _ranks(cosines: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """Returns ranks from 1 on; values that agree to `DECIMALS` decimals share their mean rank.

    One integer holds a rounded value and its position, which sorts several times faster than positions by value.
    """
    bits = len(cosines).bit_length()
    values = np.clip(np.rint(cosines * 10**DECIMALS), -(2**30), 2**30).astype(np.int64)
    ordered = np.sort((values << bits) | np.arange(len(cosines)))
    values, positions = ordered >> bits, ordered & (2**bits - 1)
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    tied = np.diff(starts, append=len(values))
    ranks = np.empty(len(values))
    ranks[positions] = np.repeat(starts + (tied + 1) / 2, tied)
    return ranks


def _share_of_images(pairs: Float[np.ndarray, " pairs"], count: int) -> float:
    """Returns the share of the variance over pairs of images that is a sum of one term for each of the two images.

    Values of pairs have mean 0 and length 1.
    """
    sums = sum(np.bincount(side, pairs, count) for side in np.triu_indices(count, 1))
    return float(np.square(sums).sum() / (count - 2))
