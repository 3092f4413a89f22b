"""What several test files use."""

import contextlib
import csv
import dataclasses
import functools
import random
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import Result

from jaxtransfer import Affinity, Probe, Zoo
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.devices import synchronised
from jaxtransfer.runs import affinity as affinity_run
from jaxtransfer.runs import record

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` for functions that run once: three times faster to compile, slower to run."""


def quick_cases(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """The cases of a table, of which only these belong to the quick run."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def free_port() -> int:
    """A port that nobody listens at, and that the system gives nobody by itself."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def random_pixels(seed: int, shape: tuple[int, ...] = (9, 12, 3)) -> np.ndarray:
    """An image, or several of them, of random pixels, uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def affinity_of(matrix: Any, names: Sequence[str], pseudo_values: np.ndarray | None = None) -> Affinity:
    """Affinities that are known, under one method, without errors."""
    values = np.asarray(matrix, np.float32)
    nothing = np.zeros_like(values)
    result = MethodResult(values, nothing, nothing.astype(int), pseudo_values=pseudo_values)
    return Affinity(names, "cosine", {"method": result})


def run_affinity(zoo: Zoo, images: Path, out: Path, **arguments: Any) -> tuple[Affinity, Probe]:
    """Runs `jaxtransfer.runs.affinity.run_affinity` with the options among the other arguments."""
    names = {field.name for field in dataclasses.fields(AffinityOptions)} & {*arguments}
    with synchronised():
        options = AffinityOptions(**{name: arguments.pop(name) for name in names})
    return affinity_run.run_affinity(zoo, images, out, options, **arguments)


def complaint(result: Result) -> str:
    """The one sentence on stderr of a command that ended with status 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    return line


def table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def finished_run(directory: Path, affinity: Affinity) -> None:
    """A run directory with these results and hardly a record."""
    with record.open_run(directory, "affinity", {"settings": {}}, lambda *_: [], ["test"]):
        affinity.save(directory)
