"""Ridge regression from a network's features to labels, judged on held-out examples.

The value is R2: 1 - (squared error) / (squared deviation from the mean of the fit), both summed over outputs and
held-out examples: 1 for a perfect prediction, 0 for one no better than the mean.

The groups of examples are the folds of a nested cross-validation, as in `comparison.predictivity`. Without fold k the
others are a cross-validation of their own, in which each is predicted from the rest: it chooses the ridge and
the grid with which fold k is predicted, and it is the jackknife's value without fold k. In all fits a ridge is the
same share of the features' total variance, so neither the scale of features nor units that do not vary matter.

With many units the fits without one fold and without two all follow from one inverse for each ridge: the errors at
held-out rows S are (C_SS)^-1 (C y)_S, where C is the inverse of the rows' inner products plus the ridge, with the
unpenalised intercepts projected out (An, Liu and Venkatesh, "Fast cross-validation algorithms for least squares support
vector machine and kernel ridge regression", 2007). With few units each fit follows from second moments.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int, Shaped

from jaxtransfer.comparison.places import as_grid, reduce_units, resample
from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.comparison.streaming import CONSTANT_SHARE
from jaxtransfer.data.datasets import DENSE_TYPES
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import chunks
from jaxtransfer.scores.examples import FeatureArray, by_missing, outputs, pieces, read, usable_examples
from jaxtransfer.scores.score import Score
from jaxtransfer.scores.target import Target

RIDGES = 10.0 ** np.arange(-8, 3)
"""The ridges to choose from, as fractions of the total variance of the features."""
AREAS = 4
"""Features of images are averaged over all places, or to this number of areas along each side."""
PATCH_AREAS = 8
"""Most areas along each side of a place as which dense labels are predicted."""
MAX_ROWS = 6000
"""Most rows (examples, or places of examples) of fits by inner products."""
MAX_UNITS = 2048
"""Fits by second moments reduce features with more units to this number, see `places.reduce_units`."""

_MOST_LEFT_OUT = 2  # folds that a fit leaves out; there must be another one, at every place
_BLOCK = 2048  # units whose inner products are taken at a time

# By the fold that is left out beside the predicted one (or the predicted one itself), and the predicted fold.
_ByFolds = Float[np.ndarray, "without predicted"]
_ByRidges = Float[np.ndarray, "ridges without predicted"]


def ridge(features: FeatureArray, labels: Target | Shaped[np.ndarray, "n ..."]) -> Score:
    """Computes how well a ridge map predicts labels from features.

    Classes are one-hot columns. Columns of numbers, and of several labels an image, are divided by their standard
    deviation. A missing entry is left out of its column; columns that miss the same examples share their fits, and a
    column with entries in fewer than three groups of examples is left out. Features are averaged over all places, or to
    4x4 areas if their grid is that fine, as the inner folds choose.

    Dense labels are predicted place by place: one map, shared by all places, leads from the units at a place to the
    labels there, both less their mean at that place. The labels at a place are averaged to at most 8x8 areas; R2 is
    over all pixels. A missing pixel takes the mean of the known pixels of its area; an example's place with an area
    without any is left out.

    An example whose features are not finite is left out.

    Args:
        features: Features, [n, height, width, units] or [n, units].
        labels: Labels, see `Target.of_labels`.

    Returns:
        R2, at most 1.

    Raises:
        JaxTransferError: Too few examples are usable, or their labels do not vary.
    """
    target = Target.of_labels(labels)
    examples = usable_examples(features, target)
    if target.target_type in DENSE_TYPES:
        results = [_of_places(features, target, examples)]
    else:
        columns, folds = outputs(target, examples), int(target.group.max()) + 1
        is_fine = len(features.shape) == 4 and min(features.shape[1:3]) >= AREAS
        results = [
            _of_images(features, (size, size), columns, examples, target.group[examples], folds)
            for size in ((1, AREAS) if is_fine else (1,))
        ]
    explained, deviations = (list(part) for part in zip(*results, strict=True))
    return _nested(np.concatenate(explained), np.repeat(deviations, len(RIDGES), axis=0))


def _nested(
    explained: Float[np.ndarray, "options without predicted"],
    deviations: Float[np.ndarray, "options without predicted"],
) -> Score:
    """Chooses an option for each fold by the others, and computes R2 = (deviation - error) / deviation."""
    of_one = np.arange(explained.shape[1])
    own, own_deviations = explained[:, of_one, of_one], deviations[:, of_one, of_one]
    if not (own_deviations.sum(1) > 0).all():
        raise JaxTransferError("The labels do not vary over the examples with finite features.")
    others = ~np.eye(len(of_one), dtype=bool)
    of_others = np.sum(deviations, axis=2, where=others)
    # Labels that vary in one fold alone have no error; their deviation in the others is 0 up to rounding.
    of_others[of_others <= CONSTANT_SHARE * own_deviations.sum(1, keepdims=True)] = np.nan
    inner = np.sum(explained, axis=2, where=others) / of_others
    best = inner.argmax(0)
    value = own[best, of_one].sum() / own_deviations[best, of_one].sum()
    return Score(float(value), pseudo_values(value, inner[best, of_one]))


class _Rows(NamedTuple):
    """Rows to predict: examples, or places of examples.

    Attributes:
        features: Their features.
        labels: Their labels.
        fold: The fold of each.
        place: The place of each.
    """

    features: Float[np.ndarray, "rows units"]
    labels: Float[np.ndarray, "rows outputs"]
    fold: Int[np.ndarray, " rows"]
    place: Int[np.ndarray, " rows"]


class _Sums:
    """Sums values, and their squares, over the rows of each fold and place."""

    def __init__(self, folds: int, places: int, width: int) -> None:
        self.counts = np.zeros((folds, places))
        self.sums = np.zeros((folds, places, width))
        self.squares = np.zeros((folds, width))

    def add(
        self, values: Float[np.ndarray, "rows width"], fold: Int[np.ndarray, " rows"], place: Int[np.ndarray, " rows"]
    ) -> None:
        folds, places = self.counts.shape
        index = fold * places + place
        self.counts += np.bincount(index, minlength=folds * places).reshape(folds, places)
        self.sums += (_indicator(index, folds * places) @ values).reshape(self.sums.shape)
        self.squares += _indicator(fold, folds) @ np.square(values)

    def mean(self, left_out: Iterable[int] = ()) -> Float[np.ndarray, "places width"]:
        """Returns the mean at each place over all folds but some."""
        rest = np.setdiff1d(np.arange(len(self.counts)), [*left_out])
        return self.sums[rest].sum(0) / np.maximum(self.counts[rest].sum(0), 1)[:, None]

    def total(self) -> Float[np.ndarray, " width"]:
        """Returns the sum of squared deviations from the mean at each place."""
        return np.maximum(self.squares.sum(0) - (self.counts.sum(0)[:, None] * np.square(self.mean())).sum(0), 0)

    def deviations(self) -> _ByFolds:
        """Returns the sum of squared deviations of held-out rows from the mean of the fit."""
        result = np.zeros((len(self.counts), len(self.counts)))
        for left_out in _fits(len(self.counts)):
            mean = self.mean(left_out)
            for without, fold in _predictions(left_out):
                of_mean = self.counts[fold][:, None] * np.square(mean) - 2 * mean * self.sums[fold]
                result[without, fold] = self.squares[fold].sum() + of_mean.sum()
        return result


def _indicator(index: Int[np.ndarray, " rows"], count: int) -> scipy.sparse.csr_array:
    """Returns the matrix [count, rows] that sums the rows of each index."""
    return scipy.sparse.csr_array((np.ones(len(index)), (index, np.arange(len(index)))), (count, len(index)))


def _fits(folds: int) -> list[tuple[int, ...]]:
    """Returns the folds that each fit leaves out: each fold, and each two."""
    return [*itertools.combinations(range(folds), 1), *itertools.combinations(range(folds), 2)]


def _predictions(left_out: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns what a fit predicts: pairs of the other fold that it leaves out, if any, and the predicted one."""
    return [(left_out[0], left_out[-1]), (left_out[-1], left_out[0])][: len(left_out)]


def _of_images(
    layer: FeatureArray,
    grid: tuple[int, int],
    columns: Float[np.ndarray, "usable outputs"],
    examples: Int[np.ndarray, " usable"],
    fold: Int[np.ndarray, " usable"],
    folds: int,
) -> tuple[_ByRidges, _ByFolds]:
    """Computes what each ridge explains of the labels of images, and the labels' deviations."""
    explained, deviations = np.zeros((len(RIDGES), folds, folds)), np.zeros((folds, folds))
    for known, some in by_missing(columns):
        if len(np.unique(fold[known])) <= _MOST_LEFT_OUT:
            continue
        whole = _Rows(np.empty(0), columns[known][:, some], fold[known], np.zeros(known.sum(), int))
        sums = _Sums(folds, 1, len(some))
        sums.add(*whole[1:])
        deviations += sums.deviations()
        parts = (
            _Rows(
                read(layer, examples[known][start:stop], grid).reshape(stop - start, -1),
                *(values[start:stop] for values in whole[1:]),
            )
            for start, stop in pieces(layer, known.sum())
        )
        explained += _explained(parts, len(whole.labels), folds, 1)
    return explained, deviations


def _of_places(layer: FeatureArray, target: Target, examples: Int[np.ndarray, " usable"]) -> tuple[_ByRidges, _ByFolds]:
    """Computes what each ridge explains of dense labels, and the labels' deviations, both per pixel."""
    grid = as_grid(layer[:1]).shape[1:3]
    patches = _Patches(target, examples, grid)
    fold = target.group[examples]
    folds, places = int(target.group.max()) + 1, math.prod(grid)
    ranges = [slice(*part) for part in pieces(layer, len(examples), patches.size)]

    kept = np.concatenate([~np.isnan(patches.read(examples[part])[1]).any(2) for part in ranges])
    kept &= np.array([len(np.unique(fold[of_place])) > _MOST_LEFT_OUT for of_place in kept.T])
    if not kept.any():
        raise JaxTransferError(
            f"No place of the {grid[0]}x{grid[1]} grid of the features has labels in three groups of examples; label "
            "more pixels."
        )
    rows = [(part, *np.nonzero(kept[part])) for part in ranges]
    pixels = _Sums(folds, places, patches.size // places)
    for part, example, place in rows:
        pixels.add(patches.read(examples[part])[0][example, place], fold[part][example], place)
    scale = patches.scale(pixels)
    parts = (
        _Rows(
            read(layer, examples[part], grid).reshape(-1, places, layer.shape[-1])[example, place],
            patches.read(examples[part])[1][example, place] / np.tile(scale, patches.areas),
            fold[part][example],
            place,
        )
        for part, example, place in rows
        if len(example)
    )
    of_pixels = np.tile(scale, patches.areas * patches.pixels)
    pixels.sums /= of_pixels
    pixels.squares /= np.square(of_pixels)
    explained = _explained(parts, int(kept.sum()), folds, places)
    return explained * patches.pixels / patches.size, pixels.deviations() / patches.size


class _Patches:
    """Cuts dense labels into the places of a grid, a place into areas, and an area into pixels.

    Attributes:
        outputs: Labels of a pixel.
        areas: Areas of a place.
        pixels: Pixels of an area; labels are enlarged where their pixels would be cut.
        size: Labels of an image.
    """

    def __init__(self, target: Target, examples: Int[np.ndarray, " usable"], grid: tuple[int, int]) -> None:
        self._values, self._classes = target.values, len(target.classes)
        self.outputs = self._classes or target.values.shape[3]
        # Less their mean, sums of squares lose no digits.
        self._mean = 0 if self._classes else np.nanmean(target.values[examples], axis=(0, 1, 2), dtype=np.float64)
        self._shape: list[int] = []
        for size, places in zip(target.values.shape[1:3], grid, strict=True):
            areas = min(PATCH_AREAS, max(1, size // places))
            self._shape += [places, areas, -(-size // (places * areas))]
        self.areas = self._shape[1] * self._shape[4]
        self.pixels = self._shape[2] * self._shape[5]
        self.size = math.prod(self._shape) * self.outputs

    def read(
        self, examples: Int[np.ndarray, " some"]
    ) -> tuple[Float[np.ndarray, "some places pixels"], Float[np.ndarray, "some places areas"]]:
        """Reads the labels of all pixels of each place, and their means over areas, NaN where no pixel is known."""
        values = self._values[examples]
        if self._classes:
            known = (values >= 0)[..., None]
            values = (values[..., None] == np.arange(self._classes)).astype(np.float64)
        else:
            known = ~np.isnan(values)
            values = np.where(known, values - self._mean, 0)
        enlarged = math.prod(self._shape[:3]), math.prod(self._shape[3:])
        shape = (len(values), *self._shape, -1)
        known = resample(known.astype(np.float64), enlarged).reshape(shape)
        values = resample(values, enlarged).reshape(shape)
        with np.errstate(invalid="ignore"):
            areas = values.sum((3, 6), keepdims=True) / known.sum((3, 6), keepdims=True)
            pixels = np.where(known > 0, values / known, areas)
        order = (0, 1, 4, 2, 5, 3, 6, 7)
        places = (len(values), shape[1] * shape[4], -1)
        return pixels.transpose(order).reshape(places), areas.transpose(order).reshape(places)

    def scale(self, pixels: _Sums) -> Float[np.ndarray, " outputs"]:
        """Returns by what the labels of each output are divided: numbers by their standard deviation."""
        if self._classes:
            return np.ones(self.outputs)
        mean_of_squares = pixels.total().reshape(-1, self.outputs).sum(0) / (
            pixels.counts.sum() * self.areas * self.pixels
        )
        scale = np.sqrt(mean_of_squares)
        return np.where(scale > 0, scale, 1)


def _explained(parts: Iterator[_Rows], rows: int, folds: int, places: int) -> _ByRidges:
    """Computes by how much each ridge's squared error is less than that of the mean of the fit."""
    first = next(parts)
    parts = itertools.chain([first], parts)
    by_products = rows < min(MAX_ROWS, 3 * first.features.shape[1])
    return _by_inner_products([*parts], folds, places) if by_products else _by_moments(parts, folds, places)


def _by_inner_products(parts: Sequence[_Rows], folds: int, places: int) -> _ByRidges:
    """Computes `_explained` from the inner products of all rows."""
    features, labels, fold, place = (np.concatenate(values) for values in zip(*parts, strict=True))
    place = np.unique(place, return_inverse=True)[1]
    at_place = _indicator(place, int(place.max()) + 1)
    products, squares = np.zeros((len(labels), len(labels))), 0.0
    for start, stop in chunks(features.shape[1], _BLOCK):
        block = features[:, start:stop].astype(np.float64)
        squares += np.square(block).sum()
        block -= ((at_place @ block) / np.bincount(place)[:, None])[place]
        products += block @ block.T
    unit = np.trace(products)
    if unit <= CONSTANT_SHARE * squares:  # features that do not vary explain nothing
        return np.zeros((len(RIDGES), folds, folds))

    sums = _Sums(folds, len(at_place.indptr) - 1, labels.shape[1])
    sums.add(labels, fold, place)
    explained = np.repeat(sums.deviations()[None], len(RIDGES), axis=0)
    intercepts = at_place.toarray().T
    for of_ridge, share in zip(explained, RIDGES, strict=True):
        inverse = _inverse(products + share * unit * np.eye(len(products)))
        along = inverse @ intercepts
        inverse -= along @ np.linalg.solve(intercepts.T @ along, along.T)
        duals = inverse @ labels
        for left_out in _fits(folds):
            rows = np.flatnonzero(np.isin(fold, left_out))
            errors = _solve(inverse[np.ix_(rows, rows)], duals[rows])
            of_fold = np.bincount(fold[rows], np.square(errors).sum(1), folds)
            for without, predicted in _predictions(left_out):
                of_ridge[without, predicted] -= of_fold[predicted]
    return explained


def _inverse(matrix: Float[np.ndarray, "rows rows"]) -> Float[np.ndarray, "rows rows"]:
    """Inverts a symmetric positive definite matrix."""
    factorise, invert = scipy.linalg.get_lapack_funcs(("potrf", "potri"), (matrix,))
    inverse, _ = invert(factorise(matrix, lower=True)[0], lower=True)
    lower = np.tril(inverse)
    return lower + np.tril(lower, -1).T


def _solve(
    matrix: Float[np.ndarray, "rows rows"], values: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "rows columns"]:
    """Solves linear equations with a symmetric positive definite matrix."""
    return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), values)


def _by_moments(parts: Iterator[_Rows], folds: int, places: int) -> _ByRidges:
    """Computes `_explained` from the second moments of the rows of each fold."""
    first = next(parts)
    shift = reduce_units(first.features.astype(np.float64), MAX_UNITS).mean(0)
    units, width = len(shift), first.labels.shape[1]
    of_features, of_labels = _Sums(folds, places, units), _Sums(folds, places, width)
    products, with_labels, squares = np.zeros((folds, units, units)), np.zeros((folds, units, width)), 0.0
    for part in itertools.chain([first], parts):
        features = reduce_units(part.features.astype(np.float64), MAX_UNITS)
        squares += np.square(features).sum()
        features -= shift  # so that sums of products lose no digits
        of_features.add(features, *part[2:])
        of_labels.add(*part[1:])
        for fold in np.unique(part.fold):
            rows = part.fold == fold
            products[fold] += features[rows].T @ features[rows]
            with_labels[fold] += features[rows].T @ part.labels[rows]
    unit = of_features.total().sum()
    explained = np.zeros((len(RIDGES), folds, folds))
    if unit <= CONSTANT_SHARE * squares:  # features that do not vary explain nothing
        return explained

    for left_out in _fits(folds):
        rest = np.setdiff1d(np.arange(folds), left_out)
        mean, labels_mean = of_features.mean(left_out), of_labels.mean(left_out)
        weighted = (mean * of_features.counts[rest].sum(0)[:, None]).T
        fitted = products[rest].sum(0) - weighted @ mean
        fitted_labels = with_labels[rest].sum(0) - weighted @ labels_mean
        held_out = []
        for without, fold in _predictions(left_out):
            # Sums of products less the means: (x - m)(y - n)' = xy' - (x - m)n' - my'
            less_mean = (of_features.sums[fold] - of_features.counts[fold][:, None] * mean).T
            own = products[fold] - less_mean @ mean - mean.T @ of_features.sums[fold]
            own_labels = with_labels[fold] - less_mean @ labels_mean - mean.T @ of_labels.sums[fold]
            held_out.append((without, fold, own, own_labels))
        for of_ridge, share in zip(explained, RIDGES, strict=True):
            weights = _solve(fitted + share * unit * np.eye(len(fitted)), fitted_labels)
            for without, fold, own, own_labels in held_out:
                of_ridge[without, fold] = (weights * (2 * own_labels - own @ weights)).sum()
    return explained
