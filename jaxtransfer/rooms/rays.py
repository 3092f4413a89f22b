"""Intersects rays with convex solids and with the inside of a box: distances, normals, principal curvatures.

Vectors have their components on the first axis and the rays on the last, so every operation is one loop over the rays.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_EPSILON = 1e-9
_UNROLL = 2

Rays = Float[Array, "3 rays"]
Origin = Float[Array, "3 rays"] | Float[Array, "3 1"]


class Solids(NamedTuple):
    """Solids of one shape: boxes, upright cylinders or spheres.

    Attributes:
        centre: Centre in metres, in the room's frame.
        half: Half the extent along the solid's own axes in metres; for cylinders and spheres the first is the radius.
            A negative extent marks a solid that does not exist.
        heading: Cosine and sine of the angle about the vertical from the room's axes to the solid's own axes.
    """

    centre: Float[Array, "*solids 3"]
    half: Float[Array, "*solids 3"]
    heading: Float[Array, "*solids 2"]


class Shapes(NamedTuple):
    """All solids of a scene; indices of solids count through the three arrays in this order."""

    boxes: Solids
    cylinders: Solids
    spheres: Solids


def _turn(solid: Solids, x: Array, y: Array) -> tuple[Array, Array]:
    """Rotates horizontal components from the room's axes to the solid's own axes."""
    cosine, sine = solid.heading[..., 0], solid.heading[..., 1]
    return cosine * x + sine * y, cosine * y - sine * x


def _slab(origin: Array, direction: Array, half: Array) -> tuple[Array, Array]:
    inverse = 1 / jnp.where(jnp.abs(direction) < _EPSILON, _EPSILON, direction)
    middle, reach = -origin * inverse, half * jnp.abs(inverse)
    return middle - reach, middle + reach


def _quadratic(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Returns both roots of a t^2 + 2 b t + c, the smaller first; without real roots the first exceeds the second."""
    discriminant = b * b - a * c
    root = jnp.where(discriminant > 0, jnp.sqrt(jnp.maximum(discriminant, 0)), -1.0)
    inverse = 1 / jnp.maximum(a, _EPSILON)
    return (-b - root) * inverse, (-b + root) * inverse


def _box(solid: Solids, origin: Origin, direction: Rays) -> tuple[Array, Array]:
    x, y = _turn(solid, origin[0] - solid.centre[0], origin[1] - solid.centre[1])
    near, far = _slab(origin[2] - solid.centre[2], direction[2], solid.half[2])
    for start, along, half in zip((x, y), _turn(solid, direction[0], direction[1]), solid.half[:2], strict=True):
        enter, leave = _slab(start, along, half)
        near, far = jnp.maximum(near, enter), jnp.minimum(far, leave)
    return near, far


def _cylinder(solid: Solids, origin: Origin, direction: Rays) -> tuple[Array, Array]:
    x, y = origin[0] - solid.centre[0], origin[1] - solid.centre[1]
    dx, dy = direction[0], direction[1]
    radius = solid.half[0]
    near, far = _quadratic(dx * dx + dy * dy, x * dx + y * dy, x * x + y * y - radius * jnp.abs(radius))
    enter, leave = _slab(origin[2] - solid.centre[2], direction[2], solid.half[2])
    return jnp.maximum(near, enter), jnp.minimum(far, leave)


def _sphere(solid: Solids, origin: Origin, direction: Rays) -> tuple[Array, Array]:
    x, y, z = (origin[axis] - solid.centre[axis] for axis in range(3))
    dx, dy, dz = direction
    radius = solid.half[0]
    square = x * x + y * y + z * z - radius * jnp.abs(radius)
    return _quadratic(dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz, square)


_INTERVALS: tuple[Callable[[Solids, Origin, Rays], tuple[Array, Array]], ...] = (_box, _cylinder, _sphere)


def nearest(shapes: Shapes, origin: Origin, direction: Rays) -> tuple[Float[Array, " rays"], Int[Array, " rays"]]:
    """Finds the first solid that each ray enters.

    Args:
        shapes: The solids; a ray that starts inside a solid ignores it.
        origin: Origins of the rays in metres: a common point, or a point per ray.
        direction: Unit vectors of the rays.

    Returns:
        Distances in metres (infinite where a ray hits nothing) and indices of the solids (there -1).
    """
    rays = direction.shape[1]
    first = (jnp.full(rays, jnp.inf), jnp.full(rays, -1, jnp.int32))
    start = 0
    for solids, interval in zip(shapes, _INTERVALS, strict=True):

        def step(best: tuple[Array, Array], item: tuple[Solids, Array], interval=interval) -> tuple[tuple, None]:
            distance, index = best
            near, far = interval(item[0], origin, direction)
            closer = (near < far) & (near > 0) & (near < distance)
            return (jnp.where(closer, near, distance), jnp.where(closer, item[1], index)), None

        count = len(solids.centre)
        indices = jnp.arange(start, start + count, dtype=jnp.int32)
        first, _ = jax.lax.scan(step, first, (solids, indices), unroll=_UNROLL)
        start += count
    return first


def blocked(shapes: Shapes, origin: Origin, direction: Rays, reach: Float[Array, " rays"]) -> Float[Array, " rays"]:
    """Returns 1 where a ray hits a solid within `reach` metres of its origin, else 0."""
    shade = jnp.zeros(direction.shape[1])
    for solids, interval in zip(shapes, _INTERVALS, strict=True):

        def step(shade: Array, solid: Solids, interval=interval) -> tuple[Array, None]:
            near, far = interval(solid, origin, direction)
            return jnp.where((near < far) & (far > 0) & (near < reach), 1.0, shade), None

        shade, _ = jax.lax.scan(step, shade, solids, unroll=_UNROLL)
    return shade


def leave_room(
    extent: Float[Array, " 3"], origin: Origin, direction: Rays
) -> tuple[Float[Array, " rays"], Int[Array, " rays"]]:
    """Finds where rays from inside the room hit its walls, floor or ceiling.

    Args:
        extent: Width, depth and height of the room in metres; the room's frame has its origin at the centre of the
            floor.
        origin: Origins of the rays, inside the room.
        direction: Unit vectors of the rays.

    Returns:
        Distances in metres, and surfaces: 0 to 3 for the walls at +x, +y, -x, -y, 4 for the floor, 5 for the ceiling.
    """
    low = jnp.stack([-extent[0] / 2, -extent[1] / 2, jnp.zeros(())])[:, None]
    high = jnp.stack([extent[0] / 2, extent[1] / 2, extent[2]])[:, None]
    safe = jnp.where(jnp.abs(direction) < _EPSILON, _EPSILON, direction)
    distances = (jnp.where(safe > 0, high, low) - origin) / safe
    x, y, z = distances
    distance = jnp.minimum(jnp.minimum(x, y), z)
    sideways = jnp.where(x <= y, jnp.where(safe[0] > 0, 0, 2), jnp.where(safe[1] > 0, 1, 3))
    surface = jnp.where(z < jnp.minimum(x, y), jnp.where(safe[2] > 0, 5, 4), sideways)
    return distance, surface.astype(jnp.int32)


class Contact(NamedTuple):
    """The surface of solids at the points where rays hit them.

    Attributes:
        normal: Outward unit normals in the room's frame.
        curvature: Principal curvatures in 1/m, the larger first; positive where the surface is convex.
        place: Two coordinates along the surface in metres.
    """

    normal: Rays
    curvature: Float[Array, "2 rays"]
    place: Float[Array, "2 rays"]


def contact(solid: Solids, shape: Int[Array, " rays"], point: Rays) -> Contact:
    """Computes normals, curvatures and surface coordinates of points on solids.

    Args:
        solid: The solid that each ray hits; components on the last axis.
        shape: 0 for a box, 1 for a cylinder, 2 for a sphere.
        point: Points on the solids' surfaces in metres, in the room's frame.
    """
    offset = point - solid.centre.T
    x, y = _turn(solid, offset[0], offset[1])
    z = offset[2]
    hx, hy, hz = solid.half.T
    across = jnp.hypot(x, y)
    gx, gy, gz = jnp.abs(x) - hx, jnp.abs(y) - hy, jnp.abs(z) - hz
    box, cylinder, sphere = shape == 0, shape == 1, shape == 2
    top = jnp.where(box, gz > jnp.maximum(gx, gy), cylinder & (gz > across - hx))
    side_x = box & ~top & (gx >= gy)
    side_y = box & ~top & ~side_x
    radius = jnp.maximum(hx, _EPSILON)
    nx = jnp.where(top | side_y, 0.0, jnp.where(side_x, jnp.sign(x), x))
    ny = jnp.where(top | side_x, 0.0, jnp.where(side_y, jnp.sign(y), y))
    nz = jnp.where(top, jnp.sign(z), jnp.where(sphere, z, 0.0))
    length = jnp.maximum(jnp.sqrt(nx * nx + ny * ny + nz * nz), _EPSILON)
    cosine, sine = solid.heading.T
    normal = jnp.stack([cosine * nx - sine * ny, sine * nx + cosine * ny, nz]) / length[None]
    larger = jnp.where(sphere | (cylinder & ~top), 1 / radius, 0.0)
    smaller = jnp.where(sphere, 1 / radius, 0.0)
    around = jnp.arctan2(y, x) * radius
    u = jnp.where(box, jnp.where(side_x, y, x), jnp.where(top, x, around))
    v = jnp.where(top, y, z)
    return Contact(normal, jnp.stack([larger, smaller]), jnp.stack([u, v]))
