"""Tests whether the measures of the package predict the measured transfer of Rooms."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from benchmarks.rooms import gradients, scores, variants
from benchmarks.rooms.examples import Examples
from benchmarks.rooms.scores import Matrix, Score
from jaxtransfer import rooms
from jaxtransfer.attribution.maps import METHODS
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.matrix import affinity_matrix
from jaxtransfer.comparison.representations import RELATIVES
from jaxtransfer.data.probe import load_probe
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import other_direction, static_ranking
from jaxtransfer.evaluation.rooms_scores import RANDOM, RoomsScore
from jaxtransfer.files import atomic_directory, read_records, write_csv

_PROBE_SIZES = (64, 250, 1000, 2000)
_CUBIC, _MAX_CUBIC_IMAGES = ("svcca", "procrustes"), 250  # their time grows with the cube of the number of images
_SEED_IMAGES = 64
_PACKAGED_PROBE = "1000 rooms"
_VARIANT_IMAGES = 200
_RESTARTS = 128

Progress = Callable[[int, int], None]
Images = UInt8[np.ndarray, "images 64 64 3"]


def probe_images(photos: Path | None) -> dict[str, Images]:
    """Returns rendered images, and photos if there is a folder of them; probes are the first images of either."""
    rendered = {"rooms": rooms.probe(max(_PROBE_SIZES))}
    return rendered if photos is None else rendered | {"photos": load_probe(photos, size=64).images}


def measure_networks(work: Path, images: Mapping[str, Images], progress: Progress) -> dict[tuple[str, int], Affinity]:
    """Computes the affinities of the tasks' encoders by all measures on several probes, and stores them in `work`.

    Args:
        work: Folder for intermediate results; what exists there is not computed again.
        images: Result of `probe_images`.
        progress: Called with the number of finished probes and of all probes.

    Returns:
        Affinities by the name of the images and their number; under "seeds", those of all encoders of the zoo.
    """
    probes = {("rooms", count): images["rooms"][:count] for count in _PROBE_SIZES}
    if (photos := images.get("photos")) is not None:
        probes |= {("photos", count): photos[:count] for count in (64, len(photos))}
    probes["seeds", _SEED_IMAGES] = images["rooms"][:_SEED_IMAGES]
    affinities, zoo = {}, rooms.zoo()
    for done, ((name, count), probe) in enumerate(probes.items()):
        folder = work / "evaluate" / f"{name}-{count}"
        methods = [method for method in (*METHODS, *RELATIVES) if method not in _CUBIC or count <= _MAX_CUBIC_IMAGES]
        if not (folder / "affinity.json").exists() or {*methods} - {*Affinity.load(folder).methods}:
            networks = zoo if name == "seeds" else [zoo[task] for task in rooms.TASKS]
            affinity_matrix(networks, probe, methods=methods).save(folder)
        affinities[name, count] = Affinity.load(folder)
        progress(done + 1, len(probes))
    return affinities


def measure_gradients(work: Path, examples: Examples, progress: Progress) -> dict[str, Affinity]:
    """Computes the affinities of the tasks by their gradients, and stores them in `work`."""
    folder = work / "evaluate" / "gradients"
    if not folder.exists():
        affinities = gradients.measures(examples, _RESTARTS, progress)
        with atomic_directory(folder) as partial:
            for name, affinity in affinities.items():
                affinity.save(partial / name)
    return {path.name: Affinity.load(path) for path in sorted(folder.iterdir())}


def score_all(
    by_probe: Mapping[tuple[str, int], Affinity], by_gradients: Mapping[str, Affinity], oracle: Oracle
) -> list[tuple[str, str, Score]]:
    """Scores every measure on every probe; first come two predictions from the measured transfer of other pairs."""
    names = tuple(oracle.scores)
    predictions = {
        "the other direction": other_direction(oracle, names),
        "mean transfer to the other targets": static_ranking(oracle, names),
    }
    reference = Affinity.of(names, predictions)
    rows = [("(truth)", method, scores.score(reference, oracle, method)) for method in reference.methods]
    for (images_name, count), affinity in by_probe.items():
        if images_name == "seeds":
            continue
        rows += [
            (f"{count} {images_name}", method, scores.score(affinity, oracle, method)) for method in affinity.methods
        ]
    for name, affinity in by_gradients.items():
        rows.append(("labels", name, scores.score(affinity, oracle, affinity.methods[0])))
    return rows


def show_scores(rows: list[tuple[str, str, Score]], sources: int, console: Console) -> None:
    """Prints the scores as a table; the last line is the expectation for random orders."""
    table = Table(
        "probe",
        "measure",
        "P@1",
        "P@5",
        "95 % band of P@5",
        "R@10",
        "Spearman",
        title="Agreement with measured transfer",
    )
    for probe, measure, score in rows:
        band, rank = f"{score.low:.2f} to {score.high:.2f}", f"{score.spearman:.2f} ± {score.stderr:.2f}"
        table.add_row(probe, measure, f"{score.p1:.2f}", f"{score.p5:.2f}", band, f"{score.r10:.2f}", rank)
    chance = scores.RELEVANT / sources
    table.add_row("", "random order", f"{chance:.2f}", f"{chance:.2f}", "", f"{10 / sources:.2f}", "0.00")
    console.print(table)


def write_scores(rows: list[tuple[str, str, Score]], file: Path) -> None:
    """Writes the scores to a CSV file."""
    scored = ([probe, measure, *(f"{value:.4f}" for value in score)] for probe, measure, score in rows)
    write_csv(file, [["probe", "measure", *Score._fields], *scored])


def packaged_scores(file: Path) -> dict[str, RoomsScore]:
    """Reads from a file of scores those that the package states, and adds the expectation for a random order."""
    scored = {
        row["measure"]: RoomsScore(float(row["p5"]), float(row["spearman"]))
        for row in read_records(file)
        if row["probe"] == _PACKAGED_PROBE
    }
    return scored | {RANDOM: RoomsScore(round(scores.RELEVANT / (len(rooms.TASKS) - 1), 4), 0.0)}


def show_controls(affinity: Affinity, console: Console) -> None:
    """Prints whether encoders of the same task from several seeds are nearer to each other than to other tasks'."""
    task_of = [name.partition("-seed")[0] for name in affinity.names]
    controls = [i for i, task in enumerate(task_of) if task_of.count(task) > 1]
    table = Table(
        "measure",
        "same task",
        "other tasks",
        "nearest has the same task",
        title="Affinity between seeds and between tasks",
    )
    for method in affinity.methods:
        same, other, nearest = [], [], 0
        for i in controls:
            same_task = np.array([task == task_of[i] and j != i for j, task in enumerate(task_of)])
            other_task = np.array([task != task_of[i] for task in task_of])
            row = affinity[method][i]
            same.append(row[same_task].mean())
            other.append(row[other_task].mean())
            nearest += int(row[same_task].max() > row[other_task].max())
        table.add_row(method, f"{np.mean(same):.3f}", f"{np.mean(other):.3f}", f"{nearest} of {len(controls)}")
    console.print(table)


def show_variants(images: Mapping[str, Images], oracle: Oracle, console: Console) -> None:
    """Prints how changes of the maps affect the agreement; the best change is also scored on held-out targets."""
    names = tuple(oracle.scores)
    truth = scores.truth(oracle, names)
    zoo = rooms.zoo()
    for images_name, of_name in images.items():
        probe = of_name[:_VARIANT_IMAGES]
        maps = variants.bases([zoo[name] for name in names], jnp.asarray(probe, jnp.float32) / 255)
        affinities = variants.affinities(maps)
        agreement = {name: float(scores.agreement(matrix, truth).mean()) for name, matrix in affinities.items()}
        table = Table("maps", *variants.columns(), title=f"Spearman by change of the maps, {len(probe)} {images_name}")
        for base in maps:
            table.add_row(base, *(f"{agreement[f'{base}, {column}']:.2f}" for column in variants.columns()))
        console.print(table)
        reference = {"input_x_gradient, cosine": affinities["input_x_gradient, cosine"]}
        _show_held_out(scores.held_out(reference | affinities, truth), images_name, console)


def _show_held_out(results: Mapping[str, tuple[float, float]], images_name: str, console: Console) -> None:
    table = Table("maps", "Spearman on held-out targets", "chosen in", title=f"Held-out targets, {images_name}")
    for name, (value, share) in results.items():
        table.add_row(name, f"{value:.2f}", f"{share:.0%}")
    console.print(table)


def components(oracle: Oracle) -> dict[str, float]:
    """Returns the shares of the variance of ranks that depend on the source alone, and that are symmetric."""
    ranks: Matrix = scores.ranks(scores.truth(oracle, tuple(oracle.scores)))
    of_source = np.nanmean(ranks, 0) - np.nanmean(ranks)
    symmetric = (ranks + ranks.T) / 2
    total = np.nanvar(ranks)
    return {
        "explained by the source alone": float((of_source**2).mean() / total),
        "symmetric": float(np.nanvar(symmetric) / total),
    }
