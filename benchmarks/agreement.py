"""Compares the order in which a measure puts networks with that of measured accuracies."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

import jaxtransfer as jt


def static_scores(accuracies: Float[np.ndarray, "tasks networks"]) -> Float[np.ndarray, "tasks networks"]:
    """Scores each network by its mean accuracy on the other tasks: an order that does not look at the task."""
    return (accuracies.sum(0) - accuracies) / (len(accuracies) - 1)


def agreement(scores: jt.Affinity, measured: jt.Oracle, method: str) -> dict[str, Any]:
    """Compares the order of a method with that of the accuracies, by task and in the mean over tasks.

    Regret is the best accuracy less that of the network with the best score. Networks with equal scores are in any
    order, so equal ones that are all best count with their mean, and scores that are all equal have the correlation 0.
    """
    spearman, best, regret = {}, {}, {}
    correlations = jt.rank_correlations(scores, measured, method=method)
    for task, correlation in correlations.items():
        accuracies = measured.scores[task]
        known = {name: value for name, value, _ in scores.rank(task, method=method) if math.isfinite(value)}
        losses = [
            max(accuracies[name] for name in known) - accuracies[name]
            for name, value in known.items()
            if value == max(known.values())
        ]
        spearman[task] = 0.0 if math.isnan(correlation.spearman) else correlation.spearman
        best[task], regret[task] = float(np.mean([loss == 0 for loss in losses])), float(np.mean(losses))
    values = [*spearman.values()]
    return {
        "networks": max(correlation.sources for correlation in correlations.values()),
        "spearman": spearman,
        "mean": float(np.mean(values)),
        "stderr": float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None,
        "precision_at_1": float(np.mean([*best.values()])),
        "regret": float(np.mean([*regret.values()])),
        "regret_by_task": regret,
    }
