"""Tests that converted networks store the kernels of convolutions as XLA uses them."""

import json
import re
import warnings

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxtransfer as jt
from jaxtransfer.aten import AtenProgram
from jaxtransfer.converters import torch_export
from support.onnx_models import channels_first, model, node, normal, reference, save
from support.torch_modules import export, images, outputs, seeded


class Residual(nn.Module):
    """Residual blocks of convolutions that are strided, grouped and depthwise."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.conv, self.grouped = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.grouped(self.conv(x)))
        return self.down(x + self.pointwise(self.depthwise(x))).mean((2, 3))


@pytest.fixture(scope="module")
def residual():
    module = seeded(Residual())
    return module, *torch_export.from_exported(export(module, torch.zeros(2, 3, 16, 16)))


def transpositions(program, params, x):
    text = jax.jit(program).lower(params, x).compile().as_text() or ""
    return re.findall(r"= f32\[([\d,]*)\]\S* transpose\(", text)


def as_pytorch_has_them(program, params):
    """The program and the weights of an earlier version."""
    data, kernels = program.to_json(), {}
    for _, arguments, *_ in data["nodes"]:
        for argument in arguments:
            if isinstance(argument, dict) and "axes" in argument:
                kernels[argument["weight"]] = params[argument["weight"]].transpose(np.argsort(argument.pop("axes")))
    return AtenProgram.from_json(json.loads(json.dumps(data))), params | kernels


def test_no_kernel_is_moved(residual):
    module, program, params = residual
    x = images(2, 16)
    np.testing.assert_allclose(program(params, x), outputs(module, x), rtol=1e-5, atol=1e-6)
    assert transpositions(program, params, x) == []
    assert len(transpositions(*as_pytorch_has_them(program, params), x)) >= 3


def test_kernels_of_several_positions_have_their_output_channels_last(residual):
    module, program, params = residual
    for name, tensor in module.state_dict().items():
        expected = tensor.numpy()
        if expected.ndim == 4 and name != "pointwise.weight":
            expected = np.einsum("oihw->hwio", expected)
        np.testing.assert_array_equal(params[name], expected, err_msg=name)
    assert AtenProgram.from_json(json.loads(json.dumps(program.to_json()))) == program


def test_programs_of_earlier_versions_compute_the_same(residual):
    module, program, params = residual
    earlier, weights = as_pytorch_has_them(program, params)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor.numpy(), err_msg=name)
    assert earlier != program
    x = images(2, 16)
    np.testing.assert_allclose(earlier(weights, x), program(params, x), rtol=1e-6, atol=1e-6)
    maps = jt.attribute(earlier, weights, x)
    for method, values in jt.attribute(program, params, x).items():
        np.testing.assert_allclose(values, maps[method], rtol=1e-4, atol=1e-6, err_msg=method)


class Shared(nn.Module):
    """Kernels with two uses, and one of a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.twice, self.summed = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.transposed = nn.ConvTranspose2d(3, 2, 3)

    def forward(self, x):
        x = self.summed(self.twice(self.twice(x))) * self.summed.weight.sum()
        return self.transposed(x)


@pytest.mark.parametrize("reduced", [False, True])
def test_other_weights_stay_as_they_are(reduced):
    module = seeded(Shared())
    exported = export(module, torch.zeros(2, 3, 8, 8))
    if reduced:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = exported.run_decompositions()
    program, params = torch_export.from_exported(exported)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(params[name], tensor.numpy(), err_msg=name)
    x = images(2, 8)
    np.testing.assert_allclose(program(params, x), outputs(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("axes", "channels"), [(1, 12), (3, 12)])
def test_kernels_over_one_and_three_axes(axes, channels):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = (nn.Conv1d if axes == 1 else nn.Conv3d)(3, channels, 3)

        def forward(self, x):
            return self.conv(x.flatten(2) if axes == 1 else x.unsqueeze(2).expand(-1, -1, 4, -1, -1)).flatten(1)

    module = seeded(Network())
    program, params = torch_export.from_exported(export(module, torch.zeros(2, 3, 8, 8)))
    assert params["conv.weight"].shape == (*[3] * axes, 3, channels)
    x = images(2, 8)
    np.testing.assert_allclose(program(params, x), outputs(module, x), rtol=1e-5, atol=1e-6)
    assert not [shape for shape in transpositions(program, params, x) if shape.endswith(str(channels))]


def test_kernels_of_onnx(tmp_path):
    weights = {"v": normal(6, 3, 3, 3), "w": normal(6, 3, 3, 3, seed=1), "axes": np.array([2, 3])}
    nodes = (
        node("Conv", "x", "v", outputs=["c"], pads=[1, 1, 1, 1]),
        node("Conv", "c", "w", outputs=["d"], group=2),
        node("ReduceMean", "d", "axes", keepdims=0),
    )
    made = model(nodes, weights)
    network = jt.from_onnx(save(made, tmp_path / "net.onnx"), name="net")
    for name in "vw":
        np.testing.assert_array_equal(network.params[name], np.einsum("oihw->hwio", weights[name]))
    x = images(2, 8)
    np.testing.assert_allclose(network.apply(network.params, x), reference(made, x=channels_first(x))[0], atol=1e-5)
    assert transpositions(network.apply, network.params, x) == []


def test_axes_that_do_not_exist_are_one_sentence(residual):
    _, program, params = residual
    data = program.to_json()
    data["nodes"][0][1][1]["axes"] = [0, 1]
    with pytest.raises(jt.JaxTransferError, match="in module stem failed"):
        AtenProgram.from_json(data)(params, images(2, 16))
