"""LogME against the density of the labels, maximised numerically, and the errors of released code."""

import numpy as np
import pytest
import scipy.optimize

from jaxtransfer import JaxTransferError
from jaxtransfer.scores import logme

_RNG = np.random.default_rng


def _features(examples: int, units: int, seed: int = 0) -> np.ndarray:
    """Features that are not centred, with units of different size."""
    random = _RNG(seed)
    return random.normal(size=(examples, units)) * np.linspace(0.1, 2, units) + random.normal(size=units)


def _log_density(labels: np.ndarray, features: np.ndarray, log_a: float, log_b: float) -> float:
    """log N(y; 0, F F' / a + I / b)."""
    covariance = features @ features.T * np.exp(-log_a) + np.eye(len(labels)) * np.exp(-log_b)
    spread = labels @ np.linalg.solve(covariance, labels)
    return -(spread + np.linalg.slogdet(covariance)[1] + len(labels) * np.log(2 * np.pi)) / 2


def _largest_density(labels: np.ndarray, features: np.ndarray) -> float:
    starts = [(a, b) for a in (-4.0, 0.0, 4.0, 8.0) for b in (-2.0, 2.0)]
    fits = [
        scipy.optimize.minimize(
            lambda p: -_log_density(labels, features, *p),
            start,
            method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-9},
        )
        for start in starts
    ]
    return max(-fit.fun for fit in fits) / len(labels)


@pytest.mark.parametrize(("examples", "units"), [(24, 5), (14, 40), (20, 20)])
def test_it_is_the_largest_density_of_the_labels(examples: int, units: int) -> None:
    """With more units than examples too: the sum of the evidence has all units."""
    features = _features(examples, units)
    labels = features[:, :2] @ [[0.7], [0.3]] + _RNG(1).normal(size=(examples, 1))
    np.testing.assert_allclose(logme(features, labels), _largest_density(labels[:, 0], features), rtol=0, atol=2e-6)


def test_classes_are_columns_of_their_own() -> None:
    features, classes = _features(12, 4), np.arange(12) % 3
    columns = [_largest_density((classes == number).astype(float), features) for number in range(3)]
    np.testing.assert_allclose(logme(features, classes), np.mean(columns), rtol=0, atol=2e-6)
    np.testing.assert_allclose(logme(features, np.eye(3)[classes]), np.mean(columns), rtol=0, atol=2e-6)


def _iterated(features: np.ndarray, labels: np.ndarray, units_in_sum: int) -> float:
    """The paper's iteration with the sum of log(a + b s) over some number of units, s = 0 beyond the rank."""
    count, units = features.shape
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    squares, projected = values**2, (left.T @ labels) ** 2
    rest = (labels**2).sum() - projected.sum()
    a = b = weights = errors = 1.0
    for _ in range(300):
        t = a / b
        gamma = (squares / (squares + t)).sum()
        weights = (squares * projected / (squares + t) ** 2).sum()
        errors = (projected * t**2 / (squares + t) ** 2).sum() + rest
        a, b = gamma / weights, (count - gamma) / errors
    padded = np.concatenate([squares, np.zeros(units_in_sum - len(squares))])
    evidence = units / 2 * np.log(a) + count / 2 * np.log(b) - np.log(a + b * padded).sum() / 2
    return (evidence - b / 2 * errors - a / 2 * weights - count / 2 * np.log(2 * np.pi)) / count


def test_the_evidence_has_all_units_where_examples_are_fewer() -> None:
    """The released code leaves out the units beyond the rank: (D - rank)/2 log a too much."""
    features = _features(20, 60) * np.logspace(0, -3, 60)
    labels = features[:, 0] + 0.5 * _RNG(2).normal(size=20)
    right, wrong = (_iterated(features, labels, units) for units in (60, 20))
    np.testing.assert_allclose(logme(features, labels[:, None]), right, rtol=0, atol=1e-6)
    np.testing.assert_allclose(right, _largest_density(labels, features), rtol=0, atol=1e-6)
    assert abs(wrong - right) > 0.5


def test_a_and_b_of_one_column_do_not_change_another() -> None:
    """Some code begins a column with the a and b at which the one before ended."""
    features = _features(20, 6)
    easy, hard = features[:, :1] * 1e3, _RNG(3).normal(size=(20, 1))
    alone = [logme(features, easy), logme(features, hard)]
    np.testing.assert_allclose(logme(features, np.hstack([easy, hard])), np.mean(alone), rtol=1e-12)
    np.testing.assert_allclose(logme(features, np.hstack([hard, easy])), np.mean(alone), rtol=1e-12)


def test_an_output_uses_the_examples_that_have_it() -> None:
    features, labels = _features(20, 5), _RNG(4).normal(size=(20, 3))
    missing = labels.copy()
    missing[:4, 1] = np.nan
    expected = [logme(features, labels[:, :1]), logme(features[4:], labels[4:, 1:2]), logme(features, labels[:, 2:])]
    np.testing.assert_allclose(logme(features, missing), np.mean(expected), rtol=1e-10)


@pytest.mark.parametrize("units", [3, 30])
def test_it_is_finite_where_features_fit_without_error_or_say_nothing(units: int) -> None:
    classes = np.arange(12) % 3
    exact = np.eye(3)[classes] @ _RNG(5).normal(size=(3, units))
    assert np.isfinite(logme(exact, classes))
    nothing = logme(np.zeros((12, units)), classes)
    assert logme(exact, classes) > logme(_features(12, units), classes) > nothing - 1e-12
    np.testing.assert_allclose(nothing, 0.5 * (np.log(3 / (2 * np.pi)) - 1))  # y ~ N(0, 1/b), a third of y is 1


def test_scaled_features_have_the_same_score() -> None:
    features, classes = _features(16, 8), np.arange(16) % 2
    np.testing.assert_allclose(logme(features * 1e4, classes), logme(features, classes), rtol=1e-8)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((4, 2)), np.arange(3), r"shapes are \(4, 2\) and \(3,\)"),
        (np.ones((4, 2, 2)), np.arange(4), r"Features are \[examples, columns\]"),
        (np.full((4, 2), np.nan), np.arange(4), "Features must be finite"),
        (np.ones((4, 2)), np.zeros(4, int), "labels of two classes"),
        (np.ones((4, 2)), np.zeros(4), "Classes are integers, not float64"),
        (np.ones((1, 2)), np.zeros((1, 1)), "two examples or more; there are 1"),
    ],
)
def test_bad_input_is_refused(features: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(JaxTransferError, match=message):
        logme(features, labels)
