"""Examples that belong together are dealt to one fold."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer import JaxTransferError, LabelledTask
from jaxtransfer.scores.dependent import deal_units, number_units
from jaxtransfer.scores.target import Target


def test_an_empty_name_is_a_unit_of_its_own():
    units = number_units(np.array(["p", "", "q", "p", ""]))
    assert units[0] == units[3]
    assert len({*units.tolist()}) == 4


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_units_stay_whole_and_folds_are_filled(data):
    n = data.draw(st.integers(8, 60))
    units = np.array(data.draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)))
    strata = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    labelled = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    labelled[0] = True
    fold = deal_units(units, strata, labelled, 10)
    assert ((fold >= 0) == labelled).all()
    for unit in np.unique(units[labelled]):
        assert len({*fold[labelled & (units == unit)].tolist()}) == 1
    folds = min(10, len(np.unique(units[labelled])))
    assert sorted({*fold[labelled].tolist()}) == list(range(folds))


@pytest.mark.parametrize("of_unit", [1, 3])
def test_units_of_equal_size_are_dealt_evenly_within_classes(of_unit):
    strata = np.repeat(np.arange(3), (60, 120, 300))
    units = np.arange(len(strata)) // of_unit
    fold = deal_units(units, strata, np.ones(len(strata), bool), 10)
    counts = np.array([[((fold == k) & (strata == c)).sum() for c in range(3)] for k in range(10)])
    np.testing.assert_array_equal(counts, np.tile([6, 12, 30], (10, 1)))


def test_units_of_unequal_size_fill_folds_about_evenly():
    rng = np.random.default_rng(0)
    units, strata = rng.integers(0, 40, 200), rng.integers(0, 2, 200)
    fold = deal_units(units, strata, np.ones(200, bool), 10)
    sizes = np.bincount(fold)
    assert sizes.min() >= 0.6 * sizes.max()


def _task(labels, groups) -> LabelledTask:
    task = LabelledTask.of(np.zeros((len(labels), 4, 4)), labels)
    return dataclasses.replace(task, groups=None if groups is None else np.array(groups))


def test_a_target_keeps_groups_whole():
    rng = np.random.default_rng(0)
    labels, films = rng.choice(["x", "y", "z", ""], 200), rng.integers(0, 30, 200).astype(str)
    target = Target.of(_task(labels, films))
    assert ((target.group < 0) == (labels == "")).all()
    for film in np.unique(films):
        assert len({*target.group[(films == film) & (labels != "")].tolist()}) <= 1
    numbers = Target.of(_task(rng.normal(size=(200, 2)), films))
    assert len(np.unique(numbers.group)) == 10
    assert all(len(np.unique(numbers.group[films == film])) == 1 for film in np.unique(films))


def test_a_class_of_one_group_is_left_out():
    labels = np.array(list("xyxyxyxyzzz"))
    target = Target.of(_task(labels, list("11223344555")))
    assert (target.classes, target.left_out) == (("x", "y"), (("z", 3),))
    assert (target.group[8:] == -1).all()
    alone = Target.of(_task(labels, [""] * 11))
    assert (alone.classes, alone.left_out) == (("x", "y", "z"), ())
    with pytest.raises(
        JaxTransferError, match="two classes with examples of two groups each; it has 1 such class among 3"
    ):
        Target.of(_task(labels, list("11111111233")))
    with pytest.raises(JaxTransferError, match="labelled examples of 3 groups that belong together; a score needs 4"):
        Target.of(_task(labels, list("11223333333")))
