"""The precision of matrix products in attribution; `docs/precision.md` says what each choice costs.

The forward pass decides which units are active, and rounding it to bfloat16 changes that for so many units that the
maps become those of a different network. The backward pass is linear and tolerates rounding, so only it is rounded.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxtransfer.arguments import check_name
from jaxtransfer.attribution.relevance._graph import Node, Value, body, build
from jaxtransfer.attribution.relevance._primitives import BILINEAR

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PRODUCTS = BILINEAR - {"mul"}


def matmul_precision(precision: Precision) -> str:
    """Returns the `jax.default_matmul_precision` for everything that is not rounded to bfloat16.

    Raises:
        JaxTransferError: There is no such precision.
    """
    check_name("precision", precision, PRECISIONS)
    return "tensorfloat32" if precision == "tf32" else "highest"


def products_in_bfloat16(pull: Callable[[PyTree], Array]) -> Callable[[PyTree], Array]:
    """Rewrites a backward pass so that its matrix products and convolutions take and return bfloat16.

    Other operations keep their types, and so do products without a cotangent among their factors, and those in the
    bodies of `cond` and `jax.checkpoint`, which may repeat a forward pass.

    Args:
        pull: The backward pass, as `jax.vjp` returns it: a linear function from cotangents of the attributed outputs to
            the cotangent of the images.
    """

    def narrowed(cotangents: PyTree) -> Array:
        leaves = jax.tree.leaves(cotangents)
        (result,) = _evaluate(jax.make_jaxpr(pull)(cotangents), [True] * len(leaves), *leaves)
        return result

    return narrowed


def _evaluate(closed: jex.ClosedJaxpr, cotangents: Sequence[bool], *arrays: Any) -> list[Any]:
    """Evaluates a jaxpr with its products in bfloat16; `cotangents` says which of its inputs are cotangents."""
    graph = build(closed, cotangents)
    env: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    for node in graph.nodes:
        inputs = [env.get(value, value.constant) for value in node.inputs]
        env.update(zip(node.outputs, _bind(node, inputs), strict=True))
    return [env.get(value, value.constant) for value in graph.outputs]


def _bind(node: Node, inputs: list[Any]) -> list[Any]:
    """Evaluates one equation."""
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
