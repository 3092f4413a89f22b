"""Loads the affinities of finished runs."""

from pathlib import Path

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.runs import record
from jaxtransfer.runs.gradient_results import read_results


def load_run(directory: str | Path) -> Affinity:
    """Loads the affinities of a finished run.

    A run of principal gradients has the one method "alignment", or "gap" with the gaps negated, so that larger is
    nearer there as well; what it could not tell is NaN.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    directory = Path(directory)
    return affinity_of(directory, finished_record(directory))


def finished_record(directory: Path) -> record.Record:
    """The record of a finished run of any kind.

    Raises:
        JaxTransferError: `directory` holds no run, or one that has not finished.
    """
    found = record.read(directory)
    if found is None:
        raise JaxTransferError(
            f"{directory} is not a run directory; `jaxtransfer affinity` and `jaxtransfer pge` make one."
        )
    if found["finished"] is None:
        raise JaxTransferError(f"The run in {directory} has not finished; start the same command again.")
    return found


def affinity_of(directory: Path, found: record.Record) -> Affinity:
    """The affinities of the run with the record `found`, see `load_run`."""
    return (
        Affinity.load(directory)
        if found["kind"] == "affinity"
        else read_results(directory, found["settings"]["measure"])
    )
