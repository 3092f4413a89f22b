"""Linear centred kernel alignment with all places of all images as samples."""

import itertools
import math

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison import jackknife, streaming
from jaxtransfer.comparison.jackknife import Comparison, grouped, jackknifed, warn_of_chance
from jaxtransfer.comparison.places import as_grid, resample
from jaxtransfer.comparison.streaming import (
    CONSTANT_SHARE,
    Representations,
    Scratch,
    check_varies,
    finite_images,
    flat,
)
from jaxtransfer.points.store import Point, chunks

Samples = Float[np.ndarray, "images places units"]


def cka_places(representations: Representations) -> Comparison:
    """Computes linear centred kernel alignment with all places of all images as samples: 0 to 1.

    |X'Y|^2 / (|X'X| |Y'Y|) in Frobenius norms, of representations [images x places, units] whose mean over images is
    removed at every place. Representations on different grids are both resampled by area to the grid with fewer places.
    A representation that is no grid has one place; where none is a grid the value is that of `cka_biased`. Of
    unrelated networks it is <C, D> / ((images - 1) |X'X| |Y'Y|) on average, where C and D are the inner products
    between places, summed over units and images.

    Warns:
        UserWarning: Unrelated networks would score 0.1 or more on average.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation, on one of the grids, is the same for all of them.
    """
    views = flat(representations)
    usable = finite_images(views)
    order, groups = grouped(usable, representations, jackknife.GROUPS)
    names = list(views)
    grids = [_grid(representation.shape) for representation in representations.values()]
    values = np.zeros((1 + len(groups), len(names), len(names)))
    by_chance = np.zeros((len(names), len(names)))
    for grid in sorted(set(grids), key=_size):
        members = [i for i, own_grid in enumerate(grids) if _size(own_grid) >= _size(grid)]
        with Scratch() as scratch:
            samples = {i: _samples(names[i], representations[names[i]], order, grid, scratch) for i in members}
            between_places = {i: _between_places(samples[i]) for i in members}
            own = {i: _squared_norms(samples[i], samples[i], groups) for i in members}
            for i in members:
                check_varies(names[i], (own[i] > CONSTANT_SHARE * own[i][0]).all())
            for i, j in itertools.combinations(members, 2):
                if grid not in (grids[i], grids[j]):
                    continue  # both are finer: compared on another grid
                norms = np.sqrt(own[i] * own[j])
                values[:, i, j] = values[:, j, i] = _squared_norms(samples[i], samples[j], groups) / norms
                unrelated = (between_places[i] * between_places[j]).sum() / (len(order) - 1)
                by_chance[i, j] = by_chance[j, i] = unrelated / norms[0]

    def alignment(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        return values[0 if left_out is None else 1 + left_out]

    comparison = jackknifed(alignment, lambda: by_chance, order, groups, usable)
    warn_of_chance("cka_places", representations, comparison)
    return comparison


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the grid of a representation of the given shape, as `as_grid` makes it."""
    return (shape[1], shape[2]) if len(shape) == 4 else (1, 1)


def _size(grid: tuple[int, int]) -> tuple[int, ...]:
    """Orders grids by their number of places; of as many places, the lower one comes first."""
    return grid[0] * grid[1], *grid


def _samples(
    name: str,
    representation: Float[np.ndarray, "images ..."] | Point,
    images: Int[np.ndarray, " kept"],
    grid: tuple[int, int],
    scratch: Scratch,
) -> Samples:
    """Resamples a representation to a grid and removes the mean over images at every place."""
    units = representation.shape[3] if len(representation.shape) == 4 else math.prod(representation.shape[1:])
    places = grid[0] * grid[1]
    samples = scratch.empty((len(images), places, units))
    size = max(1, streaming.MAX_ELEMENTS // math.prod(representation.shape[1:]))
    for start, stop in chunks(len(images), size):
        values = as_grid(representation[images[start:stop]]).astype(np.float64)
        samples[start:stop] = resample(values, grid).reshape(stop - start, places, units)
    mean = sum(samples[start:stop].sum(0) for start, stop in chunks(len(images), size)) / len(images)
    spread = squares = 0.0
    for start, stop in chunks(len(images), size):
        squares += np.square(samples[start:stop]).sum()
        samples[start:stop] -= mean
        spread += np.square(samples[start:stop]).sum()
    check_varies(name, spread > CONSTANT_SHARE * squares)
    return samples


def _between_places(samples: Samples) -> Float[np.ndarray, "places places"]:
    """Computes inner products between places, summed over images and units."""
    size = max(1, streaming.MAX_ELEMENTS // samples[0].size)
    parts = (samples[start:stop] for start, stop in chunks(len(samples), size))
    return np.asarray(sum(np.tensordot(part, part, ((0, 2), (0, 2))) for part in parts))


def _squared_norms(x: Samples, y: Samples, groups: list[slice]) -> Float[np.ndarray, "1+groups"]:
    """Computes |X'Y|^2 of all images, and without each group.

    The products of each group are summed; where one is left out, the mean over the others is removed again. That is
    done for some units of X at a time, which add up.
    """
    images, _, units = y.shape
    norms = np.zeros(1 + len(groups))
    for start, stop in chunks(x.shape[2], max(1, streaming.MAX_ELEMENTS // (len(groups) * units))):
        products, shifts = [], []
        for group in groups:
            of_x, of_y = x[group, :, start:stop], y[group]
            products.append(of_x.reshape(-1, stop - start).T @ of_y.reshape(-1, units))
            shifts.append(of_x.sum(0).T @ of_y.sum(0) / (images - len(of_x)))
        total = np.sum(products, axis=0)
        norms[0] += np.square(total).sum()
        norms[1:] += [np.square(total - product - shift).sum() for product, shift in zip(products, shifts, strict=True)]
    return norms
