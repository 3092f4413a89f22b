"""Layers whose weight gradients are fast: convolution, batch normalisation in training mode, max-pooling.

On CPUs, XLA's gradient of a convolution's weights is slow, and in a loop hundreds of times slower than a matrix
product. So on CPUs a convolution is computed as matrix products, and on GPUs and TPUs by XLA. Images are NHWC.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtransfer.networks import pooling

_EPSILON = 1e-5
# With fewer pixels than this, the order of the factors does not matter, and one product and nine additions are faster
# than nine products (measured on two CPU cores with ResNet-18 and conv4).
_FEW_PIXELS = 8000


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    images: Float[Array, "n h w c"], kernel: Float[Array, "k k c out"], stride: int = 1, padding: int = 0
) -> Float[Array, "n h2 w2 out"]:
    """Computes a cross-correlation with zero padding, as PyTorch's `conv2d` without bias.

    Args:
        images: Input.
        kernel: Weights; height and width are equal.
        stride: Stride along rows and columns.
        padding: Rows and columns of zeros on every side.
    """
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(products, stride=stride, padding=padding),
        default=functools.partial(_library, stride=stride, padding=padding),
    )


def _convolution_forward(images: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return convolution(images, kernel, stride, padding), (images, kernel)


def _convolution_backward(
    stride: int, padding: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    return jax.lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_products_backward, stride=stride, padding=padding),
        default=functools.partial(_library_backward, stride=stride, padding=padding),
    )


convolution.defvjp(_convolution_forward, _convolution_backward)


def _library(images: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _library_backward(
    images: Array, kernel: Array, cotangent: Array, *, stride: int, padding: int
) -> tuple[Array, Array]:
    _, pull = jax.vjp(functools.partial(_library, stride=stride, padding=padding), images, kernel)
    return pull(cotangent)


def products(
    images: Float[Array, "n h w c"], kernel: Float[Array, "k k c out"], *, stride: int, padding: int
) -> Float[Array, "n h2 w2 out"]:
    """Computes the same as `convolution`, on all platforms as a matrix product of patches."""
    patches = _patches(images, kernel.shape[0], stride, padding)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _products_backward(
    images: Array, kernel: Array, cotangent: Array, *, stride: int, padding: int
) -> tuple[Array, Array]:
    size, _, channels, outputs = kernel.shape
    patches = _patches(images, size, stride, padding).reshape(-1, size * size * channels)
    pixels = cotangent.reshape(-1, outputs)
    over_pixels = (((0,), (0,)), ((), ()))
    many = len(pixels) >= _FEW_PIXELS
    # The wider matrix stands on the right, since XLA on CPUs would first transpose it on the left. The barrier keeps
    # that order.
    if many and patches.shape[1] > outputs:
        by_output = jax.lax.optimization_barrier(jax.lax.dot_general(pixels, patches, over_pixels))
        kernel_gradient = by_output.T
    else:
        kernel_gradient = jax.lax.dot_general(patches, pixels, over_pixels)

    if many and stride == 1 and size > max(1, padding):
        margin = size - 1 - padding
        padded = jnp.pad(cotangent, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        rotated = kernel[::-1, ::-1].swapaxes(2, 3)
        height, width = images.shape[1:3]
        shifted = [padded[:, i : i + height, j : j + width] @ rotated[i, j] for i in range(size) for j in range(size)]
        image_gradient = functools.reduce(jnp.add, shifted)
    else:
        as_patches = functools.partial(_patches, size=size, stride=stride, padding=padding)
        weights = kernel.reshape(-1, outputs)
        (image_gradient,) = jax.linear_transpose(as_patches, images)(cotangent @ weights.T)
    return image_gradient, kernel_gradient.reshape(kernel.shape)


def _patches(images: Array, size: int, stride: int, padding: int) -> Float[Array, "n h2 w2 kkc"]:
    n, height, width, channels = images.shape
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (stride * ((side + 2 * padding - size) // stride) + 1 for side in (height, width))
    shifted = [
        jax.lax.slice(images, (0, i, j, 0), (n, i + rows, j + columns, channels), (1, stride, stride, 1))
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


@jax.custom_vjp
def batch_norm(
    x: Float[Array, "n h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "n h w c"]:
    """Normalises by the batch's own mean and (biased) variance, without running statistics.

    Batch normalisation of Ioffe and Szegedy (ICML 2015), Algorithm 1, with 1e-5 added to the variance.
    """
    return _batch_norm_forward(x, scale, bias)[0]


def _batch_norm_forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    mean, inverse = _statistics(x)
    return (x - mean) * (inverse * _channels(scale)) + _channels(bias), (x, mean, inverse, scale)


def _batch_norm_backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = residuals
    scale_gradient, bias_gradient, factor, offset = _norm_gradients(
        x, mean, inverse, scale, cotangent, x.size // x.shape[-1]
    )
    return cotangent * (_channels(scale) * inverse) - x * factor + offset, scale_gradient, bias_gradient


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@jax.custom_vjp
def norm_max_pool(
    x: Float[Array, "n h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> Float[Array, "n h//2 w//2 c"]:
    """Computes `max_pool(batch_norm(x, scale, bias))` in half the passes over memory.

    Normalisation is monotone in every channel, so pooling can come first: it takes the largest value where the scale is
    positive, and the smallest where it is negative.
    """
    return _norm_max_pool_forward(x, scale, bias)[0]


def _norm_max_pool_forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    mean, inverse = _statistics(x)
    sign = jnp.where(_channels(scale) < 0, -1, 1).astype(x.dtype)
    extreme = functools.reduce(jnp.maximum, [sign * corner for corner in _corners(x)]) * sign
    pooled = (extreme - mean) * (inverse * _channels(scale)) + _channels(bias)
    return pooled, (x, extreme, mean, inverse, scale)


def _norm_max_pool_backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    x, extreme, mean, inverse, scale = residuals
    scale_gradient, bias_gradient, factor, offset = _norm_gradients(
        extreme, mean, inverse, scale, cotangent, x.size // x.shape[-1]
    )
    through = _to_first(x, extreme, cotangent * (_channels(scale) * inverse))
    return through - x * factor + offset, scale_gradient, bias_gradient


norm_max_pool.defvjp(_norm_max_pool_forward, _norm_max_pool_backward)


def _statistics(x: Array) -> tuple[Float[Array, "1 1 1 c"], Float[Array, "1 1 1 c"]]:
    """Returns the mean and 1/sqrt(variance + epsilon) of every channel."""
    mean = x.mean((0, 1, 2), keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean((0, 1, 2), keepdims=True) + _EPSILON)


def _norm_gradients(
    x: Array, mean: Array, inverse: Array, scale: Array, cotangent: Array, count: int
) -> tuple[Array, Array, Array, Array]:
    """Returns the gradients of scale and bias, and factor and offset: statistics add `- x * factor + offset` to x's."""
    bias_gradient = cotangent.sum((0, 1, 2))
    scale_gradient = inverse.reshape(-1) * ((cotangent * (x - mean)).sum((0, 1, 2)))
    weight = _channels(scale) * inverse
    factor = weight * inverse * _channels(scale_gradient) / count
    return scale_gradient, bias_gradient, factor, factor * mean - weight * _channels(bias_gradient) / count


def _channels(values: Float[Array, " c"]) -> Float[Array, "1 1 1 c"]:
    return values.reshape(1, 1, 1, -1)


@jax.custom_vjp
def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Takes the maximum of every 2x2 pixels, without an odd last row or column; the first maximum gets the gradient."""
    return functools.reduce(jnp.maximum, _corners(x))


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = max_pool(x)
    return largest, (x, largest)


def _max_pool_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    return (_to_first(*residuals, cotangent),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _corners(x: Array) -> list[Array]:
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:height:2, j:width:2] for i in range(2) for j in range(2)]


def _to_first(x: Array, chosen: Array, values: Array) -> Array:
    """Puts `values` where the first of every 2x2 pixels equals `chosen`, and 0 elsewhere."""
    n, height, width, channels = x.shape
    first, second, third, _ = (corner == chosen for corner in _corners(x))
    index = jnp.where(first, 0, jnp.where(second, 1, jnp.where(third, 2, 3))).astype(jnp.int8)
    places = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    spread = jnp.where(index[:, :, None, :, None] == places, values[:, :, None, :, None], 0)
    spread = spread.reshape(n, height // 2 * 2, width // 2 * 2, channels)
    return jnp.pad(spread, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


def max_pool_3x3(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Max-pools 3x3 windows with stride 2 and one pixel of padding on every side, of values that are not negative."""
    return pooling.max_pool_3x3(x, ((1, 1), (1, 1)))
