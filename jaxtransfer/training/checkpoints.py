"""Saves the state of an unfinished training now and then, with Orbax, and restores it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from jaxtransfer.files import check_checkpoint_path

SECONDS = 30.0
"""Least number of seconds between checkpoints."""


class Checkpoints:
    """Keeps the last checkpoint of a training in a folder; `open_checkpoints` makes it."""

    def __init__(self, checkpointer: Any) -> None:
        """Takes Orbax's checkpointer of the folder; None keeps nothing."""
        self._checkpointer = checkpointer
        self._saved = time.monotonic()

    def restore(self, state: PyTree) -> tuple[int, PyTree]:
        """Returns the number of steps and the state of the last checkpoint; 0 and the state given if there is none.

        Args:
            state: The state before the first step, a tree of arrays.
        """
        latest = self._checkpointer and self._checkpointer.latest
        if not latest:
            return 0, state
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        return latest.step, self._checkpointer.load(latest, template)

    def save(self, step: int, state: PyTree, *, seconds: float | None = None) -> None:
        """Saves a checkpoint unless the last one is more recent.

        Args:
            step: Number of steps done.
            state: The state, a tree of arrays.
            seconds: Least number of seconds since the last checkpoint; None: `SECONDS`.
        """
        if self._checkpointer and time.monotonic() - self._saved >= (SECONDS if seconds is None else seconds):
            self._checkpointer.save(step, state)
            self._saved = time.monotonic()


@contextlib.contextmanager
def open_checkpoints(folder: Path | None) -> Iterator[Checkpoints]:
    """Opens the folder of a training's checkpoints, which is created if it does not exist; None: keeps nothing."""
    if folder is None:
        yield Checkpoints(None)
        return
    check_checkpoint_path(folder.absolute())
    last: Any = ocp.training.preservation_policies.LatestN(1)
    with ocp.training.Checkpointer(str(folder.absolute()), preservation_policy=last) as checkpointer:
        yield Checkpoints(checkpointer)
