"""The kinds of furniture: their parts, sizes and places.

A piece has a width (along its own x), a depth (along y, its back towards -y) and a height (z, from the floor). Parts
are given in fractions of these.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxtransfer.rooms.materials import PALETTE_NAMES
from jaxtransfer.rooms.rays import Solids

SURFACES = ("wall", "floor", "ceiling", "window", "door", "picture")
"""Categories of the surfaces of a room and of the openings in its walls."""

OBJECTS = tuple(
    "bed sofa chair table cabinet wardrobe shelf screen stove fridge bathtub sink toilet lamp plant ball".split()
)
"""Categories of furniture."""

CATEGORIES = SURFACES + OBJECTS
"""The classes of `segment_semantic`, in order."""

BOXES, CYLINDERS, SPHERES = 6, 3, 3
_PARTS = (BOXES, CYLINDERS, SPHERES)

# Where a piece stands: with its back to a wall, anywhere, or beside the last table, facing it.
WALL, FREE, TABLE = range(3)

# A part: its palette, then its low and high end along x, y and z in fractions of width, depth and height.
_Part = tuple[str, float, float, float, float, float, float]


class Kind(NamedTuple):
    """A kind of furniture.

    Attributes:
        category: Name of its category in `OBJECTS`.
        place: `WALL`, `FREE` or `TABLE`.
        smallest: Smallest width, depth and height in metres.
        largest: Largest width, depth and height in metres.
        boxes: Parts that are boxes; at most six.
        cylinders: Parts that are upright cylinders as wide as their span along x; at most three, beside boxes one.
        spheres: Parts that are spheres as wide as their span along x; at most three, beside boxes none.
    """

    category: str
    place: int
    smallest: tuple[float, float, float]
    largest: tuple[float, float, float]
    boxes: tuple[_Part, ...] = ()
    cylinders: tuple[_Part, ...] = ()
    spheres: tuple[_Part, ...] = ()


def _legs(palette: str, top: float, thick: float = 0.06) -> tuple[_Part, ...]:
    spans = ((-0.48, -0.48 + thick), (0.48 - thick, 0.48))
    return tuple((palette, *x, *y, 0.0, top) for x in spans for y in spans)


KINDS: dict[str, Kind] = {
    "bed": Kind(
        "bed",
        WALL,
        (1.0, 1.9, 0.85),
        (1.7, 2.1, 1.15),
        (
            ("wood", -0.5, 0.5, -0.5, -0.46, 0.0, 1.0),
            ("wood", -0.5, 0.5, -0.46, 0.5, 0.08, 0.3),
            ("linen", -0.48, 0.48, -0.45, 0.49, 0.3, 0.48),
            ("fabric", -0.5, 0.5, -0.1, 0.5, 0.3, 0.52),
            ("linen", -0.42, -0.05, -0.44, -0.2, 0.48, 0.6),
            ("linen", 0.05, 0.42, -0.44, -0.2, 0.48, 0.6),
        ),
    ),
    "sofa": Kind(
        "sofa",
        WALL,
        (1.6, 0.8, 0.72),
        (2.3, 0.95, 0.88),
        (
            ("fabric", -0.5, 0.5, -0.5, 0.45, 0.06, 0.35),
            ("fabric", -0.5, 0.5, -0.5, -0.25, 0.35, 1.0),
            ("fabric", -0.5, -0.4, -0.25, 0.47, 0.35, 0.68),
            ("fabric", 0.4, 0.5, -0.25, 0.47, 0.35, 0.68),
            ("cushion", -0.39, -0.01, -0.25, 0.48, 0.36, 0.52),
            ("cushion", 0.01, 0.39, -0.25, 0.48, 0.36, 0.52),
        ),
    ),
    "armchair": Kind(
        "sofa",
        FREE,
        (0.75, 0.75, 0.75),
        (0.95, 0.9, 0.95),
        (
            ("fabric", -0.5, 0.5, -0.5, 0.45, 0.08, 0.35),
            ("fabric", -0.5, 0.5, -0.5, -0.28, 0.35, 1.0),
            ("fabric", -0.5, -0.32, -0.28, 0.47, 0.35, 0.65),
            ("fabric", 0.32, 0.5, -0.28, 0.47, 0.35, 0.65),
            ("cushion", -0.31, 0.31, -0.27, 0.48, 0.35, 0.5),
        ),
    ),
    "chair": Kind(
        "chair",
        TABLE,
        (0.4, 0.42, 0.82),
        (0.5, 0.5, 0.98),
        (
            *_legs("wood", 0.47, 0.1),
            ("wood", -0.5, 0.5, -0.5, 0.5, 0.46, 0.52),
            ("wood", -0.48, 0.48, -0.5, -0.42, 0.6, 1.0),
        ),
    ),
    "office chair": Kind(
        "chair",
        TABLE,
        (0.5, 0.5, 0.9),
        (0.6, 0.58, 1.1),
        (
            ("fabric", -0.48, 0.48, -0.4, 0.5, 0.42, 0.5),
            ("fabric", -0.45, 0.45, -0.5, -0.38, 0.55, 1.0),
            ("metal", -0.5, 0.5, -0.06, 0.06, 0.03, 0.08),
            ("metal", -0.06, 0.06, -0.5, 0.5, 0.03, 0.08),
        ),
        (("metal", -0.07, 0.07, -0.07, 0.07, 0.03, 0.42),),
    ),
    "table": Kind(
        "table",
        FREE,
        (1.0, 0.7, 0.7),
        (1.8, 0.95, 0.78),
        (*_legs("wood", 0.94), ("wood", -0.5, 0.5, -0.5, 0.5, 0.94, 1.0)),
    ),
    "round table": Kind(
        "table",
        FREE,
        (0.8, 0.8, 0.68),
        (1.3, 1.3, 0.78),
        (("wood", -0.06, 0.06, -0.06, 0.06, 0.04, 0.95), ("wood", -0.25, 0.25, -0.25, 0.25, 0.0, 0.05)),
        (("wood", -0.5, 0.5, -0.5, 0.5, 0.94, 1.0),),
    ),
    "coffee table": Kind(
        "table",
        FREE,
        (0.8, 0.5, 0.36),
        (1.2, 0.7, 0.46),
        (*_legs("wood", 0.9), ("wood", -0.5, 0.5, -0.5, 0.5, 0.88, 1.0), ("wood", -0.45, 0.45, -0.45, 0.45, 0.3, 0.36)),
    ),
    "desk": Kind(
        "table",
        WALL,
        (1.2, 0.65, 0.7),
        (1.8, 0.85, 0.78),
        (
            ("wood", -0.5, 0.5, -0.5, 0.5, 0.95, 1.0),
            ("metal", -0.49, -0.46, -0.46, 0.46, 0.0, 0.95),
            ("paint", 0.2, 0.49, -0.46, 0.44, 0.03, 0.95),
            ("metal", 0.23, 0.46, 0.44, 0.46, 0.66, 0.7),
            ("metal", 0.23, 0.46, 0.44, 0.46, 0.36, 0.4),
        ),
    ),
    "nightstand": Kind(
        "cabinet",
        WALL,
        (0.4, 0.38, 0.45),
        (0.55, 0.48, 0.62),
        (
            ("wood", -0.5, 0.5, -0.5, 0.46, 0.0, 1.0),
            ("paint", -0.45, 0.45, 0.46, 0.5, 0.1, 0.5),
            ("paint", -0.45, 0.45, 0.46, 0.5, 0.55, 0.95),
        ),
    ),
    "cabinet": Kind(
        "cabinet",
        WALL,
        (0.8, 0.42, 0.75),
        (1.5, 0.55, 1.1),
        (
            ("wood", -0.5, 0.5, -0.5, 0.5, 0.96, 1.0),
            ("wood", -0.49, 0.49, -0.5, 0.44, 0.08, 0.96),
            ("wood", -0.47, 0.47, -0.45, 0.4, 0.0, 0.08),
            ("paint", -0.48, -0.01, 0.44, 0.48, 0.1, 0.93),
            ("paint", 0.01, 0.48, 0.44, 0.48, 0.1, 0.93),
            ("metal", -0.08, 0.08, 0.48, 0.5, 0.72, 0.78),
        ),
    ),
    "counter": Kind(
        "cabinet",
        WALL,
        (1.4, 0.58, 0.86),
        (2.4, 0.65, 0.94),
        (
            ("stone", -0.5, 0.5, -0.5, 0.5, 0.95, 1.0),
            ("paint", -0.5, 0.5, -0.5, 0.42, 0.1, 0.95),
            ("metal", -0.5, 0.5, -0.5, 0.36, 0.0, 0.1),
            ("paint", -0.49, -0.17, 0.42, 0.45, 0.12, 0.93),
            ("paint", -0.16, 0.16, 0.42, 0.45, 0.12, 0.93),
            ("paint", 0.17, 0.49, 0.42, 0.45, 0.12, 0.93),
        ),
    ),
    "wardrobe": Kind(
        "wardrobe",
        WALL,
        (1.0, 0.55, 1.85),
        (2.0, 0.65, 2.2),
        (
            ("wood", -0.5, 0.5, -0.5, 0.44, 0.0, 1.0),
            ("paint", -0.48, -0.005, 0.44, 0.48, 0.05, 0.97),
            ("paint", 0.005, 0.48, 0.44, 0.48, 0.05, 0.97),
            ("metal", -0.05, -0.03, 0.48, 0.5, 0.42, 0.55),
            ("metal", 0.03, 0.05, 0.48, 0.5, 0.42, 0.55),
        ),
    ),
    "shelf": Kind(
        "shelf",
        WALL,
        (0.7, 0.28, 1.5),
        (1.3, 0.38, 2.1),
        (
            ("wood", -0.5, 0.5, -0.5, -0.44, 0.0, 1.0),
            ("wood", -0.5, -0.46, -0.44, 0.5, 0.0, 1.0),
            ("wood", 0.46, 0.5, -0.44, 0.5, 0.0, 1.0),
            ("wood", -0.46, 0.46, -0.44, 0.5, 0.97, 1.0),
            ("books", -0.45, 0.3, -0.44, 0.2, 0.62, 0.8),
            ("books", -0.2, 0.45, -0.44, 0.2, 0.22, 0.42),
        ),
    ),
    "screen": Kind(
        "screen",
        WALL,
        (1.1, 0.4, 1.0),
        (1.7, 0.5, 1.35),
        (
            ("wood", -0.5, 0.5, -0.5, 0.5, 0.05, 0.36),
            ("metal", -0.1, 0.1, -0.15, 0.15, 0.36, 0.38),
            ("metal", -0.03, 0.03, -0.06, 0.0, 0.38, 0.5),
            ("metal", -0.44, 0.44, -0.08, 0.02, 0.44, 1.0),
            ("display", -0.42, 0.42, 0.02, 0.03, 0.47, 0.97),
        ),
    ),
    "stove": Kind(
        "stove",
        WALL,
        (0.58, 0.6, 0.86),
        (0.7, 0.66, 0.94),
        (
            ("ceramic", -0.5, 0.5, -0.5, 0.46, 0.0, 0.97),
            ("metal", -0.49, 0.49, -0.48, 0.45, 0.97, 1.0),
            ("metal", -0.38, 0.38, 0.46, 0.48, 0.2, 0.65),
            ("stone", -0.42, 0.42, 0.46, 0.5, 0.7, 0.73),
            ("metal", -0.45, 0.45, 0.46, 0.48, 0.8, 0.93),
        ),
    ),
    "fridge": Kind(
        "fridge",
        WALL,
        (0.6, 0.62, 1.6),
        (0.8, 0.7, 2.0),
        (
            ("steel", -0.5, 0.5, -0.5, 0.4, 0.0, 1.0),
            ("steel", -0.5, 0.5, 0.41, 0.46, 0.02, 0.64),
            ("steel", -0.5, 0.5, 0.41, 0.46, 0.66, 1.0),
            ("metal", -0.44, -0.4, 0.46, 0.5, 0.4, 0.62),
            ("metal", -0.44, -0.4, 0.46, 0.5, 0.68, 0.85),
        ),
    ),
    "bathtub": Kind(
        "bathtub",
        WALL,
        (1.5, 0.7, 0.5),
        (1.8, 0.85, 0.6),
        (
            ("ceramic", -0.5, 0.5, -0.5, -0.4, 0.0, 1.0),
            ("ceramic", -0.5, 0.5, 0.4, 0.5, 0.0, 1.0),
            ("ceramic", -0.5, -0.44, -0.4, 0.4, 0.0, 1.0),
            ("ceramic", 0.44, 0.5, -0.4, 0.4, 0.0, 1.0),
            ("ceramic", -0.44, 0.44, -0.4, 0.4, 0.1, 0.25),
            ("steel", -0.43, -0.36, -0.05, 0.05, 1.0, 1.2),
        ),
    ),
    "sink": Kind(
        "sink",
        WALL,
        (0.5, 0.42, 0.8),
        (0.75, 0.52, 0.9),
        (
            ("ceramic", -0.5, 0.5, -0.5, -0.3, 0.8, 1.0),
            ("ceramic", -0.5, 0.5, 0.4, 0.5, 0.8, 1.0),
            ("ceramic", -0.5, -0.4, -0.3, 0.4, 0.8, 1.0),
            ("ceramic", 0.4, 0.5, -0.3, 0.4, 0.8, 1.0),
            ("ceramic", -0.4, 0.4, -0.3, 0.4, 0.8, 0.86),
            ("steel", -0.04, 0.04, -0.4, -0.1, 1.0, 1.14),
        ),
        (("ceramic", -0.15, 0.15, -0.15, 0.15, 0.0, 0.8),),
    ),
    "toilet": Kind(
        "toilet",
        WALL,
        (0.38, 0.62, 0.75),
        (0.45, 0.7, 0.85),
        (
            ("ceramic", -0.48, 0.48, -0.5, -0.24, 0.45, 1.0),
            ("ceramic", -0.3, 0.3, -0.5, 0.2, 0.0, 0.46),
            ("ceramic", -0.45, 0.45, -0.24, -0.2, 0.5, 0.9),
        ),
        (("ceramic", -0.48, 0.48, -0.2, 0.5, 0.3, 0.52),),
    ),
    "lamp": Kind(
        "lamp",
        FREE,
        (0.36, 0.36, 1.3),
        (0.5, 0.5, 1.75),
        cylinders=(
            ("metal", -0.4, 0.4, -0.4, 0.4, 0.0, 0.02),
            ("metal", -0.05, 0.05, -0.05, 0.05, 0.02, 0.8),
            ("shade", -0.5, 0.5, -0.5, 0.5, 0.8, 1.0),
        ),
    ),
    "plant": Kind(
        "plant",
        FREE,
        (0.5, 0.5, 0.8),
        (0.85, 0.85, 1.5),
        cylinders=(("pot", -0.3, 0.3, -0.3, 0.3, 0.0, 0.3), ("wood", -0.04, 0.04, -0.04, 0.04, 0.3, 0.7)),
        spheres=(
            ("leaf", -0.5, 0.2, -0.4, 0.3, 0.6, 0.7),
            ("leaf", -0.15, 0.5, -0.25, 0.4, 0.5, 0.66),
            ("leaf", -0.3, 0.3, -0.4, 0.2, 0.78, 0.86),
        ),
    ),
    "ball": Kind("ball", FREE, (0.24, 0.24, 0.24), (0.7, 0.7, 0.7), spheres=(("toy", -0.5, 0.5, -0.5, 0.5, 0.0, 1.0),)),
}
"""All kinds of furniture by name."""

_NAMES = tuple(KINDS)


def kind(name: str) -> int:
    """Returns the index of a kind of furniture."""
    return _NAMES.index(name)


def _spans(name: str, count: int) -> np.ndarray:
    """Returns spans of the parts of a shape, [kinds, count, axis, low/high]; absent parts have high < low."""
    spans = np.tile(np.array([[1.0, -1.0]] * 3), (len(KINDS), count, 1, 1))
    for row, item in enumerate(KINDS.values()):
        for column, (_, *span) in enumerate(getattr(item, name)):
            spans[row, column] = np.reshape(span, (3, 2))
    return spans.astype(np.float32)


def _palettes(name: str, count: int) -> np.ndarray:
    palettes = np.zeros((len(KINDS), count), np.int32)
    for row, item in enumerate(KINDS.values()):
        for column, part in enumerate(getattr(item, name)):
            palettes[row, column] = PALETTE_NAMES.index(part[0])
    return palettes


_TABLES = tuple(
    (_spans(name, count), _palettes(name, count))
    for name, count in zip(("boxes", "cylinders", "spheres"), _PARTS, strict=True)
)
CATEGORY = np.array([CATEGORIES.index(item.category) for item in KINDS.values()], np.int32)
"""Index in `CATEGORIES` of each kind."""

PLACE = np.array([item.place for item in KINDS.values()], np.int32)
"""Place of each kind: `WALL`, `FREE` or `TABLE`."""

SMALLEST = np.array([item.smallest for item in KINDS.values()], np.float32)
LARGEST = np.array([item.largest for item in KINDS.values()], np.float32)
"""Smallest and largest width, depth and height of each kind in metres."""


def parts(
    shape: int,
    count: int,
    kinds: Int[Array, " pieces"],
    active: Bool[Array, " pieces"],
    size: Float[Array, "pieces 3"],
    centre: Float[Array, "pieces 2"],
    heading: Float[Array, "pieces 2"],
) -> tuple[Solids, Int[Array, "pieces {count}"]]:
    """Returns the parts of a given shape that pieces of furniture consist of.

    Args:
        shape: 0 for boxes, 1 for cylinders, 2 for spheres.
        count: Largest number of such parts of a piece.
        kinds: Index of each piece's kind.
        active: Whether each piece exists.
        size: Width, depth and height in metres.
        centre: Centre of the footprint in metres, in the room's frame.
        heading: Cosine and sine of the angle from the room's axes to the piece's own axes.

    Returns:
        Solids of shape [pieces, count], and the indices of their palettes.
    """
    spans, palettes = (jnp.asarray(table[:, :count])[kinds] for table in _TABLES[shape])
    low, high = spans[..., 0] * size[:, None], spans[..., 1] * size[:, None]
    half = jnp.where(active[:, None, None], (high - low) / 2, -1.0)
    x, y, z = jnp.moveaxis((low + high) / 2, -1, 0)
    cosine, sine = heading[:, :1], heading[:, 1:]
    centres = jnp.stack([centre[:, :1] + cosine * x - sine * y, centre[:, 1:] + sine * x + cosine * y, z], -1)
    headings = jnp.broadcast_to(heading[:, None], (*half.shape[:2], 2))
    return Solids(centres, half, headings), palettes
