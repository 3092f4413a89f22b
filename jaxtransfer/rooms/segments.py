"""Unsupervised segments, and whether two pixels lie in the same one."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_GRID = 5
_ITERATIONS = 5
OFFSETS = tuple((down, right) for distance in (1 / 16, 1 / 8, 1 / 4) for down, right in ((0, distance), (distance, 0)))
"""From a pixel to the one it is compared with, in image heights down and to the right."""


def segment(features: Float[Array, "size size features"], nearness: float) -> Int[Array, "size size"]:
    """Segments of alike neighbours: k-means of features and position from a 5 x 5 grid, five iterations.

    After SLIC (Achanta et al., PAMI 2012), with distances to all centres.

    Args:
        features: Of each pixel, in units in which distances count.
        nearness: What the whole width of the image counts as.

    Returns:
        Numbers of segments in [0, 25).
    """
    size = features.shape[0]
    steps = jnp.asarray(nearness * (np.arange(size) + 0.5) / size, jnp.float32)
    position = jnp.stack(jnp.meshgrid(steps, steps), -1)
    points = jnp.concatenate([features, position], -1).reshape(size * size, -1).T
    starts = ((np.arange(_GRID) + 0.5) * (size / _GRID)).astype(np.int32)
    centres = points[:, (starts[:, None] * size + starts[None]).ravel()]

    numbers = jnp.arange(_GRID**2, dtype=jnp.int32)

    def assign(centres: Array) -> Int[Array, " pixels"]:
        def compare(best: tuple[Array, Array], item: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            number, centre = item
            distance = sum((points[f] - centre[f]) ** 2 for f in range(len(points)))
            closer = distance < best[0]
            return (jnp.where(closer, distance, best[0]), jnp.where(closer, number, best[1])), None

        start = (jnp.full(size * size, jnp.inf), jnp.zeros(size * size, jnp.int32))
        return jax.lax.scan(compare, start, (numbers, centres.T), unroll=_GRID)[0][1]

    def improve(_: Array, centres: Array) -> Array:
        chosen = (assign(centres)[:, None] == numbers[None]).astype(jnp.float32)
        count = chosen.sum(0)[None]
        means = jnp.matmul(points, chosen, precision="highest") / jnp.maximum(count, 1)
        return jnp.where(count > 0, means, centres)

    return assign(jax.lax.fori_loop(0, _ITERATIONS, improve, centres)).reshape(size, size)


def same_segment(segments: Int[Array, "size size"]) -> Float[Array, "size size 6"]:
    """1 where the pixel at an offset lies in the same segment, 0 where in another, -1 where there is none."""
    size = segments.shape[0]

    def compare(down: int, right: int) -> Array:
        same = segments[down:, right:] == segments[: size - down, : size - right]
        return jnp.pad(same.astype(jnp.float32), ((0, down), (0, right)), constant_values=-1.0)

    return jnp.stack([compare(round(down * size), round(right * size)) for down, right in OFFSETS], -1)
