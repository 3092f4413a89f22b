"""Runs of principal gradients on a mesh: what the test's own process and others have in common.

    python -m support.pge_mesh PORT PROCESS/PROCESSES DIRECTORY OUT...

is one of several processes with four devices, two in a row. With one OUT it runs a gap on the tasks in DIRECTORY, with
three first all of `RUNS`, and then gaps of which the second does not come to its end because process 1 finds the disk
full, and the third because process 1 is killed at a random moment.
"""

import errno
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxtransfer.devices import connect, device_mesh
from jaxtransfer.errors import JaxTransferError, in_words
from jaxtransfer.pge import resume as resume_module
from jaxtransfer.pge.backbones import Backbone
from jaxtransfer.pge.options import PGEOptions
from jaxtransfer.runs import principal_gradients as run_module
from jaxtransfer.runs.gradient_results import GradientResults

RUNS: dict[str, dict[str, Any]] = {"gap": {"form": "cosine"}, "alignment": {"measure": "alignment"}}
traced: list[int] = []


def _init(key):
    return jax.random.normal(key, (12, 3))


def _features(params, images):
    traced.append(len(images))
    return jax.nn.relu(images.reshape(len(images), -1) @ params)


_TINY = Backbone("tiny", _init, _features, _features, (None, "out"))


def make_tasks(folder: Path) -> None:
    """Three tasks of blobs around three patterns each, 2x2 pixels in colour."""
    folder.mkdir()
    patterns = np.random.default_rng(9).normal(size=(3, 2, 2, 3))
    labels = np.repeat(np.arange(3), 8)
    for seed, name in enumerate(["one", "two", "three"]):
        rng = np.random.default_rng(seed)
        images = (patterns + rng.normal(size=patterns.shape))[labels] + rng.normal(size=(24, 2, 2, 3))
        np.savez(folder / f"{name}.npz", x=images.astype(np.float32), y=labels)


def run(directory: Path, out: str, measure: str, *, seed: int = 0, **where: Any) -> GradientResults:
    """A run on the tasks, or the first two, of a number of restarts that no number of devices divides."""
    names = ["one", "two", "three"] if measure == "gap" else ["one", "two"]
    paths = [directory / "tasks" / f"{name}.npz" for name in names]
    pge_options = PGEOptions(
        size=2, ways=3, shots=2, queries=3, restarts=301, control=False, seed=seed, **RUNS[measure]
    )
    return run_module.run_pge(paths, directory / out / measure, pge_options, command=[], **where)


def use_tiny() -> None:
    """Patches in a backbone that compiles quickly, and states that are written all the time."""
    run_module.backbone = lambda name, channels: _TINY
    resume_module._CHECKPOINT_SECONDS = 0.0


def _full(*_, **__) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _fails(directory: Path, out: str, message: str, **options: Any) -> None:
    with pytest.raises((JaxTransferError, OSError)) as problem:
        run(directory, out, "gap", mesh=device_mesh(2, 2), **options)
    assert message in in_words(problem.value)


def main(port: str, process: str, folder: str, whole: str, *others: str) -> None:
    """What a process does."""
    directory, number = Path(folder), int(process[0])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4 // int(process[-1]))
    connect(f"127.0.0.1:{port},{process}")
    use_tiny()
    run(directory, whole, "gap", mesh=device_mesh(2, 2))
    if not others:
        return
    run(directory, whole, "alignment", mesh=device_mesh(2, 2))
    _fails(directory, "other", "The processes were given different data or settings", seed=number)
    savez = np.savez
    if number == 1:
        np.savez = _full
    _fails(directory, others[0], ("Process 1: " if number == 0 else "") + "The disk is full (")
    np.savez = savez
    if number == 1:
        threading.Timer(random.uniform(0, 1), os.kill, (os.getpid(), signal.SIGKILL)).start()
    run(directory, others[1], "gap", mesh=device_mesh(2, 2))
    threading.Event().wait()


if __name__ == "__main__":
    from support import pge_mesh  # functions of this module, not of `__main__`, as results name them

    pge_mesh.main(*sys.argv[1:])
