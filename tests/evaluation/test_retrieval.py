"""Hits and rank correlations against published numbers, definitions written out, and all orders there are."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer import (
    JaxTransferError,
    Oracle,
    hits_at_k,
    precision_at_k,
    rank_correlations,
    recall_at_k,
    retrieval_curve,
)
from jaxtransfer.taskonomy.tasks import TASKS
from support.helpers import affinity_of

TWENTY = tuple(TASKS)[:20]
TARGETS = [task for task in TWENTY if task not in ("colorization", "inpainting_whole")]


def symmetric(seed, count, levels=None):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, count)) if levels is None else rng.integers(0, levels, (count, count)) * 1.0
    return np.triu(values, 1) + np.triu(values, 1).T + np.eye(count) * 9


@pytest.fixture(scope="module")
def published(shared_data):
    with np.load(shared_data / "published" / "song2019_heatmaps.npz") as stored:
        maps = {name: stored[name] for name in stored}
    hits = json.loads((shared_data / "published" / "song2019_hits_at_k.json").read_text())["hits"]
    tasks = tuple(map(str, maps.pop("tasks")))
    keys = {name: name.replace("gradinput", "gradxinput") for name in hits} | {"svcca": "fig3_svcca_taskonomy"}
    perfect = hits.pop("oracle")
    assert perfect == [18 * min(k, 5) for k in range(1, 20)]
    return {name: (affinity_of(maps[keys[name]], tasks), np.array(expected)) for name, expected in hits.items()}


def test_published_heat_maps_give_the_published_hits(published):
    assert len(published) == 7
    for name, (affinity, expected) in published.items():
        curve = retrieval_curve(affinity, Oracle.taskonomy())
        assert set(curve.targets) == set(TARGETS)
        assert np.abs(curve.hits - expected).max() <= 2, name
        assert curve.hits[-1] == expected[-1] == curve.relevant == 90


def test_the_table_is_the_order_of_the_published_affinities(shared_data):
    with (shared_data / "taskonomy" / "affinities_16k_first_order.csv").open() as stream:
        scores = {(row["source"], row["target"]): float(row["affinity"]) for row in csv.DictReader(stream)}
    oracle = Oracle.taskonomy()
    assert set(oracle.scores) == set(TARGETS)
    for target in TARGETS:
        expected = sorted(set(TWENTY) - {target}, key=lambda source: -scores[source, target])
        assert sorted(oracle.scores[target], key=lambda source: -oracle.scores[target][source]) == expected


def test_the_oracle_against_itself_is_perfect():
    """Target by target, since an affinity is symmetric and transfer is not."""
    oracle = Oracle.taskonomy()
    for target in TARGETS:
        matrix = np.zeros((20, 20))
        row = TWENTY.index(target)
        matrix[row] = [oracle.scores[target].get(source, 0) for source in TWENTY]
        affinity = affinity_of(matrix, TWENTY)
        one = Oracle("one", {target: oracle.scores[target]})
        assert retrieval_curve(affinity, one).hits.tolist() == [1, 2, 3, 4] + [5] * 15
        found = rank_correlations(affinity, one)[target]
        assert found.sources == 19
        np.testing.assert_allclose([found.spearman, found.kendall, found.weighted_kendall], 1)


def test_random_baseline_of_the_paper():
    curve = retrieval_curve(affinity_of(symmetric(0, 20), TWENTY), Oracle.taskonomy())
    np.testing.assert_allclose(curve.random_precision, 5 / 19)
    np.testing.assert_allclose(curve.random_recall, np.arange(1, 20) / 19)
    assert len(curve.hits) == 19


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(3, 9), relevant=st.integers(1, 6), levels=st.sampled_from([3, 99]))
def test_hits_by_their_definition(seed, count, relevant, levels):
    """Sources counted one by one; some unknown to the oracle, some tied."""
    rng = np.random.default_rng(seed)
    names = [f"n{i}" for i in range(count)]
    matrix = symmetric(seed, count, levels)
    scores = {
        target: {source: float(rng.integers(0, levels)) for source in names if source != target and rng.random() < 0.8}
        for target in names
    }
    affinity, oracle = affinity_of(matrix, names), Oracle("random", scores)
    usable = {target: known for target, known in scores.items() if len(known) > 1}
    if not usable:
        with pytest.raises(JaxTransferError, match="no target here"):
            retrieval_curve(affinity, oracle, relevant=relevant)
        return
    curve = retrieval_curve(affinity, oracle, relevant=relevant)
    for k in range(1, len(curve.hits) + 1):
        hits = seen = possible = 0
        for target, known in usable.items():
            fifth = sorted(known.values(), reverse=True)[min(relevant, len(known)) - 1]
            near = [name for name, *_ in affinity.rank(target) if name in known][:k]
            hits += sum(known[name] >= fifth for name in near)
            seen += len(near)
            possible += sum(score >= fifth for score in known.values())
        assert (curve.hits[k - 1], curve.seen[k - 1], curve.relevant) == (hits, seen, possible)
        assert hits_at_k(affinity, oracle, k, relevant=relevant) == hits
        assert precision_at_k(affinity, oracle, k, relevant=relevant) == hits / seen
        assert recall_at_k(affinity, oracle, k, relevant=relevant) == hits / possible


def test_random_hits_are_the_mean_over_all_orders():
    names = "abcde"
    scores = {"a": dict(zip("bcde", [4.0, 3, 2, 1], strict=True)), "b": {"a": 1.0, "c": 2.0, "d": 3.0}}
    oracle = Oracle("small", scores)
    hits = []
    for order in itertools.permutations(range(4)):
        for other in itertools.permutations(range(3)):
            matrix = np.zeros((5, 5))
            matrix[0, 1:] = order
            matrix[1, [0, 2, 3]] = other
            hits.append(retrieval_curve(affinity_of(matrix, names), oracle, relevant=2).hits)
    found = retrieval_curve(affinity_of(np.zeros((5, 5)), names), oracle, relevant=2)
    np.testing.assert_allclose(found.random_hits, np.mean(hits, 0))
    assert found.seen.tolist() == [2, 4, 6, 7]


def test_names_of_either_release_and_some_of_the_tasks():
    matrix = symmetric(1, 20)
    whole = retrieval_curve(affinity_of(matrix, TWENTY), Oracle.taskonomy())
    release = [TASKS[task].release for task in TWENTY]
    assert retrieval_curve(affinity_of(matrix, release), Oracle.taskonomy()).hits.tolist() == whole.hits.tolist()
    some = (*TWENTY[:7], "my own network")
    curve = retrieval_curve(affinity_of(matrix[:8, :8], some), Oracle.taskonomy())
    assert curve.targets == TWENTY[:7]
    assert len(curve.hits) == 6
    assert curve.relevant == 7 * 5
    np.testing.assert_allclose(curve.random_precision, 5 / 6)


def test_a_file_may_have_the_names_of_either_release(tmp_path):
    file = tmp_path / "oracle.csv"
    file.write_text(
        "source,target,score\nnormal,reshading,2\ncurvature,reshading,1\nextra,reshading,9\nnormal,extra,1\n"
    )
    for names in (["rgb2sfnorm", "curvature", "reshade"], ["normal", "curvature", "reshading"]):
        matrix = np.array([[9, 0, 2], [0, 9, 1], [2, 1, 9]])
        curve = retrieval_curve(affinity_of(matrix, names), Oracle.load(file), relevant=1)
        assert curve.targets == (names[2],)
        assert curve.hits.tolist() == [1, 1]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([3, 99]))
def test_rank_correlations_by_their_definitions(seed, levels):
    matrix = symmetric(seed, 8, levels).astype(np.float32)
    names = [f"n{i}" for i in range(8)]
    rng = np.random.default_rng(seed)
    scores = {"n0": {f"n{i}": float(rng.integers(0, levels)) for i in range(1, 8)}}
    found = rank_correlations(affinity_of(matrix, names), Oracle("random", scores))["n0"]
    x, y = matrix[0, 1:].astype(float), np.array(list(scores["n0"].values()))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(found.spearman)
        assert math.isnan(found.kendall)
        assert math.isnan(found.weighted_kendall)
        return

    def ranks(values):
        return np.array([(values < value).sum() + (values == value).sum() / 2 for value in values])

    def tau(weights):
        signs = [np.sign(np.subtract.outer(each, each)) for each in (x, y)]
        above = (weights * signs[0] * signs[1]).sum()
        return above / math.sqrt((weights * signs[0] ** 2).sum() * (weights * signs[1] ** 2).sum())

    def hyperbolic(first, second):
        """Weights of Vigna (2015): places by falling `first`, ties by falling `second`."""
        places = np.empty(7)
        places[np.lexsort((-second, -first))] = np.arange(7)
        return np.add.outer(1 / (1 + places), 1 / (1 + places))

    np.testing.assert_allclose(found.spearman, np.corrcoef(ranks(x), ranks(y))[0, 1], atol=1e-12)
    np.testing.assert_allclose(found.kendall, tau(np.ones((7, 7))), atol=1e-12)
    np.testing.assert_allclose(found.weighted_kendall, (tau(hyperbolic(x, y)) + tau(hyperbolic(y, x))) / 2, atol=1e-12)


def test_files(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("source,target,score\na,b,1.5\nb,a,-2\nc,b,3\nb,b,7\nc,a,\n")
    found = Oracle.load(rows)
    assert found.scores == {"b": {"a": 1.5, "c": 3.0}, "a": {"b": -2.0}}
    assert found.name == "rows.csv"
    square = tmp_path / "square.csv"
    square.write_text("\ufeffsource \\ target, a,b,c\na,0,1.5,\nb,-2,0,\nc,,3,0\n", encoding="utf-8")
    assert Oracle.load(square).scores == found.scores


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no score of a source for another target"),
        ("source,target,score\na,b\n", "source,target,score in every row, not 'a,b'"),
        ("source,target,score\na,b,x\n", "'x' where a score should be"),
        ("source,target,score\na,b,inf\n", "'inf' where a score should be"),
        ("source,target,score\na,b,1\na,b,2\n", "says twice how a transfers to b"),
        ("source,target,score\na,a,1\n", "no score of a source for another target"),
        (",a,b\na,1\n", "names 2 targets, but the row a has 1 cells"),
        (",a,b\nb,1,2\nb,1,2\n", "says twice how b transfers to a"),
    ],
)
def test_files_that_are_no_oracles(tmp_path, text, message):
    file = tmp_path / "oracle.csv"
    file.write_text(text)
    with pytest.raises(JaxTransferError, match=message):
        Oracle.load(file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(JaxTransferError, match="not an oracle that can be read"):
        Oracle.load(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JaxTransferError, match="not an oracle that can be read"):
        Oracle.load(tmp_path / "binary.csv")


def test_wrong_requests():
    affinity = affinity_of(symmetric(0, 20), TWENTY)
    with pytest.raises(JaxTransferError, match="K must be from 1 to 19, the number of sources, not 20"):
        hits_at_k(affinity, Oracle.taskonomy(), 20)
    with pytest.raises(JaxTransferError, match="One source or more"):
        hits_at_k(affinity, Oracle.taskonomy(), 1, relevant=0)
    with pytest.raises(JaxTransferError, match="scores no target here with two sources or more: it knows autoencoder"):
        hits_at_k(affinity_of(symmetric(0, 3), "xyz"), Oracle.taskonomy(), 1)
