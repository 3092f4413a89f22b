"""Zoos restore what was added, and refuse what is damaged."""

import collections
import errno
import functools
import json
import math
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

import jaxtransfer as jt
from jaxtransfer.errors import in_words
from jaxtransfer.networks.network import is_key, weights_hash
from support import tiny_networks

PARAMS = {"block": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(3, np.float16)}


def apply(params: Any, images: jax.Array) -> jax.Array:
    """A function that a zoo can store: it is defined at the top level of a module."""
    return images.mean((1, 2, 3))[:, None] * params["block"]["kernel"].sum()


@pytest.fixture(autouse=True)
def nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other test has added a network or registered a function."""
    monkeypatch.setattr("jaxtransfer.networks.functions._registered", set())


@pytest.fixture
def zoo(tmp_path: Path) -> jt.Zoo:
    zoo = jt.Zoo(tmp_path / "zoo")
    zoo.add(jt.Network("b", apply, PARAMS, jt.Preprocess((4, 4), mean=(0.5, 0.4, 0.3), clip=(0.1, 0.9))))
    zoo.add(jt.Network("a", apply, PARAMS), source={"file": "a.pth"})
    return zoo


def test_round_trip(zoo: jt.Zoo) -> None:
    assert zoo.names == ("a", "b")
    assert len(zoo) == 2
    assert "a" in zoo
    assert "c" not in zoo
    for network in jt.Zoo(zoo.path):
        assert network.apply is apply
        assert jax.tree.structure(network.params) == jax.tree.structure(PARAMS)
        for ours, theirs in zip(jax.tree.leaves(network.params), jax.tree.leaves(PARAMS), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    assert zoo["a"].preprocess is None
    assert zoo["b"].preprocess == zoo.preprocess("b") == jt.Preprocess((4, 4), mean=(0.5, 0.4, 0.3), clip=(0.1, 0.9))


def test_manifest_is_readable(zoo: jt.Zoo) -> None:
    manifest = json.loads((zoo.path / "a" / "network.json").read_text())
    assert manifest["weights_sha256"] == weights_hash(PARAMS)
    assert manifest["source"] == {"file": "a.pth"}
    assert manifest["params"]["block"]["kernel"] == {"shape": [2, 3], "dtype": "float32"}


def test_files_of_a_zoo_do_not_hold_its_path(zoo: jt.Zoo) -> None:
    place = str(zoo.path.parent).encode()
    assert not [file for file in zoo.path.rglob("*") if file.is_file() and place in file.read_bytes()]


def test_hash_sees_every_bit_name_and_type() -> None:
    hashes = {
        weights_hash(p)
        for p in (
            {"w": np.zeros(2, np.float32)},
            {"v": np.zeros(2, np.float32)},
            {"w": np.zeros((2, 1), np.float32)},
            {"w": np.zeros(2, np.int32)},
            {"w": np.array([0, 1e-45], np.float32)},
        )
    }
    assert len(hashes) == 5
    assert weights_hash({"w": np.ones(3, np.float32)}) == weights_hash({"w": jnp.ones(3)})
    assert len(weights_hash({"w": jnp.ones(3, jnp.bfloat16)})) == 64


Pair = collections.namedtuple("Pair", "first second")


def in_a_program(params: Any, images: jax.Array) -> jax.Array:
    return images


in_a_program.__module__ = "__main__"


class Callable:
    def method(self, params: Any, images: jax.Array) -> jax.Array:
        return images

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        return images


method = Callable().method


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: jt.Network("a", apply, PARAMS), "already has a network 'a'"),
        (lambda: jt.Network("c", lambda p, x: x, PARAMS), "cannot be stored.*top level of a module"),
        (lambda: jt.Network("c", Callable(), PARAMS), "cannot be stored"),
        (lambda: jt.Network("c", method, PARAMS), "cannot be found by that name"),
        (lambda: jt.Network("c", jax.jit(apply), PARAMS), "cannot be found by that name"),
        (lambda: jt.Network("c", functools.partial(apply), PARAMS), "is not a function"),
        (lambda: jt.Network("c", in_a_program, PARAMS), "in_a_program stands in the program that runs.*my_nets.py"),
        (lambda: jt.Network("c", cast(Any, shutil.rmtree), PARAMS), "shutil:rmtree cannot be found"),
        (lambda: jt.Network("c", apply, [{"w": Pair(np.ones(3), 1)}]), "hold a Pair at 0/w; .*jax.tree.leaves"),
        (lambda: jt.Network("c", apply, {True: np.ones(3)}), "hold a dict at the top; .*strings or with integers"),
        (lambda: jt.Network("c", apply, {"a.b": np.ones(3), "a": {"b": np.ones(3)}}), "two arrays .* calls 'a.b'"),
        (lambda: jt.Network("c", apply, PARAMS, lambda x: x), "use jaxtransfer.Preprocess"),
    ],
)
def test_networks_that_cannot_be_stored_are_refused_and_leave_nothing(zoo: jt.Zoo, network: Any, message: str) -> None:
    before = sorted(zoo.path.rglob("*"))
    with pytest.raises(jt.JaxTransferError, match=message):
        zoo.add(network())
    assert sorted(zoo.path.rglob("*")) == before


def test_a_source_that_json_cannot_hold_is_refused(zoo: jt.Zoo) -> None:
    with pytest.raises(jt.JaxTransferError, match=r"'c' cannot be stored in a zoo: .*Path is not JSON"):
        zoo.add(jt.Network("c", apply, PARAMS), source={"file": Path("a.pth")})
    assert zoo.names == ("a", "b")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "\n"])
def test_names_that_are_no_folders_are_refused(name: str) -> None:
    with pytest.raises(jt.JaxTransferError, match="cannot be the name of a network"):
        jt.Network(name, apply, PARAMS)


def test_interrupted_writing_leaves_no_network(zoo: jt.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        zoo.add(jt.Network("c", apply, PARAMS))
    assert sorted(p.name for p in zoo.path.iterdir()) == ["a", "b"]


def _truncate_largest(folder: Path) -> None:
    largest = max((p for p in (folder / "weights").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "network.json").write_text("{"), "network.json cannot be used: it "),
        (lambda folder: (folder / "network.json").write_text("[]"), "network.json cannot be used: it "),
        (lambda folder: (folder / "network.json").write_text('{"format": 99}'), "has format 99"),
        (lambda folder: shutil.rmtree(folder / "weights"), "'a'.*is damaged"),
        (_truncate_largest, "'a'.*is damaged"),
    ],
)
def test_damage_is_reported(zoo: jt.Zoo, damage: Any, message: str) -> None:
    damage(zoo.path / "a")
    with pytest.raises(jt.JaxTransferError, match=message):
        zoo["a"]
    assert zoo["b"].name == "b"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x"), errno.EACCES),
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE),
        (ValueError("PERMISSION_DENIED: Error opening [os_error_code='13'] [source locations='...']"), errno.EACCES),
    ],
)
def test_an_error_of_the_system_is_not_called_damage(
    zoo: jt.Zoo, monkeypatch: pytest.MonkeyPatch, error: Exception, number: int
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("loading failed") from error

    monkeypatch.setattr(ocp, "load", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        zoo["a"]
    assert raised.value.errno == number
    assert str(zoo.path / "a") in in_words(raised.value)


def test_a_manifest_that_may_not_be_read_is_not_called_damaged(zoo: jt.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, *_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(PermissionError, match=r"network\.json"):
        zoo.manifest("a")


def test_too_little_memory_is_not_called_damage(zoo: jt.Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ocp, "load", fail)
    with pytest.raises(jt.JaxTransferError, match="not enough memory for the weights of network 'a'"):
        zoo["a"]


@pytest.mark.parametrize("name", ["a\\b", "nets [old]"])
def test_a_path_that_orbax_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(jt.JaxTransferError, match=r"its path has the character [\\\[]; choose another path"):
        jt.Zoo(tmp_path / name)


@pytest.mark.parametrize("name", ["a:b", "gs:a", "a b", "star*", "what?", "{a}", "50%20", "zoo#1", "ünï"])
def test_paths_with_other_unusual_characters_can_be_zoos(zoo: jt.Zoo, tmp_path: Path, name: str) -> None:
    other = jt.Zoo(tmp_path / name)
    other.add(zoo["a"])
    assert other["a"].name == "a"


def test_what_a_killed_program_left_is_no_network_and_is_removed_when_it_is_old(zoo: jt.Zoo) -> None:
    for name in (".adding-old", ".adding-new"):
        shutil.copytree(zoo.path / "a", zoo.path / name)
    os.utime(zoo.path / ".adding-old", (0, 0))
    assert zoo.names == ("a", "b")
    assert ".adding-old" not in zoo
    assert [network.name for network in zoo] == ["a", "b"]
    zoo.add(jt.Network("c", apply, PARAMS))
    assert sorted(folder.name for folder in zoo.path.iterdir()) == [".adding-new", "a", "b", "c"]


def test_opening_a_zoo_imports_no_foreign_code(zoo: jt.Zoo) -> None:
    file = zoo.path / "a" / "network.json"
    file.write_text(file.read_text().replace(apply.__module__, "antigravity"))
    with pytest.raises(jt.JaxTransferError, match="import antigravity and open it with"):
        zoo["a"]
    assert "antigravity" not in sys.modules


def _renamed(zoo: jt.Zoo, function: str, network: str = "a") -> jt.Zoo:
    """The zoo, after somebody put another function into the manifest of a network."""
    file = zoo.path / network / "network.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"apply": {"name": function}}))
    return zoo


FOREIGN = ["shutil:rmtree", "os:system", "subprocess:run", f"{__name__}:shutil.rmtree"]
FOREIGN += ["jaxtransfer.cli:main", "jaxtransfer.__main__:main", "jaxtransfer.zoo:importlib.import_module"]
FOREIGN += [f"{__name__}:np.savez", f"{__name__}:Callable", f"{__name__}:PARAMS", f"{__name__}:gone"]


@pytest.mark.parametrize("modules", [(), (__name__,)])
@pytest.mark.parametrize("function", [*FOREIGN, __name__, "", ":", f"{__name__}:apply.__call__"])
def test_a_manifest_reaches_no_function_that_is_no_network(zoo: jt.Zoo, function: str, modules: Any) -> None:
    _renamed(zoo, function)
    with pytest.raises(jt.JaxTransferError, match=f"'a' of the zoo .*its function (is )?{re.escape(function)}[: ]"):
        jt.Zoo(zoo.path, modules=modules)["a"]
    assert "jaxtransfer.__main__" not in sys.modules


def test_a_function_may_be_registered(zoo: jt.Zoo) -> None:
    _renamed(zoo, "support.tiny_networks:gelu")
    with pytest.raises(jt.JaxTransferError, match=r"--import support\.tiny_networks"):
        zoo["a"]  # although the module is imported
    assert jt.register(tiny_networks.gelu) is tiny_networks.gelu
    assert zoo["a"].apply is tiny_networks.gelu
    with pytest.raises(jt.JaxTransferError, match=r"shutil:rmtree cannot be found by that name"):
        jt.register(shutil.rmtree)
    with pytest.raises(jt.JaxTransferError, match="cannot be found by that name"):
        jt.register(lambda params, images: images)


def test_only_modules_that_were_named_may_be_used(zoo: jt.Zoo) -> None:
    assert jt.Zoo(zoo.path, modules=[__name__])["a"].apply is apply
    _renamed(zoo, "numpy:save")
    with pytest.raises(jt.JaxTransferError, match="--import numpy"):
        jt.Zoo(zoo.path, modules=[__name__])["a"]
    _renamed(zoo, "support.tiny_networks:relu")
    _renamed(zoo, "support.unknown:relu", network="b")
    for modules in ([], ["supp"], ["support.tiny_networks.relu"]):
        with pytest.raises(jt.JaxTransferError, match=r"--import support\.tiny_networks"):
            jt.Zoo(zoo.path, modules=modules)["a"]
        with pytest.raises(jt.JaxTransferError, match=r"--import support\.tiny_networks --import support\.unknown"):
            jt.affinity_matrix(jt.Zoo(zoo.path, modules=modules), np.zeros((2, 4, 4, 3), np.float32))
    assert jt.Zoo(zoo.path, modules=["support.tiny_networks"])["a"].apply is tiny_networks.relu


def test_a_package_that_was_named_may_be_used(zoo: jt.Zoo) -> None:
    _renamed(zoo, "jax.nn:relu")
    # The function is defined in a module that JAX hides.
    with pytest.raises(jt.JaxTransferError, match="is not the function of a network"):
        jt.Zoo(zoo.path, modules=["jax"])["a"]
    with pytest.raises(jt.JaxTransferError, match=r"--import jax\.nn"):
        jt.Zoo(zoo.path, modules=["ja"])["a"]


DTYPES = "bool int4 int8 uint8 int32 uint32 float16 bfloat16 float8_e4m3fn float32 complex64 int64 uint64 float64"

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats(allow_nan=False)
    | st.just(math.nan)  # numbers of Python are stored as JSON, which has one NaN
    | st.tuples(st.sampled_from(DTYPES.split()), st.lists(st.integers(0, 3), max_size=2)).map(
        lambda of: (np.arange(12).reshape(3, 4)[tuple(map(slice, of[1]))] * 1.1).astype(jnp.dtype(of[0]))
    )
    | st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]).map(lambda impl: jax.random.key(3, impl=impl))
    | st.just(0).map(lambda seed: jax.random.split(jax.random.key(seed), (2, 2)))
    | st.just(np.float32(0.5))
)
names = st.sampled_from(["w", "a/~/b", "", "ü", "shape", "dtype", "kind", "items", "0", "params"])
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=3)
        | st.dictionaries(st.integers(-2, 11), inner, max_size=3)
    ),
    max_leaves=8,
)


def _bits(leaf: Any) -> tuple[str, Any]:
    if is_key(leaf):
        return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tolist()
    if type(leaf) in (bool, int, float):
        return type(leaf).__name__, np.asarray(leaf).tobytes()
    return str(leaf.dtype), (np.shape(leaf), np.asarray(leaf).tobytes())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees)
@example({"w": np.float64(1) / 3, "n": np.int64(2**40)})
@example({"shape": [1, 2], "dtype": np.ones(2, np.float32)})
@example({"kind": {"items": ()}})
def test_any_tree_of_weights_comes_back(tmp_path: Path, params: Any) -> None:
    """With every bit, type and container, and so with its hash."""
    zoo = jt.Zoo(tempfile.mkdtemp(dir=tmp_path))
    zoo.add(jt.Network("a", apply, params))
    again = zoo["a"].params
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert [*map(_bits, jax.tree.leaves(again))] == [*map(_bits, jax.tree.leaves(params))]
    assert weights_hash(again) == weights_hash(params)


def test_keys_count_as_weights() -> None:
    keys = [jax.random.key(0), jax.random.key(1), jax.random.key(0, impl="rbg"), jax.random.key_data(jax.random.key(0))]
    assert len({weights_hash({"key": key}) for key in keys}) == 4


def test_unknown_network_and_wrong_path(zoo: jt.Zoo, tmp_path: Path) -> None:
    with pytest.raises(jt.JaxTransferError, match=r"no network 'c' in the zoo .*; there are: a, b"):
        zoo["c"]
    (tmp_path / "file").touch()
    with pytest.raises(jt.JaxTransferError, match="not a directory"):
        jt.Zoo(tmp_path / "file")
    assert jt.Zoo(tmp_path / "new").names == ()
