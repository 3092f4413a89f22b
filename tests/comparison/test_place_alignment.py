"""CKA of places against its definition: loops over places and images, area averages written out, in float64."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.comparison import streaming
from jaxtransfer.comparison.representations import cka_biased, cka_places
from jaxtransfer.points.store import Points

pytestmark = pytest.mark.filterwarnings("ignore:On .* images .* cannot be trusted")

Arrays = dict[str, np.ndarray]
SHAPES = {"fine": (4, 4, 3), "wide": (2, 8, 5), "coarse": (2, 2, 7), "odd": (3, 2, 4), "vector": (9,)}


def representations(seed: int, images: int) -> Arrays:
    """Networks that see partly the same."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(images, 6))
    arrays = {}
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        values = np.maximum(common @ rng.normal(size=(6, size)), 0) + 0.3 * rng.normal(size=(images, size))
        arrays[name] = values.reshape(images, *shape).astype(np.float32)
    return arrays


def on_grid(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area means: every place is split until it divides into the new ones, which average the parts."""
    x = x.astype(float) if x.ndim == 4 else x.astype(float).reshape(len(x), 1, 1, -1)
    parts = np.repeat(np.repeat(x, height, axis=1), width, axis=2)
    parts = parts.reshape(len(x), height, x.shape[1], width, x.shape[2], x.shape[3])
    return parts.mean((2, 4)).reshape(len(x), height * width, x.shape[3])


def slow(x: np.ndarray, y: np.ndarray) -> float:
    height, width = min(
        (each.shape[1:3] if each.ndim == 4 else (1, 1) for each in (x, y)), key=lambda g: (g[0] * g[1], g)
    )
    x, y = (on_grid(each, height, width) for each in (x, y))

    def norm(a: np.ndarray, b: np.ndarray) -> float:
        moments = np.zeros((a.shape[2], b.shape[2]))
        for place in range(height * width):
            for image in range(len(a)):
                difference = a[image, place] - a[:, place].mean(0)
                moments += np.outer(difference, b[image, place] - b[:, place].mean(0))
        return float(np.sqrt((moments**2).sum()))

    return norm(x, y) ** 2 / (norm(x, x) * norm(y, y))


@pytest.mark.parametrize("elements", [None, 300])
def test_equals_a_slow_rewrite(elements: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of different sizes and a vector; also with memory for a few images and a unit at a time."""
    if elements is not None:
        monkeypatch.setattr(streaming, "MAX_ELEMENTS", elements)
    arrays = representations(0, 9)
    arrays["coarse"][4, 0, 1, 2] = np.nan
    found = cka_places(arrays)
    assert np.argwhere(~found.usable).tolist() == [[2, 4]]
    images = np.delete(np.arange(9), 4)
    np.testing.assert_array_equal(np.sort(np.concatenate(found.groups)), images)
    for column, (i, j) in enumerate(itertools.combinations(range(len(arrays)), 2)):
        x, y = [*arrays.values()][i], [*arrays.values()][j]
        whole = slow(x[images], y[images])
        np.testing.assert_allclose([found.values[i, j], found.values[j, i]], whole, rtol=1e-9)
        count = len(found.groups)
        for group, pseudo_value in list(zip(found.groups, found.pseudo_values[:, column], strict=True))[:3]:
            kept = np.setdiff1d(images, group)
            np.testing.assert_allclose(pseudo_value, count * whole - (count - 1) * slow(x[kept], y[kept]), atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_invariances(seed: int, scale: float) -> None:
    """To a rotation of units, to scale, to what is the same in all images at a place, and to the order of images."""
    arrays = {name: each.astype(float) for name, each in representations(seed, 10).items()}
    rng = np.random.default_rng(seed)
    turned = arrays["fine"] @ np.linalg.qr(rng.normal(size=(3, 3)))[0] * scale + rng.normal(size=(4, 4, 3))
    order = rng.permutation(10)
    changed = {name: each[order] for name, each in (arrays | {"fine": turned}).items()}
    np.testing.assert_allclose(cka_places(changed).values, cka_places(arrays).values, atol=1e-9)
    np.testing.assert_allclose(cka_places({"a": arrays["fine"], "b": turned}).values, 1, atol=1e-9)


def test_of_a_single_place_it_is_cka_biased() -> None:
    vectors = {name: each.reshape(12, -1) for name, each in representations(1, 12).items()}
    for expected, value in zip(cka_biased(vectors), cka_places(vectors), strict=True):
        np.testing.assert_allclose(np.array(value), np.array(expected), rtol=1e-8)


def test_chance_is_what_permuted_images_give() -> None:
    """The mean over all orders of the images of a network, on grids of different sizes."""
    arrays = {name: each[:4] for name, each in representations(2, 6).items()}
    x = arrays.pop("fine")
    for y in arrays.values():
        orders = itertools.permutations(range(4))
        found = cka_places({"x": x} | {str(order): y[list(order)] for order in orders})
        np.testing.assert_allclose(found.chance[0, 1:], found.chance[0, 1], rtol=1e-9)
        np.testing.assert_allclose(found.values[0, 1:].mean(), found.chance[0, 1], rtol=1e-9)


def test_reads_grids_from_disk(tmp_path: Any) -> None:
    arrays = representations(3, 11)
    points = Points(tmp_path)
    opened = {}
    for name, array in arrays.items():
        points.create(name, "representation", array.shape, 4)
        opened[name] = points.open(name, "representation")
        points.wait([opened[name].write(0, array)])
    np.testing.assert_array_equal(cka_places(opened).values, cka_places(arrays).values)


def test_a_network_that_does_not_vary() -> None:
    """Also where it varies on its own grid, but not on the one that it is compared on."""
    arrays = representations(4, 8)
    arrays["fine"][...] = 3
    with pytest.raises(jt.JaxTransferError, match="Network 'fine' gives all probe images the same representation"):
        cka_places(arrays)
    arrays["fine"][:, ::2] += np.arange(8, dtype=np.float32)[:, None, None, None]
    arrays["fine"][:, 1::2] -= np.arange(8, dtype=np.float32)[:, None, None, None]
    assert np.isfinite(cka_places({"fine": arrays["fine"], "again": arrays["fine"]}).pseudo_values).all()
    with pytest.raises(jt.JaxTransferError, match="Network 'fine' gives all probe images the same representation"):
        cka_places(arrays)
    with pytest.raises(jt.JaxTransferError, match="4 or more images that all networks can use; there are 3"):
        cka_places({name: each[:3] for name, each in arrays.items()})
