"""The attention of every library against one attention written out with the rules, with the same weights."""

import os
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from jaxtransfer.converters import torch_export
from support.relevance_reference import assert_follows, attention, gelu, normal

keras = pytest.importorskip("keras")

pytestmark = [
    pytest.mark.usefixtures("float64", "library_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku"),
]

HEIGHT, WIDTH, CHANNELS, HEADS, SIZE = 2, 3, 8, 2, 4
TOKENS = HEIGHT * WIDTH
CAUSAL = np.tril(np.ones((TOKENS, TOKENS), bool))

Function = Callable[[Any, jax.Array], jax.Array]


def weights() -> dict[str, dict[str, np.ndarray]]:
    """Of the products [C, heads, size], their biases [heads, size], and the same the other way for the output."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (CHANNELS, HEADS, SIZE), "bias": (HEADS, SIZE)}
    one = lambda: {name: rng.normal(size=shape) / shape[0] ** 0.5 for name, shape in shapes.items()}  # noqa: E731
    out = {"kernel": rng.normal(size=(HEADS, SIZE, CHANNELS)) / 3, "bias": rng.normal(size=CHANNELS)}
    return {"query": one(), "key": one(), "value": one(), "out": out}


def project(params: Any, h: jax.Array) -> jax.Array:
    return jnp.einsum("ntc,chd->nthd", h, params["kernel"]) + params["bias"]


def around(attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Function:
    """Self-attention with the products written out."""

    def apply(params: Any, h: jax.Array) -> jax.Array:
        y = attend(*(project(params[name], h) for name in ("query", "key", "value")))
        return jnp.einsum("nthd,hdc->ntc", y, params["out"]["kernel"]) + params["out"]["bias"]

    return apply


Layer = tuple[Function, Any]


def from_jax(**options: Any) -> Layer:
    return around(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options)), weights()


def from_jax_with_shared_heads() -> Layer:
    """Grouped queries: fewer heads of keys and values than of queries."""
    return around(lambda q, k, v: jax.nn.dot_product_attention(q, k[:, :, :1], v[:, :, :1])), weights()


def linen(**options: Any) -> Layer:
    module = nn.MultiHeadDotProductAttention(HEADS, deterministic=True)
    return lambda params, h: module.apply({"params": params}, h, **options), weights()  # pyright: ignore


def from_nnx() -> Layer:
    module = nnx.MultiHeadAttention(HEADS, CHANNELS, decode=False, param_dtype=np.float64, rngs=nnx.Rngs(0))
    for name, parts in weights().items():
        linear = getattr(module, name)
        linear.kernel[...], linear.bias[...] = (jnp.asarray(parts[part]) for part in ("kernel", "bias"))
    graph, state = nnx.split(module)
    return lambda params, h: nnx.merge(graph, params, copy=True)(h), state


def equinox() -> Layer:
    names = ("query", "key", "value", "output")
    options: Any = {f"use_{name}_bias": True for name in names}
    module = eqx.nn.MultiheadAttention(HEADS, CHANNELS, **options, key=jax.random.key(0))
    flat = [part.reshape(-1, CHANNELS) if i == 3 else part.reshape(CHANNELS, -1)
            for i, part in enumerate(parts["kernel"] for parts in weights().values())]  # fmt: skip
    biases = [parts["bias"].reshape(-1) for parts in weights().values()]
    linears = lambda m: [getattr(m, f"{name}_proj") for name in names]  # noqa: E731
    module = eqx.tree_at(lambda m: [linear.weight for linear in linears(m)], module, [jnp.asarray(w.T) for w in flat])
    module = eqx.tree_at(lambda m: [linear.bias for linear in linears(m)], module, [jnp.asarray(b) for b in biases])
    params, static = eqx.partition(module, eqx.is_array)
    return lambda params, h: jax.vmap(lambda x: eqx.combine(params, static)(x, x, x))(h), params


def haiku() -> Layer:
    def run(h: jax.Array) -> jax.Array:
        return hk.MultiHeadAttention(HEADS, SIZE, w_init=jnp.zeros, model_size=CHANNELS)(h, h, h)

    def flat(name: str, parts: Any) -> dict[str, jax.Array]:
        kernel = jnp.asarray(parts["kernel"])
        kernel = kernel.reshape(-1, CHANNELS) if name == "out" else kernel.reshape(CHANNELS, -1)
        return {"w": kernel, "b": jnp.asarray(parts["bias"]).reshape(-1)}

    names = {"out": "linear"}
    prefix = "multi_head_attention/"
    params = {prefix + names.get(name, name): flat(name, parts) for name, parts in weights().items()}
    return hk.without_apply_rng(hk.transform(run)).apply, params


def from_keras(**options: Any) -> Layer:
    layer = keras.layers.MultiHeadAttention(HEADS, SIZE, dtype="float64")
    layer.build((2, TOKENS, CHANNELS), (2, TOKENS, CHANNELS))
    order = {"query": layer.query_dense, "key": layer.key_dense, "value": layer.value_dense, "out": layer.output_dense}
    params = {}
    for name, dense in order.items():
        params |= {dense.kernel.path: weights()[name]["kernel"], dense.bias.path: weights()[name]["bias"]}

    def apply(params: Any, h: jax.Array) -> jax.Array:
        trainable = [params[v.path] for v in layer.trainable_variables]
        return layer.stateless_call(trainable, layer.non_trainable_variables, h, h, **options)[0]

    return apply, params


class Attention(torch.nn.Module):
    """`torch.nn.MultiheadAttention` over the places of an image."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.flatten(2).transpose(1, 2)
        return self.attention(h, h, h, **self.options)[0]


class WrittenOut(Attention):
    """As timm writes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.flatten(2).transpose(1, 2)
        together = F.linear(h, self.attention.in_proj_weight, self.attention.in_proj_bias)
        q, k, v = together.reshape(-1, TOKENS, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.attend(q, k, v).transpose(1, 2).reshape(-1, TOKENS, CHANNELS)
        return self.attention.out_proj(y)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, **self.options)


class SoftmaxWrittenOut(WrittenOut):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q * SIZE**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def pytorch(module: Attention) -> Layer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        example = torch.zeros(2, CHANNELS, HEIGHT, WIDTH)
        exported = torch.export.export(module.eval(), (example,), dynamic_shapes=dynamic)
    program, params = torch_export.from_exported(exported)
    *three, out = weights().values()
    params = {
        "attention.in_proj_weight": np.concatenate([parts["kernel"].reshape(CHANNELS, -1).T for parts in three]),
        "attention.in_proj_bias": np.concatenate([parts["bias"].reshape(-1) for parts in three]),
        "attention.out_proj.weight": out["kernel"].reshape(-1, CHANNELS).T,
        "attention.out_proj.bias": out["bias"],
    } | {name: array for name, array in params.items() if not name.startswith("attention.")}
    return lambda params, h: program(params, h.reshape(-1, HEIGHT, WIDTH, CHANNELS)), params


def shared_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attention(q, jnp.broadcast_to(k[:, :, :1], q.shape), jnp.broadcast_to(v[:, :, :1], q.shape))


def causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return attention(q, k, v, mask=CAUSAL)


ATTENTION: dict[str, tuple[Callable[[], Layer], Callable[..., jax.Array]]] = {
    "jax": (from_jax, attention),
    "jax, causal": (lambda: from_jax(is_causal=True), causal),
    "jax, masked": (lambda: from_jax(mask=CAUSAL[None, None]), causal),
    "jax, shared heads": (from_jax_with_shared_heads, shared_heads),
    "linen": (linen, attention),
    "linen, masked": (lambda: linen(mask=CAUSAL[None, None]), causal),
    "nnx": (from_nnx, attention),
    "equinox": (equinox, attention),
    "haiku": (haiku, attention),
    "keras": (from_keras, attention),
    "keras, causal": (lambda: from_keras(use_causal_mask=True), causal),
    "torch module": (lambda: pytorch(Attention(need_weights=False)), attention),
    "torch module with weights": (lambda: pytorch(Attention()), attention),
    "torch function": (lambda: pytorch(WrittenOut()), attention),
    "torch function, causal": (lambda: pytorch(WrittenOut(is_causal=True)), causal),
    "torch softmax": (lambda: pytorch(SoftmaxWrittenOut()), attention),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_of_the_libraries(name: str) -> None:
    make, attend = ATTENTION[name]
    layer, params = make()

    def network(activation: Any, layer: Function) -> Function:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            first, layer_params = params
            h = activation(x.reshape(-1, TOKENS, 3) @ first)
            return activation(layer(layer_params, h))

        return apply

    reference = network(gelu, lambda _, h: around(attend)(weights(), h))
    x, first = normal(1, 2, HEIGHT, WIDTH, 3), normal(2, 3, CHANNELS)
    # JAX's function, which NNX uses, takes the softmax in float32, and Keras rounds its scale to that.
    tolerance = 2e-6 if name.startswith(("jax", "nnx", "keras")) else 1e-8
    assert_follows(network(jax.nn.gelu, layer), reference, (first, params), x, tolerance)
