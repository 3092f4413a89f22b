"""Implements layers over the spatial axes: convolution, pooling, interpolation."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten.table import op
from jaxtransfer.aten.windows import max_pool_with_places, per_axis, window_counts

# Programs for depthwise kernels of more positions would take minutes to compile.
_MAX_DEPTHWISE_POSITIONS = 49


@op("convolution.default")
def convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    transposed: bool,
    output_padding: int | Sequence[int],
    groups: int,
) -> jax.Array:
    """Convolves with channels last, which is fast in XLA on CPUs; XLA merges the transpositions."""
    n = x.ndim - 2
    stride, padding, dilation = (per_axis(value, n) for value in (stride, padding, dilation))
    kernel = weight.shape[2:]
    x = jnp.moveaxis(x, 1, -1)
    if transposed:
        y = _transposed(x, weight, stride, padding, dilation, per_axis(output_padding, n), groups)
    elif groups == 1 and math.prod(kernel) == 1 and not any(padding):
        strided = x[(slice(None), *(slice(None, None, s) for s in stride))]
        y = jnp.tensordot(strided, weight.reshape(weight.shape[:2]), axes=((-1,), (1,)))
    elif groups == x.shape[-1] == weight.shape[0] and 1 < math.prod(kernel) <= _MAX_DEPTHWISE_POSITIONS:
        y = _depthwise(x, weight, stride, padding, dilation)
    else:
        amounts = [(p, p) for p in padding]
        y = _convolve(x, weight, stride, amounts, [1] * n, dilation, groups)
    if bias is not None:
        y = y + bias.reshape((1,) * (n + 1) + (-1,))
    return jnp.moveaxis(y, -1, 1)


def _conv(
    n: int,
    input: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> jax.Array:
    x = input if input.ndim == n + 2 else input[None]
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(per_axis(dilation, n), weight.shape[2:], strict=True)]
        padding = [r // 2 for r in reach]
        if any(r % 2 for r in reach):
            x = jnp.pad(x, [(0, 0), (0, 0), *((0, r % 2) for r in reach)])
    elif isinstance(padding, str):  # "valid"
        padding = 0
    y = convolution(x, weight, bias, stride, padding, dilation, False, 0, groups)
    return y if input.ndim == n + 2 else y[0]


def _conv_transpose(
    n: int,
    input: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> jax.Array:
    x = input if input.ndim == n + 2 else input[None]
    y = convolution(x, weight, bias, stride, padding, dilation, True, output_padding, groups)
    return y if input.ndim == n + 2 else y[0]


for _n in (1, 2, 3):
    op(f"conv{_n}d.default", f"conv{_n}d.padding")(functools.partial(_conv, _n))
    op(f"conv_transpose{_n}d.{'input' if _n > 1 else 'default'}")(functools.partial(_conv_transpose, _n))


def _depthwise(
    x: jax.Array,
    weight: jax.Array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> jax.Array:
    """Sums shifted products, one per kernel position, because XLA has no fast depthwise convolution on CPUs.

    The maps of EfficientNet-Lite0 then took a quarter of the time on two cores.
    """
    x = jnp.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])
    kernel = weight.shape[2:]
    reach = [
        (size - d * (k - 1) - 1) // s * s + 1
        for size, d, k, s in zip(x.shape[1:], dilation, kernel, stride, strict=False)
    ]
    taps = jnp.moveaxis(weight[:, 0], 0, -1)
    products = []
    for position in np.ndindex(*kernel):
        window = [slice(d * i, d * i + r, s) for d, i, r, s in zip(dilation, position, reach, stride, strict=True)]
        tap = taps[position].reshape((1,) * (x.ndim - 1) + (-1,))
        products.append(x[(slice(None), *window)] * tap)
    return functools.reduce(jnp.add, products)


def _convolve(
    x: jax.Array,
    weight: jax.Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    input_dilation: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> jax.Array:
    """Convolves `x`, (N, *spatial, C), with PyTorch's `weight`, (O, I / groups, *kernel)."""
    spatial = "DHW"[-len(stride) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    weight = jnp.moveaxis(weight, (1, 0), (-2, -1))
    return lax.conv_general_dilated(
        x, weight, stride, padding, input_dilation, dilation, numbers, feature_group_count=groups
    )


def _transposed(
    x: jax.Array,
    weight: jax.Array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> jax.Array:
    """Computes the gradient of a convolution as a convolution of the input dilated by the stride."""
    inputs, outputs, *kernel = weight.shape
    weight = weight.reshape(groups, inputs // groups, outputs, *kernel)
    weight = weight.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *kernel)
    weight = jnp.flip(weight, tuple(range(2, weight.ndim)))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    amounts = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding, strict=True)]
    return _convolve(x, weight, [1] * len(stride), amounts, stride, dilation, groups)


def _reduce_window(
    x: jax.Array,
    start: Any,
    function: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    amounts: Sequence[tuple[int, int]],
) -> jax.Array:
    rest = x.ndim - len(kernel_size)
    # Input after the last window is cut off with a slice, because XLA accepts no negative padding here.
    for axis, (_, high) in enumerate(amounts, rest):
        if high < 0:
            x = lax.slice_in_dim(x, 0, x.shape[axis] + high, axis=axis)
    amounts = [(low, max(high, 0)) for low, high in amounts]
    ones = (1,) * rest
    padding = [(0, 0)] * rest + amounts
    start = np.array(start, x.dtype)
    return lax.reduce_window(x, start, function, (*ones, *kernel_size), (*ones, *stride), padding)


def max_pool(
    n: int,
    x: jax.Array,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> jax.Array:
    """Pools the last `n` axes."""
    kernel_size = per_axis(kernel_size, n)
    stride = per_axis(stride, n) or kernel_size
    padding = per_axis(padding, n)
    if any(d != 1 for d in per_axis(dilation, n)):  # JAX cannot differentiate it
        return max_pool_with_places(n, x, kernel_size, stride, padding, dilation, ceil_mode)[0]
    _, amounts = window_counts(x, kernel_size, stride, padding, ceil_mode)
    return _reduce_window(x, -np.inf, lax.max, kernel_size, stride, amounts)


def max_pool_with_indices(*args: Any, **kwargs: Any) -> tuple[jax.Array, jax.Array]:
    return max_pool(*args, **kwargs), max_pool_with_places(*args, **kwargs)[1]


def avg_pool(
    n: int,
    x: jax.Array,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> jax.Array:
    """Pools the last `n` axes."""
    kernel_size = per_axis(kernel_size, n)
    stride = per_axis(stride, n) or kernel_size
    padding = per_axis(padding, n)
    counts, amounts = window_counts(x, kernel_size, stride, padding, ceil_mode)
    total = _reduce_window(x, 0.0, lax.add, kernel_size, stride, amounts)
    if divisor_override is not None:
        return total / divisor_override
    # The divisor counts the input, or the input and its padding, but never what ceil_mode added.
    extra = padding if count_include_pad else [0] * n
    divisor = np.ones((), x.dtype)
    for axis, count in enumerate(counts):
        size, e = x.shape[x.ndim - n + axis], extra[axis]
        first = np.arange(count) * stride[axis] - padding[axis]
        inside = np.minimum(first + kernel_size[axis], size + e) - np.maximum(first, -e)
        divisor = divisor[..., None] * inside.astype(x.dtype)
    return total / divisor.reshape((1,) * (x.ndim - n) + divisor.shape)


for _n in (1, 2, 3):
    op(f"max_pool{_n}d.default")(functools.partial(max_pool, _n))
    op(f"avg_pool{_n}d.default")(functools.partial(avg_pool, _n))
    if _n > 1:
        op(f"max_pool{_n}d_with_indices.default")(functools.partial(max_pool_with_indices, _n))


def _bins(size: int, outputs: int) -> list[tuple[int, int]]:
    """Returns the first and the past-the-last input of every output of an adaptive pooling."""
    return [((i * size) // outputs, -((-(i + 1) * size) // outputs)) for i in range(outputs)]


@op(
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "_adaptive_avg_pool2d.default",
    "adaptive_avg_pool3d.default",
)
def adaptive_avg_pool(x: jax.Array, output_size: Sequence[int]) -> jax.Array:
    first = x.ndim - len(output_size)
    if all(size == 1 for size in output_size):
        return x.mean(tuple(range(first, x.ndim)), keepdims=True)
    for axis, outputs in enumerate(output_size, first):
        weights = np.zeros((outputs, x.shape[axis]), x.dtype)
        for row, (start, end) in zip(weights, _bins(x.shape[axis], outputs), strict=True):
            row[start:end] = 1 / (end - start)
        x = _along(x, weights, axis)
    return x


@op("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def adaptive_max_pool(x: jax.Array, output_size: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    first = x.ndim - len(output_size)
    places = _adaptive_places(x, output_size)
    # The last axis comes first, so that the first of equal maxima in memory order gets the gradient.
    for axis, outputs in reversed(list(enumerate(output_size, first))):
        y = jnp.moveaxis(x, axis, -1)
        parts = [lax.slice_in_dim(y, *bounds, axis=-1) for bounds in _bins(y.shape[-1], outputs)]
        pooled = jnp.concatenate([max_pool(1, part, [part.shape[-1]]) for part in parts], -1)
        x = jnp.moveaxis(pooled, -1, axis)
    return x, places


def _adaptive_places(x: jax.Array, output_size: Sequence[int]) -> jax.Array:
    """Returns the numbers of the maxima of an adaptive pooling among all entries of the spatial axes."""
    first = x.ndim - len(output_size)
    places = jnp.broadcast_to(np.arange(math.prod(x.shape[first:])).reshape(x.shape[first:]), x.shape)
    for axis, outputs in reversed(list(enumerate(output_size, first))):
        bins = _bins(x.shape[axis], outputs)
        longest = max(end - start for start, end in bins)
        entries = np.array([np.minimum(np.arange(start, start + longest), end - 1) for start, end in bins])
        x, places = (jnp.take(a, entries, axis) for a in (x, places))
        at = jnp.argmax(x, axis + 1, keepdims=True)
        x, places = (jnp.take_along_axis(a, at, axis + 1).squeeze(axis + 1) for a in (x, places))
    return places


def _along(x: jax.Array, weights: np.ndarray, axis: int) -> jax.Array:
    """Multiplies one axis of `x` by a matrix [outputs, inputs]."""
    return jnp.moveaxis(jnp.tensordot(x, weights, axes=((axis,), (1,))), -1, axis)


def _scaling(axis: int, inputs: int, size: Any, scales: Any) -> tuple[float | None, int]:
    """Returns the requested scale of a spatial axis, or None, and its number of outputs."""
    if size:
        return None, size[axis - 2]
    return scales[axis - 2], int(inputs * scales[axis - 2])


def _positions(
    inputs: int, outputs: int, scale: float | None, align_corners: bool, clip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the outputs of an interpolation among its inputs: whole and fractional parts."""
    at = np.arange(outputs, dtype=np.float64)
    if align_corners:
        at *= (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
    else:
        at = (at + 0.5) * (1 / scale if scale else inputs / outputs) - 0.5
        at = np.maximum(at, 0) if clip else at
    whole = np.floor(at)
    return whole.astype(int), at - whole


def _interpolate(x: jax.Array, size: Any, scales: Any, align_corners: bool, taps: Any, clip: bool) -> jax.Array:
    """Interpolates axis by axis; `taps` returns the weights of neighbours from fractional positions."""
    for axis in range(2, x.ndim):
        inputs = x.shape[axis]
        scale, outputs = _scaling(axis, inputs, size, scales)
        whole, fraction = _positions(inputs, outputs, scale, align_corners, clip)
        weights = np.zeros((outputs, inputs), x.dtype)
        for offset, weight in taps(fraction).items():
            np.add.at(weights, (np.arange(outputs), np.clip(whole + offset, 0, inputs - 1)), weight)
        x = _along(x, weights, axis)
    return x


@op("upsample_bilinear2d.vec", "upsample_linear1d.vec", "upsample_trilinear3d.vec")
def upsample_linear(x: jax.Array, output_size: Any, align_corners: bool, scale_factors: Any) -> jax.Array:
    def taps(t: np.ndarray) -> dict[int, np.ndarray]:
        return {0: 1 - t, 1: t}

    return _interpolate(x, output_size, scale_factors, align_corners, taps, clip=True)


@op("upsample_bicubic2d.vec")
def upsample_bicubic(x: jax.Array, output_size: Any, align_corners: bool, scale_factors: Any) -> jax.Array:
    """Interpolates by Keys' cubic convolution with a = -0.75, as in PyTorch."""
    a = -0.75

    def near(d: np.ndarray) -> np.ndarray:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: np.ndarray) -> np.ndarray:
        return a * (((d - 5) * d + 8) * d - 4)

    def taps(t: np.ndarray) -> dict[int, np.ndarray]:
        return {-1: far(1 + t), 0: near(t), 1: near(1 - t), 2: far(2 - t)}

    return _interpolate(x, output_size, scale_factors, align_corners, taps, clip=False)


@op("upsample_nearest2d.vec", "upsample_nearest1d.vec", "upsample_nearest3d.vec")
def upsample_nearest(x: jax.Array, output_size: Any, scale_factors: Any) -> jax.Array:
    for axis in range(2, x.ndim):
        inputs = x.shape[axis]
        scale, outputs = _scaling(axis, inputs, output_size, scale_factors)
        # float32, because which neighbour is nearest depends on PyTorch's own rounding.
        step = np.float32(1 / scale) if scale else np.float32(inputs) / np.float32(outputs)
        at = np.floor(np.arange(outputs, dtype=np.float32) * step).astype(int)
        at = np.minimum(at, inputs - 1)
        factor = outputs // inputs
        if np.array_equal(at, np.repeat(np.arange(inputs), factor)):
            x = jnp.repeat(x, factor, axis)  # its gradient is a sum over an axis, not a scatter
        else:
            x = jnp.take(x, at, axis)
    return x
