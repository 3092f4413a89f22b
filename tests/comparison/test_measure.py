"""Measures whose smaller values are nearer, and directed ones, against similarities and slow loops."""

import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

import jaxtransfer as jt
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.measure import pair_columns, pair_count, pair_indices
from jaxtransfer.runs.compare import compare
from support.helpers import affinity_of

NAMES = tuple("abcdefgh")
GAP = jt.Measure("gap", smaller_is_nearer=True, sampled="restarts")
LOSS = jt.Measure("loss", smaller_is_nearer=True, directed=True, sampled="labelled examples")


def result(measure: jt.Measure, seed: int = 0, samples: int = 15) -> MethodResult:
    """Distances of noisy samples; where directed, those of i to j and of j to i are drawn apart."""
    rng = np.random.default_rng(seed)
    rows, columns = pair_indices(len(NAMES), directed=measure.directed)
    by_sample = (1 + rng.random(len(rows)) + 0.4 * rng.normal(size=(samples, len(rows)))).astype(np.float32)
    values, stderr = np.zeros((2, len(NAMES), len(NAMES)), np.float32)
    values[rows, columns], stderr[rows, columns] = by_sample.mean(0), by_sample.std(0, ddof=1) / math.sqrt(samples)
    if not measure.directed:
        values, stderr = values + values.T, stderr + stderr.T
    return MethodResult(values, stderr, np.full(values.shape, samples), (), by_sample, measure=measure)


def negated(distances: MethodResult) -> MethodResult:
    """The same results as similarities."""
    samples = distances.pseudo_values
    assert samples is not None
    similarity = jt.Measure("similarity", directed=distances.measure.directed)
    return MethodResult(0 - distances.affinity, distances.stderr, distances.counts, (), 0 - samples, measure=similarity)


def oracle(seed: int = 1) -> jt.Oracle:
    rng = np.random.default_rng(seed)
    return jt.Oracle("truth", {t: {s: float(rng.normal()) for s in NAMES if s != t} for t in NAMES})


def affinity(result: MethodResult) -> jt.Affinity:
    return jt.Affinity(NAMES, "cosine", {"m": result})


@pytest.mark.parametrize("measure", [GAP, LOSS])
def test_distances_are_judged_as_the_same_similarities(measure: jt.Measure) -> None:
    distances = affinity(result(measure))
    similarities = affinity(negated(result(measure)))
    for target in NAMES:
        ranked, expected = (jt.certain_ranking(each, target) for each in (distances, similarities))
        assert [each._replace(affinity=-each.affinity) for each in ranked] == expected
        assert [each[:3] for each in ranked] == distances.rank(target)
        values = [value for _, value, _ in distances.rank(target)]
        assert values == sorted(values), "the nearest has the smallest value"
        assert min(values) > 0
    assert jt.probability_above(distances, "a", "b", "c") == jt.probability_above(similarities, "a", "b", "c")
    truth = oracle()
    curve, expected = (jt.retrieval_curve(each, truth, relevant=3) for each in (distances, similarities))
    np.testing.assert_array_equal(curve.hits, expected.hits)
    assert jt.rank_correlations(distances, truth) == jt.rank_correlations(similarities, truth)
    bands, expected = (jt.retrieval_bands(each, truth, relevant=3) for each in (distances, similarities))
    assert bands.images is not None
    assert bands.networks is not None
    np.testing.assert_array_equal(bands.images, expected.images)
    np.testing.assert_array_equal(bands.networks, expected.networks)
    tree, expected = (jt.task_tree(each) for each in (distances, similarities))
    np.testing.assert_array_equal(tree.linkage, expected.linkage)
    assert tree.ordered == expected.ordered
    other = affinity_of(np.random.default_rng(9).normal(size=(8, 8)), NAMES)
    found, expected = (compare({"one": each, "other": other}) for each in (distances, similarities))
    assert found.agreements == expected.agreements
    assert found.disagreements == expected.disagreements


def test_agreement_of_distances_with_similarities_is_positive() -> None:
    distances = result(GAP)
    found = compare({"gap": affinity(distances), "same": affinity(negated(distances))})
    (agreement,) = found.agreements.values()
    np.testing.assert_allclose(agreement[:2], 1)
    assert agreement.p_value < 0.01


@pytest.mark.parametrize("directed", [False, True])
def test_packed_pairs(directed: bool) -> None:
    pairs = [(i, j) for i, j in itertools.product(range(5), repeat=2) if (i != j if directed else i < j)]
    rows, columns = pair_indices(5, directed=directed)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == pairs
    assert pair_count(5, directed=directed) == len(pairs)
    for i, j in itertools.permutations(range(5), 2):
        place = int(pair_columns(5, np.array(i), np.array(j), directed=directed))
        assert pairs[place] == ((i, j) if directed else (min(i, j), max(i, j)))
    own = pair_columns(5, np.arange(5), np.arange(5), directed=directed)
    assert (np.abs(own) < len(pairs)).all(), "a network with itself stands somewhere"


def test_some_networks_of_a_directed_result() -> None:
    whole = affinity(result(LOSS))
    chosen = ["f", "b", "d"]
    some = whole.only(chosen)
    samples, kept = whole.pseudo_values("m"), some.pseudo_values("m")
    assert samples is not None
    assert kept is not None
    assert some.measure("m") == LOSS
    columns = [(t, s) for t in NAMES for s in NAMES if t != s]
    for place, pair in enumerate((t, s) for t in chosen for s in chosen if t != s):
        np.testing.assert_array_equal(kept[:, place], samples[:, columns.index(pair)])
    for i, j in itertools.product(range(3), repeat=2):
        assert some["m"][i, j] == whole["m"][NAMES.index(chosen[i]), NAMES.index(chosen[j])]


def test_orders_of_a_directed_result_by_a_slow_loop() -> None:
    """A target's row is used, and never the column in which it is the source."""
    whole = affinity(result(LOSS))
    samples = whole.pseudo_values("m")
    assert samples is not None
    columns = [(t, s) for t in NAMES for s in NAMES if t != s]
    for target, one, other in itertools.permutations(NAMES[:5], 3):
        difference = samples[:, columns.index((target, other))] - samples[:, columns.index((target, one))]
        difference = difference.astype(np.float64)
        expected = stats.t.cdf(difference.mean() / stats.sem(difference), len(difference) - 1)
        np.testing.assert_allclose(jt.probability_above(whole, target, one, other), expected, atol=1e-5)


def test_bands_of_a_directed_result_follow_a_slow_bootstrap() -> None:
    """The spread of hits over images, with every resampled matrix built and judged by itself.

    The affinities' own noise is small beside their spread, so that shrinking them changes nothing.
    """
    truth, rng = oracle(), np.random.default_rng(5)
    drawn = result(LOSS)
    samples = drawn.pseudo_values
    assert samples is not None
    samples = (samples - samples.mean(0)) * np.float32(0.3) + drawn.affinity[pair_indices(8, directed=True)]
    values = drawn.affinity.copy()
    values[pair_indices(8, directed=True)] = samples.mean(0)
    whole = affinity(MethodResult(values, drawn.stderr, drawn.counts, (), samples, measure=LOSS))
    hits = []
    for _ in range(300):
        again = values.copy()
        again[pair_indices(8, directed=True)] = samples[rng.integers(0, 15, 15)].mean(0)
        of = jt.Affinity.of(NAMES, {"m": again}, measures={"m": LOSS})
        hits.append(jt.retrieval_curve(of, truth, relevant=3).hits)
    spread = np.std(hits, axis=0, ddof=1)
    bands = jt.retrieval_bands(whole, truth, relevant=3, resamples=300)
    assert bands.images is not None
    half = (bands.images.high - bands.images.low) / 2
    wide = spread > 0.5
    assert wide.any()
    np.testing.assert_allclose(half[wide], stats.t.ppf(0.975, 14) * spread[wide], rtol=0.25)


def test_tree_of_a_directed_result_is_that_of_its_symmetric_part() -> None:
    values = result(LOSS).affinity
    mean = np.array([[(float(values[i, j]) + float(values[j, i])) / 2 for j in range(8)] for i in range(8)])
    tree = jt.task_tree(affinity(result(LOSS)))
    expected = jt.task_tree(affinity_of(mean, NAMES))
    np.testing.assert_allclose(tree.linkage, expected.linkage, rtol=1e-6)
    transposed = jt.task_tree(jt.Affinity.of(NAMES, {"m": values.T}, measures={"m": LOSS}))
    np.testing.assert_array_equal(transposed.linkage, tree.linkage)


def test_networks_without_missing_values_of_a_directed_result() -> None:
    """A source that all targets lack goes, not the targets."""
    values = result(LOSS).affinity.copy()
    values[[0, 1, 3, 4], 2] = np.nan
    holes = jt.Affinity.of(NAMES, {"m": values}, measures={"m": LOSS})
    assert holes.complete("m").names == tuple("abdefgh")


def correlation(a: np.ndarray, b: np.ndarray, order: tuple[int, ...]) -> float:
    pairs = [(i, j) for i in range(len(a)) for j in range(len(a)) if i != j]
    return float(np.corrcoef([a[i, j] for i, j in pairs], [b[order[i], order[j]] for i, j in pairs])[0, 1])


def test_directed_mantel_against_all_relabellings() -> None:
    rng = np.random.default_rng(3)
    a = rng.normal(size=(5, 5))
    b = 0.5 * a + 0.5 * rng.normal(size=(5, 5))
    every = np.array([correlation(a, b, order) for order in itertools.permutations(range(5))])
    own = correlation(a, b, tuple(range(5)))
    exact = np.mean(every >= own - 1e-12)
    found = jt.mantel_test(a, b, directed=True, permutations=5000)
    np.testing.assert_allclose(found.correlation, own)
    assert abs(found.p_value - exact) < 5 * math.sqrt(exact * (1 - exact) / 5000) + 1e-3
    assert abs(found.correlation - jt.mantel_test(a, b, permutations=9).correlation) > 0.01
    symmetric = jt.mantel_test(a + a.T, b + b.T, permutations=99)
    same = jt.mantel_test(a + a.T, b + b.T, directed=True, permutations=99)
    np.testing.assert_allclose(same, symmetric)


@pytest.mark.parametrize("measure", [GAP, LOSS, jt.Measure()])
def test_save_and_load_keep_the_measure(tmp_path, measure: jt.Measure) -> None:
    saved = affinity(result(measure))
    saved.save(tmp_path)
    loaded = jt.Affinity.load(tmp_path)
    assert loaded.measure(None) == measure
    np.testing.assert_array_equal(loaded["m"], saved["m"])
    np.testing.assert_array_equal(loaded.pseudo_values("m"), saved.pseudo_values("m"))
    assert (loaded["m"] >= 0).all()


def edited(directory, change: Callable[[dict], object]) -> None:
    file = directory / "affinity.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def test_files_that_do_not_say_what_they_hold_are_affinities(tmp_path) -> None:
    affinity(result(jt.Measure())).save(tmp_path)
    edited(tmp_path, lambda description: description.pop("measures"))
    assert jt.Affinity.load(tmp_path).measure("m") == jt.Measure()


def test_damaged_measures(tmp_path) -> None:
    affinity(result(GAP)).save(tmp_path)
    edited(tmp_path, lambda description: description["measures"]["m"].update(directed=True))
    with pytest.raises(jt.JaxTransferError, match=r"pseudo_values_m.npy is of other networks"):
        jt.Affinity.load(tmp_path)
    edited(tmp_path, lambda description: description["measures"]["m"].update(sampled="guesses"))
    with pytest.raises(
        jt.JaxTransferError, match="sampled should be 'images', 'restarts' or 'labelled examples', not 'guesses'"
    ):
        jt.Affinity.load(tmp_path)


def test_wrong_measures() -> None:
    with pytest.raises(jt.JaxTransferError, match="no matrix of the method 'n'; there are: m"):
        jt.Affinity.of(NAMES, {"m": np.eye(8)}, measures={"n": GAP})
