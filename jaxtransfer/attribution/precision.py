"""How precisely attribution maps are computed; `docs/precision.md` says what each choice costs.

The forward pass decides which units are on, and rounding it to bfloat16 changes that decision for so many that the maps
become those of another network. The backward pass is linear and does not mind, so it alone is rounded.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxtransfer.attribution.relevance._graph import Node, Value, body, build
from jaxtransfer.attribution.relevance._primitives import BILINEAR
from jaxtransfer.errors import JaxTransferError

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PRODUCTS = BILINEAR - {"mul"}


def matmul_precision(precision: Precision) -> str:
    """The `jax.default_matmul_precision` for what is not rounded to bfloat16.

    Raises:
        JaxTransferError: There is no such precision.
    """
    if precision not in PRECISIONS:
        raise JaxTransferError(f"The precision must be one of {', '.join(PRECISIONS)}, not {precision!r}.")
    return "tensorfloat32" if precision == "tf32" else "highest"


def products_in_bfloat16(pull: Callable[[PyTree], Array]) -> Callable[[PyTree], Array]:
    """A backward pass whose matrix products and convolutions take and give bfloat16.

    All between them keeps its type, and so do products in which no cotangent takes part, and those in the bodies of
    `cond` and `jax.checkpoint`, which may repeat a forward pass.

    Args:
        pull: From cotangents of what is attributed to that of the images, linear, as `jax.vjp` returns it.
    """

    def narrowed(cotangents: PyTree) -> Array:
        leaves = jax.tree.leaves(cotangents)
        (result,) = _evaluate(jax.make_jaxpr(pull)(cotangents), [True] * len(leaves), *leaves)
        return result

    return narrowed


def _evaluate(closed: jex.ClosedJaxpr, cotangents: Sequence[bool], *arrays: Any) -> list[Any]:
    graph = build(closed, cotangents)
    env: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for node in graph.nodes:
        inputs = [env.get(value, value.constant) for value in node.inputs]
        env.update(zip(node.outputs, _bind(node, inputs), strict=True))
    return [env.get(value, value.constant) for value in graph.outputs]


def _bind(node: Node, inputs: list[Any]) -> list[Any]:
    params = node.eqn.params
    cotangents = [value.active for value in node.inputs]
    if node.name in _PRODUCTS and any(cotangents) and jnp.issubdtype(node.outputs[0].aval.dtype, jnp.floating):
        narrow = [jnp.asarray(array, jnp.bfloat16) for array in inputs]
        params = params | {"precision": None, "preferred_element_type": jnp.dtype(jnp.bfloat16)}
        return [node.eqn.primitive.bind(*narrow, **params).astype(node.outputs[0].aval.dtype)]
    if node.name == "scan" and any(cotangents):
        turn = body(node.eqn)
        shapes = [variable.aval for variable in turn.jaxpr.invars]
        turn = jax.make_jaxpr(functools.partial(_evaluate, turn, cotangents))(*shapes)
        return node.eqn.primitive.bind(*inputs, **params | {"jaxpr": turn})
    return node.bind(*inputs)
