"""Files of PyTorch networks are read without running them; what cannot be converted is refused."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.aten import OPS, AtenProgram, op  # noqa: E402
from jaxtransfer.converters import torch_export  # noqa: E402
from jaxtransfer.networks.program import Node, Value  # noqa: E402
from support.torch_modules import (  # noqa: E402
    IMAGE,
    Attention,
    Function,
    Small,
    channels_first,
    export,
    images,
    outputs,
    save,
    seeded,
)


@pytest.fixture(scope="session")
def small_file(tmp_path_factory):
    return save(export(seeded(Small()), torch.zeros(2, 3, 8, 10)), tmp_path_factory.mktemp("pt2") / "small.pt2")


def test_convert(small_file, tmp_path):
    zoo = jt.Zoo(tmp_path)
    network = torch_export.convert(small_file, zoo, "small", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert network.preprocess == jt.Preprocess((8, 10), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = images(3, 10)[:, :8]
    np.testing.assert_allclose(zoo["small"].apply(network.params, x), outputs(seeded(Small()), x), rtol=1e-5)
    source = zoo.manifest("small")["source"]
    assert source["file"] == "small.pt2"
    assert source["torch"] == str(torch.__version__)
    assert len(source["sha256"]) == 64
    with pytest.raises(jt.JaxTransferError, match=r"height, width and channels \(8, 10, 3\)"):
        network.apply(network.params, images(1, 10))
    with pytest.raises(jt.JaxTransferError, match="already has"):
        torch_export.convert(small_file, zoo, "small")


@pytest.mark.parametrize("layout", ["first", "last", "flat"])
def test_places_are_stored_with_channels_last(layout, tmp_path):
    convolution = seeded(nn.Conv2d(3, 5, 2, 2))

    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = convolution

        def forward(self, x):
            y = self.convolution(x)
            return {"first": y, "last": y.permute(0, 2, 3, 1), "flat": y.flatten(1)}[layout]

    file = save(export(Grid().eval(), torch.zeros(2, 3, 8, 12)), tmp_path / "grid.pt2")
    network = torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "grid")
    x = images(3, 12)[:, :8]
    expected = outputs(convolution, x)
    result = network.apply(network.params, x)
    if layout == "flat":
        np.testing.assert_allclose(result, expected.reshape(3, -1), rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(result, expected.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_a_network_without_weights(tmp_path):
    file = save(export(nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(2)), torch.zeros(2, 3, 8, 8)), tmp_path / "bare.pt2")
    torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "bare")
    network = jt.Zoo(tmp_path / "zoo")["bare"]
    assert not network.params
    x = images(2, 8)
    expected = F.avg_pool2d(channels_first(x).sigmoid(), 2).permute(0, 2, 3, 1)
    np.testing.assert_allclose(network.apply(network.params, x), expected, rtol=1e-6)


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def _repack(file, target, change):
    """A copy of an archive, its files passed through `change(name, content)`; None leaves one out."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                archive.writestr(name, content)
    return target


def _replacing(old, new):
    def change(name, content):
        if name.endswith(".json"):
            assert not name.endswith("models/model.json") or old in content
            return content.replace(old, new)
        return content

    return change


def test_pickles_in_a_file_are_never_read(small_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(_Bomb())
    # The example images are not needed, so the file converts, and the bomb stays where it is.
    file = _repack(small_file, tmp_path / "a.pt2", lambda n, c: bomb if "sample_inputs" in n else c)
    torch_export.convert(file, jt.Zoo("zoo"), "small")

    def pickled_weights(name, content):
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return bomb if "/weights/weight_" in name else content

    file = _repack(small_file, tmp_path / "b.pt2", pickled_weights)
    with pytest.raises(jt.JaxTransferError, match=r"b\.pt2: conv\..* is stored as a pickle"):
        torch_export.convert(file, jt.Zoo("zoo"), "other")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"Symbol('s", b"__import__('os').mkdir('exploded') or Symbol('s", "the size .* is not understood"),
        (b"Symbol('s", b"S('s", "the size .* is not understood"),
        (b"torch.ops.aten.relu.default", b"torch.hub.load", r"torch\.hub\.load is not one of PyTorch's own"),
        (b"torch.ops.aten.relu.default", b"_operator.attrgetter", "attrgetter is not one of PyTorch's own"),
        (b"torch.ops.aten.relu.default", b"torch.ops.aten.no_such.default", "cannot load this program"),
    ],
)
def test_code_in_a_graph_is_never_run(small_file, tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    file = _repack(small_file, tmp_path / "bad.pt2", _replacing(old, new))
    with pytest.raises(jt.JaxTransferError, match=message):
        torch_export.convert(file, jt.Zoo("zoo"), "bad")
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_are_something_else(small_file, tmp_path):
    whole = small_file.read_bytes()
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer)
    contents = {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a network",
        "pickle": pickle.dumps(_Bomb()),
        "checkpoint": buffer.getvalue(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(jt.JaxTransferError, match=f"{name}: this is not a .pt2 file"):
            torch_export.convert(tmp_path / name, jt.Zoo(tmp_path / "zoo"), "x")
    with pytest.raises(jt.JaxTransferError, match=r"missing\.pt2 cannot be read"):
        torch_export.convert(tmp_path / "missing.pt2", jt.Zoo(tmp_path / "zoo"), "x")
    assert not (tmp_path / "zoo").exists()


def test_damaged_weights(small_file, tmp_path):
    content = bytearray(small_file.read_bytes())
    with zipfile.ZipFile(small_file) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weight_0"))
        raw = archive.read(info)
    content[bytes(content).index(raw) + 5] ^= 1
    (tmp_path / "flipped.pt2").write_bytes(content)
    with pytest.raises(jt.JaxTransferError, match="or it is damaged"):
        torch_export.convert(tmp_path / "flipped.pt2", jt.Zoo(tmp_path / "zoo"), "x")


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("function", "x", "dynamic", "message"),
    [
        (lambda x: x * 2, torch.zeros(4, 3, 8, 8), False, r"batches of exactly 4 images: export it with dynamic_"),
        (lambda x: x.sum(1), torch.zeros(2, 10), True, "2 axes, not the four"),
        (lambda x: x.float().mean((2, 3)), IMAGE.long(), True, "input is torch.int64: export it with float32"),
        (lambda x: x.mean((2, 3)), IMAGE.half(), True, "input is torch.float16: export it with float32"),
        (lambda x: (x, x + 1), IMAGE, True, "has 2 outputs"),
        (lambda x: {"out": x * 2, "aux": x + 1}, IMAGE, True, "has 2 outputs"),
        (lambda x: x.sum(), IMAGE, True, "its first axis must be the images"),
        (lambda x: x.mean((0, 2)), IMAGE, True, "its first axis must be the images"),
        (lambda x: x.argmax(1), IMAGE, True, "array of floats"),
        (lambda x: x * float("nan") * torch.tensor([1.0, float("nan"), 0.0])[:, None, None], IMAGE, True,
         "holds values that are not finite"),
        (lambda x: x + x.mode(-1)[0][..., None], IMAGE, True,
         r"aten\.mode\.default in the outermost module is not supported; the closest that are: aten\.\w+\.\w+, .*"
         r"--import.*docs/unsupported-operations\.md"),
        (lambda x: F.batch_norm(x, None, None, training=True), IMAGE, True, "call .eval()|mixes the images"),
    ],
)  # fmt: skip
def test_refusals(function, x, dynamic, message):
    with pytest.raises(jt.JaxTransferError, match=message):
        torch_export.from_exported(export(Function(function), x, dynamic=dynamic))


def test_two_inputs_are_refused():
    with pytest.raises(jt.JaxTransferError, match="has 2 inputs, not one batch of images"):
        torch_export.from_exported(export(Sum(), IMAGE, IMAGE, dynamic=False))


def test_images_of_any_size_are_refused():
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    exported = torch.export.export(Small().eval(), (IMAGE,), dynamic_shapes=sizes)
    with pytest.raises(jt.JaxTransferError, match="height and width are fixed"):
        torch_export.from_exported(exported)


def test_not_rgb_is_refused(tmp_path):
    file = save(export(nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(2, 1, 8, 8)), tmp_path / "grey.pt2")
    with pytest.raises(jt.JaxTransferError, match="1 channels, not the 3 of RGB"):
        torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "grey")


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(3),
        nn.Dropout(),
        nn.RReLU(),
        nn.InstanceNorm2d(3, track_running_stats=True),
        Attention(8, 0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_training_mode_is_refused(layer):
    exported = export(nn.Sequential(nn.Sequential(layer)), IMAGE, train=True)
    with pytest.raises(jt.JaxTransferError, match=r"call \.eval\(\) on"):
        torch_export.from_exported(exported)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.count


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Function(lambda x: torch.linalg.qr(x)[1]), r"operation aten\.linalg_qr\.default"),
        (nn.BatchNorm2d(3, track_running_stats=False), r"operation aten\.batch_norm\.default .* mixes the images"),
        (Counter(), r"changes its buffer count when it runs"),
        (Function(lambda x: x.mul_(2) + 1), r"changes its input when it runs"),
    ],
)
def test_eval_is_advised_in_training_mode_alone(module, message):
    with pytest.raises(jt.JaxTransferError, match=message) as refusal:
        torch_export.from_exported(export(module, IMAGE))
    assert "eval" not in str(refusal.value)


def test_an_unknown_operation_names_its_module():
    class Unknown(nn.Module):
        def forward(self, x):
            return x.mode(-1)[0]

    with pytest.raises(jt.JaxTransferError, match=r"aten\.mode\.default in module 1\.0 is not supported"):
        torch_export.from_exported(export(nn.Sequential(nn.ReLU(), nn.Sequential(Unknown())), IMAGE))
    with pytest.raises(jt.JaxTransferError, match=r"aten\.nothing\.default in module a\.b"):
        AtenProgram((Node("aten.nothing.default", (Value("x"),), {}, "y", "a.b"),), "x", "y", (8, 8, 3), False)


def test_equality_tells_numbers_apart():
    def program(number):
        node = Node("aten.add.Tensor", (Value("x"), number), {}, "y", "")
        return AtenProgram((node,), "x", "y", (8, 8, 3), False)

    assert len({program(1), program(1.0), program(True), program(1)}) == 3


def test_every_operation_is_named_as_pytorch_names_it():
    for name in OPS:
        if name.startswith("aten."):
            packet, overload = name.removeprefix("aten.").split(".")
            assert hasattr(getattr(torch.ops.aten, packet), overload)


def test_an_operation_of_the_users_own(tmp_path, monkeypatch):
    """From a live module and from a file, and refused where nothing is registered for it."""

    @torch.library.custom_op("jaxtransfer_test::scale", mutates_args=())
    def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
        return factor * x

    scale.register_fake(lambda x, factor: torch.empty_like(x))
    exported = export(nn.Sequential(nn.ReLU(), Function(lambda x: scale(x, 3.0))), IMAGE)
    file = save(exported, tmp_path / "own.pt2")
    with pytest.raises(jt.JaxTransferError, match=r"jaxtransfer_test\.scale\.default in module 1 .*--import"):
        torch_export.from_exported(exported)
    with pytest.raises(jt.JaxTransferError, match=r"jaxtransfer_test\.scale\.default is not .*--import"):
        torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "own")

    monkeypatch.setitem(OPS, "jaxtransfer_test.scale.default", None)  # removes what follows after the test
    op("jaxtransfer_test::scale")(lambda x, factor: factor * x)
    x = images(2, 8)
    program, params = torch_export.from_exported(exported)
    np.testing.assert_array_equal(program(params, x), np.moveaxis(np.maximum(3 * x, 0), -1, 1))
    network = torch_export.convert(file, jt.Zoo(tmp_path / "zoo"), "own")
    np.testing.assert_array_equal(network.apply(network.params, x), np.maximum(3 * x, 0))
    monkeypatch.undo()
    with pytest.raises(jt.JaxTransferError, match=r"jaxtransfer_test\.scale\.default in module 1 .*--import"):
        jt.Zoo(tmp_path / "zoo")["own"]
