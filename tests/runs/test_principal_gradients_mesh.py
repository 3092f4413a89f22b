import contextlib
import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtransfer.devices import device_mesh
from jaxtransfer.errors import JaxTransferError, in_words
from jaxtransfer.pge import resume as resume_module
from jaxtransfer.pge.restarts import Accumulation
from jaxtransfer.runs import principal_gradients as run_module
from support import pge_mesh
from support.helpers import free_port
from support.pge_mesh import RUNS, make_tasks, run, traced

SHAPES = [(8, 1), (1, 8), (2, 4), (4, 2)]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(run_module, "backbone", None)  # so that both are put back
    monkeypatch.setattr(resume_module, "_CHECKPOINT_SECONDS", 0.0)
    pge_mesh.use_tiny()


@pytest.fixture
def tasks(tmp_path) -> Path:
    make_tasks(tmp_path / "tasks")
    return tmp_path


def _results(out: Path) -> dict[str, np.ndarray]:
    """Everything that was computed, by file."""
    arrays_of_run = {}
    for file in sorted([*out.rglob("*.npz"), *out.rglob("gap*.csv"), *out.rglob("alignment*.csv")]):
        name = str(file.relative_to(out))
        if file.suffix == ".csv":
            arrays_of_run[name] = np.genfromtxt(file, delimiter=",", skip_header=1)[:, 1:]
        else:
            with np.load(file) as arrays:
                arrays_of_run[name] = (
                    arrays["groups"] if "groups" in arrays else (arrays["high"] + arrays["low"]).sum(0)
                )
    return arrays_of_run


def _bytes(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.csv")} | {
        str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.npz")
    }


def _same(out: Path, expected: Path) -> None:
    one, other = _results(out), _results(expected)
    assert one.keys() == other.keys()
    assert one
    for name, values in one.items():
        assert np.isfinite(other[name]).all()
        np.testing.assert_allclose(values, other[name], rtol=0, atol=1e-6 * np.abs(other[name]).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_the_same_on_all_meshes(tasks, monkeypatch):
    """Three tasks on up to eight rows, 301 restarts on up to eight devices; nothing moves without being asked to."""
    straight = Accumulation.run

    def guarded(*arguments):
        with jax.transfer_guard("disallow"):
            straight(*arguments)

    monkeypatch.setattr(Accumulation, "run", guarded)
    threads = set()

    def progress(done, total, label):
        threads.add(threading.get_ident())

    for measure in RUNS:
        for shape in [None, *SHAPES]:
            traced.clear()
            threads.clear()
            run(tasks, str(shape), measure, mesh=shape and device_mesh(*shape), progress=progress)
            # Two images: whether the backbone takes them. Tasks alike are traced together, and so are rows.
            assert traced.count(15) == len(traced) - traced.count(2) <= 1
            assert len(threads) == (min(shape[0], 3) if shape and measure == "gap" else 1)
            _same(tasks / str(shape) / measure, tasks / "None" / measure)
            assert json.loads((tasks / str(shape) / measure / "run.json").read_text())["starts"][0]["mesh"] == dict(
                zip(("model", "data"), shape or (1, 1), strict=True)
            )


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("measure", RUNS)
def test_interrupted_on_one_mesh_and_gone_on_with_on_others(tasks, measure):
    run(tasks, "whole", measure, mesh=device_mesh(2, 4))
    left = random.randint(1, 9)

    def interrupt(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tasks, "same", measure, mesh=device_mesh(2, 4), progress=interrupt)
    shutil.copytree(tasks / "same", tasks / "other")
    run(tasks, "same", measure, mesh=device_mesh(2, 4))
    assert _bytes(tasks / "same") == _bytes(tasks / "whole")
    run(tasks, "other", measure, mesh=device_mesh(*random.choice([(4, 2), (8, 1), (1, 8)])))
    _same(tasks / "other", tasks / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_row_without_room_ends_all(tasks, monkeypatch):
    run(tasks, "whole", "gap", mesh=device_mesh(4, 2))

    def full(stream, **arrays):
        if "two" in stream.name and arrays.get("done") != 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(stream, **arrays)

    savez = np.savez
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left") as problem:
            run(tasks, "full", "gap", mesh=device_mesh(4, 2))
    assert f"The disk is full ({tasks / 'full' / 'gap' / 'gradients' / 'two'}" in in_words(problem.value)
    assert json.loads((tasks / "full" / "gap" / "run.json").read_text())["finished"] is None
    assert not list(tasks.glob("full/gap/**/.*.partial"))
    run(tasks, "full", "gap", mesh=device_mesh(4, 2))
    assert _bytes(tasks / "full") == _bytes(tasks / "whole")


@pytest.mark.usefixtures("tiny")
def test_a_directory_that_cannot_be_made(tasks):
    (tasks / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as problem:
        run(tasks, "file", "gap", mesh=device_mesh(4, 2))
    assert in_words(problem.value) == f"{tasks / 'file' / 'gap'}: Not a directory."


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_two_runs_exclude_each_other(tasks):
    def another(*_):
        with pytest.raises(JaxTransferError, match=r"Another run is at work in .*gap; wait until it has ended"):
            run(tasks, "run", "gap", mesh=device_mesh(2, 4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tasks, "run", "gap", mesh=device_mesh(2, 4), progress=another)


@contextlib.contextmanager
def _processes(count: int, *arguments: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Real processes that do the runs of `pge_mesh`."""
    port = str(free_port())
    commands = [
        [sys.executable, "-m", "support.pge_mesh", port, f"{number}/{count}", *map(str, arguments)]
        for number in range(count)
    ]
    tests = Path(__file__).parents[1]  # where `support` lies
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tests) for command in commands]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_processes_that_are_killed_and_go_on(tasks):
    """Two processes, each with a row of two devices; then four, of which two share a row."""
    with _processes(2, tasks, "whole", "full", "killed") as (_, killed):
        _, complaints = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, complaints
    assert not (tasks / "other").exists()
    with _processes(4, tasks, "killed") as started:
        for process in started:
            _, complaints = process.communicate(timeout=300)
            assert process.returncode == 0, complaints
    assert _bytes(tasks / "killed" / "gap") == _bytes(tasks / "whole" / "gap")
    assert json.loads((tasks / "killed" / "gap" / "run.json").read_text())["starts"][-1]["processes"] == 4
    run(tasks, "full", "gap", mesh=device_mesh(2, 4))
    _same(tasks / "full" / "gap", tasks / "whole" / "gap")
    for measure in RUNS:
        run(tasks, "alone", measure)
    _same(tasks / "alone", tasks / "whole")
