"""The linear readout of features, and the losses of its predictions, for all types of labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree, Shaped

from jaxtransfer.data.datasets import CLASS_TYPES, DENSE_TYPES, TargetType
from jaxtransfer.scores.target import Target


class Units(NamedTuple):
    """Holds the units of a readout: features are divided by `scale`, and predictions are centre + spread * output.

    With an output of 0 the prediction is the best constant one.

    Attributes:
        scale: Root of the mean square of the features.
        centre: Mean of each number, or log of each class's share, or log odds of each label.
        spread: Standard deviation of each number; 1 for classes and labels.
    """

    scale: Float[Array | np.ndarray, ""]
    centre: Float[Array | np.ndarray, " outputs"]
    spread: Float[Array | np.ndarray, " outputs"]


@dataclasses.dataclass(frozen=True)
class Readout:
    """Predicts labels from features by a linear map.

    Labels of whole images are predicted from the mean of the features over places. Labels of pixels are predicted by
    the same map at every place, and the predictions are resized bilinearly to the size of the labels.

    Attributes:
        target_type: What the labels are.
        outputs: Number of classes, numbers or labels.
        size: Height and width of dense labels; None for labels of whole images.
    """

    target_type: TargetType
    outputs: int
    size: tuple[int, int] | None

    @classmethod
    def of(cls, target: Target) -> "Readout":
        """Returns the readout for a target."""
        is_dense, is_classes = target.target_type in DENSE_TYPES, target.target_type in CLASS_TYPES
        outputs = len(target.classes) if is_classes else target.values.shape[-1]
        return cls(target.target_type, outputs, target.values.shape[1:3] if is_dense else None)

    def init(self, units: int) -> PyTree:
        """Returns weights that predict the best constant.

        Args:
            units: Number of features at a place.
        """
        return {"kernel": np.zeros((units, self.outputs), np.float32), "bias": np.zeros(self.outputs, np.float32)}

    def pool(self, layers: Sequence[Any]) -> list[Any]:
        """Returns what is read from layers, each [n, h, w, units].

        For labels of whole images it is the mean over places, [n, units]; for labels of pixels the layers that have the
        most places.
        """
        if self.size is None:
            return [layer.mean((1, 2)) for layer in layers]
        finest = max(layer.shape[1:3] for layer in layers)
        return [layer for layer in layers if layer.shape[1:3] == finest]

    def __call__(self, weights: PyTree, units: Units, features: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Predicts labels, [n, outputs] or [n, height, width, outputs]: logits of classes and labels, or numbers.

        Args:
            weights: Weights of the linear map.
            units: Units of features and predictions.
            features: Features as `pool` returns them.
        """
        outputs = _along_last(weights["bias"], features.ndim) + (features / units.scale) @ weights["kernel"]
        if self.size is not None:
            outputs = jax.image.resize(outputs, (len(outputs), *self.size, self.outputs), "bilinear", antialias=False)
        return _along_last(units.centre, outputs.ndim) + _along_last(units.spread, outputs.ndim) * outputs

    def losses(
        self, units: Units, predictions: Float[Array, "n ..."], labels: Shaped[Array, "n ..."]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Computes the loss of each example, averaged over its known labels, and 1 where it has one, else 0.

        The loss is the cross-entropy in nats of classes and labels, and the squared error in variances of numbers.

        Args:
            units: Units of features and predictions.
            predictions: Predictions.
            labels: As in `Target.values`; missing ones are -1 or NaN.
        """
        if self.target_type in CLASS_TYPES:
            known = labels >= 0
            values = optax.softmax_cross_entropy_with_integer_labels(predictions, jnp.where(known, labels, 0))
        else:
            known = ~jnp.isnan(labels)
            labels = jnp.where(known, labels, jnp.zeros_like(labels))
            if self.target_type == "multilabel":
                values = optax.sigmoid_binary_cross_entropy(predictions, labels)
            else:
                values = jnp.square((predictions - labels) / _along_last(units.spread, labels.ndim))
        inner = tuple(range(1, known.ndim))
        counts = known.sum(inner, dtype=jnp.float32)
        total = jnp.where(known, values, jnp.zeros_like(values)).sum(inner)
        return total / jnp.maximum(counts, 1), (counts > 0).astype(jnp.float32)


def label_units(target_type: TargetType, outputs: int, labels: Shaped[np.ndarray, "n ..."]) -> tuple[
    Float[np.ndarray, " outputs"], Float[np.ndarray, " outputs"]
]:  # fmt: skip
    """Computes `centre` and `spread` of `Units` from training labels; shares of classes and labels are smoothed by 1.

    Args:
        target_type: What the labels are.
        outputs: Number of classes, numbers or labels.
        labels: Labels as in `Target.values`; missing ones are -1 or NaN.
    """
    if target_type in CLASS_TYPES:
        counts = np.bincount(labels[labels >= 0].ravel(), minlength=outputs) + 1
        return np.log(counts / counts.sum()).astype(np.float32), np.ones(outputs, np.float32)
    flat = labels.reshape(-1, outputs).astype(np.float64)
    known = ~np.isnan(flat)
    counts, total = known.sum(0), np.where(known, flat, 0).sum(0)
    if target_type == "multilabel":
        return np.log((total + 1) / (counts - total + 1)).astype(np.float32), np.ones(outputs, np.float32)
    centre = total / np.maximum(counts, 1)
    spread = np.sqrt(np.where(known, np.square(flat - centre), 0).sum(0) / np.maximum(counts, 1))
    return centre.astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32)


def _along_last(vector: Float[Array | np.ndarray, " last"], ndim: int) -> Float[Array, "..."]:
    """Gives a vector dimensions of length 1 in front."""
    return jnp.reshape(vector, (*[1] * (ndim - 1), -1))
