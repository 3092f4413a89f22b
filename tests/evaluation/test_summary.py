"""The score table against the curves, bands and correlations it is made of."""

import numpy as np

import jaxtransfer as jt
from jaxtransfer.evaluation.summary import Evaluations, evaluate, score_table
from support.helpers import affinity_of

NAMES = tuple("abcdefg")


def test_table():
    rng = np.random.default_rng(0)
    affinity = affinity_of(rng.normal(size=(7, 7)), NAMES)
    oracle = jt.Oracle("truth", {t: {s: rng.normal() for s in NAMES if s != t} for t in NAMES})
    evaluation = evaluate(affinity, oracle, "method", 2)
    table = score_table(
        Evaluations({"mine": evaluation}, {"other": evaluation}),
        [("precision", 1), ("recall", 5), ("recall", 10)],
        ["kendall"],
    )
    assert table.header == ["P@1", "R@5"], "there are only six sources"
    hits = jt.retrieval_curve(affinity, oracle, relevant=2).hits
    band = jt.retrieval_bands(affinity, oracle, relevant=2).networks
    assert band is not None
    kendall = [each.kendall for each in jt.rank_correlations(affinity, oracle).values()]
    assert table.rows == {
        "mine": [
            f"{hits[0] / 7:.3f} ({band.low[0] / 7:.2f} to {band.high[0] / 7:.2f})",
            f"{hits[4] / 14:.3f} ({band.low[4] / 14:.2f} to {band.high[4] / 14:.2f})",
            f"{np.mean(kendall):.3f}",
        ]
    }
    assert table.references == {
        "random order": [f"{2 / 6:.3f}", f"{5 / 6:.3f}", "0.000"],
        "other": table.rows["mine"],
    }


def test_constant_rankings_have_no_correlation_and_one_target_no_band():
    oracle = jt.Oracle("one", {"a": {"b": 2, "c": 1}})
    evaluation = evaluate(affinity_of(np.ones((3, 3)), "abc"), oracle, "method", 1)
    table = score_table(Evaluations({"mine": evaluation}, {"other": evaluation}), [("precision", 1)], ["spearman"])
    assert table.rows == {"mine": ["1.000", "unknown"]}
