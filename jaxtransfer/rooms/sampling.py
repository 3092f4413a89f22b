"""Draws scenes from random keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxtransfer.rooms import furniture, materials
from jaxtransfer.rooms.materials import Material
from jaxtransfer.rooms.rays import Shapes
from jaxtransfer.rooms.room_types import LARGE, ROOMS, SMALL
from jaxtransfer.rooms.scene import OUTWARD, Camera, Furniture, Lights, Openings, Scene

_ROOM_TYPES = tuple(ROOMS.values())
_KINDS = np.array([[furniture.kind(name) for name, _ in room_type.furniture] for room_type in _ROOM_TYPES], np.int32)
_CHANCE = np.array([[chance for _, chance in room_type.furniture] for room_type in _ROOM_TYPES], np.float32)
_SMALLEST = np.array([room_type.smallest for room_type in _ROOM_TYPES], np.float32)
_LARGEST = np.array([room_type.largest for room_type in _ROOM_TYPES], np.float32)
_SURFACE_INDICES = {name: number for number, name in enumerate(furniture.SURFACES)} | {"none": -1}
_OPENINGS = np.array([[_SURFACE_INDICES[name] for name in room_type.openings] for room_type in _ROOM_TYPES], np.int32)
_WINDOW, _DOOR, _PICTURE = (_SURFACE_INDICES[name] for name in ("window", "door", "picture"))
_FLOORS, _WALLS = (
    np.array([[materials.pattern(name) for name in getattr(room_type, part)] for room_type in _ROOM_TYPES], np.int32)
    for part in ("floors", "walls")
)
_TABLE = furniture.CATEGORIES.index("table")

_CANDIDATES = 24
_CAMERAS = 64
_SECOND_CAMERAS = 16
# Smallest distances in metres: between pieces of furniture, and from a camera to walls and furniture.
_GAP = 0.03
_CLEARANCE = 0.28

# Shapes of the uniform random numbers that a scene is made from.
_DRAWS = {
    "start": (5,),
    "openings": (6, 5),
    "furniture": (LARGE + SMALL, _CANDIDATES + 1, 5),
    "colours": (LARGE + SMALL, len(materials.PALETTE_NAMES) + 5),
    "surfaces": (16,),
    "cameras": (_CAMERAS, 8),
    "second cameras": (_SECOND_CAMERAS, 6),
    "lights": (12,),
}


def sample_scene(key: PRNGKeyArray) -> Scene:
    """Draws a furnished room and two cameras in it.

    All room types are equally likely. Furniture does not overlap and leaves doors free, tall furniture also windows; a
    piece for which there is no free place is left out. Cameras are inside the room and outside the furniture, 0.8 to
    1.8 m high, with fields of view of 58 to 81 degrees. Among random cameras, those that see much furniture are
    preferred. The second camera is up to 0.9 m away and turned by up to 0.5 rad.

    Args:
        key: Random key; the same key gives the same scene, bit for bit.
    """
    # A single draw: each random generator takes longer to compile than everything that is computed from its numbers.
    u = jax.random.uniform(key, (sum(map(math.prod, _DRAWS.values())),))
    parts = jnp.split(u, np.cumsum([math.prod(shape) for shape in _DRAWS.values()])[:-1].tolist())
    draws = {name: part.reshape(shape) for part, (name, shape) in zip(parts, _DRAWS.items(), strict=True)}
    start = draws["start"]
    room_type = materials.pick(start[0], len(ROOMS))
    low, high = jnp.asarray(_SMALLEST)[room_type], jnp.asarray(_LARGEST)[room_type]
    extent = low + (high - low) * start[1:4]
    openings = _place_openings(draws["openings"], room_type, extent)
    pieces = _place_furniture(draws["furniture"], room_type, extent, openings)
    shapes, piece, material = _build_solids(draws["colours"], pieces)
    surfaces = _choose_claddings(draws["surfaces"], room_type)
    material = jax.tree.map(lambda *rows: jnp.concatenate(rows), material, surfaces)
    first, second = _place_cameras(draws["cameras"], draws["second cameras"], extent, pieces)
    lights = _place_lights(draws["lights"], extent, openings)
    seed = (start[4] * 2.0**23).astype(jnp.uint32)
    return Scene(room_type, extent, openings, pieces, shapes, piece, material, lights, first, second, seed)


def _place_openings(u: Float[Array, "6 5"], room_type: Array, extent: Array) -> Openings:
    category = jnp.asarray(_OPENINGS)[room_type]
    # In a corridor, the first wall and the opposite wall are the long ones.
    order = jnp.where(extent[1] > 2 * extent[0], jnp.array([0, 2, 1, 3]), jnp.argsort(u[0, :4])).astype(jnp.int32)
    wall = order[jnp.array([0, 0, 1, 2, 3])]
    length = jnp.where(wall % 2 == 0, extent[1], extent[0])
    # Two windows in the same wall have the same size.
    twins = jnp.stack([u[1], u[2], u[3]])
    twins = twins.at[:, 1].set(jnp.where(category[0] == category[1], twins[:, 0], twins[:, 1]))
    width, level, height = twins
    door, picture = category == _DOOR, category == _PICTURE
    half = jnp.where(door, 0.42 + 0.06 * width, jnp.where(picture, 0.2 + 0.3 * width, 0.3 + 0.4 * width))
    space = jnp.array([0.25, 0.25, 0.5, 0.5, 0.5]) * length - 0.15
    half = jnp.minimum(half, space)
    middle = jnp.array([-0.25, 0.25, 0, 0, 0]) * length + (space - half) * (1.8 * u[4] - 0.9)
    low = jnp.where(door, 0.0, jnp.where(picture, 1.25 + 0.2 * level, 0.8 + 0.25 * level))
    tall = jnp.where(door, 2.0, jnp.where(picture, 0.45 + 0.4 * height, 1.0 + 0.3 * height))
    high = jnp.minimum(low + tall, extent[2] - 0.12)
    there = u[5] < jnp.array([0.9, 0.7, 1.0, 0.75, 0.75])
    return Openings(
        jnp.where(there, category, -1),
        wall,
        jnp.stack([middle, (low + high) / 2], 1),
        jnp.stack([half, (high - low) / 2], 1),
    )


def _place_furniture(u: Array, room_type: Array, extent: Array, openings: Openings) -> Furniture:
    """Places each piece at the first free one of its candidate places; a piece without a free place is left out."""
    kind = jnp.asarray(_KINDS)[room_type]
    pieces = len(kind)
    wanted = u[:, -1, 0] < jnp.asarray(_CHANCE)[room_type]
    low, high = jnp.asarray(furniture.SMALLEST)[kind], jnp.asarray(furniture.LARGEST)[kind]
    size = low + (high - low) * u[:, -1, 1:2]
    # Nothing stands in front of doors, and nothing tall in front of windows.
    outward = jnp.asarray(OUTWARD[:4, :2])[openings.wall]
    onward = jnp.stack([-outward[:, 1], outward[:, 0]], 1)
    foot = outward * extent[None, :2] / 2 + onward * openings.centre[:, :1]
    front = 0.45 * jnp.abs(outward) + (openings.half[:, :1] + 0.05) * jnp.abs(onward)
    door, window = openings.category == _DOOR, openings.category == _WINDOW
    nowhere = jnp.full((pieces, 2), 1e3)
    middles = jnp.concatenate([jnp.where((door | window)[:, None], foot, 1e3), nowhere])
    reaches = jnp.concatenate([front, jnp.zeros((pieces, 2))])
    above = jnp.concatenate([jnp.where(door, 0.0, 1.2), jnp.zeros(pieces)])

    def place_piece(state: tuple, item: tuple) -> tuple[tuple, tuple]:
        middles, reaches, (table, table_size, table_angle) = state
        u, number, kind, wanted, size = item
        place = jnp.asarray(furniture.PLACE)[kind]
        by_wall, by_table = place == furniture.WALL, (place == furniture.TABLE) & (table[0] < 1e2)
        side = jnp.floor(4 * u[:, 0])
        angle = side * (jnp.pi / 2) + jnp.where(by_wall, 0, 0.6 * (u[:, 1] - 0.5))
        angle += jnp.where(by_table, table_angle, 0)
        heading = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        front = jnp.stack([-heading[:, 1], heading[:, 0]], 1)
        reach = (jnp.abs(heading) * size[0] + jnp.abs(front) * size[1]) / 2
        free = extent[None, :2] / 2 - reach
        anywhere = (2 * u[:, 2:4] - 1) * (free - 0.05)
        against = jnp.where(jnp.abs(front) > 0.5, -jnp.sign(front) * (free - 0.01), anywhere)
        table_half = jnp.where(side % 2 == 0, table_size[1], table_size[0]) / 2
        beside = table[None] - front * (table_half + size[1] / 2 + 0.02 + 0.15 * u[:, 4])[:, None]
        spot = jnp.where(by_wall, against, jnp.where(by_table, beside, anywhere))
        apart = (jnp.abs(spot[:, None] - middles[None]) > reach[:, None] + reaches[None] + _GAP).any(-1)
        fits = ((jnp.abs(spot) < free).all(-1)) & (apart | (size[2] < above)[None]).all(-1)
        best = jnp.argmax(fits)
        active = wanted & fits[best]
        middles = middles.at[number].set(jnp.where(active, spot[best], 1e3))
        reaches = reaches.at[number].set(reach[best])
        new = active & (jnp.asarray(furniture.CATEGORY)[kind] == _TABLE)
        last_table = jax.tree.map(
            lambda this, last: jnp.where(new, this, last),
            (spot[best], size, angle[best]),
            (table, table_size, table_angle),
        )
        return (middles, reaches, last_table), (active, spot[best], heading[best])

    numbers = len(openings.wall) + jnp.arange(pieces)
    no_table = (jnp.full(2, 1e3), jnp.ones(3), jnp.zeros(()))
    items = (u[:, :-1], numbers, kind, wanted, size)
    _, (active, centre, heading) = jax.lax.scan(place_piece, (middles, reaches, no_table), items)
    return Furniture(kind, active, size, centre, heading)


def _build_solids(u: Array, pieces: Furniture) -> tuple[Shapes, Int[Array, " solids"], Material]:
    """Returns the solids of the furniture, the index of each solid's piece, and the materials of the solids."""
    colours = materials.choose_colours(u)
    numbers = jnp.arange(len(pieces.kind), dtype=jnp.int32)
    large, small = slice(0, LARGE), slice(LARGE, None)
    groups = (
        (0, furniture.BOXES, large),
        (1, 1, large),
        (1, furniture.CYLINDERS, small),
        (2, furniture.SPHERES, small),
    )
    solids, owners, rows = [], [], []
    for shape, count, which in groups:
        chosen = jax.tree.map(lambda leaf, which=which: leaf[which], (pieces, colours))
        solid, palette = furniture.parts(shape, count, *chosen[0])
        flat = (solid, materials.palette_materials(chosen[1], palette))
        solid, material = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), flat)
        solids.append(solid)
        rows.append(material)
        owners.append(jnp.repeat(numbers[which], count))
    cylinders = jax.tree.map(lambda *parts: jnp.concatenate(parts), solids[1], solids[2])
    material = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    return Shapes(solids[0], cylinders, solids[3]), jnp.concatenate(owners), material


def _choose_claddings(u: Float[Array, " 16"], room_type: Array) -> Material:
    """Chooses the materials of the four walls, the floor and the ceiling."""
    walls, floor = (
        materials.cladding(jnp.asarray(table)[room_type, materials.pick(v[0], 3)], v[1], v[2:])
        for table, v in ((_WALLS, u[:5]), (_FLOORS, u[5:10]))
    )
    ceiling = materials.cladding(jnp.asarray(materials.pattern("plain")), jnp.zeros(()), u[10:11])
    rows = [walls] * 4 + [floor, ceiling]
    albedo, second, pattern = (jnp.stack(parts) for parts in zip(*rows, strict=True))
    return Material(albedo, second, jnp.zeros_like(albedo), pattern, (u[10:] * 2.0**23).astype(jnp.uint32))


def _place_lights(u: Float[Array, " 12"], extent: Array, openings: Openings) -> Lights:
    lamp = jnp.concatenate([0.4 * extent[:2] * (u[:2] - 0.5), extent[2:] - 0.3])
    warm, cool = jnp.array([1.0, 0.86, 0.68]), jnp.array([0.8, 0.92, 1.1])
    lamp_power = jnp.where(u[2] < 0.75, 0.5 + 0.6 * u[3], 0.12) * (1 + 0.12 * extent[0] * extent[1]) * warm
    azimuth = openings.wall[0].astype(jnp.float32) * (jnp.pi / 2) + 1.8 * (u[4] - 0.5)
    elevation = 0.35 + 0.5 * u[5]
    level = jnp.cos(elevation)
    sun = jnp.stack([level * jnp.cos(azimuth), level * jnp.sin(azimuth), jnp.sin(elevation)])
    sun_power = jnp.where(u[6] < 0.6, 2.5 + 1.5 * u[7], 0.0) * jnp.array([1.0, 0.93, 0.8])
    sky = (0.9 + 0.9 * u[8]) * cool
    ambient = (0.16 + 0.12 * u[9]) * (warm + cool) / 2
    door = jnp.where(u[10] < 0.6, jnp.array([0.75, 0.74, 0.72]), jnp.array([0.4, 0.24, 0.13])) * (0.7 + 0.3 * u[11])
    return Lights(lamp, lamp_power, sun, sun_power, sky, ambient, door)


def _rotation(yaw: Array, pitch: Array, roll: Array) -> Float[Array, "3 3"]:
    """Returns a matrix whose columns are the camera's axes right, down and forward in the room's frame."""
    forward = jnp.stack([jnp.cos(yaw) * jnp.cos(pitch), jnp.sin(yaw) * jnp.cos(pitch), jnp.sin(pitch)])
    level = jnp.stack([jnp.sin(yaw), -jnp.cos(yaw), jnp.zeros_like(yaw)])
    below = jnp.cross(forward, level)
    right = jnp.cos(roll) * level + jnp.sin(roll) * below
    return jnp.stack([right, jnp.cross(forward, right), forward], 1)


def _clear(spot: Float[Array, "n 2"], pieces: Furniture, extent: Array) -> Bool[Array, " n"]:
    """Says whether points are inside the room and clear of its walls and of the footprints of the furniture."""
    heading = jnp.abs(pieces.heading)
    reach = (heading * pieces.size[:, :1] + heading[:, ::-1] * pieces.size[:, 1:2]) / 2
    apart = (jnp.abs(spot[:, None] - pieces.centre[None]) > (reach + _CLEARANCE)[None]).any(-1) | ~pieces.active[None]
    return apart.all(-1) & (jnp.abs(spot) < extent[None, :2] / 2 - _CLEARANCE).all(-1)


def _place_cameras(u: Array, v: Array, extent: Array, pieces: Furniture) -> tuple[Camera, Camera]:
    """Chooses a random camera that sees much furniture and far into the room, and a second camera close to it."""
    spots = (u[:, :2] - 0.5) * (extent[None, :2] - 2 * _CLEARANCE)
    yaws = 2 * jnp.pi * u[:, 2]
    ahead = jnp.stack([jnp.cos(yaws), jnp.sin(yaws)], 1)
    towards = pieces.centre[None] - spots[:, None]
    distance = jnp.linalg.norm(towards, axis=-1)
    cosine = (towards * ahead[:, None]).sum(-1) / jnp.maximum(distance, 0.1)
    apparent = jnp.minimum((pieces.size[:, 0] * pieces.size[:, 2])[None] / (distance**2 + 0.5), 0.6)
    seen = jnp.where((cosine > 0.85) & (distance > 1) & pieces.active[None], apparent, 0.0).sum(-1)
    radius = jnp.hypot(pieces.size[:, 0], pieces.size[:, 1]) / 2
    close = ((cosine > 0.6) & (distance < radius[None] + 0.6) & pieces.active[None]).any(-1)
    view = ((extent[None, :2] / 2 - spots * jnp.sign(ahead)) / jnp.maximum(jnp.abs(ahead), 1e-6)).min(-1)
    score = seen - jnp.where(close, 1.0, 0.0) + 0.35 * jnp.minimum(view, 3) - 0.25 * jnp.log(-jnp.log(u[:, 3] + 1e-7))
    best = jnp.argmax(jnp.where(_clear(spots, pieces, extent), score, -jnp.inf))
    height, tangent = 0.8 + u[best, 4], 0.55 + 0.3 * u[best, 5]
    pitch, roll = -0.14 - 0.12 * (height - 1.3) + 0.4 * (u[best, 6] - 0.5), 0.1 * (u[best, 7] - 0.5)
    position = jnp.concatenate([spots[best], height[None]])
    camera = Camera(position, _rotation(yaws[best], pitch, roll), tangent)

    v = 2 * v - 1
    moved = position[None] + v[:, :3] * jnp.array([[0.6, 0.6, 0.2]])
    clear = _clear(moved[:, :2], pieces, extent)
    near = jnp.argmax(clear)
    moved = jnp.where(clear[near], moved[near], position)
    moved = moved.at[2].set(jnp.clip(moved[2], 0.8, 1.8))
    turn = v[near, 3:] * jnp.array([0.4, 0.12, 0.05])
    return camera, Camera(moved, _rotation(yaws[best] + turn[0], pitch + turn[1], roll + turn[2]), tangent)
