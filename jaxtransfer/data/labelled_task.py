"""A labelled task: images, and what is to be predicted from them."""

import dataclasses
import functools
import hashlib
from typing import Self

import numpy as np
from jaxtyping import Shaped
from numpy.typing import ArrayLike

from jaxtransfer.data.arrays import (
    ArrayNames,
    LabelledArrays,
    TargetType,
    check_target_type,
    convert_arrays,
    text_of_objects,
)
from jaxtransfer.data.squares import resize_classes, resize_images, resize_numbers
from jaxtransfer.errors import JaxTransferError


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTask:
    """Holds images with labels that are to be predicted from them.

    Attributes:
        name: The task's name, which can be part of a file name.
        path: The folder or file that it was read from; empty for arrays of a program.
        images: [n, size, size, channels], uint8 or float32.
        labels: By `target_type`, for n images:

            * "classes": names of classes [n]; an empty text is a missing label;
            * "numbers": float32 [n, outputs]; NaN is a missing label;
            * "multilabel": float32 [n, outputs], 0 or 1; NaN is a missing label;
            * "dense": float32 [n, size, size, outputs]; NaN is a missing label;
            * "dense_classes": int32 [n, size, size], 0 or more; -1 is a missing label.
        target_type: What the labels are.
        sha256: SHA-256 over the images, labels and groups that are used, before they are resized.
        skipped: Name and reason of every file that could not be used.
        left_out: Name and number of images of every class that is too small.
        image_names: Path of every image relative to the folder, or its index in the arrays; empty if not known.
        groups: Group of every image [n]: images of one group (a patient, a film) are no independent examples. An
            empty text: the image is a group of its own. None: all images are.
        unlabelled: Number of image files that were not used since no label names them.

    Examples:
        >>> images = np.zeros((4, 8, 8, 3), np.uint8)
        >>> task = jt.LabelledTask.of(images, ["cat", "dog", "cat", ""], name="pets")
        >>> task.target_type, task.missing
        ('classes', 1)
    """

    name: str
    path: str
    images: Shaped[np.ndarray, "n size size channels"]
    labels: Shaped[np.ndarray, "n ..."]
    target_type: TargetType
    sha256: str
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    image_names: tuple[str, ...] = ()
    groups: Shaped[np.ndarray, " n"] | None = None
    unlabelled: int = 0

    @property
    def missing(self) -> int:
        """Number of missing labels: of images, of numbers where an image has several, or of pixels."""
        return int(is_missing(self.labels).sum())

    @property
    def copies(self) -> int:
        """Number of images that equal an earlier one: as examples they are not independent."""
        return len(self.images) - len({hashlib.sha256(image.tobytes()).digest() for image in self.images})

    @functools.cached_property
    def images_sha256(self) -> str:
        """SHA-256 over the images alone, as resized: tasks on the same images have the same."""
        digest = hashlib.sha256()
        update_digest(digest, self.images)
        return digest.hexdigest()

    def take(self, kept: Shaped[np.ndarray, " kept"]) -> Self:
        """Returns the task with the images of these indices, or those where a mask is True."""
        kept = np.arange(len(self.images))[kept]
        return dataclasses.replace(
            self,
            images=self.images[kept],
            labels=self.labels[kept],
            sha256=hashlib.sha256(f"{self.sha256} {kept.tolist()}".encode()).hexdigest(),
            image_names=tuple(np.array(self.image_names)[kept].tolist()) if self.image_names else (),
            groups=None if self.groups is None else self.groups[kept],
        )

    def in_colour(self) -> Self:
        """Returns the task with images that networks take: grey is repeated over three channels."""
        if self.images.shape[-1] != 1:
            return self
        return dataclasses.replace(self, images=np.repeat(self.images, 3, -1))

    @classmethod
    def of(
        cls,
        images: ArrayLike,
        labels: ArrayLike,
        *,
        name: str = "task",
        target_type: TargetType | None = None,
        groups: ArrayLike | None = None,
    ) -> "LabelledTask":
        """Makes a task of arrays in memory; images and dense labels are cropped to their centred square.

        Args:
            images: [n, h, w] or [n, h, w, channels], integers 0 to 255, or floating point, which is used unchanged.
            labels: Classes [n], integers or text; floating-point numbers [n, outputs]; several labels an image [n,
                outputs], integers 0 and 1; dense numbers [n, h, w, outputs], floating point; or dense classes [n, h,
                w], integers. A missing label is an empty text, NaN, None among text, or a dense class below 0.
            name: Name of the task.
            target_type: What the labels are; None: inferred from their type and shape.
            groups: Group of every image [n], integers or text, see `LabelledTask.groups`. None: each is its own.

        Raises:
            JaxTransferError: The arrays do not fit each other or the type, or hold values that cannot be used.
        """
        check_name(name, "LabelledTask.of")
        check_target_type(target_type, f"the task {name!r}")
        names = ArrayNames(f"The task {name!r}", "images", "labels", "the argument target_type")
        y = np.asarray(labels)
        given = LabelledArrays(
            np.asarray(images),
            text_of_objects(y) if y.dtype == object else y,
            None if groups is None else np.asarray(groups),
        )
        arrays, target_type = convert_arrays(given, names, target_type, missing=True)
        image_names = tuple(map(str, range(len(arrays.images))))
        return make_task(name, "", arrays, target_type, min(arrays.images.shape[1:3]), image_names)


def make_task(
    name: str,
    path: str,
    arrays: LabelledArrays,
    target_type: TargetType,
    size: int,
    image_names: tuple[str, ...],
    left_out: tuple[tuple[str, int], ...] = (),
) -> LabelledTask:
    """Makes a task of converted arrays, resized to `size` pixels."""
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            update_digest(digest, array)
    resize_labels = {"dense": resize_numbers, "dense_classes": resize_classes}.get(target_type)
    labels = arrays.labels if resize_labels is None else resize_labels(arrays.labels, size)
    return LabelledTask(
        name, path, resize_images(arrays.images, size), labels, target_type, digest.hexdigest(), (), left_out,
        image_names, arrays.groups,
    )  # fmt: skip


def check_name(name: str, where: str) -> None:
    """Raises an error if the name of a task cannot be part of a file name."""
    if not name or len(name) > 100 or not name.isprintable() or name[0] == "." or {*name} & {*"/\\"}:
        raise JaxTransferError(f"{where}: the name {name!r} of a dataset cannot be part of a file name; rename it.")
    if name.endswith(".partial"):
        raise JaxTransferError(f"{where}: a dataset's name must not end in .partial, as {name!r} does.")


def update_digest(digest: "hashlib._Hash", array: np.ndarray) -> None:
    """Adds the type, the shape and the values of an array to a digest."""
    digest.update(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)


def is_missing(labels: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Tells which labels are missing: empty texts, NaN, and integers below 0."""
    if labels.dtype.kind == "U":
        return labels == ""
    return np.isnan(labels) if labels.dtype.kind == "f" else labels < 0
