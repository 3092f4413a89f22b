"""Finds what rays from inside a room hit first: furniture, or a surface of the room and the opening in it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtransfer.rooms import furniture, rays
from jaxtransfer.rooms.rays import Solids
from jaxtransfer.rooms.scene import OUTWARD, Openings, Scene

WINDOW, DOOR, PICTURE = (furniture.SURFACES.index(name) for name in ("window", "door", "picture"))


class Hit(NamedTuple):
    """The points that rays hit; the last axis of every array is the rays.

    Attributes:
        distance: Distance from the origin of the ray in metres.
        point: Position in metres, in the room's frame.
        normal: Unit normals that point out of the surface, in the room's frame.
        curvature: Principal curvatures in 1/m, the larger first; positive where the surface is convex.
        place: Two coordinates along the surface in metres.
        material: Index in the scene's materials.
        piece: Index of the piece of furniture; -1 for walls, floor, ceiling and openings.
        surface: 0 to 3 for the walls at +x, +y, -x, -y, 4 for the floor, 5 for the ceiling, -1 for furniture.
        opening: Index of the window, door or picture; -1 for none.
        inner: Coordinates from the opening's centre in metres.
        category: Index in `CATEGORIES`.
    """

    distance: Float[Array, " rays"]
    point: Float[Array, "3 rays"]
    normal: Float[Array, "3 rays"]
    curvature: Float[Array, "2 rays"]
    place: Float[Array, "2 rays"]
    material: Int[Array, " rays"]
    piece: Int[Array, " rays"]
    surface: Int[Array, " rays"]
    opening: Int[Array, " rays"]
    inner: Float[Array, "2 rays"]
    category: Int[Array, " rays"]


def trace(scene: Scene, origin: Float[Array, " 3"], direction: Float[Array, "3 rays"]) -> Hit:
    """Finds the first point that each ray hits.

    Args:
        scene: The scene.
        origin: Common origin of all rays in metres; inside the room and outside its furniture.
        direction: Unit vectors of the rays in the room's frame.
    """
    start = origin[:, None]
    # Without the barriers, XLA recomputes the barriers' operands for every array that depends on them.
    solid_distance, solid = rays.nearest(scene.shapes, start, direction)
    wall_distance, wall = rays.leave_room(scene.extent, start, direction)
    furnished = solid_distance < wall_distance
    distance = jnp.where(furnished, solid_distance, wall_distance)
    point = start + distance[None] * direction
    index, surface = jnp.maximum(solid, 0), jnp.where(furnished, -1, wall)

    solids = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *scene.shapes)
    boxes, cylinders, _ = (len(group.centre) for group in scene.shapes)
    shape = (index >= boxes).astype(jnp.int32) + (index >= boxes + cylinders).astype(jnp.int32)
    hit_solid, shape, point = jax.lax.optimization_barrier((Solids(*(leaf[index] for leaf in solids)), shape, point))
    contact = jax.lax.optimization_barrier(rays.contact(hit_solid, shape, point))
    along = along_wall(wall, point)
    flat = jnp.where((wall < 4)[None], jnp.stack([along, point[2]]), point[:2])

    piece = jnp.where(furnished, scene.piece[index], -1)
    opening, inner = jax.lax.optimization_barrier(find_opening(scene.openings, surface, along, point[2]))
    of_room = jnp.where(opening >= 0, scene.openings.category[opening], jnp.maximum(surface - 3, 0))
    of_piece = jnp.asarray(furniture.CATEGORY)[scene.furniture.kind[piece]]
    return Hit(
        distance=distance,
        point=point,
        normal=jnp.where(furnished[None], contact.normal, -jnp.asarray(OUTWARD)[wall].T),
        curvature=jnp.where(furnished[None], contact.curvature, 0.0),
        place=jnp.where(furnished[None], contact.place, flat),
        material=jnp.where(furnished, index, len(solids.centre) + wall),
        piece=piece,
        surface=surface,
        opening=opening,
        inner=inner,
        category=jnp.where(furnished, of_piece, of_room),
    )


def along_wall(wall: Int[Array, " rays"], point: Float[Array, "3 rays"]) -> Float[Array, " rays"]:
    """Returns the coordinate along a wall in metres, from its middle towards the next wall."""
    along = jnp.where(wall % 2 == 0, point[1], -point[0])
    return jnp.where(wall >= 2, -along, along)


def find_opening(
    openings: Openings, surface: Int[Array, " rays"], along: Float[Array, " rays"], height: Float[Array, " rays"]
) -> tuple[Int[Array, " rays"], Float[Array, "2 rays"]]:
    """Returns the index of the opening at points of walls (-1 for none), and coordinates from its centre in metres."""
    opening, inner = jnp.full(surface.shape, -1, jnp.int32), jnp.zeros((2, *surface.shape))
    for number in range(len(openings.wall)):
        u, v = along - openings.centre[number, 0], height - openings.centre[number, 1]
        within = (jnp.abs(u) < openings.half[number, 0]) & (jnp.abs(v) < openings.half[number, 1])
        within &= (surface == openings.wall[number]) & (openings.category[number] >= 0)
        opening = jnp.where(within, number, opening)
        inner = jnp.where(within[None], jnp.stack([u, v]), inner)
    return opening, inner
