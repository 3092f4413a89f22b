"""What the variance reductions of principal gradients are worth, what their gap and alignment say, and how fast it is.

Run with `python -m benchmarks.pge --out benchmarks/results` from the root of the checkout, after
`pip install -e ".[bench]"`. Data: scikit-learn's digits, or a folder of class folders with `--data FOLDER`.
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
    """The six tasks of five digits each, `size` pixels wide, values in [-1, 1]."""
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
    """The same kind of tasks from the class folders of a folder: all classes, disturbed, inverted, shuffled."""
    probes = {each.name: jt.load_probe(each, size=size).images for each in sorted(folder.iterdir()) if each.is_dir()}
    images = np.concatenate(list(probes.values())).astype(np.float32) / 127.5 - 1
    labels = np.repeat(list(probes), [len(each) for each in probes.values()])
    rng = np.random.default_rng(0)
    noise = rng.normal(size=images.shape).astype(np.float32)
    return {
        folder.name: (images, labels),
        "+ noise": (images + noise, labels),
        "inverted": (-images, labels),
        "shuffled": (images, rng.permutation(labels)),
    }


def loss_and_batches(kind: str, backbone: jt.Backbone, task: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    """A loss of the backbone and the batches it takes."""
    images, labels = task
    if kind == "prototypical":
        batches = jt.Episodes.of(images, labels, ways=WAYS, shots=SHOTS, queries=QUERIES)
        return jt.Prototypical(backbone.features, WAYS, SHOTS), batches
    if kind == "random head":
        return jt.RandomHead(backbone.features, len(np.unique(labels))), jt.Minibatches.of(images, labels, size=BATCH)
    angle = 2 * np.pi * np.unique(labels, return_inverse=True)[1] / len(np.unique(labels))
    targets = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return jt.SquaredError(backbone.features, 2), jt.Minibatches.of(images, targets, size=BATCH)


def estimation(
    kind: str,
    backbone: jt.Backbone,
    task: Any,
    seed: int = 0,
    *,
    symmetry: bool = False,
    control: bool = False,
    **rest: Any,
) -> Estimation:
    """An estimation in one of the configurations; the symmetries of shipped backbones are checked in the tests."""
    loss, batches = loss_and_batches(kind, backbone, task)
    chosen = backbone.symmetry if symmetry else None
    key = jax.random.key(seed)
    return Estimation(backbone.init, loss, batches, key, symmetry=chosen, control=control, check=False, **rest)


def torch_restarts(
    name: str, kind: str, task: tuple[np.ndarray, np.ndarray], channels: int, *, in_place: bool = False
) -> Callable[[int], None]:
    """The published way in PyTorch: a fresh module, one batch, a running mean; a function of the number of restarts.

    With `in_place` one module's weights are drawn again, which saves making it and PyTorch's own initialisation.
    """
    images, labels = task
    numbers = np.unique(labels, return_inverse=True)[1]
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    classes = torch.from_numpy(numbers)
    members = [np.flatnonzero(numbers == each) for each in range(numbers.max() + 1)]
    rng = np.random.default_rng(0)

    one = torch_pge.MODULES[name](channels=channels) if in_place else None

    def fresh() -> nn.Module:
        network = one or torch_pge.MODULES[name](channels=channels)
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_parameters()
        network.zero_grad()
        return network.train()

    def loss(network: nn.Module) -> torch.Tensor:
        if kind == "prototypical":
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
            gradient = torch.cat([each.grad.flatten() for each in network.parameters() if each.grad is not None])
            mean = gradient if mean is None else mean + (gradient - mean) / count

    return run


def noise(name: str, tasks: Tasks, restarts: int, rounds: int) -> dict[str, Any]:
    """Part 1: noise, restarts and seconds to a signal-to-noise of 10, for every configuration and PyTorch."""
    task = next(iter(tasks.values()))
    channels = task[0].shape[-1]
    backbone = jt.backbone(name, channels)
    record: dict[str, Any] = {}
    for kind, configurations in CONFIGURATIONS.items():
        # Many coordinates need fewer groups to tell their noise, and more memory for each.
        running = {
            label: estimation(kind, backbone, task, groups=16 if "symmetry" in given else 8, **given)
            for label, given in configurations.items()
        }
        published = torch_restarts(name, kind, task, channels)
        contenders = {label: (_more(each, 16), 16) for label, each in running.items()}
        seconds = harness.take_turns(contenders | {"PyTorch": (lambda run=published: run(4), 4)}, rounds)
        for label, each in running.items():
            each.run(16 * restarts if label == BEST[kind] else restarts)
        signal = running[BEST[kind]].result().squared_norm
        table = Table(title=f"{name}, {kind}: squared norm {signal.value:.3g} ± {signal.stderr:.1g}")
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
        for label in [*running, "PyTorch"]:
            variance = running["as published" if label == "PyTorch" else label].result().noise_per_restart
            needed, each = 10 * variance / signal.value, float(np.median(seconds[label]))
            rows[label] = {"noise_per_restart": variance, "restarts_needed": needed, "seconds_per_restart": each}
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
        record[kind] = {"squared_norm": signal._asdict(), "rows": rows}
    return record


def _more(each: Estimation, restarts: int) -> Callable[[], Any]:
    """A function that does so many restarts more in one call and waits for them."""
    return lambda: (each.run(each.done + restarts), jax.block_until_ready(each._sums))


def budget(name: str, tasks: Tasks, most: int) -> dict[str, Any]:
    """Part 2: the plain gap of the published estimator, and ours, against the number of restarts."""
    names = list(tasks)[:2]
    backbone = jt.backbone(name, tasks[names[0]][0].shape[-1])
    record: dict[str, Any] = {}
    for kind, best in (("prototypical", {"symmetry": True}), ("random head", {"symmetry": True, "heads": 16})):
        pairs = {
            "published": [estimation(kind, backbone, tasks[each]) for each in names],
            "ours": [estimation(kind, backbone, tasks[each], **best) for each in names],
        }
        table = Table("restarts", "published, plain", "ours", title=f"{name}, {kind}: gap of {' and '.join(names)}")
        points = []
        for restarts in [16 * 2**i for i in range(12) if 16 * 2**i <= most]:
            values = {}
            for label, pair in pairs.items():
                for each in pair:
                    each.run(restarts)
                values[label] = None
                with contextlib.suppress(jt.JaxTransferError):
                    found = jt.gap(pair[0].result(), pair[1].result(), biased=label == "published")
                    values[label] = list(found) if np.isfinite(found.stderr) else None
            points.append({"restarts": restarts, **values})
            cells = ["not resolved" if each is None else f"{each[0]:.4g} ± {each[1]:.2g}" for each in values.values()]
            table.add_row(str(restarts), *cells)
        CONSOLE.print(table)
        record[kind] = points
    return record


def control(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 3a: does the expectation read the labels?"""
    task = next(iter(tasks.values()))
    backbone = jt.backbone(name, task[0].shape[-1])
    table = Table("loss", "squared norm", "squared distance to control", "in standard errors", title=f"{name}: control")
    record = {}
    for kind in ("prototypical", "random head", "squared error"):
        each = estimation(kind, backbone, task, symmetry=True, control=True)
        each.run(restarts)
        found = each.result()
        signal = found.label_signal
        assert signal is not None
        record[kind] = {"squared_norm": found.squared_norm._asdict(), "label_signal": signal._asdict()}
        cells = [f"{x.value:.3g} ± {x.stderr:.1g}" for x in (found.squared_norm, signal)]
        table.add_row(kind, *cells, f"{signal.value / signal.stderr:.1f}")
    CONSOLE.print(table)
    return record


def alignment(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 3b: the alignment of all tasks, prototypical episodes, beside the cosine of their expectations."""
    backbone = jt.backbone(name, next(iter(tasks.values()))[0].shape[-1])
    loss = jt.Prototypical(backbone.features, WAYS, SHOTS)
    batches = {each: loss_and_batches("prototypical", backbone, task)[1] for each, task in tasks.items()}
    found = jt.gradient_alignment(backbone.init, loss, batches, jax.random.key(0), restarts=restarts)
    table = Table("alignment", *found.names, title=f"{name}, prototypical, {restarts} restarts")
    for i, each in enumerate(found.names):
        cells = [f"{a:.2f} ± {b:.2f}" for a, b in zip(found["alignment"][i], found.stderr("alignment")[i], strict=True)]
        table.add_row(each, *cells)
    CONSOLE.print(table)
    return {
        "names": found.names,
        "alignment": found["alignment"].tolist(),
        "stderr": found.stderr("alignment").tolist(),
        "restarts": restarts,
    }


def speed(rounds: int, folder: Path | None) -> None:
    """Part 4: the published setting, ours and PyTorch's, on the shapes of the issue at hand."""
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
    """Part 5: stability over ten keys, reliability and efficiency of gap and alignment, from equally many gradients.

    A gap between principal gradients that are not resolved is none; how many of the ten are is told.
    """
    names = list(tasks)[:2]
    backbone = jt.backbone(name, tasks[names[0]][0].shape[-1])
    loss = jt.Prototypical(backbone.features, WAYS, SHOTS)
    batches = {each: loss_and_batches("prototypical", backbone, tasks[each])[1] for each in names}
    halves = []

    def gap(seed: int) -> Estimate:
        found = [estimation("prototypical", backbone, tasks[each], seed, symmetry=True) for each in names]
        for each in found:
            each.run(2 * restarts)
        halves.append(found[0].result().split_half)
        return jt.gap(*(each.result() for each in found), form="cosine")

    def alignment(seed: int) -> Estimate:
        found = jt.gradient_alignment(backbone.init, loss, batches, jax.random.key(seed), restarts=restarts)
        return Estimate(float(found["alignment"][0, 1]), float(found.stderr("alignment")[0, 1]))

    record: dict[str, Any] = {"gradients per key": 4 * restarts}
    table = Table("", "resolved", "mean", "sd over keys", "mean standard error", "s per key",
                  title=f"{name}: ten keys, {4 * restarts} gradients each, {' and '.join(names)}")  # fmt: skip
    for label, measure in (("cosine gap", gap), ("alignment", alignment)):
        values, start = [], time.perf_counter()
        for seed in range(10):
            with contextlib.suppress(jt.JaxTransferError):
                values.append(measure(seed))
        seconds = (time.perf_counter() - start) / 10
        resolved = np.array([each for each in values if np.isfinite(each.stderr)])
        told = [None] * 3
        if len(resolved) > 1:
            told = [resolved[:, 0].mean(), resolved[:, 0].std(ddof=1), resolved[:, 1].mean()]
        table.add_row(label, str(len(resolved)), *("" if each is None else f"{each:.3g}" for each in told),
                      f"{seconds:.1f}")  # fmt: skip
        record[label] = {"resolved": len(resolved), "mean": told[0], "sd over keys": told[1], "mean stderr": told[2],
                         "seconds": seconds}  # fmt: skip
    record["split half of the first"] = float(np.mean(halves))
    CONSOLE.print(table, f"split half of {names[0]}: {record['split half of the first']:.2f}")
    return record


def remaining(name: str, tasks: Tasks, restarts: int) -> dict[str, Any]:
    """Part 6: what is left of the noise, from batches and from weights.

    With m networks per batch the noise per restart is V_weights + m V_batches; here for m = 1 and 8.
    """
    task = next(iter(tasks.values()))
    backbone = jt.backbone(name, task[0].shape[-1])
    table = Table("", "from batches", "from weights and heads", title=f"{name}: noise per restart that is left")
    record = {}
    for kind in CONFIGURATIONS:
        best = CONFIGURATIONS[kind][BEST[kind]]
        seen = []
        for per_batch in (1, 8):
            each = estimation(kind, backbone, task, groups=32, restarts_per_batch=per_batch, **best)
            each.run(restarts)
            seen.append(each.result().noise_per_restart)
        batches = (seen[1] - seen[0]) / 7
        record[kind] = {"batches": batches, "weights": seen[0] - batches, "seen": seen}
        table.add_row(f"{kind}, {BEST[kind]}", f"{batches:.3g}", f"{seen[0] - batches:.3g}")
    CONSOLE.print(table)
    return record


def plot(record: Mapping[str, Any], folder: Path, name: str) -> None:
    """Noise per configuration, and the gap against the budget."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [(f"{kind}: {label}", row) for kind, part in record["noise"].items() for label, row in part["rows"].items()
            if label != "PyTorch"]  # fmt: skip
    left.barh([label for label, _ in rows][::-1], [row["restarts_needed"] for _, row in rows][::-1], color="#0072b2")
    left.set(xscale="log", xlabel="restarts to a signal-to-noise of 10", title=name)
    left.tick_params(axis="y", labelsize=7)
    points = record["budget"]["prototypical"]
    for label, colour in (("published", "#d55e00"), ("ours", "#0072b2")):
        some = [(each["restarts"], *each[label]) for each in points if each[label]]
        right.errorbar(
            *zip(*[(x, y) for x, y, _ in some], strict=True), yerr=[e for *_, e in some], color=colour, label=label
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
        "--backbone", nargs="*", default=["conv4", "resnet12"], help="for part 1; the rest uses the first"
    )
    parser.add_argument("--restarts", type=int, default=128, help="per configuration in part 1")
    parser.add_argument("--most", type=int, default=2048, help="restarts in part 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--parts", nargs="*", default=["noise", "budget", "control", "alignment", "properties", "remaining", "speed"]
    )
    parser.add_argument("--out", type=Path, help="folder for JSON files and figures")
    options = parser.parse_args(arguments)
    tasks = folder_tasks(options.data, options.size) if options.data else digits_tasks(options.size)
    source = options.data.name if options.data else "digits"
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
                file = options.out / f"pge_{source}_{name}.json"
                harness.store(
                    record, file, precision="float32", shapes={task: each[0].shape for task, each in tasks.items()}
                )
        if options.out and {"noise", "budget"} <= set(record):
            plot(record, options.out, f"{source}_{name}")
    if "speed" in options.parts:
        speed(options.rounds, options.out)


if __name__ == "__main__":
    main()
