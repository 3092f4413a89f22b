"""Unbiased products of expectations from independent groups, and their errors by the jackknife."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtransfer.comparison.statistics import jackknife_stderr

Products = Float[np.ndarray, "groups groups"]
_COLUMNS = 1 << 18


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float


def inner_products(a: Float[np.ndarray, "groups n"], b: Float[np.ndarray, "groups n"]) -> Products:
    """All inner products between two sets of group means, float64 [groups, groups]."""
    total = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        total += a[:, part].astype(np.float64) @ b[:, part].astype(np.float64).T
    return total


def unbiased(products: Products) -> float:
    """The mean over pairs of different groups: its expectation is the inner product of the expectations.

    Holds also where group i of one side is not independent of group i of the other, as with shared restarts.
    """
    count = len(products)
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))


def plain(products: Products) -> float:
    """The inner product of the means over all groups: biased upwards by noise the two sides share."""
    return float(products.mean())


def jackknife(statistic: Callable[..., float], *products: Products) -> Estimate:
    """A statistic of products, and its standard error from leaving out one group at a time (Efron and Stein, 1981).

    While noise is larger than the signal the error comes out too large rather than too small: by up to 1.46 for 16
    groups, sqrt(2) for many. It is infinite where the statistic is without one of the groups.
    """
    count = len(products[0])
    kept = [np.delete(np.arange(count), i) for i in range(count)]
    without = np.array([statistic(*(product[np.ix_(rest, rest)] for product in products)) for rest in kept])
    return Estimate(float(statistic(*products)), float(jackknife_stderr(without)))
