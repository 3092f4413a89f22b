"""Objectives: what the gradients of a task are taken of, a loss on batches of its data."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxtransfer.data.datasets import LabelledTask, TargetType
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.backbones import Backbone
from jaxtransfer.pge.batches import Episodes, Minibatches, Sampler
from jaxtransfer.pge.losses import Loss, Prototypical, RandomHead, SquaredError
from jaxtransfer.pge.options import LossName, PGEOptions

_TARGETS_OF_LOSS: dict[LossName, tuple[TargetType, ...]] = {
    "prototypical": ("classes",),
    "random-head": ("classes",),
    "squared-error": ("numbers", "multilabel", "dense"),
}
_DEFAULT_LOSS: dict[TargetType, LossName] = {
    "classes": "prototypical",
    "numbers": "squared-error",
    "multilabel": "squared-error",
    "dense": "squared-error",
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Joins a task with its loss and its batches.

    Attributes:
        task: The task.
        loss_name: Name of the loss.
        loss: The loss.
        batches: Draws batches of the task's images and labels.
    """

    task: LabelledTask
    loss_name: LossName
    loss: Loss
    batches: Sampler


def make_objectives(tasks: Sequence[LabelledTask], options: PGEOptions, backbone: Backbone) -> list[Objective]:
    """Returns the objective of every task, in the order of the tasks.

    Args:
        tasks: One or more tasks with images of the same size and channels.
        options: Measure, loss, and the sizes of episodes and batches.
        backbone: Computes the features.

    Raises:
        JaxTransferError: The tasks do not fit the measure, the loss or the backbone, or there are too few of them.
    """
    if options.measure == "alignment" and len(tasks) < 2:
        raise JaxTransferError(f"An alignment needs two tasks or more, but there is only {tasks[0].path}; add one.")
    losses: list[LossName] = [_loss_of(task, options.loss) for task in tasks]
    target_types = dict.fromkeys(task.target_type for task in tasks)
    if options.measure == "gap" and len(target_types) > 1:
        raise JaxTransferError(
            f"Gaps compare tasks of one kind, not {' and '.join(target_types)}; name one kind, or use the measure "
            "alignment."
        )
    if options.heads is not None and {*losses} == {"prototypical"}:
        raise JaxTransferError("The loss prototypical has no head; leave heads out.")
    objectives = [_objective(task, loss, options, backbone) for task, loss in zip(tasks, losses, strict=True)]
    # Tracing alone makes the backbone refuse images that are too small for it.
    images = jax.ShapeDtypeStruct((2, *tasks[0].images.shape[1:]), np.float32)
    jax.eval_shape(backbone.features, jax.eval_shape(backbone.init, jax.random.key(0)), images)
    return objectives


def _loss_of(task: LabelledTask, loss: LossName | None) -> LossName:
    if task.target_type not in _DEFAULT_LOSS:
        raise JaxTransferError(
            f"Principal gradients have no loss for the targets of {task.path}, which are {task.target_type}; save "
            "dense targets as floating point."
        )
    if loss is None:
        return _DEFAULT_LOSS[task.target_type]
    if task.target_type not in _TARGETS_OF_LOSS[loss]:
        fitting = [name for name, target_types in _TARGETS_OF_LOSS.items() if task.target_type in target_types]
        raise JaxTransferError(
            f"The loss {loss} needs {' or '.join(_TARGETS_OF_LOSS[loss])}, but the targets of {task.path} are "
            f"{task.target_type}; use {' or '.join(fitting)}."
        )
    return loss


def _objective(task: LabelledTask, loss: LossName, options: PGEOptions, backbone: Backbone) -> Objective:
    if loss == "prototypical":
        ways, shots = options.ways, options.shots
        episodes = Episodes.of(task.images, task.labels, ways=ways, shots=shots, queries=options.queries)
        return Objective(task, loss, Prototypical(backbone.features, ways, shots), episodes)
    if len(task.images) < options.batch_size:
        raise JaxTransferError(
            f"{task.path} has {len(task.images)} images that can be used, fewer than a batch of "
            f"{options.batch_size}; ask for smaller batches."
        )
    batches = Minibatches.of(task.images, task.labels, size=options.batch_size)
    if loss == "random-head":
        classes = len(np.unique(task.labels))
        return Objective(task, loss, RandomHead(backbone.features, classes, options.pairs_of_heads), batches)
    features = backbone.maps if task.target_type == "dense" else backbone.features
    return Objective(task, loss, SquaredError(features, task.labels.shape[-1], options.pairs_of_heads), batches)
