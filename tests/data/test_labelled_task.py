"""Tests labelled tasks of arrays: what their labels are, hashes, groups, parts, and bad input."""

import numpy as np
import pytest

from jaxtransfer import JaxTransferError, LabelledTask, read_tasks
from support.helpers import random_pixels


def test_images_sha256_is_of_the_images_alone():
    images = random_pixels(0, (4, 6, 6, 3))
    first, second = LabelledTask.of(images, [0, 1, 0, 1]), LabelledTask.of(images, [1, 1, 0, 0], name="other")
    assert first.images_sha256 == second.images_sha256
    assert first.sha256 != second.sha256
    assert LabelledTask.of(images[::-1], [0, 1, 0, 1]).images_sha256 != first.images_sha256
    assert LabelledTask.of(images / np.float32(1), [0, 1, 0, 1]).images_sha256 != first.images_sha256


def test_copies_are_counted() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    images[3], images[4] = images[0], images[0]
    assert LabelledTask.of(images, [0, 1] * 3).copies == 2
    assert LabelledTask.of(images[:4], [0, 1] * 2).take(np.arange(3)).copies == 0


def test_arrays_have_groups() -> None:
    images = np.zeros((4, 4, 4, 3), np.uint8)
    task = LabelledTask.of(images, [0, 1, 0, 1], groups=[7, 7, 8, 8])
    assert task.groups is not None
    assert task.groups.tolist() == ["7", "7", "8", "8"]
    assert task.sha256 != LabelledTask.of(images, [0, 1, 0, 1]).sha256
    with pytest.raises(JaxTransferError, match="it must be integers or text \\[4\\], the group of every image"):
        LabelledTask.of(images, [0, 1, 0, 1], groups=[7, 7, 8])


def test_arrays_of_every_kind(tmp_path):
    x, rng = random_pixels(0, (6, 8, 8, 3)), np.random.default_rng(0)
    floats = np.where(np.arange(12).reshape(6, 2) == 3, np.nan, rng.normal(size=(6, 2)))
    dense = np.where(rng.random((6, 8, 8, 2)) < 0.2, np.nan, rng.normal(size=(6, 8, 8, 2)))
    for y, target_type, missing in (
        (np.array(["a", "b", "", "a", "b", "a"]), "classes", 1),
        (floats, "numbers", 1),
        (rng.integers(0, 2, (6, 3)), "multilabel", 0),
        (rng.integers(0, 2, (6, 3)).astype(bool), "multilabel", 0),
        (rng.integers(-2, 3, (6, 8, 8)), "dense_classes", None),
        (rng.integers(0, 200, (6, 8, 8)).astype(np.uint8), "dense_classes", 0),
        (dense, "dense", int(np.isnan(dense).sum())),
    ):
        np.savez(tmp_path / "a.npz", x=x, y=y)
        [task] = read_tasks([tmp_path / "a.npz"], size=8, missing=True)
        assert task.target_type == target_type
        assert task.missing == (int((y < 0).sum()) if missing is None else missing)
        order = [int(name) for name in task.image_names]
        expected = np.maximum(y.astype(int), -1) if target_type == "dense_classes" else y
        np.testing.assert_array_equal(task.labels, np.asarray(expected, task.labels.dtype)[order])
        if target_type != "classes":
            direct = LabelledTask.of(x, y, name="a")
            np.testing.assert_array_equal(direct.labels, task.labels)
            assert (direct.sha256, direct.images_sha256) == (task.sha256, task.images_sha256)
        if missing != 0 and target_type != "classes":
            with pytest.raises(JaxTransferError, match=r"a\.npz: y holds (values that are not finite|classes below 0)"):
                read_tasks([tmp_path / "a.npz"], size=8)
    binary = np.where(np.arange(12).reshape(6, 2) == 3, np.nan, rng.integers(0, 2, (6, 2)))
    assert LabelledTask.of(x, binary).target_type == "numbers"
    assert LabelledTask.of(x, binary, target_type="multilabel").missing == 1


def test_tasks_of_arrays_are_cropped_to_squares():
    task = LabelledTask.of(random_pixels(0, (4, 9, 12)), np.arange(4 * 9 * 12).reshape(4, 9, 12), name="wide")
    assert (task.images.shape, task.labels.shape) == ((4, 9, 9, 1), (4, 9, 9))
    np.testing.assert_array_equal(task.labels[0, 0], np.arange(1, 10))
    np.testing.assert_array_equal(task.images[0, ..., 0], random_pixels(0, (4, 9, 12))[0, :, 1:10])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 8, 8)), [0, 1, 0]), "The task 'task': images holds 2 images and labels 3 labels"),
        ((np.zeros(3), [0, 1, 0]), "The task 'task': images must hold images"),
        ((np.zeros((3, 8, 8)), [[0], [1], [0]]), "The task 'task': labels is int64 3x1; save classes as"),
        (
            (np.zeros((3, 8, 8)), [0.5, 1, 0], "classes"),
            "fit the target 'classes' that the argument target_type gives it",
        ),
        ((np.zeros((3, 8, 8)), np.full((3, 2), 2), "multilabel"), "gives it, 0 and 1"),
        ((np.zeros((3, 8, 8)), [0, None, 1]), "The task 'task': labels is object 3; save classes as"),
        ((np.zeros((3, 8, 8)), [0, None, 1], "classes"), "labels is object 3; that does not fit the target 'classes'"),
        ((np.zeros((3, 8, 8)), [0, 1, 0], "words"), "no target 'words' for the task 'task'; there are: classes"),
        ((np.zeros((3, 8, 8)), np.full((3, 1), np.inf)), "labels holds values that are not finite"),
        ((np.full((3, 8, 8), np.nan), [0, 1, 0]), "images holds values that are not finite"),
        ((np.zeros((3, 8, 8)), np.zeros((3, 4, 4), int)), "dense targets, 3x4x4, must have the height and width"),
    ],
)
def test_bad_arrays(arguments, message):
    images, labels, *target_type = arguments
    with pytest.raises(JaxTransferError, match=message):
        LabelledTask.of(images, labels, target_type=target_type[0] if target_type else None)


def test_bad_groups_and_names(tmp_path):
    with pytest.raises(JaxTransferError, match="the name 'a/b' of a dataset cannot be part of a file name"):
        LabelledTask.of(np.zeros((2, 8, 8)), [0, 1], name="a/b")
    for groups in ([1], [[1], [2]], [0.5, 1.5]):
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 8, 8)), y=[0, 1], groups=groups)
        with pytest.raises(JaxTransferError, match=r"a\.npz: groups is .*; it must be integers or text \[2\]"):
            read_tasks([tmp_path / "a.npz"], size=6, missing=True)


def test_tasks_with_equal_images_share_one_array(tmp_path):
    x = random_pixels(0, (4, 6, 6))
    for name, y in (("a", np.eye(4)), ("b", np.eye(4) * 2), ("c", np.eye(4, 2))):
        np.savez(tmp_path / f"{name}.npz", x=x if name != "c" else x[::-1], y=y)
    a, b, c = read_tasks([tmp_path], size=6)
    assert a.images is b.images
    assert a.images is not c.images
    np.savez(tmp_path / "colour.npz", x=random_pixels(0, (4, 6, 6, 3)), y=np.eye(4))
    a, b, c, _ = read_tasks([tmp_path], size=6)
    assert a.images is b.images
    assert a.images.shape[-1] == 3


def test_a_part_of_a_task_has_a_hash_of_its_own():
    task = LabelledTask.of(random_pixels(0, (6, 4, 4)), np.arange(6) % 2)
    mask = np.arange(6) > 2
    part, same, other = task.take(mask), task.take(np.flatnonzero(mask)), task.take(~mask)
    assert part.sha256 == same.sha256
    assert len({task.sha256, part.sha256, other.sha256}) == 3
    assert part.image_names == ("3", "4", "5")


def test_text_objects_are_text():
    labels = np.array(["a", None, float("nan"), "b"], object)
    task = LabelledTask.of(np.zeros((4, 8, 8)), labels)
    assert (task.target_type, task.labels.tolist(), task.missing) == ("classes", ["a", "", "", "b"], 2)


def test_grey_images_in_colour():
    grey = LabelledTask.of(random_pixels(0, (4, 8, 8)), [0, 1, 0, 1])
    colour = grey.in_colour()
    np.testing.assert_array_equal(colour.images, np.stack([random_pixels(0, (4, 8, 8))] * 3, -1))
    assert colour.in_colour() is colour
    assert colour.sha256 == grey.sha256
