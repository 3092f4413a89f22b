"""Gates pass no relevance (Arras et al. 2017 and 2019, LRP-all): what they let through takes all of it.

A gate is an activation f of one array with f(0) != 0. Its epsilon ratio f(z) / z has a pole, so relevance that went
through a gate near z = 0 would be noise; the last test is about that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxtransfer as jt
from support.helpers import quick_cases
from support.relevance_reference import (
    activation,
    assert_follows,
    gated,
    gelu,
    hard_swish,
    hold,
    normal,
    quick_jit,
    relevance,
    relu,
    shared,
    silu,
    tanh,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("float64")


def plain(product: jax.Array) -> jax.Array:
    return product


def images() -> jax.Array:
    return normal(0, 2, 4, 3, 3)


def params() -> list[jax.Array]:
    return [*(normal(seed, 3, 8) for seed in (1, 2, 3)), normal(4, 1, 1, 1, 8)]


sigmoid = jax.nn.sigmoid

# What a signal is multiplied by, as a function of the array z [N, H, W, C] and of weights [1, 1, 1, C].
GATES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "sigmoid": lambda z, w: sigmoid(z),
    "sigmoid written out": lambda z, w: 1 / (1 + jnp.exp(-z)),
    "sigmoid by tanh": lambda z, w: 0.5 * (1 + jnp.tanh(z / 2)),
    "one minus sigmoid": lambda z, w: 1 - sigmoid(z),
    "hard sigmoid": lambda z, w: jax.nn.hard_sigmoid(z),
    "hard sigmoid written out": lambda z, w: jnp.clip(z / 6 + 0.5, 0, 1),
    "softplus": lambda z, w: jax.nn.softplus(z),
    "twice sigmoid": lambda z, w: 2 * sigmoid(z),
    "sigmoid times weights": lambda z, w: w * sigmoid(z),
    "sigmoid of the channels": lambda z, w: jnp.broadcast_to(sigmoid(z.mean((1, 2), keepdims=True)), z.shape),
    "sigmoid of the channels, by rank": lambda z, w: sigmoid(z.mean((1, 2)))[:, None, None, :],
    "sigmoid of the places": lambda z, w: sigmoid(z.mean(-1, keepdims=True)),
    "sigmoid, not differentiated": lambda z, w: hold(sigmoid(z)),
    "sigmoid in a jit": lambda z, w: jax.jit(lambda z: sigmoid(z))(z),
    "sigmoid in a checkpoint": lambda z, w: jax.checkpoint(sigmoid)(z),  # pyright: ignore
    "sigmoid of an activation": lambda z, w: sigmoid(w * jax.nn.relu(z)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GATES)
def test_gate_passes_no_relevance(name: str) -> None:
    gate = GATES[name]

    def network(multiply: Any, activation: Any) -> Any:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            return activation(multiply(gate(x @ params[1], params[3]), activation(x @ params[0])))

        return apply

    assert_follows(network(jnp.multiply, jax.nn.gelu), network(gated, gelu), params(), images())


def state(z: jax.Array, h: jax.Array, n: jax.Array) -> jax.Array:
    return (1 - z) * n + z * h


Network = Callable[[Any, jax.Array], jax.Array]

# Name: a product of functions of a = x A, b = x B and c = x C, and the same with the rules.
PRODUCTS: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array]]] = {
    "signal first": (lambda a, b, c: jnp.tanh(a) * sigmoid(b), lambda a, b, c: gated(sigmoid(b), tanh(a))),
    "glu": (
        lambda a, b, c: jax.nn.glu(jnp.concatenate([a, b], -1)),
        lambda a, b, c: gated(sigmoid(b), a),
    ),
    "signal that is a product": (
        lambda a, b, c: a * c * sigmoid(b),
        lambda a, b, c: gated(sigmoid(b), shared(a * c)),
    ),
    "two gates one after the other": (
        lambda a, b, c: a * sigmoid(b) * sigmoid(c),
        lambda a, b, c: gated(sigmoid(c), gated(sigmoid(b), a)),
    ),
    "gate of what it gates": (
        lambda a, b, c: a * sigmoid(a.mean((1, 2), keepdims=True)),
        lambda a, b, c: gated(sigmoid(a.mean((1, 2), keepdims=True)), a),
    ),
    "gate by einsum": (
        lambda a, b, c: jnp.einsum("nhwc,nc->nhwc", a, sigmoid(b.mean((1, 2)))),
        lambda a, b, c: gated(sigmoid(b.mean((1, 2)))[:, None, None], a),
    ),
    "gate that weighs a sum": (
        lambda a, b, c: jnp.einsum("nhwc,nhw->nc", a, sigmoid(b.mean(-1))),
        lambda a, b, c: jnp.einsum("nhwc,nhw->nc", a, hold(sigmoid(b.mean(-1)))),
    ),
    "mixture of two signals": (
        lambda a, b, c: sigmoid(b) * a + (1 - sigmoid(b)) * c,
        lambda a, b, c: gated(sigmoid(b), a) + gated(1 - sigmoid(b), c),
    ),
    "mixture of two signals, by difference": (
        lambda a, b, c: c + sigmoid(b) * (a - c),
        lambda a, b, c: gated(sigmoid(b), a) + gated(1 - sigmoid(b), c),
    ),
    "loop of gated units": (
        lambda a, b, c: lax.scan(lambda h, _: (state(sigmoid(b), h, jnp.tanh(c + h)), None), a, length=3)[0],
        lambda a, b, c: lax.scan(
            lambda h, _: (gated(1 - sigmoid(b), tanh(c + h)) + gated(sigmoid(b), h), None), a, length=3
        )[0],
    ),
    "two gates, half to each": (
        lambda a, b, c: sigmoid(a) * sigmoid(b),
        lambda a, b, c: shared(activation(sigmoid)(a) * activation(sigmoid)(b)),
    ),
    # What is no gate, since f(0) = 0 or since it is a function of more than one array.
    "swiglu": (lambda a, b, c: jax.nn.silu(a) * b, lambda a, b, c: shared(silu(a) * b)),
    "swiglu written out": (lambda a, b, c: a * sigmoid(a) * b, lambda a, b, c: shared(silu(a) * b)),
    "geglu": (lambda a, b, c: jax.nn.gelu(a) * b, lambda a, b, c: shared(gelu(a) * b)),
    "reglu": (lambda a, b, c: jax.nn.relu(a) * b, lambda a, b, c: shared(relu(a) * b)),
    "tanh gate": (lambda a, b, c: jnp.tanh(a) * b, lambda a, b, c: shared(tanh(a) * b)),
    "hard swish": (lambda a, b, c: a * jax.nn.hard_sigmoid(a) + b, lambda a, b, c: hard_swish(a) + b),
    "mish": (lambda a, b, c: a * jnp.tanh(jax.nn.softplus(a)) + b, lambda a, b, c: activation(jax.nn.mish)(a) + b),
    "sigmoid with nothing to gate": (
        lambda a, b, c: 3.0 * sigmoid(a) + b,
        lambda a, b, c: 3.0 * activation(sigmoid)(a) + b,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_product_of_gates_and_signals(name: str) -> None:
    def network(combine: Any, activation: Any) -> Network:
        return lambda params, x: activation(combine(*(x @ w for w in params[:3])))

    ours, reference = PRODUCTS[name]
    assert_follows(network(ours, jax.nn.gelu), network(reference, gelu), params(), images())


Forward = Callable[[Any, jax.Array], tuple[jax.Array, list[jax.Array]]]


def squeeze_and_excite(gate: Callable, activate: Callable, rules: bool) -> Forward:
    """Three inverted residuals of MobileNetV3 (Howard et al. 2019) or EfficientNet (Tan and Le 2019), without norms.

    Returns the output and what the gates are functions of.
    """
    excite, squash = (gated, relu) if rules else (jnp.multiply, jax.nn.relu)

    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        h = x @ params["stem"]
        before_gates = []
        for block in params["blocks"]:
            y = activate(h @ block["expand"])
            y = lax.conv_general_dilated(
                y, block["depthwise"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=CHANNELS,
            )  # fmt: skip
            y = activate(y)
            z = squash(y.mean((1, 2)) @ block["squeeze"]) @ block["excite"] + block["bias"]
            h = h + excite(gate(z)[:, None, None, :], y) @ block["project"]
            before_gates.append(z)
        return activate(h).mean((1, 2)) @ params["head"], before_gates

    return forward


CHANNELS = 16


def squeeze_and_excite_params(forward: Forward) -> Any:
    """Random weights, with biases that centre what goes into the gates at zero."""

    def block(seed: int) -> dict[str, jax.Array]:
        return {
            "expand": normal(seed, CHANNELS, CHANNELS) / CHANNELS**0.5,
            "depthwise": normal(seed + 1, 3, 3, 1, CHANNELS) / 3,
            "squeeze": normal(seed + 2, CHANNELS, 4),
            "excite": normal(seed + 3, 4, CHANNELS),
            "bias": jnp.zeros((1, CHANNELS)),
            "project": normal(seed + 4, CHANNELS, CHANNELS) / CHANNELS**0.5,
        }

    blocks = [block(seed) for seed in (10, 20, 30)]
    params = {"stem": normal(40, 3, CHANNELS), "blocks": blocks, "head": normal(41, CHANNELS, 5)}
    run = quick_jit(forward)
    for i, changed in enumerate(blocks):
        changed["bias"] = -run(params, rows())[1][i].mean(0, keepdims=True)
    return params


def squeeze_and_excite_networks(gate: Callable, activate: Callable, rule: Callable) -> tuple[Network, Network, Any]:
    ours = squeeze_and_excite(gate, activate, rules=False)
    reference = squeeze_and_excite(gate, rule, rules=True)
    params = squeeze_and_excite_params(ours)
    return lambda params, x: ours(params, x)[0], lambda params, x: reference(params, x)[0], params


def rows() -> jax.Array:
    return normal(60, 8, 6, 6, 3)


def recurrent(rules: bool) -> Network:
    """An LSTM that reads the rows of an image."""
    multiply, squash = (gated, tanh) if rules else (jnp.multiply, jnp.tanh)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def step(carry: Any, row: jax.Array) -> tuple[Any, None]:
            h, c = carry
            i, f, g, o = jnp.split(row @ params["input"] + h @ params["state"], 4, axis=-1)
            c = multiply(sigmoid(f), c) + multiply(sigmoid(i), squash(g))
            return (multiply(sigmoid(o), squash(c)), c), None

        rows = jnp.moveaxis(x, 1, 0).reshape(x.shape[1], x.shape[0], -1)
        nothing = jnp.zeros((x.shape[0], 8), x.dtype)
        (h, _), _ = lax.scan(step, (nothing, nothing), rows)
        return h @ params["head"]

    return apply


def recurrent_params() -> Any:
    return {"input": normal(50, 18, 32) / 18**0.5, "state": normal(51, 8, 32) / 8**0.5, "head": normal(52, 8, 5)}


GATED: dict[str, Callable[[], tuple[Network, Network, Any]]] = {
    "MobileNetV3": lambda: squeeze_and_excite_networks(jax.nn.hard_sigmoid, jax.nn.hard_swish, hard_swish),
    "EfficientNet": lambda: squeeze_and_excite_networks(sigmoid, jax.nn.silu, silu),
    "LSTM": lambda: (recurrent(rules=False), recurrent(rules=True), recurrent_params()),
}


@pytest.mark.parametrize("name", quick_cases(GATED, "LSTM"))
def test_gates_near_zero_do_not_make_maps_noise(name: str) -> None:
    """Relevance is of the size of input x gradient, and little noise on the image changes it little."""
    network, reference, params = GATED[name]()
    x = rows()
    noisy = x + 0.01 * normal(61, *x.shape)

    @quick_jit
    def run(params: Any, x: jax.Array) -> Any:
        maps = jt.attribute(network, params, x, methods=["input_x_gradient", "epsilon_lrp"])
        return *maps.values(), relevance(reference, params, x)

    (gradients, ours, expected), (_, ours_noisy, expected_noisy) = (
        [np.asarray(m).reshape(len(x), -1) for m in run(params, images)] for images in (x, noisy)
    )

    def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    def size(maps: np.ndarray) -> np.ndarray:
        return abs(maps).sum(1) / abs(gradients).sum(1)

    print(f"{name}: by definition {size(expected)}, {cosine(expected, expected_noisy)}")
    print(f"{name}: {size(ours)}, {cosine(ours, ours_noisy)}")
    # By definition sizes are between 0.51 and 1.75, and cosines at least 0.9965.
    assert size(ours).max() < 3
    assert size(ours).min() > 1 / 3
    assert cosine(ours, ours_noisy).min() > 0.98
