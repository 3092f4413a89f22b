"""Epsilon-LRP against oracles in float64: every activation, every way to write it, every way to wrap it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxtransfer as jt
from jaxtransfer.attribution.relevance import unbounded_ratios
from support.helpers import quick_cases, quick_jit
from support.torch_oracle import torch_maps

EPSILON = 1e-4


pytestmark = pytest.mark.usefixtures("float64")


def conv(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


WEIGHTS = {
    "a": 0.4 * np.random.default_rng(0).normal(size=(3, 3, 3, 8)),
    "c": 0.4 * np.random.default_rng(1).normal(size=(3, 3, 8, 8)),
}
IMAGES = np.random.default_rng(2).normal(size=(2, 7, 6, 3))


def residual_net(activation: Callable[[jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = conv(x, params["a"])
        return activation(conv(activation(hidden), params["c"]) + hidden)

    return apply


def relevance(
    apply: Callable[[Any, jax.Array], jax.Array], params: Any = WEIGHTS, images: Any = IMAGES, **options: Any
):
    """Epsilon-LRP alone, and a check that the gradient beside it is JAX's own."""
    attribute = quick_jit(lambda params, x: jt.attribute(apply, params, x, **options))
    maps = {method: np.asarray(m) for method, m in attribute(params, jnp.asarray(images)).items()}
    gradient = input_gradient(apply, params, images)
    np.testing.assert_allclose(maps["input_x_gradient"], images * gradient, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(maps["saliency"], abs(gradient), rtol=1e-12, atol=1e-12)
    return maps["epsilon_lrp"]


def input_gradient(apply: Callable, params: Any = WEIGHTS, images: Any = IMAGES) -> np.ndarray:
    """JAX's own gradient of the sum of all outputs."""
    return np.asarray(quick_jit(jax.grad(lambda x: apply(params, x).sum()))(jnp.asarray(images)))


def by_definition(apply_with: Callable[[Callable], Callable], f: Callable, images: Any = IMAGES, params: Any = WEIGHTS):
    """The modified chain rule written by hand around one activation."""

    @jax.custom_vjp
    def rule(z: jax.Array) -> jax.Array:
        return f(z)

    def backward(z: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
        return (cotangent * f(z) / (z + EPSILON * jnp.where(z >= 0, 1.0, -1.0)),)

    rule.defvjp(lambda z: (f(z), z), backward)
    return images * input_gradient(apply_with(rule), params, images)


TORCH = {
    "relu": (jax.nn.relu, F.relu),
    "leaky_relu": (jax.nn.leaky_relu, F.leaky_relu),
    "elu": (functools.partial(jax.nn.elu, alpha=0.7), functools.partial(F.elu, alpha=0.7)),
    "celu": (functools.partial(jax.nn.celu, alpha=0.7), functools.partial(F.celu, alpha=0.7)),
    "selu": (jax.nn.selu, F.selu),
    "softplus": (jax.nn.softplus, functools.partial(F.softplus, threshold=1000)),
    "sigmoid": (jax.nn.sigmoid, torch.sigmoid),
    "tanh": (jnp.tanh, torch.tanh),
    "silu": (jax.nn.silu, F.silu),
    "gelu": (functools.partial(jax.nn.gelu, approximate=False), F.gelu),
    "gelu_tanh": (jax.nn.gelu, functools.partial(F.gelu, approximate="tanh")),
    "relu6": (jax.nn.relu6, F.relu6),
    "hard_swish": (jax.nn.hard_swish, F.hardswish),
    "hard_sigmoid": (jax.nn.hard_sigmoid, F.hardsigmoid),
    "hard_tanh": (jax.nn.hard_tanh, F.hardtanh),
    "mish": (jax.nn.mish, F.mish),
}


@pytest.mark.parametrize("name", quick_cases(TORCH, "relu", "elu", "silu", "gelu", "hard_sigmoid"))
def test_activation_agrees_with_pytorch(name: str) -> None:
    ours, theirs = TORCH[name]
    a, c = (torch.from_numpy(WEIGHTS[k].transpose(3, 2, 0, 1).copy()) for k in "ac")

    def module(x: torch.Tensor) -> torch.Tensor:
        hidden = F.conv2d(x, a, padding=1)
        return theirs(F.conv2d(theirs(hidden), c, padding=1) + hidden)

    expected = torch_maps(module, torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()), EPSILON)["epsilon_lrp"]
    actual = relevance(residual_net(ours))
    np.testing.assert_allclose(actual, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-8, atol=1e-9)


# The same function written out: the rule must not depend on how an activation is spelled.
WRITTEN_OUT = {
    "relu by maximum": (lambda x: jnp.maximum(x, 0), jax.nn.relu),
    "relu by mask": (lambda x: x * (x > 0).astype(x.dtype), jax.nn.relu),
    "relu by where": (lambda x: jnp.where(x > 0, x, 0), jax.nn.relu),
    "leaky relu by where": (lambda x: jnp.where(x >= 0, x, 0.01 * x), jax.nn.leaky_relu),
    "leaky relu by maximum": (lambda x: jnp.maximum(x, 0.01 * x), jax.nn.leaky_relu),
    "silu": (lambda x: x / (1 + jnp.exp(-x)), jax.nn.silu),
    "gelu by erf": (lambda x: 0.5 * x * (1 + lax.erf(x / math.sqrt(2))), TORCH["gelu"][0]),
    "gelu by tanh": (
        lambda x: 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        jax.nn.gelu,
    ),
    "softplus": (lambda x: jnp.log(1 + jnp.exp(x)), jax.nn.softplus),
    "softplus by logaddexp": (lambda x: jnp.logaddexp(x, 0.0), jax.nn.softplus),
    "mish": (lambda x: x * jnp.tanh(jnp.log1p(jnp.exp(x))), jax.nn.mish),
    "tanh by sigmoid": (lambda x: 2 * jax.nn.sigmoid(2 * x) - 1, jnp.tanh),
    "tanh by exp": (lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)), jnp.tanh),
    "hard swish": (lambda x: x * jnp.clip(x + 3, 0, 6) / 6, jax.nn.hard_swish),
    "elu": (lambda x: jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1), jax.nn.elu),
    "silu, sigmoid not differentiated": (lambda x: x * lax.stop_gradient(jax.nn.sigmoid(x)), jax.nn.silu),
}


@pytest.mark.parametrize("name", quick_cases(WRITTEN_OUT, "relu by mask", "silu", "gelu by erf", "tanh by exp"))
def test_activation_written_out_is_one_activation(name: str) -> None:
    written, named = WRITTEN_OUT[name]
    expected = by_definition(residual_net, named)
    np.testing.assert_allclose(relevance(residual_net(written)), expected, rtol=1e-8, atol=1e-9)


def _through_custom_jvp(f: Callable) -> Callable:
    @jax.custom_jvp
    def g(x: jax.Array) -> jax.Array:
        return f(x)

    g.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return g


def _through_custom_vjp(f: Callable) -> Callable:
    @jax.custom_vjp
    def g(x: jax.Array) -> jax.Array:
        return f(x)

    g.defvjp(lambda x: jax.vjp(f, x), lambda pull, cotangent: pull(cotangent))
    return g


WRAPPERS = {
    "jit": jax.jit,
    "jit in jit": lambda f: jax.jit(jax.jit(f)),
    "checkpoint": jax.checkpoint,
    "checkpoint, with a policy": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable),
    "vmap": jax.vmap,
    "custom_jvp": _through_custom_jvp,
    "custom_vjp": _through_custom_vjp,
    "cond": lambda f: lambda x: lax.cond(x.shape[0] > 1, f, jnp.sin, x),
    "switch on the images": lambda f: lambda x: lax.switch((x.sum() > 0).astype(jnp.int32), [f, f], x),
    "scan of one turn": lambda f: lambda x: lax.scan(lambda c, _: (f(c), None), x, length=1)[0],
    "scan over the images": lambda f: lambda x: lax.scan(lambda c, y: (c, f(y)), 0.0, x)[1],
    "map": lambda f: lambda x: lax.map(f, x),
    "fori_loop": lambda f: lambda x: lax.fori_loop(0, 1, lambda _, c: f(c), x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("part", ["activation", "block"])
def test_transformations_change_nothing(name: str, part: str) -> None:
    """Around an element-wise function, and around a whole block with its own weights."""
    plain = residual_net(jax.nn.silu)
    wrapped: Callable
    if part == "activation":
        wrapped = residual_net(WRAPPERS[name](jax.nn.silu))
    else:

        def with_block(params: Any, x: jax.Array) -> jax.Array:
            def block(hidden: jax.Array) -> jax.Array:
                stacked = hidden if hidden.ndim == 4 else hidden[None]
                out = jax.nn.silu(conv(jax.nn.silu(stacked), params["c"]) + stacked)
                return out if hidden.ndim == 4 else out[0]

            return WRAPPERS[name](block)(conv(x, params["a"]))

        wrapped = with_block

    if (name, part) in {("custom_jvp", "block"), ("custom_vjp", "block")}:
        pytest.skip("JAX does not let such functions close over what is differentiated; see the next test")
    np.testing.assert_allclose(relevance(wrapped), relevance(plain), rtol=1e-10, atol=1e-10)


def test_custom_gradient_of_a_block_is_kept_and_its_body_gets_the_rules() -> None:
    def block(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.nn.softplus(conv(jax.nn.softplus(x), w))

    lying = jax.custom_vjp(block)
    lying.defvjp(lambda w, x: (block(w, x), (w, x)), lambda saved, c: (jnp.zeros_like(saved[0]), 7 * c))

    def apply(f: Callable) -> Callable:
        return lambda params, x: f(params["c"], conv(x, params["a"]))

    np.testing.assert_allclose(relevance(apply(lying)), relevance(apply(block)), rtol=1e-12)


def _halved_until_small(x: jax.Array) -> jax.Array:
    return lax.while_loop(lambda y: abs(y).max() > 1, lambda y: y / 2, x)


def test_relevance_follows_the_own_backward_pass_of_a_function_whose_body_has_no_rule() -> None:
    """The gradient of a loop without a fixed number of turns can only be a function's own."""
    loop = jax.custom_vjp(_halved_until_small)
    loop.defvjp(lambda x: ((y := _halved_until_small(x)), y.ravel()[0] / x.ravel()[0]), lambda r, c: (r * c,))

    def apply_with(activation: Callable) -> Callable:
        return lambda params, x: loop(activation(conv(x, params["a"])))

    with pytest.warns(UserWarning, match=r"own backward pass, .*'while'.*test_relevance\.py:\d+"):
        actual = relevance(apply_with(jax.nn.softplus))
    np.testing.assert_allclose(actual, by_definition(apply_with, jax.nn.softplus), rtol=1e-10, atol=1e-12)


def test_scan_over_layers_with_stacked_weights() -> None:
    stacked = normal(3, 4, 3, 3, 8, 8) * 0.3

    def looped(params: Any, x: jax.Array) -> jax.Array:
        first, layers = params
        return lax.scan(lambda h, w: (jax.nn.gelu(conv(h, w)) + h, h.sum()), conv(x, first), layers)[0]

    def unrolled(params: Any, x: jax.Array) -> jax.Array:
        first, layers = params
        h = conv(x, first)
        for w in layers:
            h = jax.nn.gelu(conv(h, w)) + h
        return h

    params = (jnp.asarray(WEIGHTS["a"]), stacked)
    np.testing.assert_allclose(relevance(looped, params), relevance(unrolled, params), rtol=1e-10, atol=1e-10)


def test_frozen_batch_norm_is_linear_and_not_part_of_the_activation() -> None:
    scale, shift = normal(4, 8), normal(5, 8)

    def apply_with(activation: Callable) -> Callable:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            h = conv(x, params["a"]) * params["scale"].reshape(1, 1, 1, -1) + params["shift"].reshape(1, 1, 1, -1)
            return activation(h)

        return apply

    params = {**WEIGHTS, "scale": scale, "shift": shift}
    silu = lambda x: x * jax.nn.sigmoid(x)  # noqa: E731
    expected = by_definition(apply_with, silu, params=params)
    np.testing.assert_allclose(relevance(apply_with(silu), params), expected, rtol=1e-10, atol=1e-12)


def test_parametric_activations_are_one_activation() -> None:
    slope = abs(normal(4, 8)).reshape(1, 1, 1, -1)
    for f in (lambda x: jnp.where(x > 0, x, slope * x), lambda x: x * jax.nn.sigmoid(slope * x)):
        np.testing.assert_allclose(relevance(residual_net(f)), by_definition(residual_net, f), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keepdims", [True, False])
def test_activation_of_a_mean_is_one_of_the_mean(keepdims: bool) -> None:
    def apply_with(activation: Callable) -> Callable:
        return lambda params, x: activation(conv(x, params["a"]).mean((1, 2), keepdims=keepdims))

    for f in (jnp.tanh, jax.nn.hard_swish):
        np.testing.assert_allclose(relevance(apply_with(f)), by_definition(apply_with, f), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9,
        lambda x: jnp.concatenate([x, x[:, ::-1] * 2], axis=-1),
        lambda x: x.mean((1, 2)),
        lambda x: x.max((1, 2)),
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0))),
        lambda x: conv(x, normal(6, 3, 3, 4, 8), feature_group_count=2),
        lambda x: conv(x, normal(6, 3, 3, 8, 4), rhs_dilation=(2, 2)),
        lambda x: lax.conv_transpose(x, normal(6, 3, 3, 8, 4), (2, 2), "SAME"),
        lambda x: x.reshape(x.shape[0], -1) @ normal(6, 7 * 6 * 8, 5),
        lambda x: jax.image.resize(x, (x.shape[0], 4, 9, 8), "linear"),
        lambda x: jnp.sort(x, axis=1),
        lambda x: x[:, jnp.array([0, 3, 3]), :, ::2],
        lambda x: jnp.stack([x, x[:, ::-1] * 2], axis=2),
        lambda x: jnp.split(x, 2, axis=-1)[1],
        lambda x: jnp.einsum("nhwc,cd->ndhw", x, normal(6, 8, 3)),
        lambda x: jnp.where(jnp.arange(8) > 3, x, 0.0) + jnp.cumsum(x, 1),
        lambda x: jnp.maximum(x[..., :4], x[..., 4:]),
        lambda x: checkpoint_name(x, "kept"),
        lambda x: jnp.fft.fft2(x, axes=(1, 3)).real,
        lambda x: jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * (2 + 1j), axis=1),
        lambda x: lax.complex(x[..., :4], x[..., 4:]).conj().imag,
        lambda x: lax.cumlogsumexp(x, axis=1),
        lambda x: jnp.logaddexp(x[..., :4], x[..., 4:]),
    ],
)
def test_everything_else_keeps_its_gradient(layer: Callable) -> None:
    """After the only activation, relevance is what JAX's own chain rule makes of the rule."""

    def apply_with(activation: Callable) -> Callable:
        return lambda params, x: layer(activation(conv(x, params["a"])))

    expected = by_definition(apply_with, jax.nn.softplus)
    np.testing.assert_allclose(relevance(apply_with(jax.nn.softplus)), expected, rtol=1e-9, atol=1e-10)


def relu_net(params: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.relu(conv(x, params["a"]))
    h = jax.nn.relu(conv(h, params["c"]) + h)
    return lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").mean((1, 2))


def test_relevance_is_conserved_on_bias_free_relu_nets_as_epsilon_vanishes() -> None:
    total = np.asarray(quick_jit(relu_net)(WEIGHTS, jnp.asarray(IMAGES))).sum(-1)

    def violation(epsilon: float) -> float:
        maps = relevance(relu_net, epsilon=epsilon)
        return float(abs(maps.sum((1, 2, 3)) - total).max())

    violations = [violation(10.0**-k) for k in (3, 5, 7)]
    assert violations[0] > 1e-6
    # The stabiliser absorbs relevance in proportion to itself.
    np.testing.assert_allclose([violations[0] / violations[1], violations[1] / violations[2]], 100, rtol=0.05)


def test_relevance_turns_into_input_x_gradient_as_epsilon_vanishes() -> None:
    reference = (IMAGES * input_gradient(relu_net)).ravel()

    def cosine(epsilon: float) -> float:
        maps = relevance(relu_net, epsilon=epsilon).ravel()
        return float(maps @ reference / np.linalg.norm(maps) / np.linalg.norm(reference))

    cosines = [cosine(epsilon) for epsilon in (1e-1, 1e-3, 1e-6)]
    assert cosines == sorted(cosines)
    assert cosines[0] < 0.999
    assert 1 - cosines[-1] < 1e-8


def test_product_of_two_arrays_shares_relevance_equally() -> None:
    """Half of it each (Achtibat et al. 2024)."""
    w, v = np.asarray(normal(7, 3, 8)), np.asarray(normal(8, 3, 8))

    def gated(params: Any, x: jax.Array) -> jax.Array:
        return (x @ params[0]) * jnp.tanh(x @ params[1])

    x = IMAGES
    a, z = x @ w, x @ v
    t = np.tanh(z)
    ratio = t / (z + EPSILON * np.where(z >= 0, 1.0, -1.0))
    expected = x * (0.5 * t @ w.T + 0.5 * (a * ratio) @ v.T)
    np.testing.assert_allclose(relevance(gated, (w, v)), expected, rtol=1e-10)

    def bilinear(params: Any, x: jax.Array) -> jax.Array:
        return jnp.einsum("nhwc,nvwc->nhv", x @ params[0], x @ params[1])

    maps = relevance(bilinear, (w, v))
    np.testing.assert_allclose(
        maps.sum((1, 2, 3)), np.asarray(bilinear((w, v), jnp.asarray(x))).sum((1, 2)), rtol=1e-10
    )


GATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "sigmoid written out": lambda z: 1 / (1 + jnp.exp(-z)),
    "the other side of a sigmoid": lambda z: 1 - jax.nn.sigmoid(z),
    "sigmoid, scaled by weights": lambda z: jax.nn.sigmoid(z) * normal(3, 8).reshape(1, 1, 1, 8),
    "sigmoid, some of it": lambda z: jnp.concatenate([jax.nn.sigmoid(z)[..., :3], jax.nn.sigmoid(z)[..., 3:]], -1),
    "hard sigmoid": jax.nn.hard_sigmoid,
    "softplus": jax.nn.softplus,
    "1 / b": lambda z: 1 / z,
}


@pytest.mark.parametrize("name", quick_cases(GATES, "sigmoid", "sigmoid, some of it", "1 / b"))
def test_gate_passes_no_relevance(name: str) -> None:
    """The signal takes all (Arras et al. 2017): as if the gate were an array of weights."""
    gate = GATES[name]

    def gated(params: Any, x: jax.Array) -> jax.Array:
        return gate(x @ params[1]) * (x @ params[0])

    def held(params: Any, x: jax.Array) -> jax.Array:
        return lax.stop_gradient(gate(x @ params[1])) * (x @ params[0])

    params = normal(7, 3, 8), normal(8, 3, 8)
    expected = IMAGES * input_gradient(held, params)
    np.testing.assert_allclose(relevance(gated, params), expected, rtol=1e-10)
    divided = relevance(lambda params, x: (x @ params[0]) / (2 + gate(x @ params[1])), params)
    held_divisor = lambda params, x: (x @ params[0]) / lax.stop_gradient(2 + gate(x @ params[1]))  # noqa: E731
    np.testing.assert_allclose(divided, IMAGES * input_gradient(held_divisor, params), rtol=1e-10)


def squeeze_and_excite(params: Any, x: jax.Array) -> jax.Array:
    h = jax.nn.relu(x @ params[0])
    gate = jax.nn.sigmoid(jax.nn.relu(h.mean((1, 2)) @ params[1]) @ params[1])
    return h * gate[:, None, None, :]


def test_squeeze_and_excite_conserves_relevance() -> None:
    params = (normal(9, 3, 8), normal(10, 8, 8))
    maps = relevance(squeeze_and_excite, params, epsilon=1e-9)
    expected = squeeze_and_excite(params, jnp.asarray(IMAGES)).sum((1, 2, 3))
    np.testing.assert_allclose(maps.sum((1, 2, 3)), expected, rtol=1e-6)


SOFTMAX = {
    "jax.nn.softmax": jax.nn.softmax,
    "by hand": lambda u: jnp.exp(u) / jnp.exp(u).sum(-1, keepdims=True),
    "by hand, shifted": lambda u: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp(u - u.max(-1, keepdims=True))),
    "scaled and masked": lambda u: jax.nn.softmax(0.7 * u, where=jnp.arange(8) < 6),
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": lambda u: jax.nn.logsumexp(u, axis=-1),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_keeps_its_gradient(name: str) -> None:
    v = normal(12, 8)
    w = normal(11, 3, 8)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        p = SOFTMAX[name](x @ params)
        return p @ v if p.ndim == 4 else p

    expected = IMAGES * input_gradient(apply, w)
    np.testing.assert_allclose(relevance(apply, w), expected, rtol=1e-9, atol=1e-12)


def _layer_norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


NORMS = {
    "layer norm": (_layer_norm, lambda x: jnp.sqrt(x.var(-1, keepdims=True) + 1e-5), True),
    "layer norm, rsqrt": (
        lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5),
        lambda x: jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
        True,
    ),
    "fast variance": (
        lambda x: (
            (x - x.mean(-1, keepdims=True))
            * lax.rsqrt(
                jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(x.mean(-1, keepdims=True)), 0) + 1e-5
            )
        ),
        lambda x: jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
        True,
    ),
    "RMS norm": (
        lambda x: x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6),
        lambda x: jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6),
        False,
    ),
    "L2 normalisation": (
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True),
        False,
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisation_holds_its_statistic(name: str) -> None:
    """The scale is a constant, the mean is linear (Ali et al. 2022)."""
    norm, scale, centred = NORMS[name]
    w, v = normal(11, 3, 8), normal(12, 8)

    def held(params: Any, x: jax.Array) -> jax.Array:
        h = x @ params
        centre = h.mean(-1, keepdims=True) if centred else jnp.zeros((1, 1, 1, 1))
        return (h - centre) / lax.stop_gradient(scale(h)) @ v

    actual = relevance(lambda params, x: norm(x @ params) @ v, w)
    np.testing.assert_allclose(actual, IMAGES * input_gradient(held, w), rtol=1e-9, atol=1e-12)


def test_attention_block_conserves_relevance() -> None:
    """A bias-free attention: every rule on the way conserves, softmax up to what its own output absorbs."""
    q, k, v = (normal(s, 3, 8) for s in (13, 14, 15))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        tokens = x.reshape(x.shape[0], -1, 3)
        scores = jnp.einsum("nic,njc->nij", tokens @ params[0], tokens @ params[1]) / math.sqrt(8)
        return jax.nn.softmax(scores) @ (tokens @ params[2])

    maps = relevance(apply, (q, k, v))
    assert np.isfinite(maps).all()
    frozen = IMAGES * input_gradient(_frozen_attention, (q, k, v))
    # Half of the product's relevance goes to the values; the other half to the softmax and through it.
    through_softmax = maps - frozen / 2
    assert float(abs(through_softmax).max()) > 1e-3


def _frozen_attention(params: Any, x: jax.Array) -> jax.Array:
    tokens = x.reshape(x.shape[0], -1, 3)
    scores = jnp.einsum("nic,njc->nij", tokens @ params[0], tokens @ params[1]) / math.sqrt(8)
    return lax.stop_gradient(jax.nn.softmax(scores)) @ (tokens @ params[2])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("eigh", lambda x: jnp.linalg.eigvalsh(jnp.einsum("nhwc,nhwd->ncd", x, x))),
        ("cholesky", lambda x: jnp.linalg.cholesky(jnp.einsum("nhwc,nhwd->ncd", x, x) + 9 * jnp.eye(3)[None])),
        ("atan2", lambda x: jnp.arctan2(x[..., :1], x[..., 1:2])),
        ("while", lambda x: lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]),
        ("pure_callback", lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)),
    ],
)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint])
def test_unknown_primitive_is_named_with_its_place(name: str, layer: Callable, wrap: Callable) -> None:
    with pytest.raises(jt.JaxTransferError, match=rf"no rule for the primitive '{name}'.*test_relevance\.py:\d+"):
        jt.attribute(lambda params, x: wrap(layer)(x * params), 2.0, jnp.asarray(IMAGES))


def test_activations_without_a_bound_are_listed_with_their_places() -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.softplus(conv(x, params["a"]))
        h = conv(h, params["c"]) * jax.nn.sigmoid(h[..., ::-1])  # a gate
        h = jax.nn.softmax(jnp.tanh(h))
        return lax.scan(lambda c, _: (jnp.cos(conv(c, params["c"])), None), h, length=2)[0]

    places = unbounded_ratios(apply, WEIGHTS, jnp.asarray(IMAGES))
    assert [place.rsplit(":", 1)[0].rsplit("/", 1)[-1] for place in places] == [
        f"test_relevance.py:{apply.__code__.co_firstlineno + line}" for line in (4, 1)
    ]


def test_unknown_primitive_off_the_path_of_the_images_is_no_matter() -> None:
    actual = relevance(lambda params, x: jax.nn.relu(conv(x, params["a"]) * jnp.prod(params["c"])))
    assert np.isfinite(actual).all()
