"""Implements operations that create, move, cut, join and pad arrays without computing on their values."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import as_dtype, cast, op, result_dtype, same_rank
from jaxtransfer.errors import JaxTransferError


@op("clone.default", "contiguous.default", "alias.default", "lift_fresh_copy.default")
def identity(x: jax.Array) -> jax.Array:
    return x


@op("detach.default")
def detach(x: jax.Array) -> jax.Array:
    return lax.stop_gradient(x)


@op("_to_copy.default", "to.dtype_layout")
def to_copy(x: jax.Array, *, dtype: str | None = None, copy: bool = False) -> jax.Array:
    return x if dtype is None else x.astype(as_dtype(dtype))


@op("to.dtype")
def to(
    x: jax.Array, dtype: str, non_blocking: bool = False, copy: bool = False, memory_format: Any = None
) -> jax.Array:
    return to_copy(x, dtype=dtype)


@op("type_as.default")
def type_as(x: jax.Array, other: jax.Array) -> jax.Array:
    return x.astype(other.dtype)


@op("copy.default")
def copy(x: jax.Array, src: jax.Array, non_blocking: bool = False) -> jax.Array:
    return expand(src.astype(x.dtype), x.shape)


@op("dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def dropout(input: jax.Array, p: float, train: bool) -> jax.Array:
    if train:
        raise JaxTransferError("dropout in training mode drops values at random")
    return input


@op("sym_size.int")
def size(x: jax.Array, dim: int) -> int:
    return x.shape[dim]


@op("view.default", "_unsafe_view.default", "reshape.default")
def reshape(x: jax.Array, size: Sequence[int]) -> jax.Array:
    return x.reshape(size)


@op("flatten.using_ints")
def flatten(x: jax.Array, start_dim: int = 0, end_dim: int = -1) -> jax.Array:
    if not x.ndim:
        return x.reshape(1)
    first, last = start_dim % x.ndim, end_dim % x.ndim
    return x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


@op("unflatten.int")
def unflatten(x: jax.Array, dim: int, sizes: Sequence[int]) -> jax.Array:
    dim = dim % x.ndim
    known = math.prod(size for size in sizes if size != -1)
    sizes = [x.shape[dim] // known if size == -1 else size for size in sizes]
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


@op("reshape_as.default", "view_as.default")
def reshape_as(x: jax.Array, other: jax.Array) -> jax.Array:
    return x.reshape(other.shape)


@op("permute.default")
def permute(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return x.transpose(dims)


@op("transpose.int")
def transpose(x: jax.Array, dim0: int, dim1: int) -> jax.Array:
    return x.swapaxes(dim0, dim1)


@op("t.default")
def t(x: jax.Array) -> jax.Array:
    return x.T


@op("squeeze.default")
def squeeze_all(x: jax.Array) -> jax.Array:
    return x.squeeze()


@op("squeeze.dim", "squeeze.dims")
def squeeze(x: jax.Array, dim: int | Sequence[int]) -> jax.Array:
    dims = {d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)}
    return x.squeeze(tuple(d for d in dims if x.shape[d] == 1))


@op("unsqueeze.default")
def unsqueeze(x: jax.Array, dim: int) -> jax.Array:
    return jnp.expand_dims(x, dim)


@op("expand.default")
def expand(x: jax.Array, size: Sequence[int], *, implicit: bool = False) -> jax.Array:
    old = (1,) * (len(size) - x.ndim) + x.shape
    return jnp.broadcast_to(x.reshape(old), [o if s == -1 else s for s, o in zip(size, old, strict=True)])


@op("expand_as.default")
def expand_as(x: jax.Array, other: jax.Array) -> jax.Array:
    return expand(x, other.shape)


@op("repeat.default")
def repeat(x: jax.Array, repeats: Sequence[int]) -> jax.Array:
    return jnp.tile(x, repeats)


@op("cat.default")
def cat(tensors: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    dtype = result_dtype(*tensors)
    return jnp.concatenate([x.astype(dtype) for x in tensors], axis=dim)


@op("stack.default")
def stack(tensors: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    return jnp.stack(tensors, axis=dim)


@op("split_with_sizes.default")
def split_with_sizes(x: jax.Array, split_sizes: Sequence[int], dim: int = 0) -> list[jax.Array]:
    return list(lax.split(x, split_sizes, axis=dim % x.ndim))


@op("split.Tensor")
def split(x: jax.Array, split_size: int, dim: int = 0) -> list[jax.Array]:
    whole, rest = divmod(x.shape[dim], split_size)
    return split_with_sizes(x, [split_size] * whole + [rest] * (rest > 0), dim)


@op("chunk.default")
def chunk(x: jax.Array, chunks: int, dim: int = 0) -> list[jax.Array]:
    return split(x, -(-x.shape[dim] // chunks), dim)


@op("unbind.int")
def unbind(x: jax.Array, dim: int = 0) -> list[jax.Array]:
    return [select(x, dim, i) for i in range(x.shape[dim])]


def _cut(x: jax.Array, dim: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * (dim % x.ndim) + (index,)


@op("slice.Tensor")
def slice_(x: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> jax.Array:
    return x[_cut(x, dim, slice(start, end, step))]


@op("slice_scatter.default")
def slice_scatter(
    x: jax.Array,
    source: jax.Array,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> jax.Array:
    return x.at[_cut(x, dim, slice(start, end, step))].set(source)


@op("select.int")
def select(x: jax.Array, dim: int, index: int) -> jax.Array:
    return lax.index_in_dim(x, index, dim % x.ndim, keepdims=False)


@op("select_scatter.default")
def select_scatter(x: jax.Array, source: jax.Array, dim: int, index: int) -> jax.Array:
    return x.at[_cut(x, dim, index)].set(source)


@op("index.Tensor")
def index(x: jax.Array, indices: Sequence[jax.Array | None]) -> jax.Array:
    if any(i is not None and i.dtype in (bool, jnp.uint8) for i in indices):
        raise JaxTransferError(
            "a mask that depends on the images selects a number of values that depends on them: keep all values, "
            "and set those outside the mask to 0 with torch.where"
        )
    arrays = iter(same_rank(*(i for i in indices if i is not None)))
    return x[tuple(slice(None) if i is None else next(arrays) for i in indices)]


@op("index_select.default")
def index_select(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    return jnp.take(x, index, axis=dim)


@op("embedding.default")
def embedding(
    weight: jax.Array,
    indices: jax.Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> jax.Array:
    return jnp.take(weight, indices, axis=0)


@op("flip.default")
def flip(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return jnp.flip(x, tuple(dims))


@op("roll.default")
def roll(x: jax.Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> jax.Array:
    if not dims:
        return jnp.roll(x, shifts[0])
    return jnp.roll(x, tuple(shifts), tuple(dims))


@op("pixel_shuffle.default")
def pixel_shuffle(x: jax.Array, upscale_factor: int) -> jax.Array:
    *batch, c, h, w = x.shape
    r, n = upscale_factor, len(batch)
    x = x.reshape(*batch, c // r**2, r, r, h, w)
    x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return x.reshape(*batch, c // r**2, h * r, w * r)


@op("pixel_unshuffle.default")
def pixel_unshuffle(x: jax.Array, downscale_factor: int) -> jax.Array:
    *batch, c, h, w = x.shape
    r, n = downscale_factor, len(batch)
    x = x.reshape(*batch, c, h // r, r, w // r, r)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return x.reshape(*batch, c * r**2, h // r, w // r)


@op("constant_pad_nd.default")
def constant_pad_nd(x: jax.Array, pad: Sequence[int], value: float = 0) -> jax.Array:
    """Pads with a constant; negative amounts cut, as in PyTorch."""
    amounts = [(low, high, 0) for low, high in _amounts(x, pad)]
    return lax.pad(x, jnp.asarray(value, x.dtype), amounts)


@op("reflection_pad1d.default", "reflection_pad2d.default")
def reflection_pad(x: jax.Array, padding: Sequence[int]) -> jax.Array:
    return jnp.pad(x, _amounts(x, padding), mode="reflect")


@op("replication_pad1d.default", "replication_pad2d.default")
def replication_pad(x: jax.Array, padding: Sequence[int]) -> jax.Array:
    return jnp.pad(x, _amounts(x, padding), mode="edge")


@op("pad.default")
def pad(x: jax.Array, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> jax.Array:
    if mode == "constant":
        return constant_pad_nd(x, pad, value or 0)
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in modes:
        raise JaxTransferError(f"padding mode {mode!r} is not supported")
    return jnp.pad(x, _amounts(x, pad), mode=modes[mode])


def _amounts(x: jax.Array, pad: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the padding of every axis; PyTorch lists the last axis first."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    return [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]


@op("arange.default", "arange.start", "arange.start_step")
def arange(start: Any, end: Any = None, step: Any = 1, *, dtype: str | None = None) -> jax.Array:
    """Computes every number as start + i * step, as PyTorch does."""
    start, end = (0, start) if end is None else (start, end)
    out_dtype = result_dtype(start, end, step) if dtype is None else as_dtype(dtype)
    count = jnp.arange(math.ceil((end - start) / step), dtype=as_dtype("int64"))
    return (cast(count, out_dtype) * cast(step, out_dtype) + cast(start, out_dtype)).astype(out_dtype)


@op("full.default", "full_like.default", "scalar_tensor.default")
def full(like: Any, value: Any = None, *, dtype: str | None = None) -> jax.Array:
    """Fills an array; `like` is a shape, an array of that shape, or (`scalar_tensor`) the value itself."""
    if value is None:
        like, value = (), like
    shape, default = (like.shape, like.dtype) if isinstance(like, jax.Array) else (like, result_dtype(value))
    return jnp.full(shape, value, default if dtype is None else as_dtype(dtype))


@op("fill.Scalar", "fill.Tensor")
def fill(x: jax.Array, value: Any) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape)


@op("zeros.default", "zeros_like.default")
def zeros(like: Any, *, dtype: str | None = None) -> jax.Array:
    return full(like, 0.0, dtype=dtype)


@op("empty.memory_format", "empty_like.default", "empty_permuted.default")
def empty(like: Any, physical_layout: Any = None, *, dtype: str | None = None) -> jax.Array:
    """Returns zeros; what a network reads before it has written there is undefined in PyTorch."""
    return zeros(like, dtype=dtype)


@op("ones.default", "ones_like.default")
def ones(like: Any, *, dtype: str | None = None) -> jax.Array:
    return full(like, 1.0, dtype=dtype)


@op("tril.default")
def tril(x: jax.Array, diagonal: int = 0) -> jax.Array:
    return jnp.tril(x, diagonal)


@op("triu.default")
def triu(x: jax.Array, diagonal: int = 0) -> jax.Array:
    return jnp.triu(x, diagonal)
