"""Implements normalisation with fixed statistics and over the features of one image."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import op
from jaxtransfer.errors import JaxTransferError


def _affine(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _per_channel(v: jax.Array | None, x: jax.Array) -> jax.Array | None:
    return None if v is None else v.reshape((1, -1) + (1,) * (x.ndim - 2))


def _standardise(x: jax.Array, over: Sequence[int], eps: float) -> jax.Array:
    centred = x - x.mean(over, keepdims=True)
    return centred * lax.rsqrt((centred * centred).mean(over, keepdims=True) + eps)


@op("_native_batch_norm_legit_no_training.default")
def batch_norm_core(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    running_mean: jax.Array,
    running_var: jax.Array,
    momentum: float,
    eps: float,
) -> tuple[jax.Array]:
    return (_with_statistics(x, weight, bias, running_mean, running_var, eps),)


def _with_statistics(x: jax.Array, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float) -> Any:
    """Computes scale and shift from the weights first, so that images need one product and one sum."""
    scale = lax.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return _affine(x, _per_channel(scale, x), _per_channel(shift, x))


@op("batch_norm.default")
def batch_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    running_mean: jax.Array | None,
    running_var: jax.Array | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> jax.Array:
    if running_mean is None:
        return batch_norm_no_stats(x, weight, bias, training, momentum, eps)[0]
    if training:
        raise JaxTransferError("batch norm in training mode mixes the images of a batch")
    return _with_statistics(x, weight, bias, running_mean, running_var, eps)


@op("instance_norm.default")
def instance_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    running_mean: jax.Array | None,
    running_var: jax.Array | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> jax.Array:
    if not use_input_stats:
        return _with_statistics(x, weight, bias, running_mean, running_var, eps)
    y = _standardise(x, range(2, x.ndim), eps)
    return _affine(y, _per_channel(weight, x), _per_channel(bias, x))


@op("_native_batch_norm_legit.no_stats")
def batch_norm_no_stats(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[jax.Array]:
    """Normalises a batch of one image, which instance norm and weight standardisation decompose into."""
    if x.shape[0] != 1:
        raise JaxTransferError("batch norm without running statistics mixes the images of a batch")
    y = _standardise(x, (0, *range(2, x.ndim)), eps)
    return (_affine(y, _per_channel(weight, x), _per_channel(bias, x)),)


@op("layer_norm.default")
def layer_norm(
    x: jax.Array,
    normalized_shape: Sequence[int],
    weight: jax.Array | None = None,
    bias: jax.Array | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> jax.Array:
    first = x.ndim - len(normalized_shape)
    y = _standardise(x, range(first, x.ndim), eps)
    shape = (1,) * first + tuple(normalized_shape)
    return _affine(y, *(None if v is None else v.reshape(shape) for v in (weight, bias)))


@op("rms_norm.default")
def rms_norm(
    x: jax.Array, normalized_shape: Sequence[int], weight: jax.Array | None = None, eps: float | None = None
) -> jax.Array:
    over = tuple(range(x.ndim - len(normalized_shape), x.ndim))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    y = x * lax.rsqrt((x * x).mean(over, keepdims=True) + eps)
    return _affine(y, None if weight is None else weight.reshape((1,) * over[0] + weight.shape), None)


@op("native_layer_norm.default")
def native_layer_norm(x: jax.Array, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    return (layer_norm(x, shape, weight, bias, eps),)


@op("group_norm.default")
def group_norm(
    x: jax.Array,
    num_groups: int,
    weight: jax.Array | None = None,
    bias: jax.Array | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> jax.Array:
    grouped = x.reshape(x.shape[0], num_groups, -1)
    y = _standardise(grouped, (2,), eps).reshape(x.shape)
    return _affine(y, _per_channel(weight, x), _per_channel(bias, x))


@op("native_group_norm.default")
def native_group_norm(
    x: jax.Array, weight: Any, bias: Any, n: int, c: int, spatial: int, group: int, eps: float
) -> Any:
    return (group_norm(x, group, weight, bias, eps),)
