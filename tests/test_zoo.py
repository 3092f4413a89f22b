"""The zoo: what goes in comes out, and nothing comes out of a damaged one."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.network import weights_hash

PARAMS = {"block": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(3, np.float16)}


def apply(params: Any, images: jax.Array) -> jax.Array:
    """A function that a zoo can store: it stands at the top level of a module."""
    return images.mean((1, 2, 3))[:, None] * params["block"]["kernel"].sum()


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


def test_a_zoo_does_not_say_where_it_was_made(zoo: jt.Zoo) -> None:
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


class Callable:
    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        return images


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: jt.Network("a", apply, PARAMS), "already has a network 'a'"),
        (lambda: jt.Network("c", lambda p, x: x, PARAMS), "cannot be stored.*top level of a module"),
        (lambda: jt.Network("c", Callable(), PARAMS), "cannot be stored"),
        (lambda: jt.Network("c", apply, [np.ones(3)]), "nested dicts of arrays.*hold a list"),
        (lambda: jt.Network("c", apply, {"w": "text"}), "pytree of arrays, but at .* is 'text'"),
        (lambda: jt.Network("c", apply, {1: np.ones(3)}), "string keys"),
        (lambda: jt.Network("c", apply, PARAMS, lambda x: x), "use jaxtransfer.Preprocess"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(zoo: jt.Zoo, network: Any, message: str) -> None:
    before = sorted(zoo.path.rglob("*"))
    with pytest.raises(jt.JaxTransferError, match=message):
        zoo.add(network())
    assert sorted(zoo.path.rglob("*")) == before


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
        (lambda folder: (folder / "network.json").write_text("{"), "not a readable manifest"),
        (lambda folder: (folder / "network.json").write_text("[]"), "not a readable manifest"),
        (lambda folder: (folder / "network.json").write_text('{"format": 99}'), "has format 99"),
        (lambda folder: shutil.rmtree(folder / "weights"), "'a'.*is damaged"),
        (_truncate_largest, "'a'.*is damaged"),
    ],
)
def test_damage_is_said(zoo: jt.Zoo, damage: Any, message: str) -> None:
    damage(zoo.path / "a")
    with pytest.raises(jt.JaxTransferError, match=message):
        zoo["a"]
    assert zoo["b"].name == "b"


def test_opening_a_zoo_imports_no_foreign_code(zoo: jt.Zoo) -> None:
    file = zoo.path / "a" / "network.json"
    file.write_text(file.read_text().replace(apply.__module__, "antigravity"))
    with pytest.raises(jt.JaxTransferError, match="import antigravity before you open it"):
        zoo["a"]
    assert "antigravity" not in sys.modules


def test_unknown_network_and_wrong_path(zoo: jt.Zoo, tmp_path: Path) -> None:
    with pytest.raises(jt.JaxTransferError, match="no network 'c'; it has: a, b"):
        zoo["c"]
    (tmp_path / "file").touch()
    with pytest.raises(jt.JaxTransferError, match="not a directory"):
        jt.Zoo(tmp_path / "file")
    assert jt.Zoo(tmp_path / "new").names == ()
