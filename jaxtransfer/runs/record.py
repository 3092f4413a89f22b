"""The record of a run, `run.json`: what was asked, of what, when, with which software on which device."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from jaxtransfer import devices
from jaxtransfer._version import __version__
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import atomic_write, partial_path

Record = dict[str, Any]

_FORMAT = 1
_RECORD, _LOCK = "run.json", ".lock"


@contextlib.contextmanager
def open_run(
    out: Path,
    kind: str,
    about: Mapping[str, Any],
    differences: Callable[[Record, Record], list[str]],
    command: Sequence[str],
    **start: Any,
) -> Iterator[dict[str, Any]]:
    """Records a run that begins or goes on, and that it has ended; meanwhile no other can run there.

    Of several processes the first locks and writes for all, and an error in one, before or in the block, ends all.

    Args:
        out: The run directory.
        kind: Name of the command that makes such runs.
        about: What the run is of; goes into the record.
        differences: Says what makes the record there and the new one ones of different runs.
        command: What the user typed.
        **start: What else is to be noted of this start.

    Yields:
        What is to be said of the results: goes into the record when the block ends without an error.

    Raises:
        JaxTransferError: `out` is not a run directory, or one of another kind or configuration, or in use; processes
            were given different things to do; or another process failed.
        OSError: Something cannot be written.
    """
    asked = np.frombuffer(hashlib.sha256(json.dumps([about, start]).encode()).digest(), np.uint8)
    if (devices.allgather(asked) != asked[None]).any():
        raise JaxTransferError("The processes were given different data or settings; give all of them the same.")
    with contextlib.ExitStack() as held:
        record: Record = {"format": _FORMAT, "kind": kind, **about, "starts": [], "finished": None}
        with devices.synchronised():
            if devices.is_first():
                _earlier(out, kind, about, differences)  # before anything is made in somebody else's directory
                held.enter_context(_locked(out))
                if (earlier := _earlier(out, kind, about, differences)) is not None:
                    record["starts"] += earlier["starts"]
                record["starts"].append(_start(command) | start)
                _write(out, record)
        results: dict[str, Any] = {}
        with devices.synchronised():
            yield results
            if devices.is_first():
                _write(out, record | results | {"finished": _now()})


def _locked(out: Path) -> contextlib.AbstractContextManager[Any]:
    """A lock on a run directory, which is made where it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(out / _LOCK, timeout=0).acquire()
    except filelock.Timeout:
        raise JaxTransferError(
            f"Another run is at work in {out}; wait until it has ended, or choose another directory."
        ) from None


def _start(command: Sequence[str]) -> Record:
    """What is to be known of a start."""
    device = jax.devices()[0]
    return {
        "time": _now(),
        "command": list(command),
        "working_directory": os.getcwd(),
        "versions": {
            "jaxtransfer": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
            "numpy": np.__version__,
        },
        "platform": platform.platform(),
        "device": f"{device.platform} ({device.device_kind})",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def _earlier(
    out: Path, kind: str, about: Mapping[str, Any], differences: Callable[[Record, Record], list[str]]
) -> Record | None:
    """The record that is there, if it is one that can be gone on with."""
    if out.exists() and not out.is_dir():
        raise JaxTransferError(f"{out} is not a directory, so it cannot hold a run; choose another.")
    found = read(out, kind)
    own = (partial_path(out / _RECORD), out / _LOCK)
    if found is None and out.exists() and any(entry not in own for entry in out.iterdir()):
        raise JaxTransferError(f"{out} is not empty and not a run directory; choose a new one.")
    # As it will be read again.
    if found is not None and (others := differences(found, json.loads(json.dumps(about)))):
        raise JaxTransferError(
            f"{out} holds a run of another configuration ({'; '.join(others)}); choose a new directory."
        )
    return found


def read(directory: Path, kind: str | None = None) -> Record | None:
    """The record in a run directory; None where there is none.

    A run of an earlier version, whose method "cka" was biased, reads as a run of "cka_biased".

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
        settings = record.get("settings", {})
        if "cka" in settings.get("methods", ()) and "cka" not in settings:
            _rename_biased_cka(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JaxTransferError(f"{file} is damaged; choose another run directory.") from error
    if not known:
        raise JaxTransferError(f"{file} has format {record['format']}, this version of jaxtransfer reads {_FORMAT}.")
    if kind not in (None, found):
        raise JaxTransferError(f"{directory} holds a run of `jaxtransfer {found}`, not of `jaxtransfer {kind}`.")
    return record


def _rename_biased_cka(record: Record) -> None:
    settings, unusable = record["settings"], record.get("unusable")
    settings["methods"] = ["cka_biased" if method == "cka" else method for method in settings["methods"]]
    settings["cka"] = "biased"
    if unusable:
        record["unusable"] = {("cka_biased" if method == "cka" else method): unusable[method] for method in unusable}


def diff_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The settings in which two records differ, in words."""
    return [
        f"{name}: {there['settings'].get(name)} there, {value} here"
        for name, value in here["settings"].items()
        if there["settings"].get(name) != value
    ]


def _write(directory: Path, record: Mapping[str, Any]) -> None:
    with atomic_write(directory / _RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
