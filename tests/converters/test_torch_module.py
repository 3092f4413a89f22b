"""PyTorch modules as they are: their layers and tokens are those that forward hooks see."""

import collections
import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.cli.app import app  # noqa: E402
from jaxtransfer.converters import torch_module  # noqa: E402
from jaxtransfer.converters.layers import layers  # noqa: E402
from jaxtransfer.converters.torch_export import from_exported  # noqa: E402
from support.torch_modules import Function, channels_first, export, images, save, seeded  # noqa: E402

EXAMPLE = torch.zeros(1, 3, 12, 12)


class Block(nn.Module):
    """Calls one module twice and changes values in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.norm(self.conv(x)))
        y += x
        return self.relu(y)


def network():
    layers = {"stem": nn.Conv2d(3, 4, 3, 2, 1), "block": Block(), "pool": nn.AdaptiveAvgPool2d(1),
              "flatten": nn.Flatten(), "head": nn.Linear(4, 5)}  # fmt: skip
    return seeded(nn.Sequential(collections.OrderedDict(layers)))


class Tokens(nn.Module):
    """A class token and two registers before the patches of images of 8 x 12."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 4, 4)
        self.prefix = nn.Parameter(torch.zeros(1, 3, 6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        patches = self.patch(x).flatten(2).mT
        return self.norm(torch.cat([self.prefix.expand(len(x), -1, -1), patches], 1))


def _hooked(module, names, x):
    """What submodules return, when they return it."""
    seen = {}

    def keep(name):
        def hook(_, __, output):
            seen.setdefault(name, output.clone())  # what a hook returns would take the output's place

        return hook

    for name in names:
        module.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        module.eval()(channels_first(x))
    return {name: value.numpy() for name, value in seen.items()}


def test_layers_are_what_submodules_return():
    module = network()
    names = ["head", "block.norm", "stem", "block.relu", "block"]
    network_ = jt.from_torch(module, EXAMPLE, name="net", representation=[*names, "pre-head"])
    x = images(3, 12)
    ours = network_.apply(network_.params, x)
    expected = _hooked(module, names, x)
    for name in names:
        theirs = expected[name]
        theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(ours["pre-head"], expected["block"].mean((2, 3)), rtol=1e-4, atol=1e-5)
    again = type(network_.apply).from_json(network_.apply.to_json())
    assert again == network_.apply


def test_the_second_call_of_a_module_has_a_name():
    module = network()
    exported = torch_module.export(module, EXAMPLE)
    names = [*layers(exported)]
    assert names.index("block.relu") < names.index("block.relu@1") < names.index("pool") < names.index("head")
    one = jt.from_torch(module, EXAMPLE, name="net", representation="block.relu@1")
    x = images(2, 12)
    expected = _hooked(module, ["block"], x)["block"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(one.apply(one.params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", ["all", "class", "mean", "grid"])
def test_tokens(tokens):
    module = seeded(Tokens())
    x = images(2, 12)[:, :8]
    whole = _hooked(module, ["norm"], x)["norm"]
    network_ = jt.from_torch(module, torch.zeros(1, 3, 8, 12), name="net", tokens=tokens, representation="norm")
    expected = {
        "all": whole,
        "class": whole[:, 0],
        "mean": whole[:, 3:].mean(1),
        "grid": np.stack([whole[:, 3 + 3 * row : 6 + 3 * row] for row in range(2)], 1),
    }
    np.testing.assert_allclose(network_.apply(network_.params, x), expected[tokens], rtol=1e-5, atol=1e-6)


def test_tokens_that_are_not_there():
    bare = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Flatten(2))
    patches = nn.Sequential(bare, Function(lambda x: x.mT * 2))
    with pytest.raises(jt.JaxTransferError, match="has no class token: its 9 tokens are all of the grid"):
        jt.from_torch(patches, EXAMPLE, name="net", tokens="class")
    with pytest.raises(jt.JaxTransferError, match="36 tokens of the layer '0' are no grid that a convolution"):
        jt.from_torch(nn.Sequential(Function(lambda x: x.flatten(2)[:, :, :36].mT)), EXAMPLE, name="net",
                      representation="0", tokens="grid")  # fmt: skip
    with pytest.raises(jt.JaxTransferError, match="no choice of tokens 'first'; there are: all, class, mean, grid"):
        jt.from_torch(patches, EXAMPLE, name="net", tokens="first")


def test_the_mode_of_the_module_is_restored():
    module: Any = network().train()
    module.block.norm.eval()
    jt.from_torch(module, EXAMPLE, name="net")
    assert module.training
    assert module.block.conv.training
    assert not module.block.norm.training


Pair = collections.namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda a, b: {"out": a, "aux": b}, "aux"),
        (lambda a, b: (a, b), "1"),
        (lambda a, b: Pair(a, b), "second"),
        (lambda a, b: {"x": [a, {"y": b}]}, "x.1.y"),
    ],
)
def test_one_of_several_outputs(wrap, name):
    module = Function(lambda x: wrap(x * 2, x.mean((2, 3))))
    network_ = jt.from_torch(module, EXAMPLE, name="net", representation=name)
    x = images(2, 12)
    np.testing.assert_allclose(network_.apply(network_.params, x), x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    with pytest.raises(jt.JaxTransferError, match=rf"has 2 outputs, not one: choose .* among them, .*{name}"):
        jt.from_torch(module, EXAMPLE, name="net")


def test_a_module_that_takes_one_image_at_a_time():
    class OneByOne(nn.Module):
        def forward(self, x):
            return F.relu(x.reshape(1, 3, 144)[:, :, :10]).flatten(1)

    network_ = jt.from_torch(OneByOne(), EXAMPLE, name="net")
    x = images(3, 12)
    expected = F.relu(channels_first(x).flatten(2)[:, :, :10]).flatten(1)
    np.testing.assert_allclose(network_.apply(network_.params, x), expected)


@pytest.mark.parametrize(
    ("module", "example", "options", "message"),
    [
        (nn.ReLU(), {"image": EXAMPLE}, {}, "wrap a module that takes anything else, such as a dict"),
        (nn.ReLU(), EXAMPLE[0], {}, "must be a tensor of images"),
        (nn.Conv2d(4, 5, 3), EXAMPLE, {}, "The Conv2d does not take these images: .*channels"),
        (Function(lambda x: x if float(x.sum()) > 1 else x * 2), EXAMPLE, {}, "torch.export cannot trace"),
        (nn.Sequential(nn.ReLU()), EXAMPLE, {"representation": "act"}, "net: There is no layer 'act' .* are: 0, pre"),
        (nn.ReLU(), EXAMPLE, {"representation": "pre-head"}, "There is no layer 'pre-head'"),
    ],
)
def test_refusals(module, example, options, message):
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.from_torch(module, example, name="net", **options)


def test_a_network_that_differs_from_pytorch_is_refused(monkeypatch):
    def wrong(program, params):
        return program, {name: value * 1.01 for name, value in params.items()}

    monkeypatch.setattr(torch_module, "from_exported", lambda *given: wrong(*from_exported(*given)))
    module = seeded(nn.Sequential(nn.Conv2d(3, 2, 3, bias=False)))
    with pytest.raises(jt.JaxTransferError, match=r"net: the converted network differs from PyTorch by 1\.0e-02 of"):
        jt.from_torch(module, EXAMPLE, name="net")
    with pytest.raises(jt.JaxTransferError, match="differs from PyTorch by inf"):
        jt.from_torch(Function(lambda x: (x - 1e9).log()), EXAMPLE, name="net")


def test_the_preprocessing_is_kept_and_the_zoo_restores_it(tmp_path):
    preprocess = jt.Preprocess((12, 12), 0.5, 0.25, resize=(14, 14), interpolation="cubic")
    network_ = jt.from_torch(network(), EXAMPLE, name="net", representation="block", preprocess=preprocess)
    jt.Zoo(tmp_path).add(network_)
    assert jt.Zoo(tmp_path)["net"].preprocess == preprocess
    assert jt.Zoo(tmp_path).manifest("net")["outputs"] == {"representation": {"kind": "grid", "shape": [6, 6, 4]}}


def test_layers_of_a_file(tmp_path):
    module = network()
    file = save(export(module, torch.zeros(2, 3, 12, 12)), tmp_path / "net.pt2")

    def run(*options):
        return CliRunner().invoke(app, ["convert", "torch", str(file), str(tmp_path / "zoo"), "--name", "a", *options])

    listed = run("--list")
    assert "\nblock  4x6x6  grid\n" in listed.stdout
    assert not (tmp_path / "zoo").exists()
    assert run("--representation", "block", "--representation", "head").exit_code == 0
    stored = jt.Zoo(tmp_path / "zoo")["a"]
    x = images(2, 12)
    expected = _hooked(module, ["block", "head"], x)
    ours = jax.jit(stored.apply)(stored.params, x)
    np.testing.assert_allclose(ours["block"], expected["block"].transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["head"], expected["head"], rtol=1e-4, atol=1e-5)
    outputs = jt.Zoo(tmp_path / "zoo").manifest("a")["outputs"]
    assert {name: output["kind"] for name, output in outputs.items()} == {"block": "grid", "head": "vector"}
    assert jnp.isfinite(ours["head"]).all()


def test_the_example_in_the_documentation():
    outcome = doctest.testmod(torch_module, extraglobs={"jt": jt, "jnp": jnp})
    assert outcome.attempted
    assert not outcome.failed


def test_numbers_too_small_to_be_normal_are_no_difference():
    network_ = jt.from_torch(Function(lambda x: x.mean((2, 3)) * 1e-20 * 1e-19), EXAMPLE, name="net")
    assert network_.name == "net"
