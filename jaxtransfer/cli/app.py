"""The command line: `jaxtransfer`, or `python -m jaxtransfer`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import DownloadColumn

from jaxtransfer._version import __version__
from jaxtransfer.cli.arguments import (
    connect_devices,
    import_modules,
    load_groups,
    load_oracle,
    resolve_task_name,
)
from jaxtransfer.cli.console import print_line, progress_bar
from jaxtransfer.cli.convert import convert
from jaxtransfer.cli.ending import Commands, end_on_signals
from jaxtransfer.cli.options import Import as _Import
from jaxtransfer.cli.options import WeightsDir as _Weights
from jaxtransfer.cli.options import ZooDir as _Zoo
from jaxtransfer.cli.tables import (
    print_affinity,
    print_comparison,
    print_demo,
    print_evaluation,
    print_gradient_results,
    print_rankings,
    print_scores,
    print_transfers,
)
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.defaults import MAX_SIDE, PROBE_SIZE, RELEVANT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.options import BackboneName, GradientMeasure, LossName, PGEOptions
from jaxtransfer.scores.options import ScoreOptions
from jaxtransfer.training.options import TransferOptions

# Packages that do the work are imported by the commands that need them: `--help` must not wait for JAX.

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which of the networks I already have should my new task start from?\n\nCompares trained networks, or "
    "labelled tasks, and ranks them as sources for transfer.",
)
_download = typer.Typer(no_args_is_help=True, help="Download published networks.")
app.add_typer(_download, name="download")
app.add_typer(convert, name="convert")


def main() -> None:
    """Runs the command line and ends the process with its exit status."""
    os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}  # figures do not depend on the user's settings
    end_on_signals()
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"jaxtransfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_Run = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]
_Out = Annotated[Path, typer.Option(help="Run directory: a new one, or that of a run to resume.")]
_Strict = Annotated[bool, typer.Option("--strict", help="Fail if an image cannot be used, instead of skipping it.")]
_Tasks = Annotated[
    list[Path],
    typer.Argument(
        metavar="TASKS...",
        help="A folder that holds a folder for each dataset, with a folder of images for each class; one such "
        "dataset; tables of labels (.csv); .npz files with x (images) and y (labels); or a .toml file that names "
        "datasets.",
    ),
]
_Size = Annotated[
    int, typer.Option(min=1, max=MAX_SIDE, help="Height and width in pixels to which images are resized.")
]
_Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Most images to use of each task.", show_default="all")
]
_BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images in a batch on each device.", show_default="what fits in memory")
]
_Precision = Annotated[
    Literal["float32", "tf32", "bfloat16"],
    typer.Option(help="Precision of matrix products in the networks; bfloat16 applies to backward passes only."),
]
_Relevant = Annotated[
    int, typer.Option(min=1, help="Number of each target's best measured sources that count as relevant.")
]
_ORACLE_HELP = (
    "Measured transfer: taskonomy, taskonomy-gain, taskonomy-quality, rooms, rooms-larger-readout, rooms-finetuned, "
    "wild, medmnist, hear, or a CSV file (rows source,target,score and perhaps stderr, or a table of sources x "
    "targets)."
)
_Mesh = Annotated[
    str | None,
    typer.Option(
        metavar="model=A,data=B",
        help="Device mesh: A devices share the networks (pge: datasets), B devices the images (pge: restarts).",
        show_default="all devices as data",
    ),
]
_Distributed = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT,PROCESS/PROCESSES",
        help="Run as one of several processes, which must all be given the same command.",
        show_default="a single process",
    ),
]


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Directory for networks, images and results; an unfinished demo is resumed.")
    ] = Path("jaxtransfer-demo"),
) -> None:
    """Say which of the 22 trained networks of the package to start from for each other, and how good the choice is."""
    from jaxtransfer.demo import run_demo

    with progress_bar() as advance:
        result = run_demo(out, command=sys.argv, progress=advance)
    print_demo(result)
    print_line(f"Open {out / 'run' / 'report.html'} in a browser, or {out / 'overview.png'}.")


@_download.command("taskonomy")
def download_taskonomy(
    weights_dir: _Weights,
    task: Annotated[
        list[str] | None, typer.Option(help="A task to download; may be repeated.", show_default="all")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="URL of the folder with the files.", show_default="that of the release")
    ] = None,
) -> None:
    """Download the encoders of the visualpriors release."""
    from jaxtransfer.converters.download import BASE_URL, download

    with progress_bar("Downloading", DownloadColumn()) as advance:
        files = download(weights_dir, task, base_url=base_url or BASE_URL, on_progress=advance)
    print_line(f"{len(files)} files are in {weights_dir}.")


@app.command()
def affinity(
    zoo: _Zoo,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of probe images.")],
    out: _Out,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Representations: linear_predictivity, which predicts transfer best on Rooms, rsa, depara, cka, "
            "cka_biased, svcca, rsa_raw, rsa_zscored, dds_cosine, dds_pearson, dds_laplacian, dds_rbf, mutual_knn, "
            "procrustes, cka_places. Attribution maps: saliency, input_x_gradient and epsilon_lrp, which paper stands "
            "for (Song et al., NeurIPS 2019), unit_saliency, integrated_gradients, modelgif. May be repeated.",
            show_default="linear_predictivity and paper",
        ),
    ] = None,
    target: Annotated[
        Literal["sum", "random-signs", "spatial-maximum"],
        typer.Option(
            help="The scalar that maps explain: the sum of a network's outputs; their sum with random signs, which "
            "networks that end in a softmax or a norm need; or the sum of every channel's largest value."
        ),
    ] = AffinityOptions.target,  # pyright: ignore[reportArgumentType]
    similarity: Annotated[
        Literal["cosine", "correlation"],
        typer.Option(help="How two maps are compared; correlation is the cosine after each map's mean is subtracted."),
    ] = AffinityOptions.similarity,
    edge_weight: Annotated[
        float, typer.Option(min=0, help="For depara: the weight of edges; that of nodes is 1.")
    ] = AffinityOptions.edge_weight,
    size: Annotated[
        int, typer.Option(min=1, max=MAX_SIDE, help="Height and width of the probe images in pixels.")
    ] = PROBE_SIZE,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Use only the first N images.", show_default="all")
    ] = None,
    sketch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep a random projection of each map to N numbers instead of the map.",
            show_default="whole maps",
        ),
    ] = AffinityOptions.sketch,
    batch_size: _BatchSize = None,
    precision: _Precision = AffinityOptions.precision,
    points: Annotated[
        str | None,
        typer.Option(
            metavar="DIRECTORY|URL",
            help="Where maps and representations are stored: a directory, gs:// or s3://.",
            show_default="OUT",
        ),
    ] = None,
    strict: _Strict = False,
    import_: _Import = None,
    mesh: _Mesh = None,
    distributed: _Distributed = None,
) -> None:
    """Compare all networks of a zoo by their representations of the same probe images, and by attribution maps."""
    from jaxtransfer.devices import is_first, synchronised
    from jaxtransfer.networks.zoo import Zoo
    from jaxtransfer.runs.affinity import run_affinity

    devices = connect_devices(mesh, distributed)
    import_modules(import_ or ())
    with synchronised():
        options = AffinityOptions(
            methods=method or AffinityOptions.methods,
            target=target.replace("-", "_"),  # pyright: ignore[reportArgumentType]
            similarity=similarity,
            edge_weight=edge_weight,
            sketch=sketch,
            precision=precision,
        )
    with progress_bar("Working on", shown=is_first()) as advance:
        result, probe = run_affinity(
            Zoo(zoo, modules=import_ or ()),
            images,
            out,
            options,
            command=sys.argv,
            batch_size=batch_size,
            mesh=devices,
            size=size,
            limit=limit,
            strict=strict,
            points=points,
            progress=advance,
        )
    if is_first():
        print_affinity(result, probe, out)


@app.command()
def score(
    zoo: _Zoo,
    tasks: _Tasks,
    out: _Out,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="A measure, such as ridge, logistic, knn or logme, or all; may be repeated.", show_default="ridge"
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="An output of the networks whose features are used; may be repeated.", show_default="all but heads"
        ),
    ] = None,
    size: _Size = PROBE_SIZE,
    limit: _Limit = None,
    batch_size: _BatchSize = None,
    precision: _Precision = ScoreOptions.precision,
    strict: _Strict = False,
    import_: _Import = None,
    mesh: _Mesh = None,
    distributed: _Distributed = None,
) -> None:
    """Score all networks of a zoo as starting points for labelled tasks."""
    from jaxtransfer.devices import is_first, synchronised
    from jaxtransfer.networks.zoo import Zoo
    from jaxtransfer.runs.score import run_score

    devices = connect_devices(mesh, distributed)
    import_modules(import_ or ())
    with synchronised():
        options = ScoreOptions(measures=measure or ScoreOptions.measures, layers=layer or None, precision=precision)
    with progress_bar("Working on", shown=is_first()) as advance:
        scores, read = run_score(
            Zoo(zoo, modules=import_ or ()),
            tasks,
            out,
            options,
            command=sys.argv,
            size=size,
            limit=limit,
            strict=strict,
            batch_size=batch_size,
            mesh=devices,
            progress=advance,
        )
    if is_first():
        print_scores(scores, read, out)


@app.command()
def transfer(
    zoo: _Zoo,
    tasks: _Tasks,
    out: _Out,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Measure the K best networks for each task only; needs --scores.",
            show_default="all networks",
        ),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(metavar="SCORE_RUN", help="Directory of a finished run of `jaxtransfer score`.")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="The measure of SCORE_RUN that says which are best.", show_default="its first")
    ] = None,
    protocol: Annotated[
        Literal["frozen", "finetune"],
        typer.Option(help="Train a linear readout on frozen features, or all weights from those of the network."),
    ] = TransferOptions.protocol,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of trainings for each fold and learning rate.")
    ] = TransferOptions.seeds,
    folds: Annotated[int, typer.Option(min=3, help="Folds of the cross-validation.")] = TransferOptions.folds,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of a training.", show_default="the protocol's")
    ] = TransferOptions.steps,
    size: _Size = PROBE_SIZE,
    limit: _Limit = None,
    strict: _Strict = False,
    import_: _Import = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="model=A,data=B",
            help="Device mesh: its A x B devices share the trainings.",
            show_default="all devices",
        ),
    ] = None,
) -> None:
    """Measure the transfer of networks to labelled tasks, by training on them."""
    from jaxtransfer.networks.zoo import Zoo
    from jaxtransfer.runs.transfer import run_transfer

    devices = connect_devices(mesh, None)
    import_modules(import_ or ())
    collection = Zoo(zoo, modules=import_ or ())
    with progress_bar("Training") as advance:
        transfers, read = run_transfer(
            collection,
            tasks,
            out,
            TransferOptions(protocol=protocol, seeds=seeds, folds=folds, steps=steps),
            command=sys.argv,
            scores=scores,
            top=top,
            measure=measure,
            size=size,
            limit=limit,
            strict=strict,
            mesh=devices,
            progress=advance,
        )
    print_transfers(transfers, read, collection.names, out)


@app.command()
def rank(
    run: _Run,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The network or task whose sources are ranked.")],
    method: Annotated[
        str | None, typer.Option(help="A method of the run.", show_default="all, the best on Rooms first")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Print only the N best.", show_default="all")
    ] = None,
) -> None:
    """Rank the networks or tasks of a run as sources for one of them."""
    from jaxtransfer.runs.load import load_run

    affinity = load_run(run)
    target = resolve_task_name(target, affinity.targets)
    print_rankings(affinity, target, affinity.methods if method is None else (method,), top)


@app.command()
def evaluate(
    run: _Run,
    oracle: Annotated[str | None, typer.Option(help=_ORACLE_HELP, show_default="that of the run's networks")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method of the run; may be repeated.", show_default="all")
    ] = None,
    relevant: _Relevant = RELEVANT,
) -> None:
    """Compare a run's rankings with measured transfer."""
    from jaxtransfer.runs.evaluation import evaluate_run, own_oracle

    measured = own_oracle(run) if oracle is None else load_oracle(oracle)
    evaluations = evaluate_run(run, measured, relevant=relevant, methods=method)
    print_evaluation(evaluations, measured, run)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Directories of finished runs.")],
    out: Annotated[Path, typer.Option(help="Directory for the tables and figures.")],
    oracle: Annotated[str | None, typer.Option(help=_ORACLE_HELP)] = None,
    relevant: _Relevant = RELEVANT,
) -> None:
    """Compare the rankings of several runs, which may differ in method, probe images or measure."""
    from jaxtransfer.runs.compare import compare_runs

    measured = None if oracle is None else load_oracle(oracle)
    comparison, evaluations = compare_runs(runs, out, oracle=measured, relevant=relevant)
    print_comparison(comparison)
    if measured is not None and evaluations is not None:
        print_evaluation(evaluations, measured, out)
    print_line(f"Agreements, disagreements and figures are in {out}.")


@app.command()
def report(
    run: _Run,
    oracle: Annotated[
        str | None,
        typer.Option(help="Measured transfer, as for evaluate; adds curves.", show_default="no curves"),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Groups of networks: taskonomy, rooms, or a CSV file with the columns name,group.",
            show_default="no groups",
        ),
    ] = None,
    relevant: _Relevant = RELEVANT,
) -> None:
    """Write a page that shows a run, and its figures as files."""
    from jaxtransfer.report import write_report

    with progress_bar("Drawing") as advance:
        page = write_report(
            run,
            oracle=None if oracle is None else load_oracle(oracle),
            groups=None if groups is None else load_groups(groups),
            relevant=relevant,
            progress=advance,
        )
    print_line(f"Open {page} in a browser; the figures are in {page.parent / 'figures'} as PNG and SVG.")


@app.command()
def pge(
    tasks: _Tasks,
    out: _Out,
    measure: Annotated[
        GradientMeasure,
        typer.Option(
            help="What is compared: gap, the distance of expected gradients, or alignment, their cosine at the same "
            "fresh weights."
        ),
    ] = PGEOptions.measure,
    backbone: Annotated[
        BackboneName, typer.Option(help="Network whose freshly initialised weights the gradients are taken at.")
    ] = PGEOptions.backbone,
    size: _Size = PGEOptions.size,
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
    strict: _Strict = False,
    mesh: _Mesh = None,
    distributed: _Distributed = None,
) -> None:
    """Compare tasks by their gradients at freshly initialised weights (principal gradients)."""
    if restarts != "auto" and not restarts.isdecimal():
        raise JaxTransferError(f"--restarts takes a number or auto, not {restarts!r}.")
    from jaxtransfer.devices import is_first, synchronised
    from jaxtransfer.runs.principal_gradients import run_pge

    devices = connect_devices(mesh, distributed)
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
    with progress_bar("Restarts of", shown=is_first()) as advance:
        results = run_pge(tasks, out, options, command=sys.argv, strict=strict, mesh=devices, progress=advance)
    if is_first():
        print_gradient_results(results, out)
