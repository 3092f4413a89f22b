"""Computes gaps and alignments of the tasks' gradients on the same images, with an untrained encoder as backbone."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.training import convolve, views
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.alignment import gradient_alignment
from jaxtransfer.pge.batches import Minibatches
from jaxtransfer.pge.estimator import principal_gradient
from jaxtransfer.pge.gap import gap
from jaxtransfer.pge.losses import Loss, RidgeHead, SquaredError
from jaxtransfer.rooms import TASKS, Task
from jaxtransfer.rooms.networks import Encoder

_BATCH = 32
_HEADS = 4  # mirrored pairs of random heads


def _fresh(key: Key[Array, ""]) -> Encoder:
    return Encoder(3, convolve=convolve, rngs=nnx.Rngs(key))


def init(key: Key[Array, ""]) -> PyTree:
    """Draws the weights of an untrained encoder."""
    return nnx.to_pure_dict(nnx.state(_fresh(key), nnx.Param))


def symmetry() -> PyTree:
    """Returns which units of an encoder can be permuted; a block without a shortcut layer keeps its input's units."""

    def norm(group: str) -> dict[str, tuple[str]]:
        return {"bias": (group,), "scale": (group,)}

    blocks, inputs = {}, "stem"
    for number, block in jax.eval_shape(init, jax.random.key(0))["blocks"].items():
        inner, outputs = f"{number}.inner", str(number) if "shortcut" in block else inputs
        blocks[number] = {
            "conv1": {"kernel": (None, None, inputs, inner)},
            "norm1": norm(inner),
            "conv2": {"kernel": (None, None, inner, outputs)},
            "norm2": norm(outputs),
        }
        if "shortcut" in block:
            blocks[number]["shortcut"] = {"kernel": (inputs, outputs)}
        inputs = outputs
    return {"conv": {"kernel": (None, None, None, "stem")}, "norm": norm("stem"), "blocks": blocks}


@functools.cache
def _structure() -> tuple[nnx.GraphDef, PyTree]:
    graph, _, statistics = nnx.split(nnx.eval_shape(_fresh, jax.random.key(0)), nnx.Param, ...)
    return graph, nnx.to_pure_dict(statistics)


@dataclasses.dataclass(frozen=True)
class Representation:
    """The representation of an encoder that normalises by the batch; that of two views is their concatenation.

    Attributes:
        flat: Whether to flatten the representation, for labels that are vectors.
    """

    flat: bool = dataclasses.field(metadata={"free": True})

    def __call__(self, params: PyTree, images: Float[Array, "n h w c"]) -> Float[Array, "n ..."]:
        """Returns the features of images with 3 channels per view."""
        graph, statistics = _structure()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), statistics)
        encoder = nnx.merge(graph, params, zeros)
        all_views = jnp.concatenate(jnp.split(images, images.shape[-1] // 3, -1))
        features = jnp.concatenate(jnp.split(encoder(all_views), len(all_views) // len(images)), -1)
        return features.reshape(len(features), -1) if self.flat else features


def _batches(task: Task, examples: Examples) -> Minibatches:
    """Makes batches of a task's inputs and numeric labels; examples without a label are left out."""
    example = unpacked({name: jnp.asarray(array) for name, array in examples.of(task).all().items()})
    inputs = views(task, example)
    images = np.asarray(jnp.concatenate([2 * inputs[:, view] - 1 for view in range(inputs.shape[1])], -1))
    labels = np.asarray(example["label"])
    if task.loss == "softmax":
        labels = np.eye(task.outputs + 1, dtype=np.float32)[labels][..., :-1]  # class -1 becomes zeros
    if not task.pixels:
        labelled = labels.any(-1)
        images, labels = images[labelled], labels[labelled]
    return Minibatches.of(
        images, np.maximum(labels, 0).astype(np.float32) if task.loss == "logistic" else labels, size=_BATCH
    )


def measures(examples: Examples, restarts: int, progress: Callable[[int, int], None]) -> dict[str, Affinity]:
    """Computes affinities of all tasks: the negated gap of principal gradients, and the alignment of gradients.

    Args:
        examples: Images and labels of all tasks.
        restarts: Number of untrained networks per task.
        progress: Called with the number of finished steps and of all steps.
    """
    batches = {task.name: _batches(task, examples) for task in TASKS.values()}
    heads: dict[str, Callable[[Task], Loss]] = {
        "random heads": lambda task: SquaredError(Representation(not task.pixels), task.outputs),
        "ridge heads": lambda task: RidgeHead(Representation(not task.pixels)),
    }
    affinities, done, units = {}, 0, symmetry()
    steps = len(heads) * len(TASKS) + 1
    for name, head in heads.items():
        gradients = {}
        for task in TASKS.values():
            gradients[task.name] = principal_gradient(
                init,
                head(task),
                batches[task.name],
                jax.random.key(0),
                restarts=restarts,
                symmetry=units,
                heads=_HEADS if name == "random heads" else None,
                control=False,
            )
            done += 1
            progress(done, steps)
        matrix = np.full((len(TASKS), len(TASKS)), np.nan)
        for (i, first), (j, second) in itertools.combinations(enumerate(gradients.values()), 2):
            with contextlib.suppress(JaxTransferError):  # where a gradient is not resolved
                matrix[i, j] = matrix[j, i] = -gap(first, second, "cosine").value
        affinities[f"gap, {name}"] = Affinity.of([*TASKS], {f"gap, {name}": matrix})
    losses = {task.name: heads["ridge heads"](task) for task in TASKS.values()}
    affinities["alignment, ridge heads"] = gradient_alignment(
        init, losses, batches, jax.random.key(1), restarts=restarts, groups=16
    )
    progress(steps, steps)
    return affinities
