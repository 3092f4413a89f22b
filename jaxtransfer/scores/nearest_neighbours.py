"""Nearest neighbours: how well the labels of an example follow from the most similar other examples."""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxtransfer.comparison.statistics import pseudo_values
from jaxtransfer.comparison.streaming import CONSTANT_SHARE
from jaxtransfer.data.datasets import DENSE_TYPES
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import chunks
from jaxtransfer.scores.examples import FeatureArray, by_missing, outputs, pooled, usable_examples
from jaxtransfer.scores.score import Score
from jaxtransfer.scores.target import Target

NEIGHBOURS = (1, 3, 5, 20)
"""The numbers of neighbours to choose from."""

_BLOCK_ELEMENTS = 4 * 2**20  # similarities that are held at a time


def knn(features: FeatureArray, labels: Target | Shaped[np.ndarray, "n ..."]) -> Score:
    """Computes how well the nearest neighbours of each example predict its labels (leave-one-out).

    Features are averaged over all places, and each unit has its mean subtracted and is divided by its standard
    deviation over the examples, without their labels; then similarity is the cosine. So the scale of a unit does not
    matter, but a rotation of the units does. Examples that belong together (`Target.units`) are not each other's
    neighbours.

    A class is predicted by a vote; of classes with equally many votes, that with the nearest neighbour wins. Numbers
    are predicted by the neighbours' mean; a missing entry is left out of its column, as example and as neighbour. The
    number of neighbours with which a group of examples is judged is the one that is best for the other groups.

    Args:
        features: Features, [n, height, width, units] or [n, units]; examples that are not finite are left out.
        labels: Labels of images, see `Target.of_labels`.

    Returns:
        For classes the accuracy, 0 to 1; else R2 as of `ridge`, where the mean is that of the other examples. Pseudo-
        values are of a jackknife that leaves out a group's examples as examples to predict, but not as neighbours.

    Raises:
        JaxTransferError: The labels are dense, too few examples are usable, or their labels do not vary.
    """
    target = Target.of_labels(labels)
    if target.target_type in DENSE_TYPES:
        raise JaxTransferError("knn predicts labels of images, not dense labels; use ridge for these.")
    examples = usable_examples(features, target)
    units = _standardised(pooled(features, examples))
    belongs_to = examples if target.units is None else target.units[examples]
    columns, group, groups = outputs(target, examples), target.group[examples], target.group.max() + 1
    explained, whole = np.zeros((len(NEIGHBOURS), groups)), np.zeros(groups)
    for known, some in by_missing(columns):
        values, of_known = columns[known][:, some], group[known]
        if len(np.unique(belongs_to[known])) < 2:  # nothing can be predicted from other examples
            continue
        neighbours = _nearest(units[known], belongs_to[known], max(NEIGHBOURS))
        if target.target_type == "classes":
            of_mean = np.ones(len(values))
            gains = [_is_hit(values.argmax(1), neighbours[:, :count]) for count in NEIGHBOURS]
        else:
            # The mean of the other examples differs from a value by n / (n - 1) times what that of all does.
            of_mean = np.square((values - values.mean(0)) * (len(values) / (len(values) - 1))).sum(1)
            means = [values[neighbours[:, :count]].mean(1) for count in NEIGHBOURS]
            gains = [of_mean - np.square(values - mean).sum(1) for mean in means]
        explained += [np.bincount(of_known, gain, groups) for gain in gains]
        whole += np.bincount(of_known, of_mean, groups)
    return _crossfitted(explained, whole)


def _crossfitted(explained: Float[np.ndarray, "counts groups"], whole: Float[np.ndarray, " groups"]) -> Score:
    """Judges each group with the number of neighbours that is best for the others."""
    if not whole.sum() > 0:
        raise JaxTransferError("The labels do not vary over the examples with finite features.")

    def value(groups: Int[np.ndarray, " some"]) -> Float[np.ndarray, ""]:
        others = explained[:, groups].sum(1, keepdims=True) - explained[:, groups]
        return explained[others.argmax(0), groups].sum() / whole[groups].sum()

    groups = np.arange(len(whole))
    with np.errstate(invalid="ignore", divide="ignore"):  # labels that vary in one group alone have no error
        without = np.array([value(np.delete(groups, group)) for group in groups])
    return Score(float(value(groups)), pseudo_values(value(groups), without))


def _is_hit(classes: Int[np.ndarray, " rows"], neighbours: Int[np.ndarray, "rows count"]) -> Bool[np.ndarray, " rows"]:
    """Returns for which rows the neighbours' vote is the row's own class."""
    of_neighbours = classes[neighbours]
    votes = (of_neighbours[:, :, None] == of_neighbours[:, None]).sum(2)
    return of_neighbours[np.arange(len(classes)), votes.argmax(1)] == classes  # argmax: the nearest comes first


def _nearest(
    units: Float[np.ndarray, "rows units"], belongs_to: Int[np.ndarray, " rows"], count: int
) -> Int[np.ndarray, "rows nearest"]:
    """Returns the most similar rows that do not belong to the same, the nearest first; of equally near ones the first.

    There are `count`, or fewer if some row has no more.
    """
    count = min(count, len(units) - int(np.unique(belongs_to, return_counts=True)[1].max()))
    nearest = np.empty((len(units), count), int)
    for start, stop in chunks(len(units), max(1, _BLOCK_ELEMENTS // len(units))):
        distances = -units[start:stop] @ units.T
        distances[belongs_to[start:stop, None] == belongs_to] = np.inf
        some = np.sort(np.argpartition(distances, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(np.take_along_axis(distances, some, 1), axis=1, kind="stable")
        nearest[start:stop] = np.take_along_axis(some, order, 1)
    return nearest


def _standardised(units: Float[np.ndarray, "rows units"]) -> Float[np.ndarray, "rows units"]:
    """Gives each unit mean 0 and standard deviation 1, then each row length 1; constant units and rows become 0."""
    mean, variance = units.mean(0), units.var(0)
    varies = variance > CONSTANT_SHARE * (variance + np.square(mean))
    units = np.where(varies, units - mean, 0) / np.sqrt(np.where(varies, variance, 1))
    length = np.linalg.norm(units, axis=1, keepdims=True)
    return units / np.where(length > 0, length, 1)
