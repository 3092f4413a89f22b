"""Reads a data set from an `.npz` file, which is refused unless all of its images can be used."""

from pathlib import Path

import numpy as np

from jaxtransfer.data.arrays import ArrayNames, LabelledArrays, TargetType, convert_arrays
from jaxtransfer.data.class_folders import check_classes
from jaxtransfer.data.dataset_specs import DatasetSpec
from jaxtransfer.data.labelled_task import LabelledTask, make_task
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays


def read_npz(spec: DatasetSpec, size: int, missing: bool) -> LabelledTask:
    """Reads an `.npz` file with the images `x`, the labels `y` and, where there are any, the `groups` of images."""
    names = ArrayNames(str(spec.path), "x", "y", str(spec.listed_in))
    arrays, target_type = convert_arrays(_arrays(spec.path), names, spec.target_type, missing)
    order, unused = _order(spec, arrays.labels, target_type, missing)
    image_names = tuple(map(str, order))
    return make_task(spec.name, str(spec.path), arrays.take(order), target_type, size, image_names, unused)


def _arrays(file: Path) -> LabelledArrays:
    if not file.is_file():  # opening a pipe would wait for ever
        raise JaxTransferError(f"{file} is not a regular file.")
    try:
        arrays = read_arrays(file, "xy", optional=["groups"])
    except ValueError as error:
        raise JaxTransferError(
            f"{file}: {error}; save images as x and labels as y, arrays of numbers or text, with np.savez."
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not array.ndim or array.dtype.kind not in "biufSU":
            raise JaxTransferError(f"{file}: {name} must be an array of numbers or text.")
    return LabelledArrays(arrays["x"], arrays["y"], arrays.get("groups"))


def _order(
    spec: DatasetSpec, y: np.ndarray, target_type: TargetType, missing: bool
) -> tuple[np.ndarray, tuple[tuple[str, int], ...]]:
    """Returns the indices of the images to use, and every class without any of them, as its name and 0."""
    order = np.arange(len(y))
    if target_type != "classes":
        if spec.classes is not None:
            raise JaxTransferError(f"{spec.listed_in} lists classes of {spec.path}, whose targets are {target_type}.")
        return order[: spec.limit], ()
    if spec.classes is not None:
        check_classes(spec, y.tolist())
        order = order[np.isin(y, spec.classes)]
    order = order[in_turn(y[order], missing)]
    unused = np.setdiff1d(y[order], y[order[: spec.limit]])
    return order[: spec.limit], tuple((name, 0) for name in unused.tolist() if name or not missing)


def in_turn(labels: np.ndarray, missing: bool) -> np.ndarray:
    """Returns an order that takes the first image of every class, then the second of every class, and so on.

    With `missing`, images without a label, an empty text, come last.
    """
    _, classes = np.unique(labels, return_inverse=True)
    by_class = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.lexsort((classes, turn, (labels == "") & missing))
