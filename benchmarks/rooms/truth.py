"""Turns measured losses into Taskonomy's ordinal affinities, and tests which orders of sources are significant."""

import numpy as np
from jaxtyping import Bool, Float

_CLIP = 0.001


def standard_errors(
    differences: Float[np.ndarray, "pairs seeds images"],
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Computes mean differences of losses and their standard errors over seeds and test images.

    Every seed has a training set of its own. The variance between seeds is pooled over pairs, because a few seeds of a
    single pair are too few to estimate it; the variance between images is that of the means over seeds.

    Args:
        differences: Losses of a source minus those of another source, for every seed and test image.
    """
    seeds, images = differences.shape[1:]
    by_seed = differences.mean(2)
    of_seeds = by_seed.var(1, ddof=1).mean() / seeds
    of_images = differences.mean(1).var(1, ddof=1) / images
    return by_seed.mean(1), np.sqrt(of_seeds + of_images)


def win_rates(losses: Float[np.ndarray, "sources seeds images"]) -> Float[np.ndarray, "sources sources"]:
    """Computes the share of test images on which the loss of the row's source is smaller; ties count half."""
    count = len(losses)
    rates = np.full((count, count), 0.5)
    for i in range(count):
        for j in range(i):
            rates[i, j] = (losses[i] < losses[j]).mean() + (losses[i] == losses[j]).mean() / 2
            rates[j, i] = 1 - rates[i, j]
    return rates


def ordinal(rates: Float[np.ndarray, "sources sources"]) -> Float[np.ndarray, " sources"]:
    """Computes Taskonomy's ordinal affinities of the sources of a target; they sum to 1.

    They are the principal eigenvector of the matrix of ratios of win rates, which are clipped to [0.001, 0.999] (Zamir
    et al., CVPR 2018, section 3.3: Saaty's analytic hierarchy process). They depend only on the order of losses.
    """
    clipped = rates.clip(_CLIP, 1 - _CLIP)
    values, vectors = np.linalg.eig(clipped / clipped.T)
    principal = np.abs(np.real(vectors[:, np.real(values).argmax()]))
    return principal / principal.sum()


def significant(
    losses: Float[np.ndarray, "sources seeds images"], level: float = 1.96
) -> Bool[np.ndarray, "sources sources"]:
    """Says for which pairs of sources the mean losses differ by more than `level` standard errors."""
    count = len(losses)
    first, second = np.tril_indices(count, -1)
    means, errors = standard_errors(losses[first] - losses[second])
    result = np.zeros((count, count), bool)
    result[first, second] = result[second, first] = np.abs(means) > level * errors
    return result
