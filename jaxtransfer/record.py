"""The record of a run, `run.json`: what was asked, of what, when, with which software on which device."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtransfer._version import __version__
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import beside, whole

Record = dict[str, Any]

_FORMAT = 1
_RECORD = "run.json"


def begin(
    out: Path,
    kind: str,
    about: Mapping[str, Any],
    differences: Callable[[Record, Record], list[str]],
    command: Sequence[str],
    **start: Any,
) -> Record:
    """Writes the record of a run that begins or goes on, after a look at what is there.

    Args:
        out: The run directory.
        kind: Name of the command that makes such runs.
        about: What the run is of; goes into the record.
        differences: Says what makes the record there and the new one ones of different runs.
        command: What the user typed.
        **start: What else is to be noted of this start.

    Returns:
        The record, for `finish`.

    Raises:
        JaxTransferError: `out` is not a run directory, or one of another kind or configuration.
    """
    if out.exists() and not out.is_dir():
        raise JaxTransferError(f"{out} is not a directory, so it cannot hold a run; choose another.")
    earlier = read(out, kind)
    if earlier is None and out.exists() and any(entry != beside(out / _RECORD) for entry in out.iterdir()):
        raise JaxTransferError(f"{out} is not empty and not a run directory; choose a new one.")
    starts = [] if earlier is None else earlier["starts"]
    record = json.loads(
        json.dumps({"format": _FORMAT, "kind": kind, **about, "starts": starts, "finished": None})
    )  # as it will be read again
    if earlier is not None and (found := differences(earlier, record)):
        raise JaxTransferError(
            f"{out} holds a run of another configuration ({'; '.join(found)}); choose a new directory."
        )
    device = jax.devices()[0]
    record["starts"].append(
        {
            "time": _now(),
            "command": list(command),
            "working_directory": os.getcwd(),
            **start,
            "versions": {
                "jaxtransfer": __version__,
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
                "numpy": np.__version__,
            },
            "platform": platform.platform(),
            "device": f"{device.platform} ({device.device_kind})",
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    _write(out, record)
    return record


def finish(out: Path, record: Record, **results: Any) -> None:
    """Writes the record of a run that has ended, with what is to be said of its results."""
    _write(out, record | results | {"finished": _now()})


def read(directory: Path, kind: str | None = None) -> Record | None:
    """The record in a run directory; None where there is none.

    Args:
        directory: Of the run.
        kind: Name of the command that makes such runs; None: any.

    Raises:
        JaxTransferError: It is damaged, or of a run of another kind.
    """
    file = directory / _RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
        known = record["format"] == _FORMAT
        found = record.setdefault("kind", "affinity")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JaxTransferError(f"{file} is damaged; choose another run directory.") from error
    if not known:
        raise JaxTransferError(f"{file} has format {record['format']}, this version of jaxtransfer reads {_FORMAT}.")
    if kind not in (None, found):
        raise JaxTransferError(f"{directory} holds a run of `jaxtransfer {found}`, not of `jaxtransfer {kind}`.")
    return record


def other_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The settings in which two records differ, in words."""
    return [
        f"{name}: {there['settings'].get(name)} there, {value} here"
        for name, value in here["settings"].items()
        if there["settings"].get(name) != value
    ]


def _write(directory: Path, record: Mapping[str, Any]) -> None:
    with whole(directory / _RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
