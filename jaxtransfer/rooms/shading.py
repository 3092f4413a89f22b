"""Computes the colour of the points that a camera sees."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtransfer.pixels import linear_to_srgb
from jaxtransfer.rooms import furniture, materials, rays
from jaxtransfer.rooms.hits import DOOR, PICTURE, WINDOW, Hit, along_wall, find_opening
from jaxtransfer.rooms.room_types import LARGE
from jaxtransfer.rooms.scene import OUTWARD, Scene

_OFFSET = 2e-3
_FRAME = 0.05
_BAR = 0.025
_BASEBOARD = 0.08
_BRIGHTNESS = (0.2126, 0.7152, 0.0722)

RGB = Float[Array, "3 rays"]


def shade(scene: Scene, hit: Hit, direction: Float[Array, "3 rays"], footprint: Float[Array, " rays"]) -> RGB:
    """Computes the image values of the points that rays hit.

    The ceiling lamp and the sun through the windows cast hard shadows. The sky in the windows and the floor lamps cast
    none. Ambient light is weaker in corners and next to furniture. The exposure follows the mean brightness.

    Args:
        scene: The scene.
        hit: The points that the rays hit.
        direction: Unit vectors of the rays in the room's frame.
        footprint: Width of a pixel on the surface in metres.

    Returns:
        sRGB in [0, 1].
    """
    # Without the barriers, XLA recomputes each of these wherever it is used.
    albedo, emission = jax.lax.optimization_barrier(_paint(scene, hit, direction, footprint))
    light = jax.lax.optimization_barrier(_light(scene, hit))
    return _expose(jax.lax.optimization_barrier(albedo * light + emission))


def _paint(scene: Scene, hit: Hit, direction: Array, footprint: Array) -> tuple[RGB, RGB]:
    """Returns albedo and emission: materials, then windows, doors, pictures, baseboards and the lamp fixture on top."""
    openings = scene.openings
    material = jax.tree.map(lambda leaf: leaf[hit.material], scene.material)
    half, turn = openings.half[hit.opening].T, 7 * openings.centre[hit.opening, 0]
    material, half, turn = jax.lax.optimization_barrier((material, half, turn))
    albedo = materials.shade_pattern(material, hit.place, footprint)
    window, door, picture = (hit.category == which for which in (WINDOW, DOOR, PICTURE))
    u, v = hit.inner
    frame = (half - jnp.abs(hit.inner)).min(0) < _FRAME
    glass = window & ~frame & (jnp.abs(u) > _BAR)

    elevation = direction[2]
    hills = 0.02 + 0.05 * jnp.sin(9 * direction[0] / (1 + jnp.abs(direction[1])))
    above = jnp.clip(12 * (elevation + hills) + 0.5, 0, 1)[None]
    sky = scene.lights.sky[:, None] * (1 + jnp.maximum(elevation, 0)[None] * jnp.array([[-0.5], [-0.2], [0.35]]))
    ground = scene.lights.sky.mean() * jnp.array([[0.26], [0.34], [0.16]])
    outside = ground * (1 - above) + sky * above

    panel = jnp.abs(jnp.abs(v + 0.05) / half[1] - 0.5) < 0.33
    panel &= jnp.abs(jnp.abs(u) / half[0] - 0.45) < 0.28
    knob = (u - 0.75 * half[0]) ** 2 + (v + 0.02) ** 2 < 0.03**2
    leaf = jnp.where(knob, 0.1, jnp.where(panel, 0.72, 0.95))[None] * scene.lights.door[:, None]

    # A picture shows land, sky and a disc, in colours that depend on its position on the wall.
    hue = jnp.stack([jnp.sin(turn), jnp.sin(turn + 2.1), jnp.sin(turn + 4.2)])
    land = jnp.sign(v / half[1] + 0.3 * jnp.sin(5 * u / half[0] + turn))
    disc = ((u / half[0] - 0.4 * jnp.sin(3 * turn)) ** 2 + (v / half[1] - 0.35) ** 2 < 0.08).astype(jnp.float32)
    canvas = jnp.clip(0.3 + 0.13 * hue * land[None] + 0.12 * land[None] + 0.4 * disc[None], 0.03, 0.85)
    canvas = jnp.where(frame[None], 0.06, canvas)

    baseboard = (hit.surface >= 0) & (hit.surface < 4) & (hit.opening < 0) & (hit.point[2] < _BASEBOARD)
    beside = ((hit.point[:2] - scene.lights.lamp[:2, None]) ** 2).sum(0)
    fixture = (hit.surface == 5) & (beside < 0.18**2)

    albedo, outside, canvas = jax.lax.optimization_barrier((albedo, outside, canvas))
    albedo = jnp.where((window | (door & frame) | baseboard)[None], 0.75, albedo)
    albedo = jnp.where((door & ~frame)[None], leaf, jnp.where(picture[None], canvas, albedo))
    emission = jnp.where(fixture[None], 2 * scene.lights.lamp_power[:, None], material.emission.T)
    return jnp.where(glass[None], 0.0, albedo), jnp.where(glass[None], outside, emission)


def _light(scene: Scene, hit: Hit) -> RGB:
    """Returns the light that arrives at the points; 1 gives a white surface the value 1."""
    lights, normal = scene.lights, hit.normal
    origin = hit.point + _OFFSET * normal
    occlusion = jax.lax.optimization_barrier(_occlusion(scene, hit))
    light = lights.ambient[:, None] * ((1 + 0.25 * normal[2]) * occlusion)[None]

    to_lamp = lights.lamp[:, None] - origin
    reach = jnp.sqrt((to_lamp**2).sum(0))
    to_lamp /= reach[None]
    sun = jnp.broadcast_to(lights.sun[:, None], origin.shape)
    leave, wall = rays.leave_room(scene.extent, origin, sun)
    # The shadows of both lights in a single pass over the solids.
    shadow_rays = (jnp.concatenate(pair, -1) for pair in ((origin, origin), (to_lamp, sun), (reach, leave)))
    lamp_shadow, sun_shadow = jnp.split(rays.blocked(scene.shapes, *shadow_rays), 2)

    facing = jnp.maximum((normal * to_lamp).sum(0), 0)
    lamp = facing / (reach**2 + 0.4) * (1 - 0.85 * lamp_shadow) * (0.5 + 0.5 * occlusion)
    light += lights.lamp_power[:, None] * lamp[None]

    out = origin + leave[None] * sun
    opening, inner = find_opening(scene.openings, wall, along_wall(wall, out), out[2])
    glass = (opening >= 0) & (scene.openings.category[opening] == WINDOW) & (jnp.abs(inner[0]) > _BAR)
    beam = jnp.where(glass, jnp.maximum((normal * sun).sum(0), 0) * (1 - sun_shadow), 0.0)
    light += lights.sun_power[:, None] * beam[None]

    light += 1.6 * lights.sky[:, None] * (_skylight(scene, hit) * occlusion)[None]
    return light + jnp.array([[0.3], [0.24], [0.16]]) * _floor_lamps(scene, hit)[None]


def _skylight(scene: Scene, hit: Hit) -> Float[Array, " rays"]:
    """Returns the form factor of the windows seen from each point, without shadows; windows count as small patches."""
    openings = scene.openings

    def add(total: Array, window: tuple) -> tuple[Array, None]:
        category, wall, centre, half = window
        outward = jnp.asarray(OUTWARD)[wall]
        middle = outward[:2] * scene.extent[:2] / 2 + centre[0] * jnp.stack([-outward[1], outward[0]])
        towards = jnp.concatenate([middle, centre[1:]])[:, None] - hit.point
        square, area = (towards**2).sum(0), 4 * half[0] * half[1]
        cosines = jnp.maximum((hit.normal * towards).sum(0), 0) * jnp.maximum((outward[:, None] * towards).sum(0), 0)
        share = area * cosines / (jnp.pi * square * (square + area / 2) + 1e-3)
        return total + jnp.where(category == WINDOW, share, 0.0), None

    return jax.lax.scan(add, jnp.zeros(hit.distance.shape), tuple(openings))[0]


def _floor_lamps(scene: Scene, hit: Hit) -> Float[Array, " rays"]:
    pieces = jax.tree.map(lambda leaf: leaf[LARGE:], scene.furniture)
    lit = pieces.active & (jnp.asarray(furniture.CATEGORY)[pieces.kind] == furniture.CATEGORIES.index("lamp"))
    bulbs = jnp.concatenate([pieces.centre, 0.9 * pieces.size[:, 2:]], 1)

    def add(total: Array, lamp: tuple) -> tuple[Array, None]:
        lit, bulb = lamp
        towards = bulb[:, None] - hit.point
        square = (towards**2).sum(0)
        facing = jnp.maximum((hit.normal * towards).sum(0), 0) / jnp.sqrt(square + 1e-6)
        return total + jnp.where(lit, facing / (square + 0.15), 0.0), None

    return jax.lax.scan(add, jnp.zeros(hit.distance.shape), (lit, bulbs))[0]


def _occlusion(scene: Scene, hit: Hit) -> Float[Array, " rays"]:
    """Returns the share of ambient light that arrives: less in the room's corners and next to furniture."""
    x, y, z = hit.point
    half = scene.extent[:2] / 2
    gaps = jnp.stack([half[0] - x, half[1] - y, half[0] + x, half[1] + y, z, scene.extent[2] - z])
    other = jnp.matmul(jnp.asarray(OUTWARD), hit.normal) > -0.5
    open_share = jnp.where(other, 1 - 0.4 * jnp.exp(-gaps / 0.3), 1.0).prod(0)

    def close(share: Array, item: tuple) -> tuple[Array, None]:
        number, active, size, centre, heading = item
        dx, dy = x - centre[0], y - centre[1]
        across = jnp.maximum(jnp.abs(heading[0] * dx + heading[1] * dy) - size[0] / 2, 0)
        deep = jnp.maximum(jnp.abs(heading[0] * dy - heading[1] * dx) - size[1] / 2, 0)
        above = jnp.maximum(z - size[2], 0)
        near = jnp.exp(-jnp.sqrt(across**2 + deep**2 + above**2 + 1e-6) / 0.15)
        return share * jnp.where(active & (hit.piece != number), 1 - 0.5 * near, 1.0), None

    pieces = scene.furniture
    numbers = jnp.arange(len(pieces.kind), dtype=jnp.int32)
    items = (numbers, pieces.active, pieces.size, pieces.centre, pieces.heading)
    return jax.lax.scan(close, open_share, items)[0]


def _expose(radiance: RGB) -> RGB:
    """Exposes by the mean brightness with a soft shoulder, then applies the sRGB curve."""
    brightness = (radiance * jnp.asarray(_BRIGHTNESS)[:, None]).sum(0)
    mean = jax.lax.optimization_barrier(jnp.exp(jnp.log(brightness + 0.02).mean()))
    exposed = 1 - jnp.exp(-0.55 * radiance / mean**0.8)
    return linear_to_srgb(exposed)
