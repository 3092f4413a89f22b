"""Affinities against a slow float64 rewrite, standard errors against the bootstrap, and what resumes."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy.spatial.distance import squareform

import jaxtransfer as jt
from jaxtransfer.comparison.similarity import similarities
from support.helpers import quick_cases


def conv_net(params: Any, x: jax.Array) -> jax.Array:
    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return conv(jax.nn.relu(conv(x, params["a"])), params["b"])


def network(seed: int, preprocess: Any = None, apply: Any = conv_net) -> jt.Network:
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(3, 3, 3, 6)), "b": rng.normal(size=(3, 3, 6, 4))}
    return jt.Network(f"n{seed}", apply, {k: v.astype(np.float32) for k, v in params.items()}, preprocess)


IMAGES = np.random.default_rng(0).integers(0, 256, (13, 14, 18, 3), dtype=np.uint8)
HALF = jt.Preprocess((7, 9), mean=0.5, std=0.5)
SQUARE = jt.Preprocess((14, 14))


def slow_affinity(networks: list[jt.Network], images: np.ndarray, method: str, similarity: str) -> np.ndarray:
    """Methods A.3 and A.4 in float64, one network, image and pair at a time: [images, networks, networks]."""
    vectors = []
    for net in networks:
        rows = []
        for image in images.astype(np.float32)[:, None] / np.float32(255):
            x = jnp.asarray(image) if net.preprocess is None else net.preprocess(jnp.asarray(image))
            maps = jt.attribute(net.apply, net.params, x)[method].mean(-1)
            if isinstance(net.preprocess, jt.Preprocess):
                maps = net.preprocess.restore(maps, images.shape[1:3])
            rows.append(np.asarray(maps, np.float64).ravel())
        vectors.append(rows)
    result = np.empty((len(images), len(networks), len(networks)))
    for n in range(len(images)):
        for i in range(len(networks)):
            for j in range(len(networks)):
                a, b = vectors[i][n], vectors[j][n]
                if similarity == "correlation":
                    a, b = a - a.mean(), b - b.mean()
                result[n, i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
    return result


@pytest.fixture(scope="module")
def networks() -> list[jt.Network]:
    return [network(0), network(1), network(2, HALF), network(3, HALF), network(4, SQUARE)]


@pytest.mark.parametrize("similarity", quick_cases(["cosine", "correlation"], "cosine"))
def test_equals_a_slow_rewrite(networks: list[jt.Network], similarity: Any) -> None:
    affinity = jt.affinity_matrix(networks, IMAGES, similarity=similarity, batch_size=5)
    assert affinity.names == ("n0", "n1", "n2", "n3", "n4")
    assert affinity.methods == ("linear_predictivity", *jt.METHODS)
    for method in jt.METHODS:
        slow = slow_affinity(networks, IMAGES, method, similarity)
        assert affinity[method].dtype == np.float32
        np.testing.assert_allclose(affinity[method], slow.mean(0), atol=1e-5)
        np.testing.assert_allclose(affinity.stderr(method), slow.std(0, ddof=1) / np.sqrt(len(IMAGES)), atol=1e-5)
        np.testing.assert_array_equal(affinity[method], affinity[method].T)
        np.testing.assert_array_equal(np.diag(affinity[method]), 1)
        np.testing.assert_array_equal(affinity.counts(method), len(IMAGES))
    assert affinity.unusable == dict.fromkeys(affinity.methods, ())


@pytest.mark.slow
def test_batch_size_and_float_images_change_nothing(networks: list[jt.Network]) -> None:
    expected = jt.affinity_matrix(networks, IMAGES, batch_size=13)
    for images in (IMAGES, IMAGES.astype(np.float32) / np.float32(255)):
        actual = jt.affinity_matrix(networks, images, batch_size=4)
        for method in jt.METHODS:
            np.testing.assert_allclose(actual[method], expected[method], atol=1e-5)


def test_standard_error_equals_the_bootstrap(networks: list[jt.Network]) -> None:
    images = np.random.default_rng(5).integers(0, 256, (60, 14, 18, 3), dtype=np.uint8)
    affinity = jt.affinity_matrix(networks, images, methods=["saliency"], batch_size=20)
    by_pair = affinity.pseudo_values("saliency")
    assert by_pair is not None
    single = np.stack([squareform(row) + np.eye(len(networks)) for row in by_pair])
    np.testing.assert_allclose(single.mean(0), affinity["saliency"], atol=1e-6)
    draws = np.random.default_rng(0).integers(0, len(images), (4000, len(images)))
    bootstrap = single[draws].mean(1).std(0)
    off = ~np.eye(len(networks), dtype=bool)
    np.testing.assert_allclose(affinity.stderr("saliency")[off], bootstrap[off], rtol=0.1)


def test_ranking(networks: list[jt.Network]) -> None:
    affinity = jt.affinity_matrix(networks, IMAGES, methods=["saliency", "input_x_gradient"])
    ranked = affinity.rank("n2", method="saliency")
    assert {name for name, _, _ in ranked} == {"n0", "n1", "n3", "n4"}
    values = [value for _, value, _ in ranked]
    assert values == sorted(values, reverse=True)
    for name, value, stderr in ranked:
        assert value == affinity["saliency"][2, affinity.names.index(name)]
        assert stderr == affinity.stderr("saliency")[2, affinity.names.index(name)]
    with pytest.raises(jt.JaxTransferError, match="Say which method: saliency, input_x_gradient"):
        affinity.rank("n2")
    with pytest.raises(jt.JaxTransferError, match="no network 'x'; there are: n0"):
        affinity.rank("x", method="saliency")
    with pytest.raises(jt.JaxTransferError, match="no result for the method 'epsilon_lrp'"):
        affinity.rank("n2", method="epsilon_lrp")


def test_save_and_load_keep_every_bit(networks: list[jt.Network], tmp_path: Path) -> None:
    affinity = jt.affinity_matrix(networks, IMAGES, similarity="correlation")
    affinity.save(tmp_path)
    again = jt.Affinity.load(tmp_path)
    assert again.names == affinity.names
    assert again.similarity == "correlation"
    assert again.unusable == affinity.unusable
    for method in jt.METHODS:
        np.testing.assert_array_equal(again[method], affinity[method])
        np.testing.assert_array_equal(again.stderr(method), affinity.stderr(method))
        np.testing.assert_array_equal(again.counts(method), affinity.counts(method))
        np.testing.assert_array_equal(again.pseudo_values(method), affinity.pseudo_values(method))
    header = (tmp_path / "affinity_saliency.csv").read_text().splitlines()[0]
    assert header == ",n0,n1,n2,n3,n4"
    np.save(tmp_path / "pseudo_values_saliency.npy", np.zeros((13, 3)))
    with pytest.raises(jt.JaxTransferError, match=r"pseudo_values_saliency.npy is of other networks"):
        jt.Affinity.load(tmp_path)
    (tmp_path / "affinity_saliency.csv").write_text("")
    with pytest.raises(jt.JaxTransferError, match="does not hold a finished affinity run"):
        jt.Affinity.load(tmp_path)


class TestMapsWithoutDirection:
    """Zero, constant and non-finite maps are named, left out of their pairs' means, and counted."""

    maps = np.random.default_rng(3).normal(size=(3, 6, 20)).astype(np.float32)

    def test_pure_function(self) -> None:
        maps = self.maps.copy()
        maps[0, 1] = 0
        maps[1, 2, 7] = np.nan
        maps[2, 3, 0] = np.inf
        maps[2, 4] = 5
        for similarity, left_out in (("cosine", 3), ("correlation", 4)):
            cosines, usable = similarities(jnp.asarray(maps), similarity)
            assert int((~usable).sum()) == left_out
            assert bool(jnp.isfinite(cosines).all())
            assert not usable[0, 1]
            assert not usable[1, 2]
            assert not usable[2, 3]
            assert bool(usable[2, 4]) == (similarity == "cosine")

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_scale_of_a_map_does_not_matter(self, scale: float) -> None:
        expected, _ = similarities(jnp.asarray(self.maps))
        actual, usable = similarities(jnp.asarray(self.maps * np.float32(scale)))
        assert bool(usable.all())
        np.testing.assert_allclose(actual, expected, atol=1e-6)

    @staticmethod
    def blind(params: Any, x: jax.Array) -> jax.Array:
        """Sees nothing in dark images, and is not finite on very bright ones."""
        h = jax.nn.relu(x - 0.2) * params["a"].mean()
        return h * jnp.where(x.mean((1, 2, 3), keepdims=True) > 0.9, jnp.inf, 1)

    def test_in_a_run(self) -> None:
        images = IMAGES.copy()
        images[3] = 10
        images[5] = 255
        nets = [network(0), jt.Network("blind", self.blind, network(1).params), network(2)]
        names = [f"{n}.png" for n in range(len(images))]
        affinity = jt.affinity_matrix(nets, images, methods=["input_x_gradient"], image_names=names)
        assert affinity.unusable == {"input_x_gradient": (("blind", "3.png"), ("blind", "5.png"))}
        expected = np.array([[13, 11, 13], [11, 11, 11], [13, 11, 13]])
        np.testing.assert_array_equal(affinity.counts("input_x_gradient"), expected)
        rest = np.delete(np.arange(len(images)), [3, 5])
        without = jt.affinity_matrix(nets[:2], images[rest], methods=["input_x_gradient"])
        np.testing.assert_allclose(affinity["input_x_gradient"][0, 1], without["input_x_gradient"][0, 1], atol=1e-6)
        assert np.isfinite(affinity["input_x_gradient"]).all()

    def test_network_without_any_usable_map_is_an_error(self) -> None:
        dark = np.full_like(IMAGES, 10)
        nets = [network(0), jt.Network("blind", self.blind, network(1).params)]
        with pytest.raises(jt.JaxTransferError, match="'blind' has no usable saliency map"):
            jt.affinity_matrix(nets, dark, methods=["saliency"])

    def test_a_network_that_cannot_be_compared_is_left_out(self, tmp_path: Path) -> None:
        def fails(params: Any, x: jax.Array) -> jax.Array:
            return x @ params["no such weight"]

        def same(params: Any, x: jax.Array) -> jax.Array:
            return jnp.zeros((len(x), 2)) + params["a"].mean()

        def infinite(params: Any, x: jax.Array) -> jax.Array:
            return conv_net(params, x) + jnp.inf

        dead = [jt.Network(f.__name__, f, network(1).params) for f in (fails, same, infinite)]
        methods = ["linear_predictivity", "saliency"]
        alone = jt.affinity_matrix([network(0), network(2)], IMAGES, methods=methods)
        with pytest.warns(UserWarning, match="^3 of 5 networks cannot be compared and are left out: Network"):
            affinity = jt.affinity_matrix([dead[0], network(0), *dead[1:], network(2)], IMAGES, methods=methods)
        assert affinity.names == alone.names
        for method in methods:
            np.testing.assert_array_equal(affinity[method], alone[method])
        assert {*affinity.left_out} == {"fails", "same", "infinite"}
        assert all(repr(name) in sentence for name, sentence in affinity.left_out.items())
        affinity.save(tmp_path)
        assert jt.Affinity.load(tmp_path).only(affinity.names).left_out == affinity.left_out

    def test_one_usable_image_has_no_finite_standard_error(self) -> None:
        affinity = jt.affinity_matrix([network(0), network(1)], IMAGES[:1], methods=["saliency"])
        assert np.isinf(affinity.stderr("saliency")[0, 1])


class TestWorkIsDoneOnce:
    def test_each_distinct_preprocessing_runs_once_per_image(self) -> None:
        seen = []

        def preprocess(images: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: seen.append(len(images)))
            return images * 2

        nets = [network(0, preprocess), network(1, preprocess), network(2, preprocess)]
        jt.affinity_matrix(nets, IMAGES[:8], methods=["saliency"], batch_size=4)
        jax.effects_barrier()
        assert sum(seen) == 8

    def test_networks_of_one_architecture_share_one_trace(self) -> None:
        apply = chex.assert_max_traces(conv_net, n=1)
        nets = [network(seed, apply=apply) for seed in range(4)]
        jt.affinity_matrix(nets, IMAGES, batch_size=5)

    def test_finished_points_are_never_computed_again(self, tmp_path: Path) -> None:
        runs: list[int] = []

        def counted(params: Any, x: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: runs.append(1))
            return conv_net(params, x)

        nets = [network(seed, apply=counted) for seed in range(3)]

        def work(**options: Any) -> int:
            runs.clear()
            jt.affinity_matrix(options.pop("nets", nets), IMAGES, batch_size=13, directory=tmp_path, **options)
            jax.effects_barrier()
            return len(runs) // 2  # of the one batch of a network a second pass looks for faults

        assert work(nets=nets[:2]) == 2
        assert work() == 1  # only the new network
        assert work(similarity="correlation") == 0
        assert work(methods=["saliency"]) == 0
        assert work(epsilon=1e-3) == 3
        changed = jt.Network("n1", counted, network(9).params)
        assert work(nets=[nets[0], changed, nets[2]], epsilon=1e-3) == 1

    def test_an_interrupted_run_goes_on_and_ends_in_the_same_bits(self, tmp_path: Path) -> None:
        nets = [network(seed) for seed in range(4)]
        expected = jt.affinity_matrix(nets, IMAGES, batch_size=5)

        def interrupt(done: int, total: int, name: str) -> None:
            if name == "n2":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            jt.affinity_matrix(nets, IMAGES, batch_size=5, directory=tmp_path, progress=interrupt)
        finished = {file.parent.parent.name for file in (tmp_path / "points").glob("*/*/key.json")}
        assert finished == {"n0", "n1"}
        seen = []
        affinity = jt.affinity_matrix(
            nets, IMAGES, batch_size=5, directory=tmp_path, progress=lambda *step: seen.append(step)
        )
        assert seen[0] == (13, 52, "n0")
        assert (52, 52, "n3") in seen
        assert (4, 4, "rows of epsilon_lrp") in seen
        assert seen[-1] == (4, 4, "columns of linear_predictivity")
        for method in affinity.methods:
            np.testing.assert_array_equal(affinity[method], expected[method])
            np.testing.assert_array_equal(affinity.stderr(method), expected.stderr(method))


@pytest.mark.parametrize(
    ("networks", "images", "options", "message"),
    [
        ([], IMAGES, {}, "no networks"),
        ([network(0), network(0)], IMAGES, {}, "Several networks have the name n0"),
        ([network(0)], IMAGES[:0], {}, "no probe images"),
        ([network(0)], IMAGES[0], {}, "Probe images must be"),
        ([network(0)], IMAGES.astype(np.int64), {}, "Probe images must be"),
        ([network(0)], IMAGES, {"methods": ["nothing"]}, "There is no method 'nothing'; there are: saliency"),
        (
            [network(0)],
            IMAGES,
            {"similarity": "euclid"},
            "There is no similarity 'euclid'; there are: cosine",
        ),
        ([network(0)], IMAGES, {"batch_size": 0}, "batch size must be at least 1"),
        ([network(0)], IMAGES, {"image_names": ["a"]}, "13 images but 1 image names"),
    ],
)
def test_bad_input_is_said(networks: Any, images: Any, options: Any, message: str) -> None:
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.affinity_matrix(networks, images, **options)
