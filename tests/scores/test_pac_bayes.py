"""PACTran against the loss of its head, minimised in the original units."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxtransfer.scores import pactran


@pytest.mark.parametrize(("examples", "units"), [(60, 4), (20, 30)])
@pytest.mark.parametrize("scale", [0.1, 3])
def test_it_is_the_bound_at_the_least_loss(examples: int, units: int, scale: float) -> None:
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(examples) % 3)
    features = scale * (random.normal(size=(examples, units)) + random.normal(size=(3, units))[labels] + 2)
    centred = features - features.mean(0)
    rows = np.arange(examples)

    def loss(flat: np.ndarray) -> float:
        weights, biases = flat[: 3 * units].reshape(units, 3), flat[3 * units :]
        logs = scipy.special.log_softmax(centred @ weights + biases, axis=1)
        return -logs[rows, labels].mean() + np.square(weights).sum() / (2 * examples)

    def gradient(flat: np.ndarray) -> np.ndarray:
        weights, biases = flat[: 3 * units].reshape(units, 3), flat[3 * units :]
        errors = scipy.special.softmax(centred @ weights + biases, axis=1) - np.eye(3)[labels]
        return np.concatenate([(centred.T @ errors + weights).ravel() / examples, errors.mean(0)])

    fit = scipy.optimize.minimize(loss, np.zeros(3 * units + 3), jac=gradient, method="BFGS", options={"gtol": 1e-8})
    weights, biases = fit.x[: 3 * units].reshape(units, 3), fit.x[3 * units :]
    shares = scipy.special.softmax(centred @ weights + biases, axis=1)
    trace = sum(centred[n] @ centred[n] * p * (1 - p) for n in rows for p in shares[n]) / examples
    prior, parameters = 100 / units, 3 * units
    temperature = examples / prior
    complexity = parameters / (2 * temperature) * np.log(1 + temperature * prior * trace / parameters)
    np.testing.assert_allclose(pactran(features, labels), -(fit.fun + complexity), rtol=3e-5)


def test_features_that_do_not_vary_leave_the_entropy_of_the_labels() -> None:
    np.testing.assert_allclose(pactran(np.ones((9, 4)), np.arange(9) % 3), -np.log(3))
