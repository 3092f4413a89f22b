"""Finds the element-wise equations that together form one activation function.

However an activation is written - as one primitive, a named function or a formula - it is one function f of one
array z, and the epsilon rule needs z and f(z). So the element-wise equations between an array and a later one are
gathered into a single activation when the later one depends on the images through that array alone:

* equations that meet again (`x * sigmoid(x)`) belong together, with the nearest array they all come from as z;
* chains whose other operands are plain numbers in the program text (`log(1 + exp(x))`) belong together;
* a chain ends where an array of weights enters linearly: frozen batch norm is not part of the ReLU after it;
* a sum over entries, divided by their number, is a mean: the division is no part of an activation after it;
* the parts of a softmax are no activations.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxtransfer.attribution.relevance._graph import Graph, Node, Value, all_nodes, is_elementwise
from jaxtransfer.attribution.relevance._primitives import AFFINE, CUSTOM, MOVING, SCALING, SPREADING, SUMS

# An activation whose value at 0 is farther from 0 than this is open there: it is a gate.
_CLOSED = 1e-6


class Activations:
    """Finds for every value in a graph and its bodies whether it is an activation, and of which array."""

    def __init__(self, graph: Graph, others: Container[Node]) -> None:
        """Searches a graph; `others` are nodes that have rules of their own."""
        self._parent: dict[Value, Value] = {}
        self._root: dict[Value, Value] = {}
        self._nonlinear: set[Value] = set()
        for node in all_nodes(graph):
            if is_elementwise(node) and node.dependents and node not in others and not _is_mean(node):
                self._visit(node)

    def root(self, value: Value) -> Value | None:
        """The array z of which `value` is an activation f(z), or None if it is not an activation."""
        root = self._root.get(value)
        return root if value in self._nonlinear and value.active and root is not None and root.active else None

    def is_open(self, value: Value) -> bool:
        """Whether an activation f has f(0) other than 0, so that f(z) / z has no bound."""
        root = self.root(value)
        return root is not None and not abs(_value_at_zero(value, root)) <= _CLOSED  # also where it is not a number

    def is_gate(self, value: Value) -> bool:
        """Whether a factor of a product is a gate, which scales the other factor.

        Such a factor is an activation f with f(0) other than 0, like a sigmoid, possibly scaled by weights or spread
        over more entries. Nothing flows through an activation with f(0) = 0 when nothing flows in; a gate is open then.
        """
        seen: set[Value] = set()
        todo = [value]
        while todo:
            current = todo.pop()
            if current in seen or not current.active:
                continue
            seen.add(current)
            if self.root(current) is None:
                if not (made_of := _passed_on(current)):
                    return False
                todo.extend(made_of)
            elif not self.is_open(current):
                return False
        return bool(seen)

    def _visit(self, node: Node) -> None:
        (out,) = node.outputs
        dependents = node.dependents
        meets = self._meeting(dependents)
        if meets is None:
            return
        self._parent[out] = meets
        repeated = sum(value.dependent for value in node.inputs) > len(dependents)
        roots = {self._start(value) for value in dependents}
        if _is_affine(node, joint=len(dependents) > 1 or repeated):
            others_uniform = all(value.uniform for value in node.inputs if not value.dependent)
            if others_uniform and len(roots) == 1:
                self._root[out] = roots.pop()
                if any(value in self._nonlinear for value in dependents):
                    self._nonlinear.add(out)
            return
        uniform = all(value.uniform for value in node.inputs if not value.dependent)
        self._root[out] = self._start(meets) if uniform or len(dependents) > 1 else meets
        self._nonlinear.add(out)

    def _start(self, value: Value) -> Value:
        return self._root.get(value, value)

    def _chain(self, value: Value) -> list[Value]:
        chain = [value]
        while (parent := self._parent.get(chain[-1])) is not None:
            chain.append(parent)
        return chain

    def _meeting(self, values: list[Value]) -> Value | None:
        """The nearest array through which all element-wise paths to `values` lead."""
        first, *rest = (self._chain(value) for value in values)
        common = set(first).intersection(*rest)
        return next((value for value in first if value in common), None)


def _passed_on(value: Value) -> list[Value]:
    """The values that another is made of by calls, by moving entries about, or by scaling with weights."""
    node = value.node
    if node is None:
        return value.feeds
    if node.bodies:
        return [body.outputs[node.outputs.index(value)] for body in node.bodies]
    actives = node.actives
    scaled = len(actives) == 1 and (node.name == "mul" or (node.name == "div" and node.inputs[0].active))
    return actives if scaled or node.name in MOVING or node.name in SPREADING else []


def _is_mean(node: Node) -> bool:
    """Whether a sum over entries is multiplied or divided by a plain number."""
    if node.name not in SCALING or len(node.actives) != 1 or not all(v.active or v.uniform for v in node.inputs):
        return False
    before = node.actives[0].node
    while before is not None and before.name in SPREADING:
        before = before.inputs[0].node
    return before is not None and before.name in SUMS


def _is_affine(node: Node, *, joint: bool) -> bool:
    """Whether an element-wise node is affine in its dependent inputs, taken jointly if there are several."""
    if node.name in AFFINE:
        return True
    if joint:
        return False
    if node.name == "mul":
        return True
    if node.name == "div":
        return node.inputs[0].dependent
    return node.name == "select_n" and not node.inputs[0].dependent


def _value_at_zero(value: Value, root: Value) -> complex:
    """The value of an activation of `root` where that is 0; its weights, which are not known, are taken to be 1."""
    known: dict[Value, Any] = {root: np.zeros((), root.aval.dtype)}

    def evaluate(value: Value) -> Any:
        if value not in known:
            known[value] = np.asarray(compute(value), value.aval.dtype)
        return known[value]

    def compute(value: Value) -> Any:
        node = value.node
        if node is None or not (value.dependent or value.uniform):
            constant = value.constant
            plain = value.uniform and constant is not None and not isinstance(constant, Tracer)
            return constant if plain else 1
        inputs = [evaluate(v) for v in node.inputs]
        if node.name in CUSTOM:
            (body,) = node.bodies
            known.update(zip(body.inputs, inputs, strict=True))
            return evaluate(body.outputs[node.outputs.index(value)])
        if node.name in SPREADING:
            return inputs[0]
        return node.eqn.primitive.bind(*inputs, **node.eqn.params)

    with jax.ensure_compile_time_eval():
        return complex(evaluate(value))
