"""`jaxtransfer evaluate` on run directories whose affinities are known."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jaxtransfer import Affinity, Measure, Oracle, rooms
from jaxtransfer.cli.app import app
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.taskonomy.tasks import TASKS
from support.helpers import complaint, finished_run, table

NAMES = tuple(TASKS)[:8]


@pytest.fixture
def run(tmp_path):
    """A finished run of eight tasks under two methods; the first agrees with `oracle.csv`, the second never does."""
    values = np.add.outer(np.arange(8.0), np.arange(8.0)).astype(np.float32)
    np.fill_diagonal(values, 20)
    nothing = np.zeros_like(values)
    results = {name: MethodResult(sign * values, nothing, nothing.astype(int)) for name, sign in (("a", 1), ("b", -1))}
    directory = tmp_path / "run"
    finished_run(directory, Affinity(NAMES, "cosine", results))
    rows = [f"{NAMES[i]},{NAMES[j]},{i}" for i in range(8) for j in range(8)]
    (tmp_path / "oracle.csv").write_text("\n".join(["source,target,score", *rows]))
    return directory


def invoke(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_agreement_and_its_reverse(run):
    result = invoke(run, "--oracle", run.parent / "oracle.csv", "--relevant", 2)
    assert result.exit_code == 0, result.output
    assert "8 of the oracle's 8 targets were scored" in result.stdout
    rows = table(run / "evaluation.csv")
    references = ["mean rank over the other targets", "the other direction"]
    assert [row["method"] for row in rows] == [name for name in ("a", "b", *references) for _ in range(7)]
    # Of one list of sources, the mean rank over the other targets is the truth.
    assert [int(row["hits"]) for row in rows[:21]] == [8, *[16] * 6] + [0] * 5 + [8, 16] + [8, *[16] * 6]
    np.testing.assert_allclose([float(row["random_precision"]) for row in rows], 2 / 7)
    for row in rows:
        assert float(row["hits_low_over_networks"]) <= int(row["hits"]) <= float(row["hits_high_over_networks"]) + 1e-9
        assert row["hits_low_over_images"] == ""  # nothing is known image by image
    assert "its 95 % band over other networks and images" in result.stdout
    by_target = table(run / "evaluation_by_target.csv")
    correlations = {(row["method"], row["spearman"]) for row in by_target[:24]}
    assert {(method, float(value)) for method, value in correlations} == {("a", 1), ("b", -1), (references[0], 1)}
    assert [row["target"] for row in by_target] == [*NAMES] * 4
    assert f"{references[0]}: one list of sources" in result.stdout
    with Image.open(run / "evaluation.png") as figure:
        assert figure.size[0] > 1000


def test_all_sources_relevant(run):
    result = invoke(run, "--oracle", run.parent / "oracle.csv", "--relevant", 7)
    assert "any order is perfect" in result.stdout
    assert "any order" not in invoke(run, "--oracle", run.parent / "oracle.csv", "--relevant", 6).stdout


def test_the_built_in_oracle_and_one_method(run):
    result = invoke(run, "--method", "a", "--oracle", "taskonomy")
    assert result.exit_code == 0, result.output
    assert "7 of the oracle's 18 targets were scored" in result.stdout  # colorization is a source only
    assert "not scored, because they or all but one of their sources are not in this run: " in result.stdout
    methods = {row["method"] for row in table(run / "evaluation.csv")}
    assert methods == {"a", "mean rank over the other targets", "the other direction"}


def _names(directory, names, hashes=()):
    affinity = Affinity.of(
        names, {"a": np.random.default_rng(0).random((len(names), len(names)))}, measures={"a": Measure(directed=True)}
    )
    finished_run(directory, affinity)
    record = json.loads((directory / "run.json").read_text())
    record["networks"] = {name: {"weights_sha256": sha256} for name, sha256 in zip(names, hashes, strict=False)}
    (directory / "run.json").write_text(json.dumps(record))
    return directory


def test_the_run_says_whose_transfer_it_is_judged_by(tmp_path):
    names = list(rooms.TASKS)
    own = [rooms.zoo().manifest(name)["weights_sha256"] for name in names]
    assert "Against rooms" in invoke(_names(tmp_path / "rooms", names, own)).stdout
    assert "Against taskonomy" in invoke(_names(tmp_path / "taskonomy", [*names, "egomotion"])).stdout
    assert "Against taskonomy" in invoke(_names(tmp_path / "release", ["rgb2depth", "reshade", "edge2d"])).stdout
    line = complaint(invoke(_names(tmp_path / "either", names, ["0" * 64])))
    assert "say whose transfers to use, with --oracle rooms or --oracle taskonomy" in line


def test_tables_name_the_oracle_and_the_number_of_relevant_sources(run):
    invoke(run, "--oracle", run.parent / "oracle.csv", "--relevant", 2)
    assert {(row["oracle"], row["relevant"]) for row in table(run / "evaluation.csv")} == {("oracle.csv", "2")}
    assert {row["oracle"] for row in table(run / "evaluation_by_target.csv")} == {"oracle.csv"}


def test_errors_are_one_sentence(run, tmp_path):
    for arguments, message in [
        ([run, "--oracle", tmp_path / "nowhere.csv"], "nowhere.csv is not an oracle that can be read"),
        ([run, "--method", "c"], "no result for the method 'c'"),
        ([tmp_path / "no run"], "is not a run directory"),
        ([run, "--relevant", "0"], "relevant"),
    ]:
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.split())
        assert "Traceback" not in result.output
    unfinished = json.loads((run / "run.json").read_text()) | {"finished": None}
    (run / "run.json").write_text(json.dumps(unfinished))
    assert "has not finished" in invoke(run).stderr
    assert not (run / "evaluation.csv").exists()


def test_an_oracle_whose_sources_are_no_targets(tmp_path):
    """Networks and tasks are names of one matrix, in which only pairs of the two have values."""
    hear = Oracle.hear()
    models = list(dict.fromkeys(model for of_target in hear.scores.values() for model in of_target))
    names = (*hear.scores, *models)
    affinity = Affinity.of(names, {"m": hear.table(hear.scores, names)}, measures={"m": Measure(directed=True)})
    finished_run(tmp_path / "run", affinity)
    result = invoke(tmp_path / "run", "--oracle", "hear")
    assert result.exit_code == 0, result.output
    assert "19 of the oracle's 19 targets were scored" in result.stdout
    assert {row["spearman"][:6] for row in table(tmp_path / "run" / "evaluation_by_target.csv")[:19]} <= {
        "1.0",
        "0.9999",
    }
    methods = {row["method"] for row in table(tmp_path / "run" / "evaluation.csv")}
    assert methods == {"m", "mean rank over the other targets"}
