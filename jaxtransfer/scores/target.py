"""What is to be predicted in a labelled task, as numbers, and the groups into which its examples are divided."""

import dataclasses
from collections import Counter

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxtransfer.data.datasets import LabelledTask, TargetType
from jaxtransfer.errors import JaxTransferError

GROUPS = 10
"""Number of groups of examples: the folds of a cross-validation, and what a jackknife leaves out."""

_LEAST_EXAMPLES = 4
_Encoded = tuple[
    Shaped[np.ndarray, "n ..."], tuple[str, ...], tuple[tuple[str, int], ...], Bool[np.ndarray, " n"]
]  # values, names of classes, what is left out, which examples have a label


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """Holds what is to be predicted, as numbers.

    Attributes:
        target_type: What the labels are.
        values: By type: "classes" int [n], 0 to C-1 in the order in which classes first appear; "numbers" and
            "multilabel" float64 [n, outputs]; "dense" float32 [n, height, width, outputs]; "dense_classes" int [n,
            height, width]. A missing label is -1, or NaN.
        group: Group of each example, 0 to G-1, as equal in size as possible, for classes within every class; -1: the
            example has no label.
        classes: Names of the classes, in the order of their numbers; empty for other types.
        left_out: Name and number of examples of the classes with one example, whose labels count as missing, and of
            constant columns.
    """

    target_type: TargetType
    values: Shaped[np.ndarray, "n ..."]
    group: Int[np.ndarray, " n"]
    classes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def labelled(self) -> Int[np.ndarray, " labelled"]:
        """Indices of the examples that have a label."""
        return np.flatnonzero(self.group >= 0)

    @classmethod
    def of(cls, task: LabelledTask) -> "Target":
        """Encodes the labels of a task.

        Raises:
            JaxTransferError: Fewer than four labelled examples, fewer than two classes with two examples each, or no
                column that varies.
        """
        encode = {"classes": _classes, "dense_classes": _dense_classes}.get(task.target_type, _numbers)
        values, classes, left_out, labelled = encode(task)
        if labelled.sum() < _LEAST_EXAMPLES:
            raise JaxTransferError(
                f"The task {task.name!r} has {labelled.sum()} examples with a label; a score needs {_LEAST_EXAMPLES}."
            )
        strata = values if task.target_type == "classes" else np.zeros(len(values), int)
        return cls(task.target_type, values, _groups(strata, labelled), classes, left_out)


def _groups(strata: Int[np.ndarray, " n"], labelled: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Deals the labelled examples of each stratum to groups in turn, in a random order that is always the same."""
    kept = np.random.default_rng(0).permutation(np.flatnonzero(labelled))
    kept = kept[np.argsort(strata[kept], kind="stable")]
    group = np.full(len(strata), -1)
    group[kept] = np.arange(len(kept)) % min(GROUPS, len(kept))
    return group


def _classes(task: LabelledTask) -> _Encoded:
    """Numbers the classes of images; a class with one example cannot be learned and judged, so it is left out."""
    counts = Counter(name for name in task.labels.tolist() if name)  # in the order of first appearance
    classes = tuple(name for name, count in counts.items() if count > 1)
    if len(classes) < 2:
        raise JaxTransferError(
            f"The task {task.name!r} needs two classes with two examples each; it has {len(classes)} such "
            f"{'class' if len(classes) == 1 else 'classes'} among {len(counts)}."
        )
    number = {name: i for i, name in enumerate(classes)}
    values = np.array([number.get(name, -1) for name in task.labels.tolist()])
    left_out = tuple((name, count) for name, count in counts.items() if count == 1)
    return values, classes, left_out, values >= 0


def _numbers(task: LabelledTask) -> _Encoded:
    """Keeps the columns that vary; an example counts as labelled if one of its numbers is known."""
    values: Float[np.ndarray, "n ..."] = np.asarray(task.labels, np.float32 if task.labels.ndim == 4 else np.float64)
    flat = values.reshape(-1, values.shape[-1])
    known = ~np.isnan(flat)
    low, high = (reduce(np.where(known, flat, fill), axis=0) for reduce, fill in ((np.min, np.inf), (np.max, -np.inf)))
    varies = low < high
    if not varies.any():
        raise JaxTransferError(f"The labels of the task {task.name!r} are the same for all examples.")
    left_out = tuple((f"column {i + 1}", int(known[:, i].sum())) for i in np.flatnonzero(~varies))
    values = values[..., varies]
    labelled = ~np.isnan(values).reshape(len(values), -1).all(1)
    return values, (), left_out, labelled


def _dense_classes(task: LabelledTask) -> _Encoded:
    """Numbers the classes of pixels."""
    names = np.unique(task.labels)
    names = names[names >= 0]
    if len(names) < 2:
        raise JaxTransferError(f"The task {task.name!r} needs pixels of two classes; it has {len(names)}.")
    values = np.where(task.labels >= 0, np.searchsorted(names, task.labels), -1).astype(np.int32)
    labelled = (values >= 0).reshape(len(values), -1).any(1)
    return values, tuple(str(name) for name in names), (), labelled
