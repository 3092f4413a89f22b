"""Networks in ONNX files give what onnxruntime gives, and the gradients of the same network brought from PyTorch."""

import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from torch import nn  # noqa: E402

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.cli.app import app  # noqa: E402
from jaxtransfer.converters import torch_export  # noqa: E402
from jaxtransfer.converters.onnx_network import read_onnx  # noqa: E402
from support.helpers import complaint, quick_jit  # noqa: E402
from support.onnx_models import channels_first, model, node, normal, reference, rng, save  # noqa: E402
from support.torch_modules import export, images, seeded  # noqa: E402


class Convolutional(nn.Module):
    """Everything that small networks for photos are made of."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(3, 2, 1))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(2, 8), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.depth(x)
        x = F.leaky_relu(self.norm(self.up(x * self.gate(x))), 0.1)
        x = torch.cat([x, F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")], 1)
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A vision transformer of one block, with a class token and positions."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.places, self.first, self.second = nn.Parameter(torch.zeros(1, 17, 8)), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.mix, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        q, k, v = self.qkv(self.first(x)).reshape(x.shape[0], 17, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.mix(attended)
        return self.head((x + self.mlp(self.second(x)))[:, 0])


def exported(module, path, size, dynamo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = (
            {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "verbose": False, "external_data": False}
            if dynamo
            else {"dynamic_axes": {"x": {0: "n"}}, "input_names": ["x"], "opset_version": 17}
        )
        torch.onnx.export(module.eval(), (torch.zeros(2, 3, size, size),), str(path), dynamo=dynamo, **given)
    return path


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("module", [Convolutional, Tokens])
def test_outputs_and_gradients_are_those_of_the_network_in_pytorch(module, dynamo, tmp_path):
    network = seeded(module())
    file = exported(network, tmp_path / "net.onnx", 16, dynamo)
    read = read_onnx(file)
    (output,) = (value.name for value in onnx.load(file).graph.output)
    ours = read.network("ours", output)
    program, params = torch_export.from_exported(export(network, torch.zeros(2, 3, 16, 16)))
    x = images(3, 16)

    def both(apply, params, x):
        return apply(params, x), jax.grad(lambda x: apply(params, x).sum())(x)

    result, gradient = quick_jit(both, static_argnums=0)(ours.apply, ours.params, x)
    name = onnx.load(file).graph.input[0].name
    np.testing.assert_allclose(result, reference(file.read_bytes(), **{name: channels_first(x)})[0], atol=1e-4)
    twin, expected = quick_jit(both, static_argnums=0)(program, params, x)
    np.testing.assert_allclose(result, twin, atol=1e-4)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
    # The default is what the classifier reads.
    width = network.head.in_features
    assert jt.from_onnx(file, name="net").apply(ours.params, x[:1]).shape == (1, width)


def test_maps_and_a_zoo(tmp_path):
    network = jt.from_onnx(exported(seeded(Convolutional()), tmp_path / "net.onnx", 16, False), name="net")
    zoo = jt.Zoo(tmp_path / "zoo")
    zoo.add(network)
    assert zoo["net"].apply == network.apply
    assert zoo["net"].preprocess == jt.Preprocess((16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    maps = jt.attribute(zoo["net"].apply, zoo["net"].params, images(2, 16))
    assert {name: values.shape for name, values in maps.items()} == dict.fromkeys(jt.METHODS, (2, 16, 16, 3))
    assert all(np.isfinite(values).all() and np.abs(values).max() > 0 for values in maps.values())


WEIGHTS = {"w": normal(4, 3, 3, 3), "v": normal(6, 4, 3, 3), "axes": np.array([2, 3]), "head": normal(6, 5)}
NODES = (
    node("Conv", "x", "w", outputs=["c"], pads=[1, 1, 1, 1]),
    node("Relu", "c", outputs=["r"]),
    node("Conv", "r", "v", outputs=["d"], strides=[2, 2]),
    node("Relu", "d", outputs=["e"]),
    node("ReduceMean", "e", "axes", outputs=["m"], keepdims=0),
    node("MatMul", "m", "head", outputs=["l"]),
    node("Softmax", "l"),
)


def test_representations_are_chosen_by_name(tmp_path):
    read = read_onnx(save(model(NODES, WEIGHTS), tmp_path / "net.onnx"))
    shapes = {"c": (4, 8, 8), "r": (4, 8, 8), "d": (6, 3, 3), "e": (6, 3, 3), "m": (6,), "l": (5,), "y": (5,)}
    assert read.layers() == shapes
    x = normal(2, 8, 8, 3)
    expected = dict(
        zip("crdemly", reference(model(NODES, WEIGHTS, outputs=tuple("crdemly")), x=channels_first(x)), strict=True)
    )

    def gives(representation):
        network = read.network("net", representation)
        return network.apply(network.params, x)

    np.testing.assert_allclose(gives(None), expected["m"], atol=1e-5)
    np.testing.assert_allclose(gives("deepest"), np.moveaxis(expected["e"], 1, -1), atol=1e-5)
    np.testing.assert_allclose(gives("Relu of r"), np.moveaxis(expected["r"], 1, -1), atol=1e-5)
    layers = gives(["c", "y"])
    assert set(layers) == {"c", "y"}
    np.testing.assert_allclose(layers["y"], expected["y"], atol=1e-5)
    assert set(read.network("net", "r").params) == {"w"}  # what the rest needs is left out
    with pytest.raises(
        jt.JaxTransferError, match=r"net\.onnx: There is no value or node 'conv1' in the graph; there are: "
    ):
        gives("conv1")


def test_one_image_at_a_time_and_any_number_agree(tmp_path):
    x = normal(3, 8, 8, 3)
    many = jt.from_onnx(save(model(NODES, WEIGHTS), tmp_path / "a.onnx"), name="a")
    single = jt.from_onnx(save(model(NODES, WEIGHTS, image=(1, 3, 8, 8)), tmp_path / "b.onnx"), name="b")
    # Made for one image, although it says that it takes any number.
    nodes = [*NODES[:4], node("Reshape", "e", "to", outputs=["g"]), node("ReduceMean", "g", "last")]
    baked = model(nodes, WEIGHTS | {"to": np.array([1, 6, 9]), "last": np.array([2])})
    baked = jt.from_onnx(save(baked, tmp_path / "c.onnx"), name="c")
    assert [n.apply.one_by_one for n in (many, single, baked)] == [False, True, True]
    np.testing.assert_allclose(many.apply(many.params, x), single.apply(single.params, x), atol=1e-5)
    np.testing.assert_allclose(many.apply(many.params, x), baked.apply(baked.params, x)[..., 0], atol=1e-5)


def test_images_may_have_their_channels_last_or_opacity_or_one_channel(tmp_path):
    turn = node("Transpose", "x", outputs=["t"], perm=[0, 3, 1, 2])
    rest = [node("Conv", "t", "w", outputs=["c"]), node("Relu", "c")]
    for channels in (1, 3, 4):
        made = model([turn, *rest], {"w": normal(4, channels, 3, 3)}, image=("N", 8, 10, channels))
        network = jt.from_onnx(save(made, tmp_path / "net.onnx"), name="net", representation="y")
        x = normal(2, 8, 10, channels)
        x[..., 3:] = 1
        (expected,) = reference(made, x=x)
        result = network.apply(network.params, x[..., :3])
        np.testing.assert_allclose(result, np.moveaxis(expected, 1, -1), atol=1e-5)
        assert network.preprocess.lightness == (channels == 1)
    photo = rng().uniform(size=(1, 30, 40, 3)).astype(np.float32)
    assert network.preprocess(photo).shape == (1, 8, 10, 3)


def test_networks_for_any_size_take_the_size_of_the_preprocessing(tmp_path):
    file = save(model(NODES, WEIGHTS, image=("N", 3, "h", "w")), tmp_path / "net.onnx")
    network = jt.from_onnx(file, name="net", preprocess=jt.Preprocess((12, 9)))
    assert network.apply.shape == (12, 9, 3)
    assert jt.from_onnx(file, name="net", size=(7, 9)).preprocess.size == (7, 9)


def test_other_inputs_get_values(tmp_path):
    style = helper.make_tensor_value_info("style", TensorProto.FLOAT, [4])
    nodes = [*NODES[:1], node("Unsqueeze", "style", "axes", outputs=["s"]), node("Mul", "c", "s")]
    weights = WEIGHTS | {"axes": np.array([1, 2])}
    made = model(nodes, weights, inputs=[style])
    given = normal(4, seed=3)
    network = jt.from_onnx(save(made, tmp_path / "net.onnx"), name="net", inputs={"style": given.tolist()})
    x = normal(2, 8, 8, 3)
    (expected,) = reference(made, x=channels_first(x), style=given)
    np.testing.assert_allclose(network.apply(network.params, x), np.moveaxis(expected, 1, -1), atol=1e-5)


def test_half_precision_becomes_float32(tmp_path):
    weights = {
        name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in WEIGHTS.items()
    }
    read = read_onnx(save(model(NODES, weights, kind=TensorProto.FLOAT16), tmp_path / "net.onnx"))
    network = read.network("net", "y")
    assert {value.dtype for value in network.params.values()} == {np.dtype(np.float32)}
    x = normal(2, 8, 8, 3)
    whole = model(NODES, {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in weights.items()})
    np.testing.assert_allclose(network.apply(network.params, x), reference(whole, x=channels_first(x))[0], atol=1e-5)
    assert read.source["notes"] == ["Its numbers of the type float16 are computed with in float32."]


class Calibration:
    """Images for onnxruntime's quantisation."""

    def __init__(self, count=8):
        self.left = [{"x": normal(1, 3, 8, 8, seed=i)} for i in range(count)]

    def get_next(self):
        return self.left.pop() if self.left else None


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_quantised_networks_are_close_to_what_they_were_made_of(form, tmp_path, caplog):
    quantization = pytest.importorskip("onnxruntime.quantization")
    nodes = list(NODES)
    nodes[4] = node("ReduceMean", "e", outputs=["m"], keepdims=0, axes=[2, 3])
    weights = {k: v for k, v in WEIGHTS.items() if k != "axes"}
    plain = save(model(nodes, weights, opset=17), tmp_path / "plain.onnx")
    file = tmp_path / "quantised.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "dynamic":
            quantization.quantize_dynamic(plain, file)
        else:
            caplog.set_level("ERROR")  # it recommends steps before quantisation
            kind = quantization.QuantFormat[form]
            quantization.quantize_static(plain, file, Calibration(), quant_format=kind, per_channel=form == "QDQ")
    operators = {n.op_type for n in onnx.load(file).graph.node}
    assert operators & {"QuantizeLinear", "DynamicQuantizeLinear"}
    read = read_onnx(file)
    network = read.network("net", "y")
    x = normal(4, 8, 8, 3, seed=9)
    before = reference(plain.read_bytes(), "y", x=channels_first(x))[0]
    quantised = reference(file.read_bytes(), "y", x=channels_first(x))[0]
    result = network.apply(network.params, x)
    # Rounding is left out: nearer to the original than twice the error of quantisation, and not as far as it is wide.
    assert np.abs(result - before).max() < 2 * np.abs(quantised - before).max() + 1e-3 < 0.2
    assert read.source["notes"][0].startswith("It is quantised: ")
    gradient = jax.grad(lambda x: network.apply(network.params, x)[:, 0].sum())(x)
    assert np.abs(gradient).max() > 0


def test_the_command(tmp_path):
    file = save(model(NODES, WEIGHTS, image=("N", 3, "h", "w")), tmp_path / "net.onnx")
    run = CliRunner().invoke
    zoo = str(tmp_path / "zoo")
    listed = run(app, ["convert", "onnx", str(file), zoo, "--list", "--size", "8,8"])
    assert listed.exit_code == 0, listed.output
    assert listed.stdout.splitlines()[:3] == ["c  4x8x8", "r  4x8x8", "d  6x3x3"]
    assert not (tmp_path / "zoo").exists()
    given = ["--size", "8", "--representation", "deepest", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    done = run(app, ["convert", "onnx", str(file), zoo, "--name", "deep", *given])
    assert (done.exit_code, done.stdout) == (0, f"The zoo {zoo} now has deep.\n")
    stored = jt.Zoo(zoo)
    assert stored["deep"].preprocess == jt.Preprocess((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert stored.manifest("deep")["source"]["file"] == "net.onnx"
    assert stored["deep"].apply(stored["deep"].params, normal(2, 8, 8, 3)).shape == (2, 3, 3, 6)
    run(app, ["convert", "onnx", str(file), zoo, "--size", "8", "--representation", "c", "--representation", "m"])
    assert set(stored["net"].apply(stored["net"].params, normal(2, 8, 8, 3))) == {"c", "m"}
    assert "choose one with size=(height, width) or --size" in complaint(run(app, ["convert", "onnx", str(file), zoo]))
    assert "--size takes height and width" in complaint(run(app, ["convert", "onnx", str(file), zoo, "--size", "a"]))


_KERAS = """
import os, sys, warnings
os.environ["KERAS_BACKEND"] = "torch"
warnings.simplefilter("ignore")
import keras
import numpy as np

layers = keras.layers
model = keras.Sequential([
    keras.Input((12, 12, 3)), layers.Conv2D(4, 3, 2, "same", activation="relu"), layers.BatchNormalization(),
    layers.DepthwiseConv2D(3), layers.GlobalAveragePooling2D(), layers.Dense(5, activation="softmax"),
])
x = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype("float32")
np.savez(sys.argv[2], x=x, y=model.predict(x, verbose=0))
model.export(sys.argv[1], format="onnx", verbose=False)
"""


@pytest.mark.slow
def test_keras_exports_what_is_read(tmp_path):
    file, values = tmp_path / "net.onnx", tmp_path / "values.npz"
    subprocess.run([sys.executable, "-c", _KERAS, str(file), str(values)], check=True, capture_output=True)
    read = read_onnx(file)
    network = read.network("net", onnx.load(file).graph.output[0].name)
    with np.load(values) as expected:
        np.testing.assert_allclose(network.apply(network.params, expected["x"]), expected["y"], atol=1e-5)
    assert jt.from_onnx(file, name="net").apply(network.params, normal(2, 12, 12, 3)).shape == (2, 4)
