"""Rows of the affinity matrix: what the maps of one network have in common with those of others.

A row is computed once and kept beside the points, so that one more network costs one more row. Maps are compared in
tiles of a few networks and images, with the images spread over the devices.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int
from scipy.spatial.distance import squareform

from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.measure import pair_columns
from jaxtransfer.comparison.similarity import products
from jaxtransfer.comparison.statistics import pseudo_values_of_mean
from jaxtransfer.devices import DATA, MODEL, allgather, distribute, gather_to_host, is_first, synchronised
from jaxtransfer.points.directions import Similarity, directions
from jaxtransfer.points.store import Key, Point, Points, chunks

# Maps are compared in tiles of so many networks by as many, however few there are: what is said of a pair must not
# depend on what else there was to compare. So many tiles are above, to be compared with all that pass across.
_TILE, _ABOVE = 32, 4
_TILE_BYTES = 64 * 2**20
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
    progress: Callable[[int, int], None] | None = None,
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
        progress: Called with rows done and rows to do.

    Returns:
        What is known of all pairs, NaN where no image is usable for both; and which maps are usable.
    """
    names = list(keys)
    marks = {name: _mark(key) for name, key in keys.items()}
    few = len(names) * (len(names) - 1) // 2 * images <= _MOST_PARTS
    pairs = _Pairs(len(names), images, None if few or every_image else _groups(images))
    folder, sketched = f"_rows/{kind}-{similarity}", variance is not None
    seen = points.array_names(folder)
    everyone = allgather(np.array([name in seen for name in names]))
    there = np.asarray(everyone.all(0))  # processes may see files at different times
    kept = np.array([
        there[i] and pairs.take(i, points.read_arrays(folder, name), marks) for i, name in enumerate(names)
    ])  # fmt: skip

    order = np.argsort(~kept, kind="stable")  # those without a row come last and are compared with all others
    missing = np.tril(~pairs.known[np.ix_(order, order)], -1)
    rows = np.flatnonzero(missing.any(1) | ~kept[order])
    tiles = _Tiles(points, kind, [names[i] for i in order], None if sketched else similarity, mesh)
    for start, stop in chunks(len(rows), _ABOVE * _TILE):
        above = rows[start:stop]
        across = np.union1d(above, np.flatnonzero(missing[above].any(0)))
        pairs.add(order, above, across, tiles, variance or 0)
        with synchronised():
            for i in order[above] if is_first() else ():
                points.write_arrays(folder, names[i], pairs.row(i, marks))
        if progress is not None:
            progress(stop, len(rows))
    return pairs.result(sketched=sketched), pairs.usable


def _mark(key: Key) -> bytes:
    """What tells points apart; short, since a row has one for each other network."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32].encode()


class _Tile(NamedTuple):
    """Directions of the maps of some networks and images, each device's share of images on it."""

    units: Float[Array, "tile images pixels"]
    usable: Bool[Array, "tile images"]
    networks: int
    images: int


class _Tiles:
    """Reads tiles and compares them."""

    def __init__(
        self, points: Points, kind: str, names: Sequence[str], similarity: Similarity | None, mesh: Mesh
    ) -> None:
        self._points, self._similarity, self._mesh = points, similarity, mesh
        self._opened: Callable[[int], Point] = functools.cache(lambda i: points.open(str(names[i]), kind))
        self.pixels = int(np.prod(self._opened(0).shape[1:]))
        self.images = len(self._opened(0))
        self.at_once = max(1, _TILE_BYTES // (4 * _TILE * self.pixels))

    def __call__(self, networks: Int[np.ndarray, " networks"], start: int, stop: int) -> _Tile:
        """Some networks' maps of some images; what fills the tile up is not usable."""
        count = -(-(stop - start) // self._mesh.size) * self._mesh.size
        opened = [self._opened(int(i)) for i in networks]

        def read(index: tuple[slice, ...]) -> Float[np.ndarray, "tile share pixels"]:
            first, last, _ = index[1].indices(count)
            maps = np.full((_TILE, last - first, self.pixels), np.nan, np.float32)
            some = slice(start + first, max(start + first, min(start + last, stop)))
            for own, found in zip(maps, self._points.wait([each.read(some) for each in opened]), strict=False):
                own[: len(found)] = found.reshape(len(found), self.pixels)
            return maps

        by_image = NamedSharding(self._mesh, PartitionSpec(None, (MODEL, DATA)))
        units, usable = _directions(self._similarity, distribute((_TILE, count, self.pixels), by_image, read))
        return _Tile(units, usable, len(networks), stop - start)

    def compare(
        self, above: "_Tile", across: "_Tile"
    ) -> tuple[
        Float[np.ndarray, "images above across"], Bool[np.ndarray, "images above"], Bool[np.ndarray, "images across"]
    ]:
        """Cosines, 0 of what is not usable, and what is; those of sketches may leave [-1, 1]."""
        cosines = gather_to_host(_products(above.units, across.units))[
            : above.images, : above.networks, : across.networks
        ]
        if self._similarity is not None:
            cosines = cosines.clip(-1, 1)
        usable, usable_across = (
            gather_to_host(each.usable)[: each.networks, : each.images].T for each in (above, across)
        )
        return cosines, usable, usable_across


def _tiled(networks: int) -> list[slice]:
    return [slice(*some) for some in chunks(networks, _TILE)]


@functools.partial(jax.jit, static_argnums=0)
def _directions(
    similarity: Similarity | None, maps: Float[Array, "networks images pixels"]
) -> tuple[Float[Array, "networks images pixels"], Bool[Array, "networks images"]]:
    """Of whole maps; sketches (None) were made of directions."""
    if similarity is not None:
        return directions(maps, similarity)
    usable = jnp.isfinite(maps).all(-1)
    return jnp.where(usable[..., None], maps, 0), usable


_products = jax.jit(products)


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

    def take(self, i: int, row: Mapping[str, np.ndarray] | None, marks: Mapping[str, bytes]) -> bool:
        """Takes from a row what it says of points that are still the same; False where it is of another one itself."""
        names = list(marks)
        if row is None or row["mark"] != marks[names[i]]:
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

    def row(self, i: int, marks: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        """All that is known of a network, to be kept."""
        names = list(marks)
        others = np.flatnonzero(self.known[i] & (np.arange(len(names)) != i))
        columns = pair_columns(len(names), np.array(i), others)
        return {
            "mark": np.array(marks[names[i]]),
            "names": np.array([names[j] for j in others], str),
            "marks": np.array([marks[names[j]] for j in others], bytes),
            "usable": self.usable[i],
            **{field: each[..., columns] for field, each in self._fields.items()},
        }

    def add(
        self,
        order: Int[np.ndarray, " networks"],
        above: Int[np.ndarray, " above"],
        across: Int[np.ndarray, " across"],
        tiles: _Tiles,
        variance: float,
    ) -> None:
        """Compares the networks above with those across, both as places in an order."""
        total, squares, counts = np.zeros((3, len(above), len(across)))
        parts = np.zeros((len(self._fields["parts"]), *total.shape), np.float32)
        members = np.zeros_like(parts)
        for start, stop in chunks(tiles.images, tiles.at_once):
            standing = [(some, tiles(above[some], start, stop)) for some in _tiled(len(above))]
            for others in _tiled(len(across)):
                passing = tiles(across[others], start, stop)
                for some, tile in standing:
                    cosines, usable, usable_across = tiles.compare(tile, passing)
                    self.usable[order[above[some]], start:stop] = usable.T
                    self.usable[order[across[others]], start:stop] = usable_across.T
                    both = usable[:, :, None] & usable_across[:, None, :]
                    total[some, others] += cosines.sum(0, dtype=np.float64)
                    squares[some, others] += np.square(cosines, dtype=np.float64).sum(0)
                    counts[some, others] += both.sum(0)
                    if self._groups is None:
                        parts[start:stop, some, others] = np.where(both, cosines, np.nan)
                    else:
                        groups = self._groups[:, start:stop]
                        parts[:, some, others] += np.tensordot(groups, cosines, 1)
                        members[:, some, others] += np.tensordot(groups, both.astype(np.float32), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / counts
            spread = np.maximum(squares - counts * mean**2, 0) / np.maximum(counts - 1, 1)
            found = {
                "affinity": mean,
                "stderr": np.where(counts > 1, np.sqrt(spread / counts), np.inf),
                # A sketch's product has the variance v (1 + cos^2), and its square the mean cos^2 + v (1 + cos^2).
                "sketch_stderr": np.sqrt(variance / (1 + variance) * (counts + squares)) / counts,
                "counts": counts,
                "parts": parts if self._groups is None else pseudo_values_of_mean(parts, members),
            }
        rows, columns = np.nonzero(above[:, None] != across[None, :])
        self._set(
            order[above[rows]],
            order[across[columns]],
            {field: each[..., rows, columns] for field, each in found.items()},
        )

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
        sums, counts = self._groups @ np.where(usable, cosines, 0), self._groups @ usable.astype(np.float32)
        return pseudo_values_of_mean(sums, counts)


def _groups(images: int) -> Float[np.ndarray, "groups images"]:
    """Which image is in which group, as ones; drawn once and for all."""
    groups = min(_GROUPS, images)
    return np.eye(groups, dtype=np.float32)[:, np.random.default_rng(0).permutation(images) % groups]
