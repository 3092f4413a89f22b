"""Cosines between the maps of networks, image by image."""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxtransfer.points.directions import Similarity, directions


@functools.partial(jax.jit, static_argnames="similarity")
def similarities(
    maps: Float[Array, "networks images pixels"], similarity: Similarity = "cosine"
) -> tuple[Float[Array, "images networks networks"], Bool[Array, "networks images"]]:
    """Computes the cosines between the maps of every two networks for the same image.

    Song et al. (NeurIPS 2019), section 3.3; `similarity="correlation"` removes each map's mean over pixels first.

    Args:
        maps: One map per network and image, flattened.
        similarity: "cosine" or "correlation".

    Returns:
        The cosines, in [-1, 1] and symmetric, 0 where one of the maps has no direction; and which maps have a
        direction, see `directions`.
    """
    chex.assert_rank(maps, 3)
    units, usable = directions(maps, similarity)
    cosines = products(units, units)
    return jnp.clip((cosines + cosines.swapaxes(1, 2)) / 2, -1, 1), usable


def products(
    some: Float[Array, "some images pixels"], others: Float[Array, "others images pixels"]
) -> Float[Array, "images some others"]:
    """Computes inner products, image by image, of the maps of some networks with those of others."""
    return jnp.einsum("inp,jnp->nij", some, others, precision="highest")
