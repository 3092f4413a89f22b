"""The store of points: for each network and kind, one array of the maps or representations of all probe images.

Arrays are Zarr (version 3) and are written by TensorStore, to a directory or an object store alike. The key of a
finished array is stored beside it, and written last: a point without a key, or with a different one (other weights,
other images), counts as missing. Every chunk ends with its CRC-32C, and the SHA-256 of the
description of an array, `zarr.json`, lies beside it; both are checked when a point is read, and points of earlier
versions have neither. A point that turns out to be damaged loses its key.
"""

import contextlib
import hashlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import numpy as np
import tensorstore as ts
from jaxtyping import Float
from pydantic import AfterValidator, Field

from jaxtransfer.attribution.diagnostics import FAULTS
from jaxtransfer.errors import JaxTransferError, operating_system_error
from jaxtransfer.files import JsonObject, parse_json, read_arrays

Key = dict[str, Any]

# Memory for chunks that were written or read and may be needed again.
CACHE_BYTES = 128 * 2**20
# How TensorStore's errors for arrays and chunks begin that are missing, or do not have their checksum or format.
_MISSING = "NOT_FOUND"
_DAMAGE = (_MISSING, "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE")
_REACH_SECONDS = 20  # to wait for an object store
_DESCRIPTION, _DESCRIPTION_HASH = "zarr.json", "zarr.json.sha256"
_FAULTS = "faults"  # an entry of the file of a key that is not part of the key; older files have none
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


def _known_fault(fault: str) -> str:
    if fault.partition(": ")[0] not in FAULTS:
        raise ValueError(f"should be one of {', '.join(FAULTS)}, not {fault!r}")
    return fault


Fault = Annotated[str, AfterValidator(_known_fault)]
"""A code of `FAULTS`, perhaps with a place, as files hold it."""


_T = TypeVar("_T")
_LOG = logging.getLogger("jaxtransfer")


class DamagedPointError(JaxTransferError):
    """Reports that a point cannot be used: an array or a chunk of it is missing or altered.

    Attributes:
        network: The network of the point.
        kind: Its kind.
    """

    def __init__(self, network: str, kind: str, place: str, reason: str) -> None:
        """Takes what the point is, where it is, and what is wrong with it."""
        self.network, self.kind = network, kind
        self.problem = f"The point {network}/{kind} in {place} is damaged or incomplete ({reason})"
        super().__init__(f"{self.problem}; start the same command again, which computes it again.")


def recomputing_damaged(action: Callable[[], _T]) -> _T:
    """Does work that computes missing points and reads them, and does it again where a point is damaged.

    Several processes do not learn of damage at the same time; they end, and compute the point at the next start.

    Raises:
        DamagedPointError: A point is damaged again, or there are several processes.
    """
    repaired = set()
    while True:
        try:
            return action()
        except DamagedPointError as error:
            if (error.network, error.kind) in repaired or jax.process_count() > 1:
                raise
            repaired.add((error.network, error.kind))
            _LOG.warning("%s; it is computed again.", error.problem)


class _StoredKey(JsonObject):
    faults: list[Fault] = Field([])


class Points:
    """Stores points in a directory or an object store, as `<network>/<kind>/`, float32.

    A kind is an attribution method, [images, height, width], a sketch of its maps, [images, size], or "representation",
    [images, height, width, units] where it is one grid, [images, tokens, units] where it has tokens, else [images,
    units].
    """

    def __init__(self, place: str | Path) -> None:
        """Takes a directory, or the URL of a folder in an object store (`gs://`, `s3://`); nothing is created yet."""
        self.place = str(place)
        url = self.place if "://" in self.place else Path(place).absolute().as_uri()
        self._url = f"{url.rstrip('/')}/"
        self._is_reachable = "://" not in self.place

    def missing(self, network: str, keys: Mapping[str, Key]) -> tuple[str, ...]:
        """Returns the kinds of points that are not stored, or stored with a different key."""
        return tuple(kind for kind, key in keys.items() if self._key_and_faults(network, kind)[0] != key)

    def faults(self, network: str, kinds: Iterable[str]) -> tuple[str, ...]:
        """Returns the faults that were found when finished points were computed, see `finish`."""
        return tuple(dict.fromkeys(fault for kind in kinds for fault in self._key_and_faults(network, kind)[1]))

    def create(self, network: str, kind: str, shape: Sequence[int], chunk: int) -> None:
        """Creates an array in chunks of `chunk` images, and deletes the one that was there."""
        grid = {"name": "regular", "configuration": {"chunk_shape": [chunk, *shape[1:]]}}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        metadata = {"shape": list(shape), "data_type": "float32", "chunk_grid": grid, "codecs": codecs}
        with self._translated_errors():
            self._folder(network, kind).delete_range(ts.KvStore.KeyRange()).result()
            self._array(network, kind, {"metadata": metadata}, create=True)

    def open(self, network: str, kind: str) -> "Point":
        """Opens a point; its values are read when it is indexed.

        Raises:
            DamagedPointError: There is no array, or no valid one.
            OSError: It cannot be read.
        """
        with self._noticing_damage(network, kind):
            stored = self._folder(network, kind).read(_DESCRIPTION_HASH).result().value
            if stored and stored != self._description_hash(network, kind):
                raise ValueError(f"DATA_LOSS: {_DESCRIPTION} was altered")
            return Point(self, network, kind, self._array(network, kind, {}, open=True))

    def finish(self, network: str, keys: Mapping[str, Key], faults: Mapping[str, Sequence[str]]) -> None:
        """Marks points as finished: writes their keys and their faults (codes of `FAULTS`)."""
        with self._translated_errors():
            contents = {
                kind: json.dumps({**key, _FAULTS: list(faults[kind])}, indent=1).encode() for kind, key in keys.items()
            }
            hashes = {kind: self._description_hash(network, kind) for kind in keys}
            self.wait([self._folder(network, kind).write(_DESCRIPTION_HASH, text) for kind, text in hashes.items()])
            self.wait([self._folder(network, kind).write("key.json", text) for kind, text in contents.items()])

    def wait(self, pending: "Iterable[ts.Future | ts.WriteFutures | Reading]") -> list[Any]:
        """Waits for reads and writes that were begun, and returns their results.

        Raises:
            OSError: The disk is full, for example.
            DamagedPointError: A chunk is missing or altered.
        """
        with self._translated_errors():
            return [future.result() for future in pending]

    def write_arrays(self, folder: str, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes an `.npz` file atomically."""
        content = io.BytesIO()
        np.savez(content, **arrays)
        with self._translated_errors():
            self._folder(folder).write(f"{name}.npz", content.getvalue()).result()

    def array_names(self, folder: str) -> set[str]:
        """Returns the names of the files that `write_arrays` wrote in a folder."""
        with self._translated_errors():
            files = self._folder(folder).list().result()
        return {file.decode().removesuffix(".npz") for file in files if file.endswith(b".npz")}

    def read_arrays(self, folder: str, name: str) -> dict[str, np.ndarray] | None:
        """Reads an `.npz` file; returns None where it is missing or damaged."""
        with self._translated_errors():
            content = self._folder(folder).read(f"{name}.npz").result().value
        try:
            return read_arrays(io.BytesIO(content)) if content else None
        except ValueError:
            return None

    def _key_and_faults(self, network: str, kind: str) -> tuple[Key | None, list[str]]:
        """The key of a finished point, or None, and its faults."""
        with self._translated_errors():
            content = self._folder(network, kind).read("key.json").result().value
        try:
            key = parse_json(content, _StoredKey)
        except ValueError:  # as if there were no points, so that they are computed again
            return None, []
        return key, key.pop(_FAULTS, [])

    def _description_hash(self, network: str, kind: str) -> bytes:
        """Returns the SHA-256 of the description of an array; values of another shape or type have another one."""
        content = self._folder(network, kind).read(_DESCRIPTION).result().value
        return hashlib.sha256(content).hexdigest().encode()

    def _check_reachable(self) -> None:
        """Raises an error where an object store does not answer; TensorStore alone would try for minutes."""
        if self._is_reachable:
            return
        end = time.monotonic() + _REACH_SECONDS
        try:
            store = ts.KvStore.open(self._url, context=_CONTEXT).result(timeout=_REACH_SECONDS)
            store.read("key.json").result(timeout=max(0, end - time.monotonic()))
        except TimeoutError as error:
            raise JaxTransferError(
                f"The place of the points, {self.place}, does not answer within {_REACH_SECONDS} s: see whether it "
                "exists, whether this machine may read and write it, and whether it is online."
            ) from error
        self._is_reachable = True

    def _folder(self, *names: str) -> ts.KvStore:
        self._check_reachable()
        return ts.KvStore.open(f"{self._url}{'/'.join(names)}/", context=_CONTEXT).result()

    def _array(self, network: str, kind: str, spec: dict[str, Any], **options: Any) -> ts.TensorStore:
        self._check_reachable()
        # A missing chunk is an error instead of zeros, so chunks of zeros are written too.
        strict = {"fill_missing_data_reads": False, "store_data_equal_to_fill_value": True}
        spec = {"driver": "zarr3", "kvstore": f"{self._url}{network}/{kind}/", **strict, **spec}
        return ts.open(spec, context=_CONTEXT, dtype=ts.float32, **options).result()

    @contextlib.contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raises TensorStore's errors as `OSError`, or as one sentence."""
        try:
            yield
        except (ValueError, OSError) as error:
            if isinstance(error, JaxTransferError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            if system := operating_system_error(error, self.place):
                raise system from error
            raise JaxTransferError(f"The points in {self.place} cannot be used: {str(error).split(' [')[0]}") from error

    @contextlib.contextmanager
    def _noticing_damage(self, network: str, kind: str) -> Iterator[None]:
        """Raises errors of an array that is missing or altered as a `DamagedPointError`; the point loses its key."""
        with self._translated_errors():
            try:
                yield
            except ValueError as error:
                if not str(error).startswith(_DAMAGE) or operating_system_error(error, self.place):
                    raise
                with contextlib.suppress(ValueError, OSError):  # a report may read what it cannot write
                    self._folder(network, kind).write("key.json", None).result()
                missing = str(error).startswith(_MISSING)
                reason = "a file is missing" if missing else "a file does not have its checksum or form"
                raise DamagedPointError(network, kind, self.place, reason) from error


@contextlib.contextmanager
def given_or_temporary(directory: str | Path | None, what: str) -> Iterator[str | Path]:
    """Yields the directory for points, or a temporary one if none is given.

    Raises:
        JaxTransferError: None is given, and several processes need one; `what` says for what.
    """
    if directory is not None:
        yield directory
        return
    if jax.process_count() > 1:
        raise JaxTransferError(f"Several processes need a directory that all of them see, for the {what}.")
    with tempfile.TemporaryDirectory(prefix="jaxtransfer-") as temporary:
        yield temporary


class Point:
    """Reads and writes one array of points, [images, ...]; indexing it gives NumPy arrays."""

    def __init__(self, points: Points, network: str, kind: str, array: ts.TensorStore) -> None:
        """Takes an open array; `Points.open` calls it."""
        self._points, self._names, self._array = points, (network, kind), array
        self.shape = tuple(array.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: Any) -> Float[np.ndarray, "..."]:
        return self._points.wait([self.read(images)])[0]

    def read(self, images: Any) -> "Reading":
        """Begins to read images; `Points.wait` returns their values."""
        return Reading(self._array[images].read(), self._points._noticing_damage(*self._names))

    def write(self, first: int, rows: Float[np.ndarray, "rows ..."]) -> ts.WriteFutures:
        """Begins to write the rows of images from `first` on; `Points.wait` completes it."""
        return self._array[first : first + len(rows)].write(rows)


class Reading(NamedTuple):
    """Holds values that are being read."""

    future: ts.Future
    noticing_damage: contextlib.AbstractContextManager[None]

    def result(self) -> Float[np.ndarray, "..."]:
        """Waits for the values; may be called once.

        Raises:
            DamagedPointError: A chunk is missing or altered.
        """
        with self.noticing_damage:
            return self.future.result()


def chunks(total: int, size: int) -> Iterable[tuple[int, int]]:
    """Splits the range from 0 to `total` into consecutive ranges (start, stop) of at most `size`."""
    return ((start, min(start + size, total)) for start in range(0, total, size))
