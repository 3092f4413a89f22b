"""Rows of the matrix: blockwise equal to dense, kept, and computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import squareform

from jaxtransfer.comparison import rows
from jaxtransfer.comparison.rows import compare_maps
from jaxtransfer.comparison.similarity import similarities
from jaxtransfer.devices import device_mesh
from jaxtransfer.points.store import Point, Points

NETWORKS, IMAGES, SIZE = 23, 9, (5, 7)
MAPS = np.random.default_rng(0).normal(size=(NETWORKS, IMAGES, *SIZE)).astype(np.float32)
MAPS[3, 4] = 0  # has no direction
MAPS[20, 5, 0, 0] = np.nan


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch) -> None:
    """Several tiles of row and column networks, and several chunks of images."""
    monkeypatch.setattr(rows, "_TILE", 4)
    monkeypatch.setattr(rows, "_ROW_TILES", 2)
    monkeypatch.setattr(rows, "_TILE_BYTES", 4 * 4 * 35 * 3)


@pytest.fixture
def points(tmp_path) -> Points:
    return _points(tmp_path / "points")


def _points(place: Path) -> Points:
    points = Points(place)
    for i, maps in enumerate(MAPS):
        points.create(f"n{i}", "saliency", maps.shape, IMAGES)
        points.wait([points.open(f"n{i}", "saliency").write(0, maps)])
    return points


@pytest.fixture
def compared(monkeypatch) -> list[tuple[int, int]]:
    """The numbers of row networks and of column networks in each comparison."""
    sizes: list[tuple[int, int]] = []
    add = rows._Pairs.add

    def spied(self: Any, order: Any, row_networks: np.ndarray, column_networks: np.ndarray, *rest: Any) -> None:
        sizes.append((len(row_networks), len(column_networks)))
        add(self, order, row_networks, column_networks, *rest)

    monkeypatch.setattr(rows._Pairs, "add", spied)
    return sizes


def _compare(
    points: Points, networks: Sequence[int] | np.ndarray, weights: dict[int, str] | None = None, **options: Any
) -> Any:
    keys = {f"n{i}": {"weights": (weights or {}).get(i, str(i))} for i in networks}
    mesh = options.pop("mesh", device_mesh(1, 1))
    return compare_maps(points, "saliency", keys, IMAGES, options.pop("similarity", "cosine"), mesh, **options)


@pytest.mark.parametrize("similarity", ["cosine", "correlation"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4)], ids=str)
def test_equal_a_dense_computation(points, similarity, shape):
    result, usable = _compare(points, range(NETWORKS), similarity=similarity, mesh=device_mesh(*shape))
    cosines, expected = similarities(jnp.asarray(MAPS.reshape(NETWORKS, IMAGES, -1)), similarity)
    np.testing.assert_array_equal(usable, expected)
    both = np.asarray(expected.T[:, :, None] & expected.T[:, None, :])
    by_image = np.where(both, np.asarray(cosines, np.float64), np.nan)
    off = ~np.eye(NETWORKS, dtype=bool)
    np.testing.assert_allclose(result.affinity[off], np.nanmean(by_image, 0)[off], atol=1e-6)
    np.testing.assert_array_equal(result.counts, both.sum(0))
    stderr = np.nanstd(by_image, 0, ddof=1) / np.sqrt(both.sum(0))
    np.testing.assert_allclose(result.stderr[off], stderr[off], atol=1e-6)
    parts = np.stack([squareform(np.where(off, each, 0), checks=False) for each in by_image])
    np.testing.assert_allclose(result.pseudo_values, parts, atol=1e-6)


def test_a_map_is_read_once(points, monkeypatch):
    images_read: list[range] = []
    read = Point.read
    monkeypatch.setattr(Point, "read", lambda self, i: images_read.append(range(IMAGES)[i]) or read(self, i))
    _compare(points, range(8))  # as many as the tiles of rows that are held
    assert sorted(n for images in images_read for n in images) == sorted([*range(IMAGES)] * 8)


def test_one_more_network_costs_one_row(points, compared):
    some, _ = _compare(points, range(NETWORKS - 1))
    assert sum(rows for rows, _ in compared) == NETWORKS - 1
    compared.clear()
    more, _ = _compare(points, range(NETWORKS))
    assert compared == [(1, NETWORKS)]
    np.testing.assert_array_equal(more.affinity[:-1, :-1], some.affinity)
    compared.clear()
    again, _ = _compare(points, range(NETWORKS))
    assert compared == []
    np.testing.assert_array_equal(again.affinity, more.affinity)
    np.testing.assert_array_equal(again.pseudo_values, more.pseudo_values)


def test_a_changed_network_costs_its_row(points, compared):
    before, _ = _compare(points, range(NETWORKS))
    changed = np.random.default_rng(1).normal(size=MAPS[7].shape).astype(np.float32)
    points.wait([points.open("n7", "saliency").write(0, changed)])
    compared.clear()
    after, _ = _compare(points, range(NETWORKS), {7: "others"})
    assert compared == [(1, NETWORKS)]
    rest = np.delete(np.arange(NETWORKS), 7)
    np.testing.assert_array_equal(after.affinity[np.ix_(rest, rest)], before.affinity[np.ix_(rest, rest)])
    assert (after.affinity[7, rest] != before.affinity[7, rest]).all()


def test_what_is_compared_together_does_not_matter(points, tmp_path):
    """Bit for bit: adding networks one by one, in another order, or after some were removed."""
    whole, _ = _compare(points, range(NETWORKS))
    other = _points(tmp_path / "other")
    order = np.random.default_rng(2).permutation(NETWORKS)
    for count in (1, 2, 3, 11, 22):
        _compare(other, order[:count])
    _compare(other, order[5:])
    result, _ = _compare(other, range(NETWORKS))
    for field in ("affinity", "stderr", "counts", "pseudo_values"):
        np.testing.assert_array_equal(getattr(result, field), getattr(whole, field))


def test_damaged_rows_are_computed_again(points, compared):
    before, _ = _compare(points, range(NETWORKS))
    (file,) = Path(points.place).glob("_rows/saliency-cosine/n9.npz")
    file.write_bytes(file.read_bytes()[:100])
    compared.clear()
    after, _ = _compare(points, range(NETWORKS))
    assert [rows for rows, _ in compared] == [1]
    np.testing.assert_array_equal(after.affinity, before.affinity)


def test_many_pairs_keep_groups_of_images(points, tmp_path, monkeypatch):
    """Means and errors are the same; rows that were kept of fewer networks, with every image, serve as well."""
    by_image, _ = _compare(points, range(NETWORKS))
    monkeypatch.setattr(rows, "_MAX_SAMPLES", 0)
    monkeypatch.setattr(rows, "_GROUPS", 4)
    kept, _ = _compare(points, range(NETWORKS))
    made, _ = _compare(_points(tmp_path / "anew"), range(NETWORKS))
    off = ~np.eye(NETWORKS, dtype=bool)
    for result in (kept, made):
        np.testing.assert_array_equal(result.affinity, by_image.affinity)
        np.testing.assert_array_equal(result.stderr, by_image.stderr)
        assert result.pseudo_values.shape == (4, NETWORKS * (NETWORKS - 1) // 2)
    np.testing.assert_allclose(kept.pseudo_values, made.pseudo_values, atol=1e-6)
    # The jackknife of groups: without a group, the mean is that of the other images.
    groups = rows._groups(IMAGES)
    usable = np.asarray(similarities(jnp.asarray(MAPS.reshape(NETWORKS, IMAGES, -1)))[1])
    full = usable.all(1)
    pairs = squareform(np.outer(full, full) & off, checks=False)
    for g in range(4):
        others = by_image.pseudo_values[groups[g] == 0].mean(0)
        assert by_image.pseudo_values.shape == (IMAGES, len(pairs))
        left_out = (4 * squareform(by_image.affinity * off, checks=False) - made.pseudo_values[g]) / 3
        np.testing.assert_allclose(left_out[pairs], others[pairs], atol=1e-6)
