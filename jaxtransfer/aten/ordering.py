"""Implements orders and extremes: sorting, ranks, medians, products, running products and extremes, all and any."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import as_dtype, axes, floating, op


def _index_dtype() -> Any:
    return as_dtype("int64")


def _at_least_1d(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a function of arrays of rank 1 or more take numbers, which PyTorch treats as arrays of one element."""

    @functools.wraps(function)
    def wrapped(x: jax.Array, *args: Any, **kwargs: Any) -> Any:
        if x.ndim:
            return function(x, *args, **kwargs)
        return jax.tree.map(lambda y: y.reshape(()), function(x[None], *args, **kwargs))

    return wrapped


@op("argsort.default", "argsort.stable")
def argsort(x: jax.Array, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> jax.Array:
    """Orders stably; PyTorch promises an order of equal numbers only where it is asked to be stable."""
    return sort(x, dim, descending)[1]


@op("sort.default", "sort.stable")
@_at_least_1d
def sort(
    x: jax.Array, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[jax.Array, jax.Array]:
    at = jnp.argsort(lax.stop_gradient(x), dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, at, dim), at


@op("topk.default")
@_at_least_1d
def topk(x: jax.Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[jax.Array, jax.Array]:
    """Returns the k largest or smallest numbers in order, the first of equal ones first."""
    held = jnp.moveaxis(lax.stop_gradient(x), dim, -1)
    at = lax.top_k(held, k)[1] if largest else jnp.argsort(held, -1)[..., :k]
    at = jnp.moveaxis(at, -1, dim).astype(_index_dtype())
    return jnp.take_along_axis(x, at, dim), at


@op("kthvalue.default")
@_at_least_1d
def kthvalue(x: jax.Array, k: int, dim: int = -1, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
    values, at = (lax.slice_in_dim(y, k - 1, k, axis=dim % x.ndim) for y in sort(x, dim))
    return (values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim))


@op("median.dim")
def median_along(x: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
    """Returns the lower of the two middle numbers where their count is even, as PyTorch does."""
    return kthvalue(x, ((x.shape[dim] if x.ndim else 1) + 1) // 2, dim, keepdim)


@op("median.default")
def median(x: jax.Array) -> jax.Array:
    """Returns the lower middle number, whose gradient all equal numbers share."""
    middle = lax.stop_gradient(median_along(x.reshape(-1), 0)[0])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return middle
    equal = x == middle
    shared = jnp.sum(jnp.where(equal, x, 0.0)) / jnp.sum(equal, dtype=x.dtype)
    return middle + (shared - lax.stop_gradient(shared))


@op("argmin.default")
def argmin(x: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
    return jnp.argmin(x, dim, keepdims=keepdim)


@op("aminmax.default")
def aminmax(x: jax.Array, *, dim: int | None = None, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
    over = axes(x, dim if dim is None else [dim])
    return jnp.min(x, over, keepdims=keepdim), jnp.max(x, over, keepdims=keepdim)


@op("any.default", "any.dims")
def any_of(x: jax.Array, dim: Sequence[int] | None = None, keepdim: bool = False) -> jax.Array:
    return jnp.any(x, axes(x, dim), keepdims=keepdim)


@op("all.default", "all.dim", "all.dims")
def all_of(x: jax.Array, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> jax.Array:
    return jnp.all(x, axes(x, dim), keepdims=keepdim)


def _summable(x: jax.Array, dtype: str | None) -> jax.Array:
    """Converts to the dtype of a product: booleans and integers count in 64 bits."""
    if dtype is not None:
        return x.astype(as_dtype(dtype))
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(_index_dtype())


@op("prod.default")
def prod(x: jax.Array, *, dtype: str | None = None) -> jax.Array:
    return jnp.prod(_summable(x, dtype))


@op("prod.dim_int")
def prod_along(x: jax.Array, dim: int, keepdim: bool = False, *, dtype: str | None = None) -> jax.Array:
    return jnp.prod(_summable(x, dtype), dim, keepdims=keepdim)


@op("cumprod.default")
@_at_least_1d
def cumprod(x: jax.Array, dim: int, *, dtype: str | None = None) -> jax.Array:
    return jnp.cumprod(_summable(x, dtype), dim)


@op("logcumsumexp.default")
@_at_least_1d
def logcumsumexp(x: jax.Array, dim: int) -> jax.Array:
    return lax.cumlogsumexp(floating(x), dim % x.ndim)


def _running(further: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, dim: int) -> Any:
    """Returns running extremes and their places, the last of equal ones, as PyTorch does."""

    def later(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        take = further(b[0], a[0])
        return jnp.where(take, b[0], a[0]), jnp.where(take, b[1], a[1])

    places = lax.broadcasted_iota(_index_dtype(), x.shape, dim % x.ndim)
    at = lax.associative_scan(later, (lax.stop_gradient(x), places), axis=dim)[1]
    return jnp.take_along_axis(x, at, dim), at


op("cummax.default")(_at_least_1d(functools.partial(_running, jnp.greater_equal)))
op("cummin.default")(_at_least_1d(functools.partial(_running, jnp.less_equal)))
