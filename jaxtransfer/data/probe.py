"""Decodes a folder of images of any format safely into one array of probe images."""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxtransfer.defaults import PROBE_SIZE
from jaxtransfer.devices import check_memory
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pixels import centred_crop

# Formats that Pillow decodes itself; others run programs (EPS) or hold vector graphics.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_THREADS = min(os.cpu_count() or 1, 8)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """Holds the probe images of a folder.

    Attributes:
        images: RGB values 0 to 255.
        names: Path of every image relative to the folder, separated by `/`.
        sha256: SHA-256 over the content hashes and names of the images, in order.
        skipped: Name and reason of every file that could not be used.
    """

    images: UInt8[np.ndarray, "images size size 3"]
    names: tuple[str, ...]
    sha256: str
    skipped: tuple[tuple[str, str], ...]


def load_probe(folder: str | Path, *, size: int = PROBE_SIZE, limit: int | None = None, strict: bool = False) -> Probe:
    """Reads the images in a folder and the folders below it, in the order of their names.

    Every image is turned upright by its EXIF orientation, cropped to its largest centred square and resized
    bilinearly with anti-aliasing. Greyscale is repeated over the channels, transparency is laid on white, 16
    bits are scaled to 8, and of an animation the first frame is used. Floating-point images must lie in [0, 1].
    Files of equal content all count. Hidden files and folders are ignored.

    Args:
        folder: The folder of images.
        size: Height and width of the result in pixels.
        limit: Most images to read, from the start; files that cannot be decoded do not count. None: all.
        strict: Whether a file that cannot be used is an error; otherwise it is listed in `Probe.skipped`.

    Returns:
        The images, their names, a hash over both, and the skipped files.

    Raises:
        JaxTransferError: `folder` is not a folder or holds no image that can be decoded, `limit` or `size`
            is smaller than 1, or (with `strict`) a file cannot be used.

    Examples:
        >>> import pathlib
        >>> from PIL import Image
        >>> folder = pathlib.Path("photos")
        >>> folder.mkdir()
        >>> for colour in ("red", "lime"):
        ...     Image.new("RGB", (640, 480), colour).save(folder / f"{colour}.png")
        >>> probe = jt.load_probe(folder, size=64)
        >>> probe.names, probe.images.shape
        (('lime.png', 'red.png'), (2, 64, 64, 3))
    """
    folder = Path(folder)
    if limit is not None and limit < 1:
        raise JaxTransferError(f"The limit on the number of probe images must be 1 or more, not {limit}.")
    if size < 1:
        raise JaxTransferError(f"The size of probe images must be 1 pixel or more, not {size}.")
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise JaxTransferError(f"{folder} {problem}; name a folder of probe images.")
    files = files_below(folder)
    if not files:
        raise JaxTransferError(f"The folder {folder} holds no files; put probe images into it.")

    check_images(min(len(files), limit or len(files)), size)
    images = np.empty((min(len(files), limit or len(files)), size, size, 3), np.uint8)
    names, skipped, digest = [], [], hashlib.sha256()
    with decoding(folder, files, size) as decoded_files:
        for name, decoded in decoded_files:
            if not isinstance(decoded, str):
                images[len(names)], content_hash = decoded
                digest.update(f"{content_hash}  {name}\n".encode())
                names.append(name)
            elif strict:
                raise JaxTransferError(f"{folder / name} cannot be used as a probe image: {decoded}.")
            else:
                skipped.append((name, decoded))
            if len(names) == limit:
                break
    if not names:
        name, reason = skipped[0]
        raise JaxTransferError(
            f"None of the {len(files)} files in {folder} can be used as a probe image; of {name}: {reason}."
        )
    return Probe(images[: len(names)], tuple(names), digest.hexdigest(), tuple(skipped))


def read_images(
    folder: str | Path, names: Sequence[str], *, size: int = PROBE_SIZE
) -> UInt8[np.ndarray, "images size size 3"]:
    """Reads the named images of a folder as `load_probe` does.

    Args:
        folder: The folder of images.
        names: Paths relative to the folder, as in `Probe.names`; at least one.
        size: Height and width of the result in pixels.

    Raises:
        JaxTransferError: An image does not exist or cannot be used.
    """
    folder = Path(folder)
    images = []
    with decoding(folder, [Path(name) for name in names], size) as decoded_files:
        for name, decoded in decoded_files:
            if isinstance(decoded, str):
                raise JaxTransferError(f"{folder / name} cannot be used as a probe image: {decoded}.")
            images.append(decoded[0])
    return np.stack(images)


def check_images(count: int, size: int) -> None:
    """Checks that memory holds some images, RGB, of a height and width.

    Raises:
        JaxTransferError: It does not.
    """
    advice = "ask for a smaller size or fewer images"
    check_memory(3 * count * size**2, f"{count:,} images of {size} x {size} pixels", advice)


def files_below(folder: Path) -> list[Path]:
    """Lists the files in `folder` and below that are not hidden, as sorted relative paths; links are followed."""
    visited = set()  # a link may lead back to a folder above it
    paths = []
    for current, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(current).relative_to(folder)
        paths += [relative / name for name in files if not name.startswith(".")]
    return sorted(paths, key=Path.as_posix)


def printable(path: Path) -> str:
    """Returns a path as text that JSON and terminals can hold; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


@contextmanager
def decoding(
    folder: Path, files: Sequence[Path], size: int
) -> Iterator[Iterator[tuple[str, tuple[np.ndarray, str] | str]]]:
    """Opens an iterator over the files of a folder that decodes them in several threads, in order.

    It yields the name of a file, and either its image [size, size, 3] and the SHA-256 of its content, or the reason
    why it cannot be used.
    """
    Image.init()
    # Pillow warns of harmless things and of images that are too large; filters must be set outside the threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield _decode_all(pool, folder, files, size)


def _decode_all(
    pool: ThreadPoolExecutor, folder: Path, files: Sequence[Path], size: int
) -> Iterator[tuple[str, tuple[np.ndarray, str] | str]]:
    # In portions, so that a limit or an interrupt need not wait for the whole folder.
    for start in range(0, len(files), 8 * _THREADS):
        portion = files[start : start + 8 * _THREADS]
        decoded = pool.map(partial(_decode, size=size), [folder / file for file in portion])
        yield from zip(map(printable, portion), decoded, strict=True)


def _decode(path: Path, size: int) -> tuple[np.ndarray, str] | str:
    """Returns the image [size, size, 3] and the SHA-256 of its file, or the reason why it cannot be used."""
    if not path.is_file():  # opening a pipe would wait for ever
        return "it is not a regular file"
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with path.open("rb") as file, Image.open(file, formats=formats) as image:
            pixels = np.asarray(_square(image, size))
            file.seek(0)
            return pixels, hashlib.file_digest(file, "sha256").hexdigest()
    except UnidentifiedImageError:
        return "it is not an image of a known format"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    except _UnknownRange as error:
        return str(error)
    except OSError as error:
        return error.strerror or f"it is damaged ({error})"
    except Exception as error:  # Decoders of damaged files raise nearly anything.
        return f"it is damaged ({error})"


class _UnknownRange(Exception):
    """Pixel values outside the range in which their brightness is known."""


def _square(image: Image.Image, size: int) -> Image.Image:
    """Returns the upright, centred square of `image` as RGB, `size` pixels wide."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    top, left, side, _ = centred_crop(image.height, image.width, (1, 1))
    image = image.crop((left, top, left + side, top + side))
    return _rgb(image).resize((size, size), Image.Resampling.BILINEAR)


def _rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB with 8 bits per channel, transparency laid on white."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Scales pixel values 0 to 65535, or 0 to 1 in floating point, to 0 to 255."""
    top = 1 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= top):  # also true for NaN
        raise _UnknownRange(f"its values run from {values.min()} to {values.max()}, not within 0 to {top}")
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
