"""Views: what a camera sees of a scene, as an image and as geometry."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtransfer.rooms.hits import trace
from jaxtransfer.rooms.scene import Camera, Scene
from jaxtransfer.rooms.shading import shade


class View(NamedTuple):
    """What a camera sees, pixel by pixel; rows run down, rays go through the centres of pixels.

    Attributes:
        image: sRGB in [0, 1].
        direction: Unit vectors from the camera, camera frame (x right, y down, z forward).
        distance: From the camera, in metres.
        normal: Unit vectors out of the surface, camera frame.
        curvature: The principal curvatures in 1/m, the larger first; positive where the surface is convex.
        piece: The piece of furniture, -1 for what belongs to the room.
        category: Number in `CATEGORIES`.
    """

    image: Float[Array, "size size 3"]
    direction: Float[Array, "size size 3"]
    distance: Float[Array, "size size"]
    normal: Float[Array, "size size 3"]
    curvature: Float[Array, "size size 2"]
    piece: Int[Array, "size size"]
    category: Int[Array, "size size"]


def pixel_rays(camera: Camera, size: int) -> Float[Array, "3 rays"]:
    """Unit vectors through the centres of pixels, row by row, in the camera's frame."""
    steps = camera.tangent * ((2 * jnp.arange(size) + 1) / size - 1)
    x, y = jnp.meshgrid(steps, steps)
    direction = jnp.stack([x.ravel(), y.ravel(), jnp.ones(size * size)])
    return direction / jnp.linalg.norm(direction, axis=0, keepdims=True)


@functools.partial(jax.jit, static_argnames="size")
def render(scene: Scene, camera: Camera, size: int = 64) -> View:
    """What a camera sees of a scene.

    Args:
        scene: The room.
        camera: Inside of it, and not of its furniture.
        size: Height and width in pixels.
    """
    ray = pixel_rays(camera, size)
    direction = jnp.matmul(camera.rotation, ray, precision="highest")
    hit = jax.lax.optimization_barrier(trace(scene, camera.position, direction))
    cosine = jnp.maximum(-(hit.normal * direction).sum(0), 0.05)
    footprint = hit.distance * (2 * camera.tangent / size) / jnp.sqrt(cosine)
    image = shade(scene, hit, direction, footprint)
    normal = jnp.matmul(camera.rotation.T, hit.normal, precision="highest")

    def pixels(values: Array) -> Array:
        return jnp.moveaxis(values.reshape(*values.shape[:-1], size, size), (-2, -1), (0, 1))

    return View(*map(pixels, (image, ray, hit.distance, normal, hit.curvature, hit.piece, hit.category)))
