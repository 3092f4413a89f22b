"""Reads representations in pieces and computes what several measures need of them, with memory that is bounded."""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.errors import JaxTransferError, NetworkError
from jaxtransfer.points.store import Point, chunks

# Numbers of 8 bytes that are held at a time.
MAX_ELEMENTS = 32 * 2**20
# If the variance is less than this share of the mean square, a representation is constant up to rounding.
CONSTANT_SHARE = 1e-12
# Fewest images on which representations are compared.
LEAST_IMAGES = 4

Representation = Float[np.ndarray, "images ..."] | Point
Representations = Mapping[str, Representation]


class Units(Protocol):
    """A representation as [images, units], which may lie on disk."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, images: Any, /) -> Float[np.ndarray, "kept units"]: ...


class _View:
    """Shows a representation as [images, units], each unit divided by its scale; reads it when it is indexed."""

    def __init__(
        self, representation: Representation | Units, scale: Float[np.ndarray, " units"] | None = None
    ) -> None:
        self._representation, self._scale = representation, scale
        self.shape = (len(representation), math.prod(representation.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: Any) -> Float[np.ndarray, "kept units"]:
        values = self._representation[images]
        values = values.reshape(len(values), -1)
        return values if self._scale is None else values / self._scale


def flat(representations: Representations) -> dict[str, Units]:
    """Shows representations of any shape [images, ...] as [images, units]."""
    return {name: _View(representation) for name, representation in representations.items()}


def standardised(representations: Mapping[str, Units]) -> dict[str, Units]:
    """Divides each unit by its standard deviation over the images that are finite for all networks.

    The deviation is that of a population; units that do not vary are divided by 1. Means are not removed.
    """
    images = np.flatnonzero(finite_images(representations).all(0))
    return {name: _View(units, _deviations(units, images)) for name, units in representations.items()}


def finite_images(representations: Mapping[str, Representation | Units]) -> Bool[np.ndarray, "networks images"]:
    """Returns which images have a finite representation.

    Raises:
        JaxTransferError: There are fewer than `LEAST_IMAGES` for which all networks have one.
    """
    usable = np.array([finite_rows(representation) for representation in representations.values()])
    enough_images(usable, list(representations), LEAST_IMAGES)
    return usable


def finite_rows(representation: Representation | Units) -> Bool[np.ndarray, " images"]:
    """Returns at which images a representation is finite, reading it in pieces."""
    size = max(1, MAX_ELEMENTS // math.prod(representation.shape[1:]))
    parts = (representation[start:stop] for start, stop in chunks(len(representation), size))
    return np.concatenate([np.isfinite(part).reshape(len(part), -1).all(1) for part in parts])


def enough_images(
    usable: Bool[np.ndarray, "networks images"], names: Sequence[str], least: int
) -> Int[np.ndarray, " kept"]:
    """Returns the images that are usable for all networks.

    Raises:
        NetworkError: There are fewer than `least`; it is of the network with the fewest usable images.
        JaxTransferError: There are fewer than `least` images.
    """
    kept = np.flatnonzero(usable.all(0))
    if len(kept) >= least:
        return kept
    sentence = (
        f"Representations are compared on {least} or more images that all networks can use; there are {len(kept)}. "
        "Take more images, or compare maps alone (the method paper)"
    )
    if usable.all():
        raise JaxTransferError(f"{sentence}.")
    counts = usable.sum(1)
    fewest = names[int(counts.argmin())]
    raise NetworkError(fewest, f"{sentence}; {fewest!r} can use {counts.min()} of {usable.shape[1]} images.")


def pieces(units: Units, images: Int[np.ndarray, " kept"]) -> Iterable[tuple[int, int]]:
    """Splits images into ranges whose units are read at a time."""
    return chunks(len(images), max(1, MAX_ELEMENTS // units.shape[1]))


def centred(
    units: Units, images: Int[np.ndarray, " kept"], mean: Float[np.ndarray, " units"]
) -> Float[np.ndarray, "kept units"]:
    """Reads the representations of images and subtracts the mean."""
    return units[images].astype(np.float64) - mean


def mean_over_images(units: Units, images: Int[np.ndarray, " kept"]) -> Float[np.ndarray, " units"]:
    """Computes each unit's mean over images."""
    sums = (units[images[start:stop]].sum(0, dtype=np.float64) for start, stop in pieces(units, images))
    return np.asarray(sum(sums)) / len(images)


def inner_products(
    units: Units, images: Int[np.ndarray, " kept"], mean: Float[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, "kept kept"], Float[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """Returns inner products of centred images, their means over units, and their squared norms before centring."""
    product = np.empty((len(images), len(images)))
    level, squares = np.empty(len(images)), np.empty(len(images))
    for start, stop in pieces(units, images):
        piece = centred(units, images[start:stop], mean)
        level[start:stop] = piece.mean(1)
        squares[start:stop] = np.square(piece + mean).sum(1)
        for first, last in pieces(units, images[:stop]):
            part = piece @ centred(units, images[first:last], mean).T
            product[start:stop, first:last] = part
            product[first:last, start:stop] = part.T
    return product, level, squares


def check_varies(name: str, varies: bool | np.bool_) -> None:
    """Raises a `NetworkError` if a network's representation does not vary."""
    if not varies:
        raise NetworkError(name, f"Network {name!r} gives all probe images the same representation; take other images.")


class Scratch(tempfile.TemporaryDirectory):
    """Holds arrays in a temporary directory instead of memory."""

    def __enter__(self) -> "Scratch":
        super().__enter__()
        self._count = 0
        return self

    def empty(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """Creates an array on disk."""
        self._count += 1
        return np.lib.format.open_memmap(Path(self.name) / f"{self._count}.npy", "w+", np.float64, shape)

    def keep(self, array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Copies an array to disk."""
        copy = self.empty(array.shape)
        copy[...] = array
        return copy


def _deviations(units: Units, images: Int[np.ndarray, " kept"]) -> Float[np.ndarray, " units"]:
    """Computes each unit's standard deviation over images, 1 where it does not vary."""
    if not len(images):
        return np.ones(units.shape[1])
    mean = mean_over_images(units, images)
    squares = (np.square(centred(units, images[start:stop], mean)).sum(0) for start, stop in pieces(units, images))
    variance = np.asarray(sum(squares)) / len(images)
    varies = variance > CONSTANT_SHARE * (variance + np.square(mean))
    return np.sqrt(np.where(varies, variance, 1))
