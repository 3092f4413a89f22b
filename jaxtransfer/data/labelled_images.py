"""Reads images with labels from a table, or with dense labels from a folder; all tasks of a table share its images."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from jaxtransfer.data.arrays import DENSE_TYPES
from jaxtransfer.data.class_folders import check_classes
from jaxtransfer.data.dataset_specs import DatasetSpec
from jaxtransfer.data.dense_labels import read_dense_labels
from jaxtransfer.data.image_files import DecodedFiles, decode_files, digest_of_files
from jaxtransfer.data.label_columns import TaskColumns, find_tasks, label_files, parse_numbers
from jaxtransfer.data.label_table import LabelTable, read_label_table
from jaxtransfer.data.labelled_task import LabelledTask, is_missing
from jaxtransfer.data.npz import in_turn
from jaxtransfer.data.probe import files_below, printable
from jaxtransfer.errors import JaxTransferError


def read_labelled_images(spec: DatasetSpec, size: int, strict: bool, missing: bool) -> list[LabelledTask]:
    """Reads the tasks of a table of labels, or of a folder of dense labels."""
    table = _dense_table(spec) if spec.labels is None else read_label_table(spec.labels, spec.path)
    tasks = find_tasks(table, spec)
    numbers = {
        task.name: parse_numbers(table, task.columns, task.target_type)
        for task in tasks
        if task.target_type in ("numbers", "multilabel")
    }  # before the images are decoded, so that an error does not wait for them
    rows = _rows(table, tasks, spec)
    present, decoded = _decode(table, rows, size, spec.limit, strict)
    kept = [present[i] for i in decoded.indices]
    unlabelled = _unlabelled(table, tasks)
    read = []
    for task in tasks:
        labels, label_bytes = _labels(table, task, kept, numbers, size)
        if not missing and (unknown := is_missing(labels).reshape(len(kept), -1)).any():
            raise JaxTransferError(
                f"{table.source}: {unknown.sum()} labels in {' and '.join(task.columns)} are missing, the first of "
                f"{table.files[kept[int(unknown.any(1).argmax())]]}; fill them in or leave out their images."
            )
        names = {table.columns[task.columns[0]][i] for i in rows} if task.target_type == "classes" else set()
        groups = None if table.groups is None else np.array([table.groups[i] for i in kept])
        read.append(
            LabelledTask(
                task.name,
                str(table.source),
                decoded.images,
                labels,
                task.target_type,
                digest_of_files(decoded.hashes, label_bytes, groups),
                decoded.skipped,
                left_out=tuple((name, 0) for name in sorted(names - {*labels.tolist(), ""})) if names else (),
                image_names=tuple(printable(Path(table.files[i])) for i in kept),
                groups=groups,
                unlabelled=unlabelled,
            )
        )
    return read


def _labels(
    table: LabelTable, task: TaskColumns, rows: Sequence[int], numbers: Mapping[str, np.ndarray], size: int
) -> tuple[Shaped[np.ndarray, "n ..."], list[bytes]]:
    """Returns the labels of rows, and the bytes that stand for each of them in a hash."""
    if task.name in numbers:
        labels = numbers[task.name][rows]
        return labels, [row.tobytes() for row in labels]
    if task.target_type == "classes":
        cells = table.columns[task.columns[0]]
        labels = np.array([cells[i] for i in rows])
        return labels, [label.encode() for label in labels.tolist()]
    images = [table.folder / table.files[i] for i in rows]
    labels, hashes = read_dense_labels(images, label_files(table, task, rows), task.target_type, size)
    return labels, [content_hash.encode() for content_hash in hashes]


def _dense_table(spec: DatasetSpec) -> LabelTable:
    """Lists the images of a folder that have a dense label of the same name."""
    folder, dense = spec.path, spec.dense
    assert dense is not None
    labels: dict[Path, Path] = {}
    for file in files_below(dense):
        if (other := labels.setdefault(file.with_suffix(""), file)) != file:
            raise JaxTransferError(f"{dense} has two labels of one name, {other} and {file}; leave one.")
    pairs = {
        file.as_posix(): labels[file.with_suffix("")].as_posix()
        for file in _image_files(folder, dense)
        if file.with_suffix("") in labels
    }
    if not pairs:
        raise JaxTransferError(f"No image in {folder} has a label of the same name in {dense}.")
    return LabelTable(dense, folder, [*pairs], {dense.name: [*pairs.values()]}, dense)


def _rows(table: LabelTable, tasks: Sequence[TaskColumns], spec: DatasetSpec) -> list[int]:
    """Returns the rows to use, the classes of the first task of classes in turn."""
    of_classes = [task for task in tasks if task.target_type == "classes"]
    if spec.classes is not None and (len(tasks) > 1 or not of_classes):
        raise JaxTransferError(
            f"{spec.listed_in} lists classes of {table.source}, which has more than one task or other labels; name one "
            "column of classes."
        )
    rows = np.arange(len(table.files))
    if of_classes:
        labels = np.array(table.columns[of_classes[0].columns[0]])
        if spec.classes is not None:
            check_classes(spec, [name for name in labels.tolist() if name])
            rows = rows[np.isin(labels, spec.classes)]
        rows = rows[in_turn(labels[rows], missing=True)]
    return rows.tolist()


def _decode(
    table: LabelTable, rows: Sequence[int], size: int, limit: int | None, strict: bool
) -> tuple[list[int], DecodedFiles]:
    """Returns the rows whose files exist, and their images."""
    present = [i for i in rows if (table.folder / table.files[i]).is_file()]
    absent = [(table.files[i], "there is no such file") for i in sorted({*rows} - {*present})]
    if absent and strict:
        raise JaxTransferError(
            f"{table.source} names {len(absent)} files that do not exist in {table.folder}, the first is "
            f"{absent[0][0]}; correct their names or leave them out."
        )
    files = [Path(table.files[i]) for i in present]
    decoded = decode_files(table.folder, files, size, limit=limit, strict=strict, skipped=absent)
    if not len(decoded.indices):
        name, reason = decoded.skipped[0]
        raise JaxTransferError(
            f"None of the {len(rows)} images that {table.source} names can be used; of {name}: {reason}."
        )
    return present, decoded


def _unlabelled(table: LabelTable, tasks: Sequence[TaskColumns]) -> int:
    """Counts the image files that the table does not name, as an image or as a label."""
    named = {*table.files}
    for task in tasks:
        if task.target_type in DENSE_TYPES:
            named |= {PurePosixPath(cell).as_posix() for cell in table.columns[task.columns[0]]}
    return sum(file.as_posix() not in named for file in _image_files(table.folder, table.label_folder))


def _image_files(folder: Path, label_folder: Path) -> list[Path]:
    """Lists the image files in a folder and below it, without those in a folder of labels inside it."""
    files = [file for file in files_below(folder) if file.suffix.lower() in Image.registered_extensions()]
    if label_folder == folder:
        return files
    return [file for file in files if not (folder / file).resolve().is_relative_to(label_folder.resolve())]
