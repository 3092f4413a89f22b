"""Defines what all training shares: losses, the best constant predictions, and the optimiser."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.settings import Learning
from jaxtransfer.rooms import Task

_BATCH = 500


class Units(NamedTuple):
    """The units of a network's predictions with a squared loss: label = centre + spread * prediction."""

    centre: Float[np.ndarray, " outputs"]
    spread: Float[np.ndarray, " outputs"]


class Prior(NamedTuple):
    """The best constant prediction, from training labels: the mean of each pixel, or the log odds of its classes.

    Attributes:
        units: Mean and standard deviation of each output over examples and pixels; 0 and 1 for other labels.
        predictions: The predictions, the same for every image.
    """

    units: Units
    predictions: Float[np.ndarray, "..."]


def prior(task: Task, examples: Examples, every: int) -> Prior:
    """Computes the best constant prediction from the labels of examples.

    Args:
        task: The task.
        examples: The examples.
        every: Stride of the rows and columns of pixels whose labels are used.
    """
    labels = examples.of(task, every)["label"]
    chunks = [labels[start : start + _BATCH] for start in range(0, len(labels), _BATCH)]
    if task.loss == "softmax":
        classes = np.arange(task.outputs)
        counts = _summed(chunk[..., None] == classes for chunk in chunks) + 1
        predictions, units = np.log(counts / counts.sum(-1, keepdims=True)), Units(np.zeros(1), np.ones(1))
    elif task.loss == "logistic":
        total, yes = _summed(chunk >= 0 for chunk in chunks) + 2, _summed(chunk > 0 for chunk in chunks) + 1
        predictions, units = np.log(yes / (total - yes)), Units(np.zeros(1), np.ones(1))
    else:
        values = [chunk.astype(np.float64) / (255 if labels.dtype == np.uint8 else 1) for chunk in chunks]
        over_pixels = tuple(range(labels.ndim - 2))
        mean, squares = _summed(values) / len(labels), _summed(value**2 for value in values) / len(labels)
        centre = mean.mean(over_pixels)
        units = Units(centre, np.sqrt(squares.mean(over_pixels) - centre**2))
        predictions = (mean - units.centre) / units.spread
    return Prior(Units(*(part.astype(np.float32) for part in units)), predictions.astype(np.float32))


def _summed(chunks: Iterable[np.ndarray]) -> Float[np.ndarray, "..."]:
    """Sums over the examples of all chunks."""
    return functools.reduce(np.add, (chunk.sum(0, dtype=np.float64) for chunk in chunks))


def losses(
    task: Task, units: Units, predictions: Float[Array, "images ..."], labels: Shaped[Array, "images ..."]
) -> tuple[Float[Array, " images"], Float[Array, " images"]]:
    """Computes the loss of each image, and 1 where the image has a loss, else 0.

    Args:
        task: The task, which names the loss: squared error in variances of the label, or cross-entropy in nats.
        units: Units of the predictions with a squared loss.
        predictions: Predictions of a network.
        labels: Labels; negative ones have no cross-entropy.
    """
    inner = tuple(range(1, predictions.ndim if task.loss != "softmax" else predictions.ndim - 1))
    if task.loss == "squared":
        centre, spread = (part.reshape((1,) * (labels.ndim - 1) + (-1,)) for part in units)
        targets = (labels - centre) / spread
        return ((predictions - targets) ** 2).mean(inner), jnp.ones(len(predictions))
    labelled = (labels >= 0).astype(jnp.float32)
    if task.loss == "logistic":
        values = optax.sigmoid_binary_cross_entropy(predictions, jnp.maximum(labels, 0).astype(jnp.float32))
    else:
        values = optax.softmax_cross_entropy_with_integer_labels(predictions, jnp.maximum(labels, 0).astype(jnp.int32))
    count = labelled.sum(inner)
    return (values * labelled).sum(inner) / jnp.maximum(count, 1), (count > 0).astype(jnp.float32)


def optimiser(settings: Learning) -> optax.GradientTransformation:
    """Returns AdamW with a linear warm-up over a twentieth of the steps and cosine decay to 0."""
    rate = optax.warmup_cosine_decay_schedule(
        0, settings.learning_rate, max(1, settings.steps // 20), max(2, settings.steps)
    )
    return optax.adamw(rate, weight_decay=settings.weight_decay)


class Loss(NamedTuple):
    """A mean loss over images, and its standard error."""

    value: float
    stderr: float

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray) -> "Loss":
        """Averages the losses of the images whose count is 1."""
        counted = np.asarray(values, np.float64)[np.asarray(counts) > 0]
        return cls(float(counted.mean()), float(counted.std(ddof=1) / np.sqrt(len(counted))))


def prior_loss(task: Task, prior: Prior, examples: Examples, every: int) -> Loss:
    """Computes the loss of the best constant prediction."""
    parts, stored = [], examples.of(task, every)["label"]
    for start in range(0, len(examples), _BATCH):
        labels = unpacked({"label": jnp.asarray(stored[start : start + _BATCH])})["label"]
        predictions = jnp.broadcast_to(prior.predictions, (len(labels), *prior.predictions.shape))
        parts.append([np.asarray(part) for part in losses(task, prior.units, predictions, labels)])
    return Loss.of(*(np.concatenate(part) for part in zip(*parts, strict=True)))
