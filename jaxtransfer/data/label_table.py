"""Reads tables of labels: CSV files with a row for every image."""

import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_csv, shortened

_FILE, _GROUPS = "file", "groups"
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class LabelTable(NamedTuple):
    """Holds the rows of a table of labels, in the order of the files' names.

    Attributes:
        source: The table, for error messages.
        folder: Folder of the images.
        files: Path of every image relative to the folder.
        columns: Cells of every column of labels by its name; an empty cell is a missing label.
        label_folder: Folder that the names of dense labels in cells are relative to.
        groups: Group of every image; None: the table has none.
    """

    source: Path
    folder: Path
    files: list[str]
    columns: dict[str, list[str]]
    label_folder: Path
    groups: list[str] | None = None


def read_label_table(file: Path, folder: Path) -> LabelTable:
    """Reads a table of labels, a CSV file in UTF-8 with commas, semicolons or tabs between its cells.

    Args:
        file: The table. Its column `file` has the path of every image, the column `groups` (which may be absent) its
            group, and all others hold labels. A cell with NaN counts as empty.
        folder: Folder that the paths of images are relative to and must not leave.

    Raises:
        JaxTransferError: The file cannot be read, or is no such table.
    """
    header, rows = _header_and_rows(file)
    if wrong := [row for row in rows if len(row) != len(header)]:
        raise JaxTransferError(
            f"{file} has {len(header)} columns, but a row has {len(wrong[0])} cells: {shortened(', '.join(wrong[0]))}."
        )
    if not rows:
        raise JaxTransferError(f"{file} has no rows; it needs a row for every image.")
    cells = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    files = [relative_path(file, name) for name in cells.pop(_FILE)]
    if repeated := [name for name, count in Counter(files).items() if count > 1]:
        raise JaxTransferError(f"{file} has more than one row for {repeated[0]}; leave one.")
    order = sorted(range(len(files)), key=files.__getitem__)
    columns = {name: [column[i] for i in order] for name, column in cells.items()}
    groups = columns.pop(_GROUPS, None)
    if not columns:
        raise JaxTransferError(f"{file} has no column of labels beside {shortened(' and '.join(header))}; add one.")
    return LabelTable(file, folder, [files[i] for i in order], columns, folder, groups)


def _header_and_rows(file: Path) -> tuple[list[str], list[list[str]]]:
    """Returns the cells without blanks around them; the delimiter is the one that sets the column of files apart."""
    header: list[str] = []
    for delimiter in ",;\t":
        lines = read_csv(file, "a table of labels", delimiter=delimiter)
        cells = [[_cell(cell, delimiter) for cell in line] for line in lines]
        header, *rows = [line for line in cells if any(line)] or [[]]
        if _FILE in header:
            break
    else:
        raise JaxTransferError(
            f"{file} has no column {_FILE!r}, the paths of the images, in its first row: "
            f"{shortened(', '.join(header))}."
        )
    if any("\0" in cell for row in (header, *rows) for cell in row):
        raise JaxTransferError(f"{file} is not a table of labels that can be read: it holds NUL characters.")
    if "" in header or len({*header}) < len(header):
        raise JaxTransferError(
            f"{file}: the columns in the first row must have different names: {shortened(', '.join(header))}."
        )
    return header, rows


def _cell(cell: str, delimiter: str) -> str:
    cell = cell.strip()
    if _DECIMAL_COMMA.fullmatch(cell) and delimiter == ";":  # what spreadsheets write where commas are decimal
        return cell.replace(",", ".")
    return "" if cell.lower() == "nan" else cell


def relative_path(file: Path, name: str) -> str:
    """Returns the path of a file that a table names, or raises an error if it leads out of the folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise JaxTransferError(
            f"{file}: {name!r} is not the path of a file in the folder of the images; paths must be relative to it and "
            "stay in it."
        )
    return path.as_posix()
