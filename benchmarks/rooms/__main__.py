"""Rooms, from nothing but the world and `settings.toml`.

    python -m benchmarks.rooms sheet       # pictures of rooms and of all labels
    python -m benchmarks.rooms speed       # what an example costs
    python -m benchmarks.rooms train       # encoders for all tasks, into a zoo
    python -m benchmarks.rooms transfer    # how well each of them transfers to every task, into a table
    python -m benchmarks.rooms evaluate    # whether the package's measures say the same, for the encoders that ship

Run from the root of the checkout, after `pip install -e ".[bench]"`. What is trained or measured is not computed again;
examples and checkpoints are kept in `--work`.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.rooms import evaluate, learning, settings, transfer, truth
from benchmarks.rooms.examples import Examples
from benchmarks.rooms.learning import Loss
from benchmarks.rooms.pictures import sheet
from benchmarks.rooms.settings import Settings
from benchmarks.rooms.speed import speed
from benchmarks.rooms.training import Trainer, untrained
from jaxtransfer import rooms
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.files import write_arrays, write_csv
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.rooms.networks import encode, preprocess

CONSOLE = Console()
SCRATCH, RANDOM = "scratch", "random"
_LABELLED = 1000  # examples that gradients are taken on


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _examples(options: argparse.Namespace, split: str, count: int, size: int) -> Examples:
    with _bar(f"rendering {split}") as progress:
        return Examples(options.work / "examples", split, count, size, progress)


def name_of(task: str, seed: int) -> str:
    """Of a network; the first seed has the name of its task."""
    return task if seed == 0 else f"{task}-seed{seed}"


def train(options: argparse.Namespace) -> None:
    """Trains what the zoo does not have, and prints what all networks of the zoo have learned."""
    zoo, chosen = Zoo(options.zoo or options.work / "zoo"), settings.read(options.settings)
    wanted = [(task, seed) for task in options.tasks for seed in range(chosen.training.seeds.get(task, 1))]
    missing = [each for each in wanted if name_of(*each) not in zoo]
    if missing:
        some, others = (
            _examples(options, split, count, chosen.world.size)
            for split, count in (("train", chosen.world.train), ("test", chosen.world.test))
        )
        for name, seed in missing:
            _train_one(zoo, rooms.TASKS[name], seed, some, others, options.work / "training", chosen)
    table = Table("network", "test loss", "prior", "explained", title="What the encoders have learned")
    for task, seed in wanted:
        said = zoo.manifest(name_of(task, seed))["source"]
        loss, error, prior = said["test_loss"], said["test_loss_stderr"], said["prior_loss"]
        table.add_row(name_of(task, seed), f"{loss:.4f} ± {error:.4f}", f"{prior:.4f}", f"{1 - loss / prior:.0%}")
    CONSOLE.print(table)


def _train_one(
    zoo: Zoo, task: rooms.Task, seed: int, some: Examples, others: Examples, work: Path, chosen: Settings
) -> None:
    name, steps = name_of(task.name, seed), chosen.training.steps
    every = chosen.training.every
    prior = learning.prior(task, some, every)
    with _bar(f"training {name}") as progress:
        found = Trainer(task, chosen.training, prior).run(
            seed,
            some,
            others,
            lambda done: progress(done, steps),
            checkpoints=work / name,
            every=chosen.training.checkpoint,
        )
    loss, without = Loss.of(found.losses, found.counts), learning.prior_loss(task, prior, others, every)
    source = {
        "task": task.name,
        "seed": seed,
        "test_loss": loss.value,
        "test_loss_stderr": loss.stderr,
        "prior_loss": without.value,
        "settings": dataclasses.asdict(chosen),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), found.encoder)
    zoo.add(Network(name, encode, half, preprocess(task.name)), source=source)


def measure(options: argparse.Namespace) -> None:
    """Measures what is missing of all transfers, and writes the table of all."""
    zoo, chosen = Zoo(options.zoo or options.work / "zoo"), settings.read(options.settings)
    world, how = chosen.world, chosen.transfer
    train_sets = _examples(options, "target", how.seeds * world.target, world.size)
    held_out = _examples(options, "held-out", world.held_out, world.size)
    folder = options.work / "transfers"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [rooms.TASKS[name] for name in options.tasks]
    targets = {task.name: transfer.Target(task, how, train_sets, held_out) for task in tasks}
    sources = [*(each for each in zoo.names if each in rooms.TASKS), RANDOM]
    wanted = {
        (source, target): folder / f"{target}-{source}.npz" for source in (*sources, SCRATCH) for target in targets
    }
    missing = [file for file in wanted.values() if not file.exists()]
    with _bar("measuring transfers") as progress:

        def keep(file: Path, measured: transfer.Measured) -> None:
            write_arrays(file, measured._asdict())
            missing.remove(file)
            progress(len(wanted) - len(missing), len(wanted))

        for source in sources:
            network = untrained(RANDOM, train_sets) if source == RANDOM else zoo[source]
            for shown in dict.fromkeys(task.input for task in tasks):
                alike = [task for task in tasks if task.input is shown and wanted[source, task.name] in missing]
                if not alike:
                    continue
                few, many = (transfer.represented(network, alike[0], each) for each in (train_sets, held_out))
                for task in alike:
                    keep(wanted[source, task.name], targets[task.name].measure(few, many))
        for task in tasks:
            if (file := wanted[SCRATCH, task.name]) in missing:
                keep(file, _from_scratch(task, targets[task.name].prior, train_sets, held_out, chosen))
    rows, sure = [], []
    for name, target in targets.items():
        losses, counts = {}, np.ones(len(held_out))
        for source in (*sources, SCRATCH):
            with np.load(wanted[source, name]) as kept:
                losses[source], counts = kept["losses"], kept["counts"]
        usable = {source: each[:, counts > 0].astype(np.float64) for source, each in losses.items()}
        rows += _rows(name, usable, learning.prior_loss(target.task, target.prior, held_out, how.every))
        competing = [each for source, each in usable.items() if source in rooms.TASKS and source != name]
        sure.append(truth.significant(np.stack(competing))[np.tril_indices(len(competing), -1)].mean())
    write_csv(options.work / "transfers.csv", [[*rows[0]], *([*row.values()] for row in rows)])
    CONSOLE.print(f"{np.mean(sure):.1%} of (pair of sources, target) have a significant order (95 %).")


def _from_scratch(
    task: rooms.Task, prior: learning.Prior, train_sets: Examples, held_out: Examples, chosen: Settings
) -> transfer.Measured:
    """An encoder and readout that learn from nothing but the small training set."""
    trainer, found = Trainer(task, chosen.transfer, prior), []
    for seed in range(chosen.transfer.seeds):
        some = train_sets.part(seed * chosen.world.target, chosen.world.target)
        found.append(trainer.run(seed, some, held_out, lambda _: None))
    return transfer.Measured(np.stack([each.losses for each in found]), found[0].counts)


def _rows(target: str, losses: dict[str, np.ndarray], prior: Loss) -> list[dict[str, str]]:
    """One row of the table for each source of a target; affinities are of the other tasks' encoders."""
    competing = [source for source in losses if source in rooms.TASKS and source != target]
    rates = truth.win_rates(np.stack([losses[source] for source in competing]))
    affinity = dict(zip(competing, truth.ordinal(rates), strict=True))
    rows = []
    for source, each in losses.items():
        mean, error = truth.standard_errors(each[None])
        rows.append(
            {
                "source": source,
                "target": target,
                "loss": f"{mean[0]:.6f}",
                "stderr": f"{error[0]:.6f}",
                "prior": f"{prior.value:.6f}",
                "affinity": f"{affinity[source]:.6f}" if source in affinity else "",
            }
        )
    return rows


def judge(options: argparse.Namespace) -> None:
    """Holds every measure against the transfers that ship with the package."""
    oracle, chosen = Oracle.rooms(), settings.read(options.settings)
    examples = _examples(options, "labelled", _LABELLED, chosen.world.size)
    images = evaluate.shown(options.photos)
    with _bar("comparing encoders") as progress:
        found = evaluate.measured(options.work, images, progress)
    with _bar("averaging gradients") as progress:
        by_gradients = evaluate.of_gradients(options.work, examples, progress)
    rows = evaluate.score_all(found, by_gradients, oracle)
    evaluate.show_scores(rows, len(oracle.scores) - 1, CONSOLE)
    evaluate.write_scores(rows, options.work / "evaluation.csv")
    for share, value in evaluate.components(oracle).items():
        CONSOLE.print(f"{value:.0%} of the variance of sources' places is {share}.")
    (of_seeds,) = (affinity for (kind, _), affinity in found.items() if kind == "seeds")
    evaluate.show_controls(of_seeds, CONSOLE)
    evaluate.show_variants(images, oracle, CONSOLE)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rooms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("sheet", help="pictures of rooms and of all labels")
    pictures.add_argument("--out", type=Path, required=True, help="beginning of the names of the files")
    pictures.add_argument("--seed", type=int, default=0)
    pictures.add_argument("--size", type=int, default=96)
    pictures.set_defaults(run=lambda options: sheet(options.out, options.seed, options.size))
    timing = commands.add_parser("speed", help="milliseconds an example")
    timing.add_argument("--count", type=int, default=1000)
    timing.add_argument("--size", type=int, default=64)
    timing.set_defaults(run=lambda options: speed(options.count, options.size))
    answer = commands.add_parser("evaluate", help="whether measures predict transfer")
    answer.add_argument("--work", type=Path, default=Path("rooms-work"), help="for what was computed")
    answer.add_argument("--photos", type=Path, help="a folder of real photos, to probe with as well")
    answer.add_argument("--settings", type=Path, default=settings.FILE)
    answer.set_defaults(run=judge)
    for name, run, about in (("train", train, "encoders"), ("transfer", measure, "transfers")):
        command = commands.add_parser(name, help=f"all {about} that are missing")
        command.add_argument("--work", type=Path, default=Path("rooms-work"), help="for examples and checkpoints")
        command.add_argument("--zoo", type=Path, help="of the encoders; default: in --work")
        command.add_argument("--tasks", nargs="+", choices=rooms.TASKS, default=[*rooms.TASKS])
        command.add_argument("--settings", type=Path, default=settings.FILE)
        command.set_defaults(run=run)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
