"""Finds out from the cells of a table of labels what its tasks are."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxtransfer.data.arrays import TargetType
from jaxtransfer.data.dataset_specs import DatasetSpec
from jaxtransfer.data.label_table import LabelTable, relative_path
from jaxtransfer.errors import JaxTransferError, unknown_name

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_LARGEST = float(np.finfo(np.float32).max)
_BINARY = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


class TaskColumns(NamedTuple):
    """The columns that are the labels of one task.

    Attributes:
        name: Name of the task.
        target_type: What the labels are.
        columns: Names of the columns.
    """

    name: str
    target_type: TargetType
    columns: tuple[str, ...]


def find_tasks(table: LabelTable, spec: DatasetSpec) -> list[TaskColumns]:
    """Finds out which columns of a table are the labels of one task, and what they are.

    Every column of classes is a task; all columns of 0 and 1 together are one, where there are several, and so are all
    columns of floating-point numbers.

    Raises:
        JaxTransferError: A column is unknown, empty, or of a type that must be given.
    """
    for name in spec.columns or ():
        if name not in table.columns:
            raise unknown_name("column", name, table.columns, where=f"in {table.source}")
    columns = spec.columns or tuple(table.columns)
    types: dict[str, TargetType] = {name: spec.target_type or _inferred_type(table, name) for name in columns}
    together: dict[TargetType, tuple[str, ...]] = {"multilabel": (), "numbers": ()}
    for target_type in together:
        together[target_type] = tuple(name for name in columns if types[name] == target_type)
    if spec.target_type is None and len(together["multilabel"]) == 1:
        types[together["multilabel"][0]] = "classes"
    tasks: list[tuple[TargetType, tuple[str, ...]]] = []
    for name in columns:
        task = (types[name], together.get(types[name], (name,)))
        if task not in tasks:
            tasks.append(task)
    if len(tasks) == 1:
        return [TaskColumns(spec.name, *tasks[0])]
    return [
        TaskColumns(f"{spec.name}.{names[0] if len(names) == 1 else target_type}", target_type, names)
        for target_type, names in tasks
    ]


def parse_numbers(
    table: LabelTable, columns: Sequence[str], target_type: TargetType
) -> Float[np.ndarray, "rows outputs"]:
    """Returns the numbers of columns; NaN for empty cells.

    Raises:
        JaxTransferError: A cell is no finite number, or for "multilabel" not 0 or 1.
    """
    parse, needed = (_binary, "0 or 1") if target_type == "multilabel" else (_number, "a finite number")
    values = np.full((len(table.files), len(columns)), np.nan, np.float32)
    for j, name in enumerate(columns):
        for i, cell in enumerate(table.columns[name]):
            if cell:
                value = parse(cell)
                if value is None:
                    raise _wrong_cell(table, name, i, needed)
                values[i, j] = value
    return values


def label_files(table: LabelTable, task: TaskColumns, rows: Sequence[int]) -> list[Path | None]:
    """Returns the files of the dense labels of rows; None for empty cells."""
    cells = table.columns[task.columns[0]]
    return [table.label_folder / relative_path(table.source, cells[i]) if cells[i] else None for i in rows]


def _inferred_type(table: LabelTable, column: str) -> TargetType:
    """Infers what the labels of a column are; one of 0 and 1 counts as "multilabel"."""
    cells = [cell for cell in table.columns[column] if cell]
    if not cells:
        raise JaxTransferError(f"{table.source}: the column {column!r} is empty; remove it, or fill in its labels.")
    if all(_binary(cell) is not None for cell in cells):
        return "multilabel"
    if all(map(_INTEGER.fullmatch, cells)):
        return "classes"
    if any(_number(cell) is not None and not _INTEGER.fullmatch(cell) for cell in cells):
        return "numbers"  # a cell of text among them is an error: a typing error must not make classes of numbers
    suffixes = {PurePosixPath(cell).suffix.lower() for cell in cells}
    if suffixes <= {".npy", *Image.registered_extensions()}:
        raise JaxTransferError(
            f"{table.source}: the column {column!r} names files; say in a .toml file what they hold, with columns = "
            f'["{column}"] and target = "dense" (numbers) or target = "dense_classes".'
        )
    return "classes"


def _number(cell: str) -> float | None:
    value = float(cell) if _NUMBER.fullmatch(cell) else np.inf
    return value if abs(value) <= _LARGEST else None


def _binary(cell: str) -> float | None:
    return _BINARY.get(cell.lower())


def _wrong_cell(table: LabelTable, column: str, row: int, needed: str) -> JaxTransferError:
    return JaxTransferError(
        f"{table.source}: {table.columns[column][row]!r}, the label of {table.files[row]} in the column {column!r}, is "
        f"not {needed}; correct it, leave the cell empty if the label is missing, or give the column another target in "
        "a .toml file."
    )
