"""Linear predictivity: how well a linear map predicts a target's representation from a source's, place by place.

One ridge map from the units of the source at a place to the units of the target at that place, shared by all places, is
fitted on some images and judged on others. The value is 1 - (squared error) / (squared deviation from the mean of the
images of the fit), both summed over the units, places and images of all folds: 1 for a perfect prediction, 0 for one no
better than the mean image. It is directed: row = target, column = source. Neuroscience compares networks with neurons
by it, as "linear predictivity" (Yamins et al., PNAS 2014; Schrimpf et al., "Brain-Score", 2018).

Images are divided into ten folds, which are also the ten groups of the jackknife. Without fold k the other nine are a
cross-validation of their own, in which each is predicted from eight: it chooses the ridge with which fold k is
predicted from the nine, and it is the jackknife's value without fold k.

All of this follows from second moments of the units (`moments`), so images are read in pieces, and no map is ever
applied to an image.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

from jaxtransfer.comparison.moments import Activations, Folds, Moments, moments_of_one, moments_of_pairs
from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.comparison.streaming import CONSTANT_SHARE, Representations, finite_images

FOLDS = 10
RIDGES = 10.0 ** np.arange(-8, 4)
"""The ridges to choose from, in units of the mean variance of the source's units."""
MAX_UNITS = 256
"""Networks with more units at a place are reduced to this number, see `places.reduce_units`."""

_MOMENT_ELEMENTS = 32 * 2**20  # numbers in the sums of products of a tile of sources and a tile of targets

LeftOut = tuple[int, ...]  # one fold, or two


class Predictivity(NamedTuple):
    """Holds linear predictivities of pairs of networks; NaN for pairs that were not asked for.

    Attributes:
        values: The values, at most 1; row = target, column = source.
        pseudo_values: Jackknife pseudo-values of the folds, see `statistics.pseudo_values`.
    """

    values: Float[np.ndarray, "targets sources"]
    pseudo_values: Float[np.ndarray, "folds targets sources"]


def linear_predictivity(representations: Representations, *, max_units: int = MAX_UNITS) -> Predictivity:
    """Computes the linear predictivity of all pairs of networks.

    Where a source has another grid than the target, it is resampled to it by area; a representation that is not
    [images, height, width, units] has a single place. The mean image of the fit is removed at every place. The ridge is
    chosen for each pair and fold from `RIDGES`. An image at which a representation is not finite is left out for all
    networks. With fewer than ten images each is a fold.

    Args:
        representations: The representation of each network, [images, height, width, units] or [images, ...].
        max_units: Networks with more units at a place are reduced to this number, see `places.reduce_units`.

    Returns:
        The values, 1 on the diagonal.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    folds = folds_of(np.all(finite_images(representations), axis=0))
    count = len(representations)
    others = ~np.eye(count, dtype=bool)
    values, samples = np.eye(count), np.ones((len(folds.sizes), count, count))
    for sources, part in predictivities(representations, folds, others, max_units=max_units):
        values[:, sources] = np.where(others[:, sources], part.values, 1)
        samples[:, :, sources] = np.where(others[:, sources], part.pseudo_values, 1)
    return Predictivity(values, samples)


def folds_of(usable: Bool[np.ndarray, " images"]) -> Folds:
    """Divides the usable images into folds."""
    return Folds.of(usable, FOLDS)


def predictivities(
    representations: Representations,
    folds: Folds,
    wanted: Bool[np.ndarray, "targets sources"],
    *,
    max_units: int = MAX_UNITS,
    part: int = 0,
    parts: int = 1,
) -> Iterator[tuple[list[int], Predictivity]]:
    """Computes the linear predictivity of some pairs, a tile of sources at a time; see `linear_predictivity`.

    Args:
        representations: The representation of each network.
        folds: The images to use, in folds.
        wanted: The pairs to compute.
        max_units: Networks with more units at a place are reduced to this number.
        part: Which part of the sources to compute, from 0.
        parts: The number of parts.

    Yields:
        Indices of the sources of a tile, and values and pseudo-values for all targets.
    """
    if not wanted.any():
        return
    networks = [Activations(name, values, folds, max_units) for name, values in representations.items()]
    grids = sorted({network.grid for network in networks})
    counts = wanted.sum(0)
    # Sources that lack all targets are not computed with those that lack a few.
    by_count = [np.flatnonzero((counts > 0) & (whole == (counts == counts.max()))).tolist() for whole in (True, False)]
    for sources in (tile for group in by_count for tile in _tiles(networks, group[part::parts], folds)):
        values = np.full((len(networks), len(sources)), np.nan)
        samples = np.full((len(folds.sizes), *values.shape), np.nan)
        rows = np.flatnonzero(wanted[:, sources].any(1)).tolist()
        for grid in grids:
            of_grid = [row for row in rows if networks[row].grid == grid]
            fits = [_fits(moments_of_one(networks[source], grid, folds)) for source in sources if of_grid]
            for targets in _tiles(networks, of_grid, folds):
                pairs, totals = moments_of_pairs(
                    [networks[i] for i in sources], [networks[i] for i in targets], grid, folds
                )
                for column, (of_source, moments) in enumerate(zip(fits, pairs, strict=True)):
                    values[targets, column], samples[:, targets, column] = _predict(of_source, moments, totals)
        unwanted = ~wanted[:, sources]
        values[unwanted], samples[:, unwanted] = np.nan, np.nan
        yield sources, Predictivity(values, samples)


def _tiles(networks: Sequence[Activations], indices: Sequence[int], folds: Folds) -> list[list[int]]:
    """Divides networks into tiles: two tiles have no more products of units than memory may hold."""
    most = int((_MOMENT_ELEMENTS / len(folds.sizes)) ** 0.5)
    tiles: list[list[int]] = []
    width = most + 1
    for index in indices:
        width += networks[index].units
        if width > most:
            tiles.append([])
            width = networks[index].units
        tiles[-1].append(index)
    return tiles


class _Fit(NamedTuple):
    """What the ridge maps from a source need of it, fitted on the images of all folds but some.

    Attributes:
        axes: Principal axes of its units.
        gains: 1 / (variance + ridge) along each of them, for each of `RIDGES`.
        held_out: For each fold left out, the products of its units there, along these axes.
    """

    axes: Float[np.ndarray, "units axes"]
    gains: Float[np.ndarray, "ridges axes"]
    held_out: dict[int, Float[np.ndarray, "axes axes"]]


def _fits(moments: Moments) -> dict[LeftOut, _Fit]:
    """Prepares the fits without each fold, and without each two."""
    fits = {}
    folds = range(len(moments.sizes))
    least = CONSTANT_SHARE * np.trace(moments.products.sum(0))
    all_left_out = [*itertools.combinations(folds, 1), *itertools.combinations(folds, 2)]
    for left_out, (fitted, held_out) in zip(all_left_out, moments.split(all_left_out), strict=True):
        # NumPy's takes up to fifty times longer on a busy machine: its threads wait for each other.
        variances, axes = scipy.linalg.eigh(fitted, driver="evd")
        variances = np.maximum(variances, 0)
        ridges = RIDGES[:, None] * variances.mean() + np.zeros(len(variances))
        # A source that varies in the folds left out alone predicts the mean.
        gains = 1 / (variances + ridges) if variances.sum() > least else np.zeros(ridges.shape)
        fits[left_out] = _Fit(axes, gains, {fold: axes.T @ sums @ axes for fold, sums in held_out.items()})
    return fits


def _predict(
    fits: dict[LeftOut, _Fit], moments: Moments, totals: Moments
) -> tuple[Float[np.ndarray, " targets"], Float[np.ndarray, "folds targets"]]:
    """Computes values and pseudo-values for one source and some targets."""
    count, targets = len(moments.sizes), totals.products.shape[1]
    # Errors, by the fold that they are without (or by the fold itself), the fold predicted, target and ridge.
    errors = np.zeros((count, count, targets, len(RIDGES)))
    deviations = np.zeros((count, count, targets))
    splits = zip(fits.items(), moments.split([*fits]), totals.split([*fits]), strict=True)
    for (left_out, fit), (fitted, held_out), (_, total_held_out) in splits:
        maps = fit.axes.T @ fitted
        products = maps @ maps.swapaxes(-1, -2)
        for fold in left_out:
            without = sum(left_out) - fold if len(left_out) > 1 else fold
            deviations[without, fold] = total_held_out[fold]
            explained = np.einsum("tij,tij->ti", maps, fit.axes.T @ held_out[fold]) @ fit.gains.T
            squares = ((fit.gains @ (fit.held_out[fold] * products)) * fit.gains).sum(-1)
            errors[without, fold] = deviations[without, fold, :, None] - 2 * explained + squares
    of_one = np.arange(count)
    own_errors, own_deviations = errors[of_one, of_one].copy(), deviations[of_one, of_one].sum(0)
    errors[of_one, of_one] = deviations[of_one, of_one] = 0
    inner = errors.sum(1)
    best = inner.argmin(-1)[..., None]
    values = 1 - np.take_along_axis(own_errors, best, -1)[..., 0].sum(0) / own_deviations
    with np.errstate(invalid="ignore", divide="ignore"):  # a target that varies in one fold alone has no error
        without = 1 - np.take_along_axis(inner, best, -1)[..., 0] / deviations.sum(1)
    return values, pseudo_values(values, without)
