"""Softmax, however it is written: which operations form it, and how much relevance they pass on.

Softmax, log-softmax and log-sum-exp keep the ordinary derivative of the whole (Achtibat et al. 2024, AttnLRP,
proposition 3.1). Their parts - exponentials, sums, divisions, changes of offset - therefore keep their ordinary
derivatives too. Where values are mixed in before the division, as in `(e @ v) / sum(e)`, this is the product of a
softmax with those values, of which each takes half: half goes to the values, and half to all exponentials.
"""

from __future__ import annotations

from collections.abc import Iterator

from jaxtransfer.attribution.relevance._graph import Graph, Node, Value, all_nodes
from jaxtransfer.attribution.relevance._primitives import EXPONENTIALS
from jaxtransfer.attribution.relevance._roles import IN_SOFTMAX, closes_softmax, is_normalised_exponential

# Products with other values before the division that are counted; only a loop has more.
_MAX_PRODUCTS = 3


def softmax_shares(graph: Graph) -> dict[Node, tuple[float, ...]]:
    """Returns, for every node that is part of a softmax, the factors of the relevance of its inputs.

    This includes nodes in the bodies of loops, branches and calls, and the nodes that have these bodies.
    """
    search = _Search()
    for node in all_nodes(graph):
        if closes_softmax(node):
            search.close(node)
        elif is_normalised_exponential(node):
            search.shares[node] = (1.0,)
    return search.result()


class _Search:
    """Searches backwards from divisions and logarithms to the exponentials."""

    def __init__(self) -> None:
        self.shares: dict[Node, tuple[float, ...]] = {}
        self._products: dict[Value, int] = {}  # the largest number between a value and the division
        self._group: dict[Value, Value] = {}  # a forest: values of one softmax have one root
        self._exponentials: list[Node] = []

    def close(self, node: Node) -> None:
        """Adds all nodes of the softmax that ends in a division or logarithm."""
        self.shares[node] = tuple(1.0 for _ in node.inputs)
        parts = [value for value in node.actives if value.roles & IN_SOFTMAX]
        todo = [(value, 0) for value in parts]
        for value in parts:
            self._join(parts[0], value)
        while todo:
            value, products = todo.pop()
            if self._products.get(value, -1) < products <= _MAX_PRODUCTS:
                self._products[value] = products
                for before, further in self._before(value):
                    self._join(value, before)
                    todo.append((before, products + further))

    def _before(self, value: Value) -> Iterator[tuple[Value, int]]:
        """The parts of the softmax from which a value is computed, and whether other values are mixed in."""
        node = value.node
        if node is None:
            inside = [outer for outer in value.feeds if outer.roles & IN_SOFTMAX]
            yield from ((outer, 0) for outer in inside)
        elif node.bodies:
            self.shares[node] = ()
            number = node.outputs.index(value)
            yield from ((body.outputs[number], 0) for body in node.bodies if body.outputs[number].roles & IN_SOFTMAX)
        elif node.name in EXPONENTIALS:
            self._exponentials.append(node)
        else:
            parts = [v for v in node.actives if v.roles & IN_SOFTMAX]
            mixed = len(parts) < len(node.actives)
            own = self._products[value]
            self.shares[node] = tuple(
                0.5 ** (1 + own) if v.active and not v.roles & IN_SOFTMAX else 1.0 for v in node.inputs
            )
            yield from ((part, int(mixed)) for part in dict.fromkeys(parts))

    def result(self) -> dict[Node, tuple[float, ...]]:
        """Returns the factors of all nodes that were found."""
        most: dict[Value, int] = {}
        for node in self._exponentials:
            root = self._root(node.outputs[0])
            most[root] = max(most.get(root, 0), self._products[node.outputs[0]])
        for node in self._exponentials:
            self.shares[node] = (0.5 ** most[self._root(node.outputs[0])],)
        return self.shares

    def _root(self, value: Value) -> Value:
        while (parent := self._group.get(value, value)) is not value:
            value = parent
        return value

    def _join(self, value: Value, other: Value) -> None:
        first, second = self._root(value), self._root(other)
        if first is not second:
            self._group[second] = first
