"""Writes the outputs of passes from the devices to the store."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxtransfer.devices import is_writer
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.passes import Layout
from jaxtransfer.points.store import Points

# All images of a device make one chunk of a point, or those of one step, or each image: as many as are not larger.
_MAX_CHUNK_BYTES = 16 * 2**20


class Writer:
    """Writes the points that the devices of this process compute."""

    def __init__(self, points: Points, names: Sequence[str], layout: Layout, outputs: Mapping[str, Any]) -> None:
        """Plans the chunks; nothing is written yet.

        Args:
            points: The store.
            names: Names of the networks on the rows of the mesh.
            layout: Which device computes which images.
            outputs: `jax.ShapeDtypeStruct` of each output of a pass, by kind.
        """
        self._points, self._names, self._layout = points, names, layout
        self._shapes = {kind: output.shape[2:] for kind, output in outputs.items()}
        # A chunk holds images of one device: no two processes write the same.
        most = {kind: _MAX_CHUNK_BYTES // max(1, 4 * math.prod(shape)) for kind, shape in self._shapes.items()}
        sizes = layout.share, layout.batch, 1
        self._chunks = {kind: next((n for n in sizes if n <= most[kind]), 1) for kind in self._shapes}
        self._held: dict[tuple[str, str, int], list[Float[np.ndarray, "images ..."]]] = {}
        self._pending: list[Any] = []
        self._error: OSError | JaxTransferError | None = None

    def create(self) -> None:
        """Creates empty points for the rows of the mesh that this process writes."""
        for row, name in enumerate(self._names):
            if is_writer(self._layout.mesh, row):
                for kind, shape in self._shapes.items():
                    self._points.create(name, kind, (self._layout.images, *shape), self._chunks[kind])

    def take(self, step: int, outputs: Mapping[str, Float[Array, "networks images ..."]]) -> None:
        """Writes a step's outputs on the devices of this process, or holds them until a chunk is full.

        An error is kept for `close`, where all processes learn of it.
        """
        layout = self._layout
        try:
            self._points.wait(self._pending)
            self._pending.clear()
            for kind, array in outputs.items():
                for shard in array.addressable_shards:
                    row, column = shard.index[0].start or 0, (shard.index[1].start or 0) // layout.batch
                    first = layout.first(column, step)
                    if self._error is not None or row >= len(self._names) or first >= layout.images:
                        continue
                    values = jax.device_get(shard.data)[0][: layout.images - first]
                    if self._chunks[kind] == layout.share:
                        self._held.setdefault((self._names[row], kind, column), []).append(values)
                    else:
                        self._write(self._names[row], kind, first, values)
        except (OSError, JaxTransferError) as error:
            self._error = error

    def close(self) -> None:
        """Writes what is held, and waits until everything is written."""
        if self._error is not None:
            raise self._error
        for (name, kind, column), values in self._held.items():
            self._write(name, kind, self._layout.first(column, 0), np.concatenate(values))
        self._points.wait(self._pending)

    def _write(self, name: str, kind: str, first: int, values: Float[np.ndarray, "images ..."]) -> None:
        self._pending.append(self._points.open(name, kind).write(first, values))
