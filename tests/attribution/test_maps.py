"""`attribute` as a user calls it: any library, any transformation, one compiled pass."""

from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxtransfer as jt

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 8, 6, 3)).astype(np.float32)
PARAMS = {
    "conv": 0.3 * RNG.normal(size=(3, 3, 3, 8)).astype(np.float32),
    "scale": RNG.normal(size=8).astype(np.float32),
    "shift": RNG.normal(size=8).astype(np.float32),
    "mean": RNG.normal(size=8).astype(np.float32),
    "var": (RNG.random(8) + 0.5).astype(np.float32),
    "dense": 0.3 * RNG.normal(size=(8, 5)).astype(np.float32),
}


def plain(params: Any, x: jax.Array) -> jax.Array:
    """Convolution, frozen batch norm, ReLU, global average, dense: the net every library below writes again."""
    wide = {k: v.reshape(1, 1, 1, -1) for k, v in params.items() if v.ndim == 1}
    x = lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = (x - wide["mean"]) / jnp.sqrt(wide["var"] + 1e-5) * wide["scale"] + wide["shift"]
    return jax.nn.relu(x).mean((1, 2)) @ params["dense"]


def flax_nnx() -> tuple[Any, Any]:
    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.dense = nnx.Linear(8, 5, use_bias=False, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dense(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    net = Net()
    pairs = [
        (net.conv.kernel, "conv"), (net.norm.scale, "scale"), (net.norm.bias, "shift"), (net.norm.mean, "mean"),
        (net.norm.var, "var"), (net.dense.kernel, "dense"),
    ]  # fmt: skip
    for variable, name in pairs:
        variable[...] = jnp.asarray(PARAMS[name])
    graph, state = nnx.split(net)
    return lambda state, x: nnx.merge(graph, state)(x), state


def flax_linen() -> tuple[Any, Any]:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(8, (3, 3), use_bias=False, name="conv")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm")(x)
            return nn.Dense(5, use_bias=False, name="dense")(nn.relu(x).mean((1, 2)))

    variables = {
        "params": {
            "conv": {"kernel": PARAMS["conv"]},
            "norm": {"scale": PARAMS["scale"], "bias": PARAMS["shift"]},
            "dense": {"kernel": PARAMS["dense"]},
        },
        "batch_stats": {"norm": {"mean": PARAMS["mean"], "var": PARAMS["var"]}},
    }
    return Net().apply, variables


def equinox() -> tuple[Any, Any]:
    conv = eqx.nn.Conv2d(3, 8, 3, padding=1, use_bias=False, key=jax.random.key(0))
    dense = eqx.nn.Linear(8, 5, use_bias=False, key=jax.random.key(1))
    conv = eqx.tree_at(lambda c: c.weight, conv, jnp.asarray(PARAMS["conv"].transpose(3, 2, 0, 1)))
    dense = eqx.tree_at(lambda d: d.weight, dense, jnp.asarray(PARAMS["dense"].T))
    params, static = eqx.partition(((conv, dense), {k: PARAMS[k] for k in PARAMS}), eqx.is_array)

    def one(params: Any, x: jax.Array) -> jax.Array:
        (conv, dense), p = eqx.combine(params, static)
        x = conv(x.transpose(2, 0, 1))
        column = {k: v.reshape(-1, 1, 1) for k, v in p.items() if v.ndim == 1}
        x = (x - column["mean"]) * lax.rsqrt(column["var"] + 1e-5) * column["scale"] + column["shift"]
        return dense(jax.nn.relu(x).mean((1, 2)))

    return jax.vmap(one, in_axes=(None, 0)), params


def haiku() -> tuple[Any, Any]:
    def net(x: jax.Array, training: bool = False) -> jax.Array:
        x = hk.Conv2D(8, 3, with_bias=False, name="conv")(x)
        x = hk.BatchNorm(True, True, 0.9, eps=1e-5, name="norm")(x, is_training=training)
        return hk.Linear(5, with_bias=False, name="dense")(jax.nn.relu(x).mean((1, 2)))

    transformed = hk.without_apply_rng(hk.transform_with_state(net))
    _, state = transformed.init(jax.random.key(0), jnp.asarray(IMAGES), training=True)
    row = {k: jnp.asarray(v.reshape(1, 1, 1, -1)) for k, v in PARAMS.items() if v.ndim == 1}
    params = {
        "conv": {"w": PARAMS["conv"]},
        "norm": {"scale": row["scale"], "offset": row["shift"]},
        "dense": {"w": PARAMS["dense"]},
    }
    state["norm/~/mean_ema"]["average"] = row["mean"]
    state["norm/~/var_ema"]["average"] = row["var"]
    return lambda both, x: transformed.apply(*both, x)[0], (params, state)


@pytest.mark.parametrize("library", [flax_nnx, flax_linen, equinox, haiku])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku")
def test_every_library_gives_the_same_maps(library: Any) -> None:
    apply, params = library()
    expected = jt.attribute(plain, PARAMS, IMAGES)
    actual = jt.attribute(apply, params, IMAGES)
    chex.assert_trees_all_close(actual, expected, rtol=2e-4, atol=2e-6)
    assert list(actual) == list(jt.METHODS)


def test_maps_by_definition() -> None:
    maps = jt.attribute(plain, PARAMS, IMAGES)
    gradient = jax.grad(lambda x: plain(PARAMS, x).sum())(jnp.asarray(IMAGES))
    np.testing.assert_allclose(maps["saliency"], abs(gradient), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(maps["input_x_gradient"], IMAGES * gradient, rtol=1e-5, atol=1e-7)
    assert all(m.shape == IMAGES.shape and m.dtype == jnp.float32 for m in maps.values())


def test_target_chooses_the_scalar() -> None:
    class_two = jt.attribute(plain, PARAMS, IMAGES, target=lambda outputs: outputs[:, 2])
    only_two = {**PARAMS, "dense": PARAMS["dense"][:, 2:3]}
    chex.assert_trees_all_close(class_two, jt.attribute(plain, only_two, IMAGES), rtol=1e-5, atol=1e-7)


def test_same_under_jit_and_vmap() -> None:
    expected = jt.attribute(plain, PARAMS, IMAGES)
    jitted = jax.jit(lambda params, x: jt.attribute(plain, params, x))(PARAMS, IMAGES)
    chex.assert_trees_all_close(jitted, expected, rtol=1e-5, atol=1e-6)

    stacked = jax.tree.map(lambda w: jnp.stack([jnp.asarray(w), 2 * jnp.asarray(w)]), PARAMS)
    both = jax.vmap(lambda params: jt.attribute(plain, params, IMAGES))(stacked)
    double = jt.attribute(plain, jax.tree.map(lambda w: 2 * w, PARAMS), IMAGES)
    chex.assert_trees_all_close(jax.tree.map(lambda m: m[0], both), expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda m: m[1], both), double, rtol=1e-4, atol=1e-5)


def test_bfloat16_images_give_float32_maps_close_by() -> None:
    expected = jt.attribute(plain, PARAMS, IMAGES)
    half = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), PARAMS)
    actual = jt.attribute(plain, half, jnp.asarray(IMAGES, jnp.bfloat16))
    for method, maps in actual.items():
        assert maps.dtype == jnp.float32
        a, b = np.asarray(maps).ravel(), np.asarray(expected[method]).ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.995


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)])
def test_same_with_sharded_images(shape: tuple[int, int]) -> None:
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    images = np.concatenate([IMAGES, -IMAGES])
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    actual = jt.attribute(plain, params, sharded)
    assert len(actual["epsilon_lrp"].sharding.device_set) == 8
    assert actual["epsilon_lrp"].sharding.is_equivalent_to(sharded.sharding, 4)
    chex.assert_trees_all_close(actual, jt.attribute(plain, PARAMS, images), rtol=1e-5, atol=1e-6)


def test_shard_map_with_models_sharded_does_not_sum_over_shards() -> None:
    """jax #36886: replicated images under sharded models must be made varying before they are differentiated."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    models = [jax.tree.map(lambda w, k=k: w * (1 + k / 8), PARAMS) for k in range(8)]
    stacked = jax.tree.map(lambda *w: jnp.stack(w), *models)

    def one_shard(params: Any, images: jax.Array) -> Any:
        images = lax.pcast(images, "model", to="varying")
        maps = jt.attribute(plain, jax.tree.map(lambda w: w[0], params), images)
        return jax.tree.map(lambda m: m[None], maps)

    specs = PartitionSpec("model"), PartitionSpec()
    run = jax.jit(jax.shard_map(one_shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("model")))
    actual = run(stacked, jnp.asarray(IMAGES))
    for k, model in enumerate(models):
        expected = jt.attribute(plain, model, IMAGES)
        chex.assert_trees_all_close(jax.tree.map(lambda m, k=k: m[k], actual), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: jax.nn.gelu(jax.nn.relu(x)),
        lambda x: jax.nn.silu(2 * x),
        lambda x: jax.nn.softmax(jnp.tanh(2 * x)),
        jax.nn.hard_swish,
    ],
    ids=["gelu", "silu", "softmax", "hard_swish"],
)
def test_shard_map_leaves_an_activation_whole(activation: Any, float64: None) -> None:
    """Plain numbers become varying (`pvary`) where they meet what varies; that is part of the activation.

    In float64, since what is divided by may be near zero: processors round products of other sizes differently.
    """

    def net(params: Any, x: jax.Array) -> jax.Array:
        return activation(activation(x @ params["first"]) @ params["second"]) @ params["dense"]

    rng = np.random.default_rng(3)
    shapes = {"first": (2, 3, 8), "second": (2, 8, 8), "dense": (2, 8, 5)}
    models = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    images = jnp.asarray(IMAGES, jnp.float64)
    mesh = jax.make_mesh((2, 4), ("model", "data"), axis_types=(AxisType.Auto,) * 2)

    def one_shard(params: Any, images: jax.Array) -> Any:
        images = lax.pcast(images, "model", to="varying")
        maps = jt.attribute(net, jax.tree.map(lambda w: w[0], params), images)
        return jax.tree.map(lambda m: m[None], maps)

    specs = PartitionSpec("model"), PartitionSpec("data")
    actual = jax.jit(jax.shard_map(one_shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("model", "data")))(
        models, images
    )
    for k in range(2):
        expected = jt.attribute(net, jax.tree.map(lambda w, k=k: w[k], models), images)
        chex.assert_trees_all_close(jax.tree.map(lambda m, k=k: m[k], actual), expected, rtol=1e-9, atol=1e-9)


def test_one_trace_for_any_number_of_batches() -> None:
    apply: Any = chex.assert_max_traces(plain, n=1)
    for scale in (1.0, 2.0, 3.0):
        jt.attribute(apply, jax.tree.map(lambda w, s=scale: w * s, PARAMS), IMAGES * scale)


@pytest.mark.parametrize("methods", [jt.METHODS, ("saliency",), ("epsilon_lrp",)])
def test_forward_runs_once_whatever_is_asked_for(methods: tuple[str, ...]) -> None:
    runs = []

    def counted(params: Any, x: jax.Array) -> jax.Array:
        def turn(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            jax.debug.callback(lambda _: runs.append(1), w[0, 0])
            return jax.nn.relu(h @ w), None

        return lax.scan(turn, x, params)[0]

    layers = np.stack([np.eye(3, dtype=np.float32)] * 5)
    for passes in (2, 1):  # the first call looks for faults with a pass of its own
        runs.clear()
        jax.block_until_ready(jt.attribute(counted, layers, IMAGES, methods=methods))
        jax.effects_barrier()
        assert len(runs) == passes * len(layers)


def test_all_maps_cost_one_forward_and_two_backward_convolutions() -> None:
    def convolutions(methods: tuple[str, ...]) -> int:
        def run(params: Any, x: jax.Array) -> Any:
            return jt.attribute(plain, params, x, methods=methods)

        return str(jax.jit(run).lower(PARAMS, IMAGES).compile().as_text()).count("convolution(")

    assert convolutions(("input_x_gradient",)) == convolutions(("epsilon_lrp",)) == 2
    assert convolutions(jt.METHODS) == 3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((IMAGES,), {"methods": ("grad_cam",)}, "There is no attribution method 'grad_cam'; there are: .*saliency"),
        ((IMAGES,), {"methods": ()}, "No attribution method is named; there are: saliency"),
        ((IMAGES,), {"epsilon": 0.0}, "epsilon must be greater than 0"),
        ((IMAGES,), {"target": lambda o: o}, "one scalar per image"),
        ((IMAGES[0],), {}, "must be floating point"),
        (((IMAGES * 0).astype(np.uint8),), {}, "must be floating point"),
    ],
)
def test_bad_input_is_said(arguments: tuple[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.attribute(plain, PARAMS, *arguments, **options)


@pytest.mark.parametrize("methods", [jt.METHODS, ("saliency",)])
def test_outputs_of_the_same_pass(methods: tuple[str, ...]) -> None:
    """They are what `apply` returns, the maps stay the same, and the forward pass is traced once."""
    traces = []

    def apply(params: Any, x: jax.Array) -> Any:
        traces.append(x.shape)
        return {"logits": plain(params, x), "mean": x.mean((1, 2))}

    with jax.default_matmul_precision("highest"):
        maps, outputs = jt.attribute(apply, PARAMS, IMAGES, methods=methods, with_outputs=True)
        assert len(traces) == 1
        chex.assert_trees_all_close(outputs, apply(PARAMS, jnp.asarray(IMAGES)), atol=1e-6)
        alone = jt.attribute(apply, PARAMS, IMAGES, methods=methods)
    assert set(maps) == set(methods)
    chex.assert_trees_all_close(maps, alone, atol=1e-6)
