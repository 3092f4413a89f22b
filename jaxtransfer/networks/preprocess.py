"""Maps probe images to the input of a network, and the network's maps back to the probe images."""

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtransfer.defaults import MAX_SIDE
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.pixels import centred_crop, srgb_to_linear

# Weights of linear sRGB (D65) in the Y of CIE XYZ, and the constants of CIE lightness.
_LUMINANCE = (0.212671, 0.715160, 0.072169)
_CIE_EPSILON, _CIE_KAPPA = 216 / 24389, 24389 / 27

_INTERPOLATIONS = {"linear": "linear", "cubic": "cubic", "lanczos": "lanczos3"}  # and their names in JAX
_ADDED = {"resize": None, "interpolation": "linear"}

PreprocessFn = Callable[[Float[Array, "images height width 3"]], Float[Array, "images h w channels"]]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Crops, resizes, clips and scales images; a pure, hashable function that a zoo can store.

    The largest centred rectangle with the aspect ratio of `size` is cropped, resized with anti-aliasing,
    clipped, reduced to lightness if asked for, and scaled to `(value - mean) / std`.

    Attributes:
        size: Height and width of the network's input in pixels.
        mean: Number that is subtracted from values in [0, 1], or one number per channel.
        std: Number that divides the differences, or one number per channel.
        clip: Range to which values in [0, 1] are limited before they are scaled. Taskonomy's "low
            saturation" tasks use (0.1, 0.9) (`resize_rescale_image_low_sat` in its task bank).
        lightness: Whether only CIE L* is kept, as one channel in [0, 1] (`to_light` in Taskonomy's task bank).
        mask_centre: Whether the centred rectangle of half the height and width is set to zero after scaling
            (`context_encoder_input` in Taskonomy's task bank).
        resize: Height and width in pixels to which the rectangle is resized, before the centre of `size` is cut out
            of it, as torchvision and timm do; None: `size`.
        interpolation: "linear", "cubic" (Keys, a = -0.5) or "lanczos" (with three lobes). Those two leave the range of
            the images, so values are limited to [0, 1] after each axis, as Pillow does.

    Raises:
        JaxTransferError: An attribute has another type or number of values, `size` is not from 1 to 8192, `resize` is
            smaller than `size`, a number is not finite, `std` is 0, or there is no such interpolation.

    Examples:
        >>> preprocess = jt.Preprocess((224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> preprocess(jnp.zeros((2, 256, 320, 3))).shape
        (2, 224, 224, 3)
    """

    size: tuple[int, int]
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    clip: tuple[float, float] | None = None
    lightness: bool = False
    mask_centre: bool = False
    resize: tuple[int, int] | None = None
    interpolation: str = "linear"

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("resize", self.resize or self.size)):
            if not (_is_tuple(value, (2,)) and all(map(_is_side, value))):
                raise JaxTransferError(f"{name} must be height and width, from 1 to {MAX_SIDE} pixels, not {value!r}.")
        if any(map(operator.lt, self._resized, self.size)):
            raise JaxTransferError(f"resize must not be smaller than size {self.size!r}, but is {self.resize!r}.")
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, _INTERPOLATIONS)
        for name, value in (("mean", self.mean), ("std", self.std)):
            numbers: Any = value if _is_tuple(value, (1, 3)) else (value,)
            if not all(map(_is_finite, numbers)):
                raise JaxTransferError(f"{name} must be a finite number, or three for the colours, not {value!r}.")
        if not np.all(np.asarray(self.std)):
            raise JaxTransferError(f"std must not be 0, since images are divided by it, but is {self.std!r}.")
        if self.clip is not None and not (_is_tuple(self.clip, (2,)) and all(map(_is_finite, self.clip))):
            raise JaxTransferError(f"clip must be two finite numbers or None, not {self.clip!r}.")
        for name, value in (("lightness", self.lightness), ("mask_centre", self.mask_centre)):
            if not isinstance(value, bool | np.bool):
                raise JaxTransferError(f"{name} must be True or False, not {value!r}.")

    def __call__(
        self, images: Float[Array, "images height width 3"]
    ) -> Float[Array, "images {self.size[0]} {self.size[1]} channels"]:
        """Maps probe images with values in [0, 1] to the network's input."""
        chex.assert_rank(images, 4)
        top, left, height, width = centred_crop(images.shape[1], images.shape[2], self.size)
        images = images[:, top : top + height, left : left + width]
        if self.interpolation == "linear":
            images = _resize(images, self._resized)
        else:
            images = _resize_clipped(images, self._resized, _INTERPOLATIONS[self.interpolation])
        (top, _), (left, _) = self._margins
        images = images[:, top : top + self.size[0], left : left + self.size[1]]
        if self.clip is not None:
            images = jnp.clip(images, *self.clip)
        if self.lightness:
            images = _lightness(images)[..., None]
        mean, std = (jnp.asarray(value, images.dtype).reshape(1, 1, 1, -1) for value in (self.mean, self.std))
        images = (images - mean) / std
        if self.mask_centre:
            h, w = self.size
            images = images.at[:, h // 4 : 3 * h // 4, w // 4 : 3 * w // 4].set(0)
        return images

    def restore(self, maps: Float[Array, "images h w"], shape: tuple[int, int]) -> Float[Array, "images height width"]:
        """Resizes maps of the network's input to its crop of probe images of `shape`; zero outside the crop."""
        chex.assert_rank(maps, 3)
        top, left, height, width = centred_crop(*shape, self.size)
        maps = _resize(jnp.pad(maps, ((0, 0), *self._margins)), (height, width))
        bottom, right = shape[0] - top - height, shape[1] - left - width
        return jnp.pad(maps, ((0, 0), (top, bottom), (left, right)))

    @property
    def _resized(self) -> tuple[int, int]:
        return self.resize or self.size

    @property
    def _margins(self) -> list[tuple[int, int]]:
        """What is cut off before and after each axis of a resized image, half pixels as in torchvision."""
        differences = map(operator.sub, self._resized, self.size)
        return [(round(difference / 2), difference - round(difference / 2)) for difference in differences]

    def fields(self) -> dict[str, Any]:
        """Returns the attributes by name; those that younger versions added only where they differ from the default.

        So manifests and the keys of points stay the same.
        """
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in _ADDED or value != _ADDED[name]}

    def __repr__(self) -> str:
        return f"Preprocess({', '.join(f'{name}={value!r}' for name, value in self.fields().items())})"


def _is_tuple(value: Any, lengths: tuple[int, ...]) -> bool:
    return isinstance(value, tuple) and len(value) in lengths


def _is_side(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 1 <= operator.index(value) <= MAX_SIDE
    except TypeError:
        return False


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def restore_maps(
    preprocess: PreprocessFn | None, maps: Float[Array, "images h w"], shape: tuple[int, int]
) -> Float[Array, "images height width"]:
    """Maps the maps of a network's input back to the probe images.

    Args:
        preprocess: The network's preprocessing. A `Preprocess` knows its crop; any other function is assumed to have
            resized the images as a whole.
        maps: Maps of the network's input.
        shape: Height and width of the probe images in pixels.
    """
    if isinstance(preprocess, Preprocess):
        return preprocess.restore(maps, shape)
    return _resize(maps, shape)


def _resize(images: Float[Array, "images ..."], size: tuple[int, int]) -> Float[Array, "images ..."]:
    if images.shape[1:3] == tuple(size):
        return images
    return jax.image.resize(images, (images.shape[0], *size, *images.shape[3:]), "linear")


def _resize_clipped(
    images: Float[Array, "images h w 3"], size: tuple[int, int], method: str
) -> Float[Array, "images {size[0]} {size[1]} 3"]:
    """Resizes width and then height, and limits values to [0, 1] after each, as Pillow's 8 bits do."""
    for axis in (2, 1):
        shape = (*images.shape[:axis], size[axis - 1], *images.shape[axis + 1 :])
        if shape != images.shape:
            images = jnp.clip(jax.image.resize(images, shape, method), 0, 1)
    return images


def _lightness(images: Float[Array, "images h w 3"]) -> Float[Array, "images h w"]:
    """Computes the CIE 1976 lightness L* of sRGB images, divided by 100."""
    y = jnp.einsum("nhwc,c->nhw", srgb_to_linear(images), jnp.asarray(_LUMINANCE, images.dtype), precision="highest")
    lightness = jnp.where(y > _CIE_EPSILON, 116 * jnp.cbrt(y) - 16, _CIE_KAPPA * y)
    return lightness / 100
