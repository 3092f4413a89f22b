"""The settings of `settings.toml`, typed."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_name("settings.toml")


@dataclasses.dataclass(frozen=True)
class World:
    """How many examples of what size."""

    size: int
    train: int
    test: int
    target: int
    held_out: int


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a network, or a readout alone, is trained.

    Attributes:
        steps: Of the optimiser.
        batch: Examples in a step.
        learning_rate: The highest.
        weight_decay: Of AdamW.
        momentum: What a step leaves of the means that an encoder normalises by when it is tested.
        hidden: Channels of a readout.
        kernel: Height and width of the convolution of a readout for pixels.
        every: Of pixels, every such row and column is asked.
        from_prior: Whether a readout's answers are added to those of the prior.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    momentum: float
    hidden: int
    kernel: int
    every: int
    from_prior: bool


@dataclasses.dataclass(frozen=True)
class Training(Learning):
    """How encoders are trained; tasks without an entry in `seeds` are trained once."""

    checkpoint: int
    seeds: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Transfer(Learning):
    """How transfers are measured."""

    seeds: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of them."""

    world: World
    training: Training
    transfer: Transfer


def read(file: Path = FILE) -> Settings:
    """The settings of a file."""
    table = tomllib.loads(file.read_text())
    return Settings(World(**table["world"]), Training(**table["training"]), Transfer(**table["transfer"]))
