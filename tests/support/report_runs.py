"""Finished runs of known affinities, for tests of what is made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxtransfer import Affinity, Measure
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.files import write_csv
from jaxtransfer.points.store import Points
from jaxtransfer.runs import record

METHODS = ("saliency", "epsilon_lrp")
AWKWARD = (
    '<img src="x" onerror="alert(1)">',
    "</script><b>",
    "quotes \" and ' & more",
    "a-network-whose-name-has-sixty-characters-or-rather-more-x60",
    "$two$ dollars_{and} braces",
)


def attribution_run(
    directory: Path,
    names: Sequence[str],
    *,
    maps: bool = True,
    unusable: Sequence[tuple[str, str]] = (),
    faults: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """A finished run under two methods, with three photos and, for names that can be folders, maps."""
    rng = np.random.default_rng(0)
    count, photos = len(names), ["a.png", "b.png", "c.png"]
    results = {}
    for method in METHODS:
        points = rng.normal(size=(count, 12)) + rng.normal(size=(4, 12))[np.arange(count) % 4]
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        stderr = np.full((count, count), 0.01, np.float32)
        values = (points @ points.T).astype(np.float32)
        results[method] = MethodResult(values, stderr, np.full((count, count), 3), tuple(unusable))
    folder = directory.parent / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    for name in photos:
        Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(folder / name)
    about = {
        "settings": {"methods": list(METHODS), "similarity": "cosine"},
        "networks": {name: {"weights_sha256": "0" * 64, "preprocess": {}} for name in names},
        "probe": {
            "folder": str(folder), "size": [16, 16], "sha256": "1" * 64, "images": photos,
            "skipped": [["broken.png", "it is not an image of a known format"]],
        },
        "points": "points",
    }  # fmt: skip
    _finish(directory, "affinity", about, {"unusable": {method: list(map(list, unusable)) for method in METHODS}})
    Affinity(names, "cosine", results, faults).save(directory)
    points = Points(directory / "points")
    for name in names if maps else ():
        for method in METHODS:
            points.create(name, method, (3, 16, 16), chunk=3)
            points.wait([points.open(name, method).write(0, rng.normal(size=(3, 16, 16)).astype(np.float32))])
    return directory


def gap_run(directory: Path, names: Sequence[str], *, unknown: int | None = None) -> Path:
    """A finished run of gaps between tasks: |i - j|; nothing is known of one task."""
    count = len(names)
    values = np.abs(np.subtract.outer(np.arange(count), np.arange(count))).astype(float)
    stderr = 0.1 * values
    if unknown is not None:
        for table in (values, stderr):
            table[unknown, :] = table[:, unknown] = np.nan
    remarks = [
        "All tasks: Permuting the labels moves the gradient by 0.1 ± 0.01 (squared distance): it depends on the labels."
    ]
    datasets = {name: {"sha256": "2" * 64, "skipped": [], "left_out": []} for name in names}
    about = {"settings": {"measure": "gap", "backbone": "conv4"}, "form": "pge", "datasets": datasets}
    _finish(directory, "pge", about, {"remarks": remarks})
    for kind, table in (("", values), ("_stderr", stderr)):
        write_csv(
            directory / f"gap{kind}.csv",
            [["", *names], *([name, *row] for name, row in zip(names, table, strict=True))],
        )
    header = (
        "task restarts squared_norm signal_to_noise restarts_needed squared_distance_to_control "
        "squared_distance_stderr reads_labels label_blind"
    ).split()
    rows = [[name, 64, 0.5, 12.5, 52, 0.1, 0.01, (True, False, None)[i % 3], False] for i, name in enumerate(names)]
    write_csv(directory / "control.csv", [header, *rows])
    return directory


MEASURES = ("ridge", "knn", "leep")


def score_run(directory: Path, tasks: Sequence[str], networks: Sequence[str], *, measured: bool = False) -> Path:
    """A finished run of scores: a row for each task, which `leep` has only of the first; perhaps measured transfer.

    Transfer was measured for the three networks of each task that `ridge` ranks first.
    """
    rng = np.random.default_rng(0)
    shape, samples = (len(tasks), len(networks)), 10
    quality = rng.normal(size=shape) + rng.normal(size=len(networks))
    results = {}
    for method in MEASURES:
        drawn = 0.5 + 0.1 * quality.ravel() + 0.1 * rng.normal(size=(samples, quality.size))
        if method == "leep":
            drawn[:, len(networks) :] = np.nan
        values, errors = drawn.mean(0).reshape(shape), (drawn.std(0, ddof=1) / samples**0.5).reshape(shape)
        results[method] = MethodResult(
            values.astype(np.float32),
            np.where(np.isnan(errors), np.inf, errors).astype(np.float32),
            np.full(shape, 300),
            pseudo_values=drawn.astype(np.float32),
            measure=Measure("score", directed=True, sampled="labelled examples"),
        )
    about = {
        "settings": {"measures": list(MEASURES), "layers": None},
        "tasks": {
            name: {
                "kind": "numbers" if i else "classes", "images": 302, "classes": None if i else 4, "sha256": "2" * 64,
                "labelled": 300, "missing": 2, "unlabelled": i, "left_out": [["column 2" if i else "tulip", 1]],
                "skipped": [["broken.png", "it is not an image of a known format"]],
            }
            for i, name in enumerate(tasks)
        },
        "networks": {name: {"weights_sha256": "0" * 64, "preprocess": {}} for name in networks},
    }  # fmt: skip
    _finish(directory, "score", about, {"processor_seconds_of_measures": 1.875})
    affinity = Affinity(networks, "cosine", results, targets=tasks)
    affinity.save(directory)
    if measured:
        best = {task: [name for name, *_ in affinity.rank(task, method="ridge")[:3]] for task in tasks}
        rows = [
            [task, name, round(0.8 + 0.05 * quality[i, networks.index(name)], 4), 0.01]
            for i, task in enumerate(tasks)
            for name in best[task]
        ]
        write_csv(directory / "measured_frozen.csv", [["target", "source", "score", "stderr"], *rows])
    return directory


def _finish(directory: Path, kind: str, about: dict[str, Any], results: dict[str, Any]) -> None:
    with record.open_run(
        directory, kind, about, lambda *_: [], ["jaxtransfer", kind, "<somewhere>"]
    ) as results_on_record:
        results_on_record |= results
