"""A run of a directed measure through the commands: rows are targets, columns sources."""

import html
import itertools

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import jaxtransfer as jt
from jaxtransfer.cli.app import app
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.measure import pair_indices
from jaxtransfer.runs.compare import compare
from support.helpers import finished_run, table
from support.report_runs import attribution_run

NAMES = tuple("abcdefg")
DIRECTED = jt.Measure("score", directed=True)


@pytest.fixture
def runs(tmp_path):
    """A run under a directed measure, one under its symmetric part, and an oracle that is the directed one."""
    rng = np.random.default_rng(0)
    pairs = pair_indices(7, directed=True)
    samples = (rng.normal(size=42) + 0.2 * rng.normal(size=(12, 42))).astype(np.float32)
    values, stderr = np.zeros((2, 7, 7), np.float32)
    values[pairs], stderr[pairs] = samples.mean(0), samples.std(0, ddof=1) / np.sqrt(12)
    result = MethodResult(values, stderr, np.full((7, 7), 12), (), samples, measure=DIRECTED)
    finished_run(tmp_path / "directed", jt.Affinity(NAMES, "cosine", {"predictivity": result}))
    finished_run(tmp_path / "symmetric", jt.Affinity.of(NAMES, {"rsa": values + values.T}))
    rows = [f"{NAMES[s]},{NAMES[t]},{values[t, s]}" for t, s in itertools.permutations(range(7), 2)]
    (tmp_path / "oracle.csv").write_text("\n".join(["source,target,score", *rows]))
    return tmp_path, values


def invoke(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_row_has_the_sources_of_a_target(runs):
    folder, values = runs
    printed = invoke("rank", folder / "directed", "c").splitlines()
    cells = [line.replace("│", " ").split() for line in printed]
    shown = [line[0] for line in cells if line and line[0] in NAMES]
    assert shown == sorted(set(NAMES) - {"c"}, key=lambda source: -values[2, NAMES.index(source)])
    printed = invoke("evaluate", folder / "directed", "--oracle", folder / "oracle.csv", "--relevant", 2)
    by_target = table(folder / "directed" / "evaluation_by_target.csv")
    assert {row["method"] for row in by_target} == {
        "predictivity",
        "mean rank over the other targets",
        "the other direction",
    }
    assert {float(row["spearman"]) for row in by_target if row["method"] == "predictivity"} == {1.0}
    ranks = np.array([stats.rankdata(np.delete(row, i)) for i, row in enumerate(values)])
    for i, row in enumerate(row for row in by_target if row["method"] == "the other direction"):
        reverse = [ranks[s, i - (s < i)] for s in range(7) if s != i]
        assert float(row["spearman"]) == pytest.approx(np.corrcoef(ranks[i], stats.rankdata(reverse))[0, 1])
    rows = table(folder / "directed" / "evaluation.csv")
    of_method = [row for row in rows if row["method"] == "predictivity"]
    assert all(row["hits_low_over_images"] and row["hits_low_over_networks"] for row in of_method)
    references = [row for row in rows if row["method"] != "predictivity"]
    assert all(row["hits_low_over_networks"] and not row["hits_low_over_images"] for row in references)
    assert max(map(len, printed[: printed.index("P@K: ")].splitlines())) <= 80


def test_compared_with_a_symmetric_run(runs):
    folder, values = runs
    invoke("compare", folder / "directed", folder / "symmetric", "--out", folder / "out")
    (row,) = table(folder / "out" / "agreement.csv")
    off = ~np.eye(7, dtype=bool)
    both = values.astype(float) + values.T
    assert float(row["matrix_correlation"]) == pytest.approx(np.corrcoef(values[off], both[off])[0, 1], abs=1e-6)
    rankings = [stats.spearmanr(values[i][off[i]], both[i][off[i]]) for i in range(7)]
    assert float(row["rank_correlation"]) == pytest.approx(np.mean([np.asarray(r)[0] for r in rankings]), abs=1e-6)


def test_the_order_of_runs_does_not_matter(runs):
    """The p-value too is that of all ordered pairs, whichever matrix is symmetric."""
    folder, _ = runs
    affinities = {name: jt.Affinity.load(folder / name) for name in ("directed", "symmetric")}
    (first,), (second,) = (
        compare({name: affinities[name] for name in order}).agreements.values()
        for order in (("directed", "symmetric"), ("symmetric", "directed"))
    )
    np.testing.assert_allclose(first[:2], second[:2])
    assert first.p_value == pytest.approx(second.p_value, abs=0.03)


def test_the_mantel_test_permutes_rows_and_columns_together():
    """Against all 120 relabellings of five networks, one by one."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 5, 5)) + rng.normal(size=(5, 5))
    off = ~np.eye(5, dtype=bool)
    correlations = [
        np.corrcoef(a[off], b[np.ix_(order, order)][off])[0, 1] for order in map(list, itertools.permutations(range(5)))
    ]
    share = np.mean(np.array(correlations) >= correlations[0] - 1e-12)
    found = jt.mantel_test(a, b, directed=True)
    assert found.correlation == pytest.approx(correlations[0])
    assert found.p_value == pytest.approx(share, abs=0.02)


def test_the_report_says_which_is_which(runs):
    folder, values = runs
    run = attribution_run(folder / "both", NAMES, maps=False)
    measures = {"predictivity": DIRECTED}
    jt.Affinity.of(NAMES, {"predictivity": values, "rsa": values + values.T}, measures=measures).save(run)
    invoke("report", run, "--oracle", folder / "oracle.csv", "--relevant", "2")
    page = html.unescape((run / "report.html").read_text())
    assert page.count('"directed":true') == page.count('"directed":false') == 1
    assert page.count("has a direction") == 1
    assert "rsa comes first" not in page, "predictivity has no score that it could be compared with"
    assert "On Rooms rsa finds" in page
    assert "predictivity has a direction, from source to target. The tree is that of its symmetric part" in page
    for reference in ("random order", "mean rank over the other targets", "the other direction"):
        assert f'<td class="name">{reference}</td>' in page
    assert "<td>a second measurement</td>" not in page
    for figure, text in (("tree", "from the symmetric part"), ("heat_map", ">target</text>")):
        drawn = [(run / "figures" / f"{figure}_{method}.svg").read_text() for method in ("predictivity", "rsa")]
        assert [text in svg for svg in drawn] == [True, False]
