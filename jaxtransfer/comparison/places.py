"""The places of a representation (a grid, or one place where the representation is no grid) and its units."""

import numpy as np
from jaxtyping import Float


def as_grid(representation: Float[np.ndarray, "images ..."]) -> Float[np.ndarray, "images height width units"]:
    """Gives a representation a grid of places: [images, height, width, units] stays, all else has a single place."""
    if representation.ndim == 4:
        return representation
    return representation.reshape(len(representation), 1, 1, -1)


def resample(
    representation: Float[np.ndarray, "images h w units"], grid: tuple[int, int]
) -> Float[np.ndarray, "images height width units"]:
    """Resamples a representation to another grid over the same image, by area.

    A new place is the mean over the area it covers: places that lie in it only in part count by that part. The mean
    over all places stays the same. From a single place every new one is a copy of it; a single new place is the mean.

    Args:
        representation: Values on a grid.
        grid: Height and width of the new grid.
    """
    for axis, size in zip((1, 2), grid, strict=True):
        if representation.shape[axis] != size:
            moved = np.tensordot(_shares(representation.shape[axis], size), representation, (1, axis))
            representation = np.moveaxis(moved, 0, axis)
    return representation


def _shares(places: int, new: int) -> Float[np.ndarray, "new places"]:
    """Returns the share that each place has in each new one, along one axis; rows sum to 1."""
    edges, new_edges = np.arange(places + 1) / places, np.arange(new + 1) / new
    low, high = np.maximum.outer(new_edges[:-1], edges[:-1]), np.minimum.outer(new_edges[1:], edges[1:])
    return np.maximum(high - low, 0) * new


def reduce_units(representation: Float[np.ndarray, "*shape units"], count: int) -> Float[np.ndarray, "*shape reduced"]:
    """Projects units on `count` random directions, the same for all networks of as many units.

    Units are divided into groups of equal size, to within one, and summed with random signs, over the root of the size:
    a projection with orthonormal rows that needs no matrix. With `count` units or fewer nothing changes.
    """
    units = representation.shape[-1]
    if units <= count:
        return representation
    generator = np.random.default_rng(units)
    order, signs = generator.permutation(units), generator.choice([-1.0, 1.0], units)
    bounds = np.linspace(0, units, count + 1).astype(int)
    sums = np.add.reduceat(representation[..., order] * signs, bounds[:-1], axis=-1)
    return sums / np.sqrt(np.diff(bounds))
