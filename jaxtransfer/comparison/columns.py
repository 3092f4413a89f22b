"""Columns of the matrix of linear predictivities: those of one source for all targets.

A column is stored beside the points when it is computed, so that adding a network costs one row and one column. The
sources are divided among the processes.
"""

import hashlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.measure import PREDICTIVITY, pair_indices
from jaxtransfer.comparison.predictivity import FOLDS, MAX_UNITS, RIDGES, Predictivity, folds_of, predictivities
from jaxtransfer.comparison.rows import fingerprint
from jaxtransfer.comparison.statistics import stderr_of_mean
from jaxtransfer.comparison.streaming import finite_images
from jaxtransfer.defaults import LINEAR_PREDICTIVITY
from jaxtransfer.devices import DATA, MODEL, allgather, synchronised
from jaxtransfer.points.store import Key, Points

_FOLDER = f"_columns/{LINEAR_PREDICTIVITY}"


def compare_predictivities(
    points: Points,
    kind: str,
    keys: Mapping[str, Key],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[MethodResult, Bool[np.ndarray, "networks images"]]:
    """Computes the linear predictivity of all pairs of networks; see `predictivity.linear_predictivity`.

    Entries of stored columns are reused where the points still have the same keys, and the same images are usable.
    Every process returns the same result.

    Args:
        points: The store of the representations.
        kind: Kind of the points.
        keys: For each network the key of its point.
        progress: Called with the number of columns done and the number of columns to compute.

    Returns:
        The result for all pairs, and which representations are usable (finite).

    Raises:
        JaxTransferError: As for `linear_predictivity`.
    """
    names = list(keys)
    representations = {name: points.open(name, kind) for name in names}
    usable = finite_images(representations)
    folds = folds_of(np.all(usable, axis=0))
    settings = {
        "folds": FOLDS,
        "ridges": RIDGES.tolist(),
        "max_units": MAX_UNITS,
        "usable": hashlib.sha256(np.all(usable, axis=0).tobytes()).hexdigest(),
    }
    fingerprints = [fingerprint({**key, **settings}) for key in keys.values()]
    columns = _Columns(names, fingerprints, len(folds.sizes))
    stored = points.array_names(_FOLDER)
    for source, name in enumerate(names):
        if name in stored:
            columns.reuse(source, points.read_arrays(_FOLDER, name))
    columns.agree()  # processes may see files at different times
    missing, done = ~columns.known, 0
    part, parts = jax.process_index(), jax.process_count()
    total = -(-int(missing.any(0).sum()) // parts)
    with synchronised():
        for sources, result in predictivities(representations, folds, missing, part=part, parts=parts):
            columns.add(sources, result)
            for source in sources:
                points.write_arrays(_FOLDER, names[source], columns.column(source))
            done += len(sources)
            if progress is not None:
                progress(min(done, total), total)
    columns.agree()
    return columns.result(images=int(folds.sizes.sum())), usable


class _Columns:
    """Holds the entries of the matrix that are known; row = target, column = source."""

    def __init__(self, names: list[str], fingerprints: list[bytes], folds: int) -> None:
        count = len(names)
        self._names, self._fingerprints = names, fingerprints
        self._values = np.eye(count, dtype=np.float32)
        self._samples = np.zeros((folds, count, count), np.float32)
        self.known: Bool[np.ndarray, "targets sources"] = np.eye(count, dtype=bool)

    def reuse(self, source: int, column: Mapping[str, np.ndarray] | None) -> None:
        """Takes the entries of a stored column whose points are unchanged."""
        if column is None or column["fingerprint"] != self._fingerprints[source]:
            return
        stored = dict(zip(column["names"].tolist(), column["fingerprints"].tolist(), strict=True))
        places = {name: place for place, name in enumerate(column["names"].tolist())}
        known = [
            target
            for target, (name, own) in enumerate(zip(self._names, self._fingerprints, strict=True))
            if stored.get(name) == own and target != source
        ]
        chosen = [places[self._names[target]] for target in known]
        self._values[known, source] = column["values"][chosen]
        self._samples[:, known, source] = column["samples"][:, chosen]
        self.known[known, source] = True

    def column(self, source: int) -> dict[str, np.ndarray]:
        """Returns the column of a source as it is stored: its entries for all targets known so far."""
        targets = [target for target in np.flatnonzero(self.known[:, source]).tolist() if target != source]
        return {
            "fingerprint": np.array(self._fingerprints[source]),
            "names": np.array([self._names[target] for target in targets], str),
            "fingerprints": np.array([self._fingerprints[target] for target in targets], bytes),
            "values": self._values[targets, source],
            "samples": self._samples[:, targets, source],
        }

    def add(self, sources: list[int], result: Predictivity) -> None:
        """Takes what was computed for some sources, NaN where it was not."""
        computed = ~np.isnan(result.values)
        self._values[:, sources] = np.where(computed, result.values, self._values[:, sources])
        self._samples[:, :, sources] = np.where(computed, result.pseudo_values, self._samples[:, :, sources])
        self.known[:, sources] |= computed

    def agree(self) -> None:
        """Takes from the other processes what they know."""
        one_of_each = {device.process_index: device for device in jax.devices()}
        mesh = Mesh(np.array([[*one_of_each.values()]]), (MODEL, DATA))
        known = allgather(self.known, mesh)
        knows = known.argmax(0)[None]
        self._values = np.take_along_axis(allgather(self._values, mesh), knows, 0)[0]
        self._samples = np.take_along_axis(allgather(self._samples, mesh), knows[:, None], 0)[0]
        self.known = np.any(known, axis=0)

    def result(self, images: int) -> MethodResult:
        """Returns all pairs as matrices."""
        pairs = pair_indices(len(self._names), directed=True)
        samples = self._samples[(slice(None), *pairs)]
        stderr = np.zeros_like(self._values)
        stderr[pairs] = np.nan_to_num(stderr_of_mean(samples.astype(np.float64)), nan=np.inf)
        counts = np.full(self._values.shape, images)
        return MethodResult(self._values, stderr, counts, pseudo_values=samples, measure=PREDICTIVITY)
