"""Implements element-wise operators: activations, arithmetic, comparisons, casts.

Derivatives at kinks are those of PyTorch, as in `jaxtransfer.aten.elementwise`, whose functions compute the
activations. `Clip` has the derivative 0 on its bounds, since ONNX writes ReLU6 with it.
"""

# ONNX documents an operator under the name that its function is registered for.
# ruff: noqa: D103

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.aten import elementwise as aten
from jaxtransfer.aten.table import OPS as ATEN
from jaxtransfer.aten.table import as_dtype, floating
from jaxtransfer.onnx.table import bounded, integers, is_static, match, namespace, op, static

for _name, _aten in {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Mish": "mish", "HardSwish": "hardswish",
}.items():  # fmt: skip
    op(_name)(ATEN[f"aten.{_aten}.default"])


@op("LeakyRelu")
def leaky_relu(x: jax.Array, *, alpha: float = 0.01) -> jax.Array:
    return aten.leaky_relu(x, alpha)


@op("PRelu")
def prelu(x: jax.Array, slope: Any) -> jax.Array:
    x, slope = match(x, slope)
    return aten.prelu(x, slope)


@op("Elu")
def elu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    return aten.elu(x, alpha)


@op("Celu")
def celu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    return aten.celu(x, alpha)


@op("Selu")
def selu(x: jax.Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Any:
    return aten.elu(x, alpha, gamma)


@op("Gelu")
def gelu(x: jax.Array, *, approximate: str = "none") -> jax.Array:
    return aten.gelu(x, approximate=approximate)


@op("Softplus")
def softplus(x: jax.Array) -> jax.Array:
    return aten.softplus(x, threshold=math.inf)


@op("Softsign")
def softsign(x: jax.Array) -> jax.Array:
    return x / (1.0 + aten.absolute(x))


@op("Swish")
@functools.partial(jax.jit, static_argnames="alpha")
def swish(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    return x * jax.nn.sigmoid(alpha * x)


@op("HardSigmoid")
@functools.partial(jax.jit, static_argnames=("alpha", "beta"))
def hard_sigmoid(x: jax.Array, *, alpha: float = 0.2, beta: float = 0.5) -> jax.Array:
    return aten.hardtanh(alpha * x + beta, 0.0, 1.0)


@op("ThresholdedRelu")
def thresholded_relu(x: jax.Array, *, alpha: float = 1.0) -> jax.Array:
    return aten.threshold(x, alpha, 0.0)


@op("Shrink")
@functools.partial(jax.jit, static_argnames=("bias", "lambd"))
def shrink(x: jax.Array, *, bias: float = 0.0, lambd: float = 0.5) -> jax.Array:
    return jnp.where(x < -lambd, x + bias, jnp.where(x > lambd, x - bias, 0.0))


@op("Clip")
def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    if is_static(x, min, max):
        return np.clip(x, min, max)
    if not is_static(min, max) or not jnp.issubdtype(x.dtype, jnp.floating):
        return aten.clamp(x, *(None if bound is None else jnp.asarray(bound) for bound in (min, max)))
    low = -math.inf if min is None else float(np.asarray(min).reshape(()))
    high = math.inf if max is None else float(np.asarray(max).reshape(()))
    return jnp.full_like(x, high) if low > high else aten.hardtanh(x, low, high)


# Functions of one array that NumPy has too; the first group is for floating-point arrays.
for _name, _function in {
    "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Sin": "sin", "Cos": "cos", "Tan": "tan",
    "Asin": "arcsin", "Acos": "arccos", "Atan": "arctan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "arcsinh",
    "Acosh": "arccosh", "Atanh": "arctanh",
    "Neg": "negative", "Sign": "sign", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Not": "logical_not",
    "BitwiseNot": "bitwise_not", "IsNaN": "isnan",
}.items():  # fmt: skip
    op(_name)(lambda x, name=_function: np.asarray(getattr(np, name)(x)) if is_static(x) else getattr(jnp, name)(x))


@op("Erf")
def erf(x: jax.Array) -> jax.Array:
    return lax.erf(floating(x))


@op("Abs")
def absolute(x: Any) -> Any:
    return np.abs(x) if is_static(x) else aten.absolute(x)


@op("IsInf")
def is_inf(x: Any, *, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    return namespace(x).isinf(x) & (((x < 0) & bool(detect_negative)) | ((x > 0) & bool(detect_positive)))


def _divide(x: Any, y: Any) -> Any:
    """Divides; integers are rounded towards zero."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x / y
    if is_static(x, y):
        return (np.abs(x) // np.abs(y)) * (np.sign(x) * np.sign(y))
    return lax.div(*jnp.broadcast_arrays(x, y))


def _binary(function: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    x, y = match(x, y)
    return np.asarray(function(x, y)) if is_static(x, y) else function(x, y)


for _name, _function in {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": _divide,
    "And": operator.and_, "Or": operator.or_, "Xor": operator.xor,
    "BitwiseAnd": operator.and_, "BitwiseOr": operator.or_, "BitwiseXor": operator.xor,
    "Equal": operator.eq, "Greater": operator.gt, "Less": operator.lt,
    "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
}.items():  # fmt: skip
    op(_name)(functools.partial(_binary, _function))


@op("Mod")
def mod(x: Any, y: Any, *, fmod: int = 0) -> Any:
    return _binary(getattr(namespace(x, y), "fmod" if fmod else "remainder"), x, y)


@op("Pow")
def power(x: Any, exponent: Any) -> Any:
    if is_static(x, exponent):
        x, exponent = match(x, exponent)
        return np.power(x, exponent).astype(x.dtype)
    if is_static(exponent) and exponent.size == 1 and jnp.issubdtype(x.dtype, jnp.floating):
        return aten.power(x, float(exponent.reshape(())))
    x, exponent = match(x, exponent)
    return aten.power(x, exponent).astype(x.dtype)


def _variadic(name: str, *operands: Any) -> Any:
    return functools.reduce(lambda x, y: _binary(getattr(namespace(x, y), name), x, y), operands)


for _name, _function in {"Max": "maximum", "Min": "minimum", "Sum": "add"}.items():
    op(_name)(functools.partial(_variadic, _function))


@op("Mean")
def mean(*operands: Any) -> Any:
    return _variadic("add", *operands) / len(operands)


@op("Where")
def where(condition: Any, x: Any, y: Any) -> Any:
    condition, x, y = match(condition, x, y)
    return namespace(condition, x, y).where(condition, x, y)


@op("Cast")
def cast(x: Any, *, to: str) -> Any:
    return x.astype(to) if is_static(x) else x.astype(as_dtype(to))


@op("CastLike")
def cast_like(x: Any, like: Any) -> Any:
    return x.astype(like.dtype)


@op("Constant")
def constant(values: list[Any], dtype: str, shape: list[int]) -> np.ndarray:
    """Returns numbers that are part of the program."""
    return np.array(values, dtype).reshape(shape)


@op("DequantizeLinear")
def dequantize(x: Any, scale: Any, zero: Any = None, *, axis: int = 1, block_size: int = 0) -> Any:
    """Returns (x - zero) * scale, with one scale in all, one for each index along an axis, or one for each block."""
    xp = namespace(x, scale, zero)

    def spread(parameter: Any) -> Any:
        parameter = xp.asarray(parameter).astype(np.float32)
        if block_size:
            blocks = xp.repeat(parameter, block_size, axis)
            return blocks[(slice(None),) * (axis % x.ndim) + (slice(x.shape[axis]),)]
        if parameter.size == 1:
            return parameter.reshape((1,) * x.ndim)
        return parameter.reshape([x.shape[axis] if i == axis % x.ndim else 1 for i in range(x.ndim)])

    real = xp.asarray(x).astype(np.float32)
    return (real if zero is None else real - spread(zero)) * spread(scale)


@op("CumSum")
def cumsum(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Any:
    xp = namespace(x)
    (at,) = integers(axis, "axis")
    x = xp.flip(x, at) if reverse else x
    total = xp.cumsum(x, at, dtype=x.dtype)
    total = total - x if exclusive else total
    return xp.flip(total, at) if reverse else total


@op("Range")
def range_(start: Any, limit: Any, delta: Any) -> np.ndarray:
    start, limit, delta = (static(x, "bound").reshape(()) for x in (start, limit, delta))
    bounded((max(0, math.ceil((float(limit) - float(start)) / float(delta))),))
    return np.arange(start, limit, delta, dtype=start.dtype)
