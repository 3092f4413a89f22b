"""Directions: maps scaled to length 1, so that the cosine of two maps is their inner product."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Similarity = Literal["cosine", "correlation"]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "correlation")

# A map is constant up to rounding if its entries differ from their mean by less than this share of its largest entry.
_FLAT_SHARE = 1e-6


def directions(
    maps: Float[Array, "*maps pixels"], similarity: Similarity
) -> tuple[Float[Array, "*maps pixels"], Bool[Array, "*maps"]]:
    """Scales maps to length 1, and says which of them have a direction.

    For "correlation" the mean over pixels is removed first. A map has no direction, and becomes zero, if it holds a
    value that is not finite, if it is zero, or, for the correlation, if it is constant.
    """
    finite = jnp.isfinite(maps).all(-1, keepdims=True)
    maps = jnp.where(finite, maps, 0)
    # Scaled first, so that squares neither overflow nor vanish.
    largest = jnp.abs(maps).max(-1, keepdims=True)
    maps = maps / jnp.where(largest > 0, largest, 1)
    if similarity == "correlation":
        maps = maps - maps.mean(-1, keepdims=True)
    norm = jnp.sqrt(jnp.square(maps).sum(-1, keepdims=True))
    usable = finite & (norm > _FLAT_SHARE * math.sqrt(maps.shape[-1]))
    return jnp.where(usable, maps / jnp.where(usable, norm, 1), 0), usable[..., 0]
