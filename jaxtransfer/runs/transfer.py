"""A run: the measured transfer of a zoo's networks to labelled tasks, in a directory that says how to repeat it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from jaxtransfer.data.datasets import LabelledTask, read_tasks
from jaxtransfer.defaults import PROBE_SIZE
from jaxtransfer.files import write_csv
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.runs import record
from jaxtransfer.runs.load import load_run
from jaxtransfer.runs.tables import write_tables
from jaxtransfer.training.options import TransferOptions
from jaxtransfer.training.transfers import Measuring, Transfers

_KIND = "transfer"


def run_transfer(
    zoo: Zoo,
    paths: Sequence[str | Path],
    out: str | Path,
    options: TransferOptions,
    *,
    command: Sequence[str],
    scores: str | Path | None = None,
    top: int | None = None,
    measure: str | None = None,
    size: int = PROBE_SIZE,
    limit: int | None = None,
    strict: bool = False,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Transfers, tuple[LabelledTask, ...]]:
    """Measures the transfer of a zoo's networks to labelled tasks into a run directory, or resumes an unfinished run.

    The directory receives for each metric `affinity_<metric>.csv`, `stderr_<metric>.csv` and `counts_<metric>.csv`,
    tasks x sources, a heat map, and `measured_<metric>.csv` with the columns target, source, score and stderr, which
    `Oracle.load` reads: larger scores are better, so losses are negated. The directory of the score run receives these
    too, and its report then shows them. Features and finished trainings are kept and reused, unfinished ones are saved
    about every 30 seconds. An interrupted run ends with the same bits on the same machine and devices; on other devices
    with the same numbers up to rounding.

    Args:
        zoo: The networks.
        paths: The tasks, see `read_tasks`.
        out: The run directory: new, empty, or of a run with the same settings.
        options: The settings that measured transfer depends on.
        command: The command line, for `run.json`.
        scores: Directory of the score run whose best networks are measured; needed for `top`.
        top: Measure only this many networks for each task; None: all.
        measure: The measure of the score run that says which are best; None: its first.
        size: Height and width in pixels to which the images of tasks are resized.
        limit: Most images to use of each task; None: all.
        strict: Whether a file that is no usable image is an error; otherwise it is skipped.
        mesh: Devices that share the trainings. None: one device.
        progress: Called as `progress(done, total, name)`.

    Returns:
        The metrics, and the tasks that they are for.

    Raises:
        JaxTransferError: What `transfer` raises, or `out` is not a run directory, is that of a run with other
            settings, or is in use by another run.
        OSError: A file cannot be written, because the disk is full for example.
    """
    out = Path(out)
    manifests = record.manifests(zoo, least=1)
    tasks = read_tasks(paths, size=size, limit=limit, strict=strict, missing=True)
    scored = None if scores is None else load_run(scores)
    measuring = Measuring(zoo, tasks, options, scores=scored, top=top, measure=measure, mesh=mesh)
    about = {
        "settings": options.as_settings() | {"size": size},
        "zoo": str(zoo.path),
        "networks": record.networks(manifests),
        "tasks": {task.name: record.dataset(task) for task in tasks},
        "scores": None if scores is None else os.path.relpath(scores, out),
        "measured": measuring.chosen,
    }
    with record.open_run(out, _KIND, about, record.diff_settings, command, mesh=dict(measuring.mesh.shape)):
        transfers = measuring.run(out, progress)
        record.replace_tables(out)
        write_tables(out, transfers, lambda metric: f"Measured transfer: {transfers.measure(metric).name}")
        for place in (out, scores):
            if place is not None:
                _write_oracles(Path(place), transfers)
    return transfers, tasks


def _write_oracles(directory: Path, transfers: Transfers) -> None:
    """Writes `measured_<metric>.csv` for each metric."""
    for metric in transfers.methods:
        oracle = transfers.oracle(metric)
        rows = [
            (target, source, score, oracle.stderr[target].get(source))
            for target, of_target in oracle.scores.items()
            for source, score in of_target.items()
        ]
        write_csv(directory / f"measured_{metric}.csv", [("target", "source", "score", "stderr"), *rows])
