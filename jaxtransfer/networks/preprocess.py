"""From probe images to what one network wants to see, and from its maps back to the probe."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# sRGB (D65) to the Y of CIE XYZ, and the constants of CIE lightness.
_LUMINANCE = (0.212671, 0.715160, 0.072169)
_CIE_EPSILON, _CIE_KAPPA = 216 / 24389, 24389 / 27

PreprocessFn = Callable[[Float[Array, "images height width 3"]], Float[Array, "images h w channels"]]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Centre crop, resize, clip and scale; pure, hashable, and written to a zoo's manifest as it stands.

    The largest centred rectangle of the aspect ratio of `size` is cut out, resized bilinearly with
    anti-aliasing, clipped, reduced to lightness if asked, and scaled to `(value - mean) / std`.

    Attributes:
        size: Height and width of the network's input, in pixels.
        mean: Subtracted from values in [0, 1]; one number, or one per channel.
        std: Divides afterwards; one number, or one per channel.
        clip: Range to which values in [0, 1] are limited before they are scaled. Taskonomy's "low
            saturation" tasks use (0.1, 0.9) (`resize_rescale_image_low_sat` in its task bank).
        lightness: Keep only CIE L*, as one channel in [0, 1] (`to_light` in Taskonomy's task bank).
        mask_centre: Zero the centred half-height, half-width rectangle of the scaled image
            (`context_encoder_input` in Taskonomy's task bank).
    """

    size: tuple[int, int]
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    clip: tuple[float, float] | None = None
    lightness: bool = False
    mask_centre: bool = False

    def __call__(
        self, images: Float[Array, "images height width 3"]
    ) -> Float[Array, "images {self.size[0]} {self.size[1]} channels"]:
        """Maps probe images with values in [0, 1] to the network's input."""
        top, left, height, width = self._crop(images.shape[1], images.shape[2])
        images = images[:, top : top + height, left : left + width]
        images = _resize(images, self.size)
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
        """Brings maps of the network's input back to probe images of `shape`, zero outside the crop."""
        top, left, height, width = self._crop(*shape)
        maps = _resize(maps, (height, width))
        bottom, right = shape[0] - top - height, shape[1] - left - width
        return jnp.pad(maps, ((0, 0), (top, bottom), (left, right)))

    def _crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the largest centred rectangle of the aspect ratio of `size`."""
        h, w = self.size
        scale = min(height / h, width / w)
        crop_h, crop_w = min(height, max(1, round(h * scale))), min(width, max(1, round(w * scale)))
        return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w


def restore_maps(
    preprocess: PreprocessFn | None, maps: Float[Array, "images h w"], shape: tuple[int, int]
) -> Float[Array, "images height width"]:
    """Brings maps of a network's input back to probe size, whatever preprocessing made that input.

    A preprocessing of our own knows what it cropped; of any other function it is assumed that it resized.
    """
    if isinstance(preprocess, Preprocess):
        return preprocess.restore(maps, shape)
    return _resize(maps, shape)


def _resize(images: Float[Array, "images ..."], size: tuple[int, int]) -> Float[Array, "images ..."]:
    if images.shape[1:3] == tuple(size):
        return images
    return jax.image.resize(images, (images.shape[0], *size, *images.shape[3:]), "linear")


def _lightness(images: Float[Array, "images h w 3"]) -> Float[Array, "images h w"]:
    """CIE 1976 lightness L* of sRGB images, divided by 100."""
    linear = jnp.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    y = jnp.einsum("nhwc,c->nhw", linear, jnp.asarray(_LUMINANCE, images.dtype), precision="highest")
    lightness = jnp.where(y > _CIE_EPSILON, 116 * jnp.cbrt(y) - 16, _CIE_KAPPA * y)
    return lightness / 100
