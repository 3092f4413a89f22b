"""Rectangles are judged as the square matrices that hold them, and their bands hold what they say."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

import jaxtransfer as jt
from jaxtransfer.comparison.affinity import MethodResult
from jaxtransfer.comparison.measure import pair_indices
from jaxtransfer.evaluation.references import REVERSE, SECOND, STATIC, evaluate_all
from jaxtransfer.evaluation.summary import Evaluation

TARGETS, SOURCES = tuple(f"t{i}" for i in range(6)), tuple(f"s{j}" for j in range(9))
SCORE = jt.Measure("score", directed=True, sampled="labelled examples")


def rectangle(targets: tuple[str, ...], sources: tuple[str, ...], samples: int = 12) -> jt.Affinity:
    rng = np.random.default_rng(0)
    shape = len(targets), len(sources)
    drawn = rng.normal(size=(samples, shape[0] * shape[1])) + rng.normal(size=shape).ravel()
    drawn[2, 3] = np.nan
    values = np.nanmean(drawn, 0).reshape(shape).astype(np.float32)
    stderr = (np.nanstd(drawn, 0, ddof=1) / math.sqrt(samples)).reshape(shape).astype(np.float32)
    result = MethodResult(values, stderr, np.full(shape, 90), (), drawn.astype(np.float32), measure=SCORE)
    return jt.Affinity(sources, "cosine", {"m": result}, targets=targets)


def embedded(part: jt.Affinity, names: tuple[str, ...], own: dict[str, str]) -> jt.Affinity:
    """The square matrix of all names that has the values of a rectangle, and nothing elsewhere."""
    count, samples = len(names), part.pseudo_values("m")
    assert samples is not None
    values = np.full((count, count), np.nan, np.float32)
    stderr, counts, packed = np.zeros_like(values), np.zeros((count, count), int), {}
    for i, target in enumerate(part.targets):
        for j, source in enumerate(part.sources):
            cell = names.index(own.get(target, target)), names.index(own.get(source, source))
            if cell[0] != cell[1]:
                values[cell], stderr[cell], counts[cell] = part["m"][i, j], part.stderr("m")[i, j], 90
                packed[cell] = samples[:, i * len(part.sources) + j]
    nothing = np.full(len(samples), np.nan, np.float32)
    columns = [packed.get((i, j), nothing) for i, j in zip(*pair_indices(count, directed=True), strict=True)]
    result = MethodResult(values, stderr, counts, (), np.stack(columns, 1), measure=SCORE)
    return jt.Affinity(names, "cosine", {"m": result})


def oracle(targets: tuple[str, ...], sources: tuple[str, ...], own: dict[str, str]) -> jt.Oracle:
    """Random transfer; also, wrongly, of a task to itself. The names in `own` stand for others."""
    rng = np.random.default_rng(1)
    rows, columns = ([own.get(name, name) for name in names] for names in (targets, sources))
    scores = {t: {s: float(rng.normal()) for s in columns} for t in rows}
    return jt.Oracle("drawn", scores, own, {t: dict.fromkeys(columns, 0.3) for t in rows})


@pytest.mark.parametrize("shared", [{}, {"t1": "s4", "t5": "s0"}], ids=["apart", "two targets are sources"])
def test_a_rectangle_is_judged_as_the_square_matrix_that_holds_it(shared: dict[str, str]) -> None:
    """A target that the oracle knows under the name of a source is not its own source."""
    part, truth = rectangle(TARGETS, SOURCES), oracle(TARGETS, SOURCES, shared)
    square = embedded(part, (*SOURCES, *(t for t in TARGETS if t not in shared)), shared)
    found = evaluate_all(part, truth, ["m"], 3)
    expected = evaluate_all(square, truth, ["m"], 3)
    assert set(found.references) >= {STATIC, SECOND}
    assert (REVERSE in found.references) == bool(shared)
    assert found.references.keys() == expected.references.keys()

    def by_target(evaluation: Evaluation) -> dict[str, jt.RankCorrelation]:
        return {truth.own_name(target): c for target, c in evaluation.correlations.items()}

    for name, one in (found.by_method | found.references).items():
        other = (expected.by_method | expected.references)[name]
        if name == SECOND:  # other draws, since the rows are others
            np.testing.assert_allclose(one.curve.hits, other.curve.hits, atol=2)
            continue
        np.testing.assert_array_equal(one.curve.hits, other.curve.hits)
        np.testing.assert_array_equal(one.curve.seen, other.curve.seen)
        assert by_target(one) == by_target(other)
        assert one.bands.networks is not None
        assert other.bands.networks is not None
        np.testing.assert_allclose(one.bands.networks, other.bands.networks, atol=1e-9)
    images, same = found.by_method["m"].bands.images, expected.by_method["m"].bands.images
    assert images is not None
    assert same is not None
    np.testing.assert_allclose(images, same, atol=1e-9)


def test_orders_by_a_slow_loop() -> None:
    """The source with the target's own name has a place like all others."""
    sources = (*SOURCES[:4], "t1")
    affinity = rectangle(TARGETS, sources)
    samples = affinity.pseudo_values("m")
    assert samples is not None
    for i, target in enumerate(TARGETS):
        ranked = jt.certain_ranking(affinity, target)
        assert {source.name for source in ranked} == {*sources}
        assert ranked[-1].above_next is None
        for one, other in itertools.pairwise(ranked):
            first, second = (samples[:, i * 5 + sources.index(each.name)].astype(float) for each in (one, other))
            difference = (first - second)[~np.isnan(first - second)]
            t = (one.affinity - other.affinity) / stats.sem(difference)
            expected = stats.t.cdf(t, len(difference) - 1)
            assert one.above_next == pytest.approx(expected, abs=1e-5)
            assert jt.probability_above(affinity, target, one.name, other.name) == one.above_next
            assert one.more_images is not None
            needed = 90 * (stats.t.ppf(0.95, len(difference) - 1) / t) ** 2
            assert one.more_images == pytest.approx(max(0, math.ceil(needed) - 90), abs=1)


@pytest.mark.parametrize(("targets", "sources"), [(40, 12), (8, 25)])
def test_bands_over_networks_hold_95_percent(targets: int, sources: int) -> None:
    """Over K and 250 worlds of other targets and sources: the mean of the other worlds."""
    hits, bands = [], []
    for seed in range(250):
        rng = np.random.default_rng(seed)
        tasks, networks = rng.normal(size=(targets, 4)), rng.normal(size=(sources, 4))
        mistaken = rng.normal(size=sources)  # alike for all targets, which are therefore not independent
        scores = tasks @ networks.T / 2 + 0.5 * rng.normal(size=(targets, sources))
        seen = tasks @ networks.T / 2 + mistaken + 0.5 * rng.normal(size=(targets, sources))
        rows, columns = [f"t{i}" for i in range(targets)], [f"s{j}" for j in range(sources)]
        truth = jt.Oracle(
            "truth", {t: dict(zip(columns, row.tolist(), strict=True)) for t, row in zip(rows, scores, strict=True)}
        )
        affinity = jt.Affinity.of(columns, {"m": seen}, targets=rows)
        hits.append(jt.retrieval_curve(affinity, truth, relevant=3).hits[:-1])
        band = jt.retrieval_bands(affinity, truth, relevant=3).networks
        assert band is not None
        bands.append(band)
    low, high = (np.array([getattr(band, edge)[:-1] for band in bands]) for edge in ("low", "high"))
    mean = np.mean(hits, axis=0)
    coverage = ((low <= mean) & (mean <= high)).mean()
    assert 0.92 < coverage < 0.99, coverage


def test_a_tree_needs_networks_that_are_compared_with_one_another() -> None:
    with pytest.raises(jt.JaxTransferError, match="only networks that are compared with one another have a tree"):
        jt.task_tree(rectangle(TARGETS, SOURCES))


def test_methods_without_values_for_the_targets_of_an_oracle_do_not_end_the_evaluation_of_others() -> None:
    values = rectangle(TARGETS, SOURCES)["m"]
    elsewhere = np.where(np.arange(len(TARGETS))[:, None] < 3, np.nan, values)
    both = jt.Affinity.of(
        SOURCES, {"elsewhere": elsewhere, "m": values}, targets=TARGETS, measures={"elsewhere": SCORE, "m": SCORE}
    )
    truth = jt.Oracle("first tasks", {t: {s: float(i) for i, s in enumerate(SOURCES)} for t in TARGETS[:3]})
    with pytest.warns(UserWarning, match="first tasks has no target that these methods rank: elsewhere"):
        evaluations = evaluate_all(both, truth, both.methods, 3)
    assert [*evaluations.by_method] == ["m"]
    with pytest.raises(jt.JaxTransferError, match="scores no target here"):
        evaluate_all(both, truth, ["elsewhere"], 3)
