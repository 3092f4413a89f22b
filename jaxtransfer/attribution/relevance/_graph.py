"""A jaxpr as a graph of values and nodes, with calls inlined and every value marked for what it depends on."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from jaxtransfer.attribution.relevance._primitives import (
    CHECKPOINTS,
    CUSTOM,
    ELEMENTWISE,
    INLINED,
    SPREADING,
    STOPS_GRADIENT,
)
from jaxtransfer.attribution.relevance._roles import NO_ROLE, Role, roles_of


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """One array in the graph.

    Attributes:
        aval: Shape and type.
        node: What computes it; None for inputs and constants.
        constant: The array itself, if it is known while tracing.
        dependent: It depends on the images in any way.
        active: It depends on them differentiably.
        uniform: All entries are the same number, known from the program text: not a weight, not a mask.
        roles: Its role in a softmax or a normalisation.
        feeds: For an input of a body, the values it stands for: the argument of the call, and the carry of a loop.
    """

    aval: Any
    node: Node | None = None
    constant: Any = None
    dependent: bool = False
    active: bool = False
    uniform: bool = False
    roles: Role = NO_ROLE
    feeds: list[Value] = dataclasses.field(default_factory=list)

    @property
    def origin(self) -> Value:
        """The array of which this is an element-wise function; the value itself if there are several or none."""
        return self if self._origin is None else self._origin

    _origin: Value | None = None


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """One equation.

    Attributes:
        eqn: The equation.
        jaxpr: The jaxpr it stands in.
        callers: The calls it was inlined from, outermost first.
        inputs: What it is computed from.
        outputs: What it computes.
        bodies: The graphs of its branches (`cond`), or of the one function it calls; empty for other primitives.
    """

    eqn: jex.JaxprEqn
    jaxpr: jex.Jaxpr
    callers: tuple[jex.JaxprEqn, ...]
    inputs: list[Value]
    outputs: list[Value] = dataclasses.field(default_factory=list)
    bodies: list[Graph] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.eqn.primitive.name

    @property
    def dependents(self) -> list[Value]:
        """Inputs that depend on the images, without repetitions."""
        return list(dict.fromkeys(value for value in self.inputs if value.dependent))

    @property
    def actives(self) -> list[Value]:
        """Inputs that depend on the images differentiably, with repetitions."""
        return [value for value in self.inputs if value.active]

    def bind(self, *arrays: Any) -> list[Any]:
        """Computes the outputs from the inputs, with JAX's own derivatives."""
        if self.name in CUSTOM:
            # Only a jaxpr knows how to call a function with custom derivatives.
            given = {v: a for v, a in zip(self.eqn.invars, arrays, strict=True) if not isinstance(v, jex.Literal)}
            one = self.jaxpr.replace(constvars=(), invars=list(given), outvars=list(self.eqn.outvars), eqns=[self.eqn])
            return jex.jaxpr_as_fun(jex.ClosedJaxpr(one, ()))(*given.values())
        out = self.eqn.primitive.bind(*arrays, **self.eqn.params)
        return list(out) if self.eqn.primitive.multiple_results else [out]


@dataclasses.dataclass(eq=False, slots=True)
class Graph:
    """Inputs, nodes in an order in which they can be computed, and outputs."""

    inputs: list[Value]
    nodes: list[Node]
    outputs: list[Value]


def all_nodes(graph: Graph) -> Iterator[Node]:
    """Yields the nodes of a graph, and those of the bodies of its nodes."""
    for node in graph.nodes:
        yield node
        for body in node.bodies:
            yield from all_nodes(body)


def build(closed: jex.ClosedJaxpr, active: Sequence[bool]) -> Graph:
    """Makes the graph of a jaxpr; `active` says which inputs stand for the images."""
    inputs = [
        Value(var.aval, dependent=a, active=a and is_inexact(var.aval))
        for var, a in zip(closed.jaxpr.invars, active, strict=True)
    ]
    return _build(closed, inputs)


def _build(closed: jex.ClosedJaxpr, inputs: list[Value]) -> Graph:
    nodes: list[Node] = []
    return Graph(inputs, nodes, _inline(closed, inputs, nodes, ()))


def _inline(
    closed: jex.ClosedJaxpr, inputs: Sequence[Value], nodes: list[Node], callers: tuple[jex.JaxprEqn, ...]
) -> list[Value]:
    jaxpr = closed.jaxpr
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, constant in zip(jaxpr.constvars, closed.consts, strict=True):
        env[var] = Value(var.aval, constant=constant, uniform=not var.aval.shape)

    def read(atom: Any) -> Value:
        if isinstance(atom, jex.Literal):
            return Value(atom.aval, constant=atom.val, uniform=True)
        return env[atom]

    for eqn in jaxpr.eqns:
        arguments = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in INLINED:
            outputs = _inline(body(eqn), arguments, nodes, (*callers, eqn))
        else:
            if name in ELEMENTWISE:
                shape = eqn.outvars[0].aval.shape
                arguments = [_spread(value, shape, jaxpr, callers, nodes) for value in arguments]
            node = Node(eqn, jaxpr, callers, arguments)
            _add_bodies(node)
            node.outputs = outputs = [_output(node, number) for number in range(len(eqn.outvars))]
            nodes.append(node)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _spread(
    value: Value, shape: tuple[int, ...], jaxpr: jex.Jaxpr, callers: tuple[jex.JaxprEqn, ...], nodes: list[Node]
) -> Value:
    """The value in the shape of the result where an element-wise primitive would repeat its entries by itself."""
    if not value.dependent or value.aval.shape == shape:
        return value
    node = Node(_spreading(value.aval.shape, shape, value.aval.dtype), jaxpr, callers, [value])
    node.outputs = [_output(node, 0)]
    nodes.append(node)
    return node.outputs[0]


@functools.lru_cache(maxsize=1024)
def _spreading(shape: tuple[int, ...], result: tuple[int, ...], dtype: Any) -> jex.JaxprEqn:
    axes = tuple(range(len(result)))[len(result) - len(shape) :]
    closed = jax.make_jaxpr(lambda array: jax.lax.broadcast_in_dim(array, result, axes))(
        jax.ShapeDtypeStruct(shape, dtype)
    )
    (eqn,) = closed.jaxpr.eqns
    return eqn


def _output(node: Node, number: int) -> Value:
    aval = node.eqn.outvars[number].aval
    dependent = any(value.dependent for value in node.inputs)
    value = Value(aval, node, dependent=dependent)
    if node.bodies:
        inside = [graph.outputs[number] for graph in node.bodies]
        value.active = any(v.active for v in inside) and is_inexact(aval)
        if value.active:
            value.roles = functools.reduce(operator.and_, (v.roles for v in inside if v.active))
        return value
    value.active = bool(node.actives) and is_inexact(aval) and node.name not in STOPS_GRADIENT
    elementwise = node.name in ELEMENTWISE
    value.uniform = not dependent and (elementwise or node.name in SPREADING) and all(v.uniform for v in node.inputs)
    if value.active:
        value.roles = roles_of(node)
        origins = {v.origin for v in node.actives}
        if elementwise and len(origins) == 1:
            (value._origin,) = origins
    return value


def _add_bodies(node: Node) -> None:
    """Makes the graphs of what a node calls, marked by what it is called with."""
    name = node.name
    if not any(value.active for value in node.inputs):
        return
    if name in CUSTOM or name in CHECKPOINTS:
        node.bodies = [_build(body(node.eqn), [_inside(value) for value in node.inputs])]
    elif name == "cond":
        node.bodies = [
            _build(branch, [_inside(value) for value in node.inputs[1:]]) for branch in node.eqn.params["branches"]
        ]
    elif name == "scan":
        node.bodies = [_loop_body(node)]


def _inside(value: Value) -> Value:
    return Value(value.aval, dependent=value.dependent, active=value.active, roles=value.roles, feeds=[value])


def loop_sizes(eqn: jex.JaxprEqn) -> tuple[int, int]:
    """Returns the numbers of constant inputs and of carried values of a `scan`."""
    # Scanned inputs and stacked outputs have one axis more outside than inside; carries have not.
    closed = body(eqn)
    inside_in, inside_out = closed.jaxpr.invars, closed.jaxpr.outvars
    scanned = sum(len(shape_of(v)) > len(shape_of(u)) for v, u in zip(eqn.invars, inside_in, strict=True))
    carried = sum(len(shape_of(v)) == len(shape_of(u)) for v, u in zip(eqn.outvars, inside_out, strict=True))
    return len(inside_in) - carried - scanned, carried


def _loop_body(node: Node) -> Graph:
    closed = body(node.eqn)
    constants, carried = loop_sizes(node.eqn)
    variables = closed.jaxpr.invars
    state = [(value.dependent, value.active, value.roles) for value in node.inputs]
    while True:  # What one turn of the loop makes of a carry is what the next one gets.
        inputs = [
            Value(variable.aval, dependent=dependent, active=active, roles=roles, feeds=[value])
            for variable, value, (dependent, active, roles) in zip(variables, node.inputs, state, strict=True)
        ]
        graph = _build(closed, inputs)
        before = list(state)
        for number, value in enumerate(graph.outputs[:carried], constants):
            dependent, active, roles = state[number]
            if value.active:
                roles = roles & value.roles if active else value.roles
            state[number] = dependent or value.dependent, active or value.active, roles
        if state == before:
            for value, carry in zip(graph.inputs[constants:], graph.outputs[:carried], strict=False):
                value.feeds.append(carry)
            return graph


def body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    """Returns the jaxpr that a call-like equation runs."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            inner = eqn.params[key]
            return inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())
    raise AssertionError(f"{eqn.primitive.name} has no body")


def is_inexact(aval: Any) -> bool:
    """Returns whether arrays of this type can carry a gradient."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def shape_of(atom: Any) -> tuple[int, ...]:
    """Returns the shape of a variable or literal of a jaxpr."""
    return atom.aval.shape


def is_elementwise(node: Node) -> bool:
    """Whether the one output is a function, entry by entry, of the inputs that depend on the images."""
    if len(node.outputs) != 1:
        return False
    shape = node.outputs[0].aval.shape
    if any(value.aval.shape != shape for value in node.dependents):
        return False
    if node.name in CUSTOM:
        return all(_elementwise_eqn(eqn, shape) for eqn in body(node.eqn).jaxpr.eqns)
    return node.name in ELEMENTWISE


def _elementwise_eqn(eqn: jex.JaxprEqn, shape: tuple[int, ...]) -> bool:
    if eqn.primitive.name in INLINED or eqn.primitive.name in CUSTOM:
        return all(_elementwise_eqn(inner, shape) for inner in body(eqn).jaxpr.eqns)
    if eqn.primitive.name in SPREADING:
        return all(shape_of(atom) in ((), shape) for atom in eqn.invars)
    return eqn.primitive.name in ELEMENTWISE


def sources(value: Value, stop: Value) -> Iterator[Node]:
    """Yields the nodes between `stop` and `value`, in no particular order; `stop` lies on every path."""
    seen: set[Node] = set()
    todo = [value]
    while todo:
        current = todo.pop()
        if current is stop or current.node is None or current.node in seen:
            continue
        seen.add(current.node)
        yield current.node
        todo.extend(v for v in current.node.dependents if v is not stop)
