"""Reads the features and labels of the examples that a score uses."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.places import as_grid, resample
from jaxtransfer.comparison.streaming import CONSTANT_SHARE, Representation, Units, finite_rows
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import chunks
from jaxtransfer.scores.target import Target

FeatureArray = Representation | Units
"""Features of a layer as an array, or as a point that is read in pieces."""

_LEAST_GROUPS = 4
_PIECE_ELEMENTS = 8 * 2**20  # numbers of features or labels that are held at a time


def usable_examples(features: FeatureArray, target: Target) -> Int[np.ndarray, " usable"]:
    """Returns the indices of the examples that have a label and finite features.

    Raises:
        JaxTransferError: They lie in fewer than four groups, or features and labels have different lengths.
    """
    if len(features) != len(target.group):
        raise JaxTransferError(
            f"There are features of {len(features)} examples and labels of {len(target.group)}; the numbers must be "
            "equal."
        )
    finite = finite_rows(features)
    usable = np.flatnonzero(finite & (target.group >= 0))
    groups = len(np.unique(target.group[usable]))
    if groups < _LEAST_GROUPS:
        raise JaxTransferError(
            f"The features are finite for {len(usable)} of {len(target.labelled)} labelled examples, which lie in "
            f"{groups} groups; a score needs examples of {_LEAST_GROUPS} groups."
        )
    return usable


def check_features(features: FeatureArray, target: Target) -> None:
    """Checks that features can be scored.

    Raises:
        JaxTransferError: They are the same for all usable examples, or as for `usable_examples`.
    """
    examples = usable_examples(features, target)
    first = np.asarray(features[examples[:1]], np.float64)
    for start, stop in pieces(features, len(examples)):
        values = np.asarray(features[examples[start:stop]], np.float64)
        if np.square(values - first).sum() > CONSTANT_SHARE * np.square(values).sum():
            return
    raise JaxTransferError("The features are the same for all labelled examples.")


def pieces(features: FeatureArray, count: int, numbers: int = 0) -> Iterable[tuple[int, int]]:
    """Splits `count` examples into ranges that are read at a time; `numbers`: what else is held of an example."""
    return chunks(count, max(1, _PIECE_ELEMENTS // max(1, numbers, math.prod(features.shape[1:]))))


def read(
    features: FeatureArray, examples: Int[np.ndarray, " some"], grid: tuple[int, int]
) -> Float[np.ndarray, "some height width units"]:
    """Reads features and averages them over the areas of a grid; all but [n, height, width, units] has one place."""
    values = as_grid(features[examples])
    return resample(values.astype(np.float64), grid).astype(np.result_type(values.dtype, np.float32))


def pooled(features: FeatureArray, examples: Int[np.ndarray, " usable"]) -> Float[np.ndarray, "usable units"]:
    """Reads features and averages them over all places."""
    parts = [read(features, examples[start:stop], (1, 1))[:, 0, 0] for start, stop in pieces(features, len(examples))]
    return np.concatenate(parts).astype(np.float64)


def outputs(target: Target, examples: Int[np.ndarray, " usable"]) -> Float[np.ndarray, "usable outputs"]:
    """Returns the labels of images as columns to predict.

    Classes are one-hot columns; numbers have mean 0 and standard deviation 1 over the examples; NaN: missing.
    """
    if target.target_type == "classes":
        return np.eye(len(target.classes))[target.values[examples]]
    values = target.values[examples]
    known = ~np.isnan(values)
    count = np.maximum(known.sum(0), 1)
    values = values - np.where(known, values, 0).sum(0) / count
    deviation = np.sqrt(np.square(np.where(known, values, 0)).sum(0) / count)
    return values / np.where(deviation > 0, deviation, 1)


def by_missing(
    values: Float[np.ndarray, "usable outputs"],
) -> Iterator[tuple[Bool[np.ndarray, " usable"], Int[np.ndarray, " some"]]]:
    """Divides columns by which of their entries are missing: yields the known examples and the columns."""
    patterns, of_column = np.unique(~np.isnan(values), axis=1, return_inverse=True)
    for pattern in range(patterns.shape[1]):
        yield patterns[:, pattern], np.flatnonzero(of_column.ravel() == pattern)
