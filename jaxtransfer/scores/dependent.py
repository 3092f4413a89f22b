"""Deals examples that depend on each other, such as photographs of one patient, to the same fold."""

import numpy as np
from jaxtyping import Bool, Int, Shaped


def number_units(groups: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns a number for each example that is the same for examples of one group.

    Args:
        groups: Names of groups as text; an empty text stands for a group of its own.
    """
    own = np.arange(len(groups))
    _, number = np.unique(groups, return_inverse=True)
    return np.where(groups == "", len(own) + own, number)


def deal_units(
    units: Int[np.ndarray, " n"], strata: Int[np.ndarray, " n"], labelled: Bool[np.ndarray, " n"], folds: int
) -> Int[np.ndarray, " n"]:
    """Deals whole units to folds, the largest first, each to the fold that has the least of its strata so far.

    Args:
        units: The same number for examples of one unit.
        strata: Class of each example, 0 or more where it is labelled.
        labelled: Which examples have a label.
        folds: Most folds; there are no more than units.

    Returns:
        Fold of each example; -1: the example has no label.
    """
    _, unit = np.unique(units[labelled], return_inverse=True)
    _, stratum = np.unique(strata[labelled], return_inverse=True)
    counts = np.zeros((unit.max() + 1, stratum.max() + 1))
    np.add.at(counts, (unit, stratum), 1)
    shares = counts / counts.sum(0)
    order = np.random.default_rng(0).permutation(len(shares))
    order = order[np.argsort(-shares.sum(1)[order], kind="stable")]
    sums = np.zeros((min(folds, len(shares)), shares.shape[1]))
    fold_of = np.empty(len(shares), int)
    for i in order:
        fold_of[i] = np.lexsort((sums.sum(1), sums @ shares[i]))[0]
        sums[fold_of[i]] += shares[i]
    fold = np.full(len(units), -1)
    fold[labelled] = fold_of[unit]
    return fold
