"""Tasks on disk: data sets as class folders, as `.npz` files, or named in a `.toml` file."""

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
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays

Kind = Literal["classes", "numbers", "dense"]
KINDS: tuple[Kind, ...] = ("classes", "numbers", "dense")
_OPTIONS = ("path", "target", "classes", "limit")

# Values resized at once.
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A data set, and what is to be told from its images.

    Attributes:
        name: Of the task; can be part of a file name.
        source: Where it was read from.
        images: [n, size, size, channels], uint8 or float32.
        labels: Class names [n], float32 numbers [n, outputs], or dense float32 targets [n, size, size, outputs].
        kind: "classes", "numbers" or "dense".
        sha256: SHA-256 over the images and labels that are used, before they are resized.
        skipped: Name and reason of every file that could not be used.
        left_out: Name and number of images of every class that is too small.
    """

    name: str
    source: str
    images: Shaped[np.ndarray, "n size size channels"]
    labels: Shaped[np.ndarray, "n ..."]
    kind: Kind
    sha256: str
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()


class _Source(NamedTuple):
    """A data set that was named, and how it is to be read."""

    name: str
    path: Path
    named_in: Path
    kind: Kind | None = None
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
) -> tuple[Task, ...]:
    """Reads data sets.

    Each path is one of

    * a folder with a folder for each data set, in which there is a folder of images for each class; images may lie in
      folders below that. A data set may be an `.npz` file there as well;
    * an `.npz` file with `x`, images [n, h, w] or [n, h, w, channels], integers 0..255 or floating point, which is used
      as it is; and `y`: classes [n] as integers or text, floating-point numbers [n, outputs], or floating-point dense
      targets [n, h, w, outputs]. Its name is the task's. Objects that would have to be unpickled are refused;
    * a `.toml` file with a table `[datasets.NAME]` for each data set: `path`, relative to the file, to a folder of
      class folders or an `.npz` file; and where wanted `target`, which says what `y` is ("classes", "numbers" or
      "dense"), `classes` (those to use) and `limit`.

    Pictures are decoded as by `load_probe`. Images are cut to their centred square and resized bilinearly with
    anti-aliasing; so are dense targets. Where some tasks are grey and others have three channels, grey is repeated.

    Args:
        paths: Of the data sets.
        size: Height and width of the images in pixels.
        limit: Use at most so many images of each data set, of its classes in turn; what a `.toml` file says goes first.
        ways: How many classes of sufficient size a task of classes must have.
        smallest: Classes with fewer images are left out.
        strict: A file that is no usable image is an error; otherwise it is listed in `Task.skipped`.

    Returns:
        The tasks, in the order of the paths, those of one folder in the order of their names.

    Raises:
        JaxTransferError: Something cannot be used; the message names the file.
    """
    if size < 1:
        raise JaxTransferError(f"The size of images must be 1 pixel or more, not {size}.")
    if limit is not None and limit < 1:
        raise JaxTransferError(f"The limit on the number of images must be 1 or more, not {limit}.")
    sources = [source for path in paths for source in _sources(Path(path))]
    if not sources:
        raise JaxTransferError("There are no tasks; name a folder of datasets, .npz files or a .toml file.")
    by_name: dict[str, _Source] = {}
    for source in sources:
        _check_name(source)
        if (other := by_name.setdefault(source.name, source)) is not source:
            raise JaxTransferError(
                f"Two datasets have the name {source.name!r}: {other.path} and {source.path}; rename one of them."
            )
    tasks = []
    for source in sources:
        source = source if source.limit else source._replace(limit=limit)
        read = _read_folder if source.path.is_dir() else _read_npz
        tasks.append(_without_small_classes(read(source, size, strict), source, ways, smallest))
    return _same_channels(tasks)


def _sources(path: Path) -> list[_Source]:
    """The data sets that one path stands for."""
    if not path.exists():
        raise JaxTransferError(f"{path} does not exist; name a folder of datasets, an .npz file or a .toml file.")
    if path.is_dir():
        found = [
            _Source(printable(Path(entry.name if entry.is_dir() else entry.stem)), entry, path)
            for entry in sorted(path.iterdir())
            if not entry.name.startswith(".") and (entry.is_dir() or entry.suffix == ".npz")
        ]
        if not found:
            raise JaxTransferError(
                f"The folder {path} holds no datasets; put one folder for each into it, with a folder for each class."
            )
        return found
    if path.suffix == ".toml":
        return _named_in(path)
    if path.suffix == ".npz":
        return [_Source(printable(Path(path.stem)), path, path)]
    raise JaxTransferError(f"{path} is neither a folder of datasets nor an .npz nor a .toml file.")


def _named_in(file: Path) -> list[_Source]:
    """The data sets that a TOML file names."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JaxTransferError(f"{file} is not valid TOML: {error}.") from error
    datasets = content.get("datasets")
    if not isinstance(datasets, dict) or not datasets or len(content) > 1:
        raise JaxTransferError(f"{file} must hold tables [datasets.NAME], one or more, and nothing else.")
    return [_described(file, name, options) for name, options in datasets.items()]


def _described(file: Path, name: str, options: Any) -> _Source:
    """One table of a TOML file."""

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    where = f"{file}, datasets.{name}"
    if not isinstance(options, Mapping):
        raise JaxTransferError(f"{where} must be a table with a path.")
    if unknown := [option for option in options if option not in _OPTIONS]:
        raise JaxTransferError(f"{where} has an unknown key {unknown[0]!r}; there are: {', '.join(_OPTIONS)}.")
    path, kind, classes, limit = (options.get(option) for option in _OPTIONS)
    if not isinstance(path, str):
        raise JaxTransferError(f"{where} needs a path, as text.")
    if kind is not None and kind not in KINDS:
        raise JaxTransferError(f"{where} has an unknown target {kind!r}; there are: {', '.join(KINDS)}.")
    if classes is not None and not (
        isinstance(classes, list) and classes and all(isinstance(each, str) or whole(each) for each in classes)
    ):
        raise JaxTransferError(f"{where}: classes must be a list of text or integers, not {classes!r}.")
    if classes is not None and kind not in (None, "classes"):
        raise JaxTransferError(f"{where} has classes, which do not go with the target {kind!r}.")
    if limit is not None and not (whole(limit) and limit >= 1):
        raise JaxTransferError(f"{where}: limit must be a number of images, 1 or more, not {limit!r}.")
    found = file.parent / path
    if not found.is_dir() and not (found.is_file() and found.suffix == ".npz"):
        raise JaxTransferError(f"{where}: {found} is neither a folder nor an .npz file.")
    wanted = None if classes is None else tuple(dict.fromkeys(map(str, classes)))
    return _Source(name, found, file, kind, wanted, limit)


def _check_name(source: _Source) -> None:
    name = source.name
    if not name or len(name) > 100 or not name.isprintable() or name[0] == "." or {*name} & {*"/\\"}:
        raise JaxTransferError(
            f"{source.named_in}: the name {name!r} of a dataset cannot be part of a file name; rename it."
        )
    if name.endswith(".partial"):
        raise JaxTransferError(f"{source.named_in}: a dataset's name must not end in .partial, as {name!r} does.")


def _read_folder(source: _Source, size: int, strict: bool) -> Task:
    """A folder of class folders."""
    folder = source.path
    if source.kind not in (None, "classes"):
        raise JaxTransferError(f"{source.named_in}: {folder} is a folder, its target must be classes.")
    files: dict[str, list[Path]] = {
        printable(Path(entry.name)): []
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    skipped = []
    for file in files_below(folder):
        if len(file.parts) > 1:
            files[printable(Path(file.parts[0]))].append(file)
        else:
            skipped.append((printable(file), "it lies in no class folder"))
    if not files:
        raise JaxTransferError(
            f"{folder} has no class folders; a dataset is a folder with a folder of images for each class, and the "
            "datasets lie in one folder."
        )
    if source.classes is not None:
        _check_classes(source, files)
        files = {name: files[name] for name in source.classes}
    # In turn, so that a limit takes as many of each class.
    turns = itertools.zip_longest(*([(name, file) for file in some] for name, some in files.items()))
    ordered = [pair for turn in turns for pair in turn if pair is not None]

    count = min(len(ordered), source.limit or len(ordered))
    images, labels, digest = np.empty((count, size, size, 3), np.uint8), [], hashlib.sha256()
    with decoding(folder, [file for _, file in ordered], size) as pictures:
        for (label, _), (name, decoded) in zip(ordered, pictures, strict=True):
            if isinstance(decoded, str):
                skipped.append((name, decoded))
            else:
                images[len(labels)], content_hash = decoded
                digest.update(f"{content_hash}  {label}\n".encode())
                labels.append(label)
            if (skipped and strict) or len(labels) == source.limit:
                break
    if skipped and strict:
        name, reason = skipped[0]
        raise JaxTransferError(f"{folder / name} cannot be used as an image of a class: {reason}.")
    if not labels:
        why = f"; of {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise JaxTransferError(f"The class folders in {folder} hold no image that can be used{why}.")
    missing = tuple((name, 0) for name in files if name not in labels)
    return Task(
        source.name, str(folder), images[: len(labels)], np.array(labels), "classes", digest.hexdigest(),
        tuple(skipped), missing,
    )  # fmt: skip


def _read_npz(source: _Source, size: int, strict: bool) -> Task:
    """An `.npz` file; all of it can be used, or it is refused."""
    file = source.path
    x, y = _arrays(file)
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise JaxTransferError(f"{file}: x must hold images [n, h, w] or [n, h, w, channels], not {_shape(x)}.")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[1] < min(x.shape[2:]):
        raise JaxTransferError(f"{file}: x, {_shape(x)}, has its channels first; save it as [n, h, w, channels].")
    if len(x) != len(y):
        raise JaxTransferError(f"{file}: x holds {len(x)} images and y {len(y)} labels; there must be one of each.")
    kind = _kind(source, y)
    x = x if x.ndim == 4 else x[..., None]
    if kind == "dense" and y.shape[1:3] != x.shape[1:3]:
        raise JaxTransferError(
            f"{file}: dense targets, {_shape(y)}, must have the height and width of the images, {_shape(x)}."
        )
    x, y = _images(file, x), _class_names(y) if kind == "classes" else _floats(file, "y", y)
    if kind == "numbers" and y.ndim == 1:
        y = y[:, None]
    missing: tuple[tuple[str, int], ...] = ()
    order = np.arange(len(y))
    if kind == "classes":
        if source.classes is not None:
            _check_classes(source, y.tolist())
            order = order[np.isin(y, source.classes)]
        order = order[_in_turn(y[order])]
        missing = tuple((name, 0) for name in np.unique(y[order]) if name not in y[order[: source.limit]])
    elif source.classes is not None:
        raise JaxTransferError(f"{source.named_in} names classes of {file}, whose targets are {kind}.")
    order = order[: source.limit]
    x, y = x[order], y[order]
    digest = hashlib.sha256()
    for array in (x, y):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    y = _resized(y, size) if kind == "dense" else y
    return Task(source.name, str(file), _resized(x, size), y, kind, digest.hexdigest(), (), missing)


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


def _kind(source: _Source, y: np.ndarray) -> Kind:
    """What the targets are: as told, if that fits, or as they look."""
    looks, wrong = None, None
    if y.ndim == 1 and y.dtype.kind != "f":
        looks = "classes"
    elif y.ndim in (2, 4) and y.dtype.kind == "f":
        looks = "numbers" if y.ndim == 2 else "dense"
    fits = {
        None: looks is not None,
        "classes": y.ndim == 1 and (y.dtype.kind != "f" or bool((y == np.round(y)).all())),
        "numbers": y.ndim in (1, 2) and y.dtype.kind in "iuf",
        "dense": y.ndim == 4 and y.dtype.kind in "iuf",
    }
    if fits[source.kind] and y.size:
        return source.kind or looks or "classes"
    if source.kind is None:
        wrong = (
            "save classes as integers or text [n], numbers to predict as floating point [n, outputs] and dense targets "
            "as floating point [n, h, w, outputs]"
        )
    else:
        wrong = f"that does not fit the target {source.kind!r} that {source.named_in} gives it"
    raise JaxTransferError(f"{source.path}: y is {y.dtype} {_shape(y)}; {wrong}.")


def _images(file: Path, x: np.ndarray) -> Shaped[np.ndarray, "n h w channels"]:
    """Images as uint8 or float32."""
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
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise JaxTransferError(f"{file}: {name} holds values that are not finite numbers; remove them.")
    return found


def _class_names(y: np.ndarray) -> np.ndarray:
    """Classes as text."""
    if y.dtype.kind == "f":
        y = y.astype(np.int64)
    names = y.tolist()
    return np.array(
        [each.decode(errors="backslashreplace") if isinstance(each, bytes) else str(each) for each in names]
    )


def _check_classes(source: _Source, known: Iterable[str]) -> None:
    known = sorted({*known})
    if unknown := [name for name in source.classes or () if name not in known]:
        has = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise JaxTransferError(f"{source.named_in}: {source.path} has no class {unknown[0]!r}; it has: {has}.")


def _in_turn(labels: np.ndarray) -> np.ndarray:
    """An order that takes the first of every class, then the second of every class, and so on."""
    _, classes = np.unique(labels, return_inverse=True)
    by_class = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    turn = np.empty(len(labels), np.int64)
    turn[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.lexsort((classes, turn))


def _resized(images: Shaped[np.ndarray, "n h w c"], size: int) -> Shaped[np.ndarray, "n size size c"]:
    """The centred square of every image, resized bilinearly with anti-aliasing."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(images)
    found = np.empty((len(images), size, size, images.shape[-1]), images.dtype)
    step = max(_CHUNK // (side * side * images.shape[-1]), 1)
    for start in range(0, len(images), step):
        some = images[start : start + step].astype(np.float32)
        new = np.asarray(jax.image.resize(some, (len(some), size, size, some.shape[-1]), "linear"))
        found[start : start + step] = np.rint(np.clip(new, 0, 255)) if images.dtype == np.uint8 else new
    return found


def _without_small_classes(task: Task, source: _Source, ways: int, smallest: int) -> Task:
    """The task with what cannot take part put aside."""
    if task.kind != "classes":
        return task
    counts = Counter(task.labels.tolist())
    small = sorted((name, count) for name, count in counts.items() if count < smallest)
    large = len(counts) - len(small)
    if large < ways:
        of = f"{smallest} images or more" if smallest > 1 else "images"
        limited = f" within the limit of {source.limit} images" if source.limit else ""
        raise JaxTransferError(
            f"{task.source} needs {ways} classes with {of}{limited}, but only {large} of its "
            f"{len(counts) + len(task.left_out)} classes have as many; ask for fewer ways, shots or queries."
        )
    kept = np.isin(task.labels, [name for name, count in counts.items() if count >= smallest])
    return dataclasses.replace(
        task, images=task.images[kept], labels=task.labels[kept], left_out=tuple(sorted([*task.left_out, *small]))
    )


def _same_channels(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks with as many channels each: grey repeated where others have three."""
    channels = {task.images.shape[-1] for task in tasks}
    if channels == {1, 3}:
        return tuple(
            dataclasses.replace(task, images=np.repeat(task.images, 3, -1)) if task.images.shape[-1] == 1 else task
            for task in tasks
        )
    if len(channels) > 1:
        found = ", ".join(f"{task.name} {task.images.shape[-1]}" for task in tasks)
        raise JaxTransferError(
            f"The images of all tasks must have as many channels ({found}); bring them to one number."
        )
    return tuple(tasks)


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
