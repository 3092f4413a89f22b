"""How the measures of a run of scores agree with one another and with measured transfer, and what they cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.runs.compare import mean_rank_correlation
from jaxtransfer.runs.record import Record

_MEASURED = "measured_"


def measured_transfer(directory: Path) -> dict[str, Oracle]:
    """Reads the tables `measured_<name>.csv` of a run, in alphabetical order of their names."""
    return {
        file.stem.removeprefix(_MEASURED): Oracle.load(file) for file in sorted(directory.glob(f"{_MEASURED}*.csv"))
    }


def measured_data(affinity: Affinity, measured: dict[str, Oracle]) -> list[dict[str, Any]]:
    """Returns the measured values of every target and source, with their standard errors, for the page's script."""

    def cells(table: Float[np.ndarray, "targets sources"]) -> list[list[float | None]]:
        return [[None if math.isnan(value) else value for value in row] for row in table.tolist()]

    data = []
    for name, oracle in measured.items():
        values, errors = (
            cells(oracle.table(of_oracle, affinity.sources, targets=affinity.targets))
            for of_oracle in (oracle.scores, oracle.stderr)
        )
        pairs = [
            [None if value is None else [value, error] for value, error in zip(*rows, strict=True)]
            for rows in zip(values, errors, strict=True)
        ]
        data.append({"name": name, "values": pairs})
    return data


def measure_table(
    affinity: Affinity, methods: Sequence[str], measured: dict[str, Oracle], record: Record
) -> tuple[list[str], list[list[str]]]:
    """Tabulates how far the ranking by each measure agrees with those by the others and with measured transfer.

    Cells are Spearman correlations of the sources of a target, averaged over the targets of which both values are
    known. A column of seconds follows if the run has recorded what each measure cost.

    Returns:
        The header and the rows, one for each measure.
    """
    rankings = {method: affinity.nearness(method).astype(np.float64) for method in methods}
    columns = rankings if len(methods) > 1 else {}
    for name, oracle in measured.items():
        scores = oracle.table(oracle.scores, affinity.sources, targets=affinity.targets)
        columns = {**columns, f"measured ({name})": scores}
    seconds: dict[str, float] = record.get("seconds", {})
    header = ["measure", *columns, *(["seconds"] if seconds else [])]
    rows = []
    for method, values in rankings.items():
        cells = ["" if name == method else _correlation(values, other) for name, other in columns.items()]
        cost = [f"{seconds[method]:.3g}" if method in seconds else ""] if seconds else []
        rows.append([method, *cells, *cost])
    return header, rows


def _correlation(one: Float[np.ndarray, "targets sources"], other: Float[np.ndarray, "targets sources"]) -> str:
    value = mean_rank_correlation(one, other, ~np.isnan(one + other))
    return "" if math.isnan(value) else f"{value:z.2f}"


def task_table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Tabulates the labelled examples of every task.

    Returns:
        The header and the rows, one for each task.
    """
    header = ["task", "labels", "classes", "labelled images", "missing labels"]
    fields = ("kind", "classes", "images", "missing")
    rows = [[name, *(_text(task.get(field)) for field in fields)] for name, task in record.get("tasks", {}).items()]
    return header, rows


def _text(value: Any) -> str:
    return "" if value is None else str(len(value) if isinstance(value, list | dict) else value)
