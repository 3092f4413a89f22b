"""Principal gradients of the tasks: their gaps and alignments on the same images, with a fresh encoder as backbone."""

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
_HEADS = 4  # mirrored pairs of random ones


def _fresh(key: Key[Array, ""]) -> Encoder:
    return Encoder(3, convolve=convolve, rngs=nnx.Rngs(key))


def init(key: Key[Array, ""]) -> PyTree:
    """Weights of a fresh encoder."""
    return nnx.to_pure_dict(nnx.state(_fresh(key), nnx.Param))


def symmetry() -> PyTree:
    """Which units of an encoder can be exchanged; its last two blocks add to what they were given."""

    def norm(group: str) -> dict[str, tuple[str]]:
        return {"bias": (group,), "scale": (group,)}

    blocks, source = {}, "stem"
    for number, block in jax.eval_shape(init, jax.random.key(0))["blocks"].items():
        inner, target = f"{number}.inner", str(number) if "shortcut" in block else source
        blocks[number] = {
            "conv1": {"kernel": (None, None, source, inner)},
            "norm1": norm(inner),
            "conv2": {"kernel": (None, None, inner, target)},
            "norm2": norm(target),
        }
        if "shortcut" in block:
            blocks[number]["shortcut"] = {"kernel": (source, target)}
        source = target
    return {"conv": {"kernel": (None, None, None, "stem")}, "norm": norm("stem"), "blocks": blocks}


@functools.cache
def _structure() -> tuple[nnx.GraphDef, PyTree]:
    graph, _, seen = nnx.split(nnx.eval_shape(_fresh, jax.random.key(0)), nnx.Param, ...)
    return graph, nnx.to_pure_dict(seen)


@dataclasses.dataclass(frozen=True)
class Representation:
    """Of an encoder that normalises by the batch; two views of 3 channels each become one of twice the width.

    Attributes:
        flat: For targets that are vectors.
    """

    flat: bool = dataclasses.field(metadata={"free": True})

    def __call__(self, params: PyTree, images: Float[Array, "n h w c"]) -> Float[Array, "n ..."]:
        """The features."""
        graph, seen = _structure()
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), seen)
        encoder = nnx.merge(graph, params, zeros)
        both = jnp.concatenate(jnp.split(images, images.shape[-1] // 3, -1))
        found = jnp.concatenate(jnp.split(encoder(both), len(both) // len(images)), -1)
        return found.reshape(len(found), -1) if self.flat else found


def _batches(task: Task, examples: Examples) -> Minibatches:
    """What a task shows, and its labels as numbers; examples without an answer are left out."""
    example = unpacked({name: jnp.asarray(array) for name, array in examples.of(task).all().items()})
    shown = views(task, example)
    images = np.asarray(jnp.concatenate([2 * shown[:, view] - 1 for view in range(shown.shape[1])], -1))
    labels = np.asarray(example["label"])
    if task.loss == "softmax":
        labels = np.eye(task.outputs + 1, dtype=np.float32)[labels][..., :-1]  # class -1: none of them
    if not task.pixels:
        answered = labels.any(-1)
        images, labels = images[answered], labels[answered]
    return Minibatches.of(
        images, np.maximum(labels, 0).astype(np.float32) if task.loss == "logistic" else labels, size=_BATCH
    )


def measures(examples: Examples, restarts: int, progress: Callable[[int, int], None]) -> dict[str, Affinity]:
    """Affinities of all tasks: minus the gap between principal gradients, and the alignment of gradients.

    Args:
        examples: Images and labels.
        restarts: Fresh networks for each.
        progress: Called with steps done and steps to do.
    """
    batches = {task.name: _batches(task, examples) for task in TASKS.values()}
    heads: dict[str, Callable[[Task], Loss]] = {
        "random heads": lambda task: SquaredError(Representation(not task.pixels), task.outputs),
        "ridge heads": lambda task: RidgeHead(Representation(not task.pixels)),
    }
    found, done, exchanged = {}, 0, symmetry()
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
                symmetry=exchanged,
                heads=_HEADS if name == "random heads" else None,
                control=False,
            )
            done += 1
            progress(done, steps)
        matrix = np.full((len(TASKS), len(TASKS)), np.nan)
        for (i, one), (j, other) in itertools.combinations(enumerate(gradients.values()), 2):
            with contextlib.suppress(JaxTransferError):  # where a gradient is not resolved
                matrix[i, j] = matrix[j, i] = -gap(one, other, "cosine").value
        found[f"gap, {name}"] = Affinity.of([*TASKS], {f"gap, {name}": matrix})
    losses = {task.name: heads["ridge heads"](task) for task in TASKS.values()}
    found["alignment, ridge heads"] = gradient_alignment(
        init, losses, batches, jax.random.key(1), restarts=restarts, groups=16
    )
    progress(steps, steps)
    return found
