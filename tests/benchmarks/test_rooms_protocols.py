"""The statistics of `python -m benchmarks.rooms protocols`, on drawn data and against slow rewrites."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.rooms import __main__ as main
from benchmarks.rooms import labelled, protocols, scores
from jaxtransfer import Affinity, Measure, Oracle, rooms
from jaxtransfer.files import read_records

NAMES = tuple(rooms.TASKS)
COUNT = len(NAMES)


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(COUNT, COUNT))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_reliability_is_the_agreement_of_two_measurements(noise: float, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    transfer = rng.normal(size=(120, 120))
    losses = transfer + noise * rng.normal(size=(2, seeds, 120, 120))
    again = scores.agreement(*losses.mean(1)).mean()
    np.testing.assert_allclose(protocols.reliability(losses[0]), again, atol=0.03)


def test_reliability_of_seeds_that_agree_and_of_seeds_that_have_nothing_in_common() -> None:
    assert protocols.reliability(np.stack([matrix(0)] * 3)) == pytest.approx(1)
    assert protocols.reliability(np.random.default_rng(0).normal(size=(3, 60, 60))) < 0.1


def test_scores_of_a_measure_are_those_of_evaluate() -> None:
    oracle = Oracle.rooms("finetuned")
    values = np.float32(np.nan_to_num(2 * scores.ranks(scores.truth(oracle, NAMES)))).astype(np.float64) + matrix(0)
    rows = protocols.score_all(
        "finetuned", {("100 images", protocols.REFERENCE): values, ("100 images", "other"): matrix(1)}
    )
    row, other = (row for row in rows if row.given == "100 images")
    directed = Measure("rank", directed=True)
    expected = scores.score(Affinity.of(NAMES, {"m": values}, measures={"m": directed}), oracle, "m")
    assert (row.targets, row.p1, row.p5) == (COUNT, expected.p1, expected.p5)
    assert row.spearman == pytest.approx(expected.spearman)
    assert row.stderr == pytest.approx(expected.stderr)
    assert (row.less, row.less_stderr) == (0, 0)
    correlations = [agreement_of_target(values, oracle, i) for i in range(COUNT)]
    of_other = [agreement_of_target(matrix(1), oracle, i) for i in range(COUNT)]
    less = np.subtract(of_other, correlations)
    assert other.less == pytest.approx(less.mean())
    assert other.less_stderr == pytest.approx(less.std(ddof=1) / np.sqrt(COUNT))


def agreement_of_target(values: np.ndarray, oracle: Oracle, target: int) -> float:
    others = [i for i in range(COUNT) if i != target]
    measured = [oracle.scores[NAMES[target]][NAMES[i]] for i in others]
    return float(np.asarray(spearmanr(values[target, others], measured))[0])


def test_scores_on_some_targets_are_those_of_labelled() -> None:
    values, known = np.full((COUNT, COUNT), np.nan), [2, 5, 11]
    values[known] = matrix(0)[known]
    rankings = {("1000 rooms", protocols.REFERENCE): matrix(1), ("30 labels", "knn"): values}
    (row,) = (row for row in protocols.score_all("frozen", rankings) if row.measure == "knn")
    expected, _ = labelled.score_all({(30, "knn"): values, (30, "ridge"): matrix(2)}, Oracle.rooms())
    assert (row.targets, row.p1, row.p5) == (3, expected.p1, expected.p5)
    assert row.spearman == pytest.approx(expected.spearman)
    assert row.stderr == pytest.approx(expected.stderr)


def test_the_truth_comes_first_and_measured_again_it_nearly_does() -> None:
    transfer = scores.truth(Oracle.rooms("finetuned"), NAMES)
    rankings = {("truth", protocols.REFERENCE): transfer}
    rows = {row.measure: row for row in protocols.score_all("finetuned", rankings)}
    own = rows[protocols.REFERENCE]
    assert (own.spearman, own.p1, own.p3, own.p5) == (pytest.approx(1), 1, 1, 1)
    # The errors of the table contain what the sources of a target have in common.
    assert rows[protocols.SECOND].spearman < rows[protocols.SPLIT].spearman < 1


def test_without_losses_of_seeds_there_is_no_second_measurement_by_seeds() -> None:
    rows = protocols.score_all("frozen", {("truth", protocols.REFERENCE): matrix(0)})
    assert [row.measure for row in rows if row.given == "(truth)"] == [
        protocols.STATIC, protocols.REVERSE, protocols.SECOND,
    ]  # fmt: skip


def test_agreement_of_protocols() -> None:
    first, second = matrix(0), matrix(0) + matrix(1)
    np.fill_diagonal(first, np.nan)
    np.fill_diagonal(second, np.nan)
    (pair,) = protocols.agreements({"a": first, "b": second})
    best = [[sorted(set(range(COUNT)) - {i}, key=lambda j: -m[i, j]) for i in range(COUNT)] for m in (first, second)]
    assert pair.same_best == pytest.approx(np.mean([a[0] == b[0] for a, b in zip(*best, strict=True)]))
    assert pair.shared == pytest.approx(np.mean([len({*a[:5]} & {*b[:5]}) / 5 for a, b in zip(*best, strict=True)]))
    correlations = scores.agreement(first, second)
    assert pair.spearman == pytest.approx(correlations.mean())
    assert pair.stderr == pytest.approx(correlations.std(ddof=1) / np.sqrt(COUNT))


def test_wins_are_counted_on_other_targets() -> None:
    """Each source is better for its own task and the next three, by little for the first of them, and else worse."""
    loss = np.full((COUNT + 1, COUNT), 1.5)
    loss[-1] = 1
    for source in range(COUNT):
        for step, value in enumerate((0.2, 0.9, 0.5, 0.5, 1.1)):
            loss[source, (source + step) % COUNT] = value
    measured = rooms.transfers("finetuned")
    transfers = dataclasses.replace(measured, loss=loss, stderr=np.full(loss.shape, 0.1))
    counts = protocols.wins("finetuned", transfers)
    assert [row.source for row in counts] == [*NAMES]
    assert {row[2:] for row in counts} == {(3, 2, COUNT - 5)}


def test_the_share_of_wins_by_chance_is_that_of_the_level() -> None:
    """Where sources and training from scratch are equally good, 2.5 % are significantly better and as many worse."""
    rng, measured = np.random.default_rng(0), rooms.transfers("finetuned")
    counts = []
    for _ in range(200):
        loss = 1 + 0.1 * rng.normal(size=measured.loss.shape)
        transfers = dataclasses.replace(measured, loss=loss, stderr=np.full(loss.shape, 0.1))
        counts += [row[2:] for row in protocols.wins("finetuned", transfers)]
    shares = np.mean(counts, axis=0) / (COUNT - 1)
    np.testing.assert_allclose(shares, [0.5, 0.025, 0.025], atol=0.02)
    np.testing.assert_allclose(shares[1:], 0.025, atol=0.005)


@pytest.mark.slow
def test_the_command_writes_its_tables(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_examples", lambda *_: None)
    monkeypatch.setattr(protocols, "measure_networks", lambda *_: {("1000 rooms", protocols.REFERENCE): matrix(0)})
    monkeypatch.setattr(protocols, "score_labels", lambda *_: {("30 labels", "ridge"): matrix(1)})
    main.main(["protocols", "--work", str(tmp_path)])
    measures = read_records(tmp_path / "protocols.csv")
    assert {row["protocol"] for row in measures if row["measure"] == "ridge"} == {*rooms.PROTOCOLS}
    assert len(read_records(tmp_path / "protocol_agreement.csv")) == 3
    assert len(read_records(tmp_path / "protocol_wins.csv")) == 3 * COUNT
