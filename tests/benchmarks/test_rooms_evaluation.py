"""The scores of `python -m benchmarks.rooms evaluate`, against known truths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.rooms import choices, scores, variants
from benchmarks.rooms.evaluate import of_first_images
from benchmarks.rooms.gradients import Representation, init, symmetry
from jaxtransfer import Affinity, Network, Oracle, affinity_matrix
from jaxtransfer.comparison.predictivity import linear_predictivity
from jaxtransfer.pge.batches import Minibatches
from jaxtransfer.pge.losses import RidgeHead
from jaxtransfer.pge.symmetry import check_symmetry
from support.helpers import quick_jit

COUNT = 12
NAMES = tuple(f"n{i}" for i in range(COUNT))


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(COUNT, COUNT))


def symmetric(seed: int) -> np.ndarray:
    return matrix(seed) + matrix(seed).T


def oracle(values: np.ndarray) -> Oracle:
    rows = {
        target: {source: float(values[i, j]) for j, source in enumerate(NAMES) if i != j}
        for i, target in enumerate(NAMES)
    }
    return Oracle("drawn", rows)


def test_agreement_is_spearmans_correlation() -> None:
    values, wanted = matrix(0), matrix(1)
    others = ~np.eye(COUNT, dtype=bool)
    pairs = (spearmanr(values[i, others[i]], wanted[i, others[i]]) for i in range(COUNT))
    expected = np.array([found.statistic for found in pairs])  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_allclose(scores.agreement(values, wanted), expected, atol=1e-12)
    np.testing.assert_allclose(scores.agreement(np.exp(wanted), wanted), 1)


def test_agreement_is_of_what_is_known() -> None:
    values, wanted = matrix(0), matrix(1)
    values[:, 3] = np.nan
    others = [i for i in range(COUNT) if i != 3]
    expected = scores.agreement(values[np.ix_(others, others)], wanted[np.ix_(others, others)])
    np.testing.assert_allclose(scores.agreement(values, wanted)[others], expected, atol=1e-12)


def test_ranks_are_places_between_minus_one_and_one() -> None:
    found = scores.ranks(matrix(0))
    assert np.isnan(np.diag(found)).all()
    np.testing.assert_allclose(np.nansum(found, 1), 0, atol=1e-12)
    np.testing.assert_array_equal(np.nanmax(found, 1), 1)
    np.testing.assert_array_equal(np.nanmin(found, 1), -1)


def test_scores_of_the_truth_and_of_chance() -> None:
    wanted = symmetric(0)
    affinities = Affinity.of(NAMES, {"truth": wanted, "chance": symmetric(1)})
    truth, chance = (scores.score(affinities, oracle(wanted), method) for method in affinities.methods)
    assert truth.p1 == truth.p5 == truth.r10 == pytest.approx(1)
    assert truth.spearman == pytest.approx(1)
    assert truth.stderr == pytest.approx(0, abs=1e-12)
    assert abs(chance.spearman) < 4 * chance.stderr
    assert chance.low < 5 / (COUNT - 1) < chance.high


@pytest.mark.slow
def test_standard_errors_of_agreement_are_those_of_other_networks() -> None:
    """Over random truths and measures that share half of their variance, the jackknife matches the spread."""
    found = []
    for seed in range(40):
        wanted = symmetric(2 * seed)
        affinity = Affinity.of(NAMES, {"half": wanted + symmetric(2 * seed + 1)})
        found.append(scores.score(affinity, oracle(wanted), "half"))
    spread = np.std([each.spearman for each in found])
    assert 0.6 < np.sqrt(np.mean([each.stderr**2 for each in found])) / spread < 1.8


def test_a_choice_on_some_targets_is_judged_on_others() -> None:
    wanted = matrix(0)
    drawn = {f"chance {i}": matrix(10 + i) for i in range(60)}
    by_chance = scores.held_out(drawn, wanted, splits=100)
    on_all = max(scores.agreement(each, wanted).mean() for each in drawn.values())
    assert by_chance["chosen"][0] < on_all / 2
    found = scores.held_out(drawn | {"truth": wanted}, wanted, splits=100)
    assert found["chosen"] == found["truth"] == (pytest.approx(1), 1)


def test_a_difference_of_choices_is_of_targets_that_had_no_part() -> None:
    wanted = matrix(0)
    chance = {f"chance {i}": matrix(10 + i) for i in range(40)}
    other = {f"chance {i}": matrix(60 + i) for i in range(40)}
    of_chance = choices.held_out_difference(chance, other, wanted, splits=200)
    assert of_chance.low < 0 < of_chance.high
    assert abs(of_chance.mean) < 3 * of_chance.stderr
    of_truth = choices.held_out_difference(chance | {"truth": wanted}, {"truth": wanted}, wanted, splits=200)
    assert of_truth == (pytest.approx(0, abs=1e-12),) * 4
    worse = choices.held_out_difference({"truth": wanted}, chance, wanted, splits=200)
    assert worse.low > 0.5


def test_the_simple_form_agrees_with_linear_predictivity() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(200, 4, 4, 3))
    layers = [seen @ rng.normal(size=(3, 5)) + noise * rng.normal(size=(200, 4, 4, 5)) + 1 for noise in (0.2, 0.5, 1)]
    simple = choices.predict(layers, layers)
    exact = linear_predictivity({str(i): layer for i, layer in enumerate(layers)}).values
    np.testing.assert_allclose(simple, exact, atol=0.03)
    ones = [np.ones((200, 4, 4))] * 3
    np.testing.assert_allclose(choices.predict(layers, layers, weights=ones), simple, atol=1e-12)
    upper = np.zeros((200, 4, 4))
    upper[:, :2] = 1
    np.testing.assert_allclose(
        choices.predict(layers, layers, weights=[upper] * 3),
        choices.predict([layer[:, :2] for layer in layers], [layer[:, :2] for layer in layers]),
        atol=1e-12,
    )


def test_maps_of_the_first_images_are_those_of_a_smaller_probe() -> None:
    rng = np.random.default_rng(0)
    networks = [
        Network(name, lambda w, x: jax.nn.relu(x @ w), rng.normal(size=(3, 4)).astype(np.float32)) for name in "abc"
    ]
    images = rng.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
    whole = affinity_matrix(networks, images, methods="input_x_gradient")
    first, expected = of_first_images(whole, 5), affinity_matrix(networks, images[:5], methods="input_x_gradient")
    np.testing.assert_allclose(first[None], expected[None], atol=1e-6)
    np.testing.assert_allclose(first.stderr(None), expected.stderr(None), atol=1e-6)
    np.testing.assert_array_equal(first.counts(None)[0, 1:], expected.counts(None)[0, 1:])


def test_maps_without_what_they_share_add_up_to_nothing() -> None:
    maps = jax.random.normal(jax.random.key(0), (4, 3, 8, 8)) + 5
    own = variants.CHANGES["less the mean map"][0](maps)
    np.testing.assert_allclose(own.sum(0), 0, atol=1e-6)
    pooled = variants.CHANGES["pooled 8 x 8"][0](maps)
    np.testing.assert_allclose(pooled[..., 0, 0], maps.mean((2, 3)), rtol=1e-5)


def test_every_change_has_its_column() -> None:
    maps = {"some": jax.random.normal(jax.random.key(0), (3, 2, 16, 16))}
    found = variants.affinities(maps)
    assert [*found] == [f"some, {column}" for column in variants.columns()]
    for each in found.values():
        np.testing.assert_allclose(np.diag(each), 1, rtol=1e-5)


@pytest.mark.slow
def test_views_share_an_encoder() -> None:
    def both(key):
        params = init(key)
        images = jax.random.uniform(key, (4, 16, 16, 3), minval=-1)
        twice = jnp.concatenate([images, images], -1)
        return Representation(flat=False)(params, images), Representation(flat=True)(params, twice)

    single, pair = quick_jit(both)(jax.random.key(0))
    np.testing.assert_allclose(pair.reshape(4, 2, 2, 128), jnp.concatenate([single, single], -1), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 2])
def test_units_that_are_exchanged_can_be(views: int) -> None:
    """For flat representations of one view and of two."""
    rng = np.random.default_rng(0)
    images, wanted = rng.normal(size=(8, 16, 16, 3 * views)).astype(np.float32), rng.normal(size=(8, 2))
    batches = Minibatches.of(images, wanted.astype(np.float32), size=8)
    check_symmetry(init, RidgeHead(Representation(flat=True)), batches, symmetry(), jax.random.key(0))
