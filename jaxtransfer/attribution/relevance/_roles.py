"""The roles of values in a normalisation or a softmax, recognised by how they are computed and not by their names.

Every value that depends on the images carries roles. They follow from the roles of the values it was computed from, so
they pass through `jit`, `scan`, `cond`, `jax.checkpoint` and functions with derivatives of their own.

A *statistic* comes from sums or extrema over entries, and element-wise operations after them: a mean, a variance, a
norm. A *mass* is an exponential or anything linear in exponentials, such as the numerator and the denominator of a
softmax; products of masses are masses, which is how a running softmax changes its offset.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from jaxtransfer.attribution.relevance._primitives import (
    BILINEAR,
    ELEMENTWISE,
    EXPONENTIALS,
    LINEAR,
    MOVING,
    REDUCING,
    ROUTING,
    SPREADING,
    SUMS,
)

if TYPE_CHECKING:
    from jaxtransfer.attribution.relevance._graph import Node, Value


class Role(enum.Flag):
    """What a value is, beside a number that depends on the images.

    Attributes:
        STATISTIC: Computed by sums or extrema over entries, then by element-wise operations.
        ROOT: A statistic under a root, or divided by.
        INVERSE: A statistic under a reciprocal root, or divided by.
        MASS: Exponentials, and what is linear in them.
        SUMMED: A mass that adds several exponentials.
        RECIPROCAL: Something divided by a summed mass, that waits for a mass to be multiplied with.
        SOFTMAX: A mass divided by a summed mass.
        LOG_MASS: The logarithm of a summed mass or of a softmax, plus or minus anything.
    """

    STATISTIC = enum.auto()
    ROOT = enum.auto()
    INVERSE = enum.auto()
    MASS = enum.auto()
    SUMMED = enum.auto()
    RECIPROCAL = enum.auto()
    SOFTMAX = enum.auto()
    LOG_MASS = enum.auto()


NO_ROLE = Role(0)
SUMMED_MASS = Role.MASS | Role.SUMMED
IN_SOFTMAX = Role.MASS | Role.RECIPROCAL

_ADDING = frozenset({"add", "add_any"})
_SUMMING = SUMS | frozenset("cumsum psum psum2 psum_invariant reduce_scatter scatter-add scatter_add".split())
_LOGARITHMS = frozenset({"log", "log1p"})
# Primitives whose output is a mass (or the logarithm of one) if all inputs that depend on the images are.
_KEEPING = ROUTING | _ADDING | frozenset("abs copy div neg reduce_precision sub".split())
_AFFINE = _ADDING | frozenset("copy dynamic_slice gather neg reduce_precision select_n slice squeeze sub".split())


def roles_of(node: Node) -> Role:
    """Returns the roles of the output of a node without a body."""
    if not node.actives:
        return NO_ROLE
    return _statistic(node) | _mass(node) | _softmax(node) | _log_mass(node)


def closes_softmax(node: Node) -> bool:
    """Returns whether a node divides a mass by a summed mass, or takes the logarithm of a summed mass or a softmax."""
    if node.name in _LOGARITHMS:
        return SUMMED_MASS in node.inputs[0].roles or Role.SOFTMAX in node.inputs[0].roles
    if node.name == "div":
        top, bottom = node.inputs
        return Role.MASS in top.roles and SUMMED_MASS in bottom.roles
    if node.name in BILINEAR and len(node.actives) == 2:
        roles = [value.roles for value in node.actives]
        return any(Role.MASS in a and Role.RECIPROCAL in b for a, b in (roles, roles[::-1]))
    return False


def is_normalised_exponential(node: Node) -> bool:
    """Returns whether a node is `exp(u - log(sum(exp(u))))`, which is a softmax."""
    return node.name in EXPONENTIALS and Role.LOG_MASS in node.inputs[0].roles


def normaliser(node: Node) -> Value | None:
    """Returns the factor of a product that normalises the other one: a statistic under a (reciprocal) root."""
    if node.name not in BILINEAR or len(set(node.actives)) != 2:
        return None
    candidates = [value for value in node.actives if Role.STATISTIC | Role.ROOT in value.roles]
    if len(candidates) == 2:
        candidates = [value for value in candidates if Role.INVERSE in value.roles]
    return candidates[0] if len(candidates) == 1 else None


def _statistic(node: Node) -> Role:
    if node.name in REDUCING or _contracts_all(node):
        return Role.STATISTIC
    roles = [value.roles for value in node.actives]
    if not (node.name in SPREADING or node.name in ELEMENTWISE) or not all(Role.STATISTIC in role for role in roles):
        return NO_ROLE
    result = Role.STATISTIC
    inverted = (
        node.name == "rsqrt"
        or (node.name == "integer_pow" and node.eqn.params["y"] < 0)
        or (node.name == "div" and not node.inputs[0].active)
        or (node.name == "pow" and _is_negative(node.inputs[1]))
    )
    if inverted or node.name in ("sqrt", "pow") or any(Role.ROOT in role for role in roles):
        result |= Role.ROOT
    if inverted or any(Role.INVERSE in role for role in roles):
        result |= Role.INVERSE
    return result


def _is_negative(value: Value) -> bool:
    return value.uniform and value.constant is not None and bool(value.constant < 0)


def _contracts_all(node: Node) -> bool:
    """Whether a product of two arrays keeps only their common axes, like the inner product of an array with itself."""
    if node.name != "dot_general" or len(node.actives) != 2:
        return False
    contracted, batch = node.eqn.params["dimension_numbers"]
    return all(
        len(value.aval.shape) == len(c) + len(b) for value, c, b in zip(node.inputs, contracted, batch, strict=True)
    )


def _mass(node: Node) -> Role:
    name, inputs, actives = node.name, node.inputs, node.actives
    if name in EXPONENTIALS:
        return NO_ROLE if Role.LOG_MASS in inputs[0].roles else Role.MASS
    if name in _LOGARITHMS or closes_softmax(node):
        return NO_ROLE
    roles = [value.roles for value in actives]
    summed = Role.SUMMED if any(Role.SUMMED in role for role in roles) else NO_ROLE
    if name == "div" and inputs[1].active:
        return Role.RECIPROCAL if SUMMED_MASS in inputs[1].roles else NO_ROLE
    if name == "integer_pow" and node.eqn.params["y"] == -1:
        return Role.RECIPROCAL if SUMMED_MASS in roles[0] else NO_ROLE
    if name in BILINEAR and len(actives) == 2:
        if any(Role.RECIPROCAL in role for role in roles):
            return Role.RECIPROCAL
        if not any(Role.MASS in role for role in roles):
            return NO_ROLE
        return Role.MASS | (summed if name == "mul" else Role.SUMMED)
    linear = name in LINEAR or name in SPREADING or name in BILINEAR or name in _KEEPING
    if linear and all(Role.RECIPROCAL in role for role in roles):
        return Role.RECIPROCAL
    if not linear or not all(Role.MASS in role for role in roles):
        return NO_ROLE
    adds = name in _SUMMING or name in ("dot_general", "conv_general_dilated")
    if name in _ADDING and len(actives) == 2:
        first, second = (value.origin for value in actives)
        adds = first is not second  # not two exponentials of one array, as in a tanh
    return Role.MASS | (Role.SUMMED if adds else summed)


def _softmax(node: Node) -> Role:
    if node.name not in _LOGARITHMS and (closes_softmax(node) or is_normalised_exponential(node)):
        return Role.SOFTMAX
    kept = node.name in SPREADING or node.name in MOVING or node.name in _KEEPING
    return Role.SOFTMAX if kept and all(Role.SOFTMAX in value.roles for value in node.actives) else NO_ROLE


def _log_mass(node: Node) -> Role:
    if node.name in _LOGARITHMS:
        return Role.LOG_MASS if closes_softmax(node) else NO_ROLE
    affine = node.name in _AFFINE or node.name in SPREADING or (node.name in ("mul", "div") and len(node.actives) == 1)
    return Role.LOG_MASS if affine and any(Role.LOG_MASS in value.roles for value in node.actives) else NO_ROLE
