"""Reads a data set of class folders: a folder with a folder of images for every class."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxtransfer.data.dataset_specs import DatasetSpec
from jaxtransfer.data.image_files import decode_files, digest_of_files
from jaxtransfer.data.labelled_task import LabelledTask
from jaxtransfer.data.probe import files_below, printable
from jaxtransfer.errors import JaxTransferError, unknown_name


def read_class_folders(spec: DatasetSpec, size: int, strict: bool) -> LabelledTask:
    """Reads a folder of class folders."""
    folder = spec.path
    if spec.target_type not in (None, "classes"):
        raise JaxTransferError(f"{spec.listed_in}: {folder} is a folder, so its target must be classes.")
    files, outside = _files_by_class(folder)
    if spec.classes is not None:
        check_classes(spec, files)
        files = {name: files[name] for name in spec.classes}
    # Classes take turns, so that a limit takes the same number of images of every class.
    turns = itertools.zip_longest(*([(name, file) for file in of_class] for name, of_class in files.items()))
    ordered = [pair for turn in turns for pair in turn if pair is not None]
    paths = [file for _, file in ordered]
    decoded = decode_files(folder, paths, size, limit=spec.limit, strict=strict, skipped=outside)
    labels = [ordered[i][0] for i in decoded.indices]
    if not labels:
        example = "; of {}: {}".format(*decoded.skipped[0]) if decoded.skipped else ""
        raise JaxTransferError(f"The class folders in {folder} hold no image that can be used{example}.")
    sha256 = digest_of_files(decoded.hashes, [label.encode() for label in labels])
    unused = tuple((name, 0) for name in files if name not in labels)
    return LabelledTask(
        spec.name, str(folder), decoded.images, np.array(labels), "classes", sha256,
        decoded.skipped, unused, tuple(printable(paths[i]) for i in decoded.indices),
    )  # fmt: skip


def check_classes(spec: DatasetSpec, known: Iterable[str]) -> None:
    """Raises an error if a data set does not have one of the classes that are to be used."""
    known = sorted({*known})
    for name in spec.classes or ():
        if name not in known:
            raise unknown_name("class", name, known, where=f"in {spec.path} (listed in {spec.listed_in})", at_most=20)


def _files_by_class(folder: Path) -> tuple[dict[str, list[Path]], list[tuple[str, str]]]:
    """Lists the files of every class folder, and the name and reason of files outside class folders."""
    files: dict[str, list[Path]] = {
        printable(Path(entry.name)): []
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not files:
        raise JaxTransferError(
            f"{folder} has no class folders; a dataset is a folder with a folder of images for each of two classes or "
            "more, and the datasets lie in one folder."
        )
    skipped = []
    for file in files_below(folder):
        if len(file.parts) > 1:
            files[printable(Path(file.parts[0]))].append(file)
        else:
            skipped.append((printable(file), "it lies in no class folder"))
    return files, skipped
