"""Unit saliency, integrated gradients and the curve of ModelGiF: against their definitions in PyTorch and NumPy."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import jaxtransfer as jt
from jaxtransfer.attribution.targets import unit_signs
from jaxtransfer.devices import device_mesh
from jaxtransfer.points.store import Points
from support.tiny_networks import network, softmax

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 6, 3))
PARAMS = {
    "conv": RNG.normal(size=(3, 3, 3, 7)),
    "bias": RNG.normal(size=7),
    "last": RNG.normal(size=(1, 1, 7, 4)),
    "dense": RNG.normal(size=(7, 5)),
}
PROBE = RNG.integers(0, 256, (7, 12, 14, 3), dtype=np.uint8)
PATH = ("integrated_gradients", "modelgif")


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def grid(params: Any, x: jax.Array) -> jax.Array:
    """[images, 8, 6, 4]."""
    return _conv(jax.nn.softplus(_conv(x, params["conv"]) + params["bias"][None, None, None]), params["last"])


def several(params: Any, x: jax.Array) -> Any:
    """A grid and a vector."""
    hidden = jax.nn.softplus(_conv(x, params["conv"]) + params["bias"][None, None, None])
    return {"grid": _conv(hidden, params["last"]), "vector": hidden.mean((1, 2)) @ params["dense"]}


def torch_grid(x: torch.Tensor) -> torch.Tensor:
    """The function `grid`, channels first."""
    conv, last = (torch.from_numpy(PARAMS[name]).permute(3, 2, 0, 1) for name in ("conv", "last"))
    return F.conv2d(F.softplus(F.conv2d(x, conv, torch.from_numpy(PARAMS["bias"]), padding=1)), last)


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _sign(place: int, vector: int) -> int:
    """The sign of a unit, with Python's integers."""
    x = place * 0x9E3779B9 % 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    x ^= x >> 16
    return 1 - 2 * (x >> (31 - vector) & 1)


class TestUnitSaliency:
    def test_is_the_mean_over_vectors_of_signs(self, float64):
        shapes = {"grid": (8, 6, 4), "vector": (5,)}

        def signed_sum(image: jax.Array, vector: int) -> jax.Array:
            outputs = several(PARAMS, image[None])
            flat = jnp.concatenate([outputs[name].ravel() for name in shapes])
            return flat @ jnp.asarray([_sign(place, vector) for place in range(len(flat))], flat.dtype)

        gradients = [jax.vmap(jax.grad(lambda x, v=v: signed_sum(x, v)))(jnp.asarray(IMAGES)) for v in range(8)]
        maps = jt.attribute(several, PARAMS, IMAGES, methods="unit_saliency")
        np.testing.assert_allclose(maps["unit_saliency"], np.abs(gradients).mean(0), rtol=1e-9)

    def test_of_a_linear_network_is_the_mean_absolute_sum_of_signed_weights(self):
        """Each pixel feeds two units, so E|s_1 a + s_2 b| = max(|a|, |b|)."""
        a, b = RNG.normal(size=(2, 20_000)).astype(np.float32)

        def apply(params: Any, x: jax.Array) -> jax.Array:
            return jnp.stack([x.reshape(len(x), -1) * weights[None] for weights in params], axis=1)

        images = np.ones((1, 100, 200, 1), np.float32)
        saliency = np.asarray(jt.attribute(apply, (a, b), images, methods="unit_saliency")["unit_saliency"]).ravel()
        outcomes = np.stack([np.abs(a + b), np.abs(a - b)])
        errors = saliency - outcomes.mean(0)
        np.testing.assert_allclose(outcomes.mean(0), np.maximum(np.abs(a), np.abs(b)), rtol=1e-5)
        stderr = np.abs(outcomes[0] - outcomes[1]) / 2 / np.sqrt(8)  # of eight independent vectors
        assert abs(errors.mean()) < 4 * np.sqrt(np.mean(stderr**2) / len(a))
        np.testing.assert_allclose(np.mean(errors**2), np.mean(stderr**2), rtol=0.05)

    def test_opposite_units_do_not_cancel(self):
        def apply(scale: jax.Array, x: jax.Array) -> jax.Array:
            return scale * jnp.concatenate([x.reshape(len(x), -1), -x.reshape(len(x), -1)], axis=1)

        maps = jt.attribute(apply, jnp.float32(3), jnp.ones((1, 1, 1, 1)), methods=("unit_saliency",))
        # Every vector gives 6 or, where the signs agree, 0.
        assert float(maps["unit_saliency"].squeeze()) in set(6 * np.arange(1, 9) / 8)

    def test_vectors_are_independent(self):
        signs = np.stack([np.asarray(unit_signs([(2**14,)], v)[0]) for v in range(8)])
        np.testing.assert_array_equal(signs[:, :50], [[_sign(place, v) for place in range(50)] for v in range(8)])
        correlations = signs @ signs.T / 2**14
        assert np.abs(correlations - np.eye(8)).max() < 4 / 2**7
        for shift in (1, 2, 7, 64):
            assert np.abs((signs[:, shift:] * signs[:, :-shift]).mean(1)).max() < 4 / 2**7

    def test_does_not_depend_on_target_or_neighbours(self):
        images = IMAGES.astype(np.float32)
        params = jax.tree.map(lambda w: w.astype(np.float32), PARAMS)
        maps = jt.attribute(grid, params, images, methods="unit_saliency")["unit_saliency"]
        alone = jt.attribute(grid, params, images[2:], methods="unit_saliency", target=jt.random_signs)
        np.testing.assert_allclose(alone["unit_saliency"], maps[2:], rtol=1e-5)

    def test_a_constant_sum_is_no_fault(self):
        params, images = network(0).params, PROBE.astype(np.float32) / 255
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jt.attribute(softmax, params, images, methods="unit_saliency")
        with pytest.warns(UserWarning, match="the sum of its units"):
            jt.attribute(softmax, params, images[:5], methods=("unit_saliency", "integrated_gradients"))


class TestSpatialMaximum:
    def test_is_the_sum_of_the_largest_values(self, float64):
        x = channels_first(IMAGES).requires_grad_()
        scalars = torch_grid(x).amax((2, 3)).sum(1)
        scalars.sum().backward()
        assert x.grad is not None
        np.testing.assert_allclose(jt.spatial_maximum(grid(PARAMS, jnp.asarray(IMAGES))), scalars.detach(), rtol=1e-9)
        maps = jt.attribute(grid, PARAMS, IMAGES, methods=("saliency", "epsilon_lrp"), target=jt.spatial_maximum)
        np.testing.assert_allclose(maps["saliency"], x.grad.permute(0, 2, 3, 1).abs(), rtol=1e-9, atol=1e-12)

    def test_of_what_is_no_grid_is_the_sum(self):
        tokens, vectors, numbers = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 4)), RNG.normal(size=2)
        outputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (tokens, vectors, numbers))
        expected = tokens.sum((1, 2)) + vectors.sum(1) + numbers
        np.testing.assert_allclose(jt.spatial_maximum(outputs), expected, rtol=1e-5)


def slow_curves(images: np.ndarray, function: Any = torch_grid) -> np.ndarray:
    """The curves of ModelGiF as its authors' code computes them, image by image: [images, 50, height, width, channels].

    The scalar is the sum of the outputs at the places where the channels are largest for the image itself.
    """
    from captum.attr._utils.approximation_methods import approximation_parameters

    weights, places = (parameter(50) for parameter in approximation_parameters("gausslegendre"))
    curves = []
    for image in images:
        x = channels_first(image[None])
        with torch.no_grad():
            flat = function(x).flatten(2)
        largest = F.one_hot(flat.argmax(2), flat.shape[2])
        total, curve = torch.zeros_like(x), []
        for weight, place in zip(weights, places, strict=True):
            point = (place * x).requires_grad_()
            (gradient,) = torch.autograd.grad((function(point).flatten(2) * largest).sum(), point)
            total = total + weight * gradient
            curve.append((x * total)[0].permute(1, 2, 0).numpy())
        curves.append(curve)
    return np.array(curves)


class TestPath:
    @pytest.mark.parametrize("target", ["sum", "random signs", "a square"])
    def test_integrated_gradients_of_captum(self, float64, target):
        captum = pytest.importorskip("captum.attr")
        signs = torch.from_numpy(np.asarray(unit_signs([(8, 6, 4)])[0], np.float64))
        ours, theirs = {
            "sum": (None, lambda out: out.sum((1, 2, 3))),
            "random signs": (jt.random_signs, lambda out: (out.permute(0, 2, 3, 1) * signs).sum((1, 2, 3))),
            "a square": (lambda out: jnp.square(out).sum((1, 2, 3)), lambda out: out.square().sum((1, 2, 3))),
        }[target]
        method = captum.IntegratedGradients(lambda x: theirs(torch_grid(x)))
        expected = method.attribute(channels_first(IMAGES), n_steps=50, method="gausslegendre").permute(0, 2, 3, 1)
        maps = jt.attribute(grid, PARAMS, IMAGES, methods=("integrated_gradients", "saliency"), target=ours)
        # Captum rounds the weights of the points to float32.
        np.testing.assert_allclose(maps["integrated_gradients"], expected.detach(), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("target", [None, jt.random_signs, lambda out: jax.nn.logsumexp(out, (1, 2, 3))])
    def test_integrated_gradients_are_complete(self, float64, target):
        maps = jt.attribute(grid, PARAMS, IMAGES, methods="integrated_gradients", target=target)["integrated_gradients"]
        scalar = target or (lambda out: out.sum((1, 2, 3)))
        difference = scalar(grid(PARAMS, jnp.asarray(IMAGES))) - scalar(grid(PARAMS, jnp.zeros_like(IMAGES)))
        np.testing.assert_allclose(maps.sum((1, 2, 3)), difference, rtol=1e-7)

    def test_curve_of_the_authors(self, float64):
        maps = jt.attribute(grid, PARAMS, IMAGES, methods=(*PATH, *jt.METHODS), target=jt.spatial_maximum)
        expected = slow_curves(IMAGES)
        np.testing.assert_allclose(maps["modelgif"], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(maps["modelgif"][:, -1], maps["integrated_gradients"])

    def test_along_with_other_methods_nothing_changes(self):
        images = IMAGES.astype(np.float32)
        params = jax.tree.map(lambda w: w.astype(np.float32), PARAMS)
        together = jt.attribute(grid, params, images, methods=jt.ATTRIBUTIONS)
        for method, maps in together.items():
            alone = jt.attribute(grid, params, images, methods=method)[method]
            np.testing.assert_allclose(alone, maps, rtol=1e-5, atol=1e-5 * float(jnp.abs(maps).max()))

    def test_in_bfloat16(self):
        images = jnp.asarray(IMAGES, jnp.float32)
        params = jax.tree.map(lambda w: w.astype(np.float32), PARAMS)
        methods = ("unit_saliency", *PATH)
        exact = jt.attribute(grid, params, images, methods=methods)
        rounded = jt.attribute(grid, params, images, methods=methods, precision="bfloat16")
        narrow = jt.attribute(grid, params, images.astype(jnp.bfloat16).astype(jnp.float32), methods=methods)
        for method in methods:
            assert rounded[method].dtype == jnp.float32
            differences = jnp.linalg.norm(rounded[method] - exact[method]) / jnp.linalg.norm(exact[method])
            assert 0 < differences < 0.02
            assert jnp.linalg.norm(narrow[method] - exact[method]) < 0.05 * jnp.linalg.norm(exact[method])

    def test_under_transformations_and_on_a_mesh(self):
        images = np.concatenate([IMAGES, IMAGES[:1]]).astype(np.float32)
        params = jax.tree.map(lambda w: w.astype(np.float32), PARAMS)
        methods = ("unit_saliency", *PATH)

        def compute(images: Any) -> Any:
            return jt.attribute(grid, params, images, methods=methods, target=jt.spatial_maximum)

        expected = compute(images)
        by_image = NamedSharding(device_mesh(1, 4), PartitionSpec("data"))
        pairs = jax.vmap(compute)(jnp.asarray(images).reshape(2, 2, *images.shape[1:]))
        for maps in (
            jax.jit(compute)(images),
            jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), pairs),
            compute(jax.device_put(images, by_image)),
        ):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), maps, expected)


def slow_affinities(nets: list[jt.Network], similarity: str) -> np.ndarray:
    """Means over images and points of the path of the similarity of maps, averaged over colour channels before."""
    vectors = []
    for net in nets:
        assert net.preprocess is None or isinstance(net.preprocess, jt.Preprocess)
        inputs = jnp.asarray(PROBE / np.float32(255))
        inputs = inputs if net.preprocess is None else net.preprocess(inputs)
        curves = jt.attribute(net.apply, net.params, inputs, methods="modelgif", target=jt.spatial_maximum)["modelgif"]
        maps = jnp.moveaxis(curves.mean(-1), 1, 0)
        if net.preprocess is not None:
            maps = jnp.stack([net.preprocess.restore(of_point, PROBE.shape[1:3]) for of_point in maps])
        flat = np.asarray(maps, np.float64).reshape(50, len(PROBE), -1)
        vectors.append(flat - flat.mean(-1, keepdims=True) if similarity == "correlation" else flat)
    units = np.stack(vectors) / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.einsum("iknp,jknp->ij", units, units) / (50 * len(PROBE))


class TestAffinity:
    NETS = network(0), network(1)

    @pytest.mark.parametrize("similarity", ["cosine", "correlation"])
    def test_of_curves_is_the_mean_over_images_and_points(self, similarity, tmp_path):
        options: dict[str, Any] = {"methods": "modelgif", "target": "spatial_maximum", "similarity": similarity}
        affinity = jt.affinity_matrix(self.NETS, PROBE, directory=tmp_path, **options)
        np.testing.assert_allclose(affinity["modelgif"], slow_affinities([*self.NETS], similarity), atol=2e-6)
        assert Points(f"{tmp_path}/points").open("n00", f"modelgif-{similarity}").shape == (7, 50 * 12, 14)

    def test_does_not_depend_on_batches_and_devices(self):
        methods = ("unit_saliency", *PATH)
        options: dict[str, Any] = {"methods": methods, "similarity": "correlation"}
        one = jt.affinity_matrix(self.NETS, PROBE, **options, batch_size=7)
        other = jt.affinity_matrix(self.NETS, PROBE, **options, batch_size=2, mesh=device_mesh(2, 2))
        for method in methods:
            np.testing.assert_allclose(other[method], one[method], atol=2e-6)

    def test_of_sketches_is_within_the_stated_error(self):
        nets = [network(seed) for seed in (0, 3, 6, 9, 12, 15)]
        whole, sketched = (jt.affinity_matrix(nets, PROBE, methods="modelgif", sketch=sketch) for sketch in (None, 60))
        stated, pairs = sketched.sketch_stderr("modelgif"), np.triu_indices(len(nets), 1)
        assert stated is not None
        errors = (sketched["modelgif"] - whole["modelgif"])[pairs] / stated[pairs]
        assert 0.5 < np.sqrt(np.mean(errors**2)) < 1.5

    def test_a_curve_that_stays_at_zero_has_no_direction(self):
        """Networks that are dead near the beginning of the path."""

        def apply(params: jax.Array, x: jax.Array) -> jax.Array:
            return jax.nn.relu(x.reshape(len(x), -1) @ params - 0.5)

        nets = [jt.Network(name, apply, RNG.random((504, 3)).astype(np.float32) / 252) for name in "ab"]
        affinity = jt.affinity_matrix(nets, np.full((2, 12, 14, 3), 255, np.uint8), methods="integrated_gradients")
        assert affinity.counts("integrated_gradients")[0, 1] == 2
        with pytest.raises(jt.JaxTransferError, match="Network 'a' has no usable modelgif map"):
            jt.affinity_matrix(nets, np.full((2, 12, 14, 3), 255, np.uint8), methods="modelgif")

    def test_faults(self):
        nets = [jt.Network(net.name, softmax, net.params) for net in (network(0), network(3))]
        assert jt.affinity_matrix(nets, PROBE, methods="unit_saliency").faults == {}
        with pytest.warns(UserWarning, match="^Networks n00, n03: the sum of"):
            jt.affinity_matrix(nets, PROBE, methods="integrated_gradients")

        def coupled(params: jax.Array, x: jax.Array) -> jax.Array:
            return x * x.mean(0, keepdims=True) * params

        nets = [jt.Network(name, coupled, np.float32(number)) for number, name in enumerate("ab", 1)]
        with pytest.warns(UserWarning, match="depends on the other images"):
            jt.affinity_matrix(nets, PROBE, methods="unit_saliency", batch_size=4)

    def test_points_of_units_do_not_depend_on_the_target(self, tmp_path):
        options: dict[str, Any] = {"methods": ("unit_saliency", "integrated_gradients"), "directory": tmp_path}
        jt.affinity_matrix(self.NETS, PROBE, **options)
        key = (tmp_path / "points/n00/unit_saliency/key.json").read_text()
        written = (tmp_path / "points/n00/unit_saliency/key.json").stat().st_mtime_ns
        jt.affinity_matrix(self.NETS, PROBE, **options, target="spatial_maximum")
        assert (tmp_path / "points/n00/unit_saliency/key.json").stat().st_mtime_ns == written
        assert "target" not in key
        assert '"target": "spatial_maximum"' in (tmp_path / "points/n00/integrated_gradients/key.json").read_text()


def test_unknown_names_are_listed():
    with pytest.raises(jt.JaxTransferError, match=r"There is no attribution method 'units'; there are: .*modelgif"):
        jt.attribute(grid, PARAMS, IMAGES, methods="units")
    with pytest.raises(jt.JaxTransferError, match=r"No attribution method is named; there are: .*unit_saliency"):
        jt.attribute(grid, PARAMS, IMAGES, methods=())
