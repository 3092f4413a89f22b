"""Nearest neighbours against a search with loops, and properties."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores import nearest_neighbours as module
from jaxtransfer.scores.nearest_neighbours import knn
from jaxtransfer.scores.target import Target

Array = np.ndarray
COUNTS = (1, 3, 5, 20)


def slow_order(x: Array) -> list[list[int]]:
    """The other examples, the most similar first."""
    deviation = x.std(0)
    z = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
    order = []
    for i, row in enumerate(z):
        cosines = [row @ other / (np.linalg.norm(row) * np.linalg.norm(other)) for other in z]
        order.append(sorted((j for j in range(len(z)) if j != i), key=lambda j, cosines=cosines: -cosines[j]))
    return order


def slow_crossfitted(gain: Array, whole: Array, group: Array) -> tuple[float, Array]:
    """Value and pseudo-values, of what each count gains for each example."""

    def value(groups: list[int]) -> float:
        gained = 0.0
        for judged in groups:
            others = np.isin(group, [other for other in groups if other != judged])
            best = max(range(len(gain)), key=lambda count: gain[count, others].sum())
            gained += gain[best, group == judged].sum()
        return gained / whole[np.isin(group, groups)].sum()

    groups = [*range(group.max() + 1)]
    without = [value([other for other in groups if other != left_out]) for left_out in groups]
    return value(groups), len(groups) * value(groups) - (len(groups) - 1) * np.array(without)


def clusters(n: int = 60, classes: int = 4, units: int = 7, spread: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    return rng.normal(size=(classes, units))[labels] + spread * rng.normal(size=(n, units)), labels


@pytest.mark.parametrize("n", [12, 60])
def test_classes(n, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 7 * n)  # several blocks
    x, labels = clusters(n)
    x[:, 3] = 5  # a unit that does not vary
    hits = np.zeros((len(COUNTS), n))
    for i, order in enumerate(slow_order(x)):
        for which, count in enumerate(COUNTS):
            nearest = [labels[j] for j in order[:count]]
            votes = Counter(nearest)  # `most_common` keeps the order of first appearance, the nearest first
            hits[which, i] = votes.most_common(1)[0][0] == labels[i]
    target = Target.of_labels(labels)
    value, samples = slow_crossfitted(hits, np.ones(n), target.group)
    score = knn(x, target)
    assert score.value == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(score.pseudo_values, samples, atol=1e-9)


def test_numbers_with_missing_entries():
    x, labels = clusters()
    y = np.stack([labels, labels**2 % 3, x[:, 0]], 1) + np.random.default_rng(1).normal(size=(60, 3))
    y[:9, 1] = np.nan
    target = Target.of_labels(y * [1, 100, 0.01])
    gain, whole = np.zeros((len(COUNTS), 60)), np.zeros(60)
    scaled = y / np.nanstd(y, 0)
    z = (x - x.mean(0)) / x.std(0)
    for column in range(3):
        for i in np.flatnonzero(~np.isnan(y[:, column])):
            others = [j for j in range(60) if j != i and not np.isnan(y[j, column])]
            others.sort(key=lambda j, i=i: -(z[i] @ z[j]) / np.linalg.norm(z[j]))
            deviation = np.square(scaled[i, column] - scaled[others, column].mean())
            whole[i] += deviation
            for which, count in enumerate(COUNTS):
                gain[which, i] += deviation - np.square(scaled[i, column] - scaled[others[:count], column].mean())
    value, samples = slow_crossfitted(gain, whole, target.group)
    score = knn(x, target)
    assert score.value == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(score.pseudo_values, samples, atol=1e-8)


def test_of_classes_with_equally_many_votes_the_nearest_wins():
    # The first row's neighbours in order are of the classes 1, 2, 2, 1, 3: two votes each for 1 and 2.
    neighbours = np.array([[1, 2, 3, 4, 5]])
    for names in ([1, 1, 2, 2, 1, 3], [2, 2, 1, 1, 2, 0]):
        classes = np.array(names)
        assert module._is_hit(classes, np.repeat(neighbours, 6, 0))[0]
        assert module._is_hit(classes, np.repeat(neighbours, 6, 0)).tolist() == (classes == names[1]).tolist()


@pytest.mark.parametrize("numbers", [False, True])
def test_examples_that_belong_together_are_no_neighbours(numbers):
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(50), 4)
    x = rng.normal(size=(50, 6))[units] + 1e-3 * rng.normal(size=(200, 6))  # four photos of each of fifty things
    labels = rng.normal(size=50)[units] if numbers else (np.arange(50) % 2)[units]
    target = Target.of_labels(labels)
    assert knn(x, target).value > 0.99
    assert knn(x, dataclasses.replace(target, units=units)).value < (0.1 if numbers else 0.65)
    assert knn(x, dataclasses.replace(target, units=np.arange(200))).value == knn(x, target).value


def test_a_column_known_in_one_unit_is_left_out():
    x, labels = clusters()
    y = np.stack([labels + 0.5, np.where(np.arange(60) < 3, np.arange(60.0), np.nan)], 1)
    target = dataclasses.replace(Target.of_labels(y), units=np.arange(60) // 3)
    of_first = dataclasses.replace(target, values=target.values[:, :1])
    assert knn(x, target).value == knn(x, of_first).value


def test_places_are_averaged():
    x, labels = clusters()
    maps = x[:, None, None] + np.array([[-1.0, 1], [2, -2]])[:, :, None]
    assert knn(maps, labels).value == knn(x, labels).value


class TestProperties:
    @pytest.mark.parametrize(
        "change",
        [
            lambda x: 1e3 * x,
            lambda x: x * np.logspace(-3, 3, 7) - 50,
            lambda x: x[:, ::-1],
            lambda x: np.concatenate([x, np.full((60, 2), 0.1)], 1),
        ],
        ids=["rescaled", "units rescaled", "permuted", "dead units"],
    )
    @pytest.mark.parametrize("numbers", [False, True])
    def test_invariance(self, change, numbers):
        x, labels = clusters()
        y = labels + np.random.default_rng(1).normal(size=60) if numbers else labels
        before, after = knn(x, y), knn(change(x), y)
        assert after.value == pytest.approx(before.value, rel=1e-9)
        np.testing.assert_allclose(after.pseudo_values, before.pseudo_values, rtol=1e-8)

    def test_a_rotation_of_units_matters(self):
        x, labels = clusters()
        rotated = (x * np.logspace(-1, 1, 7)) @ np.linalg.qr(np.random.default_rng(3).normal(size=(7, 7)))[0]
        assert knn(rotated, labels).value != knn(x, labels).value

    def test_order_and_names_of_classes(self):
        x, labels = clusters()
        score = knn(x, labels)
        np.testing.assert_array_equal(knn(x, np.array(["z", "b", "c", "a"])[labels]).pseudo_values, score.pseudo_values)
        target = Target.of_labels(labels)
        permuted = Target("classes", np.array([2, 0, 3, 1])[target.values], target.group, tuple("abcd"))
        assert knn(x, permuted).value == score.value

    def test_a_copy_ties_exactly_and_inputs_are_not_changed(self):
        x, labels = clusters()
        copy = x.copy()
        assert knn(x, labels).value == knn(copy, labels).value
        np.testing.assert_array_equal(x, copy)


class TestKnownValues:
    def test_clusters_far_apart(self):
        x, labels = clusters(spread=1e-3)
        score = knn(x, labels)
        assert score.value == 1
        np.testing.assert_allclose(score.pseudo_values, 1)

    def test_copies_of_labels_are_not_their_own_neighbours(self):
        # A search that counts an example as its own neighbour gives 1.
        rng = np.random.default_rng(0)
        assert knn(rng.normal(size=(400, 3)), rng.permutation(np.arange(400) % 4)).value < 0.35

    def test_noise_is_not_predicted(self):
        rng = np.random.default_rng(0)
        assert -0.2 < knn(rng.normal(size=(400, 5)), rng.normal(size=(400, 1))).value < 0.02

    def test_features_that_do_not_vary(self):
        assert np.isfinite(knn(np.full((40, 3), 0.1), np.arange(40) % 2).value)


@pytest.mark.parametrize("labels", [np.random.default_rng(0).normal(size=(9, 2, 2, 1)), np.arange(36).reshape(9, 2, 2)])
def test_dense_labels_are_refused(labels):
    with pytest.raises(JaxTransferError, match="knn predicts labels of images, not dense labels; use ridge"):
        knn(np.zeros((9, 3)), labels)


def test_labels_that_vary_only_where_features_are_not_finite():
    x, _ = clusters()
    y = np.where(np.arange(60) < 2, 1.0, 0.0)
    x[:2] = np.nan
    with pytest.raises(JaxTransferError, match="The labels do not vary"):
        knn(x, y)
