"""Measures of how classes spread: H-score, its shrunk form, TransRate, and the Gaussian Bhattacharyya coefficient."""

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.spatial.distance import cdist

from jaxtransfer.scores.spectra import Examples

_EPSILON = 1e-4  # TransRate's squared distortion
_GBC_AXES = 64
_LEAST_VARIANCE = 1e-4  # of a class, for the Bhattacharyya coefficient


def hscore(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes the H-score, tr(S^-1 cov(E[F given y])): the variance between classes, in units of all variance.

    S is the covariance of all features. Its pseudo-inverse leaves out the axes whose variance is rounding, so the score
    is at most the number of classes less 1, and it is that number where examples are no more than units.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score, 0 to C - 1. No invertible linear map of the units changes it.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        Bao et al., "An information-theoretic approach to transferability in task transfer learning", ICIP 2019.
    """
    return between_share(Examples.of(features, labels))


def hscore_shrunk(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes the H-score with the shrunk covariance of Ledoit and Wolf.

    With shrinkage d and m the mean variance of a unit it is (1 - d) tr(((1 - d) S + d m I)^-1 cov(E[F given y])), with
    population covariances. Where few examples fix many units it is far more stable than the H-score.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score, 0 to C - 1. It does not change when units are rotated, or all multiplied by one number.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        Ibrahim et al., "Newer is not always better", arXiv 2110.06893; Ledoit and Wolf, J. Multivariate Anal. 2004.
    """
    return shrunk_between_share(Examples.of(features, labels))


def transrate(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes TransRate: the rate R that codes all features, less the mean over classes of the rate of a class.

    R(F) = 1/2 log det(I + F'F / (n e)) with e = 0.0001. Features are first centred, all together as in the paper, and
    then divided by the root of their mean square: the paper leaves their scale, on which its score depends.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score in nats. It does not change when units are rotated, or all multiplied by one number.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        Huang et al., "Frustratingly easy transferability estimation", arXiv 2106.09362.
    """
    return coding_rate_gain(Examples.of(features, labels))


def gbc(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes the Gaussian Bhattacharyya coefficient: how little the classes overlap as spherical Gaussians.

    On the first k <= 64 principal axes class i has mean m_i and variance v_i, the mean over the axes, at least 0.0001.
    With v = (v_i + v_j) / 2, B_ij = |m_i - m_j|^2 / (8 v) + k/2 log(v / sqrt(v_i v_j)); the score is the sum of
    -exp(-B_ij) over all ordered pairs of classes. The factor k, which released code forgets, is the dimension of
    the Gaussians.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score, -C (C - 1) to 0. It does not change when units are rotated; with all of them multiplied by one
        number it changes only where the least variance is reached.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        Pandy et al., "Transferability estimation using Bhattacharyya class separability", arXiv 2111.12780.
    """
    return bhattacharyya(Examples.of(features, labels))


def between_share(examples: Examples) -> float:
    """Computes the H-score of examples."""
    rank = examples.rank
    return float((_between(examples)[:rank] / examples.variances[:rank]).sum())


def shrunk_between_share(examples: Examples) -> float:
    """Computes the shrunk H-score of examples."""
    count, units = len(examples), examples.units
    variances = examples.variances
    if not variances.any():
        return 0.0
    mean = variances.sum() / units
    squared = np.square(variances).sum()
    fourth_powers = np.square(np.square(examples.values - examples.mean).sum(1)).mean()
    spread = (squared - units * mean**2) / units  # of the eigenvalues; 0 if all are the same
    noise = (fourth_powers - squared) / (count * units)
    shrinkage = 1.0 if noise >= spread else noise / spread
    kept = (1 - shrinkage) * variances[: examples.rank]
    return float((1 - shrinkage) * (_between(examples)[: examples.rank] / (kept + shrinkage * mean)).sum())


def _between(examples: Examples) -> Float[np.ndarray, " axes"]:
    """Returns the variance of the class means along each principal axis."""
    return examples.class_counts @ np.square(examples.class_means) / len(examples)


def coding_rate_gain(examples: Examples) -> float:
    """Computes TransRate of examples."""
    mean_square = examples.variances.sum() / examples.units
    if mean_square == 0:
        return 0.0
    scale = 1 / (_EPSILON * mean_square)
    centred = examples.values - examples.mean
    rates = []
    for number, count in enumerate(examples.class_counts):
        members = centred[examples.class_number == number]
        products = members @ members.T if count < members.shape[1] else members.T @ members
        rates.append(np.log(np.diag(np.linalg.cholesky(np.eye(len(products)) + products * (scale / count)))).sum())
    return float(0.5 * np.log1p(scale * examples.variances).sum() - np.mean(rates))


def bhattacharyya(examples: Examples) -> float:
    """Computes the Gaussian Bhattacharyya coefficient of examples."""
    axes = min(_GBC_AXES, examples.rank)
    if axes == 0:
        classes = len(examples.class_counts)
        return float(classes - classes**2)
    means = examples.class_means[:, :axes]
    deviations = examples.coordinates[:, :axes] - means[examples.class_number]
    squares = examples.one_hot.T @ np.square(deviations).mean(1)
    variances = np.maximum(squares / examples.class_counts, _LEAST_VARIANCE)
    pooled = (variances[:, None] + variances) / 2
    distances = cdist(means, means, "sqeuclidean") / (8 * pooled)
    distances += axes / 2 * np.log(pooled / np.sqrt(variances[:, None] * variances))
    overlaps = np.exp(-distances)
    np.fill_diagonal(overlaps, 0)
    return -float(overlaps.sum())
