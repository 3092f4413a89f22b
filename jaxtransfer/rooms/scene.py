"""Scenes: the room with its openings, furniture, materials, lights and two cameras."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxtransfer.rooms.materials import Material
from jaxtransfer.rooms.rays import Shapes

OUTWARD = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1]], np.float32)
"""Outward unit normals of the four walls, the floor and the ceiling, in the room's frame."""


class Camera(NamedTuple):
    """A pinhole camera with square images.

    Attributes:
        position: Position in metres in the room's frame: x and y along the walls from the centre of the floor, z up.
        rotation: Rotation from the camera's frame (x right, y down, z forward) to the room's; its columns are the
            camera's axes.
        tangent: Tangent of half the field of view.
    """

    position: Float[Array, " 3"]
    rotation: Float[Array, "3 3"]
    tangent: Float[Array, ""]


class Openings(NamedTuple):
    """Windows, doors and pictures: upright rectangles in walls.

    Attributes:
        category: Index in `CATEGORIES`; -1 where there is no opening.
        wall: 0 to 3 for the walls at +x, +y, -x, -y.
        centre: Coordinate along the wall (from its middle towards the next wall) and height above the floor, in metres.
        half: Half the width and half the height in metres.
    """

    category: Int[Array, " openings"]
    wall: Int[Array, " openings"]
    centre: Float[Array, "openings 2"]
    half: Float[Array, "openings 2"]


class Furniture(NamedTuple):
    """Pieces of furniture; all stand on the floor.

    Attributes:
        kind: Index in `furniture.KINDS`.
        active: Whether the piece exists; the arrays have the same length in all scenes.
        size: Width, depth and height in metres.
        centre: Centre of the footprint in metres, in the room's frame.
        heading: Cosine and sine of the angle from the room's axes to the piece's own axes; its front faces its own +y.
    """

    kind: Int[Array, " pieces"]
    active: Bool[Array, " pieces"]
    size: Float[Array, "pieces 3"]
    centre: Float[Array, "pieces 2"]
    heading: Float[Array, "pieces 2"]


class Lights(NamedTuple):
    """The light sources of a room; colours are linear RGB.

    Attributes:
        lamp: Position of the ceiling lamp in metres.
        lamp_power: Intensity of the ceiling lamp: irradiance times squared distance in m^2.
        sun: Unit vector towards the sun.
        sun_power: Irradiance of a surface that faces the sun.
        sky: Radiance of the sky in the windows.
        ambient: Ambient irradiance, the same from all directions.
        door: Albedo of the doors, not a light.
    """

    lamp: Float[Array, " 3"]
    lamp_power: Float[Array, " 3"]
    sun: Float[Array, " 3"]
    sun_power: Float[Array, " 3"]
    sky: Float[Array, " 3"]
    ambient: Float[Array, " 3"]
    door: Float[Array, " 3"]


class Scene(NamedTuple):
    """A furnished room, its lights and two cameras; a pytree with the same shapes for all scenes.

    Attributes:
        room: Index of the room type in `ROOMS`.
        extent: Width, depth and height of the room in metres.
        openings: Windows, doors and pictures in the walls.
        furniture: Pieces of furniture on the floor.
        shapes: Solids that the furniture consists of.
        piece: Index of the piece of furniture that each solid belongs to.
        material: Materials of the solids, then of the four walls, the floor and the ceiling.
        lights: Light sources.
        camera: Camera of the image that the labels describe.
        second_camera: A second camera near the first; it sees much the same part of the room.
        seed: Seed of the random parts of examples: the noise of denoising and the permutation of the jigsaw.
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
    seed: UInt[Array, ""]
