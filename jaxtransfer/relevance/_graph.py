"""A jaxpr as a graph of values and nodes, with calls inlined and every value marked for what it depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp

from jaxtransfer.relevance._primitives import CUSTOM, ELEMENTWISE, INLINED, SPREADING, STOPS_GRADIENT


@dataclasses.dataclass(eq=False, slots=True)
class Value:
    """One array in the graph.

    Attributes:
        aval: Shape and type.
        node: What computes it; None for inputs and constants.
        constant: The array itself, where it is known while tracing.
        dependent: It depends on the images in any way.
        active: It depends on them differentiably.
        uniform: One number known from the program text, everywhere: not a weight, not a mask.
    """

    aval: Any
    node: Node | None = None
    constant: Any = None
    dependent: bool = False
    active: bool = False
    uniform: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """One equation; `jaxpr` is the one it stands in, `callers` the calls it was inlined from, outermost first."""

    eqn: jex.JaxprEqn
    jaxpr: jex.Jaxpr
    callers: tuple[jex.JaxprEqn, ...]
    inputs: list[Value]
    outputs: list[Value] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.eqn.primitive.name

    @property
    def dependents(self) -> list[Value]:
        """Inputs that depend on the images, each once."""
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


def build(closed: jex.ClosedJaxpr, active: Sequence[bool]) -> Graph:
    """Makes the graph of a jaxpr; `active` says which inputs stand for the images."""
    inputs = [
        Value(var.aval, dependent=a, active=a and is_inexact(var.aval))
        for var, a in zip(closed.jaxpr.invars, active, strict=True)
    ]
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
            node = Node(eqn, jaxpr, callers, arguments)
            node.outputs = outputs = [_output(node, var.aval) for var in eqn.outvars]
            nodes.append(node)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _output(node: Node, aval: Any) -> Value:
    dependent = any(value.dependent for value in node.inputs)
    return Value(
        aval,
        node,
        dependent=dependent,
        active=bool(node.actives) and is_inexact(aval) and node.name not in STOPS_GRADIENT,
        uniform=(
            not dependent
            and (node.name in ELEMENTWISE or node.name in SPREADING)
            and all(value.uniform for value in node.inputs)
        ),
    )


def body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    """The jaxpr that a call-like equation runs."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            inner = eqn.params[key]
            return inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ())
    raise AssertionError(f"{eqn.primitive.name} has no body")


def is_inexact(aval: Any) -> bool:
    """Whether arrays of this kind can carry a gradient."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable or literal of a jaxpr."""
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
    """The nodes between `stop` and `value`, in no particular order; `stop` lies on every path."""
    seen: set[Node] = set()
    todo = [value]
    while todo:
        current = todo.pop()
        if current is stop or current.node is None or current.node in seen:
            continue
        seen.add(current.node)
        yield current.node
        todo.extend(v for v in current.node.dependents if v is not stop)
