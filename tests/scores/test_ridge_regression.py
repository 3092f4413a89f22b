"""Ridge against maps fitted fold by fold with their errors counted pixel by pixel, and its properties."""

import numpy as np
import pytest

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.points.store import Points
from jaxtransfer.scores import ridge_regression as module
from jaxtransfer.scores.ridge_regression import ridge
from jaxtransfer.scores.target import Target

Array = np.ndarray
RIDGES = 10.0 ** np.arange(-8, 3)


def slow(options: list[list[tuple[Array, Array, Array]]], group: Array) -> tuple[float, Array]:
    """The value and pseudo-values of options; an option is a list of problems that share the ridge.

    A problem is features [n, places, units], labels [n, places, areas, pixels] and which places are known [n, places].
    """
    folds = range(group.max() + 1)
    explained, deviation = {}, {}
    for number, problems in enumerate(options):
        for without in folds:
            for fold in folds:
                parts = [sums(*problem, ~np.isin(group, [without, fold]), group == fold) for problem in problems]
                explained[number, without, fold] = np.sum([part[0] for part in parts], axis=0)
                deviation[number, without, fold] = sum(part[1] for part in parts)
    total_error, total_deviation, inner_values = 0.0, 0.0, []
    for fold in folds:
        inner = {}
        for number in range(len(options)):
            errors = sum(explained[number, fold, other] for other in folds if other != fold)
            of_mean = sum(deviation[number, fold, other] for other in folds if other != fold)
            inner |= {(number, i): 1 - error / of_mean for i, error in enumerate(np.asarray(errors))}
        number, i = max(inner, key=lambda option: inner[option])
        inner_values.append(inner[number, i])
        total_error += explained[number, fold, fold][i]
        total_deviation += deviation[number, fold, fold]
    value = 1 - total_error / total_deviation
    return value, len(folds) * value - (len(folds) - 1) * np.array(inner_values)


def sums(features: Array, labels: Array, known: Array, fitted: Array, tested: Array) -> tuple[Array, float]:
    """Squared errors of each ridge and the squared deviation."""

    def less_mean(values: Array, rows: Array) -> Array:
        result = np.zeros_like(values)
        for place in range(values.shape[1]):
            result[:, place] = values[:, place] - values[rows & known[:, place], place].mean(0)
        return result

    everywhere = np.ones(len(known), bool)
    unit = np.square(less_mean(features, everywhere)[known]).sum()
    x, y = less_mean(features, fitted), less_mean(labels, fitted)
    fit, test = fitted[:, None] & known, tested[:, None] & known
    of_areas = y[fit].mean(-1)
    errors = []
    for share in RIDGES:
        matrix = x[fit].T @ x[fit] + share * unit * np.eye(x.shape[-1])
        predicted = x[test] @ np.linalg.solve(matrix, x[fit].T @ of_areas)
        errors.append(np.square(y[test] - predicted[..., None]).sum())
    return np.array(errors), np.square(y[test]).sum()


def problem(features: Array, columns: Array) -> tuple[Array, Array, Array]:
    """Labels of images: one place, and one pixel for each output."""
    known = np.all(~np.isnan(columns), axis=1)
    return features[:, None], np.where(known[:, None], columns, 0)[:, None, :, None], known[:, None]


def data(n: int = 40, units: int = 6, outputs: int = 2, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, units)) * np.arange(1, units + 1) + 3
    return x, x @ rng.normal(size=(units, outputs)) / units + rng.normal(size=(n, outputs))


@pytest.fixture(params=["inner products", "moments"])
def solver(request, monkeypatch) -> None:
    """Either way of fitting."""
    if request.param == "moments":
        monkeypatch.setattr(module, "MAX_ROWS", 0)
    else:
        monkeypatch.setattr(module, "_explained", lambda parts, _, *rest: module._by_inner_products([*parts], *rest))


@pytest.mark.parametrize(("n", "units"), [(4, 3), (9, 20), (33, 5), (21, 40)])
def test_classes(n, units, solver):
    x, _ = data(n, units)
    labels = np.random.default_rng(1).permutation(np.arange(n) % (2 if n < 9 else 3))
    group = Target.of_labels(labels).group
    value, pseudo_values = slow([[problem(x, np.eye(3)[labels])]], group)
    score = ridge(x, labels)
    np.testing.assert_allclose(score.value, value, rtol=1e-7)
    np.testing.assert_allclose(score.pseudo_values, pseudo_values, atol=1e-6)


def test_numbers_with_missing_entries(solver):
    x, y = data(outputs=3)
    y[3:9, 0] = y[30:, 1] = np.nan
    y[5] = np.nan
    target = Target.of_labels(y * [1e3, 1, 1e-3] + 50)
    scaled = y / np.nanstd(y, 0)
    kept = np.delete(np.arange(40), 5)
    problems = [problem(x[kept], scaled[kept][:, [column]]) for column in range(3)]
    value, pseudo_values = slow([problems], target.group[kept])
    score = ridge(x, target)
    np.testing.assert_allclose(score.value, value, rtol=1e-7)
    np.testing.assert_allclose(score.pseudo_values, pseudo_values, atol=1e-6)


def test_a_column_known_in_two_groups_is_left_out(solver):
    x, y = data()
    target = Target.of_labels(y)
    values = np.where((target.group[:, None] > 1) & (np.arange(2) == 1), np.nan, target.values)
    score = ridge(x, Target("numbers", values, target.group))
    expected = ridge(x, Target("numbers", target.values[:, :1], target.group))
    np.testing.assert_allclose(score.value, expected.value, rtol=1e-12)


def test_grids_are_chosen_in_the_inner_folds(solver):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8, 4, 2))
    y = x[:, :2, 0, :1].mean((1, 2)) + x[..., 1:].mean((1, 2)) + 0.1 * rng.normal(size=(30, 1))
    candidates = [x.mean((1, 2)), x.reshape(30, 4, 2, 4, 2).mean(2).reshape(30, -1)]
    value, pseudo_values = slow([[problem(of, y / y.std())] for of in candidates], Target.of_labels(y).group)
    score = ridge(x, y)
    np.testing.assert_allclose(score.value, value, rtol=1e-7)
    np.testing.assert_allclose(score.pseudo_values, pseudo_values, atol=1e-6)


def dense_problem(features: Array, labels: Array, areas: int, *, scaled: bool = True) -> tuple[Array, Array, Array]:
    """Dense labels [n, size, size, outputs], NaN: missing, cut into places, areas and pixels; a square grid."""
    n, places, outputs = len(features), features.shape[1], labels.shape[3]
    pixels = labels.shape[1] // (places * areas)
    cut = np.zeros((n, places**2, areas**2 * outputs, pixels**2))
    known = np.ones((n, places**2), bool)
    for row, column, a, b, output in np.ndindex(places, places, areas, areas, outputs):
        top, left = (row * areas + a) * pixels, (column * areas + b) * pixels
        area = labels[:, top : top + pixels, left : left + pixels, output].reshape(n, -1).copy()
        for example, values in enumerate(area):
            if np.isnan(values).all():
                known[example, row * places + column] = False
            values[np.isnan(values)] = 0 if np.isnan(values).all() else np.nanmean(values)
        cut[:, row * places + column, (a * areas + b) * outputs + output] = area
    of_outputs = cut.reshape(n, places**2, areas**2, outputs, pixels**2)
    for output in range(outputs if scaled else 0):
        less_mean = [
            of_outputs[known[:, place], place, :, output] - of_outputs[known[:, place], place, :, output].mean(0)
            for place in range(places**2)
        ]
        of_outputs[:, :, :, output] /= np.concatenate(less_mean).std()
    return features.reshape(n, places**2, -1), cut / np.sqrt(labels[0].size), known


def dense_data(n: int = 14, size: int = 12) -> tuple[Array, Array]:
    """Features on a grid of 3x3 and labels that depend on them, on the image and on the place."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 3, 3, 5)) + rng.normal(size=(3, 3, 5))
    fine = x[..., :2].repeat(size // 3, 1).repeat(size // 3, 2)
    return x, fine * rng.normal(size=(size, size, 2)) + 0.3 * rng.normal(size=(n, size, size, 2)) + [5, 0]


def test_dense_numbers(solver, monkeypatch):
    monkeypatch.setattr(module, "PATCH_AREAS", 2)  # an area is 2x2 pixels
    x, y = dense_data()
    y[2, 0:4, 0:2] = np.nan  # one whole area at least
    y[5, 5, 5:7, 0] = np.nan  # some pixels of areas
    y[9, :, :] = np.nan
    y *= [1e-3, 50]
    target = Target.of_labels(y)
    kept = np.delete(np.arange(len(x)), 9)
    features, labels, known = dense_problem(x[kept], y[kept].astype(np.float32).astype(float), 2)
    assert known.sum() == known.size - 1
    value, pseudo_values = slow([[(features, labels, known)]], target.group[kept])
    score = ridge(x, target)
    np.testing.assert_allclose(score.value, value, rtol=1e-6)
    np.testing.assert_allclose(score.pseudo_values, pseudo_values, atol=1e-4)


def test_dense_classes(solver, monkeypatch):
    monkeypatch.setattr(module, "PATCH_AREAS", 2)
    x, y = dense_data()
    classes = (y[..., 0] > 5).astype(int) + (y[..., 1] > 0)
    problem_of_pixels = dense_problem(x, np.eye(3)[classes], 2, scaled=False)
    value, pseudo_values = slow([[problem_of_pixels]], Target.of_labels(classes).group)
    score = ridge(x, classes)
    np.testing.assert_allclose(score.value, value, rtol=1e-6)
    np.testing.assert_allclose(score.pseudo_values, pseudo_values, atol=1e-4)


def test_labels_whose_size_is_no_multiple_of_the_grid(monkeypatch):
    monkeypatch.setattr(module, "PATCH_AREAS", 2)
    x, y = dense_data(size=12)
    enlarged = y.repeat(5, 1).repeat(5, 2)
    np.testing.assert_allclose(ridge(x, enlarged).value, ridge(x, y).value, rtol=1e-6)


def test_finite_examples_only(solver):
    x, y = data()
    x[7, 2], x[13, 0] = np.nan, np.inf
    labels = y.copy()
    labels[[7, 13]] = np.nan
    target = Target.of_labels(y)
    of_labels = Target(target.target_type, labels, np.where(np.isnan(labels[:, 0]), -1, target.group))
    score, expected = ridge(x, target), ridge(np.nan_to_num(x, posinf=0), of_labels)
    assert score.value == expected.value
    np.testing.assert_array_equal(score.pseudo_values, expected.pseudo_values)


@pytest.mark.parametrize("elements", [1, 100])
def test_points_are_read_in_pieces(elements, monkeypatch, tmp_path, solver):
    x, y = dense_data()
    points = Points(tmp_path)
    points.create("net", "representation", x.shape, 4)
    point = points.open("net", "representation")
    points.wait([point.write(0, x.astype(np.float32))])
    for labels in (y, y[:, 0, 0]):
        expected = ridge(x.astype(np.float32), labels)
        monkeypatch.setattr("jaxtransfer.scores.examples._PIECE_ELEMENTS", elements)
        np.testing.assert_allclose(ridge(point, labels).value, expected.value, rtol=1e-6)
        monkeypatch.undo()


class TestProperties:
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]

    @pytest.mark.parametrize(
        ("of_features", "of_labels"),
        [
            (lambda x: x @ TestProperties.rotation, lambda y: y),
            (lambda x: 1e4 * x, lambda y: y),
            (lambda x: x + 1e3, lambda y: y - 30),
            (lambda x: x[:, ::-1], lambda y: y[:, ::-1]),
            (lambda x: np.concatenate([x, np.ones((len(x), 3))], 1), lambda y: y * [1e-3, 1e4]),
            (lambda x: np.concatenate([x, x], 1), lambda y: y),
        ],
        ids=["rotated", "rescaled", "shifted", "permuted", "dead units", "copied units"],
    )
    def test_invariance(self, of_features, of_labels, solver):
        x, y = data()
        before, after = ridge(x, y), ridge(of_features(x), of_labels(y))
        np.testing.assert_allclose(after.value, before.value, rtol=1e-6)
        np.testing.assert_allclose(after.pseudo_values, before.pseudo_values, atol=1e-5)

    def test_order_and_names_of_classes(self):
        x, _ = data()
        labels = np.random.default_rng(0).integers(0, 4, 40)
        names = np.array(["z", "b", "c", "a"])[labels]
        assert ridge(x, names).value == ridge(x, labels).value
        target = Target.of_labels(labels)
        permuted = Target("classes", np.array([2, 0, 3, 1])[target.values], target.group, tuple("abcd"))
        np.testing.assert_allclose(ridge(x, permuted).value, ridge(x, target).value, rtol=1e-9)

    def test_a_copy_ties_exactly(self):
        x, y = data(units=50)
        score, copy = ridge(x, y), ridge(x.copy(), y.copy())
        assert copy.value == score.value
        np.testing.assert_array_equal(copy.pseudo_values, score.pseudo_values)

    def test_inputs_are_not_changed(self):
        x, y = dense_data()
        copies = x.copy(), y.copy()
        ridge(x, y)
        ridge(x, y[:, 0, 0])
        np.testing.assert_array_equal(x, copies[0])
        np.testing.assert_array_equal(y, copies[1])

    def test_both_ways_of_fitting_agree(self, monkeypatch):
        x, y = dense_data()
        x = np.tile(x, 20) + np.random.default_rng(2).normal(size=(1, 1, 1, 100))  # 126 rows, 100 units
        by_products = ridge(x, y)
        monkeypatch.setattr(module, "MAX_ROWS", 0)
        np.testing.assert_allclose(ridge(x, y).value, by_products.value, rtol=1e-9)


class TestKnownValues:
    def test_linear_labels(self, solver):
        x, _ = data()
        score = ridge(x, x @ np.random.default_rng(0).normal(size=(6, 3)))
        assert 1 - 1e-9 < score.value <= 1
        np.testing.assert_allclose(score.pseudo_values, 1, atol=1e-8)

    @pytest.mark.parametrize("units", [5, 400])
    def test_noise_is_not_predicted(self, units):
        # Scored on its own training data, it would be 1 with 400 units.
        rng = np.random.default_rng(0)
        values = [ridge(rng.normal(size=(50, units)), rng.normal(size=(50, 1))).value for _ in range(5)]
        assert -0.3 < np.mean(values) < 0.05

    def test_features_that_do_not_vary_predict_the_mean(self, solver):
        _, y = data()
        score = ridge(np.full((40, 3), 0.1, np.float32), y)
        assert score.value == 0
        assert (score.pseudo_values == 0).all()

    def test_known_share_of_noise(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2000, 5))
        y = x.sum(1) + np.sqrt(5) * rng.normal(size=2000)  # half of the variance
        score = ridge(x, y)
        stderr = score.pseudo_values.std(ddof=1) / np.sqrt(10)
        assert abs(score.value - 0.5) < 4 * stderr < 0.1


def test_labels_that_vary_in_one_group_alone_have_no_error(solver):
    x, _ = data()
    labels = np.full(40, 0.1)
    target = Target.of_labels(np.arange(40.0))
    labels[target.group == 2] = 0.7, 0.3, 0.1, 0.9
    score = ridge(x, Target("numbers", labels[:, None], target.group))
    assert score.value < 0.5
    np.testing.assert_array_equal(np.isnan(score.pseudo_values), np.arange(10) == 2)


class TestErrors:
    def test_too_few_finite_features(self):
        x, y = data()
        x[3:] = np.nan
        with pytest.raises(JaxTransferError, match="finite for 3 of 40 labelled examples"):
            ridge(x, y)

    def test_lengths(self):
        x, y = data()
        with pytest.raises(JaxTransferError, match="features of 39 examples and labels of 40"):
            ridge(x[1:], y)

    def test_labels_that_vary_only_where_features_are_not_finite(self):
        x, _ = data()
        labels = np.zeros(40)
        labels[:2] = 1
        x[:2] = np.nan
        with pytest.raises(JaxTransferError, match="The labels do not vary over the examples with finite features"):
            ridge(x, labels)

    def test_no_place_with_enough_labels(self):
        x, y = dense_data()
        y[:, ::4, ::4] = y[:, 1::4, 1::4] = np.nan
        y[:, 1:, 1:] = np.nan
        with pytest.raises(JaxTransferError, match="No place of the 3x3 grid"):
            ridge(x, y)
