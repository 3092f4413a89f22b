"""Networks made of the modules of JAX libraries compute what the modules compute, and zoos store them."""

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxtransfer as jt
from jaxtransfer.networks.exported import ExportedProgram
from jaxtransfer.networks.modules.structure import structure
from support import jax_modules
from support.jax_modules import CASES, IMAGES, Case

os.environ.setdefault("KERAS_BACKEND", "jax")
pytestmark = [
    pytest.mark.usefixtures("library_promotion"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku"),
]
SIZE = jt.Preprocess((16, 16))
MODULES = [support := "support.jax_modules"]
every_library = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in ("keras", "linen")))
        for name, case in CASES.items()
    ],
)


@pytest.fixture(autouse=True)
def nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtransfer.networks.functions._registered", set())


@functools.cache
def trained(case: Case, seed: int = 0) -> Any:
    return case.make(seed)


@every_library
def test_outputs_and_maps_are_those_of_the_module_called_by_hand(case: Case) -> None:
    module = trained(case)
    network = jt.Network.of(module, name="n", preprocess=SIZE)
    expected = case.by_hand(module, jnp.asarray(IMAGES))
    np.testing.assert_allclose(jax.jit(network.apply)(network.params, IMAGES), expected, rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda images: case.by_hand(module, images).sum()))(jnp.asarray(IMAGES))
    scale = float(np.abs(gradient).max())
    maps = jt.attribute(network.apply, network.params, IMAGES)
    np.testing.assert_allclose(maps["saliency"], np.abs(gradient), rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(maps["input_x_gradient"], IMAGES * gradient, rtol=1e-4, atol=1e-5 * scale)
    assert np.isfinite(maps["epsilon_lrp"]).all()
    assert np.abs(maps["epsilon_lrp"]).max() > 0


@every_library
def test_modules_that_differ_in_their_weights_share_a_program(case: Case) -> None:
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(apply: Any, params: Any, images: jax.Array) -> jax.Array:
        traces.append(apply)
        return apply(params, images)

    networks = [jt.Network.of(trained(case, seed), name="n") for seed in (0, 1)]
    first, second = (run(network.apply, network.params, IMAGES) for network in networks)
    assert len(traces) == 1
    assert np.abs(first - second).max() > 1e-3
    assert networks[0].apply.to_json() == networks[1].apply.to_json()  # type: ignore[attr-defined]


@every_library
def test_inner_layers_by_name(case: Case) -> None:
    module = trained(case)
    several = jt.Network.of(module, name="n", layer=case.layers)
    outputs: Any = several.apply(several.params, jnp.asarray(IMAGES))
    assert (*outputs,) == case.layers
    for name in case.layers:
        single = jt.Network.of(module, name="n", layer=name)
        output: Any = jax.jit(single.apply)(single.params, IMAGES)
        np.testing.assert_allclose(output, outputs[name], rtol=1e-5, atol=1e-5)
    missing = jt.Network.of(module, name="n", layer=f"{case.layers[0]}x")
    with pytest.raises(
        jt.JaxTransferError, match=f"no layer '{case.layers[0]}x' in the module; there are: {case.layers[0]},"
    ):
        jax.eval_shape(missing.apply, missing.params, IMAGES)


def test_layers_have_the_values_of_the_layers() -> None:
    """By the libraries' own functions, or by the weights."""
    vit = trained(CASES["nnx"])
    network = jt.Network.of(vit, name="n", layer="patches")
    expected = vit.patches(jnp.asarray(IMAGES))
    np.testing.assert_allclose(
        network.apply(network.params, jnp.asarray(IMAGES)), vit.patches(jnp.asarray(IMAGES)), atol=1e-6
    )
    resnet, variables = trained(CASES["linen"])
    network = jt.Network.of((resnet, variables), name="n", layer="Residual_0")
    _, state = resnet.apply(variables, IMAGES, train=False, capture_intermediates=True)
    expected = state["intermediates"]["Residual_0"]["__call__"][0]
    np.testing.assert_allclose(network.apply(network.params, jnp.asarray(IMAGES)), expected, atol=1e-6)
    pair = trained(CASES["equinox"])
    network = jt.Network.of(pair, name="n", layer="first")
    first = jax.vmap(pair[0].first)(IMAGES.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(network.apply(network.params, jnp.asarray(IMAGES)), first, atol=1e-6)


def test_the_module_stays_as_it_is() -> None:
    module = CASES["nnx"].make(0)
    module.train()
    before = nnx.graphdef(module)
    network = jt.Network.of(module, name="n", layer="blocks.0")
    jax.eval_shape(network.apply, network.params, IMAGES)
    assert nnx.graphdef(module) == before
    assert not module.blocks[0].dropout.deterministic
    assert type(module.blocks[0]) is jax_modules.Block


class Twice(nnx.Module):
    """Calls one layer twice, once through a compiled function, and takes an argument."""

    def __init__(self, rngs: nnx.Rngs, *, checkpointed: bool = False) -> None:
        self.layer = nnx.Linear(3, 3, rngs=rngs)
        self.checkpointed = checkpointed

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        assert not train
        call = nnx.remat(lambda layer, x: layer(x)) if self.checkpointed else lambda layer, x: layer(x)
        return call(self.layer, call(self.layer, images)) * 2

    def encode(self, images: jax.Array) -> jax.Array:
        return self.layer(images)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_of_several_calls_the_last_counts_also_inside_transformations(checkpointed: bool) -> None:
    module = Twice(nnx.Rngs(0), checkpointed=checkpointed)
    network = jt.Network.of(module, name="n", layer="layer")
    expected = module.layer(module.layer(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(network.apply(network.params, jnp.asarray(IMAGES)), expected, atol=1e-6)


def encode(module: Any, images: jax.Array) -> jax.Array:
    return module.encode(images)


class LinenEncoder(nn.Module):
    def setup(self) -> None:
        self.layer = nn.Dense(4)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.encode(images) * 2

    def encode(self, images: jax.Array) -> jax.Array:
        return self.layer(images)


def test_another_call() -> None:
    twice = Twice(nnx.Rngs(0))
    linen = LinenEncoder()
    variables = linen.init(jax.random.key(0), IMAGES)
    perceptron = eqx.nn.MLP(16 * 16 * 3, 4, 8, 1, key=jax.random.key(0))
    haiku, params, state = trained(CASES["haiku"])

    def flat(module: Any, image: jax.Array) -> jax.Array:
        assert image.shape == (16, 16, 3)
        return module(image.reshape(-1))

    by_hand = CASES["haiku"].by_hand((haiku, params, state), jnp.asarray(IMAGES))
    for module, call, expected in [
        (twice, encode, twice.encode(jnp.asarray(IMAGES))),
        ((linen, variables), encode, linen.apply(variables, IMAGES, method="encode")),
        (perceptron, flat, jax.vmap(perceptron)(jnp.asarray(IMAGES).reshape(3, -1))),
        ((haiku, params, state), lambda function, images: function(images, is_training=False) * 2, 2 * by_hand),
    ]:
        network = jt.Network.of(module, name="n", call=call)
        np.testing.assert_allclose(network.apply(network.params, jnp.asarray(IMAGES)), expected, atol=1e-5)
    assert jt.Network.of(twice, name="n", call=encode).apply != jt.Network.of(twice, name="n").apply


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (lambda: jax_modules.resnet(), {}, r"not support.ResNet alone; give \(module, variables\)"),
        (
            lambda: jax_modules.haiku_function(),
            {},
            r"not haiku.TransformedWithState alone; give \(transformed, params\)",
        ),
        (lambda: torch.nn.Linear(2, 2), {}, "the PyTorch module torch.Linear; convert it with"),
        (lambda: jax.nn.relu, {}, "jaxtransfer.Network a function of weights and images"),
        (lambda: (jax_modules.resnet(), 3), {}, "the dict that module.init returns"),
        (lambda: Twice(nnx.Rngs(0)), {"layer": 3}, r"layer must be names, .* not 3"),
        (lambda: Twice(nnx.Rngs(0)), {"layer": [3]}, r"layer must be .*, not \[3\]"),
        (lambda: Twice(nnx.Rngs(0)), {"call": "encode"}, "call must be a function, not 'encode'"),
        (lambda: Twice(nnx.Rngs(0)), {"factory": "nets:make"}, "no factory 'nets:make'; import its module first"),
        (lambda: Twice(nnx.Rngs(0)), {"factory": Twice}, "The factory .*:Twice must build the module when .*TypeError"),
    ],
)
def test_mistakes_end_in_one_sentence(module: Any, options: Any, message: str) -> None:
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.Network.of(module(), name="n", **options)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            lambda: eqx.nn.Linear(3, 2, key=jax.random.key(0)),
            "channels first, as eqx.nn.Conv2d takes it; .*call=lambda",
        ),
        (
            lambda: nnx.Linear(5, 2, rngs=nnx.Rngs(0)),
            r"shape \(3, 16, 16, 3\) \(TypeError: .*call=lambda module, images",
        ),
    ],
)
def test_modules_that_are_called_in_another_way(module: Any, message: str) -> None:
    network = jt.Network.of(module(), name="n")
    with pytest.raises(jt.JaxTransferError, match=message):
        network.apply(network.params, jnp.asarray(IMAGES))


def _scaled(factor: float) -> Any:
    return lambda x: x * factor


class Plain:
    def __init__(self, factor: float) -> None:
        self.factor = factor


def test_structures_are_equal_for_what_is_built_alike_only() -> None:
    alike = [
        (_scaled(2.0), _scaled(2.0)),
        (functools.partial(jnp.sum, axis=1), functools.partial(jnp.sum, axis=1)),
        (Plain(1.0), Plain(1.0)),
        ({"a": [np.ones(3)]}, {"a": [np.ones(3)]}),
        (jax.random.key(0), jax.random.key(0)),
    ]
    for first, second in alike:
        assert structure(first) == structure(second)
        assert hash(structure(first)) == hash(structure(second))
    different = [_scaled(3.0), lambda x: x * 2.0, functools.partial(jnp.sum, axis=0), Plain(2.0), {"a": [np.ones(4)]}]
    different += [{"a": [np.zeros(3)]}, jax.random.key(1), 1, 1.0, True, 0.0, -0.0, object(), object(), [1], (1,)]
    descriptions = [*map(structure, different), *(structure(first) for first, _ in alike)]
    assert len({*descriptions}) == len(descriptions)
    itself: list[Any] = []
    itself.append(itself)
    assert structure(itself) == structure(itself)


@every_library
def test_zoos_store_factories(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = jt.Zoo(tmp_path / "zoo")
    options: Any = {"preprocess": SIZE, "layer": case.layers}
    networks = [jt.Network.of(trained(case, seed), name=f"n{seed}", factory=case.factory, **options) for seed in (0, 1)]
    for network in networks:
        zoo.add(network)
    assert zoo["n0"].apply == zoo["n1"].apply == networks[0].apply
    expected: Any = networks[1].apply(networks[1].params, jnp.asarray(IMAGES))
    for name, output in zoo["n1"].apply(zoo["n1"].params, jnp.asarray(IMAGES)).items():  # type: ignore[union-attr]
        np.testing.assert_allclose(output, expected[name], rtol=1e-5, atol=1e-5)
    assert zoo.manifest("n0")["apply"]["config"]["factory"] == f"{support}:{case.factory.__name__}"
    assert not [*zoo.path.glob("*/program*")]
    monkeypatch.setattr("jaxtransfer.networks.functions._registered", set())  # as in another program
    with pytest.raises(jt.JaxTransferError, match=rf"its function is {support}:.*--import {support}"):
        zoo["n0"]
    with pytest.raises(jt.JaxTransferError, match=rf"has the function {support}:.*--import {support}"):
        jt.affinity_matrix(zoo, IMAGES)
    assert jt.Zoo(zoo.path, modules=MODULES)["n0"].apply == networks[0].apply
    by_name = jt.Network.of(trained(case), name="n", factory=f"{support}:{case.factory.__name__}", **options)
    assert by_name.apply == networks[0].apply


@pytest.mark.parametrize("field", ["factory", "call"])
@pytest.mark.parametrize(
    "function", ["os:getcwd", "shutil:rmtree", "numpy:save", f"{support}:np.zeros", "jaxtransfer.cli:main"]
)
def test_a_manifest_reaches_no_function_that_builds_no_module(tmp_path: Path, field: str, function: str) -> None:
    zoo = jt.Zoo(tmp_path / "zoo")
    zoo.add(jt.Network.of(trained(CASES["nnx"]), name="n", factory=jax_modules.vision_transformer))
    file = zoo.path / "n" / "network.json"
    manifest = json.loads(file.read_text())
    manifest["apply"]["config"][field] = function
    file.write_text(json.dumps(manifest))
    with pytest.raises(jt.JaxTransferError, match=f"its function (is )?{function}"):
        jt.Zoo(zoo.path, modules=MODULES)["n"]


def test_a_call_is_stored_with_its_factory(tmp_path: Path) -> None:
    zoo = jt.Zoo(tmp_path / "zoo")
    module = Twice(nnx.Rngs(0))
    zoo.add(jt.Network.of(module, name="n", factory=twice, call=encode))
    assert zoo["n"].apply == jt.Network.of(module, name="n", factory=twice, call=encode).apply
    with pytest.raises(jt.JaxTransferError, match=r"cannot be stored.*top level of a module"):
        zoo.add(jt.Network.of(module, name="m", factory=twice, call=lambda module, images: images))
    with pytest.raises(jt.JaxTransferError, match=r"cannot be stored.*top level of a module"):
        zoo.add(jt.Network.of(module, name="m", factory=lambda: Twice(nnx.Rngs(0))))
    assert zoo.names == ("n",)


def twice() -> Twice:
    return Twice(nnx.Rngs(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> jt.Zoo:
    """A zoo with two networks that no factory builds."""
    zoo = jt.Zoo(tmp_path_factory.mktemp("exported") / "zoo")
    for seed in (0, 1):
        zoo.add(jt.Network.of(trained(CASES["nnx"], seed), name=f"n{seed}", preprocess=SIZE))
    return zoo


METHODS = ["saliency", "input_x_gradient", "unit_saliency", "integrated_gradients", "modelgif"]


@every_library
def test_zoos_store_exported_programs(case: Case, tmp_path: Path) -> None:
    zoo = jt.Zoo(tmp_path / "zoo")
    network = jt.Network.of(trained(case), name="n", preprocess=SIZE, layer=case.layers[0])
    zoo.add(network)
    stored = zoo["n"]
    expected = jt.attribute(network.apply, network.params, IMAGES, methods=METHODS[:3], with_outputs=True)
    actual = jt.attribute(stored.apply, stored.params, IMAGES, methods=METHODS[:3], with_outputs=True)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected)
    assert str(Path(__file__).parents[2]).encode() not in (zoo.path / "n" / "program.export").read_bytes()


@pytest.mark.slow
def test_exported_networks_share_a_program_and_can_be_compared(exported: jt.Zoo) -> None:
    assert exported["n0"].apply == exported["n1"].apply
    assert hash(exported["n0"].apply) == hash(exported["n1"].apply)
    networks = [jt.Network.of(trained(CASES["nnx"], seed), name=f"n{seed}", preprocess=SIZE) for seed in (0, 1)]
    images = np.random.default_rng(1).random((6, 16, 16, 3), dtype=np.float32)
    ours, theirs = (
        jt.affinity_matrix(of, images, methods=["saliency"], mesh=jt.device_mesh(2, 2)) for of in (exported, networks)
    )
    np.testing.assert_allclose(ours["saliency"], theirs["saliency"], atol=1e-5)


@pytest.mark.slow
def test_paths_of_gradients_through_an_exported_program(exported: jt.Zoo) -> None:
    stored = exported["n0"]
    network = jt.Network.of(trained(CASES["nnx"]), name="n")
    actual, expected = (jt.attribute(of.apply, of.params, IMAGES[:1], methods=METHODS[3:]) for of in (stored, network))
    for method in METHODS[3:]:
        np.testing.assert_allclose(actual[method], expected[method], atol=1e-5)


def test_what_an_exported_program_cannot_do_is_said(exported: jt.Zoo, tmp_path: Path) -> None:
    stored = exported["n0"]
    with pytest.raises(jt.JaxTransferError, match=r"epsilon-LRP rewrites .* leave epsilon_lrp out .* with a factory"):
        jt.attribute(stored.apply, stored.params, IMAGES)
    with pytest.raises(jt.JaxTransferError, match=r"float32 images .* \(16, 16, 3\), not .* of shape \(3, 8, 8, 3\)"):
        stored.apply(stored.params, jnp.zeros((3, 8, 8, 3)))
    zoo = jt.Zoo(tmp_path / "zoo")
    with pytest.raises(jt.JaxTransferError, match=r"exported for images of one size: give .* a factory or a"):
        zoo.add(jt.Network.of(trained(CASES["nnx"]), name="n"))

    class Branching(nnx.Module):
        def __call__(self, images: jax.Array) -> jax.Array:
            return images if len(images) > 1 else jnp.asarray(float(images.sum()))

    with pytest.raises(jt.JaxTransferError, match=r"its program cannot be exported .* a factory"):
        zoo.add(jt.Network.of(Branching(), name="n", preprocess=SIZE))
    assert zoo.names == ()


def _replaced(zoo: jt.Zoo, target: Path, content: bytes) -> jt.Zoo:
    """A copy of the first network of a zoo with another program, whose hash is in the manifest."""
    shutil.copytree(zoo.path / "n0", target / "n0")
    (target / "n0" / "program.export").write_bytes(content)
    file = target / "n0" / "network.json"
    manifest = json.loads(file.read_text())
    manifest["apply"]["config"]["sha256"] = ExportedProgram(content).sha256
    file.write_text(json.dumps(manifest))
    return jt.Zoo(target)


def test_programs_that_are_damaged_or_were_changed_are_refused(exported: jt.Zoo, tmp_path: Path) -> None:
    content = (exported.path / "n0" / "program.export").read_bytes()
    random = np.random.default_rng(0)
    for number, damaged in enumerate([b"", content[:100], content[:-40], random.bytes(1000), bytes(len(content))]):
        with pytest.raises(jt.JaxTransferError, match="exported program is damaged, or of a version of JAX that"):
            _replaced(exported, tmp_path / str(number), damaged)["n0"]
    zoo = _replaced(exported, tmp_path / "changed", content)
    (zoo.path / "n0" / "program.export").write_bytes(content[:-1] + b"x")
    with pytest.raises(jt.JaxTransferError, match="exported program has changed since it was added"):
        zoo["n0"]
    (zoo.path / "n0" / "program.export").unlink()
    with pytest.raises(jt.JaxTransferError, match="is damaged"):
        zoo["n0"]


def test_programs_that_call_more_than_computations_are_refused(exported: jt.Zoo, tmp_path: Path) -> None:
    """Even those that `jax.export` lets pass: kernels of LAPACK here, and a function of XLA that is named anew."""
    with pytest.raises(jt.JaxTransferError, match=r"calls .*lapack_.*, which is no operation of StableHLO"):
        ExportedProgram.of(lambda params, x: x[..., 0] @ jnp.linalg.svd(params)[0], np.eye(16, dtype=np.float32), SIZE)

    def apply(params: Any, images: jax.Array) -> jax.Array:
        return jax.ffi.ffi_call("shape_assertioX", jax.ShapeDtypeStruct(images.shape, images.dtype))(images)

    arguments = [[], jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)]
    checks = [jax.export.DisabledSafetyCheck.custom_call("shape_assertioX")]
    hostile = jax.export.export(jax.jit(lambda leaves, x: apply(leaves, x)), disabled_checks=checks)(*arguments)
    zoo = _replaced(exported, tmp_path / "hostile", bytes(hostile.serialize()))
    with pytest.raises(jt.JaxTransferError, match="calls shape_assertioX, which is no operation"):
        zoo["n0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"), [("MobileNetV3Small", "expanded_conv_4_add"), ("EfficientNetV2B0", "block4a_project_bn")]
)
def test_applications_of_keras(name: str, layer: str) -> None:
    import keras

    options = {"input_shape": (32, 32, 3), "weights": None, "include_preprocessing": False}
    model = getattr(keras.applications, name)(include_top=False, pooling="avg", **options)
    network = jt.Network.of(model, name="n", layer=layer)
    images = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    maps, output = jt.attribute(network.apply, network.params, images, with_outputs=True)
    until = keras.Model(model.input, model.get_layer(layer).output)
    gradient = jax.grad(lambda images: jax_modules.CASES["keras"].by_hand(until, images).sum())(jnp.asarray(images))
    np.testing.assert_allclose(output, until(jnp.asarray(images), training=False), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(maps["saliency"], np.abs(gradient), rtol=1e-3, atol=1e-3 * np.abs(gradient).max())
    assert all(np.isfinite(of_method).all() and np.abs(of_method).max() > 0 for of_method in maps.values())
