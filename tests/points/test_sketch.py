"""Random projections: right on average, with the error they say they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.points.sketch import Projection
from support.tiny_networks import network

RNG = np.random.default_rng(0)


def _pair(pixels: int, cosine: float) -> np.ndarray:
    """Two vectors of length 1 with that cosine: [2, pixels]."""
    a, b = np.linalg.qr(RNG.normal(size=(pixels, 2)))[0].T
    return np.stack([a, cosine * a + np.sqrt(1 - cosine**2) * b]).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "size"), [(60, 7), (64, 16), (50, 49), (40, 1)])
@pytest.mark.parametrize("cosine", [0.0, 0.6, -0.9, 1.0])
def test_products_are_right_on_average_and_vary_as_stated(pixels, size, cosine):
    """Over projections: the mean is the cosine, the variance v (1 + cosine^2 - 2 sum a^2 b^2) with v as stated."""
    pair, draws = _pair(pixels, cosine), 20_000

    @jax.jit
    @jax.vmap
    def product(key: jax.Array) -> jax.Array:
        a, b = Projection.of(pixels, size, key)(jnp.asarray(pair), jnp.zeros(2, int))
        return a @ b

    found = np.asarray(product(jax.random.split(jax.random.key(1), draws)), np.float64)
    a, b = pair.astype(np.float64)
    variance = Projection.of(pixels, size, jax.random.key(0)).variance * (
        (a @ a) * (b @ b) + (a @ b) ** 2 - 2 * (a**2 @ b**2)
    )
    assert abs(found.mean() - a @ b) < 4 * np.sqrt(variance / draws) + 1e-6
    np.testing.assert_allclose(found.var(), variance, rtol=0.1)


@pytest.mark.parametrize(("pixels", "size"), [(1, 1), (7, 3), (33, 32), (40, 8)])
def test_every_pixel_is_dealt_once(pixels, size):
    projection = Projection.of(pixels, size, jax.random.key(0))
    sketches = projection(jnp.eye(pixels), jnp.zeros(pixels, int))
    assert sketches.shape == (pixels, size)
    np.testing.assert_array_equal(np.abs(sketches).sum(1), 1)
    hands = np.abs(sketches).sum(0)
    assert hands.max() <= -(-pixels // size)


def test_images_have_signs_of_their_own():
    """Errors of images must be independent for them to average out."""
    projection = Projection.of(400, 20, jax.random.key(0))
    pair = jnp.asarray(_pair(400, 0.5))
    errors = np.array([float(a @ b) for a, b in (projection(pair, jnp.full(2, n)) for n in range(50))]) - 0.5
    assert len(np.unique(errors)) == 50
    together = projection(jnp.repeat(pair[:1], 3, 0), jnp.array([4, 5, 4]))
    np.testing.assert_array_equal(together[0], together[2])
    assert (together[0] != together[1]).any()


IMAGES = RNG.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
NETWORKS = [network(seed) for seed in (0, 1, 3, 4, 6, 7, 9, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["cosine", "correlation"])
def test_affinities_are_within_the_error_they_state(similarity):
    exact = jt.affinity_matrix(NETWORKS, IMAGES, similarity=similarity)
    found = jt.affinity_matrix(NETWORKS, IMAGES, similarity=similarity, sketch=64)
    for method in jt.METHODS:
        stated = found.sketch_stderr(method)
        assert stated is not None
        pairs = np.triu_indices(len(NETWORKS), 1)
        errors = (found[method] - exact[method])[pairs] / stated[pairs]
        assert np.abs(errors).max() < 3.5  # 28 pairs: beyond 3 once in fourteen such tests
        assert 0.4 < errors.std() < 1.6  # pairs share their signs, so that this says little
        np.testing.assert_array_equal(np.diag(found[method]), 1)
        np.testing.assert_array_equal(np.diag(stated), 0)
        # The error over images has that of the sketches in it.
        assert np.square(found.stderr(method)[pairs]).mean() > np.square(stated[pairs]).mean()
    assert exact.sketch_stderr("saliency") is None


@pytest.mark.slow
def test_larger_sketches_err_less():
    """As one over the square root of their size."""
    sizes = (8, 32, 128)
    found = [jt.affinity_matrix(NETWORKS, IMAGES, methods=["saliency"], sketch=size) for size in sizes]
    off = ~np.eye(len(NETWORKS), dtype=bool)
    stated = [np.asarray(each.sketch_stderr("saliency"))[off].mean() for each in found]
    np.testing.assert_allclose(stated, stated[0] * np.sqrt(sizes[0] / np.array(sizes)), rtol=0.35)


def test_a_sketched_run_says_so(tmp_path):
    found = jt.affinity_matrix(NETWORKS[:3], IMAGES, methods=["saliency"], sketch=16)
    found.save(tmp_path)
    again = jt.Affinity.load(tmp_path)
    np.testing.assert_array_equal(again.sketch_stderr("saliency"), found.sketch_stderr("saliency"))


@pytest.mark.parametrize("size", [0, 256])
def test_sizes_that_make_no_sense(size):
    with pytest.raises(jt.JaxTransferError, match=f"fewer than a map has pixels, 256, not {size}"):
        jt.affinity_matrix(NETWORKS[:2], IMAGES, sketch=size)
