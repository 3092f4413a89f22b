"""Logistic regression from a network's features to classes, judged on held-out examples.

The groups of examples are the folds of a nested cross-validation, as of `ridge`: without fold k each of the others is
predicted from the rest; their log loss chooses the strength of the penalty with which fold k is predicted, and their
accuracy is the jackknife's value without fold k.

Features are taken along their principal axes, which changes nothing: the squared norm of the weights is the penalty, so
rotations of units do not matter. Divided by the curvature that it expects there, each axis is about equally steep, and
L-BFGS takes few steps even where the penalty is weak.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from jaxtyping import Bool, Float, Float32, Shaped

from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.comparison.streaming import CONSTANT_SHARE
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores.examples import FeatureArray, pooled, usable_examples
from jaxtransfer.scores.score import Score
from jaxtransfer.scores.target import Target

PENALTIES = 10.0 ** np.arange(-1, -8, -1)
"""The penalties to choose from: half of this times the squared norm of the weights is added to the mean log loss."""

_TOLERANCE = 1e-6  # of the log loss
_MOST_STEPS = 500


def logistic(features: FeatureArray, labels: Target | Shaped[np.ndarray, "n ..."]) -> Score:
    """Computes how well logistic regression predicts classes from features.

    Classes are predicted by one softmax, several labels an image by a sigmoid for each column, from whose log loss
    missing entries are left out. Features are averaged over all places and divided by their root mean square distance
    from the mean, so their scale does not matter.

    Args:
        features: Features, [n, height, width, units] or [n, units]; examples that are not finite are left out.
        labels: Classes, or several labels an image, see `Target.of_labels`.

    Returns:
        For classes the accuracy; for several labels an image the mean over columns of the average precision, which
        needs no threshold, so rare labels count too. Both lie in 0 to 1.

    Raises:
        JaxTransferError: The labels are of another type, or too few examples are usable.
    """
    target = Target.of_labels(labels)
    if target.target_type not in ("classes", "multilabel"):
        raise JaxTransferError("logistic predicts classes or several labels an image; use ridge for other labels.")
    examples = usable_examples(features, target)
    axes = _Axes.of(pooled(features, examples))
    one_hot = target.target_type == "classes"
    values = np.eye(len(target.classes))[target.values[examples]] if one_hot else target.values[examples]
    fold, folds = target.group[examples], int(target.group.max()) + 1
    losses, outputs = np.zeros((folds, folds, len(PENALTIES))), {}
    for pair in itertools.combinations(range(folds), 2):
        fits = [*_fits(axes, values, ~np.isin(fold, pair), PENALTIES, one_hot)]
        for without, predicted in (pair, pair[::-1]):
            rows = fold == predicted
            losses[without, predicted] = [fit.loss(axes, values, rows) for fit in fits]
            outputs[without, predicted] = [fit.predict(axes, rows) for fit in fits]

    def judge(predicted: list[Float[np.ndarray, "rows classes"]], of_folds: list[int]) -> Float[np.ndarray, ""]:
        truth = np.concatenate([values[fold == k] for k in of_folds])
        return (_accuracy if one_hot else _mean_average_precision)(np.concatenate(predicted), truth)

    best = losses.sum(1).argmin(-1)
    own, without = [], []
    for k, choice in enumerate(best):
        *_, fit = _fits(axes, values, fold != k, PENALTIES[: choice + 1], one_hot)
        own.append(fit.predict(axes, fold == k))
        others = [other for other in range(folds) if other != k]
        without.append(judge([outputs[k, other][choice] for other in others], others))
    value = judge(own, [*range(folds)])
    return Score(float(value), pseudo_values(value, np.array(without)))


class _Axes(NamedTuple):
    """Features along their principal axes, with a mean squared distance of 1 from their mean.

    Attributes:
        values: The features, in single precision, which halves the time of products.
        shares: The share of each axis in the variance.
    """

    values: Float32[np.ndarray, "rows axes"]
    shares: Float[np.ndarray, " axes"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "rows units"]) -> "_Axes":
        squares = np.square(features).sum()
        features = features - features.mean(0)
        rows, units = features.shape
        products = features @ features.T if rows < units else features.T @ features
        variances, vectors = scipy.linalg.eigh(products, driver="evd")
        variances = np.maximum(variances, 0)
        total = variances.sum()
        if total <= CONSTANT_SHARE * squares:  # features that do not vary
            return cls(np.zeros((rows, 1), np.float32), np.ones(1))
        values = vectors * np.sqrt(variances) if rows < units else features @ vectors
        return cls((values * np.sqrt(rows / total)).astype(np.float32), variances / total)


class _Fit(NamedTuple):
    """A logistic regression.

    Attributes:
        weights: Weights of the axes for the columns that vary in the examples of the fit.
        intercept: Intercepts of these columns.
        constant: The log odds of the other columns, infinite; NaN for those that vary.
        one_hot: Whether the columns are classes, of which each example has one.
    """

    weights: Float[np.ndarray, "axes varying"]
    intercept: Float[np.ndarray, " varying"]
    constant: Float[np.ndarray, " columns"]
    one_hot: bool

    def predict(self, axes: _Axes, rows: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, "some columns"]:
        """Returns log odds (of classes, up to a number that they share)."""
        odds = np.tile(self.constant, (int(rows.sum()), 1))
        odds[:, np.isnan(self.constant)] = _product(axes.values[rows], self.weights) + self.intercept
        return odds

    def loss(
        self, axes: _Axes, values: Float[np.ndarray, "rows columns"], rows: Bool[np.ndarray, " rows"]
    ) -> Float[np.ndarray, ""]:
        """Sums the log losses; a class that the fit has not seen counts nothing, since no penalty can predict it."""
        varying = np.isnan(self.constant)
        if not varying.any():
            return np.zeros(())
        return _losses(self.predict(axes, rows)[:, varying], values[rows][:, varying], self.one_hot)[0].sum()


def _fits(
    axes: _Axes,
    values: Float[np.ndarray, "rows columns"],
    fitted: Bool[np.ndarray, " rows"],
    penalties: Float[np.ndarray, " penalties"],
    one_hot: bool,
) -> Iterator[_Fit]:
    """Fits with one penalty after the other, the strongest first; each begins at the solution of the one before."""
    features, values = axes.values[fitted], values[fitted]
    known = ~np.isnan(values)
    ones, counts = np.where(known, values, 0).sum(0), known.sum(0)
    constant = np.where(ones == 0, -np.inf, np.where(ones == counts, np.inf, np.nan))
    varying = np.isnan(constant)
    values, counts = values[:, varying], counts[varying]
    if not varying.any():
        weights = np.empty((features.shape[1], 0))
        yield from [_Fit(weights, np.empty(0), constant, one_hot)] * len(penalties)
        return
    rates = ones[varying] / counts
    curvature = (rates * (1 - rates)).mean()
    weights, intercept = np.zeros((features.shape[1], len(counts))), np.zeros(len(counts))
    for penalty in penalties:
        steepness = np.sqrt(np.append(curvature * axes.shares + penalty, curvature))[:, None]

        def objective(scaled, penalty=penalty, steepness=steepness):
            weights = scaled.reshape(len(steepness), -1) / steepness
            odds = _product(features, weights[:-1]) + weights[-1]
            losses, residuals = _losses(odds, values, one_hot)
            residuals /= counts
            gradient = np.empty_like(weights)
            gradient[:-1] = _product(features.T, residuals) + penalty * weights[:-1]
            gradient[-1] = residuals.sum(0)
            loss = (losses / counts).sum() + penalty / 2 * np.square(weights[:-1]).sum()
            return loss, (gradient / steepness).ravel()

        start = (np.concatenate([weights, intercept[None]]) * steepness).ravel()
        options = {"ftol": _TOLERANCE, "gtol": 1e-8, "maxiter": _MOST_STEPS}
        solution = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        if not np.isfinite(solution).all():
            raise FloatingPointError("A logistic regression did not converge to finite weights.")
        solution = solution.reshape(len(steepness), -1) / steepness
        weights, intercept = solution[:-1], solution[-1]
        residuals = _losses(_product(features, weights) + intercept, values, one_hot)[1]
        rates = residuals + np.where(known[:, varying], values, 0)
        curvature = np.maximum((rates * (1 - rates)).mean(), 1e-9)
        yield _Fit(weights, intercept, constant, one_hot)


def _product(
    features: Float32[np.ndarray, "rows axes"], weights: Float[np.ndarray, "axes columns"]
) -> Float32[np.ndarray, "rows columns"]:
    """Multiplies in single precision."""
    with np.errstate(invalid="ignore"):  # raised once, and not reproducibly; the weights are checked instead
        return features @ weights.astype(np.float32)


def _losses(
    odds: Float[np.ndarray, "rows columns"], values: Float[np.ndarray, "rows columns"], one_hot: bool
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]]:
    """Returns log losses and their derivatives by the log odds, 0 where a value is missing."""
    if one_hot:
        logs = odds - scipy.special.logsumexp(odds, axis=1, keepdims=True)
        return -values * logs, np.exp(logs) - values
    known = ~np.isnan(values)
    values = np.where(known, values, 0)
    return known * (np.logaddexp(0, odds) - values * odds), known * (scipy.special.expit(odds) - values)


def _accuracy(
    odds: Float[np.ndarray, "rows classes"], values: Float[np.ndarray, "rows classes"]
) -> Float[np.ndarray, ""]:
    return (odds.argmax(1) == values.argmax(1)).mean()


def _mean_average_precision(
    odds: Float[np.ndarray, "rows columns"], values: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, ""]:
    """Computes the mean over columns of the sum over thresholds of (gain in recall) x precision."""
    precisions = []
    for of_column, truth in zip(odds.T, values.T, strict=True):
        known = np.flatnonzero(~np.isnan(truth))
        order = known[np.argsort(-of_column[known], kind="stable")]
        hits = np.cumsum(truth[order])
        ends = np.flatnonzero(np.append(of_column[order][1:] != of_column[order][:-1], True))  # of those that tie
        if hits.any():
            gains = np.diff(hits[ends], prepend=0) / hits[-1]
            precisions.append((gains * hits[ends] / (ends + 1)).sum())
    return np.asarray(np.mean(precisions) if precisions else np.nan)
