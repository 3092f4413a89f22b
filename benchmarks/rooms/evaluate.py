"""Tests whether the measures of the package predict the measured transfer of Rooms."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table
from scipy.spatial.distance import squareform

from benchmarks.rooms import choices, gradients, scores, variants
from benchmarks.rooms.choices import Difference, difference
from benchmarks.rooms.examples import Examples
from benchmarks.rooms.scores import Matrix, Score
from jaxtransfer import rooms
from jaxtransfer.attribution.maps import ATTRIBUTIONS, METHODS
from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.comparison.matrix import affinity_matrix
from jaxtransfer.comparison.representations import RELATIVES
from jaxtransfer.data.probe import load_probe
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import other_direction, static_ranking
from jaxtransfer.evaluation.rooms_scores import RANDOM, RoomsScore
from jaxtransfer.files import atomic_directory, read_records, write_csv
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo

_PROBE_SIZES = (64, 250, 1000, 2000)
_CUBIC, _MAX_CUBIC_IMAGES = ("svcca", "procrustes"), 250  # their time grows with the cube of the number of images
_SEED_IMAGES = 250
_PACKAGED_PROBE = "1000 rooms"
_VARIANT_IMAGES = 200
_CHOICE_IMAGES = 400
# Attribution methods that take many passes, with their numbers of images.
FURTHER: dict[str, tuple[int, dict[str, Any]]] = {
    "unit_saliency": (64, {"methods": "unit_saliency", "similarity": "correlation"}),
    "path": (
        16,
        {"methods": ["integrated_gradients", "modelgif"], "target": "spatial_maximum", "sketch": 512},
    ),
}
_RESTARTS = 128
_REFERENCES = ("rsa", "dds_cosine")

Progress = Callable[[int, int], None]
Measures = dict[str, Affinity]
Images = UInt8[np.ndarray, "images 64 64 3"]


def probe_images(photos: Path | None) -> dict[str, Images]:
    """Returns rendered images, and photos if there is a folder of them; probes are the first images of either."""
    rendered = {"rooms": rooms.probe(max(_PROBE_SIZES))}
    return rendered if photos is None else rendered | {"photos": load_probe(photos, size=64).images}


def measure_networks(work: Path, images: Mapping[str, Images], progress: Progress) -> dict[tuple[str, int], Measures]:
    """Computes the affinities of the tasks' encoders by all measures on several probes, and stores them in `work`.

    Maps are computed on the largest probe; means over its first images are those of the smaller probes.

    Args:
        work: Folder for intermediate results; what exists there is not computed again.
        images: Result of `probe_images`.
        progress: Called with the number of finished steps and of all steps.

    Returns:
        By the name of the images and their number, for each method the affinities that hold it; under "seeds", those of
        all encoders of the zoo.
    """
    zoo = rooms.zoo()
    tasks = [zoo[task] for task in rooms.TASKS]
    probes = [("rooms", count) for count in _PROBE_SIZES]
    if "photos" in images:
        probes += [("photos", count) for count in (64, len(images["photos"]))]
    probes.append(("seeds", _SEED_IMAGES))
    largest = {name: max(count for of_name, count in probes if of_name == name) for name, _ in probes}
    steps: list[tuple[str, int, str, dict[str, Any]]] = []
    steps += [(name, count, "representations", {"methods": relatives(count)}) for name, count in probes]
    steps += [(name, count, "maps", {"methods": METHODS}) for name, count in largest.items()]
    steps += [(name, count, what, settings) for name in images for what, (count, settings) in FURTHER.items()]
    measures: dict[tuple[str, int], Measures] = {}
    for done, (name, count, what, settings) in enumerate(steps):
        networks = zoo if name == "seeds" else tasks
        probe = images["rooms" if name == "seeds" else name][:count]
        affinity = stored_affinity(work / "evaluate" / f"{name}-{count}" / what, networks, probe, settings)
        for size in (size for of_name, size in probes if what == "maps" and of_name == name and size < count):
            measures[name, size] |= dict.fromkeys(METHODS, of_first_images(affinity, size))
        measures.setdefault((name, count), {}).update(dict.fromkeys(affinity.methods, affinity))
        progress(done + 1, len(steps))
    return measures


def stored_affinity(
    folder: Path, networks: Zoo | Sequence[Network], images: Images, settings: Mapping[str, Any]
) -> Affinity:
    """Computes affinities with some settings of `affinity_matrix`, unless the folder has them already."""
    if not (folder / "affinity.json").exists():
        affinity_matrix(networks, images, **settings).save(folder)
    return Affinity.load(folder)


def relatives(images: int) -> list[str]:
    """Returns the measures of representations whose time this number of images allows."""
    return [method for method in RELATIVES if method not in _CUBIC or images <= _MAX_CUBIC_IMAGES]


def of_first_images(affinity: Affinity, images: int) -> Affinity:
    """Returns the affinities by maps of the first images of a probe alone."""
    results = {}
    for method in affinity.methods:
        cosines = affinity.pseudo_values(method)
        assert cosines is not None
        first = cosines[:images].astype(np.float64)
        usable = ~np.isnan(first)
        matrix = squareform(np.nanmean(first, 0)) + np.eye(len(affinity.names))
        stderr = squareform(np.nanstd(first, 0, ddof=1) / np.sqrt(usable.sum(0)))
        results[method] = MethodResult(
            matrix.astype(np.float32),
            stderr.astype(np.float32),
            squareform(usable.sum(0)),
            pseudo_values=cosines[:images],
        )
    return Affinity(affinity.names, affinity.similarity, results)


def measure_gradients(work: Path, examples: Examples, progress: Progress) -> dict[str, Affinity]:
    """Computes the affinities of the tasks by their gradients, and stores them in `work`."""
    folder = work / "evaluate" / "gradients"
    if not folder.exists():
        affinities = gradients.measures(examples, _RESTARTS, progress)
        with atomic_directory(folder) as partial:
            for name, affinity in affinities.items():
                affinity.save(partial / name)
    return {path.name: Affinity.load(path) for path in sorted(folder.iterdir())}


class Row(NamedTuple):
    """A line of the table of scores.

    Attributes:
        probe: The images.
        measure: The measure.
        score: Its agreement with measured transfer.
        less: Its Spearman correlation less that of each of `_REFERENCES` on the same images, where there are any.
    """

    probe: str
    measure: str
    score: Score
    less: tuple[Difference | None, ...]


def score_all(
    by_probe: Mapping[tuple[str, int], Measures], by_gradients: Mapping[str, Affinity], oracle: Oracle
) -> list[Row]:
    """Scores every measure on every probe, best first; first come two predictions from measured transfer."""
    names = tuple(oracle.scores)
    transfer = scores.truth(oracle, names)
    predictions = {
        "the other direction": other_direction(oracle, names),
        "mean transfer to the other targets": static_ranking(oracle, names),
    }
    reference = Affinity.of(names, predictions)
    nothing = (None,) * len(_REFERENCES)
    rows = [Row("(truth)", method, scores.score(reference, oracle, method), nothing) for method in reference.methods]
    for (images_name, count), measures in by_probe.items():
        if images_name == "seeds":
            continue
        of_targets = {
            method: scores.agreement(affinity.only(names).nearness(method), transfer)
            for method, affinity in measures.items()
        }
        scored = [
            Row(
                f"{count} {images_name}",
                method,
                scores.score(affinity, oracle, method),
                tuple(
                    None
                    if other == method or other not in of_targets
                    else difference(of_targets[method] - of_targets[other])
                    for other in _REFERENCES
                ),
            )
            for method, affinity in measures.items()
        ]
        rows += sorted(scored, key=lambda row: -row.score.spearman)
    for name, affinity in by_gradients.items():
        rows.append(Row("labels", name, scores.score(affinity, oracle, affinity.methods[0]), nothing))
    return rows


def show_scores(rows: list[Row], sources: int, console: Console) -> None:
    """Prints the scores as a table; the last line is the expectation for random orders."""
    table = Table(
        "probe",
        "measure",
        "P@1",
        "P@5",
        "95 % band of P@5",
        "R@10",
        "Spearman",
        *(f"less {reference}" for reference in _REFERENCES),
        title="Agreement with measured transfer",
    )
    for probe, measure, score, less in rows:
        band, rank = f"{score.low:.2f} to {score.high:.2f}", f"{score.spearman:.2f} ± {score.stderr:.2f}"
        differences = ("" if d is None else f"{d.mean:+.2f} ± {d.stderr:.2f}" for d in less)
        shares = f"{score.p1:.2f}", f"{score.p5:.2f}", band, f"{score.r10:.2f}"
        table.add_row(probe, measure, *shares, rank, *differences)
    chance = scores.RELEVANT / sources
    table.add_row("", "random order", f"{chance:.2f}", f"{chance:.2f}", "", f"{10 / sources:.2f}", "0.00")
    console.print(table)


def write_scores(rows: list[Row], file: Path) -> None:
    """Writes the scores to a CSV file."""
    header = [f"less_{reference}{ending}" for reference in _REFERENCES for ending in ("", "_stderr")]
    lines = []
    for probe, measure, score, less in rows:
        differences = [value for d in less for value in ((None, None) if d is None else (d.mean, d.stderr))]
        values = ("" if value is None else f"{value:.4f}" for value in (*score, *differences))
        lines.append([probe, measure, *values])
    write_csv(file, [["probe", "measure", *Score._fields, *header], *lines])


def packaged_scores(file: Path) -> dict[str, RoomsScore]:
    """Reads from a file of scores those that the package states, and adds the expectation for a random order."""
    scored = {
        row["measure"]: RoomsScore(float(row["p5"]), float(row["spearman"]))
        for row in read_records(file)
        if row["probe"] == _PACKAGED_PROBE and row["measure"] in (*ATTRIBUTIONS, *RELATIVES)
    }
    return scored | {RANDOM: RoomsScore(round(scores.RELEVANT / (len(rooms.TASKS) - 1), 4), 0.0)}


def show_controls(measures: Measures, console: Console) -> None:
    """Prints whether encoders of the same task from several seeds are nearer to each other than to other tasks'."""
    names = next(iter(measures.values())).names
    task_of = [name.partition("-seed")[0] for name in names]
    controls = [i for i, task in enumerate(task_of) if task_of.count(task) > 1]
    table = Table(
        "measure",
        "same task",
        "other tasks",
        "nearest has the same task",
        title="Affinity between seeds and between tasks",
    )
    for method, affinity in measures.items():
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


def show_seeds(measures: Measures, oracle: Oracle, console: Console) -> None:
    """Prints the agreement with other seeds' encoders of some tasks in the place of the first ones."""
    names = tuple(oracle.scores)
    transfer = scores.truth(oracle, names)
    all_names = next(iter(measures.values())).names
    table = Table("measure", "first seeds", "second", "third", title="Spearman, encoders of other seeds as sources")
    for method, affinity in measures.items():
        cells = []
        for ending in ("", "-seed1", "-seed2"):
            columns = [all_names.index(name + ending if name + ending in all_names else name) for name in names]
            values = affinity.nearness(method)[np.ix_([all_names.index(name) for name in names], columns)]
            cells.append(f"{scores.agreement(values, transfer).mean():.3f}")
        table.add_row(method, *cells)
    console.print(table)


def show_choices(images: Mapping[str, Images], oracle: Oracle, console: Console) -> None:
    """Prints variants of the measures of representations, and what choosing among them is worth on other targets."""
    names = tuple(oracle.scores)
    transfer, zoo = scores.truth(oracle, names), rooms.zoo()
    for images_name, of_name in images.items():
        probe = of_name[:_CHOICE_IMAGES]
        of_networks = {name: choices.layers(zoo[name], probe) for name in names}
        of_predictivity = choices.variants([*of_networks.values()])
        others = choices.families(of_networks)
        reference, *_ = (scores.agreement(values, transfer) for values in of_predictivity.values())
        table = Table("variant", "Spearman", "less the first", title=f"Linear predictivity, {len(probe)} {images_name}")
        for name, values in of_predictivity.items():
            of_targets = scores.agreement(values, transfer)
            less = choices.difference(of_targets - reference)
            table.add_row(name, f"{of_targets.mean():.3f}", f"{less.mean:+.3f} ± {less.stderr:.3f}")
        for family in others.values():
            for name, values in family.items():
                table.add_row(name, f"{scores.agreement(values, transfer).mean():.3f}")
        console.print(table)
        _show_held_out(scores.held_out(of_predictivity, transfer), f"linear predictivity, {images_name}", console)
        for family, of_family in others.items():
            less = choices.held_out_difference(of_predictivity, of_family, transfer)
            console.print(
                f"{images_name}: the chosen variant of linear predictivity less the chosen variant of {family}, on "
                f"targets that had no part in either choice: {less.mean:+.3f} ± {less.stderr:.3f} (95 % interval "
                f"{less.low:+.3f} to {less.high:+.3f})."
            )


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
