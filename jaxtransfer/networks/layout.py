"""Removes transpositions from a function: axes stay in memory as they are until an operation needs another order.

PyTorch's feature maps have their channels first, and XLA's convolutions are fast with channels last. An operation that
converts both ways around a convolution would move all its entries twice. Here a transposition moves nothing: it only
notes the new order of the axes, and operations that work in any order (element-wise ones, reductions, pooling,
concatenation, padding, slices, many changes of shape) pass it on.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax
from jax.extend import source_info_util
from jaxtyping import Array, PyTree

from jaxtransfer.networks.primitives import CUSTOM, ELEMENTWISE, INLINED

_Order = tuple[int, ...]

_WINDOWS = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
# Primitives that work in any order of axes, with those of their parameters that have an entry for every axis ...
_ENTRIES = {
    "pad": ("padding_config",),
    "reduce_window_max": _WINDOWS,
    "reduce_window_min": _WINDOWS,
    "reduce_window_sum": _WINDOWS,
    "slice": ("limit_indices", "start_indices", "strides"),
}
# ... and those with a parameter that names axes, which the result has, too ...
_NAMES = {
    "concatenate": "dimension",
    "cumsum": "axis",
    "cumprod": "axis",
    "rev": "dimensions",
    "split": "axis",
}
# ... or lacks.
_DROPPED = {
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), "axes"),
    **dict.fromkeys(("argmax", "argmin"), "axes"),
    "squeeze": "dimensions",
}
_ANY_ORDER = ELEMENTWISE | _ENTRIES.keys() | _NAMES.keys() | _DROPPED.keys()


def without_transpositions(function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """Computes `function(*arguments)` and moves axes only where an operation needs it.

    Entries are computed as before, except that sums may add them in another order.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    outputs = _run(closed, [_Ordered.of(leaf) for leaf in jax.tree.leaves(arguments)])
    return jax.tree.unflatten(jax.tree.structure(shapes), [output.arranged(_natural(output)) for output in outputs])


@dataclasses.dataclass(frozen=True)
class _Ordered:
    """A value in memory: axis i of the array is axis `order[i]` of the value."""

    array: Any
    order: _Order

    @classmethod
    def of(cls, array: Any) -> "_Ordered":
        return cls(array, tuple(range(jnp.ndim(array))))

    @property
    def shape(self) -> tuple[int, ...]:
        shape = jnp.shape(self.array)
        return tuple(shape[self.order.index(axis)] for axis in range(len(shape)))

    def arranged(self, order: _Order) -> Any:
        """Returns the array whose axis i is axis `order[i]` of the value."""
        axes = tuple(self.order.index(axis) for axis in order)
        if axes == _natural(self):
            return self.array
        shape = self.array.shape
        if _increasing(axis for axis in axes if shape[axis] != 1):
            return self.array.reshape([shape[axis] for axis in axes])
        return self.array.transpose(axes)


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """A value that repeats another one and is made in any order: axis i of `value` is axis `axes[i]` of it."""

    value: "_Value"
    axes: _Order
    shape: tuple[int, ...]
    order: None = None

    def arranged(self, order: _Order) -> Array:
        positions = {axis: position for position, axis in enumerate(order)}
        kept = sorted(self.axes, key=positions.__getitem__)
        array = self.value.arranged(tuple(self.axes.index(axis) for axis in kept))
        return lax.broadcast_in_dim(array, [self.shape[axis] for axis in order], [positions[axis] for axis in kept])


_Value = _Ordered | _Repeated


def _natural(value: _Value) -> _Order:
    return tuple(range(len(value.shape)))


def _increasing(numbers: Any) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))


def _run(closed: jex.ClosedJaxpr, inputs: Sequence[_Value]) -> list[_Value]:
    jaxpr = closed.jaxpr
    env: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    env.update(zip(jaxpr.constvars, map(_Ordered.of, closed.consts), strict=True))

    def read(atom: Any) -> _Value:
        return _Ordered.of(atom.val) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        with source_info_util.user_context(eqn.source_info.traceback):
            env.update(zip(eqn.outvars, _apply(jaxpr, eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(jaxpr: jex.Jaxpr, eqn: jex.JaxprEqn, values: list[_Value]) -> Sequence[_Value]:
    name, params = eqn.primitive.name, eqn.params
    if name in INLINED:
        return _run(_body(eqn), values)
    if name == "broadcast_in_dim":
        return [_Repeated(values[0], params["broadcast_dimensions"], params["shape"])]
    if name == "transpose" and isinstance(value := values[0], _Ordered):
        return [_Ordered(value.array, tuple(params["permutation"].index(axis) for axis in value.order))]
    if name == "reshape" and isinstance(value := values[0], _Ordered):
        shape = params["new_sizes"]
        if (order := _reshaped(value, shape)) is not None:
            return [_Ordered(value.array.reshape([shape[axis] for axis in order]), order)]
    order = _best_order(values)
    if name in _ANY_ORDER:
        return _bind(eqn, values, order)
    if name == "custom_jvp_call" and not _increasing(order) and _is_elementwise(eqn):
        outputs = _elementwise_call(jaxpr, eqn, order)(*_arrays(values, order))
        return [_Ordered(output, order) for output in outputs]
    arrays = [value.arranged(_natural(value)) for value in values]
    if name in CUSTOM:
        return list(map(_Ordered.of, _function(jaxpr, eqn)(*arrays)))
    return [_Ordered.of(output) for output in _outputs(eqn, arrays, params)]


def _bind(eqn: jex.JaxprEqn, values: Sequence[_Value], order: _Order) -> list[_Value]:
    """Applies one of the primitives that work in any order to values in one order."""
    name, params = eqn.primitive.name, eqn.params
    outputs = _outputs(eqn, _arrays(values, order), _reordered(name, params, order))
    if name in _DROPPED:
        kept = [axis for axis in order if axis not in params[_DROPPED[name]]]
        order = tuple(sorted(kept).index(axis) for axis in kept)
    return [_Ordered(output, order) for output in outputs]


def _outputs(eqn: jex.JaxprEqn, arrays: Sequence[Any], params: Mapping[str, Any]) -> Sequence[Any]:
    outputs = eqn.primitive.bind(*arrays, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _arrays(values: Sequence[_Value], order: _Order) -> list[Any]:
    return [value.arranged(order if value.shape else ()) for value in values]


def _best_order(values: Sequence[_Value]) -> _Order:
    """Returns an order in which few entries have to be moved: that of the largest value, best one that is changed."""
    ordered = [value for value in values if value.shape and isinstance(value, _Ordered)]
    if not ordered:
        return max((_natural(value) for value in values), key=len, default=())
    return max(ordered, key=lambda value: (value.array.size, value.order != _natural(value))).order


def _reordered(name: str, params: Mapping[str, Any], order: _Order) -> dict[str, Any]:
    """Returns the parameters of a primitive for arrays in another order of axes."""
    changed = dict(params)
    for key in _ENTRIES.get(name, ()):
        if params[key] is not None:
            changed[key] = tuple(params[key][axis] for axis in order)
    if (key := _NAMES.get(name) or _DROPPED.get(name)) is not None:
        axes = params[key]
        several = isinstance(axes, Sequence)
        changed[key] = tuple(sorted(map(order.index, axes))) if several else order.index(axes)
    return changed


def _reshaped(value: _Ordered, shape: Sequence[int]) -> _Order | None:
    """Returns the order of the axes of a reshaped value whose entries stay in their places, or None if they cannot."""
    old = value.shape
    if 0 in old:
        return None
    blocks = list(_blocks(old, shape))
    memory = [axis for axis in value.order if old[axis] != 1]
    blocks.sort(key=lambda block: memory.index(block[0][0]))
    if [axis for before, _ in blocks for axis in before] != memory:
        return None
    order = [axis for _, after in blocks for axis in after]
    for axis, size in enumerate(shape):
        if size == 1:
            order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(order)


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields pairs of the fewest axes of two shapes that hold the same entries; axes of size 1 are left out."""
    olds, news = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (old, new))
    while olds:
        before, after = [olds.pop(0)], [news.pop(0)]
        sizes = old[before[0]], new[after[0]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                before.append(olds.pop(0))
                sizes = sizes[0] * old[before[-1]], sizes[1]
            else:
                after.append(news.pop(0))
                sizes = sizes[0], sizes[1] * new[after[-1]]
        yield before, after


def _body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    inner = eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]
    return inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())


def _is_elementwise(eqn: jex.JaxprEqn) -> bool:
    """Whether every entry of the outputs is computed from the same entries of the inputs."""
    name = eqn.primitive.name
    if name in INLINED or name in CUSTOM:
        shapes = {_shape(atom) for atom in (*eqn.invars, *eqn.outvars)} - {()}
        return len(shapes) == 1 and all(map(_is_elementwise, _body(eqn).jaxpr.eqns))
    return name in ELEMENTWISE or (name == "broadcast_in_dim" and not _shape(eqn.invars[0]))


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _function(jaxpr: jex.Jaxpr, eqn: jex.JaxprEqn) -> Callable[..., list[Array]]:
    """Returns the function that an equation computes, with derivatives of its own."""
    variables = [isinstance(atom, jex.Var) for atom in eqn.invars]
    alone = jaxpr.replace(
        constvars=(),
        invars=list(itertools.compress(eqn.invars, variables)),
        outvars=list(eqn.outvars),
        eqns=[eqn],
    )
    function = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))
    return lambda *arrays: function(*itertools.compress(arrays, variables))


def _elementwise_call(jaxpr: jex.Jaxpr, eqn: jex.JaxprEqn, order: _Order) -> Callable[..., list[Array]]:
    """Returns an element-wise function with derivatives of its own, for arrays in another order of axes."""
    function = _function(jaxpr, eqn)

    @jax.custom_jvp
    def call(*arrays: Array) -> list[Array]:
        values = [_Ordered(array, order if array.shape else ()) for array in map(jnp.asarray, arrays)]
        outputs = _run(_body(eqn), values)
        return [output.arranged(order) for output in outputs]

    @call.defjvp
    def derivative(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        # The function is traced for one shape; which entry is where does not matter to it.
        shapes = list(map(_shape, eqn.invars))
        at, along = ([x.reshape(shape) for x, shape in zip(xs, shapes, strict=True)] for xs in (primals, tangents))
        shape = [_shape(eqn.outvars[0])[axis] for axis in order]
        values, derivatives = jax.jvp(function, at, along)
        return [value.reshape(shape) for value in values], [value.reshape(shape) for value in derivatives]

    return call
