"""The protocol "frozen": a linear readout is trained on features that stay as they are."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from jaxtransfer.data.datasets import CLASS_TYPES
from jaxtransfer.devices import replicate
from jaxtransfer.points.store import chunks
from jaxtransfer.scores.features import Layer
from jaxtransfer.scores.target import Target
from jaxtransfer.training.fit import Problem
from jaxtransfer.training.measurement import Learning, Model, Run
from jaxtransfer.training.readout import Readout, Units, label_units
from jaxtransfer.training.splits import Split

LEARNING = Learning(steps=400, batch=64, interval=20, chunk=20, rates=(0.003, 0.02, 0.1))
"""How readouts are trained."""

_IMAGES_PER_READ = 256
# Numbers that all trainings at the same time may hold on each device: weights, optimiser, batches.
_MAX_NUMBERS = 2**27
_COPIES_OF_WEIGHTS = 5  # weights, best weights, gradient, and two moments of Adam


def read_features(layers: Sequence[Layer], readout: Readout) -> Float[np.ndarray, "n ..."]:
    """Reads features as a readout takes them; units of several layers are put side by side.

    Args:
        layers: The layers of a network.
        readout: The readout.

    Returns:
        [n, units], or [n, h, w, units] for labels of pixels; zeros where a feature is not finite.
    """
    parts = [
        np.concatenate(readout.pool([layer[first:last] for layer in layers]), -1)
        for first, last in chunks(len(layers[0]), _IMAGES_PER_READ)
    ]
    return np.nan_to_num(np.concatenate(parts), nan=0, posinf=0, neginf=0)


def frozen_model(features: Float[np.ndarray, "n ..."], target: Target, learning: Learning, mesh: Mesh) -> Model:
    """Describes a readout of features.

    Args:
        features: Features as `read_features` returns them.
        target: The labels.
        learning: How the readout is trained.
        mesh: Devices that share the trainings.
    """
    readout = Readout.of(target)

    def start(runs: Sequence[Run], splits: Sequence[Split]) -> tuple[PyTree, Units]:
        init = readout.init(features.shape[-1])
        units = [units_of(readout, features[part.train], target.values[part.train]) for part in splits]
        weights = {name: np.stack([array] * len(runs)) for name, array in init.items()}
        return weights, Units(*map(np.stack, zip(*units, strict=True)))

    per_example = 2 * features[0].size + 4 * readout.outputs * int(np.prod(readout.size or 1))
    numbers = _COPIES_OF_WEIGHTS * features.shape[-1] * readout.outputs + learning.batch * per_example
    return Model(
        Problem(_Loss(readout), adam(learning.steps)),
        _Predict(readout),
        start,
        replicate({"features": features, "labels": labels_for(target)}, mesh),
        at_once=mesh.size * max(1, _MAX_NUMBERS // numbers),
        batch=learning.batch,
    )


def units_of(readout: Readout, features: Float[np.ndarray, "train ..."], labels: np.ndarray) -> Units:
    """Computes the units of a readout from its training examples."""
    scale = np.sqrt(np.mean(np.square(features, dtype=np.float64)))
    centre, spread = label_units(readout.target_type, readout.outputs, labels)
    return Units(np.array(scale if scale > 0 else 1, np.float32), centre, spread)


def labels_for(target: Target) -> np.ndarray:
    """Returns labels in the types in which devices compute with them."""
    is_classes = target.target_type in CLASS_TYPES
    return target.values.astype(np.int32 if is_classes else np.float32)


@functools.lru_cache(maxsize=16)
def adam(steps: int) -> optax.GradientTransformation:
    """Returns Adam with rate 1 after a linear warm-up over a twentieth of the steps, and cosine decay to 0."""
    warm_up = max(1, steps // 20)
    return optax.adam(optax.warmup_cosine_decay_schedule(0, 1, warm_up, max(warm_up + 1, steps)))


class _Loss(NamedTuple):
    """The loss of a readout."""

    readout: Readout

    def __call__(self, weights: PyTree, units: Units, examples: PyTree) -> tuple[Array, Array, Units]:
        predictions = self.readout(weights, units, examples["features"])
        return *self.readout.losses(units, predictions, examples["labels"]), units


class _Predict(NamedTuple):
    """The predictions of a readout."""

    readout: Readout

    def __call__(self, weights: PyTree, units: Units, examples: PyTree) -> Array:
        return self.readout(weights, units, examples["features"])
