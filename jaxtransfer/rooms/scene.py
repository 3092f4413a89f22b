"""Scenes: a room, its openings, furniture, materials, lights and two cameras."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxtransfer.rooms.materials import Material
from jaxtransfer.rooms.rays import Shapes

OUTWARD = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1]], np.float32)
"""Directions out of the room through its four walls, floor and ceiling."""


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
        door: Albedo of the doors.
    """

    lamp: Float[Array, " 3"]
    lamp_power: Float[Array, " 3"]
    sun: Float[Array, " 3"]
    sun_power: Float[Array, " 3"]
    sky: Float[Array, " 3"]
    ambient: Float[Array, " 3"]
    door: Float[Array, " 3"]


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
    seed: UInt[Array, ""]
