"""Points on disk: what one network makes of all probe images, one file for each kind of map and one of representations.

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
    """The points below one directory: `<network>/<kind>/values.npy`, float32.

    A kind is an attribution method, [images, height, width], or "representation", [images, units].
    """

    def __init__(self, directory: Path) -> None:
        """Opens (and makes) a directory; remains of interrupted writing are removed."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for remains in directory.glob(".writing-*"):
            shutil.rmtree(remains, ignore_errors=True)

    def missing(self, network: str, keys: dict[str, Key]) -> tuple[str, ...]:
        """Those kinds whose point is not there, or there for another key."""
        return tuple(kind for kind, key in keys.items() if self._key(network, kind) != key)

    @contextmanager
    def writing(self, network: str, keys: dict[str, Key], images: int) -> Iterator[dict[str, "ArrayWriter"]]:
        """Gives one writer for each kind; the points appear when the block ends without an error."""
        beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.directory))
        try:
            writers = {}
            for kind, key in keys.items():
                (beside / kind).mkdir()
                (beside / kind / "key.json").write_text(json.dumps(key, indent=1))
                writers[kind] = ArrayWriter(beside / kind / "values.npy", images)
            try:
                yield writers
            finally:
                for writer in writers.values():
                    writer.close()
            (self.directory / network).mkdir(exist_ok=True)
            for kind in keys:
                target = self.directory / network / kind
                shutil.rmtree(target, ignore_errors=True)
                (beside / kind).rename(target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def open(self, network: str, kind: str) -> Float[np.ndarray, "images ..."]:
        """A point, left on disk until it is looked at."""
        return np.load(self.directory / network / kind / "values.npy", mmap_mode="r")

    def _key(self, network: str, kind: str) -> Key | None:
        try:
            return json.loads((self.directory / network / kind / "key.json").read_text())
        except (OSError, ValueError):
            return None


class ArrayWriter:
    """Writes a float32 array to a `.npy` file a few rows at a time, so that memory holds only those."""

    def __init__(self, file: Path, count: int) -> None:
        """Opens the file for an array of `count` rows."""
        self._file: BinaryIO = file.open("wb")
        self._count = count

    def write(self, rows: Float[np.ndarray, "rows ..."]) -> None:
        """Appends rows."""
        if not self._file.tell():
            header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, *rows.shape[1:])}
            np.lib.format.write_array_header_1_0(self._file, header)
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
