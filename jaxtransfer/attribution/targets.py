"""Scalars of a network's output that attribution maps explain."""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree


def random_signs(outputs: PyTree) -> Float[Array, " images"]:
    """Sums the units of a representation with fixed random signs, for use as `target` of `attribute`.

    The sum over all units is constant where the network ends in a softmax or in a normalisation without a learned
    scale; this sum is not. The sign of a unit depends only on its place: the top bit of MurmurHash3's finaliser
    (Appleby 2011) of 0x9E3779B9 times the place, so it is the same for every network, machine and version.

    Args:
        outputs: The network's output: floating-point arrays [images, ...]; units are numbered through all of them.

    Returns:
        One scalar for each image.
    """
    leaves = jax.tree.leaves(outputs)
    signs = unit_signs([leaf.shape[1:] for leaf in leaves])
    return sum_of_units([leaf * sign.astype(leaf.dtype)[None] for leaf, sign in zip(leaves, signs, strict=True)])


def spatial_maximum(outputs: PyTree) -> Float[Array, " images"]:
    """Sums the largest value of every channel over the places of a grid, for use as `target` of `attribute`.

    This is the scalar of ModelGiF (Song et al., ICCV 2023). Along the path of `integrated_gradients` and `modelgif` the
    places stay those of the image's own maxima, as in the authors' code.

    Args:
        outputs: The network's output: floating-point arrays [images, ...]. Those that are no grids
            [images, height, width, channels] have one place, so that all their units are summed.

    Returns:
        One scalar for each image.
    """
    leaves = jax.tree.leaves(outputs)
    return sum_of_units([leaf.max((1, 2)) if leaf.ndim == 4 else leaf for leaf in leaves])


def sum_of_units(outputs: PyTree) -> Float[Array, " images"]:
    """Sums all units of a network's output, for each image."""
    sums = [leaf.reshape(leaf.shape[0], -1).sum(1) for leaf in jax.tree.leaves(outputs)]
    return functools.reduce(jnp.add, sums)


def unit_signs(shapes: Iterable[Sequence[int]], vector: int | Int[Array, ""] = 0) -> list[Float[Array, "..."]]:
    """Returns a vector of random signs, +1 or -1, in arrays of these shapes.

    The sign of a unit is a bit of a hash of its place (see `random_signs`): the top bit in vector 0, whose first two
    signs differ, the next one in vector 1, and so on.

    Args:
        shapes: Shapes of the arrays; units are numbered through all of them.
        vector: Number of the vector, from 0 to 31.
    """
    bit = jnp.uint32(31) - jnp.asarray(vector, jnp.uint32)
    signs, first = [], 0
    for shape in shapes:
        count = int(np.prod(shape))
        x = (jnp.arange(count, dtype=jnp.uint32) + jnp.uint32(first)) * jnp.uint32(0x9E3779B9)
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        x = x ^ (x >> 16)
        signs.append(1 - 2 * ((x >> bit) & 1).astype(jnp.float32).reshape(tuple(shape)))
        first += count
    return signs
