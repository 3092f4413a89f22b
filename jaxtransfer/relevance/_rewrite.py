"""Evaluating a graph so that one forward pass serves two kinds of backward pass.

The rewritten function computes what the original does and returns, besides, a token: a zero whose cotangent is not
a derivative but a switch. It travels with the backward pass to every rule, which follows the ordinary derivative
where the switch is 0 and the epsilon rule where it is 1. Both passes therefore share one forward computation by
construction, also through `scan`, `cond` and `jax.checkpoint`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.extend import source_info_util
from jaxtyping import Array, Float, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.relevance._activations import Activations
from jaxtransfer.relevance._graph import Graph, Node, Value, body, build, shape_of, sources
from jaxtransfer.relevance._patterns import exponentials, normalisers
from jaxtransfer.relevance._primitives import (
    AFFINE,
    BILINEAR,
    CHECKPOINTS,
    CUSTOM,
    LINEAR,
    ROUTING,
    SUPPORTED,
)

Token = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class RuleVJP:
    """The result of one forward pass, and its two backward passes.

    Attributes:
        output: What the function returned.
        aux: What it returned besides.
        gradient: Cotangent of the output to cotangent of the images, by the ordinary chain rule.
        modified: The same by the modified chain rule; times the images it is epsilon-LRP.
    """

    output: PyTree
    aux: PyTree
    gradient: Callable[[PyTree], Array]
    modified: Callable[[PyTree], Array]


def rule_vjp(
    function: Callable[[PyTree, Array], tuple[PyTree, PyTree]], params: PyTree, images: Array, epsilon: float
) -> RuleVJP:
    """Runs `function(params, images)` forward once and returns its ordinary and its modified backward pass.

    The function returns what is differentiated, and what else is wanted of the forward pass.

    Modified chain rule (Ancona et al. 2018, ICLR, section 2.2): the derivative of every non-linearity f is replaced
    by f(z) / (z + epsilon sign(z)) with sign(0) = +1.

    Raises:
        JaxTransferError: The function does something to the images for which there is no rule.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(params, images)
    leaves = jax.tree.leaves(params)
    is_image = [False] * len(leaves) + [True]
    structure, aux_structure = map(jax.tree.structure, shape)
    count = structure.num_leaves

    def rewritten(images: Array) -> tuple[tuple[list[Array], Token], list[Array]]:
        outputs, _, token = _run(closed, [*leaves, images], is_image, epsilon)
        return (outputs[:count], token), outputs[count:]

    (outputs, _), pull, aux = jax.vjp(rewritten, images, has_aux=True)

    def backward(switch: float) -> Callable[[PyTree], Array]:
        return lambda cotangent: pull((jax.tree.leaves(cotangent), jnp.float32(switch)))[0]

    output, aux = jax.tree.unflatten(structure, outputs), jax.tree.unflatten(aux_structure, aux)
    return RuleVJP(output, aux, backward(0.0), backward(1.0))


def _run(
    closed: jex.ClosedJaxpr, arrays: Sequence[Any], active: Sequence[bool], epsilon: float
) -> tuple[list[Any], list[bool], Token]:
    """Evaluates a jaxpr with the rules: its outputs, which of them depend on the images, and the token."""
    graph = build(closed, active)
    rules = _Rules(graph, epsilon)
    env: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))

    def read(value: Value) -> Any:
        return env.get(value, value.constant)

    token = jnp.float32(0)
    for step in rules.steps():
        outputs, step_token = step.compute(*(read(value) for value in step.inputs))
        env.update(zip(step.outputs, outputs, strict=True))
        if step_token is not None:
            token = token + step_token
    return [read(v) for v in graph.outputs], [v.dependent for v in graph.outputs], token


@dataclasses.dataclass(frozen=True)
class _Step:
    """One thing to evaluate: arrays for `inputs` go in, arrays for `outputs` and maybe a token come out."""

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    compute: Callable[..., tuple[Sequence[Any], Token | None]]


class _Rules:
    """Chooses the rule for every node of a graph."""

    def __init__(self, graph: Graph, epsilon: float) -> None:
        self._graph = graph
        self._epsilon = epsilon
        self._activations = Activations(graph)
        self._ordinary = exponentials(graph)
        self._normalisers = normalisers(graph)
        self._order = {node: position for position, node in enumerate(graph.nodes)}

    def steps(self) -> list[_Step]:
        """What has to be computed for the outputs, in order; nothing else."""
        needed = set(self._graph.outputs)
        steps = []
        for node in reversed(self._graph.nodes):
            if needed.isdisjoint(node.outputs) and not node.eqn.effects:
                continue
            step = self._step(node)
            needed.update(step.inputs)
            steps.append(step)
        return steps[::-1]

    def _step(self, node: Node) -> _Step:
        if not any(value.active for value in node.outputs):
            return _plain(node)
        if (root := self._activations.root(node.outputs[0])) is not None:
            return self._activation(node.outputs[0], root)
        name = node.name
        if name in CUSTOM:
            return self._custom(node)
        if name == "scan":
            return self._scan(node)
        if name == "cond":
            return self._cond(node)
        if name in CHECKPOINTS:
            return self._checkpoint(node)
        if node.outputs[0] in self._ordinary:
            return _plain(node)
        if node in self._normalisers:
            return _held(node, self._normalisers[node])
        if len(node.actives) == 1 and (name in BILINEAR or (name == "div" and node.inputs[0].active)):
            return _plain(node)
        if name in BILINEAR:
            return _shared(node)
        if name == "div":
            return self._quotient(node)
        if name in LINEAR or name in ROUTING or name in AFFINE:
            return _plain(node)
        raise JaxTransferError(_no_rule(node))

    def _activation(self, value: Value, root: Value) -> _Step:
        """Everything between z and f(z) as one function with the epsilon rule."""
        nodes = sorted(sources(value, root), key=self._order.__getitem__)
        others = list(dict.fromkeys(v for n in nodes for v in n.inputs if v is not root and not v.dependent))

        def function(z: Array, *constants: Any) -> Array:
            env = {root: z, **dict(zip(others, constants, strict=True))}
            for node in nodes:
                env.update(zip(node.outputs, node.bind(*(env[v] for v in node.inputs)), strict=True))
            return env[value]

        if any(v in self._ordinary for node in nodes for v in node.outputs):
            return _Step([root, *others], [value], lambda *a: ([function(*a)], None))
        rule = _epsilon_rule(function, self._epsilon)

        def compute(*arrays: Any) -> tuple[list[Array], Token]:
            y, token = rule(*arrays)
            return [y], token

        return _Step([root, *others], [value], compute)

    def _quotient(self, node: Node) -> _Step:
        """`a / b` of two arrays is the product of `a` and the activation `1 / b`."""
        reciprocal = _epsilon_rule(lambda b: 1 / b, self._epsilon)

        def compute(a: Array, b: Array) -> tuple[list[Array], Token]:
            inverse, token = reciprocal(b)
            y, product_token = _scale_relevance(a * inverse, 0.5) if node.inputs[0].active else (a * inverse, 0)
            return [y], token + product_token

        return _Step(node.inputs, node.outputs, compute)

    def _inner(self, closed: jex.ClosedJaxpr, active: Sequence[bool]) -> Callable[..., tuple[list[Any], Token]]:
        def run(*arrays: Any) -> tuple[list[Any], Token]:
            outputs, _, token = _run(closed, arrays, active, self._epsilon)
            return outputs, token

        return run

    def _custom(self, node: Node) -> _Step:
        """Its own derivative for the gradient, the rules inside its body for relevance."""
        active = [value.active for value in node.inputs]
        rule = _two_functions(node.bind, self._inner(body(node.eqn), active), active)
        return _Step(node.inputs, node.outputs, lambda *arrays: rule(*arrays))

    def _checkpoint(self, node: Node) -> _Step:
        params = node.eqn.params
        run = self._inner(body(node.eqn), [value.active for value in node.inputs])
        checkpointed = jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])
        return _Step(node.inputs, node.outputs, checkpointed)

    def _cond(self, node: Node) -> _Step:
        active = [value.active for value in node.inputs[1:]]
        branches = [self._inner(branch, active) for branch in node.eqn.params["branches"]]
        return _Step(node.inputs, node.outputs, lambda index, *arrays: jax.lax.switch(index, branches, *arrays))

    def _scan(self, node: Node) -> _Step:
        params = node.eqn.params
        closed = body(node.eqn)
        # Scanned inputs and stacked outputs have one axis more outside than inside; carries have not.
        inside_in, inside_out = closed.jaxpr.invars, closed.jaxpr.outvars
        num_xs = sum(len(shape_of(v)) > len(shape_of(u)) for v, u in zip(node.eqn.invars, inside_in, strict=True))
        num_carry = sum(len(shape_of(v)) == len(shape_of(u)) for v, u in zip(node.eqn.outvars, inside_out, strict=True))
        num_consts = len(inside_in) - num_carry - num_xs
        active = [value.active for value in node.inputs]
        while True:  # A carry depends on the images as soon as one turn of the loop makes it so.
            outputs = build(closed, active).outputs[:num_carry]
            carried = [a or v.active for a, v in zip(active[num_consts:], outputs, strict=False)]
            if carried == active[num_consts : num_consts + num_carry]:
                break
            active[num_consts : num_consts + num_carry] = carried
        run = self._inner(closed, active)

        def compute(*arrays: Any) -> tuple[list[Any], Token]:
            consts, rest = arrays[:num_consts], arrays[num_consts:]

            def turn(carry: tuple[list[Any], Token], x: Sequence[Any]) -> tuple[tuple[list[Any], Token], list[Any]]:
                values, token = carry
                outputs, new_token = run(*consts, *values, *x)
                return (outputs[:num_carry], token + new_token), outputs[num_carry:]

            (final, token), stacked = jax.lax.scan(
                turn,
                (list(rest[:num_carry]), jnp.float32(0)),
                list(rest[num_carry:]),
                length=params["length"],
                reverse=params["reverse"],
                unroll=params["unroll"],
            )
            return [*final, *stacked], token

        return _Step(node.inputs, node.outputs, compute)


def _plain(node: Node) -> _Step:
    """JAX's own derivative."""
    return _Step(node.inputs, node.outputs, lambda *arrays: (node.bind(*arrays), None))


def _shared(node: Node) -> _Step:
    """A product of two arrays that depend on the images: each takes half of the relevance.

    The uniform rule of Achtibat et al. 2024 (AttnLRP, section 3.3.2), for gates, attention, squeeze-and-excite.
    """

    def compute(*arrays: Any) -> tuple[list[Array], Token]:
        (product,) = node.bind(*arrays)
        y, token = _scale_relevance(product, 0.5)
        return [y], token

    return _Step(node.inputs, node.outputs, compute)


def _held(node: Node, normaliser: Value) -> _Step:
    """A product or quotient in which the normaliser passes no relevance on."""

    def compute(*arrays: Any) -> tuple[list[Array], Token]:
        held = []
        token = jnp.float32(0)
        for value, array in zip(node.inputs, arrays, strict=True):
            if value is normaliser:
                array, token = _scale_relevance(array, 0.0)
            held.append(array)
        return node.bind(*held), token

    return _Step(node.inputs, node.outputs, compute)


@jax.custom_vjp
def _scale_relevance(x: Array, factor: float) -> tuple[Array, Token]:
    """The identity, which multiplies relevance, but not gradients, by `factor` on the way back."""
    del factor
    return x, jnp.float32(0)


def _scale_relevance_forward(x: Array, factor: float) -> tuple[tuple[Array, Token], Array]:
    return (x, jnp.float32(0)), jnp.asarray(factor, x.dtype)


def _scale_relevance_backward(factor: Array, cotangents: tuple[Array, Token]) -> tuple[Array, None]:
    cotangent, switch = cotangents
    return jnp.where(switch > 0, factor, jnp.ones_like(factor)) * cotangent, None


_scale_relevance.defvjp(_scale_relevance_forward, _scale_relevance_backward)


def _epsilon_rule(function: Callable[..., Array], epsilon: float) -> Callable[..., tuple[Array, Token]]:
    """`function(z, *constants)` with derivative f(z) / (z + epsilon sign(z)) where the switch is on."""

    @jax.custom_vjp
    def rule(z: Array, *constants: Any) -> tuple[Array, Token]:
        return function(z, *constants), jnp.float32(0)

    def forward(z: Array, *constants: Any) -> tuple[tuple[Array, Token], Any]:
        y, pull = jax.vjp(lambda z: function(z, *constants), z)
        return (y, jnp.float32(0)), (z, y, pull, len(constants))

    def backward(residuals: Any, cotangents: tuple[Array, Token]) -> tuple[Any, ...]:
        z, y, pull, num_constants = residuals
        cotangent, switch = cotangents
        (ordinary,) = pull(cotangent)
        stabiliser = jnp.where(z >= 0, epsilon, -epsilon).astype(z.dtype)
        modified = (cotangent * y).astype(z.dtype) / (z + stabiliser)
        return jnp.where(switch > 0, modified, ordinary), *([None] * num_constants)

    rule.defvjp(forward, backward)
    return rule


def _two_functions(
    ordinary: Callable[..., list[Any]],
    modified: Callable[..., tuple[list[Any], Token]],
    active: Sequence[bool],
) -> Callable[..., tuple[list[Any], Token]]:
    """Two functions of equal value, one for each kind of backward pass."""

    def split(arrays: Sequence[Any]) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
        chosen = [array for array, a in zip(arrays, active, strict=True) if a]

        def join(changed: Sequence[Any]) -> list[Any]:
            rest = iter(changed)
            return [next(rest) if a else array for array, a in zip(arrays, active, strict=True)]

        return chosen, join

    @jax.custom_vjp
    def rule(*arrays: Any) -> tuple[list[Any], Token]:
        return ordinary(*arrays), jnp.float32(0)

    def forward(*arrays: Any) -> tuple[tuple[list[Any], Token], Any]:
        chosen, join = split(arrays)
        outputs, pull = jax.vjp(lambda *c: ordinary(*join(c)), *chosen)
        _, modified_pull = jax.vjp(lambda *c: modified(*join(c)), *chosen)
        return (outputs, jnp.float32(0)), (pull, modified_pull)

    def backward(residuals: Any, cotangents: tuple[list[Any], Token]) -> tuple[Any, ...]:
        pull, modified_pull = residuals
        switch = cotangents[1]
        pairs = zip(modified_pull(cotangents), pull(cotangents[0]), strict=True)
        chosen = iter([jnp.where(switch > 0, m, o) for m, o in pairs])
        return tuple(next(chosen) if a else None for a in active)

    rule.defvjp(forward, backward)
    return rule


def _no_rule(node: Node) -> str:
    # Inside a library's own compiled function JAX may know no line of the user's; then the call of it is the place.
    places = (source_info_util.summarize(eqn.source_info) for eqn in (node.eqn, *reversed(node.callers)))
    where = next(filter(None, places), "an unknown line")
    module = str(node.eqn.source_info.name_stack)
    return (
        f"epsilon-LRP has no rule for the primitive {node.name!r} applied to arrays that depend on the images "
        f"(at {where}{', in ' + module if module else ''}). Rules exist for: {', '.join(sorted(SUPPORTED))}."
    )
