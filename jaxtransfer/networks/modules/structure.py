"""Describes how an object is built, so that objects built alike compare as equal."""

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Hashable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

_ATOMS = type | types.ModuleType | types.BuiltinFunctionType | str | bytes | int | None


class _Plain:
    """The instances of a class of this size have nothing but their attributes."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Same:
    """Stands for an object that is not hashable; equal only for the same object."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def structure(value: Any) -> Hashable:
    """Returns a description of an object that is equal for objects built alike, even if they are not the same.

    Functions are compared by their code and what it closes over, arrays by their values, objects without an equality
    of their own by their attributes.
    """
    return _describe(value, {})


def structure_hash(description: Hashable) -> str:
    """Returns the SHA-256 of a description without addresses, so that it is the same in every process."""
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(description)).encode()).hexdigest()


def _describe(value: Any, known: dict[int, tuple[Any, Hashable]]) -> Hashable:
    """Describes an object; `known` has those met before by their ids, and the objects, so that ids stay in use."""
    if isinstance(value, _ATOMS):
        return type(value), value
    if id(value) not in known:
        known[id(value)] = value, ("within itself", len(known))
        parts = _parts(value)
        described = _atom(value) if parts is None else tuple(_describe(part, known) for part in parts)
        known[id(value)] = value, (type(value), described)
    return known[id(value)][1]


def _atom(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _parts(value: Any) -> list[Any] | None:
    """Returns what decides how an object behaves; None if the object has to be compared as a whole."""
    if isinstance(value, float | complex):
        return [repr(value)]  # 0.0 == -0.0
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(cast(jax.Array, value)) if is_key else value)
        return [str(value.dtype), *array.shape, array.tobytes()]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        return [
            value.__module__,
            value.__qualname__,
            value.__code__,
            value.__defaults__,
            value.__kwdefaults__,
            *closure,
        ]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return [*value]
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if not jax.tree_util.all_leaves([value]):
        leaves, tree = jax.tree.flatten(value)
        return [tree, *leaves]
    if type(value).__eq__ is object.__eq__ and type(value).__basicsize__ == _Plain.__basicsize__:
        return [part for item in vars(value).items() for part in item]
    return None
