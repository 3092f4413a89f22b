"""A run: one zoo on one folder of probe images, in a directory that says how to repeat it."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.matrix import Sweep
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.comparison.representations import RELATIVES
from jaxtransfer.data.probe import Probe, load_probe
from jaxtransfer.defaults import ATTRIBUTIONS, LINEAR_PREDICTIVITY, MAX_SIDE, METHODS, PAPER, PROBE_SIZE
from jaxtransfer.devices import is_first, synchronised
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.figures import heat_map
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.runs import record

_KIND = "affinity"


def run_affinity(
    zoo: Zoo,
    images: str | Path,
    out: str | Path,
    options: AffinityOptions,
    *,
    command: Sequence[str],
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    size: int = PROBE_SIZE,
    limit: int | None = None,
    strict: bool = False,
    points: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Affinity, Probe]:
    """Computes the affinities of a zoo's networks into a run directory, or resumes an unfinished run.

    The directory receives `affinity_<method>.csv`, `stderr_<method>.csv` and `counts_<method>.csv`, a heat map
    `affinity_<method>.png` for each method, the points, and `run.json`: settings, networks, images, software and
    device, and the maps and networks that were left out. An interrupted run resumes where it stopped; if the zoo has
    changed since, only networks that are new or have different weights are computed.

    Args:
        zoo: The networks.
        images: The folder of probe images, see `load_probe`.
        out: The run directory: new, empty, or of a run with the same settings.
        options: The settings that affinities depend on.
        command: The command line, for `run.json`.
        batch_size: Images in a batch on each device; None: the largest batch that is useful and fits in memory.
        mesh: Devices to share the work, see `affinity_matrix`.
        size: Height and width in pixels of the probe images, up to 8192, and of the maps that are stored and compared.
        limit: Use only this many images, the first ones; None: all.
        strict: Whether a file that is not a usable image is an error instead of being skipped.
        points: Directory, or URL of a folder in an object store, whose `points/` receives the points; None: the run
            directory.
        progress: Called as `progress(done, total, name)`, see `affinity_matrix`.

    Returns:
        The affinities, and the probe images they come from.

    Raises:
        JaxTransferError: The zoo is empty or damaged or has functions in modules that it
            may not import, the images cannot be used, or `out` is not a run directory, is that of a run with other
            settings, or is in use by another run.
        OSError: A file cannot be written, because the disk is full for example.
    """
    out = Path(out)
    with synchronised():
        options = dataclasses.replace(options, methods=_ordered(options.methods))
        if size > MAX_SIDE:
            raise JaxTransferError(f"Probe images may have up to {MAX_SIDE} pixels a side, not {size}.")
        manifests = record.manifests(zoo, least=2)
        probe = load_probe(images, size=size, limit=limit, strict=strict)
    about = {
        "settings": options.as_settings(),
        "zoo": str(zoo.path),
        "networks": record.networks(manifests),
        "probe": {
            "folder": str(Path(images).absolute()),
            "size": list(probe.images.shape[1:3]),
            "sha256": probe.sha256,
            "images": list(probe.names),
            "skipped": [list(pair) for pair in probe.skipped],
        },
        "points": f"{points}/points" if "://" in str(points) else os.path.relpath(Path(points or out) / "points", out),
        "unusable": None,
        "faults": None,
    }
    sweep = Sweep(zoo, probe.images, options, batch_size=batch_size, mesh=mesh, image_names=probe.names)
    with record.open_run(out, _KIND, about, _diff, command, mesh=dict(sweep.mesh.shape)) as results:
        affinity = sweep.run(points or out, progress)
        if is_first():
            _write(out, affinity, len(probe.names))
        results["batch_sizes"] = sweep.batch_sizes
        results["left_out"] = affinity.left_out
        results["faults"] = {name: list(codes) for name, codes in affinity.faults.items()}
        results["unusable"] = {method: [list(pair) for pair in affinity.unusable[method]] for method in options.methods}
    return affinity, probe


def _write(out: Path, affinity: Affinity, images: int) -> None:
    """Writes the tables and heat maps of a run."""
    record.replace_tables(out)
    affinity.save(out)
    for method in affinity.methods:
        similarity = f"{affinity.similarity}, " if method in ATTRIBUTIONS or method == "depara" else ""
        title = f"Affinity by {method} ({similarity}{images} images)"
        directed = affinity.measure(method).directed
        heat_map(affinity[method], affinity.names, out / f"affinity_{method}.png", title, directed=directed)


def _ordered(methods: Sequence[str]) -> list[str]:
    """Sorts methods as a run records them: linear predictivity, maps, other representations."""
    return [method for method in dict.fromkeys((LINEAR_PREDICTIVITY, *ATTRIBUTIONS, *RELATIVES)) if method in methods]


def _diff(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists in words what makes two records runs of different settings or images; networks may change between them."""
    methods = _ordered(
        earlier["settings"].get("methods", ())
    )  # earlier versions recorded linear predictivity after the maps
    # Records from before there was a choice of target are of the sum.
    earlier = {**earlier, "settings": {"target": "sum", **earlier["settings"], "methods": methods}}
    differences = record.diff_settings(earlier, now)
    if methods != now["settings"]["methods"]:
        named = [PAPER] if methods == [*METHODS] else methods
        options = " ".join(f"--method {method}" for method in named)
        differences.append(f"`jaxtransfer affinity` with {options} resumes the run there")
    if "probe" not in earlier:
        differences.append("the record there has no probe images")
    elif any(earlier["probe"][key] != now["probe"][key] for key in ("size", "sha256")):
        there, here = (
            f"{len(run['probe']['images'])} images of {run['probe']['size'][0]} pixels" for run in (earlier, now)
        )
        differences.append(f"the probe images differ: {there} there, {here} here")
    return differences
