"""Sweeps in real processes: several that share the work, and some that are killed."""

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxtransfer import Network, Zoo
from jaxtransfer.runs.load import load_run
from support.tiny_networks import fill, network, softmax, start

pytestmark = pytest.mark.slow

NETWORKS, PHOTOS = 9, 6


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    return fill(Zoo(tmp_path_factory.mktemp("zoo")), range(NETWORKS)).path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(7)
    for i in range(PHOTOS):
        Image.fromarray(rng.integers(0, 255, (10, 12, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def alone(zoo, images, tmp_path_factory) -> Path:
    """A run in one process that nobody disturbed."""
    out = tmp_path_factory.mktemp("alone") / "run"
    _join(start(1, zoo, images, out, "model=2,data=2", devices=4))
    return out


def _tables(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if file.suffix in (".csv", ".npy", ".png")}


def _join(processes: list[Any], status: int = 0) -> None:
    for process in processes:
        process.join(120)
        assert process.exitcode == status


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_run(zoo, images, alone, tmp_path, count):
    """Of two, each has a row of the mesh; of four, two share one."""
    out = tmp_path / "run"
    _join(start(count, zoo, images, out, "model=2,data=2", devices=4 // count))
    found, expected = load_run(out), load_run(alone)
    assert found.names == expected.names
    for method in expected.methods:
        np.testing.assert_allclose(found[method], expected[method], atol=1e-6)
        np.testing.assert_allclose(found.stderr(method), expected.stderr(method), atol=1e-6)
    # A point is finished by the one process that has the first device of its row.
    said = [file.read_text().split() for file in tmp_path.glob("finished*")]
    assert sorted(name for names in said for name in names) == sorted(found.names)
    assert len(said) == 2


def test_faults_reach_the_process_that_writes(images, tmp_path):
    """The second row of the mesh, of the second process, has the network with the fault."""
    zoo = fill(Zoo(tmp_path / "zoo"), [0])
    zoo.add(Network("n03", softmax, network(3).params))
    zoo.add(Network("n06", softmax, network(6).params))
    out = tmp_path / "run"
    _join(start(2, zoo.path, images, out, "model=2", devices=1, methods=["saliency"]))
    expected = dict.fromkeys(["n03", "n06"], ("constant_scalar",))
    assert load_run(out).faults == expected
    assert json.loads((out / "run.json").read_text())["faults"] == {k: list(v) for k, v in expected.items()}


def test_what_goes_wrong_in_one_process_ends_all(zoo, images, tmp_path):
    _join(start(2, zoo, [images, tmp_path / "missing"], tmp_path / "run", "model=2", devices=1), status=2)
    assert "missing does not exist" in (tmp_path / "error1").read_text()
    assert (tmp_path / "error0").read_text() == f"Process 1: {(tmp_path / 'error1').read_text()}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("count", "largest", "sketch"), [(2, 20_000, None), (1, 50_000, 64)], ids=["points", "figures"]
)
def test_what_cannot_be_written(zoo, images, alone, tmp_path, count, largest, sketch):
    """Maps are too large, or (where there are only sketches) heat maps are; what was finished is kept."""
    arguments = count, zoo, images, tmp_path / "run", "model=2,data=2"
    options = {} if sketch is None else {"sketch": sketch, "methods": "paper"}  # representations are not sketched
    _join(start(*arguments, devices=4 // count, largest_file=largest, to_fail=True, **options), status=2)
    for i in range(count):
        assert "File too large" in (tmp_path / f"error{i}").read_text()
    done = tmp_path.glob("run/points/*/*/key.json")
    finished = {file: file.stat().st_mtime_ns for file in done}
    assert len(finished) == (0 if sketch is None else 3 * NETWORKS)
    _join(start(*arguments, devices=4 // count, **options))
    assert all(file.stat().st_mtime_ns == when for file, when in finished.items())
    assert (_tables(tmp_path / "run") == _tables(alone)) == (sketch is None)


@pytest.mark.parametrize(("count", "kills"), [(1, 20), (2, 5)])
def test_killed_at_random_moments(zoo, images, alone, tmp_path, count, kills):
    """Nothing is lost, nothing that was finished is computed again, and the results are the same to the bit."""
    draw = random.Random(0)
    arguments, finished, killed, runs = ("model=2,data=2",), {}, 0, 0
    began, whole = time.monotonic(), 0.0
    while killed < kills or finished:
        out = tmp_path / str(runs) / "run"
        out.parent.mkdir(exist_ok=True)
        processes = start(count, zoo, images, out, *arguments, devices=4 // count, to_fail=whole > 0)
        processes[0].join(draw.uniform(0, whole) if whole > 0 and killed < kills else None)
        if processes[0].exitcode is None:
            killed += 1
            for process in draw.sample(processes, count):
                process.kill()
                process.join()
        else:
            _join(processes)
            whole = whole or time.monotonic() - began
            assert _tables(out) == _tables(alone)
        assert all(file.stat().st_mtime_ns == when for file, when in finished.items())
        done = [
            *out.glob("points/n*/*/key.json"),
            *out.glob("points/_rows/*/*.npz"),
            *out.glob("points/_columns/*/*.npz"),
        ]
        finished = {file: file.stat().st_mtime_ns for file in done}
        if processes[0].exitcode == 0:
            runs, finished = runs + 1, {}
