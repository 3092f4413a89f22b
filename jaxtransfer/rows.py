"""Rows of the affinity matrix: what the maps of one network have in common with those of others.

A row is computed once and kept beside the points, so that one more network costs one more row. Maps are compared block
by block, a few networks and images at a time, with the images spread over the devices.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial.distance import squareform

from jaxtransfer.affinity import MethodResult, Similarity, directions, pair_columns, products
from jaxtransfer.devices import DATA, MODEL, distribute, is_first, together
from jaxtransfer.points import Key, Point, Points, chunks

# What is held of maps at once, and at most so many networks on either side of a block.
_BLOCK_BYTES, _ABOVE, _ACROSS = 256 * 2**20, 64, 256
# With more pairs x images than that, what is kept of them is of groups of images.
_MOST_PARTS, _GROUPS = 2**26, 20


def compare_maps(
    points: Points,
    kind: str,
    keys: Mapping[str, Key],
    images: int,
    similarity: Similarity,
    mesh: Mesh,
    *,
    variance: float | None = None,
    every_image: bool = False,
) -> tuple[MethodResult, Bool[np.ndarray, "networks images"]]:
    """Means and standard errors over images of the similarity of every pair (methods A.4).

    Rows that were kept are used as far as they are of points with the same keys; each process gives the same result.

    Args:
        points: Where the maps are.
        kind: Of the points.
        keys: Of every network the key of its point.
        images: How many there are.
        similarity: "cosine" or "correlation".
        mesh: Devices that share the images.
        variance: Of sketches, see `Projection`; None: the points are whole maps.
        every_image: Keep what every image says of every pair, however much that is.

    Returns:
        What is known of all pairs, NaN where no image is usable for both; and which maps are usable.
    """
    names = list(keys)
    marks = {name: hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest() for name, key in keys.items()}
    few = len(names) * (len(names) - 1) // 2 * images <= _MOST_PARTS
    pairs = _Pairs(len(names), images, None if few or every_image else _groups(images))
    folder, sketched = f"_rows/{kind}-{similarity}", variance is not None
    kept = np.array([pairs.take(i, points.read_arrays(folder, name), marks) for i, name in enumerate(names)])

    order = np.argsort(~kept, kind="stable")  # those without a row come last and are compared with all others
    missing = np.tril(~pairs.known[np.ix_(order, order)], -1)
    rows = np.flatnonzero(missing.any(1) | ~kept[order])
    for start, stop in chunks(len(rows), _ABOVE):
        above = rows[start:stop]
        across = np.union1d(above, np.flatnonzero(missing[above].any(0)))
        opened = [points.open(names[i], kind) for i in order[across]]
        block = _Block(points, opened, np.searchsorted(across, above), None if sketched else similarity, mesh)
        pairs.add(order[above], order[across], block, variance or 0)
        with together():
            for i in order[above] if is_first() else ():
                points.write_arrays(folder, names[i], pairs.row(i, marks))
    return pairs.result(sketched=sketched), pairs.usable


class _Block:
    """The maps of some networks, and of others among them that stand above."""

    def __init__(
        self,
        points: Points,
        across: Sequence[Point],
        above: Int[np.ndarray, " above"],
        similarity: Similarity | None,
        mesh: Mesh,
    ) -> None:
        self._points, self._across, self._above = points, across, [across[i] for i in above]
        self._similarity, self._mesh = similarity, mesh
        at_once = len(above) + min(len(across), _ACROSS)
        self.images = len(across[0])
        self.size = max(1, _BLOCK_BYTES // (4 * _pixels(across[0]) * at_once))

    def cosines(
        self, start: int, stop: int
    ) -> tuple[
        Float[np.ndarray, "images above across"], Bool[np.ndarray, "above images"], Bool[np.ndarray, "across images"]
    ]:
        """The cosines of some images, and which maps are usable; the others' cosines are 0."""
        above = self._maps(self._above, start, stop)
        found = []
        for first, last in chunks(len(self._across), _ACROSS):
            across = self._maps(self._across[first:last], start, stop)
            on_devices = _cosines(self._similarity, self._mesh, above, across)
            found.append([np.asarray(each.addressable_data(0)) for each in on_devices])
        cosines, some, others = zip(*found, strict=True)
        count = stop - start
        return np.concatenate(cosines, 2)[:count], some[0][:, :count], np.concatenate(others)[:, :count]

    def _maps(self, points: Sequence[Point], start: int, stop: int) -> Float[Array, "networks images pixels"]:
        """Some images' maps, each device's share of images on it; what fills the last share up is not usable."""
        count = -(-(stop - start) // self._mesh.size) * self._mesh.size
        shape = (len(points), count, _pixels(points[0]))

        def read(index: tuple[slice, ...]) -> Float[np.ndarray, "networks share pixels"]:
            first, last, _ = index[1].indices(count)
            maps = np.full((len(points), last - first, shape[2]), np.nan, np.float32)
            some = slice(start + first, max(start + first, min(start + last, stop)))
            for own, found in zip(maps, self._points.wait([each.read(some) for each in points]), strict=True):
                own[: len(found)] = found.reshape(len(found), shape[2])
            return maps

        by_image = NamedSharding(self._mesh, PartitionSpec(None, (MODEL, DATA)))
        return distribute(shape, by_image, read)


def _pixels(point: Point) -> int:
    return int(np.prod(point.shape[1:]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cosines(
    similarity: Similarity | None,
    mesh: Mesh,
    above: Float[Array, "above images pixels"],
    across: Float[Array, "across images pixels"],
) -> tuple[Float[Array, "images above across"], Bool[Array, "above images"], Bool[Array, "across images"]]:
    """Of whole maps; or of sketches (None), whose cosines are right on average and may leave [-1, 1]."""
    (above, usable_above), (across, usable_across) = (_directions(each, similarity) for each in (above, across))
    cosines = products(above, across)
    if similarity is not None:
        cosines = jnp.clip(cosines, -1, 1)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint((cosines, usable_above, usable_across), everywhere)


def _directions(
    maps: Float[Array, "networks images pixels"], similarity: Similarity | None
) -> tuple[Float[Array, "networks images pixels"], Bool[Array, "networks images"]]:
    if similarity is not None:
        return directions(maps, similarity)
    usable = jnp.isfinite(maps).all(-1)
    return jnp.where(usable[..., None], maps, 0), usable


class _Pairs:
    """All pairs of networks, as far as they are known; columns in the order of `pair_columns`.

    What is kept of images are their cosines, NaN where a map is not usable, or the jackknife pseudo-values of groups.
    """

    def __init__(self, networks: int, images: int, groups: Float[np.ndarray, "groups images"] | None) -> None:
        columns = networks * (networks - 1) // 2
        self._networks, self._groups = networks, groups
        self._fields = {
            "affinity": np.zeros(columns, np.float32),
            "stderr": np.zeros(columns, np.float32),
            "sketch_stderr": np.zeros(columns, np.float32),
            "counts": np.zeros(columns, np.int64),
            "parts": np.zeros((images if groups is None else len(groups), columns), np.float32),
        }
        self.usable = np.zeros((networks, images), bool)
        self.known = np.eye(networks, dtype=bool)

    def take(self, i: int, row: Mapping[str, np.ndarray] | None, marks: Mapping[str, str]) -> bool:
        """Takes from a row what it says of points that are still the same; False where it is of another one itself."""
        names = list(marks)
        if row is None or str(row["mark"]) != marks[names[i]]:
            return False
        values = {field: row[field] for field in self._fields}
        if self._groups is None and len(values["parts"]) != self.usable.shape[1]:
            return False
        if self._groups is not None and len(values["parts"]) != len(self._groups):
            values["parts"] = self._grouped(values["parts"])
        places = {name: place for place, name in enumerate(names)}
        marked = zip(row["names"].tolist(), row["marks"].tolist(), strict=True)
        same = np.array([marks.get(name) == mark for name, mark in marked], bool)
        others = np.array([places[name] for name in row["names"][same].tolist()], int)
        self.usable[i] = row["usable"]
        self._set(np.full(len(others), i), others, {field: each[..., same] for field, each in values.items()})
        return True

    def row(self, i: int, marks: Mapping[str, str]) -> dict[str, np.ndarray]:
        """All that is known of a network, to be kept."""
        names = list(marks)
        others = np.flatnonzero(self.known[i] & (np.arange(len(names)) != i))
        columns = pair_columns(len(names), np.array(i), others)
        return {
            "mark": np.array(marks[names[i]]),
            "names": np.array([names[j] for j in others], str),
            "marks": np.array([marks[names[j]] for j in others], str),
            "usable": self.usable[i],
            **{field: each[..., columns] for field, each in self._fields.items()},
        }

    def add(
        self, above: Int[np.ndarray, " above"], across: Int[np.ndarray, " across"], block: _Block, variance: float
    ) -> None:
        """Compares the networks above with those across."""
        total, squares, counts = np.zeros((3, len(above), len(across)))
        parts = np.zeros((len(self._fields["parts"]), *total.shape), np.float32)
        members = np.zeros_like(parts)
        for start, stop in chunks(block.images, block.size):
            cosines, some, others = block.cosines(start, stop)
            self.usable[above, start:stop], self.usable[across, start:stop] = some, others
            both = some.T[:, :, None] & others.T[:, None, :]
            total += cosines.sum(0, dtype=np.float64)
            squares += np.square(cosines, dtype=np.float64).sum(0)
            counts += both.sum(0)
            if self._groups is None:
                parts[start:stop] = np.where(both, cosines, np.nan)
            else:
                parts += np.tensordot(self._groups[:, start:stop], cosines, 1)
                members += np.tensordot(self._groups[:, start:stop], both.astype(np.float32), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / counts
            spread = np.maximum(squares - counts * mean**2, 0) / np.maximum(counts - 1, 1)
            found = {
                "affinity": mean,
                "stderr": np.where(counts > 1, np.sqrt(spread / counts), np.inf),
                # A sketch's product has the variance v (1 + cos^2), and its square the mean cos^2 + v (1 + cos^2).
                "sketch_stderr": np.sqrt(variance / (1 + variance) * (counts + squares)) / counts,
                "counts": counts,
                "parts": parts if self._groups is None else _pseudo_values(parts, members),
            }
        rows, columns = np.nonzero(above[:, None] != across[None, :])
        self._set(above[rows], across[columns], {field: each[..., rows, columns] for field, each in found.items()})

    def result(self, *, sketched: bool) -> MethodResult:
        """All pairs as matrices."""
        square = {field: squareform(self._fields[field]) for field in ("affinity", "stderr", "sketch_stderr", "counts")}
        np.fill_diagonal(square["affinity"], 1)
        np.fill_diagonal(square["counts"], self.usable.sum(1))
        return MethodResult(
            square["affinity"],
            square["stderr"],
            square["counts"],
            pseudo_values=self._fields["parts"],
            sketch_stderr=square["sketch_stderr"] if sketched else None,
        )

    def _set(self, rows: np.ndarray, columns: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        places = pair_columns(self._networks, rows, columns)
        for field, each in self._fields.items():
            each[..., places] = values[field]
        self.known[rows, columns] = self.known[columns, rows] = True

    def _grouped(self, cosines: Float[np.ndarray, "images pairs"]) -> Float[np.ndarray, "groups pairs"]:
        assert self._groups is not None
        usable = ~np.isnan(cosines)
        with np.errstate(invalid="ignore", divide="ignore"):
            return _pseudo_values(self._groups @ np.where(usable, cosines, 0), self._groups @ usable.astype(np.float32))


def _groups(images: int) -> Float[np.ndarray, "groups images"]:
    """Which image is in which group, as ones; drawn once and for all."""
    groups = min(_GROUPS, images)
    return np.eye(groups, dtype=np.float32)[:, np.random.default_rng(0).permutation(images) % groups]


def _pseudo_values(
    sums: Float[np.ndarray, "groups *pairs"], counts: Float[np.ndarray, "groups *pairs"]
) -> Float[np.ndarray, "groups *pairs"]:
    """The mean over all groups, and without each, as jackknife pseudo-values (Tukey 1958)."""
    total, count = sums.sum(0), counts.sum(0)
    return len(sums) * total / count - (len(sums) - 1) * (total - sums) / (count - counts)
