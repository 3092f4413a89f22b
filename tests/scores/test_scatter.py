"""H-score, its shrunk form, TransRate and GBC against the formulas of their papers."""

import numpy as np
import pytest

from jaxtransfer.scores import gbc, hscore, hscore_shrunk, transrate


def _task(examples: int, units: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(examples) % classes)
    centres = random.normal(size=(classes, units))
    return random.normal(size=(examples, units)) * np.linspace(0.3, 2, units) + centres[labels] + 3, labels


def _means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean of the class of each example."""
    return np.stack([features[labels == label].mean(0) for label in labels])


@pytest.mark.parametrize(("examples", "units"), [(40, 6), (40, 38), (20, 50)])
def test_hscore_is_the_trace_of_a_matrix_product(examples: int, units: int) -> None:
    """A product element by element, as in one library, is another number."""
    features, labels = _task(examples, units, 4)
    inverse = np.linalg.pinv(np.cov(features.T), rcond=1e-10)
    between = np.cov(_means(features, labels).T)
    np.testing.assert_allclose(hscore(features, labels), np.trace(inverse @ between), rtol=1e-8)
    assert abs(np.trace(inverse * between) - hscore(features, labels)) > 0.1


def test_hscore_of_classes_that_are_points_is_their_number_less_one() -> None:
    centres = np.random.default_rng(0).normal(size=(5, 8))
    np.testing.assert_allclose(hscore(centres[np.arange(20) % 5], np.arange(20) % 5), 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hscore_is_never_above_the_number_of_classes_less_one(dtype: type) -> None:
    """Rounding of dependent units must not be inverted; tables in print have 117 where 46 is the maximum."""
    features, labels = _task(60, 12, 4)
    dependent = (features @ np.random.default_rng(1).normal(size=(12, 40)) * 1e3).astype(dtype)
    assert np.linalg.matrix_rank(dependent.astype(float)) > 12 or dtype is np.float64
    np.testing.assert_allclose(hscore(dependent, labels), hscore(features, labels), rtol=1e-3)
    for noise in 10.0 ** np.arange(-9, 0):
        noisy = dependent + noise * np.random.default_rng(2).normal(size=dependent.shape)
        assert hscore(noisy.astype(dtype), labels) <= 3 * (1 + 1e-9)


def test_hscore_does_not_change_by_an_invertible_map() -> None:
    features, labels = _task(40, 6, 3)
    mixed = features @ np.random.default_rng(3).normal(size=(6, 6)) + 7
    np.testing.assert_allclose(hscore(mixed, labels), hscore(features, labels), rtol=1e-9)


@pytest.mark.parametrize(("examples", "units"), [(40, 6), (20, 50)])
def test_the_shrunk_hscore_has_the_covariance_of_ledoit_and_wolf(examples: int, units: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    features, labels = _task(examples, units, 4)
    fit = covariance.LedoitWolf().fit(features)
    between = np.cov(_means(features, labels).T, bias=True)
    expected = (1 - fit.shrinkage_) * np.trace(np.linalg.solve(fit.covariance_, between))
    np.testing.assert_allclose(hscore_shrunk(features, labels), expected, rtol=1e-9)


def _rate(features: np.ndarray) -> float:
    count, units = features.shape
    return np.linalg.slogdet(np.eye(units) + features.T @ features / (count * 1e-4))[1] / 2


@pytest.mark.parametrize(("examples", "units"), [(40, 6), (20, 50)])
def test_transrate_is_the_difference_of_coding_rates(examples: int, units: int) -> None:
    features, labels = _task(examples, units, 3)
    centred = features - features.mean(0)
    centred /= np.sqrt(np.square(centred).mean())
    expected = _rate(centred) - np.mean([_rate(centred[labels == label]) for label in range(3)])
    np.testing.assert_allclose(transrate(features, labels), expected, rtol=1e-9)
    np.testing.assert_allclose(transrate(100 * features, labels), expected, rtol=1e-9)


def test_identical_features_have_a_transrate_of_zero() -> None:
    assert transrate(np.full((8, 3), 0.7), np.arange(8) % 2) == 0


def _overlap(mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other: np.ndarray) -> float:
    """The Bhattacharyya coefficient of two Gaussians with any covariance."""
    pooled = (covariance + other) / 2
    difference = mean - other_mean
    log_ratio = np.linalg.slogdet(pooled)[1] - (np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(other)[1]) / 2
    return np.exp(-difference @ np.linalg.solve(pooled, difference) / 8 - log_ratio / 2)


@pytest.mark.parametrize("units", [5, 80])
def test_gbc_sums_the_coefficients_of_spherical_gaussians(units: int) -> None:
    """Determinants of the whole covariances: the logarithm has the number of axes as a factor."""
    features, labels = _task(120, units, 3)
    features *= np.array([0.3, 1, 2])[labels, None]
    centred = features - features.mean(0)
    reduced = centred @ np.linalg.svd(centred, full_matrices=False)[2][:64].T
    identity = np.eye(reduced.shape[1])
    means = [reduced[labels == label].mean(0) for label in range(3)]
    covariances = [max(reduced[labels == label].var(0).mean(), 1e-4) * identity for label in range(3)]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = -sum(_overlap(means[i], covariances[i], means[j], covariances[j]) for i, j in pairs)
    np.testing.assert_allclose(gbc(features, labels), expected, rtol=1e-8)


def test_gbc_has_the_number_of_axes_as_factor_of_the_logarithm() -> None:
    """Two classes around one point: exp(-B) = (v / sqrt(v1 v2))^(-k/2), for k axes; released code has k = 1."""
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    features, labels = np.concatenate([axes, 3 * axes]), np.repeat([0, 1], 8)
    np.testing.assert_allclose(gbc(features, labels), -2 * ((1 + 9) / 2 / 3) ** -2.0)
