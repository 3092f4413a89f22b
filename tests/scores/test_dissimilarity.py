"""PARC against SciPy's and NumPy's correlations."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jaxtransfer.scores import parc
from jaxtransfer.scores.dissimilarity import _drawn
from jaxtransfer.scores.spectra import Examples


def _task(examples: int, units: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(examples) % classes)
    features = random.normal(size=(examples, units)) * np.linspace(0.2, 2, units)
    return features + random.normal(size=(classes, units))[labels], labels


@pytest.mark.parametrize(("examples", "units", "classes"), [(40, 6, 3), (50, 60, 4), (30, 50, 2)])
def test_it_is_the_rank_correlation_of_dissimilarities(examples: int, units: int, classes: int) -> None:
    features, labels = _task(examples, units, classes)
    centred = features - features.mean(0)
    points = centred @ np.linalg.svd(centred, full_matrices=False)[2][: min(32, examples // 2)].T
    points /= points.std(0)
    pairs = np.triu_indices(examples, 1)
    lengths = np.sqrt(np.square(points).sum(1))
    of_features = (1 - points @ points.T / lengths / lengths[:, None])[pairs]
    of_labels = np.subtract(1, np.corrcoef(np.eye(classes)[labels]))[pairs].round(9)
    ranks = [scipy.stats.rankdata(values) for values in (of_features, of_labels)]
    expected = 100 * np.corrcoef(*ranks)[0, 1]
    np.testing.assert_allclose(parc(features, labels), expected, rtol=1e-9)


def test_the_cosine_is_the_correlation_whatever_the_signs_of_the_axes() -> None:
    """Pearson's correlation changes with the signs that a program gives to principal axes."""
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    signs = np.array(list(itertools.product([-1, 1], repeat=5)))
    covariances = [np.mean((s * first - (s * first).mean()) * (s * second - (s * second).mean())) for s in signs]
    assert np.std(covariances) > 0.01
    np.testing.assert_allclose(np.mean(covariances), (1 - 1 / 5) * np.mean(first * second))


def test_the_same_500_examples_are_drawn_each_class_by_its_share() -> None:
    features, _ = _task(1001, 4, 2)
    labels = np.repeat([0, 1, 2], [500, 300, 201])
    drawn = _drawn(Examples.of(features, labels))
    assert drawn.sum() == 500
    np.testing.assert_allclose(np.bincount(labels[drawn]), np.bincount(labels) * 500 / 1001, atol=1)
    assert (drawn == _drawn(Examples.of(features[:, ::-1], labels))).all()


def test_a_part_has_the_examples_that_were_drawn_for_the_whole() -> None:
    features, labels = _task(700, 4, 3)
    whole = Examples.of(features, labels)
    part = whole.without(np.arange(700) < 70)
    assert (part.shared(_drawn) == whole.shared(_drawn)[70:]).all()


def test_features_that_do_not_vary_say_nothing() -> None:
    labels = np.arange(8) % 2
    assert parc(np.ones((8, 3)), labels) == 0
