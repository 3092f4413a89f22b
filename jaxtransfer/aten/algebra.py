"""Products, attention and reductions."""

# An operation is documented by the ATen overload it is named for.
# ruff: noqa: D103

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

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
        raise JaxTransferError("attention drops values at random: call .eval() on the network before export")
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(a, group, axis=-3) for a in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.matmul(query * scale, key.swapaxes(-1, -2))
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is not None:
        attn_mask = attn_mask.reshape((1,) * (scores.ndim - attn_mask.ndim) + attn_mask.shape)
        scores = jnp.where(attn_mask, scores, -jnp.inf) if attn_mask.dtype == bool else scores + attn_mask
    return jnp.matmul(jax.nn.softmax(scores, axis=-1), value)


@op("softmax.int", "_softmax.default")
def softmax(x: jax.Array, dim: int, half_to_float: Any = None) -> jax.Array:
    return jax.nn.softmax(x, axis=dim)


@op("log_softmax.int", "_log_softmax.default")
def log_softmax(x: jax.Array, dim: int, half_to_float: Any = None) -> jax.Array:
    return jax.nn.log_softmax(x, axis=dim)


@op("mean.default", "mean.dim")
def mean(
    x: jax.Array, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: str | None = None
) -> jax.Array:
    x = x if dtype is None else x.astype(as_dtype(dtype))
    return jnp.mean(x, axes(x, dim), keepdims=keepdim)


@op("sum.default", "sum.dim_IntList")
def sum_(
    x: jax.Array, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: str | None = None
) -> jax.Array:
    x = x if dtype is None else x.astype(as_dtype(dtype))
    return jnp.sum(x, axes(x, dim), keepdims=keepdim)


@op("amax.default")
def amax(x: jax.Array, dim: Sequence[int] = (), keepdim: bool = False) -> jax.Array:
    return jnp.max(x, axes(x, dim), keepdims=keepdim)


@op("amin.default")
def amin(x: jax.Array, dim: Sequence[int] = (), keepdim: bool = False) -> jax.Array:
    return jnp.min(x, axes(x, dim), keepdims=keepdim)


@op("max.dim")
def max_(x: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
    """Unlike `amax`, the first maximum alone gets the gradient."""
    at = jnp.argmax(x, dim, keepdims=True)
    values = jnp.take_along_axis(x, at, dim)
    return (values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim))


@op("argmax.default")
def argmax(x: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
    return jnp.argmax(x, dim, keepdims=keepdim)


@op("var.correction")
def var(
    x: jax.Array,
    dim: int | Sequence[int] | None = None,
    *,
    correction: int | None = None,
    keepdim: bool = False,
) -> jax.Array:
    return jnp.var(x, axes(x, dim), ddof=1 if correction is None else correction, keepdims=keepdim)


@op("linalg_vector_norm.default")
def vector_norm(
    x: jax.Array, ord: float = 2, dim: int | Sequence[int] | None = None, keepdim: bool = False
) -> jax.Array:
    """Where the norm is 0, so is its derivative."""
    over = axes(x, dim)
    if ord == math.inf:
        return jnp.max(x * jnp.sign(x), over, keepdims=keepdim)
    if ord <= 0:
        raise JaxTransferError(f"a norm of order {ord} is not supported")
    magnitude = x * jnp.sign(x)
    total = jnp.sum(magnitude if ord == 1 else magnitude**ord, over, keepdims=keepdim)
    if ord == 1:
        return total
    zero = total == 0
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, total) ** (1 / ord))


@op("cumsum.default")
def cumsum(x: jax.Array, dim: int) -> jax.Array:
    return jnp.cumsum(x, dim)


@op("any.dim")
def any_(x: jax.Array, dim: int, keepdim: bool = False) -> jax.Array:
    return jnp.any(x, dim, keepdims=keepdim)
