"""Standard errors over groups, against their definitions and against known variances."""

import numpy as np
import pytest

from jaxtransfer.comparison.statistics import (
    jackknife_stderr,
    pseudo_values,
    pseudo_values_of_mean,
    stderr_of_mean,
)


@pytest.fixture
def groups():
    return np.random.default_rng(0).normal(size=(12, 3, 2))


def test_the_jackknife_of_a_mean_is_its_standard_error(groups):
    without = np.stack([np.delete(groups, g, axis=0).mean(0) for g in range(len(groups))])
    np.testing.assert_allclose(jackknife_stderr(without), stderr_of_mean(groups), rtol=1e-12)
    np.testing.assert_allclose(pseudo_values(groups.mean(0), without), groups, rtol=1e-12, atol=1e-12)


def test_the_standard_error_is_that_of_repeated_draws():
    """Of a statistic that is no mean, over many sets of groups."""
    draws = np.random.default_rng(1).normal(1, 0.2, size=(400, 20, 2))
    ratios = draws[..., 0].mean(1) / draws[..., 1].mean(1)
    errors = []
    for groups in draws:
        sums = groups.sum(0) - groups
        errors.append(jackknife_stderr(sums[:, 0] / sums[:, 1]))
    assert np.mean(errors) == pytest.approx(ratios.std(), rel=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_error_is_infinite_where_the_statistic_needs_a_group(value):
    without = np.array([[1.0, 1.0], [2.0, value], [4.0, 3.0]])
    stderr = jackknife_stderr(without)
    assert np.isfinite(stderr[0])
    assert np.isinf(stderr[1])


def test_groups_of_a_mean_may_differ_in_size():
    entries = np.random.default_rng(2).normal(size=10)
    bounds = [slice(0, 2), slice(2, 3), slice(3, 10)]
    without = np.array([np.delete(entries, np.arange(10)[part]).mean() for part in bounds])
    sums, counts = (np.array([f(entries[part]) for part in bounds], float) for f in (np.sum, len))
    np.testing.assert_allclose(pseudo_values_of_mean(sums, counts), pseudo_values(entries.mean(), without), rtol=1e-12)


def test_a_mean_with_all_entries_in_one_group_has_no_pseudo_values():
    values = pseudo_values_of_mean(np.array([3.0, 0.0]), np.array([2.0, 0.0]))
    assert not np.isfinite(values[0])
