"""Implements element-wise operations: activations, arithmetic, comparisons.

Where a function has a kink, its derivative is PyTorch's (`derivatives.yaml` of its sources), which is why some
functions are written here instead of taken from `jax.nn`. Every activation is a jitted function of its own, so that
it is a single equation of a jaxpr.
"""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import OPS, cast, floating, match, op, result_dtype, same_rank
from jaxtransfer.errors import JaxTransferError


def _activation(*names: str, static: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: op(*names)(jax.jit(function, static_argnames=static))


for _name, _function in {
    "relu.default": jax.nn.relu,
    "sigmoid.default": jax.nn.sigmoid,
    "tanh.default": jnp.tanh,
    "silu.default": jax.nn.silu,
    "mish.default": jax.nn.mish,
    "log_sigmoid.default": jax.nn.log_sigmoid,
}.items():
    _activation(_name)(_function)


@_activation("gelu.default", static=("approximate",))
def gelu(x: jax.Array, *, approximate: str = "none") -> jax.Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@_activation("leaky_relu.default", static=("negative_slope",))
def leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    return jnp.where(x > 0, x, negative_slope * x)


@op("rrelu.default")
def rrelu(
    x: jax.Array, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> jax.Array:
    if training:
        raise JaxTransferError("RReLU in training mode draws slopes at random")
    return leaky_relu(x, (lower + upper) / 2)


@op("prelu.default", "_prelu_kernel.default")
def prelu(x: jax.Array, weight: jax.Array) -> jax.Array:
    if weight.ndim != x.ndim:
        weight = weight.reshape((1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,))
    return jnp.where(x > 0, x, weight * x)


@_activation("elu.default", static=("alpha", "scale", "input_scale"))
def elu(x: jax.Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> jax.Array:
    negative = jnp.where(x > 0, 0.0, x)  # keeps expm1, and with it the gradient, finite
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(negative * input_scale))


@_activation("celu.default", static=("alpha",))
def celu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    return elu(x, float(alpha), 1.0, 1.0 / alpha)


@_activation("selu.default")
def selu(x: jax.Array) -> jax.Array:
    return elu(x, 1.6732632423543772, 1.0507009873554805)


@_activation("softplus.default", static=("beta", "threshold"))
def softplus(x: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


@_activation("hardtanh.default", static=("min_val", "max_val"))
def hardtanh(x: jax.Array, min_val: float = -1.0, max_val: float = 1.0) -> jax.Array:
    return jnp.where(x <= min_val, float(min_val), jnp.where(x >= max_val, float(max_val), x))


@_activation("relu6.default")
def relu6(x: jax.Array) -> jax.Array:
    return hardtanh(x, 0.0, 6.0)


@_activation("hardsigmoid.default")
def hardsigmoid(x: jax.Array) -> jax.Array:
    return hardtanh(x + 3.0, 0.0, 6.0) / 6.0


@_activation("hardswish.default")
def hardswish(x: jax.Array) -> jax.Array:
    return jnp.where(x <= -3.0, 0.0, jnp.where(x < 3.0, x * (x + 3.0) / 6.0, x))


@_activation("threshold.default", static=("threshold", "value"))
def threshold(x: jax.Array, threshold: float, value: float) -> jax.Array:
    return jnp.where(x > threshold, x, cast(value, x.dtype))


@_activation("hardshrink.default", static=("lambd",))
def hardshrink(x: jax.Array, lambd: float = 0.5) -> jax.Array:
    return jnp.where((x >= -lambd) & (x <= lambd), 0.0, x)


@_activation("softshrink.default", static=("lambd",))
def softshrink(x: jax.Array, lambd: float = 0.5) -> jax.Array:
    return jnp.where(x > lambd, x - lambd, jnp.where(x < -lambd, x + lambd, 0.0))


@op("glu.default")
def glu(x: jax.Array, dim: int = -1) -> jax.Array:
    values, gates = jnp.split(x, 2, axis=dim)
    return values * jax.nn.sigmoid(gates)


# Functions of one array that are the same in JAX; integers are computed in float32.
for _name, _function in {
    "sqrt": jnp.sqrt, "rsqrt": jax.lax.rsqrt, "exp": jnp.exp, "expm1": jnp.expm1, "log": jnp.log,
    "log1p": jnp.log1p, "log2": jnp.log2, "sin": jnp.sin, "cos": jnp.cos, "atan": jnp.arctan,
    "erf": jax.lax.erf, "reciprocal": jnp.reciprocal, "sinc": jnp.sinc,
}.items():  # fmt: skip
    op(f"{_name}.default")(lambda x, f=_function: f(floating(x)))

# Functions of one array that keep its dtype.
for _name, _function in {
    "neg": jnp.negative, "sign": jnp.sign, "floor": jnp.floor, "ceil": jnp.ceil,
    "round": jnp.round, "square": jnp.square, "logical_not": jnp.logical_not, "bitwise_not": jnp.bitwise_not,
}.items():  # fmt: skip
    op(f"{_name}.default")(_function)


@op("abs.default")
def absolute(x: jax.Array) -> jax.Array:
    """Computes magnitudes, whose derivative at 0 is 0."""
    if not jnp.iscomplexobj(x):
        return x * jnp.sign(x)
    square = x.real * x.real + x.imag * x.imag
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))


@op("add.Tensor", "add.Scalar")
def add(x: Any, y: Any, alpha: float = 1) -> jax.Array:
    x, y = match(x, y)
    return x + (y if alpha == 1 else y * alpha)


@op("sub.Tensor", "sub.Scalar")
def sub(x: Any, y: Any, alpha: float = 1) -> jax.Array:
    x, y = match(x, y)
    return x - (y if alpha == 1 else y * alpha)


@op("rsub.Scalar", "rsub.Tensor")
def rsub(x: Any, y: Any, alpha: float = 1) -> jax.Array:
    return sub(y, x, alpha)


@op("mul.Tensor", "mul.Scalar")
def mul(x: Any, y: Any) -> jax.Array:
    x, y = match(x, y)
    return x * y


@op("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def div(x: Any, y: Any, *, rounding_mode: str | None = None) -> jax.Array:
    x, y = match(x, y)
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    if rounding_mode == "trunc" and not jnp.issubdtype(result_dtype(x, y), jnp.floating):
        return lax.div(*jnp.broadcast_arrays(x, y))
    if rounding_mode == "trunc":
        return jnp.trunc(x / y)
    return jnp.true_divide(*match(x, y, 1.0)[:2])


@op("addcmul.default")
def addcmul(x: jax.Array, y: jax.Array, z: jax.Array, *, value: float = 1) -> jax.Array:
    return add(x, mul(y, z), alpha=value)


@op("lerp.Scalar", "lerp.Tensor")
def lerp(x: jax.Array, y: jax.Array, weight: Any) -> jax.Array:
    return add(x, mul(sub(y, x), weight))


@op("remainder.Scalar", "remainder.Tensor")
def remainder(x: Any, y: Any) -> jax.Array:
    return jnp.remainder(*match(x, y))


@op("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(x: Any, exponent: Any) -> jax.Array:
    if isinstance(exponent, float) and exponent.is_integer() and jnp.issubdtype(x.dtype, jnp.floating):
        return x ** int(exponent)
    if isinstance(exponent, int):
        return x**exponent
    x, exponent = match(x, exponent)
    if isinstance(x, jax.Array):
        x = jnp.where((x == 0) & (exponent == 0), jnp.ones_like(x), x)  # the derivative of 0 ** 0 is 0
    return jnp.power(x, exponent)


@op("maximum.default", "max.other")
def maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.maximum(*match(x, y))


@op("minimum.default", "min.other")
def minimum(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.minimum(*match(x, y))


@op("clamp.default", "clamp.Tensor")
def clamp(x: jax.Array, min: Any = None, max: Any = None) -> jax.Array:
    """Clamps with the derivative 1 on the bounds themselves, unlike `jnp.clip` and `lax.clamp`."""
    for bound, beyond in ((min, operator.lt), (max, operator.gt)):
        if bound is not None:
            x, bound = match(x, bound)
            x = jnp.where(beyond(x, bound), bound, x)
    return x


@op("clamp_min.default", "clamp_min.Tensor")
def clamp_min(x: jax.Array, min: Any) -> jax.Array:
    return clamp(x, min=min)


@op("clamp_max.default", "clamp_max.Tensor")
def clamp_max(x: jax.Array, max: Any) -> jax.Array:
    return clamp(x, max=max)


def _compare(function: Callable[[Any, Any], Any], x: Any, y: Any) -> jax.Array:
    return function(*match(x, y))


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    op(f"{_name}.Scalar", f"{_name}.Tensor")(functools.partial(_compare, getattr(operator, _name)))

for _name, _function in {
    "logical_and": jnp.logical_and, "logical_or": jnp.logical_or,
    "bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or,
}.items():  # fmt: skip
    op(f"{_name}.default" if _name.startswith("logical") else f"{_name}.Tensor")(functools.partial(_compare, _function))


@op("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def where(condition: jax.Array, x: Any, y: Any) -> jax.Array:
    dtype = result_dtype(x, y)
    return jnp.where(*same_rank(condition, jnp.asarray(x, dtype), jnp.asarray(y, dtype)))


@op("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(x: jax.Array, mask: jax.Array, value: Any) -> jax.Array:
    return jnp.where(*same_rank(mask, jnp.asarray(value, x.dtype), x))


# Arithmetic on sizes, which are Python integers while JAX traces.
for _function in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.getitem):
    OPS[f"operator.{_function.__name__}"] = _function
