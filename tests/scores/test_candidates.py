"""The best of several layers, chosen without counting its luck."""

import numpy as np

from jaxtransfer.comparison.statistics import pseudo_values, stderr_of_mean
from jaxtransfer.scores.candidates import best_layer
from jaxtransfer.scores.score import Score


def score_of_mean(sample: np.ndarray) -> Score:
    """The mean of a sample as a score with ten groups."""
    groups = sample.reshape(10, -1)
    without = np.array([np.delete(groups, group, 0).mean() for group in range(10)])
    return Score(float(sample.mean()), pseudo_values(sample.mean(), without))


def test_a_single_layer_keeps_its_score():
    score = Score(0.5, np.array([0.1, 0.9, 0.2, 0.4]))  # the jackknife's mean differs from the value
    best = best_layer([score])
    assert best.value == score.value
    np.testing.assert_array_equal(best.pseudo_values, score.pseudo_values)


def test_a_layer_that_is_always_best_has_its_score():
    scores = [Score(0.1, np.full(4, 0.1)), Score(0.8, np.array([0.7, 0.9, 0.8, 0.8])), Score(0.2, np.full(4, 0.2))]
    best = best_layer(scores)
    np.testing.assert_allclose(best.value, 0.8)
    np.testing.assert_array_equal(best.pseudo_values, scores[1].pseudo_values)


def test_a_layer_given_twice_and_their_order_change_nothing():
    rng = np.random.default_rng(0)
    scores = [score_of_mean(sample) for sample in rng.normal(size=(4, 30))]
    best, other = best_layer(scores), best_layer([*scores[::-1], scores[2], scores[0]])
    assert other.value == best.value
    np.testing.assert_array_equal(other.pseudo_values, best.pseudo_values)


def test_the_choice_of_a_group_does_not_see_it():
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(5, 30))
    expected = []
    for group in range(10):
        rows = slice(3 * group, 3 * group + 3)
        without = np.delete(samples, rows, 1).mean(1)
        expected.append(samples[without.argmax(), rows].mean())
    best = best_layer([score_of_mean(sample) for sample in samples])
    np.testing.assert_allclose(best.pseudo_values, expected)
    np.testing.assert_allclose(best.value, np.mean(expected))


def test_layers_of_noise_have_no_luck():
    rng = np.random.default_rng(2)
    chosen, highest = [], []
    for _ in range(200):
        scores = [score_of_mean(sample) for sample in rng.normal(size=(10, 100))]
        chosen.append(best_layer(scores))
        highest.append(max(score.value for score in scores))
    values = np.array([score.value for score in chosen])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert np.mean(highest) > 0.1
    stderrs = [stderr_of_mean(score.pseudo_values) for score in chosen]
    assert 0.5 < np.mean(stderrs) / values.std() < 1.5


def test_a_layer_without_a_score_is_not_chosen():
    good = score_of_mean(np.arange(20.0))
    assert best_layer([Score(np.nan, np.full(10, np.nan)), good]).value == good.value
