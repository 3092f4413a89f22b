"""What all training has in common: losses, the answers that know nothing of the image, and steps of an optimiser."""

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

_AT_ONCE = 500


class Units(NamedTuple):
    """What a network's answers are in: label = centre + spread * answer, for tasks with a squared loss."""

    centre: Float[np.ndarray, " outputs"]
    spread: Float[np.ndarray, " outputs"]


class Prior(NamedTuple):
    """The best answers without an image, from the training labels: each pixel's own mean, or its frequencies.

    Attributes:
        units: Mean and standard deviation of each output over examples and pixels; 0 and 1 where they are not numbers.
        answers: For every image the same.
    """

    units: Units
    answers: Float[np.ndarray, "..."]


def prior(task: Task, examples: Examples, every: int) -> Prior:
    """What the labels of some examples say of others; of pixels, those of every such row and column."""
    labels = examples.of(task, every)["label"]
    chunks = [labels[start : start + _AT_ONCE] for start in range(0, len(labels), _AT_ONCE)]
    if task.loss == "softmax":
        classes = np.arange(task.outputs)
        counts = _summed(chunk[..., None] == classes for chunk in chunks) + 1
        answers, units = np.log(counts / counts.sum(-1, keepdims=True)), Units(np.zeros(1), np.ones(1))
    elif task.loss == "logistic":
        asked, yes = _summed(chunk >= 0 for chunk in chunks) + 2, _summed(chunk > 0 for chunk in chunks) + 1
        answers, units = np.log(yes / (asked - yes)), Units(np.zeros(1), np.ones(1))
    else:
        values = [chunk.astype(np.float64) / (255 if labels.dtype == np.uint8 else 1) for chunk in chunks]
        over_pixels = tuple(range(labels.ndim - 2))
        mean, squares = _summed(values) / len(labels), _summed(each**2 for each in values) / len(labels)
        centre = mean.mean(over_pixels)
        units = Units(centre, np.sqrt(squares.mean(over_pixels) - centre**2))
        answers = (mean - units.centre) / units.spread
    return Prior(Units(*(each.astype(np.float32) for each in units)), answers.astype(np.float32))


def _summed(chunks: Iterable[np.ndarray]) -> Float[np.ndarray, "..."]:
    """Over the examples of all chunks."""
    return functools.reduce(np.add, (chunk.sum(0, dtype=np.float64) for chunk in chunks))


def losses(
    task: Task, units: Units, answers: Float[Array, "images ..."], labels: Shaped[Array, "images ..."]
) -> tuple[Float[Array, " images"], Float[Array, " images"]]:
    """The loss of each image, and whether it has one (1 or 0): squared errors in standard deviations, or cross-entropy.

    Args:
        task: Says what kind.
        units: Of a squared loss.
        answers: Of a network.
        labels: Of the examples.
    """
    inner = tuple(range(1, answers.ndim if task.loss != "softmax" else answers.ndim - 1))
    if task.loss == "squared":
        centre, spread = (part.reshape((1,) * (labels.ndim - 1) + (-1,)) for part in units)
        wanted = (labels - centre) / spread
        return ((answers - wanted) ** 2).mean(inner), jnp.ones(len(answers))
    asked = (labels >= 0).astype(jnp.float32)
    if task.loss == "logistic":
        each = optax.sigmoid_binary_cross_entropy(answers, jnp.maximum(labels, 0).astype(jnp.float32))
    else:
        each = optax.softmax_cross_entropy_with_integer_labels(answers, jnp.maximum(labels, 0).astype(jnp.int32))
    count = asked.sum(inner)
    return (each * asked).sum(inner) / jnp.maximum(count, 1), (count > 0).astype(jnp.float32)


def mean_loss(each: Float[Array, " images"], counts: Float[Array, " images"]) -> Float[Array, ""]:
    """Over the images that have one."""
    return (each * counts).sum() / jnp.maximum(counts.sum(), 1)


def optimiser(settings: Learning) -> optax.GradientTransformation:
    """AdamW; the rate rises over a twentieth of the steps and falls to nothing as a cosine."""
    rate = optax.warmup_cosine_decay_schedule(
        0, settings.learning_rate, max(1, settings.steps // 20), max(2, settings.steps)
    )
    return optax.adamw(rate, weight_decay=settings.weight_decay)


class Loss(NamedTuple):
    """A mean over images, and its standard error."""

    value: float
    stderr: float

    @classmethod
    def of(cls, each: np.ndarray, counts: np.ndarray) -> "Loss":
        """Over the images that have one."""
        some = np.asarray(each, np.float64)[np.asarray(counts) > 0]
        return cls(float(some.mean()), float(some.std(ddof=1) / np.sqrt(len(some))))


def prior_loss(task: Task, prior: Prior, examples: Examples, every: int) -> Loss:
    """What answers that know nothing of the image cost."""
    found, kept = [], examples.of(task, every)["label"]
    for start in range(0, len(examples), _AT_ONCE):
        labels = unpacked({"label": jnp.asarray(kept[start : start + _AT_ONCE])})["label"]
        answers = jnp.broadcast_to(prior.answers, (len(labels), *prior.answers.shape))
        found.append([np.asarray(part) for part in losses(task, prior.units, answers, labels)])
    return Loss.of(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
