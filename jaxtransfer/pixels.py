"""Arithmetic on pixels that several modules share: centred crops, and sRGB to linear light and back."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def centred_crop(height: int, width: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Finds the largest centred rectangle of an image with the aspect ratio of `shape`.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        shape: Height and width that set the aspect ratio; (1, 1) for a square.

    Returns:
        Top, left, height and width of the rectangle in pixels.

    Examples:
        >>> centred_crop(480, 640, (1, 1))
        (0, 80, 480, 480)
    """
    scale = min(height / shape[0], width / shape[1])
    crop_height = min(height, max(1, round(shape[0] * scale)))
    crop_width = min(width, max(1, round(shape[1] * scale)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def srgb_to_linear(values: Any) -> Any:
    """Converts sRGB values in [0, 1] to linear light in [0, 1] (IEC 61966-2-1); NumPy and JAX arrays keep their type.

    Examples:
        >>> srgb_to_linear(np.array([0.0, 0.5, 1.0])).round(3)
        array([0.   , 0.214, 1.   ])
    """
    xp = values.__array_namespace__()
    return xp.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Float[Array, "..."]) -> Float[Array, "..."]:
    """Converts linear light in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1).

    Examples:
        >>> linear_to_srgb(jnp.array([0.0, 0.214, 1.0])).round(2).tolist()
        [0.0, 0.5, 1.0]
    """
    # The maximum keeps the derivative finite at 0, where the other branch is used.
    return jnp.where(light <= 0.0031308, 12.92 * light, 1.055 * jnp.maximum(light, 1e-4) ** (1 / 2.4) - 0.055)
