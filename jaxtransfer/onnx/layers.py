"""Implements layers over the spatial axes: convolution, pooling, interpolation."""

# ONNX documents an operator under the name that its function is registered for.
# ruff: noqa: D103

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten import layers as aten
from jaxtransfer.aten.algebra import vector_norm
from jaxtransfer.aten.sampling import grid_sampler
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.onnx.table import axes as _axes
from jaxtransfer.onnx.table import bounded, op, static


def _padding(
    x: jax.Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Returns the padding before and after every spatial axis."""
    n = len(kernel)
    if auto_pad in ("NOTSET", "VALID"):
        pads = [0] * (2 * n) if pads is None or auto_pad == "VALID" else list(pads)
        return pads[:n], pads[n:]
    low, high = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        low.append(less if auto_pad == "SAME_UPPER" else more)
        high.append(more if auto_pad == "SAME_UPPER" else less)
    return low, high


def _symmetric(x: jax.Array, low: list[int], high: list[int], fill: float = 0.0) -> tuple[jax.Array, list[int]]:
    """Returns images that need the same padding at both ends, and that padding; differing ends are padded here."""
    if low == high:
        return x, low
    amounts = [(0, 0, 0), (0, 0, 0), *((a, b, 0) for a, b in zip(low, high, strict=True))]
    return lax.pad(x, jnp.asarray(fill, x.dtype), amounts), [0] * len(low)


@op("Conv")
def conv(
    x: jax.Array,
    weight: jax.Array,
    bias: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> jax.Array:
    kernel, ones = weight.shape[2:], [1] * (x.ndim - 2)
    strides, dilations = strides or ones, dilations or ones
    x, padding = _symmetric(x, *_padding(x, kernel, strides, dilations, pads, auto_pad))
    return aten.convolution(x, weight, bias, strides, padding, dilations, False, 0, group)


@op("ConvTranspose")
def conv_transpose(
    x: jax.Array,
    weight: jax.Array,
    bias: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> jax.Array:
    """Computes the whole transposed convolution and cuts it, since the two ends may differ."""
    n = x.ndim - 2
    strides, dilations, extra = strides or [1] * n, dilations or [1] * n, list(output_padding or [0] * n)
    whole = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    ]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is not None:
        total = [w + e - o for w, e, o in zip(whole, extra, output_shape[-n:], strict=True)]
        first = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
        pads = [*first, *(t - f for t, f in zip(total, first, strict=True))]
    pads = list(pads or [0] * (2 * n))
    low, high = pads[:n], pads[n:]
    if low == high:
        return aten.convolution(x, weight, bias, strides, low, dilations, True, extra, group)
    y = aten.convolution(x, weight, bias, strides, [0] * n, dilations, True, extra, group)
    cuts = (slice(a, size - b) for a, b, size in zip(low, high, y.shape[2:], strict=True))
    return y[(slice(None), slice(None), *cuts)]


@op("MaxPool")
def max_pool(
    x: jax.Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> jax.Array:
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    x, padding = _symmetric(x, *_padding(x, kernel_shape, strides, dilations, pads, auto_pad), -math.inf)
    return aten.max_pool(n, x, kernel_shape, strides, padding, dilations, bool(ceil_mode))


@op("AveragePool")
def average_pool(
    x: jax.Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> jax.Array:
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    if any(d != 1 for d in dilations):
        raise JaxTransferError("average pooling with dilation is not supported")
    low, high = _padding(x, kernel_shape, strides, dilations, pads, auto_pad)
    padded, padding = _symmetric(x, low, high)
    y = aten.avg_pool(n, padded, kernel_shape, strides, padding, bool(ceil_mode), bool(count_include_pad))
    if low == high or count_include_pad:
        return y
    ones, _ = _symmetric(jnp.ones((1, 1, *x.shape[2:]), x.dtype), low, high)
    return y / aten.avg_pool(n, ones, kernel_shape, strides, padding, bool(ceil_mode), False)


def _spatial(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@op("GlobalAveragePool")
def global_average_pool(x: jax.Array) -> jax.Array:
    return x.mean(_spatial(x), keepdims=True)


@op("GlobalMaxPool")
def global_max_pool(x: jax.Array) -> jax.Array:
    return x.max(_spatial(x), keepdims=True)


@op("GlobalLpPool")
def global_lp_pool(x: jax.Array, *, p: int = 2) -> jax.Array:
    return vector_norm(x, p, _spatial(x), True)


def _coordinates(inputs: int, outputs: int, scale: float, mode: str, region: Sequence[float] | None) -> np.ndarray:
    """Returns the positions of the outputs among the inputs, as float32 like the reference."""
    at = np.arange(outputs, dtype=np.float32)
    step = np.float32(scale)
    if mode == "asymmetric":
        return at / step
    if mode == "align_corners":
        return at * np.float32(inputs - 1) / np.float32(max(outputs - 1, 1))
    if mode == "pytorch_half_pixel" and outputs == 1:
        return np.zeros(1, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (at + np.float32(0.5)) / step - np.float32(0.5)
    if mode == "half_pixel_symmetric":
        adjustment = outputs / (scale * inputs)
        offset = np.float32(inputs / 2 * (1 - adjustment))
        return offset + (at + np.float32(0.5)) / step - np.float32(0.5)
    if mode == "tf_crop_and_resize" and region is not None:
        start, end = region
        if outputs == 1:
            return np.array([(start + end) * (inputs - 1) / 2], np.float32)
        return (start * (inputs - 1) + at * (end - start) * (inputs - 1) / (outputs - 1)).astype(np.float32)
    raise JaxTransferError(f"the coordinate transformation {mode!r} is not supported")


_ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda at: np.ceil(at - np.float32(0.5)),
    "round_prefer_ceil": lambda at: np.floor(at + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _kernel(mode: str, a: float) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Returns the reach of an interpolation in inputs, and the weight of an input by its distance."""
    if mode == "linear":
        return 1, lambda d: np.maximum(0, 1 - d)

    def cubic(d: np.ndarray) -> np.ndarray:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return 2, cubic


def _weights(
    at: np.ndarray, inputs: int, scale: float, mode: str, a: float, antialias: bool, exclude_outside: bool
) -> np.ndarray:
    """Returns the matrix [outputs, inputs] of an interpolation along an axis."""
    reach, kernel = _kernel(mode, a)
    width = max(1.0, 1 / scale) if antialias else 1.0
    whole = np.floor(at.astype(np.float64)).astype(int)
    span = math.ceil(reach * width)
    weights = np.zeros(bounded((len(at), inputs)))
    for offset in range(1 - span, span + 1):
        source = whole + offset
        weight = kernel(np.abs(source - at) / width)
        if exclude_outside:
            weight = np.where((source < 0) | (source >= inputs), 0.0, weight)
        np.add.at(weights, (np.arange(len(at)), np.clip(source, 0, inputs - 1)), weight)
    return weights / weights.sum(1, keepdims=True) if antialias or exclude_outside else weights


@op("Resize")
def resize(
    x: jax.Array,
    roi: Any = None,
    scales: Any = None,
    sizes: Any = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> jax.Array:
    """Interpolates along one axis after the other."""
    over = _axes(x, list(range(x.ndim)) if axes is None else axes)
    lengths = [x.shape[axis] for axis in over]
    if sizes is not None:
        outputs = [int(size) for size in static(sizes, "sizes")]
        factors = [o / i for o, i in zip(outputs, lengths, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            factor = (min if keep_aspect_ratio_policy == "not_larger" else max)(factors)
            factors, outputs = [factor] * len(over), [math.floor(factor * i + 0.5) for i in lengths]
    else:
        factors = [float(scale) for scale in static(scales, "scales")]
        outputs = [math.floor(factor * i) for factor, i in zip(factors, lengths, strict=True)]
    crops = coordinate_transformation_mode == "tf_crop_and_resize"
    regions = static(roi, "region").reshape(2, -1).T.tolist() if crops else [None] * len(over)
    for axis, inputs, count, factor, region in zip(over, lengths, outputs, factors, regions, strict=True):
        if count == inputs and factor == 1 and region in (None, [0.0, 1.0]):
            continue
        bounded((count,))
        at = _coordinates(inputs, count, factor, coordinate_transformation_mode, region)
        outside = (at < 0) | (at > inputs - 1) if region else np.zeros(count, bool)
        if mode == "nearest":
            x = _take(x, np.clip(_ROUNDING[nearest_mode](at), 0, inputs - 1).astype(int), axis)
        elif mode in ("linear", "cubic"):
            matrix = _weights(at, inputs, factor, mode, cubic_coeff_a, bool(antialias), bool(exclude_outside))
            x = aten._along(x, matrix.astype(x.dtype), axis)
        else:
            raise JaxTransferError(f"the interpolation {mode!r} is not supported")
        if outside.any():
            mask = outside.reshape([-1 if j == axis else 1 for j in range(x.ndim)])
            x = jnp.where(mask, jnp.asarray(extrapolation_value, x.dtype), x)
    return x


@op("GridSample")
def grid_sample(
    x: jax.Array, grid: Any, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> jax.Array:
    modes = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}
    paddings = ["zeros", "border", "reflection"]
    return grid_sampler(x, jnp.asarray(grid), modes[mode], paddings.index(padding_mode), bool(align_corners))


def _take(x: jax.Array, at: np.ndarray, axis: int) -> jax.Array:
    """Takes entries along an axis; a whole factor is a repetition, whose gradient is a sum and not a scatter."""
    factor = len(at) // x.shape[axis]
    if np.array_equal(at, np.repeat(np.arange(x.shape[axis]), factor)):
        return jnp.repeat(x, factor, axis)
    return jnp.take(x, at, axis)
