"""Holds the table of operations and PyTorch's rules for mixing dtypes and ranks.

A function in the table has the name of an ATen overload and takes that overload's arguments, in the same order and
with the same names and defaults. Axes have their PyTorch meaning. Arguments that say where or how a result is stored
(device, layout, memory format) never reach the table.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

OPS: dict[str, Callable[..., Any]] = {}
"""Maps the name of an operation, such as `aten.add.Tensor` or `mylib.scale.default`, to its function in JAX."""

_F = TypeVar("_F", bound=Callable[..., Any])


def op(*names: str) -> Callable[[_F], _F]:
    """Registers a function in the table; converted networks that use its operations can then run.

    The function takes the operation's arguments in PyTorch's order, arrays in place of tensors and names in place of
    dtypes, and returns an array or a tuple of arrays. JAX differentiates it.

    Args:
        names: Names of operations as PyTorch writes them: `tan` or `add.Tensor` of ATen, `mylib::scale` of another
            library. A name without an overload means the overload `default`. A name that is there is replaced.

    Examples:
        >>> @op("mylib::scale")
        ... def scale(x, factor):
        ...     return x * factor
        >>> "mylib.scale.default" in OPS
        True
    """

    def register(function: _F) -> _F:
        for name in names:
            library, _, operation = name.rpartition("::")
            OPS[f"{library or 'aten'}.{operation if '.' in operation else operation + '.default'}"] = function
        return function

    return register


def as_dtype(name: str) -> np.dtype:
    """Returns the dtype of a PyTorch name, or its 32-bit substitute if JAX runs without 64-bit types."""
    return jax.dtypes.canonicalize_dtype(jnp.dtype(name))


def _rank(dtype: np.dtype) -> tuple[int, int]:
    """Returns a key that orders dtypes as PyTorch does: bool < integer < floating < complex, then by size."""
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next(i for i, kind in enumerate(kinds) if jnp.issubdtype(dtype, kind)), dtype.itemsize


def _scalar_dtype(value: Any) -> np.dtype:
    return as_dtype({bool: "bool", int: "int64", float: "float32", complex: "complex64"}[type(value)])


def result_dtype(*operands: Any) -> np.dtype:
    """Returns the dtype of mixed operands as `torch.result_type` does.

    Arrays decide first, then arrays of rank 0, then Python numbers; a later group counts only if its category is
    higher (bool < integer < floating < complex).
    """
    arrays = [x for x in operands if isinstance(x, jax.Array | np.ndarray)]
    groups = (
        [x.dtype for x in arrays if x.ndim],
        [x.dtype for x in arrays if not x.ndim],
        [_scalar_dtype(x) for x in operands if isinstance(x, bool | int | float | complex)],
    )
    widest = [max(group, key=_rank) for group in groups if group]
    return functools.reduce(lambda a, b: b if _rank(b)[0] > _rank(a)[0] else a, widest)


def cast(x: Any, dtype: np.dtype) -> Any:
    """Converts an array or a Python number to a dtype; numbers stay Python numbers."""
    if isinstance(x, jax.Array | np.ndarray):
        return jnp.asarray(x).astype(dtype)
    return float(x) if jnp.issubdtype(dtype, jnp.floating) else x


def floating(x: jax.Array) -> jax.Array:
    """Converts integers and booleans to float32; floating-point and complex arrays stay unchanged."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def same_rank(*operands: Any) -> list[Any]:
    """Adds leading axes of size 1 until all arrays have the same rank; numbers stay unchanged."""
    rank = max((x.ndim for x in operands if isinstance(x, jax.Array)), default=0)
    return [x.reshape((1,) * (rank - x.ndim) + x.shape) if isinstance(x, jax.Array) else x for x in operands]


def match(*operands: Any) -> list[Any]:
    """Converts operands to the dtype that PyTorch computes in and arrays to equal rank, ready to broadcast."""
    dtype = result_dtype(*operands)
    return same_rank(*(cast(x, dtype) for x in operands))


def axes(x: jax.Array, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """Returns the axes of a reduction: all axes for None or an empty list, as in PyTorch."""
    if isinstance(dim, int):
        dim = (dim,)
    return tuple(d % x.ndim for d in dim) if dim else tuple(range(x.ndim))
