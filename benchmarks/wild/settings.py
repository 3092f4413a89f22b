"""Reads `settings.toml`: the packages, the networks and labelled sets in them, and how transfer is measured."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("settings.toml")

Registry = Literal["pypi", "npm", "debian"]
Format = Literal["onnx", "torch", "keras"]


@dataclasses.dataclass(frozen=True)
class Package:
    """An archive in a package registry.

    Attributes:
        name: Its name in the registry.
        registry: The registry, whose own client fetches it.
        version: Its version.
        archive: Name of the file that the client writes.
        sha256: SHA-256 of that file.
        licence: Licence of the package, and of what it holds where that is another one.
        origin: Where its contents come from, in a sentence.
    """

    name: str
    registry: Registry
    version: str
    archive: str
    sha256: str
    licence: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A trained network in a package.

    Attributes:
        name: Its name in the zoo and in all tables.
        package: Name of the package.
        file: Path of its weights in the package.
        format: Format of that file.
        task: What it was trained for, in plain words; equal for networks of the same task.
        family: Its architecture; equal for networks that differ in size alone.
        size: Height and width of its input.
        node: ONNX: name of the value that is the representation. Otherwise: name of the function of
            `architectures` that builds it.
        mean: Mean of each channel of images in [0, 1], in the order red, green, blue.
        std: What they are divided by then.
        bgr: ONNX: whether the network wants blue, green, red.
        opacity: ONNX: whether it wants a fourth channel of ones.
        channels_last: ONNX: whether the representation has channels last.
        token: Index of the token that is the representation; None: all outputs are.
        constants: ONNX: values of inputs other than the image, by name; a number fills the input.
    """

    name: str
    package: str
    file: str
    format: Format
    task: str
    family: str
    size: tuple[int, int]
    node: str
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    bgr: bool = False
    opacity: bool = False
    channels_last: bool = False
    token: int | None = None
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LabelledSet:
    """A set of labelled images.

    Attributes:
        name: Its name, that of its folder.
        package: Name of the package that holds it; empty: it is a folder of `--data`.
        reader: Name of the function of `sets` that reads it.
        labels: What is predicted, in words.
        licence: Its licence.
        origin: Where it comes from.
        groups: Folders: a regular expression whose first group names the images that belong together.
    """

    name: str
    labels: str
    licence: str
    origin: str
    package: str = ""
    reader: str = "folder"
    groups: str = ""


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How transfer is measured and predicted.

    Attributes:
        images: Most images of a set.
        classes: Most classes of a task.
        size: Height and width of the images before a network's own preprocessing.
        score_counts: Numbers of labelled examples of the scores; the largest is left to them alone.
        photos: Number of probe photos.
        repeats: For each number of labelled examples that transfer is measured with, with how many sets of as many
            examples, which have none in common.
        seeds: Trainings for each fold and learning rate.
        steps: Steps of a training.
        random: Networks of which the same architecture with random weights is measured too.
        scratch: How the small network is trained from scratch: `steps` and `rate`.
        finetuned: Which networks are trained whole, on which sets, with how many `labels` and `steps`.
    """

    images: int
    classes: int
    size: int
    score_counts: tuple[int, ...]
    photos: int
    repeats: Mapping[int, int]
    seeds: int
    steps: int
    random: tuple[str, ...]
    scratch: Mapping[str, Any]
    finetuned: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings."""

    packages: Mapping[str, Package]
    sources: Mapping[str, Source]
    sets: Mapping[str, LabelledSet]
    measuring: Measuring


def read(file: Path = FILE) -> Settings:
    """Reads the settings from a file."""
    table = tomllib.loads(file.read_text())
    measuring = _tuples(table["measuring"])
    measuring["repeats"] = {int(count): repeats for count, repeats in measuring["repeats"].items()}
    return Settings(
        {name: Package(name, **values) for name, values in table["packages"].items()},
        {name: Source(name, **_tuples(values)) for name, values in table["networks"].items()},
        {name: LabelledSet(name, **values) for name, values in table["sets"].items()},
        Measuring(**measuring),
    )


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
