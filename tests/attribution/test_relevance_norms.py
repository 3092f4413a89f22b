"""Every norm of every library against its definition: the mean is linear and the scale is held (Ali et al. 2022)."""

import functools
import itertools
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
from jax import lax

from jaxtransfer.converters import torch_export
from support.relevance_reference import assert_follows, gelu, hold, normal, normalise

keras = pytest.importorskip("keras")

pytestmark = [
    pytest.mark.usefixtures("float64", "library_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku"),
    pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`:UserWarning"),
]

SHAPE = (2, 4, 3, 8)
EPSILON = 1e-3  # large enough that a rule which forgets it is seen

Function = Callable[[Any, jax.Array], jax.Array]
Layer = tuple[Function, Any]  # a function of weights and [N, H, W, C], and weights

# What each library calls the weights of a norm.
NAMES = {
    "scale": "scale", "weight": "scale", "gamma": "scale", "bias": "bias", "offset": "bias", "beta": "bias",
    "mean": "mean", "moving_mean": "mean", "running_mean": "mean", "mean_ema": "mean",
    "var": "variance", "moving_variance": "variance", "running_var": "variance", "var_ema": "variance",
}  # fmt: skip


def row(name: str, dtype: Any = np.float64) -> jax.Array:
    """A weight of any norm, [1, 1, 1, C]."""
    draws = np.random.default_rng(len(name)).normal(size=(1, 1, 1, SHAPE[-1]))
    return jnp.asarray(abs(draws) + 0.5 if name == "variance" else draws, dtype)


def names_of(path: Any) -> list[str]:
    keys = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return [NAMES[name] for key in keys for name in key.replace("/", ".").split(".") if name in NAMES]


def filled(params: Any) -> Any:
    """The same weights whatever the library calls them; what has no known name keeps its value."""

    def fill(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        names = names_of(path)
        return row(names[-1]).reshape(leaf.shape) if names else jnp.asarray(leaf, np.float64)

    return jax.tree_util.tree_map_with_path(fill, params)


def linen(module: nn.Module, **options: Any) -> Layer:
    variables = module.init(jax.random.key(0), jnp.zeros(SHAPE), **options)
    return lambda params, h: module.apply(params, h, **options), variables  # pyright: ignore[reportReturnType]


def nnx_layer(make: Callable[..., Any], *arguments: Any, call: Any = None, **options: Any) -> Layer:
    graph, state = nnx.split(make(*arguments, **options, rngs=nnx.Rngs(0)))
    return lambda params, h: nnx.merge(graph, params, copy=True)(h, **(call or {})), state


def haiku(make: Callable[..., Any], *arguments: Any, call: Any = None, **options: Any) -> Layer:
    transformed = hk.without_apply_rng(hk.transform_with_state(lambda h, **o: make(*arguments, **options)(h, **o)))
    params = transformed.init(jax.random.key(0), jnp.zeros(SHAPE), **((call and {"is_training": True}) or {}))
    return lambda params, h: transformed.apply(*params, h, **(call or {}))[0], params


def per_position(module: Any) -> Layer:
    """An Equinox layer of one vector."""
    params, static = eqx.partition(module, eqx.is_array)
    return lambda params, h: jax.vmap(jax.vmap(jax.vmap(eqx.combine(params, static))))(h), params


def per_image(module: Any, state: Any = None) -> Layer:
    """An Equinox layer of one image with channels first, maybe with a state."""
    params, static = eqx.partition(module, eqx.is_array)

    def apply(params: Any, h: jax.Array) -> jax.Array:
        layer = eqx.combine(params, static)
        run = layer if state is None else lambda x: layer(x, state)[0]
        return jnp.moveaxis(jax.vmap(run, axis_name="batch")(jnp.moveaxis(h, -1, 1)), 1, -1)

    return apply, params


def equinox_batch_norm() -> Layer:
    module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(8, "batch", EPSILON, inference=True, mode="batch")
    assert module.batch_state_index is not None
    statistics = row("mean").reshape(-1), row("variance").reshape(-1)
    return per_image(module, state.set(module.batch_state_index, statistics))


def keras_layer(make: Callable[..., Any], *arguments: Any, dtype: Any = "float64", **options: Any) -> Layer:
    layer = make(*arguments, dtype=dtype, **options)
    layer.build(SHAPE)

    def apply(params: Any, h: jax.Array) -> jax.Array:
        variables = ([params[v.name] for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables))
        return layer.stateless_call(*variables, h)[0]

    return apply, {v.name: jnp.asarray(v.value) for v in layer.variables}


class OnChannels(torch.nn.Module):
    """A module of [N, H, W, C], as part of a network with channels first."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class WrittenOut(torch.nn.Module):
    """ConvNeXt's layer norm for channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.zeros(8)), torch.nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + EPSILON)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Normalize(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=1)


def pytorch(module: torch.nn.Module) -> Layer:
    n, h, w, c = SHAPE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        exported = torch.export.export(module.eval(), (torch.zeros(n, c, h, w),), dynamic_shapes=dynamic)
    program, params = torch_export.from_exported(exported)
    return lambda params, h: jnp.moveaxis(program(params, h), 1, -1), params


def layer_norm(h: jax.Array) -> jax.Array:
    return normalise(h, -1, EPSILON)


def rms_norm(h: jax.Array) -> jax.Array:
    return normalise(h, -1, EPSILON, centred=False)


def deviation_norm(h: jax.Array) -> jax.Array:
    return h * hold(1 / jnp.sqrt(h.var(-1, keepdims=True) + EPSILON))


def instance_norm(h: jax.Array) -> jax.Array:
    return normalise(h, (1, 2), EPSILON)


def group_norm(h: jax.Array) -> jax.Array:
    return normalise(h.reshape(*h.shape[:-1], 2, -1), (1, 2, 4), EPSILON).reshape(h.shape)


def image_norm(h: jax.Array) -> jax.Array:
    return normalise(h, (1, 2, 3), EPSILON)


def batch_norm(h: jax.Array) -> jax.Array:
    return (h - row("mean", h.dtype)) / jnp.sqrt(row("variance", h.dtype) + EPSILON)


def unit(h: jax.Array) -> jax.Array:
    return h / hold(jnp.sqrt(jnp.square(h).sum(-1, keepdims=True)))


def local_response(h: jax.Array) -> jax.Array:
    squares = lax.reduce_window(h * h, np.zeros((), h.dtype), lax.add, (1, 1, 1, 3), (1, 1, 1, 1), "SAME")
    return h / hold((2 + 0.5 * squares / 3) ** 0.75)


def switches(*names: str) -> list[dict[str, bool]]:
    """All of the options on, and all off."""
    return [dict.fromkeys(names, on) for on in (True, False)]


FLAX = switches("use_scale", "use_bias")
FAST = switches("use_fast_variance")
EITHER = switches("use_scale", "use_bias", "use_fast_variance")
HAIKU = switches("create_scale", "create_offset")
KERAS = switches("scale", "center")
EQUINOX = switches("use_weight", "use_bias")

eps, epsilon = {"eps": EPSILON}, {"epsilon": EPSILON}

# Name, layer, definition without scale and bias (None: linear, its own gradient is right), options in all combinations.
NORMS: list[tuple[str, Callable[..., Layer], Any, list[list[dict[str, Any]]]]] = [
    ("linen LayerNorm", lambda **o: linen(nn.LayerNorm(**epsilon, **o)), layer_norm, [FLAX, FAST]),
    ("linen RMSNorm", lambda **o: linen(nn.RMSNorm(**epsilon, **o)), rms_norm, [switches("use_scale")]),
    ("linen GroupNorm", lambda **o: linen(nn.GroupNorm(2, **epsilon, **o)), group_norm, [EITHER]),
    ("linen InstanceNorm", lambda **o: linen(nn.InstanceNorm(**epsilon, **o)), instance_norm, [EITHER]),
    ("linen BatchNorm", lambda **o: linen(nn.BatchNorm(True, **epsilon, **o)), batch_norm, [FLAX]),
    ("linen WeightNorm", lambda **o: linen(nn.WeightNorm(nn.Dense(8))), None, []),
    ("linen SpectralNorm", lambda **o: linen(nn.SpectralNorm(nn.Dense(8)), update_stats=False), None, []),
    ("linen LayerNorm of the image", lambda **o: linen(nn.LayerNorm(
        **epsilon, reduction_axes=(1, 2, 3), **o)), image_norm, [FLAX]),
    ("nnx LayerNorm", lambda **o: nnx_layer(nnx.LayerNorm, 8, **epsilon, **o), layer_norm, [EITHER]),
    ("nnx RMSNorm", lambda **o: nnx_layer(nnx.RMSNorm, 8, **epsilon, **o), rms_norm, [switches("use_scale")]),
    ("nnx GroupNorm", lambda **o: nnx_layer(nnx.GroupNorm, 8, 2, **epsilon, **o), group_norm, [EITHER]),
    ("nnx InstanceNorm", lambda **o: nnx_layer(nnx.InstanceNorm, 8, **epsilon, **o), instance_norm, [EITHER]),
    ("nnx BatchNorm", lambda **o: nnx_layer(nnx.BatchNorm, 8, use_running_average=True, **epsilon, **o), batch_norm,
     [FLAX]),
    ("nnx WeightNorm", lambda **o: nnx_layer(nnx.WeightNorm, nnx.Linear(8, 8, rngs=nnx.Rngs(1))), None, []),
    ("nnx SpectralNorm", lambda **o: nnx_layer(nnx.SpectralNorm, nnx.Linear(8, 8, rngs=nnx.Rngs(1)),
     call={"update_stats": False}), None, []),
    ("haiku LayerNorm", lambda **o: haiku(hk.LayerNorm, -1, param_axis=-1, **eps, **o), layer_norm,
     [switches("create_scale", "create_offset", "use_fast_variance")]),
    ("haiku RMSNorm", lambda **o: haiku(hk.RMSNorm, -1, **eps, **o), rms_norm, [switches("create_scale")]),
    ("haiku GroupNorm", lambda **o: haiku(hk.GroupNorm, 2, **eps, **o), group_norm, [HAIKU]),
    ("haiku InstanceNorm", lambda **o: haiku(hk.InstanceNorm, **eps, **o), instance_norm, [HAIKU]),
    ("haiku BatchNorm", lambda **o: haiku(hk.BatchNorm, decay_rate=0.9, call={"is_training": False}, **eps, **o),
     batch_norm, [HAIKU]),
    ("equinox LayerNorm", lambda **o: per_position(eqx.nn.LayerNorm(8, EPSILON, **o)), layer_norm, [EQUINOX]),
    ("equinox RMSNorm", lambda **o: per_position(eqx.nn.RMSNorm(8, EPSILON, **o)), rms_norm, [EQUINOX]),
    ("equinox GroupNorm", lambda **o: per_image(eqx.nn.GroupNorm(2, 8, EPSILON, **o)), group_norm,
     [switches("channelwise_affine")]),
    ("equinox BatchNorm", lambda **o: equinox_batch_norm(), batch_norm, []),
    ("keras LayerNormalization", lambda **o: keras_layer(keras.layers.LayerNormalization, **epsilon, **o), layer_norm,
     [KERAS]),
    ("keras LayerNormalization, RMS", lambda **o: keras_layer(
        keras.layers.LayerNormalization, **epsilon, rms_scaling=True, **o), deviation_norm, []),
    ("keras RMSNormalization", lambda **o: keras_layer(keras.layers.RMSNormalization, **epsilon, **o), rms_norm, []),
    ("keras GroupNormalization", lambda **o: keras_layer(keras.layers.GroupNormalization, 2, **epsilon, **o),
     group_norm, [KERAS]),
    ("keras UnitNormalization", lambda **o: keras_layer(keras.layers.UnitNormalization, **o), unit, []),
    ("keras BatchNormalization", lambda **o: keras_layer(keras.layers.BatchNormalization, **epsilon, **o), batch_norm,
     [KERAS]),
    ("torch LayerNorm", lambda **o: pytorch(OnChannels(torch.nn.LayerNorm(8, EPSILON, **o))), layer_norm,
     [switches("elementwise_affine")]),
    ("torch LayerNorm written out", lambda **o: pytorch(WrittenOut()), layer_norm, []),
    ("torch RMSNorm", lambda **o: pytorch(OnChannels(torch.nn.RMSNorm(8, EPSILON, **o))), rms_norm,
     [switches("elementwise_affine")]),
    ("torch GroupNorm", lambda **o: pytorch(torch.nn.GroupNorm(2, 8, EPSILON, **o)), group_norm, [switches("affine")]),
    ("torch InstanceNorm2d", lambda **o: pytorch(torch.nn.InstanceNorm2d(8, EPSILON, **o)), instance_norm,
     [switches("affine")]),
    ("torch BatchNorm2d", lambda **o: pytorch(torch.nn.BatchNorm2d(8, EPSILON, **o)), batch_norm, [switches("affine")]),
    ("torch LocalResponseNorm", lambda **o: pytorch(torch.nn.LocalResponseNorm(3, 0.5, 0.75, 2)), local_response, []),
    ("torch normalize", lambda **o: pytorch(Normalize()), unit, []),
]  # fmt: skip


def with_options(norms: Any) -> list[Any]:
    cases = []
    for name, make, definition, options in norms:
        for chosen in itertools.product(*options):
            merged = functools.reduce(dict.__or__, chosen, {})
            on = ", ".join(option for option, is_on in merged.items() if is_on)
            label = f"{name}, {on or 'bare'}" if options else name
            cases.append(pytest.param(label, functools.partial(make, **merged), definition, id=label))
    return cases


def conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def defined(definition: Callable[[jax.Array], jax.Array] | None, apply: Function, params: Any) -> Function:
    """The norm by its definition, with the scale and bias that the weights of the layer have."""
    if definition is None:
        return apply
    names = [name for path, _ in jax.tree_util.tree_leaves_with_path(params) for name in names_of(path)]

    def norm(params: Any, h: jax.Array) -> jax.Array:
        y = definition(h)
        y = y * row("scale", h.dtype) if "scale" in names else y
        return y + row("bias", h.dtype) if "bias" in names else y

    return norm


def network(norm: Function, activation: Callable[[jax.Array], jax.Array]) -> Function:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        first, norm_params, last = params
        return activation(norm(norm_params, conv(x, first))) @ last

    return apply


def weights() -> tuple[jax.Array, jax.Array]:
    return 0.4 * normal(10, 3, 3, 3, 8), normal(11, 8, 4)


def images() -> jax.Array:
    return normal(12, *SHAPE[:3], 3)


# Keras computes norms in float32 whatever they are given.
def tolerance(name: str) -> float:
    return 2e-6 if name.startswith("keras") else 1e-8


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "definition"), with_options(NORMS))
def test_norm_holds_its_scale(name: str, make: Callable[..., Layer], definition: Any) -> None:
    apply, params = make()
    params = filled(params)
    first, last = weights()
    reference = network(defined(definition, apply, params), gelu)
    assert_follows(network(apply, jax.nn.gelu), reference, (first, params, last), images(), tolerance(name))


def unrolled(one: Callable[[jax.Array, Any], jax.Array]) -> Callable[[jax.Array, Any], jax.Array]:
    def layers(h: jax.Array, stacked: Any) -> jax.Array:
        for i in range(2):
            h = one(h, jax.tree.map(lambda leaf: leaf[i], stacked))  # noqa: B023
        return h

    return layers


def scanned(one: Callable[[jax.Array, Any], jax.Array]) -> Callable[[jax.Array, Any], jax.Array]:
    return lambda h, stacked: lax.scan(lambda h, params: (one(h, params), None), h, stacked)[0]


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "jit": lambda one: unrolled(jax.jit(one)),
    "checkpoint": lambda one: unrolled(jax.checkpoint(one)),
    "scan": scanned,
    "scan of checkpoint": lambda one: scanned(jax.checkpoint(one)),
    "vmap": lambda one: unrolled(jax.vmap(lambda h, params: one(h[None], params)[0], in_axes=(0, None))),
}
COMMON = [
    "linen LayerNorm, use_scale, use_bias, use_fast_variance", "nnx RMSNorm, use_scale",
    "haiku GroupNorm, create_scale, create_offset", "equinox LayerNorm, use_weight, use_bias",
    "torch LocalResponseNorm",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "make", "definition"), [case for case in with_options(NORMS) if case.id in COMMON])
def test_norm_in_wrappers(name: str, make: Callable[..., Layer], definition: Any, wrapper: str) -> None:
    """Two layers of product, norm and activation."""
    apply, params = make()
    params = filled(params)
    stacked = (jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params), 0.6 * normal(13, 2, 8, 8))

    def network(norm: Function, activation: Any, wrap: Callable[[Any], Any]) -> Function:
        def one(h: jax.Array, params: Any) -> jax.Array:
            return activation(norm(params[0], h @ params[1]))

        return lambda params, x: wrap(one)(x @ params[0], params[1])

    reference = network(defined(definition, apply, params), gelu, unrolled)
    ours = network(apply, jax.nn.gelu, WRAPPERS[wrapper])
    assert_follows(ours, reference, (normal(14, 3, 8), stacked), images(), tolerance(name))


LOW = [
    "linen LayerNorm, use_scale, use_bias, use_fast_variance", "linen GroupNorm, bare", "nnx LayerNorm, bare",
    "nnx RMSNorm, use_scale", "haiku LayerNorm, bare",
    "haiku InstanceNorm, bare", "equinox LayerNorm, use_weight, use_bias", "equinox GroupNorm, channelwise_affine",
    "keras LayerNormalization, scale, center", "keras UnitNormalization",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "definition"), [case for case in with_options(NORMS) if case.id in LOW])
def test_norm_in_bfloat16(name: str, make: Callable[..., Layer], definition: Any) -> None:
    """Layers of `dtype=bfloat16` take their statistics in float32; so does the definition here."""
    low = jnp.bfloat16
    apply, params = make(**({"dtype": low} if name.startswith(("linen", "nnx")) else {}),
                         **({"dtype": "bfloat16"} if name.startswith("keras") else {}))  # fmt: skip
    in_low = lambda tree: jax.tree.map(lambda a: a.astype(low) if a.dtype == np.float64 else a, tree)  # noqa: E731
    params = filled(params)
    norm = defined(definition, apply, params)
    in_single = lambda params, h: norm(params, h.astype(jnp.float32)).astype(low)  # noqa: E731
    first, last = weights()

    def in_bfloat16(network: Function) -> Function:
        return lambda params, x: network(params, x.astype(low)).astype(jnp.float32)

    assert_follows(
        in_bfloat16(network(apply, jax.nn.gelu)),
        in_bfloat16(network(in_single, gelu)),
        in_low((first, params, last)),
        images().astype(jnp.float32),
        tolerance=0.04,
    )
