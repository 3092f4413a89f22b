import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jaxtransfer.cli.app import app
from jaxtransfer.pge.backbones import Backbone
from jaxtransfer.runs import principal_gradients as run_module
from support.helpers import complaint
from support.tiny_backbones import RESIDUAL_SYMMETRY, residual_features, residual_init

SMALL = ["--size", "6", "--ways", "2", "--shots", "2", "--queries", "2", "--restarts", "256"]


def _features(params, images):
    return residual_features(params, images.mean(-1, keepdims=True))


TINY = Backbone("tiny", residual_init, _features, _features, RESIDUAL_SYMMETRY)


@pytest.fixture
def tiny(monkeypatch):
    """A backbone that compiles quickly."""
    monkeypatch.setattr(run_module, "backbone", lambda name, channels: TINY)


def _images(folder: Path, counts: dict[str, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        pattern = rng.uniform(60, 190, (8, 8, 3))
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(pattern + rng.normal(scale=40, size=pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture
def tasks(tmp_path) -> Path:
    _images(tmp_path / "tasks" / "pets", {"cat": 5, "dog": 6, "eel": 4, "yak": 2}, 0)
    _images(tmp_path / "tasks" / "cars", {"bus": 5, "van": 5}, 1)
    _images(tmp_path / "tasks" / "food", {"egg": 5, "pie": 5}, 2)
    (tmp_path / "tasks" / "pets" / "cat" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "tasks" / "pets" / "notes.txt").write_text("not an image")
    return tmp_path / "tasks"


def _run(*arguments):
    return CliRunner().invoke(app, ["pge", *map(str, arguments)])


def _refused(*arguments) -> str:
    return complaint(_run(*arguments))


def test_gap(tiny, tasks, tmp_path):
    result = _run(tasks, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 0, result.output
    printed = result.stdout
    for expected in (
        "Best sources (gap ± standard error, smaller is nearer)",
        "pets: Permuting the labels moves the gradient by",
        "pets: skipped notes.txt: it lies in no class folder",
        "pets: skipped cat/broken.png: it is not an image",
        "pets: 1 class was left out for having too few images: yak (2)",
        "Matrices, ranking, control and heat map are in",
    ):
        assert expected in printed
    with (tmp_path / "run" / "gap.csv").open() as stream:
        assert next(csv.reader(stream)) == ["", "cars", "food", "pets"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["datasets"]["pets"]["left_out"] == [["yak", 2]]
    assert len(record["datasets"]["pets"]["skipped"]) == 2
    assert record["settings"]["channels"] == 3


@pytest.mark.slow
def test_alignment_and_unresolved_tasks(tiny, tmp_path):
    for name in ("black", "dark"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((12, 6, 6), np.uint8), y=list("ab" * 6))
    files = [tmp_path / "black.npz", tmp_path / "dark.npz"]
    result = _run(*files, "--out", tmp_path / "run", "--measure", "alignment", *SMALL)
    assert result.exit_code == 0, result.output
    assert "Best sources (alignment ± standard error, larger is nearer)" in result.stdout
    assert "All tasks: Not resolved: a signal-to-noise of 10 needs many more restarts." in result.stdout
    assert "nan" not in result.stdout


@pytest.mark.slow
def test_random_heads_say_that_they_are_blind(tiny, tasks, tmp_path):
    options = ["--loss", "random-head", "--batch-size", "8", "--heads", "2", "--no-control", "--no-symmetry"]
    result = _run(tasks, "--out", tmp_path / "run", *SMALL, *options)
    assert result.exit_code == 0, result.output
    assert "All tasks: The head is drawn at random for every restart" in result.stdout


def test_bad_arguments(tasks, tmp_path):
    out = tmp_path / "run"
    broken = tmp_path / "tasks.toml"
    broken.write_text("x = [")
    for arguments, message in [
        ([tasks, "--restarts", "many"], "--restarts takes a number or auto, not 'many'"),
        ([tasks, "--restarts", "-3"], "--restarts takes a number or auto"),
        ([tasks, "--restarts", "3"], "ask for more restarts"),
        ([tasks, "--strict", *SMALL], "notes.txt cannot be used as an image"),
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([broken], "tasks.toml is not valid TOML"),
        ([tasks, "--heads", "2", *SMALL], "leave heads out"),
        ([tasks, *SMALL], "conv4 needs images of 16x16 pixels or more, not 6x6"),
        ([tasks], "cars needs 5 classes with 21 images or more, but only 0 of its 2"),
    ]:
        assert message in _refused(*arguments, "--out", out)
        assert not out.exists()
    result = _run("--out", out)
    assert result.exit_code == 2
    assert "TASKS" in result.stderr


def test_interrupt(tiny, tasks, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "gaps", interrupt)
    result = _run(tasks, "--out", tmp_path / "run", *SMALL)
    assert result.exit_code == 130
    assert "resume where it stopped" in result.stderr
    assert len(list((tmp_path / "run" / "gradients").iterdir())) == 3


@pytest.mark.slow
def test_rank_and_evaluate_read_a_run_of_gaps(tiny, tasks, tmp_path):
    assert _run(tasks, "--out", tmp_path / "run", *SMALL).exit_code == 0
    result = CliRunner().invoke(app, ["rank", str(tmp_path / "run"), "pets"])
    assert result.exit_code == 0, result.output
    assert "by gap (smaller is nearer)" in result.stdout
    with (tmp_path / "run" / "ranking.csv").open() as stream:
        best = [row for row in csv.DictReader(stream) if row["target"] == "pets"]
    assert result.stdout.index(best[0]["source"]) < result.stdout.index(best[1]["source"])
    assert f"{float(best[0]['gap']):.4g}" in result.stdout

    near, far = (row["source"] for row in best)
    (tmp_path / "oracle.csv").write_text(f"source,target,score\n{near},pets,2\n{far},pets,1\n")
    evaluated = ["evaluate", str(tmp_path / "run"), "--oracle", str(tmp_path / "oracle.csv"), "--relevant", "1"]
    result = CliRunner().invoke(app, evaluated)
    assert result.exit_code == 0, result.output
    with (tmp_path / "run" / "evaluation.csv").open() as stream:
        assert [row["hits"] for row in csv.DictReader(stream)] == ["1", "1"]

    (tmp_path / "run" / "gap.csv").write_text("")
    assert "does not hold a finished run" in complaint(CliRunner().invoke(app, evaluated))


@pytest.mark.slow
def test_photos_by_their_class(tiny, tmp_path, shared_data):
    for photo in sorted((shared_data / "probe_photos").iterdir()):
        name = photo.stem.split("_")[0]
        dataset = "vehicles" if name in ("bus", "car", "train", "truck", "motorcycle") else "things"
        folder = tmp_path / "photos" / dataset / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    options = ["--size", "16", "--limit", "35", "--ways", "3", "--shots", "2", "--queries", "2", "--restarts", "32"]
    result = _run(tmp_path / "photos", "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert "vehicles" in result.stdout
    datasets = json.loads((tmp_path / "run" / "run.json").read_text())["datasets"]
    assert {name: (dataset["images"], dataset["classes"]) for name, dataset in datasets.items()} == {
        "things": (35, 7),
        "vehicles": (35, 5),
    }


def _command(*arguments) -> list[str]:
    return [sys.executable, "-m", "jaxtransfer", "pge", *map(str, arguments)]


@pytest.mark.slow
def test_killed_run_goes_on(tmp_path):
    """Until resolved, which it never is; runs of so many restarts are interrupted in test_pge_run."""
    restarts = ["auto", "--tolerance", "1e9", "--cap", "480"]
    rng = np.random.default_rng(0)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x=rng.integers(0, 255, (12, 16, 16)), y=list("kl" * 6))
    small = ["--size", "16", "--ways", "2", "--shots", "1", "--queries", "2", "--restarts", *restarts, "--no-control"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    arguments = [tmp_path / "a.npz", tmp_path / "b.npz", *small, "--out"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false"}  # running is most of the time
    uninterrupted = subprocess.run(
        _command(*arguments, whole), capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert uninterrupted.returncode == 0, uninterrupted.stderr

    killed = subprocess.Popen(_command(*arguments, out), stderr=subprocess.DEVNULL, env=environment)
    while not (out / "gradients" / "b.partial.npz").exists():
        assert killed.poll() is None
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert not (out / "gap.csv").exists()
    assert not (out / "gradients" / "b.npz").exists()
    finished = (out / "gradients" / "a.npz").stat().st_mtime_ns

    again = subprocess.run(
        _command(*arguments, out), capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert again.returncode == 0, again.stderr
    assert (out / "gradients" / "a.npz").stat().st_mtime_ns == finished
    assert len(json.loads((out / "run.json").read_text())["starts"]) == 2
    tables = sorted(file.name for file in whole.glob("*.csv"))
    assert len(tables) == 4
    for name in tables:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    with np.load(out / "gradients" / "b.npz") as resumed, np.load(whole / "gradients" / "b.npz") as straight:
        np.testing.assert_array_equal(resumed["groups"], straight["groups"])
        assert int(resumed["restarts"]) == 480
    assert not list(out.rglob("*partial*"))
