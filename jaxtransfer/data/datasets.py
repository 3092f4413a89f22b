"""Reads labelled tasks from disk: class folders, tables of labels, `.npz` files, or data sets in a `.toml` file."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxtransfer.data.arrays import CLASS_TYPES as CLASS_TYPES
from jaxtransfer.data.arrays import DENSE_TYPES as DENSE_TYPES
from jaxtransfer.data.arrays import TARGET_TYPES as TARGET_TYPES
from jaxtransfer.data.arrays import TargetType as TargetType
from jaxtransfer.data.class_folders import read_class_folders
from jaxtransfer.data.dataset_specs import DatasetSpec, list_datasets
from jaxtransfer.data.labelled_images import read_labelled_images
from jaxtransfer.data.labelled_task import LabelledTask as LabelledTask
from jaxtransfer.data.labelled_task import check_name, is_missing
from jaxtransfer.data.npz import read_npz
from jaxtransfer.errors import JaxTransferError


def read_tasks(
    paths: Iterable[str | Path],
    *,
    size: int,
    limit: int | None = None,
    ways: int = 0,
    smallest: int = 1,
    strict: bool = False,
    missing: bool = False,
) -> tuple[LabelledTask, ...]:
    """Reads labelled tasks from folders, tables of labels, `.npz` files and `.toml` files.

    A path can be

    * a folder that is a data set: with a folder of images for every class, two or more, that directly hold the
      images; or with a table `labels.csv`;
    * a folder of data sets. A data set is a folder that holds a folder of images for every class (images may also lie
      in folders below that) or a table `labels.csv`, or an `.npz` file;
    * a table of labels, a `.csv` file with a column `file`, the path of every image relative to the table, and one or
      more columns of labels. Columns become tasks by what they hold: classes, numbers, or several labels an image. A
      column `groups` tells which images belong together;
    * an `.npz` file with images `x`, [n, h, w] or [n, h, w, channels], integers 0..255, or floating point, which is
      used unchanged; and labels `y`: classes [n] as integers or text, floating-point numbers [n, outputs], several
      labels an image as integers 0 and 1 [n, outputs], floating-point dense targets [n, h, w, outputs], or dense
      classes as integers [n, h, w]; and possibly `groups` [n]. The task has the name of the file. Files that hold
      pickled objects are refused;
    * a `.toml` file with a table `[datasets.NAME]` for every data set. Its `path`, relative to the file, leads to a
      folder, a table of labels or an `.npz` file. Optional are `target` (what the labels are, a
      `LabelledTask.target_type`), `classes` (the classes to use), `limit` (most images to use), `labels` (the table of
      the images in the folder, relative to the `.toml` file), `columns` (the columns of the table to use) and `dense`
      (a folder with a dense label for every image of the folder, of the same name but for the suffix).

    Image files are decoded as by `load_probe`. Images and dense targets are cropped to their centred square and
    resized bilinearly with anti-aliasing, dense classes to the nearest pixel. If some tasks are grey and others have
    three channels, grey is repeated. Tasks with equal images share one array.

    Args:
        paths: Paths of folders, tables, `.npz` files and `.toml` files.
        size: Height and width of the images in pixels.
        limit: Most images to use of each data set, drawn from its classes in turn; the `limit` of a `.toml` file has
            precedence. None: all.
        ways: Number of classes that a classification task must have, each with at least `smallest` images.
        smallest: Classes with fewer images are left out.
        strict: Whether a file that is not a usable image is an error; otherwise it is listed in
            `LabelledTask.skipped`.
        missing: Whether labels may be missing; otherwise a missing label is an error.

    Returns:
        The tasks in the order of the paths; the tasks of a folder in the order of their names.

    Raises:
        JaxTransferError: A data set cannot be used; the message names the file.

    Examples:
        >>> np.savez("digits.npz", x=np.zeros((6, 8, 8), np.uint8), y=[0, 1, 2, 0, 1, 2])
        >>> [digits] = jt.read_tasks(["digits.npz"], size=8)
        >>> digits.name, digits.target_type, digits.images.shape
        ('digits', 'classes', (6, 8, 8, 1))
    """
    if size < 1:
        raise JaxTransferError(f"The size of images must be 1 pixel or more, not {size}.")
    if limit is not None and limit < 1:
        raise JaxTransferError(f"The limit on the number of images must be 1 or more, not {limit}.")
    specs = [spec for path in paths for spec in list_datasets(Path(path))]
    if not specs:
        raise JaxTransferError("There are no tasks; name a folder of datasets, .npz files or a .toml file.")
    _check_names([(spec.name, str(spec.path), str(spec.listed_in)) for spec in specs])
    tasks = []
    for spec in specs:
        spec = spec if spec.limit else spec._replace(limit=limit)
        tasks += [
            _without_small_classes(task, spec, ways, smallest, missing) for task in _read(spec, size, strict, missing)
        ]
    _check_names([(task.name, task.path, task.path) for task in tasks])
    return _with_shared_images(_same_channels(tasks))


def _read(spec: DatasetSpec, size: int, strict: bool, missing: bool) -> list[LabelledTask]:
    if spec.labels is not None or spec.dense is not None:
        return read_labelled_images(spec, size, strict, missing)
    return [read_class_folders(spec, size, strict) if spec.path.is_dir() else read_npz(spec, size, missing)]


def _check_names(names: Iterable[tuple[str, str, str]]) -> None:
    """Checks the names of tasks, each with the path of its data and where it is listed."""
    paths: dict[str, str] = {}
    for name, path, listed_in in names:
        check_name(name, listed_in)
        if name in paths:
            raise JaxTransferError(
                f"Two datasets have the name {name!r}: {paths[name]} and {path}; rename one of them."
            )
        paths[name] = path


def _without_small_classes(
    task: LabelledTask, spec: DatasetSpec, ways: int, smallest: int, missing: bool
) -> LabelledTask:
    """Leaves out the classes of a task that have fewer than `smallest` images."""
    if task.target_type != "classes":
        return task
    unlabelled = is_missing(task.labels) if missing else np.zeros(len(task.labels), bool)
    counts = Counter(task.labels[~unlabelled].tolist())
    small = sorted((name, count) for name, count in counts.items() if count < smallest)
    large = len(counts) - len(small)
    if large < ways:
        images = f"{smallest} images or more" if smallest > 1 else "images"
        limited = f" within the limit of {spec.limit} images" if spec.limit else ""
        raise JaxTransferError(
            f"{task.path} needs {ways} classes with {images}{limited}, but only {large} of its "
            f"{len(counts) + len(task.left_out)} classes have enough; ask for fewer ways, shots or queries."
        )
    task = dataclasses.replace(task, left_out=tuple(sorted([*task.left_out, *small])))
    if not small:
        return task
    kept = task.take(~np.isin(task.labels, [name for name, _ in small]))
    return dataclasses.replace(kept, sha256=task.sha256)  # which runs have stored


def _same_channels(tasks: Sequence[LabelledTask]) -> tuple[LabelledTask, ...]:
    """Gives all tasks the same number of channels: grey is repeated if other tasks have three."""
    channels = {task.images.shape[-1] for task in tasks}
    if channels == {1, 3}:
        return tuple(task.in_colour() for task in tasks)
    if len(channels) > 1:
        counts = ", ".join(f"{task.name} {task.images.shape[-1]}" for task in tasks)
        raise JaxTransferError(f"The images of all tasks must have the same number of channels, not {counts}.")
    return tuple(tasks)


def _with_shared_images(tasks: Sequence[LabelledTask]) -> tuple[LabelledTask, ...]:
    """Gives tasks with equal images one array of them."""
    if len(tasks) == 1:
        return tuple(tasks)
    arrays: dict[str, np.ndarray] = {}
    shared = ((task, arrays.setdefault(task.images_sha256, task.images)) for task in tasks)
    return tuple(task if task.images is images else dataclasses.replace(task, images=images) for task, images in shared)
