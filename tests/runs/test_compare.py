"""`compare`, and `jaxtransfer compare` on run directories whose answer is known."""

import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from jaxtransfer import Affinity, JaxTransferError
from jaxtransfer.cli.app import app
from jaxtransfer.runs.compare import compare
from jaxtransfer.taskonomy.tasks import TASKS
from support.helpers import affinity_of, complaint, finished_run, table

NAMES = tuple(TASKS)[:7]


def symmetric(seed: int, count: int = 7) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, count))
    return np.triu(values, 1) + np.triu(values, 1).T + np.eye(count) * 9


def test_agreement_by_its_definition():
    one, other = symmetric(0), symmetric(1)
    comparison = compare({"a": affinity_of(one, NAMES), "b": affinity_of(0.5 * one + 0.5 * other, NAMES)})
    assert comparison.labels == ("a/method", "b/method")
    agreement = comparison.agreements["a/method", "b/method"]
    off = ~np.eye(7, dtype=bool)
    mixed = (0.5 * one + 0.5 * other)[off].reshape(7, 6)
    by_target = [np.asarray(stats.spearmanr(a, b))[0] for a, b in zip(one[off].reshape(7, 6), mixed, strict=True)]
    np.testing.assert_allclose(agreement.rank_correlation, np.mean(by_target), atol=1e-6)
    np.testing.assert_allclose(agreement.matrix_correlation, np.corrcoef(one[off], mixed.ravel())[0, 1], atol=1e-6)
    assert 0 < agreement.p_value < 0.2


def test_equal_and_reversed_matrices():
    one = symmetric(0)
    comparison = compare(
        {"a": affinity_of(one, NAMES), "b": affinity_of(3 * one + 1, NAMES), "c": affinity_of(-one, NAMES)}
    )
    same, reverse, _ = comparison.agreements.values()
    np.testing.assert_allclose(same[:2], 1, atol=1e-6)
    np.testing.assert_allclose(reverse[:2], -1, atol=1e-6)
    assert same.p_value < 0.01
    assert reverse.p_value > 0.99
    worst = comparison.disagreements[0]
    assert worst.spread == 5
    assert {*worst.places[::2]} == {1, 6}
    assert {row.spread for row in comparison.disagreements[-14:]} == {1}
    assert len(comparison.disagreements) == 7 * 6


def test_one_source_moved():
    """A disagreement that was put there is the first that is named."""
    one = np.add.outer(np.arange(7.0), np.arange(7.0)) + np.eye(7) * 99
    other = one.copy()
    other[0, 1] = other[1, 0] = 50
    comparison = compare({"a": affinity_of(one, NAMES), "b": affinity_of(other, NAMES)})
    assert {row[:2] for row in comparison.disagreements[:2]} == {(NAMES[0], NAMES[1]), (NAMES[1], NAMES[0])}
    assert comparison.disagreements[0].places == (6, 1)


def test_networks_that_are_in_all_of_them():
    shuffled = [NAMES[i] for i in (6, 2, 4, 0, 5)]
    rows = [NAMES.index(name) for name in shuffled]
    one = symmetric(2)
    part = np.array(one[np.ix_(rows, rows)])
    comparison = compare({"a": affinity_of(one, NAMES), "b": affinity_of(part, shuffled)})
    assert comparison.sources == (NAMES[0], NAMES[2], NAMES[4], NAMES[5], NAMES[6])
    np.testing.assert_allclose(comparison.agreements["a/method", "b/method"][:2], 1, atol=1e-6)
    part[1, :] = part[:, 1] = np.nan
    comparison = compare({"a": affinity_of(one, NAMES), "b": affinity_of(part, shuffled)})
    assert comparison.sources == (NAMES[0], NAMES[4], NAMES[5], NAMES[6])
    with pytest.raises(JaxTransferError, match=f"in common are: {NAMES[0]}, {NAMES[1]}."):
        compare({"a": affinity_of(one, NAMES), "b": affinity_of(np.eye(3), (*NAMES[:2], "x"))})
    with pytest.raises(JaxTransferError, match="There is only one matrix"):
        compare({"a": affinity_of(one, NAMES)})


def test_networks_without_missing_values():
    """The one that is missing most often goes first; the others then miss nothing."""
    matrix = symmetric(4)
    matrix[2, [0, 1, 5]] = matrix[[0, 1, 5], 2] = np.nan
    complete = affinity_of(matrix, NAMES).complete("method")
    assert complete.names == (*NAMES[:2], *NAMES[3:])
    assert affinity_of(symmetric(4), NAMES).complete(None).names == NAMES


def test_some_networks_of_an_affinity():
    """`Affinity.only` keeps what every image says of a pair."""
    rng = np.random.default_rng(3)
    parts = rng.normal(size=(5, 21)).astype(np.float32)
    affinity = affinity_of(symmetric(3), NAMES, parts)
    names = [NAMES[i] for i in (5, 1, 3)]
    some = affinity.only(names)
    pairs = list(itertools.combinations(range(7), 2))
    columns = [pairs.index(pair) for pair in [(1, 5), (3, 5), (1, 3)]]
    np.testing.assert_array_equal(some.pseudo_values("method"), parts[:, columns])
    np.testing.assert_array_equal(some["method"], affinity["method"][np.ix_([5, 1, 3], [5, 1, 3])])
    with pytest.raises(JaxTransferError, match="no network 'x'"):
        affinity.only(["x"])


@pytest.fixture
def runs(tmp_path):
    """Two finished runs and an oracle that agrees with the first."""
    values = np.add.outer(np.arange(7.0), np.arange(7.0))
    for name, sign in (("first", 1), ("second", -1)):
        finished_run(tmp_path / name, Affinity.of(NAMES, {"saliency": sign * values + np.eye(7)}))
    rows = [f"{s},{t},{i}" for i, s in enumerate(NAMES) for t in NAMES]
    (tmp_path / "oracle.csv").write_text("\n".join(["source,target,score", *rows]))
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_command(runs):
    out = runs / "out"
    result = invoke(runs / "first", runs / "second", "--out", out, "--oracle", runs / "oracle.csv", "--relevant", 2)
    assert result.exit_code == 0, result.output
    assert "first/saliency" in result.stdout
    assert "-1.000" in result.stdout
    (row,) = table(out / "agreement.csv")
    assert (row["one"], row["other"], float(row["rank_correlation"])) == ("first/saliency", "second/saliency", -1)
    places = table(out / "disagreements.csv")
    assert int(places[0]["spread"]) == 5
    assert {int(places[0]["first/saliency"]), int(places[0]["second/saliency"])} == {1, 6}
    hits = {(row["method"], row["k"]): int(row["hits"]) for row in table(out / "evaluation.csv")}
    assert hits["first/saliency", "2"] == 14
    assert hits["second/saliency", "2"] == 0
    for name in ("agreement.png", "evaluation.png"):
        with Image.open(out / name) as figure:
            assert figure.size[0] > 400


def test_what_a_user_can_get_wrong(runs):
    assert "only one matrix" in complaint(invoke(runs / "first", "--out", runs / "out"))
    assert "is not a run directory" in complaint(invoke(runs / "first", runs / "none", "--out", runs / "out"))
    assert "named twice" in complaint(invoke(runs / "first", runs / "first", "--out", runs / "out"))
    assert not (runs / "out").exists()


TASKS_HERE = ("flowers", NAMES[1], NAMES[4])


def scores(seed: int = 5, sources: tuple[str, ...] = NAMES, targets: tuple[str, ...] = TASKS_HERE) -> Affinity:
    values = np.random.default_rng(seed).normal(size=(len(targets), len(sources)))
    return Affinity.of(sources, {"ridge": values}, targets=targets)


def test_scores_beside_scores():
    """Targets and sources that both have; a task with the name of a source is scored by it too."""
    one = scores()
    sources = (*NAMES[1:5], "x")
    other = Affinity.of(sources, {"logme": scores(6, sources).nearness(None)}, targets=TASKS_HERE[::-1])
    comparison = compare({"a": one, "b": other})
    assert (comparison.targets, comparison.sources) == (TASKS_HERE, NAMES[1:5])
    assert comparison.extent == "3 targets and 4 sources"
    (agreement,) = comparison.agreements.values()
    first, second = one["ridge"][:, 1:5], other["logme"][::-1, :4]
    by_target = [np.asarray(stats.spearmanr(a, b))[0] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(agreement.rank_correlation, np.mean(by_target))
    np.testing.assert_allclose(agreement.matrix_correlation, np.corrcoef(first.ravel(), second.ravel())[0, 1])
    assert np.isnan(agreement.p_value)
    assert len(comparison.disagreements) == 12
    for row in comparison.disagreements:
        t, s = comparison.targets.index(row.target), comparison.sources.index(row.source)
        assert row.places == tuple(1 + (values[t] > values[t, s]).sum() for values in (first, second))


def test_scores_beside_networks_compared_with_one_another():
    """A network with itself, and what is missing, is left out of all rankings."""
    matrix = symmetric(7)
    matrix[1, 6] = np.nan
    comparison = compare({"a": affinity_of(matrix, NAMES), "b": scores()})
    assert (comparison.targets, comparison.sources) == ((NAMES[1], NAMES[4]), NAMES)
    pairs = {(row.target, row.source) for row in comparison.disagreements}
    expected = set(itertools.product((NAMES[1], NAMES[4]), NAMES)) - {(NAMES[1], NAMES[6])}
    assert pairs == {(t, s) for t, s in expected if t != s}
    kept = ([0, 2, 3, 4, 5], [0, 1, 2, 3, 5, 6])
    by_target = [
        np.asarray(stats.spearmanr(matrix[row, columns], scores()["ridge"][i, columns]))[0]
        for i, row, columns in zip((1, 2), (1, 4), kept, strict=True)
    ]
    (agreement,) = comparison.agreements.values()
    np.testing.assert_allclose(agreement.rank_correlation, np.mean(by_target), atol=1e-6)
    with pytest.raises(JaxTransferError, match="the targets: none, and the sources: a, b"):
        compare({"a": scores(1, ("a", "b"), ("x",)), "b": scores(1, ("a", "b"), ("y",))})


def test_a_measure_that_a_task_does_not_allow_is_left_out_there():
    """Each task is compared by the measures that have values for it; a pair that shares no task has no agreement."""
    values = scores()["ridge"]
    classes, numbers = values.copy(), 2 * values
    classes[1:], numbers[0] = np.nan, np.nan
    numbers[1, 3] = np.nan
    few = Affinity.of(NAMES, {"accuracy": classes, "r2": numbers}, targets=TASKS_HERE)
    comparison = compare({"a": scores(), "b": few})
    assert comparison.targets == TASKS_HERE
    agreements = {pair: agreement.rank_correlation for pair, agreement in comparison.agreements.items()}
    np.testing.assert_allclose([*agreements.values()], [1, 1, np.nan])
    assert {(row.target, row.source) for row in comparison.disagreements} == {
        (target, source) for target in TASKS_HERE for source in NAMES if (target, source) != (TASKS_HERE[1], NAMES[3])
    }
    for row in comparison.disagreements:
        ridge, accuracy, r2 = row.places
        assert (accuracy, r2) == ((ridge, None) if row.target == TASKS_HERE[0] else (None, ridge))
        assert row.spread == 0


def test_command_on_scores(runs, tmp_path):
    finished_run(tmp_path / "scores", scores(targets=NAMES[:4]))
    oracle = runs / "oracle.csv"
    result = invoke(runs / "first", tmp_path / "scores", "--out", runs / "out", "--oracle", oracle, "--relevant", 2)
    assert result.exit_code == 0, result.output
    assert "4 targets and 7 sources" in result.stdout
    assert "Mantel" not in result.stdout
    hits = {(row["method"], row["k"]): int(row["hits"]) for row in table(runs / "out" / "evaluation.csv")}
    assert hits["first/saliency", "2"] == 8
