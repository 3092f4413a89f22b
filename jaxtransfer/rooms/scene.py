"""Scenes: a room of some type, its openings, furniture, materials, lights and two cameras, drawn from a key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxtransfer.rooms import furniture, materials
from jaxtransfer.rooms.materials import Material
from jaxtransfer.rooms.rays import Shapes, Solids


class Camera(NamedTuple):
    """A pinhole camera with square images.

    Attributes:
        position: In metres, room frame: x and y along the walls from the centre of the floor, z up.
        rotation: From the camera's frame (x right, y down, z forward) to the room's; columns are its axes.
        tangent: Of half the field of view.
    """

    position: Float[Array, " 3"]
    rotation: Float[Array, "3 3"]
    tangent: Float[Array, ""]


class Openings(NamedTuple):
    """Windows, doors and pictures: upright rectangles in walls.

    Attributes:
        category: Number in `CATEGORIES`; -1 for none.
        wall: 0 to 3, the walls at +x, +y, -x, -y.
        centre: Along the wall and above the floor, in metres. Along a wall means in the direction of the next one.
        half: Half the width and height, in metres.
    """

    category: Int[Array, " openings"]
    wall: Int[Array, " openings"]
    centre: Float[Array, "openings 2"]
    half: Float[Array, "openings 2"]


class Furniture(NamedTuple):
    """Pieces of furniture, all standing on the floor.

    Attributes:
        kind: Number in `furniture.KINDS`.
        active: Whether the piece is there.
        size: Width, depth and height in metres.
        centre: Of the footprint, in metres, room frame.
        heading: Cosine and sine of the angle from the room's axes to the piece's own; the front is its own +y.
    """

    kind: Int[Array, " pieces"]
    active: Bool[Array, " pieces"]
    size: Float[Array, "pieces 3"]
    centre: Float[Array, "pieces 2"]
    heading: Float[Array, "pieces 2"]


class Lights(NamedTuple):
    """What lights a room, in linear RGB.

    Attributes:
        lamp: Position of the light under the ceiling, in metres.
        lamp_power: Its intensity in units of 1 m^2.
        sun: Unit vector towards the sun.
        sun_power: Irradiance across the beam.
        sky: Radiance of the windows.
        ambient: Irradiance from everywhere.
    """

    lamp: Float[Array, " 3"]
    lamp_power: Float[Array, " 3"]
    sun: Float[Array, " 3"]
    sun_power: Float[Array, " 3"]
    sky: Float[Array, " 3"]
    ambient: Float[Array, " 3"]


class Scene(NamedTuple):
    """A furnished room; a pytree whose shapes are the same for all rooms.

    Attributes:
        room: Number of its type in `ROOMS`.
        extent: Width, depth and height in metres.
        openings: In the walls.
        furniture: On the floor.
        shapes: What the furniture is made of.
        piece: The piece of furniture that each solid belongs to.
        material: Of the solids, then of walls, floor and ceiling.
        lights: What lights it.
        camera: The view that labels belong to.
        second_camera: Another view of much the same part of the room.
        seed: Starts what is drawn for the labels.
    """

    room: Int[Array, ""]
    extent: Float[Array, " 3"]
    openings: Openings
    furniture: Furniture
    shapes: Shapes
    piece: Int[Array, " solids"]
    material: Material
    lights: Lights
    camera: Camera
    second_camera: Camera
    seed: Array


class Room(NamedTuple):
    """What rooms of one type have in common.

    Attributes:
        smallest: Width, depth and height in metres.
        largest: Likewise.
        furniture: Kinds and their probabilities, in the order in which they find their places; first six that are made
            of boxes, then three that are round.
        openings: On the first wall left and right, and on the three others.
        floors: Patterns with the palette of their colours.
        walls: Likewise.
    """

    smallest: tuple[float, float, float]
    largest: tuple[float, float, float]
    furniture: tuple[tuple[str, float], ...]
    openings: tuple[str, str, str, str, str]
    floors: tuple[str, str, str]
    walls: tuple[str, str, str]


LARGE, SMALL = 6, 3

OUTWARD = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1]], np.float32)
"""Directions out of the room through its four walls, floor and ceiling."""


def _furniture(text: str) -> tuple[tuple[str, float], ...]:
    items = (item.rsplit(maxsplit=1) for item in text.split(","))
    return tuple((name.strip(), float(probability)) for name, probability in items)


ROOMS: dict[str, Room] = {
    "bedroom": Room(
        (2.8, 3.2, 2.4),
        (4.2, 4.8, 2.8),
        _furniture("bed 1, wardrobe .9, nightstand .8, desk .4, shelf .4, chair .5, lamp .6, plant .4, ball .35"),
        ("window", "window", "door", "picture", "picture"),
        ("planks", "carpet", "parquet"),
        ("plain", "stripes", "plain"),
    ),
    "living room": Room(
        (3.8, 4.2, 2.4),
        (5.6, 6.5, 3.0),
        _furniture("sofa 1, screen .9, coffee table .9, armchair .8, shelf .7, cabinet .5, lamp .7, plant .8, ball .4"),
        ("window", "window", "door", "picture", "picture"),
        ("parquet", "planks", "carpet"),
        ("plain", "brick", "stripes"),
    ),
    "kitchen": Room(
        (2.6, 3.0, 2.4),
        (4.0, 5.0, 2.8),
        _furniture("counter 1, stove 1, fridge 1, counter .8, round table .8, chair .8, plant .4, ball .3, plant .2"),
        ("window", "none", "door", "none", "picture"),
        ("checks", "tiles", "planks"),
        ("small tiles", "plain", "small tiles"),
    ),
    "office": Room(
        (3.0, 3.4, 2.5),
        (5.0, 6.0, 3.0),
        _furniture("table 1, office chair 1, desk .9, shelf .8, shelf .6, cabinet .6, plant .7, lamp .3, ball .2"),
        ("window", "window", "door", "picture", "none"),
        ("carpet", "carpet", "planks"),
        ("plain", "plain", "brick"),
    ),
    "bathroom": Room(
        (2.0, 2.4, 2.3),
        (3.2, 3.6, 2.7),
        _furniture("bathtub 1, sink 1, toilet 1, sink .3, nightstand .5, cabinet .3, plant .5, ball .4, lamp .2"),
        ("window", "none", "door", "picture", "none"),
        ("tiles", "small tiles", "checks"),
        ("tiles", "small tiles", "small tiles"),
    ),
    "corridor": Room(
        (1.5, 5.0, 2.4),
        (2.1, 8.5, 2.9),
        _furniture(
            "cabinet .6, shelf .35, chair .4, wardrobe .3, nightstand .3, cabinet .2, plant .7, plant .4, ball .3"
        ),
        ("door", "picture", "door", "door", "window"),
        ("planks", "tiles", "carpet"),
        ("plain", "stripes", "brick"),
    ),
}
"""The room types: the classes of `class_scene`, in order."""

_KINDS = np.array([[furniture.kind(name) for name, _ in room.furniture] for room in ROOMS.values()], np.int32)
_CHANCE = np.array([[chance for _, chance in room.furniture] for room in ROOMS.values()], np.float32)
_SMALLEST = np.array([room.smallest for room in ROOMS.values()], np.float32)
_LARGEST = np.array([room.largest for room in ROOMS.values()], np.float32)
_OPENINGS = np.array(
    [[-1 if name == "none" else furniture.SURFACES.index(name) for name in room.openings] for room in ROOMS.values()],
    np.int32,
)
_WINDOW, _DOOR, _PICTURE = (furniture.SURFACES.index(name) for name in ("window", "door", "picture"))
_FLOORS, _WALLS = (
    np.array([[materials.pattern(name) for name in getattr(room, part)] for room in ROOMS.values()], np.int32)
    for part in ("floors", "walls")
)

_CANDIDATES = 24
_CAMERAS = 64
_SECOND_CAMERAS = 16
_GAP = 0.03
_AWAY = 0.28
_SALTS = 6


def sample_scene(key: PRNGKeyArray) -> Scene:
    """Draws a furnished room and two cameras in it.

    Rooms of every type are equally likely. Furniture keeps clear of other furniture and of doors, tall furniture of
    windows too; what finds no place is left out. Cameras stand inside of the room and outside of furniture, 0.8 to
    1.8 m high, their field of view between 58 and 81 degrees; among random positions and headings, those are
    preferred that see much of the furniture.

    Args:
        key: The same key gives the same scene, bit for bit.
    """
    keys = jax.random.split(key, 9)
    room = jax.random.randint(keys[0], (), 0, len(ROOMS))
    low, high = jnp.asarray(_SMALLEST)[room], jnp.asarray(_LARGEST)[room]
    extent = low + (high - low) * jax.random.uniform(keys[1], (3,))
    openings = _sample_openings(keys[2], room, extent)
    pieces = _sample_furniture(keys[3], room, extent, openings)
    shapes, piece, material = _build(keys[4], pieces)
    surfaces = _sample_surfaces(keys[5], room)
    material = jax.tree.map(lambda *parts: jnp.concatenate(parts), material, surfaces)
    camera, second = _sample_cameras(keys[7], extent, pieces)
    lights = _sample_lights(keys[6], extent, openings)
    seed = jax.random.bits(keys[8])
    return Scene(room, extent, openings, pieces, shapes, piece, material, lights, camera, second, seed)


def _sample_openings(key: Array, room: Array, extent: Array) -> Openings:
    place, width, level, chance, order = jax.random.split(key, 5)
    category = jnp.asarray(_OPENINGS)[room]
    walls = jax.random.permutation(order, 4)
    # Along a corridor, the first wall and the one across are long.
    walls = jnp.where(extent[1] > 2 * extent[0], jnp.array([0, 1, 2, 3]), walls)
    wall = walls[jnp.array([0, 0, 1, 2, 3])]
    length = jnp.where(wall % 2 == 0, extent[1], extent[0])
    u = jax.random.uniform(width, (5,))
    half_width = jnp.where(
        category == _DOOR, 0.42 + 0.06 * u, jnp.where(category == _PICTURE, 0.2 + 0.3 * u, 0.3 + 0.4 * u)
    )
    room_for = jnp.where(jnp.arange(5) < 2, length / 4, length / 2) - 0.15
    half_width = jnp.minimum(half_width, room_for)
    middle = jnp.array([-0.25, 0.25, 0, 0, 0]) * length
    middle = middle + (room_for - half_width) * jax.random.uniform(place, (5,), minval=-0.9, maxval=0.9)
    u = jax.random.uniform(level, (2, 5))
    window_low, picture_low = 0.8 + 0.25 * u[0], 1.25 + 0.2 * u[0]
    low = jnp.where(category == _DOOR, 0.0, jnp.where(category == _PICTURE, picture_low, window_low))
    tall = jnp.where(category == _DOOR, 2.0, jnp.where(category == _PICTURE, 0.45 + 0.4 * u[1], 1.0 + 0.3 * u[1]))
    # Two windows in one wall are alike.
    twins = (category[0] == _WINDOW) & (category[1] == _WINDOW)
    low = low.at[1].set(jnp.where(twins, low[0], low[1]))
    tall = tall.at[1].set(jnp.where(twins, tall[0], tall[1]))
    high = jnp.minimum(low + tall, extent[2] - 0.12)
    there = jax.random.bernoulli(chance, jnp.array([0.9, 0.7, 1.0, 0.75, 0.75]))
    return Openings(
        jnp.where(there, category, -1),
        wall.astype(jnp.int32),
        jnp.stack([middle, (low + high) / 2], 1),
        jnp.stack([half_width, (high - low) / 2], 1),
    )


def _sample_furniture(key: Array, room: Array, extent: Array, openings: Openings) -> Furniture:
    """Every piece takes the first of its candidate places that is free; one without is left out."""
    there, sizes, places = jax.random.split(key, 3)
    kind = jnp.asarray(_KINDS)[room]
    wanted = jax.random.bernoulli(there, jnp.asarray(_CHANCE)[room])
    low, high = jnp.asarray(furniture.SMALLEST)[kind], jnp.asarray(furniture.LARGEST)[kind]
    size = low + (high - low) * jax.random.uniform(sizes, (len(kind), 1))
    # In front of doors nothing stands; of windows, nothing tall.
    outward = jnp.asarray(OUTWARD[:4, :2])[openings.wall]
    onward = jnp.stack([-outward[:, 1], outward[:, 0]], 1)
    foot = outward * extent[None, :2] / 2 + onward * openings.centre[:, :1]
    reach = 0.45 * jnp.abs(outward) + (openings.half[:, :1] + 0.05) * jnp.abs(onward)
    kept = (openings.category == _DOOR) | (openings.category == _WINDOW)
    blocks = (
        jnp.concatenate([jnp.where(kept[:, None], foot, 1e3), jnp.full((len(kind), 2), 1e3)]),
        jnp.concatenate([reach, jnp.zeros((len(kind), 2))]),
        jnp.concatenate([jnp.where(openings.category == _DOOR, 0.0, 1.2), jnp.zeros(len(kind))]),
    )
    table = furniture.OBJECTS.index("table") + len(furniture.SURFACES)

    def put(state: tuple, item: tuple) -> tuple[tuple, tuple]:
        (middles, reaches, above), (anchor, anchor_size, anchor_angle) = state
        key, number, kind, wanted, size = item
        side, along, turn, spread = jax.random.split(key, 4)
        side = jax.random.randint(side, (_CANDIDATES,), 0, 4)
        along = jax.random.uniform(along, (_CANDIDATES, 2), minval=-1, maxval=1)
        jitter = 0.15 * jax.random.normal(turn, (_CANDIDATES,))
        place = jnp.asarray(furniture.PLACE)[kind]
        at_table = (place == furniture.TABLE) & (anchor[0] < 1e2)
        right_angle = (side + 1).astype(jnp.float32) * (jnp.pi / 2)
        angle = right_angle + jnp.where(place == furniture.WALL, 0, jitter) + jnp.where(at_table, anchor_angle, 0)
        heading = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
        swap = jnp.abs(heading[:, ::-1])
        reach = (jnp.abs(heading) * size[0] + swap * size[1]) / 2
        free = extent[None, :2] / 2 - reach
        front = jnp.stack([-heading[:, 1], heading[:, 0]], 1)
        against = jnp.where(jnp.abs(front) > 0.5, -jnp.sign(front), along) * (free - 0.01)
        gap = jax.random.uniform(spread, (_CANDIDATES,), minval=0.02, maxval=0.2)
        beside = jnp.where(side % 2 == 0, anchor_size[0], anchor_size[1]) / 2 + size[1] / 2 + gap
        by_table = anchor[None] - front * beside[:, None]
        spot = jnp.where(place == furniture.WALL, against, jnp.where(at_table, by_table, along * (free - 0.05)))
        inside = (jnp.abs(spot) < free).all(-1) & (free > 0).all(-1)
        apart = (jnp.abs(spot[:, None] - middles[None]) > reach[:, None] + reaches[None] + _GAP).any(-1)
        fits = inside & (apart | (size[2] < above)[None]).all(-1)
        best = jnp.argmax(fits)
        active = wanted & fits[best]
        middles = middles.at[number].set(jnp.where(active, spot[best], 1e3))
        reaches = reaches.at[number].set(reach[best])
        is_table = active & (jnp.asarray(furniture.CATEGORY)[kind] == table)
        found = (spot[best], size, angle[best])
        last = jax.tree.map(lambda new, old: jnp.where(is_table, new, old), found, (anchor, anchor_size, anchor_angle))
        return ((middles, reaches, above), last), (active, spot[best], heading[best])

    nowhere = (jnp.full(2, 1e3), jnp.ones(3), jnp.zeros(()))
    numbers = len(openings.wall) + jnp.arange(len(kind))
    items = (jax.random.split(places, len(kind)), numbers, kind, wanted, size)
    _, (active, centre, heading) = jax.lax.scan(put, (blocks, nowhere), items)
    return Furniture(kind, active, size, centre, heading)


def _build(key: Array, pieces: Furniture) -> tuple[Shapes, Array, Material]:
    """Solids of the furniture, the piece that each belongs to, and their materials."""
    large = jax.tree.map(lambda leaf: leaf[:LARGE], pieces)
    small = jax.tree.map(lambda leaf: leaf[LARGE:], pieces)
    groups = [(0, furniture.BOXES, large, 0), (1, 1, large, 0), (1, furniture.CYLINDERS, small, LARGE)]
    groups.append((2, furniture.SPHERES, small, LARGE))
    built = [furniture.parts(shape, count, *group) for shape, count, group, _ in groups]
    numbers = [jnp.repeat(first + jnp.arange(len(group.kind)), count) for _, count, group, first in groups]
    colours = [
        (
            jnp.zeros((len(pieces.kind), count), jnp.int32).at[first : first + len(group.kind)].set(palette),
            first,
            len(group.kind),
        )
        for (_, count, group, first), (_, palette) in zip(groups, built, strict=True)
    ]
    # One draw for all parts of a piece, whatever their shape.
    widths = [palette.shape[1] for palette, _, _ in colours]
    material = materials.from_palette(key, jnp.concatenate([palette for palette, _, _ in colours], 1))
    flat, start = [], 0
    for (_, first, count), width in zip(colours, widths, strict=True):
        part = jax.tree.map(lambda leaf, a=start, w=width: leaf[:, a : a + w], material)  # noqa: B023
        flat.append(jax.tree.map(lambda leaf: leaf[first : first + count].reshape(-1, *leaf.shape[2:]), part))  # noqa: B023
        start += width
    solids = [jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), solid) for solid, _ in built]
    cylinders = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), solids[1], solids[2])
    merged = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *flat)
    return Shapes(solids[0], cylinders, solids[3]), jnp.concatenate(numbers).astype(jnp.int32), merged


_WOODS = materials.colours("62 42 26, 74 56 36, 50 34 22, 84 70 52, 66 48 34, 40 28 20")
_STONES = materials.colours("86 84 80, 70 68 64, 90 90 88, 64 50 42, 78 72 62, 54 56 58")
_CARPETS = materials.colours("52 50 48, 38 44 54, 62 54 44, 48 30 30, 40 48 40, 70 66 60")
_PAINTS = materials.colours("92 90 86, 88 84 74, 80 84 86, 76 82 74, 90 80 74, 84 76 62, 66 74 82, 92 92 92")
_CLAYS = materials.colours("58 32 24, 66 44 34, 82 80 78, 52 40 34, 70 66 62, 46 28 22")
_GLAZES = materials.colours("92 92 90, 80 88 90, 86 90 84, 70 80 84, 90 86 80, 60 72 74")
_PATTERN_COLOURS = {"planks": _WOODS, "parquet": _WOODS, "carpet": _CARPETS, "brick": _CLAYS}


def _sample_surfaces(key: Array, room: Array) -> Material:
    """Materials of the four walls, the floor and the ceiling."""
    which, paint, shift, salt, tone = jax.random.split(key, 5)
    pick = jax.random.randint(which, (2,), 0, 3)
    floor, wall = jnp.asarray(_FLOORS)[room, pick[0]], jnp.asarray(_WALLS)[room, pick[1]]
    choice = jax.random.randint(paint, (3,), 0, 6)

    def among(names: tuple[str, ...], number: Array) -> Array:
        return jnp.stack([number == materials.pattern(name) for name in names]).any()

    wood, stone, clay = jnp.asarray(_WOODS), jnp.asarray(_STONES), jnp.asarray(_CLAYS)
    floor_colour = jnp.where(
        among(("planks", "parquet"), floor),
        wood[choice[0]],
        jnp.where(among(("carpet",), floor), jnp.asarray(_CARPETS)[choice[0]], stone[choice[0]]),
    )
    wall_colour = jnp.where(
        among(("tiles", "small tiles"), wall),
        jnp.asarray(_GLAZES)[choice[1]],
        jnp.where(among(("brick",), wall), clay[choice[1]], jnp.asarray(_PAINTS)[choice[1]]),
    )
    ceiling = jnp.full(3, 0.82)
    albedo = jnp.stack([wall_colour] * 4 + [floor_colour, ceiling])
    brightness = jnp.exp(0.12 * jax.random.normal(shift, (2, 3)))[jnp.array([0, 0, 0, 0, 1, 1])]
    albedo = jnp.clip(albedo * brightness, 0.01, 0.9)
    bright_lines = among(("brick",), wall)
    dark = 0.5 + 0.3 * jax.random.uniform(tone)
    second = dark * albedo
    second = second.at[:4].set(jnp.where(bright_lines, jnp.full((4, 3), 0.55), second[:4]))
    second = second.at[4].set(jnp.where(among(("checks",), floor), 0.12 * albedo[4], 0.5 * albedo[4]))
    second = second.at[5].set(0.75 * albedo[5])
    patterns = jnp.stack([wall] * 4 + [floor, jnp.asarray(materials.pattern("plain"), jnp.int32)])
    return Material(albedo, second, jnp.zeros_like(albedo), patterns, jax.random.bits(salt, (_SALTS,)))


def _sample_lights(key: Array, extent: Array, openings: Openings) -> Lights:
    place, on, level, angle, sky = jax.random.split(key, 5)
    offset = 0.2 * extent[:2] * jax.random.uniform(place, (2,), minval=-1, maxval=1)
    lamp = jnp.concatenate([offset, extent[2:] - 0.3])
    lit, sunny = jax.random.bernoulli(on, jnp.array([0.75, 0.6]))
    strength = jax.random.uniform(level, (4,))
    warm, cool = jnp.array([1.0, 0.86, 0.68]), jnp.array([0.8, 0.92, 1.1])
    area = extent[0] * extent[1]
    lamp_power = jnp.where(lit, 0.5 + 0.6 * strength[0], 0.12) * (1 + 0.12 * area) * warm
    swing = jax.random.uniform(angle, (2,), minval=-1)
    azimuth = openings.wall[0].astype(jnp.float32) * (jnp.pi / 2) + 0.9 * swing[0]
    elevation = 0.6 + 0.25 * swing[1]
    sun = jnp.stack([jnp.cos(elevation) * jnp.cos(azimuth), jnp.cos(elevation) * jnp.sin(azimuth), jnp.sin(elevation)])
    sun_power = jnp.where(sunny, 2.5 + 1.5 * strength[1], 0.0) * jnp.array([1.0, 0.93, 0.8])
    sky_radiance = (0.9 + 0.9 * strength[2]) * cool * jnp.exp(0.1 * jax.random.normal(sky, (3,)))
    ambient = (0.16 + 0.12 * strength[3]) * (warm + cool) / 2
    return Lights(lamp, lamp_power, sun, sun_power, sky_radiance, ambient)


def _rotation(yaw: Array, pitch: Array, roll: Array) -> Float[Array, "3 3"]:
    """Columns: the camera's axes right, down and forward, in the room's frame."""
    forward = jnp.stack([jnp.cos(yaw) * jnp.cos(pitch), jnp.sin(yaw) * jnp.cos(pitch), jnp.sin(pitch)])
    level = jnp.stack([jnp.sin(yaw), -jnp.cos(yaw), jnp.zeros_like(yaw)])
    below = jnp.cross(forward, level)
    right = jnp.cos(roll) * level + jnp.sin(roll) * below
    return jnp.stack([right, jnp.cross(forward, right), forward], 1)


def _clear(spot: Float[Array, "n 2"], pieces: Furniture, extent: Array) -> Bool[Array, " n"]:
    """Whether points are inside of the room and away from walls and from the furniture's footprints."""
    heading = jnp.abs(pieces.heading)
    reach = (heading * pieces.size[:, :1] + heading[:, ::-1] * pieces.size[:, 1:2]) / 2
    apart = (jnp.abs(spot[:, None] - pieces.centre[None]) > (reach + _AWAY)[None]).any(-1) | ~pieces.active[None]
    return apart.all(-1) & (jnp.abs(spot) < extent[None, :2] / 2 - _AWAY).all(-1)


def _sample_cameras(key: Array, extent: Array, pieces: Furniture) -> tuple[Camera, Camera]:
    place, turn, level, lens, noise, tilt, second = jax.random.split(key, 7)
    spots = jax.random.uniform(place, (_CAMERAS, 2), minval=-0.5, maxval=0.5) * (extent[None, :2] - 2 * _AWAY)
    yaws = jax.random.uniform(turn, (_CAMERAS,), maxval=2 * jnp.pi)
    ahead = jnp.stack([jnp.cos(yaws), jnp.sin(yaws)], 1)
    towards = pieces.centre[None] - spots[:, None]
    distance = jnp.linalg.norm(towards, axis=-1)
    cosine = (towards * ahead[:, None]).sum(-1) / jnp.maximum(distance, 0.1)
    apparent = jnp.minimum((pieces.size[:, 0] * pieces.size[:, 2])[None] / (distance**2 + 0.5), 0.6)
    seen = (jnp.where((cosine > 0.85) & (distance > 0.8) & pieces.active[None], apparent, 0.0)).sum(-1)
    view = ((extent[None, :2] / 2 - spots * jnp.sign(ahead)) / jnp.maximum(jnp.abs(ahead), 1e-6)).min(-1)
    score = seen + 0.25 * jnp.minimum(view, 3) + 0.3 * jax.random.gumbel(noise, (_CAMERAS,))
    best = jnp.argmax(jnp.where(_clear(spots, pieces, extent), score, -jnp.inf))
    height = jax.random.uniform(level, minval=0.8, maxval=1.8)
    tangent = jax.random.uniform(lens, minval=0.55, maxval=0.85)
    tilt = jax.random.normal(tilt, (2,))
    pitch, roll = -0.14 - 0.12 * (height - 1.3) + 0.09 * tilt[0], 0.03 * tilt[1]
    position = jnp.concatenate([spots[best], height[None]])
    camera = Camera(position, _rotation(yaws[best], pitch, roll), tangent)

    shift, turn = jax.random.split(second)
    shifts = jax.random.uniform(shift, (_SECOND_CAMERAS, 3), minval=-1, maxval=1) * jnp.array([[0.6, 0.6, 0.2]])
    chosen = shifts[jnp.argmax(_clear(position[None, :2] + shifts[:, :2], pieces, extent))]
    fits = _clear((position + chosen)[None, :2], pieces, extent)[0]
    moved = position + jnp.where(fits, chosen, 0.0)
    moved = moved.at[2].set(jnp.clip(moved[2], 0.8, 1.8))
    turned = jax.random.uniform(turn, (3,), minval=-1)
    rotation = _rotation(yaws[best] + 0.45 * turned[0], pitch + 0.15 * turned[1], roll + 0.05 * turned[2])
    return camera, Camera(moved, rotation, tangent)
