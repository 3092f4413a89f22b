"""Colours and procedural patterns of surfaces."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from jaxtransfer.pixels import srgb_to_linear


class Material(NamedTuple):
    """The appearance of surfaces.

    Attributes:
        albedo: Albedo of the pattern's first colour, linear RGB in [0, 1].
        second: Albedo of the pattern's second colour.
        emission: Emitted light, linear RGB.
        pattern: Index of the pattern.
        salt: Seed of the pattern's random parts.
    """

    albedo: Float[Array, "*surfaces 3"]
    second: Float[Array, "*surfaces 3"]
    emission: Float[Array, "*surfaces 3"]
    pattern: Int[Array, "*surfaces"]
    salt: UInt[Array, "*surfaces"]


# Columns: width and height of a cell in metres; shift of each row against the last, in cells; share of the second
# colour in the lines between cells; width of these lines in metres; share of the second colour in every other cell;
# largest random share in a cell; size of the noise's grain in metres, along and across; largest share by noise.
_PATTERNS = {
    "plain": (9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.06),
    "planks": (1.1, 0.14, 0.37, 0.9, 0.008, 0.0, 0.55, 0.5, 0.03, 0.25),
    "parquet": (0.45, 0.09, 0.5, 0.8, 0.006, 0.0, 0.7, 0.3, 0.03, 0.2),
    "tiles": (0.33, 0.33, 0.0, 0.9, 0.018, 0.0, 0.12, 0.2, 0.2, 0.1),
    "stone tiles": (0.42, 0.42, 0.0, 0.9, 0.016, 0.0, 0.3, 0.15, 0.15, 0.2),
    "small tiles": (0.16, 0.16, 0.0, 0.8, 0.014, 0.0, 0.15, 0.2, 0.2, 0.05),
    "checks": (0.36, 0.36, 0.0, 0.3, 0.01, 0.9, 0.05, 0.2, 0.2, 0.1),
    "carpet": (9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.05, 0.6),
    "stripes": (0.18, 9.0, 0.0, 0.0, 0.0, 0.8, 0.0, 0.5, 0.5, 0.06),
    "brick": (0.24, 0.085, 0.5, 1.0, 0.014, 0.0, 0.4, 0.03, 0.03, 0.2),
    "grain": (9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.035, 0.5),
    "cloth": (9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.06, 0.06, 0.25),
    "bands": (0.12, 0.12, 0.0, 0.0, 0.0, 0.7, 0.0, 0.06, 0.06, 0.15),
    "leaves": (9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.07, 0.07, 1.0),
    "spines": (0.045, 0.6, 0.0, 0.9, 0.006, 0.0, 1.0, 0.1, 0.1, 0.1),
    "picture": (0.8, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0, 0.22, 0.16, 1.3),
}
_PATTERN_NAMES = tuple(_PATTERNS)
_TABLE = np.array(list(_PATTERNS.values()), np.float32)


def pattern(name: str) -> int:
    """Returns the index of a pattern."""
    return _PATTERN_NAMES.index(name)


# Pattern; second colour and emission as multiples of the albedo; colours as sRGB in percent.
_PALETTES = {
    "wood": ("grain", 0.6, 0.0, "45 29 17, 62 44 27, 76 58 38, 30 20 14, 84 72 54, 88 86 82"),
    "fabric": ("cloth", 0.6, 0.0, "35 40 48, 60 28 26, 28 44 56, 66 60 50, 42 50 38, 72 52 30"),
    "cushion": ("cloth", 0.6, 0.0, "46 50 56, 70 40 34, 40 56 66, 76 70 60, 56 62 48, 80 66 40"),
    "linen": ("plain", 0.6, 0.0, "92 91 88, 86 84 80, 84 88 92, 92 86 80, 78 82 86, 94 94 94"),
    "paint": ("plain", 0.6, 0.0, "90 89 86, 82 80 74, 58 66 64, 44 54 62, 74 62 46, 36 38 42"),
    "stone": ("plain", 0.6, 0.0, "30 30 32, 60 58 56, 80 78 74, 22 24 26, 52 46 40, 70 70 72"),
    "metal": ("plain", 0.6, 0.0, "14 14 15, 24 24 26, 34 34 36, 18 18 22, 40 38 36, 10 10 11"),
    "steel": ("plain", 0.6, 0.0, "74 75 77, 84 85 86, 90 90 90, 66 68 70, 88 86 80, 60 62 66"),
    "ceramic": ("plain", 0.6, 0.0, "95 95 94, 93 93 90, 90 92 94, 95 94 91, 92 90 86, 96 96 96"),
    "leaf": ("leaves", 0.4, 0.0, "16 34 12, 22 42 16, 30 46 18, 18 38 22, 36 50 20, 26 40 26"),
    "pot": ("plain", 0.6, 0.0, "62 36 24, 80 78 74, 40 42 44, 70 50 36, 52 60 62, 88 84 78"),
    "toy": ("bands", 0.3, 0.0, "80 20 18, 18 40 74, 86 66 14, 24 58 34, 84 44 20, 88 88 88"),
    "books": ("spines", 0.5, 0.0, "58 20 18, 22 34 52, 66 54 32, 26 44 32, 40 26 40, 70 66 60"),
    "shade": ("plain", 0.6, 0.9, "96 90 76, 94 84 66, 98 94 86, 90 78 66, 96 92 80, 92 88 84"),
    "display": ("picture", 6.0, 0.6, "10 12 16, 14 24 40, 8 8 10, 24 34 44, 12 20 16, 30 22 34"),
}
PALETTE_NAMES = tuple(_PALETTES)
"""Palettes of the parts of furniture."""


def linear(colour: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Converts sRGB in [0, 1] to linear RGB."""
    return srgb_to_linear(colour).astype(np.float32)


def colours(text: str) -> Float[np.ndarray, "colours 3"]:
    """Parses colours written as percentages of sRGB and converts them to linear RGB."""
    return linear(np.array([[float(value) / 100 for value in colour.split()] for colour in text.split(",")]))


CHOICES = 6
"""Number of colours in every palette."""

_WOODS = "62 42 26, 74 56 36, 50 34 22, 84 70 52, 66 48 34, 40 28 20"
_STONES = "86 84 80, 70 68 64, 90 90 88, 64 50 42, 78 72 62, 54 56 58"
_CARPETS = "52 50 48, 38 44 54, 62 54 44, 48 30 30, 40 48 40, 70 66 60"
_PAINTS = "92 90 87, 88 84 74, 80 84 86, 77 81 75, 88 80 75, 68 75 81"
_CLAYS = "58 32 24, 66 44 34, 82 80 78, 52 40 34, 70 66 62, 46 28 22"
_GLAZES = "92 92 90, 80 88 90, 86 90 84, 70 80 84, 90 86 80, 60 72 74"
# Claddings of walls and floors by pattern: colours, and the second colour as a multiple of the albedo.
_CLAD = {
    "plain": (_PAINTS, 0.8),
    "stripes": (_PAINTS, 0.7),
    "brick": (_CLAYS, 3.0),
    "tiles": (_GLAZES, 0.55),
    "small tiles": (_GLAZES, 0.6),
    "stone tiles": (_STONES, 0.5),
    "checks": (_STONES, 0.12),
    "carpet": (_CARPETS, 0.5),
    "planks": (_WOODS, 0.45),
    "parquet": (_WOODS, 0.45),
}
_CLADDINGS, _CLADDING_CONTRAST = np.zeros((len(_PATTERNS), CHOICES, 3), np.float32), np.ones(len(_PATTERNS), np.float32)
for _name, (_text, _contrast) in _CLAD.items():
    _CLADDINGS[pattern(_name)], _CLADDING_CONTRAST[pattern(_name)] = colours(_text), _contrast

_COLOURS = np.stack([colours(text) for *_, text in _PALETTES.values()])
_PALETTE_PATTERNS = np.array([pattern(name) for name, *_ in _PALETTES.values()], np.int32)
_CONTRAST = np.array([contrast for _, contrast, *_ in _PALETTES.values()], np.float32)
_EMISSION = np.array([emission for _, _, emission, _ in _PALETTES.values()], np.float32)


class Colours(NamedTuple):
    """The colours of pieces of furniture; parts of a piece with the same palette have the same colour.

    Attributes:
        choice: Index of the colour in each palette.
        tint: Factors of red, green and blue.
        salt: Seed of the patterns' random parts.
    """

    choice: Int[Array, "pieces palettes"]
    tint: Float[Array, "pieces 3"]
    salt: UInt[Array, " pieces"]


def pick(u: Float[Array, "*n"], count: int) -> Int[Array, "*n"]:
    """Maps uniform numbers in [0, 1) to integers in [0, count)."""
    return jnp.minimum((u * count).astype(jnp.int32), count - 1)


def choose_colours(u: Float[Array, "pieces numbers"]) -> Colours:
    """Chooses colours of pieces of furniture from uniform numbers in [0, 1): five, and one per palette."""
    tint = jnp.exp(0.6 * (u[:, :1] - 0.5) + 0.12 * (u[:, 1:4] - 0.5))
    return Colours(pick(u[:, 5:], CHOICES), tint, (u[:, 4] * 2.0**23).astype(jnp.uint32))


def palette_materials(colours: Colours, palette: Int[Array, "pieces parts"]) -> Material:
    """Returns the materials of the parts of furniture."""
    chosen = jnp.take_along_axis(colours.choice, palette, axis=1)
    albedo = jnp.clip(jnp.asarray(_COLOURS)[palette, chosen] * colours.tint[:, None], 0.005, 0.92)
    return Material(
        albedo,
        jnp.asarray(_CONTRAST)[palette][..., None] * albedo,
        albedo * jnp.asarray(_EMISSION)[palette][..., None],
        jnp.asarray(_PALETTE_PATTERNS)[palette],
        colours.salt[:, None] + jnp.arange(palette.shape[1], dtype=jnp.uint32)[None],
    )


def cladding(
    pattern: Int[Array, ""], choice: Float[Array, ""], u: Float[Array, " numbers"]
) -> tuple[Float[Array, " 3"], Float[Array, " 3"], Int[Array, ""]]:
    """Returns albedo, second colour and pattern of a wall, a floor or a ceiling.

    Args:
        pattern: Index of the pattern.
        choice: Uniform number in [0, 1) that chooses the colour.
        u: Uniform numbers in [0, 1): three that vary the colour, or one that varies its brightness.
    """
    albedo = jnp.clip(jnp.asarray(_CLADDINGS)[pattern, pick(choice, CHOICES)] * jnp.exp(0.16 * (u - 0.5)), 0.01, 0.9)
    return albedo, jnp.minimum(jnp.asarray(_CLADDING_CONTRAST)[pattern] * albedo, 0.7), pattern


def _hash(i: Int[Array, "*n"], j: Int[Array, "*n"], salt: UInt[Array, "*n"]) -> Float[Array, "*n"]:
    """Hashes the coordinates of grid cells to numbers in [0, 1)."""
    x = i.astype(jnp.uint32) * jnp.uint32(0x8DA6B343) ^ j.astype(jnp.uint32) * jnp.uint32(0xD8163841) ^ salt
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return (x >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def _noise(u: Float[Array, "*n"], v: Float[Array, "*n"], salt: UInt[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns value noise in [0, 1): random at integer coordinates, smooth in between."""
    i, j = jnp.floor(u), jnp.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i, j = i.astype(jnp.int32), j.astype(jnp.int32)
    low = _hash(i, j, salt) * (1 - a) + _hash(i + 1, j, salt) * a
    high = _hash(i, j + 1, salt) * (1 - a) + _hash(i + 1, j + 1, salt) * a
    return low * (1 - b) + high * b


def shade_pattern(
    material: Material, place: Float[Array, "2 points"], footprint: Float[Array, " points"]
) -> Float[Array, "3 points"]:
    """Computes the albedo of points on surfaces.

    Args:
        material: Material of each point.
        place: Two coordinates along the surface in metres.
        footprint: Width of a pixel on the surface in metres; finer detail fades to its mean.

    Returns:
        Linear RGB in [0, 1].
    """
    rows = jax.lax.optimization_barrier(jnp.asarray(_TABLE)[material.pattern].T)
    width, height, shift, line, thick, alternate, chance, along, across, grain = rows
    u, v = place
    row = jnp.floor(v / height)
    position = u / width + shift * row
    column = jnp.floor(position)
    edge = 0.5 * jnp.minimum(width, height)
    x = width * (0.5 - jnp.abs(position - column - 0.5))
    y = height * (0.5 - jnp.abs(v / height - row - 0.5))
    lines = jnp.clip((thick / 2 + footprint / 2 - jnp.minimum(x, y)) / footprint, 0, 1) * jnp.minimum(
        1, thick / footprint
    )
    i, j = column.astype(jnp.int32), row.astype(jnp.int32)
    parity = ((i + j) % 2).astype(jnp.float32)
    cells = jnp.clip(2 * edge / footprint - 1, 0, 1)
    grains = jnp.clip(2 * across / footprint - 0.5, 0, 1)
    mixed = (
        line * lines
        + alternate * (0.5 + (parity - 0.5) * cells)
        + chance * (0.5 + (_hash(i, j, material.salt) - 0.5) * cells)
        + grain * (0.5 + (_noise(u / along, v / across, material.salt) - 0.5) * grains)
    )
    mixed = jnp.clip(mixed, 0, 1)
    return material.albedo.T * (1 - mixed)[None] + material.second.T * mixed[None]
