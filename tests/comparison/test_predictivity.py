"""Linear predictivity against ridge maps fitted place by place and fold by fold, and its properties."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

import jaxtransfer as jt
from jaxtransfer.comparison import moments, predictivity
from jaxtransfer.comparison.places import as_grid, reduce_units, resample
from jaxtransfer.comparison.predictivity import FOLDS, RIDGES, linear_predictivity
from jaxtransfer.comparison.statistics import stderr_of_mean

Array = np.ndarray


def network(seed: int, shape: tuple[int, ...], *, common: int = 4, noise: float = 0.3, offset: float = 2.0) -> Array:
    """A representation that is partly a function of what all networks of this many images see."""
    seen = np.random.default_rng(99).normal(size=(shape[0], common))
    rng = np.random.default_rng(seed)
    linear = np.tensordot(seen, rng.normal(size=(common, *shape[1:])), 1)
    return (linear + noise * rng.normal(size=shape) + offset).astype(np.float32)


def slow(source: Array, target: Array) -> tuple[float, Array]:
    """The value and its jackknife pseudo-values, of [images, places, units] of one grid, all images usable."""
    images = len(source)
    count = min(10, images)
    fold = np.random.default_rng(0).permutation(images) % count

    def errors(left_out: list[int], predicted: int) -> tuple[Array, float]:
        fitted, tested = ~np.isin(fold, left_out), fold == predicted
        x_mean, y_mean = source[fitted].mean(0), target[fitted].mean(0)
        x, y = np.concatenate(source[fitted] - x_mean), np.concatenate(target[fitted] - y_mean)
        x_test, y_test = np.concatenate(source[tested] - x_mean), np.concatenate(target[tested] - y_mean)
        of_ridges = []
        for ridge in 10.0 ** np.arange(-8, 4):
            scaled = ridge * np.trace(x.T @ x) / x.shape[1]
            linear_map = np.linalg.solve(x.T @ x + scaled * np.eye(x.shape[1]), x.T @ y)
            of_ridges.append(np.square(y_test - x_test @ linear_map).sum())
        return np.array(of_ridges), np.square(y_test).sum()

    error, deviation, without = 0.0, 0.0, []
    for k in range(count):
        inner = [errors([k, other], other) for other in range(count) if other != k]
        of_ridges, of_mean = np.sum([e for e, _ in inner], axis=0), sum(d for _, d in inner)
        best = int(np.argmin(of_ridges))
        without.append(1 - of_ridges[best] / of_mean)
        of_ridges, of_mean = errors([k], k)
        error, deviation = error + of_ridges[best], deviation + of_mean
    value = 1 - error / deviation
    return value, count * value - (count - 1) * np.array(without)


def flat(representation: Array) -> Array:
    return representation.astype(float).reshape(len(representation), -1, representation.shape[-1])


@pytest.mark.parametrize("images", [4, 9, 10, 33])
def test_equals_ridge_maps_fitted_to_every_fold(images):
    networks = {name: network(i, (images, 2, 3, units)) for i, (name, units) in enumerate({"a": 5, "b": 3}.items())}
    values, samples = linear_predictivity(networks)
    for (i, target), (j, source) in itertools.permutations(enumerate(networks.values()), 2):
        value, pseudo_values = slow(flat(source), flat(target))
        np.testing.assert_allclose(values[i, j], value, rtol=1e-9)
        np.testing.assert_allclose(samples[:, i, j], pseudo_values, atol=1e-8)
    assert values[0, 1] != values[1, 0]
    assert (np.diagonal(values) == 1).all()


def test_grids_vectors_and_tokens():
    images = 23
    shapes = {"fine": (4, 6, 3), "coarse": (2, 3, 4), "other": (3, 2, 2), "vector": (5,), "tokens": (3, 2)}
    networks = {name: network(i, (images, *shape)) for i, (name, shape) in enumerate(shapes.items())}
    values, samples = linear_predictivity(networks)
    names = list(networks)
    for target, source in itertools.permutations(names, 2):
        y, x = as_grid(networks[target]).astype(float), as_grid(networks[source]).astype(float)
        value, pseudo_values = slow(flat(slow_resampled(x, y.shape[1:3])), flat(y))
        place = names.index(target), names.index(source)
        np.testing.assert_allclose(values[place], value, rtol=1e-9, err_msg=f"{target} from {source}")
        np.testing.assert_allclose(samples[:, *place], pseudo_values, atol=1e-8)


def slow_resampled(x: Array, grid: tuple[int, ...]) -> Array:
    """Means over areas: every place is first divided into as many equal parts as fit both grids."""
    parts = x.repeat(grid[0], 1).repeat(grid[1], 2)
    shape = (len(x), grid[0], x.shape[1], grid[1], x.shape[2], x.shape[3])
    return parts.reshape(shape).mean((2, 4))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4), (8, 12)])
def test_resampling_is_by_area(grid):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    resampled = resample(x, grid)
    np.testing.assert_allclose(resampled, slow_resampled(x, grid), atol=1e-12)
    np.testing.assert_allclose(resampled.mean((1, 2)), x.mean((1, 2)), atol=1e-12)


@pytest.mark.parametrize("pieces", [(1, 1), (500, 400), (10**6, 300)])
def test_pieces_and_tiles_do_not_matter(pieces, monkeypatch):
    networks = {f"n{i}": network(i, (25, 2, 2, 2 + i)) for i in range(4)} | {"v": network(5, (25, 4))}
    whole = linear_predictivity(networks)
    monkeypatch.setattr(moments, "_PIECE_ELEMENTS", pieces[0])
    monkeypatch.setattr(predictivity, "_MOMENT_ELEMENTS", pieces[1])
    for part, of_whole in zip(linear_predictivity(networks), whole, strict=True):
        np.testing.assert_allclose(part, of_whole, rtol=1e-9)


def test_an_image_that_is_not_finite_is_left_out_for_all():
    networks = {"a": network(0, (24, 2, 2, 3)), "b": network(1, (24, 2, 2, 4)), "c": network(2, (24, 6))}
    networks["a"][5, 1, 0, 2] = np.nan
    networks["c"][17, 0] = np.inf
    kept = np.delete(np.arange(24), [5, 17])
    for part, of_kept in zip(
        linear_predictivity(networks),
        linear_predictivity({name: values[kept] for name, values in networks.items()}),
        strict=True,
    ):
        np.testing.assert_array_equal(part, of_kept)


class TestProperties:
    @pytest.fixture
    def pair(self) -> tuple[Array, Array]:
        return network(0, (40, 2, 2, 6)), network(1, (40, 2, 2, 4))

    @pytest.mark.parametrize(
        ("of_source", "of_target"),
        [
            (lambda x: x @ np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0], lambda y: y),
            (lambda x: 1e4 * x, lambda y: y),
            (lambda x: x, lambda y: 1e-4 * y),
            (lambda x: x, lambda y: y @ np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0]),
            (lambda x: x + np.random.default_rng(5).normal(size=(2, 2, 6)), lambda y: y - 30),
            (lambda x: x[..., ::-1], lambda y: y[..., ::-1]),
            (lambda x: x[:, ::-1], lambda y: y[:, ::-1]),
        ],
    )
    def test_invariance(self, pair, of_source, of_target):
        before = linear_predictivity({"source": pair[0], "target": pair[1]})
        after = linear_predictivity(
            {"source": of_source(pair[0].astype(float)), "target": of_target(pair[1].astype(float))}
        )
        np.testing.assert_allclose(after.values[1, 0], before.values[1, 0], rtol=1e-6)
        np.testing.assert_allclose(after.pseudo_values[:, 1, 0], before.pseudo_values[:, 1, 0], rtol=1e-5)

    def test_a_source_that_contains_the_target_predicts_it(self, pair):
        source = pair[0].astype(float)
        target = source @ np.random.default_rng(0).normal(size=(6, 3)) + 1
        values, _ = linear_predictivity(
            {"source": source, "target": target, "more": np.concatenate([source, target], 3)}
        )
        assert values[1, 0] > 1 - 1e-9
        assert values[1, 2] > 1 - 1e-9
        assert values[0, 1] < 0.95

    @pytest.mark.parametrize(("images", "units"), [(30, 3), (200, 8), (24, 60), (10, 40), (4, 5)])
    def test_independent_networks_predict_nothing(self, images, units):
        rng = np.random.default_rng(1)
        networks = {f"{i}": rng.normal(size=(images, 1, 2, units)) for i in range(6)}
        values, samples = linear_predictivity(networks)
        others = ~np.eye(6, dtype=bool)
        assert values[others].max() < 0.05
        assert values[others].min() > -1 / images**0.5
        z = values[others] / stderr_of_mean(samples)[others]
        assert np.median(z) < 1

    def test_constant_units_change_nothing_but_the_scale_of_the_ridge(self, pair):
        constant = np.concatenate([pair[0], np.full_like(pair[0][..., :2], 3)], 3)
        before = linear_predictivity({"source": pair[0], "target": pair[1]}).values[1, 0]
        values, samples = linear_predictivity({"source": constant, "target": pair[1]})
        np.testing.assert_allclose(values[1, 0], before, atol=1e-3)
        assert np.isfinite(samples).all()

    def test_a_source_that_varies_in_one_fold_alone(self):
        networks = {"source": np.zeros((20, 3)), "target": network(1, (20, 3))}
        networks["source"][3] = 1
        values, samples = linear_predictivity(networks)
        assert np.isfinite(values).all()
        assert -0.3 < values[1, 0] <= 0.05
        assert np.isfinite(samples[:, 1, 0]).all()

    def test_the_ridge_does_not_matter(self, monkeypatch):
        """Other ridges to choose from give the same; a single one, over five decades, nearly the same."""
        pair = network(0, (200, 2, 2, 6)), network(1, (200, 2, 2, 4))
        chosen = linear_predictivity({"source": pair[0], "target": pair[1]}).values[1, 0]
        monkeypatch.setattr(predictivity, "RIDGES", RIDGES * 3)
        np.testing.assert_allclose(linear_predictivity({"a": pair[0], "b": pair[1]}).values[1, 0], chosen, atol=1e-3)
        for ridge in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
            monkeypatch.setattr(predictivity, "RIDGES", np.array([ridge]))
            np.testing.assert_allclose(
                linear_predictivity({"a": pair[0], "b": pair[1]}).values[1, 0], chosen, atol=0.01
            )


@pytest.mark.slow
@pytest.mark.parametrize(("images", "places", "draw"), [(60, 1, "normal"), (200, 2, "heavy tails")])
def test_intervals_contain_the_expectation(images, places, draw):
    """95 % intervals of Student's t over folds contain the mean over repetitions in 92 % to 98 % of them."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(3, places, units)) for units in (3, 4, 2)]
    values, errors = [], []
    for _ in range(200):
        seen = rng.normal(size=(images, 3)) if draw == "normal" else rng.standard_t(5, size=(images, 3))
        networks = {
            str(i): np.tanh(np.tensordot(seen, linear, 1)) + 0.5 * rng.normal(size=(images, *linear.shape[1:]))
            for i, linear in enumerate(maps)
        }
        value, samples = linear_predictivity({name: x[:, None] for name, x in networks.items()})
        values.append(value)
        errors.append(stderr_of_mean(samples))
    others = ~np.eye(3, dtype=bool)
    value, error = np.array(values)[:, others], np.array(errors)[:, others]
    inside = np.abs(value - value.mean(0)) < stats.t.ppf(0.975, FOLDS - 1) * error
    assert 0.92 < inside.mean() < 0.98


class TestManyUnits:
    def test_projection_is_orthonormal_and_shared_by_networks_of_as_many_units(self):
        rows = reduce_units(np.eye(130), 32)
        np.testing.assert_allclose(rows.T @ rows, np.eye(32), atol=1e-12)
        np.testing.assert_array_equal(reduce_units(np.eye(130), 32), rows)
        assert np.abs(np.sort(np.abs(rows), 0)[-4:]).min() >= 1 / np.sqrt(5) - 1e-12  # groups of four or five
        x = np.random.default_rng(0).normal(size=(3, 7))
        assert reduce_units(x, 7) is x

    def test_order_stays(self):
        networks = {
            f"{i}": network(i, (200, 2, 2, 96), common=8, noise=noise) for i, noise in enumerate((0.5, 1, 2, 4, 8))
        }
        exact, reduced = (linear_predictivity(networks, max_units=units).values for units in (96, 48))
        others = ~np.eye(5, dtype=bool)
        assert np.asarray(stats.spearmanr(exact[others], reduced[others]))[0] > 0.97
        assert (reduced <= exact).mean() > 0.9  # a source loses what its projection leaves out


def test_errors_are_sentences():
    with pytest.raises(jt.JaxTransferError, match=r"4 or more images that all networks can use; there are 3\."):
        linear_predictivity({"a": network(0, (3, 4)), "b": network(1, (3, 4))})
    constant = np.full((9, 2, 2, 3), 1e3, np.float32)
    constant[4] *= 1 + 1e-7
    with pytest.raises(jt.JaxTransferError, match="Network 'b' gives all probe images the same representation"):
        linear_predictivity({"a": network(0, (9, 4)), "b": constant})


def test_folds_are_of_equal_size_and_always_the_same():
    usable = np.random.default_rng(0).random(57) < 0.8
    folds = predictivity.folds_of(usable)
    assert ((folds.of_image >= 0) == usable).all()
    assert np.ptp(folds.sizes) <= 1
    assert folds.sizes.sum() == usable.sum()
    np.testing.assert_array_equal(predictivity.folds_of(usable).of_image, folds.of_image)


class TestAffinityMatrix:
    @pytest.fixture
    def networks(self) -> Callable[[int], list[jt.Network]]:
        def vectors(params, images):
            return images.mean((1, 2)) @ params

        def grids(params, images):
            return images[:, ::2, ::2] @ params

        rng = np.random.default_rng(0)
        functions = itertools.cycle([grids, vectors])
        weights = [
            (function, rng.normal(size=(3, 4)).astype(np.float32))
            for function, _ in zip(functions, range(6), strict=False)
        ]
        return lambda count: [jt.Network(f"n{i}", *pair) for i, pair in enumerate(weights[:count])]

    @pytest.fixture
    def images(self) -> Array:
        return np.random.default_rng(1).integers(0, 256, (21, 4, 6, 3), dtype=np.uint8)

    def test_equals_the_function(self, networks, images):
        affinity = jt.affinity_matrix(networks(3), images, methods="linear_predictivity")
        representations = {
            n.name: np.asarray(n.apply(n.params, np.float32(images) / np.float32(255))) for n in networks(3)
        }
        values, samples = linear_predictivity(representations)
        np.testing.assert_allclose(affinity[None], values, atol=1e-5)
        measure = affinity.measure(None)
        assert (measure.name, measure.directed, measure.sampled) == ("predictivity", True, "images")
        others = ~np.eye(3, dtype=bool)
        np.testing.assert_allclose(affinity.stderr(None)[others], stderr_of_mean(samples)[others], rtol=1e-3, atol=1e-6)
        own_samples = affinity.pseudo_values(None)
        assert own_samples is not None
        np.testing.assert_allclose(own_samples, samples[:, others], atol=1e-3)
        assert (affinity.counts(None) == 21).all()

    def test_one_network_more_costs_one_row_and_one_column(self, networks, images, tmp_path, monkeypatch):
        def matrix(count: int) -> jt.Affinity:
            return jt.affinity_matrix(networks(count), images, methods="linear_predictivity", directory=tmp_path)

        before = matrix(4)
        computed = []
        compute = predictivity._predict

        def counted(fits, pairs, totals):
            computed.append(totals.products.shape[1])
            return compute(fits, pairs, totals)

        monkeypatch.setattr(predictivity, "_predict", counted)
        after = matrix(5)
        assert sum(computed) == 8
        np.testing.assert_array_equal(after[None][:4, :4], before[None])
        computed.clear()
        again = matrix(5)
        assert not computed
        np.testing.assert_array_equal(again[None], after[None])
        np.testing.assert_array_equal(again.pseudo_values(None), after.pseudo_values(None))
        np.testing.assert_allclose(
            after[None], jt.affinity_matrix(networks(5), images, methods="linear_predictivity")[None], atol=1e-6
        )

    def test_other_weights_and_damaged_columns_are_computed_again(self, networks, images, tmp_path):
        def matrix(some: list[jt.Network], directory=None) -> Array:
            return jt.affinity_matrix(some, images, methods="linear_predictivity", directory=directory)[None]

        some = networks(4)
        matrix(some, tmp_path)
        some[1] = jt.Network("n1", some[1].apply, some[1].params + np.float32(1) * some[1].params[::-1])
        column = next(tmp_path.glob("points/_columns/linear_predictivity/n2.npz"))
        column.write_bytes(column.read_bytes()[:100])
        np.testing.assert_allclose(matrix(some, tmp_path), matrix(some), atol=1e-6)
