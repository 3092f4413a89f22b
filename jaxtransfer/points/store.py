"""Points where they are kept: what one network makes of all probe images, one array for each kind.

Arrays are Zarr (version 3) and go through TensorStore, so that a directory and an object store look the same. Beside a
finished array stands the key it was computed for, written last: a point without one, or with another (other weights,
other images), is not there.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays

Key = dict[str, Any]

# Chunks that were written or read and may be wanted again.
CACHE_BYTES = 128 * 2**20
_FAULTS = "faults"  # in the file of a key, beside what belongs to the key; older files have none
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


class Points:
    """The points below one place: `<network>/<kind>/`, float32.

    A kind is an attribution method, [images, height, width], a sketch of its maps, [images, size], or "representation",
    [images, units].
    """

    def __init__(self, place: str | Path) -> None:
        """Opens a directory, or a folder of an object store by its URL (`gs://`, `s3://`); nothing is made yet."""
        self.place = str(place)
        url = self.place if "://" in self.place else Path(place).absolute().as_uri()
        self._url = f"{url.rstrip('/')}/"

    def missing(self, network: str, keys: Mapping[str, Key]) -> tuple[str, ...]:
        """Those kinds whose point is not there, or there for another key."""
        return tuple(kind for kind, key in keys.items() if self._noted(network, kind)[0] != key)

    def faults(self, network: str, kinds: Iterable[str]) -> tuple[str, ...]:
        """The faults that were found when finished points were made, see `finish`."""
        return tuple(dict.fromkeys(fault for kind in kinds for fault in self._noted(network, kind)[1]))

    def create(self, network: str, kind: str, shape: Sequence[int], chunk: int) -> None:
        """Makes room for an array that is written `chunk` images at a time; what was there is gone."""
        grid = {"name": "regular", "configuration": {"chunk_shape": [chunk, *shape[1:]]}}
        metadata = {"shape": list(shape), "data_type": "float32", "chunk_grid": grid}
        with self._said():
            self._folder(network, kind).delete_range(ts.KvStore.KeyRange()).result()
            self._array(network, kind, {"metadata": metadata}, create=True)

    def open(self, network: str, kind: str) -> "Point":
        """A point, left where it is until it is looked at."""
        with self._said():
            return Point(self, self._array(network, kind, {}, open=True))

    def finish(self, network: str, keys: Mapping[str, Key], faults: Mapping[str, Sequence[str]]) -> None:
        """Says that points are whole, what they were computed for, and (codes of `FAULTS`) what is wrong with them."""
        with self._said():
            contents = {
                kind: json.dumps({**key, _FAULTS: list(faults[kind])}, indent=1).encode() for kind, key in keys.items()
            }
            self.wait([self._folder(network, kind).write("key.json", each) for kind, each in contents.items()])

    def wait(self, begun: Iterable[ts.Future | ts.WriteFutures]) -> list[Any]:
        """The results of what was begun to be read or written.

        Raises:
            OSError: The disk is full, for example.
        """
        with self._said():
            return [each.result() for each in begun]

    def write_arrays(self, folder: str, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes an `.npz` file, whole or not at all."""
        content = io.BytesIO()
        np.savez(content, **arrays)
        with self._said():
            self._folder(folder).write(f"{name}.npz", content.getvalue()).result()

    def array_names(self, folder: str) -> set[str]:
        """The names that `write_arrays` was given in a folder."""
        with self._said():
            files = self._folder(folder).list().result()
        return {file.decode().removesuffix(".npz") for file in files if file.endswith(b".npz")}

    def read_arrays(self, folder: str, name: str) -> dict[str, np.ndarray] | None:
        """Reads an `.npz` file; None where there is none that can be read."""
        with self._said():
            content = self._folder(folder).read(f"{name}.npz").result().value
        try:
            return read_arrays(io.BytesIO(content)) if content else None
        except ValueError:
            return None

    def _noted(self, network: str, kind: str) -> tuple[Key | None, list[str]]:
        """The key of a finished point, None where there is none, and the faults that stand beside it."""
        with self._said():
            content = self._folder(network, kind).read("key.json").result().value
        try:
            key = json.loads(content or b"null")
        except ValueError:
            return None, []
        return key, key.pop(_FAULTS, []) if isinstance(key, dict) else []

    def _folder(self, *names: str) -> ts.KvStore:
        return ts.KvStore.open(f"{self._url}{'/'.join(names)}/", context=_CONTEXT).result()

    def _array(self, network: str, kind: str, spec: dict[str, Any], **how: Any) -> ts.TensorStore:
        # What is missing is an error, not zeros; so zeros are written too.
        strict = {"fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
        spec = {"driver": "zarr3", "kvstore": f"{self._url}{network}/{kind}/", **strict, **spec}
        return ts.open(spec, context=_CONTEXT, **how).result()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """TensorStore's errors as those of the operating system, or as one sentence."""
        try:
            yield
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            text = str(error)
            if code := re.search(r"os_error_code='(\d+)'", text):
                number = int(code[1])
                raise OSError(number, os.strerror(number), self.place) from error
            raise JaxTransferError(f"The points in {self.place} cannot be used: {text.split(' [')[0]}") from error


class Point:
    """One array of points, [images, ...]; what is looked at comes as a NumPy array."""

    def __init__(self, points: Points, array: ts.TensorStore) -> None:
        """Made by `Points.open`."""
        self._points, self._array = points, array
        self.shape = tuple(array.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: Any) -> Float[np.ndarray, "..."]:
        return self._points.wait([self.read(images)])[0]

    def read(self, images: Any) -> ts.Future:
        """The same later: to be given to `Points.wait`."""
        return self._array[images].read()

    def write(self, first: int, rows: Float[np.ndarray, "rows ..."]) -> ts.WriteFutures:
        """Begins to write the rows of images from `first` on: to be given to `Points.wait`."""
        return self._array[first : first + len(rows)].write(rows)


def chunks(total: int, size: int) -> Iterable[tuple[int, int]]:
    """(start, stop) of consecutive ranges of at most `size`."""
    return ((start, min(start + size, total)) for start in range(0, total, size))
