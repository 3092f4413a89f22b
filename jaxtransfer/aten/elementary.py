"""Implements the rarer functions of single numbers: trigonometric, hyperbolic, special and remainder functions, bits.

Where a function has a kink or a pole, its derivative is PyTorch's (`derivatives.yaml` of its sources).
"""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import floating, match, op, result_dtype, same_rank

# Functions of one array; integers are computed in float32.
for _name, _function in {
    "tan": jnp.tan, "asin": jnp.arcsin, "acos": jnp.arccos, "sinh": jnp.sinh, "cosh": jnp.cosh, "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh, "atanh": jnp.arctanh, "log10": jnp.log10, "exp2": jnp.exp2, "erfc": lax.erfc,
    "erfinv": lax.erf_inv, "lgamma": lax.lgamma, "digamma": lax.digamma, "special_i0e": lax.bessel_i0e,
    "i0": lambda x: jnp.exp(x * jnp.sign(x)) * lax.bessel_i0e(x),
}.items():  # fmt: skip
    op(f"{_name}.default")(lambda x, f=_function: f(floating(x)))

for _name, _function in {"isnan": jnp.isnan, "isinf": jnp.isinf, "signbit": jnp.signbit}.items():
    op(f"{_name}.default")(_function)


@op("trunc.default", "fix.default")
def trunc(x: jax.Array) -> jax.Array:
    return lax.stop_gradient(jnp.trunc(x)) if jnp.issubdtype(x.dtype, jnp.floating) else x


@op("frac.default")
def frac(x: jax.Array) -> jax.Array:
    return x - trunc(x)


@op("nan_to_num.default")
def nan_to_num(
    x: jax.Array, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    limits = jnp.finfo(x.dtype)
    x = jnp.where(jnp.isnan(x), 0.0 if nan is None else nan, x)
    x = jnp.where(x == jnp.inf, limits.max if posinf is None else posinf, x)
    return jnp.where(x == -jnp.inf, limits.min if neginf is None else neginf, x)


def _float_pair(x: Any, y: Any) -> list[Any]:
    return match(*(floating(a) if isinstance(a, jax.Array) else float(a) for a in (x, y)))


@op("atan2.default")
def atan2(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the angle of a point, whose derivative at the origin is 0."""
    x, y = _float_pair(x, y)
    return _except_at_origin(jnp.arctan2, x, y)


def _except_at_origin(function: Callable[..., jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    origin = (x == 0) & (y == 0)
    return jnp.where(origin, lax.stop_gradient(function(x, y)), function(x, jnp.where(origin, 1.0, y)))


@op("hypot.default")
def hypot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.hypot(*match(x, y))


@op("copysign.Tensor", "copysign.Scalar")
def copysign(x: jax.Array, y: Any) -> jax.Array:
    """Gives magnitudes the signs of other numbers; the derivative where a magnitude is 0 is 0."""
    x, y = _float_pair(x, y)
    magnitude = x * jnp.sign(x)
    return jnp.where(jnp.signbit(y), -magnitude, magnitude)


@op("fmod.Tensor", "fmod.Scalar")
def fmod(x: Any, y: Any) -> jax.Array:
    x, y = match(x, y)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return lax.rem(*jnp.broadcast_arrays(x, y))
    # The remainder is exact, and its derivative is that of x - trunc(x / y) * y.
    exact, linear = jnp.fmod(x, y), x - lax.stop_gradient(jnp.trunc(x / y)) * y
    return lax.stop_gradient(exact - linear) + linear


@op("fmax.default")
def fmax(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the larger number, and the first argument of equal ones; NaN counts as missing."""
    x, y = match(x, y)
    return jnp.where((x >= y) | jnp.isnan(y), x, y)


@op("fmin.default")
def fmin(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the smaller number, and the first argument of equal ones; NaN counts as missing."""
    x, y = match(x, y)
    return jnp.where((x <= y) | jnp.isnan(y), x, y)


for _name, _function in {"logaddexp": jnp.logaddexp, "logaddexp2": jnp.logaddexp2, "nextafter": jnp.nextafter}.items():
    op(f"{_name}.default")(lambda x, y, f=_function: f(*match(x, y)))


@op("heaviside.default")
def heaviside(x: jax.Array, values: jax.Array) -> jax.Array:
    x, values = match(x, values)
    return lax.stop_gradient(jnp.heaviside(x, values))


@op("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self")
def xlogy(x: Any, y: Any) -> jax.Array:
    x, y = _float_pair(x, y)
    zero = (x == 0) & ~jnp.isnan(y)
    logarithm = jnp.log(jnp.where(zero & (y <= 0), 1.0, y))
    return jnp.where(zero, x * jnp.where(y > 0, logarithm, 0.0), x * logarithm)


@op("ldexp.Tensor")
def ldexp(x: jax.Array, other: jax.Array) -> jax.Array:
    x, power = match(floating(x), jnp.exp2(floating(other)))
    return x * power


def _compare(function: Callable[[Any, Any], Any], x: Any, y: Any) -> jax.Array:
    return function(*match(x, y))


op("logical_xor.default")(functools.partial(_compare, jnp.logical_xor))
op("gcd.default")(functools.partial(_compare, jnp.gcd))
op("lcm.default")(functools.partial(_compare, jnp.lcm))

for _name, _function in {"bitwise_and": jnp.bitwise_and, "bitwise_or": jnp.bitwise_or}.items():
    op(f"{_name}.Scalar", f"{_name}.Scalar_Tensor")(functools.partial(_compare, _function))
op("bitwise_xor.Tensor", "bitwise_xor.Scalar", "bitwise_xor.Scalar_Tensor")(
    functools.partial(_compare, jnp.bitwise_xor)
)
for _name, _function in {"left": jnp.left_shift, "right": jnp.right_shift}.items():
    op(*(f"bitwise_{_name}_shift.{kind}" for kind in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")))(
        functools.partial(_compare, _function)
    )


@op("isin.Tensor_Tensor", "isin.Tensor_Scalar", "isin.Scalar_Tensor")
def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> jax.Array:
    dtype = result_dtype(elements, test_elements)
    return jnp.isin(jnp.asarray(elements, dtype), jnp.asarray(test_elements, dtype), invert=invert)


@op("addcdiv.default")
def addcdiv(x: jax.Array, y: jax.Array, z: jax.Array, *, value: float = 1) -> jax.Array:
    x, y, z = match(x, y, z)
    return x + value * y / z


@op("bucketize.Tensor", "bucketize.Scalar")
def bucketize(x: Any, boundaries: jax.Array, *, out_int32: bool = False, right: bool = False) -> jax.Array:
    return searchsorted(boundaries, x, out_int32=out_int32, right=right)


@op("searchsorted.Tensor", "searchsorted.Scalar")
def searchsorted(
    sorted_sequence: jax.Array,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: jax.Array | None = None,
) -> jax.Array:
    """Counts the numbers of a sequence that come before each value; a sequence per row if there are several."""
    if sorter is not None:
        sorted_sequence = jnp.take_along_axis(sorted_sequence, sorter, -1)
    right = right or side == "right"
    dtype = result_dtype(sorted_sequence, x)
    sequence, values = sorted_sequence.astype(dtype), jnp.asarray(x, dtype)[..., None]
    if sequence.ndim > 1:
        sequence = sequence[..., None, :]
    sequence, values = same_rank(sequence, values)
    before = sequence <= values if right else sequence < values
    return jnp.sum(before, -1, dtype=jnp.int32 if out_int32 else None)
