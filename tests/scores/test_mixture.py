"""N-LEEP against a mixture fitted by scikit-learn from the same start."""

import numpy as np
import pytest

from jaxtransfer.scores import leep, nleep
from jaxtransfer.scores.mixture import _clusters

_RANDOM = np.random.default_rng(0)
_LABELS = np.arange(400) % 2
_FEATURES = _RANDOM.normal(size=(400, 9)) * np.linspace(2, 0.3, 9) + 0.5 * _RANDOM.normal(size=(2, 9))[_LABELS]


def test_it_is_leep_of_the_posteriors_of_a_mixture() -> None:
    mixture = pytest.importorskip("sklearn.mixture")
    decomposition = pytest.importorskip("sklearn.decomposition")
    points = decomposition.PCA(0.8, svd_solver="full").fit_transform(_FEATURES)
    points /= np.sqrt(points.var(0).mean())
    start = np.eye(10)[_clusters(points, 10)]
    counts = start.sum(0)
    means = start.T @ points / counts[:, None]
    variances = np.maximum(start.T @ np.square(points) / counts[:, None] - np.square(means), 1e-3)
    fit = mixture.GaussianMixture(
        10,
        covariance_type="diag",
        reg_covar=0,
        tol=1e-9,
        max_iter=2000,
        weights_init=counts / 400,
        means_init=means,
        precisions_init=1 / variances,
    ).fit(points)
    assert fit.covariances_.min() > 1e-3  # the least variance, which scikit-learn lacks, is not reached
    np.testing.assert_allclose(nleep(_FEATURES, _LABELS), leep(fit.predict_proba(points), _LABELS), rtol=2e-3)


def test_it_does_not_depend_on_the_order_in_which_it_is_asked() -> None:
    first = nleep(_FEATURES, _LABELS)
    nleep(_FEATURES[::-1], _LABELS[::-1])
    assert nleep(_FEATURES, _LABELS) == first


def test_clusters_are_where_points_are() -> None:
    centres = 100 * _RANDOM.normal(size=(6, 4))
    points = centres[np.arange(60) % 6] + _RANDOM.normal(size=(60, 4))
    clusters = _clusters(points, 6)
    assert len(set(clusters.tolist())) == 6
    assert all(len(set(clusters[kind::6].tolist())) == 1 for kind in range(6))


def test_identical_features_say_nothing() -> None:
    np.testing.assert_allclose(nleep(np.ones((12, 4)), np.arange(12) % 3), -np.log(3))
