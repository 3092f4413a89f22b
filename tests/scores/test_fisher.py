"""SFDA against its two discriminant analyses, written out with inverse matrices."""

import numpy as np
import pytest
import scipy.special

from jaxtransfer.scores import sfda


def _task(examples: int, units: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(examples) % 3)
    features = random.normal(size=(examples, units)) + 0.8 * random.normal(size=(3, units))[labels] + 2
    return scale * features, labels


def _log_posteriors(features: np.ndarray, labels: np.ndarray, shrinkage: float = np.nan) -> tuple[np.ndarray, float]:
    classes, units = range(labels.max() + 1), features.shape[1]
    shares = [(labels == c).mean() for c in classes]
    within = sum(share * np.cov(features[labels == c].T, bias=True) for c, share in zip(classes, shares, strict=True))
    if np.isnan(shrinkage):
        shrinkage = max(np.exp(-5 * np.linalg.eigvalsh(within)[-1]), 1e-10)
    inverse = np.linalg.inv((1 - shrinkage) * within + shrinkage * np.trace(within) / units * np.eye(units))
    means = [features[labels == c].mean(0) for c in classes]
    logits = [features @ inverse @ m - m @ inverse @ m / 2 + np.log(q) for m, q in zip(means, shares, strict=True)]
    return scipy.special.log_softmax(np.transpose(logits), axis=1), shrinkage


@pytest.mark.parametrize(("examples", "units", "scale"), [(60, 5, 0.3), (60, 5, 2), (40, 30, 0.5), (15, 20, 0.2)])
def test_it_is_the_likelihood_of_the_second_analysis(examples: int, units: int, scale: float) -> None:
    features, labels = _task(examples, units, scale)
    logs, shrinkage = _log_posteriors(features, labels)
    rows = np.arange(examples)
    confidence = scipy.special.softmax(np.exp(logs), axis=1)[rows, labels]
    means = np.array([features[labels == c].mean(0) for c in range(3)])
    others = np.array([np.delete(means, c, axis=0).mean(0) for c in range(3)])
    mixed = confidence[:, None] * features + (1 - confidence[:, None]) * others[labels]
    logs, _ = _log_posteriors(mixed, labels, shrinkage)
    np.testing.assert_allclose(sfda(features, labels), logs[rows, labels].mean(), rtol=1e-6)


def test_the_callers_features_stay_as_they_are() -> None:
    """The released code mixes the classes into the array that it is given."""
    features, labels = _task(30, 6, 1)
    before = features.copy()
    assert sfda(features, labels) == sfda(features, labels)
    assert (features == before).all()


def test_the_scale_of_features_matters_through_the_shrinkage() -> None:
    features, labels = _task(40, 6, 0.3)
    assert abs(sfda(3 * features, labels) - sfda(features, labels)) > 0.01


@pytest.mark.parametrize("scale", [1e-3, 1, 1e4])
def test_it_is_finite_where_classes_are_points_or_units_are_many(scale: float) -> None:
    labels = np.arange(12) % 3
    points = scale * np.random.default_rng(0).normal(size=(3, 40))
    for features in (points[labels], _task(12, 40, scale)[0], np.zeros((12, 4))):
        assert -np.log(3) - 1e-9 <= sfda(features, labels) <= 0
