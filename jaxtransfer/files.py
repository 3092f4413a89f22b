"""Files that appear whole or not at all."""

import contextlib
import csv
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def beside(file: Path) -> Path:
    """Where a file is written before it takes its place."""
    return file.with_name(f".{file.name}.partial")


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A path to write to; what is there in the end becomes `file`, and nothing is left of it after an error."""
    partial = beside(file)
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        error.filename = error.filename or str(file)  # a full disk says not where
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A new directory to write into, which takes the place of `directory`; nothing is left of it after an error."""
    partial = beside(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if directory.exists():
            shutil.rmtree(directory)
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes an `.npz` file."""
    with atomic_write(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def write_csv(file: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table; numbers so that they read back as the same, unknown ones as nothing."""
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)


def read_table(file: Path, dtype: type, *, missing: str = "") -> tuple[tuple[str, ...], np.ndarray]:
    """Names and values of a square table with the names in its first row and column.

    Args:
        file: The table.
        dtype: Of the values.
        missing: What an empty cell stands for.

    Raises:
        OSError: The file cannot be read.
        ValueError: Rows and columns differ, or a cell holds no value.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    names = tuple(header[1:])
    if tuple(row[0] for row in rows) != names:
        raise ValueError(f"rows and columns of {file.name} differ")
    values = np.array([[cell or missing for cell in row[1:]] for row in rows], dtype=dtype)
    return names, values.reshape(len(names), len(names))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"
