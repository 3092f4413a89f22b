"""PACTran: a PAC-Bayesian bound on the error of a linear head (Ding et al., ECCV 2022)."""

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int, Shaped

from jaxtransfer.scores.spectra import Examples

_PRIOR_TIMES_UNITS = 100.0  # the prior variance of a weight, times the number of units


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
    count, classes, rank = len(examples), len(examples.class_counts), examples.rank
    points, one_hot = examples.projected(rank), examples.one_hot
    # In units of these scales the curvature is about the same along all axes, so few iterations are needed.
    scales = 1 / np.sqrt(examples.variances[:rank] / classes + 1 / count)[:, None]
    start = np.concatenate([np.zeros((rank, classes)), np.log(examples.class_counts / count)[None]])
    points = points * scales.T

    def loss(flat: Float[np.ndarray, " parameters"]) -> tuple[float, Float[np.ndarray, " parameters"]]:
        parameters = flat.reshape(rank + 1, classes)
        weights = parameters[:-1] * scales
        logits = points @ parameters[:-1] + parameters[-1]
        totals = np.asarray(scipy.special.logsumexp(logits, axis=1, keepdims=True))
        errors = (np.exp(logits - totals) - one_hot) / count
        value = (totals.sum() - (logits * one_hot).sum()) / count + np.square(weights).sum() / (2 * count)
        gradient = np.concatenate([points.T @ errors + weights * scales / count, errors.sum(0, keepdims=True)])
        return float(value), gradient.ravel()

    fit = scipy.optimize.minimize(
        loss,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxcor": 20, "gtol": 1e-6, "ftol": 1e-12},
    )
    parameters = fit.x.reshape(rank + 1, classes)
    probabilities = scipy.special.softmax(points @ parameters[:-1] + parameters[-1], axis=1)
    squared_lengths = np.square(points / scales.T).sum(1)
    trace = squared_lengths @ (probabilities * (1 - probabilities)).sum(1) / count
    complexity = classes * _PRIOR_TIMES_UNITS / (2 * count) * np.log1p(count * trace / (classes * examples.units))
    return float(-(fit.fun + complexity))
