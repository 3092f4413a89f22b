"""Crops images and dense labels to their centred square, and resizes the square."""

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from jaxtransfer.pixels import centred_crop

# Most pixel values that are resized in one step.
_VALUES_PER_STEP = 1 << 24
_KNOWN_PART = 0.5


def resize_images(images: Shaped[np.ndarray, "n h w c"], size: int) -> Shaped[np.ndarray, "n size size c"]:
    """Resizes the centred square of every image bilinearly with anti-aliasing."""
    images = _squares(images)
    side = images.shape[1]
    if side == size:
        return np.ascontiguousarray(images)
    resized = np.empty((len(images), size, size, images.shape[-1]), images.dtype)
    step = max(_VALUES_PER_STEP // (side * side * images.shape[-1]), 1)
    for start in range(0, len(images), step):
        batch = images[start : start + step].astype(np.float32)
        new = np.asarray(jax.image.resize(batch, (len(batch), size, size, batch.shape[-1]), "linear"))
        resized[start : start + step] = np.rint(np.clip(new, 0, 255)) if images.dtype == np.uint8 else new
    return resized


def resize_numbers(labels: Float[np.ndarray, "n h w k"], size: int) -> Float[np.ndarray, "n size size k"]:
    """Resizes dense numbers as images; NaN takes no part, and stays where half of a new pixel or more is NaN."""
    unknown = np.isnan(labels)
    if not unknown.any():
        return resize_images(labels, size)
    known = resize_images((~unknown).astype(np.float32), size)
    numbers = resize_images(np.where(unknown, np.float32(0), labels), size)
    return np.where(known > _KNOWN_PART, numbers / np.maximum(known, _KNOWN_PART), np.float32(np.nan))


def resize_classes(labels: Int[np.ndarray, "n h w"], size: int) -> Int[np.ndarray, "n size size"]:
    """Gives each pixel of the resized square the class of the nearest pixel; missing ones, below 0, become -1."""
    labels = _squares(labels)
    nearest = (2 * np.arange(size) + 1) * labels.shape[1] // (2 * size)
    return np.maximum(labels[:, nearest[:, None], nearest], -1).astype(np.int32)


def _squares(images: Shaped[np.ndarray, "n h w ..."]) -> Shaped[np.ndarray, "n side side ..."]:
    top, left, side, _ = centred_crop(images.shape[1], images.shape[2], (1, 1))
    return images[:, top : top + side, left : left + side]
