"""Implements operations that PyTorch composes of others; its own decomposition of a network takes far longer."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.aten.elementwise import clamp, div
from jaxtransfer.aten.shaping import full, to
from jaxtransfer.aten.table import as_dtype, floating, op, result_dtype


@op("einsum.default")
def einsum(equation: str, tensors: Sequence[jax.Array], *, path: Any = None) -> jax.Array:
    dtype = result_dtype(*tensors)
    return jnp.einsum(equation, *(x.astype(dtype) for x in tensors))


@op("outer.default")
def outer(x: jax.Array, vec2: jax.Array) -> jax.Array:
    return einsum("i,j->ij", [x, vec2])


@op("eye.default", "eye.m")
def eye(n: int, m: int | None = None, *, dtype: str | None = None) -> jax.Array:
    return jnp.eye(n, m, dtype=as_dtype(dtype or "float32"))


@op("linspace.default")
def linspace(start: float, end: float, steps: int, *, dtype: str | None = None) -> jax.Array:
    return jnp.asarray(np.linspace(start, end, steps), as_dtype(dtype or "float32"))


@op("one_hot.default")
def one_hot(x: jax.Array, num_classes: int = -1) -> jax.Array:
    return jax.nn.one_hot(x, num_classes, dtype=as_dtype("int64"))


@op("new_zeros.default")
def new_zeros(x: jax.Array, size: Sequence[int], *, dtype: str | None = None) -> jax.Array:
    return new_full(x, size, 0, dtype=dtype)


@op("new_ones.default")
def new_ones(x: jax.Array, size: Sequence[int], *, dtype: str | None = None) -> jax.Array:
    return new_full(x, size, 1, dtype=dtype)


@op("new_full.default")
def new_full(x: jax.Array, size: Sequence[int], fill_value: Any, *, dtype: str | None = None) -> jax.Array:
    return full(size, fill_value, dtype=dtype or str(x.dtype))


@op("to.device")
def to_device(
    x: jax.Array, device: Any, dtype: str, non_blocking: bool = False, copy: bool = False, memory_format: Any = None
) -> jax.Array:
    return to(x, dtype)


@op("mT.default")
def transpose_matrices(x: jax.Array) -> jax.Array:
    return x.mT


@op("movedim.int", "movedim.intlist")
def movedim(x: jax.Array, source: int | Sequence[int], destination: int | Sequence[int]) -> jax.Array:
    return jnp.moveaxis(x, source, destination)


@op("swapaxes.default")
def swapaxes(x: jax.Array, axis0: int, axis1: int) -> jax.Array:
    return x.swapaxes(axis0, axis1)


@op("tile.default")
def tile(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return jnp.tile(x, dims)


@op("channel_shuffle.default")
def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:]).swapaxes(1, 2).reshape(x.shape)


@op("floor_divide.default", "floor_divide.Scalar")
def floor_divide(x: Any, y: Any) -> jax.Array:
    return div(x, y, rounding_mode="floor")


@op("clip.default", "clip.Tensor")
def clip(x: jax.Array, min: Any = None, max: Any = None) -> jax.Array:
    return clamp(x, min, max)


@op("isfinite.default")
def isfinite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(floating(x))
