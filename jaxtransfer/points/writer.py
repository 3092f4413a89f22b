"""From devices to disk: what passes make becomes points."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxtransfer.devices import is_writer
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.passes import Layout
from jaxtransfer.points.store import Points

# What a device makes of all its images is one chunk of a point unless it is larger.
_CHUNK_BYTES = 16 * 2**20


class Writer:
    """Takes what the devices of this process make and writes it."""

    def __init__(self, points: Points, names: Sequence[str], layout: Layout, made: Mapping[str, Any]) -> None:
        """Makes nothing yet.

        Args:
            points: Where to.
            names: Of the networks on the rows of the mesh.
            layout: Which image is where.
            made: By kind, what has the shape of what a pass makes.
        """
        self._points, self._names, self._layout = points, names, layout
        self._shapes = {kind: each.shape[2:] for kind, each in made.items()}
        # Chunks are what a device makes of all its images, or in one step: no two processes write one.
        share = {kind: 4 * layout.share * int(np.prod(shape)) for kind, shape in self._shapes.items()}
        self._chunks = {kind: layout.share if share[kind] <= _CHUNK_BYTES else layout.batch for kind in self._shapes}
        self._held: dict[tuple[str, str, int], list[Float[np.ndarray, "images ..."]]] = {}
        self._begun: list[Any] = []
        self._problem: OSError | JaxTransferError | None = None

    def create(self) -> None:
        """Makes room for the points of the rows this process answers for."""
        for row, name in enumerate(self._names):
            if is_writer(self._layout.mesh, row):
                for kind, shape in self._shapes.items():
                    self._points.create(name, kind, (self._layout.images, *shape), self._chunks[kind])

    def take(self, step: int, made: Mapping[str, Float[Array, "networks images ..."]]) -> None:
        """Writes, or holds until a chunk is full, what a step made on the devices of this process.

        What goes wrong is kept for `close`, where all processes hear of it.
        """
        layout = self._layout
        try:
            self._points.wait(self._begun)
            self._begun.clear()
            for kind, array in made.items():
                for shard in array.addressable_shards:
                    row, column = shard.index[0].start or 0, (shard.index[1].start or 0) // layout.batch
                    first = layout.first(column, step)
                    if self._problem is not None or row >= len(self._names) or first >= layout.images:
                        continue
                    values = jax.device_get(shard.data)[0][: layout.images - first]
                    if self._chunks[kind] == layout.share:
                        self._held.setdefault((self._names[row], kind, column), []).append(values)
                    else:
                        self._write(self._names[row], kind, first, values)
        except (OSError, JaxTransferError) as problem:
            self._problem = problem

    def close(self) -> None:
        """Writes what is held, and waits until all is written."""
        if self._problem is not None:
            raise self._problem
        for (name, kind, column), values in self._held.items():
            self._write(name, kind, self._layout.first(column, 0), np.concatenate(values))
        self._points.wait(self._begun)

    def _write(self, name: str, kind: str, first: int, values: Float[np.ndarray, "images ..."]) -> None:
        self._begun.append(self._points.open(name, kind).write(first, values))
