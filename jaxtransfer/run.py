"""A run: one zoo on one folder of probe images, in a directory that says how to repeat it."""

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
from jaxtransfer.affinity import SIMILARITIES, Affinity, Similarity
from jaxtransfer.attribution import METHODS
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.figures import heat_map
from jaxtransfer.probe import Probe, load_probe
from jaxtransfer.sweep import affinity_matrix
from jaxtransfer.zoo import Zoo

_FORMAT = 1
_RECORD, _PARTIAL = "run.json", ".run.json.partial"
_EPSILON = 1e-4


def run_affinity(
    zoo: Zoo,
    images: str | Path,
    out: str | Path,
    *,
    command: Sequence[str],
    methods: Sequence[str] = METHODS,
    similarity: Similarity = "cosine",
    batch_size: int = 8,
    limit: int | None = None,
    strict: bool = False,
    points: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Affinity, Probe]:
    """Computes the affinities of a zoo's networks and writes a run directory, or takes an unfinished one up.

    The directory receives `affinity_<method>.csv`, `stderr_<method>.csv` and `counts_<method>.csv`, a heat map
    `affinity_<method>.png` of each method, the points, and `run.json`: what was asked, of which networks and
    images, with which software on which device, and what had to be left out. A run that was interrupted goes
    on where it stopped, and networks added to the zoo since are added to it.

    Args:
        zoo: The networks.
        images: The folder of probe images, see `load_probe`.
        out: The run directory: new, empty, or of a run with the same settings.
        command: What the user typed, for `run.json`.
        methods: Attribution methods.
        similarity: "cosine", or "correlation" for cosines of maps whose mean over pixels was removed.
        batch_size: Images per step on the device.
        limit: Use the first so many images; None: all.
        strict: Whether a file that is no usable image is an error rather than skipped.
        points: Directory whose `points/` receives the points; None: the run directory.
        progress: Called with images done, images to do (over all networks) and the network's name.

    Returns:
        The affinities, and the probe images they come from.

    Raises:
        JaxTransferError: The zoo is empty or damaged, the images cannot be used, or `out` is not a run
            directory or one of a run with other settings.
        OSError: Something cannot be written, because the disk is full for example.
    """
    out = Path(out)
    if not zoo.path.is_dir():
        raise JaxTransferError(f"There is no zoo at {zoo.path}; `jaxtransfer convert` makes one.")
    if len(zoo) < 2:
        count = "only one network" if len(zoo) else "no networks"
        raise JaxTransferError(f"The zoo {zoo.path} has {count}; affinities need two or more.")
    for kind, asked, known in [
        ("attribution method", methods, METHODS),
        ("similarity", [similarity], SIMILARITIES),
    ]:
        if unknown := [name for name in asked if name not in known]:
            raise JaxTransferError(f"There is no {kind} {unknown[0]!r}; there are: {', '.join(known)}.")
    methods = tuple(method for method in METHODS if method in methods)
    probe = load_probe(images, limit=limit, strict=strict)
    settings = {
        "methods": list(methods),
        "similarity": similarity,
        "epsilon": _EPSILON,
        "precision": "float32, matrix products at the highest precision",
    }
    record = _start(out, zoo, images, probe, settings, command, batch_size)
    affinity = affinity_matrix(
        zoo,
        probe.images,
        methods=methods,
        similarity=similarity,
        epsilon=_EPSILON,
        batch_size=batch_size,
        directory=points or out,
        image_names=probe.names,
        progress=progress,
    )
    affinity.save(out)
    for method in methods:
        title = f"Affinity by {method} ({similarity}, {len(probe.names)} images)"
        heat_map(affinity[method], affinity.names, out / f"affinity_{method}.png", title)
    unusable = {method: [list(pair) for pair in affinity.unusable[method]] for method in methods}
    _write(out, record | {"unusable": unusable, "finished": _now()})
    return affinity, probe


def load_run(directory: str | Path) -> Affinity:
    """Loads the affinities of a finished run.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    directory = Path(directory)
    record = _read(directory)
    if record is None:
        raise JaxTransferError(f"{directory} is not a run directory; `jaxtransfer affinity` makes one.")
    if record["finished"] is None:
        raise JaxTransferError(f"The run in {directory} has not finished; start the same command again.")
    return Affinity.load(directory)


def _start(
    out: Path,
    zoo: Zoo,
    images: str | Path,
    probe: Probe,
    settings: Mapping[str, Any],
    command: Sequence[str],
    batch_size: int,
) -> dict[str, Any]:
    """Writes the record of a run that begins or goes on, after a look at what is there."""
    if out.exists() and not out.is_dir():
        raise JaxTransferError(f"{out} is not a directory, so it cannot hold a run; choose another.")
    earlier = _read(out)
    if earlier is None and out.exists() and any(entry.name != _PARTIAL for entry in out.iterdir()):
        raise JaxTransferError(f"{out} is not empty and not a run directory; choose a new one.")
    manifests = {name: zoo.manifest(name) for name in zoo.names}
    record = {
        "format": _FORMAT,
        "settings": dict(settings),
        "zoo": str(zoo.path),
        "networks": {
            name: {key: manifest[key] for key in ("weights_sha256", "preprocess")}
            for name, manifest in manifests.items()
        },
        "probe": {
            "folder": str(Path(images).absolute()),
            "size": list(probe.images.shape[1:3]),
            "sha256": probe.sha256,
            "images": list(probe.names),
            "skipped": [list(pair) for pair in probe.skipped],
        },
        "starts": [] if earlier is None else earlier["starts"],
        "unusable": None,
        "finished": None,
    }
    record = json.loads(json.dumps(record))
    if earlier is not None and (differences := _differences(earlier, record)):
        raise JaxTransferError(
            f"{out} holds a run of another configuration ({'; '.join(differences)}); choose a new directory."
        )
    device = jax.devices()[0]
    record["starts"].append(
        {
            "time": _now(),
            "command": list(command),
            "working_directory": os.getcwd(),
            "batch_size": batch_size,
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


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What makes two records ones of different runs; networks may come and go, but not change."""
    found = [
        f"{name}: {there['settings'].get(name)} there, {value} here"
        for name, value in here["settings"].items()
        if there["settings"].get(name) != value
    ]
    if any(there["probe"][key] != here["probe"][key] for key in ("size", "sha256")):
        counts = len(there["probe"]["images"]), len(here["probe"]["images"])
        found.append(f"the probe images are others: {counts[0]} there, {counts[1]} here")
    changed = [name for name, network in here["networks"].items() if there["networks"].get(name, network) != network]
    if changed:
        found.append(f"networks with other weights or preprocessing: {', '.join(changed)}")
    return found


def _read(directory: Path) -> dict[str, Any] | None:
    """The record in a run directory; None where there is none."""
    file = directory / _RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
        known = record["format"] == _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise JaxTransferError(f"{file} is damaged; choose another run directory.") from error
    if not known:
        raise JaxTransferError(f"{file} has format {record['format']}, this version of jaxtransfer reads {_FORMAT}.")
    return record


def _write(directory: Path, record: Mapping[str, Any]) -> None:
    beside = directory / _PARTIAL
    try:
        beside.write_text(json.dumps(record, indent=1))
        beside.replace(directory / _RECORD)
    finally:
        beside.unlink(missing_ok=True)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
