"""Reads labelled tasks from disk: class folders, `.npz` files, or data sets that a `.toml` file lists."""

import dataclasses
import hashlib
import itertools
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Shaped

from jaxtransfer.data.probe import decoding, files_below, printable
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.files import read_arrays
from jaxtransfer.pixels import centred_crop

TargetType = Literal["classes", "numbers", "multilabel", "dense", "dense_classes"]
TARGET_TYPES: tuple[TargetType, ...] = ("classes", "numbers", "dense")
_OPTIONS = ("path", "target", "classes", "limit")

# Most pixel values that are resized in one step.
_VALUES_PER_STEP = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTask:
    """Images with labels that are to be predicted from them.

    Attributes:
        name: The task's name, which can be part of a file name.
        path: The folder or `.npz` file that it was read from.
        images: [n, size, size, channels], uint8 or float32.
        labels: Class names [n], float32 numbers [n, outputs], or dense float32 targets [n, size, size, outputs].
        target_type: What the labels are: "classes", "numbers" or "dense".
        sha256: SHA-256 over the images and labels that are used, before they are resized.
        skipped: Name and reason of every file that could not be used.
        left_out: Name and number of images of every class that is too small.
    """

    name: str
    path: str
    images: Shaped[np.ndarray, "n size size channels"]
    labels: Shaped[np.ndarray, "n ..."]
    target_type: TargetType
    sha256: str
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()


class _DatasetSpec(NamedTuple):
    """A data set to read, and the options for reading it.

    Attributes:
        name: The task's name.
        path: The folder or `.npz` file.
        listed_in: The folder or `.toml` file that lists the data set, for error messages.
        target_type: What the labels are; None: to be inferred from them.
        classes: The classes to use; None: all.
        limit: Most images to use; None: all.
    """

    name: str
    path: Path
    listed_in: Path
    target_type: TargetType | None = None
    classes: tuple[str, ...] | None = None
    limit: int | None = None


def read_tasks(
    paths: Iterable[str | Path],
    *,
    size: int,
    limit: int | None = None,
    ways: int = 1,
    smallest: int = 1,
    strict: bool = False,
) -> tuple[LabelledTask, ...]:
    """Reads labelled tasks from folders, `.npz` files and `.toml` files.

    A path can be

    * a folder of data sets. A data set is a folder that holds a folder of images for every class (images may also lie
      in folders below that), or an `.npz` file;
    * an `.npz` file with images `x`, [n, h, w] or [n, h, w, channels], integers 0..255, or floating point, which is
      used unchanged; and labels `y`: classes [n] as integers or text, floating-point numbers [n, outputs], or
      floating-point dense targets [n, h, w, outputs]. The task has the name of the file. Files that hold pickled
      objects are refused;
    * a `.toml` file with a table `[datasets.NAME]` for every data set. Its `path`, relative to the file, leads to a
      folder of class folders or to an `.npz` file. Optional are `target` (what `y` is: "classes", "numbers" or
      "dense"), `classes` (the classes to use) and `limit` (most images to use).

    Image files are decoded as by `load_probe`. Images and dense targets are cropped to their centred square and
    resized bilinearly with anti-aliasing. If some tasks are grey and others have three channels, grey is repeated.

    Args:
        paths: Paths of folders, `.npz` files and `.toml` files.
        size: Height and width of the images in pixels.
        limit: Most images to use of each data set, drawn from its classes in turn; the `limit` of a `.toml` file has
            precedence. None: all.
        ways: Number of classes that a classification task must have, each with at least `smallest` images.
        smallest: Classes with fewer images are left out.
        strict: Whether a file that is not a usable image is an error; otherwise it is listed in
            `LabelledTask.skipped`.

    Returns:
        The tasks in the order of the paths; the tasks of a folder in the order of their names.

    Raises:
        JaxTransferError: A data set cannot be used; the message names the file.
    """
    if size < 1:
        raise JaxTransferError(f"The size of images must be 1 pixel or more, not {size}.")
    if limit is not None and limit < 1:
        raise JaxTransferError(f"The limit on the number of images must be 1 or more, not {limit}.")
    specs = [spec for path in paths for spec in _specs(Path(path))]
    if not specs:
        raise JaxTransferError("There are no tasks; name a folder of datasets, .npz files or a .toml file.")
    by_name: dict[str, _DatasetSpec] = {}
    for spec in specs:
        _check_name(spec)
        if (other := by_name.setdefault(spec.name, spec)) is not spec:
            raise JaxTransferError(
                f"Two datasets have the name {spec.name!r}: {other.path} and {spec.path}; rename one of them."
            )
    tasks = []
    for spec in specs:
        spec = spec if spec.limit else spec._replace(limit=limit)
        read = _read_folder if spec.path.is_dir() else _read_npz
        tasks.append(_without_small_classes(read(spec, size, strict), spec, ways, smallest))
    return _same_channels(tasks)


def _specs(path: Path) -> list[_DatasetSpec]:
    """Lists the data sets of a path."""
    if not path.exists():
        raise JaxTransferError(f"{path} does not exist; name a folder of datasets, an .npz file or a .toml file.")
    if path.is_dir():
        specs = [
            _DatasetSpec(printable(Path(entry.name if entry.is_dir() else entry.stem)), entry, path)
            for entry in sorted(path.iterdir())
            if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix == ".npz")
        ]
        if not specs:
            raise JaxTransferError(
                f"The folder {path} holds no datasets; a dataset is a folder with a folder of images for each class, "
                "or an .npz file."
            )
        return specs
    if path.suffix == ".toml":
        return _specs_in_toml(path)
    if path.suffix == ".npz":
        return [_DatasetSpec(printable(Path(path.stem)), path, path)]
    raise JaxTransferError(f"{path} is neither a folder of datasets nor an .npz nor a .toml file.")


def _specs_in_toml(file: Path) -> list[_DatasetSpec]:
    """Lists the data sets of a TOML file."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JaxTransferError(f"{file} is not valid TOML: {error}.") from error
    datasets = content.get("datasets")
    if not isinstance(datasets, dict) or not datasets or len(content) > 1:
        raise JaxTransferError(f"{file} must hold tables [datasets.NAME], one or more, and nothing else.")
    return [_spec_of_table(file, name, options) for name, options in datasets.items()]


def _spec_of_table(file: Path, name: str, options: Any) -> _DatasetSpec:
    """Reads one table of a TOML file."""
    where = f"{file}, datasets.{name}"
    if not isinstance(options, Mapping):
        raise JaxTransferError(f"{where} must be a table with a path.")
    for option in options:
        if option not in _OPTIONS:
            raise unknown_name("option", option, _OPTIONS, where=f"for {where}")
    path, target_type, classes, limit = (options.get(option) for option in _OPTIONS)
    if not isinstance(path, str):
        raise JaxTransferError(f"{where} needs a path, as text.")
    if target_type is not None and target_type not in TARGET_TYPES:
        raise unknown_name("target", target_type, TARGET_TYPES, where=f"for {where}")
    if classes is not None:
        if not isinstance(classes, list) or not classes or not all(map(_is_class_name, classes)):
            raise JaxTransferError(f"{where}: classes must be a list of text or integers, not {classes!r}.")
        if target_type not in (None, "classes"):
            raise JaxTransferError(
                f"{where} lists classes, which the target {target_type!r} does not have; leave out one of the two."
            )
        classes = tuple(dict.fromkeys(map(str, classes)))
    if limit is not None and not (_is_integer(limit) and limit >= 1):
        raise JaxTransferError(f"{where}: limit must be a number of images, 1 or more, not {limit!r}.")
    dataset = file.parent / path
    if not dataset.is_dir() and not (dataset.is_file() and dataset.suffix == ".npz"):
        raise JaxTransferError(f"{where}: {dataset} is neither a folder nor an .npz file.")
    return _DatasetSpec(name, dataset, file, target_type, classes, limit)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_class_name(value: Any) -> bool:
    return isinstance(value, str) or _is_integer(value)


def _check_name(spec: _DatasetSpec) -> None:
    name = spec.name
    if not name or len(name) > 100 or not name.isprintable() or name[0] == "." or {*name} & {*"/\\"}:
        raise JaxTransferError(
            f"{spec.listed_in}: the name {name!r} of a dataset cannot be part of a file name; rename it."
        )
    if name.endswith(".partial"):
        raise JaxTransferError(f"{spec.listed_in}: a dataset's name must not end in .partial, as {name!r} does.")


def _read_folder(spec: _DatasetSpec, size: int, strict: bool) -> LabelledTask:
    """Reads a folder of class folders."""
    folder = spec.path
    if spec.target_type not in (None, "classes"):
        raise JaxTransferError(f"{spec.listed_in}: {folder} is a folder, so its target must be classes.")
    files, skipped = _files_by_class(folder)
    if spec.classes is not None:
        _check_classes(spec, files)
        files = {name: files[name] for name in spec.classes}
    # Classes take turns, so that a limit takes the same number of images of every class.
    turns = itertools.zip_longest(*([(name, file) for file in of_class] for name, of_class in files.items()))
    ordered = [pair for turn in turns for pair in turn if pair is not None]

    count = min(len(ordered), spec.limit or len(ordered))
    images, labels, digest = np.empty((count, size, size, 3), np.uint8), [], hashlib.sha256()
    with decoding(folder, [file for _, file in ordered], size) as decoded_files:
        for (label, _), (name, decoded) in zip(ordered, decoded_files, strict=True):
            if isinstance(decoded, str):
                skipped.append((name, decoded))
            else:
                images[len(labels)], content_hash = decoded
                digest.update(f"{content_hash}  {label}\n".encode())
                labels.append(label)
            if (skipped and strict) or len(labels) == spec.limit:
                break
    if skipped and strict:
        name, reason = skipped[0]
        raise JaxTransferError(f"{folder / name} cannot be used as an image of a class: {reason}.")
    if not labels:
        example = f"; of {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise JaxTransferError(f"The class folders in {folder} hold no image that can be used{example}.")
    missing = tuple((name, 0) for name in files if name not in labels)
    return LabelledTask(
        spec.name, str(folder), images[: len(labels)], np.array(labels), "classes", digest.hexdigest(),
        tuple(skipped), missing,
    )  # fmt: skip


def _files_by_class(folder: Path) -> tuple[dict[str, list[Path]], list[tuple[str, str]]]:
    """Lists the files of every class folder, and the name and reason of files outside class folders."""
    files: dict[str, list[Path]] = {
        printable(Path(entry.name)): []
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not files:
        raise JaxTransferError(
            f"{folder} has no class folders; a dataset is a folder with a folder of images for each class, and the "
            "datasets lie in one folder."
        )
    skipped = []
    for file in files_below(folder):
        if len(file.parts) > 1:
            files[printable(Path(file.parts[0]))].append(file)
        else:
            skipped.append((printable(file), "it lies in no class folder"))
    return files, skipped


def _read_npz(spec: _DatasetSpec, size: int, strict: bool) -> LabelledTask:
    """Reads an `.npz` file, which is refused unless all of its images can be used."""
    file = spec.path
    x, y = _arrays(file)
    _check_images_and_labels(file, x, y)
    target_type = _target_type(spec, y)
    x = x if x.ndim == 4 else x[..., None]
    if target_type == "dense" and y.shape[1:3] != x.shape[1:3]:
        raise JaxTransferError(
            f"{file}: dense targets, {_shape(y)}, must have the height and width of the images, {_shape(x)}."
        )
    x, y = _images(file, x), _class_names(y) if target_type == "classes" else _floats(file, "y", y)
    if target_type == "numbers" and y.ndim == 1:
        y = y[:, None]
    order, missing = _order(spec, y, target_type)
    x, y = x[order], y[order]
    digest = hashlib.sha256()
    for array in (x, y):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    y = _resized(y, size) if target_type == "dense" else y
    return LabelledTask(spec.name, str(file), _resized(x, size), y, target_type, digest.hexdigest(), (), missing)


def _check_images_and_labels(file: Path, x: np.ndarray, y: np.ndarray) -> None:
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise JaxTransferError(f"{file}: x must hold images [n, h, w] or [n, h, w, channels], not {_shape(x)}.")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[1] < min(x.shape[2:]):
        raise JaxTransferError(f"{file}: x, {_shape(x)}, has its channels first; save it as [n, h, w, channels].")
    if len(x) != len(y):
        raise JaxTransferError(f"{file}: x holds {len(x)} images and y {len(y)} labels; the numbers must be equal.")


def _order(
    spec: _DatasetSpec, y: np.ndarray, target_type: TargetType
) -> tuple[np.ndarray, tuple[tuple[str, int], ...]]:
    """Returns the indices of the images to use, and every class without any of them, as its name and 0."""
    order = np.arange(len(y))
    if target_type != "classes":
        if spec.classes is not None:
            raise JaxTransferError(f"{spec.listed_in} lists classes of {spec.path}, whose targets are {target_type}.")
        return order[: spec.limit], ()
    if spec.classes is not None:
        _check_classes(spec, y.tolist())
        order = order[np.isin(y, spec.classes)]
    order = order[_in_turn(y[order])]
    missing = tuple((name, 0) for name in np.unique(y[order]) if name not in y[order[: spec.limit]])
    return order[: spec.limit], missing


def _arrays(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads images `x` and labels `y` from an `.npz` file."""
    if not file.is_file():  # opening a pipe would wait for ever
        raise JaxTransferError(f"{file} is not a regular file.")
    try:
        arrays = read_arrays(file, "xy")
    except ValueError as error:
        raise JaxTransferError(
            f"{file}: {error}; save images as x and labels as y, arrays of numbers or text, with np.savez."
        ) from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not array.ndim or array.dtype.kind not in "biufSU":
            raise JaxTransferError(f"{file}: {name} must be an array of numbers or text.")
    return arrays["x"], arrays["y"]


def _target_type(spec: _DatasetSpec, y: np.ndarray) -> TargetType:
    """Infers the type of the targets, or checks that the type which was given fits."""
    inferred = None
    if y.ndim == 1 and y.dtype.kind != "f":
        inferred = "classes"
    elif y.ndim in (2, 4) and y.dtype.kind == "f":
        inferred = "numbers" if y.ndim == 2 else "dense"
    fits = {
        None: inferred is not None,
        "classes": y.ndim == 1 and (y.dtype.kind != "f" or bool((y == np.round(y)).all())),
        "numbers": y.ndim in (1, 2) and y.dtype.kind in "iuf",
        "dense": y.ndim == 4 and y.dtype.kind in "iuf",
    }
    if fits[spec.target_type] and y.size:
        return spec.target_type or inferred or "classes"
    if spec.target_type is None:
        problem = (
            "save classes as integers or text [n], numbers to predict as floating point [n, outputs] and dense targets "
            "as floating point [n, h, w, outputs]"
        )
    else:
        problem = f"that does not fit the target {spec.target_type!r} that {spec.listed_in} gives it"
    raise JaxTransferError(f"{spec.path}: y is {y.dtype} {_shape(y)}; {problem}.")


def _images(file: Path, x: np.ndarray) -> Shaped[np.ndarray, "n h w channels"]:
    """Converts images to uint8 or float32."""
    if x.dtype.kind == "f":
        return _floats(file, "x", x)
    if x.dtype.kind not in "iu":
        raise JaxTransferError(f"{file}: x is {x.dtype}; it must be integers 0 to 255 or floating point.")
    if x.min() < 0 or x.max() > 255:
        raise JaxTransferError(
            f"{file}: x runs from {x.min()} to {x.max()}; integers must lie in 0 to 255; save others as floats."
        )
    return x.astype(np.uint8)


def _floats(file: Path, name: str, array: np.ndarray) -> Float[np.ndarray, "..."]:
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    if not np.isfinite(floats).all():
        raise JaxTransferError(f"{file}: {name} holds values that are not finite numbers; remove them.")
    return floats


def _class_names(y: np.ndarray) -> np.ndarray:
    """Converts classes to text."""
    if y.dtype.kind == "f":
        y = y.astype(np.int64)
    names = y.tolist()
    return np.array(
        [name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name) for name in names]
    )


def _check_classes(spec: _DatasetSpec, known: Iterable[str]) -> None:
    known = sorted({*known})
    for name in spec.classes or ():
        if name not in known:
            raise unknown_name("class", name, known, where=f"in {spec.path} (listed in {spec.listed_in})", at_most=20)


def _in_turn(labels: np.ndarray) -> np.ndarray:
    """Returns an order that takes the first image of every class, then the second of every class, and so on."""
    _, classes = np.unique(labels, return_inverse=True)
    by_class = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.lexsort((classes, turn))


def _resized(images: Shaped[np.ndarray, "n h w c"], size: int) -> Shaped[np.ndarray, "n size size c"]:
    """Resizes the centred square of every image bilinearly with anti-aliasing."""
    top, left, side, _ = centred_crop(images.shape[1], images.shape[2], (1, 1))
    images = images[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(images)
    resized = np.empty((len(images), size, size, images.shape[-1]), images.dtype)
    step = max(_VALUES_PER_STEP // (side * side * images.shape[-1]), 1)
    for start in range(0, len(images), step):
        batch = images[start : start + step].astype(np.float32)
        new = np.asarray(jax.image.resize(batch, (len(batch), size, size, batch.shape[-1]), "linear"))
        resized[start : start + step] = np.rint(np.clip(new, 0, 255)) if images.dtype == np.uint8 else new
    return resized


def _without_small_classes(task: LabelledTask, spec: _DatasetSpec, ways: int, smallest: int) -> LabelledTask:
    """Leaves out the classes of a task that have fewer than `smallest` images."""
    if task.target_type != "classes":
        return task
    counts = Counter(task.labels.tolist())
    small = sorted((name, count) for name, count in counts.items() if count < smallest)
    large = len(counts) - len(small)
    if large < ways:
        images = f"{smallest} images or more" if smallest > 1 else "images"
        limited = f" within the limit of {spec.limit} images" if spec.limit else ""
        raise JaxTransferError(
            f"{task.path} needs {ways} classes with {images}{limited}, but only {large} of its "
            f"{len(counts) + len(task.left_out)} classes have enough; ask for fewer ways, shots or queries."
        )
    kept = np.isin(task.labels, [name for name, count in counts.items() if count >= smallest])
    return dataclasses.replace(
        task, images=task.images[kept], labels=task.labels[kept], left_out=tuple(sorted([*task.left_out, *small]))
    )


def _same_channels(tasks: Sequence[LabelledTask]) -> tuple[LabelledTask, ...]:
    """Gives all tasks the same number of channels: grey is repeated if other tasks have three."""
    channels = {task.images.shape[-1] for task in tasks}
    if channels == {1, 3}:
        return tuple(
            dataclasses.replace(task, images=np.repeat(task.images, 3, -1)) if task.images.shape[-1] == 1 else task
            for task in tasks
        )
    if len(channels) > 1:
        counts = ", ".join(f"{task.name} {task.images.shape[-1]}" for task in tasks)
        raise JaxTransferError(f"The images of all tasks must have the same number of channels, not {counts}.")
    return tuple(tasks)


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
