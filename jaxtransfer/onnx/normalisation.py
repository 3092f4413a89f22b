"""Implements normalisation with fixed statistics and over the features of one image."""

# ONNX documents an operator under the name that its function is registered for.
# ruff: noqa: D103

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten import normalisation as aten
from jaxtransfer.aten.algebra import vector_norm
from jaxtransfer.onnx.table import op


@op("BatchNormalization")
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, *, epsilon: float = 1e-5
) -> jax.Array:
    return aten.batch_norm(x, scale, bias, mean, var, False, 0.0, epsilon, False)


@op("InstanceNormalization")
def instance_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-5) -> jax.Array:
    return aten.instance_norm(x, scale, bias, None, None, True, 0.0, epsilon, False)


@op("GroupNormalization")
def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> jax.Array:
    channels = x.shape[1]
    if scale.shape[0] != channels:  # up to opset 20 there is one number for a group
        scale, bias = (jnp.repeat(v, channels // num_groups) for v in (scale, bias))
    return aten.group_norm(x, num_groups, scale, bias, epsilon)


def _of_shape(parameter: Any, shape: Sequence[int]) -> Any:
    if parameter is None or parameter.shape == tuple(shape):
        return parameter
    return jnp.broadcast_to(parameter.reshape((1,) * (len(shape) - parameter.ndim) + parameter.shape), shape)


@op("LayerNormalization")
def layer_norm(
    x: jax.Array, scale: Any, bias: Any = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> jax.Array:
    shape = x.shape[axis:]
    return aten.layer_norm(x, shape, _of_shape(scale, shape), _of_shape(bias, shape), epsilon)


@op("RMSNormalization")
def rms_norm(x: jax.Array, scale: Any, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> jax.Array:
    shape = x.shape[axis:]
    return aten.rms_norm(x, shape, _of_shape(scale, shape), epsilon)


@op("MeanVarianceNormalization")
def mean_variance_norm(x: jax.Array, *, axes: Sequence[int] = (0, 2, 3)) -> jax.Array:
    over = tuple(axes)
    centred = x - x.mean(over, keepdims=True)
    return centred / (jnp.sqrt((centred * centred).mean(over, keepdims=True)) + 1e-9)


@op("LpNormalization")
def lp_norm(x: jax.Array, *, axis: int = -1, p: int = 2) -> jax.Array:
    norm = vector_norm(x, p, (axis,), True)
    return x / jnp.where(norm == 0, 1.0, norm)


@op("LRN")
def local_response_norm(
    x: jax.Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> jax.Array:
    ones = (1,) * (x.ndim - 2)
    padding = [(0, 0), ((size - 1) // 2, size // 2), *((0, 0) for _ in ones)]
    total = lax.reduce_window(x * x, np.zeros((), x.dtype), lax.add, (1, size, *ones), (1,) * x.ndim, padding)
    return x / (bias + alpha / size * total) ** beta
