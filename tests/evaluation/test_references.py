"""What the scores of a measure are compared with: against loops, and against simulated second measurements."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import jaxtransfer as jt
from jaxtransfer.evaluation.references import (
    REVERSE,
    SECOND,
    STATIC,
    noise_ceiling,
    oracle_ranks,
    other_direction,
    references,
    static_ranking,
)

NAMES = tuple("abcdefgh")


def oracle(seed: int, share: float = 0.8, levels: int = 5) -> jt.Oracle:
    """Some scores of some pairs, among them equal ones."""
    rng = np.random.default_rng(seed)
    scores = {t: {s: float(rng.integers(0, levels)) for s in NAMES if s != t and rng.random() < share} for t in NAMES}
    return jt.Oracle("drawn", {target: of_target for target, of_target in scores.items() if of_target})


def random_affinity(names: tuple[str, ...], seed: int = 0) -> jt.Affinity:
    return jt.Affinity.of(names, {"m": np.random.default_rng(seed).normal(size=(len(names),) * 2)})


def places(of_target: dict[str, float]) -> dict[str, float]:
    """The share of other sources that a source beats, less the share that beat it."""
    return {
        s: sum(np.sign(score - other) for other in of_target.values()) / (len(of_target) - 1)
        for s, score in of_target.items()
    }


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rankings_by_their_definitions(seed: int) -> None:
    drawn = oracle(seed)
    with_itself = {t: {**of_target, t: 99.0} for t, of_target in drawn.scores.items()}
    assert oracle_ranks(jt.Oracle("with itself", with_itself)) == oracle_ranks(drawn), "a score for itself is ignored"
    ranks = {t: places(dict(of_target)) for t, of_target in drawn.scores.items() if len(of_target) > 1}
    found = oracle_ranks(drawn)
    assert found.keys() == ranks.keys()
    for target, of_target in ranks.items():
        assert found[target] == pytest.approx(of_target)
    static, reverse = static_ranking(drawn, NAMES), other_direction(drawn, NAMES)
    for (i, target), (j, source) in itertools.permutations(enumerate(NAMES), 2):
        if target in drawn.scores:
            others = [r[source] for t, r in ranks.items() if t != target and source in r]
            assert static[i, j] == pytest.approx(np.mean(others) if others else 0)
        assert reverse[i, j] == pytest.approx(ranks.get(source, {}).get(target, 0))


def test_a_targets_own_scores_are_never_used() -> None:
    """The mean rank for a target, and the other direction, are the same whatever the target's scores are."""
    before, names = oracle(0), list(NAMES)
    for target in before.scores:
        scores = {**before.scores, target: {s: -(score**2) for s, score in before.scores[target].items()}}
        after, row = jt.Oracle("changed", scores), names.index(target)
        for ranking in (static_ranking, other_direction):
            np.testing.assert_array_equal(ranking(before, NAMES)[row], ranking(after, NAMES)[row])


def test_an_oracle_of_one_list_and_a_symmetric_one() -> None:
    """The static list is perfect where all targets have one order of sources, the other direction where pairs do."""
    quality = dict(zip(NAMES, range(8), strict=True))
    one_list = jt.Oracle("list", {t: {s: quality[s] for s in NAMES if s != t} for t in NAMES})
    found = references(random_affinity(NAMES), one_list, "m", 2)
    assert list(found) == [STATIC, REVERSE]
    assert found[STATIC].mean_correlation("spearman") == pytest.approx(1)
    assert found[STATIC].shares("precision", 2)[0] == 1
    circle = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    distance = np.minimum(circle, 8 - circle)
    pairs = {t: {s: -float(distance[i, j]) for j, s in enumerate(NAMES) if i != j} for i, t in enumerate(NAMES)}
    found = references(random_affinity(NAMES), jt.Oracle("circle", pairs), "m", 2)
    assert found[REVERSE].mean_correlation("spearman") == pytest.approx(1)
    assert found[STATIC].mean_correlation("spearman") < 0


def test_references_are_judged_on_the_pairs_of_the_method() -> None:
    drawn = oracle(1, share=1, levels=99)
    affinity = random_affinity(NAMES)
    values = affinity["m"].copy()
    values[:, 3] = values[2, :] = np.nan
    found = references(jt.Affinity.of(NAMES, {"m": values}), drawn, "m", 2)
    curve = jt.retrieval_curve(jt.Affinity.of(NAMES, {"m": values}), drawn, relevant=2)
    for evaluation in found.values():
        assert evaluation.curve.targets == curve.targets
        np.testing.assert_array_equal(evaluation.curve.seen, curve.seen)
        np.testing.assert_array_equal(evaluation.curve.random_hits, curve.random_hits)
        assert evaluation.bands.networks is not None


def test_what_an_oracle_does_not_allow() -> None:
    """One target has no other targets; networks that are no targets have no other direction."""
    one = jt.Oracle("one", {"a": dict(zip("bcd", [1.0, 2, 3], strict=True))})
    assert references(random_affinity(NAMES), one, "m", 1) == {}
    scores = {t: dict(zip("abcd", np.random.default_rng(i).normal(size=4), strict=True)) for i, t in enumerate("xyz")}
    names = tuple("abcdxyz")
    assert list(references(random_affinity(names), jt.Oracle("other names", scores), "m", 1)) == [STATIC]
    some = jt.Oracle("some errors", scores, stderr={t: {"a": 0.1} for t in scores})
    assert noise_ceiling(random_affinity(names), some, "m", 1) is None


def measured(truth: np.ndarray, errors: np.ndarray, rng: np.random.Generator) -> jt.Oracle:
    values = truth + errors * rng.normal(size=truth.shape)
    targets, sources = [f"t{i}" for i in range(len(truth))], [f"s{j}" for j in range(truth.shape[1])]
    rows = [{t: dict(zip(sources, row.tolist(), strict=True)) for t, row in zip(targets, table, strict=True)}
            for table in (values, errors)]  # fmt: skip
    return jt.Oracle("measured", rows[0], stderr=rows[1])


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (0.2, 1.2), (1.0, 2.0)])
def test_the_ceiling_is_what_a_second_measurement_scores(low: float, high: float) -> None:
    """Known true transfer, measured twice with errors of many sizes; errors added to the scores alone score higher."""
    rng = np.random.default_rng(0)
    truth, errors = rng.normal(size=(60, 20)), rng.uniform(low, high, size=(60, 20))
    names = tuple([f"t{i}" for i in range(60)] + [f"s{j}" for j in range(20)])
    affinity, true, found, added = random_affinity(names), [], [], []
    for seed in range(4):
        first, second = measured(truth, errors, rng), measured(truth, errors, rng)
        ceiling = noise_ceiling(affinity, first, "m", 5, draws=20, seed=seed)
        assert ceiling is not None
        found.append([ceiling.curve.hits[4] / 300, *_means(ceiling.correlations)])
        noise = np.nan_to_num(first.table(first.stderr, names)) * rng.normal(size=(80, 80))
        for scores, values in (
            (true, second.table(second.scores, names)),
            (added, first.table(first.scores, names) + noise),
        ):
            drawn = jt.Affinity.of(names, {"m": values})
            scores.append([jt.precision_at_k(drawn, first, 5), *_means(jt.rank_correlations(drawn, first))])
    difference = np.mean(found, 0) - np.mean(true, 0)
    assert np.abs(difference).max() < 0.02, difference
    assert (np.mean(added, 0) - np.mean(true, 0) > np.abs(difference)).all()


def _means(correlations: dict[str, jt.RankCorrelation]) -> np.ndarray:
    """Spearman, Kendall and weighted Kendall, averaged over targets."""
    return np.mean([(c.spearman, c.kendall, c.weighted_kendall) for c in correlations.values()], axis=0)


def test_the_ceiling_of_exact_scores_is_perfect_and_draws_are_seeded() -> None:
    truth = np.random.default_rng(0).normal(size=(6, 9))
    names = tuple([f"t{i}" for i in range(6)] + [f"s{j}" for j in range(9)])
    affinity = random_affinity(names)
    exact = noise_ceiling(affinity, measured(truth, 0 * truth, np.random.default_rng(1)), "m", 3)
    assert exact is not None
    np.testing.assert_allclose(exact.curve.hits, np.minimum(np.arange(1, 10), 3) * 6)
    assert exact.mean_correlation("weighted_kendall") == pytest.approx(1)
    rough = measured(truth, 0 * truth + 0.5, np.random.default_rng(1))
    first, same, other = (noise_ceiling(affinity, rough, "m", 3, seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert same is not None
    assert other is not None
    np.testing.assert_array_equal(first.curve.hits, same.curve.hits)
    assert first.correlations == same.correlations != other.correlations


def test_targets_of_many_sources_take_fewer_draws() -> None:
    """With errors as large as the spread of the true scores, a second measurement correlates at .5."""
    truth = np.random.default_rng(0).normal(size=(3, 500))
    names = tuple([f"t{i}" for i in range(3)] + [f"s{j}" for j in range(500)])
    ceiling = noise_ceiling(random_affinity(names), measured(truth, 0 * truth + 1, np.random.default_rng(1)), "m", 5)
    assert ceiling is not None
    normal = 6 / math.pi * math.asin(0.5 / 2)  # Spearman's correlation of normal values
    assert ceiling.mean_correlation("spearman") == pytest.approx(normal, abs=0.06)


def test_correlations_of_draws_are_those_of_scipy() -> None:
    """With ties among the scores, which are no ties of the draws."""
    rng = np.random.default_rng(3)
    scores = {"t": {f"s{j}": float(rng.integers(0, 4)) for j in range(8)}}
    names = ("t", *scores["t"])
    drawn = jt.Oracle("drawn", scores, stderr={"t": dict.fromkeys(scores["t"], 0.7)})
    ceiling = noise_ceiling(random_affinity(names), drawn, "m", 2, draws=1, seed=5)
    assert ceiling is not None
    y = np.array([*scores["t"].values()])
    spread = max(y.var(ddof=1) - 0.49, 0)
    kept = spread / (spread + 0.49)
    x = y.mean() + kept * (y - y.mean()) + math.sqrt(1 + kept) * 0.7 * np.random.default_rng(5).normal(size=8)
    expected = [np.asarray(f(x, y))[0] for f in (stats.spearmanr, stats.kendalltau, stats.weightedtau)]
    found = ceiling.correlations["t"]
    np.testing.assert_allclose([found.spearman, found.kendall, found.weighted_kendall], expected, atol=1e-12)


def test_rooms() -> None:
    """The numbers of docs/rooms-results.md and docs/evaluation.md."""
    rooms = jt.Oracle.rooms()
    found = references(random_affinity(tuple(rooms.scores)), rooms, "m", 5)
    shown = {name: (e.shares("precision", 5)[0], e.mean_correlation("spearman")) for name, e in found.items()}
    assert shown[STATIC] == (pytest.approx(0.327, abs=5e-4), pytest.approx(0.329, abs=5e-4))
    assert shown[REVERSE] == (pytest.approx(0.564, abs=5e-4), pytest.approx(0.520, abs=5e-4))
    assert shown[SECOND] == (pytest.approx(0.90, abs=0.01), pytest.approx(0.90, abs=0.01))


def test_the_errors_of_rooms_leave_three_quarters_of_the_orders_significant() -> None:
    measured_losses = jt.rooms.transfers()
    significant = []
    for i in range(22):
        others = np.arange(22) != i
        loss, error = measured_losses.loss[:22][others, i], measured_losses.stderr[:22][others, i]
        own = error**2 - (error**2).min()
        pairs = list(itertools.combinations(range(21), 2))
        significant += [abs(loss[a] - loss[b]) > 1.96 * math.sqrt(own[a] + own[b]) for a, b in pairs]
        assert (np.array([*jt.Oracle.rooms().stderr[measured_losses.targets[i]].values()]) >= 0).all()
    assert np.mean(significant) == pytest.approx(0.71, abs=0.005)
