"""Reproduces everything about Rooms from its renderer and `settings.toml`.

    python -m benchmarks.rooms sheet       # draws rooms and all labels
    python -m benchmarks.rooms speed       # measures the time per example
    python -m benchmarks.rooms train       # trains encoders for all tasks into a zoo
    python -m benchmarks.rooms transfer    # measures the transfer of every encoder to every task
    python -m benchmarks.rooms evaluate    # compares the package's measures with the measured transfer
    python -m benchmarks.rooms labelled    # compares scores of labelled examples with the measured transfer
    python -m benchmarks.rooms protocols   # compares the protocols of transfer, and all measures under each of them
    python -m benchmarks.rooms scores      # takes the results of that into the package: they decide what comes first

Run from the root of the checkout, after `pip install -e ".[bench]"`. Results that exist are not computed again;
examples and checkpoints are kept in the folder `--work`.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.rooms import evaluate, labelled, learning, protocols, scores, settings, transfer, truth
from benchmarks.rooms.examples import Examples
from benchmarks.rooms.learning import Loss
from benchmarks.rooms.pictures import sheet
from benchmarks.rooms.settings import Protocol, Settings
from benchmarks.rooms.speed import speed
from benchmarks.rooms.training import Start, Trainer, untrained
from jaxtransfer import rooms
from jaxtransfer.devices import default_mesh, is_cpu
from jaxtransfer.evaluation import rooms_scores
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.files import read_arrays, write_arrays, write_csv
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.store import chunks
from jaxtransfer.rooms.networks import encode, preprocess

CONSOLE = Console()
SCRATCH, RANDOM = "scratch", "random"
RESULTS = Path(__file__).parents[1] / "results" / "rooms_evaluation.csv"
_GRADIENT_EXAMPLES = 1000


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(description)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _examples(options: argparse.Namespace, split: str, count: int, size: int) -> Examples:
    with _bar(f"rendering {split}") as progress:
        return Examples(options.work / "examples", split, count, size, progress)


def name_of(task: str, seed: int) -> str:
    """Returns the name of a task's encoder; that of seed 0 is the name of the task."""
    return task if seed == 0 else f"{task}-seed{seed}"


def train(options: argparse.Namespace) -> None:
    """Trains the encoders that the zoo lacks, and prints the test losses of all encoders."""
    zoo, chosen = Zoo(options.zoo or options.work / "zoo"), settings.read(options.settings)
    wanted = [(task, seed) for task in options.tasks for seed in range(chosen.training.seeds.get(task, 1))]
    missing = [(task, seed) for task, seed in wanted if name_of(task, seed) not in zoo]
    if missing:
        data = {
            split: _examples(options, split, count, chosen.world.size)
            for split, count in (("train", chosen.world.train), ("test", chosen.world.test))
        }
        for task, seed in missing:
            _train_encoder(zoo, rooms.TASKS[task], seed, data, options.work / "training", chosen)
    table = Table("network", "test loss", "constant prediction", "explained", title="Test losses of the encoders")
    for task, seed in wanted:
        record = zoo.manifest(name_of(task, seed))["source"]
        loss, error, prior = record["test_loss"], record["test_loss_stderr"], record["prior_loss"]
        table.add_row(name_of(task, seed), f"{loss:.4f} ± {error:.4f}", f"{prior:.4f}", f"{1 - loss / prior:.0%}")
    CONSOLE.print(table)


def _train_encoder(
    zoo: Zoo, task: rooms.Task, seed: int, data: dict[str, Examples], work: Path, chosen: Settings
) -> None:
    """Trains an encoder and adds it to the zoo."""
    name, steps = name_of(task.name, seed), chosen.training.steps
    every = chosen.training.every
    prior = learning.prior(task, data["train"], every)
    with _bar(f"training {name}") as progress:
        trained = Trainer(task, chosen.training, prior).run(
            [Start(seed)],
            data["train"],
            data["test"],
            lambda done: progress(done, steps),
            checkpoints=work / name,
            every=chosen.training.checkpoint,
        )
    loss = Loss.of(trained.losses[0], trained.counts)
    prior_loss = learning.prior_loss(task, prior, data["test"], every)
    source = {
        "task": task.name,
        "seed": seed,
        "test_loss": loss.value,
        "test_loss_stderr": loss.stderr,
        "prior_loss": prior_loss.value,
        "settings": dataclasses.asdict(chosen),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    half_precision = jax.tree.map(lambda leaf: leaf.astype(np.float16), trained.encoders[0])
    zoo.add(Network(name, encode, half_precision, preprocess(task.name)), source=source)


def measure(options: argparse.Namespace) -> None:
    """Measures the transfers that are missing, and writes the table of all transfers by a protocol."""
    zoo, chosen = Zoo(options.zoo or options.work / "zoo"), settings.read(options.settings)
    world, protocol = chosen.world, chosen.protocols[options.protocol]
    most = max(other.seeds * other.examples for other in chosen.protocols.values())
    train_sets = _examples(options, "target", most, world.size).part(0, protocol.seeds * protocol.examples)
    held_out = _examples(options, "held-out", world.held_out, world.size)
    folder = options.work / "transfers" / options.protocol
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [rooms.TASKS[name] for name in options.tasks]
    targets = {task.name: transfer.Target(task, protocol, train_sets, held_out) for task in tasks}
    encoders = [name for name in zoo.names if name in rooms.TASKS]
    sources = [*encoders, RANDOM] if protocol.frozen else encoders
    files = {
        (source, target): folder / f"{target}-{source}.npz" for source in (*sources, SCRATCH) for target in targets
    }
    missing = [file for file in files.values() if not file.exists()]
    with _bar("measuring transfers") as progress:

        def save(file: Path, measured: transfer.Measured) -> None:
            write_arrays(file, measured._asdict())
            missing.remove(file)
            progress(len(files) - len(missing), len(files))

        for source in sources if protocol.frozen else ():
            network = untrained(RANDOM, train_sets) if source == RANDOM else zoo[source]
            # Tasks with the same input have the same representations.
            for task_input in dict.fromkeys(task.input for task in tasks):
                same_input = [
                    task for task in tasks if task.input is task_input and files[source, task.name] in missing
                ]
                if not same_input:
                    continue
                few, many = (transfer.represent(network, same_input[0], part) for part in (train_sets, held_out))
                for task in same_input:
                    save(files[source, task.name], targets[task.name].measure(few, many))
        for task in tasks:
            wanted = [SCRATCH] if protocol.frozen else [*sources, SCRATCH]
            own = [source for source in wanted if files[source, task.name] in missing]
            networks = {source: None if source == SCRATCH else zoo[source] for source in own}
            for source, measured in _trained(task, targets[task.name].prior, networks, train_sets, held_out, protocol):
                save(files[source, task.name], measured)
    _write_table(options.work / f"{options.protocol}.csv", targets, (*sources, SCRATCH), files, held_out)


def _write_table(
    table: Path,
    targets: dict[str, transfer.Target],
    sources: Sequence[str],
    files: dict[tuple[str, str], Path],
    held_out: Examples,
) -> None:
    """Writes the table of all transfers, and prints how many orders of sources are significant."""
    rows, significant = [], []
    for name, target in targets.items():
        losses, counts = {}, np.ones(len(held_out))
        for source in sources:
            stored = read_arrays(files[source, name])
            losses[source], counts = stored["losses"], stored["counts"]
        usable = {source: values[:, counts > 0].astype(np.float64) for source, values in losses.items()}
        rows += _rows(name, usable, learning.prior_loss(target.task, target.prior, held_out, target.settings.every))
        competing = [values for source, values in usable.items() if source in rooms.TASKS and source != name]
        significant.append(truth.significant(np.stack(competing))[np.tril_indices(len(competing), -1)].mean())
    write_csv(table, [[*rows[0]], *([*row.values()] for row in rows)])
    CONSOLE.print(
        f"For {np.mean(significant):.1%} of all targets and pairs of sources the order is significant (95 %)."
    )


def _trained(
    task: rooms.Task,
    prior: learning.Prior,
    sources: Mapping[str, Network | None],
    train_sets: Examples,
    held_out: Examples,
    protocol: Protocol,
) -> Iterator[tuple[str, transfer.Measured]]:
    """Trains encoders with their readouts on the small training sets; yields the losses of each source.

    Args:
        task: The target.
        prior: Its best constant prediction.
        sources: Encoders whose weights training starts from; None: fresh weights.
        train_sets: Training sets of all seeds, concatenated.
        held_out: Test examples.
        protocol: How they are trained.
    """
    inputs = {name: task.name if network is None else name for name, network in sources.items()}
    for grey in (False, True):
        names = [name for name in sources if preprocess(inputs[name]).lightness == grey]
        if not names:
            continue
        trainer, losses = Trainer(task, protocol, prior, inputs[names[0]]), list[np.ndarray]()
        starts = [
            Start(seed, seed * protocol.examples, network and network.params)
            for network in map(sources.get, names)
            for seed in range(protocol.seeds)
        ]
        for first, last in chunks(len(starts), 1 if is_cpu(default_mesh()) else len(starts)):
            part = starts[first:last]
            trained = trainer.run(part, train_sets, held_out, lambda _: None, count=protocol.examples)
            losses += [*trained.losses]
            while len(losses) >= protocol.seeds:
                yield names.pop(0), transfer.Measured(np.stack(losses[: protocol.seeds]), trained.counts)
                losses = losses[protocol.seeds :]


def _rows(target: str, losses: dict[str, np.ndarray], prior: Loss) -> list[dict[str, str]]:
    """Returns the rows of the table for a target; only the other tasks' encoders get an affinity."""
    competing = [source for source in losses if source in rooms.TASKS and source != target]
    rates = truth.win_rates(np.stack([losses[source] for source in competing]))
    affinity = dict(zip(competing, truth.ordinal(rates), strict=True))
    rows = []
    for source, values in losses.items():
        mean, error = truth.standard_errors(values[None])
        rows.append(
            {
                "source": source,
                "target": target,
                "loss": f"{mean[0]:.6f}",
                "stderr": f"{error[0]:.6f}",
                "prior": f"{prior.value:.6f}",
                "affinity": f"{affinity[source]:.6f}" if source in affinity else "",
                **{f"loss_seed{seed}": f"{loss:.6f}" for seed, loss in enumerate(values.mean(1))},
            }
        )
    return rows


def evaluate_measures(options: argparse.Namespace) -> None:
    """Compares every measure with the measured transfers that ship with the package."""
    oracle, chosen = Oracle.rooms(), settings.read(options.settings)
    images = evaluate.probe_images(options.photos)
    with _bar("comparing encoders") as progress:
        by_probe = evaluate.measure_networks(options.work, images, progress)
    by_gradients = {}
    if options.gradients:
        examples = _examples(options, "labelled", _GRADIENT_EXAMPLES, chosen.world.size)
        with _bar("averaging gradients") as progress:
            by_gradients = evaluate.measure_gradients(options.work, examples, progress)
    rows = evaluate.score_all(by_probe, by_gradients, oracle)
    evaluate.show_scores(rows, len(oracle.scores) - 1, CONSOLE)
    evaluate.write_scores(rows, options.work / "evaluation.csv")
    for share, value in evaluate.components(oracle).items():
        CONSOLE.print(f"{value:.0%} of the variance of the sources' ranks is {share}.")
    (seeds,) = (measures for (images_name, _), measures in by_probe.items() if images_name == "seeds")
    evaluate.show_controls(seeds, CONSOLE)
    evaluate.show_seeds(seeds, oracle, CONSOLE)
    evaluate.show_choices(images, oracle, CONSOLE)
    evaluate.show_variants(images, oracle, CONSOLE)


def evaluate_scores(options: argparse.Namespace) -> None:
    """Compares the scores of labelled examples with the measured transfers that ship with the package."""
    chosen = settings.read(options.settings)
    examples = _examples(options, "labelled", max(labelled.COUNTS), chosen.world.size)
    with _bar("scoring encoders") as progress:
        matrices = labelled.measure_sources(options.work, examples, progress)
    rows = labelled.score_all(matrices, Oracle.rooms())
    table = Table(*labelled.Row._fields, title="Scores of labelled examples, compared with measured transfer")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    CONSOLE.print(table)
    write_csv(options.work / "labelled.csv", [labelled.Row._fields, *rows])


def compare_protocols(options: argparse.Namespace) -> None:
    """Compares the protocols by which transfer was measured, and all measures under each of them."""
    chosen = settings.read(options.settings)
    examples = _examples(options, "labelled", max(labelled.COUNTS), chosen.world.size)
    with _bar("comparing encoders") as progress:
        rankings = protocols.measure_networks(options.work, progress)
    with _bar("scoring encoders") as progress:
        rankings |= protocols.score_labels(options.work, examples, progress)
    rows = [row for name in rooms.PROTOCOLS for row in protocols.score_all(name, rankings)]
    names = tuple(rooms.TASKS)
    pairs = protocols.agreements({name: scores.truth(Oracle.rooms(name), names) for name in rooms.PROTOCOLS})
    wins = [row for name in rooms.PROTOCOLS for row in protocols.wins(name, rooms.transfers(name))]
    protocols.show_agreements(pairs, CONSOLE)
    protocols.show_wins(wins, CONSOLE)
    protocols.show_measures(rows, CONSOLE)
    for protocol in rooms.PROTOCOLS:
        for share, value in evaluate.components(Oracle.rooms(protocol)).items():
            CONSOLE.print(f"{protocol}: {value:.0%} of the variance of the sources' ranks is {share}.")
    for name, table in {"protocols": rows, "protocol_agreement": pairs, "protocol_wins": wins}.items():
        write_csv(options.work / f"{name}.csv", [table[0]._fields, *table])


def package_scores(options: argparse.Namespace) -> None:
    """Writes the scores of `evaluate` that the package states."""
    scored = evaluate.packaged_scores(options.results)
    header = ["method", *rooms_scores.RoomsScore._fields]
    write_csv(rooms_scores.FILE, [header, *([name, *score] for name, score in scored.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rooms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pictures = commands.add_parser("sheet", help="draw rooms and all labels")
    pictures.add_argument("--out", type=Path, required=True, help="common prefix of the paths of the files")
    pictures.add_argument("--seed", type=int, default=0, help="seed of the rooms")
    pictures.add_argument("--size", type=int, default=96, help="height and width of the images")
    pictures.set_defaults(run=lambda options: sheet(options.out, options.seed, options.size))
    timing = commands.add_parser("speed", help="measure the milliseconds per example")
    timing.add_argument("--count", type=int, default=1000, help="number of examples")
    timing.add_argument("--size", type=int, default=64, help="height and width of the images")
    timing.set_defaults(run=lambda options: speed(options.count, options.size))
    evaluation = commands.add_parser("evaluate", help="compare measures with measured transfer")
    evaluation.add_argument("--work", type=Path, default=Path("rooms-work"), help="folder for intermediate results")
    evaluation.add_argument("--photos", type=Path, help="folder of real photos that are used as probe images too")
    evaluation.add_argument(
        "--gradients", action="store_true", help="measure the tasks' principal gradients too, the slowest part"
    )
    evaluation.add_argument("--settings", type=Path, default=settings.FILE, help="file of all settings")
    evaluation.set_defaults(run=evaluate_measures)
    labels = commands.add_parser("labelled", help="compare scores of labelled examples with measured transfer")
    labels.add_argument("--work", type=Path, default=Path("rooms-work"), help="folder for examples and results")
    labels.add_argument("--settings", type=Path, default=settings.FILE, help="file of all settings")
    labels.set_defaults(run=evaluate_scores)
    comparison = commands.add_parser("protocols", help="compare the protocols of transfer, and measures under each")
    comparison.add_argument("--work", type=Path, default=Path("rooms-work"), help="folder for examples and results")
    comparison.add_argument("--settings", type=Path, default=settings.FILE, help="file of all settings")
    comparison.set_defaults(run=compare_protocols)
    packaging = commands.add_parser("scores", help="take the results of evaluate into the package")
    packaging.add_argument("--results", type=Path, default=RESULTS, help="file that evaluate wrote")
    packaging.set_defaults(run=package_scores)
    for name, run, description in (
        ("train", train, "train the encoders that are missing"),
        ("transfer", measure, "measure the transfers that are missing"),
    ):
        command = commands.add_parser(name, help=description)
        command.add_argument(
            "--work", type=Path, default=Path("rooms-work"), help="folder for examples and checkpoints"
        )
        command.add_argument("--zoo", type=Path, help="zoo of the encoders; default: WORK/zoo")
        command.add_argument(
            "--tasks", nargs="+", choices=rooms.TASKS, default=[*rooms.TASKS], help="tasks; default: all"
        )
        command.add_argument("--settings", type=Path, default=settings.FILE, help="file of all settings")
        command.set_defaults(run=run)
        if run is measure:
            command.add_argument(
                "--protocol",
                choices=rooms.PROTOCOLS,
                default="frozen",
                help="how transfers are measured; default: frozen",
            )
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
