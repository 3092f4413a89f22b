"""Networks as the libraries make them, with keys, counters, statistics and numbers among the weights."""

import re
import subprocess
import sys
from collections.abc import Callable
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
from PIL import Image

import jaxtransfer as jt

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).random((5, 8, 8, 3), dtype=np.float32)


def blocks(file: str) -> list[str]:
    """The Python in a document."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)


class EveryLayer(nnx.Module):
    """A model with every usual type of layer, and with numbers, keys and None among its variables."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List(
            [nnx.Linear(8, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs), nnx.GroupNorm(8, 2, rngs=rngs)]
        )
        self.sequential = nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.relu, nnx.RMSNorm(8, rngs=rngs))
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, dropout_rate=0.1, rngs=rngs)
        self.embed = nnx.Embed(4, 8, rngs=rngs)
        self.lstm = nnx.RNN(nnx.LSTMCell(8, 8, rngs=rngs))
        self.gru = nnx.RNN(nnx.GRUCell(8, 8, rngs=rngs))
        self.low_rank = nnx.LoRA(8, 2, 8, rngs=rngs)
        self.scale, self.times, self.whether = nnx.Param(3.0), nnx.Variable(2), nnx.Variable(True)
        self.nothing = nnx.Param(None)
        self.key = nnx.Variable(jax.random.split(jax.random.key(1, impl="rbg"), 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.relu(self.batch_norm(self.conv(x)))).mean(1)
        for layer in self.layers:
            x = layer(x)
        x = self.attention(self.sequential(x)) + self.embed(jnp.arange(x.shape[1]) % 4)[None]
        for recurrent in (self.lstm, self.gru):
            x = jnp.asarray(recurrent(x)) + self.low_rank(x)
        bits = jax.random.key_data(self.key[...][0])
        return x * self.scale[...] * self.times[...] + (bits % 8).astype(x.dtype).sum()


GRAPH = nnx.graphdef(nnx.view(EveryLayer(nnx.Rngs(0)), deterministic=True, use_running_average=True))


def every_layer(weights: Any, images: jax.Array) -> jax.Array:
    return nnx.merge(GRAPH, weights)(images)


@pytest.fixture(scope="module")
def networks() -> list[jt.Network]:
    states = [nnx.state(EveryLayer(nnx.Rngs(seed))) for seed in range(3)]
    return [jt.Network(f"n{seed}", every_layer, state) for seed, state in enumerate(states)]


@pytest.fixture(scope="module")
def expected(networks: list[jt.Network]) -> np.ndarray:
    """Cosines of plain gradients, without `attribute` and without a sweep."""

    @jax.jit
    @jax.grad
    def gradient(images: jax.Array, leaves: list[Any]) -> jax.Array:
        return every_layer(jax.tree.unflatten(structure, leaves), images).sum()

    structure = jax.tree.structure(networks[0].params)
    maps = np.array(
        [np.abs(gradient(IMAGES, jax.tree.leaves(network.params))).mean(-1) for network in networks], np.float64
    )
    units = maps.reshape(len(networks), len(IMAGES), -1)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    return np.einsum("inp,jnp->ij", units, units) / len(IMAGES)


def test_a_split_state_can_be_attributed(networks: list[jt.Network]) -> None:
    for method, maps in jt.attribute(every_layer, networks[0].params, IMAGES).items():
        assert np.isfinite(maps).all(), method


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)], ids=str)
def test_split_states_can_be_compared_on_any_mesh(networks, expected, shape) -> None:
    """Python numbers among the weights stay such: under strict promotion, integers could not multiply floats."""
    with jax.transfer_guard("disallow"):
        affinity = jt.affinity_matrix(networks, IMAGES, mesh=jt.device_mesh(*shape), methods=["saliency"])
    np.testing.assert_allclose(affinity["saliency"], expected, atol=1e-5)


def test_python_numbers_do_not_widen_bfloat16() -> None:
    """In a sweep as anywhere else."""
    types = []

    def apply(weights: Any, images: jax.Array) -> jax.Array:
        outputs = images.astype(jnp.bfloat16) * weights["kernel"] * jax.lax.stop_gradient(weights["scale"])
        types.append(outputs.dtype)
        return outputs

    kernel = jnp.ones((1, 1, 1, 3), jnp.bfloat16)
    networks = [jt.Network(name, apply, {"kernel": kernel, "scale": 2.0}) for name in "ab"]
    jt.affinity_matrix(networks, IMAGES, methods=["saliency"])
    assert {*types} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("pure", [False, True])
def test_a_split_state_can_be_stored_in_a_zoo(networks, tmp_path: Path, pure: bool) -> None:
    zoo = jt.Zoo(tmp_path / "zoo")
    state = networks[0].params
    dicts = nnx.to_pure_dict(state)
    zoo.add(jt.Network("n", every_layer, dicts if pure else state))
    again = zoo["n"].params
    assert jax.tree.structure(again) == jax.tree.structure(dicts)
    assert [type(leaf) for leaf in jax.tree.leaves(again)] == [type(leaf) for leaf in jax.tree.leaves(dicts)]
    assert [*map(str, map(jax.typeof, jax.tree.leaves(again)))] == [*map(str, map(jax.typeof, jax.tree.leaves(dicts)))]
    run = jax.jit(every_layer)
    np.testing.assert_array_equal(run(again, IMAGES), run(state, IMAGES))


class TestDocument:
    """The lines of docs/networks.md, which come in the order of these tests."""

    nnx, linen, equinox, haiku, keras, module, program = blocks("docs/networks.md")

    def check(self, text: str, names: dict[str, Any], answer: Callable[[jax.Array], Any]) -> None:
        exec(text, names)
        weights, apply = names.get("weights", names.get("variables")), names["apply"]
        np.testing.assert_allclose(apply(weights, IMAGES), answer(jnp.asarray(IMAGES)), atol=1e-5)
        maps = jt.attribute(apply, weights, IMAGES, methods=["saliency"])["saliency"]
        answers = jax.grad(lambda images: answer(images).sum())(jnp.asarray(IMAGES))
        np.testing.assert_allclose(maps, np.abs(answers), atol=1e-5)
        networks = [jt.Network(name, apply, weights) for name in "ab"]
        found = jt.affinity_matrix(networks, IMAGES, methods=["saliency"], mesh=jt.device_mesh(2, 2))
        np.testing.assert_allclose(found["saliency"], 1, atol=1e-6)

    def test_nnx(self) -> None:
        class Net(nnx.Module):
            def __init__(self) -> None:
                self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
                self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

            def __call__(self, images: jax.Array) -> jax.Array:
                return self.dropout(self.conv(images))

        model = Net()
        self.check(self.nnx, {"model": model}, lambda images: model.conv(images))

    def test_linen(self) -> None:
        class Net(nn.Module):
            @nn.compact
            def __call__(self, images: jax.Array, train: bool) -> jax.Array:
                x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), name="conv")(images))
                return nn.Dropout(0.5, deterministic=not train)(x)

        model = Net()
        variables = model.init(jax.random.key(0), IMAGES, train=False)
        conv = variables["params"]["conv"]
        self.check(
            self.linen,
            {"model": model, "variables": variables},
            lambda images: nn.Conv(4, (3, 3)).apply({"params": conv}, images) / np.sqrt(1 + 1e-5),
        )

    def test_equinox(self) -> None:
        keys = jax.random.split(jax.random.key(0))
        layers = [eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Lambda(jax.nn.softplus), eqx.nn.Dropout(0.5)]
        convolve = jax.vmap(layers[0])
        self.check(
            self.equinox,
            {"model": eqx.nn.Sequential(layers)},
            lambda images: jax.nn.softplus(convolve(images.transpose(0, 3, 1, 2))),
        )

    @pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku")
    def test_haiku(self) -> None:
        def forward(images: jax.Array, is_training: bool) -> jax.Array:
            return hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(images), is_training)

        names: dict[str, Any] = {"hk": hk, "jax": jax, "forward": forward, "images": IMAGES}

        def answer(images: jax.Array) -> jax.Array:
            params, state = names["weights"]
            conv = hk.without_apply_rng(hk.transform(lambda images: hk.Conv2D(4, 3)(images)))
            mean, variance = (state[f"batch_norm/~/{name}_ema"]["average"] for name in ("mean", "var"))
            return (conv.apply({"conv2_d": params["conv2_d"]}, images) - mean) / jnp.sqrt(variance + 1e-5)

        self.check(self.haiku, names, answer)

    def test_keras(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        import keras

        layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
        model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        kernel = layers[0].kernel.value
        self.check(
            self.keras,
            {"model": model},
            lambda images: (
                jax.lax.conv_general_dilated(
                    images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                / np.sqrt(1 + 1e-3)
            ),
        )
        with pytest.raises(
            jt.JaxTransferError, match=r"hold a Variable at \[0\]: .*a Keras variable's array is its value"
        ):
            jt.Network("keras", lambda weights, images: images, model.trainable_variables)

    def test_zoo_and_command_line(self, tmp_path: Path) -> None:
        """As they stand there, in a folder of one's own."""
        (tmp_path / "my_nets.py").write_text(self.module)
        (tmp_path / "fill.py").write_text(self.program)
        (tmp_path / "PHOTOS").mkdir()
        for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)):
            Image.fromarray(image).save(tmp_path / "PHOTOS" / f"{i}.png")
        lines = re.findall(
            r"^jaxtransfer (affinity .*|rank .*)$", (ROOT / "docs/networks.md").read_text(), re.MULTILINE
        )
        assert len(lines) == 2

        def run(*arguments: str) -> str:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        run("fill.py")
        run("-m", "jaxtransfer", *lines[0].split())
        assert run("-m", "jaxtransfer", *lines[1].split()).count("net-1") == 3


def test_lines_of_the_readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """On a model that trains with dropout and batch normalisation, beside a zoo with one network."""
    (text,) = (block for block in blocks("README.md") if "nnx.split" in block)
    monkeypatch.chdir(tmp_path)
    networks = [jt.Network("other", relu_of, {"w": np.ones((1, 1, 3, 2), np.float32)}, jt.Preprocess((8, 8)))]
    jt.Zoo("ZOO").add(networks[0])
    monkeypatch.setattr(jt, "load_probe", lambda folder: jt.Probe(IMAGES, tuple("abcde"), "", ()))

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.conv = nnx.Conv(3, 4, (3, 3), strides=4, rngs=nnx.Rngs(0))
            self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

        def __call__(self, images: jax.Array) -> jax.Array:
            return self.dropout(nnx.relu(self.norm(self.conv(images))))

    names: dict[str, Any] = {"my_model": Net(), "images": IMAGES}
    exec(text, names)
    assert {*names["maps"]} == {*jt.METHODS}
    assert "('other', " in capsys.readouterr().out


def relu_of(weights: Any, images: jax.Array) -> jax.Array:
    return jax.nn.relu(images @ weights["w"][0, 0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": [np.ones(2), jax.nn.relu]}, r"hold a .* at \['w'\]\[1\]: pass arrays .*equinox.partition"),
        ({"w": "text"}, r"hold a str at \['w'\]"),
        ("text", "hold a str: "),
        ({"w": np.array(["text"])}, r"hold a ndarray at \['w'\]"),
        ({"w": 10**30}, r"hold the number 10{30}, too large for JAX, at \['w'\]"),
        ({"w": np.ones(2), 1: np.ones(2)}, "cannot be flattened by JAX: "),
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), None),
        (eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0)), r"hold a .* at \.activation: .*equinox.partition"),
    ],
)
def test_weights_that_are_no_arrays_are_named(weights: Any, message: str | None) -> None:
    if message is None:  # flax registers its modules with JAX
        assert jt.Network("n", relu_of, weights).params is weights
        return
    with pytest.raises(jt.JaxTransferError, match=f"The params of network 'n' .*{message}"):
        jt.Network("n", relu_of, weights)
    with pytest.raises(jt.JaxTransferError, match=f"^params .*{message}"):
        jt.attribute(relu_of, weights, IMAGES)
