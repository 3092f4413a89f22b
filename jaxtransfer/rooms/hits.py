"""What rays from inside of a room meet: furniture, or the room's surfaces and the openings in them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtransfer.rooms import furniture, rays
from jaxtransfer.rooms.rays import Solids
from jaxtransfer.rooms.scene import OUTWARD, Openings, Scene

WINDOW, DOOR, PICTURE = (furniture.SURFACES.index(name) for name in ("window", "door", "picture"))


class Hit(NamedTuple):
    """Where rays end; components first, rays last.

    Attributes:
        distance: In metres.
        point: In metres, room frame.
        normal: Out of the surface, unit vectors, room frame.
        curvature: The principal curvatures in 1/m, the larger first; positive where the surface is convex.
        place: Two coordinates along the surface, in metres.
        material: Row of the scene's materials.
        piece: The piece of furniture, -1 for what belongs to the room.
        surface: 0 to 3 the walls at +x, +y, -x, -y, 4 the floor, 5 the ceiling, -1 furniture.
        opening: Number of the window, door or picture, -1 for none.
        inner: Coordinates from the opening's centre, in metres.
        category: Number in `CATEGORIES`.
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
    """What rays meet first.

    Args:
        scene: The room.
        origin: Where all rays start: inside of the room, outside of its furniture; in metres.
        direction: Unit vectors, room frame.
    """
    start = origin[:, None]
    # Without the barriers, XLA computes what is behind them again for every array that is made of it.
    solid_distance, solid = rays.nearest(scene.shapes, start, direction)
    wall_distance, wall = rays.leave_room(scene.extent, start, direction)
    furnished = solid_distance < wall_distance
    distance = jnp.where(furnished, solid_distance, wall_distance)
    point = start + distance[None] * direction
    number, surface = jnp.maximum(solid, 0), jnp.where(furnished, -1, wall)

    solids = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *scene.shapes)
    boxes, cylinders, _ = (len(shape.centre) for shape in scene.shapes)
    kind = (number >= boxes).astype(jnp.int32) + (number >= boxes + cylinders).astype(jnp.int32)
    met, kind, point = jax.lax.optimization_barrier((Solids(*(leaf[number] for leaf in solids)), kind, point))
    touched = jax.lax.optimization_barrier(rays.contact(met, kind, point))
    along = along_wall(wall, point)
    flat = jnp.where((wall < 4)[None], jnp.stack([along, point[2]]), point[:2])

    piece = jnp.where(furnished, scene.piece[number], -1)
    opening, inner = jax.lax.optimization_barrier(find_opening(scene.openings, surface, along, point[2]))
    of_room = jnp.where(opening >= 0, scene.openings.category[opening], jnp.maximum(surface - 3, 0))
    of_piece = jnp.asarray(furniture.CATEGORY)[scene.furniture.kind[piece]]
    return Hit(
        distance=distance,
        point=point,
        normal=jnp.where(furnished[None], touched.normal, -jnp.asarray(OUTWARD)[wall].T),
        curvature=jnp.where(furnished[None], touched.curvature, 0.0),
        place=jnp.where(furnished[None], touched.place, flat),
        material=jnp.where(furnished, number, len(solids.centre) + wall),
        piece=piece,
        surface=surface,
        opening=opening,
        inner=inner,
        category=jnp.where(furnished, of_piece, of_room),
    )


def along_wall(wall: Int[Array, " rays"], point: Float[Array, "3 rays"]) -> Float[Array, " rays"]:
    """The coordinate along a wall, from its middle in the direction of the next one, in metres."""
    along = jnp.where(wall % 2 == 0, point[1], -point[0])
    return jnp.where(wall >= 2, -along, along)


def find_opening(
    openings: Openings, surface: Int[Array, " rays"], along: Float[Array, " rays"], height: Float[Array, " rays"]
) -> tuple[Int[Array, " rays"], Float[Array, "2 rays"]]:
    """The opening at points of walls, -1 for none, and the coordinates from its centre, in metres."""
    found, inner = jnp.full(surface.shape, -1, jnp.int32), jnp.zeros((2, *surface.shape))
    for number in range(len(openings.wall)):
        u, v = along - openings.centre[number, 0], height - openings.centre[number, 1]
        within = (jnp.abs(u) < openings.half[number, 0]) & (jnp.abs(v) < openings.half[number, 1])
        within &= (surface == openings.wall[number]) & (openings.category[number] >= 0)
        found = jnp.where(within, number, found)
        inner = jnp.where(within[None], jnp.stack([u, v]), inner)
    return found, inner
