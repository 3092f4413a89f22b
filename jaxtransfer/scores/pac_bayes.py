"""PACTran: a PAC-Bayesian bound on the error of a linear head (Ding et al., ECCV 2022)."""

import functools

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int, Shaped

from jaxtransfer.scores.spectra import Examples

_PRIOR_TIMES_UNITS = 100.0  # the prior variance of a weight, times the number of units
_CURVATURE = 0.003  # of the cross-entropy along a unit of variance 1, about
_TOLERANCE = 1e-5  # of the gradient's length


def pactran(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes PACTran-Gaussian with its sign changed: minus a bound on the cross-entropy of a linear head.

    With D units, K classes, n examples and centred features, the head with weights w and biases minimises
    L = cross-entropy + |w|^2 / (2 n), where cross-entropy is the mean over the examples. The score is

        -(L + K D v / (2 n) log(1 + n T / (K D))),    v = 100 / D,

    with the prior variance v of a weight and the trace T of the second derivatives of the cross-entropy with respect
    to the weights. The temperature of the bound is n / v, so that n is both the weight of the prior and the factor
    of T. Biases have a flat prior and no part in the bound. The released code takes for T the sum over examples
    instead of the mean, and includes the biases.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score in nats, at most 0. It does not change when units are rotated. It does change when all are multiplied
        by one number, since the prior of the weights has a scale.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        arXiv 2203.05126.
    """
    return negative_bound(Examples.of(features, labels))


def negative_bound(examples: Examples) -> float:
    """Computes PACTran-Gaussian, with its sign changed, of examples."""
    count, classes = len(examples), len(examples.class_counts)
    points = examples.coordinates[:, : examples.rank]
    loss, probabilities = _fit_head(points, examples)
    trace = np.square(points).sum(1) @ (probabilities * (1 - probabilities)).sum(1) / count
    complexity = classes * _PRIOR_TIMES_UNITS / (2 * count) * np.log1p(count * trace / (classes * examples.units))
    return float(-(loss + complexity))


def _fit_head(
    points: Float[np.ndarray, "examples axes"], examples: Examples
) -> tuple[float, Float[np.ndarray, "examples classes"]]:
    """Minimises the loss of the head by Newton's method; returns it, and the probabilities of the classes."""
    count, one_hot = len(examples), examples.one_hot
    axes, classes = points.shape[1], one_hot.shape[1]
    # In units of these scales the curvature is about the same along all axes: conjugate gradients are then fast.
    scales = 1 / np.sqrt(_CURVATURE * examples.variances[:axes] + 1 / count)
    points = np.concatenate([points * scales, np.ones((count, 1))], axis=1)
    penalties = np.append(np.square(scales), 0)[:, None] / count
    parameters = np.zeros((axes + 1, classes))
    parameters[-1] = np.log(examples.class_counts / count)

    @functools.lru_cache(maxsize=2)  # all products with the second derivatives at a point need the same
    def log_probabilities(of_parameters: bytes) -> Float[np.ndarray, "examples classes"]:
        return scipy.special.log_softmax(points @ np.frombuffer(of_parameters).reshape(parameters.shape), axis=1)

    def loss(flat: Float[np.ndarray, " parameters"]) -> tuple[float, Float[np.ndarray, " parameters"]]:
        logs, own = log_probabilities(flat.tobytes()), flat.reshape(parameters.shape)
        value = (penalties * np.square(own)).sum() / 2 - (logs * one_hot).sum() / count
        return value, (penalties * own + points.T @ (np.exp(logs) - one_hot) / count).ravel()

    def curvature(
        flat: Float[np.ndarray, " parameters"], direction: Float[np.ndarray, " parameters"]
    ) -> Float[np.ndarray, " parameters"]:
        probabilities, along = np.exp(log_probabilities(flat.tobytes())), direction.reshape(parameters.shape)
        changes = points @ along
        changes = probabilities * (changes - (probabilities * changes).sum(1, keepdims=True))
        return (penalties * along + points.T @ changes / count).ravel()

    fit = scipy.optimize.minimize(
        loss, parameters.ravel(), jac=True, hessp=curvature, method="trust-ncg", options={"gtol": _TOLERANCE}
    )
    return float(fit.fun), np.exp(log_probabilities(fit.x.tobytes()))
