"""Symmetries of a backbone: which units can be exchanged, and averages of gradients over them.

A specification has the structure of the weights, with a tuple for every weight: for each of its axes the name of the
group of units the axis runs over, or None (Ainsworth et al., "Git Re-Basin", ICLR 2023, give permutations this form).
Axes of one name are permuted together.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Key, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.batches import Batches, draw
from jaxtransfer.pge.losses import Loss

Groups = tuple[str | None, ...]
_TOLERANCE = 1e-3
_HINT = ", or, for a loss that draws a head, give it a method `invariant` that returns what must not change"
# The F tests of initialisers: number of draws, rate of false alarms, and the ratio of variances that always passes.
_DRAWS, _FALSE_ALARM, _RATIO = 16, 1e-9, 1.5


@dataclasses.dataclass(frozen=True)
class Orbits:
    """Converts gradients to coordinates: all entries, or one number for each orbit of a symmetry.

    The coordinate of an orbit of m entries is sqrt(m) times their mean, so that inner products of coordinates are those
    of the gradients projected onto the subspace that the symmetry leaves unchanged.

    Attributes:
        shapes: Shapes of the weights, in the order of `jax.tree.leaves`.
        groups: Group of each axis of each weight; None: no symmetry, every entry is a coordinate.
        structure: Tree structure of the weights.
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[Groups, ...] | None
    structure: Any

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return sum(self.per_weight)

    @property
    def per_weight(self) -> list[int]:
        """Number of coordinates of each weight."""
        return [
            int(np.prod(_kept(shape, groups))) * (2 if _paired(groups) else 1)
            for shape, groups in zip(self.shapes, self._groups(), strict=True)
        ]

    def project(self, gradient: PyTree) -> Float[Array, " dimension"]:
        """Returns the coordinates of a gradient."""
        parts = [
            _averages(leaf, groups).reshape(-1)
            for leaf, groups in zip(jax.tree.leaves(gradient), self._groups(), strict=True)
        ]
        return jnp.concatenate(parts)

    def lift(self, coordinates: Float[Array, " dimension"]) -> PyTree:
        """Returns the gradient with these coordinates, constant on every orbit: the transpose of `project`."""
        zeros = [jnp.zeros(shape, coordinates.dtype) for shape in self.shapes]
        transpose = jax.linear_transpose(self.project, jax.tree.unflatten(self.structure, zeros))
        return transpose(coordinates)[0]

    def _groups(self) -> tuple[Groups, ...]:
        return self.groups or tuple((None,) * len(shape) for shape in self.shapes)


def orbits(params: PyTree, symmetry: PyTree | None) -> Orbits:
    """Returns the coordinates that follow from a specification.

    Args:
        params: Weights, or their shapes.
        symmetry: The specification; None: no symmetry.

    Raises:
        JaxTransferError: The specification has another structure than the weights, names too many or too few axes, or
            gives a group axes of different sizes or more than two axes of a weight.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    if symmetry is None:
        return Orbits(shapes, None, structure)
    groups, own_structure = jax.tree.flatten(symmetry, is_leaf=_is_groups)
    if own_structure != structure:
        raise JaxTransferError(f"symmetry must have the structure of the weights, {structure}, not {own_structure}.")
    sizes: dict[str, int] = {}
    for name, shape, axes in zip(_names(params), shapes, groups, strict=True):
        if not _is_groups(axes) or len(axes) != len(shape):
            raise JaxTransferError(f"symmetry of {name}, shape {shape}, needs one group or None per axis, not {axes}.")
        for group, size in zip(axes, shape, strict=True):
            if group is not None and sizes.setdefault(group, size) != size:
                raise JaxTransferError(
                    f"The group {group!r} has {sizes[group]} units, but {name} has {size} on its axis."
                )
        if len([group for group in axes if group is not None]) > len({*axes} - {None}) + 1:
            raise JaxTransferError(
                f"Only one group may stand on two axes of a weight, and none on three: {name}, {axes}."
            )
    return Orbits(shapes, tuple(groups), structure)


def check_symmetry(
    init: Callable[[Key[Array, ""]], PyTree], loss: Loss, batches: Batches, symmetry: PyTree, key: Key[Array, ""]
) -> None:
    """Checks on an example that a loss and an initialiser have the symmetry of a specification.

    Permuting units must not change the loss. The weights are disturbed first, since many of a fresh network's are
    equal. Losses of this package are checked by the inner products of their features, which show more than a single
    number; other losses by their value, on one batch and key. The initialiser is checked by tests whether entries of an
    orbit differ in mean or in mean square.

    Args:
        init: Draws the weights.
        loss: The loss.
        batches: The batches.
        symmetry: The specification.
        key: Random key for weights, batch, disturbance and permutations.

    Raises:
        JaxTransferError: The loss changes, or entries of an orbit are drawn from different distributions; the message
            names the groups or weights.
    """
    shapes = jax.eval_shape(init, key)
    _check_initialiser(init, orbits(shapes, symmetry), _names(shapes), key)
    groups = jax.tree.leaves(symmetry, is_leaf=_is_groups)
    sizes = {
        group: size
        for axes, leaf in zip(groups, jax.tree.leaves(shapes), strict=True)
        for group, size in zip(axes, leaf.shape, strict=True)
        if group is not None
    }
    generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    permutations = {group: _not_identity(generator, size) for group, size in sizes.items()}
    identity = {group: np.arange(size) for group, size in sizes.items()}

    @jax.jit
    def observe(key: Key[Array, ""], batches: Batches, permutations: Mapping[str, Array]) -> Array:
        keys = jax.random.split(key, 4)
        params = permute(_disturbed(init(keys[0]), keys[1]), symmetry, permutations)
        batch = draw(batches, keys[2], jnp.zeros((), jnp.int32))
        with jax.default_matmul_precision("highest"):
            return getattr(loss, "invariant", loss)(params, batch, keys[3])

    before = np.asarray(observe(key, batches, identity), np.float64)
    if not np.isfinite(before).all():
        raise JaxTransferError("The loss is not finite on disturbed fresh weights, so the symmetry cannot be checked.")

    def changes(some: Mapping[str, np.ndarray]) -> bool:
        after = np.asarray(observe(key, batches, identity | dict(some)), np.float64)
        return bool(np.abs(after - before).max() > _TOLERANCE * np.abs(before).max())

    if changes(permutations):
        wrong = [group for group in permutations if changes({group: permutations[group]})]
        hint = "" if hasattr(loss, "invariant") else _HINT
        raise JaxTransferError(
            f"The symmetry is wrong: the loss changes when units of {', '.join(wrong) or 'several groups'} are "
            f"permuted; correct the specification{hint}, or leave symmetry out."
        )


def _check_initialiser(
    init: Callable[[Key[Array, ""]], PyTree], orbits: Orbits, names: Sequence[str], key: Key[Array, ""]
) -> None:
    """Tests whether the entries of an orbit have equal means and mean squares over draws (F tests)."""
    between, within, entries = (np.asarray(moments, np.float64) for moments in _moments(init, orbits, key))
    entries = np.maximum(entries.round(), 2)
    limit = scipy.special.fdtri(entries - 1, entries * (_DRAWS - 1), 1 - _FALSE_ALARM)
    ratio = between * entries / (entries - 1) * (_DRAWS - 1)
    wrong = (ratio > np.maximum(limit, _RATIO) * within).any(0)
    if wrong.any():
        weights = dict.fromkeys(np.repeat(names, orbits.per_weight)[wrong])
        raise JaxTransferError(
            f"The initialiser draws units that the symmetry exchanges from different distributions, in "
            f"{', '.join(weights)}; correct the specification, or leave symmetry out."
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(
    init: Callable[[Key[Array, ""]], PyTree], orbits: Orbits, key: Key[Array, ""]
) -> tuple[Float[Array, "2 dimension"], Float[Array, "2 dimension"], Float[Array, " dimension"]]:
    """Returns, for weights and for their squares, the variances that the F tests compare, and the size of each orbit.

    First the variance, between the entries of an orbit, of their means over draws; then the mean over entries of the
    variance over draws; both times the square root of the orbit's size. Squares are those of the difference from an
    orbit's mean in another draw, which avoids cancellation.
    """

    def power(tree: PyTree, exponent: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf**exponent, tree)

    keys = jax.random.split(key, _DRAWS + 1)
    first = init(keys[0])
    centre = orbits.lift(orbits.project(first))

    def add(sums: list[PyTree], key: Key[Array, ""]) -> tuple[list[PyTree], None]:
        difference = jax.tree.map(jnp.subtract, init(key), centre)
        return [jax.tree.map(jnp.add, total, power(difference, 2**i)) for i, total in enumerate(sums)], None

    sums, _ = jax.lax.scan(add, [jax.tree.map(jnp.zeros_like, first)] * 3, keys[1:])
    means = [jax.tree.map(lambda leaf: leaf / _DRAWS, total) for total in sums]
    rounding = 1e-12 * orbits.project(power(first, 2))
    between, within = [], []
    for mean, mean_square in itertools.pairwise(means):
        between.append(orbits.project(power(jax.tree.map(jnp.subtract, mean, orbits.lift(orbits.project(mean))), 2)))
        variance = jax.tree.map(lambda square, mean: square - mean**2, mean_square, mean)
        within.append(orbits.project(variance) + rounding)
    entries = jnp.square(orbits.project(jax.tree.map(jnp.ones_like, first)))
    return jnp.stack(between), jnp.stack(within), entries


def permute(params: PyTree, symmetry: PyTree, permutations: Mapping[str, Array]) -> PyTree:
    """Permutes the units of weights; groups without a permutation stay."""

    def permute_leaf(leaf: Array, axes: Groups) -> Array:
        for axis, group in enumerate(axes):
            if group is not None and group in permutations:
                leaf = jnp.take(leaf, permutations[group], axis=axis)
        return leaf

    leaves, structure = jax.tree.flatten(params)
    groups = jax.tree.leaves(symmetry, is_leaf=_is_groups)
    return jax.tree.unflatten(structure, [permute_leaf(leaf, axes) for leaf, axes in zip(leaves, groups, strict=True)])


def _disturbed(params: PyTree, key: Key[Array, ""]) -> PyTree:
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(_scale, params))
    noise = unravel(0.5 * flat * jax.random.normal(key, flat.shape, flat.dtype))
    return jax.tree.map(jnp.add, params, noise)


def _scale(weight: Array) -> Array:
    """Returns the root mean square of a weight, or 1 for zeros, repeated for each of its entries."""
    scale = jnp.sqrt(jnp.square(weight).mean())
    return jnp.full(weight.shape, jnp.where(scale > 0, scale, 1), weight.dtype)


def _not_identity(generator: np.random.Generator, size: int) -> np.ndarray:
    """Draws a random permutation that is not the identity."""
    drawn = generator.permutation(size)
    return np.roll(drawn, 1) if (drawn == np.arange(size)).all() else drawn


def _names(params: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _is_groups(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(group, str | None) for group in node)


def _paired(groups: Groups) -> tuple[int, int] | None:
    """Returns the two axes that share a group; None: there are none."""
    for i, j in itertools.combinations(range(len(groups)), 2):
        if groups[i] is not None and groups[i] == groups[j]:
            return i, j
    return None


def _kept(shape: tuple[int, ...], groups: Groups) -> list[int]:
    return [size for size, group in zip(shape, groups, strict=True) if group is None]


def _averages(leaf: Array, groups: Groups) -> Array:
    """Returns sqrt(m) times the mean over every orbit of m entries."""
    pair = _paired(groups)
    alone = tuple(i for i, group in enumerate(groups) if group is not None and (pair is None or i not in pair))
    if pair is None:
        count = int(np.prod([leaf.shape[axis] for axis in alone]))
        return leaf.sum(alone) / count**0.5
    size = leaf.shape[pair[0]]
    count = int(np.prod([leaf.shape[axis] for axis in alone]))
    leaf = jnp.moveaxis(leaf, pair, (-2, -1))
    moved = [i for i in range(leaf.ndim) if i not in pair]
    alone = tuple(moved.index(axis) for axis in alone)
    on = jnp.diagonal(leaf, axis1=-2, axis2=-1).sum(-1)
    off = leaf.sum((-2, -1)) - on
    means = jnp.stack([on / (size * count) ** 0.5, off / (max(size * (size - 1), 1) * count) ** 0.5])
    return means.sum(tuple(axis + 1 for axis in alone))
