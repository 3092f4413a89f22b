"""Attribution maps of a few probe images."""

import base64
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from jaxtransfer import figures
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.data.probe import read_images
from jaxtransfer.defaults import ATTRIBUTIONS
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import Point, Points
from jaxtransfer.report.drawings import MAX_DRAWN, Drawing, pages
from jaxtransfer.runs.record import Record

_PHOTOS = 6
_LARGE, _SMALL = 128, 64  # height and width of a map in pixels
_MAX_LARGE_STRIPS = 80  # rows of maps; where there are more, maps are small


class Gallery:
    """Attribution maps of up to six probe images, or the reason why there are none.

    Attributes:
        maps: For each method, the maps of each network, scaled to [-1, 1]; empty where none can be shown.
        photos: The probe images in the size of the maps; None where they cannot be read.
        names: The names of the probe images.
        remarks: Sentences that say what is not shown, and why.
    """

    def __init__(self, directory: Path, record: Record, affinity: Affinity) -> None:
        self.maps: dict[str, dict[str, Float[np.ndarray, "photos size size"]]] = {}
        self.photos: UInt8[np.ndarray, "photos size size 3"] | None = None
        self.names: list[str] = []
        self.remarks: list[str] = []
        # A curve has no single map; its last one is that of integrated gradients.
        methods = [method for method in affinity.methods if method in ATTRIBUTIONS and method != "modelgif"]
        probe = record.get("probe")
        if not methods or probe is None:
            self.remarks.append("The methods of this run make no attribution maps.")
            return
        if record["settings"].get("sketch") is not None:
            self.remarks.append("This run kept only sketches of its attribution maps, so none are shown.")
            return
        if len(affinity.names) > MAX_DRAWN:
            self.remarks.append(f"Attribution maps are shown of up to {MAX_DRAWN} networks; this run has more.")
            return
        chosen = np.unique(np.linspace(0, len(probe["images"]) - 1, _PHOTOS).round().astype(int))
        self.names = [probe["images"][i] for i in chosen]
        large = probe["size"][0] > _SMALL and len(methods) * len(affinity.names) <= _MAX_LARGE_STRIPS
        size = _LARGE if large else _SMALL
        address = record.get("points", "points")
        points = Points(address if "://" in address else directory / address)
        try:
            self.maps = {
                method: {name: _shown_maps(points.open(name, method), chosen, size) for name in affinity.names}
                for method in methods
            }
        except (OSError, ValueError, IndexError):
            self.remarks.append("The attribution maps of this run are no longer stored with it, so none are shown.")
            return
        try:
            photos = read_images(probe["folder"], self.names, size=probe["size"][0])
        except JaxTransferError:
            self.remarks.append(
                "The probe photos are no longer in the folder that the run read, so they are not shown."
            )
        else:
            self.photos = np.stack([np.asarray(Image.fromarray(photo).resize((size, size))) for photo in photos])

    def drawings(self) -> Iterator[Drawing]:
        """Returns the figures of every method."""
        for method, maps in self.maps.items():
            for names, suffix, page in pages(list(maps)):
                shown = {name: maps[name] for name in names}
                title = f"Attribution maps by {method}{page}"
                drawing = functools.partial(figures.gallery, shown, self.photos, title=title)
                yield f"gallery_{method}{suffix}", drawing

    def data(self) -> dict[str, Any] | None:
        """Returns photos and maps for the page's script; the maps of a network and method are one image, a strip."""
        if not self.maps:
            return None
        photos = None
        if self.photos is not None:
            photos = _data_uri(Image.fromarray(np.concatenate(list(self.photos), axis=1)), "JPEG")
        return {
            "photos": photos,
            "names": self.names,
            "size": next(iter(next(iter(self.maps.values())).values())).shape[1],
            "strips": {
                method: [_data_uri(_strip(row), "PNG") for row in maps.values()] for method, maps in self.maps.items()
            },
        }


def _shown_maps(point: Point, images: Int[np.ndarray, " photos"], size: int) -> Float[np.ndarray, "photos size size"]:
    """Returns maps as they are shown: averaged to `size` x `size` pixels, then scaled."""
    maps = []
    for image in images:
        values = point[image]
        finite = Image.fromarray(np.where(np.isfinite(values), values, 0))
        averaged = finite.resize((size, size), Image.Resampling.BOX)
        maps.append(figures.scaled_map(np.asarray(averaged)).astype(np.float32))
    return np.stack(maps)


def _strip(maps: Float[np.ndarray, "photos size size"]) -> Image.Image:
    """Returns maps side by side in 33 colours, which makes their file half as large as all colours would."""
    steps = Image.fromarray(np.concatenate([np.rint(16 * values + 16).astype(np.uint8) for values in maps], axis=1))
    steps.putpalette(figures.signed_colours(np.linspace(-1, 1, 33)).tobytes())
    return steps


def _data_uri(image: Image.Image, file_format: str) -> str:
    """Returns an image as a data URI."""
    stream = io.BytesIO()
    image.save(stream, file_format, **({"quality": 88} if file_format == "JPEG" else {"optimize": True}))
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
