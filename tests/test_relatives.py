"""RSA, DEPARA, CKA and SVCCA against their definitions written out, image by image, in float64."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import squareform

import jaxtransfer as jt
from jaxtransfer import relatives
from jaxtransfer.points import Points
from jaxtransfer.relatives import Comparison

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


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
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


SLOW = {"rsa": (relatives.rsa, slow_rsa), "cka": (relatives.cka, slow_cka), "svcca": (relatives.svcca, slow_svcca)}


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


@pytest.mark.filterwarnings("ignore:SVCCA of")
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
    monkeypatch.setattr(relatives, "_HELD", 400)
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


@pytest.mark.filterwarnings("ignore:SVCCA of")
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


def test_svcca_of_too_few_images() -> None:
    """With as many directions as images can have, every network contains every other."""
    rng = np.random.default_rng(12)
    with pytest.warns(UserWarning, match="SVCCA of a, b keeps all directions that 8 images have"):
        found = relatives.svcca({name: rng.normal(size=(8, 50)) for name in "ab"})
    np.testing.assert_allclose(found.values, 1, atol=1e-9)


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


@pytest.mark.parametrize("compare", [relatives.rsa, relatives.cka, relatives.svcca])
def test_refusals(compare: Any) -> None:
    given_ = representations(10, 9)
    with pytest.raises(jt.JaxTransferError, match="four images or more that all networks can use; here are 3"):
        compare({name: each[:3] for name, each in given_.items()})
    same = given_ | {"some": np.repeat(given_["some"][:1], 9, axis=0)}
    message = "four images or more" if compare is relatives.rsa else "'some' represents all probe images alike"
    with pytest.raises(jt.JaxTransferError, match=message):
        compare(same)


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
    with pytest.raises(jt.JaxTransferError, match=r"Methods must be some of saliency, .*svcca, not pca"):
        jt.affinity_matrix(networks, images, methods=["pca"])
