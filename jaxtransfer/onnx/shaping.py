"""Implements operators that create, move, cut, join and pad arrays without computing on their values."""

# ONNX documents an operator under the name that its function is registered for.
# ruff: noqa: D103

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.onnx.table import axes, bounded, integers, is_static, namespace, op, static


@op("Shape")
def shape(x: Any, *, start: int = 0, end: int | None = None) -> np.ndarray:
    return np.array(x.shape[start:end], np.int64)


@op("Size")
def size(x: Any) -> np.ndarray:
    return np.array(x.size, np.int64)


@op("Reshape")
def reshape(x: Any, shape: Any, *, allowzero: int = 0) -> Any:
    sizes = integers(shape, "shape")
    return x.reshape([x.shape[i] if not size and not allowzero else size for i, size in enumerate(sizes)])


@op("Flatten")
def flatten(x: Any, *, axis: int = 1) -> Any:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Squeeze")
def squeeze(x: Any, over: Any = None) -> Any:
    return x.squeeze(None if over is None else axes(x, over))


@op("Unsqueeze")
def unsqueeze(x: Any, over: Any) -> Any:
    return namespace(x).expand_dims(x, tuple(integers(over, "list of axes")))


@op("Transpose")
def transpose(x: Any, *, perm: list[int] | None = None) -> Any:
    return x.transpose(perm)


@op("Concat")
def concat(*parts: Any, axis: int) -> Any:
    if is_static(*parts):
        bounded((sum(part.size for part in parts),))
        return np.concatenate(parts, axis)
    return jnp.concatenate([jnp.asarray(part) for part in parts], axis)


@op("Split")
def split(x: Any, sizes: Any = None, *, axis: int = 0, num_outputs: int) -> list[Any]:
    length = x.shape[axis]
    part = -(-length // num_outputs)
    lengths = [min(part, length - i * part) for i in range(num_outputs)] if sizes is None else integers(sizes, "sizes")
    if len(lengths) != num_outputs or sum(lengths) != length or min(lengths) < 0:
        raise JaxTransferError(f"{length} values cannot be cut into parts of {lengths}")
    return namespace(x).split(x, np.cumsum(lengths)[:-1].tolist(), axis)


@op("Slice")
def slice_(x: Any, starts: Any, ends: Any, over: Any = None, steps: Any = None) -> Any:
    first, last = integers(starts, "starts"), integers(ends, "ends")
    at = axes(x, np.arange(len(first)) if over is None else over)
    step = [1] * len(first) if steps is None else integers(steps, "steps")
    cuts = [slice(None)] * x.ndim
    for axis, *bounds in zip(at, first, last, step, strict=True):
        cuts[axis] = slice(*bounds)
    return x[tuple(cuts)]


@op("Gather")
def gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    if is_static(x, indices):
        bounded((*indices.shape, *np.delete(x.shape, axis)))
        return np.asarray(np.take(x, indices, axis))
    if is_static(indices) and not indices.ndim:
        return lax.index_in_dim(x, int(indices), axis % x.ndim, keepdims=False)
    return jnp.take(jnp.asarray(x), jnp.asarray(indices), axis=axis)


@op("GatherElements")
def gather_elements(x: Any, indices: Any, *, axis: int = 0) -> Any:
    xp = namespace(x, indices)
    return xp.take_along_axis(xp.asarray(x), xp.asarray(indices), axis)


@op("GatherND")
def gather_nd(x: Any, indices: Any, *, batch_dims: int = 0) -> Any:
    x, indices = (namespace(x, indices).asarray(a) for a in (x, indices))
    grid = _grid(indices.shape[:-1], range(batch_dims))
    return x[(*grid, *(indices[..., i] for i in range(indices.shape[-1])))]


def _grid(shape: tuple[int, ...], over: Any) -> list[np.ndarray]:
    """Returns the positions along some axes of a shape, in arrays of as many axes as the shape has."""
    return [np.arange(shape[i]).reshape([-1 if i == j else 1 for j in range(len(shape))]) for i in over]


def _scatter(x: Any, at: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    methods = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}
    if reduction not in methods:
        raise JaxTransferError(f"the reduction {reduction!r} is not supported")
    if is_static(x, updates, *at) and reduction == "none":
        x = x.copy()
        x[at] = updates
        return x
    x = jnp.asarray(x)
    return getattr(x.at[at], methods[reduction])(jnp.asarray(updates))


@op("ScatterND")
def scatter_nd(x: Any, indices: Any, updates: Any, *, reduction: str = "none") -> Any:
    return _scatter(x, tuple(indices[..., i] for i in range(indices.shape[-1])), updates, reduction)


@op("ScatterElements", "Scatter")
def scatter_elements(x: Any, indices: Any, updates: Any, *, axis: int = 0, reduction: str = "none") -> Any:
    at = _grid(indices.shape, range(x.ndim))
    at[axis] = indices
    return _scatter(x, tuple(namespace(*at).broadcast_arrays(*at)), updates, reduction)


@op("Expand")
def expand(x: Any, shape: Any) -> Any:
    sizes = np.broadcast_shapes(x.shape, tuple(integers(shape, "shape")))
    if is_static(x):
        return np.broadcast_to(x, bounded(sizes))
    return jnp.broadcast_to(x.reshape((1,) * (len(sizes) - x.ndim) + x.shape), sizes)


@op("Tile")
def tile(x: Any, repeats: Any) -> Any:
    times = integers(repeats, "repeats")
    if is_static(x):
        bounded([size * n for size, n in zip(x.shape, times, strict=True)])
    return namespace(x).tile(x, times)


@op("ConstantOfShape")
def constant_of_shape(shape: Any, *, value: float = 0.0, dtype: str = "float32") -> np.ndarray:
    return np.full(bounded(integers(shape, "shape")), value, dtype)


@op("Pad")
def pad(x: Any, pads: Any, value: Any = None, over: Any = None, *, mode: str = "constant") -> Any:
    amounts = [(0, 0)] * x.ndim
    amount = integers(pads, "amounts")
    at = axes(x, np.arange(x.ndim) if over is None else over)
    for axis, low, high in zip(at, amount[: len(at)], amount[len(at) :], strict=True):
        amounts[axis] = (low, high)
    if is_static(x):
        bounded([size + low + high for size, (low, high) in zip(x.shape, amounts, strict=True)])
    if mode == "constant":
        fill = jnp.asarray(0 if value is None else value, x.dtype).reshape(())
        return lax.pad(jnp.asarray(x), fill, [(low, high, 0) for low, high in amounts])
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    if mode not in modes:
        raise JaxTransferError(f"padding mode {mode!r} is not supported")
    cuts = [slice(max(0, -low), size - max(0, -high)) for size, (low, high) in zip(x.shape, amounts, strict=True)]
    return namespace(x).pad(x[tuple(cuts)], [(max(0, low), max(0, high)) for low, high in amounts], mode=modes[mode])


@op("OneHot")
def one_hot(indices: Any, depth: Any, values: Any, *, axis: int = -1) -> Any:
    (classes,) = integers(depth, "depth")
    values = jnp.asarray(values)
    axis = axis % (indices.ndim + 1)
    indices = jnp.expand_dims(jnp.asarray(indices), axis)
    indices = jnp.where(indices < 0, indices + classes, indices)
    places = np.arange(classes).reshape([-1 if i == axis else 1 for i in range(indices.ndim)])
    return jnp.where(indices == jnp.asarray(places, indices.dtype), values[1], values[0])


@op("NonZero")
def non_zero(x: Any) -> np.ndarray:
    return np.array(np.nonzero(static(x, "input")), np.int64)


@op("EyeLike")
def eye_like(x: Any, *, k: int = 0, dtype: str | None = None) -> np.ndarray:
    rows, columns = bounded(x.shape)
    return np.eye(rows, columns, k, dtype or x.dtype)


@op("Trilu")
def trilu(x: Any, k: Any = None, *, upper: int = 1) -> Any:
    (diagonal,) = [0] if k is None else integers(k, "diagonal")
    return (namespace(x).triu if upper else namespace(x).tril)(x, diagonal)


@op("DepthToSpace")
def depth_to_space(x: jax.Array, *, blocksize: int, mode: str = "DCR") -> jax.Array:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: jax.Array, *, blocksize: int) -> jax.Array:
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)
