"""The command line: `jaxtransfer`, or `python -m jaxtransfer`."""

import contextlib
import errno
import importlib
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from typer.core import TyperGroup

from jaxtransfer._version import __version__
from jaxtransfer.errors import JaxTransferError, in_words
from jaxtransfer.pge.options import BackboneName, LossName, Measure, PGEOptions

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxtransfer.comparison.affinity import Affinity
    from jaxtransfer.data.probe import Probe
    from jaxtransfer.evaluation.oracle import Oracle
    from jaxtransfer.evaluation.retrieval import Quantity
    from jaxtransfer.runs.affinity import Evaluation
    from jaxtransfer.runs.compare import Comparison
    from jaxtransfer.runs.gradient_results import GradientResults

# Packages that do the work are imported by the commands that need them: `--help` must not wait for JAX.


class _Commands(TyperGroup):
    """All commands; what a user can cause ends in one sentence instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _logged(), warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: _complain(f"Warning: {message}")
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _complain("Interrupted; start the same command again and it goes on where it stopped.")
            raise typer.Exit(130) from None
        except (JaxTransferError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            _complain(f"Error: {in_words(error)}")
        raise typer.Exit(2)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Shows what the library logs, once, whatever other packages made of logging."""
    log, handler = logging.getLogger("jaxtransfer"), _Said(logging.INFO)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
        log.propagate = True


class _Said(logging.Handler):
    """What the library has to say, beside the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        from jaxtransfer.devices import is_first

        if is_first():
            _complain(record.getMessage())


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which of the networks I already have should my new task start from?",
)
_download = typer.Typer(no_args_is_help=True, help="Fetch published networks.")
_convert = typer.Typer(no_args_is_help=True, help="Bring networks into a zoo.")
app.add_typer(_download, name="download")
app.add_typer(_convert, name="convert")


def main() -> None:
    """Runs the command line and ends the process with its exit status."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"jaxtransfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_Zoo = Annotated[Path, typer.Argument(metavar="ZOO", help="Directory of the zoo.")]
_Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS_DIR", help="Directory of the .pth files.")]
_Mesh = Annotated[
    str | None,
    typer.Option(metavar="model=A,data=B", help="How devices share the work.", show_default="all of them as data"),
]
_Distributed = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT,PROCESS/PROCESSES",
        help="Be one of several processes, which all get the same command.",
        show_default="be alone",
    ),
]


def _connected(mesh: str | None, distributed: str | None) -> "Mesh":
    """The devices that two options speak of, once the processes have come together."""
    from jaxtransfer.devices import connect, device_mesh, parse_mesh

    if distributed is not None:
        connect(distributed)
    return device_mesh() if mesh is None else parse_mesh(mesh)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the networks, the images and the results.")] = Path(
        "jaxtransfer-demo"
    ),
) -> None:
    """The whole job on what comes with the package: 22 trained networks, and how well they really transfer."""
    from jaxtransfer.demo import METHOD, run_demo, sentences

    with _progress() as advance:
        found = run_demo(out, command=sys.argv, progress=advance)
    table = Table(
        title=f"The nearest source by {METHOD}, its place in measured transfer,\nand the best source there",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("target", "nearest", "affinity", "place", "best"):
        table.add_column(column, justify="right" if column in ("affinity", "place") else "left", overflow="fold")
    for each in found.choices:
        affinity = f"{each.affinity:.3f} ± {each.stderr:.3f}"
        table.add_row(each.target, each.source, affinity, str(each.place), each.best)
    _print(table)
    for sentence in sentences(found):
        print(sentence)
    print(f"Open {out / 'run' / 'report.html'} in a browser; {out / 'overview.png'} is the picture of it all.")


@_download.command("taskonomy")
def download_taskonomy(
    weights_dir: _Weights,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Where the files are published.")] = None,
) -> None:
    """Download the encoders of the visualpriors release."""
    from jaxtransfer.converters.download import BASE_URL, download

    with _progress("Downloading", DownloadColumn()) as advance:
        files = download(weights_dir, task, base_url=base_url or BASE_URL, on_progress=advance)
    print(f"{len(files)} files are in {weights_dir}.")


@_convert.command("taskonomy")
def convert_taskonomy(weights_dir: _Weights, zoo: _Zoo) -> None:
    """Convert the .pth files of the visualpriors release."""
    with _needs("torch", "torch"):
        from jaxtransfer.converters import taskonomy
        from jaxtransfer.networks.zoo import Zoo

        with _progress("Converting") as advance:
            added = taskonomy.convert(weights_dir, Zoo(zoo), advance)
    print(f"Added to the zoo {zoo}: {', '.join(added) or 'nothing, it had all of them'}.")


@_convert.command("torch")
def convert_torch(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt2", help="A program saved by torch.export.save (.pt2).")],
    zoo: _Zoo,
    name: Annotated[str, typer.Option(help="Name of the network in the zoo.")],
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Subtracted from values in [0, 1].", show_default="ImageNet's")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Divides afterwards.", show_default="ImageNet's")
    ] = None,
) -> None:
    """Convert any torch.export program."""
    scaling = {"mean": _three("--mean", mean), "std": _three("--std", std)}
    with _needs("torch", "torch"):
        from jaxtransfer.converters import torch_export
        from jaxtransfer.networks.zoo import Zoo

        given = {key: value for key, value in scaling.items() if value is not None}
        torch_export.convert(file, Zoo(zoo), name, **given)
    print(f"The zoo {zoo} now has {name}.")


def _import(modules: Sequence[str]) -> None:
    """Imports modules by name, from the current directory too."""
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise JaxTransferError(
                f"--import takes the name of a module, like my_nets for the file my_nets.py, not {name!r}."
            )
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise JaxTransferError(f"The module {name} cannot be imported: it needs {error.name}.") from error
            raise JaxTransferError(f"There is no module {name}, installed or in the directory {here}.") from error
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if "importlib" in place.filename else f" in {place.filename}, line {place.lineno}"
            raise JaxTransferError(
                f"The module {name} cannot be imported{where}: {type(error).__name__}: {' '.join(str(error).split())}."
            ) from error


@app.command()
def affinity(
    zoo: _Zoo,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of probe images.")],
    out: Annotated[Path, typer.Option(help="Run directory: new, or one to go on with.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="saliency, input_x_gradient, epsilon_lrp, or of representations rsa, depara, cka, cka_biased, svcca; "
            "may be repeated.",
            show_default="the first three",
        ),
    ] = None,
    target: Annotated[
        Literal["sum", "random-signs"],
        typer.Option(
            help="What maps are of: the sum of a network's units, or their sum with random signs, for networks that "
            "end in a softmax or a norm."
        ),
    ] = "sum",
    similarity: Annotated[
        Literal["cosine", "correlation"],
        typer.Option(help="Of maps; correlation removes each map's mean over pixels first."),
    ] = "cosine",
    edge_weight: Annotated[float, typer.Option(min=0, help="What edges count beside nodes, for depara.")] = 0.25,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the probe images in pixels.")] = 256,
    limit: Annotated[int | None, typer.Option(help="Use the first so many images.", show_default="all")] = None,
    sketch: Annotated[
        int | None,
        typer.Option(min=1, help="Keep so many numbers of each map, a random projection.", show_default="whole maps"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at a time on each device.", show_default="as many as fit")
    ] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"],
        typer.Option(help="Of the networks' matrix products; bfloat16 is for those of the backward passes alone."),
    ] = "float32",
    points: Annotated[
        str | None,
        typer.Option(
            metavar="DIRECTORY|URL", help="Where points are kept: a directory, gs:// or s3://.", show_default="OUT"
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where an image cannot be used.")] = False,
    import_: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="A module with functions of the zoo, installed or in the current directory; may be repeated. "
            "Nothing else is imported for a zoo.",
            show_default="jaxtransfer alone",
        ),
    ] = None,
    mesh: _Mesh = None,
    distributed: _Distributed = None,
) -> None:
    """Compare all networks of a zoo by what they look at in the probe images."""
    from jaxtransfer.attribution.maps import METHODS
    from jaxtransfer.devices import is_first
    from jaxtransfer.networks.zoo import Zoo
    from jaxtransfer.runs.affinity import run_affinity

    devices = _connected(mesh, distributed)
    _import(import_ or ())
    with _progress("Working on", shown=is_first()) as advance:
        found, probe = run_affinity(
            Zoo(zoo, modules=import_ or ()),
            images,
            out,
            command=sys.argv,
            methods=method or METHODS,
            target="random_signs" if target == "random-signs" else "sum",
            similarity=similarity,
            edge_weight=edge_weight,
            sketch=sketch,
            batch_size=batch_size,
            precision=precision,
            mesh=devices,
            size=size,
            limit=limit,
            strict=strict,
            points=points,
            progress=advance,
        )
    if is_first():
        _print_affinity(found, probe, out)


@app.command()
def rank(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The network to find sources for.")],
    method: Annotated[str | None, typer.Option(help="One of the run's methods.", show_default="all")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Print the best so many.", show_default="all")] = None,
) -> None:
    """Rank the networks of a run as sources for one of them."""
    from jaxtransfer.evaluation.confidence import certain_ranking
    from jaxtransfer.runs.affinity import load_run

    found = load_run(run)
    target = _known(target, found.names)
    for each in found.methods if method is None else (method,):
        gaps = each == "gap"  # stand negated in an affinity
        digits = (".4g", ".2g") if gaps else (".4f", ".4f")
        drawn = "restarts" if each in ("gap", "alignment") else "images"
        nearer = " (smaller is nearer)" if gaps else ""
        table = Table(title=f"Sources for {target} by {each}{nearer}", title_justify="left")
        table.add_column("source", overflow="fold")
        table.add_column("affinity" if drawn == "images" else each, justify="right")
        table.add_column("standard error", justify="right")
        table.add_column("above the next", justify="right")
        table.add_column(f"more {drawn}", justify="right")
        ranked = certain_ranking(found, target, method=each)[:top]
        for source, value, error, above, more in ranked:
            sure = ["" if above is None else f"{above:.0%}", "" if more is None else str(more)]
            table.add_row(source, f"{-value if gaps else value:{digits[0]}}", f"{error:{digits[1]}}", *sure)
        _print(table)
    _print_faults(found.faults)
    print("Above the next: how probable that order is; about so many more, like those there are, would make it 95 %.")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    oracle: Annotated[
        str, typer.Option(help="taskonomy, rooms, or a CSV file: rows source,target,score, or sources x targets.")
    ] = "taskonomy",
    method: Annotated[
        list[str] | None, typer.Option(help="One of the run's methods; may be repeated.", show_default="all")
    ] = None,
    relevant: Annotated[int, typer.Option(min=1, help="How many of a target's sources are relevant.")] = 5,
) -> None:
    """Compare a run's rankings with measured transfer."""
    from jaxtransfer.runs.affinity import evaluate_run

    measured = _oracle(oracle)
    found = evaluate_run(run, measured, relevant=relevant, methods=method)
    _print_evaluation(found, measured, run)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path, typer.Option(help="Directory for the tables and figures.")],
    oracle: Annotated[
        str | None,
        typer.Option(help="taskonomy, rooms, or a CSV file: rows source,target,score, or sources x targets."),
    ] = None,
    relevant: Annotated[int, typer.Option(min=1, help="How many of a target's sources are relevant.")] = 5,
) -> None:
    """Set runs side by side: other methods, other probe images, other measures."""
    from jaxtransfer.runs.compare import compare_runs

    measured = None if oracle is None else _oracle(oracle)
    found, evaluations = compare_runs(runs, out, oracle=measured, relevant=relevant)
    _print_comparison(found)
    if measured is not None:
        _print_evaluation(evaluations, measured, out)
    print(f"Agreements, disagreements and figures are in {out}.")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    oracle: Annotated[
        str | None,
        typer.Option(help="taskonomy, rooms or a CSV file, as for evaluate; adds curves.", show_default="no curves"),
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="taskonomy, rooms, or a CSV file: rows name,group.", show_default="no groups")
    ] = None,
    relevant: Annotated[int, typer.Option(min=1, help="How many of a target's sources are relevant.")] = 5,
) -> None:
    """Write one page that shows a run, and its figures as files."""
    from jaxtransfer.evaluation.groups import load_groups, rooms_groups, taskonomy_groups
    from jaxtransfer.report.page import write_report

    built_in = {"taskonomy": taskonomy_groups, "rooms": rooms_groups}
    with _progress("Drawing") as advance:
        page = write_report(
            run,
            oracle=None if oracle is None else _oracle(oracle),
            groups=None if groups is None else built_in[groups]() if groups in built_in else load_groups(groups),
            relevant=relevant,
            progress=advance,
        )
    print(f"Open {page} in a browser; the figures are in {page.parent / 'figures'} as PNG and SVG.")


@app.command()
def pge(
    tasks: Annotated[
        list[Path],
        typer.Argument(
            metavar="TASKS...",
            help="A folder that holds a folder for each dataset, with a folder of images for each class; .npz files "
            "with x (images) and y (labels); or a .toml file that names datasets.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory: new, or one to resume.")],
    measure: Annotated[
        Measure,
        typer.Option(
            help="What is compared: gap, the distance of expected gradients, or alignment, their cosine at the same "
            "fresh weights."
        ),
    ] = PGEOptions.measure,
    backbone: Annotated[
        BackboneName, typer.Option(help="Network whose freshly initialised weights the gradients are taken at.")
    ] = PGEOptions.backbone,
    size: Annotated[
        int, typer.Option(min=1, help="Height and width in pixels to which images are resized.")
    ] = PGEOptions.size,
    loss: Annotated[
        LossName | None,
        typer.Option(
            help="Loss whose gradient is taken; random-head is for classes too, and its expected gradient does not "
            "depend on the labels.",
            show_default="prototypical for classes, else squared-error",
        ),
    ] = PGEOptions.loss,
    form: Annotated[
        Literal["pge", "normalized", "cosine"],
        typer.Option(help="Form of the gap; all forms are computed from the same gradients."),
    ] = PGEOptions.form,
    restarts: Annotated[
        str,
        typer.Option(
            metavar="N|auto", help="Number of times that weights are drawn; auto: until the tolerance is reached."
        ),
    ] = str(PGEOptions.restarts),
    tolerance: Annotated[float, typer.Option(help="Signal-to-noise at which auto stops.")] = PGEOptions.tolerance,
    cap: Annotated[int, typer.Option(help="Number of restarts at which auto gives up.")] = PGEOptions.cap,
    ways: Annotated[int, typer.Option(help="Classes in an episode.")] = PGEOptions.ways,
    shots: Annotated[
        int, typer.Option(help="Support images per class, whose mean features are the class's prototype.")
    ] = PGEOptions.shots,
    queries: Annotated[int, typer.Option(help="Query images per class.")] = PGEOptions.queries,
    batch_size: Annotated[
        int, typer.Option(help="Images in a batch, for losses with a random head.")
    ] = PGEOptions.batch_size,
    heads: Annotated[
        int | None, typer.Option(help="Pairs of mirrored heads, for losses with a random head.", show_default="16")
    ] = PGEOptions.heads,
    symmetry: Annotated[bool, typer.Option(help="Average gradients over exchangeable units.")] = PGEOptions.symmetry,
    control: Annotated[
        bool,
        typer.Option(help="Repeat with permuted labels, to test whether the gradients depend on the labels."),
    ] = PGEOptions.control,
    limit: Annotated[
        int | None, typer.Option(help="Largest number of images to use of each dataset.", show_default="all")
    ] = PGEOptions.limit,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = PGEOptions.seed,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where an image cannot be used.")] = False,
    mesh: _Mesh = None,
    distributed: _Distributed = None,
) -> None:
    """Compare tasks by their gradients at freshly initialised weights (principal gradients)."""
    if restarts != "auto" and not restarts.isdecimal():
        raise JaxTransferError(f"--restarts takes a number or auto, not {restarts!r}.")
    from jaxtransfer.devices import is_first, synchronised
    from jaxtransfer.runs.principal_gradients import run_pge

    devices = _connected(mesh, distributed)
    with synchronised():
        options = PGEOptions(
            measure=measure,
            backbone=backbone,
            size=size,
            loss=loss,
            form=form,
            restarts="auto" if restarts == "auto" else int(restarts),
            tolerance=tolerance,
            cap=cap,
            ways=ways,
            shots=shots,
            queries=queries,
            batch_size=batch_size,
            heads=heads,
            symmetry=symmetry,
            control=control,
            limit=limit,
            seed=seed,
        )
    with _progress("Restarts of", shown=is_first()) as advance:
        results = run_pge(tasks, out, options, command=sys.argv, strict=strict, mesh=devices, progress=advance)
    if is_first():
        _print_gradient_results(results, out)


def _oracle(name: str) -> "Oracle":
    from jaxtransfer.evaluation.oracle import Oracle

    built_in = {"taskonomy": Oracle.taskonomy, "rooms": Oracle.rooms}
    return built_in[name]() if name in built_in else Oracle.load(name)


def _known(target: str, names: Sequence[str]) -> str:
    """`target`, or its other name where it is a task of Taskonomy."""
    from jaxtransfer.taskonomy.tasks import task_name

    with contextlib.suppress(JaxTransferError):
        if task_name(target) in names:
            return task_name(target)
    return target


def _print_affinity(found: "Affinity", probe: "Probe", out: Path) -> None:
    """The best source of every target, what was left out, and where the files are."""
    table = Table("target", title="Best source (affinity ± standard error)", title_justify="left")
    for method in found.methods:
        table.add_column(method, overflow="fold")
    for target in found.names:
        best = [found.rank(target, method=method)[0] for method in found.methods]
        table.add_row(target, *(f"{name}\n{value:.3f} ± {error:.3f}" for name, value, error in best))
    _print(table)
    _print_faults(found.faults)
    print(f"{len(probe.names)} images were used and {len(probe.skipped)} files skipped.")
    for name, reason in probe.skipped[:5]:
        print(f"  skipped {name}: {reason}")
    if len(probe.skipped) > 5:
        print(f"  and {len(probe.skipped) - 5} more, all in {out / 'run.json'}")
    for method in found.methods:
        if found.unusable[method]:
            print(
                f"{len(found.unusable[method])} maps of {method} were zero or not finite and are left out "
                f"(listed in {out / 'run.json'})."
            )
    print(f"Matrices, heat maps and points are in {out}; `jaxtransfer rank {out} TARGET` prints a ranking.")


def _print_evaluation(found: "Mapping[str, Evaluation]", oracle: "Oracle", run: Path) -> None:
    """Precision and recall beside a random order's, mean rank correlations, and what was scored."""
    curves = [each.curve for each in found.values()]
    most = len(curves[0].hits)
    wanted: list[tuple[Quantity, int]] = [("precision", 1), ("precision", 5), ("recall", 10)]
    columns = [each for each in wanted if each[1] <= most]
    table = Table(title=f"Against {oracle.name}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold", min_width=min(max(map(len, found)), 20))
    for column in (*(f"{quantity[0].upper()}@{k}" for quantity, k in columns), "Spearman", "Kendall"):
        table.add_column(column, justify="right")
    for method, each in found.items():
        shares = []
        for quantity, k in columns:
            share, band = each.shares(quantity, k)
            shares.append(f"{share:.3f}" if band is None else f"{share:.3f}\n{band[0]:.2f}-{band[1]:.2f}")
        means = [each.mean_correlation(name) for name in ("spearman", "kendall")]
        table.add_row(method, *shares, *("unknown" if math.isnan(mean) else f"{mean:.3f}" for mean in means))
    chance = [f"{getattr(curves[0], f'random_{quantity}')[k - 1]:.3f}" for quantity, k in columns]
    table.add_row("random", *chance, *["0.000"] * 2)
    _print(table)
    if any(each.bands.networks is not None for each in found.values()):
        print("Below each share: where it would lie for other networks and images like these, at 95 %.")
    if curves[0].random_hits[0] == curves[0].seen[0]:
        print("Every source counts as relevant, so any order is perfect: ask for fewer with --relevant.")
    missing = [target for target in oracle.scores if target not in map(oracle.own_name, curves[0].targets)]
    print(f"{len(curves[0].targets)} of the oracle's {len(oracle.scores)} targets were scored.")
    if missing:
        print(f"  not in this run, or with fewer than two of its sources: {', '.join(missing)}")
    print(f"Curves, and the correlations of every target, are in {run} (evaluation.csv, .png and _by_target.csv).")


def _print_comparison(found: "Comparison") -> None:
    """How far rankings agree, and where they do not."""
    table = Table(title=f"Agreement over {len(found.names)} networks", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("one", "other"):
        table.add_column(column, overflow="fold")
    for column in ("rankings", "matrices", "p"):
        table.add_column(column, justify="right")
    for pair, each in sorted(found.agreements.items(), key=lambda item: -item[1].rank_correlation):
        table.add_row(*pair, *(f"{value:z.3f}" for value in each[:2]), f"{each.p_value:.4f}")
    _print(table)
    table = Table(title="Where they disagree most", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("target", "source", "nearest", "farthest"):
        table.add_column(column, overflow="fold")
    for each in found.disagreements[:8]:
        places = [
            f"{place} by {found.labels[each.places.index(place)]}" for place in (min(each.places), max(each.places))
        ]
        table.add_row(each.target, each.source, *places)
    _print(table)


def _print_gradient_results(found: "GradientResults", out: Path) -> None:
    """The best sources of every target, what they rest on, what was left out, and where the files are."""
    nearer = "smaller is nearer" if found.measure == "gap" else "larger is nearer"
    print(f"Best sources ({found.measure} ± standard error, {nearer})")
    table = Table("target", box=box.SIMPLE_HEAD)
    places = ("first", "second", "third")[: len(found.names) - 1]
    for column in places:
        table.add_column(column, overflow="fold")
    for column in ("restarts", "signal-to-noise"):
        table.add_column(column, justify="right")
    for target, row in zip(found.names, found.control, strict=True):
        best = [f"{name}\n{value:.3g} ± {error:.2g}" for name, value, error in found.rank(target)]
        shown = [*best, *[""] * len(places)][: len(places)]
        table.add_row(target, *shown, str(row["restarts"]), f"{row['signal_to_noise']:.3g}")
    _print(table)
    for sentence in found.remarks:
        print(sentence)
    for task in found.tasks:
        for name, reason in task.skipped[:3]:
            print(f"{task.name}: skipped {name}: {reason}")
        if len(task.skipped) > 3:
            print(f"{task.name}: and {len(task.skipped) - 3} more, all in {out / 'run.json'}")
        if task.left_out:
            small = ", ".join(f"{name} ({count})" for name, count in task.left_out[:5])
            more = ", ..." if len(task.left_out) > 5 else ""
            print(f"{task.name}: classes with too few images were left out, {len(task.left_out)}: {small}{more}")
    print(f"Matrices, ranking, control and heat map are in {out}.")


def _print_faults(faults: "Mapping[str, Sequence[str]]") -> None:
    """One marked line for each fault, with the networks that have it."""
    from jaxtransfer.attribution.diagnostics import in_sentences

    for sentence in in_sentences(faults):
        print(f"!! {sentence}")


def _print(table: Table) -> None:
    # Where nobody sets a width, in a file or a pipe, nothing is to be cut off.
    console = Console()
    console.print(table, width=None if console.is_terminal else 10_000)


@contextlib.contextmanager
def _progress(action: str = "", amount: ProgressColumn | None = None, *, shown: bool = True) -> Iterator[Any]:
    """A progress bar on stderr, as a function of work done, work to do and the name of what is at hand."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount or MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )
    with bar:
        row = bar.add_task(action, total=None)
        yield lambda done, total, name: bar.update(row, completed=done, total=total, description=f"{action} {name}")


@contextlib.contextmanager
def _needs(extra: str, *packages: str) -> Iterator[None]:
    """Says which extra to install where one of its packages is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(packages):
            raise
        raise JaxTransferError(
            f'The package {error.name} is missing; install it with: pip install "jaxtransfer[{extra}]"'
        ) from error


def _three(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of red, green and blue in `text`."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        numbers = tuple(float(part) for part in text.split(","))
        if len(numbers) == 3:
            return numbers
    raise JaxTransferError(f"{option} takes three numbers, like 0.485,0.456,0.406, not {text!r}.")


def _complain(sentence: str) -> None:
    print(sentence, file=sys.stderr)
