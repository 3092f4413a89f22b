"""Lists the data sets of a path: a folder, a table of labels, an `.npz` file, or a `.toml` file that lists them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from jaxtransfer.data.arrays import DENSE_TYPES, TargetType, check_target_type
from jaxtransfer.data.probe import printable
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.files import JsonObject, check_fields, parse_toml

LABELS_CSV = "labels.csv"
_FORMS = "a folder, a table of labels (.csv), an .npz file or a .toml file"


def _name(value: Any) -> Any:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"should be text or an integer, not {value!r}")
    return value


_Names = Annotated[list[Annotated[Any, AfterValidator(_name)]], Field(min_length=1)]


class _Options(JsonObject):
    """Checks a table of a `.toml` file."""

    path: str
    target: Any = None
    classes: _Names | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    labels: str | None = None
    columns: _Names | None = None
    dense: str | None = None


_OPTIONS = (*_Options.model_fields,)


class DatasetSpec(NamedTuple):
    """A data set to read, and the options for reading it.

    Attributes:
        name: Name of the data set.
        path: The folder or `.npz` file.
        listed_in: The folder or `.toml` file that lists the data set, for error messages.
        target_type: What the labels are; None: to be inferred from them.
        classes: The classes to use; None: all.
        limit: Most images to use; None: all.
        labels: Table of the labels of the images in the folder; None: there is none.
        columns: The columns of the table to use; None: all.
        dense: Folder of the dense labels of the images in the folder; None: there is none.
    """

    name: str
    path: Path
    listed_in: Path
    target_type: TargetType | None = None
    classes: tuple[str, ...] | None = None
    limit: int | None = None
    labels: Path | None = None
    columns: tuple[str, ...] | None = None
    dense: Path | None = None


def list_datasets(path: Path) -> list[DatasetSpec]:
    """Lists the data sets of a path."""
    if not path.exists():
        raise JaxTransferError(f"{path} does not exist; name {_FORMS}.")
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".toml":
        return _in_toml(path)
    if path.suffix == ".npz":
        return [DatasetSpec(printable(Path(path.stem)), path, path)]
    if path.suffix == ".csv":
        name = _folder_name(path.parent) if path.name == LABELS_CSV else printable(Path(path.stem))
        return [DatasetSpec(name, path.parent, path, labels=path)]
    raise JaxTransferError(f"{path} is neither a folder of datasets nor a .csv, .npz or .toml file.")


def _in_folder(folder: Path) -> list[DatasetSpec]:
    """Lists the data sets of a folder, which may be one itself."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    itself = DatasetSpec(_folder_name(folder), folder, folder)
    if folder / LABELS_CSV in entries:
        return [itself._replace(labels=folder / LABELS_CSV)]
    datasets = [entry for entry in entries if entry.is_dir() or entry.suffix == ".npz"]
    if not datasets:
        raise JaxTransferError(
            f"The folder {folder} holds no datasets; a dataset is a folder with a folder of images for each class, "
            f"or with a table {LABELS_CSV}, or an .npz file."
        )
    class_folders = [entry for entry in datasets if entry.is_dir() and _is_class_folder(entry)]
    others = [entry for entry in datasets if entry not in class_folders and not (entry.is_dir() and _is_empty(entry))]
    if class_folders and others:
        raise JaxTransferError(
            f"The folder {folder} holds class folders, such as {class_folders[0].name}, beside what may be datasets, "
            f"such as {others[0].name}; say which in a .toml file, with a table [datasets.NAME] and its path for each "
            "dataset."
        )
    if len(class_folders) > 1:
        return [itself]
    return [_of_entry(entry, folder) for entry in datasets]


def _of_entry(entry: Path, folder: Path) -> DatasetSpec:
    name = printable(Path(entry.name if entry.is_dir() else entry.stem))
    return DatasetSpec(name, entry, folder, labels=_labels_in(entry))


def _folder_name(folder: Path) -> str:
    return printable(Path(os.path.basename(os.path.abspath(folder))))  # also of "." and ".."


def _labels_in(path: Path) -> Path | None:
    return path / LABELS_CSV if (path / LABELS_CSV).is_file() else None


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _is_empty(folder: Path) -> bool:
    return not _visible(folder)


def _is_class_folder(folder: Path) -> bool:
    """Tells whether a folder holds files but no folder and no table of labels."""
    entries = _visible(folder)
    return bool(entries) and not any(entry.is_dir() or entry.name == LABELS_CSV for entry in entries)


def _in_toml(file: Path) -> list[DatasetSpec]:
    """Lists the data sets of a TOML file."""
    try:
        content = parse_toml(file.read_bytes())
    except ValueError as error:
        raise JaxTransferError(f"{file} {error}.") from error
    datasets = content.get("datasets")
    if not isinstance(datasets, dict) or not datasets or len(content) > 1:
        raise JaxTransferError(f"{file} must hold tables [datasets.NAME], one or more, and nothing else.")
    return [_spec_of_table(file, name, options) for name, options in datasets.items()]


def _spec_of_table(file: Path, name: str, options: Any) -> DatasetSpec:
    """Reads one table of a TOML file."""
    where = f"{file}, datasets.{name}"
    if not isinstance(options, Mapping):
        raise JaxTransferError(f"{where} must be a table with a path.")
    for option in options:
        if option not in _OPTIONS:
            raise unknown_name("option", option, _OPTIONS, where=f"for {where}")
    try:
        check_fields(options, _Options)
    except ValueError as error:
        raise JaxTransferError(f"{where} cannot be used: {error}.") from error
    target_type, classes, limit, labels, columns, dense = (options.get(option) for option in _OPTIONS[1:])
    check_target_type(target_type, where)
    if classes is not None:
        classes = _unique(classes)
        if target_type not in (None, "classes"):
            raise JaxTransferError(
                f"{where} lists classes, which the target {target_type!r} does not have; leave out one of the two."
            )
    dataset = file.parent / options["path"]
    if dataset.is_file() and dataset.suffix == ".csv" and labels is None:
        dataset, labels = dataset.parent, dataset
    elif not dataset.is_dir() and not (dataset.is_file() and dataset.suffix == ".npz"):
        raise JaxTransferError(f"{where}: {dataset} is neither a folder nor an .npz file nor a table of labels (.csv).")
    elif labels is not None:
        labels = _beside(where, file, dataset, "labels", labels)
    elif dense is None:
        labels = _labels_in(dataset)
    if columns is not None:
        columns = _unique(columns)
        if labels is None:
            raise JaxTransferError(
                f"{where} names columns, but {dataset} has no table {LABELS_CSV}; name it as labels."
            )
    if dense is not None:
        dense = _beside(where, file, dataset, "dense", dense)
        if labels is not None or target_type not in DENSE_TYPES:
            raise JaxTransferError(
                f'{where}: dense labels in a folder need target = "dense" or target = "dense_classes", and no table '
                "of labels."
            )
    return DatasetSpec(name, dataset, file, target_type, classes, limit, labels, columns, dense)


def _beside(where: str, file: Path, dataset: Path, option: str, value: str) -> Path:
    """Returns the table or the folder of labels that an option names, relative to the TOML file."""
    path = file.parent / value
    if not dataset.is_dir() or not (path.is_dir() if option == "dense" else path.is_file()):
        kind = "folder" if option == "dense" else "table (.csv)"
        raise JaxTransferError(
            f"{where}: {option} must be the {kind} of the labels of a folder of images, not {value!r} for {dataset}."
        )
    return path


def _unique(values: list[str | int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, values)))
