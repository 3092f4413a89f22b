"""Random projections: right on average, with the error they say they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.points.sketch import Projection
from support.helpers import quick_jit
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

    products = np.asarray(product(jax.random.split(jax.random.key(1), draws)), np.float64)
    a, b = pair.astype(np.float64)
    variance = Projection.of(pixels, size, jax.random.key(0)).variance * (
        (a @ a) * (b @ b) + (a @ b) ** 2 - 2 * (a**2 @ b**2)
    )
    assert abs(products.mean() - a @ b) < 4 * np.sqrt(variance / draws) + 1e-6
    np.testing.assert_allclose(products.var(), variance, rtol=0.1)


@pytest.mark.parametrize(("pixels", "size"), [(1, 1), (7, 3), (33, 32), (40, 8)])
def test_every_pixel_is_in_one_bucket(pixels, size):
    projection = Projection.of(pixels, size, jax.random.key(0))
    sketches = quick_jit(projection)(np.eye(pixels, dtype=np.float32), np.zeros(pixels, np.int32))
    assert sketches.shape == (pixels, size)
    np.testing.assert_array_equal(np.abs(sketches).sum(1), 1)
    in_bucket = np.abs(sketches).sum(0)
    assert in_bucket.max() <= -(-pixels // size)


def test_images_have_signs_of_their_own():
    """Errors of images must be independent for them to average out."""
    projection = Projection.of(400, 20, jax.random.key(0))
    pair = _pair(400, 0.5)
    sketches = np.asarray(quick_jit(projection)(np.tile(pair, (50, 1)), np.repeat(np.arange(50, dtype=np.int32), 2)))
    errors = np.einsum("np,np->n", sketches[::2], sketches[1::2]) - 0.5
    assert len(np.unique(errors)) == 50
    repeated = quick_jit(projection)(np.repeat(pair[:1], 3, 0), np.array([4, 5, 4], np.int32))
    np.testing.assert_array_equal(repeated[0], repeated[2])
    assert (repeated[0] != repeated[1]).any()


IMAGES = RNG.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
NETWORKS = [network(seed) for seed in (0, 1, 3, 4, 6, 7, 9, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["cosine", "correlation"])
def test_affinities_are_within_the_error_they_state(similarity):
    exact = jt.affinity_matrix(NETWORKS, IMAGES, similarity=similarity)
    sketched = jt.affinity_matrix(NETWORKS, IMAGES, similarity=similarity, sketch=64)
    for method in jt.METHODS:
        stated = sketched.sketch_stderr(method)
        assert stated is not None
        pairs = np.triu_indices(len(NETWORKS), 1)
        errors = (sketched[method] - exact[method])[pairs] / stated[pairs]
        assert np.abs(errors).max() < 3.5  # 28 pairs: beyond 3 once in fourteen such tests
        assert 0.4 < errors.std() < 1.6  # pairs share their signs, so that this says little
        np.testing.assert_array_equal(np.diag(sketched[method]), 1)
        np.testing.assert_array_equal(np.diag(stated), 0)
        # The error over images has that of the sketches in it.
        assert np.square(sketched.stderr(method)[pairs]).mean() > np.square(stated[pairs]).mean()
    assert exact.sketch_stderr("saliency") is None


@pytest.mark.slow
def test_larger_sketches_err_less():
    """As one over the square root of their size."""
    sizes = (8, 32, 128)
    affinities = [jt.affinity_matrix(NETWORKS, IMAGES, methods=["saliency"], sketch=size) for size in sizes]
    off = ~np.eye(len(NETWORKS), dtype=bool)
    stated = [np.asarray(affinity.sketch_stderr("saliency"))[off].mean() for affinity in affinities]
    np.testing.assert_allclose(stated, stated[0] * np.sqrt(sizes[0] / np.array(sizes)), rtol=0.35)


def test_a_sketched_run_says_so(tmp_path):
    sketched = jt.affinity_matrix(NETWORKS[:3], IMAGES, methods=["saliency"], sketch=16)
    sketched.save(tmp_path)
    again = jt.Affinity.load(tmp_path)
    np.testing.assert_array_equal(again.sketch_stderr("saliency"), sketched.sketch_stderr("saliency"))


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "at least 1 number, not 0"), (256, "fewer numbers than a map has pixels, 256, not 256")],
)
def test_sizes_that_make_no_sense(size, message):
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.affinity_matrix(NETWORKS[:2], IMAGES, sketch=size)
