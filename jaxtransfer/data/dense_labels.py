"""Reads dense labels, a class or numbers for every pixel of an image, from images and `.npy` files."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image

from jaxtransfer.data.arrays import TargetType
from jaxtransfer.data.squares import resize_classes, resize_numbers
from jaxtransfer.errors import JaxTransferError

_FORMATS = ("PNG", "TIFF")  # others lose values, or have no integers
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_NEEDED = {
    "dense_classes": "integers [h, w], such as a .npy file, or a PNG image of grey values or with a palette",
    "dense": "numbers [h, w] or [h, w, outputs], such as a .npy file, or a PNG image of grey values",
}


def read_dense_labels(
    images: Sequence[Path], labels: Sequence[Path | None], target_type: TargetType, size: int
) -> tuple[Shaped[np.ndarray, "n size size ..."], list[str]]:
    """Reads the dense label of every image, cropped and resized as the image.

    Args:
        images: Files of the images.
        labels: Files of the labels, of the same height and width as the image; None: the label is missing.
        target_type: "dense" or "dense_classes".
        size: Height and width of the result in pixels.

    Returns:
        float32 numbers [n, size, size, outputs] with NaN for missing ones, or int32 classes [n, size, size] with -1
        for missing ones; and the SHA-256 of the content of every file.

    Raises:
        JaxTransferError: A file cannot be used; the message names it.
    """
    resized, hashes = [], []
    for image, label in zip(images, labels, strict=True):
        content = b"" if label is None else label.read_bytes() if label.is_file() else None
        if content is None:
            raise JaxTransferError(f"The file {label} of the dense labels of {image} does not exist.")
        hashes.append(hashlib.sha256(content).hexdigest())
        resized.append(None if label is None else _read(label, content, image, target_type, size))
    shapes = {label.shape: file for label, file in zip(resized, labels, strict=True) if label is not None}
    if len(shapes) != 1:
        counts = " and ".join(f"{file} has {shape[-1]}" for shape, file in shapes.items())
        raise JaxTransferError(
            f"Dense labels must have the same number of outputs, but {counts}."
            if shapes
            else f"None of the images, such as {images[0]}, has a dense label."
        )
    [shape] = shapes
    missing = np.full(shape, -1, np.int32) if target_type == "dense_classes" else np.full(shape, np.nan, np.float32)
    return np.stack([missing if label is None else label for label in resized]), hashes


def _read(file: Path, content: bytes, image: Path, target_type: TargetType, size: int) -> np.ndarray:
    values = _values(file, content, _upright_shape(image), image)
    integers = values.dtype.kind in "biu"
    if target_type == "dense_classes":
        if not integers or values.ndim != 2:
            raise _unfit(file, values, target_type)
        return resize_classes(values[None].astype(np.int64), size)[0]
    if not (integers or values.dtype.kind == "f") or values.ndim not in (2, 3):
        raise _unfit(file, values, target_type)
    with np.errstate(over="ignore"):
        numbers = values.reshape(*values.shape[:2], -1).astype(np.float32)
    if np.isinf(numbers).any():
        raise JaxTransferError(f"{file} holds infinite numbers; NaN stands for a missing label.")
    return resize_numbers(numbers[None], size)[0]


def _values(file: Path, content: bytes, shape: tuple[int, int], image: Path) -> np.ndarray:
    """Returns what a file holds, after a check that it has the height and width of the image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of harmless things
            if file.suffix == ".npy":
                values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
                found = values.shape[:2]
            else:
                with Image.open(io.BytesIO(content), formats=_FORMATS) as label:
                    found = (label.height, label.width)
                    values = np.asarray(label) if found == shape else np.empty(0)
    except Exception as error:  # Decoders of damaged files raise nearly anything.
        raise JaxTransferError(
            f"{file} cannot be used as a dense label; it must be a .npy file, a PNG or a TIFF image ({error})."
        ) from error
    if found != shape:
        raise JaxTransferError(
            f"{file} is {'x'.join(map(str, found))}, but its image {image} is {shape[0]}x{shape[1]}; height and width "
            "must be equal."
        )
    return values


def _upright_shape(image: Path) -> tuple[int, int]:
    """Returns height and width of an image that has been decoded before, turned upright as it was then."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(image) as opened:
            sideways = opened.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            return (opened.width, opened.height) if sideways else (opened.height, opened.width)


def _unfit(file: Path, values: np.ndarray, target_type: TargetType) -> JaxTransferError:
    shape = "x".join(map(str, values.shape))
    return JaxTransferError(
        f"{file} holds {values.dtype} {shape}; the target {target_type!r} needs {_NEEDED[target_type]}."
    )
