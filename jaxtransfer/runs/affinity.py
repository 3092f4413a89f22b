"""A run: one zoo on one folder of probe images, in a directory that says how to repeat it."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxtransfer.arguments import checked_methods
from jaxtransfer.attribution.maps import METHODS
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.matrix import TARGETS, Sweep, Target
from jaxtransfer.comparison.representations import RELATIVES
from jaxtransfer.data.probe import Probe, load_probe
from jaxtransfer.devices import is_first, synchronised
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.figures import heat_map
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.directions import SIMILARITIES, Similarity
from jaxtransfer.runs import record

_KIND = "affinity"
_EPSILON = 1e-4


def run_affinity(
    zoo: Zoo,
    images: str | Path,
    out: str | Path,
    *,
    command: Sequence[str],
    methods: str | Sequence[str] = METHODS,
    target: Target = "sum",
    similarity: Similarity = "cosine",
    edge_weight: float = 0.25,
    sketch: int | None = None,
    precision: Precision = "float32",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    size: int = 256,
    limit: int | None = None,
    strict: bool = False,
    points: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Affinity, Probe]:
    """Computes the affinities of a zoo's networks and writes a run directory, or takes an unfinished one up.

    The directory receives `affinity_<method>.csv`, `stderr_<method>.csv` and `counts_<method>.csv`, a heat map
    `affinity_<method>.png` of each method, the points, and `run.json`: what was asked, of which networks and
    images, with which software on which device, and what had to be left out. A run that was interrupted goes
    on where it stopped; of a zoo that has changed since, only networks that are new or have other weights are computed.

    Args:
        zoo: The networks.
        images: The folder of probe images, see `load_probe`.
        out: The run directory: new, empty, or of a run with the same settings.
        command: What the user typed, for `run.json`.
        methods: Any of `METHODS` and `RELATIVES`, one or several.
        target: "sum" or "random_signs", see `affinity_matrix`.
        similarity: "cosine", or "correlation" for cosines of maps whose mean over pixels was removed.
        edge_weight: How much the edges of DEPARA count beside its nodes.
        sketch: Keep so many numbers of each map, see `affinity_matrix`; None: whole maps.
        precision: Of the networks' passes, see `affinity_matrix`.
        batch_size: Images at a time on each device; None: as many as are useful and fit.
        mesh: Devices to share the work, see `affinity_matrix`.
        size: Height and width in pixels of the probe images, and of the maps that are kept and compared.
        limit: Use the first so many images; None: all.
        strict: Whether a file that is no usable image is an error rather than skipped.
        points: Directory, or URL of an object store's folder, whose `points/` receives the points; None: the run
            directory.
        progress: Called with images done, images to do (over all networks) and the network's name.

    Returns:
        The affinities, and the probe images they come from.

    Raises:
        JaxTransferError: The zoo is empty or damaged or has functions in modules that it may not use, the images cannot
            be used, or `out` is no run directory, one of a run with other settings, or one that another run is at
            work in.
        OSError: Something cannot be written, because the disk is full for example.
    """
    out = Path(out)
    with synchronised():
        methods = checked_methods(methods)
        if not zoo.path.is_dir():
            raise JaxTransferError(f"There is no zoo at {zoo.path}; `jaxtransfer convert` makes one.")
        if len(zoo) < 2:
            count = "only one network" if len(zoo) else "no networks"
            raise JaxTransferError(f"The zoo {zoo.path} has {count}; affinities need two or more.")
        for kind, asked, known in [
            ("method", methods, (*METHODS, *RELATIVES)),
            ("target", [target], TARGETS),
            ("similarity", [similarity], SIMILARITIES),
        ]:
            if unknown := [name for name in asked if name not in known]:
                raise JaxTransferError(f"There is no {kind} {unknown[0]!r}; there are: {', '.join(known)}.")
        methods = tuple(method for method in (*METHODS, *RELATIVES) if method in methods)
        manifests = {name: zoo.manifest(name) for name in zoo.names}
        zoo.check_modules(manifests.values())
        probe = load_probe(images, size=size, limit=limit, strict=strict)
    settings = {
        "methods": list(methods),
        "target": target,
        "similarity": similarity,
        "epsilon": _EPSILON,
        "sketch": sketch,
        "precision": precision,
    }
    if "depara" in methods:
        settings["edge_weight"] = edge_weight
    if "cka" in methods:
        settings["cka"] = "unbiased"  # in earlier versions it was not, see `record.read`
    about = {
        "settings": settings,
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
        "points": f"{points}/points" if "://" in str(points) else os.path.relpath(Path(points or out) / "points", out),
        "unusable": None,
        "faults": None,
    }
    sweep = Sweep(
        zoo, probe.images, methods=methods, target=target, similarity=similarity, epsilon=_EPSILON,
        edge_weight=edge_weight, sketch=sketch, precision=precision, batch_size=batch_size, mesh=mesh,
        image_names=probe.names,
    )  # fmt: skip
    with record.open_run(out, _KIND, about, _differences, command, mesh=dict(sweep.mesh.shape)) as results:
        affinity = sweep.run(points or out, progress)
        if is_first():
            _write(out, affinity, len(probe.names))
        results["batch_sizes"] = sweep.batch_sizes
        results["faults"] = {name: list(codes) for name, codes in affinity.faults.items()}
        results["unusable"] = {method: [list(pair) for pair in affinity.unusable[method]] for method in methods}
    return affinity, probe


def _write(out: Path, affinity: Affinity, images: int) -> None:
    """The tables and heat maps of a run."""
    affinity.save(out)
    for method in affinity.methods:
        how = f"{affinity.similarity}, " if method in METHODS or method == "depara" else ""
        title = f"Affinity by {method} ({how}{images} images)"
        heat_map(affinity[method], affinity.names, out / f"affinity_{method}.png", title)


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What makes two records ones of different runs; networks may come, go and change."""
    # Runs from before there was a choice are of the sum.
    there = {**there, "settings": {"target": "sum", **there["settings"]}}
    found = record.diff_settings(there, here)
    if any(there["probe"][key] != here["probe"][key] for key in ("size", "sha256")):
        one, other = (f"{len(each['probe']['images'])} of {each['probe']['size'][0]} pixels" for each in (there, here))
        found.append(f"the probe images are others: {one} there, {other} here")
    return found
