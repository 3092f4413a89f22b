"""Tables of measured transfer: their forms, those that come with the package, and facts about published ones."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import jaxtransfer as jt
from jaxtransfer.cli.arguments import load_oracle
from jaxtransfer.evaluation.oracle import WILD
from jaxtransfer.evaluation.references import SECOND, STATIC, other_direction, references, static_ranking
from jaxtransfer.evaluation.summary import evaluate
from jaxtransfer.taskonomy.tasks import TASKS

RENAMED = {
    "impainting_whole": "inpainting_whole",
    "segmentsemantic_rb": "segmentsemantic",
    "vanishing_point_well_defined": "vanishing_point",
}


@pytest.fixture(scope="module")
def tables(shared_data: Path) -> Path:
    return shared_data / "oracles"


def names_of(oracle: jt.Oracle) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*oracle.scores, *(s for of_target in oracle.scores.values() for s in of_target)]))


def as_affinity(scores: jt.Oracle, names: tuple[str, ...]) -> jt.Affinity:
    """Scores of one table, to be judged by another."""
    measure = {"scores": jt.Measure("score", directed=True)}
    return jt.Affinity.of(names, {"scores": scores.table(scores.scores, names)}, measures=measure)


def mean(scores: jt.Oracle, oracle: jt.Oracle, field: str) -> float:
    affinity = as_affinity(scores, names_of(oracle))
    return evaluate(affinity, oracle, "scores", 5).mean_correlation(field)


def static(oracle: jt.Oracle, field: str) -> float:
    names = names_of(oracle)
    return references(as_affinity(oracle, names), oracle, "scores", 5)[STATIC].mean_correlation(field)


def plain_names(oracle: jt.Oracle) -> jt.Oracle:
    """The names that several laboratories have for one network or data set."""
    renamed = {"oxfordiiitpets": "pets", "pet": "pets", "stanfordcars": "cars", "mnasnet": "mnasnet1_0"}

    def plain(name: str) -> str:
        lower = name.lower().replace(" ", "_")
        return renamed.get(lower, lower)

    scores = {plain(t): {plain(s): value for s, value in row.items()} for t, row in oracle.scores.items()}
    return jt.Oracle(oracle.name, scores)


def test_columns_in_any_order_and_standard_errors(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("note,stderr,target,score,source\nx,0.1,b,1.5,a\n,,b,3,c\n,0,a,2,b\ny,0.3,a,,c\n,1,a,9,a\n")
    found = jt.Oracle.load(file)
    assert found.scores == {"b": {"a": 1.5, "c": 3.0}, "a": {"b": 2.0}}
    assert found.stderr == {"b": {"a": 0.1}, "a": {"b": 0.0}}
    file.write_text("model,data,task,accuracy\nr18,imagenet,pets,1\nr18,places,pets,2\n")
    found = jt.Oracle.load(file, source=["model", "data"], target="task", score="accuracy")
    assert found.scores == {"pets": {"r18+imagenet": 1.0, "r18+places": 2.0}}
    assert found.stderr == {}


def test_matrices_with_further_columns(tmp_path: Path) -> None:
    file = tmp_path / "matrix.csv"
    file.write_text(",source,x,y,\n0,a,1,2,\n1,b,3,,\n")
    assert jt.Oracle.load(file).scores == {"x": {"a": 1.0, "b": 3.0}, "y": {"a": 2.0}}
    file.write_text("address,x,model,y\nhere,1,a,2\nthere,3,b,4\n")
    found = jt.Oracle.load(file, source="model", ignore=["address"])
    assert found.scores == {"x": {"a": 1.0, "b": 3.0}, "y": {"a": 2.0, "b": 4.0}}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("source,target,score,stderr\na,b,1,-1\n", {}, "'-1' where a standard error should be"),
        ("source,target,score,stderr\na,b,1,x\n", {}, "'x' where a standard error should be"),
        ("target,score\nb,1\n", {}, "There is no column 'source' in .*; there are: "),
        ("model,task,hits\na,b,1\n", {"source": "model", "target": "task"}, "There is no column 'score'"),
        ("model,b,c\na,1,2\n", {"source": "modle"}, "There is no column 'modle' in .*; there are: model"),
        ("model,b,c\na,1,2\n", {"ignore": ["d"]}, "There is no column 'd'"),
        ("model,url,b\na,here,1\n", {}, "'here' where a score should be"),
        ("from,to,value\na,b,1\n", {}, "'b' where .* first row, from,to,value, is taken .* the columns source, target"),
        ("source;target;score\na;b;1\n", {}, "has semicolons between its cells; write it with commas. An oracle has"),
        ("source\ttarget\tscore\na\tb\t1\n", {}, "has tabs between its cells; write it with commas. An oracle has"),
        ("source,target,score\n", {}, "holds no score .* An oracle has the columns source, target and score"),
        ("", {}, "holds no score .* An oracle has the columns source, target and score"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(jt.JaxTransferError, match=message):
        jt.Oracle.load(file, **options)  # pyright: ignore[reportArgumentType]


def test_a_table_has_a_row_for_each_target() -> None:
    oracle = jt.Oracle("one", {"b": {"a": 1.0, "c": 2.0}}, {"B": "b"}, {"b": {"a": 0.5}})
    nan = np.nan
    np.testing.assert_array_equal(oracle.table(oracle.scores, ("a", "B")), [[nan, nan], [1, nan]])
    np.testing.assert_array_equal(oracle.table(oracle.stderr, ("b", "c", "a")), [[nan, nan, 0.5], *[[nan] * 3] * 2])


def test_those_that_come_with_the_package() -> None:
    counts = {name: (18, {19}) for name in ("taskonomy", "taskonomy-gain", "taskonomy-quality")}
    measured = {
        "rooms": (22, {21}),
        "rooms-larger-readout": (22, {21}),
        "rooms-finetuned": (22, {21}),
        "wild": (10, {16}),
    }
    counts |= measured | {"medmnist": (12, {14}), "hear": (19, {16, 31, 33, 34})}
    for name, (targets, sources) in counts.items():
        oracle = load_oracle(name)
        assert oracle.name == name
        assert len(oracle.scores) == targets
        assert {len(of_target) for of_target in oracle.scores.values()} <= sources
        assert bool(oracle.stderr) == (name in measured)
    with pytest.raises(jt.JaxTransferError, match="orders 1 to 4 of affinity, gain and quality, not order 5"):
        jt.Oracle.taskonomy(5)


def test_wild_has_the_most_labels_of_each_target_or_a_number_of_them() -> None:
    with WILD.open() as stream:
        rows = [*csv.DictReader(stream)]
    for labels in (30, 100, 300, 500):
        oracle = jt.Oracle.wild(labels)
        of_number = {(row["target"], row["source"]): row for row in rows if row["labels"] == str(labels)}
        assert of_number.keys() == {(target, source) for target, row in oracle.scores.items() for source in row}
        for (target, source), row in of_number.items():
            assert oracle.scores[target][source] == float(row["score"])
            assert oracle.stderr[target][source] == float(row["stderr"])
            assert 0 <= oracle.scores[target][source] <= 1
    most = jt.Oracle.wild()
    assert most.scores["digits"] == jt.Oracle.wild(500).scores["digits"]
    assert most.scores["blood_cells"] == jt.Oracle.wild(300).scores["blood_cells"]  # there are no 500
    with pytest.raises(jt.JaxTransferError, match="with 30, 100, 300, 500 labelled examples, not with 1000"):
        jt.Oracle.wild(1000)


@pytest.mark.parametrize("protocol", jt.rooms.PROTOCOLS)
def test_the_errors_of_rooms_follow_those_of_the_losses(protocol: str) -> None:
    rooms, measured = jt.Oracle.rooms(protocol), jt.rooms.transfers(protocol)
    for column, target in enumerate(measured.targets):
        others = [i for i, name in enumerate(measured.sources[:22]) if name != target]
        loss, error, affinity = (table[others, column] for table in (measured.loss, measured.stderr, measured.affinity))
        of_logarithm = np.array([*rooms.stderr[target].values()]) / affinity / np.log(affinity).std()
        np.testing.assert_allclose(np.hypot(of_logarithm * loss.std(), error.min()), error)


def _taskonomy(file: Path) -> dict[tuple[str, str], float]:
    """Scores by sources and target; a key of the file is their names in a row."""
    with file.open() as stream:
        _, *rows = csv.reader(stream)
    scores = {}
    for key, value in rows:
        *sources, target = (RENAMED.get(name, name) for name in key.split("__"))
        scores["+".join(sources), target] = float(value)
    return scores


@pytest.mark.parametrize(
    ("score", "file"), [("affinity", "all_affinities"), ("gain", "wins_vs_pixels"), ("quality", "wins_vs_task")]
)
def test_taskonomy_is_the_published_table(tables: Path, score: str, file: str) -> None:
    published = _taskonomy(tables / f"taskonomy_{file}_16k.csv")
    for order, sources in ((1, {19}), (2, {10}), (3, {10, 16}), (4, {15, 25})):
        oracle = jt.Oracle.taskonomy(order, score=score)  # pyright: ignore[reportArgumentType]
        assert {len(of_target) for of_target in oracle.scores.values()} <= sources
        for target, of_target in oracle.scores.items():
            expected = [published[source, target] for source in of_target]
            np.testing.assert_allclose([*of_target.values()], expected, rtol=1e-3)
            assert {part for source in of_target for part in source.split("+")} <= {*TASKS, "class_selected", "random"}


def test_first_order_taskonomy(tables: Path) -> None:
    """Affinities and win rates agree with one another, more than a list for all targets or the other direction do."""
    affinity, gain = jt.Oracle.taskonomy(), jt.Oracle.taskonomy(score="gain")
    assert mean(gain, affinity, "spearman") == pytest.approx(0.90, abs=0.005)
    assert static(affinity, "spearman") == pytest.approx(0.407, abs=5e-4)
    names = tuple(task for task in affinity.scores if task != "class_places")
    square = jt.Oracle("17 tasks", {t: {s: affinity.scores[t][s] for s in names if s != t} for t in names})
    assert static(square, "spearman") == pytest.approx(0.466, abs=5e-4)
    reverse = other_direction(square, names)
    both = jt.Affinity.of(names, {"both": reverse + reverse.T})
    assert evaluate(both, square, "both", 5).mean_correlation("spearman") == pytest.approx(0.890, abs=5e-4)


def test_more_tasks_are_better_sources() -> None:
    """For most targets the best set of two tasks beats training from scratch more often than the best task does."""
    single, pairs = (jt.Oracle.taskonomy(order, score="gain") for order in (1, 2))
    better = [max(pairs.scores[target].values()) > max(single.scores[target].values()) for target in single.scores]
    assert sum(better) > len(better) / 2


def test_medmnist_and_hear_are_the_published_tables(tables: Path) -> None:
    published = {
        "medmnist": jt.Oracle.load(tables / "medmnist_AUCs_dataset.csv"),
        "hear": jt.Oracle.load(tables / "hear_leaderboard.csv", source="Model", ignore=["URL", "Submission Date"]),
    }
    for name, expected in published.items():
        found = load_oracle(name)
        assert found.scores.keys() == expected.scores.keys()
        for target, of_target in found.scores.items():
            assert of_target == pytest.approx(expected.scores[target], rel=1e-5)
            ranks = [stats.rankdata([*table.scores[target].values()]) for table in (found, expected)]
            assert np.abs(ranks[0] - ranks[1]).max() <= 0.5  # ties by rounding


def test_measures_of_medmnist(tables: Path) -> None:
    """Sources are data sets, most of them targets too; a list of them is better than LogME."""
    oracle = jt.Oracle.medmnist()
    names = names_of(oracle)
    logme = jt.Oracle.load(tables / "medmnist_logme_dataset.csv")
    found = references(as_affinity(logme, names), oracle, "scores", 5)
    assert len(evaluate(as_affinity(logme, names), oracle, "scores", 5).curve.targets) == 11  # chestmnist has no LogME
    assert found[STATIC].mean_correlation("spearman") > mean(logme, oracle, "spearman")


def test_sources_that_are_no_targets() -> None:
    """HEAR: a list of networks, the same for all tasks, is nearly as good as their scores."""
    hear = jt.Oracle.hear()
    names = names_of(hear)
    assert not {*hear.scores} & {source for of_target in hear.scores.values() for source in of_target}
    affinity = as_affinity(hear, names)
    evaluation = evaluate(affinity, hear, "scores", 5)
    assert evaluation.curve.targets == tuple(hear.scores)
    assert evaluation.mean_correlation("spearman") == pytest.approx(1)
    assert evaluation.bands.networks is not None
    assert list(references(affinity, hear, "scores", 5)) == [STATIC]


def test_eleven_networks_and_three_laboratories(tables: Path) -> None:
    """A list of networks predicts finetuning better than LogME does, and better than another laboratory."""
    columns = {"source": "model", "target": "dataset"}
    sfda = jt.Oracle.load(tables / "sfda_supervised_finetune.csv", **columns, score="accuracy")
    assert {len(of_target) for of_target in sfda.scores.values()} == {11}
    assert static(sfda, "weighted_kendall") == pytest.approx(0.84, abs=0.005)
    tllib = plain_names(jt.Oracle.load(tables / "tllib_scores.csv", **columns, score="finetuned_acc"))
    ten = [{s for of_target in table.scores.values() for s in of_target} for table in (sfda, tllib)]
    assert ten[0] - ten[1] == {"resnet34"}
    assert mean(sfda, tllib, "weighted_kendall") == pytest.approx(0.54, abs=0.005)
    logme = jt.Oracle.load(tables / "modelspider_scores.csv", source="Model", target="Dataset", score="LogME")
    assert mean(plain_names(logme), sfda, "weighted_kendall") == pytest.approx(0.51, abs=0.005)
    head_only = jt.Oracle.load(tables / "rept_supervised_head_only.csv", **columns, score="accuracy")
    assert mean(head_only, sfda, "weighted_kendall") == pytest.approx(0.66, abs=0.005)
    others = jt.Oracle.load(tables / "sfda_selfsupervised_finetune.csv", **columns, score="accuracy")
    assert {len(of_target) for of_target in others.scores.values()} == {12}
    assert SECOND not in references(as_affinity(sfda, names_of(sfda)), sfda, "scores", 5)


def test_parc(tables: Path) -> None:
    """Sources are pairs of an architecture and a data set."""
    columns = {"target": "Target Dataset", "score": "Oracle"}
    source = ["Architecture", "Source Dataset"]
    parc = jt.Oracle.load(tables / "parc_controlled.csv", source=source, **columns)
    assert {len(of_target) for of_target in parc.scores.values()} == {28}
    assert "resnet50+imagenet" in parc.scores["cifar10"]
    assert static(parc, "spearman") > 0.5
    more = jt.Oracle.load(tables / "parc_all.csv", source=source, **columns)
    for target, of_target in parc.scores.items():
        assert of_target.items() <= more.scores[target].items()
    ranks = static_ranking(more, names_of(more))
    assert np.abs(ranks).max() <= 1
    assert re.fullmatch(r"\w+\+.+", names_of(more)[-1])
