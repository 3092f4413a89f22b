"""Standard errors of what is computed from independent groups: the jackknife, and the mean over groups."""

import warnings

import numpy as np
from jaxtyping import Float


def jackknife_stderr(without: Float[np.ndarray, "groups *values"]) -> Float[np.ndarray, "*values"]:
    """Computes a statistic's standard error from its values with one group left out (Efron and Stein, 1981).

    Args:
        without: The statistic without group g, for each g.

    Returns:
        The standard errors; infinite where one of the values is not finite.

    Examples:
        >>> groups = np.array([1.0, 2.0, 6.0])
        >>> without = (groups.sum() - groups) / 2
        >>> float(jackknife_stderr(without)), float(stderr_of_mean(groups))  # of a mean they are the same
        (1.527..., 1.527...)
    """
    count = len(without)
    with np.errstate(invalid="ignore"):
        spread = np.square(without - without.mean(0)).sum(0) * (count - 1) / count
    return np.where(np.isfinite(spread), np.sqrt(spread), np.inf)


def pseudo_values(
    whole: Float[np.ndarray, "*values"], without: Float[np.ndarray, "groups *values"]
) -> Float[np.ndarray, "groups *values"]:
    """Computes jackknife pseudo-values, G x value - (G - 1) x value without a group (Tukey 1958).

    Args:
        whole: The statistic of all groups.
        without: The statistic without group g, for each of the G groups.
    """
    return len(without) * whole - (len(without) - 1) * without


def pseudo_values_of_mean(
    sums: Float[np.ndarray, "groups *values"], counts: Float[np.ndarray, "groups *values"]
) -> Float[np.ndarray, "groups *values"]:
    """Computes jackknife pseudo-values of a mean from the sum and the number of the entries of each group.

    They are not finite where all entries are in one group.
    """
    total, count = sums.sum(0), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return len(sums) * total / count - (len(sums) - 1) * (total - sums) / (count - counts)


def stderr_of_mean(groups: Float[np.ndarray, "groups *values"]) -> Float[np.ndarray, "*values"]:
    """Computes the standard error of a mean over independent groups; of pseudo-values it is the jackknife's."""
    return groups.std(0, ddof=1) / np.sqrt(len(groups))


def stderr_of_known_mean(groups: Float[np.ndarray, "groups *values"]) -> Float[np.ndarray, "*values"]:
    """Computes the same from the groups that have a value, NaN where not; infinite where fewer than two have one."""
    count = (~np.isnan(groups)).sum(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # fewer than two
        deviation = np.nanstd(groups, axis=0, ddof=1)
    return np.where(count > 1, deviation / np.sqrt(np.maximum(count, 1)), np.inf)
