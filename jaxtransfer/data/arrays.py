"""Checks arrays of images and labels, and converts them to the types of a labelled task."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from jaxtransfer.errors import JaxTransferError, unknown_name

TargetType = Literal["classes", "numbers", "multilabel", "dense", "dense_classes"]
TARGET_TYPES: tuple[TargetType, ...] = ("classes", "numbers", "dense", "multilabel", "dense_classes")
DENSE_TYPES: tuple[TargetType, ...] = ("dense", "dense_classes")
CLASS_TYPES: tuple[TargetType, ...] = ("classes", "dense_classes")
_FITTING = {
    "classes": "integers or text [n]",
    "numbers": "floating point [n, outputs]",
    "multilabel": "0 and 1 [n, outputs]",
    "dense": "floating point [n, h, w, outputs]",
    "dense_classes": "integers [n, h, w]",
}


class LabelledArrays(NamedTuple):
    """Images and labels as arrays.

    Attributes:
        images: [n, h, w, channels].
        labels: [n, ...].
        groups: Group of every image, as text; None: every image is a group of its own.
    """

    images: Shaped[np.ndarray, "n h w channels"]
    labels: Shaped[np.ndarray, "n ..."]
    groups: Shaped[np.ndarray, " n"] | None = None

    def take(self, order: Shaped[np.ndarray, " kept"]) -> "LabelledArrays":
        """Returns the images of these indices with their labels and groups."""
        groups = None if self.groups is None else self.groups[order]
        return LabelledArrays(self.images[order], self.labels[order], groups)


class ArrayNames(NamedTuple):
    """What error messages call the arrays.

    Attributes:
        where: The file or call.
        images: Name of the images.
        labels: Name of the labels.
        typed_by: Where the target type comes from.
    """

    where: str
    images: str
    labels: str
    typed_by: str


def convert_arrays(
    arrays: LabelledArrays, names: ArrayNames, target_type: TargetType | None, missing: bool
) -> tuple[LabelledArrays, TargetType]:
    """Converts images and labels to the types of a labelled task, and infers the target type if it is None.

    Raises:
        JaxTransferError: The arrays do not fit each other or the type, hold values that cannot be used, or lack labels
            although `missing` is False.
    """
    x, y, groups = arrays
    _check_shapes(x, y, names)
    target_type = _target_type(y, names, target_type)
    x = x if x.ndim == 4 else x[..., None]
    if target_type.startswith("dense") and y.shape[1:3] != x.shape[1:3]:
        raise JaxTransferError(
            f"{names.where}: dense targets, {_shape(y)}, must have the height and width of the images, {_shape(x)}."
        )
    if groups is not None:
        if groups.shape != (len(x),) or groups.dtype.kind not in "iuSU":
            raise JaxTransferError(
                f"{names.where}: groups is {groups.dtype} {_shape(groups)}; it must be integers or text "
                f"[{len(x)}], the group of every image."
            )
        groups = as_text(groups)
    x = _images(names, x)
    match target_type:
        case "classes":
            y = as_text(y)
        case "dense_classes":
            y = np.maximum(y.astype(np.int64), -1).astype(np.int32)
            if not missing and (y < 0).any():
                raise JaxTransferError(
                    f"{names.where}: {names.labels} holds classes below 0, which are missing labels."
                )
        case _:
            y = _floats(names.where, names.labels, y, missing)
    if target_type == "numbers" and y.ndim == 1:
        y = y[:, None]
    return LabelledArrays(x, y, groups), target_type


def check_target_type(target_type: str | None, where: str) -> None:
    """Raises an error if there is no such target type; None is one that is to be inferred."""
    if target_type is not None and target_type not in TARGET_TYPES:
        raise unknown_name("target", target_type, TARGET_TYPES, where=f"for {where}")


def as_text(values: np.ndarray) -> np.ndarray:
    """Converts names of classes or groups to text."""
    if values.dtype.kind == "f":
        values = values.astype(np.int64)
    names = values.tolist()
    return np.array(
        [name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name) for name in names]
    )


def text_of_objects(values: np.ndarray) -> np.ndarray:
    """Converts an array of text objects, in which None and NaN are missing, to text; others stay as they are."""
    names = ["" if name is None or name != name else name for name in values.ravel().tolist()]
    return np.array(names).reshape(values.shape) if all(isinstance(name, str) for name in names) else values


def _check_shapes(x: np.ndarray, y: np.ndarray, names: ArrayNames) -> None:
    where, images, labels, _ = names
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise JaxTransferError(f"{where}: {images} must hold images [n, h, w] or [n, h, w, channels], not {_shape(x)}.")
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[1] < min(x.shape[2:]):
        raise JaxTransferError(
            f"{where}: {images}, {_shape(x)}, has its channels first; save it as [n, h, w, channels]."
        )
    if len(x) != len(y):
        raise JaxTransferError(
            f"{where}: {images} holds {len(x)} images and {labels} {len(y)} labels; the numbers must be equal."
        )


def _target_type(y: np.ndarray, names: ArrayNames, given: TargetType | None) -> TargetType:
    """Infers the type of the targets, or checks that the type which was given fits."""
    inferred: TargetType | None = None
    floating, binary = y.dtype.kind == "f", y.dtype.kind in "biuf" and bool(np.isin(y[y == y], (0, 1)).all())
    if y.ndim == 1 and y.dtype.kind in "biuSU":
        inferred = "classes"
    elif y.ndim == 2 and y.dtype.kind in "biuf":
        inferred = "numbers" if floating else "multilabel" if binary and y.shape[1] > 1 else None
    elif y.ndim == 3 and y.dtype.kind in "biu":
        inferred = "dense_classes"
    elif y.ndim == 4 and floating:
        inferred = "dense"
    fits = {
        None: inferred is not None,
        "classes": inferred == "classes" or (y.ndim == 1 and floating and bool((y == np.round(y)).all())),
        "numbers": y.ndim in (1, 2) and y.dtype.kind in "iuf",
        "multilabel": y.ndim == 2 and binary,
        "dense": y.ndim == 4 and y.dtype.kind in "iuf",
        "dense_classes": y.ndim == 3 and y.dtype.kind in "biu",
    }
    if fits[given] and y.size:
        return given or inferred or "classes"
    if given is None:
        problem = (
            "save classes as integers or text [n], numbers to predict as floating point [n, outputs], several labels "
            "an image as integers 0 and 1 [n, outputs], dense targets as floating point [n, h, w, outputs] and dense "
            "classes as integers [n, h, w]"
        )
    else:
        problem = f"that does not fit the target {given!r} that {names.typed_by} gives it, {_FITTING[given]}"
    raise JaxTransferError(f"{names.where}: {names.labels} is {y.dtype} {_shape(y)}; {problem}.")


def _images(names: ArrayNames, x: np.ndarray) -> Shaped[np.ndarray, "n h w channels"]:
    """Converts images to uint8 or float32."""
    where, name = names.where, names.images
    if x.dtype.kind == "f":
        return _floats(where, name, x, missing=False)
    if x.dtype.kind not in "iu":
        raise JaxTransferError(f"{where}: {name} is {x.dtype}; it must be integers 0 to 255 or floating point.")
    if x.min() < 0 or x.max() > 255:
        raise JaxTransferError(
            f"{where}: {name} runs from {x.min()} to {x.max()}; integers must lie in 0 to 255; save others as floats."
        )
    return x.astype(np.uint8)


def _floats(where: str, name: str, array: np.ndarray, missing: bool) -> Float[np.ndarray, "..."]:
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32)
    if not (np.isfinite(floats) | (missing & np.isnan(floats))).all():
        raise JaxTransferError(f"{where}: {name} holds values that are not finite numbers; remove them.")
    return floats


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape))
