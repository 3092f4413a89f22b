import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer
from jaxtransfer import JaxTransferError, RandomHead, gap, principal_gradient
from jaxtransfer.pge import resume as resume_module
from jaxtransfer.pge.backbones import Backbone
from jaxtransfer.pge.batches import Episodes
from jaxtransfer.pge.layers import convolution
from jaxtransfer.pge.losses import Prototypical, describe
from jaxtransfer.pge.options import PGEOptions
from jaxtransfer.runs import principal_gradients as run_module
from jaxtransfer.runs.gradient_results import GradientResults
from jaxtransfer.runs.principal_gradients import run_pge
from support.helpers import quick_cases
from support.tiny_backbones import RESIDUAL_SYMMETRY, residual_features, residual_init


def _maps(params, images):
    return jax.nn.relu(convolution(images, params["stem"], 1, 1))


TINY = Backbone("tiny", residual_init, residual_features, _maps, RESIDUAL_SYMMETRY)
SMALL = {"size": 6, "ways": 2, "shots": 2, "queries": 2, "restarts": 64}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A backbone that compiles in a second, and states that are written after every chunk."""
    monkeypatch.setattr(run_module, "backbone", lambda name, channels: TINY)
    monkeypatch.setattr(resume_module, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(resume_module, "_CHECKPOINT_TIME_FRACTION", math.inf)


def _task(folder: Path, name: str, seed: int, *, spread: float = 0.3, y: Any = None) -> Path:
    """Blobs around a pattern for each of three classes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 8)
    images = rng.normal(size=(3, 6, 6))[labels] + spread * rng.normal(size=(24, 6, 6))
    np.savez(folder / f"{name}.npz", x=images.astype(np.float32), y=labels if y is None else y)
    return folder


@pytest.fixture
def tasks(tmp_path) -> Path:
    for seed, name in enumerate(["one", "two", "three"]):
        _task(tmp_path / "tasks", name, seed)
    return tmp_path / "tasks"


def _run(tasks, out, *, command=(), progress=None, **changes: Any) -> GradientResults:
    options: dict[str, Any] = SMALL | changes
    return run_pge(
        [tasks] if isinstance(tasks, Path) else tasks, out, PGEOptions(**options), command=command, progress=progress
    )


def _record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def _tables(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.csv")}


def _square(file: Path) -> tuple[list[str], np.ndarray]:
    with file.open() as stream:
        header, *rows = csv.reader(stream)
    assert [row[0] for row in rows] == header[1:]
    return header[1:], np.array([row[1:] for row in rows], float)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def _stamps(out: Path) -> dict[str, tuple[int, bytes]]:
    return {file.stem: (file.stat().st_mtime_ns, file.read_bytes()) for file in (out / "gradients").iterdir()}


@pytest.mark.slow
def test_run_directory(tmp_path, tasks):
    out = tmp_path / "run"
    results = _run(tasks, out, command=["jaxtransfer", "pge"], seed=3)
    assert results.names == ("one", "three", "two")

    direct = {}
    for task in results.tasks:
        batches = Episodes.of(task.images, task.labels, ways=2, shots=2, queries=2)
        direct[task.name] = principal_gradient(
            residual_init, Prototypical(residual_features, 2, 2), batches, jax.random.key(3), restarts=64,
            symmetry=RESIDUAL_SYMMETRY,
        )  # fmt: skip
    expected = gap(direct["one"], direct["two"])
    names, values = _square(out / "gap.csv")
    assert names == ["one", "three", "two"]
    np.testing.assert_array_equal(values, results.values)
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_array_equal(np.diagonal(values), 0)
    assert values[0, 2] == pytest.approx(expected.value, rel=1e-9)
    assert _square(out / "gap_stderr.csv")[1][2, 0] == pytest.approx(expected.stderr, rel=1e-9)

    ranking = _rows(out / "ranking.csv")
    assert [(row["target"], row["rank"]) for row in ranking] == [
        (target, rank) for target in results.names for rank in "12"
    ]
    assert float(ranking[0]["gap"]) == min(values[0, 1:])
    assert [(row["source"], float(row["gap"]), float(row["stderr"])) for row in ranking[:2]] == results.rank("one")

    control = _rows(out / "control.csv")
    assert [row["task"] for row in control] == list(results.names)
    row, one = control[0], direct["one"]
    assert one.label_signal is not None
    assert row["restarts"] == "64"
    assert float(row["squared_norm"]) == one.squared_norm.value
    assert float(row["signal_to_noise"]) == one.signal_to_noise
    assert float(row["squared_distance_to_control"]) == one.label_signal.value
    assert row["reads_labels"] == ("yes" if one.reads_labels else "no")
    assert row["label_blind"] == "no"
    assert int(row["restarts_needed"]) == math.ceil(one.restarts_needed(10))

    record = _record(out)
    assert record["kind"] == "pge"
    assert record["starts"][0]["command"] == ["jaxtransfer", "pge"]
    assert record["starts"][0]["versions"]["jaxtransfer"] == jaxtransfer.__version__
    assert record["starts"][0]["time"] <= record["finished"]
    assert record["settings"]["loss"] == "prototypical"
    assert record["settings"]["restarts"] == 64
    assert record["datasets"]["one"]["sha256"] == results.tasks[0].sha256
    assert record["datasets"]["one"]["classes"] == 3
    assert record["remarks"] == list(results.remarks)
    assert sorted(file.name for file in out.iterdir()) == [
        ".lock", "control.csv", "gap.csv", "gap.png", "gap_stderr.csv", "gradients", "ranking.csv", "run.json",
    ]  # fmt: skip
    assert (out / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert set(_stamps(out)) == set(results.names)


def test_a_task_more_costs_one_gradient(tmp_path, tasks):
    out = tmp_path / "run"
    first = _run(tasks, out)
    before, tables = _stamps(out), _tables(out)
    _run(tasks, out)
    assert (_stamps(out), _tables(out)) == (before, tables)

    _task(tasks, "four", 4)
    worked = []
    second = _run(tasks, out, progress=lambda done, total, name: worked.append(name))
    assert set(worked) == {"four (1 of 4)"}
    after = _stamps(out)
    assert {name: after[name] for name in before} == before
    assert second.names == ("four", *first.names)
    np.testing.assert_array_equal(second.values[1:, 1:], first.values)

    fewer = _run(tasks / "two.npz", out)
    assert fewer.names == ("two",)
    assert _stamps(out) == after


def test_changed_data_are_computed_again(tmp_path, tasks):
    out = tmp_path / "run"
    first = _run(tasks, out)
    before = _stamps(out)
    _task(tasks, "two", 9)
    second = _run(tasks, out)
    after = _stamps(out)
    assert {name for name in before if after[name] != before[name]} == {"two"}
    assert second.values[0, 1] == first.values[0, 1]
    assert second.values[0, 2] != first.values[0, 2]
    _task(tasks, "two", 2 - 1)
    assert _tables_of(_run(tasks, out)) == _tables_of(first)


def _tables_of(results) -> list:
    return [results.values.tolist(), results.stderr.tolist(), results.control]


def test_damaged_gradients_are_computed_again(tmp_path, tasks):
    out = tmp_path / "run"
    first = _run(tasks, out)
    whole = (out / "gradients" / "one.npz").read_bytes()
    (out / "gradients" / "one.npz").write_bytes(whole[:300])
    (out / "gradients" / "two.npz").write_bytes(b"")
    (out / "gradients" / "three.npz").unlink()
    (out / "gradients" / "three.partial.npz").write_bytes(whole[:300])
    assert _tables_of(_run(tasks, out)) == _tables_of(first)
    assert set(_stamps(out)) == set(first.names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"restarts": 300},
        {"restarts": "auto", "tolerance": 1e9, "cap": 300},
        {"restarts": "auto", "tolerance": 1e9, "cap": 300, "control": False, "symmetry": False},
        {"restarts": 300, "measure": "alignment"},
        {"restarts": "auto", "tolerance": 1e9, "cap": 300, "measure": "alignment"},
    ],
)
def test_interrupted_runs_end_with_the_same_bits(tmp_path, tasks, options):
    whole = _run(tasks, tmp_path / "whole", **options)
    out = tmp_path / "run"
    seen: list[tuple[int, str]] = []

    def stop(done, total, name):
        seen.append((done, name))
        if len(seen) % 7 == 0:
            raise KeyboardInterrupt

    for _ in range(100):
        try:
            results = _run(tasks, out, progress=stop, **options)
            break
        except KeyboardInterrupt:
            assert not list(out.glob("*.csv"))
            assert _record(out)["finished"] is None
    else:
        pytest.fail("it never ends")
    assert len(_record(out)["starts"]) > 1
    assert len(seen) == len(set(seen))  # nothing was computed twice
    assert _tables(out) == _tables(tmp_path / "whole")
    assert results.remarks == whole.remarks
    assert not list(out.rglob("*partial*"))


def test_states_of_other_data_or_settings_are_not_gone_on_with(tmp_path, tasks):
    def stop(done, total, name):
        if done > 32:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        _run(tasks, out, progress=stop)
    assert (out / "gradients" / "one.partial.npz").exists()
    _task(tasks, "one", 9)
    steps = []
    _run(tasks, out, progress=lambda done, total, name: steps.append(done))
    assert steps[0] == 16
    assert _tables(out) == _tables_after(_run, tasks, tmp_path / "other")


def _tables_after(run, tasks, out):
    run(tasks, out)
    return _tables(out)


def test_another_configuration_is_refused(tmp_path, tasks):
    _run(tasks, tmp_path / "run")
    before = _stamps(tmp_path / "run"), _tables(tmp_path / "run"), _record(tmp_path / "run")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"measure": "alignment"}, "measure: gap there, alignment here"),
        ({"restarts": 65}, "restarts: 64 there, 65 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"queries": 3}, "queries: 2 there, 3 here"),
        ({"symmetry": False}, "symmetry: True there, False here"),
        ({"size": 7}, "size: 6 there, 7 here"),
        ({"loss": "random-head", "batch_size": 8}, "loss: prototypical there, random-head here"),
    ]
    for change, message in changes:
        with pytest.raises(JaxTransferError, match=message):
            _run(tasks, tmp_path / "run", **change)
        assert (_stamps(tmp_path / "run"), _tables(tmp_path / "run"), _record(tmp_path / "run")) == before


def test_another_form_costs_nothing(tmp_path, tasks):
    out = tmp_path / "run"
    _run(tasks, out)
    before = _stamps(out)
    results = _run(tasks, out, form="cosine")
    assert _stamps(out) == before
    assert _record(out)["form"] == "cosine"
    assert (np.abs(results.values) <= 2).all()


def test_what_is_no_run_directory(tmp_path, tasks):
    (tmp_path / "file").touch()
    with pytest.raises(JaxTransferError, match="is not a directory"):
        _run(tasks, tmp_path / "file")
    with pytest.raises(JaxTransferError, match="is not empty and not a run directory"):
        _run(tasks, tasks)
    (tmp_path / "other").mkdir()
    start = {"time": "", "command": [], "device": "", "platform": "", "versions": {}}
    earliest = {"format": 1, "settings": {}, "starts": [start], "finished": None}  # records had no kind at first
    (tmp_path / "other" / "run.json").write_text(json.dumps(earliest))
    with pytest.raises(JaxTransferError, match="holds a run of `jaxtransfer affinity`, not of `jaxtransfer pge`"):
        _run(tasks, tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "magic"}, "no measure 'magic'; there are: gap, alignment"),
        ({"loss": "magic"}, "no loss 'magic'"),
        ({"form": "magic"}, "no form of gap 'magic'"),
        ({"backbone": "magic"}, "no backbone 'magic'; there are: conv4, resnet12"),
        ({"restarts": 15}, "16 groups need 16 restarts or more, not 15"),
        ({"restarts": "auto", "cap": 3}, "16 groups need 16 restarts or more, not 3"),
        ({"restarts": 20, "measure": "alignment"}, "32 groups need 32 restarts or more, not 20"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"size": 0}, "size of images"),
        ({"limit": 0}, "limit"),
        ({"ways": 1}, "two or more ways"),
        ({"shots": 0}, "one or more shots"),
        ({"shots": 8}, r"one\.npz needs 2 classes with 10 images or more, but only 0 of its 3"),
        ({"ways": 4}, "needs 4 classes with 4 images or more, but only 3"),
        ({"limit": 9}, "within the limit of 9 images"),
        ({"heads": 4}, "The loss prototypical has no head"),
        ({"loss": "random-head", "heads": 0, "batch_size": 8}, "one pair of heads or more"),
        ({"loss": "random-head"}, r"one\.npz has 24 images that can be used, fewer than a batch of 64"),
        ({"loss": "random-head", "batch_size": 0}, "A batch needs one image or more"),
        (
            {"loss": "squared-error"},
            r"needs numbers or multilabel or dense, but the targets of .*one\.npz are classes; use prot",
        ),
    ],
)
def test_bad_arguments_leave_no_directory(tmp_path, tasks, options, message):
    with pytest.raises(JaxTransferError, match=message):
        _run(tasks, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_dense_classes_have_no_loss(tmp_path):
    _task(tmp_path / "tasks", "scenes", 0, y=np.zeros((24, 6, 6), int))
    for loss in (None, "squared-error"):
        with pytest.raises(
            JaxTransferError, match=r"no loss for the targets of .*scenes\.npz, which are dense_classes"
        ):
            _run(tmp_path / "tasks", tmp_path / "run", loss=loss)
    _task(tmp_path / "tasks", "scenes", 0, y=np.full((24, 6, 6), -1))
    with pytest.raises(JaxTransferError, match=r"scenes\.npz: y holds classes below 0, which are missing labels"):
        _run(tmp_path / "tasks", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_labels_an_image_are_numbers(tmp_path):
    y = np.random.default_rng(0).integers(0, 2, (24, 3))
    tables = []
    for labels in (y, y.astype(float)):
        _task(tmp_path / "tasks", "one", 0, y=labels)
        _task(tmp_path / "tasks", "two", 1, y=labels)
        results = _run(tmp_path / "tasks", tmp_path / f"run{len(tables)}", batch_size=12)
        tables.append(results.values)
    np.testing.assert_array_equal(*tables)


@pytest.mark.slow
def test_tasks_that_do_not_go_together(tmp_path):
    _task(tmp_path / "a", "numbers", 0, y=np.random.default_rng(0).normal(size=(24, 2)))
    _task(tmp_path / "b", "classes", 1)
    one, two = tmp_path / "a" / "numbers.npz", tmp_path / "b" / "classes.npz"
    out = tmp_path / "run"
    for paths, options, message in [
        ([one, two], {"batch_size": 8}, "tasks of one kind, not numbers and classes"),
        ([one], {"loss": "prototypical"}, r"prototypical needs classes, but the targets of .*numbers\.npz are numbers"),
        ([two], {"measure": "alignment"}, r"two tasks or more, but there is only .*classes\.npz; add one"),
    ]:
        with pytest.raises(JaxTransferError, match=message):
            _run(paths, out, **options)
        assert not out.exists()
    results = _run([one, two], out, measure="alignment", batch_size=8, heads=2, control=False)
    assert _record(out)["settings"]["loss"] == "prototypical and squared-error"
    assert [row["label_blind"] for row in results.control] == [True, False]
    assert [row["reads_labels"] for row in results.control] == [False, None]
    assert _rows(out / "control.csv")[1]["alignment_with_control"] == ""


def test_images_too_small_for_the_backbone(tmp_path, tasks, monkeypatch):
    monkeypatch.setattr(run_module, "backbone", jaxtransfer.backbone)
    with pytest.raises(JaxTransferError, match="conv4 needs images of 16x16 pixels or more, not 6x6"):
        _run(tasks, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_unresolved_tasks_leave_empty_cells(tmp_path, tasks):
    np.savez(tasks / "black.npz", x=np.zeros((24, 6, 6), np.uint8), y=np.arange(24) % 3)
    results = _run(tasks, tmp_path / "run", restarts=256)
    seen = {row["task"]: row["squared_norm"] > 2 * row["squared_norm_stderr"] for row in results.control}
    assert not seen["black"]
    assert sum(seen.values()) >= 2
    for kind in ("gap", "gap_stderr"):
        for row in _rows(tmp_path / "run" / f"{kind}.csv"):
            target = row.pop("")
            for source, cell in row.items():
                assert (cell == "") == (source != target and not (seen[source] and seen[target]))
                assert cell == "" or math.isfinite(float(cell))
    ranking = _rows(tmp_path / "run" / "ranking.csv")
    assert "black" not in {row["target"] for row in ranking} | {row["source"] for row in ranking}
    assert _rows(tmp_path / "run" / "control.csv")[0]["restarts_needed"] == ""
    said = " ".join(results.remarks)
    assert "black: Not resolved: a signal-to-noise of 10 needs many more restarts." in said
    assert "black: Its gradient cannot be distinguished from zero, so its gaps are left empty." in said
    assert b"nan" not in b"".join(_tables(tmp_path / "run").values()).lower()


@pytest.mark.slow
def test_all_tasks_unresolved(tmp_path):
    (tmp_path / "tasks").mkdir()
    for name in ("one", "two"):
        np.savez(tmp_path / "tasks" / f"{name}.npz", x=np.zeros((24, 6, 6), np.uint8), y=np.arange(24) % 3)
    for measure in ("gap", "alignment"):
        out = tmp_path / measure
        results = _run(tmp_path / "tasks", out, measure=measure)
        assert np.isnan(results.values[~np.eye(2, dtype=bool)]).all()
        assert _rows(out / "ranking.csv") == []
        assert (out / f"{measure}.png").exists()
        assert b"nan" not in b"".join(_tables(out).values()).lower()
        assert any(remark.startswith("All tasks: Not resolved") for remark in results.remarks)


def test_gradients_that_are_not_finite(tmp_path, tasks, monkeypatch):
    broken = dataclasses.replace(TINY, features=lambda params, images: residual_features(params, images) * jnp.inf)
    monkeypatch.setattr(run_module, "backbone", lambda name, channels: broken)
    with pytest.raises(JaxTransferError, match=r"one\.npz: The gradients are not finite"):
        _run(tasks, tmp_path / "run", restarts=16, control=False)
    assert not (tmp_path / "run" / "gradients" / "one.npz").exists()


def test_auto_stops_when_resolved(tmp_path, tasks):
    results = _run(tasks, tmp_path / "run", restarts="auto", tolerance=3, cap=10_000)
    for row in results.control:
        assert row["signal_to_noise"] >= 3
        assert 64 <= row["restarts"] < 10_000
        assert row["restarts_needed"] <= row["restarts"]


@pytest.mark.slow
def test_random_heads_are_label_blind(tmp_path, tasks):
    results = _run(tasks, tmp_path / "run", loss="random-head", batch_size=12, heads=3)
    assert {(row["label_blind"], row["reads_labels"]) for row in results.control} == {(True, False)}
    assert any(
        remark.startswith("All tasks: ") and "does not depend on the labels" in remark for remark in results.remarks
    )
    assert _record(tmp_path / "run")["settings"]["heads"] == 3
    assert "ways" not in _record(tmp_path / "run")["settings"]


@pytest.mark.parametrize("shape", quick_cases([(24, 2), (24, 6, 6, 1)], (24, 2)))
def test_numbers_and_dense_targets(tmp_path, shape):
    for seed, name in enumerate(["one", "two"]):
        _task(tmp_path / "tasks", name, seed, y=np.random.default_rng(seed).normal(size=shape))
    results = _run(tmp_path / "tasks", tmp_path / "run", batch_size=12)
    assert _record(tmp_path / "run")["settings"]["loss"] == "squared-error"
    assert {row["label_blind"] for row in results.control} == {True}
    assert np.isfinite(results.values).all()


@pytest.mark.slow
def test_alignment(tmp_path, tasks):
    np.savez(tasks / "two.npz", **np.load(tasks / "one.npz"))
    out = tmp_path / "run"
    results = _run(tasks, out, measure="alignment", restarts=512)
    names, values = _square(out / "alignment.csv")
    assert names == ["one", "three", "two"]
    np.testing.assert_array_equal(values.astype(np.float32), results.values)
    np.testing.assert_array_equal(np.diagonal(values), 1)
    assert abs(results.values[0, 2] - 1) < 4 * results.stderr[0, 2] + 0.02  # the same data
    assert results.rank("one")[0][0] == "two"
    assert [float(row["alignment"]) for row in _rows(out / "ranking.csv")[:2]] == pytest.approx(
        [value for _, value, _ in results.rank("one")], rel=1e-6
    )
    for row in _rows(out / "control.csv"):
        assert float(row["squared_distance_to_control"]) > 2 * float(row["squared_distance_stderr"])
        assert row["reads_labels"] == "yes"

    before = (out / "alignment.npz").read_bytes(), _tables(out)
    worked = []
    _run(tasks, out, measure="alignment", restarts=512, progress=lambda *step: worked.append(step))
    assert worked == []
    assert ((out / "alignment.npz").read_bytes(), _tables(out)) == before


@pytest.mark.slow
def test_without_control(tmp_path, tasks):
    results = _run(tasks, tmp_path / "run", control=False, symmetry=False)
    assert {row["reads_labels"] for row in results.control} == {None}
    assert _rows(tmp_path / "run" / "control.csv")[0]["squared_distance_to_control"] == ""


def test_losses_with_other_heads_are_compiled_apart():
    losses = [RandomHead(residual_features, 3), RandomHead(residual_features, 4), RandomHead(residual_features, 3, 8)]
    assert len(set(losses)) == 3
    assert len({describe(loss) for loss in losses}) == 1


def test_a_full_disk_keeps_what_is_finished(tmp_path, tasks, monkeypatch):
    out = tmp_path / "run"
    real = np.savez

    def savez(stream, **arrays):
        if "three" in stream.name:
            raise OSError(28, "No space left on device", stream.name)
        real(stream, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", savez)
        with pytest.raises(OSError, match="No space left"):
            _run(tasks, out)
    assert set(_stamps(out)) == {"one"}
    assert _record(out)["finished"] is None
    worked = []
    _run(tasks, out, progress=lambda done, total, name: worked.append(name))
    assert set(worked) == {"three (2 of 3)", "two (3 of 3)"}
