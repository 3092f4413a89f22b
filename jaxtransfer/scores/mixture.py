"""N-LEEP: LEEP with the components of a Gaussian mixture in place of the network's classes (Li et al., CVPR 2021)."""

import numpy as np
import scipy.special
from jaxtyping import Float, Int, Shaped
from scipy.spatial.distance import cdist

from jaxtransfer.scores.source_classes import Predictions, log_expected_prediction
from jaxtransfer.scores.spectra import Examples

_SHARE = 0.8  # of the variance, that the principal axes keep
_COMPONENTS_PER_CLASS = 5
_ROUNDS = 200
_TOLERANCE = 1e-5  # of the log likelihood per example, in nats
_LEAST_VARIANCE = 1e-3  # of a component along an axis, in units of the mean variance of the axes


def nleep(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes N-LEEP: LEEP with the posteriors of a Gaussian mixture as probabilities.

    Released codes differ. Here the mixture has five components per class, but at most half as many as examples, on the
    fewest principal axes that hold more than 80 % of the variance. Each component has a variance of its own along each
    axis, at least 0.001 of the mean variance of the axes: whole covariance matrices would have more numbers than there
    are examples. It is fitted by expectation maximisation, from a k-means clustering with k-means++ seeds that are
    drawn from a fixed seed, until the log likelihood per example grows by less than 1e-5 nats.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score in nats, at most 0. It does not change when units are rotated, or all multiplied by one number, apart
        from rounding.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        "Ranking neural checkpoints", arXiv 2011.11200.
    """
    return mixture_score(Examples.of(features, labels))


def mixture_score(examples: Examples) -> float:
    """Computes N-LEEP of examples; the mixture of a part begins with the posteriors of the whole's."""
    posteriors = examples.shared(_posteriors)
    if examples.whole is not None:
        posteriors = _fit(_points(examples), posteriors)
    return log_expected_prediction(Predictions(posteriors, examples.labels))


def _points(examples: Examples) -> Float[np.ndarray, "examples axes"]:
    """Returns the examples along the principal axes that hold the share of the variance, in units of its root mean."""
    shares = np.cumsum(examples.variances)
    if shares[-1] == 0:
        return np.zeros((len(examples), 1))
    axes = min(int(np.searchsorted(shares, _SHARE * shares[-1], side="right")) + 1, examples.rank)
    return examples.coordinates[:, :axes] / np.sqrt(shares[axes - 1] / axes)


def _posteriors(examples: Examples) -> Float[np.ndarray, "examples components"]:
    """Fits the mixture from clusters of k-means."""
    components = max(1, min(_COMPONENTS_PER_CLASS * len(examples.class_counts), len(examples) // 2))
    points = _points(examples)
    return _fit(points, np.eye(components)[_clusters(points, components)])


def _clusters(points: Float[np.ndarray, "examples axes"], clusters: int) -> Int[np.ndarray, " examples"]:
    """Clusters points by k-means; seeds are drawn in proportion to the squared distance to the nearest one before."""
    random = np.random.default_rng(0)
    centres = points[random.integers(len(points), size=1)]
    nearest = np.full(len(points), np.inf)
    while len(centres) < clusters:
        nearest = np.minimum(nearest, cdist(points, centres[-1:], "sqeuclidean")[:, 0])
        bounds = np.cumsum(nearest)
        index = min(int(np.searchsorted(bounds, random.random() * bounds[-1], side="right")), len(points) - 1)
        centres = np.concatenate([centres, points[index : index + 1]])
    members = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        before, members = members, cdist(points, centres, "sqeuclidean").argmin(1)
        if (before == members).all():
            break
        one_hot = np.eye(clusters)[members]
        counts = one_hot.sum(0)[:, None]
        centres = np.where(counts > 0, one_hot.T @ points / np.maximum(counts, 1), centres)
    return members


def _fit(
    points: Float[np.ndarray, "examples axes"], posteriors: Float[np.ndarray, "examples components"]
) -> Float[np.ndarray, "examples components"]:
    """Iterates maximisation and expectation; returns the last posteriors."""
    squares = np.square(points)
    likelihood = -np.inf
    for _ in range(_ROUNDS):
        weights = posteriors.sum(0) + 10 * np.finfo(float).eps
        means = posteriors.T @ points / weights[:, None]
        variances = np.maximum(posteriors.T @ squares / weights[:, None] - np.square(means), _LEAST_VARIANCE)
        precisions = 1 / variances
        constants = np.log(weights / len(points)) - 0.5 * (
            np.log(2 * np.pi * variances) + np.square(means) * precisions
        ).sum(1)
        densities = constants + points @ (means * precisions).T - 0.5 * squares @ precisions.T
        totals = np.asarray(scipy.special.logsumexp(densities, axis=1, keepdims=True))
        posteriors = np.exp(densities - totals)
        before, likelihood = likelihood, totals.mean()
        if likelihood - before < _TOLERANCE:
            break
    return posteriors
