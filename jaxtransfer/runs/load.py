"""Loads the affinities of finished runs."""

from pathlib import Path

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.runs import record
from jaxtransfer.runs.gradient_results import read_results


def load_run(directory: str | Path) -> Affinity:
    """Loads the affinities of a finished run.

    A run of principal gradients has one method, "gap" or "alignment"; `Affinity.measure` says that smaller gaps are
    nearer. Values that could not be distinguished from noise are NaN. In a run of scores, targets are labelled tasks,
    sources networks, and methods measures.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    directory = Path(directory)
    return affinity_of(directory, finished_record(directory))


def finished_record(directory: Path) -> record.Record:
    """Reads the record of a finished run of any command.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    run = record.read(directory)
    if run is None:
        raise JaxTransferError(
            f"{directory} is not a run directory; `jaxtransfer affinity`, `score` and `pge` make one."
        )
    if run["finished"] is None:
        raise JaxTransferError(f"The run in {directory} has not finished; start the same command again.")
    return run


def affinity_of(directory: Path, run: record.Record) -> Affinity:
    """Loads the affinities of the run with the record `run`, see `load_run`."""
    if run["kind"] == "pge":
        return read_results(directory, run["settings"]["measure"])
    return Affinity.load(directory)
