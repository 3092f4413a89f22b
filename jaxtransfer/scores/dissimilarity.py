"""PARC: whether examples with the same label have features that correlate (Bolya et al., NeurIPS 2021)."""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata

from jaxtransfer.scores.spectra import Examples

_AXES = 32
_EXAMPLES = 500


def parc(features: Shaped[np.ndarray, "examples units"], labels: Int[np.ndarray, " examples"]) -> float:
    """Computes PARC: 100 times the rank correlation of the dissimilarities of features with those of labels.

    Of each pair of examples, the dissimilarity is 1 less the cosine of their features along the first 32 principal
    axes, each axis divided by its standard deviation; and 1 less the Pearson correlation of their labels as one-hot
    vectors. The rank correlation is Spearman's. Of more than 500 examples 500 are drawn, each class by its share,
    always the same. There are at most half as many axes as examples: along all axes that few examples have, the
    dissimilarities of all pairs are equal.

    The paper has the Pearson correlation of features too. Along principal axes it depends on the sign that a program
    happens to give to each axis, and scores with it; the cosine is proportional to its mean over all signs.

    Args:
        features: Features of the examples.
        labels: Class of each example.

    Returns:
        The score, -100 to 100; 0 if the features do not vary. It does not change when units are
        rotated, or all multiplied by one number.

    Raises:
        JaxTransferError: As for `logme`.

    Source:
        "Scalable diverse model selection for accessible transfer learning", arXiv 2111.06977. The paper's number of
        axes and of examples.
    """
    return rank_correlation(Examples.of(features, labels))


def rank_correlation(examples: Examples) -> float:
    """Computes PARC of examples; a part has those examples of it that were drawn for the whole."""
    drawn = examples.shared(_drawn)
    members = examples.values[drawn]
    members = members - members.mean(0)
    # The left singular vectors are the principal components, each with the same mean square.
    variances, components = np.linalg.eigh(members @ members.T)
    varying = variances > len(members) * np.finfo(float).eps * variances[-1]
    points = components[:, varying][:, -min(_AXES, len(members) // 2) :]
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    points = np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 1e-12 * lengths.max())
    pairs = np.triu_indices(len(members), 1)
    classes = examples.class_number[drawn]
    unlike = (classes[:, None] != classes)[pairs]
    return 100 * _spearman((1 - points @ points.T)[pairs], unlike)


def _drawn(examples: Examples) -> Bool[np.ndarray, " examples"]:
    """Draws at most 500 examples, of each class its share."""
    order = np.random.default_rng(0).permutation(len(examples))
    order = order[np.argsort(examples.class_number[order], kind="stable")]
    count = min(len(examples), _EXAMPLES)
    drawn = np.zeros(len(examples), bool)
    drawn[order[(np.arange(count) * len(examples)) // count]] = True
    return drawn


def _spearman(first: Float[np.ndarray, " pairs"], second: Shaped[np.ndarray, " pairs"]) -> float:
    """Returns Spearman's rank correlation, equal values sharing their mean rank; 0 if all of one are the same."""
    ranks = np.stack([rankdata(first), rankdata(second)])
    ranks -= ranks.mean(1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1)
    return float(ranks[0] @ ranks[1] / np.prod(lengths)) if lengths.all() else 0.0
