"""Measured transfer of tiny networks to tiny tasks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import Affinity, JaxTransferError, LabelledTask, Network, certain_ranking, transfer
from jaxtransfer.training.random_weights import shuffled
from jaxtransfer.training.transfers import Transfers

COUNT = 48


def mean(params: Any, images: jax.Array) -> jax.Array:
    return images.mean((1, 2)) * params["scale"][None]


def grid(params: Any, images: jax.Array) -> jax.Array:
    return jnp.einsum("nhwc,cd->nhwd", images, params["scale"])


def network(name: str, seed: int = 0, apply: Any = mean) -> Network:
    scale = np.random.default_rng(seed).normal(size=(3,) if apply is mean else (3, 5)).astype(np.float32)
    return Network(name, apply, {"scale": scale})


@functools.cache
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8)


def task(name: str = "red", labels: Any = None) -> LabelledTask:
    red = images()[..., 0].mean((1, 2))
    return LabelledTask.of(images(), np.where(red > np.median(red), "red", "dull") if labels is None else labels,
                           name=name)  # fmt: skip


def measured(networks: Any, tasks: Any, **options: Any) -> Transfers:
    return transfer(networks, tasks, **{"seeds": 1, "folds": 3, "steps": 40, **options})


def colours(one: float, other: float) -> Network:
    """A network that sees red and green with these weights, and no blue."""
    return Network(f"{one:g}-{other:g}", mean, {"scale": np.array([one, other, 0], np.float32)})


def test_sources_are_measured_for_tasks_of_every_type() -> None:
    reds, rng = images()[..., 0] / 255, np.random.default_rng(1)
    tasks = [
        task(),
        task("numbers", np.stack([reds.mean((1, 2)), reds[:, 0, 0]], 1)),
        task("several", (images()[:, :2, 0, 0] > 127).astype(int)),
        task("pixels", reds[..., None].astype(np.float32)),
        task("areas", np.where(rng.random(reds.shape) < 0.1, -1, reds > 0.5)),
    ]
    transfers = measured([network("grid", 1, grid), network("other", 2, grid)], tasks)
    assert transfers.sources == ("grid", "other", "random")
    assert transfers.targets == tuple(task.name for task in tasks)
    for name, metric in {"red": "accuracy", "numbers": "r2", "several": "average_precision", "pixels": "r2",
                         "areas": "accuracy"}.items():  # fmt: skip
        row = transfers.targets.index(name)
        assert np.isfinite(transfers[metric][row]).all()
        assert np.isfinite(transfers.stderr(metric)[row]).all()
        np.testing.assert_array_equal(transfers.counts(metric)[row], COUNT)
    assert np.isnan(transfers["r2"][0]).all()
    assert transfers["r2"][3, 0] > 0.5, "the red of a pixel is a linear map of its colours"


def test_the_network_that_sees_the_label_is_best_and_certainly() -> None:
    transfers = measured([colours(0, 1), colours(1, 0)], task())
    first, *_ = certain_ranking(transfers, "red", method="accuracy")
    assert first.name == "1-0"
    assert first.above_next is not None
    assert first.above_next > 0.5
    oracle = transfers.oracle("cross_entropy")
    assert oracle.scores["red"]["1-0"] == pytest.approx(-transfers["cross_entropy"][0, 1])
    assert oracle.stderr["red"]["1-0"] == pytest.approx(transfers.stderr("cross_entropy")[0, 1])


def test_errors_are_those_of_the_mean_over_folds() -> None:
    transfers = measured([network("net")], task(), seeds=2)
    folds = transfers.pseudo_values("accuracy")
    assert folds is not None
    assert folds.shape == (3, 2)
    np.testing.assert_allclose(transfers["accuracy"][0], folds.mean(0), rtol=1e-6)
    np.testing.assert_allclose(transfers.stderr("accuracy")[0], folds.std(0, ddof=1) / np.sqrt(3), rtol=1e-5)


def test_results_are_reused_and_the_same(tmp_path: Any) -> None:
    networks, calls = [network("one", 1), network("two", 2)], []
    first = measured(networks[:1], task(), directory=tmp_path)
    assert not list((tmp_path / "unfinished").iterdir())
    again = measured(networks, task(), directory=tmp_path, progress=lambda *call: calls.append(call))
    np.testing.assert_array_equal(again["accuracy"][:, [0, 2]], first["accuracy"])
    labels = [name for _, _, name in calls]
    assert labels.count("red, one") == 1, "a stored result is reported once"
    assert labels.count("red, two") > 1
    other = measured(networks, task(labels=task().labels[::-1].copy()), directory=tmp_path)
    assert (other["cross_entropy"] != again["cross_entropy"]).all()
    damaged = tmp_path / "transfers" / "red" / "two.npz"
    damaged.write_bytes(b"PK")
    np.testing.assert_array_equal(
        measured(networks, task(labels=task().labels[::-1].copy()), directory=tmp_path)["accuracy"], other["accuracy"]
    )


def test_only_the_best_by_score_are_measured() -> None:
    networks, tasks = [network(name, i) for i, name in enumerate("abc")], [task("one"), task("two")]
    scores = Affinity.of(
        ["a", "b", "c"], {"ridge": np.array([[0.1, 0.3, 0.2], [0.9, 0.1, 0.2]])}, targets=["one", "two"]
    )
    transfers = measured(networks, tasks, scores=scores, top=2)
    known = {target: {name for name, *_ in transfers.rank(target, method="accuracy")} for target in ("one", "two")}
    assert known == {"one": {"b", "c", "random"}, "two": {"a", "c", "random"}}


def test_every_architecture_has_its_random_weights() -> None:
    transfers = measured([network("one"), network("two", 1, grid), network("three", 2)], task())
    assert transfers.sources == ("one", "two", "three", "random-one", "random-two")
    assert measured([network("random")], task()).sources == ("random", "random-random")


def test_random_weights_are_shuffled_array_by_array() -> None:
    params = {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "n": np.arange(5), "eps": 1e-3,
              "key": jax.random.key(0)}  # fmt: skip
    one, same, other = shuffled(params, 0), shuffled(params, 0), shuffled(params, 1)
    assert one["w"].shape == (2, 3, 4)
    np.testing.assert_array_equal(np.sort(one["w"].ravel()), params["w"].ravel())
    np.testing.assert_array_equal(one["w"], same["w"])
    assert (one["w"] != other["w"]).any()
    assert (one["w"] != params["w"]).any()
    assert one["n"] is params["n"]
    assert one["eps"] == 1e-3
    assert one["key"] is params["key"]


def test_features_that_are_not_finite_leave_out_their_example() -> None:
    def faulty(params: Any, x: jax.Array) -> jax.Array:
        features = mean(params, x)
        return jnp.where(features[:, :1] > jnp.sort(features[:, 0])[-2], jnp.nan, features)

    few = task(labels=task().labels).take(np.arange(COUNT))
    with pytest.warns(UserWarning, match=r"'(random-)?faulty' for the task 'red' are of \d+ of 48 labelled examples"):
        transfers = measured([network("whole"), Network("faulty", faulty, {"scale": np.ones(3, np.float32)})], few)
    column = transfers.sources.index("faulty")
    assert transfers.counts("accuracy")[0, column] < COUNT == transfers.counts("accuracy")[0, 0]
    assert np.isfinite(transfers["accuracy"]).all()


def test_a_network_that_cannot_be_measured_does_not_end_the_others() -> None:
    def undefined(params: Any, x: jax.Array) -> jax.Array:
        return mean(params, x) * jnp.nan

    nowhere = Network("nowhere", undefined, {"scale": np.ones(3, np.float32)})
    with pytest.warns(UserWarning, match="nowhere' has no result for the task 'red': Its features .* 0 of 48"):
        transfers = measured([network("whole"), nowhere], task())
    alone = measured([network("whole")], task())
    np.testing.assert_array_equal(transfers["accuracy"][:, 0], alone["accuracy"][:, 0])
    assert transfers.sources == ("whole", "random-whole")
    message = "No source has a result for any task"
    with pytest.warns(UserWarning, match="has no result"), pytest.raises(JaxTransferError, match=message):
        measured([nowhere], task())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 2}, "The number of folds must be 3 or more; one is held out, .* not 2"),
        ({"seeds": 0}, "The number of seeds must be 1 or more, not 0"),
        ({"top": 1}, "The best networks are those of a score run"),
        ({"folds": 11}, "can be divided into 10 folds, not 11"),
        ({"protocol": "thawed"}, "no protocol 'thawed'"),
    ],
)
def test_mistakes_are_told(options: Any, message: str) -> None:
    with pytest.raises(JaxTransferError, match=message):
        measured([network("net")], task(), **options)


def test_names_are_told_apart() -> None:
    with pytest.raises(JaxTransferError, match="Several networks have the name 'net'"):
        measured([network("net"), network("net", 1)], task())
    with pytest.raises(JaxTransferError, match="There are no tasks"):
        measured([network("net")], [])
    scores = Affinity.of(["net", "gone"], {"ridge": np.array([[0.1, 0.3]])}, targets=["red"])
    with pytest.raises(JaxTransferError, match="'gone'"):
        measured([network("net")], task(), scores=scores, top=1)
