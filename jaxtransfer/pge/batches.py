"""Samplers of batches. They are pytrees, so that the data are arguments of the compiled program.

A sampler is called with a key and returns images and labels. Data stay on the device; images of integer type are scaled
from 0..255 to [-1, 1] when they are drawn.
"""

import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.losses import Batch

Sampler = Callable[[Key[Array, ""]], Batch]
Batches = Sampler | tuple[Array | np.ndarray, Array | np.ndarray]
"""A sampler, or a pair of arrays [batches, n, ...], whose batches are used in order, and again from the first."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """Draws few-shot episodes: `ways` classes, and `shots + queries` different images of each, all equally likely.

    Attributes:
        images: Images of all classes.
        members: Indices of each class's images, padded at the end.
        counts: Number of images in each class.
        ways: Classes in an episode.
        shots: Support images per class.
        queries: Query images per class.

    Examples:
        >>> images, labels = np.zeros((30, 8, 8, 3), np.uint8), np.repeat(["cat", "dog", "fox"], 10)
        >>> episodes = jt.Episodes.of(images, labels, ways=2, shots=1, queries=3)
        >>> drawn, classes = episodes(jax.random.key(0))
        >>> drawn.shape, classes.tolist()
        ((8, 8, 8, 3), [0, 0, 0, 0, 1, 1, 1, 1])
    """

    images: Shaped[Array, "n h w c"]
    members: Int[Array, "classes most"]
    counts: Int[Array, " classes"]
    ways: int = dataclasses.field(metadata={"static": True})
    shots: int = dataclasses.field(metadata={"static": True})
    queries: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        images: Shaped[np.ndarray, "n h w c"],
        labels: Shaped[np.ndarray, " n"],
        *,
        ways: int = 5,
        shots: int = 5,
        queries: int = 16,
    ) -> Self:
        """Makes the episodes of a data set; classes with fewer than `shots + queries` images are left out.

        Args:
            images: Images, floating point or integers 0..255.
            labels: Class of each image, of any type that can be sorted.
            ways: Classes in an episode; >= 2.
            shots: Support images per class; >= 1.
            queries: Query images per class; >= 1.

        Raises:
            JaxTransferError: There are fewer than `ways` classes with `shots + queries` images or more, or a number is
                too small.
        """
        labels = np.asarray(labels)
        _same_length(images, labels)
        if min(ways - 1, shots, queries) < 1:
            raise JaxTransferError("An episode needs two or more ways, and one or more shots and queries.")
        classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        large = np.flatnonzero(counts >= shots + queries)
        if len(large) < ways:
            raise JaxTransferError(
                f"An episode of {ways} ways needs {ways} classes of {shots + queries} images or more "
                f"({shots} shots and {queries} queries); {len(large)} of the {len(classes)} classes are that large."
            )
        members = np.zeros((len(large), counts[large].max()), np.int32)
        for row, label in enumerate(large):
            members[row, : counts[label]] = np.flatnonzero(inverse == label)
        arrays = (jnp.asarray(images), jnp.asarray(members), jnp.asarray(counts[large], jnp.int32))
        return cls(*arrays, ways, shots, queries)

    def __call__(self, key: Key[Array, ""]) -> Batch:
        """Draws an episode: images in the order of their classes, and labels 0 to ways - 1."""
        for_classes, for_images = jax.random.split(key)
        classes = jax.random.choice(for_classes, len(self.members), (self.ways,), replace=False)
        rank = jax.random.uniform(for_images, (self.ways, self.members.shape[1]))
        padding = jnp.arange(self.members.shape[1])[None] >= self.counts[classes][:, None]
        per_class = self.shots + self.queries
        _, chosen = jax.lax.top_k(jnp.where(padding, -1, rank), per_class)
        indices = jnp.take_along_axis(self.members[classes], chosen, axis=1).reshape(-1)
        return _scaled(self.images[indices]), jnp.repeat(jnp.arange(self.ways), per_class)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """Draws batches of `size` different images with their labels, all equally likely.

    Attributes:
        images: All images.
        labels: Their classes [n], numbers [n, outputs], or dense targets [n, h, w, outputs].
        size: Number of images in a batch.
    """

    images: Shaped[Array, "n h w c"]
    labels: Shaped[Array, "n ..."]
    size: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, images: Shaped[np.ndarray, "n h w c"], labels: Shaped[np.ndarray, "n ..."], *, size: int = 64) -> Self:
        """Makes the batches of a data set.

        Args:
            images: Images, floating point or integers 0..255.
            labels: Classes (of any type that can be sorted; they are numbered), or floating-point targets.
            size: Number of images in a batch; where there are fewer images, a batch has all of them.

        Raises:
            JaxTransferError: Images and labels differ in number, there are none, or `size` is smaller than 1.
        """
        labels = np.asarray(labels)
        _same_length(images, labels)
        if size < 1:
            raise JaxTransferError(f"A batch needs one image or more, not {size}.")
        if labels.ndim == 1 and labels.dtype.kind != "f":
            labels = np.unique(labels, return_inverse=True)[1].astype(np.int32)
        return cls(jnp.asarray(images), jnp.asarray(labels), min(size, len(labels)))

    def __call__(self, key: Key[Array, ""]) -> Batch:
        """Draws a batch."""
        indices = jax.random.choice(key, len(self.images), (self.size,), replace=False)
        return _scaled(self.images[indices]), self.labels[indices]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """Draws batches of a sampler with the labels permuted within each batch: the control of a task.

    Attributes:
        sampler: Sampler of the task, such as `Episodes`.
    """

    sampler: Sampler

    def __call__(self, key: Key[Array, ""]) -> Batch:
        """Draws a batch."""
        for_batch, for_labels = jax.random.split(key)
        return shuffled(self.sampler(for_batch), for_labels)


def as_sampler(batches: Batches) -> Batches:
    """Returns `batches` as a pytree of arrays; data that a plain function closes over become part of the program."""
    if callable(batches) and any(callable(leaf) for leaf in jax.tree.leaves(batches)):
        return jax.tree_util.Partial(batches)
    return batches


def draw(batches: Batches, key: Key[Array, ""], index: Int[Array, ""]) -> Batch:
    """Draws batch number `index`."""
    if callable(batches):
        return batches(jax.random.fold_in(key, index))
    count = len(batches[0])
    images, labels = (jax.lax.dynamic_index_in_dim(array, index % count, keepdims=False) for array in batches)
    return _scaled(images), labels


def shuffled(batch: Batch, key: Key[Array, ""]) -> Batch:
    """Permutes the labels of a batch: its images move, so that the order of the labels stays."""
    images, labels = batch
    return jax.random.permutation(key, images), labels


def _scaled(images: Shaped[Array, "n h w c"]) -> Array:
    return images.astype(jnp.float32) / 127.5 - 1 if jnp.issubdtype(images.dtype, jnp.integer) else images


def _same_length(images: np.ndarray, labels: np.ndarray) -> None:
    if len(images) != len(labels) or not len(images):
        raise JaxTransferError(f"There are {len(images)} images and {len(labels)} labels; an image needs one label.")
