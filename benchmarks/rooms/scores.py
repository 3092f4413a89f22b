"""How well a measure of nearness orders the sources of a target: hits, and rank correlations with their errors."""

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
    """Agreement with measured transfer.

    Attributes:
        p1: P@1.
        p5: P@5, which is also R@5: of a target's sources the best five are relevant.
        low: Of the 95 % band of P@5, over networks and images.
        high: Likewise.
        r10: R@10.
        spearman: Rank correlation with the truth, mean over targets.
        stderr: Its jackknife standard error over networks.
    """

    p1: float
    p5: float
    low: float
    high: float
    r10: float
    spearman: float
    stderr: float


def truth(oracle: Oracle, names: tuple[str, ...]) -> Matrix:
    """The oracle's scores of all pairs; the diagonal is nan."""
    rows = [[oracle.scores[target].get(source, np.nan) for source in names] for target in names]
    return np.array(rows)


def score(affinity: Affinity, oracle: Oracle, method: str) -> Score:
    """Scores one method on the tasks that the oracle knows."""
    names = tuple(name for name in affinity.names if name in oracle.scores)
    affinity = affinity.only(names)
    evaluation = evaluate(affinity, oracle, method, RELEVANT)
    p5, band = evaluation.shares("precision", RELEVANT)
    assert band is not None
    values, wanted = np.asarray(affinity.nearness(method), np.float64), truth(oracle, names)
    of_all = agreement(values, wanted).mean()
    without = []
    for left_out in range(len(names)):
        kept = np.delete(np.arange(len(names)), left_out)
        without.append(agreement(values[np.ix_(kept, kept)], wanted[np.ix_(kept, kept)]).mean())
    p1, r10 = evaluation.shares("precision", 1)[0], evaluation.shares("recall", 10)[0]
    return Score(p1, p5, *band, r10, of_all, float(jackknife_stderr(np.array(without))))


def ranks(wanted: Matrix) -> Matrix:
    """The place of every source of a target, from -1 (worst) to 1 (best); the diagonal is nan."""
    sources = len(wanted) - 1
    found = np.full(wanted.shape, np.nan)
    for target in range(len(wanted)):
        others = np.arange(len(wanted)) != target
        found[target, others] = (2 * rankdata(wanted[target, others]) - sources - 1) / (sources - 1)
    return found


def agreement(values: Matrix, wanted: Matrix) -> Float[np.ndarray, " targets"]:
    """For every target Spearman's correlation over its sources with a value; 0 where all are equal."""
    found = []
    for target in range(len(values)):
        known = np.delete(np.arange(len(values)), target)
        known = known[~np.isnan(values[target, known])]
        one, other = values[target, known], wanted[target, known]
        varies = np.ptp(one) > 0 and np.ptp(other) > 0
        found.append(np.asarray(spearmanr(one, other))[0] if varies else 0.0)
    return np.array(found)


def held_out(
    variants: dict[str, Matrix], wanted: Matrix, splits: int = 500, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """What choosing a variant on half of the targets brings on the others.

    Args:
        variants: Affinities by name; the first is what the others are held against.
        wanted: The truth.
        splits: How many random halves.
        seed: For drawing them.

    Returns:
        The mean rank correlation on the targets that were not chosen by, and the share of splits: for `chosen` (its
        share is 1), for the first variant, and for each variant that was chosen.
    """
    of_targets = {name: agreement(values, wanted) for name, values in variants.items()}
    names, table = [*of_targets], np.stack([*of_targets.values()])
    rng, picks, found = np.random.default_rng(seed), [], []
    for _ in range(splits):
        order = rng.permutation(len(wanted))
        seen, unseen = order[: len(order) // 2], order[len(order) // 2 :]
        picked = int(table[:, seen].mean(1).argmax())
        picks.append(picked)
        found.append(table[:, unseen].mean(1))
    unseen_scores, chosen = np.array(found), np.array(picks)
    result = {
        "chosen": (float(unseen_scores[np.arange(splits), chosen].mean()), 1.0),
        names[0]: (float(unseen_scores[:, 0].mean()), float((chosen == 0).mean())),
    }
    for pick in np.argsort(-np.bincount(chosen, minlength=len(names)), kind="stable"):
        if pick and (chosen == pick).any():
            share = (chosen == pick).mean()
            result[names[pick]] = (float(unseen_scores[chosen == pick, pick].mean()), float(share))
    return result
