"""SFDA: the likelihood of the labels under a discriminant analysis that challenges itself (Shao et al., ECCV 2022)."""

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import scipy.special
from jaxtyping import Float, Int, Shaped

from jaxtransfer.scores.spectra import Examples

_RATE = 5.0  # of the shrinkage, against the largest variance within classes
_LEAST_SHRINKAGE = 1e-10


def sfda(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes SFDA: the mean log likelihood of the labels under the second of two discriminant analyses.

    The discriminant analysis has the logits d_c(x) = x' W^-1 m_c - 1/2 m_c' W^-1 m_c + log(n_c / n), where m_c is the
    mean of class c and W = (1 - s) S_w + s t I, with the covariance S_w within classes, its mean variance t of a unit
    and s = exp(-5 * its largest eigenvalue), at least 1e-10. The first analysis gives each example a confidence: the
    softmax, of its probabilities, at its own class. Each example is then mixed with the mean of the other classes'
    means, x <- confidence x + (1 - confidence) mean, and the second analysis, with the same s, is fitted to the mixed
    examples.

    The likelihood is of the examples that were fitted: many units fit anything, so do not compare a score with that of
    held-out examples. The formulas are of the authors' code, except that the largest eigenvalue is computed instead of
    approached in three rounds, and that the score is the mean logarithm, as in the paper.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score in nats, at most 0. It does not change when units are rotated. It does change when all are multiplied
        by one number, since s does.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        "Not all models are equal: predicting model transferability in a self-challenging Fisher space", arXiv
        2207.03036.
    """
    return challenged_likelihood(Examples.of(features, labels))


def challenged_likelihood(examples: Examples) -> float:
    """Computes SFDA of examples."""
    if len(examples.class_counts) < 2:
        return 0.0
    points, own = examples.coordinates, examples.class_number
    covariance = np.diag(examples.variances)
    shrinkage = max(np.exp(-_RATE * _largest(_within(covariance, points, examples))), _LEAST_SHRINKAGE)
    logits = _logits(covariance, points, examples, shrinkage)
    rows = np.arange(len(points))
    confidence = scipy.special.softmax(scipy.special.softmax(logits, axis=1), axis=1)[rows, own, None]
    means = examples.class_means
    others = (means.sum(0) - means) / (len(means) - 1)
    mixed = confidence * points + (1 - confidence) * others[own]
    mixed -= mixed.mean(0)
    logits = _logits(mixed.T @ mixed / len(mixed), mixed, examples, shrinkage)
    return float((logits[rows, own] - scipy.special.logsumexp(logits, axis=1)).mean())


def _logits(
    covariance: Float[np.ndarray, "axes axes"],
    points: Float[np.ndarray, "examples axes"],
    examples: Examples,
    shrinkage: float,
) -> Float[np.ndarray, "examples classes"]:
    """Returns the logits of the discriminant analysis of centred points with this covariance."""
    within = _within(covariance, points, examples)
    mean_variance = (np.trace(within) or np.trace(covariance) or 1.0) / examples.units
    # At least the rounding of the covariance, so that its Cholesky factor exists.
    ridge = max(shrinkage * mean_variance, len(within) * np.finfo(float).eps * np.trace(covariance))
    within = (1 - shrinkage) * within
    within.flat[:: len(within) + 1] += ridge
    means = _means(points, examples)
    maps = scipy.linalg.cho_solve(scipy.linalg.cho_factor(within, overwrite_a=True), means.T)
    shares = examples.class_counts / len(examples)
    return points @ maps - 0.5 * np.einsum("ca,ac->c", means, maps) + np.log(shares)


def _within(
    covariance: Float[np.ndarray, "axes axes"], points: Float[np.ndarray, "examples axes"], examples: Examples
) -> Float[np.ndarray, "axes axes"]:
    """Returns the covariance within classes: that of centred points less that of the class means."""
    means = _means(points, examples)
    return covariance - (means.T * (examples.class_counts / len(examples))) @ means


def _means(points: Float[np.ndarray, "examples axes"], examples: Examples) -> Float[np.ndarray, "classes axes"]:
    """Returns the mean of each class."""
    return examples.one_hot.T @ points / examples.class_counts[:, None]


def _largest(matrix: Float[np.ndarray, "axes axes"]) -> float:
    """Returns the largest eigenvalue of a symmetric matrix that is not negative."""
    if len(matrix) < 3 or not matrix.any():
        return float(np.linalg.eigvalsh(matrix)[-1])
    start = np.ones(len(matrix))
    return float(scipy.sparse.linalg.eigsh(matrix, 1, v0=start, return_eigenvectors=False)[0])
