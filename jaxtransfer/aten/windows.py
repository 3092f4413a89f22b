"""Implements sliding windows: their number, the places of their maxima, columns of windows and their sums."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.aten.table import as_dtype, op
from jaxtransfer.errors import JaxTransferError


def per_axis(value: int | Sequence[int], n: int) -> list[int]:
    """Returns one number per spatial axis; PyTorch allows one number for all axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


def window_counts(
    x: jax.Array,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Computes the number of windows and the padding of every spatial axis.

    With `ceil_mode` the last window may extend beyond the end if it starts inside the input or its left
    padding (`pooling_output_shape` in ATen/native/Pool.h).
    """
    counts, amounts = [], []
    spatial = x.shape[x.ndim - len(kernel_size) :]
    for size, k, s, p in zip(spatial, kernel_size, stride, padding, strict=True):
        count = (size + 2 * p - k + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= size + p:
            count -= 1
        counts.append(count)
        amounts.append((p, (count - 1) * s + k - size - p))
    return counts, amounts


def max_pool_with_places(
    n: int,
    x: jax.Array,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Pools the last `n` axes; the places are numbers among all entries of these axes, of the first of equal maxima.

    A window is compared position by position, which JAX can differentiate with any dilation.
    """
    kernel_size, padding, dilation = (per_axis(value, n) for value in (kernel_size, padding, dilation))
    stride = per_axis(stride, n) or kernel_size
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    counts, amounts = window_counts(x, reach, stride, padding, ceil_mode)
    spatial = x.shape[x.ndim - n :]
    amounts = [(low, max(high, 0)) for low, high in amounts]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - n) + amounts, constant_values=-jnp.inf)
    places = np.pad(np.arange(math.prod(spatial)).reshape(spatial), amounts)
    windows = [
        tuple(
            slice(d * i, d * i + (c - 1) * s + 1, s)
            for d, i, c, s in zip(dilation, position, counts, stride, strict=True)
        )
        for position in np.ndindex(*kernel_size)
    ]
    best, at = padded[(..., *windows[0])], jnp.asarray(places[windows[0]], as_dtype("int64"))
    at = jnp.broadcast_to(at, best.shape)
    for window in windows[1:]:
        value = padded[(..., *window)]
        larger = (value > best) | jnp.isnan(value)
        best = jnp.where(larger, value, best)
        at = jnp.where(larger, jnp.broadcast_to(places[window], at.shape).astype(at.dtype), at)
    return best, at


@op("max_unpool2d.default")
def max_unpool2d(x: jax.Array, indices: jax.Array, output_size: Sequence[int]) -> jax.Array:
    return max_unpool(x, indices, output_size)


@op("max_unpool3d.default")
def max_unpool3d(
    x: jax.Array, indices: jax.Array, output_size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> jax.Array:
    return max_unpool(x, indices, output_size)


def max_unpool(x: jax.Array, indices: jax.Array, output_size: Sequence[int]) -> jax.Array:
    """Writes every value at its place among zeros."""
    rest = x.shape[: x.ndim - len(output_size)]
    values, at = (a.reshape(math.prod(rest), -1) for a in (x, indices))
    rows = jnp.arange(values.shape[0])[:, None]
    empty = jnp.zeros((values.shape[0], math.prod(output_size)), x.dtype)
    return empty.at[rows, at].set(values).reshape(*rest, *output_size)


def _window_places(size: Sequence[int], kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> list[np.ndarray]:
    """Returns the places [kernel, windows] in the padded image, for every spatial axis."""
    kernel_size, dilation, padding, stride = (per_axis(v, 2) for v in (kernel_size, dilation, padding, stride))
    places = []
    for n, k, d, p, s in zip(size, kernel_size, dilation, padding, stride, strict=True):
        starts = np.arange(0, n + 2 * p - d * (k - 1), s)
        places.append(d * np.arange(k)[:, None] + starts)
    return places


@op("im2col.default")
def im2col(x: jax.Array, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> jax.Array:
    batched = x if x.ndim == 4 else x[None]
    rows, columns = _window_places(batched.shape[2:], kernel_size, dilation, padding, stride)
    padded = jnp.pad(batched, [(0, 0), (0, 0), *((p, p) for p in per_axis(padding, 2))])
    windows = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    y = windows.reshape(batched.shape[0], -1, rows.shape[1] * columns.shape[1])
    return y if x.ndim == 4 else y[0]


@op("col2im.default")
def col2im(
    x: jax.Array, output_size: Sequence[int], kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> jax.Array:
    """Sums windows where they overlap."""
    batched = x if x.ndim == 3 else x[None]
    rows, columns = _window_places(output_size, kernel_size, dilation, padding, stride)
    (top, left), (height, width) = per_axis(padding, 2), output_size
    channels = batched.shape[1] // (rows.shape[0] * columns.shape[0])
    images = batched.shape[0]
    windows = batched.reshape(images, channels, len(rows), len(columns), rows.shape[1], columns.shape[1])
    padded = jnp.zeros((images, channels, height + 2 * top, width + 2 * left), x.dtype)
    padded = padded.at[:, :, rows[:, None, :, None], columns[None, :, None, :]].add(windows)
    y = padded[:, :, top : top + height, left : left + width]
    return y if x.ndim == 3 else y[0]


@op("fractional_max_pool2d.default", "fractional_max_pool3d.default")
def fractional_max_pool(x: jax.Array, kernel_size: Any, output_size: Any, random_samples: jax.Array) -> Any:
    raise JaxTransferError("fractional max pooling draws its windows at random")
