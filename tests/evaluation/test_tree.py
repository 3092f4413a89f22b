"""Trees and matrix agreement against definitions written out, all relabellings, and a published tree."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer import JaxTransferError, mantel_test, task_tree
from support.helpers import affinity_of


def numbered(matrix):
    return affinity_of(matrix, [f"n{i}" for i in range(len(matrix))])


def symmetric(seed, count):
    values = np.random.default_rng(seed).normal(size=(count, count))
    return np.triu(values, 1) + np.triu(values, 1).T + np.eye(count)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(3, 9))
def test_heights_are_the_bottlenecks_of_single_linkage(seed, count):
    """The distance along the tree is the smallest largest step of any way between two networks (minimax path)."""
    matrix = symmetric(seed, count).astype(np.float32).astype(np.float64)
    tree = task_tree(numbered(matrix))
    step = np.sqrt(np.square(matrix[:, None] - matrix[None]).sum(-1))
    bottleneck = step.copy()
    for k, i, j in itertools.product(range(count), repeat=3):
        bottleneck[i, j] = min(bottleneck[i, j], max(bottleneck[i, k], bottleneck[k, j]))
    members = [{i} for i in range(count)]
    along = np.zeros((count, count))
    for first, second, height, size in tree.linkage:
        one, other = members[int(first)], members[int(second)]
        for i, j in itertools.product(one, other):
            along[i, j] = along[j, i] = height
        members.append(one | other)
        assert len(members[-1]) == size
    np.testing.assert_allclose(along, bottleneck, atol=1e-10)
    upper = np.triu_indices(count, 1)
    np.testing.assert_allclose(tree.cophenetic_correlation, np.corrcoef(step[upper], along[upper])[0, 1])
    assert sorted(tree.leaves) == list(range(count))
    assert tree.ordered == tuple(f"n{i}" for i in tree.leaves)


def test_leaves_are_in_the_best_order():
    """No order that the tree allows has nearer neighbours: all 2^(n-1) flips are tried."""
    matrix = symmetric(5, 7).astype(np.float32).astype(np.float64)
    tree = task_tree(numbered(matrix))
    step = np.sqrt(np.square(matrix[:, None] - matrix[None]).sum(-1))

    def length(order):
        return sum(step[i, j] for i, j in itertools.pairwise(order))

    best = np.inf
    for flips in itertools.product((False, True), repeat=len(tree.linkage)):
        parts = [[i] for i in range(7)]
        for (first, second, *_), flip in zip(tree.linkage, flips, strict=True):
            pair = [parts[int(first)], parts[int(second)]]
            parts.append([leaf for part in (pair[::-1] if flip else pair) for leaf in part])
        best = min(best, length(parts[-1]))
    np.testing.assert_allclose(length(tree.leaves), best)


def test_groups_of_the_published_coco_matrix(shared_data):
    """2D and 3D tasks stand together, and so do the two classifications; only one task lies outside its group."""
    with np.load(shared_data / "published" / "song2019_heatmaps.npz") as stored:
        tree = task_tree(affinity_of(stored["coco_elrp"], [str(name) for name in stored["tasks"]]))
    for group in (
        "edge2d keypoint2d colorization inpainting_whole autoencoder segment2d denoise",
        "curvature edge3d keypoint3d reshade rgb2depth rgb2sfnorm segment25d rgb2mist",
        "class_1000 class_places",
    ):
        places = [tree.ordered.index(name) for name in group.split()]
        assert max(places) - min(places) == len(places) - 1
    assert tree.cophenetic_correlation > 0.85


def test_mantel_against_all_relabellings():
    a, b = symmetric(1, 5), symmetric(2, 5)
    b = 0.5 * a + 0.5 * b
    upper = np.triu_indices(5, 1)

    def correlation(order):
        return np.corrcoef(a[upper], b[np.ix_(order, order)][upper])[0, 1]

    every = np.array([correlation(list(order)) for order in itertools.permutations(range(5))])
    own = correlation(list(range(5)))
    exact = np.mean(every >= own - 1e-12)
    found = mantel_test(a, b, permutations=20_000)
    np.testing.assert_allclose(found.correlation, own)
    assert abs(found.p_value - exact) < 5 * np.sqrt(exact * (1 - exact) / 20_000)
    assert found == mantel_test(a, b, permutations=20_000)
    np.testing.assert_allclose(mantel_test(3 * a + 7, b, permutations=9).correlation, own)


def test_mantel_keeps_its_level():
    """Of unrelated matrices one in ten has a p-value up to 0.1."""
    p_values = [mantel_test(symmetric(i, 8), symmetric(10**6 + i, 8), permutations=99).p_value for i in range(400)]
    assert 0.055 < np.mean(np.array(p_values) <= 0.1) < 0.15


def test_wrong_requests():
    with pytest.raises(JaxTransferError, match="three networks or more, not 2"):
        task_tree(numbered(np.eye(2)))
    for a, b in [(np.eye(4), np.eye(5)), (np.eye(3), np.eye(3)), (np.zeros(4), np.zeros(4))]:
        with pytest.raises(JaxTransferError, match="two square matrices"):
            mantel_test(a, b)
    with pytest.raises(JaxTransferError, match="values that differ"):
        mantel_test(np.eye(4), symmetric(0, 4))
