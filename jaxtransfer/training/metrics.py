"""Judges predictions on held-out examples."""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import log_softmax
from scipy.stats import rankdata

from jaxtransfer.comparison.measure import Measure
from jaxtransfer.data.datasets import CLASS_TYPES, TargetType

_Metric = Callable[
    [Float[np.ndarray, "n ..."], Shaped[np.ndarray, "n ..."], Float[np.ndarray, " outputs"]], float
]  # of predictions, labels, and the mean of the training labels


def judge(
    target_type: TargetType,
    predictions: Float[np.ndarray, "n ..."],
    labels: Shaped[np.ndarray, "n ..."],
    centre: Float[np.ndarray, " outputs"],
) -> dict[str, float]:
    """Computes the metrics of predictions; NaN where no known label allows one.

    Args:
        target_type: What the labels are.
        predictions: Logits or numbers, [n, outputs], or [n, height, width, outputs] for dense labels.
        labels: As in `Target.values`; missing ones are -1 or NaN.
        centre: Mean of each number over the training examples; used for numbers only.

    Returns:
        By name, in the order of `METRICS`.
    """
    predictions = predictions.reshape(-1, predictions.shape[-1]).astype(np.float64)
    labels = labels.reshape(len(predictions), -1)
    if target_type in CLASS_TYPES:
        known = labels[:, 0] >= 0
        predictions, labels = predictions[known], labels[known]
        if not len(labels):
            return dict.fromkeys(METRICS[target_type], np.nan)
    return {name: float(_FUNCTIONS[name](predictions, labels, centre)) for name in METRICS[target_type]}


def _accuracy(predictions: np.ndarray, labels: np.ndarray, _: np.ndarray) -> float:
    """Share of right classes."""
    return np.mean(predictions.argmax(1) == labels[:, 0])


def _cross_entropy(predictions: np.ndarray, labels: np.ndarray, _: np.ndarray) -> float:
    """Mean of the negative log probabilities of the right classes, in nats."""
    return -np.take_along_axis(log_softmax(predictions, axis=1), labels, 1).mean()


def _label_accuracy(predictions: np.ndarray, labels: np.ndarray, _: np.ndarray) -> float:
    """Share of right labels, over all known ones."""
    known = ~np.isnan(labels)
    return np.mean((predictions > 0)[known] == (labels > 0.5)[known]) if known.any() else np.nan


def _binary_cross_entropy(predictions: np.ndarray, labels: np.ndarray, _: np.ndarray) -> float:
    """Mean of the negative log probabilities of the right labels, in nats."""
    known = ~np.isnan(labels)
    signed = np.where(labels > 0.5, predictions, -predictions)[known]
    return np.logaddexp(0, -signed).mean() if known.any() else np.nan


def _mean_average_precision(predictions: np.ndarray, labels: np.ndarray, _: np.ndarray) -> float:
    """Mean over the labels that some examples have and some have not; equal predictions count by their average rank."""
    columns = [(predictions[~np.isnan(y), i], y[~np.isnan(y)] > 0.5) for i, y in enumerate(labels.T)]
    values = [_average_precision(scores, right) for scores, right in columns if 0 < right.sum() < len(right)]
    return float(np.mean(values)) if values else np.nan


def _average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Mean over the right examples of the precision among those with at least their score."""
    at_least = rankdata(-scores, "max")
    right_at_least = rankdata(-scores[right], "max")
    return (right_at_least / at_least[right]).mean()


def _r2(predictions: np.ndarray, labels: np.ndarray, centre: np.ndarray) -> float:
    """1 - squared error / squared error of the training examples' mean, averaged over the numbers."""
    known = ~np.isnan(labels)
    own = np.where(known, np.square(predictions - labels), 0).sum(0)
    constant = np.where(known, np.square(centre - labels), 0).sum(0)
    return np.mean(1 - own[constant > 0] / constant[constant > 0]) if (constant > 0).any() else np.nan


def _squared_error(predictions: np.ndarray, labels: np.ndarray, _: np.ndarray) -> float:
    """Mean over all known numbers, in their own units."""
    known = ~np.isnan(labels)
    return np.square(predictions - labels)[known].mean() if known.any() else np.nan


_FUNCTIONS: Mapping[str, _Metric] = {
    "accuracy": _accuracy,
    "cross_entropy": _cross_entropy,
    "average_precision": _mean_average_precision,
    "label_accuracy": _label_accuracy,
    "binary_cross_entropy": _binary_cross_entropy,
    "r2": _r2,
    "squared_error": _squared_error,
}

METRICS: Mapping[TargetType, tuple[str, ...]] = {
    "classes": ("accuracy", "cross_entropy"),
    "dense_classes": ("accuracy", "cross_entropy"),
    "multilabel": ("average_precision", "label_accuracy", "binary_cross_entropy"),
    "numbers": ("r2", "squared_error"),
    "dense": ("r2", "squared_error"),
}
"""For each type of labels the metrics that are measured; the first one decides which source is recommended."""

MEASURES: Mapping[str, Measure] = {
    name: Measure(
        name.replace("_", " "), name in ("cross_entropy", "binary_cross_entropy", "squared_error"), True,
        "labelled examples",
    )
    for name in _FUNCTIONS
}  # fmt: skip
"""What the values of each metric are."""
