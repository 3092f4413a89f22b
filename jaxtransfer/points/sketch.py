"""Sketches: random projections of maps to a few numbers, whose inner products are on average those of the maps."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Projection:
    """Pixels are dealt to `size` equal hands, once and for all; each image gives them signs of its own and sums a hand.

    With independent signs, <sketch of x, sketch of y> has the mean <x, y>. Over dealings too, its variance is
    `variance` times |x|^2 |y|^2 + <x, y>^2 - 2 sum_p x_p^2 y_p^2: a count sketch (Charikar et al., 2002) whose hands
    are equally large, which takes one pass and no scattering.

    Attributes:
        order: How pixels (and what fills up the last hand) are dealt.
        key: For the signs.
        size: Numbers in a sketch.
    """

    order: Int[Array, " dealt"]
    key: Key[Array, ""]
    size: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, pixels: int, size: int, key: Key[Array, ""]) -> Self:
        """A projection of vectors of `pixels` entries."""
        for_order, for_signs = jax.random.split(key)
        return cls(jax.random.permutation(for_order, -(-pixels // size) * size), for_signs, size)

    @property
    def variance(self) -> float:
        """The chance that a pixel shares its hand with another one, given."""
        return (len(self.order) // self.size - 1) / max(1, len(self.order) - 1)

    def __call__(
        self, vectors: Float[Array, "images pixels"], images: Int[Array, " images"]
    ) -> Float[Array, "images {self.size}"]:
        """Sketches of one vector for each image; those of one image, by its number, can be compared."""
        dealt = len(self.order)
        signs = jax.vmap(lambda image: jax.random.rademacher(jax.random.fold_in(self.key, image), (dealt,), jnp.int8))
        padded = jnp.pad(vectors, ((0, 0), (0, dealt - vectors.shape[1])))
        signed = padded[:, self.order] * signs(images).astype(vectors.dtype)
        return signed.reshape(len(vectors), -1, self.size).sum(1)
