"""Sketches: random projections of maps to a few numbers, whose inner products are unbiased for those of the maps."""

import dataclasses
from typing import Self

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """Makes count sketches: each pixel is hashed to one of `size` equally full buckets; signs are drawn per image.

    The sketch of a map holds the signed sum of each bucket (Charikar et al., 2002); equally full buckets need no
    scattering. Over signs, <sketch of x, sketch of y> has the mean <x, y>. Over signs and buckets, its variance is
    `variance` times |x|^2 |y|^2 + <x, y>^2 - 2 sum_p x_p^2 y_p^2.

    Attributes:
        order: A permutation of the pixels and of the padding; place p belongs to bucket p modulo `size`.
        key: The key from which signs are drawn.
        size: Number of buckets: numbers in a sketch.
    """

    order: Int[Array, " places"]
    key: Key[Array, ""]
    size: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, pixels: int, size: int, key: Key[Array, ""]) -> Self:
        """Draws a projection of maps with `pixels` pixels."""
        for_order, for_signs = jax.random.split(key)
        return cls(jax.random.permutation(for_order, -(-pixels // size) * size), for_signs, size)

    @property
    def variance(self) -> float:
        """The probability that two given pixels share a bucket."""
        return (len(self.order) // self.size - 1) / max(1, len(self.order) - 1)

    @property
    def curve_variance(self) -> float:
        """The probability that two pixels of different maps of a curve share a bucket, see `passes`."""
        return len(self.order) // self.size / max(1, len(self.order) - 1)

    def __call__(
        self, vectors: Float[Array, "images pixels"], images: Int[Array, " images"]
    ) -> Float[Array, "images {self.size}"]:
        """Sketches one map of each image; only sketches of the same image, by its number, can be compared."""
        chex.assert_rank([vectors, images], [2, 1])
        chex.assert_equal_shape_prefix([vectors, images], 1)
        places = len(self.order)
        signs = jax.vmap(lambda image: jax.random.rademacher(jax.random.fold_in(self.key, image), (places,), jnp.int8))
        padded = jnp.pad(vectors, ((0, 0), (0, places - vectors.shape[1])))
        signed = padded[:, self.order] * signs(images).astype(vectors.dtype)
        return signed.reshape(len(vectors), -1, self.size).sum(1)
