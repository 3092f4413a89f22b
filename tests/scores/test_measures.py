"""The registry of measures: properties of all of them, pseudo-values, and what is refused."""

import numpy as np
import pytest

from jaxtransfer import JaxTransferError
from jaxtransfer.scores.measures import MEASURES, check_target_type, measure_spec, run_measures
from jaxtransfer.scores.target import Target

_RANDOM = np.random.default_rng(0)
_LABELS = _RANDOM.permutation(np.arange(90) % 3)
_TARGET = Target.of_labels(_LABELS)
_FEATURES = np.maximum(
    _RANDOM.normal(size=(90, 12)) * np.linspace(0.2, 1, 12) + 0.5 * _RANDOM.normal(size=(3, 12))[_LABELS] + 0.5, 0
)
_WIDE = np.maximum(_RANDOM.normal(size=(90, 120)) + 0.5 * _RANDOM.normal(size=(3, 120))[_LABELS], 0)
_PROBABILITIES = _RANDOM.dirichlet(np.ones(5), 90)
_OF_FEATURES = [name for name, spec in MEASURES.items() if spec.takes == "examples"]
_OF_PREDICTIONS = [name for name, spec in MEASURES.items() if spec.takes == "predictions"]
_SCALE_MATTERS = ("sfda", "pactran", "gbc")


def _values(features: np.ndarray, target: Target = _TARGET) -> np.ndarray:
    scores = run_measures(_OF_FEATURES, target, features=features)
    return np.array([score.value for score in scores.values()])


@pytest.mark.parametrize("features", [_FEATURES, _WIDE], ids=["tall", "wide"])
def test_rotated_units_have_the_same_scores(features: np.ndarray) -> None:
    rotation = np.linalg.qr(_RANDOM.normal(size=(features.shape[1],) * 2))[0]
    np.testing.assert_allclose(_values(features @ rotation), _values(features), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", _OF_FEATURES)
def test_features_times_a_number_have_the_same_score_unless_documented(name: str) -> None:
    spec = MEASURES[name]
    value, scaled = (spec.run(factor * _FEATURES, _TARGET).value for factor in (1, 0.02))
    if name in _SCALE_MATTERS:
        assert abs(scaled - value) > 1e-3 * abs(value)
    else:
        np.testing.assert_allclose(scaled, value, rtol=1e-6)


def test_the_order_of_classes_does_not_matter() -> None:
    renamed = Target(
        "classes", np.array([2, 0, 1])[_TARGET.values], _TARGET.group, tuple(_TARGET.classes[i] for i in (1, 2, 0))
    )
    np.testing.assert_allclose(_values(_FEATURES, renamed), _values(_FEATURES), rtol=1e-4)
    for name in _OF_PREDICTIONS:
        scores = [MEASURES[name].run(_PROBABILITIES, target).value for target in (renamed, _TARGET)]
        np.testing.assert_allclose(*scores, rtol=1e-12)


def test_a_copied_network_ties_whatever_was_scored_before() -> None:
    """No measure depends on the other networks, as those do that scale scores over a pool."""
    first = run_measures(_OF_FEATURES, _TARGET, features=_FEATURES)
    run_measures(_OF_FEATURES, _TARGET, features=100 * _WIDE)
    copied = run_measures(_OF_FEATURES, _TARGET, features=_FEATURES.copy())
    for name, score in first.items():
        assert copied[name].value == score.value
        assert (copied[name].pseudo_values == score.pseudo_values).all()


def test_features_and_labels_stay_as_they_are() -> None:
    features, probabilities, labels = _FEATURES.copy(), _PROBABILITIES.copy(), _TARGET.values.copy()
    names = [*_OF_FEATURES, *_OF_PREDICTIONS]
    run_measures(names, _TARGET, features=features, probabilities=probabilities)
    assert (features == _FEATURES).all()
    assert (probabilities == _PROBABILITIES).all()
    assert (_TARGET.values == labels).all()


@pytest.mark.parametrize("features", [_FEATURES, _WIDE], ids=["tall", "wide"])
@pytest.mark.parametrize("name", [name for name in _OF_FEATURES if name not in ("nleep", "parc")])
def test_pseudo_values_are_those_of_the_function_without_a_group(name: str, features: np.ndarray) -> None:
    """All groups are left out of sums over all examples; here a measure is computed anew without one."""
    import jaxtransfer.scores as functions

    score = MEASURES[name].run(features, _TARGET)
    kept = _TARGET.group != 3
    without = getattr(functions, name)(features[kept], _LABELS[kept])
    np.testing.assert_allclose(score.value, getattr(functions, name)(features, _LABELS), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(score.pseudo_values[3], 10 * score.value - 9 * without, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in (*_OF_FEATURES, *_OF_PREDICTIONS) if name != "pactran"])
def test_pseudo_values_average_to_about_the_value(name: str) -> None:
    """They differ by the jackknife's estimate of the part of a score that falls like 1 / n, as one term of PACTran."""
    random = np.random.default_rng(1)
    labels = np.arange(240) % 3
    features = random.normal(size=(240, 8)) + 0.5 * random.normal(size=(3, 8))[labels]
    spec = MEASURES[name]
    values = random.dirichlet(np.ones(5), 240) if spec.needs_probabilities else features
    score = spec.run(values, Target.of_labels(labels))
    stderr = score.pseudo_values.std(ddof=1) / np.sqrt(10)
    assert score.pseudo_values.shape == (10,)
    assert 0 < stderr < 0.4 * abs(score.value)
    assert abs(score.pseudo_values.mean() - score.value) < max(3 * stderr, 0.05 * abs(score.value))


def test_places_are_averaged_and_examples_that_are_not_finite_are_left_out() -> None:
    grids = _FEATURES[:, None, None] + np.array([[0.5], [-0.5]])[..., None]
    grids[7, 0, 0, 2] = np.nan
    group = _TARGET.group.copy()
    group[7] = -1
    names = ["logme", "hscore", "gbc"]
    scores = run_measures(names, _TARGET, features=grids.astype(np.float32))
    expected = run_measures(names, Target("classes", _TARGET.values, group, _TARGET.classes), features=_FEATURES)
    for name in names:
        np.testing.assert_allclose(scores[name].value, expected[name].value, rtol=1e-4)


@pytest.mark.parametrize("units", [1, 2, 50])
def test_few_examples_have_finite_scores(units: int) -> None:
    target = Target.of_labels(np.array([0, 0, 1, 1]))
    for features in (_RANDOM.normal(size=(4, units)), np.zeros((4, units))):
        probabilities = np.full((4, 3), 1 / 3)
        names = [*_OF_FEATURES, *_OF_PREDICTIONS]
        for score in run_measures(names, target, features=features, probabilities=probabilities).values():
            assert np.isfinite(score.value)
            assert np.isfinite(score.pseudo_values).all()


@pytest.mark.parametrize("labels", [_RANDOM.normal(size=(90, 2)), _RANDOM.integers(2, size=(90, 4)).astype(float)])
def test_logme_scores_numbers_and_several_labels_an_image(labels: np.ndarray) -> None:
    labels[:5, 1] = np.nan
    score = MEASURES["logme"].run(_FEATURES, Target.of_labels(labels))
    assert np.isfinite([score.value, *score.pseudo_values]).all()


def test_a_measure_says_which_labels_it_allows() -> None:
    with pytest.raises(
        JaxTransferError, match=r"leep needs labels that are classes, and these are numbers; there are: .*logme"
    ):
        check_target_type("leep", "numbers")
    with pytest.raises(JaxTransferError, match="logme needs labels that are classes or numbers or several labels"):
        MEASURES["logme"].run(_FEATURES, Target("dense", np.zeros((90, 2, 2, 1)), _TARGET.group))


def test_names_and_inputs_that_do_not_exist_are_refused() -> None:
    with pytest.raises(JaxTransferError, match="There is no measure 'logmee'; there are: logme, ridge"):
        measure_spec("logmee")
    with pytest.raises(JaxTransferError, match="leep needs the probabilities of the network's own classes"):
        run_measures(["leep"], _TARGET, features=_FEATURES)
    with pytest.raises(JaxTransferError, match="logme needs features"):
        run_measures(["logme"], _TARGET, probabilities=_PROBABILITIES)


def test_every_measure_is_described() -> None:
    for name, spec in MEASURES.items():
        assert spec.name == name
        assert spec.summary.endswith(".")
        assert spec.source
