"""Tests runs of `jaxtransfer score`: what they write, resuming after a kill, processes, other commands, bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import jaxtransfer as jt
from jaxtransfer.cli.app import app
from jaxtransfer.runs.load import load_run
from support.helpers import complaint, free_port
from support.tiny_networks import fill

COMMAND = ("--size", "12", "--import", "support.tiny_networks")


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A zoo, and two tasks of class folders."""
    here = tmp_path_factory.mktemp("score")
    fill(jt.Zoo(here / "zoo"), range(4))
    rng = np.random.default_rng(0)
    for task in ("shade", "hue"):
        for i in range(40):
            image = rng.integers(0, 256, (16, 16, 3))
            kind = i % 2
            image[..., 0 if task == "hue" else slice(None)] //= 1 + kind
            folder = here / "tasks" / task / "ab"[kind]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:02}.png")
    (here / "tasks" / "hue" / "a" / "broken.png").write_bytes(b"nothing")
    return here


def score(here: Path, out: Path, *options: str):
    arguments = ["score", str(here / "zoo"), str(here / "tasks"), "--out", str(out), *COMMAND, *options]
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def finished(here) -> Path:
    assert score(here, here / "run", "--measure", "ridge", "--measure", "logme").exit_code == 0
    return here / "run"


def test_a_run_has_tables_pictures_and_a_record(here, finished, tmp_path):
    result = score(here, tmp_path / "run", "--measure", "ridge", "--measure", "logme")
    assert "Which network to start from" in result.stdout
    assert "hue: skipped a/broken.png" in result.stdout
    assert "other measures (logme) that rank the network first" in result.stdout
    for measure in ("ridge", "logme"):
        rows = list(csv.reader((finished / f"affinity_{measure}.csv").read_text().splitlines()))
        assert rows[0][1:] == ["n00", "n01", "n02", "n03"]
        assert [row[0] for row in rows[1:]] == ["hue", "shade"]
        assert (finished / f"affinity_{measure}.png").stat().st_size > 1000
    record = json.loads((finished / "run.json").read_text())
    assert record["kind"] == "score"
    assert record["tasks"]["hue"]["labelled"] == 40
    assert record["settings"]["measures"] == ["ridge", "logme"]
    scores = load_run(finished)
    np.testing.assert_array_equal(scores["ridge"], load_run(tmp_path / "run")["ridge"])
    tasks = jt.read_tasks([here / "tasks"], size=12, missing=True)
    direct = jt.score(jt.Zoo(here / "zoo", modules=["support.tiny_networks"]), tasks, measures=["ridge", "logme"])
    np.testing.assert_array_equal(scores["ridge"], direct["ridge"])


def test_other_commands_work_on_a_run(finished, tmp_path):
    run = CliRunner().invoke
    ranking = run(app, ["rank", str(finished), "hue", "--method", "ridge"])
    assert ranking.exit_code == 0
    assert "more labelled examples" in ranking.stdout
    (tmp_path / "oracle.csv").write_text(
        "source,target,score\n" + "".join(f"n0{i},{t},{i}\n" for i in range(4) for t in ("hue", "shade"))
    )
    evaluation = run(app, ["evaluate", str(finished), "--oracle", str(tmp_path / "oracle.csv"), "--relevant", "2"])
    assert evaluation.exit_code == 0, evaluation.output
    comparison = run(app, ["compare", str(finished), "--out", str(tmp_path / "compared")])
    assert comparison.exit_code == 0, comparison.output
    report = run(app, ["report", str(finished)])
    assert report.exit_code == 0, report.output
    assert "hue" in (finished / "report.html").read_text()


def test_the_report_shows_what_is_measured(here, tmp_path):
    scores = tmp_path / "scores"
    score(here, scores)
    command = [
        "transfer",
        str(here / "zoo"),
        str(here / "tasks"),
        "--scores",
        str(scores),
        "--out",
        str(tmp_path / "m"),
    ]
    command += [*COMMAND, "--top", "2", "--folds", "3", "--seeds", "1", "--steps", "10"]
    assert CliRunner().invoke(app, command).exit_code == 0
    measured = jt.Oracle.load(scores / "measured_accuracy.csv")
    assert measured.scores == jt.Oracle.load(tmp_path / "m" / "measured_accuracy.csv").scores
    assert CliRunner().invoke(app, ["report", str(scores)]).exit_code == 0
    assert "accuracy" in (scores / "report.html").read_text()


def test_another_measure_reuses_features_and_replaces_tables(here, finished, tmp_path):
    out = tmp_path / "run"
    score(here, out, "--measure", "ridge")
    points = {file: file.stat().st_mtime_ns for file in (out / "points").rglob("*") if "representation" in str(file)}
    assert score(here, out, "--measure", "knn").exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in points} == points
    assert (out / "affinity_knn.csv").exists()
    assert not (out / "affinity_ridge.csv").exists()
    assert "size: 12 there, 16 here" in complaint(score(here, out, "--size", "16"))


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(here, finished, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "jaxtransfer", "score", str(here / "zoo"), str(here / "tasks"), "--out", str(out)]
    command += [*COMMAND, "--measure", "ridge", "--measure", "logme"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list(out.glob("points/*/*/*/key.json")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "affinity_ridge.csv").exists()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for file in ("affinity_ridge.csv", "stderr_ridge.csv", "affinity_logme.csv", "pseudo_values_ridge.npy"):
        assert (out / file).read_bytes() == (finished / file).read_bytes()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(here, finished, tmp_path):
    out, port = tmp_path / "run", free_port()
    command = [sys.executable, "-m", "jaxtransfer", "score", str(here / "zoo"), str(here / "tasks"), "--out", str(out)]
    command += [*COMMAND, "--measure", "ridge", "--measure", "logme"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [*command, "--distributed", f"127.0.0.1:{port},{i}/2"], env=environment, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    for measure in ("ridge", "logme"):
        np.testing.assert_allclose(load_run(out)[measure], load_run(finished)[measure], rtol=1e-4, atol=1e-5)


def test_bad_input_ends_in_one_sentence(here, tmp_path):
    assert "no measure 'rigde'; there are: ridge" in complaint(score(here, tmp_path / "a", "--measure", "rigde"))
    assert "There is no zoo at" in complaint(score(here / "tasks", tmp_path / "b"))
    assert "no layer 'deep' in network 'n00'" in complaint(score(here, tmp_path / "c", "--layer", "deep"))
    for name, labels, sentence in (
        ("one", ["a"] * 8, "needs two classes with two examples each; it has 1 such class among 1"),
        ("single", [str(i) for i in range(8)], "it has 0 such classes among 8"),
        ("constant", np.ones((8, 1)), "has the same labels for all examples"),
        ("nothing", [""] * 8, "it has 0 such classes among 0"),
    ):
        file = tmp_path / f"{name}.npz"
        np.savez(file, x=np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), np.uint8), y=labels)
        command = ["score", str(here / "zoo"), str(file), "--out", str(tmp_path / name), *COMMAND]
        assert sentence in complaint(CliRunner().invoke(app, command))
        assert not (tmp_path / name).exists()


def test_what_is_not_used_is_printed(here, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (20, 12, 12, 3), np.uint8)
    x[10] = x[0]
    brightness = x.mean((1, 2, 3)).astype(np.float32)
    y = np.stack([brightness, np.ones(20, np.float32)], 1)
    y[3, 0] = np.nan
    np.savez(tmp_path / "brightness.npz", x=x, y=y)
    labels = np.array(["a", "b"] * 9 + ["a", "rare"])
    np.savez(tmp_path / "letters.npz", x=x, y=labels)
    paths = [str(tmp_path / f"{name}.npz") for name in ("brightness", "letters")]
    result = CliRunner().invoke(app, ["score", str(here / "zoo"), *paths, "--out", str(tmp_path / "run"), *COMMAND])
    words = " ".join(result.stdout.split())
    assert "brightness: 1 labels are missing." in words
    assert "brightness: 1 of 20 images are copies of others" in words
    assert "brightness: labels left out, since they do not vary: column 2." in words
    assert "letters: labels left out, since they are classes of one example or group: rare." in words
