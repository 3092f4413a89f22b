"""RSA, DEPARA, CKA and SVCCA against their definitions written out, image by image, in float64."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform

import jaxtransfer as jt
from jaxtransfer.comparison import representations as relatives
from jaxtransfer.comparison.representations import Comparison
from jaxtransfer.points.store import Points
from support.helpers import quick_cases

pytestmark = pytest.mark.filterwarnings("ignore:On .* images .* cannot be trusted")

UNITS = {"few": 3, "some": 17, "many": 90}


def representations(seed: int, images: int, units: dict[str, int] = UNITS) -> dict[str, np.ndarray]:
    """Networks that see partly the same."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(images, 5))
    return {
        name: (np.maximum(common @ rng.normal(size=(5, count)), 0) + 0.3 * rng.normal(size=(images, count)) + 1).astype(
            np.float32
        )
        for name, count in units.items()
    }


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < each).sum() + ((values == each).sum() + 1) / 2 for each in values])


def spearman(x: list[float], y: list[float]) -> float:
    return float(np.corrcoef(ranks(np.round(x, 9)), ranks(np.round(y, 9)))[0, 1])


def slow_rsa(x: np.ndarray, y: np.ndarray) -> float:
    lists = []
    for each in (x.astype(float), y.astype(float)):
        left = each - each.mean(0)
        units = [(one - one.mean()) / np.linalg.norm(one - one.mean()) for one in left]
        lists.append([one @ other for one, other in itertools.combinations(units, 2)])
    return spearman(*lists)


def slow_edges(x: np.ndarray, y: np.ndarray) -> float:
    lists = []
    for each in (x.astype(float), y.astype(float)):
        units = [one / np.linalg.norm(one) for one in each]
        lists.append([one @ other for one, other in itertools.combinations(units, 2)])
    return spearman(*lists)


def slow_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 5 of Song et al. (2012)."""
    a, b = (each.astype(float) @ each.astype(float).T for each in (x, y))
    for gram in (a, b):
        np.fill_diagonal(gram, 0)
    n = len(a)
    ones = np.ones(n)
    last = 2 / (n - 2) * ones @ a @ b @ ones
    return float((np.trace(a @ b) + ones @ a @ ones * (ones @ b @ ones) / ((n - 1) * (n - 2)) - last) / (n * (n - 3)))


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    return slow_hsic(x, y) / np.sqrt(slow_hsic(x, x) * slow_hsic(y, y))


def slow_cka_biased(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (each.astype(float) - each.astype(float).mean(0) for each in (x, y))
    norms = [np.linalg.norm(each.T @ each) for each in (x, y)]
    return float(np.linalg.norm(y.T @ x) ** 2 / (norms[0] * norms[1]))


def slow_svcca(x: np.ndarray, y: np.ndarray) -> float:
    """Canonical correlations from covariances, as Hotelling has them."""
    reduced = []
    for each in (x.astype(float), y.astype(float)):
        left = each - each.mean(0)
        u, s, _ = np.linalg.svd(left, full_matrices=False)
        share = np.cumsum(s**2) / (s**2).sum()
        reduced.append((u * s)[:, : 1 + np.flatnonzero(share >= 0.99)[0]])
    a, b = reduced
    product = np.linalg.solve(a.T @ a, a.T @ b) @ np.linalg.solve(b.T @ b, b.T @ a)
    squares = np.sort(np.linalg.eigvals(product).real)[::-1][: min(a.shape[1], b.shape[1])]
    return float(np.sqrt(np.clip(squares, 0, 1)).mean())


SLOW = {
    "rsa": (relatives.rsa, slow_rsa),
    "cka": (relatives.cka, slow_cka),
    "cka_biased": (relatives.cka_biased, slow_cka_biased),
    "svcca": (relatives.svcca, slow_svcca),
}


def check(found: Comparison, given_: dict[str, np.ndarray], slow: Any, atol: float = 1e-6) -> None:
    """All values, and the pseudo-values from leaving out the groups that are named."""
    arrays = list(given_.values())
    images = np.flatnonzero(found.usable.all(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(found.groups)), images)
    np.testing.assert_array_equal(np.diag(found.values), 1)
    for column, (i, j) in enumerate(itertools.combinations(range(len(arrays)), 2)):
        whole = slow(arrays[i][images], arrays[j][images])
        np.testing.assert_allclose([found.values[i, j], found.values[j, i]], whole, atol=atol)
        count = len(found.groups)
        for group, pseudo_value in zip(found.groups, found.pseudo_values[:, column], strict=True):
            kept = np.setdiff1d(images, group)
            expected = count * whole - (count - 1) * slow(arrays[i][kept], arrays[j][kept])
            np.testing.assert_allclose(pseudo_value, expected, atol=count * atol)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("images", [7, 33])
def test_equals_a_slow_rewrite(name: str, images: int) -> None:
    """More units than images, and fewer."""
    fast, slow = SLOW[name]
    given_ = representations(images, images)
    check(fast(given_), given_, slow)


@pytest.mark.parametrize("name", SLOW)
def test_in_pieces_and_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for a few images: tiles that cross the borders of groups, matrices summed over pieces."""
    monkeypatch.setattr(relatives, "_MAX_ELEMENTS", 400)
    fast, slow = SLOW[name]
    given_ = representations(1, 45)
    check(fast(given_), given_, slow)


def test_depara_is_nodes_and_edges() -> None:
    given_ = representations(2, 26)
    nodes = np.random.default_rng(3).uniform(-1, 1, (26, 3)).astype(np.float32)
    nodes[4, 0] = nodes[9] = np.nan
    found = relatives.depara(given_, nodes, edge_weight=0.4)

    def slow(images: np.ndarray) -> np.ndarray:
        arrays = [each[images] for each in given_.values()]
        edges = [slow_edges(one, other) for one, other in itertools.combinations(arrays, 2)]
        return (np.nanmean(nodes[images].astype(float), axis=0) + 0.4 * np.array(edges)) / 1.4

    whole = slow(np.arange(26))
    np.testing.assert_allclose(squareform(found.values - np.eye(3)), whole, atol=1e-6)
    for group, pseudo_value in zip(found.groups, found.pseudo_values, strict=True):
        without = slow(np.setdiff1d(np.arange(26), group))
        np.testing.assert_allclose(pseudo_value, 20 * whole - 19 * without, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(SLOW)), scale=st.floats(1e-3, 1e3))
def test_invariances(seed: int, name: str, scale: float) -> None:
    """Rotating units (for RSA: not even that) and scaling and shifting them changes nothing."""
    fast, _ = SLOW[name]
    given_ = {name: each.astype(float) for name, each in representations(seed, 12).items()}
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(17, 17)))[0]
    shift = rng.normal(size=17)
    turned = given_["some"] * scale + shift
    turned = turned if name == "rsa" else turned @ rotation
    changed = fast(given_ | {"some": turned})
    np.testing.assert_allclose(changed.values, fast(given_).values, atol=1e-6)
    itself = fast({"a": given_["some"], "b": turned}).values
    np.testing.assert_allclose(itself, 1, atol=1e-6)


@pytest.mark.parametrize("name", SLOW)
def test_order_of_images_and_networks_changes_nothing(name: str) -> None:
    fast, _ = SLOW[name]
    given_ = representations(4, 20)
    order = np.random.default_rng(0).permutation(20)
    shuffled = {name: each[order] for name, each in reversed(given_.items())}
    np.testing.assert_allclose(fast(shuffled).values, fast(given_).values[::-1, ::-1], atol=1e-6)


def u_centred(x: np.ndarray) -> np.ndarray:
    """Szekely and Rizzo (2014), definition 2, of the Gram matrix."""
    gram = x @ x.T
    n = len(gram)
    result = np.zeros((n, n))
    others = gram - np.diag(np.diag(gram))
    for i, j in itertools.permutations(range(n), 2):
        ends = others[i].sum() + others[j].sum()
        result[i, j] = others[i, j] - ends / (n - 2) + others.sum() / ((n - 1) * (n - 2))
    return result


def over_distinct_images(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC as the mean over all fours of different images of what has it as its expectation."""
    a, b = x @ x.T, y @ y.T
    fours = itertools.permutations(range(len(a)), 4)
    return float(np.mean([a[i, j] * (b[i, j] + b[k, m] - 2 * b[i, k]) for i, j, k, m in fours]))


def test_cka_is_the_cosine_of_u_centred_matrices() -> None:
    given_ = {name: each.astype(float) for name, each in representations(13, 8).items()}
    found = relatives.cka(given_).values
    for (i, x), (j, y) in itertools.product(enumerate(given_.values()), repeat=2):
        a, b = u_centred(x), u_centred(y)
        np.testing.assert_allclose(found[i, j], (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), atol=1e-10)
        np.testing.assert_allclose(slow_hsic(x, y), (a * b).sum() / (8 * 5), rtol=1e-9)
        np.testing.assert_allclose(slow_hsic(x, y), over_distinct_images(x, y), rtol=1e-9)


def edges(given_: dict[str, np.ndarray]) -> Comparison:
    """DEPARA with nodes that say nothing, and edges that count as much."""
    count = len(given_)
    nodes = np.zeros((len(next(iter(given_.values()))), count * (count - 1) // 2), np.float32)
    return relatives.depara(given_, nodes, edge_weight=1e6)


ALL: dict[str, Callable[[dict[str, np.ndarray]], Comparison]] = {
    "rsa": relatives.rsa, "depara": edges, "cka": relatives.cka, "cka_biased": relatives.cka_biased,
    "svcca": relatives.svcca,
}  # fmt: skip


@pytest.mark.parametrize("name", quick_cases(ALL, "rsa", "cka"))
def test_chance_is_what_permuted_images_give(name: str) -> None:
    """All orders of five images of one network, whose similarities have no ties."""
    rng = np.random.default_rng(14)
    x, y = rng.gamma(0.5, size=(5, 3)), rng.gamma(0.5, size=(5, 2 if name == "svcca" else 6))
    orders = itertools.permutations(range(5))
    found = ALL[name]({"x": x} | {str(order): y[list(order)] for order in orders})
    values, chance = found.values[0, 1:], found.chance[0, 1:]
    np.testing.assert_allclose(chance, chance[0], rtol=1e-9)
    if name == "cka_biased":
        np.testing.assert_allclose(values.mean(), chance[0], rtol=1e-9)
    elif name == "svcca":  # a mean of correlations lies between that of their squares and its root
        assert chance[0] ** 2 < values.mean() < chance[0] < 1
    else:
        np.testing.assert_allclose(values.mean(), 0, atol=1e-9)
        np.testing.assert_allclose(np.sqrt(np.mean(values**2)), chance[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("images", "units"), [(24, 2000), (100, 2000), (100, 64), (1000, 64)])
def test_unrelated_and_identical_networks(name: str, images: int, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrelated ones score what `chance` says, with a warning where that is much; identical ones 1."""
    monkeypatch.setattr(relatives, "_GROUPS", 2)
    monkeypatch.setattr(relatives, "_GROUPS_OF_SVCCA", 2)
    rng = np.random.default_rng(images + units)
    drawn = {str(number): rng.normal(size=(images, units)) for number in range(6)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ALL[name](drawn | {"0 again": drawn["0"]})
    np.testing.assert_allclose(found.values[0, -1], 1, atol=1e-6)
    assert (np.diag(found.values) == 1).all()
    pairs = np.triu_indices(6, 1)
    values, chance = found.values[pairs], found.chance[pairs]
    if name == "cka_biased":
        np.testing.assert_allclose(values.mean(), chance.mean(), rtol=0.02)
    elif name == "svcca":
        assert 0.8 * chance.mean() < values.mean() < chance.mean() + 1e-9
    else:
        assert abs(values.mean()) < 4 * chance.mean() / np.sqrt(len(values))
        assert 0.5 < np.sqrt(np.mean(values**2)) / chance.mean() < 1.7
    high = np.sqrt(np.mean(values**2)) > 0.1
    assert len(caught) == high
    if high:
        assert f"On {images} images {'depara' if name == 'depara' else name} cannot be trusted" in str(
            caught[0].message
        )


def test_noisy_copies_have_the_cka_of_their_distributions() -> None:
    """Half of a copy's variance is noise: CKA is 1/2, however few the images."""
    rng = np.random.default_rng(15)
    values = []
    for _ in range(40):
        original = rng.normal(size=(24, 300))
        values.append(relatives.cka({"x": original, "y": original + rng.normal(size=(24, 300))}).values[0, 1])
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert error < 0.01
    assert abs(np.mean(values) - np.sqrt(1 / 4)) < 4 * error


@pytest.mark.parametrize("name", ["cka", "svcca", "cka_biased", "rsa"])
def test_a_warning_names_the_pair_and_what_to_do(name: str) -> None:
    rng = np.random.default_rng(12)
    given_ = {"a": rng.normal(size=(8, 50)), "b": rng.normal(size=(8, 50)), "c": rng.normal(size=(8, 2))}
    pair = {"svcca": r"reach 1.00 by chance \(a and b\)", "cka_biased": r"\(a and b\)"}.get(name, "3 of 3 pairs")
    advice = ", or the method cka" if name in ("svcca", "cka_biased") else ""
    with pytest.warns(
        UserWarning, match=rf"^On 8 images {name} cannot be .*{pair}.* Take more images{advice}\.$"
    ) as caught:
        found = ALL[name](given_)
    assert caught[0].filename == __file__
    if name == "svcca":  # with as many directions as images can have, every network contains every other
        np.testing.assert_allclose(found.values, 1, atol=1e-9)


def test_depara_warns_of_what_edges_add_to_its_value() -> None:
    rng = np.random.default_rng(16)
    given_ = {"a": rng.normal(size=(8, 50)), "b": rng.normal(size=(8, 50))}
    nodes = np.zeros((8, 1), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        little = relatives.depara(given_, nodes, edge_weight=0.25)
    with pytest.warns(UserWarning, match="On 8 images depara cannot be trusted"):
        much = relatives.depara(given_, nodes, edge_weight=10)
    np.testing.assert_allclose(little.chance[0, 1] / much.chance[0, 1], 0.2 / (10 / 11))


def test_cka_of_networks_without_structure() -> None:
    """What U-centring leaves is nothing, or rounding."""
    given_ = representations(17, 9)
    apart = np.zeros((9, 4), np.float32)
    apart[3] = 2
    for alike in (apart, np.eye(9, 12, dtype=np.float32) * 3):
        with pytest.raises(jt.JaxTransferError, match="Network 'some' gives unbiased CKA nothing to compare"):
            relatives.cka(given_ | {"some": alike})


@pytest.mark.parametrize("name", SLOW)
def test_constant_units_count_for_nothing(name: str) -> None:
    """For RSA they are among the units that an image is correlated over, as by its definition."""
    fast, slow = SLOW[name]
    given_ = representations(5, 18)
    with_constant = given_ | {"few": np.concatenate([given_["few"], np.full((18, 4), 7, np.float32)], axis=1)}
    found = fast(with_constant)
    check(found, with_constant, slow)
    if name != "rsa":
        np.testing.assert_allclose(found.values, fast(given_).values, atol=1e-6)


@pytest.mark.parametrize("name", SLOW)
def test_ties_from_repeated_images(name: str) -> None:
    fast, slow = SLOW[name]
    given_ = {name: np.concatenate([each, each[:6]]) for name, each in representations(6, 14).items()}
    check(fast(given_), given_, slow)


@pytest.mark.parametrize("name", SLOW)
def test_images_that_cannot_be_used(name: str) -> None:
    fast, slow = SLOW[name]
    given_ = representations(7, 19)
    given_["some"][3, 2] = np.nan
    given_["many"][11] = np.inf
    found = fast(given_)
    assert np.argwhere(~found.usable).tolist() == [[1, 3], [2, 11]]
    check(found, given_, slow)


def test_images_without_a_direction() -> None:
    """RSA: the same in all units once the mean is removed. DEPARA: zero."""
    given_ = representations(8, 16)
    given_["few"][5] = 0
    nodes = np.ones((16, 3), np.float32)
    found = relatives.depara(given_, nodes)
    assert np.argwhere(~found.usable).tolist() == [[0, 5]]
    kept = np.delete(np.arange(16), 5)
    arrays = [each[kept] for each in given_.values()]
    np.testing.assert_allclose(found.values[0, 1], (1 + 0.25 * slow_edges(*arrays[:2])) / 1.25, atol=1e-6)
    balanced = np.stack([np.arange(12.0), np.arange(12.0)[::-1], np.arange(12.0) ** 2], axis=1)
    balanced[4] = balanced[np.arange(12) != 4].mean(0) + 2
    found = relatives.rsa({"a": balanced, "b": representations(9, 12)["some"]})
    assert np.argwhere(~found.usable).tolist() == [[0, 4]]


@pytest.mark.parametrize("compare", [relatives.rsa, relatives.cka, relatives.cka_biased, relatives.svcca])
def test_refusals(compare: Any) -> None:
    given_ = representations(10, 9)
    least = 5 if compare is relatives.cka else 4
    message = f"{least} or more images that all networks can use; there are {least - 1}"
    with pytest.raises(jt.JaxTransferError, match=message):
        compare({name: each[: least - 1] for name, each in given_.items()})
    assert np.isfinite(compare({name: each[:least] for name, each in given_.items()}).pseudo_values).all()
    same = given_ | {"some": np.repeat(given_["some"][:1], 9, axis=0)}
    message = "4 or more images" if compare is relatives.rsa else "'some' gives all probe images the same"
    with pytest.raises(jt.JaxTransferError, match=message):
        compare(same)


@pytest.mark.slow
def test_standard_errors_are_right() -> None:
    """The spread over many probes is what the jackknife says from one of them.

    For SVCCA it says too much, since the number of directions jumps.
    """
    units = {"a": 6, "b": 8}
    rng = np.random.default_rng(11)
    weights = {name: rng.normal(size=(5, count)) for name, count in units.items()}

    def probe(seed: int) -> dict[str, np.ndarray]:
        images = np.random.default_rng(seed).normal(size=(60, 5))
        return {name: np.tanh(images @ each) for name, each in weights.items()}

    for name, (fast, _) in SLOW.items():
        found = [fast(probe(seed)) for seed in range(60)]
        most = 2 if name == "svcca" else 1.3
        spread = np.std([each.values[0, 1] for each in found], ddof=1)
        variances = [each.pseudo_values.var(ddof=1) / len(each.pseudo_values) for each in found]
        assert 0.77 < np.sqrt(np.mean(variances)) / spread < most, name


def apply(params: Any, images: Any) -> Any:
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ params["a"])
    return {"one": hidden, "two": (hidden @ params["b"]).reshape(len(images), 2, 2)}


def network(name: str, seed: int, units: int) -> jt.Network:
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(48, units)), "b": rng.normal(size=(units, 4))}
    return jt.Network(name, apply, {key: each.astype(np.float32) for key, each in params.items()})


def test_in_a_sweep_they_cost_no_pass_of_their_own(tmp_path: Any) -> None:
    """The same points give every method, in one compiled pass, and are what `apply` returns."""
    traces = []

    def counted(params: Any, images: jax.Array) -> Any:
        traces.append(images.shape)
        return apply(params, images)

    networks = [jt.Network(each.name, counted, each.params) for each in (network("x", 0, 6), network("y", 1, 6))]
    images = np.random.default_rng(0).uniform(size=(14, 4, 4, 3)).astype(np.float32)
    methods = ("saliency", *jt.RELATIVES)
    found = jt.affinity_matrix(networks, images, methods=methods, batch_size=5, directory=tmp_path)
    assert found.methods == methods
    assert len(traces) == 1
    assert {file.parent.name for file in tmp_path.glob("points/x/*/key.json")} == {
        "saliency",
        "input_x_gradient",  # the nodes of DEPARA
        "representation",
    }
    given_ = {}
    for each in networks:
        outputs = apply(each.params, images)
        given_[each.name] = np.concatenate([np.reshape(outputs[key], (14, -1)) for key in ("one", "two")], axis=1)
        stored = Points(tmp_path / "points").open(each.name, "representation")[:]
        np.testing.assert_allclose(stored, given_[each.name], atol=1e-5)
        given_[each.name] = stored  # ranks are of just these numbers
    for name, (_, slow) in SLOW.items():
        np.testing.assert_allclose(found[name][0, 1], slow(*given_.values()), atol=1e-6)
        assert found.counts(name)[0, 1] == 14
        parts = found.pseudo_values(name)
        assert parts is not None
        np.testing.assert_allclose(found.stderr(name)[0, 1], parts.std(ddof=1) / np.sqrt(len(parts)), rtol=1e-5)
    maps = jt.affinity_matrix(networks, images, methods=["input_x_gradient"], batch_size=5, directory=tmp_path)
    expected = (maps["input_x_gradient"][0, 1] + 0.25 * slow_edges(*given_.values())) / 1.25
    np.testing.assert_allclose(found["depara"][0, 1], expected, atol=1e-6)
    assert len(traces) == 1  # nothing was computed again
    only = jt.affinity_matrix(networks, images, methods=["cka"], batch_size=5)
    np.testing.assert_allclose(only["cka"], found["cka"], atol=1e-5)


def test_networks_of_different_size_and_a_bad_image(tmp_path: Any) -> None:
    networks = [network("small", 0, 3), network("large", 1, 40)]
    images = np.random.default_rng(1).uniform(size=(9, 4, 4, 3)).astype(np.float32)
    images[2] = np.nan
    found = jt.affinity_matrix(networks, images, methods=jt.RELATIVES, batch_size=4, image_names=list("abcdefghi"))
    for method in jt.RELATIVES:
        assert found.unusable[method] == (("small", "c"), ("large", "c"))
        assert np.isfinite(found[method]).all()
        assert found.counts(method)[0, 1] == 8
    with pytest.raises(jt.JaxTransferError, match="weight of edges must be 0 or more, not -1"):
        jt.affinity_matrix(networks, images, methods=["depara"], edge_weight=-1)
    with pytest.raises(jt.JaxTransferError, match=r"There is no method 'pca'; there are: .*saliency, .*svcca"):
        jt.affinity_matrix(networks, images, methods=["pca"])
