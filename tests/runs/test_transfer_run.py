"""Run directories of measured transfer, and the command that makes them."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from typer.testing import CliRunner

from jaxtransfer import Affinity, Oracle, Zoo
from jaxtransfer.cli.app import app
from jaxtransfer.runs.load import load_run
from jaxtransfer.runs.transfer import run_transfer
from jaxtransfer.training.options import TransferOptions
from support.helpers import complaint, finished_run
from support.tiny_networks import fill

_ARGUMENTS = ["--seeds", "1", "--folds", "3", "--steps", "60", "--size", "8", "--mesh", "model=1,data=1"]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return fill(Zoo(tmp_path / "zoo"), [0, 3])


@pytest.fixture
def tasks(tmp_path: Path) -> list[Path]:
    """Images that are bright on the left, on the right, or nowhere, and how bright the middle is."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 128, (36, 8, 8, 3), dtype=np.uint8)
    sides = np.arange(36) % 3
    x[sides == 0, :, :4] += 100
    x[sides == 1, :, 4:] += 100
    np.savez(tmp_path / "sides.npz", x=x, y=sides)
    np.savez(tmp_path / "middle.npz", x=x, y=x[:, 3:5, 3:5].mean((1, 2)).astype(np.float32))
    return [tmp_path / "sides.npz", tmp_path / "middle.npz"]


def command(zoo: Zoo, tasks: list[Path], out: Path, *options: object) -> list[str]:
    named = [*map(str, tasks), "--out", str(out), "--import", "support.tiny_networks"]
    return ["transfer", str(zoo.path), *named, *_ARGUMENTS, *map(str, options)]


def test_the_command_says_which_source_to_take(zoo: Zoo, tasks: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = CliRunner().invoke(app, command(zoo, tasks, out))
    assert result.exit_code == 0, result.output
    transfers = load_run(out)
    assert (transfers.targets, transfers.sources) == (("sides", "middle"), ("n00", "n03", "random"))
    words = " ".join(result.stdout.split())
    for task, metric in {"sides": "accuracy", "middle": "r2"}.items():
        ranked = transfers.rank(task, method=metric)
        ((place, best, value), *_) = [(i, name, v) for i, (name, v, _) in enumerate(ranked) if name != "random"]
        expected = f"For {task}, take {best}: its {metric} is {value:.3f}"
        if ranked[place + 1 :]:
            second, other, _ = ranked[place + 1]
            expected += f", measured {value - other:.3f} better than that of {second}, which is certain to"
        assert expected in words
        assert (f"But random, which needs no network, was measured better: {ranked[0][1]:.3f}" in words) == (place > 0)
    oracle = Oracle.load(out / "measured_cross_entropy.csv")
    assert oracle.scores["sides"]["n00"] == -transfers["cross_entropy"][0, 0]
    assert oracle.stderr["sides"]["n00"] == transfers.stderr("cross_entropy")[0, 0]
    assert [*Oracle.load(out / "measured_r2.csv").scores] == ["middle"]
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "transfer"
    assert record["settings"] == {"protocol": "frozen", "seeds": 1, "folds": 3, "steps": 60, "size": 8}
    assert record["measured"] == {"sides": ["n00", "n03"], "middle": ["n00", "n03"]}
    assert record["finished"]
    assert (out / "affinity_accuracy.png").exists()


def test_the_best_of_a_score_run(zoo: Zoo, tasks: list[Path], tmp_path: Path) -> None:
    scores = Affinity.of(["n00", "n03"], {"ridge": np.array([[0.1, 0.2], [0.3, 0.1]])}, targets=["sides", "middle"])
    finished_run(tmp_path / "scores", scores)
    out = tmp_path / "run"
    result = CliRunner().invoke(app, command(zoo, tasks, out, "--top", 1, "--scores", tmp_path / "scores"))
    assert result.exit_code == 0, result.output
    assert json.loads((out / "run.json").read_text())["measured"] == {"sides": ["n03"], "middle": ["n00"]}
    transfers = load_run(out)
    assert [name for name, *_ in transfers.rank("middle", method="r2")][::-1] != ["n03"]
    assert np.isnan(transfers["r2"][1, transfers.sources.index("n03")])


def test_another_setting_needs_another_directory(zoo: Zoo, tasks: list[Path], tmp_path: Path) -> None:
    assert CliRunner().invoke(app, command(zoo, tasks[:1], tmp_path / "run")).exit_code == 0
    result = CliRunner().invoke(app, command(zoo, tasks[:1], tmp_path / "run", "--seeds", 2))
    assert "seeds: 1 there, 2 here" in complaint(result)
    result = CliRunner().invoke(app, command(zoo, tasks[:1], tmp_path / "other", "--top", 1))
    assert "The best networks are those of a score run" in complaint(result)


@pytest.mark.parametrize(
    ("protocol", "steps", "resumed"),
    [("frozen", 60, 120), pytest.param("finetune", 12, 6 * 12 + 9, marks=pytest.mark.slow)],
)
def test_a_killed_run_ends_with_the_same_bits(
    protocol: Literal["frozen", "finetune"], steps: int, resumed: int, zoo: Zoo, tasks: list[Path], tmp_path: Path
) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        import jax
        jax.config.update("jax_num_cpu_devices", 8)  # as here, so that products are split the same way
        from jaxtransfer import Zoo
        from jaxtransfer.runs.transfer import run_transfer
        from jaxtransfer.training import checkpoints
        from jaxtransfer.training.options import TransferOptions
        import support.tiny_networks

        def kill_in_the_second_training(done, total, name):
            if name == "sides, n03":
                checkpoints.SECONDS = 0
                if done % {steps} >= {steps} * 2 // 3:
                    os.kill(os.getpid(), signal.SIGKILL)

        options = TransferOptions(protocol={protocol!r}, seeds=1, folds=3, steps={steps})
        zoo = Zoo({str(zoo.path)!r}, modules=["support.tiny_networks"])
        run_transfer(zoo, [{str(tasks[0])!r}], {str(tmp_path / "run")!r}, options, command=["x"],
                     size=8, progress=kill_in_the_second_training)
    """
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    code = f"import sys; sys.path[:0] = {folders}\n{textwrap.dedent(script)}"
    died = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr
    out, whole, calls = tmp_path / "run", tmp_path / "whole", []
    assert (out / "transfers" / "sides" / "n00.npz").exists()
    assert not (out / "transfers" / "sides" / "n03.npz").exists()
    options = TransferOptions(protocol=protocol, seeds=1, folds=3, steps=steps)
    run_transfer(zoo, tasks[:1], out, options, command=["x"], size=8, progress=lambda *call: calls.append(call))
    assert next(done for done, _, name in calls if name == "sides, n03") == resumed
    run_transfer(zoo, tasks[:1], whole, options, command=["x"], size=8)
    tables = sorted(file.name for file in whole.glob("*.csv"))
    assert len(tables) == 8
    for name in tables:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list((out / "unfinished").iterdir())
