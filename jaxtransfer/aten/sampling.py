"""Implements resampling: antialiased interpolation, nearest neighbours by pixel centres, sampling along a grid."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten.table import op

_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)


def _triangle(t: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(t), 0)


def _near(t: Any, a: float = -0.75) -> Any:
    """Evaluates Keys' cubic kernel at distances below 1; a is -0.75 in PyTorch, but -0.5 with antialiasing."""
    return ((a + 2) * t - (a + 3)) * t * t + 1


def _far(t: Any, a: float = -0.75) -> Any:
    """Evaluates Keys' cubic kernel at distances between 1 and 2."""
    return (((t - 5) * t + 8) * t - 4) * a


def _cubic(t: np.ndarray) -> np.ndarray:
    t = np.abs(t)
    return np.where(t < 1, _near(t, -0.5), np.where(t < 2, _far(t, -0.5), 0.0))


def _antialiased(inputs: int, outputs: int, scale: float, support: float, kernel: Callable) -> np.ndarray:
    """Returns weights [outputs, inputs]: kernels that are as wide as an output where the image shrinks.

    The windows are those of `_compute_weights_aa` in ATen/native/cpu/UpSampleKernel.cpp.
    """
    width = max(scale, 1.0)
    weights = np.zeros((outputs, inputs))
    for i in range(outputs):
        centre = scale * (i + 0.5)
        first = max(int(centre - support * width + 0.5), 0)
        last = min(int(centre + support * width + 0.5), inputs)
        taps = kernel((np.arange(first, last) - centre + 0.5) / width)
        weights[i, first:last] = taps / (taps.sum() or 1.0)
    return weights


def _upsample_aa(
    x: jax.Array, sizes: Sequence[int], align_corners: bool, factors: Sequence[float | None], support: int, kernel: Any
) -> jax.Array:
    for axis, (outputs, factor) in enumerate(zip(sizes, factors, strict=True), 2):
        inputs = x.shape[axis]
        if align_corners:
            scale = (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
        else:
            scale = 1 / factor if factor else inputs / outputs
        weights = _antialiased(inputs, outputs, scale, support, kernel).astype(x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, weights, axes=((axis,), (1,))), -1, axis)
    return x


def _register_aa(name: str, support: int, kernel: Any) -> None:
    @op(f"_upsample_{name}2d_aa.default")
    def by_size(
        x: jax.Array, output_size: Any, align_corners: bool, scales_h: Any = None, scales_w: Any = None
    ) -> jax.Array:
        return _upsample_aa(x, output_size, align_corners, (scales_h, scales_w), support, kernel)

    @op(f"_upsample_{name}2d_aa.vec")
    def by_factors(x: jax.Array, output_size: Any, align_corners: bool, scale_factors: Any) -> jax.Array:
        factors = scale_factors or (None, None)
        sizes = output_size or [int(n * f) for n, f in zip(x.shape[2:], scale_factors, strict=True)]
        return _upsample_aa(x, sizes, align_corners, factors, support, kernel)


_register_aa("bilinear", 1, _triangle)
_register_aa("bicubic", 2, _cubic)


@op("affine_grid_generator.default")
def affine_grid(theta: jax.Array, size: Sequence[int], align_corners: bool) -> jax.Array:
    """Returns where each output of an affine map [images, n, n + 1] lies in the input, in [-1, 1], x first."""
    axes = []
    for n in size[2:]:
        at = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
        axes.append(at if align_corners else at * (n - 1) / n)
    places = np.meshgrid(*axes, indexing="ij")[::-1]
    base = jnp.asarray(np.stack([*places, np.ones(size[2:])], -1), theta.dtype)
    return jnp.einsum("...c,nrc->n...r", base, theta)


@op("grid_sampler.default", "grid_sampler_2d.default", "grid_sampler_3d.default")
def grid_sampler(
    x: jax.Array, grid: jax.Array, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> jax.Array:
    """Samples images [n, c, *in] at places [n, *out, axes] in [-1, 1], x first.

    The rules are those of ATen/native/GridSampler.h.
    """
    number, weight = jnp.zeros((1,) * grid.ndim, jnp.int32), jnp.ones((1,) * grid.ndim, x.dtype)
    for size, at in zip(x.shape[2:], jnp.moveaxis(grid, -1, 0)[::-1], strict=True):
        at = (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2
        if interpolation_mode == _BICUBIC:
            at, weights = _taps(at, interpolation_mode)
            at = _into(at, size, padding_mode, align_corners)
        else:
            at, weights = _taps(_into(at, size, padding_mode, align_corners), interpolation_mode)
        weights = jnp.where((at >= 0) & (at <= size - 1), weights, 0.0)
        whole = jnp.clip(jnp.nan_to_num(at), 0, size - 1).astype(jnp.int32)
        # Every neighbour along this axis with every one along the axes before: [neighbours, n, *out].
        number = (number[:, None] * size + whole[None]).reshape(-1, *whole.shape[1:])
        weight = (weight[:, None] * weights[None]).reshape(-1, *whole.shape[1:])
    number, weight = jnp.moveaxis(number, 0, 1), jnp.moveaxis(weight, 0, 1)
    values = jnp.take_along_axis(x.reshape(*x.shape[:2], -1), number.reshape(number.shape[0], 1, -1), 2)
    return (values.reshape(*x.shape[:2], *number.shape[1:]) * weight[:, None]).sum(2)


def _into(at: jax.Array, size: int, padding_mode: int, align_corners: bool) -> jax.Array:
    """Moves places into the image; the derivative of a place that is moved to the border is 0."""
    if padding_mode == _ZEROS:
        return at
    if padding_mode == _REFLECTION:
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        if not span:
            return jnp.zeros_like(at)
        inside = at - low
        distance = inside * jnp.where(inside < 0, -1.0, 1.0)
        turns = lax.stop_gradient(jnp.floor(distance / span))
        rest = distance - turns * span
        at = jnp.where(turns % 2 == 0, rest, span - rest) + low
    return jnp.where(at <= 0, 0.0, jnp.where(at >= size - 1, size - 1.0, at))


def _taps(at: jax.Array, mode: int) -> tuple[jax.Array, jax.Array]:
    """Returns the places [neighbours, ...] along one axis, and their weights."""
    if mode == _NEAREST:
        return lax.stop_gradient(jnp.round(at))[None], jnp.ones_like(at)[None]
    whole = lax.stop_gradient(jnp.floor(at))
    t = at - whole
    if mode == _BILINEAR:
        return jnp.stack([whole, whole + 1]), jnp.stack([1 - t, t])
    weights = (_far(1 + t), _near(t), _near(1 - t), _far(2 - t))
    return jnp.stack([whole + offset for offset in (-1, 0, 1, 2)]), jnp.stack(weights)


def _register_nearest_exact(n: int) -> None:
    @op(f"_upsample_nearest_exact{n}d.vec")
    def nearest_exact(x: jax.Array, output_size: Any, scale_factors: Any) -> jax.Array:
        for axis in range(2, n + 2):
            inputs = x.shape[axis]
            factor = None if output_size else scale_factors[axis - 2]
            outputs = int(inputs * factor) if factor else output_size[axis - 2]
            # float32, because which neighbour is nearest depends on PyTorch's own rounding.
            step = np.float32(1 / factor) if factor else np.float32(inputs) / np.float32(outputs)
            at = np.floor((np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * step).astype(int)
            x = jnp.take(x, np.minimum(at, inputs - 1), axis)
        return x


for _n in (1, 2, 3):
    _register_nearest_exact(_n)
