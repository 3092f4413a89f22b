"""Points on disk: the maps one network makes of all probe images, one file for each attribution method.

A file appears whole or not at all, and beside it stands the key it was computed for; a point with another key (other
weights, other images) is not found.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

Key = dict[str, Any]


class Points:
    """The points below one directory: `<network>/<method>/maps.npy`, float32 [images, height, width]."""

    def __init__(self, directory: Path) -> None:
        """Opens (and makes) a directory; remains of interrupted writing are removed."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for remains in directory.glob(".writing-*"):
            shutil.rmtree(remains, ignore_errors=True)

    def missing(self, network: str, keys: dict[str, Key]) -> tuple[str, ...]:
        """Those methods whose point is not there, or there for another key."""
        return tuple(method for method, key in keys.items() if self._key(network, method) != key)

    @contextmanager
    def writing(
        self, network: str, keys: dict[str, Key], shape: tuple[int, int, int]
    ) -> Iterator[dict[str, "ArrayWriter"]]:
        """Gives one writer for each method; the points appear when the block ends without an error."""
        beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.directory))
        try:
            writers = {}
            for method, key in keys.items():
                (beside / method).mkdir()
                (beside / method / "key.json").write_text(json.dumps(key, indent=1))
                writers[method] = ArrayWriter(beside / method / "maps.npy", shape)
            try:
                yield writers
            finally:
                for writer in writers.values():
                    writer.close()
            (self.directory / network).mkdir(exist_ok=True)
            for method in keys:
                target = self.directory / network / method
                shutil.rmtree(target, ignore_errors=True)
                (beside / method).rename(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def read(self, network: str, method: str, start: int, stop: int) -> Float[np.ndarray, "images height width"]:
        """The maps of images `start` to `stop`."""
        return read_rows(self.directory / network / method / "maps.npy", start, stop)

    def shape(self, network: str, method: str) -> tuple[int, int, int]:
        """Images, height and width of a point."""
        images, height, width = np.load(self.directory / network / method / "maps.npy", mmap_mode="r").shape
        return images, height, width

    def _key(self, network: str, method: str) -> Key | None:
        try:
            return json.loads((self.directory / network / method / "key.json").read_text())
        except (OSError, ValueError):
            return None


class ArrayWriter:
    """Writes a float32 array to a `.npy` file a few rows at a time, so that memory holds only those."""

    def __init__(self, file: Path, shape: tuple[int, ...]) -> None:
        """Opens the file for an array of `shape`."""
        self._file: BinaryIO = file.open("wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, rows: Float[np.ndarray, "rows ..."]) -> None:
        """Appends rows."""
        self._file.write(np.ascontiguousarray(rows, dtype="<f4").data)

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def read_rows(file: Path, start: int, stop: int) -> Float[np.ndarray, "rows ..."]:
    """Reads some rows of a `.npy` file into memory."""
    return np.array(np.load(file, mmap_mode="r")[start:stop])


def chunks(total: int, size: int) -> Iterable[tuple[int, int]]:
    """(start, stop) of consecutive ranges of at most `size`."""
    return ((start, min(start + size, total)) for start in range(0, total, size))
