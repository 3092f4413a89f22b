"""Losses of a backbone on a batch. Any function `loss(params, batch, key) -> scalar` is one; these come along.

A batch is a pair of images and labels. What a loss needs besides - a random head - it draws from the key.
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

# Of a field of a loss in which principal gradients may differ and still be compared.
_FREE = {"free": True}


@dataclasses.dataclass(frozen=True)
class Prototypical:
    """The loss of prototypical networks (Snell et al., NeurIPS 2017): no head, and it reads the labels.

    A batch is an episode as `Episodes` draws it: [ways * (shots + queries)] images in the order of their classes. The
    first `shots` of each class give its prototype, the mean of their features; the loss is the cross-entropy, over the
    others, of minus the squared distances to the prototypes.

    Attributes:
        features: `features(params, images) -> [n, features]`.
        ways: Classes in an episode.
        shots: Images per class that make its prototype.
    """

    features: Features
    ways: int = 5
    shots: int = 5
    label_blind: ClassVar[bool] = False

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean loss over the queries."""
        features = self.features(params, batch[0])
        each, left = divmod(len(features), self.ways)
        if left or each <= self.shots:
            raise JaxTransferError(
                f"An episode of {self.ways} ways and {self.shots} shots cannot have {len(features)} images."
            )
        features = features.reshape(self.ways, each, -1)
        prototypes = features[:, : self.shots].mean(1)
        queries = features[:, self.shots :].reshape(self.ways * (each - self.shots), -1)
        away = (
            jnp.square(queries).sum(1)[:, None]
            + jnp.square(prototypes).sum(1)[None, :]
            - 2 * jnp.dot(queries, prototypes.T, precision="highest")
        )
        labels = jnp.repeat(jnp.arange(self.ways), each - self.shots)
        return -jnp.take_along_axis(jax.nn.log_softmax(-away), labels[:, None], axis=1).mean()

    def invariant(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """What permuting units must not change."""
        return _inner_products(self.features(params, batch[0]))


@dataclasses.dataclass(frozen=True)
class _LinearHead:
    """A linear head drawn anew for every restart, as PyTorch's `Linear`: uniform within 1/sqrt(features).

    Heads have zero mean and do not depend on the backbone, so the expected gradient does not depend on the labels, as
    long as the images are not drawn by label (`docs/principal-gradients.md`).
    """

    features: Features
    outputs: int = dataclasses.field(metadata=_FREE)
    heads: int | None = dataclasses.field(default=None, metadata=_FREE)
    label_blind: ClassVar[bool] = True

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """The loss, averaged over the heads."""
        raise NotImplementedError

    def predictions(self, features: Float[Array, "... f"], key: Key[Array, ""]) -> Float[Array, "heads ... outputs"]:
        """What the heads say: one drawn head, or `heads` drawn ones followed by their mirror images."""
        width, count = features.shape[-1], self.heads or 1
        keys = jax.random.split(key)
        kernel, bias = (
            jax.random.uniform(each, shape, features.dtype, -(width**-0.5), width**-0.5)
            for each, shape in zip(keys, [(count, width, self.outputs), (count, self.outputs)], strict=True)
        )
        product = jnp.einsum("...f,hfo->h...o", features, kernel)
        predicted = product + bias.reshape(count, *[1] * (features.ndim - 1), self.outputs)
        return predicted if self.heads is None else jnp.concatenate([predicted, -predicted])

    def invariant(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "... n n"]:
        """What permuting units must not change: heads are drawn alike for all features, so their order is nothing."""
        features = self.features(params, batch[0])
        if features.ndim == 2:
            return _inner_products(features)
        pixels = features.reshape(len(features), -1, features.shape[-1])
        return jnp.einsum("npc,mpc->pnm", pixels, pixels, precision="highest")


@dataclasses.dataclass(frozen=True)
class RandomHead(_LinearHead):
    """Cross-entropy of a random linear head; labels are classes 0 to `outputs` - 1, [n].

    Attributes:
        features: `features(params, images) -> [n, features]`.
        outputs: Classes.
        heads: None for one head; or pairs of a head and its mirror image over which the loss is averaged. All share
            one pass through the backbone, and the expected gradient is the same.
    """

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean loss over images and heads."""
        images, labels = batch
        logits = jax.nn.log_softmax(self.predictions(self.features(params, images), key))
        chosen = jax.nn.one_hot(labels, self.outputs, dtype=logits.dtype)
        return -(logits * chosen[None]).sum(-1).mean()


@dataclasses.dataclass(frozen=True)
class SquaredError(_LinearHead):
    """Squared error of a random linear head (or 1x1 convolution) for targets [n, outputs] or dense [n, h, w, outputs].

    Dense targets are brought to the size of the features with `jax.image.resize` (linear, anti-aliased).

    Attributes:
        features: `features(params, images)`: [n, features], or maps [n, h, w, features] for dense targets.
        outputs: Numbers per image or pixel.
        heads: As for `RandomHead`.
    """

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean squared error over images, outputs and heads."""
        features = self.features(params, batch[0])
        targets = _targets_for(features, batch[1])
        if targets.shape[-1] != self.outputs:
            raise JaxTransferError(f"Heads of {self.outputs} outputs do not fit targets {targets.shape}.")
        return jnp.square(self.predictions(features, key) - targets[None]).mean()


@dataclasses.dataclass(frozen=True)
class RidgeHead:
    """Squared error of a linear head in closed form (Bertinetto et al., ICLR 2019): no draw, and it reads the labels.

    The head is fitted to the first half of a batch by ridge regression, its bias without penalty; the loss is that on
    the other half. Targets are [n, outputs], or dense [n, h, w, outputs] and then brought to the size of the
    features as for `SquaredError`.

    Attributes:
        features: As for `SquaredError`.
        ridge: Weight of the penalty, in units of the features' variance, summed over features.
    """

    features: Features
    ridge: float = 0.1
    label_blind: ClassVar[bool] = False

    def __call__(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean squared error over the second half of the images, and outputs."""
        features = self.features(params, batch[0])
        targets = _targets_for(features, batch[1])
        half = len(features) // 2
        x, y = features[:half].reshape(-1, features.shape[-1]), targets[:half].reshape(-1, targets.shape[-1])
        asked, wanted = features[half:].reshape(-1, x.shape[1]), targets[half:].reshape(-1, y.shape[1])
        centre, mean = (each.mean(0, keepdims=True) for each in (x, y))
        scale = jnp.sqrt(jnp.square(x - centre).sum(1).mean())
        x, asked = (x - centre) / scale, (asked - centre) / scale
        product = functools.partial(jnp.dot, precision="highest")
        penalty = self.ridge * jnp.eye(min(x.shape), dtype=x.dtype)
        if len(x) > x.shape[1]:
            found = product(asked, jnp.linalg.solve(product(x.T, x) + penalty, product(x.T, y - mean)))
        else:  # the same, in products of images
            found = product(product(asked, x.T), jnp.linalg.solve(product(x, x.T) + penalty, y - mean))
        return jnp.square(found + mean - wanted).mean()

    def invariant(self, params: PyTree, batch: Batch, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """What permuting units must not change."""
        features = self.features(params, batch[0])
        return _inner_products(features.reshape(-1, features.shape[-1]))


def with_heads(loss: Loss, heads: int | None) -> Loss:
    """`loss` with this number of mirrored pairs of heads.

    Raises:
        JaxTransferError: The loss draws no linear head, or `heads` is smaller than 1.
    """
    if heads is None:
        return loss
    if not isinstance(loss, _LinearHead):
        raise JaxTransferError(f"{describe(loss)} has no random linear head; leave heads out.")
    if heads < 1:
        raise JaxTransferError(f"heads must be 1 or more, not {heads}.")
    return dataclasses.replace(loss, heads=heads)


def describe(function: Any) -> str:
    """A loss or initialiser in words that are the same in another process.

    Dataclasses name what they compare by, but for the fields marked as free; functions their module and name.
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
    """Targets of the size and type of the features.

    Raises:
        JaxTransferError: One of them is dense and the other not.
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
