"""What is to be predicted in a labelled task, as numbers, and the groups into which its examples are divided."""

import dataclasses
from collections import Counter

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxtransfer.data.datasets import LabelledTask, TargetType
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores.dependent import deal_units, number_units

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
            example has no label. Examples that belong together (`LabelledTask.groups`) are in one group.
        classes: Names of the classes, in the order of their numbers; empty for other types.
        left_out: Name and number of examples of the classes with one example, or whose examples all belong together;
            their labels count as missing; and of constant columns.
        units: A number for each example that examples which belong together share; None: none belong together.
    """

    target_type: TargetType
    values: Shaped[np.ndarray, "n ..."]
    group: Int[np.ndarray, " n"]
    classes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    units: Int[np.ndarray, " n"] | None = None

    @property
    def labelled(self) -> Int[np.ndarray, " labelled"]:
        """Indices of the examples that have a label."""
        return np.flatnonzero(self.group >= 0)

    @classmethod
    def of(cls, task: LabelledTask) -> "Target":
        """Encodes the labels of a task.

        Raises:
            JaxTransferError: Fewer than four labelled examples that do not belong together, fewer than two classes with
                two such examples each, no column that varies, or an infinite number.
        """
        units = None if task.groups is None else number_units(task.groups)
        return cls._of(task.labels, task.target_type, f"The task {task.name!r}", units)

    @classmethod
    def of_labels(cls, labels: "Shaped[np.ndarray, 'n ...'] | Target") -> "Target":
        """Encodes an array of labels, whose type follows from its data type and shape; a target stays as it is.

        Args:
            labels: Classes as text [n] ("": missing) or integers [n] (-1: missing); numbers as floating point [n] or
                [n, outputs] (NaN: missing), which are several labels an image if all are 0 or 1, or booleans; dense
                numbers as floating point [n, height, width, outputs]; dense classes as integers [n, height, width].

        Raises:
            JaxTransferError: The array has another type or shape, or as for `of`.
        """
        if isinstance(labels, Target):
            return labels
        subject = "The array of labels"
        match labels.dtype.kind, labels.ndim:
            case "U", 1:
                return cls._of(labels, "classes", subject)
            case (("i" | "u"), 1):
                return cls._of(np.where(labels >= 0, labels.astype(str), ""), "classes", subject)
            case (("i" | "u"), 3):
                return cls._of(labels, "dense_classes", subject)
            case (("f" | "b"), (1 | 2)):
                columns = labels.reshape(len(labels), -1).astype(np.float64)
                is_binary = np.isnan(columns) | (columns == 0) | (columns == 1)
                return cls._of(columns, "multilabel" if is_binary.all() else "numbers", subject)
            case "f", 4:
                return cls._of(labels, "dense", subject)
        raise JaxTransferError(
            f"{subject} is {labels.dtype} {list(labels.shape)}; give classes as integers or text [n], numbers as "
            "floating point [n, outputs], dense numbers as floating point [n, height, width, outputs], or dense "
            "classes as integers [n, height, width]."
        )

    @classmethod
    def _of(
        cls,
        labels: Shaped[np.ndarray, "n ..."],
        target_type: TargetType,
        subject: str,
        units: Int[np.ndarray, " n"] | None = None,
    ) -> "Target":
        """Encodes labels; `subject` begins the sentence of an error, `units` tell which examples belong together."""
        if target_type == "classes":
            values, classes, left_out, labelled = _classes(labels, subject, units)
        else:
            encode = _dense_classes if target_type == "dense_classes" else _numbers
            values, classes, left_out, labelled = encode(labels, subject)
        if labelled.sum() < _LEAST_EXAMPLES:
            raise JaxTransferError(
                f"{subject} has {labelled.sum()} examples with a label; a score needs {_LEAST_EXAMPLES}."
            )
        strata = values if target_type == "classes" else np.zeros(len(values), int)
        if units is None:
            return cls(target_type, values, _groups(strata, labelled), classes, left_out)
        if (count := len(np.unique(units[labelled]))) < _LEAST_EXAMPLES:
            raise JaxTransferError(
                f"{subject} has labelled examples of {count} groups that belong together; a score needs "
                f"{_LEAST_EXAMPLES}."
            )
        return cls(target_type, values, deal_units(units, strata, labelled, GROUPS), classes, left_out, units)


def _groups(strata: Int[np.ndarray, " n"], labelled: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Deals the labelled examples of each stratum to groups in turn, in a random order that is always the same."""
    kept = np.random.default_rng(0).permutation(np.flatnonzero(labelled))
    kept = kept[np.argsort(strata[kept], kind="stable")]
    group = np.full(len(strata), -1)
    group[kept] = np.arange(len(kept)) % min(GROUPS, len(kept))
    return group


def _classes(labels: Shaped[np.ndarray, " n"], subject: str, units: Int[np.ndarray, " n"] | None) -> _Encoded:
    """Numbers the classes of images; a class with one example cannot be learned and judged, so it is left out."""
    counts = Counter(name for name in labels.tolist() if name)  # in the order of first appearance
    two = "two examples" if units is None else "examples of two groups"
    units = np.arange(len(labels)) if units is None else units
    independent = Counter(name for name, _ in {*zip(labels.tolist(), units.tolist(), strict=True)})
    classes = tuple(name for name in counts if independent[name] > 1)
    if len(classes) < 2:
        raise JaxTransferError(
            f"{subject} needs two classes with {two} each; it has {len(classes)} such "
            f"{'class' if len(classes) == 1 else 'classes'} among {len(counts)}."
        )
    number = {name: i for i, name in enumerate(classes)}
    values = np.array([number.get(name, -1) for name in labels.tolist()])
    left_out = tuple((name, count) for name, count in counts.items() if independent[name] == 1)
    return values, classes, left_out, values >= 0


def _numbers(labels: Float[np.ndarray, "n ..."], subject: str) -> _Encoded:
    """Keeps the columns that vary; an example counts as labelled if one of its numbers is known."""
    values = np.asarray(labels, np.float32 if labels.ndim == 4 else np.float64)
    flat = values.reshape(-1, values.shape[-1])
    if np.isinf(flat).any():
        raise JaxTransferError(f"{subject} has infinite numbers as labels; replace them, by NaN if they are missing.")
    known = ~np.isnan(flat)
    low, high = (reduce(np.where(known, flat, fill), axis=0) for reduce, fill in ((np.min, np.inf), (np.max, -np.inf)))
    varies = low < high
    if not varies.any():
        raise JaxTransferError(f"{subject} has the same labels for all examples.")
    left_out = tuple((f"column {i + 1}", int(known[:, i].sum())) for i in np.flatnonzero(~varies))
    values = values[..., varies]
    labelled = np.any(~np.isnan(values).reshape(len(values), -1), axis=1)
    return values, (), left_out, np.asarray(labelled)


def _dense_classes(labels: Int[np.ndarray, "n height width"], subject: str) -> _Encoded:
    """Numbers the classes of pixels."""
    names = np.unique(labels)
    names = names[names >= 0]
    if len(names) < 2:
        raise JaxTransferError(f"{subject} needs pixels of two classes; it has {len(names)}.")
    values = np.where(labels >= 0, np.searchsorted(names, labels), -1).astype(np.int32)
    labelled = np.any((values >= 0).reshape(len(values), -1), axis=1)
    return values, tuple(str(name) for name in names), (), np.asarray(labelled)
