"""Holds the table of operators, and the rules by which arithmetic on shapes stays out of the compiled program.

A function in the table has the name of an operator of ONNX. Its positional arguments are the operator's inputs, with
None for an optional input that is absent; its keyword arguments are the attributes, with the defaults of ONNX. Where
opsets differ, the function has the form of the latest one that the converter knows, into which it brings earlier ones.

Arrays of JAX are data: weights, and whatever is computed from images. NumPy arrays are what is known while JAX traces:
constants of the graph, shapes, and what is computed from these. An operator whose operands are all NumPy arrays is
computed by NumPy, so `jit`, `vjp` and the relevance rules see no arithmetic on shapes.
"""

import math
import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.aten.table import same_rank
from jaxtransfer.errors import JaxTransferError

OPS: dict[str, Callable[..., Any]] = {"operator.getitem": operator.getitem}
"""Maps the name of an operator, such as `onnx.Conv`, to the function that computes it in JAX."""

# Shapes, masks and positions are far smaller; what a small file could otherwise ask for has no limit.
_MOST_STATIC_VALUES = 2**24

_F = TypeVar("_F", bound=Callable[..., Any])


def op(*names: str) -> Callable[[_F], _F]:
    """Registers a function in the table under the names of one or more operators."""

    def register(function: _F) -> _F:
        for name in names:
            OPS[f"onnx.{name}"] = function
        return function

    return register


def is_static(*operands: Any) -> bool:
    """Whether all operands are known while JAX traces."""
    return not any(isinstance(x, jax.Array) for x in operands)


def namespace(*operands: Any) -> ModuleType:
    """Returns NumPy for operands that are all known while JAX traces, otherwise `jax.numpy`."""
    return np if is_static(*operands) else jnp


def bounded(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns a shape, checked to be one that NumPy may fill.

    Raises:
        JaxTransferError: It has more than 2**24 values.
    """
    if math.prod(shape) > _MOST_STATIC_VALUES:
        raise JaxTransferError(f"a constant of shape {tuple(shape)} is too large")
    return tuple(shape)


def match(*operands: Any) -> list[Any]:
    """Prepares operands to broadcast: NumPy arrays if all are, otherwise arrays of JAX of equal rank."""
    if is_static(*operands):
        arrays = [np.asarray(x) for x in operands]
        shape = np.broadcast_shapes(*(x.shape for x in arrays))
        if math.prod(shape) > max(x.size for x in arrays):
            bounded(shape)
        return arrays
    return same_rank(*(jnp.asarray(x) for x in operands))


def integers(x: Any, what: str) -> list[int]:
    """Returns whole numbers that an operator needs while JAX traces, such as axes.

    Raises:
        JaxTransferError: They are computed from images or weights.
    """
    return [int(value) for value in static(x, what).reshape(-1)]


def static(x: Any, what: str) -> np.ndarray:
    """Returns an operand that an operator needs while JAX traces.

    Raises:
        JaxTransferError: It is computed from images or weights.
    """
    if isinstance(x, jax.Array):
        raise JaxTransferError(f"its {what} is computed from the values of the images")
    return np.asarray(x)


def axes(x: Any, values: Any) -> tuple[int, ...]:
    """Returns axes of `x` counted from the front.

    Raises:
        JaxTransferError: `x` has no such axis.
    """
    found = integers(values, "list of axes")
    if not all(-x.ndim <= axis < x.ndim for axis in found):
        raise JaxTransferError(f"an array of {x.ndim} axes has no axes {found}")
    return tuple(axis % x.ndim for axis in found)
