"""Chooses the best of several layers of a network without counting its luck."""

from collections.abc import Sequence

import numpy as np

from jaxtransfer.scores.score import Score


def best_layer(scores: Sequence[Score]) -> Score:
    """Computes the score of the best layer, cross-fitted over the groups of examples.

    The maximum over layers would be too high, the more so the more layers there are. So each group counts for the layer
    that is best without it: the pseudo-value of a group is that of this layer, and the value is the mean over groups of
    this layer's value plus what the group's pseudo-value differs from the mean of the layer's. If one layer is best
    without any group, this is its score.

    Args:
        scores: The score of each layer, with the same groups.
    """
    values, samples = np.array([score.value for score in scores]), np.array([score.pseudo_values for score in scores])
    groups = np.arange(samples.shape[1])
    without = (len(groups) * values[:, None] - samples) / (len(groups) - 1)
    best = np.where(np.isnan(without), -np.inf, without).argmax(0)
    of_best = samples[best, groups]
    value = (values[best] + (of_best - samples.mean(1)[best])).mean()
    return Score(float(value), of_best)
