"""Points that somebody damaged: each is noticed when it is read, and computed again."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore as ts

import jaxtransfer as jt
from jaxtransfer.points import store
from jaxtransfer.points.store import DamagedPointError, Points

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)


def apply(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x.reshape(len(x), -1) @ params)


NETWORKS = [jt.Network(name, apply, RNG.normal(size=(108, 5)).astype(np.float32)) for name in "abc"]


def _chunk(point: Path) -> Path:
    """A file of the values of a point."""
    return next(file for file in sorted((point / "c").rglob("*")) if file.is_file())


def _alter(point: Path) -> None:
    content = bytearray(_chunk(point).read_bytes())
    content[5] ^= 1
    _chunk(point).write_bytes(content)


def _describe_otherwise(point: Path, **changes: Any) -> None:
    description = json.loads((point / "zarr.json").read_text())
    (point / "zarr.json").write_text(json.dumps(description | changes))


def _change_length(point: Path, axis: int, change: int) -> None:
    shape = json.loads((point / "zarr.json").read_text())["shape"]
    shape[axis] += change
    _describe_otherwise(point, shape=shape)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an altered byte": _alter,
    "a truncated chunk": lambda point: _chunk(point).write_bytes(_chunk(point).read_bytes()[:-9]),
    "an empty chunk": lambda point: _chunk(point).write_bytes(b""),
    "a missing chunk": lambda point: _chunk(point).unlink(),
    "no chunks": lambda point: shutil.rmtree(point / "c"),
    "an altered description": lambda point: (point / "zarr.json").write_text("{}"),
    "fewer images": lambda point: _change_length(point, 0, -1),
    "more images": lambda point: _change_length(point, 0, 5),
    "very many images": lambda point: _change_length(point, 0, 2**40),
    "smaller images": lambda point: _change_length(point, -1, -1),
    "larger images": lambda point: _change_length(point, -1, 1),
    "another type": lambda point: _describe_otherwise(point, data_type="int32", fill_value=0),
    "no description": lambda point: (point / "zarr.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize(("method", "kind"), [("saliency", "saliency"), ("linear_predictivity", "representation")])
def test_damaged_points_are_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object], method: str, kind: str
) -> None:
    jt.affinity_matrix(NETWORKS[:2], IMAGES, methods=method, directory=tmp_path)
    damage(tmp_path / "points" / "a" / kind)
    with caplog.at_level(logging.WARNING, "jaxtransfer"):
        affinity = jt.affinity_matrix(NETWORKS, IMAGES, methods=method, directory=tmp_path)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"The point a/{kind} in {tmp_path}")
    assert message.endswith("; it is computed again.")
    np.testing.assert_array_equal(affinity[method], jt.affinity_matrix(NETWORKS, IMAGES, methods=method)[method])
    caplog.clear()
    jt.affinity_matrix([*NETWORKS, jt.Network("d", apply, NETWORKS[0].params)], IMAGES, methods=method)
    assert not caplog.records


def test_damaged_features_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.where(IMAGES[..., 0].mean((1, 2)) > np.median(IMAGES[..., 0].mean((1, 2))), "red", "blue")
    tasks = [jt.LabelledTask.of(IMAGES, labels, name="first")]
    jt.score(NETWORKS[:2], tasks, directory=tmp_path)
    tasks.append(jt.LabelledTask.of(IMAGES, labels[::-1], name="second"))
    (point,) = tmp_path.glob("points/*/a/representation")
    _alter(point)
    with caplog.at_level(logging.WARNING, "jaxtransfer"):
        scores = jt.score(NETWORKS[:2], tasks, directory=tmp_path)
    assert "a/representation" in caplog.text
    np.testing.assert_array_equal(scores["ridge"], jt.score(NETWORKS[:2], tasks)["ridge"])


def test_a_damaged_point_loses_its_key_wherever_it_is_read(tmp_path: Path) -> None:
    jt.affinity_matrix(NETWORKS[:2], IMAGES, methods="saliency", directory=tmp_path)
    points, folder = Points(tmp_path / "points"), tmp_path / "points" / "a" / "saliency"
    key = json.loads((folder / "key.json").read_text())
    del key["faults"]
    assert points.missing("a", {"saliency": key}) == ()
    _alter(folder)
    with pytest.raises(DamagedPointError, match=r"^The point a/saliency in .* start the same command again"):
        points.open("a", "saliency")[:]
    assert points.missing("a", {"saliency": key}) == ("saliency",)


class _Silent:
    """An object store that does not answer."""

    def __init__(self) -> None:
        self._promise, self._future = ts.Promise.new()

    def result(self, timeout: float | None = None) -> Any:
        return self

    def read(self, key: str) -> ts.Future:
        return self._future


def test_an_object_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_REACH_SECONDS", 0.05)
    monkeypatch.setattr(
        store, "ts", SimpleNamespace(**{**vars(ts), "KvStore": SimpleNamespace(open=lambda *_, **__: _Silent())})
    )
    points = Points("gs://no-such-bucket/points")
    for action in (lambda: points.missing("a", {"saliency": {}}), lambda: points.open("a", "saliency")):
        with pytest.raises(jt.JaxTransferError, match=r"^The place of the points, gs://.*, does not answer"):
            action()


def test_points_of_earlier_versions_have_no_checksums(tmp_path: Path) -> None:
    first = jt.affinity_matrix(NETWORKS[:2], IMAGES, methods="saliency", directory=tmp_path)
    for name in "ab":
        folder = tmp_path / "points" / name / "saliency"
        description = json.loads((folder / "zarr.json").read_text())
        assert description["codecs"].pop()["name"] == "crc32c"
        (folder / "zarr.json").write_text(json.dumps(description))
        (folder / "zarr.json.sha256").unlink()
        for file in (file for file in (folder / "c").rglob("*") if file.is_file()):
            file.write_bytes(file.read_bytes()[:-4])
    shutil.rmtree(tmp_path / "points" / "_rows")
    again = jt.affinity_matrix(NETWORKS[:2], IMAGES, methods="saliency", directory=tmp_path)
    np.testing.assert_array_equal(first["saliency"], again["saliency"])
