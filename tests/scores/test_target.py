"""Labels as numbers, groups of examples, and what cannot be learned."""

import dataclasses

import numpy as np
import pytest

from jaxtransfer.data.datasets import LabelledTask, TargetType
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores.target import GROUPS, Target


def task(labels, target_type: TargetType = "classes") -> LabelledTask:
    labels = np.asarray(labels)
    return LabelledTask("pets", "pets", np.zeros((len(labels), 2, 2, 3), np.uint8), labels, target_type, "")


def test_groups_are_equal_in_size_and_stratified():
    counts = {"cat": 31, "dog": 20, "fish": 7}
    labels = np.random.default_rng(0).permutation(np.repeat([*counts], [*counts.values()]))
    target = Target.of(task(labels))
    sizes = np.bincount(target.group, minlength=GROUPS)
    assert sizes.max() - sizes.min() <= 1
    for number, name in enumerate(target.classes):
        of_class = np.bincount(target.group[target.values == number], minlength=GROUPS)
        assert of_class.sum() == counts[name]
        assert of_class.max() - of_class.min() <= 1


def test_names_of_classes_do_not_matter():
    labels = np.array(["b", "a", "", "b", "c", "a", "c", "b", "c"])
    renamed = np.array([{"": "", "a": "z", "b": "y", "c": "x"}[name] for name in labels.tolist()])
    target, other = Target.of(task(labels)), Target.of(task(renamed))
    assert target.classes == ("b", "a", "c")
    assert other.classes == ("y", "z", "x")
    np.testing.assert_array_equal(target.values, [0, 1, -1, 0, 2, 1, 2, 0, 2])
    np.testing.assert_array_equal(target.values, other.values)
    np.testing.assert_array_equal(target.group, other.group)


def test_a_class_with_one_example_is_left_out_and_counted():
    target = Target.of(task(["a", "b", "lonely", "a", "b", "a"]))
    assert target.classes == ("a", "b")
    assert target.left_out == (("lonely", 1),)
    np.testing.assert_array_equal(target.values, [0, 1, -1, 0, 1, 0])
    np.testing.assert_array_equal(target.group < 0, target.values < 0)
    assert target.labelled.tolist() == [0, 1, 3, 4, 5]


def test_constant_columns_are_dropped_and_counted():
    labels = np.array([[1, 5, 0], [2, 5, np.nan], [3, np.nan, np.nan], [4, 5, np.nan], [np.nan, 5, 0]], np.float32)
    target = Target.of(task(labels, "numbers"))
    np.testing.assert_array_equal(target.values, labels[:, :1])
    assert target.values.dtype == np.float64
    assert target.left_out == (("column 2", 4), ("column 3", 2))
    assert target.labelled.tolist() == [0, 1, 2, 3]  # the last example's only number that varies is missing


def test_an_example_with_some_numbers_counts_as_labelled():
    labels = np.array([[1, 0], [np.nan, 1], [0, np.nan], [np.nan, np.nan], [1, 1]], np.float32)
    target = Target.of(task(labels, "multilabel"))
    np.testing.assert_array_equal(target.values, labels)
    assert target.labelled.tolist() == [0, 1, 2, 4]
    assert sorted(target.group[target.labelled]) == [0, 1, 2, 3]


def test_dense_labels():
    numbers = np.random.default_rng(0).normal(size=(5, 3, 3, 2)).astype(np.float32)
    numbers[..., 1] = 7
    numbers[2, ..., 0] = np.nan
    target = Target.of(task(numbers, "dense"))
    np.testing.assert_array_equal(target.values, numbers[..., :1])
    assert target.labelled.tolist() == [0, 1, 3, 4]
    assert target.left_out == (("column 2", 45),)

    classes = np.full((5, 2, 2), -1, np.int32)
    classes[1:, 0] = [[3, 8]]
    target = Target.of(task(classes, "dense_classes"))
    assert target.classes == ("3", "8")
    np.testing.assert_array_equal(target.values[1], [[0, 1], [-1, -1]])
    assert target.labelled.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "target_type", "sentence"),
    [
        (["a"] * 9, "classes", "The task 'pets' needs two classes with two examples each; it has 1 such class among 1"),
        (["a", "a", "b", "c"], "classes", "it has 1 such class among 3"),
        (["a", "b", "c", "d", "e"], "classes", "it has 0 such classes among 5"),
        (["", "", "", ""], "classes", "it has 0 such classes among 0"),
        (np.array([[1.0], [2.0], [np.nan], [3.0]]), "numbers", "has 3 examples with a label; a score needs 4"),
        (np.ones((9, 2)), "numbers", "has the same labels for all examples"),
        (np.full((9, 1), np.nan), "multilabel", "has the same labels for all examples"),
        (np.array([[1.0], [2.0], [np.inf], [3.0]]), "numbers", "has infinite numbers as labels"),
        (np.where(np.arange(9)[:, None, None] < 5, -1, 4), "dense_classes", "needs pixels of two classes; it has 1"),
    ],
)
def test_labels_that_cannot_be_learned(labels, target_type, sentence):
    with pytest.raises(JaxTransferError, match=sentence):
        Target.of(task(labels, target_type))


@pytest.mark.parametrize(
    ("labels", "target_type"),
    [
        (np.array([4, 2, -1, 4, 2, 2]), "classes"),
        (np.array(["4", "2", "", "4", "2", "2"]), "classes"),
        (np.array([0.5, 2, 3, np.nan, 1]), "numbers"),
        (np.array([[0, 1], [1, np.nan], [0, 0], [1, 1]]), "multilabel"),
        (np.array([[False, True], [True, True], [False, False], [True, True]]), "multilabel"),
        (np.random.default_rng(0).normal(size=(5, 2, 2, 1)), "dense"),
        (np.random.default_rng(0).integers(-1, 3, (5, 2, 2)), "dense_classes"),
    ],
)
def test_arrays_of_labels(labels, target_type):
    target = Target.of_labels(labels)
    assert target.target_type == target_type
    if target_type == "classes":
        assert target.classes == ("4", "2")
        np.testing.assert_array_equal(target.values, [0, 1, -1, 0, 1, 1])
        labels = labels.astype(str)
        labels[2] = ""
    elif labels.ndim == 1:
        labels = labels[:, None]
    of_task = Target.of(task(labels, target_type))
    for field in dataclasses.fields(Target):
        np.testing.assert_array_equal(getattr(target, field.name), getattr(of_task, field.name))
    assert Target.of_labels(target) is target


@pytest.mark.parametrize("labels", [np.zeros((4, 2, 2)), np.zeros((4, 2), int), np.zeros(4, complex)])
def test_other_arrays_are_refused(labels):
    with pytest.raises(JaxTransferError, match="give classes as integers or text"):
        Target.of_labels(labels)
