"""Preprocessing of probe images, and mapping their maps back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.networks.preprocess import restore_maps
from jaxtransfer.taskonomy.tasks import TASKS

SHAPES = [(8, 8), (12, 8), (8, 13), (31, 17)]


def probe(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), shape)


def test_lightness_is_that_of_skimage() -> None:
    color = pytest.importorskip("skimage.color")
    # Dark values lie on the straight part of both sRGB and CIE lightness.
    images = probe(2, 16, 16, 3) ** jnp.linspace(1.0, 6.0, 16)[None, :, None, None]
    ours = jt.Preprocess((16, 16), lightness=True)(images)
    assert ours.shape == (2, 16, 16, 1)
    theirs = color.rgb2lab(np.asarray(images, np.float64))[..., :1] / 100
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert theirs.min() < 0.05


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_lightness_of_black_and_white(grey: float) -> None:
    np.testing.assert_allclose(TASKS["colorization"].preprocess(jnp.full((1, 9, 9, 3), grey)), 2 * grey - 1, atol=1e-5)


def test_crops_the_centre() -> None:
    images = probe(1, 4, 10, 3)
    np.testing.assert_array_equal(jt.Preprocess((4, 4))(images), images[:, :, 3:7])
    np.testing.assert_array_equal(jt.Preprocess((4, 4))(images.swapaxes(1, 2)), images.swapaxes(1, 2)[:, 3:7])


def test_crop_has_the_aspect_ratio_of_the_network() -> None:
    images = jnp.zeros((1, 40, 40, 3)).at[:, 10:30].set(1)
    np.testing.assert_allclose(jt.Preprocess((10, 20))(images), 1, rtol=1e-6)


def test_scales_each_channel() -> None:
    images = probe(1, 4, 4, 3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wanted = (np.asarray(images) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    np.testing.assert_allclose(jt.Preprocess((4, 4), mean, std)(images), wanted, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_maps_come_back_to_where_they_were(shape: tuple[int, int]) -> None:
    """Without resizing, restoring undoes the crop: the same values at the same place, zeros around."""
    side = min(shape)
    preprocess = jt.Preprocess((side, side))
    images = 0.5 + 0.5 * probe(2, *shape, 3)
    back = preprocess.restore(preprocess(images)[..., 0], shape)
    assert back.shape == (2, *shape)
    kept = back != 0
    assert kept.sum() == 2 * side * side
    np.testing.assert_array_equal(jnp.where(kept, back, 0), jnp.where(kept, images[..., 0], 0))
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    assert kept[:, top : top + side, left : left + side].all()


@pytest.mark.parametrize("shape", SHAPES)
def test_constant_maps_stay_constant(shape: tuple[int, int]) -> None:
    back = jt.Preprocess((16, 16)).restore(jnp.full((1, 16, 16), 3.0), shape)
    side = min(shape)
    assert (jnp.abs(back - 3) < 1e-5).sum() == side * side
    assert (back == 0).sum() == shape[0] * shape[1] - side * side


def test_a_spot_comes_back_to_its_place() -> None:
    y, x = jnp.meshgrid(jnp.arange(60.0), jnp.arange(100.0), indexing="ij")
    spot = jnp.exp(-((y - 20) ** 2 + (x - 65) ** 2) / 50)
    preprocess = jt.Preprocess((32, 32))
    back = preprocess.restore(preprocess(jnp.broadcast_to(spot[None, ..., None], (1, 60, 100, 3)))[..., 0], (60, 100))
    assert jnp.vdot(back[0], spot) > 0.99 * jnp.linalg.norm(back) * jnp.linalg.norm(spot)


def test_maps_of_other_preprocessings_are_resized() -> None:
    assert restore_maps(None, jnp.ones((2, 4, 4)), (6, 9)).shape == (2, 6, 9)
    np.testing.assert_array_equal(restore_maps(lambda images: images, jnp.ones((2, 4, 4)), (6, 9)), 1)
    assert (restore_maps(jt.Preprocess((4, 4)), jnp.ones((2, 4, 4)), (4, 8)) == 0).sum() == 2 * 16


def test_low_saturation_clips_before_it_scales() -> None:
    images = jnp.linspace(0, 1, 256 * 256 * 3).reshape(1, 256, 256, 3)
    ours = TASKS["denoise"].preprocess(images)
    np.testing.assert_allclose([ours.min(), ours.max()], [-0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(ours, 2 * np.clip(np.asarray(images), 0.1, 0.9) - 1, atol=1e-6)
    assert TASKS["class_1000"].preprocess(images).min() == -1


def test_masks_the_centre() -> None:
    ours = TASKS["inpainting_whole"].preprocess(jnp.ones((1, 300, 400, 3)))
    assert ours.shape == (1, 256, 256, 3)
    np.testing.assert_array_equal(ours[:, 64:192, 64:192], 0)
    assert (ours == 0).sum() == 128 * 128 * 3


@pytest.mark.parametrize("preprocess", sorted({task.preprocess for task in TASKS.values()}, key=repr))
def test_every_preprocessing_of_taskonomy(preprocess: jt.Preprocess) -> None:
    images = probe(2, 40, 30, 3)
    ours = jax.jit(preprocess)(images)
    assert ours.shape == (2, 256, 256, 1 if preprocess.lightness else 3)
    assert ours.dtype == jnp.float32
    assert jnp.abs(ours).max() <= 1
    np.testing.assert_allclose(ours, preprocess(images), atol=1e-5)


def test_equal_preprocessings_are_one_key() -> None:
    one, other = jt.Preprocess((8, 8), (0.1, 0.2, 0.3)), jt.Preprocess((8, 8), (0.1, 0.2, 0.3))
    assert one == other
    assert len({one: 1, other: 2, dataclasses.replace(one, clip=(0.1, 0.9)): 3}) == 2
