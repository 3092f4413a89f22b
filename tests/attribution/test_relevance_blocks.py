"""Blocks that people train, two of each, against the same mathematics written out with the rules."""

from collections.abc import Callable
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

from support.relevance_reference import (
    assert_follows,
    attention,
    gated,
    gelu,
    hard_swish,
    normal,
    normalise,
    relu,
    shared,
    silu,
    tanh,
)  # fmt: skip

pytestmark = [
    pytest.mark.usefixtures("float64", "library_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku"),
]

SIDE, WIDTH, HEADS, CLASSES = 4, 8, 2, 5

Function = Callable[[Any, jax.Array], jax.Array]


def images() -> jax.Array:
    return normal(0, 2, SIDE, SIDE, 3)


def random(params: Any) -> Any:
    """Weights that are not small, scales around one, and variances above zero."""

    def draw(path: Any, leaf: Any) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        name = jax.tree_util.keystr(path)
        draws = np.random.default_rng(list(name.encode())).normal(size=leaf.shape)
        if "var" in name:
            return jnp.asarray(abs(draws) + 0.5)
        if leaf.ndim > 1:
            return jnp.asarray(draws / np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.asarray(0.5 * draws + ("scale" in name))

    return jax.tree_util.tree_map_with_path(draw, params)


# The layers with the rules; weights by their names in Flax.


def dense(p: Any, h: jax.Array) -> jax.Array:
    y = h @ p["kernel"]
    return y + p["bias"].reshape((1,) * (h.ndim - 1) + (-1,)) if "bias" in p else y


def convolve(p: Any, h: jax.Array, stride: int = 1, groups: int = 1, padding: str = "SAME") -> jax.Array:
    y = lax.conv_general_dilated(
        h, p["kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip
    return y + p["bias"] if "bias" in p else y


def layer_norm(p: Any, h: jax.Array) -> jax.Array:
    return normalise(h, -1, 1e-6, p["scale"], p["bias"])


def batch_norm(p: Any, statistics: Any, h: jax.Array) -> jax.Array:
    return (h - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5) * p["scale"] + p["bias"]


def mlp(p: Any, h: jax.Array) -> jax.Array:
    return dense(p["Dense_1"], gelu(dense(p["Dense_0"], h)))


def attend(p: Any, queries: jax.Array, h: jax.Array, constant_query: bool = False) -> jax.Array:
    q, k, v = (
        jnp.einsum("ntc,chd->nthd", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("query", queries), ("key", h), ("value", h))
    )
    y = attention(q, k, v, constant_query=constant_query)
    return jnp.einsum("nthd,hdc->ntc", y, p["out"]["kernel"]) + p["out"]["bias"]


# ViT as in big_vision (Beyer et al. 2022), with its pooling by attention.


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.gelu(nn.Dense(2 * x.shape[-1])(x))
        return nn.Dense(x.shape[-1])(y)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, deterministic=True)(y, y)
        return x + MLP()(nn.LayerNorm()(x))


class Pooling(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        probe = self.param("probe", nn.initializers.normal(), (1, 1, x.shape[-1]), x.dtype)
        probe = jnp.tile(probe, [x.shape[0], 1, 1])
        x = nn.MultiHeadDotProductAttention(HEADS, deterministic=True)(probe, x)
        return (x + MLP()(nn.LayerNorm()(x)))[:, 0]


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (2, 2), (2, 2), padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, WIDTH)
        x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], WIDTH), x.dtype)
        for i in range(2):
            x = Encoder(name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(CLASSES, name="head")(Pooling(name="pooling")(x))


def encoder(p: Any, x: jax.Array) -> jax.Array:
    y = layer_norm(p["LayerNorm_0"], x)
    x = x + attend(p["MultiHeadDotProductAttention_0"], y, y)
    return x + mlp(p["MLP_0"], layer_norm(p["LayerNorm_1"], x))


def vit(variables: Any, x: jax.Array) -> jax.Array:
    p = variables["params"]
    x = convolve(p["embedding"], x, 2, padding="VALID").reshape(x.shape[0], -1, WIDTH) + p["positions"]
    for i in range(2):
        x = encoder(p[f"block{i}"], x)
    x = layer_norm(p["norm"], x)
    q = p["pooling"]
    probe = jnp.broadcast_to(q["probe"], (x.shape[0], 1, WIDTH))
    x = attend(q["MultiHeadDotProductAttention_0"], probe, x, constant_query=True)
    return dense(p["head"], (x + mlp(q["MLP_0"], layer_norm(q["LayerNorm_0"], x)))[:, 0])


# The same with NNX, and a token for the class.


class NNXBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.LayerNorm_0, self.LayerNorm_1 = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.MultiHeadDotProductAttention_0 = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.Dense_0, self.Dense_1 = nnx.Linear(WIDTH, 16, rngs=rngs), nnx.Linear(16, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x))
        return x + self.Dense_1(nnx.gelu(self.Dense_0(self.LayerNorm_1(x))))


class NNXViT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Conv(3, WIDTH, (2, 2), (2, 2), padding="VALID", rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        self.block0, self.block1 = NNXBlock(rngs), NNXBlock(rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embedding(x).reshape(x.shape[0], -1, WIDTH)
        x = jnp.concatenate([jnp.broadcast_to(self.token[...], (x.shape[0], 1, WIDTH)), x], 1)
        return self.head(self.block1(self.block0(x))[:, 0])


def nnx_vit(state: Any, x: jax.Array) -> jax.Array:
    p = nnx.to_pure_dict(state)
    x = convolve(p["embedding"], x, 2, padding="VALID").reshape(x.shape[0], -1, WIDTH)
    x = jnp.concatenate([jnp.broadcast_to(p["token"], (x.shape[0], 1, WIDTH)), x], 1)
    for q in (p["block0"], p["block1"]):
        x = encoder({**q, "MLP_0": q}, x)
    return dense(p["head"], x[:, 0])


# MLP-Mixer (Tolstikhin et al. 2021).


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (2, 2), (2, 2))(x).reshape(x.shape[0], -1, WIDTH)
        for _ in range(2):
            y = MLP()(nn.LayerNorm()(x).swapaxes(1, 2)).swapaxes(1, 2)
            x = x + y
            x = x + MLP()(nn.LayerNorm()(x))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(1))


def mixer(variables: Any, x: jax.Array) -> jax.Array:
    p = variables["params"]
    x = convolve(p["Conv_0"], x, 2).reshape(x.shape[0], -1, WIDTH)
    for i in (0, 2):
        x = x + mlp(p[f"MLP_{i}"], layer_norm(p[f"LayerNorm_{i}"], x).swapaxes(1, 2)).swapaxes(1, 2)
        x = x + mlp(p[f"MLP_{i + 1}"], layer_norm(p[f"LayerNorm_{i + 1}"], x))
    return dense(p["Dense_0"], layer_norm(p["LayerNorm_4"], x).mean(1))


# ConvNeXt (Liu et al. 2022).


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(name="norm")(nn.Conv(WIDTH, (3, 3), name="stem")(x))
        for i in range(2):
            y = nn.Conv(WIDTH, (3, 3), feature_group_count=WIDTH, name=f"depthwise{i}")(x)
            y = MLP(name=f"mlp{i}")(nn.LayerNorm(name=f"norm{i}")(y))
            x = x + y * self.param(f"gamma{i}", nn.initializers.ones, (WIDTH,), x.dtype)
        return nn.Dense(CLASSES, name="head")(x.mean((1, 2)))


def convnext(variables: Any, x: jax.Array) -> jax.Array:
    p = variables["params"]
    x = layer_norm(p["norm"], convolve(p["stem"], x))
    for i in range(2):
        y = convolve(p[f"depthwise{i}"], x, groups=WIDTH)
        x = x + mlp(p[f"mlp{i}"], layer_norm(p[f"norm{i}"], y)) * p[f"gamma{i}"]
    return dense(p["head"], x.mean((1, 2)))


# MobileNetV3 (Howard et al. 2019).


class InvertedResidual(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.hard_swish(nn.BatchNorm(True)(nn.Conv(16, (1, 1), use_bias=False)(x)))
        y = nn.hard_swish(nn.BatchNorm(True)(nn.Conv(16, (3, 3), feature_group_count=16, use_bias=False)(y)))
        z = nn.relu(nn.Conv(4, (1, 1))(y.mean((1, 2), keepdims=True)))
        y = y * nn.hard_sigmoid(nn.Conv(16, (1, 1))(z))
        return x + nn.BatchNorm(True)(nn.Conv(WIDTH, (1, 1), use_bias=False)(y))


class MobileNetV3(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(WIDTH, (3, 3))(x)
        for i in range(2):
            x = InvertedResidual(name=f"block{i}")(x)
        x = nn.hard_swish(nn.Dense(16)(x.mean((1, 2))))
        return nn.Dense(CLASSES)(x)


def mobilenet_v3(variables: Any, x: jax.Array) -> jax.Array:
    x = convolve(variables["params"]["Conv_0"], x)
    for i in range(2):
        p, statistics = variables["params"][f"block{i}"], variables["batch_stats"][f"block{i}"]
        norm = lambda j, h: batch_norm(p[f"BatchNorm_{j}"], statistics[f"BatchNorm_{j}"], h)  # noqa: B023, E731
        y = hard_swish(norm(0, convolve(p["Conv_0"], x)))
        y = hard_swish(norm(1, convolve(p["Conv_1"], y, groups=16)))
        z = relu(convolve(p["Conv_2"], y.mean((1, 2), keepdims=True)))
        y = gated(jax.nn.hard_sigmoid(convolve(p["Conv_3"], z)), y)
        x = x + norm(2, convolve(p["Conv_4"], y))
    x = hard_swish(dense(variables["params"]["Dense_0"], x.mean((1, 2))))
    return dense(variables["params"]["Dense_1"], x)


# The MLP of LLaMA (Touvron et al. 2023) with Equinox.


class SwiGLU(eqx.Module):
    norm: eqx.nn.RMSNorm
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 3)
        self.norm = eqx.nn.RMSNorm(WIDTH, use_bias=False)
        self.gate, self.up = (eqx.nn.Linear(WIDTH, 16, use_bias=False, key=k) for k in keys[:2])
        self.down = eqx.nn.Linear(16, WIDTH, use_bias=False, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


def swiglu(params: Any, x: jax.Array) -> jax.Array:
    first, blocks = params
    x = x.reshape(x.shape[0], -1, 3) @ first
    for p in blocks:
        y = normalise(x, -1, 1e-5, p.norm.weight, centred=False)
        x = x + shared(silu(y @ p.gate.weight.T) * (y @ p.up.weight.T)) @ p.down.weight.T
    return x


# Two recurrent layers that read the rows of an image.


def rows(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:2], -1)


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h: Any = rows(x)
        for i in range(2):
            h = nn.RNN(self.cell(WIDTH, param_dtype=np.float64, name=f"cell{i}"))(h)
        return h


def over_rows(step: Callable[[Any, jax.Array], tuple[Any, jax.Array]], carry: Any, h: jax.Array) -> jax.Array:
    _, outputs = lax.scan(step, carry, h.swapaxes(0, 1))
    return outputs.swapaxes(0, 1)


def lstm_step(before: list[jax.Array], c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new state and output, from what the activations are applied to (Arras et al. 2017)."""
    i, f, g, o = before
    sigmoid = jax.nn.sigmoid
    c = gated(sigmoid(f), c) + gated(sigmoid(i), tanh(g))
    return c, gated(sigmoid(o), tanh(c))


def gru_step(z: jax.Array, n: jax.Array, h: jax.Array) -> jax.Array:
    z = jax.nn.sigmoid(z)
    return gated(1 - z, tanh(n)) + gated(z, h)


def zeros(x: jax.Array) -> jax.Array:
    return jnp.zeros((x.shape[0], WIDTH), x.dtype)


def linen_lstm(variables: Any, x: jax.Array) -> jax.Array:
    h = rows(x)
    for i in range(2):
        p = variables["params"][f"cell{i}"]

        def step(carry: Any, x: jax.Array, p: Any = p) -> Any:
            c, h = carry
            c, h = lstm_step([dense(p[f"i{gate}"], x) + dense(p[f"h{gate}"], h) for gate in "ifgo"], c)
            return (c, h), h

        h = over_rows(step, (zeros(x), zeros(x)), h)
    return h


def linen_gru(variables: Any, x: jax.Array) -> jax.Array:
    h = rows(x)
    for i in range(2):
        p = variables["params"][f"cell{i}"]

        def step(h: jax.Array, x: jax.Array, p: Any = p) -> Any:
            reset = jax.nn.sigmoid(dense(p["ir"], x) + dense(p["hr"], h))
            n = dense(p["in"], x) + gated(reset, dense(p["hn"], h))
            h = gru_step(dense(p["iz"], x) + dense(p["hz"], h), n, h)
            return h, h

        h = over_rows(step, zeros(x), h)
    return h


def equinox_recurrent(cells: Any, x: jax.Array) -> jax.Array:
    def one_image(h: jax.Array) -> jax.Array:
        for cell in cells:

            def step(carry: Any, x: jax.Array, cell: Any = cell) -> Any:
                carry = cell(x, carry)
                return carry, carry[0] if isinstance(carry, tuple) else carry

            start = jnp.zeros(WIDTH, h.dtype)
            _, h = lax.scan(step, (start, start) if isinstance(cell, eqx.nn.LSTMCell) else start, h)
        return h

    return jax.vmap(one_image)(rows(x))


def equinox_lstm(cells: Any, x: jax.Array) -> jax.Array:
    h = rows(x)
    for p in cells:

        def step(carry: Any, x: jax.Array, p: Any = p) -> Any:
            h, c = carry
            c, h = lstm_step(jnp.split(x @ p.weight_ih.T + h @ p.weight_hh.T + p.bias, 4, axis=-1), c)
            return (h, c), h

        h = over_rows(step, (zeros(x), zeros(x)), h)
    return h


def equinox_gru(cells: Any, x: jax.Array) -> jax.Array:
    h = rows(x)
    for p in cells:

        def step(h: jax.Array, x: jax.Array, p: Any = p) -> Any:
            of_input = jnp.split(x @ p.weight_ih.T + p.bias, 3, axis=-1)
            of_state = jnp.split(h @ p.weight_hh.T, 3, axis=-1)
            reset = jax.nn.sigmoid(of_input[0] + of_state[0])
            n = of_input[2] + gated(reset, of_state[2] + p.bias_n)
            h = gru_step(of_input[1] + of_state[1], n, h)
            return h, h

        h = over_rows(step, zeros(x), h)
    return h


def haiku_net(x: jax.Array) -> jax.Array:
    core = hk.DeepRNN([hk.LSTM(WIDTH), hk.LSTM(WIDTH)])
    state = jax.tree.map(lambda s: s.astype(x.dtype), core.initial_state(x.shape[0]))
    outputs: Any = hk.dynamic_unroll(core, rows(x).swapaxes(0, 1), state)[0]
    return outputs.swapaxes(0, 1)


def haiku_lstm(params: Any, x: jax.Array) -> jax.Array:
    h = rows(x)
    for name in ("lstm/linear", "lstm_1/linear"):
        p = params[name]

        def step(carry: Any, x: jax.Array, p: Any = p) -> Any:
            h, c = carry
            i, g, f, o = jnp.split(jnp.concatenate([x, h], -1) @ p["w"] + p["b"], 4, axis=-1)
            c, h = lstm_step([i, f + 1, g, o], c)
            return (h, c), h

        h = over_rows(step, (zeros(x), zeros(x)), h)
    return h


def linen(module: nn.Module) -> tuple[Function, Any]:
    apply: Any = module.apply
    return apply, module.init(jax.random.key(0), images())


def from_nnx(module: nnx.Module) -> tuple[Function, Any]:
    graph, state = nnx.split(module)
    return lambda params, x: nnx.merge(graph, params, copy=True)(x), state  # pyright: ignore[reportCallIssue]


def equinox_blocks() -> tuple[Function, Any]:
    first, blocks = normal(1, 3, WIDTH), [SwiGLU(jax.random.key(i)) for i in range(2)]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1, 3) @ params[0]
        for block in params[1]:
            x = jax.vmap(jax.vmap(block))(x)
        return x

    return apply, (first, blocks)


def equinox_cells(make: Callable[..., Any]) -> tuple[Function, Any]:
    cells = [make(size, WIDTH, key=jax.random.key(size)) for size in (3 * SIDE, WIDTH)]
    params, static = eqx.partition(cells, eqx.is_array)
    return lambda params, x: equinox_recurrent(eqx.combine(params, static), x), params


def haiku() -> tuple[Function, Any]:
    network = hk.without_apply_rng(hk.transform(haiku_net))
    return network.apply, network.init(jax.random.key(0), images())


BLOCKS: dict[str, tuple[Callable[[], tuple[Function, Any]], Function]] = {
    "ViT": (lambda: linen(ViT()), vit),
    "ViT, nnx": (lambda: from_nnx(NNXViT(nnx.Rngs(0))), nnx_vit),
    "Mixer": (lambda: linen(Mixer()), mixer),
    "ConvNeXt": (lambda: linen(ConvNeXt()), convnext),
    "MobileNetV3": (lambda: linen(MobileNetV3()), mobilenet_v3),
    "SwiGLU": (equinox_blocks, swiglu),
    "LSTM, linen": (lambda: linen(Recurrent(nn.OptimizedLSTMCell)), linen_lstm),
    "LSTM, equinox": (lambda: equinox_cells(eqx.nn.LSTMCell), equinox_lstm),
    "LSTM, haiku": (haiku, haiku_lstm),
    "GRU, linen": (lambda: linen(Recurrent(nn.GRUCell)), linen_gru),
    "GRU, equinox": (lambda: equinox_cells(eqx.nn.GRUCell), equinox_gru),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str) -> None:
    make, reference = BLOCKS[name]
    apply, params = make()
    # NNX's attention takes the softmax in float32.
    assert_follows(apply, reference, random(params), images(), 1e-6 if "nnx" in name else 1e-8)
