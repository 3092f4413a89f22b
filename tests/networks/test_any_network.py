"""Networks as the libraries make them, with keys, counters, statistics and numbers among the weights."""

import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtransfer as jt

IMAGES = np.random.default_rng(0).random((5, 8, 8, 3), dtype=np.float32)


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


@functools.cache
def graph() -> Any:
    with jax.ensure_compile_time_eval():
        return nnx.graphdef(nnx.view(EveryLayer(nnx.Rngs(0)), deterministic=True, use_running_average=True))


def every_layer(weights: Any, images: jax.Array) -> jax.Array:
    return nnx.merge(graph(), weights)(images)


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


@pytest.mark.slow
def test_a_split_state_can_be_attributed(networks: list[jt.Network]) -> None:
    for method, maps in jt.attribute(every_layer, networks[0].params, IMAGES).items():
        assert np.isfinite(maps).all(), method


@pytest.mark.slow
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
        (eqx.nn.Lambda(jax.nn.relu), r"hold a .* at \.fn: .*equinox.partition"),
    ],
)
def test_weights_that_are_no_arrays_are_named(weights: Any, message: str) -> None:
    with pytest.raises(jt.JaxTransferError, match=f"The params of network 'n' .*{message}"):
        jt.Network("n", relu_of, weights)
    with pytest.raises(jt.JaxTransferError, match=f"^params .*{message}"):
        jt.attribute(relu_of, weights, IMAGES)


def test_a_module_that_flax_registers_with_jax_can_be_the_weights() -> None:
    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    assert jt.Network("n", relu_of, module).params is module
