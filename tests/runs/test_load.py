"""`load_run` on a run of gaps: values as they were written, judged by their nearness."""

import numpy as np

import jaxtransfer as jt
from jaxtransfer.comparison.measure import GAP
from jaxtransfer.runs.evaluation import evaluate_run
from jaxtransfer.runs.load import load_run
from support.helpers import finished_run, table
from support.report_runs import gap_run

NAMES = tuple("abcdef")


def test_gaps_are_positive_and_judged_as_their_negatives(tmp_path):
    run = gap_run(tmp_path / "gaps", NAMES)
    gaps = load_run(run)
    assert gaps.measure("gap") == GAP
    np.testing.assert_array_equal(gaps["gap"], np.abs(np.subtract.outer(np.arange(6), np.arange(6))))
    assert [name for name, *_ in gaps.rank("a")] == list("bcdef")
    assert gaps.rank("a")[0] == ("b", 1, np.float32(0.1))

    finished_run(tmp_path / "similarities", jt.Affinity.of(NAMES, {"gap": -gaps["gap"]}))
    oracle = jt.Oracle(
        "near", {t: {s: -abs(i - j) for j, s in enumerate(NAMES) if s != t} for i, t in enumerate(NAMES)}
    )
    evaluation = evaluate_run(run, oracle, relevant=2).by_method["gap"]
    assert evaluation.shares("precision", 1)[0] == 1
    np.testing.assert_allclose(evaluation.mean_correlation("spearman"), 1)
    evaluate_run(tmp_path / "similarities", oracle, relevant=2)
    for name in ("evaluation.csv", "evaluation_by_target.csv"):
        assert table(run / name) == table(tmp_path / "similarities" / name)
    gaps.save(tmp_path / "saved")
    assert jt.Affinity.load(tmp_path / "saved").rank("f") == gaps.rank("f")
