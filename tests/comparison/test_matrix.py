"""Sweeps on meshes of eight devices: the same numbers wherever the work is done."""

import logging
import re
from collections import Counter
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.devices import device_mesh, replicate
from jaxtransfer.points import compute, passes
from jaxtransfer.points.compute import PointComputation
from jaxtransfer.points.passes import Inputs, Layout, Pass, bytes_needed, place_weights
from support.tiny_networks import fill, gelu, network, relu

IMAGES = np.random.default_rng(0).integers(0, 256, (13, 12, 14, 3), dtype=np.uint8)
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4), (4, 2)]


@pytest.fixture(scope="module")
def networks() -> list[jt.Network]:
    """Seven, so that no mesh of more than one row can share them equally; 13 images likewise."""
    return [network(seed) for seed in range(7)]


@pytest.fixture(scope="module")
def expected(networks) -> dict[str, np.ndarray]:
    """Each network alone, on one device, without the sweep."""
    maps: dict[str, list[Any]] = {method: [] for method in jt.METHODS}
    for each in networks:
        images = IMAGES.astype(np.float32) / np.float32(255)
        inputs = images if each.preprocess is None else each.preprocess(images)
        attributed = jt.attribute(each.apply, each.params, inputs)
        for method, own in attributed.items():
            own = own.mean(-1)
            maps[method].append(own if each.preprocess is None else each.preprocess.restore(own, IMAGES.shape[1:3]))
    results = {}
    for method, each in maps.items():
        vectors = np.asarray(each, np.float64).reshape(len(networks), len(IMAGES), -1)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        results[method] = np.einsum("inp,jnp->ij", vectors, vectors) / len(IMAGES)
    return results


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_gradients_are_not_summed_over_shards(networks, expected, shape):
    """JAX sums what is differentiated under `shard_map` over the axes on which it is the same (jax #36886).

    The images are the same on all rows of the mesh. Nothing goes between host and devices by itself, either.
    """
    with jax.transfer_guard("disallow"):
        affinity = jt.affinity_matrix(networks, IMAGES, mesh=device_mesh(*shape), batch_size=2)
    for method in jt.METHODS:
        np.testing.assert_allclose(affinity[method], expected[method], atol=1e-6)


def test_one_trace_for_each_architecture():
    """Of function, shapes and preprocessing; not for each network, batch, row of the mesh or device."""
    traces: Counter[str] = Counter()

    def counted(apply: Any) -> Any:
        def traced(params: Any, x: jax.Array) -> jax.Array:
            traces[apply.__name__] += 1
            return apply(params, x)

        return traced

    functions = {apply: counted(apply) for apply in (relu, gelu)}
    nets = [network(seed) for seed in range(9)]
    nets = [jt.Network(each.name, functions[each.apply], each.params, each.preprocess) for each in nets]
    jt.affinity_matrix(nets, IMAGES, mesh=device_mesh(2, 2), batch_size=2)
    assert traces == {"relu": 2, "gelu": 1}  # relu has two widths


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)], ids=str)
def test_where_arrays_live(shape):
    """Weights once for each row, images once for each column, and outputs on the device that computed them."""
    mesh = device_mesh(*shape)
    layout = Layout.of(mesh, len(IMAGES), 2)
    nets = [network(seed) for seed in (0, 3)]
    params = place_weights({row: nets[row].params for row in range(shape[0])}, mesh)
    inputs, numbers = Inputs(IMAGES, None, layout)[0]
    forward_pass = Pass(relu, None, ("saliency",), "cosine", None, 1e-4, "float32", (12, 14, 3), layout)
    program = forward_pass.compiled(params, None)
    outputs = program(params, inputs, numbers, None, replicate(np.bool_(False), mesh))[0]["saliency"]
    weights = params["a"]
    assert outputs.shape == (shape[0], shape[1] * layout.batch, *IMAGES.shape[1:3])
    for row, column in np.ndindex(*shape):
        device = mesh.devices[row, column]
        (own,) = [shard.data for shard in weights.addressable_shards if shard.device == device]
        np.testing.assert_array_equal(own[0], nets[row].params["a"])
        (which,) = [shard.data for shard in numbers.addressable_shards if shard.device == device]
        first = layout.first(column, 0)
        np.testing.assert_array_equal(which, np.arange(first, first + layout.batch).clip(max=len(IMAGES) - 1))
        (own,) = [shard.data for shard in inputs.addressable_shards if shard.device == device]
        np.testing.assert_array_equal(own, IMAGES[np.asarray(which)] / np.float32(255))
        (own,) = [shard.data for shard in outputs.addressable_shards if shard.device == device]
        alone = jt.attribute(relu, nets[row].params, inputs[column * layout.batch :][: layout.batch])["saliency"]
        np.testing.assert_allclose(own[0], alone.mean(-1), atol=1e-5)
    assert not re.search("all-reduce|all-gather|all-to-all|collective-permute", program.as_text() or "")


@given(images=st.integers(1, 200), most=st.integers(1, 70), data=st.sampled_from([1, 2, 3, 8]))
def test_every_image_is_on_one_device_in_one_step(images, most, data):
    layout = Layout.of(device_mesh(1, data), images, most)
    assert layout.batch <= most
    places = [
        (column, step, number)
        for column in range(data)
        for step in range(layout.steps)
        for number in range(layout.first(column, step), layout.first(column, step) + layout.batch)
    ]
    numbers = sorted(number for _, _, number in places)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= images
    assert layout.done(layout.steps) == images
    for steps in range(layout.steps):
        assert layout.done(steps) == sum(step < steps and number < images for _, step, number in places)


class TestAutomaticBatches:
    nets: ClassVar = [network(0), network(3)]

    @pytest.fixture(autouse=True)
    def one_step(self, monkeypatch):
        """So that all images here make a batch."""
        monkeypatch.setattr(compute, "_MIN_STEPS", 1)

    def test_they_fit_into_memory(self, monkeypatch, caplog):
        monkeypatch.setattr(passes, "memory_per_device", lambda: 60_000)
        monkeypatch.setattr(compute, "memory_per_device", lambda: 60_000)
        needed = []
        monkeypatch.setattr(compute, "bytes_needed", lambda program: needed.append(bytes_needed(program)) or needed[-1])
        with caplog.at_level(logging.INFO, "jaxtransfer"):
            affinity = jt.affinity_matrix(self.nets, IMAGES, methods=["saliency"])
        assert needed[0] > 0.8 * 60_000 >= needed[-1]
        (batch,) = re.findall(r"Batches of (\d+) images on each device for n00", caplog.text)
        assert 1 <= int(batch) < len(IMAGES)
        with pytest.raises(jt.JaxTransferError, match=r"'n00' with 13 images on a device would take .* are 60\.0 kB"):
            jt.affinity_matrix(self.nets, IMAGES, methods=["saliency"], batch_size=13)
        monkeypatch.undo()
        whole = jt.affinity_matrix(self.nets, IMAGES, methods=["saliency"], batch_size=13)
        np.testing.assert_allclose(affinity["saliency"], whole["saliency"], atol=1e-6)

    def test_they_halve_themselves_where_memory_runs_out(self, monkeypatch, caplog):
        compiled = Pass.compiled
        monkeypatch.setattr(Pass, "compiled", lambda self, *given: _Greedy(compiled(self, *given), self.layout.batch))
        with caplog.at_level(logging.INFO, "jaxtransfer"):
            affinity = jt.affinity_matrix(self.nets, IMAGES, methods=["saliency"])
        tried = [int(batch) for batch in re.findall(r"ran out at batches of (\d+)", caplog.text)]
        assert tried == [13, 5]  # of the first network; the second begins where the first ended
        monkeypatch.undo()
        whole = jt.affinity_matrix(self.nets, IMAGES, methods=["saliency"], batch_size=13)
        np.testing.assert_allclose(affinity["saliency"], whole["saliency"], atol=1e-6)

    def test_a_batch_is_an_eighth_of_the_images_at_most(self, monkeypatch, caplog):
        """The first batch is computed twice."""
        monkeypatch.undo()
        with caplog.at_level(logging.INFO, "jaxtransfer"):
            jt.affinity_matrix(self.nets, np.concatenate([IMAGES, IMAGES]), methods=["saliency"])
        assert "Batches of 4 images on each device for n00" in caplog.text

    def test_a_size_that_was_asked_for_is_not_changed(self, monkeypatch):
        compiled = Pass.compiled
        monkeypatch.setattr(Pass, "compiled", lambda self, *given: _Greedy(compiled(self, *given), self.layout.batch))
        with pytest.raises(jt.JaxTransferError, match="does not hold 5 images of network 'n00'; ask"):
            jt.affinity_matrix(self.nets, IMAGES, methods=["saliency"], batch_size=5)


class _Greedy:
    """A program of which memory holds only batches of 3."""

    def __init__(self, program: Any, batch: int) -> None:
        self._program, self._batch = program, batch

    def __call__(self, *arguments: Any) -> Any:
        if self._batch > 3:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return self._program(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Names of the networks that are computed, in order."""
    names: list[str] = []
    compute_points = PointComputation._compute

    def spied(self: PointComputation, points: Any, keys: Any, *rest: Any) -> None:
        names.extend(keys)
        compute_points(self, points, keys, *rest)

    monkeypatch.setattr(PointComputation, "_compute", spied)
    return names


def test_a_zoo_and_its_networks_share_their_points(tmp_path, computed):
    zoo = fill(jt.Zoo(tmp_path / "zoo"), range(4))
    first = jt.affinity_matrix(zoo, IMAGES, directory=tmp_path, mesh=device_mesh(2, 2))
    assert sorted(computed) == list(zoo.names)
    second = jt.affinity_matrix([network(seed) for seed in range(4)], IMAGES, directory=tmp_path)
    assert len(computed) == 4
    np.testing.assert_array_equal(first["saliency"], second["saliency"])


def test_an_object_store_looks_like_a_directory(tmp_path, computed):
    nets = [network(seed) for seed in (0, 3, 6)]
    for place in ("memory://sweep", tmp_path):
        computed.clear()
        some = jt.affinity_matrix(nets[:2], IMAGES, directory=place, methods=["saliency"])
        more = jt.affinity_matrix(nets, IMAGES, directory=place, methods=["saliency"])
        assert computed == ["n00", "n03", "n06"]
        np.testing.assert_array_equal(some["saliency"], more["saliency"][:2, :2])


def test_a_place_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        jt.affinity_matrix([network(0)], IMAGES, directory=tmp_path / "file")
    with pytest.raises(jt.JaxTransferError, match="points in nothing://there/points cannot be used"):
        jt.affinity_matrix([network(0)], IMAGES, directory="nothing://there")
