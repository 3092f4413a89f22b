"""Implements products, attention and reductions."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import as_dtype, axes, op
from jaxtransfer.errors import JaxTransferError


@op("mm.default", "bmm.default", "matmul.default")
def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y)


@op("addmm.default", "baddbmm.default")
def addmm(bias: jax.Array, x: jax.Array, y: jax.Array, *, beta: float = 1, alpha: float = 1) -> jax.Array:
    product = jnp.matmul(x, y)
    product = product if alpha == 1 else alpha * product
    bias = bias if beta == 1 else beta * bias
    return product + bias.reshape((1,) * (product.ndim - bias.ndim) + bias.shape)


@op("linear.default")
def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    y = jnp.tensordot(x, weight, axes=((-1,), (1,)))
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


@op("scaled_dot_product_attention.default")
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    attn_mask: jax.Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    if dropout_p:
        raise JaxTransferError("attention in training mode drops values at random")
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(a, group, axis=-3) for a in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.matmul(query * scale, key.swapaxes(-1, -2))
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is None:
        return jnp.matmul(softmax(scores, -1), value)
    attn_mask = attn_mask.reshape((1,) * (scores.ndim - attn_mask.ndim) + attn_mask.shape)
    scores = jnp.where(attn_mask, scores, -jnp.inf) if attn_mask.dtype == bool else scores + attn_mask
    empty = jnp.all(scores == -jnp.inf, axis=-1, keepdims=True)  # a query that may attend to nothing returns 0
    weights = softmax(jnp.where(empty, 0.0, scores), -1)
    return jnp.matmul(jnp.where(empty, 0.0, weights), value)


def _as(x: jax.Array, dtype: str | None) -> jax.Array:
    return x if dtype is None else x.astype(as_dtype(dtype))


def _below_maximum(x: jax.Array, dim: int) -> jax.Array:
    """Subtracts the maximum, so that exponentials stay finite; the derivative treats the maximum as constant."""
    return x - lax.stop_gradient(jnp.max(x, dim, keepdims=True))


@op("softmax.int")
def softmax(x: jax.Array, dim: int, dtype: str | None = None) -> jax.Array:
    e = jnp.exp(_below_maximum(_as(x, dtype), dim))
    return e / jnp.sum(e, dim, keepdims=True)


@op("log_softmax.int")
def log_softmax(x: jax.Array, dim: int, dtype: str | None = None) -> jax.Array:
    shifted = _below_maximum(_as(x, dtype), dim)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), dim, keepdims=True))


@op("_softmax.default")
def softmax_core(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    return softmax(x, dim, "float32" if half_to_float else None)


@op("_log_softmax.default")
def log_softmax_core(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    return log_softmax(x, dim, "float32" if half_to_float else None)


@op("logsumexp.default")
def logsumexp(x: jax.Array, dim: int | Sequence[int], keepdim: bool = False) -> jax.Array:
    highest = jnp.max(x, axes(x, dim), keepdims=True)
    shift = lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0.0))
    total = jnp.log(jnp.sum(jnp.exp(x - shift), axes(x, dim), keepdims=True)) + shift
    return total if keepdim else total.squeeze(axes(x, dim))


@op("mean.default", "mean.dim")
def mean(
    x: jax.Array, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: str | None = None
) -> jax.Array:
    return jnp.mean(_as(x, dtype), axes(x, dim), keepdims=keepdim)


@op("sum.default", "sum.dim_IntList")
def sum_(
    x: jax.Array, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: str | None = None
) -> jax.Array:
    return jnp.sum(_as(x, dtype), axes(x, dim), keepdims=keepdim)


@op("amax.default", "max.default")
def amax(x: jax.Array, dim: Sequence[int] = (), keepdim: bool = False) -> jax.Array:
    return jnp.max(x, axes(x, dim), keepdims=keepdim)


@op("amin.default", "min.default")
def amin(x: jax.Array, dim: Sequence[int] = (), keepdim: bool = False) -> jax.Array:
    return jnp.min(x, axes(x, dim), keepdims=keepdim)


def _first(index: Callable[..., jax.Array], x: jax.Array, dim: int, keepdim: bool = False) -> Any:
    """Returns extremes and indices; unlike in `amax` and `amin`, the first of equal extremes gets the gradient."""
    at = index(x, dim, keepdims=True)
    values = jnp.take_along_axis(x, at, dim)
    return (values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim))


op("max.dim")(functools.partial(_first, jnp.argmax))
op("min.dim")(functools.partial(_first, jnp.argmin))


@op("argmax.default")
def argmax(x: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
    return jnp.argmax(x, dim, keepdims=keepdim)


def _root(total: jax.Array, order: float = 2) -> jax.Array:
    """Takes a root whose derivative is 0 where the root is 0."""
    zero = total == 0
    positive = jnp.where(zero, 1.0, total)
    return jnp.where(zero, 0.0, jnp.sqrt(positive) if order == 2 else positive ** (1 / order))


def var(
    x: jax.Array,
    dim: int | Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> jax.Array:
    centred = x - jnp.mean(x, axes(x, dim), keepdims=True)
    total = jnp.sum(centred * centred, axes(x, dim), keepdims=keepdim)
    samples = math.prod(x.shape[axis] for axis in axes(x, dim))
    return total / max(0, samples - (1 if correction is None else correction))


def std(*args: Any, **kwargs: Any) -> jax.Array:
    return _root(var(*args, **kwargs))


def _with_mean(function: Callable[..., jax.Array], x: jax.Array, dim: Any = None, **kwargs: Any) -> Any:
    return function(x, dim, **kwargs), mean(x, dim, kwargs.get("keepdim", False))


def _unbiased(
    function: Callable[..., Any],
    x: jax.Array,
    dim: int | Sequence[int] | None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Any:
    return function(x, dim, correction=int(unbiased), keepdim=keepdim)


for _name, _function in {"var": var, "std": std}.items():
    for _suffix, _statistic in {"": _function, "_mean": functools.partial(_with_mean, _function)}.items():
        op(f"{_name}{_suffix}.correction")(_statistic)
        op(f"{_name}{_suffix}.dim")(functools.partial(_unbiased, _statistic))
        op(f"{_name}{_suffix}.default")(lambda x, unbiased=True, f=_statistic: _unbiased(f, x, None, unbiased))


@op("linalg_vector_norm.default")
def vector_norm(
    x: jax.Array,
    ord: float = 2,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: str | None = None,
) -> jax.Array:
    """Computes a norm whose derivative is 0 where the norm is 0."""
    x, over = _as(x, dtype), axes(x, dim)
    if ord == 2:
        return _root(jnp.sum(x * x, over, keepdims=keepdim))
    magnitude = x * jnp.sign(x)
    if ord == math.inf:
        return jnp.max(magnitude, over, keepdims=keepdim)
    if ord <= 0:
        raise JaxTransferError(f"a norm of order {ord} is not supported")
    total = jnp.sum(magnitude if ord == 1 else magnitude**ord, over, keepdims=keepdim)
    return total if ord == 1 else _root(total, ord)


@op("cumsum.default")
def cumsum(x: jax.Array, dim: int, *, dtype: str | None = None) -> jax.Array:
    if dtype is None and not jnp.issubdtype(x.dtype, jnp.floating):
        dtype = "int64"
    return jnp.cumsum(_as(x, dtype), dim)


@op("any.dim")
def any_(x: jax.Array, dim: int, keepdim: bool = False) -> jax.Array:
    return jnp.any(x, dim, keepdims=keepdim)
