"""Assigns networks to groups, which a report shows by colour."""

from pathlib import Path

from jaxtransfer import rooms
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_csv, shortened
from jaxtransfer.taskonomy.tasks import TASKS


def taskonomy_groups() -> dict[str, str]:
    """Returns the group of every task in Song et al. (NeurIPS 2019), under both of its names."""
    return {name: task.group for key, task in TASKS.items() for name in (key, task.release) if task.group is not None}


def rooms_groups() -> dict[str, str]:
    """Returns the group of every task of Rooms: 2D, 3D, geometric or semantic."""
    return {name: task.group for name, task in rooms.TASKS.items()}


def load_groups(file: str | Path) -> dict[str, str]:
    """Reads a CSV file of rows `name,group` under that header.

    Raises:
        JaxTransferError: The file cannot be read or has other columns, or a name is in two groups.
    """
    file = Path(file)
    lines = read_csv(file, "a file of groups")
    header, *rows = [[cell.strip() for cell in row] for row in lines if any(row)] or [[]]
    if header != ["name", "group"]:
        raise JaxTransferError(f"{file} needs the header name,group, not {shortened(','.join(header))!r}.")
    groups: dict[str, str] = {}
    for row in rows:
        if len(row) != 2 or not all(row):
            raise JaxTransferError(f"{file} needs name,group in every row, not {shortened(','.join(row))!r}.")
        name, group = row
        if groups.setdefault(name, group) != group:
            raise JaxTransferError(f"{file} puts {name} into two groups, {groups[name]} and {group}.")
    return groups
