"""Symmetries of a backbone: which units can be exchanged, and what that says about an expected gradient.

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
# Of an F test in the check of initialisers: draws, rate of false alarms, and the ratio below which nothing is wrong.
_DRAWS, _FALSE_ALARM, _RATIO = 16, 1e-9, 1.5


@dataclasses.dataclass(frozen=True)
class Orbits:
    """Coordinates of gradients: all entries, or one number for each orbit of a symmetry.

    The coordinate of an orbit of m entries is sqrt(m) times their mean, so that inner products of coordinates are those
    of the gradients projected on what the symmetry leaves as it is.

    Attributes:
        shapes: Of the weights, in the order of `jax.tree.leaves`.
        groups: Of their axes; None for all entries.
        structure: Of the weights.
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
        """Number of coordinates of every weight."""
        return [
            int(np.prod(_kept(shape, groups))) * (2 if _paired(groups) else 1)
            for shape, groups in zip(self.shapes, self._groups(), strict=True)
        ]

    def project(self, gradient: PyTree) -> Float[Array, " dimension"]:
        """The coordinates of a gradient."""
        parts = [
            _averages(leaf, groups).reshape(-1)
            for leaf, groups in zip(jax.tree.leaves(gradient), self._groups(), strict=True)
        ]
        return jnp.concatenate(parts)

    def lift(self, coordinates: Float[Array, " dimension"]) -> PyTree:
        """The gradient with these coordinates, constant on every orbit: the transpose of `project`."""
        zeros = [jnp.zeros(shape, coordinates.dtype) for shape in self.shapes]
        transpose = jax.linear_transpose(self.project, jax.tree.unflatten(self.structure, zeros))
        return transpose(coordinates)[0]

    def _groups(self) -> tuple[Groups, ...]:
        return self.groups or tuple((None,) * len(shape) for shape in self.shapes)


def orbits(params: PyTree, symmetry: PyTree | None) -> Orbits:
    """The coordinates a specification gives.

    Args:
        params: Weights, or their shapes.
        symmetry: The specification; None for the gradient's own entries.

    Raises:
        JaxTransferError: The specification has another structure than the weights, names too many or too few axes, one
            group with axes of different sizes, or one group on more than two axes of a weight.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    if symmetry is None:
        return Orbits(shapes, None, structure)
    groups, given = jax.tree.flatten(symmetry, is_leaf=_is_groups)
    if given != structure:
        raise JaxTransferError(f"symmetry must have the structure of the weights, {structure}, not {given}.")
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
    """Permutes weights as a specification says and looks whether the loss stays as it is; and compares fresh weights.

    The weights are disturbed first, since a fresh network has many equal ones. Losses of this package are looked at by
    the inner products of their features, which tell more than one number; a loss of one's own by its value, on one
    batch and key. Of the initialiser it is seen whether entries of one orbit differ in mean or in mean square.

    Args:
        init: Draws the weights.
        loss: The loss.
        batches: The batches.
        symmetry: The specification.
        key: For weights, batch, disturbance and permutations.

    Raises:
        JaxTransferError: The loss changes, or entries of one orbit are drawn differently; the groups or weights are
            named.
    """
    shapes = jax.eval_shape(init, key)
    found = orbits(shapes, symmetry)
    _check_initialiser(init, found, _names(shapes), key)
    groups = jax.tree.leaves(symmetry, is_leaf=_is_groups)
    sizes = {
        group: size
        for axes, leaf in zip(groups, jax.tree.leaves(shapes), strict=True)
        for group, size in zip(axes, leaf.shape, strict=True)
        if group is not None
    }
    generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    permutations = {group: _moving(generator, size) for group, size in sizes.items()}
    unmoved = {group: np.arange(size) for group, size in sizes.items()}

    @jax.jit
    def observe(key: Key[Array, ""], batches: Batches, permutations: Mapping[str, Array]) -> Array:
        keys = jax.random.split(key, 4)
        params = permute(_disturbed(init(keys[0]), keys[1]), symmetry, permutations)
        batch = draw(batches, keys[2], jnp.zeros((), jnp.int32))
        with jax.default_matmul_precision("highest"):
            return getattr(loss, "invariant", loss)(params, batch, keys[3])

    own = not hasattr(loss, "invariant")
    before = np.asarray(observe(key, batches, unmoved), np.float64)
    if not np.isfinite(before).all():
        raise JaxTransferError("The loss is not finite on disturbed fresh weights, so the symmetry cannot be checked.")

    def changes(some: Mapping[str, np.ndarray]) -> bool:
        after = np.asarray(observe(key, batches, unmoved | dict(some)), np.float64)
        return bool(np.abs(after - before).max() > _TOLERANCE * np.abs(before).max())

    if changes(permutations):
        guilty = [group for group in permutations if changes({group: permutations[group]})]
        raise JaxTransferError(
            f"The symmetry is wrong: the loss changes when units of {', '.join(guilty) or 'several groups'} are "
            f"permuted; correct the specification{_HINT if own else ''}, or leave symmetry out."
        )


def _check_initialiser(
    init: Callable[[Key[Array, ""]], PyTree], found: Orbits, names: Sequence[str], key: Key[Array, ""]
) -> None:
    """Compares the means and mean squares of entries in one orbit, between entries and between draws (F tests)."""
    between, within, entries = (np.asarray(each, np.float64) for each in _moments(init, found, key))
    entries = np.maximum(entries.round(), 2)
    limit = scipy.special.fdtri(entries - 1, entries * (_DRAWS - 1), 1 - _FALSE_ALARM)
    ratio = between * entries / (entries - 1) * (_DRAWS - 1)
    wrong = (ratio > np.maximum(limit, _RATIO) * within).any(0)
    if wrong.any():
        guilty = dict.fromkeys(np.repeat(names, found.per_weight)[wrong])
        raise JaxTransferError(
            f"The initialiser does not treat alike what the symmetry exchanges, in {', '.join(guilty)}; "
            "correct the specification, or leave symmetry out."
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(
    init: Callable[[Key[Array, ""]], PyTree], found: Orbits, key: Key[Array, ""]
) -> tuple[Float[Array, "2 dimension"], Float[Array, "2 dimension"], Float[Array, " dimension"]]:
    """Of weights and of their squares: variance between entries of their mean over draws, and mean of that over draws.

    Both times the square root of the number of entries, which comes third. Squares are taken of the difference to an
    orbit's mean in another draw, lest they round away.
    """

    def power(tree: PyTree, exponent: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf**exponent, tree)

    keys = jax.random.split(key, _DRAWS + 1)
    first = init(keys[0])
    centre = found.lift(found.project(first))

    def add(sums: list[PyTree], key: Key[Array, ""]) -> tuple[list[PyTree], None]:
        away = jax.tree.map(jnp.subtract, init(key), centre)
        return [jax.tree.map(jnp.add, each, power(away, 2**i)) for i, each in enumerate(sums)], None

    sums, _ = jax.lax.scan(add, [jax.tree.map(jnp.zeros_like, first)] * 3, keys[1:])
    means = [jax.tree.map(lambda leaf: leaf / _DRAWS, each) for each in sums]
    rounding = 1e-12 * found.project(power(first, 2))
    between, within = [], []
    for mean, mean_square in itertools.pairwise(means):
        between.append(found.project(power(jax.tree.map(jnp.subtract, mean, found.lift(found.project(mean))), 2)))
        variance = jax.tree.map(lambda square, mean: square - mean**2, mean_square, mean)
        within.append(found.project(variance) + rounding)
    entries = jnp.square(found.project(jax.tree.map(jnp.ones_like, first)))
    return jnp.stack(between), jnp.stack(within), entries


def permute(params: PyTree, symmetry: PyTree, permutations: Mapping[str, Array]) -> PyTree:
    """The weights with their units permuted; groups without a permutation stay."""

    def one(leaf: Array, axes: Groups) -> Array:
        for axis, group in enumerate(axes):
            if group is not None and group in permutations:
                leaf = jnp.take(leaf, permutations[group], axis=axis)
        return leaf

    leaves, structure = jax.tree.flatten(params)
    groups = jax.tree.leaves(symmetry, is_leaf=_is_groups)
    return jax.tree.unflatten(structure, [one(leaf, axes) for leaf, axes in zip(leaves, groups, strict=True)])


def _disturbed(params: PyTree, key: Key[Array, ""]) -> PyTree:
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(_scale, params))
    noise = unravel(0.5 * flat * jax.random.normal(key, flat.shape, flat.dtype))
    return jax.tree.map(jnp.add, params, noise)


def _scale(weight: Array) -> Array:
    """The root mean square of a weight, or 1 for zeros, at each of its entries."""
    scale = jnp.sqrt(jnp.square(weight).mean())
    return jnp.full(weight.shape, jnp.where(scale > 0, scale, 1), weight.dtype)


def _moving(generator: np.random.Generator, size: int) -> np.ndarray:
    """A random permutation other than the identity."""
    drawn = generator.permutation(size)
    return np.roll(drawn, 1) if (drawn == np.arange(size)).all() else drawn


def _names(params: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _is_groups(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(each, str | None) for each in node)


def _paired(groups: Groups) -> tuple[int, int] | None:
    """The two axes that share a group."""
    for i, j in itertools.combinations(range(len(groups)), 2):
        if groups[i] is not None and groups[i] == groups[j]:
            return i, j
    return None


def _kept(shape: tuple[int, ...], groups: Groups) -> list[int]:
    return [size for size, group in zip(shape, groups, strict=True) if group is None]


def _averages(leaf: Array, groups: Groups) -> Array:
    """sqrt(m) times the mean over every orbit of m entries."""
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
