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
    points = jnp.concatenate([features, position], -1).reshape(size * size, -1)
    starts = jnp.asarray((np.arange(_GRID) + 0.5) * (size / _GRID), jnp.int32)
    centres = points[(starts[:, None] * size + starts[None]).ravel()]

    def distances(centres: Array) -> Array:
        return (centres**2).sum(1, keepdims=True) - 2 * jnp.matmul(centres, points.T, precision="highest")

    def improve(_: Array, centres: Array) -> Array:
        distance = distances(centres)
        chosen = (distance == distance.min(0, keepdims=True)).astype(jnp.float32)
        count = chosen.sum(1, keepdims=True)
        means = jnp.matmul(chosen, points, precision="highest") / jnp.maximum(count, 1)
        return jnp.where(count > 0, means, centres)

    distance = distances(jax.lax.fori_loop(0, _ITERATIONS, improve, centres))
    numbers = jnp.arange(_GRID**2, dtype=jnp.int32)[:, None]
    return jnp.where(distance == distance.min(0, keepdims=True), numbers, -1).max(0).reshape(size, size)


def same_segment(segments: Int[Array, "size size"]) -> Float[Array, "size size 6"]:
    """1 where the pixel at an offset lies in the same segment, 0 where in another, -1 where there is none."""
    size = segments.shape[0]

    def compare(down: int, right: int) -> Array:
        same = segments[down:, right:] == segments[: size - down, : size - right]
        return jnp.pad(same.astype(jnp.float32), ((0, down), (0, right)), constant_values=-1.0)

    return jnp.stack([compare(round(down * size), round(right * size)) for down, right in OFFSETS], -1)
