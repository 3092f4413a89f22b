"""Views: what a camera sees of a scene, as an image and as geometry."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtransfer.rooms import furniture, materials, rays
from jaxtransfer.rooms.rays import Solids
from jaxtransfer.rooms.scene import OUTWARD, Camera, Openings, Scene

_OFFSET = 2e-3
_WINDOW, _DOOR, _PICTURE = (furniture.SURFACES.index(name) for name in ("window", "door", "picture"))
_FRAME = 0.05
_BASEBOARD = 0.08


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

    Light comes from a lamp under the ceiling and from the sun through the windows, both with hard shadows, from the
    windows' sky, from floor lamps, and from everywhere; corners, and where furniture meets something, are darker.
    The exposure follows the mean brightness.

    Args:
        scene: The room.
        camera: Inside of it.
        size: Height and width in pixels.
    """
    ray = pixel_rays(camera, size)
    direction = jnp.matmul(camera.rotation, ray, precision="highest")
    origin = camera.position[:, None]
    solid_distance, solid = rays.nearest(scene.shapes, origin, direction)
    wall_distance, surface = rays.leave_room(scene.extent, origin, direction)
    furnished = solid_distance < wall_distance
    distance = jnp.where(furnished, solid_distance, wall_distance)
    point = origin + distance[None] * direction

    solids = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *scene.shapes)
    boxes, cylinders = len(scene.shapes.boxes.centre), len(scene.shapes.cylinders.centre)
    number = jnp.maximum(solid, 0)
    kind = (number >= boxes).astype(jnp.int32) + (number >= boxes + cylinders).astype(jnp.int32)
    touched = rays.contact(Solids(*(leaf[number] for leaf in solids)), kind, point)
    along = _along_wall(surface, point)
    inward = -_outward(surface)
    normal = jnp.where(furnished[None], touched.normal, inward)
    curvature = jnp.where(furnished[None], touched.curvature, 0.0)
    flat = jnp.where((surface < 4)[None], jnp.stack([along, point[2]]), point[:2])
    place = jnp.where(furnished[None], touched.place, flat)

    piece = jnp.where(furnished, scene.piece[number], -1)
    opening, inner = _find_opening(scene.openings, surface, along, point[2])
    opening = jnp.where(furnished, -1, opening)
    opened = jnp.where(opening >= 0, scene.openings.category[opening], -1)
    part_of_room = jnp.where(opened >= 0, opened, jnp.maximum(surface - 3, 0))
    of_piece = jnp.asarray(furniture.CATEGORY)[scene.furniture.kind[jnp.maximum(piece, 0)]]
    category = jnp.where(furnished, of_piece, part_of_room)

    cosine = jnp.maximum(-(normal * direction).sum(0), 0.05)
    footprint = distance * (2 * camera.tangent / size) / jnp.sqrt(cosine)
    index = jnp.where(furnished, number, len(solids.centre) + surface)
    material = jax.tree.map(lambda leaf: leaf[index], scene.material)
    albedo = materials.shade_pattern(material, place, footprint)
    albedo, emission = _decorate(
        scene, albedo, material.emission.T, surface, opened, opening, inner, direction, point, furnished
    )

    radiance = albedo * _irradiance(scene, point, normal, piece, surface, furnished) + emission
    image = _expose(radiance)

    def pixels(values: Array) -> Array:
        values = values.reshape(*values.shape[:-1], size, size)
        return jnp.moveaxis(values, (-2, -1), (0, 1))

    seen = jnp.matmul(camera.rotation.T, normal, precision="highest")
    return View(*map(pixels, (image, ray, distance, seen, curvature, piece, category)))


def _outward(surface: Int[Array, " rays"]) -> Float[Array, "3 rays"]:
    return jnp.asarray(OUTWARD)[surface].T


def _along_wall(surface: Int[Array, " rays"], point: Float[Array, "3 rays"]) -> Float[Array, " rays"]:
    along = jnp.where(surface % 2 == 0, point[1], -point[0])
    return jnp.where(surface >= 2, -along, along)


def _find_opening(openings: Openings, surface: Array, along: Array, height: Array) -> tuple[Array, Array]:
    """The opening at a point of a wall, -1 for none, and the coordinates from its centre, in metres."""
    found, inner = jnp.full(surface.shape, -1, jnp.int32), jnp.zeros((2, *surface.shape))
    for number in range(len(openings.wall)):
        u, v = along - openings.centre[number, 0], height - openings.centre[number, 1]
        within = (jnp.abs(u) < openings.half[number, 0]) & (jnp.abs(v) < openings.half[number, 1])
        within &= (surface == openings.wall[number]) & (openings.category[number] >= 0)
        found = jnp.where(within, number, found)
        inner = jnp.where(within[None], jnp.stack([u, v]), inner)
    return found, inner


def _decorate(
    scene: Scene,
    albedo: Array,
    emission: Array,
    surface: Array,
    opened: Array,
    opening: Array,
    inner: Array,
    direction: Array,
    point: Array,
    furnished: Array,
) -> tuple[Array, Array]:
    """Paints windows, doors, pictures, baseboards and the light on the ceiling over the room's surfaces."""
    half = scene.openings.half[opening].T
    border = (half - jnp.abs(inner)).min(0)
    frame = border < _FRAME
    trim = jnp.full((3, 1), 0.75)
    wood = scene.material.albedo[4][:, None]

    window, door, picture = opened == _WINDOW, opened == _DOOR, opened == _PICTURE
    bars = (jnp.abs(inner[0]) < 0.025) | frame
    elevation = direction[2]
    sky = scene.lights.sky[:, None] * (1.0 + jnp.maximum(elevation, 0)[None] * jnp.array([[-0.5], [-0.2], [0.35]]))
    ground = scene.lights.sky.mean() * jnp.array([[0.26], [0.34], [0.16]])
    horizon = jnp.clip(
        (elevation + 0.02 + 0.05 * jnp.sin(9 * direction[0] / (1 + jnp.abs(direction[1])))) * 12 + 0.5, 0, 1
    )
    outside = ground * (1 - horizon)[None] + sky * horizon[None]
    glass = window & ~bars

    panel = jnp.abs(jnp.abs(inner[1] + 0.05) / half[1] - 0.5) < 0.33
    panel &= jnp.abs(jnp.abs(inner[0]) / half[0] - 0.45) < 0.28
    knob = (inner[0] - 0.75 * half[0]) ** 2 + (inner[1] + 0.02) ** 2 < 0.03**2
    leaf = jnp.where(panel, 0.72, 0.95)[None] * (0.4 * trim + 0.6 * jnp.sqrt(wood))
    leaf = jnp.where(knob[None], 0.1, leaf)

    turn = scene.openings.centre[opening, 0] * 7
    hue = jnp.stack([jnp.sin(turn), jnp.sin(turn + 2.1), jnp.sin(turn + 4.2)])
    wave = jnp.sin(inner[0] * 11 + turn) * jnp.sin(inner[1] * 9 - turn)
    canvas = jnp.clip(0.35 + 0.3 * hue * jnp.sign(inner[1] + 0.1 * wave)[None] + 0.15 * wave[None], 0.03, 0.85)
    canvas = jnp.where(frame[None], 0.06, canvas)

    wall = ~furnished & (surface < 4) & (opened < 0)
    baseboard = wall & (point[2] < _BASEBOARD)
    lamp = ~furnished & (surface == 5) & (((point[:2] - scene.lights.lamp[:2, None]) ** 2).sum(0) < 0.18**2)

    albedo = jnp.where((window | (door & frame) | baseboard)[None], trim, albedo)
    albedo = jnp.where((door & ~frame)[None], leaf, jnp.where(picture[None], canvas, albedo))
    albedo = jnp.where(glass[None], 0.0, albedo)
    emission = jnp.where(glass[None], outside, emission)
    emission = jnp.where(lamp[None], 2 * scene.lights.lamp_power[:, None], emission)
    return albedo, emission


def _irradiance(scene: Scene, point: Array, normal: Array, piece: Array, surface: Array, furnished: Array) -> Array:
    """Light that arrives at points of surfaces, divided by pi so that a white surface under 1 has the radiance 1."""
    lights = scene.lights
    origin = point + _OFFSET * normal
    occlusion = _occlusion(scene, point, normal, piece, surface, furnished)
    light = lights.ambient[:, None] * ((1 + 0.25 * normal[2]) * occlusion)[None]

    to_lamp = lights.lamp[:, None] - origin
    reach = jnp.sqrt((to_lamp**2).sum(0))
    facing = jnp.maximum((normal * to_lamp).sum(0) / reach, 0)
    shadow = rays.blocked(scene.shapes, origin, to_lamp / reach[None], reach)
    lit = facing / (reach**2 + 0.4) * (1 - 0.85 * shadow) * (0.5 + 0.5 * occlusion)
    light += lights.lamp_power[:, None] * lit[None]

    sun = jnp.broadcast_to(lights.sun[:, None], point.shape)
    leave, wall = rays.leave_room(scene.extent, origin, sun)
    exit_point = origin + leave[None] * sun
    through, inner = _find_opening(scene.openings, wall, _along_wall(wall, exit_point), exit_point[2])
    glass = (through >= 0) & (scene.openings.category[through] == _WINDOW) & (jnp.abs(inner[0]) > 0.025)
    shadow = rays.blocked(scene.shapes, origin, sun, leave)
    beam = jnp.where(glass, jnp.maximum((normal * sun).sum(0), 0) * (1 - shadow), 0.0)
    light += lights.sun_power[:, None] * beam[None]

    light += _window_light(scene, point, normal) * occlusion[None]
    return light + _floor_lamps(scene, point, normal)


def _window_light(scene: Scene, point: Array, normal: Array) -> Array:
    """Skylight of the windows, each taken for a small patch; without shadows."""
    openings = scene.openings
    total = jnp.zeros(point.shape[1])
    for number in range(len(openings.wall)):
        inward = -_outward(openings.wall[number][None])
        turned = jnp.stack([inward[1], -inward[0]])
        middle = -inward[:2] * scene.extent[:2, None] / 2 + turned * openings.centre[number, 0]
        towards = jnp.concatenate([middle, openings.centre[number, 1].reshape(1, 1)]) - point
        area = 4 * openings.half[number].prod()
        square = (towards**2).sum(0)
        cosines = jnp.maximum((normal * towards).sum(0), 0) * jnp.maximum(-(inward * towards).sum(0), 0)
        there = openings.category[number] == _WINDOW
        total += jnp.where(there, area * cosines / (jnp.pi * square * (square + area / 2) + 1e-3), 0.0)
    return 1.6 * scene.lights.sky[:, None] * total[None]


def _floor_lamps(scene: Scene, point: Array, normal: Array) -> Array:
    pieces = scene.furniture
    total = jnp.zeros(point.shape[1])
    lamp = furniture.CATEGORIES.index("lamp")
    for number in range(6, len(pieces.kind)):
        there = pieces.active[number] & (jnp.asarray(furniture.CATEGORY)[pieces.kind[number]] == lamp)
        place = jnp.concatenate([pieces.centre[number], 0.9 * pieces.size[number, 2:]])[:, None]
        towards = place - point
        square = (towards**2).sum(0)
        facing = jnp.maximum((normal * towards).sum(0), 0) / jnp.sqrt(square + 1e-6)
        total += jnp.where(there, 0.3 * facing / (square + 0.15), 0.0)
    return jnp.array([[1.0], [0.8], [0.55]]) * total[None]


def _occlusion(scene: Scene, point: Array, normal: Array, piece: Array, surface: Array, furnished: Array) -> Array:
    """How much of the light from everywhere arrives: less in the room's corners and next to furniture."""
    half = scene.extent[:2, None] / 2
    gaps = jnp.concatenate([half - point[:2], half + point[:2], point[2:], scene.extent[2] - point[2:]])
    towards = jnp.concatenate([normal[:2], -normal[:2], -normal[2:], normal[2:]])
    corner = jnp.where(towards > -0.5, 1 - 0.4 * jnp.exp(-gaps / 0.3), 1.0).prod(0)
    pieces = scene.furniture
    total = corner
    for number in range(len(pieces.kind)):
        cosine, sine = pieces.heading[number]
        x, y = point[0] - pieces.centre[number, 0], point[1] - pieces.centre[number, 1]
        across = jnp.maximum(jnp.abs(cosine * x + sine * y) - pieces.size[number, 0] / 2, 0)
        deep = jnp.maximum(jnp.abs(cosine * y - sine * x) - pieces.size[number, 1] / 2, 0)
        above = jnp.maximum(point[2] - pieces.size[number, 2], 0)
        near = jnp.exp(-jnp.sqrt(across**2 + deep**2 + above**2 + 1e-6) / 0.15)
        total *= jnp.where(pieces.active[number] & (piece != number), 1 - 0.5 * near, 1.0)
    return total


def _expose(radiance: Float[Array, "3 rays"]) -> Float[Array, "3 rays"]:
    """Exposure to the mean brightness, a soft shoulder, and the sRGB curve."""
    brightness = jnp.array([[0.2126], [0.7152], [0.0722]])
    mean = jnp.exp(jnp.log((radiance * brightness).sum(0) + 0.02).mean())
    exposed = 1 - jnp.exp(-0.55 * radiance / mean**0.8)
    return jnp.where(exposed <= 0.0031308, 12.92 * exposed, 1.055 * jnp.maximum(exposed, 1e-4) ** (1 / 2.4) - 0.055)
