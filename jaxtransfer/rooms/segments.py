"""Segments images without supervision and says whether two pixels share a segment."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_GRID = 5
_ITERATIONS = 5
OFFSETS = tuple((down, right) for distance in (1 / 16, 1 / 8, 1 / 4) for down, right in ((0, distance), (distance, 0)))
"""Offsets from a pixel to the pixel it is compared with: (down, right) in image heights."""


def segment(features: Float[Array, "size size features"], position_weight: float) -> Int[Array, "size size"]:
    """Segments an image by k-means over features and position, in five iterations from a 5 x 5 grid of centres.

    After SLIC (Achanta et al., PAMI 2012), but every pixel is compared with all centres.

    Args:
        features: Features of every pixel, scaled so that Euclidean distances are meaningful.
        position_weight: The distance, in the units of `features`, that the width of the image counts as.

    Returns:
        Index of each pixel's segment in [0, 25).
    """
    size = features.shape[0]
    steps = jnp.asarray(position_weight * (np.arange(size) + 0.5) / size, jnp.float32)
    position = jnp.stack(jnp.meshgrid(steps, steps), -1)
    points = jnp.concatenate([features, position], -1).reshape(size * size, -1).T
    starts = ((np.arange(_GRID) + 0.5) * (size / _GRID)).astype(np.int32)
    centres = points[:, (starts[:, None] * size + starts[None]).ravel()]

    indices = jnp.arange(_GRID**2, dtype=jnp.int32)

    def assign(centres: Array) -> Int[Array, " pixels"]:
        def compare(best: tuple[Array, Array], item: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            index, centre = item
            distance = sum((points[f] - centre[f]) ** 2 for f in range(len(points)))
            closer = distance < best[0]
            return (jnp.where(closer, distance, best[0]), jnp.where(closer, index, best[1])), None

        start = (jnp.full(size * size, jnp.inf), jnp.zeros(size * size, jnp.int32))
        return jax.lax.scan(compare, start, (indices, centres.T), unroll=_GRID)[0][1]

    def improve(_: Array, centres: Array) -> Array:
        member = (assign(centres)[:, None] == indices[None]).astype(jnp.float32)
        count = member.sum(0)[None]
        means = jnp.matmul(points, member, precision="highest") / jnp.maximum(count, 1)
        return jnp.where(count > 0, means, centres)

    return assign(jax.lax.fori_loop(0, _ITERATIONS, improve, centres)).reshape(size, size)


def same_segment(segments: Int[Array, "size size"]) -> Float[Array, "size size 6"]:
    """Compares each pixel with those at `OFFSETS`: 1 same segment, 0 another segment, -1 outside the image."""
    size = segments.shape[0]

    def compare(down: int, right: int) -> Array:
        same = segments[down:, right:] == segments[: size - down, : size - right]
        return jnp.pad(same.astype(jnp.float32), ((0, down), (0, right)), constant_values=-1.0)

    return jnp.stack([compare(round(down * size), round(right * size)) for down, right in OFFSETS], -1)
