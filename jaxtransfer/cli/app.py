"""The command line: `jaxtransfer`, or `python -m jaxtransfer`."""

import errno
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import DownloadColumn
from typer.core import TyperGroup

from jaxtransfer._version import __version__
from jaxtransfer.cli.arguments import (
    connect_devices,
    import_modules,
    load_groups,
    load_oracle,
    parse_rgb,
    resolve_task_name,
)
from jaxtransfer.cli.console import logging_to_console, print_error, progress_bar, require_extra
from jaxtransfer.cli.tables import (
    print_affinity,
    print_comparison,
    print_demo,
    print_evaluation,
    print_gradient_results,
    print_rankings,
)
from jaxtransfer.errors import JaxTransferError, in_words

# Packages that do the work are imported by the commands that need them: `--help` must not wait for JAX.


class _Commands(TyperGroup):
    """All commands; what a user can cause ends in one sentence instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with logging_to_console(), warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: print_error(f"Warning: {message}")
                return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("Interrupted; start the same command again and it goes on where it stopped.")
            raise typer.Exit(130) from None
        except (JaxTransferError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            print_error(f"Error: {in_words(error)}")
        raise typer.Exit(2)


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the networks, the images and the results.")] = Path(
        "jaxtransfer-demo"
    ),
) -> None:
    """The whole job on what comes with the package: 22 trained networks, and how well they really transfer."""
    from jaxtransfer.demo import run_demo

    with progress_bar() as advance:
        result = run_demo(out, command=sys.argv, progress=advance)
    print_demo(result)
    print(f"Open {out / 'run' / 'report.html'} in a browser; {out / 'overview.png'} shows all of it in one picture.")


@_download.command("taskonomy")
def download_taskonomy(
    weights_dir: _Weights,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Where the files are published.")] = None,
) -> None:
    """Download the encoders of the visualpriors release."""
    from jaxtransfer.converters.download import BASE_URL, download

    with progress_bar("Downloading", DownloadColumn()) as advance:
        files = download(weights_dir, task, base_url=base_url or BASE_URL, on_progress=advance)
    print(f"{len(files)} files are in {weights_dir}.")


@_convert.command("taskonomy")
def convert_taskonomy(weights_dir: _Weights, zoo: _Zoo) -> None:
    """Convert the .pth files of the visualpriors release."""
    with require_extra("torch", "torch"):
        from jaxtransfer.converters import taskonomy
        from jaxtransfer.networks.zoo import Zoo

        with progress_bar("Converting") as advance:
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
    scaling = {"mean": parse_rgb("--mean", mean), "std": parse_rgb("--std", std)}
    with require_extra("torch", "torch"):
        from jaxtransfer.converters import torch_export
        from jaxtransfer.networks.zoo import Zoo

        given = {key: value for key, value in scaling.items() if value is not None}
        torch_export.convert(file, Zoo(zoo), name, **given)
    print(f"The zoo {zoo} now has {name}.")


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

    devices = connect_devices(mesh, distributed)
    import_modules(import_ or ())
    with progress_bar("Working on", shown=is_first()) as advance:
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
        print_affinity(found, probe, out)


@app.command()
def rank(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The network to find sources for.")],
    method: Annotated[str | None, typer.Option(help="One of the run's methods.", show_default="all")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Print the best so many.", show_default="all")] = None,
) -> None:
    """Rank the networks of a run as sources for one of them."""
    from jaxtransfer.runs.affinity import load_run

    affinity = load_run(run)
    target = resolve_task_name(target, affinity.names)
    print_rankings(affinity, target, affinity.methods if method is None else (method,), top)


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

    measured = load_oracle(oracle)
    found = evaluate_run(run, measured, relevant=relevant, methods=method)
    print_evaluation(found, measured, run)


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

    measured = None if oracle is None else load_oracle(oracle)
    found, evaluations = compare_runs(runs, out, oracle=measured, relevant=relevant)
    print_comparison(found)
    if measured is not None:
        print_evaluation(evaluations, measured, out)
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
    from jaxtransfer.report import write_report

    with progress_bar("Drawing") as advance:
        page = write_report(
            run,
            oracle=None if oracle is None else load_oracle(oracle),
            groups=None if groups is None else load_groups(groups),
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
            help="A folder with a folder for each dataset and class folders of images in it, .npz files with x and y, "
            "or a .toml file that names datasets.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory: new, or one to go on with.")],
    measure: Annotated[
        Literal["gap", "alignment"],
        typer.Option(help="Between expected gradients, or of gradients at the same fresh weights."),
    ] = "gap",
    backbone: Annotated[
        Literal["conv4", "resnet12", "resnet18", "resnet50"], typer.Option(help="The network that is drawn afresh.")
    ] = "conv4",
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 32,
    loss: Annotated[
        Literal["prototypical", "random-head", "squared-error"] | None,
        typer.Option(help="What the gradient is of.", show_default="prototypical for classes, else squared-error"),
    ] = None,
    form: Annotated[
        Literal["pge", "normalized", "cosine"], typer.Option(help="Which gap; all see one gradient.")
    ] = "pge",
    restarts: Annotated[
        str, typer.Option(metavar="N|auto", help="How often weights are drawn; auto: until resolved.")
    ] = "auto",
    tolerance: Annotated[float, typer.Option(help="Signal-to-noise at which auto stops.")] = 10,
    cap: Annotated[int, typer.Option(help="Restarts at which auto gives up.")] = 100_000,
    ways: Annotated[int, typer.Option(help="Classes in an episode.")] = 5,
    shots: Annotated[int, typer.Option(help="Images a class that make its prototype.")] = 5,
    queries: Annotated[int, typer.Option(help="Images a class that are to be told.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Images in a batch, where the loss has a random head.")] = 64,
    heads: Annotated[
        int | None, typer.Option(help="Pairs of mirrored heads, where the loss has a random head.", show_default="16")
    ] = None,
    symmetry: Annotated[bool, typer.Option(help="Average gradients over exchangeable units.")] = True,
    control: Annotated[
        bool, typer.Option(help="Do the same with permuted labels, to see whether they are read.")
    ] = True,
    limit: Annotated[
        int | None, typer.Option(help="Use at most so many images of each dataset.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(help="For all that is drawn.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where an image cannot be used.")] = False,
    mesh: _Mesh = None,
    distributed: _Distributed = None,
) -> None:
    """Compare tasks by how they pull freshly drawn weights (principal gradients)."""
    if restarts != "auto" and not restarts.isdecimal():
        raise JaxTransferError(f"--restarts takes a number or auto, not {restarts!r}.")
    from jaxtransfer.devices import is_first
    from jaxtransfer.runs.principal_gradients import run_pge

    devices = connect_devices(mesh, distributed)
    with progress_bar("Restarts of", shown=is_first()) as advance:
        found = run_pge(
            tasks,
            out,
            command=sys.argv,
            measure=measure,
            network=backbone,
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
            strict=strict,
            mesh=devices,
            progress=advance,
        )
    if is_first():
        print_gradient_results(found, out)
