import dataclasses

import numpy as np
import pytest

from jaxtransfer import JaxTransferError, PrincipalGradient, gap
from jaxtransfer.pge.estimator import Recipe
from jaxtransfer.pge.gap import FORMS
from jaxtransfer.pge.statistics import inner_products, jackknife, plain, unbiased
from jaxtransfer.pge.symmetry import orbits
from support.helpers import quick_cases

_RECIPE = Recipe("w 30", "1", "loss", "none", "1 per batch")


def sampled(mean, noise, seed, groups=16, restarts=160, **changes):
    """What an estimation would give whose restarts have this mean and this variance, summed over coordinates."""
    rng = np.random.default_rng(seed)
    spread = (noise / len(mean) / (restarts / groups)) ** 0.5
    means = mean + spread * rng.normal(size=(groups, len(mean)))
    gradient = PrincipalGradient(means.astype(np.float32), restarts, _RECIPE, orbits({"w": np.zeros(len(mean))}, None))
    return dataclasses.replace(gradient, **changes)


def directions(seed=0):
    rng = np.random.default_rng(seed)
    s, t = rng.normal(size=(2, 30))
    return s, s + 0.7 * t


def exact(s, t, form):
    norms = np.linalg.norm(s), np.linalg.norm(t)
    return {
        "pge": np.linalg.norm(s - t) / (norms[0] * norms[1]),
        "normalized": np.linalg.norm(s / norms[0] - t / norms[1]),
        "cosine": 1 - s @ t / norms[0] / norms[1],
    }[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("biased", [False, True])
def test_without_noise_it_is_the_formula(form, biased):
    s, t = directions()
    estimate = gap(sampled(s, 0, 0), sampled(t, 0, 1), form, biased=biased)
    np.testing.assert_allclose(estimate.value, exact(s, t, form), rtol=1e-5)
    assert estimate.stderr < 1e-6
    assert gap(sampled(s, 0, 0), sampled(s, 0, 0), form, biased=biased).value < 1e-3


def test_pge_is_a_distance_of_inverted_gradients():
    s, t = directions()
    inverted = np.linalg.norm(s / (s @ s) - t / (t @ t))
    np.testing.assert_allclose(gap(sampled(s, 0, 0), sampled(t, 0, 1)).value, inverted, rtol=1e-5)


@pytest.mark.parametrize("form", quick_cases(FORMS, "pge"))
def test_noise_moves_the_plain_gap_and_not_ours(form):
    s, t = directions()
    noise = 8 * 160 * (s @ s) / 30
    pairs = [(sampled(s, noise, 2 * i), sampled(t, noise, 2 * i + 1)) for i in range(400)]
    ours = [gap(*pair, form) for pair in pairs]
    values = np.array([estimate.value for estimate in ours])
    truth = exact(s, t, form)
    # A ratio of unbiased numbers is biased by less than its own spread over many runs.
    assert abs(np.median(values) - truth) < 0.25 * values.std()
    theirs = np.array([gap(*pair, form, biased=True).value for pair in pairs])
    assert abs(np.median(theirs) - truth) > 2 * abs(np.median(values) - truth)
    errors = np.array([estimate.stderr for estimate in ours])
    assert 0.8 < np.sqrt(np.mean(errors**2)) / values.std() < 1.6
    covered = np.abs(values - truth) < 2 * errors
    assert 0.9 < covered.mean() <= 1


def test_cross_group_products_are_unbiased_and_plain_ones_are_not():
    s, _ = directions()
    gradients = [sampled(s, 300 * 160, seed) for seed in range(2000)]
    values = np.array([gradient.squared_norm.value for gradient in gradients])
    assert abs(values.mean() - s @ s) < 4 * values.std() / len(values) ** 0.5
    plain_values = np.array([plain(gradient._products) for gradient in gradients])
    np.testing.assert_allclose(plain_values.mean() - s @ s, 300, rtol=0.05)
    noise = np.array([gradient.noise_per_restart for gradient in gradients])
    np.testing.assert_allclose(noise.mean(), 300 * 160, rtol=0.02)


@pytest.mark.parametrize(("noise", "low", "high"), [(3 * 160, 0.9, 1.1), (3000 * 160, 1.2, 1.6)])
def test_jackknife_errors_are_right_or_too_large(noise, low, high):
    s, _ = directions()
    norms = [sampled(s, noise, seed).squared_norm for seed in range(2000)]
    ratio = np.sqrt(np.mean([norm.stderr**2 for norm in norms])) / np.std([norm.value for norm in norms])
    assert low < ratio < high


def test_equal_tasks_have_a_gap_of_about_nothing_with_an_error():
    s, _ = directions()
    noise = 160 * (s @ s) / 10
    estimates = [gap(sampled(s, noise, 2 * i), sampled(s, noise, 2 * i + 1), "normalized") for i in range(300)]
    assert any(estimate.value == 0 for estimate in estimates)
    assert all(estimate.stderr > 0 for estimate in estimates)
    assert np.mean([estimate.value < 2 * estimate.stderr for estimate in estimates]) > 0.9


def test_split_half_and_restarts_needed():
    s, _ = directions()
    noise = 5 * (s @ s) * 160
    gradients = [sampled(s, noise, seed, groups=8) for seed in range(1000)]
    halves = []
    for gradient in gradients:
        first, second = gradient.groups[:4].mean(0), gradient.groups[4:].mean(0)
        halves.append((first @ second, np.linalg.norm(first) * np.linalg.norm(second)))
    products, norms = np.mean(halves, axis=0)
    np.testing.assert_allclose(np.median([gradient.split_half for gradient in gradients]), products / norms, atol=0.03)
    np.testing.assert_allclose(np.median([gradient.signal_to_noise for gradient in gradients]), 1 / 5, rtol=0.15)
    np.testing.assert_allclose(np.median([gradient.restarts_needed(10) for gradient in gradients]), 50 * 160, rtol=0.15)


def test_products_are_summed_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 1000)).astype(np.float32)
    monkeypatch.setattr("jaxtransfer.pge.statistics._COLUMNS", 300)
    np.testing.assert_allclose(inner_products(a, b), a.astype(np.float64) @ b.T.astype(np.float64))


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=12)
    estimate = jackknife(lambda product: float(np.diag(product).mean()), np.diag(values))
    np.testing.assert_allclose(estimate.stderr, values.std(ddof=1) / 12**0.5)
    assert unbiased(np.ones((5, 5))) == 1


@pytest.mark.parametrize("field", Recipe._fields)
def test_different_recipes_are_refused(field):
    s, t = directions()
    other = sampled(t, 0, 1, recipe=_RECIPE._replace(**{field: "another"}))
    with pytest.raises(JaxTransferError, match=f"these differ in {field}: .* and another"):
        gap(sampled(s, 0, 0), other)


def test_different_groups_and_unknown_forms_are_refused():
    s, t = directions()
    with pytest.raises(JaxTransferError, match="16 and 8 groups"):
        gap(sampled(s, 0, 0), sampled(t, 0, 1, groups=8))
    with pytest.raises(JaxTransferError, match="no form of gap 'euclid'"):
        gap(sampled(s, 0, 0), sampled(t, 0, 1), "euclid")  # pyright: ignore[reportArgumentType]


def test_what_is_not_resolved_has_no_gap():
    s, t = directions()
    noisy = next(
        gradient for gradient in (sampled(0 * s, 100, seed) for seed in range(20)) if gradient.squared_norm.value < 0
    )
    with pytest.raises(JaxTransferError, match="target's principal gradient is not resolved"):
        gap(sampled(t, 0, 1), noisy)
    assert noisy.restarts_needed() == np.inf
    assert "Not resolved" in noisy.summary()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_resolved_only_with_all_groups_has_an_infinite_error(form):
    s, t = directions()

    def hangs_on_one(gradient):
        products = gradient._products
        without = [np.delete(np.delete(products, i, 0), i, 1) for i in range(len(products))]
        return unbiased(products) > 0 > min(map(unbiased, without))

    barely = next(
        gradient for gradient in (sampled(0.1 * s, 100, seed) for seed in range(200)) if hangs_on_one(gradient)
    )
    assert gap(barely, sampled(t, 0, 1), form).stderr == np.inf
    assert np.isfinite(gap(barely, sampled(t, 0, 1), form, biased=True).stderr)


def test_save_and_load(tmp_path):
    import jax.numpy as jnp

    s, t = directions()

    def init(key):
        return {"w": jnp.zeros(30)}

    recipe = _RECIPE._replace(backbone="['w'] 30")
    saved = sampled(s, 3, 0, recipe=recipe, control=sampled(t, 3, 1, recipe=recipe))
    saved.save(tmp_path / "task.npz")
    loaded = PrincipalGradient.load(tmp_path / "task.npz", init)
    np.testing.assert_array_equal(loaded.groups, saved.groups)
    assert loaded.summary() == saved.summary()
    assert loaded.recipe == recipe
    assert [file.name for file in tmp_path.iterdir()] == ["task.npz"]
    with pytest.raises(JaxTransferError, match="another backbone or symmetry"):
        PrincipalGradient.load(tmp_path / "task.npz", init, {"w": ("units",)})
    (tmp_path / "task.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(JaxTransferError, match="holds no principal gradient"):
        PrincipalGradient.load(tmp_path / "task.npz", init)
