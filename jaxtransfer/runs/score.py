"""A run: the scores of a zoo's networks for labelled tasks, in a directory that says how to repeat it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.data.datasets import LabelledTask, read_tasks
from jaxtransfer.defaults import PROBE_SIZE
from jaxtransfer.devices import is_first, synchronised
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.runs import record
from jaxtransfer.runs.tables import write_tables
from jaxtransfer.scores.compute import Scoring
from jaxtransfer.scores.measures import MEASURES
from jaxtransfer.scores.options import ScoreOptions
from jaxtransfer.scores.target import Target

_KIND = "score"


def run_score(
    zoo: Zoo,
    paths: Sequence[str | Path],
    out: str | Path,
    options: ScoreOptions,
    *,
    command: Sequence[str],
    size: int = PROBE_SIZE,
    limit: int | None = None,
    strict: bool = False,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Affinity, tuple[LabelledTask, ...]]:
    """Scores a zoo's networks for labelled tasks into a run directory, or resumes an unfinished run.

    The directory receives `affinity_<measure>.csv`, `stderr_<measure>.csv` and `counts_<measure>.csv`, tasks x
    networks, a heat map `affinity_<measure>.png` for each measure, the features and scores, and `run.json`: settings,
    networks, tasks, software and device. An interrupted run resumes where it stopped. A later run in the same directory
    may name other measures, networks or tasks: features and scores that are finished are reused.

    Args:
        zoo: The networks.
        paths: The tasks, see `read_tasks`.
        out: The run directory: new, empty, or of a run with the same settings.
        options: The settings that scores depend on.
        command: The command line, for `run.json`.
        size: Height and width in pixels to which the images of tasks are resized.
        limit: Most images to use of each task; None: all.
        strict: Whether a file that is no usable image is an error; otherwise it is skipped.
        batch_size: Images in a batch on each device; None: the largest batch that is useful and fits in memory.
        mesh: Devices to share the work, see `score`.
        progress: Called as `progress(done, total, name)`.

    Returns:
        The scores, and the tasks that they are for.

    Raises:
        JaxTransferError: The zoo or the tasks cannot be used, or `out` is not a run directory, is that of a run with
            other settings, or is in use by another run.
        OSError: A file cannot be written, because the disk is full for example.
    """
    out = Path(out)
    with synchronised():
        manifests = record.manifests(zoo, least=1)
        tasks = read_tasks(paths, size=size, limit=limit, strict=strict, missing=True)
        scoring = Scoring(zoo, tasks, options, batch_size=batch_size, mesh=mesh)
    about = {
        "settings": options.as_settings() | {"size": size},
        "zoo": str(zoo.path),
        "networks": record.networks(manifests),
        "tasks": {task.name: _task_record(task, scoring.targets[task.name]) for task in tasks},
    }
    with record.open_run(out, _KIND, about, _diff, command, mesh=dict(scoring.mesh.shape)) as results:
        scores = scoring.run(out, progress)
        if is_first():
            _write(out, scores)
        results["batch_sizes"] = scoring.batch_sizes
        results["processor_seconds_of_measures"] = scoring.seconds
    return scores, tasks


def _write(out: Path, scores: Affinity) -> None:
    """Writes the tables and heat maps of a run, in the place of those of measures that an earlier run had."""
    record.replace_tables(out)
    for measure in MEASURES:
        if measure not in scores.methods:
            for name in ("affinity", "stderr", "counts", "pseudo_values"):
                for suffix in ("csv", "npy", "png"):
                    (out / f"{name}_{measure}.{suffix}").unlink(missing_ok=True)
    write_tables(out, scores, lambda measure: f"Score by {measure}")


def _task_record(task: LabelledTask, target: Target) -> record.Record:
    return record.dataset(task) | {
        "labelled": len(target.labelled),
        "missing": task.missing,
        "unlabelled": task.unlabelled,
        "left_out": [list(pair) for pair in (*task.left_out, *target.left_out)],
    }


def _diff(earlier: record.Record, now: record.Record) -> list[str]:
    """Lists in words what makes two records runs of different settings; measures, networks and tasks may change."""
    measures = {"measures": now["settings"]["measures"]}
    return record.diff_settings({"settings": {**earlier["settings"], **measures}}, now)
