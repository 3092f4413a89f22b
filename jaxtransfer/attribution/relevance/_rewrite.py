"""Evaluates a graph so that one forward pass serves two kinds of backward pass.

The rewritten function computes the same as the original and also returns a token: a zero whose cotangent is not
a derivative but a switch. It travels with the backward pass to every rule, which follows the ordinary derivative
where the switch is 0 and the epsilon rule where it is 1. Both passes therefore share one forward computation by
construction, also through `scan`, `cond` and `jax.checkpoint`.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import source_info_util
from jaxtyping import Array, Float, PyTree

from jaxtransfer.attribution.relevance._activations import Activations
from jaxtransfer.attribution.relevance._graph import Graph, Node, Value, build, loop_sizes, sources
from jaxtransfer.attribution.relevance._primitives import (
    AFFINE,
    BILINEAR,
    CUSTOM,
    CUSTOM_BACKWARD,
    EXPORTED,
    IN_LOGADDEXP,
    LINEAR,
    LOG_SUMS,
    PRODUCTS,
    ROUTING,
    SOLUTIONS,
)
from jaxtransfer.attribution.relevance._roles import normaliser
from jaxtransfer.attribution.relevance._softmax import softmax_shares
from jaxtransfer.errors import JaxTransferError

Token = Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class RuleVJP:
    """Holds the result of one forward pass, and its two backward passes.

    Attributes:
        output: The first result of the function, which is differentiated.
        aux: The second result of the function.
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

    The function returns a pair: an output that is differentiated, and auxiliary results that are not.

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
    graph = build(closed, is_image)
    rules = _Rules.of(graph, epsilon)

    def rewritten(images: Array) -> tuple[tuple[list[Array], Token], list[Array]]:
        outputs, token = _run(graph, rules, [*leaves, images])
        return (outputs[:count], token), outputs[count:]

    (outputs, _), pull, aux = jax.vjp(rewritten, images, has_aux=True)

    def backward(switch: float) -> Callable[[PyTree], Array]:
        return lambda cotangent: pull((jax.tree.leaves(cotangent), jnp.float32(switch)))[0]

    output, aux = jax.tree.unflatten(structure, outputs), jax.tree.unflatten(aux_structure, aux)
    return RuleVJP(output, aux, backward(0.0), backward(1.0))


def unbounded_ratios(function: Callable[[PyTree, Array], PyTree], params: PyTree, images: Array) -> list[str]:
    """Lists the activations f of `function(params, images)` that can make relevance explode, by their places.

    Where f(0) is not 0, as for a sigmoid, the ratio f(z) / (z + epsilon sign(z)) reaches |f(0)| / epsilon near z = 0.
    Gates are not listed, because they pass no relevance on.

    Args:
        function: Pure function of weights and images.
        params: Weights, or their shapes and types.
        images: Images, or their shape and type.

    Returns:
        Places in the program, like "net.py:12:8 (apply)", from the output towards the images, without repetitions.
    """
    closed = jax.make_jaxpr(function)(params, images)
    graph = build(closed, [False] * len(jax.tree.leaves(params)) + [True])
    nodes = _Rules.of(graph, epsilon=1.0).unbounded()
    return list(dict.fromkeys(_place(node) for node in nodes))


def _run(graph: Graph, rules: _Rules, arrays: Sequence[Any]) -> tuple[list[Any], Token]:
    """Evaluates a graph with the rules: its outputs, and the token."""
    env: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))

    def read(value: Value) -> Any:
        return env.get(value, value.constant)

    token = jnp.float32(0)
    for step in rules.steps:
        outputs, step_token = step.compute(*(read(value) for value in step.inputs))
        env.update(zip(step.outputs, outputs, strict=True))
        if step_token is not None:
            token = token + step_token
    return [read(v) for v in graph.outputs], token


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of the evaluation: arrays for `inputs` go in, arrays for `outputs` and maybe a token come out.

    No relevance goes back to the inputs in `held`.
    """

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    compute: Callable[..., tuple[Sequence[Any], Token | None]]
    held: Sequence[Value] = ()


class _Rules:
    """Chooses the rule for every node of a graph."""

    def __init__(
        self, graph: Graph, epsilon: float, softmax: Mapping[Node, tuple[float, ...]], activations: Activations
    ) -> None:
        self._graph = graph
        self._epsilon = epsilon
        self._softmax = softmax
        self._activations = activations
        self._order = {node: position for position, node in enumerate(graph.nodes)}

    @classmethod
    def of(cls, graph: Graph, epsilon: float) -> _Rules:
        """The rules of a whole function."""
        softmax = softmax_shares(graph)
        return cls(graph, epsilon, softmax, Activations(graph, softmax))

    def _of_body(self, body: Graph) -> _Rules:
        return _Rules(body, self._epsilon, self._softmax, self._activations)

    @functools.cached_property
    def steps(self) -> list[_Step]:
        """The steps that are needed for the outputs, in order.

        Raises:
            JaxTransferError: There is no rule for a node.
        """
        needed = set(self._graph.outputs)
        steps = []
        for node in reversed(self._graph.nodes):
            if needed.isdisjoint(node.outputs) and not node.eqn.effects:
                continue
            step = self._step(node)
            needed.update(step.inputs)
            steps.append(step)
        return steps[::-1]

    def unbounded(self) -> list[Node]:
        """The activations with f(0) other than 0 that relevance reaches, from the outputs backwards."""
        reached, nodes = set(self._graph.outputs), []
        for step in reversed(self.steps):
            if reached.isdisjoint(step.outputs):
                continue
            reached.update(value for value in step.inputs if value not in step.held)
            node = step.outputs[0].node
            assert node is not None
            if self._activations.is_open(step.outputs[0]):
                nodes.append(node)
            elif self._activations.root(step.outputs[0]) is None:
                bodies = map(self._of_body, node.bodies)
                nodes.extend(node for body in bodies for node in body.unbounded())
        return nodes

    def _step(self, node: Node) -> _Step:
        if not any(value.active for value in node.outputs):
            return _plain(node)
        name = node.name
        if (root := self._activations.root(node.outputs[0])) is not None:
            return self._activation(node.outputs[0], root)
        if node.bodies:
            return self._call(node)
        if node in self._softmax:
            return _shared(node, self._softmax[node])
        if name in BILINEAR:
            return _shared(node, self._shares(node))
        if name == "div" and node.inputs[1].active:
            return _shared(node, (1.0, 0.0)) if node.inputs[0].active else self._reciprocal(node)
        if name in PRODUCTS:
            return _equal_shares(node)
        if name in SOLUTIONS and any(value.active for value in node.inputs[-len(node.outputs) :]):
            return _of_right_side(node)
        if name == "div" or name in LOG_SUMS or name in LINEAR or name in ROUTING or name in AFFINE:
            return _plain(node)
        raise JaxTransferError(_no_rule(node))

    def _shares(self, node: Node) -> tuple[float, ...]:
        """Returns the shares of a product's relevance that its factors receive.

        A normaliser is a constant (Ali et al. 2022, section 3). So is a gate: the signal takes all (Arras et al. 2017,
        section 3.1; 2019, LRP-all). Otherwise the two factors take half each (Achtibat et al. 2024, section 3.3.2).
        """
        if len(node.actives) < 2:
            return tuple(1.0 for _ in node.inputs)
        held = normaliser(node)
        if held is None:
            gates = [value for value in dict.fromkeys(node.actives) if self._activations.is_gate(value)]
            held = gates[0] if len(gates) == 1 and len(set(node.actives)) == 2 else None
        if held is None:
            return tuple(0.5 if value.active else 1.0 for value in node.inputs)
        return tuple(0.0 if value is held else 1.0 for value in node.inputs)

    def _call(self, node: Node) -> _Step:
        if node.name in CUSTOM:
            return self._custom(node)
        if node.name == "scan":
            return self._scan(node)
        if node.name == "cond":
            return self._cond(node)
        return self._checkpoint(node)

    def _activation(self, value: Value, root: Value) -> _Step:
        """All operations between z and f(z) as a single function with the epsilon rule."""
        nodes = sorted(sources(value, root), key=self._order.__getitem__)
        others = list(dict.fromkeys(v for n in nodes for v in n.inputs if v is not root and not v.dependent))

        def function(z: Array, *constants: Any) -> Array:
            env = {root: z, **dict(zip(others, constants, strict=True))}
            for node in nodes:
                env.update(zip(node.outputs, node.bind(*(env[v] for v in node.inputs)), strict=True))
            return env[value]

        return self._ratio(function, [root, *others], [value])

    def _reciprocal(self, node: Node) -> _Step:
        """`a / b` where `a` depends on the images, but not differentiably: an activation of `b`."""
        top, bottom = node.inputs
        return self._ratio(lambda b, a: a / b, [bottom, top], node.outputs)

    def _ratio(self, function: Callable[..., Array], inputs: Sequence[Value], outputs: Sequence[Value]) -> _Step:
        """A function of its first input, with the epsilon rule."""
        rule = _epsilon_rule(function, self._epsilon)

        def compute(*arrays: Any) -> tuple[list[Array], Token]:
            y, token = rule(*arrays)
            return [y], token

        return _Step(inputs, outputs, compute)

    def _inner(self, graph: Graph) -> Callable[..., tuple[list[Any], Token]]:
        rules = self._of_body(graph)
        _ = rules.steps
        return lambda *arrays: _run(graph, rules, arrays)

    def _custom(self, node: Node) -> _Step:
        """Uses the custom derivative for the gradient, and the rules in the body for relevance."""
        (body,) = node.bodies
        if len(node.actives) == 2 and any({n.name for n in body.nodes}.issuperset(names) for names in IN_LOGADDEXP):
            return _plain(node)
        if any(inner.name == EXPORTED for inner in body.nodes):
            raise JaxTransferError(
                "epsilon-LRP rewrites the operations of a network, which one that is stored as exported StableHLO no "
                "longer has: leave epsilon_lrp out of the methods, or add the network again with a factory "
                "(jaxtransfer.Network.of)."
            )
        try:
            inner = self._inner(body)
        except JaxTransferError as error:
            if node.name not in CUSTOM_BACKWARD:
                raise
            warnings.warn(
                f"Relevance follows a function's own backward pass, because there is no rule for its body: {error}",
                stacklevel=2,
            )
            return _plain(node)
        rule = _two_functions(node.bind, inner, [value.active for value in node.inputs])
        return _Step(node.inputs, node.outputs, lambda *arrays: rule(*arrays))

    def _checkpoint(self, node: Node) -> _Step:
        params = node.eqn.params
        run = self._inner(node.bodies[0])
        checkpointed = jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])
        return _Step(node.inputs, node.outputs, checkpointed)

    def _cond(self, node: Node) -> _Step:
        branches = [self._inner(branch) for branch in node.bodies]
        return _Step(node.inputs, node.outputs, lambda index, *arrays: jax.lax.switch(index, branches, *arrays))

    def _scan(self, node: Node) -> _Step:
        params = node.eqn.params
        num_consts, num_carry = loop_sizes(node.eqn)
        run = self._inner(node.bodies[0])

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


def _shared(node: Node, shares: Sequence[float]) -> _Step:
    """JAX's own derivative; relevance is multiplied by the share of each input."""
    if all(share == 1 for share in shares):
        return _plain(node)

    def compute(*arrays: Any) -> tuple[list[Any], Token]:
        token = jnp.float32(0)
        scaled = list(arrays)
        for number, share in enumerate(shares):
            if share != 1:
                scaled[number], more = _scale_relevance(arrays[number], share)
                token = token + more
        return node.bind(*scaled), token

    held = [value for value, share in zip(node.inputs, shares, strict=True) if share == 0]
    return _Step(node.inputs, node.outputs, compute, held)


def _equal_shares(node: Node) -> _Step:
    """A product of many factors: an equal share to each (Achtibat et al. 2024, section 3.3.2, for N factors)."""

    def compute(*arrays: Any) -> tuple[list[Any], Token]:
        (product,) = node.bind(*arrays)
        product, token = _scale_relevance(product, 1 / jnp.maximum(_factors(node, arrays), 1))
        return [product], token

    return _Step(node.inputs, node.outputs, compute)


def _factors(node: Node, arrays: Sequence[Any]) -> Array:
    """The number of factors that depend on the images, for each entry of a product."""
    params, x = node.eqn.params, arrays[0]
    if node.name == "reduce_prod":
        return jnp.full((1,) * node.outputs[0].aval.ndim, x.size // max(node.outputs[0].aval.size, 1), x.dtype)
    if node.name == "cumprod":
        return jax.lax.cumsum(jnp.ones(x.shape, x.dtype), params["axis"], reverse=params["reverse"])
    operand, _, updates = (jnp.full(v.aval.shape, v.active, x.dtype) for v in node.inputs)
    kept = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return jax.lax.scatter_add(operand, arrays[1], updates, **{key: params[key] for key in kept})


def _of_right_side(node: Node) -> _Step:
    """The solution x of a x = b: all of it to b, as to the numerator of a quotient."""
    left = len(node.inputs) - len(node.outputs)
    return _shared(node, [0.0 if value.active and i < left else 1.0 for i, value in enumerate(node.inputs)])


@jax.custom_vjp
def _scale_relevance(x: Array, factor: float | Array) -> tuple[Array, Token]:
    """The identity, whose backward pass multiplies relevance, but not gradients, by `factor`."""
    del factor
    return x, jnp.float32(0)


def _scale_relevance_forward(x: Array, factor: float | Array) -> tuple[tuple[Array, Token], Array]:
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
        # A zero cotangent stays zero, also where f(z) is infinite, like the initial offset of a running softmax.
        product = jnp.where(cotangent == 0, jnp.zeros_like(cotangent), cotangent * y)
        modified = product.astype(z.dtype) / (z + stabiliser)
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


def _place(node: Node) -> str:
    """Where in the user's program an equation comes from."""
    # Inside a library's own compiled function JAX may know no line of the user's; then the call of it is the place.
    lines = (source_info_util.summarize(eqn.source_info) for eqn in (node.eqn, *reversed(node.callers)))
    module = str(node.eqn.source_info.name_stack)
    return next(filter(None, lines), "an unknown line") + (f", in {module}" if module else "")


def _no_rule(node: Node) -> str:
    return (
        f"epsilon-LRP has no rule for the primitive {node.name!r} applied to arrays that depend on the images "
        f"(at {_place(node)}); saliency and input_x_gradient need none: leave epsilon_lrp out of the methods."
    )
