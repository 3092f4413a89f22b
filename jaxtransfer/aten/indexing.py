"""Implements operations that read or write at places given by indices, masks, diagonals and strides."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten.table import as_dtype, op, same_rank
from jaxtransfer.errors import JaxTransferError


def _along(x: jax.Array, dim: int, at: jax.Array) -> tuple[Any, ...]:
    """Returns the index of the entries of `x` that `at` names along one axis, and its own places along the others."""
    dim = dim % x.ndim
    return tuple(at if axis == dim else lax.broadcasted_iota(at.dtype, at.shape, axis) for axis in range(at.ndim))


def _at_least_1d(*arrays: Any) -> list[Any]:
    return [a[None] if isinstance(a, jax.Array) and not a.ndim else a for a in arrays]


def _cut_to(source: Any, shape: Sequence[int]) -> Any:
    return source[tuple(slice(n) for n in shape)] if isinstance(source, jax.Array) else source


@op("gather.default")
def gather(x: jax.Array, dim: int, index: jax.Array, *, sparse_grad: bool = False) -> jax.Array:
    values, at = _at_least_1d(x, index)
    return values[_along(values, dim, at)].reshape(index.shape)


@op("take.default")
def take(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.reshape(-1)[index]


@op("scatter.src", "scatter.value")
def scatter(x: jax.Array, dim: int, index: jax.Array, source: Any) -> jax.Array:
    """Writes values at places of one axis; where several are written to a place, one of them stays."""
    target, at, source = _at_least_1d(x, index, source)
    return target.at[_along(target, dim, at)].set(_cut_to(source, at.shape)).reshape(x.shape)


@op("scatter_add.default")
def scatter_add(x: jax.Array, dim: int, index: jax.Array, src: jax.Array) -> jax.Array:
    return scatter_reduce(x, dim, index, src, "sum")


@op("scatter.reduce", "scatter.value_reduce")
def scatter_with(x: jax.Array, dim: int, index: jax.Array, source: Any, *, reduce: str) -> jax.Array:
    source = source if isinstance(source, jax.Array) else jnp.full(index.shape, source, x.dtype)
    return scatter_reduce(x, dim, index, source, {"add": "sum", "multiply": "prod"}[reduce])


@op("scatter_reduce.two")
def scatter_reduce(
    x: jax.Array, dim: int, index: jax.Array, src: jax.Array, reduce: str, *, include_self: bool = True
) -> jax.Array:
    """Combines values with those at places of one axis; equal extremes share their gradient."""
    target, at, source = _at_least_1d(x, index, src)
    place = _along(target, dim, at)
    source = _cut_to(source, at.shape)
    if reduce == "prod":
        return _scatter_product(target, dim, at, source, include_self).reshape(x.shape)
    start = {"sum": 0, "mean": 0, "amax": -np.inf, "amin": np.inf}[reduce]
    base = target if include_self else target.at[place].set(start)
    if reduce in ("amax", "amin"):
        return _scatter_extreme(base, place, source, reduce, target).reshape(x.shape)
    total = base.at[place].add(source)
    if reduce == "mean":
        count = jnp.full(target.shape, include_self, target.dtype).at[place].add(1)
        total = total / jnp.maximum(count, 1)
    return total.reshape(x.shape)


def _scatter_extreme(base: jax.Array, place: Any, source: jax.Array, reduce: str, target: jax.Array) -> jax.Array:
    held, values = lax.stop_gradient(base), lax.stop_gradient(source)
    best = held.at[place].max(values) if reduce == "amax" else held.at[place].min(values)
    own = (held == best).astype(base.dtype)
    won = (values == best[place]).astype(base.dtype)
    count = own.at[place].add(won)
    # Adds nothing, but has the derivative of the mean of the extremes.
    zero = jnp.where(own > 0, target - lax.stop_gradient(target), 0.0)
    zero = zero.at[place].add(won * (source - values))
    return best + zero / jnp.maximum(count, 1)


def _scatter_product(x: jax.Array, dim: int, at: jax.Array, source: jax.Array, include_self: bool) -> jax.Array:
    """Multiplies by what each place receives, as a masked product over the written entries.

    JAX has no derivative of `scatter_mul` with repeated places.
    """
    dim = dim % x.ndim
    if any(n != m for axis, (n, m) in enumerate(zip(x.shape, at.shape, strict=True)) if axis != dim):
        raise JaxTransferError("a product of scattered values must cover all places of the other axes")
    at, source, own = (jnp.moveaxis(a, dim, -1) for a in (at, source, x))
    hit = at[..., None, :] == lax.broadcasted_iota(at.dtype, (*own.shape, 1), at.ndim - 1)
    product = jnp.prod(jnp.where(hit, source[..., None, :], 1), -1)
    kept = own if include_self else jnp.where(hit.any(-1), jnp.ones_like(own), own)
    return jnp.moveaxis(kept * product, -1, dim)


def _at(x: jax.Array, dim: int, index: jax.Array) -> tuple[Any, ...]:
    return (slice(None),) * (dim % max(x.ndim, 1)) + (index.reshape(-1),)


@op("index_add.default")
def index_add(x: jax.Array, dim: int, index: jax.Array, source: jax.Array, *, alpha: float = 1) -> jax.Array:
    return x.at[_at(x, dim, index)].add(source if alpha == 1 else alpha * source)


@op("index_copy.default")
def index_copy(x: jax.Array, dim: int, index: jax.Array, source: jax.Array) -> jax.Array:
    return x.at[_at(x, dim, index)].set(source)


@op("index_fill.int_Scalar", "index_fill.int_Tensor")
def index_fill(x: jax.Array, dim: int, index: jax.Array, value: Any) -> jax.Array:
    return x.at[_at(x, dim, index)].set(jnp.asarray(value, x.dtype))


@op("index_put.default", "_unsafe_index_put.default")
def index_put(
    x: jax.Array, indices: Sequence[jax.Array | None], values: jax.Array, accumulate: bool = False
) -> jax.Array:
    """Writes or adds values at places given by integers or by one mask."""
    values = values.astype(x.dtype)
    if any(i is not None and i.dtype in (bool, jnp.uint8) for i in indices):
        return _put_by_mask(x, indices, values, accumulate)
    arrays = iter(same_rank(*(i for i in indices if i is not None)))
    place = tuple(slice(None) if i is None else next(arrays) for i in indices)
    shape = jax.eval_shape(lambda x: x[place], x).shape
    values = jnp.broadcast_to(values.reshape((1,) * (len(shape) - values.ndim) + values.shape), shape)
    return x.at[place].add(values) if accumulate else x.at[place].set(values)


def _put_by_mask(x: jax.Array, indices: Sequence[Any], values: jax.Array, accumulate: bool) -> jax.Array:
    """Writes where a mask is True: one value everywhere, or the next of a row of values at each place."""
    first = next(axis for axis, index in enumerate(indices) if index is not None)
    mask = indices[first].astype(bool)
    if any(index is not None for index in indices[first + 1 :]):
        raise JaxTransferError("a mask that depends on the images cannot be combined with other indices")
    rest = x.ndim - first - mask.ndim
    spread = mask.reshape((1,) * first + mask.shape + (1,) * rest)
    values = values.reshape((1,) * (first + 1 + rest - values.ndim) + values.shape)
    if values.shape[first] > 1:  # the number of the place among those where the mask is True
        number = jnp.cumsum(mask.reshape(-1)) - 1
        values = jnp.take(values, jnp.clip(number, 0, values.shape[first] - 1), axis=first)
        values = values.reshape(*values.shape[:first], *mask.shape, *values.shape[first + 1 :])
    else:
        values = values.reshape(*values.shape[:first], *(1,) * mask.ndim, *values.shape[first + 1 :])
    return jnp.where(spread, x + values if accumulate else values, x)


@op("masked_scatter.default")
def masked_scatter(x: jax.Array, mask: jax.Array, source: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(x.shape, mask.shape)
    x, mask = (jnp.broadcast_to(a.reshape((1,) * (len(shape) - a.ndim) + a.shape), shape) for a in (x, mask))
    return _put_by_mask(x, [mask], source.reshape(-1).astype(x.dtype), False)


@op("nonzero_static.default")
def nonzero_static(x: jax.Array, *, size: int, fill_value: int = -1) -> jax.Array:
    places = jnp.nonzero(x, size=size, fill_value=fill_value)
    return jnp.stack(places, -1).astype(as_dtype("int64"))


@op("repeat_interleave.self_int")
def repeat_interleave(x: jax.Array, repeats: int, dim: int | None = None, *, output_size: Any = None) -> jax.Array:
    return jnp.repeat(x, repeats, dim)


@op("diagonal.default")
def diagonal(x: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    return jnp.diagonal(x, offset, dim1, dim2)


@op("diagonal_scatter.default")
def diagonal_scatter(x: jax.Array, src: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    moved = jnp.moveaxis(x, (dim1, dim2), (-2, -1))
    row = np.arange(src.shape[-1]) + max(-offset, 0)
    moved = moved.at[..., row, row + offset].set(src)
    return jnp.moveaxis(moved, (-2, -1), (dim1, dim2))


def _strided(size: Sequence[int], stride: Sequence[int], offset: int | None) -> np.ndarray:
    """Returns the places in memory of the entries of a strided array."""
    axes = np.ix_(*(s * np.arange(n) for n, s in zip(size, stride, strict=True)))
    return functools.reduce(np.add, axes, np.zeros((1,) * len(size), int)) + (offset or 0)


@op("as_strided.default")
def as_strided(
    x: jax.Array, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> jax.Array:
    """Reads memory in another order; the array itself must lie there without gaps, in the order of its axes."""
    return x.reshape(-1)[_strided(size, stride, storage_offset)]


@op("as_strided_scatter.default")
def as_strided_scatter(
    x: jax.Array, src: jax.Array, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> jax.Array:
    return x.reshape(-1).at[_strided(size, stride, storage_offset)].set(src).reshape(x.shape)


@op("unfold.default")
def unfold(x: jax.Array, dimension: int, size: int, step: int) -> jax.Array:
    """Cuts one axis into windows, which become the last axis."""
    if not x.ndim:
        return x.reshape(1)
    dimension = dimension % x.ndim
    starts = np.arange(0, x.shape[dimension] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis=dimension)
    return jnp.moveaxis(windows, dimension + 1, -1)


@op("tril_indices.default")
def tril_indices(row: int, col: int, offset: int = 0, *, dtype: str = "int64") -> jax.Array:
    return jnp.asarray(np.stack(np.tril_indices(row, offset, col)), as_dtype(dtype))


@op("triu_indices.default")
def triu_indices(row: int, col: int, offset: int = 0, *, dtype: str = "int64") -> jax.Array:
    return jnp.asarray(np.stack(np.triu_indices(row, offset, col)), as_dtype(dtype))


@op("_embedding_bag.default")
def embedding_bag(
    weight: jax.Array,
    indices: jax.Array,
    offsets: jax.Array,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: jax.Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[jax.Array]:
    """Sums, averages (mode 1) or maximises (mode 2) the rows of consecutive indices, in bags that begin at offsets."""
    bags = offsets.shape[0] - include_last_offset
    kept = indices != padding_idx
    number = jnp.arange(indices.shape[0], dtype=offsets.dtype)
    bag = jnp.sum(offsets[:, None] <= number[None], 0) - 1
    member = (bag[None] == jnp.arange(bags)[:, None]) & kept[None]
    rows = jnp.take(weight, indices, axis=0)
    if mode == 2:
        values = jnp.where(member[..., None], rows, -jnp.inf)
        at = jnp.argmax(values, 1, keepdims=True)
        return (jnp.where(member.any(1, keepdims=True), jnp.take_along_axis(rows[None], at, 1)[:, 0], 0.0),)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    total = member.astype(rows.dtype) @ rows
    if mode == 1:
        total = total / jnp.maximum(member.sum(1, keepdims=True), 1).astype(rows.dtype)
    return (total,)
