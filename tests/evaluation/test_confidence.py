"""Bands and probabilities hold what they say: checked on made-up networks, whose truth is known or drawn again."""

import math

import numpy as np
import pytest
from scipy import stats

import jaxtransfer as jt
from jaxtransfer.comparison.affinity import MethodResult, pair_columns
from support.helpers import affinity_of


class World:
    """Networks are latent vectors; an image sees them disturbed and weighs directions in its own way."""

    def __init__(self, seed: int, networks: int, images: int, disturbed: float, weighed: float, lost: bool) -> None:
        self._rng = np.random.default_rng(seed)
        self._images, self._disturbed, self._weighed = images, disturbed, weighed
        self.names = [f"n{i}" for i in range(networks)]
        self._latent = self._rng.normal(size=(networks, 6)) * np.array([1.5, 1.2, 1, 0.7, 0.7, 0.7])
        scores = self._latent @ self._latent.T / 6 + 0.3 * self._rng.normal(size=(networks, networks))
        kept = self._rng.random((networks, networks)) < (0.8 if lost else 1)
        self.oracle = jt.Oracle(
            "truth",
            {
                target: {source: float(scores[t, s]) for s, source in enumerate(self.names) if s != t and kept[t, s]}
                for t, target in enumerate(self.names)
                if not lost or t % 4
            },
        )

    def similarities(self) -> np.ndarray:
        """[images, networks, networks] of one probe."""
        seen = self._latent + self._disturbed * self._rng.normal(size=(self._images, *self._latent.shape))
        seen = seen * np.exp(self._weighed * self._rng.normal(size=(self._images, 1, 6)))
        seen /= np.linalg.norm(seen, axis=-1, keepdims=True)
        return np.einsum("nid,njd->nij", seen, seen)

    def probe(self) -> jt.Affinity:
        """The affinities of one probe."""
        return affinity_from(self.similarities(), self.names)


def affinity_from(similarities: np.ndarray, names: list[str]) -> jt.Affinity:
    count = len(similarities)
    upper = np.triu_indices(len(names), 1)
    by_image = similarities[:, *upper].astype(np.float32)
    matrix = np.eye(len(names), dtype=np.float32)
    matrix[upper] = by_image.mean(0)
    matrix.T[upper] = matrix[upper]
    stderr = np.zeros_like(matrix)
    stderr[upper] = stderr.T[upper] = by_image.std(0, ddof=1) / math.sqrt(count)
    return jt.Affinity(names, "cosine", {"m": MethodResult(matrix, stderr, np.full(matrix.shape, count), (), by_image)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("networks", "images", "disturbed", "weighed", "lost"),
    [(20, 50, 1.0, 0.3, False), (20, 20, 0.5, 1.0, False), (30, 40, 3.0, 0.0, False), (20, 40, 1.0, 0.5, True)],
)
def test_bands_of_95_percent_hold_95_percent(
    networks: int, images: int, disturbed: float, weighed: float, lost: bool
) -> None:
    """Over K and 150 worlds: the mean of other worlds, and in each the mean of other probes."""
    worlds = [World(seed, networks, images, disturbed, weighed, lost) for seed in range(150)]
    hits, bands, means = [], [], []
    for world in worlds:
        affinity = world.probe()
        hits.append(jt.retrieval_curve(affinity, world.oracle).hits)
        bands.append(jt.retrieval_bands(affinity, world.oracle, resamples=60))
        others = [jt.retrieval_curve(world.probe(), world.oracle).hits for _ in range(12)]
        means.append(np.mean(others, axis=0))
    length = min(map(len, hits)) - 1  # at the last K there is nothing to miss
    expected = np.mean([each[:length] for each in hits], axis=0)
    over_networks, over_images = [], []
    for band, mean in zip(bands, means, strict=True):
        assert band.networks is not None
        assert band.images is not None
        low, high = (each[:length] for each in band.networks)
        over_networks.append((low - 1e-6 <= expected) & (expected <= high + 1e-6))
        # The mean of twelve probes is known to 1 / sqrt(12) of a probe's spread.
        low, high = (each[:length] for each in band.images)
        centre, half = (low + high) / 2, (high - low) / 2 * math.sqrt(1 + 1 / 12)
        over_images.append(np.abs(mean[:length] - centre) <= half + 1e-6)
    assert 0.92 <= np.mean(over_networks) <= 0.98
    assert 0.92 <= np.mean(over_images) <= 0.98


def test_bands_where_nothing_can_vary() -> None:
    """A perfect ranking that every image gives; and all K, where every order has all hits."""
    names = [f"n{i}" for i in range(9)]
    value = np.add.outer(np.arange(9.0), np.arange(9.0)) / 20
    oracle = jt.Oracle("same", {t: {s: float(j) for j, s in enumerate(names) if s != t} for t in names})
    affinity = affinity_from(np.repeat(value[None], 10, axis=0), names)
    curve = jt.retrieval_curve(affinity, oracle)
    bands = jt.retrieval_bands(affinity, oracle)
    assert bands.images is not None
    assert bands.networks is not None
    np.testing.assert_allclose(bands.images, [curve.hits, curve.hits])
    assert (bands.networks.low[:7] < curve.hits[:7]).all()
    np.testing.assert_allclose(bands.networks.high, curve.hits)
    np.testing.assert_allclose(bands.networks.low[-1], curve.hits[-1])
    again = jt.retrieval_bands(affinity_of(affinity["m"], names), oracle)
    assert again.images is None
    assert again.networks is not None
    np.testing.assert_allclose(again.networks, bands.networks)
    one = jt.Oracle("one", {"n0": dict(oracle.scores["n0"])})
    assert jt.retrieval_bands(affinity, one).networks is None
    with pytest.raises(jt.JaxTransferError, match="confidence must lie between 0 and 1, not 95"):
        jt.retrieval_bands(affinity, oracle, confidence=95)


def test_bands_narrow_with_confidence_and_images() -> None:
    world = World(3, 20, 30, 1.0, 0.3, False)
    affinity = world.probe()
    widths = []
    for confidence in (0.5, 0.95):
        bands = jt.retrieval_bands(affinity, world.oracle, confidence=confidence)
        assert bands.images is not None
        assert bands.networks is not None
        widths.append([bands.images.high - bands.images.low, bands.networks.high - bands.networks.low])
    half, nearly_all = np.array(widths)[:, :, :-1]
    assert (half < nearly_all).all()
    assert (nearly_all[0, :10] < nearly_all[1, :10]).all()


def test_unusable_maps_are_left_out_of_the_draws() -> None:
    """Maps that are missing everywhere they could tell leave the bands that the others give."""
    world = World(4, 12, 40, 1.0, 0.3, False)
    whole = world.similarities()
    affinity = affinity_from(whole, world.names)
    parts = affinity.pseudo_values("m")
    assert parts is not None
    holes = parts.copy()
    holes[7] = np.nan
    holes[3, pair_columns(12, np.array(2), np.delete(np.arange(12), 2))] = np.nan
    counts = affinity.counts("m")
    result = MethodResult(affinity["m"], affinity.stderr("m"), counts, (), holes)
    found = jt.retrieval_bands(jt.Affinity(world.names, "cosine", {"m": result}), world.oracle, resamples=400)
    expected = jt.retrieval_bands(affinity, world.oracle, resamples=400)
    assert found.images is not None
    assert expected.images is not None
    np.testing.assert_allclose(found.images.high - found.images.low, expected.images.high - expected.images.low, atol=4)


def test_probabilities_are_uniform_where_two_sources_are_alike() -> None:
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        similarities = rng.normal(size=(12, 3, 3)) + rng.normal(size=(12, 1, 1))
        found.append(jt.probability_above(affinity_from(similarities, list("abc")), "a", "b", "c"))
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_probabilities_are_those_of_the_bootstrap() -> None:
    """Image by image: what two sources have in common does not blur their order."""
    rng = np.random.default_rng(1)
    similarities = np.repeat(rng.normal(size=(80, 1, 1)), 3, axis=1).repeat(3, axis=2)
    similarities = similarities + 0.2 * rng.normal(size=(80, 3, 3)) + np.array([0, 0.04, 0])
    affinity = affinity_from(similarities, list("abc"))
    draws = rng.integers(0, 80, (20_000, 80))
    difference = similarities[:, 0, 1] - similarities[:, 0, 2]
    drawn = difference[draws].mean(1)
    found = jt.probability_above(affinity, "a", "b", "c")
    assert abs(found - np.mean(drawn > 0)) < 0.02
    np.testing.assert_allclose(jt.probability_above(affinity, "a", "c", "b"), 1 - found)


def test_so_many_images_do_settle_an_order() -> None:
    """With the images that are asked for, the median probability is what was wanted."""
    rng = np.random.default_rng(2)

    def similarities(images: int) -> np.ndarray:
        return rng.normal(size=(images, 3, 3)) + np.array([0, 0.3, 0])

    def few() -> np.ndarray:
        drawn = similarities(25)
        drawn[:, 0, 1] += 0.3 - (drawn[:, 0, 1] - drawn[:, 0, 2]).mean()  # a difference that is the true one
        return drawn

    needed = []
    for _ in range(50):
        first = jt.certain_ranking(affinity_from(few(), list("abc")), "a")[0]
        assert first.name == "b"
        assert first.more_images is not None
        needed.append(first.more_images)
    total = 25 + round(np.median(needed))
    after = [jt.probability_above(affinity_from(similarities(total), list("abc")), "a", "b", "c") for _ in range(400)]
    assert 0.93 < np.median(after) < 0.965


def test_ranking() -> None:
    names = list("abcd")
    matrix = np.array([[1, 0.5, 0.7, 0.7], [0.5, 1, 0, 0], [0.7, 0, 1, 0], [0.7, 0, 0, 1]], np.float32)
    errors = np.full((4, 4), 0.1, np.float32)
    affinity = jt.Affinity(names, "cosine", {"m": MethodResult(matrix, errors, np.full((4, 4), 30))})
    ranked = jt.certain_ranking(affinity, "a")
    assert [each[:3] for each in ranked] == affinity.rank("a")
    assert [each.name for each in ranked] == ["c", "d", "b"]
    assert ranked[0].above_next == pytest.approx(0.5)
    assert ranked[0].more_images is None  # no number of images tells equal ones apart
    probability = stats.norm.cdf(0.2 / math.hypot(0.1, 0.1))
    assert ranked[1].above_next == pytest.approx(probability, rel=1e-5)
    wanted = 30 * (stats.norm.ppf(0.95) * math.hypot(0.1, 0.1) / 0.2) ** 2
    assert ranked[1].more_images == math.ceil(wanted) - 30
    assert ranked[2][3:] == (None, None)
    assert jt.certain_ranking(affinity, "a", confidence=0.6)[1].more_images == 0
    unknown = jt.certain_ranking(jt.Affinity.of(names, {"m": matrix}), "a")
    assert [each[3:] for each in unknown] == [(None, None)] * 3


def test_wrong_requests() -> None:
    affinity = jt.Affinity.of(list("abc"), {"m": np.eye(3)})
    with pytest.raises(jt.JaxTransferError, match="errors of these affinities are not known"):
        jt.probability_above(affinity, "a", "b", "c")
    with pytest.raises(jt.JaxTransferError, match="no network 'x'; there are: a, b, c"):
        jt.probability_above(affinity, "a", "x", "c")
    with pytest.raises(jt.JaxTransferError, match=r"between 0.5 and 1, not 0.2"):
        jt.certain_ranking(affinity, "a", confidence=0.2)
    with pytest.raises(jt.JaxTransferError, match=r"3 names need a matrix of 3 x 3, not \(2, 2\)"):
        jt.Affinity.of(list("abc"), {"m": np.eye(2)})
    with pytest.raises(jt.JaxTransferError, match="Several networks have one name"):
        jt.Affinity.of(list("aba"), {"m": np.eye(3)})
