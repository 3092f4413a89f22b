"""Does a measure predict measured transfer? Every measure that the package has, held against Rooms."""

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
from jaxtransfer.files import atomic_directory, write_csv

_PROBES = (64, 250, 1000, 2000)
_MOST_OF_SVCCA = 250  # images; its time grows with their cube
_OF_SEEDS = 64
_OF_VARIANTS = 200
_RESTARTS = 128

Progress = Callable[[int, int], None]
Images = UInt8[np.ndarray, "images 64 64 3"]


def shown(photos: Path | None) -> dict[str, Images]:
    """Images of every kind, of which probes are the first so many."""
    rendered = {"rooms": rooms.probe(max(_PROBES))}
    return rendered if photos is None else rendered | {"photos": load_probe(photos, size=64).images}


def measured(work: Path, images: Mapping[str, Images], progress: Progress) -> dict[tuple[str, int], Affinity]:
    """Affinities of the tasks' encoders by all measures, for probes of several kinds and sizes; kept in `work`.

    And, as "seeds", those of all encoders that ship.
    """
    probes = {("rooms", count): images["rooms"][:count] for count in _PROBES}
    if (photos := images.get("photos")) is not None:
        probes |= {("photos", count): photos[:count] for count in (64, len(photos))}
    probes["seeds", _OF_SEEDS] = images["rooms"][:_OF_SEEDS]
    found, zoo = {}, rooms.zoo()
    for done, ((kind, count), probe) in enumerate(probes.items()):
        folder = work / "evaluate" / f"{kind}-{count}"
        methods = [each for each in (*METHODS, *RELATIVES) if each != "svcca" or count <= _MOST_OF_SVCCA]
        if not (folder / "affinity.json").exists() or {*methods} - {*Affinity.load(folder).methods}:
            networks = zoo if kind == "seeds" else [zoo[name] for name in rooms.TASKS]
            affinity_matrix(networks, probe, methods=methods).save(folder)
        found[kind, count] = Affinity.load(folder)
        progress(done + 1, len(probes))
    return found


def of_gradients(work: Path, examples: Examples, progress: Progress) -> dict[str, Affinity]:
    """Affinities of the tasks by their gradients; kept in `work`."""
    folder = work / "evaluate" / "gradients"
    if not folder.exists():
        found = gradients.measures(examples, _RESTARTS, progress)
        with atomic_directory(folder) as place:
            for name, affinity in found.items():
                affinity.save(place / name)
    return {each.name: Affinity.load(each) for each in sorted(folder.iterdir())}


def score_all(
    found: Mapping[tuple[str, int], Affinity], by_gradients: Mapping[str, Affinity], oracle: Oracle
) -> list[tuple[str, str, Score]]:
    """Of every measure and probe, after what knows the truth but not the pair."""
    names = tuple(oracle.scores)
    truth = scores.truth(oracle, names)
    ranks = scores.ranks(truth)
    others = (np.nansum(ranks, 0) - np.nan_to_num(ranks)) / (len(names) - 2)
    known = {"the other direction": np.nan_to_num(ranks.T), "mean transfer to the other targets": others}
    reference = Affinity.of(names, known)
    rows = [("(truth)", method, scores.score(reference, oracle, method)) for method in reference.methods]
    for (kind, count), affinity in found.items():
        if kind == "seeds":
            continue
        rows += [(f"{count} {kind}", method, scores.score(affinity, oracle, method)) for method in affinity.methods]
    for name, affinity in by_gradients.items():
        rows.append(("labels", name, scores.score(affinity, oracle, affinity.methods[0])))
    return rows


def show_scores(rows: list[tuple[str, str, Score]], sources: int, console: Console) -> None:
    """A table, with what random orders would give in its last line."""
    table = Table(
        "probe", "measure", "P@1", "P@5", "95 %", "R@10", "Spearman", title="Agreement with measured transfer"
    )
    for probe, measure, each in rows:
        band, rank = f"{each.low:.2f} to {each.high:.2f}", f"{each.spearman:.2f} ± {each.stderr:.2f}"
        table.add_row(probe, measure, f"{each.p1:.2f}", f"{each.p5:.2f}", band, f"{each.r10:.2f}", rank)
    chance = scores.RELEVANT / sources
    table.add_row("", "random order", f"{chance:.2f}", f"{chance:.2f}", "", f"{10 / sources:.2f}", "0.00")
    console.print(table)


def write_scores(rows: list[tuple[str, str, Score]], file: Path) -> None:
    """The same as a file."""
    scored = ([probe, measure, *(f"{value:.4f}" for value in each)] for probe, measure, each in rows)
    write_csv(file, [["probe", "measure", *Score._fields], *scored])


def show_controls(affinity: Affinity, console: Console) -> None:
    """Whether networks of one task from several seeds are nearer to each other than to other tasks' networks."""
    task_of = [name.partition("-seed")[0] for name in affinity.names]
    controls = [i for i, task in enumerate(task_of) if task_of.count(task) > 1]
    table = Table("measure", "same task", "other task", "nearest is of the same task", title="Seeds against tasks")
    for method in affinity.methods:
        same, other, nearest = [], [], 0
        for i in controls:
            alike = np.array([task == task_of[i] and j != i for j, task in enumerate(task_of)])
            rest = np.array([task != task_of[i] for task in task_of])
            row = affinity[method][i]
            same.append(row[alike].mean())
            other.append(row[rest].mean())
            nearest += int(row[alike].max() > row[rest].max())
        table.add_row(method, f"{np.mean(same):.3f}", f"{np.mean(other):.3f}", f"{nearest} of {len(controls)}")
    console.print(table)


def show_variants(images: Mapping[str, Images], oracle: Oracle, console: Console) -> None:
    """What changing the maps brings; chosen on half of the targets and held against the truth on the others."""
    names = tuple(oracle.scores)
    truth = scores.truth(oracle, names)
    zoo = rooms.zoo()
    for kind, every in images.items():
        probe = every[:_OF_VARIANTS]
        made = variants.bases([zoo[name] for name in names], jnp.asarray(probe, jnp.float32) / 255)
        found = variants.affinities(made)
        agreed = {name: float(scores.agreement(matrix, truth).mean()) for name, matrix in found.items()}
        table = Table("maps", *variants.columns(), title=f"Spearman by what is done to maps, {len(probe)} {kind}")
        for base in made:
            table.add_row(base, *(f"{agreed[f'{base}, {column}']:.2f}" for column in variants.columns()))
        console.print(table)
        first = {"input_x_gradient, cosine": found["input_x_gradient, cosine"]}
        _show_held_out(scores.held_out(first | found, truth), kind, console)


def _show_held_out(found: Mapping[str, tuple[float, float]], kind: str, console: Console) -> None:
    table = Table("maps", "Spearman, targets not chosen by", "chosen in", title=f"Held-out targets, {kind}")
    for name, (value, share) in found.items():
        table.add_row(name, f"{value:.2f}", f"{share:.0%}")
    console.print(table)


def components(oracle: Oracle) -> dict[str, float]:
    """What share of the variance of sources' places is a source's own, the same for all targets, or symmetric."""
    ranks: Matrix = scores.ranks(scores.truth(oracle, tuple(oracle.scores)))
    of_source = np.nanmean(ranks, 0) - np.nanmean(ranks)
    symmetric = (ranks + ranks.T) / 2
    total = np.nanvar(ranks)
    return {"the source's own": float((of_source**2).mean() / total), "symmetric": float(np.nanvar(symmetric) / total)}
