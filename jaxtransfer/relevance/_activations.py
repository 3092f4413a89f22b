"""Which element-wise equations together make one activation function.

However an activation is written - as one primitive, a named function or a formula - it is one function f of one
array z, and the epsilon rule needs z and f(z). So the element-wise equations between an array and a later one are
gathered into a single activation when the later one depends on the images through that array alone:

* equations that meet again (`x * sigmoid(x)`) belong together, with the nearest array they all come from as z;
* chains whose other operands are plain numbers in the program text (`log(1 + exp(x))`) belong together;
* a chain ends where an array of weights enters linearly: frozen batch norm is not part of the ReLU after it.
"""

from __future__ import annotations

from jaxtransfer.relevance._graph import Graph, Node, Value, is_elementwise
from jaxtransfer.relevance._primitives import AFFINE


class Activations:
    """For every value in a graph, whether and of which array it is an activation."""

    def __init__(self, graph: Graph) -> None:
        """Finds all activations of a graph."""
        self._parent: dict[Value, Value] = {}
        self._root: dict[Value, Value] = {}
        self._nonlinear: set[Value] = set()
        for node in graph.nodes:
            if is_elementwise(node) and node.dependents:
                self._visit(node)

    def root(self, value: Value) -> Value | None:
        """The array z of which `value` is an activation f(z), or None if it is not an activation."""
        root = self._root.get(value)
        return root if value in self._nonlinear and value.active and root is not None and root.active else None

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
