"""Rows of the affinity matrix: mean similarities of the maps of one network to those of the others.

A row is computed once and stored beside the points, so that adding a network costs one row. Maps are compared in tiles
of a few networks and images, with the images distributed over the devices.
"""

import functools
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
from jaxtransfer.files import json_hash
from jaxtransfer.points.directions import Similarity, directions
from jaxtransfer.points.store import Key, Point, Points, chunks

# Networks in a tile. The shape is fixed, however few networks there are: the numbers of a pair must not depend on what
# else is compared.
_TILE = 32
# Tiles of row networks held at a time; each tile of column networks is read once for all of them.
_ROW_TILES = 4
_TILE_BYTES = 64 * 2**20
# With more pairs x images than this, pseudo-values are stored for groups of images instead of cosines for each image.
_MAX_SAMPLES, _GROUPS = 2**26, 20


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
    """Computes means and standard errors over images of the similarity of every pair of networks (methods A.4).

    Entries of stored rows are reused where the points still have the same keys. Every process returns the same result.

    Args:
        points: The store of the maps.
        kind: Kind of the points.
        keys: For each network the key of its point.
        images: Number of images.
        similarity: "cosine" or "correlation".
        mesh: Devices over which the images are distributed.
        variance: Variance of sketches, see `Projection`; None: the points are whole maps.
        every_image: Keep the cosine of every image and pair, whatever memory that takes.
        progress: Called with the number of rows done and the number of rows to compute.

    Returns:
        The result for all pairs, NaN where no image is usable for both networks; and which maps are usable.
    """
    names = list(keys)
    fingerprints = {name: fingerprint(key) for name, key in keys.items()}
    keep_images = len(names) * (len(names) - 1) // 2 * images <= _MAX_SAMPLES
    pairs = _Pairs(len(names), images, None if keep_images or every_image else _groups(images))
    folder, sketched = f"_rows/{kind}-{similarity}", variance is not None
    stored = points.array_names(folder)
    by_process = allgather(np.array([name in stored for name in names]))
    available = np.asarray(by_process.all(0))  # processes may see files at different times
    reused = np.array([
        available[i] and pairs.reuse(i, points.read_arrays(folder, name), fingerprints) for i, name in enumerate(names)
    ])  # fmt: skip

    order = np.argsort(~reused, kind="stable")  # those without a stored row, compared with all, come last
    missing = np.tril(~pairs.known[np.ix_(order, order)], -1)
    rows = np.flatnonzero(missing.any(1) | ~reused[order])
    tiles = _Tiles(points, kind, [names[i] for i in order], None if sketched else similarity, mesh)
    for start, stop in chunks(len(rows), _ROW_TILES * _TILE):
        row_networks = rows[start:stop]
        column_networks = np.union1d(row_networks, np.flatnonzero(missing[row_networks].any(0)))
        pairs.add(order, row_networks, column_networks, tiles, variance or 0)
        with synchronised():
            for i in order[row_networks] if is_first() else ():
                points.write_arrays(folder, names[i], pairs.row(i, fingerprints))
        if progress is not None:
            progress(stop, len(rows))
    return pairs.result(sketched=sketched), pairs.usable


def fingerprint(key: Key) -> bytes:
    """Hashes the key of a point; short, since a row stores the fingerprint of every other network."""
    return json_hash(key)[:32].encode()


class _Tile(NamedTuple):
    """Directions of the maps of some networks and images, with the images distributed over the devices."""

    units: Float[Array, "tile images pixels"]
    usable: Bool[Array, "tile images"]
    networks: int
    images: int


class _Tiles:
    """Reads tiles of maps and compares them."""

    def __init__(
        self, points: Points, kind: str, names: Sequence[str], similarity: Similarity | None, mesh: Mesh
    ) -> None:
        self._points, self._similarity, self._mesh = points, similarity, mesh
        self._opened: Callable[[int], Point] = functools.cache(lambda i: points.open(str(names[i]), kind))
        self.pixels = int(np.prod(self._opened(0).shape[1:]))
        self.images = len(self._opened(0))
        self.chunk_images = max(1, _TILE_BYTES // (4 * _TILE * self.pixels))

    def __call__(self, networks: Int[np.ndarray, " networks"], start: int, stop: int) -> _Tile:
        """Reads some networks' maps of the images from `start` to `stop`; padding is marked as not usable."""
        count = -(-(stop - start) // self._mesh.size) * self._mesh.size
        opened = [self._opened(int(i)) for i in networks]

        def read(index: tuple[slice, ...]) -> Float[np.ndarray, "tile share pixels"]:
            first, last, _ = index[1].indices(count)
            maps = np.full((_TILE, last - first, self.pixels), np.nan, np.float32)
            some = slice(start + first, max(start + first, min(start + last, stop)))
            for padded, stored in zip(maps, self._points.wait([point.read(some) for point in opened]), strict=False):
                padded[: len(stored)] = stored.reshape(len(stored), self.pixels)
            return maps

        by_image = NamedSharding(self._mesh, PartitionSpec(None, (MODEL, DATA)))
        units, usable = _directions(self._similarity, distribute((_TILE, count, self.pixels), by_image, read))
        return _Tile(units, usable, len(networks), stop - start)

    def compare(
        self, row_tile: _Tile, column_tile: _Tile
    ) -> tuple[
        Float[np.ndarray, "images rows columns"], Bool[np.ndarray, "images rows"], Bool[np.ndarray, "images columns"]
    ]:
        """Computes cosines, 0 where a map is not usable, and says which maps are; sketches may leave [-1, 1]."""
        cosines = gather_to_host(_products(row_tile.units, column_tile.units))
        cosines = cosines[: row_tile.images, : row_tile.networks, : column_tile.networks]
        if self._similarity is not None:
            cosines = cosines.clip(-1, 1)
        row_usable, column_usable = (
            gather_to_host(tile.usable)[: tile.networks, : tile.images].T for tile in (row_tile, column_tile)
        )
        return cosines, row_usable, column_usable


def _tiled(networks: int) -> list[slice]:
    """Splits a range of networks into tiles."""
    return [slice(*some) for some in chunks(networks, _TILE)]


@functools.partial(jax.jit, static_argnums=0)
def _directions(
    similarity: Similarity | None, maps: Float[Array, "networks images pixels"]
) -> tuple[Float[Array, "networks images pixels"], Bool[Array, "networks images"]]:
    """Computes the directions of whole maps; sketches (None) were made from directions."""
    if similarity is not None:
        return directions(maps, similarity)
    usable = jnp.isfinite(maps).all(-1)
    return jnp.where(usable[..., None], maps, 0), usable


_products = jax.jit(products)


class _Pairs:
    """Holds the results of all pairs of networks that are known; columns are in the order of `pair_columns`.

    The field "parts" has samples: the cosines of images, NaN where a map is not usable, or the jackknife pseudo-values
    of groups of images.
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

    def reuse(self, i: int, row: Mapping[str, np.ndarray] | None, fingerprints: Mapping[str, bytes]) -> bool:
        """Reuses the entries of a stored row whose points are unchanged.

        Returns:
            Whether the row can be used: False if there is none, or if the point of its own network has changed.
        """
        names = list(fingerprints)
        if row is None or row["mark"] != fingerprints[names[i]]:
            return False
        values = {field: row[field] for field in self._fields}
        if self._groups is None and len(values["parts"]) != self.usable.shape[1]:
            return False
        if self._groups is not None and len(values["parts"]) != len(self._groups):
            values["parts"] = self._grouped(values["parts"])
        places = {name: place for place, name in enumerate(names)}
        stored = zip(row["names"].tolist(), row["marks"].tolist(), strict=True)
        same = np.array([fingerprints.get(name) == fingerprint for name, fingerprint in stored], bool)
        others = np.array([places[name] for name in row["names"][same].tolist()], int)
        self.usable[i] = row["usable"]
        self._set(np.full(len(others), i), others, {field: array[..., same] for field, array in values.items()})
        return True

    def row(self, i: int, fingerprints: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        """Returns the row of a network as it is stored: its entries with all networks compared so far."""
        names = list(fingerprints)
        others = np.flatnonzero(self.known[i] & (np.arange(len(names)) != i))
        columns = pair_columns(len(names), np.array(i), others)
        return {
            "mark": np.array(fingerprints[names[i]]),
            "names": np.array([names[j] for j in others], str),
            "marks": np.array([fingerprints[names[j]] for j in others], bytes),
            "usable": self.usable[i],
            **{field: array[..., columns] for field, array in self._fields.items()},
        }

    def add(
        self,
        order: Int[np.ndarray, " networks"],
        row_networks: Int[np.ndarray, " rows"],
        column_networks: Int[np.ndarray, " columns"],
        tiles: _Tiles,
        variance: float,
    ) -> None:
        """Compares row networks with column networks, both given as places in `order`."""
        total, squares, counts = np.zeros((3, len(row_networks), len(column_networks)))
        samples = np.zeros((len(self._fields["parts"]), *total.shape), np.float32)
        members = np.zeros_like(samples)  # of groups
        for start, stop in chunks(tiles.images, tiles.chunk_images):
            row_tiles = [(i, tiles(row_networks[i], start, stop)) for i in _tiled(len(row_networks))]
            for j in _tiled(len(column_networks)):
                of_rows = (tile for i, tile in row_tiles if np.array_equal(row_networks[i], column_networks[j]))
                column_tile = next(of_rows, None) or tiles(column_networks[j], start, stop)
                for i, row_tile in row_tiles:
                    cosines, row_usable, column_usable = tiles.compare(row_tile, column_tile)
                    self.usable[order[row_networks[i]], start:stop] = row_usable.T
                    self.usable[order[column_networks[j]], start:stop] = column_usable.T
                    both = row_usable[:, :, None] & column_usable[:, None, :]
                    total[i, j] += cosines.sum(0, dtype=np.float64)
                    squares[i, j] += np.square(cosines, dtype=np.float64).sum(0)
                    counts[i, j] += both.sum(0)
                    if self._groups is None:
                        samples[start:stop, i, j] = np.where(both, cosines, np.nan)
                    else:
                        groups = self._groups[:, start:stop]
                        samples[:, i, j] += np.tensordot(groups, cosines, 1)
                        members[:, i, j] += np.tensordot(groups, both.astype(np.float32), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / counts
            spread = np.maximum(squares - counts * mean**2, 0) / np.maximum(counts - 1, 1)
            results = {
                "affinity": mean,
                "stderr": np.where(counts > 1, np.sqrt(spread / counts), np.inf),
                # A sketch's product has the variance v (1 + cos^2), and its square the mean cos^2 + v (1 + cos^2).
                "sketch_stderr": np.sqrt(variance / (1 + variance) * (counts + squares)) / counts,
                "counts": counts,
                "parts": samples if self._groups is None else pseudo_values_of_mean(samples, members),
            }
        rows, columns = np.nonzero(row_networks[:, None] != column_networks[None, :])
        self._set(
            order[row_networks[rows]],
            order[column_networks[columns]],
            {field: array[..., rows, columns] for field, array in results.items()},
        )

    def result(self, *, sketched: bool) -> MethodResult:
        """Returns all pairs as matrices."""
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
        for field, array in self._fields.items():
            array[..., places] = values[field]
        self.known[rows, columns] = self.known[columns, rows] = True

    def _grouped(self, cosines: Float[np.ndarray, "images pairs"]) -> Float[np.ndarray, "groups pairs"]:
        assert self._groups is not None
        usable = ~np.isnan(cosines)
        sums, counts = self._groups @ np.where(usable, cosines, 0), self._groups @ usable.astype(np.float32)
        return pseudo_values_of_mean(sums, counts)


def _groups(images: int) -> Float[np.ndarray, "groups images"]:
    """Returns 1 where an image is in a group, else 0; the groups of a number of images are always the same."""
    groups = min(_GROUPS, images)
    return np.eye(groups, dtype=np.float32)[:, np.random.default_rng(0).permutation(images) % groups]
