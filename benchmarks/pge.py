"""Measures the variance reductions of principal gradients, their gaps and alignments, and their speed.

Run `python -m benchmarks.pge --out benchmarks/results` from the root of the checkout, after
`pip install -e ".[bench]"`. The data are scikit-learn's digits, or with `--data FOLDER` a folder of class folders.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

import jaxtransfer as jt
from benchmarks import harness
from jaxtransfer.pge.estimator import Estimation
from jaxtransfer.pge.statistics import Estimate
from tests.support import torch_pge

CONSOLE = Console(width=120)
Tasks = dict[str, tuple[np.ndarray, np.ndarray]]
WAYS, SHOTS, QUERIES, BATCH = 5, 5, 16, 64
CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "prototypical": {"as published": {}, "orbits": {"symmetry": True}},
    "random head": {
        "as published": {},
        "orbits": {"symmetry": True},
        **{f"{heads} mirrored": {"heads": heads} for heads in (1, 4, 16, 64)},
        "orbits + 16 mirrored": {"symmetry": True, "heads": 16},
        "orbits + 64 mirrored": {"symmetry": True, "heads": 64},
    },
}
BEST = {"prototypical": "orbits", "random head": "orbits + 64 mirrored"}


def digits_tasks(size: int) -> Tasks:
    """Returns six tasks of five digits each; images have `size` x `size` pixels in [-1, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = jax.image.resize(images.reshape(-1, 8, 8, 1) / 16, (len(images), size, size, 1), "linear")
    images = 2 * np.asarray(images, np.float32) - 1
    rng = np.random.default_rng(0)
    low, high, odd = labels < 5, labels > 4, labels % 2 == 1
    noise = rng.normal(size=images[low].shape).astype(np.float32)
    return {
        "0-4": (images[low], labels[low]),
        "5-9": (images[high], labels[high]),
        "odd": (images[odd], labels[odd]),
        "0-4 + noise": (images[low] + noise, labels[low]),
        "0-4 inverted": (-images[low], labels[low]),
        "0-4 shuffled": (images[low], rng.permutation(labels[low])),
    }


def folder_tasks(folder: Path, size: int) -> Tasks:
    """Returns four tasks from a folder of class folders: the images, with noise, inverted, with shuffled labels."""
    probes = {path.name: jt.load_probe(path, size=size).images for path in sorted(folder.iterdir()) if path.is_dir()}
    images = np.concatenate(list(probes.values())).astype(np.float32) / 127.5 - 1
    labels = np.repeat(list(probes), [len(probe) for probe in probes.values()])
    rng = np.random.default_rng(0)
    noise = rng.normal(size=images.shape).astype(np.float32)
    return {
        folder.name: (images, labels),
        "+ noise": (images + noise, labels),
        "inverted": (-images, labels),
        "shuffled": (images, rng.permutation(labels)),
    }


def loss_and_batches(loss: str, backbone: jt.Backbone, task: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    """Returns the named loss of the backbone, and batches for it."""
    images, labels = task
    if loss == "prototypical":
        batches = jt.Episodes.of(images, labels, ways=WAYS, shots=SHOTS, queries=QUERIES)
        return jt.Prototypical(backbone.features, WAYS, SHOTS), batches
    if loss == "random head":
        return jt.RandomHead(backbone.features, len(np.unique(labels))), jt.Minibatches.of(images, labels, size=BATCH)
    angle = 2 * np.pi * np.unique(labels, return_inverse=True)[1] / len(np.unique(labels))
    targets = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return jt.SquaredError(backbone.features, 2), jt.Minibatches.of(images, targets, size=BATCH)


def estimation(
    loss: str,
    backbone: jt.Backbone,
    task: Any,
    seed: int = 0,
    *,
    symmetry: bool = False,
    control: bool = False,
    **rest: Any,
) -> Estimation:
    """Prepares an estimation in a configuration; the tests check the symmetries of the package's backbones."""
    loss_function, batches = loss_and_batches(loss, backbone, task)
    units = backbone.symmetry if symmetry else None
    key = jax.random.key(seed)
    return Estimation(backbone.init, loss_function, batches, key, symmetry=units, control=control, check=False, **rest)


def torch_restarts(
    name: str, loss_name: str, task: tuple[np.ndarray, np.ndarray], channels: int, *, in_place: bool = False
) -> Callable[[int], None]:
    """Returns the published estimator in PyTorch, as a function of the number of restarts.

    Every restart makes a fresh module and takes a batch; the gradients are averaged. With `in_place` the weights of a
    single module are drawn again instead, which saves making modules and PyTorch's own initialisation.
    """
    images, labels = task
    numbers = np.unique(labels, return_inverse=True)[1]
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    classes = torch.from_numpy(numbers)
    members = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
    rng = np.random.default_rng(0)

    reused = torch_pge.MODULES[name](channels=channels) if in_place else None

    def fresh() -> nn.Module:
        network = reused or torch_pge.MODULES[name](channels=channels)
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()
        network.zero_grad()
        return network.train()

    def loss(network: nn.Module) -> torch.Tensor:
        if loss_name == "prototypical":
            ways = rng.permutation(len(members))[:WAYS]
            chosen = np.concatenate([rng.permutation(members[way])[: SHOTS + QUERIES] for way in ways])
            features = network(pixels[chosen]).reshape(WAYS, SHOTS + QUERIES, -1)
            queries = features[:, SHOTS:].flatten(0, 1)
            logits = -(torch.cdist(queries, features[:, :SHOTS].mean(1)) ** 2)
            return F.cross_entropy(logits, torch.arange(WAYS).repeat_interleave(QUERIES))
        chosen = rng.permutation(len(pixels))[:BATCH]
        features = network(pixels[chosen])
        return F.cross_entropy(nn.Linear(features.shape[1], len(members))(features), classes[chosen])

    def run(restarts: int) -> None:
        mean = None
        for count in range(1, restarts + 1):
            network = fresh()
            loss(network).backward()
            gradient = torch.cat([leaf.grad.flatten() for leaf in network.parameters() if leaf.grad is not None])
            mean = gradient if mean is None else mean + (gradient - mean) / count

    return run


def noise(name: str, tasks: Tasks, restarts: int, rounds: int) -> dict[str, Any]:
    """Part 1: noise, and restarts and seconds to a signal-to-noise ratio of 10, by configuration and in PyTorch."""
    task = next(iter(tasks.values()))
    channels = task[0].shape[-1]
    backbone = jt.backbone(name, channels)
    record: dict[str, Any] = {}
    for loss, configurations in CONFIGURATIONS.items():
        # The noise of many coordinates is known from fewer groups, and every group of them needs more memory.
        estimations = {
            label: estimation(loss, backbone, task, groups=16 if "symmetry" in options else 8, **options)
            for label, options in configurations.items()
        }
        published = torch_restarts(name, loss, task, channels)
        contenders = {label: (_more(estimator, 16), 16) for label, estimator in estimations.items()}
        seconds = harness.take_turns(contenders | {"PyTorch": (lambda run=published: run(4), 4)}, rounds)
        for label, estimator in estimations.items():
            estimator.run(16 * restarts if label == BEST[loss] else restarts)
        signal = estimations[BEST[loss]].result().squared_norm
        table = Table(title=f"{name}, {loss}: squared norm {signal.value:.3g} ± {signal.stderr:.1g}")
        for heading in (
            "",
            "noise per restart",
            "restarts to S/N 10",
            "fewer",
            "ms per restart",
            "s to S/N 10",
            "faster",
        ):
            table.add_column(heading, justify="left" if not heading else "right")
        rows: dict[str, dict[str, float]] = {}
        for label in [*estimations, "PyTorch"]:
            variance = estimations["as published" if label == "PyTorch" else label].result().noise_per_restart
            needed, per_restart = 10 * variance / signal.value, float(np.median(seconds[label]))
            rows[label] = {"noise_per_restart": variance, "restarts_needed": needed, "seconds_per_restart": per_restart}
        for label, row in rows.items():
            row["fewer"] = rows["as published"]["restarts_needed"] / row["restarts_needed"]
            row["time_ratio"] = row["seconds_per_restart"] / rows["as published"]["seconds_per_restart"]
            row["seconds_needed"] = row["restarts_needed"] * row["seconds_per_restart"]
            row["faster_than_pytorch"] = (
                rows["PyTorch"]["restarts_needed"] * rows["PyTorch"]["seconds_per_restart"] / row["seconds_needed"]
            )
            table.add_row(
                label, f"{row['noise_per_restart']:.3g}", f"{row['restarts_needed']:.3g}", f"{row['fewer']:.3g}x",
                f"{1e3 * row['seconds_per_restart']:.1f} ({row['time_ratio']:.2f}x)", f"{row['seconds_needed']:.3g}",
                f"{row['faster_than_pytorch']:.3g}x",
            )  # fmt: skip
        CONSOLE.print(table)
        record[loss] = {"squared_norm": signal._asdict(), "rows": rows}
    return record


def _more(estimator: Estimation, restarts: int) -> Callable[[], Any]:
    """Returns a function that computes this number of further restarts and waits for them."""
    return lambda: (estimator.run(estimator.done + restarts), jax.block_until_ready(estimator._sums))


def budget(name: str, tasks: Tasks, most: int) -> dict[str, Any]:
    """Part 2: the plain gap of the published estimator and our gap, against the number of restarts."""
    names = list(tasks)[:2]
    backbone = jt.backbone(name, tasks[names[0]][0].shape[-1])
    record: dict[str, Any] = {}
    for loss, best in (("prototypical", {"symmetry": True}), ("random head", {"symmetry": True, "heads": 16})):
        pairs = {
            "published": [estimation(loss, backbone, tasks[task]) for task in names],
            "ours": [estimation(loss, backbone, tasks[task], **best) for task in names],
        }
        table = Table("restarts", "published, plain", "ours", title=f"{name}, {loss}: gap of {' and '.join(names)}")
        points = []
        for restarts in [16 * 2**i for i in range(12) if 16 * 2**i <= most]:
            values = {}
            for label, pair in pairs.items():
                for estimator in pair:
                    estimator.run(restarts)
                values[label] = None
                with contextlib.suppress(jt.JaxTransferError):
                    gap = jt.gap(pair[0].result(), pair[1].result(), biased=label == "published")
                    values[label] = list(gap) if np.isfinite(gap.stderr) else None
            points.append({"restarts": restarts, **values})
            cells = ["not resolved" if gap is None else f"{gap[0]:.4g} ± {gap[1]:.2g}" for gap in values.values()]
            table.add_row(str(restarts), *cells)
        CONSOLE.print(table)
        record[loss] = points
    return record


def control(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 3a: tests whether the expected gradient depends on the labels."""
    task = next(iter(tasks.values()))
    backbone = jt.backbone(name, task[0].shape[-1])
    table = Table("loss", "squared norm", "squared distance to control", "in standard errors", title=f"{name}: control")
    record = {}
    for loss in ("prototypical", "random head", "squared error"):
        estimator = estimation(loss, backbone, task, symmetry=True, control=True)
        estimator.run(restarts)
        gradient = estimator.result()
        signal = gradient.label_signal
        assert signal is not None
        record[loss] = {"squared_norm": gradient.squared_norm._asdict(), "label_signal": signal._asdict()}
        cells = [f"{x.value:.3g} ± {x.stderr:.1g}" for x in (gradient.squared_norm, signal)]
        table.add_row(loss, *cells, f"{signal.value / signal.stderr:.1f}")
    CONSOLE.print(table)
    return record


def alignment(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 3b: the alignment of all pairs of tasks on prototypical episodes."""
    backbone = jt.backbone(name, next(iter(tasks.values()))[0].shape[-1])
    loss = jt.Prototypical(backbone.features, WAYS, SHOTS)
    batches = {label: loss_and_batches("prototypical", backbone, task)[1] for label, task in tasks.items()}
    affinity = jt.gradient_alignment(backbone.init, loss, batches, jax.random.key(0), restarts=restarts)
    table = Table("alignment", *affinity.names, title=f"{name}, prototypical, {restarts} restarts")
    matrix, stderr = affinity["alignment"], affinity.stderr("alignment")
    for row, label in enumerate(affinity.names):
        cells = [f"{a:.2f} ± {b:.2f}" for a, b in zip(matrix[row], stderr[row], strict=True)]
        table.add_row(label, *cells)
    CONSOLE.print(table)
    return {
        "names": affinity.names,
        "alignment": matrix.tolist(),
        "stderr": stderr.tolist(),
        "restarts": restarts,
    }


def speed(rounds: int, folder: Path | None) -> None:
    """Part 4: seconds per restart in the published setting, ours and PyTorch's."""
    rng = np.random.default_rng(0)
    for name, count, size, restarts in (("conv4", 64, 32, 16), ("resnet18", 32, 64, 16)):
        images = rng.normal(size=(4 * count, size, size, 3)).astype(np.float32)
        task = (images, np.arange(4 * count) % 5)
        backbone = jt.backbone(name)
        batches = jt.Minibatches.of(*task, size=count)
        ours = Estimation(
            backbone.init, jt.RandomHead(backbone.features, 5), batches, jax.random.key(0), control=False, groups=4
        )
        batch = (images[:BATCH][:count], task[1][:count])
        published = torch_restarts(name, "random head", batch, 3)
        in_place = torch_restarts(name, "random head", batch, 3, in_place=True)
        contenders = {
            "ours": (_more(ours, restarts), restarts),
            "PyTorch": (lambda run=published, n=restarts // 2: run(n), restarts // 2),
            "PyTorch, one module": (lambda run=in_place, n=restarts // 2: run(n), restarts // 2),
        }
        seconds = harness.take_turns(contenders, rounds)
        title = f"Restarts of {name}, {count} x {size} x {size} x 3, random head, float32"
        file = folder and folder / f"pge_speed_{name}.json"
        shapes = {"batch": (count, size, size, 3)}
        harness.report(title, seconds, "ours", {"restarts": restarts}, file, precision="float32", shapes=shapes)


def properties(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 5: gap and alignment over ten keys: spread, standard error and time, from the same number of gradients.

    Gaps of principal gradients that are not resolved are left out; the number of resolved ones is reported.
    """
    names = list(tasks)[:2]
    backbone = jt.backbone(name, tasks[names[0]][0].shape[-1])
    loss = jt.Prototypical(backbone.features, WAYS, SHOTS)
    batches = {task: loss_and_batches("prototypical", backbone, tasks[task])[1] for task in names}
    halves = []

    def gap(seed: int) -> Estimate:
        pair = [estimation("prototypical", backbone, tasks[task], seed, symmetry=True) for task in names]
        for estimator in pair:
            estimator.run(2 * restarts)
        halves.append(pair[0].result().split_half)
        return jt.gap(*(estimator.result() for estimator in pair), form="cosine")

    def alignment(seed: int) -> Estimate:
        affinity = jt.gradient_alignment(backbone.init, loss, batches, jax.random.key(seed), restarts=restarts)
        return Estimate(float(affinity["alignment"][0, 1]), float(affinity.stderr("alignment")[0, 1]))

    record: dict[str, Any] = {"gradients per key": 4 * restarts}
    table = Table("", "resolved", "mean", "sd over keys", "mean standard error", "s per key",
                  title=f"{name}: ten keys, {4 * restarts} gradients each, {' and '.join(names)}")  # fmt: skip
    for label, measure in (("cosine gap", gap), ("alignment", alignment)):
        values, start = [], time.perf_counter()
        for seed in range(10):
            with contextlib.suppress(jt.JaxTransferError):
                values.append(measure(seed))
        seconds = (time.perf_counter() - start) / 10
        resolved = np.array([value for value in values if np.isfinite(value.stderr)])
        summary = [None] * 3
        if len(resolved) > 1:
            summary = [resolved[:, 0].mean(), resolved[:, 0].std(ddof=1), resolved[:, 1].mean()]
        table.add_row(label, str(len(resolved)), *("" if number is None else f"{number:.3g}" for number in summary),
                      f"{seconds:.1f}")  # fmt: skip
        record[label] = {"resolved": len(resolved), "mean": summary[0], "sd over keys": summary[1],
                         "mean stderr": summary[2], "seconds": seconds}  # fmt: skip
    record["split half of the first"] = float(np.mean(halves))
    CONSOLE.print(table, f"split-half reliability of {names[0]}: {record['split half of the first']:.2f}")
    return record


def remaining(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 6: the remaining noise per restart, from batches and from weights.

    With m networks per batch the noise per restart is V_weights + m V_batches; it is measured for m = 1 and m = 8.
    """
    task = next(iter(tasks.values()))
    backbone = jt.backbone(name, task[0].shape[-1])
    table = Table("", "from batches", "from weights and heads", title=f"{name}: remaining noise per restart")
    record = {}
    for loss in CONFIGURATIONS:
        best = CONFIGURATIONS[loss][BEST[loss]]
        noises = []
        for per_batch in (1, 8):
            estimator = estimation(loss, backbone, task, groups=32, restarts_per_batch=per_batch, **best)
            estimator.run(restarts)
            noises.append(estimator.result().noise_per_restart)
        batches = (noises[1] - noises[0]) / 7
        record[loss] = {"batches": batches, "weights": noises[0] - batches, "seen": noises}
        table.add_row(f"{loss}, {BEST[loss]}", f"{batches:.3g}", f"{noises[0] - batches:.3g}")
    CONSOLE.print(table)
    return record


def plot(record: Mapping[str, Any], folder: Path, name: str) -> None:
    """Draws the restarts needed by configuration, and the gap against the number of restarts."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [(f"{loss}: {label}", row) for loss, part in record["noise"].items() for label, row in part["rows"].items()
            if label != "PyTorch"]  # fmt: skip
    left.barh([label for label, _ in rows][::-1], [row["restarts_needed"] for _, row in rows][::-1], color="#0072b2")
    left.set(xscale="log", xlabel="restarts to a signal-to-noise ratio of 10", title=name)
    left.tick_params(axis="y", labelsize=7)
    points = record["budget"]["prototypical"]
    for label, colour in (("published", "#d55e00"), ("ours", "#0072b2")):
        resolved = [(point["restarts"], *point[label]) for point in points if point[label]]
        right.errorbar(
            *zip(*[(x, y) for x, y, _ in resolved], strict=True),
            yerr=[e for *_, e in resolved],
            color=colour,
            label=label,
        )
    right.set(
        xscale="log", yscale="log", xlabel="restarts", ylabel="gap", title="prototypical: gap of the first two tasks"
    )
    right.legend()
    FigureCanvasAgg(figure).print_figure(folder / f"pge_{name}.png", dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of class folders; default: the digits of scikit-learn")
    parser.add_argument("--size", type=int, default=16, help="height and width of the images")
    parser.add_argument(
        "--backbone",
        nargs="*",
        default=["conv4", "resnet12"],
        help="backbones of part 1; the other parts use the first",
    )
    parser.add_argument("--restarts", type=int, default=128, help="restarts per configuration in part 1")
    parser.add_argument("--most", type=int, default=2048, help="largest number of restarts in part 2")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each contender")
    parser.add_argument(
        "--parts", nargs="*", default=["noise", "budget", "control", "alignment", "properties", "remaining", "speed"]
    )
    parser.add_argument("--out", type=Path, help="folder for JSON files and figures")
    options = parser.parse_args(arguments)
    tasks = folder_tasks(options.data, options.size) if options.data else digits_tasks(options.size)
    data = options.data.name if options.data else "digits"
    first = options.backbone[0]
    parts: dict[str, Callable[[str], dict[str, Any]]] = {
        "noise": lambda name: noise(name, tasks, options.restarts, options.rounds),
        "budget": lambda name: budget(name, tasks, options.most),
        "control": lambda name: control(name, tasks, 4 * options.restarts),
        "alignment": lambda name: alignment(name, tasks, 2 * options.restarts),
        "properties": lambda name: properties(name, tasks, options.restarts),
        "remaining": lambda name: remaining(name, tasks, 8 * options.restarts),
    }
    for name in options.backbone:
        record: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(options).items() if k != "out"}}
        for part, run in parts.items():
            if part not in options.parts or (part != "noise" and name != first):
                continue
            record[part] = run(name)
            if options.out:
                file = options.out / f"pge_{data}_{name}.json"
                harness.store(
                    record, file, precision="float32", shapes={label: task[0].shape for label, task in tasks.items()}
                )
        if options.out and {"noise", "budget"} <= set(record):
            plot(record, options.out, f"{data}_{name}")
    if "speed" in options.parts:
        speed(options.rounds, options.out)


if __name__ == "__main__":
    main()
