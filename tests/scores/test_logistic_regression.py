"""Logistic regression against scikit-learn and fold by fold in double precision, and its properties."""

import dataclasses

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores import logistic_regression as module
from jaxtransfer.scores.logistic_regression import PENALTIES, logistic
from jaxtransfer.scores.target import Target

Array = np.ndarray


def clusters(n: int = 60, classes: int = 3, units: int = 5, spread: float = 1.5) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % classes)
    return rng.normal(size=(classes, units))[labels] + spread * rng.normal(size=(n, units)) + 2, labels


def columns(n: int = 60) -> tuple[Array, Array]:
    """Several labels an image, some of them missing."""
    x, labels = clusters(n)
    y = np.stack([labels == 0, labels > 0, np.random.default_rng(1).random(n) < 0.2], 1).astype(float)
    y[:7, 0] = y[20:24, 2] = np.nan
    return x, y


def slow(x: Array, y: Array, group: Array, one_hot: bool) -> tuple[float, Array]:
    """The value and pseudo-values; y [n, columns], NaN: missing."""
    x = x - x.mean(0)
    x = x / np.sqrt(np.square(x).sum(1).mean())

    def log_odds(left_out: list[int], penalty: float, tested: Array) -> Array:
        """Fits without any trick; a column that does not vary in the fit has infinite odds."""
        fit = ~np.isin(group, left_out)
        result = np.zeros((len(tested), y.shape[1]))
        varying = [column for column in range(y.shape[1]) if len(np.unique(y[fit, column])) > 1]
        for column in set(range(y.shape[1])) - {*varying}:
            result[:, column] = np.inf if np.nanmax(y[fit, column]) else -np.inf
        for some in [varying] if one_hot else [[column] for column in varying]:
            known = fit & ~np.isnan(y[:, some[0]])
            features, labels = x[known], y[known][:, some]

            def loss(flat: Array, features=features, labels=labels) -> tuple[float, Array]:
                weights = flat.reshape(x.shape[1] + 1, -1)
                logits = features @ weights[1:] + weights[0]
                probabilities = scipy.special.softmax(logits, axis=1) if one_hot else scipy.special.expit(logits)
                of_labels = probabilities if one_hot else np.where(labels, probabilities, 1 - probabilities)
                value = -np.log(of_labels[labels == 1] if one_hot else of_labels).sum() / len(features)
                gradient = np.concatenate([np.ones((len(features), 1)), features], 1).T @ (probabilities - labels)
                gradient /= len(features)
                gradient[1:] += penalty * weights[1:]
                return value + penalty / 2 * np.square(weights[1:]).sum(), gradient.ravel()

            start = np.zeros((x.shape[1] + 1) * len(some))
            weights = scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
            weights = weights.reshape(x.shape[1] + 1, -1)
            result[:, some] = x[tested] @ weights[1:] + weights[0]
        return result

    def log_loss(odds: Array, tested: Array) -> float:
        seen = np.isfinite(odds[0])
        labels, odds = y[tested][:, seen], odds[:, seen]
        if one_hot:
            return -(labels * scipy.special.log_softmax(odds, axis=1)).sum()
        known = ~np.isnan(labels)
        return -np.log(scipy.special.expit(np.where(labels == 1, odds, -odds)))[known].sum()

    def judge(odds: list[Array], tested: list[Array]) -> float:
        all_odds, truth = np.concatenate(odds), y[np.concatenate(tested)]
        if one_hot:
            return float((all_odds.argmax(1) == truth.argmax(1)).mean())
        of_columns = []
        for column in range(y.shape[1]):
            known = ~np.isnan(truth[:, column])
            score, hit = all_odds[known, column], truth[known, column] == 1
            precisions = [hit[score >= threshold].mean() for threshold in score[hit]]
            of_columns.append(np.mean(precisions))
        return float(np.mean(of_columns))

    folds = range(group.max() + 1)
    rows = [np.flatnonzero(group == fold) for fold in folds]
    own, without = [], []
    for fold in folds:
        others = [other for other in folds if other != fold]
        inner = [[log_odds([fold, other], penalty, rows[other]) for other in others] for penalty in PENALTIES]
        losses = [sum(log_loss(o, rows[k]) for o, k in zip(odds, others, strict=True)) for odds in inner]
        best = int(np.argmin(losses))
        without.append(judge(inner[best], [rows[k] for k in others]))
        own.append(log_odds([fold], PENALTIES[best], rows[fold]))
    value = judge(own, rows)
    return value, len(folds) * value - (len(folds) - 1) * np.array(without)


@pytest.fixture
def few_penalties(monkeypatch) -> None:
    """Three penalties, and a solution that is as exact as the slow one."""
    monkeypatch.setattr(module, "PENALTIES", np.array([1e-1, 1e-2, 1e-3]))
    monkeypatch.setattr(f"{__name__}.PENALTIES", module.PENALTIES)
    monkeypatch.setattr(module, "_TOLERANCE", 1e-8)


def in_folds(labels: Array, folds: int = 4) -> Target:
    """A target with few folds, so with few fits."""
    target = Target.of_labels(labels)
    return dataclasses.replace(target, group=np.where(target.group < 0, -1, target.group % folds))


@pytest.mark.usefixtures("few_penalties")
class TestAgainstSlow:
    def test_classes(self):
        x, labels = clusters(24)
        labels[labels == 2] = 1
        labels[[3, 8]] = 2  # two examples: the fit without their folds has not seen the class
        target = in_folds(labels)
        value, samples = slow(x, np.eye(3)[target.values], target.group, one_hot=True)
        score = logistic(x, target)
        assert score.value == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(score.pseudo_values, samples, atol=1e-9)

    def test_several_labels_an_image(self):
        x, y = columns(40)
        target = in_folds(y)
        value, samples = slow(x, y, target.group, one_hot=False)
        score = logistic(x, target)
        assert score.value == pytest.approx(value, rel=1e-9)
        np.testing.assert_allclose(score.pseudo_values, samples, atol=1e-7)


@pytest.mark.parametrize("units", [5, 90])
@pytest.mark.parametrize("one_hot", [True, False])
def test_log_odds_are_those_of_scikit_learn(units, one_hot):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = clusters(units=units)
    scaled = x - x.mean(0)
    scaled /= np.sqrt(np.square(scaled).sum(1).mean())
    values = np.eye(3)[labels]
    fits = module._fits(module._Axes.of(x), values, np.ones(60, bool), PENALTIES[:5], one_hot)
    for fit, penalty in zip(fits, PENALTIES, strict=False):
        odds = fit.predict(module._Axes.of(x), np.ones(60, bool))
        model = linear_model.LogisticRegression(C=1 / (penalty * 60), tol=1e-8, max_iter=10000)
        if one_hot:
            expected = model.fit(scaled, labels).predict_log_proba(scaled)
            odds = scipy.special.log_softmax(odds, axis=1)
        else:
            expected = np.stack([model.fit(scaled, column).decision_function(scaled) for column in values.T], 1)
        np.testing.assert_allclose(np.exp(odds), np.exp(expected), rtol=0.05, atol=0.01)


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    odds, values = rng.integers(0, 6, (50, 4)).astype(float), rng.integers(0, 2, (50, 4)).astype(float)
    odds[:9, 1], odds[40:, 1] = -np.inf, np.inf
    ranks = np.nan_to_num(odds, posinf=99, neginf=-99)
    expected = metrics.average_precision_score(values, ranks, average="macro")
    assert module._mean_average_precision(odds, values) == pytest.approx(expected)


class TestProperties:
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x @ TestProperties.rotation,
            lambda x: 1e4 * x,
            lambda x: x + 100,
            lambda x: x[:, ::-1],
            lambda x: np.concatenate([x, x, np.ones((len(x), 90))], 1),
        ],
        ids=["rotated", "rescaled", "shifted", "permuted", "copied and dead units"],
    )
    @pytest.mark.parametrize("data", [clusters, columns])
    def test_invariance(self, change, data, few_penalties):
        x, labels = data()
        before, after = logistic(x, in_folds(labels)), logistic(change(x), in_folds(labels))
        assert after.value == pytest.approx(before.value, abs=1e-9)
        np.testing.assert_allclose(after.pseudo_values, before.pseudo_values, atol=1e-7)

    def test_order_and_names_of_classes(self, few_penalties):
        x, labels = clusters()
        target = in_folds(labels)
        score = logistic(x, target)
        assert logistic(x, in_folds(np.array(["c", "b", "a"])[labels])).value == score.value
        permuted = Target("classes", np.array([2, 0, 1])[target.values], target.group, tuple("abc"))
        assert logistic(x, permuted).value == score.value

    def test_a_copy_ties_exactly_and_inputs_are_not_changed(self):
        x, labels = clusters(30)
        copy = x.copy()
        score, of_copy = logistic(x, in_folds(labels)), logistic(copy, in_folds(labels))
        assert of_copy.value == score.value
        np.testing.assert_array_equal(of_copy.pseudo_values, score.pseudo_values)
        np.testing.assert_array_equal(x, copy)

    def test_places_are_averaged(self):
        x, labels = clusters(30)
        maps = x[:, None, None] + np.array([[-1.0, 1], [2, -2]])[:, :, None]
        assert logistic(maps, in_folds(labels)).value == logistic(x, in_folds(labels)).value


class TestKnownValues:
    def test_clusters_far_apart(self):
        x, labels = clusters(30, spread=1e-2)
        score = logistic(x, in_folds(labels))
        assert score.value == 1
        np.testing.assert_allclose(score.pseudo_values, 1)

    @pytest.mark.parametrize("units", [2, 200])
    def test_noise_is_not_predicted(self, units):
        # Scored on its own training data, it would be 1 with 200 units.
        rng = np.random.default_rng(0)
        assert logistic(rng.normal(size=(80, units)), in_folds(np.arange(80) % 4)).value < 0.45

    def test_a_class_that_some_fits_have_not_seen(self):
        # Without their two folds there is a single class: the fit predicts it, and has no log loss.
        x, _ = clusters(24, spread=0.1)
        labels = np.zeros(24, int)
        labels[[3, 8]] = 1
        x[[3, 8]] += 5
        assert logistic(x, in_folds(labels)).value == 1

    def test_columns_that_are_known_or_vary_in_a_few_folds(self):
        x, y = columns(40)
        target = in_folds(y)
        expected = logistic(x, dataclasses.replace(target, values=target.values[:, :1]))
        target.values[target.group > 0, 1] = np.nan  # known in a single fold
        target.values[:, 2] = 0
        target.values[np.flatnonzero(target.group == 2)[:2], 2] = 1  # positive in a single fold
        score = logistic(x, target)
        assert np.isfinite(score.value)
        assert np.isfinite(score.pseudo_values).all()
        assert 0 < score.value < expected.value

    def test_features_that_do_not_vary_predict_the_largest_class(self):
        labels = np.where(np.arange(40) < 25, 3, 5)
        assert logistic(np.full((40, 3), 0.1), in_folds(labels)).value == 25 / 40


@pytest.mark.parametrize("labels", [np.arange(9.0), np.random.default_rng(0).normal(size=(9, 2, 2, 1))])
def test_other_labels_are_refused(labels):
    with pytest.raises(JaxTransferError, match="logistic predicts classes or several labels an image; use ridge"):
        logistic(np.zeros((9, 3)), labels)
