"""Reads and writes the record of a run, `run.json`: settings, inputs, times, software and device."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from jaxtransfer import devices
from jaxtransfer._version import __version__
from jaxtransfer.data.datasets import LabelledTask
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import atomic_write, partial_path, read_json
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.runs.record_schema import RunRecord

Record = dict[str, Any]

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
    """Records the start or resumption of a run and its end, and locks the directory in between.

    With several processes the first one locks and writes for all; an error in one of them, before or in the block, ends
    all. The record of a run that had finished stays that of its tables until `replace_tables` says that they change.
    Where the settings or inputs are others than before, the old report and evaluation are removed at the end.

    Args:
        out: The run directory.
        kind: Name of the command that makes such runs.
        about: Settings and inputs of the run, for the record.
        differences: Lists what makes an earlier record and the new one belong to different runs.
        command: The command line of the user.
        **start: Further entries for this start in the record.

    Yields:
        A dict for entries on the results; they go into the record when the block ends without an error.

    Raises:
        JaxTransferError: `out` is not a run directory, belongs to another command or configuration, or is in use;
            processes were given different data or settings; or another process failed.
        OSError: Something cannot be written.
    """
    digest = np.frombuffer(hashlib.sha256(json.dumps([about, start]).encode()).digest(), np.uint8)
    if (devices.allgather(digest) != digest[None]).any():
        raise JaxTransferError("The processes were given different data or settings; give all of them the same.")
    with contextlib.ExitStack() as stack:
        earlier = None
        record: Record = {"format": 1, "kind": kind, **about, "starts": [], "finished": None}
        with devices.synchronised():
            if devices.is_first():
                _earlier(out, kind, about, differences)  # before a file is created in somebody else's directory
                stack.enter_context(locked(out))
                if (earlier := _earlier(out, kind, about, differences)) is not None:
                    record["starts"] += earlier["starts"]
                record["starts"].append(_start(command) | start)
                if earlier is not None and earlier["finished"] is not None:
                    _write(out, earlier | {"starts": record["starts"]})
                else:
                    _write(out, record)
        results: dict[str, Any] = {}
        with devices.synchronised():
            yield results
            if devices.is_first():
                _write(out, record | results | {"finished": _now()})
                if earlier is not None and _is_other(earlier, about):
                    _remove_evaluations(out)


def _is_other(earlier: Record, about: Mapping[str, Any]) -> bool:
    """Whether a run has other settings or inputs than at an earlier start, so that its results may be others."""
    known = {name: value for name, value in json.loads(json.dumps(about)).items() if value is not None}
    return any(earlier.get(name) != value for name, value in known.items())


def _remove_evaluations(out: Path) -> None:
    """Removes the report and the evaluation of results that have been replaced."""
    for name in ("evaluation.csv", "evaluation_by_target.csv", "evaluation.png", "report.html"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "figures", ignore_errors=True)


def replace_tables(out: Path) -> None:
    """Marks a run as unfinished while its tables are replaced."""
    _write(out, read_json(out / _RECORD, RunRecord) | {"finished": None})


def locked(out: Path) -> contextlib.AbstractContextManager[Any]:
    """Locks a run directory, which is created if it does not exist.

    Raises:
        JaxTransferError: It is locked.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        return filelock.FileLock(out / _LOCK, timeout=0).acquire()
    except filelock.Timeout:
        raise JaxTransferError(
            f"Another run is at work in {out}; wait until it has ended, or choose another directory."
        ) from None


def _start(command: Sequence[str]) -> Record:
    """Describes a start: time, command, versions and devices."""
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
    """Reads the record of an earlier start, if there is one, and checks that this run resumes it."""
    if out.exists() and not out.is_dir():
        raise JaxTransferError(f"{out} is not a directory, so it cannot hold a run; choose another.")
    earlier = read(out, kind)
    own = (partial_path(out / _RECORD), out / _LOCK)
    if earlier is None and out.exists() and any(entry not in own for entry in out.iterdir()):
        raise JaxTransferError(f"{out} is not empty and not a run directory; choose a new one.")
    # JSON turns tuples into lists, so that both sides compare as they are read.
    if earlier is not None and (changes := differences(earlier, json.loads(json.dumps(about)))):
        raise JaxTransferError(
            f"{out} holds a run of another configuration ({'; '.join(changes)}); choose a new directory."
        )
    return earlier


def read(directory: Path, kind: str | None = None) -> Record | None:
    """Reads the record in a run directory; None where there is none.

    The method "cka" of earlier versions, which was biased, is read as "cka_biased".

    Args:
        directory: The run directory.
        kind: Name of the command that must have made the run; None: any.

    Raises:
        JaxTransferError: The record is damaged, or of another command or format.
        OSError: The record cannot be read.
    """
    file = directory / _RECORD
    if not file.is_file():
        return None
    record = read_json(file, RunRecord)
    command = record.setdefault("kind", "affinity")
    if "cka" in record["settings"].get("methods", ()) and "cka" not in record["settings"]:
        _rename_biased_cka(record)
    if kind not in (None, command):
        raise JaxTransferError(f"{directory} holds a run of `jaxtransfer {command}`, not of `jaxtransfer {kind}`.")
    return record


def _rename_biased_cka(record: Record) -> None:
    settings, unusable = record["settings"], record.get("unusable")
    settings["methods"] = ["cka_biased" if method == "cka" else method for method in settings["methods"]]
    settings["cka"] = "biased"
    if unusable:
        record["unusable"] = {("cka_biased" if method == "cka" else method): unusable[method] for method in unusable}


def manifests(zoo: Zoo, *, least: int) -> dict[str, dict[str, Any]]:
    """Reads the manifests of a zoo's networks.

    Raises:
        JaxTransferError: There is no zoo, it has fewer than `least` networks, a manifest is damaged, or a function lies
            in a module that the zoo may not import.
    """
    if not zoo.path.is_dir():
        raise JaxTransferError(f"There is no zoo at {zoo.path}; `jaxtransfer convert` makes one.")
    if len(zoo) < least:
        count = "only one network" if len(zoo) else "no networks"
        needed = "affinities need two or more" if least > 1 else "`jaxtransfer convert` adds them"
        raise JaxTransferError(f"The zoo {zoo.path} has {count}; {needed}.")
    read_manifests = {name: zoo.manifest(name) for name in zoo.names}
    zoo.check_modules(read_manifests.values())
    return read_manifests


def networks(manifests: Mapping[str, Mapping[str, Any]]) -> Record:
    """Returns what a record says of each network."""
    return {
        name: {key: manifest[key] for key in ("weights_sha256", "preprocess")} for name, manifest in manifests.items()
    }


def dataset(task: LabelledTask) -> Record:
    """Returns what a record says of a labelled task."""
    return {
        "source": str(Path(task.path).absolute()),
        "kind": task.target_type,
        "images": len(task.images),
        "classes": len({*task.labels.tolist()} - {""}) if task.target_type == "classes" else None,
        "sha256": task.sha256,
        "skipped": [list(pair) for pair in task.skipped],
        "left_out": [list(pair) for pair in task.left_out],
    }


def diff_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Lists the settings in which two records differ, in words."""
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
