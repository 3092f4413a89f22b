"""Faults that make maps meaningless: which are found, which are not, and where they are said."""

import functools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxtransfer as jt
from jaxtransfer.attribution.diagnostics import draws_random_numbers
from jaxtransfer.attribution.targets import unit_signs
from jaxtransfer.devices import device_mesh
from jaxtransfer.points.store import Points
from support.helpers import quick_cases

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 8, 8, 3)).astype(np.float32)
PROBE = RNG.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
WEIGHTS = {"conv": RNG.normal(size=(3, 3, 3, 6)), "dense": RNG.normal(size=(6, 10)), "scale": RNG.normal(1, 0.05, 10)}
WEIGHTS = {name: value.astype(np.float32) for name, value in WEIGHTS.items()}


def spread(params: Any, x: jax.Array) -> jax.Array:
    """[images, 4, 4, 6]."""
    return lax.conv_general_dilated(x, params["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def logits(params: Any, x: jax.Array) -> jax.Array:
    """[images, 10]."""
    return jax.nn.relu(spread(params, x)).mean((1, 2)) @ params["dense"]


def normalised(x: jax.Array, axis: Any = -1) -> jax.Array:
    """A norm without a learned scale."""
    return (x - x.mean(axis, keepdims=True)) * lax.rsqrt(x.var(axis, keepdims=True) + 1e-5)


CONSTANT = {
    "softmax": lambda p, x: jax.nn.softmax(logits(p, x)),
    "softmax of two": lambda p, x: jax.nn.softmax(logits(p, x)[:, :2]),
    "softmax by hand": lambda p, x: jnp.exp(logits(p, x)) / jnp.exp(logits(p, x)).sum(1, keepdims=True),
    "softmax at every place": lambda p, x: jax.nn.softmax(spread(p, x)),
    "layer norm": lambda p, x: normalised(logits(p, x)),
    "layer norm of tokens": lambda p, x: normalised(spread(p, x).reshape(len(x), 16, 6)),
    "instance norm": lambda p, x: normalised(spread(p, x), (1, 2)),
    "mean taken off": lambda p, x: logits(p, x) - logits(p, x).mean(1, keepdims=True),
    "several outputs": lambda p, x: {"a": jax.nn.softmax(logits(p, x)), "b": normalised(spread(p, x), (1, 2))},
    "one number": lambda p, x: jax.nn.softmax(logits(p, x)).sum(1) + 0 * x.sum((1, 2, 3)),
}
VARYING = {
    "logits": logits,
    "spread": spread,
    "log-softmax": lambda p, x: jax.nn.log_softmax(logits(p, x)),
    "sigmoid": lambda p, x: jax.nn.sigmoid(logits(p, x)),
    "unit length": lambda p, x: logits(p, x) / jnp.linalg.norm(logits(p, x), axis=1, keepdims=True),
    "layer norm with a scale": lambda p, x: normalised(logits(p, x)) * p["scale"][None],
    "softmax inside": lambda p, x: jax.nn.softmax(spread(p, x)).mean((1, 2)) @ p["dense"],
    "one softmax of two outputs": lambda p, x: (jax.nn.softmax(logits(p, x)), logits(p, x)),
    "attention within an image": lambda p, x: jax.vmap(lambda t: jax.nn.softmax(t @ t.T) @ t)(
        spread(p, x).reshape(len(x), 16, 6)
    ),
}


def in_type(function: Any, dtype: Any) -> Any:
    return lambda p, x: function(jax.tree.map(lambda w: jnp.asarray(w, dtype), p), x.astype(dtype))


class TestSumsThatDoNotDependOnTheImage:
    @pytest.mark.parametrize("name", [name for name in CONSTANT if name != "one number"])
    def test_are_found_and_random_signs_help(self, name):
        assert jt.find_faults(CONSTANT[name], WEIGHTS, IMAGES) == ("constant_scalar",)
        assert jt.find_faults(CONSTANT[name], WEIGHTS, IMAGES, target=jt.random_signs) == ()

    @pytest.mark.parametrize("name", VARYING)
    def test_others_are_not(self, name):
        assert jt.find_faults(VARYING[name], WEIGHTS, IMAGES) == ()

    @pytest.mark.parametrize("dtype", quick_cases(["bfloat16", "float16"], "bfloat16"))
    def test_in_short_types(self, dtype):
        for name in ("softmax", "softmax at every place", "layer norm"):
            assert jt.find_faults(in_type(CONSTANT[name], dtype), WEIGHTS, IMAGES) == ("constant_scalar",)
        for name in ("logits", "spread", "sigmoid"):
            assert jt.find_faults(in_type(VARYING[name], dtype), WEIGHTS, IMAGES) == ()

    def test_in_float64(self, float64):
        """Also where the derivative of the sum is so small that in float32 it would be rounding noise."""
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), WEIGHTS)
        images = jnp.asarray(IMAGES, jnp.float64)

        def nearly(p: Any, x: jax.Array) -> jax.Array:
            return normalised(logits(p, x)) * (1 + 1e-5 * p["scale"][None])

        assert jt.find_faults(CONSTANT["softmax"], params, images) == ("constant_scalar",)
        assert jt.find_faults(nearly, params, images) == ()
        assert jt.find_faults(nearly, WEIGHTS, IMAGES) == ("constant_scalar",)

    @pytest.mark.parametrize("scale", [1, 30, 1000])
    def test_a_softmax_that_is_sure_of_itself(self, scale):
        """The gradients of its units are then as small as rounding errors."""
        images = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype(np.float32)

        def apply(p: Any, x: jax.Array) -> jax.Array:
            return scale * spread(p, x)[:, 0, 0]

        largest = jax.nn.softmax(apply(WEIGHTS, jnp.asarray(images))).max(1)
        assert scale == 1 or largest[::2].min() > 0.9  # or the test would not be one
        assert jt.find_faults(lambda p, x: jax.nn.softmax(apply(p, x)), WEIGHTS, images) == ("constant_scalar",)
        assert jt.find_faults(apply, WEIGHTS, images) == ()

    @pytest.mark.parametrize("methods", ["saliency", "epsilon_lrp"])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_whatever_is_asked_for(self, methods, precision):
        def apply(p: Any, x: jax.Array) -> jax.Array:
            return CONSTANT["softmax"](p, x)

        with pytest.warns(UserWarning, match="does not depend on the image beyond rounding"):
            jt.attribute(apply, WEIGHTS, IMAGES, methods=methods, precision=precision)

    def test_a_single_unit_or_a_chosen_one_is_not_compared_with_others(self):
        """Of a target, only the units that enter it count, with their own weights, however small."""
        for target in (lambda o: o[:, 3], lambda o: 1e-20 * o.sum(1), lambda o: o.max(1)):
            assert jt.find_faults(lambda p, x: 1e12 * logits(p, x), WEIGHTS, IMAGES, target=target) == ()

        def both(p: Any, x: jax.Array) -> Any:
            return {"small": 1e-8 * logits(p, x), "large": 1e8 * logits(p, x)}

        assert jt.find_faults(both, WEIGHTS, IMAGES, target=lambda o: o["small"].sum(1)) == ()

    def test_images_without_any_gradient_say_nothing(self):
        """Blank and broken images neither hide a fault nor make one."""

        def seeing(p: Any, x: jax.Array) -> jax.Array:
            return jnp.where(x.mean((1, 2, 3))[:, None] > 0, logits(p, x), 0)

        blank = np.where(np.arange(4).reshape(4, 1, 1, 1) == 0, -1, IMAGES).astype(np.float32)
        broken = np.where(np.arange(4).reshape(4, 1, 1, 1) == 0, np.nan, IMAGES).astype(np.float32)
        for images in (blank, broken):
            assert jt.find_faults(seeing, WEIGHTS, images) == ()
            assert jt.find_faults(CONSTANT["softmax"], WEIGHTS, images) == ("constant_scalar",)
        assert jt.find_faults(seeing, WEIGHTS, -np.ones_like(IMAGES)) == ()


class TestRandomSigns:
    def test_by_definition(self):
        """MurmurHash3's finaliser, written with Python's integers."""

        def sign(i: int) -> int:
            x = i * 0x9E3779B9 % 2**32
            x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
            x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
            return -1 if (x ^ x >> 16) >> 31 else 1

        expected = [sign(i) for i in range(1000)]
        assert expected[0] != expected[1]
        np.testing.assert_array_equal(unit_signs([(1000,)])[0], expected)
        halves = unit_signs([(20, 25), (5, 100)])
        np.testing.assert_array_equal(np.concatenate([half.ravel() for half in halves]), expected)

    def test_are_like_random_ones(self):
        """Neither their mean nor a period stands out, over a million units."""
        signs = np.asarray(unit_signs([(2**20,)])[0], np.float64)
        power = np.abs(np.fft.rfft(signs)) ** 2 / len(signs)
        assert math.exp(-power.max()) * len(power) > 1e-3  # power is exponential with mean 1
        assert abs(signs.mean()) < 4 / math.sqrt(len(signs))

    def test_maps_are_those_of_the_signed_sum(self):
        signs = unit_signs([(4, 4, 6)])[0]
        gradient = jax.grad(lambda x: (spread(WEIGHTS, x) * signs[None]).sum())(jnp.asarray(IMAGES))
        maps = jt.attribute(spread, WEIGHTS, IMAGES, target=jt.random_signs, methods="saliency")
        np.testing.assert_allclose(maps["saliency"], abs(gradient), rtol=1e-4, atol=1e-5)

    def test_over_all_outputs(self):
        outputs = {"a": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.ones((4, 2, 2), jnp.float32)}
        flat = np.concatenate([np.asarray(leaf).reshape(4, -1) for leaf in outputs.values()], axis=1)
        np.testing.assert_allclose(jt.random_signs(outputs), flat @ np.asarray(unit_signs([(7,)])[0]), rtol=1e-5)


class Net(nn.Module):
    """With batch normalisation and dropout, each of which can be in training mode."""

    norm: bool = False
    drop: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not self.norm)(nn.Conv(5, (3, 3))(x))
        return nn.Dropout(0.5, deterministic=not self.drop)(nn.relu(x)).mean((1, 2))


@functools.cache
def variables() -> Any:
    return jax.jit(Net().init)(jax.random.key(0), IMAGES)


def linen(*, norm: bool = False, drop: bool = False) -> tuple[Any, Any]:
    def apply(v: Any, x: jax.Array) -> jax.Array:
        return Net(norm=norm, drop=drop).apply(v, x, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})[0]

    return apply, variables()


def with_nnx(*, norm: bool = False, drop: bool = False) -> tuple[Any, Any]:
    class Model(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(5, use_running_average=not norm, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, deterministic=not drop, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dropout(nnx.relu(self.norm(self.conv(x))))

    graph, state = nnx.split(Model())
    return lambda state, x: nnx.merge(graph, state)(x), state


def with_haiku(*, norm: bool = False, drop: bool = False) -> tuple[Any, Any]:
    def net(x: jax.Array, training: bool) -> jax.Array:
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(5, 3)(x), is_training=training)
        return hk.dropout(hk.next_rng_key(), 0.5, jax.nn.relu(x)) if drop else jax.nn.relu(x)

    transformed = hk.transform_with_state(net)
    both = transformed.init(jax.random.key(0), jnp.asarray(IMAGES), True)
    return lambda both, x: transformed.apply(*both, jax.random.key(1), x, norm)[0], both


@pytest.mark.parametrize("library", quick_cases([linen, with_nnx, with_haiku], linen))
@pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku")
def test_training_mode_is_named(library: Any):
    for training, expected in (
        ({}, ()),
        ({"norm": True}, ("coupled_images",)),
        ({"drop": True}, ("random_numbers",)),
        ({"norm": True, "drop": True}, ("coupled_images", "random_numbers")),
    ):
        with jax.numpy_dtype_promotion("standard"):  # Haiku multiplies integers with floating-point numbers
            apply, params = library(**training)
            assert jt.find_faults(apply, params, IMAGES) == expected


def test_a_state_that_is_updated_is_named():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    functions: list[tuple[Any, Any]] = [(Net(norm=True).apply, variables()), (lambda _, x: model(x), {})]
    for apply, params in functions:
        with pytest.raises(jt.JaxTransferError, match="changes the model's state, as batch normalisation in training"):
            jt.attribute(apply, params, IMAGES)


@pytest.mark.parametrize(
    "mix",
    [
        lambda y: y - y.mean(0, keepdims=True),
        lambda y: y * y.sum() ** 2,
        lambda y: y[::-1],
        lambda y: jax.nn.softmax(y @ y.T) @ y,
        lambda y: jnp.concatenate([y[:1] + 1e-6 * y[1:2], y[1:]]),
    ],
    ids=["mean", "sum", "order", "attention", "one of another"],
)
def test_coupled_images_are_found(mix):
    assert "coupled_images" in jt.find_faults(lambda p, x: mix(logits(p, x)), WEIGHTS, IMAGES)


def test_random_numbers_count_where_the_output_depends_on_them():
    def drawn(x: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.key(0), x.shape)

    def looped(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 2, lambda _, y: y * jax.random.uniform(jax.random.key(0)), x)

    def chosen(x: jax.Array) -> jax.Array:
        return lax.cond(x[0] > 0, lambda y: y + drawn(y), lambda y: y, x)

    def unused(x: jax.Array) -> jax.Array:
        drawn(x)
        jax.random.split(jax.random.key(0))
        return jax.jit(lambda y: (drawn(y), 2 * y))(x)[1]

    cases = [(lambda x: x + drawn(x), True), (looped, True), (chosen, True), (jax.jit(drawn), True), (unused, False)]
    for function, expected in cases:
        assert draws_random_numbers(jax.make_jaxpr(function)(jnp.ones(3))) == expected


class TestAttribute:
    def test_warns_at_first_sight_and_runs_once_after_that(self):
        runs: Counter[str] = Counter()

        def apply(p: Any, x: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: runs.update(["run"]))
            return CONSTANT["softmax"](p, x)

        def count() -> int:
            runs.clear()
            jax.block_until_ready(jt.attribute(apply, WEIGHTS, IMAGES))
            jax.effects_barrier()
            return runs["run"]

        with pytest.warns(UserWarning, match="maps are noise; attribute what comes before the softmax"):
            assert count() == 2
        assert count() == 1

    def test_says_nothing_under_jit_and_vmap(self):
        jax.jit(lambda x: jt.attribute(CONSTANT["layer norm"], WEIGHTS, x))(IMAGES)
        jax.vmap(lambda x: jt.attribute(CONSTANT["layer norm"], WEIGHTS, x))(IMAGES[None])
        jax.jit(lambda: jt.attribute(CONSTANT["layer norm"], WEIGHTS, IMAGES))()
        for transform in (jax.jit, jax.vmap):  # what is transformed is closed over
            weights = jax.tree.map(lambda w: w[None], WEIGHTS) if transform is jax.vmap else WEIGHTS
            transform(lambda p: jt.attribute(lambda _, x: CONSTANT["layer norm"](p, x), None, IMAGES))(weights)

    @pytest.mark.parametrize(
        "target",
        [
            lambda o: (o - o.mean(0, keepdims=True)).sum(1),
            lambda o: o.sum(1)[::-1],
            lambda o: jax.nn.softmax(o, 0)[:, 2],
        ],
        ids=["mean", "order", "softmax"],
    )
    def test_a_target_that_mixes_images_is_an_error_each_time(self, target):
        for _ in range(2):
            with pytest.raises(jt.JaxTransferError, match="The target mixes images"):
                jt.attribute(logits, WEIGHTS, IMAGES, target=target, methods="saliency")

    def test_a_target_may_leave_outputs_aside(self):
        def apply(p: Any, x: jax.Array) -> Any:
            return {"logits": logits(p, x), "class": logits(p, x).argmax(1), "loss": logits(p, x).sum()}

        maps = jt.attribute(apply, WEIGHTS, IMAGES, target=lambda o: o["logits"].sum(1))
        for method, expected in jt.attribute(logits, WEIGHTS, IMAGES).items():
            np.testing.assert_allclose(maps[method], expected, rtol=1e-4, atol=1e-6)


def network(name: str, seed: int, apply: Any = logits) -> jt.Network:
    rng = np.random.default_rng(seed)
    return jt.Network(name, apply, {k: rng.normal(size=v.shape).astype(np.float32) for k, v in WEIGHTS.items()})


FAULTY = {"ok": logits, "soft": CONSTANT["softmax"], "mixed": lambda p, x: jax.nn.relu(normalised(logits(p, x), 0))}
EXPECTED = {"soft": ("constant_scalar",), "mixed": ("coupled_images",)}


def networks() -> list[jt.Network]:
    return [network(name, seed, apply) for seed, (name, apply) in enumerate(FAULTY.items())]


def found(*arguments: Any, **options: Any) -> jt.Affinity:
    """The affinities, of which one warning says the faults."""
    with pytest.warns(UserWarning, match=r"^Network soft: the sum .* Network mixed: its output") as caught:
        affinity = jt.affinity_matrix(*arguments, **options)
    assert sum(str(warning.message).startswith("Network") for warning in caught) == 1
    return affinity


class TestAffinityMatrix:
    def test_three_random_networks_are_named_in_one_warning(self):
        """They were ranked by rounding noise, with affinities of .86 to .87."""
        nets = [network(f"n{seed}", seed, CONSTANT["softmax at every place"]) for seed in range(3)]
        with pytest.warns(UserWarning, match="^Networks n0, n1, n2: the sum .* --target random-signs") as caught:
            affinity = jt.affinity_matrix(nets, PROBE, methods="saliency")
        (warning,) = caught
        assert warning.filename == __file__
        assert affinity.faults == dict.fromkeys(affinity.names, ("constant_scalar",))
        assert jt.affinity_matrix(nets, PROBE, methods="saliency", target="random_signs").faults == {}

    @pytest.mark.parametrize("shape", quick_cases([(1, 1), (2, 2), (3, 1), (1, 3)], (2, 2)), ids=str)
    def test_on_every_mesh(self, shape):
        assert found(networks(), PROBE, methods="saliency", mesh=device_mesh(*shape), batch_size=2).faults == EXPECTED

    def test_relevance_that_explodes_is_named_with_its_line(self, tmp_path):
        """A sigmoid of almost nothing: its ratio is 0.5 / (z + epsilon), its derivative 0.25."""

        def explosive(p: Any, x: jax.Array) -> jax.Array:
            return jax.nn.sigmoid(1e-3 * logits(p, x))

        nets = [network("fair", 0), network("a", 1, explosive), network("b", 2, explosive)]
        line = explosive.__code__.co_firstlineno + 1
        words = rf"^Networks a, b: its epsilon-LRP maps .*test_diagnostics\.py:{line}:\d+ .*explosive"
        with pytest.warns(UserWarning, match=words):
            affinity = jt.affinity_matrix(nets, PROBE, directory=tmp_path)
        assert affinity.faults.keys() == {"a", "b"}
        assert affinity.faults["a"][0].startswith("exploding_relevance: ")
        # It is a fault of these maps alone, and known as long as they are.
        assert jt.affinity_matrix(nets, PROBE, methods="saliency", directory=tmp_path).faults == {}
        with pytest.warns(UserWarning, match=words):
            assert jt.affinity_matrix(nets, PROBE, directory=tmp_path).faults == affinity.faults
        with pytest.warns(UserWarning, match=rf"mean little: its epsilon-LRP .*test_diagnostics\.py:{line}"):
            jt.attribute(explosive, nets[1].params, IMAGES)

    def test_one_image_at_a_time_shows_all_but_coupling(self):
        with pytest.warns(UserWarning, match="^Network soft: the sum"):
            affinity = jt.affinity_matrix(networks()[:2], PROBE, methods="saliency", batch_size=1)
        assert affinity.faults == {"soft": ("constant_scalar",)}

    def test_first_batches_alone_run_twice(self):
        """Whatever the number of images, and in the same program: no more traces."""
        traces: Counter[str] = Counter()
        runs: Counter[str] = Counter()

        def apply(p: Any, x: jax.Array) -> jax.Array:
            traces.update(["trace"])
            jax.debug.callback(lambda: runs.update(["run"]))
            return logits(p, x)

        jt.affinity_matrix([network("a", 0, apply), network("b", 1, apply)], PROBE, batch_size=1)
        jax.effects_barrier()
        assert (traces["trace"], runs["run"]) == (1, 2 * (len(PROBE) + 1))

    @pytest.mark.filterwarnings("ignore:On .* images .* cannot be trusted")
    def test_faults_are_kept_with_the_points(self, tmp_path, monkeypatch):
        first = found(networks(), PROBE, methods=["saliency", "rsa"], directory=tmp_path)
        monkeypatch.setattr(Points, "finish", None)  # nothing is computed again
        again = found(networks(), PROBE, methods=["saliency"], directory=tmp_path)
        assert first.faults == again.faults == EXPECTED
        with pytest.warns(UserWarning, match="^Network mixed"):  # a constant sum does not matter to representations
            assert jt.affinity_matrix(networks(), PROBE, methods="rsa", directory=tmp_path).faults == {
                "mixed": EXPECTED["mixed"]
            }

    def test_points_from_before_there_were_faults_are_still_used(self, tmp_path, monkeypatch):
        found(networks(), PROBE, methods="saliency", directory=tmp_path)
        for file in tmp_path.glob("points/*/*/key.json"):
            key = json.loads(file.read_text())
            assert "target" not in key
            del key["faults"]
            file.write_text(json.dumps(key))
        monkeypatch.setattr(Points, "finish", None)
        assert jt.affinity_matrix(networks(), PROBE, methods="saliency", directory=tmp_path).faults == {}

    def test_other_targets_have_other_points(self, tmp_path):
        nets = [network("a", 0), network("b", 1)]
        by_sum = jt.affinity_matrix(nets, PROBE, methods="saliency", directory=tmp_path)
        by_signs = jt.affinity_matrix(nets, PROBE, methods="saliency", target="random_signs", directory=tmp_path)
        inputs = PROBE.astype(np.float32) / np.float32(255)
        maps = [
            np.asarray(jt.attribute(each.apply, each.params, inputs, target=jt.random_signs)["saliency"].mean(-1))
            for each in nets
        ]
        a, b = (each.reshape(len(PROBE), -1).astype(np.float64) for each in maps)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(by_signs["saliency"][0, 1], cosines.mean(), atol=1e-5)
        assert abs(by_signs["saliency"][0, 1] - by_sum["saliency"][0, 1]) > 1e-3

    def test_what_is_saved_is_loaded(self, tmp_path):
        affinity = found(networks(), PROBE, methods="saliency")
        affinity.save(tmp_path)
        assert jt.Affinity.load(tmp_path).faults == EXPECTED
        assert affinity.only(["soft", "ok"]).faults == {"soft": EXPECTED["soft"]}
        file = tmp_path / "affinity.json"
        saved = json.loads(file.read_text())
        del saved["faults"]
        file.write_text(json.dumps(saved))
        assert jt.Affinity.load(tmp_path).faults == {}

    def test_errors_name_the_network(self):
        def wrong(p: Any, x: jax.Array) -> jax.Array:
            return x @ p["dense"]

        def unruly(p: Any, x: jax.Array) -> jax.Array:
            return lax.atan2(logits(p, x), logits(p, x[::-1]))

        def classes(p: Any, x: jax.Array) -> jax.Array:
            return logits(p, x).argmax(1)

        def preprocess(images: jax.Array) -> jax.Array:
            return images @ jnp.ones((5, 5))

        unseen = jt.Network("bad", logits, WEIGHTS, preprocess)
        for bad, message in [
            (network("bad", 1, wrong), "Network 'bad': its function failed: TypeError: dot_general requires"),
            (network("bad", 1, unruly), "Network 'bad': .*'atan2'"),
            (network("bad", 1, classes), "Network 'bad': Only floating-point outputs .* is int32"),
            (unseen, "Network 'bad': its function failed: TypeError"),
        ]:
            with pytest.raises(jt.JaxTransferError, match=message):
                jt.affinity_matrix([network("ok", 0), bad], PROBE)


class NotAFunction(eqx.Module):
    weight: jax.Array | np.ndarray

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class Scale(nnx.Module):
    def __call__(self, x: jax.Array, factor: jax.Array | float = 1.0) -> jax.Array:
        return x * factor


class TwoArguments(eqx.Module):
    weight: jax.Array | np.ndarray

    def __call__(self, x: jax.Array, key: Any) -> jax.Array:
        return key["not there"]


class Tensor:
    """Looks like one of another library."""


Tensor.__module__ = "torch"
CALL = r"apply must be a function called as apply\(params, images\)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": 3}, r'methods must be names, like methods=\("saliency",\), not 3'),
        ({"methods": [3]}, "methods must be names"),
        ({"methods": "salience"}, "There is no attribution method 'salience'; there are: saliency"),
        ({"target": 3}, "target must be a function of the network's output, .* not 3"),
        ({"target": "sum"}, "target must be a function"),
        ({"target": lambda o: 3.0}, "one scalar per image, shape .*, not 3.0"),
        ({"target": lambda o: None}, "one scalar per image, shape .*, not None"),
        ({"target": lambda o: o.sum(1).astype(jnp.int32)}, "floating-point numbers, not int32"),
        ({"epsilon": "small"}, "epsilon must be greater than 0, not 'small'"),
        ({"epsilon": math.nan}, "epsilon must be greater than 0"),
        ({"images": [IMAGES[0]]}, "NumPy or JAX array, .* not a list; make one with np.stack"),
        ({"images": Tensor()}, r"not a torch.Tensor; take images.numpy\(\), with channels last"),
        ({"images": IMAGES[:0]}, "There are no images"),
        ({"images": IMAGES[:, :0]}, "There are no images"),
        ({"images": IMAGES.astype(int)}, "must be floating point"),
        ({"params": {"w": Tensor()}}, r"params must be a pytree of arrays, but hold a Tensor at \['w'\]"),
        ({"params": eqx.nn.Lambda(jax.nn.relu)}, "pytree of arrays, but hold a .* at .fn"),
        ({"apply": 3}, f"{CALL}, which 3 is not|{CALL}, not 3"),
        ({"apply": lambda x: x}, CALL),
        ({"apply": NotAFunction(np.ones(3))}, f"{CALL}, which the equinox model NotAFunction is not; .*eqx.partition"),
        ({"apply": TwoArguments(np.ones(3))}, "equinox model TwoArguments.*eqx.partition"),
        ({"apply": Net()}, f"{CALL}, which the flax model Net is not; .*model.apply"),
        ({"apply": Scale()}, f"{CALL}, not the flax model Scale; .*nnx.split"),
        ({"apply": lambda p, x: logits(p, x).sum()}, r"first axis is that of the 4 images, .* the shape \(\)"),
        ({"apply": lambda p, x: logits(p, x).sum(0)}, r"first axis is that of the 4 images, .* the shape \(10,\)"),
        ({"apply": lambda p, x: (logits(p, x), {"mean": p["conv"]})}, r"\[1\]\['mean'\] of its output has the shape"),
        ({"apply": lambda p, x: logits(p, x).argmax(1)}, "Only floating-point outputs .* its output is int32"),
        ({"apply": lambda p, x: logits(p, x) > 0}, "its output is bool"),
        ({"apply": lambda p, x: {"a": logits(p, x), "b": x > 0}}, r"\['b'\] of its output is bool"),
        ({"apply": lambda p, x: lax.complex(logits(p, x), logits(p, x))}, "its output is complex64"),
        ({"apply": lambda p, x: None}, "apply returned no arrays"),
        ({"apply": lambda p, x: "text"}, "apply must return arrays, .* not 'text'"),
    ],
)
@pytest.mark.parametrize("function", [jt.attribute, jt.find_faults], ids=["attribute", "find_faults"])
def test_what_is_wrong_is_said(function, changed, message):
    arguments = {"apply": logits, "params": WEIGHTS, "images": IMAGES} | changed
    if function is jt.find_faults and not {"methods", "epsilon"}.isdisjoint(changed):
        pytest.skip("it has no such argument")
    given = [arguments.pop(name) for name in ("apply", "params", "images")]
    with pytest.raises(jt.JaxTransferError, match=message) as raised:
        function(*given, **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "3 cannot be the name of a network"),
        ({"apply": NotAFunction(np.ones(3))}, f"Network 'a': {CALL}"),
        ({"params": {"w": "text"}}, r"The params of network 'a' .* hold a str at \['w'\]"),
        ({"preprocess": 3}, "Network 'a': preprocess must be"),
    ],
)
def test_a_network_says_what_is_wrong_with_it(changed, message):
    arguments: dict[str, Any] = {"name": "a", "apply": logits, "params": WEIGHTS} | changed
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.Network(**arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"networks": network("a", 0)}, "networks must be a Zoo or a list of Network, not a Network"),
        ({"networks": "zoo"}, "networks must be a Zoo or a list of Network, not a str"),
        ({"networks": [logits]}, r"networks must hold Network\(name, apply, params\) only, not a function"),
        ({"images": [PROBE[0]]}, "probe images must be a NumPy or JAX array"),
        ({"images": Tensor()}, "not a torch.Tensor"),
        ({"images": PROBE[:0]}, "There are no probe images"),
        ({"methods": 3}, "methods must be names"),
        ({"methods": "salience"}, "There is no method 'salience'; there are: saliency, .*svcca"),
        ({"target": "max"}, "There is no target 'max'; there are: sum, random_signs, spatial_maximum"),
        (
            {"target": jt.random_signs},
            "The target must be a name, one of sum, random_signs, spatial_maximum, not <function",
        ),
        ({"epsilon": 0}, "epsilon must be greater than 0"),
    ],
)
def test_affinity_matrix_says_what_is_wrong(changed, message):
    arguments = {"networks": [network("a", 0), network("b", 1)], "images": PROBE} | changed
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.affinity_matrix(arguments.pop("networks"), arguments.pop("images"), **arguments)


def test_one_method_may_stand_alone(tmp_path: Path):
    assert set(jt.attribute(logits, WEIGHTS, IMAGES, methods="saliency")) == {"saliency"}
    affinity = jt.affinity_matrix([network("a", 0), network("b", 1)], PROBE, methods="saliency")
    assert affinity.methods == ("saliency",)


def test_every_fault_says_what_to_do():
    for text in jt.FAULTS.values():
        assert re.search("attribute what|use running|switch it off|use input_x_gradient", text)
