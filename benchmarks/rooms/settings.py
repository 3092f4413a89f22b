"""Reads `settings.toml` into typed settings."""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_name("settings.toml")


@dataclasses.dataclass(frozen=True)
class World:
    """The data.

    Attributes:
        size: Height and width of the images in pixels.
        train: Number of training examples of the encoders.
        test: Number of test examples of the encoders.
        held_out: Number of test examples of the transfers.
    """

    size: int
    train: int
    test: int
    held_out: int


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a network or a readout is trained.

    Attributes:
        steps: Number of optimiser steps.
        batch: Examples per step.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        momentum: Decay per step of the running statistics of batch normalisation.
        hidden: Hidden channels of a readout.
        kernel: Height and width of the convolution in a readout for pixels.
        every: Stride of the rows and columns of pixels that are predicted.
        from_prior: Whether a readout predicts the difference from the best constant prediction.
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
    """How encoders are trained.

    Attributes:
        checkpoint: Steps between checkpoints.
        seeds: Number of encoders by task; 1 for all other tasks.
    """

    checkpoint: int
    seeds: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Protocol(Learning):
    """How transfers are measured.

    Attributes:
        examples: Number of training examples per target and seed.
        seeds: Number of trainings per transfer, each with examples of its own.
        frozen: Whether the encoder keeps its weights.
    """

    examples: int
    seeds: int
    frozen: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings."""

    world: World
    training: Training
    protocols: Mapping[str, Protocol]


def read(file: Path = FILE) -> Settings:
    """Reads the settings from a file."""
    table = tomllib.loads(file.read_text())
    protocols = {name: Protocol(**protocol) for name, protocol in table["protocols"].items()}
    return Settings(World(**table["world"]), Training(**table["training"]), protocols)
