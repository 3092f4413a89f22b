"""A run: one zoo on one folder of probe images, in a directory that says how to repeat it."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtransfer import record
from jaxtransfer.affinity import SIMILARITIES, Affinity, Similarity
from jaxtransfer.attribution import METHODS
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation import RankCorrelation, RetrievalCurve, rank_correlations, retrieval_curve
from jaxtransfer.figures import heat_map, retrieval_curves
from jaxtransfer.files import write_csv
from jaxtransfer.oracle import Oracle
from jaxtransfer.pge.findings import read_findings
from jaxtransfer.probe import Probe, load_probe
from jaxtransfer.sweep import affinity_matrix
from jaxtransfer.zoo import Zoo

_KIND = "affinity"
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
    manifests = {name: zoo.manifest(name) for name in zoo.names}
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
        "points": os.path.relpath(Path(points or out) / "points", out),
        "unusable": None,
    }
    begun = record.begin(out, _KIND, about, _differences, command, batch_size=batch_size)
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
    record.finish(out, begun, unusable=unusable)
    return affinity, probe


def evaluate_run(
    directory: str | Path, oracle: Oracle, *, relevant: int = 5, methods: Sequence[str] | None = None
) -> dict[str, tuple[RetrievalCurve, dict[str, RankCorrelation]]]:
    """Scores a finished run against an oracle.

    The directory receives `evaluation.csv` (hits, precision and recall at every K beside what a random order gets),
    `evaluation_by_target.csv` (rank correlations) and `evaluation.png`, which an earlier evaluation's are replaced by.

    Args:
        directory: The run.
        oracle: What really happened.
        relevant: How many of a target's sources are relevant.
        methods: Attribution methods; None: all there are.

    Returns:
        For every method the curve, and the rank correlations of every target.

    Raises:
        JaxTransferError: `directory` holds no finished run, or one that has nothing in common with the oracle.
    """
    directory = Path(directory)
    affinity = load_run(directory)
    found = {
        method: (
            retrieval_curve(affinity, oracle, relevant=relevant, method=method),
            rank_correlations(affinity, oracle, method=method),
        )
        for method in (affinity.methods if methods is None else methods)
    }
    curves = {method: curve for method, (curve, _) in found.items()}
    columns = ("hits", "precision", "recall", "random_precision", "random_recall")
    rows = [
        [method, k + 1, *(getattr(curve, column)[k] for column in columns)]
        for method, curve in curves.items()
        for k in range(len(curve.hits))
    ]
    write_csv(directory / "evaluation.csv", [["method", "k", *columns], *rows])
    by_target = [
        [method, target, *dataclasses.astuple(each)]
        for method, (_, correlations) in found.items()
        for target, each in correlations.items()
    ]
    fields = [field.name for field in dataclasses.fields(RankCorrelation)]
    write_csv(directory / "evaluation_by_target.csv", [["method", "target", *fields], *by_target])
    targets = len(next(iter(curves.values())).targets)
    retrieval_curves(curves, directory / "evaluation.png", f"Against {oracle.name}, {targets} targets")
    return found


def load_run(directory: str | Path) -> Affinity:
    """Loads the affinities of a finished run.

    A run of principal gradients has the one method "alignment", or "gap" with the gaps negated, so that larger is
    nearer there as well; what it could not tell is NaN.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    directory = Path(directory)
    return affinity_of(directory, finished_record(directory))


def finished_record(directory: Path) -> record.Record:
    """The record of a finished run of any kind.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    found = record.read(directory)
    if found is None:
        raise JaxTransferError(
            f"{directory} is not a run directory; `jaxtransfer affinity` and `jaxtransfer pge` make one."
        )
    if found["finished"] is None:
        raise JaxTransferError(f"The run in {directory} has not finished; start the same command again.")
    return found


def affinity_of(directory: Path, found: record.Record) -> Affinity:
    """The affinities of the run with the record `found`, see `load_run`."""
    return (
        Affinity.load(directory) if found["kind"] == _KIND else read_findings(directory, found["settings"]["measure"])
    )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What makes two records ones of different runs; networks may come and go, but not change."""
    found = record.other_settings(there, here)
    if any(there["probe"][key] != here["probe"][key] for key in ("size", "sha256")):
        counts = len(there["probe"]["images"]), len(here["probe"]["images"])
        found.append(f"the probe images are others: {counts[0]} there, {counts[1]} here")
    changed = [name for name, network in here["networks"].items() if there["networks"].get(name, network) != network]
    if changed:
        found.append(f"networks with other weights or preprocessing: {', '.join(changed)}")
    return found
