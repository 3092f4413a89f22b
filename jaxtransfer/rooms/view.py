"""Renders what a camera sees of a scene: the image, and the geometry at every pixel."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtransfer.rooms.hits import trace
from jaxtransfer.rooms.scene import Camera, Scene
from jaxtransfer.rooms.shading import shade


class View(NamedTuple):
    """What a camera sees at every pixel; rows run downwards, and rays go through the centres of pixels.

    Attributes:
        image: sRGB in [0, 1].
        direction: Unit vectors of the rays in the camera's frame (x right, y down, z forward).
        distance: Distance from the camera in metres.
        normal: Unit normals that point out of the surface, in the camera's frame.
        curvature: Principal curvatures in 1/m, the larger first; positive where the surface is convex.
        piece: Index of the piece of furniture; -1 for walls, floor, ceiling and openings.
        category: Index in `CATEGORIES`.
    """

    image: Float[Array, "size size 3"]
    direction: Float[Array, "size size 3"]
    distance: Float[Array, "size size"]
    normal: Float[Array, "size size 3"]
    curvature: Float[Array, "size size 2"]
    piece: Int[Array, "size size"]
    category: Int[Array, "size size"]


def pixel_rays(camera: Camera, size: int) -> Float[Array, "3 rays"]:
    """Returns unit vectors through the centres of pixels, row by row, in the camera's frame."""
    steps = camera.tangent * ((2 * jnp.arange(size) + 1) / size - 1)
    x, y = jnp.meshgrid(steps, steps)
    direction = jnp.stack([x.ravel(), y.ravel(), jnp.ones(size * size)])
    return direction / jnp.linalg.norm(direction, axis=0, keepdims=True)


@functools.partial(jax.jit, static_argnames="size")
def render(scene: Scene, camera: Camera, size: int = 64) -> View:
    """Renders a scene as a camera sees it.

    Args:
        scene: The scene.
        camera: A camera inside the room and outside its furniture.
        size: Height and width of the image in pixels.

    Compiling takes seconds; the shapes alone are known without it.

    Examples:
        >>> from jaxtransfer import rooms
        >>> def render(key):
        ...     scene = rooms.sample_scene(key)
        ...     return rooms.render(scene, scene.camera, size=8)
        >>> view = jax.eval_shape(render, jax.random.key(0))
        >>> view.image.shape, view.distance.shape, view.category.dtype
        ((8, 8, 3), (8, 8), dtype('int32'))
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
