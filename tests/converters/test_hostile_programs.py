"""Hostile and damaged programs: each is refused in one sentence, before anything large is made of it."""

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.converters import pt2, torch_export  # noqa: E402
from jaxtransfer.converters.sizes import is_size  # noqa: E402
from support.torch_modules import Function, Small, export, save, seeded  # noqa: E402

S = "Symbol('s77', positive=True, integer=True)"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    exported = export(seeded(Small()), torch.zeros(2, 3, 8, 10))
    return save(exported, tmp_path_factory.mktemp("pt2") / "small.pt2").read_bytes()


def _altered(data: bytes, ending: str, change: Callable[[Any], Any], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with one of its JSON files changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(ending):
                tree = json.loads(content)
                content = json.dumps(change(tree) or tree).encode()
            archive.writestr(name, content)
    return target.getvalue()


def _complaint(data: bytes, folder: Path) -> str:
    (folder / "bad.pt2").write_bytes(data)
    start = time.monotonic()
    with pytest.raises(jt.JaxTransferError) as refusal:
        torch_export.convert(folder / "bad.pt2", jt.Zoo(folder / "zoo"), "bad")
    assert time.monotonic() - start < 20
    (sentence,) = str(refusal.value).splitlines()
    return sentence


def test_a_file_that_grows_when_it_is_unpacked(small: bytes, tmp_path: Path) -> None:
    data = _altered(small, "models/model.json", lambda graph: graph | {"more": 10**6 * "x"}, zipfile.ZIP_DEFLATED)
    assert "its contents are compressed" in _complaint(data, tmp_path)
    large = bytearray(small)
    place = small.rindex(b"PK\x01\x02") + 24  # the size of the last file in the directory of the archive
    large[place : place + 4] = (2**31).to_bytes(4, "little")
    assert "its contents are larger than the file" in _complaint(bytes(large), tmp_path)


def test_a_file_larger_than_memory_allows(small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt2, "host_memory", lambda: 3 * len(small))
    assert "converting it takes four times as many, but the memory has" in _complaint(small, tmp_path)


def _nested(graph: Any) -> None:
    for _ in range(150):
        graph["guards_code"] = [graph["guards_code"]]
    graph["more"] = graph["guards_code"]


def _many(graph: Any) -> None:
    nodes = graph["graph_module"]["graph"]["nodes"]
    nodes += [{"target": "torch.ops.aten.relu.default", "inputs": [], "metadata": {}}] * 20_000


def _integer(graph: Any) -> None:
    graph["range_constraints"]["s77"] = {"min_val": 10**25, "max_val": None}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [(_nested, "nested too deeply"), (_many, "up to 20,000 are supported"), (_integer, "integers beyond 64 bits")],
)
def test_graphs_that_are_too_large(small: bytes, tmp_path: Path, change: Callable[[Any], Any], complaint: str) -> None:
    assert complaint in _complaint(_altered(small, "models/model.json", change), tmp_path)


def test_json_that_is_nested_too_deeply(small: bytes, tmp_path: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(small)) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            deep = b"[" * 100_000 if name.endswith("models/model.json") else source.read(name)
            archive.writestr(name, deep)
    assert "nested too deeply" in _complaint(target.getvalue(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("sizes", [{"as_int": 10**6}, {"as_int": 3}, {"as_int": 3}, {"as_int": 3}], "bytes, but 432 are stored"),
        ("strides", [{"as_int": 10**9}, {"as_int": 9}, {"as_int": 3}, {"as_int": 1}], "bytes, but 432 are stored"),
        ("storage_offset", {"as_int": 1}, "needs 436 bytes, but 432 are stored"),
        ("sizes", [{"as_int": -4}, {"as_int": 3}, {"as_int": 3}, {"as_int": 3}], "or it is damaged"),
        ("dtype", 10, "type that is not supported"),
        ("dtype", None, "type that is not supported"),
        ("sizes", None, "or it is damaged"),
    ],
)
def test_weights_other_than_declared(small: bytes, tmp_path: Path, field: str, value: Any, complaint: str) -> None:
    def change(config: Any) -> None:
        config["config"]["conv.weight"]["tensor_meta"][field] = value

    assert complaint in _complaint(_altered(small, "weights_config.json", change), tmp_path)


def test_weights_that_repeat_few_values_many_times(small: bytes, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        meta = config["config"]["conv.weight"]["tensor_meta"]
        meta["sizes"][0], meta["strides"][0] = {"as_int": 10**10}, {"as_int": 0}

    assert "its tensors would take 1,080,000,000,016 bytes" in _complaint(
        _altered(small, "weights_config.json", change), tmp_path
    )


def test_a_program_that_pytorch_cannot_load_leaves_no_traceback(
    small: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(graph: Any) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["outputs"] = [{"as_tensor": {"name": "nothing"}}]

    assert "cannot load this program" in _complaint(_altered(small, "models/model.json", change), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_values_larger_than_memory(tmp_path: Path) -> None:
    module = Function(lambda x: (x.mean((1, 2, 3))[:, None] * torch.arange(10**7).float()).sum(1, keepdim=True))
    save(export(module, torch.zeros(2, 3, 8, 8)), tmp_path / "large.pt2")
    target = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "large.pt2") as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            content = source.read(name).replace(b'"as_int": 10000000}', b'"as_int": 1000000000000}')
            archive.writestr(name, content)
    assert "bytes, but the memory has" in _complaint(target.getvalue(), tmp_path)


@pytest.mark.parametrize(
    "size",
    [
        S,
        "Symbol('u0', integer=True)",
        f"Mul(Integer(4), {S})",
        f"Add(Mul(Integer(-1), {S}), Integer(3))",
        f"FloorDiv(Add({S}, Integer(1)), Integer(2))",
        f"Pow({S}, Integer(2))",
        f"Mul(Rational(1, 2), Pow({S}, Integer(-1)))",
        f"TruncToInt(IntTrueDiv(Float('1.5', precision=53), {S}))",
        f"And(Eq({S}, Integer(2)), true)",
        "s77",
        "12",
        "-3",
    ],
)
def test_sizes_that_are_read(size: str) -> None:
    assert is_size(size)


@pytest.mark.parametrize(
    "size",
    [
        None,
        7,
        "",
        "(",
        ")",
        "Integer",
        "Integer(1",
        "Integer(1))",
        "Integer(1) Integer(1)",
        "f(1)",
        "__import__('os')",
        "Symbol.mro()",
        "Symbol('s77').func",
        "[1]",
        "lambda: 1",
        "9**9**9**9",
        "1+1",
        "Integer('x')",
        "Symbol('os')",
        "Float('1e999999999')",
        "Integer(99999999999999999999)",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        f"Pow({S}, {S})",
        f"Pow({S}, Integer(100000000))",
        f"Pow(Pow({S}, Integer(9)), Integer(9))",
        f"Mul({', '.join(70 * ['Integer(9)'])})",
        "Pow()",
        "Pow(Integer(2))",
        "Integer(" * 40 + "1" + ")" * 40,
        "Integer(" * 100_000,
        "-" * 100_000 + "1",
        f"Symbol('s77', evaluate={10**20})",
        "Symbol('s77', __class__=True)",
    ],
)
def test_sizes_that_are_refused(size: Any) -> None:
    assert not is_size(size)
