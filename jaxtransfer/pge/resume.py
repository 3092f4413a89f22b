"""Estimations that are saved while they run and resumed where they stopped."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jaxtransfer.devices import allgather, is_writer, synchronised
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays, write_arrays
from jaxtransfer.pge.restarts import Accumulation, Progress

# Checkpoints are at least this many seconds apart, and writing them takes at most this fraction of the time.
_CHECKPOINT_SECONDS, _CHECKPOINT_TIME_FRACTION = 10.0, 0.1


class Stopped(Exception):
    """Ends an estimation because another one of the same run has failed."""


def resume(
    estimation: Accumulation,
    file: Path,
    note: str,
    run: Callable[[Accumulation, Progress], None],
    *,
    mesh: Mesh,
    stop: threading.Event,
    progress: Progress,
) -> None:
    """Runs an estimation from the state in `file`, or from the start, and saves its state there now and then.

    All processes of the mesh call this together.

    Args:
        estimation: The estimation, with no restarts done.
        file: The `.npz` file of its state; a file that is missing, damaged or of other data is not used.
        note: Names the settings and the data, see `read_noted`.
        run: Runs the estimation to its end, and calls the `Progress` that it gets.
        mesh: Devices that share the restarts.
        stop: When it is set in one process, all of them stop at their next progress.
        progress: Called with restarts done and restarts to do.

    Raises:
        JaxTransferError: The estimation failed, or a gradient is not finite.
        OSError: The state cannot be written.
        Stopped: `stop` was set.
    """
    state = read_noted(file, note)
    restarts_done = allgather(np.array(0 if state is None else int(state["done"])), mesh)
    if state is not None and (restarts_done == restarts_done[0]).all():  # all processes see the same file
        with contextlib.suppress(JaxTransferError):
            estimation.restore(state)
    seconds_to_write, last_written = 0.0, -math.inf

    def checkpoint(done: int, total: int) -> None:
        nonlocal seconds_to_write, last_written
        now = time.monotonic()
        interval = max(_CHECKPOINT_SECONDS, seconds_to_write / _CHECKPOINT_TIME_FRACTION)
        is_due = is_writer(mesh) and now - last_written > interval
        flags = allgather(np.array([stop.is_set(), is_due]), mesh)
        if flags[:, 0].any():
            raise Stopped
        if flags[:, 1].any():
            save_state(estimation, file, note, mesh)
            last_written = time.monotonic()
            seconds_to_write = last_written - now
        progress(done, total)

    run(estimation, checkpoint)
    estimation.means()  # raises where a gradient is not finite


def save_state(estimation: Accumulation, file: Path, note: str, mesh: Mesh) -> None:
    """Writes the state of an estimation with a note; all processes of the mesh call this together."""
    state = estimation.state() | {"note": np.asarray(note)}
    with synchronised(mesh):
        if is_writer(mesh):
            write_arrays(file, state)


def read_noted(file: Path, note: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """Reads the arrays of an `.npz` file if its array "note" is `note`.

    Args:
        file: The file.
        note: Names the settings and the data that the file must have been computed from.
        names: Names of the arrays to read; None: all.

    Returns:
        The arrays by name; None where the file is missing, is damaged, or has another note.
    """
    try:
        arrays = read_arrays(file, names)
        return arrays if str(arrays["note"]) == note else None
    except (OSError, ValueError, KeyError):
        return None
