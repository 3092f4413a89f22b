"""The scores on Rooms that the package states, and what they decide."""

import pytest

import jaxtransfer as jt
from benchmarks.rooms.__main__ import RESULTS
from benchmarks.rooms.evaluate import packaged_scores
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.evaluation.rooms_scores import RANDOM, best_first, percent, reason_for_first, rooms_scores


def test_the_package_states_the_results_of_the_benchmark():
    assert rooms_scores() == packaged_scores(RESULTS)
    assert rooms_scores()[RANDOM].p5 == round(5 / 21, 4)


def test_the_best_come_first():
    ordered = best_first(("own", "epsilon_lrp", "svcca", "rsa", "linear_predictivity"))
    assert ordered == ("linear_predictivity", "rsa", "epsilon_lrp", "own", "svcca")
    correlations = [score.spearman for score in rooms_scores().values()]
    assert correlations == sorted(correlations, reverse=True)
    assert next(iter(rooms_scores())) == AffinityOptions().methods[0]


@pytest.mark.parametrize(
    ("methods", "start", "others"),
    [
        (
            ("linear_predictivity", *jt.METHODS),
            "{0} comes first because it predicts transfer best on Rooms",
            jt.METHODS,
        ),
        (jt.METHODS, "{0} comes first because it predicts transfer best of these on Rooms", jt.METHODS[1:]),
        (("own", "rsa", "cka"), "{0} comes first because it predicts transfer best of these on Rooms", ["cka"]),
        (["rsa", "own"], "On Rooms {0} finds", []),
    ],
)
def test_the_reason_has_the_numbers(methods, start, others):
    scores, first = rooms_scores(), best_first(methods)[0]
    sentence = reason_for_first(methods)
    assert sentence is not None
    assert sentence.startswith(start.format(first))
    assert not others or f"(rank correlation {scores[first].spearman:.2f})" in sentence
    assert f"finds {percent(scores[first].p5)} of a target's five best sources" in sentence
    assert sentence.endswith(f"a random order {percent(scores[RANDOM].p5)}.")
    best = next(iter(scores))
    assert (f"{best} {percent(scores[best].p5)}," in sentence) == (first != best)
    if others:
        low, high = (percent(extreme(scores[method].p5 for method in others)) for extreme in (min, max))
        assert (f"here {low} to {high}," if low != high else f" {low},") in sentence


def test_methods_without_a_score_give_no_reason():
    assert reason_for_first(["gap", "own"]) is None
    assert best_first(["own", "gap"]) == ("own", "gap")
