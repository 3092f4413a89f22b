"""Losses of a backbone on a batch. Any function `loss(params, batch, key) -> scalar` can be used besides these.

A batch is a pair of images and labels. The key is for random numbers, such as those of a random head.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxtransfer.errors import JaxTransferError

Batch = tuple[Array, Array]
Loss = Callable[[PyTree, Batch, Key[Array, ""]], Float[Array, ""]]
Features = Callable[[PyTree, Array], Float[Array, "n ..."]]

# Marks a field of a loss that may differ between principal gradients that are compared.
_FREE = {"free": True}


@dataclasses.dataclass(frozen=True)
class Prototypical:
    """Computes the loss of prototypical networks (Snell et al., NeurIPS 2017), which has no head.

    A batch is an episode as `Episodes` draws it: [ways * (shots + queries)] images in the order of their classes. The
    mean features of the first `shots` images of a class, its support images, are its prototype. The loss is the
    cross-entropy of the other images, the queries, with minus the squared distances to the prototypes as logits. Its
    expected gradient depends on the labels.

    Attributes:
        features: Computes features: `features(params, images) -> [n, features]`.
        ways: Classes in an episode.
        shots: Support images per class.
    """

    features: Features
    ways: int = 5
    shots: int = 5
    label_blind: ClassVar[bool] = False

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the mean loss over the queries."""
        features = self.features(params, batch[0])
        per_class, remainder = divmod(len(features), self.ways)
        if remainder or per_class <= self.shots:
            raise JaxTransferError(
                f"An episode of {self.ways} ways and {self.shots} shots cannot have {len(features)} images; use the "
                "ways and shots that the episodes are drawn with."
            )
        features = features.reshape(self.ways, per_class, -1)
        prototypes = features[:, : self.shots].mean(1)
        queries = features[:, self.shots :].reshape(self.ways * (per_class - self.shots), -1)
        distances = (
            jnp.square(queries).sum(1)[:, None]
            + jnp.square(prototypes).sum(1)[None, :]
            - 2 * jnp.dot(queries, prototypes.T, precision="highest")
        )
        labels = jnp.repeat(jnp.arange(self.ways), per_class - self.shots)
        return -jnp.take_along_axis(jax.nn.log_softmax(-distances), labels[:, None], axis=1).mean()

    def invariant(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """Returns values that permuting units must not change."""
        return _inner_products(self.features(params, batch[0]))


@dataclasses.dataclass(frozen=True)
class _LinearHead:
    """Draws a linear head for every restart as PyTorch's `Linear` does: uniform within 1/sqrt(features).

    Heads have zero mean and do not depend on the backbone. So the expected gradient does not depend on the labels,
    provided that the images are not drawn by label (`docs/principal-gradients.md`).
    """

    features: Features
    outputs: int = dataclasses.field(metadata=_FREE)
    heads: int | None = dataclasses.field(default=None, metadata=_FREE)
    label_blind: ClassVar[bool] = True

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the loss, averaged over the heads."""
        raise NotImplementedError

    def predictions(self, features: Float[Array, "... f"], key: Key[Array, ""]) -> Float[Array, "heads ... outputs"]:
        """Returns the outputs of a drawn head, or of `heads` drawn heads followed by those of their mirror images."""
        width, count = features.shape[-1], self.heads or 1
        keys = jax.random.split(key)
        kernel, bias = (
            jax.random.uniform(subkey, shape, features.dtype, -(width**-0.5), width**-0.5)
            for subkey, shape in zip(keys, [(count, width, self.outputs), (count, self.outputs)], strict=True)
        )
        product = jnp.einsum("...f,hfo->h...o", features, kernel)
        predicted = product + bias.reshape(count, *[1] * (features.ndim - 1), self.outputs)
        return predicted if self.heads is None else jnp.concatenate([predicted, -predicted])

    def invariant(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "... n n"]:
        """Returns values that permuting units must not change; heads have the same distribution for all features."""
        features = self.features(params, batch[0])
        if features.ndim == 2:
            return _inner_products(features)
        pixels = features.reshape(len(features), -1, features.shape[-1])
        return jnp.einsum("npc,mpc->pnm", pixels, pixels, precision="highest")


@dataclasses.dataclass(frozen=True)
class RandomHead(_LinearHead):
    """Computes the cross-entropy of a random linear head; labels are classes 0 to `outputs` - 1, [n].

    Attributes:
        features: Computes features: `features(params, images) -> [n, features]`.
        outputs: Number of classes.
        heads: Number of pairs of a head and its mirror image, over which the loss is averaged; all share one pass
            through the backbone, and the expected gradient is the same. None: a single head.
    """

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the mean loss over images and heads."""
        images, labels = batch
        logits = jax.nn.log_softmax(self.predictions(self.features(params, images), key))
        chosen = jax.nn.one_hot(labels, self.outputs, dtype=logits.dtype)
        return -(logits * chosen[None]).sum(-1).mean()


@dataclasses.dataclass(frozen=True)
class SquaredError(_LinearHead):
    """Computes the squared error of a random linear head; for dense targets the head is a 1x1 convolution.

    Targets are [n, outputs], or dense [n, h, w, outputs]. Dense targets are resized to the size of the features with
    `jax.image.resize` (linear, anti-aliased).

    Attributes:
        features: Computes features: `features(params, images) -> [n, features]`; for dense targets maps
            [n, h, w, features].
        outputs: Numbers per image or pixel.
        heads: Number of pairs of mirrored heads, as for `RandomHead`.
    """

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the mean squared error over images, outputs and heads."""
        features = self.features(params, batch[0])
        targets = _targets_for(features, batch[1])
        if targets.shape[-1] != self.outputs:
            raise JaxTransferError(
                f"Heads of {self.outputs} outputs do not fit targets {targets.shape}; set outputs to their last axis."
            )
        return jnp.square(self.predictions(features, key) - targets[None]).mean()


@dataclasses.dataclass(frozen=True)
class RidgeHead:
    """Computes the squared error of a linear head that is fitted in closed form (Bertinetto et al., ICLR 2019).

    The head is fitted to the first half of a batch by ridge regression, without a penalty on its bias; the loss is the
    error on the other half. Nothing is drawn at random, and the expected gradient depends on the labels. Targets are
    [n, outputs], or dense [n, h, w, outputs] and then resized to the size of the features as for `SquaredError`.

    Attributes:
        features: Computes features or maps, as for `SquaredError`.
        ridge: Weight of the penalty, in units of the features' variance, summed over features.
    """

    features: Features
    ridge: float = 0.1
    label_blind: ClassVar[bool] = False

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the mean squared error over the second half of the images, and over outputs."""
        features = self.features(params, batch[0])
        targets = _targets_for(features, batch[1])
        half = len(features) // 2
        x, y = features[:half].reshape(-1, features.shape[-1]), targets[:half].reshape(-1, targets.shape[-1])
        queries, expected = features[half:].reshape(-1, x.shape[1]), targets[half:].reshape(-1, y.shape[1])
        centre, mean = (values.mean(0, keepdims=True) for values in (x, y))
        scale = jnp.sqrt(jnp.square(x - centre).sum(1).mean())
        x, queries = (x - centre) / scale, (queries - centre) / scale
        product = functools.partial(jnp.dot, precision="highest")
        penalty = self.ridge * jnp.eye(min(x.shape), dtype=x.dtype)
        if len(x) > x.shape[1]:
            predicted = product(queries, jnp.linalg.solve(product(x.T, x) + penalty, product(x.T, y - mean)))
        else:  # the dual form, with a smaller system
            predicted = product(product(queries, x.T), jnp.linalg.solve(product(x, x.T) + penalty, y - mean))
        return jnp.square(predicted + mean - expected).mean()

    def invariant(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """Returns values that permuting units must not change."""
        features = self.features(params, batch[0])
        return _inner_products(features.reshape(-1, features.shape[-1]))


def with_heads(loss: Loss, heads: int | None) -> Loss:
    """Returns the loss with a number of pairs of mirrored heads; None: the loss itself.

    Raises:
        JaxTransferError: The loss draws no linear head, or `heads` is smaller than 1.
    """
    if heads is None:
        return loss
    if not isinstance(loss, _LinearHead):
        raise JaxTransferError(f"{describe(loss)} has no random linear head; leave heads out.")
    if heads < 1:
        raise JaxTransferError(f"There must be one pair of heads or more, not {heads}.")
    return dataclasses.replace(loss, heads=heads)


def describe(function: Any) -> str:
    """Returns a description of a loss or initialiser that is the same in every process.

    A dataclass is described by the fields it is compared by, without those marked as free; a function by its module and
    name.
    """
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        fields = [field for field in dataclasses.fields(function) if field.compare and not field.metadata.get("free")]
        inside = ", ".join(f"{field.name}={describe(getattr(function, field.name))}" for field in fields)
        return f"{type(function).__name__}({inside})"
    if callable(function):
        owner = getattr(function, "__module__", type(function).__module__)
        return f"{owner}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    return repr(function)


def _targets_for(features: Float[Array, "n ..."], targets: Array) -> Float[Array, "n ..."]:
    """Returns the targets in the size and type of the features.

    Raises:
        JaxTransferError: Features are dense and targets are not, or the other way round.
    """
    if targets.ndim != features.ndim:
        raise JaxTransferError(
            f"Targets {targets.shape} do not fit features {features.shape}: use features [n, features] for targets "
            "[n, outputs], and maps [n, h, w, features] for dense ones."
        )
    shape = (*features.shape[:-1], targets.shape[-1])
    targets = targets if targets.shape == shape else jax.image.resize(targets, shape, "linear")
    return targets.astype(features.dtype)


def _inner_products(features: Float[Array, "n f"]) -> Float[Array, "n n"]:
    return jnp.dot(features, features.T, precision="highest")
