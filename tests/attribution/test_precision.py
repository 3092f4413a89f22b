"""What each precision changes, and what it leaves as it is."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image
from scipy.stats import kendalltau
from typer.testing import CliRunner

import jaxtransfer as jt
from jaxtransfer import rooms
from jaxtransfer.cli.app import app
from jaxtransfer.comparison.similarity import similarities
from support.helpers import complaint

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
DEPTH, WIDTH = 10, 8


def conv(x: jax.Array, w: jax.Array, **how: Any) -> jax.Array:
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=DIMENSIONS, **how)


def deep(params: Any, x: jax.Array) -> jax.Array:
    """Residual blocks in a loop, depthwise convolutions, a gate, a checkpoint and a matrix product."""

    def block(h: jax.Array, w: Any) -> tuple[jax.Array, None]:
        inner = jax.nn.relu(conv(h, w["wide"]))
        return h + conv(inner, w["depthwise"], feature_group_count=WIDTH), None

    h, _ = lax.scan(block, conv(x, params["first"]), params["blocks"])
    h = h * jax.nn.sigmoid(h.mean((1, 2), keepdims=True))
    h = jax.checkpoint(lambda h: jax.nn.relu(conv(h, params["again"])))(h)
    return jax.nn.relu(h @ params["last"])


def weights(seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[-4:-1]))).astype(np.float32)

    blocks = {"wide": drawn(DEPTH, 3, 3, WIDTH, WIDTH), "depthwise": drawn(DEPTH, 3, 3, 1, WIDTH) / 2}
    return {
        "first": drawn(3, 3, 3, WIDTH),
        "blocks": blocks,
        "again": drawn(3, 3, WIDTH, WIDTH),
        "last": drawn(WIDTH, 5),
    }


PARAMS = weights(0)
IMAGES = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)
PROBE = np.random.default_rng(2).uniform(size=(6, 16, 16, 3)).astype(np.float32)


def networks(apply: Any) -> list[jt.Network]:
    """Each keeps most of the one before, so that some are nearer than others."""
    params = [PARAMS]
    for seed in (1, 2, 3):
        params.append(jax.tree.map(lambda a, b: (0.9 * a + 0.4 * b).astype(np.float32), params[-1], weights(seed)))
    return [jt.Network(f"n{i}", apply, each) for i, each in enumerate(params)]


def products(jaxpr: jex.Jaxpr) -> Iterator[tuple[str, str]]:
    """Type and precision of every matrix product and convolution."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            precision = eqn.params["precision"]
            asked = {str(each) for each in (precision if isinstance(precision, tuple) else (precision,))}
            operands: Any = eqn.invars
            yield "/".join(sorted({str(each.aval.dtype) for each in operands})), "/".join(sorted(asked))
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if isinstance(inner, jex.Jaxpr):
                    yield from products(inner)


def counted(apply: Any, params: Any, precision: Any, **options: Any) -> Counter[tuple[str, str]]:
    closed = jax.make_jaxpr(lambda params, images: jt.attribute(apply, params, images, precision=precision, **options))
    return Counter(products(closed(params, IMAGES).jaxpr))


def simple(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(jax.nn.relu(conv(x, params["first"])) @ params["last"])


def looped(params: Any, x: jax.Array) -> jax.Array:
    def turn(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.relu(conv(h, w)), None

    return lax.scan(turn, conv(x, params["first"]), params["blocks"]["wide"])[0]


def test_which_products_are_computed_how() -> None:
    """One forward and two backward passes of two products; only `bfloat16` tells the passes apart."""
    assert counted(simple, PARAMS, "float32") == {("float32", "HIGHEST"): 6}
    assert counted(simple, PARAMS, "tf32") == {("float32", "HIGH"): 6}
    assert counted(simple, PARAMS, "bfloat16") == {("float32", "HIGHEST"): 2, ("bfloat16", "None"): 4}


@jax.custom_vjp
def repeating(x: jax.Array, w: jax.Array) -> jax.Array:
    """A rectified product whose derivative computes it again."""
    return jax.nn.relu(x @ w)


def backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, None]:
    x, w = residuals
    return jnp.where(x @ w > 0, cotangent, 0) @ w.T, None


repeating.defvjp(lambda x, w: (repeating(x, w), (x, w)), backward)


def test_only_products_of_cotangents_are_narrow_and_none_in_checkpoints() -> None:
    def repeated(params: Any, x: jax.Array) -> jax.Array:
        return jax.checkpoint(lambda h: jax.nn.relu(conv(h, params["again"])))(conv(x, params["first"]))

    assert counted(looped, PARAMS, "bfloat16") == {("float32", "HIGHEST"): 2, ("bfloat16", "None"): 4}
    narrow = counted(repeated, PARAMS, "bfloat16")
    assert narrow[("bfloat16", "None")] == 2  # of the first convolution
    assert set(narrow) == {("float32", "HIGHEST"), ("bfloat16", "None")}

    def repeated_by_hand(params: Any, x: jax.Array) -> jax.Array:
        return repeating(conv(x, params["first"]), params["last"])

    narrow = counted(repeated_by_hand, PARAMS, "bfloat16", methods=["saliency"])
    assert narrow == {("float32", "HIGHEST"): 3, ("bfloat16", "None"): 2}


def test_float32_is_what_jax_gives_at_the_highest_precision() -> None:
    """To the last bit, whatever the caller's own setting."""
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(lambda images, params: deep(params, images).sum()))(IMAGES, PARAMS)
    with jax.default_matmul_precision("bfloat16"):
        maps = jt.attribute(deep, PARAMS, IMAGES, methods=["saliency"])
    np.testing.assert_array_equal(maps["saliency"], np.abs(gradient))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there are tensor cores")
def test_tf32_is_float32_on_a_cpu() -> None:
    usual, tf32 = (jt.attribute(simple, PARAMS, IMAGES, precision=precision) for precision in ("float32", "tf32"))
    chex.assert_trees_all_equal(usual, tf32)


def test_bfloat16_rounds_maps_and_leaves_outputs() -> None:
    """The cosine between a map and what rounding makes of it is above 0.9995."""
    (usual, outputs), (rounded, same) = (
        jt.attribute(deep, PARAMS, IMAGES, precision=precision, with_outputs=True)
        for precision in ("float32", "bfloat16")
    )
    np.testing.assert_array_equal(same, outputs)
    for method in jt.METHODS:
        assert rounded[method].dtype == jnp.float32
        assert not np.array_equal(rounded[method], usual[method])
        both = jnp.stack([usual[method], rounded[method]]).reshape(2, len(IMAGES), -1)
        assert similarities(both)[0][:, 0, 1].min() > 0.9995


@pytest.mark.slow
def test_bfloat16_under_vmap_and_shard_map() -> None:
    def run(images: Any) -> Any:
        return jt.attribute(looped, PARAMS, images, methods=["saliency"], precision="bfloat16")

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    expected = run(IMAGES)
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(IMAGES)
    mapped = jax.tree.map(jnp.concatenate, jax.jit(jax.vmap(run))(IMAGES[:, None]))
    for others in (sharded, mapped):  # rounded in another order
        chex.assert_trees_all_close(others, expected, atol=0.02 * float(jnp.abs(expected["saliency"]).max()))


def trained() -> tuple[list[jt.Network], np.ndarray]:
    """Encoders of Rooms, with pieces of a photo."""
    pytest.importorskip("skimage")
    from skimage import data

    photo = data.astronaut()
    pieces = photo.reshape(8, 64, 8, 64, 3).swapaxes(1, 2)[[0, 2, 3, 5, 6, 7], [1, 3, 3, 4, 2, 6]]
    tasks = ("autoencoding", "inpainting", "edge_texture", "depth_zbuffer", "depth_euclidean", "normal")
    return [rooms.zoo()[task] for task in tasks], pieces


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:On . images rsa cannot be trusted")
@pytest.mark.parametrize("compared", [lambda: (networks(deep), PROBE), trained], ids=["deep", "trained"])
def test_bfloat16_keeps_affinities_and_rankings(compared: Any) -> None:
    several, images = compared()
    usual, rounded = (
        jt.affinity_matrix(several, images, methods=[*jt.METHODS, "rsa"], precision=precision)
        for precision in ("float32", "bfloat16")
    )
    for method in jt.METHODS:
        np.testing.assert_allclose(rounded[method], usual[method], atol=5e-3)
        assert not np.array_equal(rounded[method], usual[method])
        for before, after in zip(usual[method], rounded[method], strict=True):
            agreement: Any = kendalltau(before, after)
            assert agreement.statistic >= 0.98
    np.testing.assert_array_equal(rounded["rsa"], usual["rsa"])  # of the forward pass


def test_points_of_another_precision_are_computed_again(tmp_path: Path) -> None:
    def work(precision: Any) -> tuple[np.ndarray, set[str]]:
        found = jt.affinity_matrix(
            networks(simple)[:2], PROBE, directory=tmp_path, methods=["saliency"], precision=precision
        )
        keys = [json.loads(file.read_text()) for file in tmp_path.glob("points/*/saliency/key.json")]
        return found["saliency"], {key["precision"] for key in keys}

    (usual, first), (rounded, second), (again, third) = map(work, ("float32", "bfloat16", "float32"))
    assert (first, second, third) == ({"float32"}, {"bfloat16"}, {"float32"})
    np.testing.assert_array_equal(usual, again)
    assert not np.array_equal(usual, rounded)


def test_unknown_precision() -> None:
    with pytest.raises(jt.JaxTransferError, match=r"no precision 'float16'; there are: bfloat16, float32, tf32\.$"):
        jt.attribute(simple, PARAMS, IMAGES, precision="float16")  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(jt.JaxTransferError, match="There is no precision 'half'"):
        jt.affinity_matrix(networks(simple), PROBE, precision="half")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_command_line_records_it(tmp_path: Path) -> None:
    zoo = jt.Zoo(tmp_path / "zoo")
    for name, seed in (("one", 0), ("two", 1)):
        zoo.add(jt.Network(name, simple, weights(seed), jt.Preprocess((16, 16))))
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for i, image in enumerate(PROBE[:2]):
        Image.fromarray((255 * image).astype(np.uint8)).save(photos / f"{i}.png")

    def affinity(*options: Any) -> Any:
        arguments = ["affinity", tmp_path / "zoo", photos, "--method", "saliency", "--import", __name__, *options]
        return CliRunner().invoke(app, [str(each) for each in arguments])

    assert affinity("--out", run, "--precision", "bfloat16").exit_code == 0
    assert json.loads((run / "run.json").read_text())["settings"]["precision"] == "bfloat16"
    assert "precision: bfloat16 there, float32 here" in complaint(affinity("--out", run))
    refused = affinity("--out", tmp_path / "other", "--precision", "half")
    assert refused.exit_code == 2
    assert "'bfloat16'" in refused.stderr
