"""Softmax and normalisation, recognised by what they compute rather than by what they are called."""

from __future__ import annotations

from jaxtransfer.relevance._graph import Graph, Node, Value, is_elementwise
from jaxtransfer.relevance._primitives import REDUCING, ROOTS, SPREADING

# Linear steps that masking and type conversion put between an exponential and its sum.
_MASKING = frozenset("convert_element_type copy mul select_n".split())


def exponentials(graph: Graph) -> set[Value]:
    """Values that keep their ordinary gradient because they are part of a softmax or log-sum-exp.

    Softmax is `exp(u) / sum(exp(u))`, log-sum-exp is `log(sum(exp(u)))`. Taken as a whole, the first-order Taylor
    relevance of a softmax (Achtibat et al. 2024, AttnLRP, proposition 3.1) is input times ordinary gradient.
    """
    found: set[Value] = set()
    for node in graph.nodes:
        if node.name == "div":
            top, bottom = (_exponential(node.inputs[0]), _summed_exponential(node.inputs[1]))
        elif node.name == "log":
            top = bottom = _summed_exponential(node.inputs[0])
        else:
            continue
        if top is not None and bottom is not None and _same(top, bottom):
            found |= {top, bottom, *node.outputs}
    return found


def _same(a: Value, b: Value) -> bool:
    """Whether two values are one, or computed by the same primitive from the same inputs."""
    return a is b or (
        a.node is not None and b.node is not None and a.node.name == b.node.name and a.node.inputs == b.node.inputs
    )


def _exponential(value: Value) -> Value | None:
    """The exponential from which masking and conversion made `value`."""
    while value.node is not None and value.node.name not in ("exp", "exp2"):
        if value.node.name not in _MASKING or len(value.node.actives) != 1:
            return None
        (value,) = value.node.actives
    return value if value.node is not None and value.active else None


def _summed_exponential(value: Value) -> Value | None:
    # `jax.nn.logsumexp` takes the absolute value before the logarithm.
    while value.node is not None and (value.node.name in SPREADING or value.node.name == "abs"):
        (value,) = value.node.inputs
    if value.node is None or value.node.name != "reduce_sum":
        return None
    return _exponential(value.node.inputs[0])


def normalisers(graph: Graph) -> dict[Node, Value]:
    """For products and quotients that normalise one array by a statistic, the statistic.

    A statistic is computed from sums or extrema over entries alone (a variance, a norm, a maximum). It counts as a
    normaliser where another array is divided by it, or multiplied by its (reciprocal) root: layer, group, instance
    and RMS normalisation, L2 normalisation. Relevance treats it as a constant (Ali et al. 2022, section 3).
    """
    statistic: set[Value] = set()
    rooted: set[Value] = set()
    found: dict[Node, Value] = {}
    for node in graph.nodes:
        if not node.actives:
            continue
        if node.name in REDUCING:
            statistic.update(node.outputs)
            continue
        if node.name in ("mul", "div") and len(set(node.actives)) == 2:
            top, bottom = node.inputs
            if bottom in statistic and top not in statistic and (node.name == "div" or bottom in rooted):
                found[node] = bottom
            elif node.name == "mul" and top in statistic and top in rooted and bottom not in statistic:
                found[node] = top
        if (node.name in SPREADING or is_elementwise(node)) and all(v in statistic for v in node.actives):
            statistic.update(node.outputs)
            if (
                node.name in ROOTS
                or (node.name == "integer_pow" and node.eqn.params["y"] < 0)
                or any(v in rooted for v in node.actives)
            ):
                rooted.update(node.outputs)
    return found
