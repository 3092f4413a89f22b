"""From measured losses to a table: who transfers best, how sure that is, and Taskonomy's normalisation of it."""

import numpy as np
from jaxtyping import Bool, Float

_CLIP = 0.001


def standard_errors(
    differences: Float[np.ndarray, "pairs seeds images"],
) -> tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Means of differences and their standard errors, over seeds (each with a training set of its own) and images.

    The variance of the means of seeds is pooled over pairs, since a few seeds say little of it each; that of images is
    of the means over seeds.

    Args:
        differences: Losses of one source less those of another, of every seed and test image.
    """
    seeds, images = differences.shape[1:]
    by_seed = differences.mean(2)
    of_seeds = by_seed.var(1, ddof=1).mean() / seeds
    of_images = differences.mean(1).var(1, ddof=1) / images
    return by_seed.mean(1), np.sqrt(of_seeds + of_images)


def win_rates(losses: Float[np.ndarray, "sources seeds images"]) -> Float[np.ndarray, "sources sources"]:
    """The share of test images on which one source's loss is below another's; ties count half."""
    count = len(losses)
    rates = np.full((count, count), 0.5)
    for i in range(count):
        for j in range(i):
            rates[i, j] = (losses[i] < losses[j]).mean() + (losses[i] == losses[j]).mean() / 2
            rates[j, i] = 1 - rates[i, j]
    return rates


def ordinal(rates: Float[np.ndarray, "sources sources"]) -> Float[np.ndarray, " sources"]:
    """Taskonomy's affinities of sources to one target: they sum to 1, and only the order of losses matters.

    The principal eigenvector of the ratios of win rates, clipped to [0.001, 0.999] (Zamir et al., CVPR 2018, section
    3.3: Saaty's analytic hierarchy process).
    """
    clipped = rates.clip(_CLIP, 1 - _CLIP)
    values, vectors = np.linalg.eig(clipped / clipped.T)
    principal = np.abs(np.real(vectors[:, np.real(values).argmax()]))
    return principal / principal.sum()


def significant(
    losses: Float[np.ndarray, "sources seeds images"], level: float = 1.96
) -> Bool[np.ndarray, "sources sources"]:
    """Of which pairs of sources the order is sure: their means lie more than `level` standard errors apart."""
    count = len(losses)
    first, second = np.tril_indices(count, -1)
    means, errors = standard_errors(losses[first] - losses[second])
    found = np.zeros((count, count), bool)
    found[first, second] = found[second, first] = np.abs(means) > level * errors
    return found
