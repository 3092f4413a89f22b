"""Divides the labelled examples of a task into training, validation and held-out examples."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxtransfer.errors import JaxTransferError

MIN_FOLDS = 3
"""Training, validation and held-out examples need a fold each."""


class Split(NamedTuple):
    """Holds the indices of a training's examples, which have no example in common.

    Attributes:
        train: Examples that it is trained on.
        validation: Examples that choose its step and its learning rate.
        held_out: Examples that it is judged by.
    """

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    held_out: Int[np.ndarray, " held_out"]


def folds_of(group: Int[np.ndarray, " n"], folds: int, name: str) -> Int[np.ndarray, " n"]:
    """Joins groups of examples to folds of about equal size; -1: the example has no label.

    Args:
        group: Group of each example, see `scores.target.Target`; -1: it has no label.
        folds: Number of folds, 3 or more.
        name: Name of the task, for error messages.

    Raises:
        JaxTransferError: There are fewer than three folds, or more folds than groups.
    """
    groups = np.unique(group[group >= 0])
    if folds < MIN_FOLDS:
        raise JaxTransferError(
            f"Transfer needs {MIN_FOLDS} folds or more, not {folds}: one is held out and one chooses the learning rate."
        )
    if folds > len(groups):
        raise JaxTransferError(
            f"The task {name!r} can be divided into {len(groups)} folds, not {folds}: it has "
            f"{(group >= 0).sum()} labelled examples, and there are never more than 10 groups of them."
        )
    return np.where(group >= 0, np.searchsorted(groups, group) % folds, -1)


def split(fold: Int[np.ndarray, " n"], held_out: int, seed: int) -> Split:
    """Returns the split of a training: one fold is held out, another one, which the seed decides, is for validation.

    Args:
        fold: Fold of each example; -1: it takes no part.
        held_out: The fold that is held out.
        seed: Seed of the training, from 0.
    """
    folds = int(fold.max()) + 1
    validation = (held_out + 1 + seed % (folds - 1)) % folds
    is_training = (fold >= 0) & (fold != held_out) & (fold != validation)
    return Split(*map(np.flatnonzero, (is_training, fold == validation, fold == held_out)))


def batch_indices(
    train: Int[np.ndarray, " train"], key: tuple[int, ...], first: int, last: int, batch: int
) -> Int[np.ndarray, "steps batch"]:
    """Returns the examples of steps: epoch by epoch in a new random order, without regard to the ends of epochs.

    Args:
        train: Indices of the training examples.
        key: Seeds of the order.
        first: First step.
        last: Step after the last one.
        batch: Number of examples in a step.
    """
    count, begin, end = len(train), first * batch, last * batch
    epochs = range(begin // count, -(-end // count))
    order = np.concatenate([np.random.default_rng([*key, epoch]).permutation(train) for epoch in epochs])
    begin, end = begin - epochs.start * count, end - epochs.start * count
    return order[begin:end].reshape(last - first, batch).astype(np.int32)
