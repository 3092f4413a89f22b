"""Scores how well affinities rank the sources of a target: precision, recall, and rank correlation with its error."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata, spearmanr

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.statistics import jackknife_stderr
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.summary import evaluate

RELEVANT = 5
Matrix = Float[np.ndarray, "targets sources"]


class Score(NamedTuple):
    """The agreement of a measure with the measured transfer.

    Attributes:
        p1: P@1.
        p5: P@5, which equals R@5, because the best five sources of a target are relevant.
        low: Lower end of the 95 % band of P@5 over networks and images.
        high: Upper end of that band.
        r10: R@10.
        spearman: Spearman's rank correlation with measured transfer, mean over targets.
        stderr: Jackknife standard error of `spearman` over networks.
    """

    p1: float
    p5: float
    low: float
    high: float
    r10: float
    spearman: float
    stderr: float


def truth(oracle: Oracle, names: tuple[str, ...]) -> Matrix:
    """Returns the oracle's scores of all pairs; the diagonal is NaN."""
    rows = [[oracle.scores[target].get(source, np.nan) for source in names] for target in names]
    return np.array(rows)


def score(affinity: Affinity, oracle: Oracle, method: str) -> Score:
    """Scores a method of an affinity on the tasks that the oracle contains."""
    names = tuple(name for name in affinity.names if name in oracle.scores)
    affinity = affinity.only(names)
    evaluation = evaluate(affinity, oracle, method, RELEVANT)
    p5, band = evaluation.shares("precision", RELEVANT)
    assert band is not None
    values, transfer = np.asarray(affinity.nearness(method), np.float64), truth(oracle, names)
    spearman = agreement(values, transfer).mean()
    stderr = jackknife(lambda *matrices: float(agreement(*matrices).mean()), values, transfer)
    p1, r10 = evaluation.shares("precision", 1)[0], evaluation.shares("recall", 10)[0]
    return Score(p1, p5, *band, r10, spearman, stderr)


def jackknife(statistic: Callable[..., float], *matrices: Matrix) -> float:
    """Computes the jackknife standard error over networks of a statistic of matrices of networks."""
    count = len(matrices[0])
    left = [np.delete(np.arange(count), network) for network in range(count)]
    return float(jackknife_stderr(np.array([statistic(*(m[np.ix_(kept, kept)] for m in matrices)) for kept in left])))


def ranks(transfer: Matrix) -> Matrix:
    """Ranks the sources of every target, from -1 (worst) to 1 (best); the diagonal is NaN."""
    sources = len(transfer) - 1
    result = np.full(transfer.shape, np.nan)
    for target in range(len(transfer)):
        others = np.arange(len(transfer)) != target
        result[target, others] = (2 * rankdata(transfer[target, others]) - sources - 1) / (sources - 1)
    return result


def agreement(values: Matrix, transfer: Matrix) -> Float[np.ndarray, " targets"]:
    """Computes Spearman's correlation over the sources of every target.

    Sources without a value (NaN) are left out; the correlation is 0 if all values are equal.
    """
    correlations = []
    for target in range(len(values)):
        known = np.delete(np.arange(len(values)), target)
        known = known[~np.isnan(values[target, known])]
        x, y = values[target, known], transfer[target, known]
        varies = np.ptp(x) > 0 and np.ptp(y) > 0
        correlations.append(np.asarray(spearmanr(x, y))[0] if varies else 0.0)
    return np.array(correlations)


def held_out(
    variants: dict[str, Matrix], transfer: Matrix, splits: int = 500, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Chooses the best variant on a random half of the targets, and scores it on the other half.

    Args:
        variants: Affinities by name; the first is the reference.
        transfer: Measured transfer.
        splits: Number of random splits of the targets.
        seed: Seed of the splits.

    Returns:
        By name, the mean rank correlation on the held-out targets, and the share of splits in which the variant was
        chosen: for "chosen" (the variant chosen in each split; share 1), for the reference over all splits, and for
        each chosen variant over the splits in which it was chosen.
    """
    of_targets = {name: agreement(values, transfer) for name, values in variants.items()}
    names, table = [*of_targets], np.stack([*of_targets.values()])
    rng, picks, scores = np.random.default_rng(seed), [], []
    for _ in range(splits):
        order = rng.permutation(len(transfer))
        half, other_half = order[: len(order) // 2], order[len(order) // 2 :]
        picked = int(table[:, half].mean(1).argmax())
        picks.append(picked)
        scores.append(table[:, other_half].mean(1))
    held_out_scores, chosen = np.array(scores), np.array(picks)
    result = {
        "chosen": (float(held_out_scores[np.arange(splits), chosen].mean()), 1.0),
        names[0]: (float(held_out_scores[:, 0].mean()), float((chosen == 0).mean())),
    }
    for pick in np.argsort(-np.bincount(chosen, minlength=len(names)), kind="stable"):
        if pick and (chosen == pick).any():
            share = (chosen == pick).mean()
            result[names[pick]] = (float(held_out_scores[chosen == pick, pick].mean()), float(share))
    return result
