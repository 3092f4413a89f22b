"""Second moments of the units of networks: sums of products over the images of every fold, read in pieces."""

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.places import as_grid, reduce_units, resample
from jaxtransfer.comparison.streaming import CONSTANT_SHARE, Representation, check_varies
from jaxtransfer.points.store import chunks

Grid = tuple[int, int]

_PIECE_ELEMENTS = 16 * 2**20  # numbers of representations that are held at a time


class Folds(NamedTuple):
    """A division of the images into folds.

    Attributes:
        of_image: The fold of each image; -1: the image is not used.
        sizes: The number of images of each fold.
    """

    of_image: Int[np.ndarray, " images"]
    sizes: Int[np.ndarray, " folds"]

    @classmethod
    def of(cls, usable: Bool[np.ndarray, " images"], count: int) -> "Folds":
        """Divides the usable images at random, always in the same way; with fewer than `count`, one image a fold."""
        kept = np.flatnonzero(usable)
        count = min(count, len(kept))
        of_image = np.full(len(usable), -1)
        of_image[kept] = np.random.default_rng(0).permutation(len(kept)) % count
        return cls(of_image, np.bincount(of_image[kept], minlength=count))


class Moments(NamedTuple):
    """Sums of products of the units of two networks over images and places, the mean over all images removed.

    Attributes:
        sizes: The number of images of each fold.
        products: The sums over the images of each fold.
        of_sums: For each two folds the sums over places of the products of the sums over their images.
    """

    sizes: Int[np.ndarray, " folds"]
    products: Float[np.ndarray, "folds *units"]
    of_sums: Float[np.ndarray, "folds folds *units"]

    def split(
        self, left_out: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Float[np.ndarray, "*units"], dict[int, Float[np.ndarray, "*units"]]]]:
        """Splits the images into those that a fit uses and the folds that it leaves out.

        Args:
            left_out: For each fit, one fold or more.

        Yields:
            For each fit the sums over the images of all other folds, and over those of each fold left out; both less
            the mean of the former.
        """
        total, both = self.products.sum(0), self.of_sums + self.of_sums.swapaxes(0, 1)
        for folds in left_out:
            rest = float(self.sizes.sum() - self.sizes[[*folds]].sum())
            mixed = {fold: _sum(both[fold, other] for other in folds) for fold in folds}
            # Twice the products of the sums over the images left, which are minus the sums over those left out.
            of_rest = _sum(mixed.values())
            held_out = {
                fold: self.products[fold] + mixed[fold] / rest + of_rest * (self.sizes[fold] / (2 * rest**2))
                for fold in folds
            }
            yield total - _sum(self.products[fold] for fold in folds) - of_rest / (2 * rest), held_out


def _sum(arrays: Iterable[Float[np.ndarray, "*shape"]]) -> Float[np.ndarray, "*shape"]:
    """Adds arrays; the built-in sum would begin by copying the first."""
    return functools.reduce(operator.add, arrays)


class Activations:
    """Reads the representation of one network, its mean over images removed.

    Attributes:
        name: The network.
        grid: Height and width of its places.
        units: Its units at a place, after `reduce_units`.
    """

    def __init__(self, name: str, representation: Representation, folds: Folds, max_units: int) -> None:
        """Reads everything once, for the mean.

        Raises:
            JaxTransferError: The representation is the same for all images.
        """
        self.name, self._representation, self._folds, self._max_units = name, representation, folds, max_units
        kept = np.flatnonzero(folds.of_image >= 0)
        # Sums are taken less the first image, which loses no digits where the mean is large.
        first = self._read(int(kept[0]), int(kept[0]) + 1)
        self.grid: Grid = first.shape[1:3]
        self.units = min(first.shape[3], max_units)
        total, spread, squares = np.zeros(first.shape[1:]), 0.0, 0.0
        for start, stop in chunks(len(folds.of_image), max(1, _PIECE_ELEMENTS // first.size)):
            values = self._read(start, stop)
            less = values - first
            total += less.sum(0)
            spread, squares = spread + np.square(less).sum(), squares + np.square(values).sum()
        check_varies(name, spread - np.square(total).sum() / len(kept) > CONSTANT_SHARE * squares)
        self._mean = first[0] + total / len(kept)

    def read(self, start: int, stop: int, grid: Grid) -> Float[np.ndarray, "images places units"]:
        """Reads the usable images of a range, on another grid."""
        values = reduce_units(resample(self._read(start, stop) - self._mean, grid), self._max_units)
        return values.reshape(len(values), -1, self.units)

    def _read(self, start: int, stop: int) -> Float[np.ndarray, "images height width units"]:
        usable = self._folds.of_image[start:stop] >= 0
        return as_grid(self._representation[start:stop][usable].astype(np.float64))


def moments_of_one(network: Activations, grid: Grid, folds: Folds) -> Moments:
    """Computes the moments of a network's units with themselves, [units, units]."""
    products = np.zeros((len(folds.sizes), network.units, network.units))
    sums = np.zeros((len(folds.sizes), grid[0] * grid[1], network.units))
    for fold, (values,) in _pieces([[network]], grid, folds):
        products[fold] += _product(values, values)
        sums[fold] += values.sum(0)
    return Moments(folds.sizes, products, np.einsum("fpx,gpy->fgxy", sums, sums, optimize=True))


def moments_of_pairs(
    sources: Sequence[Activations], targets: Sequence[Activations], grid: Grid, folds: Folds
) -> tuple[Iterator[Moments], Moments]:
    """Computes the moments of some sources with some targets, and the total variances of the targets.

    Returns:
        For each source its moments with all targets, [targets, units of the source, most units of a target], zero for
        units that a target lacks; and the moments of each target with itself, summed over units, [targets].
    """
    count, places = len(folds.sizes), grid[0] * grid[1]
    starts, target_starts = (np.cumsum([0, *(network.units for network in some)]) for some in (sources, targets))
    products = np.zeros((count, starts[-1], target_starts[-1]))
    squares = np.zeros((count, target_starts[-1]))
    sums, target_sums = np.zeros((count, places, starts[-1])), np.zeros((count, places, target_starts[-1]))
    for fold, (values, target_values) in _pieces([sources, targets], grid, folds):
        products[fold] += _product(values, target_values)
        squares[fold] += np.square(target_values).sum((0, 1))
        sums[fold] += values.sum(0)
        target_sums[fold] += target_values.sum(0)

    widths = np.diff(target_starts)
    columns = np.arange(widths.max()) + target_starts[:-1, None]
    padding = columns >= target_starts[1:, None]
    columns = np.where(padding, 0, columns)
    equal = not padding.any()  # then nothing need be copied

    def of_targets(of_units: Float[np.ndarray, "*folds units all"]) -> Float[np.ndarray, "*folds targets units most"]:
        by_target = of_units.reshape(*of_units.shape[:-1], *columns.shape) if equal else of_units[..., columns]
        return np.moveaxis(by_target if equal else np.where(padding, 0, by_target), -2, -3)

    def of_sources() -> Iterator[Moments]:
        for start, stop in itertools.pairwise(starts):
            of_sums = np.einsum("fpx,gpy->fgxy", sums[..., start:stop], target_sums, optimize=True)
            yield Moments(folds.sizes, of_targets(products[:, start:stop]), of_targets(of_sums))

    of_target_sums = np.einsum("fpy,gpy->fgy", target_sums, target_sums)
    totals = (np.add.reduceat(of_units, target_starts[:-1], axis=-1) for of_units in (squares, of_target_sums))
    return of_sources(), Moments(folds.sizes, *totals)


def _pieces(
    groups: Sequence[Sequence[Activations]], grid: Grid, folds: Folds
) -> Iterator[tuple[int, list[Float[np.ndarray, "images places units"]]]]:
    """Reads the units of groups of networks, side by side, in pieces of images of one fold."""
    width = sum(network.units for group in groups for network in group) * grid[0] * grid[1]
    for start, stop in chunks(len(folds.of_image), max(len(folds.sizes), _PIECE_ELEMENTS // width)):
        of_image = folds.of_image[start:stop]
        of_image = of_image[of_image >= 0]
        values = [np.concatenate([network.read(start, stop, grid) for network in group], axis=2) for group in groups]
        for fold in np.unique(of_image):
            yield int(fold), [of_group[of_image == fold] for of_group in values]


def _product(
    x: Float[np.ndarray, "images places units"], y: Float[np.ndarray, "images places units"]
) -> Float[np.ndarray, "units units"]:
    """Sums the products of units over images and places."""
    return x.reshape(-1, x.shape[2]).T @ y.reshape(-1, y.shape[2])
