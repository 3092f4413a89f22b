"""The result of a measure of representations: values, jackknife pseudo-values of groups of images, values by chance."""

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.comparison.streaming import LEAST_IMAGES, enough_images

# Groups of images for the jackknife; fewer where a statistic takes long.
GROUPS, FEWER_GROUPS = 20, 10
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
            same, but the images of one network are permuted. Root mean square over all permutations for the measures
            whose mean is 0 (`rsa` and its variants, the edges of `depara`, `cka`, `dds_*`); mean for `cka_biased`,
            `cka_places` and `mutual_knn`; an upper bound of the mean for `svcca` (the root mean square of the canonical
            correlations) and `procrustes`. Symmetric, diagonal 1.
    """

    values: Float[np.ndarray, "networks networks"]
    pseudo_values: Float[np.ndarray, "groups pairs"]
    groups: tuple[Int[np.ndarray, " images"], ...]
    usable: Bool[np.ndarray, "networks images"]
    chance: Float[np.ndarray, "networks networks"]


def grouped(
    usable: Bool[np.ndarray, "networks images"], names: Iterable[str], groups: int, least: int = LEAST_IMAGES
) -> tuple[Int[np.ndarray, " kept"], list[slice]]:
    """Returns the images that all networks can use, in a random order that is always the same, and groups of them.

    The groups are slices of that order.

    Raises:
        JaxTransferError: There are fewer than `least`, see `enough_images`.
    """
    kept = enough_images(usable, list(names), least)
    bounds = np.linspace(0, len(kept), min(groups, len(kept)) + 1).round().astype(int)
    slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    return np.random.default_rng(0).permutation(kept), slices


def jackknifed(
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


def warn_of_chance(method: str, names: Iterable[str], comparison: Comparison) -> None:
    """Warns if unrelated networks would reach high values, and names the pair for which that is worst."""
    upper = np.triu_indices(len(comparison.chance), 1)
    chance = comparison.chance[upper]
    if not (high := chance >= _HIGH_CHANCE).any():
        return
    worst = int(chance.argmax())
    names = list(names)
    images = int(comparison.usable.all(0).sum())
    advice = ", or the method cka" if method in ("cka_biased", "svcca", "procrustes", "cka_places") else ""
    warnings.warn(
        f"On {images} images {method} cannot be trusted: networks that have nothing in common would reach "
        f"{chance[worst]:.2f} by chance ({names[upper[0][worst]]} and {names[upper[1][worst]]}), and {high.sum()} of "
        f"{len(chance)} pairs {_HIGH_CHANCE} or more. Take more images{advice}.",
        stacklevel=3,
    )
