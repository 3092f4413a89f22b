"""Implements products, reductions and softmax."""

# ONNX documents an operator under the name that its function is registered for.
# ruff: noqa: D103

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten import algebra as aten
from jaxtransfer.aten.table import same_rank
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.onnx.table import axes, integers, is_static, namespace, op


@op("MatMul")
def matmul(x: Any, y: Any) -> Any:
    if is_static(x, y):
        return np.matmul(x, y)
    x, y = jnp.asarray(x), jnp.asarray(y)
    if y.ndim == 2 and x.ndim > 1:
        return jnp.tensordot(x, y, axes=((-1,), (0,)))
    return jnp.matmul(*(same_rank(x, y) if min(x.ndim, y.ndim) > 1 else (x, y)))


@op("Gemm")
def gemm(
    x: Any, y: Any, z: Any = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> jax.Array:
    x, y = jnp.asarray(x), jnp.asarray(y)
    product = matmul(x.T if transA else x, y.T if transB else y)
    product = product if alpha == 1 else alpha * product
    if z is None:
        return product
    product, z = same_rank(product, jnp.asarray(z))
    return product + (z if beta == 1 else beta * z)


@op("Einsum")
def einsum(*operands: Any, equation: str) -> jax.Array:
    return jnp.einsum(equation.replace(" ", ""), *(jnp.asarray(x) for x in operands))


@op("Softmax")
def softmax(x: jax.Array, *, axis: int = -1) -> jax.Array:
    return aten.softmax(jnp.asarray(x), axis)


@op("LogSoftmax")
def log_softmax(x: jax.Array, *, axis: int = -1) -> jax.Array:
    return aten.log_softmax(jnp.asarray(x), axis)


@op("Hardmax")
def hardmax(x: jax.Array, *, axis: int = -1) -> jax.Array:
    return jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], dtype=x.dtype, axis=axis)


def _total(name: str, x: Any, over: tuple[int, ...], keep: bool) -> Any:
    if is_static(x):
        return np.asarray(getattr(np, name)(x, over, keepdims=keep)).astype(x.dtype)
    return getattr(jnp, name)(x, over, keepdims=keep)


def _mean(x: Any, over: tuple[int, ...], keep: bool) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return namespace(x).mean(x, over, keepdims=keep)
    return _total("sum", x, over, keep) // math.prod(x.shape[axis] for axis in over)


_REDUCTIONS = {
    "ReduceSum": functools.partial(_total, "sum"),
    "ReduceProd": functools.partial(_total, "prod"),
    "ReduceMax": functools.partial(_total, "max"),
    "ReduceMin": functools.partial(_total, "min"),
    "ReduceMean": _mean,
    "ReduceL1": lambda x, over, keep: aten.vector_norm(jnp.asarray(x), 1, over, keep),
    "ReduceL2": lambda x, over, keep: aten.vector_norm(jnp.asarray(x), 2, over, keep),
    "ReduceLogSumExp": lambda x, over, keep: aten.logsumexp(jnp.asarray(x), over, keep),
    "ReduceLogSum": lambda x, over, keep: jnp.log(jnp.sum(x, over, keepdims=keep)),
    "ReduceSumSquare": lambda x, over, keep: jnp.sum(x * x, over, keepdims=keep),
}


def _reduce(name: str, x: Any, over: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
    if over is None or not integers(over, "list of axes"):
        at = () if noop_with_empty_axes else tuple(range(x.ndim))
    else:
        at = axes(x, over)
    if not at:  # no axes, or no axes to begin with
        return x
    return _REDUCTIONS[name](x, at, bool(keepdims))


for _name in _REDUCTIONS:
    op(_name)(functools.partial(_reduce, _name))


def _extreme(name: str, x: Any, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Any:
    xp, length = namespace(x), x.shape[axis]
    x = xp.flip(x, axis) if select_last_index else x
    at = getattr(xp, name)(x, axis, keepdims=bool(keepdims))
    return length - 1 - at if select_last_index else at


op("ArgMax")(functools.partial(_extreme, "argmax"))
op("ArgMin")(functools.partial(_extreme, "argmin"))


@op("TopK")
def top_k(x: Any, k: Any, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[jax.Array, jax.Array]:
    (count,) = integers(k, "k")
    last = jnp.moveaxis(jnp.asarray(x), axis, -1)
    values, at = lax.top_k(last if largest else -last, count)
    return jnp.moveaxis(values if largest else -values, -1, axis), jnp.moveaxis(at, -1, axis)


@op("Attention")
def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Any = None,
    *past: Any,
    is_causal: int = 0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    **precision: Any,
) -> jax.Array:
    """Attends with heads on an axis of their own, or with the heads of a query side by side in its last axis."""
    if any(x is not None for x in past) or softcap:
        raise JaxTransferError("attention with past keys and values or a soft cap is not supported")
    split = query.ndim == 3
    if split:
        query, key, value = (
            x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
            for x, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
        )
    mask = None if mask is None else jnp.asarray(mask)
    grouped = query.shape[1] != key.shape[1]
    y = aten.attention(query, key, value, mask, 0.0, bool(is_causal), scale=scale, enable_gqa=grouped)
    return y.swapaxes(1, 2).reshape(y.shape[0], y.shape[2], -1) if split else y
