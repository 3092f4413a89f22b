"""What the report of a run of scores adds: measured values, the agreement of measures, and the labels of tasks."""

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


def measured_transfer(directory: Path, affinity: Affinity, oracle: Oracle | None) -> dict[str, Oracle]:
    """Returns the measured transfer that is shown beside the scores of a run.

    It is what the tables `measured_<name>.csv` in its directory hold, in alphabetical order, then an oracle. The tables
    of a run of measured transfer hold the values of its methods, and are not shown beside them.
    """
    files = {_short(file.name): file for file in sorted(directory.glob(f"{_MEASURED}*.csv"))}
    measured = {name: Oracle.load(file) for name, file in files.items() if name not in affinity.methods}
    return measured | ({} if oracle is None else {_short(oracle.name): oracle})


def _short(name: str) -> str:
    return name.removeprefix(_MEASURED).removesuffix(".csv")


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
    affinity: Affinity, methods: Sequence[str], measured: dict[str, Oracle]
) -> tuple[list[str], list[list[str]]]:
    """Tabulates how far the ranking by each measure agrees with those by the others and with measured transfer.

    Cells are Spearman correlations of the sources of a target, averaged over the targets of which both values are
    known.

    Returns:
        The header and the rows, one for each measure.
    """
    rankings = {method: affinity.nearness(method).astype(np.float64) for method in methods}
    columns = rankings if len(methods) > 1 else {}
    for name, oracle in measured.items():
        scores = oracle.table(oracle.scores, affinity.sources, targets=affinity.targets)
        columns = {**columns, f"measured ({name})": scores}
    rows = [
        [method, *("" if name == method else _correlation(values, other) for name, other in columns.items())]
        for method, values in rankings.items()
    ]
    return ["measure", *columns], rows


def _correlation(one: Float[np.ndarray, "targets sources"], other: Float[np.ndarray, "targets sources"]) -> str:
    value = mean_rank_correlation(one, other, ~np.isnan(one + other))
    return "" if math.isnan(value) else f"{value:z.2f}"


def task_table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Tabulates what a record says of the labels of every task.

    Returns:
        The header and the rows, one for each task.
    """
    header = {
        "kind": "labels",
        "classes": "classes",
        "images": "images",
        "labelled": "with a label",
        "missing": "missing labels",
        "unlabelled": "files without a label",
    }
    tasks: dict[str, dict[str, Any]] = record.get("tasks", {})
    known = [field for field in header if any(task.get(field) is not None for task in tasks.values())]
    rows = [
        [name, *("" if task.get(field) is None else str(task[field]) for field in known)]
        for name, task in tasks.items()
    ]
    return ["task", *(header[field] for field in known)], rows
