"""Training of whole networks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import JaxTransferError, LabelledTask, Network, Preprocess, transfer
from jaxtransfer.devices import default_mesh, device_mesh
from jaxtransfer.scores.target import Target
from jaxtransfer.training.finetune import finetune_model
from jaxtransfer.training.measurement import Learning, Run, train
from jaxtransfer.training.splits import folds_of

LEARNING = Learning(steps=20, batch=8, interval=10, chunk=10, rates=(0.01,))
COUNT = 24
_ONE = (Run(0, 0, 0),)


def apply(params: Any, images: jax.Array) -> Any:
    """A layer of features after a normalisation, and a head that must not be read."""
    norm = params["norm"]
    images = (images - norm["mean"].reshape(1, 1, 1, 3)) / jnp.sqrt(norm["var"] + params["eps"]).reshape(1, 1, 1, 3)
    units = jax.nn.relu(jnp.einsum("nhwc,cd->nhwd", images, params["kernel"].astype(jnp.float32)))
    sign = jax.random.rademacher(params["key"], (1, 1), jnp.float32)
    return {"features": units, "logits": sign * units.mean((1, 2)) * params["order"][None, :1].astype(jnp.float32)}


def network(name: str = "net", seed: int = 0, dtype: Any = np.float32) -> Network:
    rng = np.random.default_rng(seed)
    params = {
        "kernel": rng.normal(size=(3, 6)).astype(dtype),
        "norm": {"mean": np.full(3, 0.5, np.float32), "var": np.full(3, 0.1, np.float32)},
        "order": np.arange(4),
        "eps": 1e-3,
        "key": jax.random.key(3),
    }
    return Network(name, apply, params, Preprocess((4, 4)))


def task(name: str = "red", labels: Any = None) -> LabelledTask:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    red = images[..., 0].mean((1, 2))
    default = np.where(red > np.median(red), "red", "dull")
    return LabelledTask.of(images, default if labels is None else labels, name=name)


def trained(net: Network, target: Target | None = None, runs: Any = _ONE, **options: Any) -> Any:
    target = Target.of(task()) if target is None else target
    mesh = options.pop("mesh", default_mesh())
    model = finetune_model(net, task().images, target, LEARNING, mesh, **{"from_scratch": False, **options})
    return train(model, folds_of(target.group, 3, "red"), LEARNING, runs, mesh)


def test_weights_move_and_running_statistics_stay() -> None:
    net = network()
    state = trained(net)
    assert [leaf.shape for leaf in state.weights["network"]] == [(1, 3, 6)]
    moved = np.abs(np.asarray(state.weights["network"][0][0]) - net.params["kernel"])
    assert 0.01 < moved.max() < LEARNING.steps * 0.01
    mean, order = net.params["norm"]["mean"], net.params["order"]
    constants = [np.asarray(leaf[0]) for leaf in state.statistics["constants"]]
    assert any(np.array_equal(leaf, mean) for leaf in constants)
    assert any(np.array_equal(leaf, order) for leaf in constants)


def test_the_readout_reads_the_features_and_no_head() -> None:
    assert trained(network()).weights["readout"]["kernel"].shape == (1, 6, 2)


def test_half_precision_weights_are_trained_in_single_precision() -> None:
    half = trained(network(dtype=np.float16))
    assert half.weights["network"][0].dtype == np.float32
    whole = trained(network())
    np.testing.assert_allclose(half.weights["network"][0], whole.weights["network"][0], atol=0.01)


def test_labels_of_the_held_out_fold_change_no_weights() -> None:
    target = Target.of(task())
    fold = folds_of(target.group, 3, "red")
    other = dataclasses.replace(target, values=np.where(fold == 0, 1 - target.values, target.values))
    jax.tree.map(np.testing.assert_array_equal, *(trained(network(), t) for t in (target, other)))


def test_training_from_scratch_forgets_the_network_and_differs_by_seed() -> None:
    runs = (Run(0, 0, 0), Run(0, 1, 0))
    state = trained(network(), runs=runs, from_scratch=True)
    one, other = np.asarray(state.weights["network"][0])
    assert np.abs(one - other).max() > 0.5
    assert np.abs(one - network().params["kernel"]).max() > 0.5


def test_devices_share_trainings() -> None:
    runs = [Run(fold, seed, 0) for fold in range(2) for seed in range(4)]
    alone, shared = trained(network(), runs=runs), trained(network(), runs=runs, mesh=device_mesh(1, 8))
    np.testing.assert_allclose(alone.weights["network"][0], shared.weights["network"][0], atol=1e-5)


def test_sources_are_measured_and_so_is_training_from_scratch() -> None:
    numbers = task().images[..., 0].mean((1, 2))[:, None].astype(np.float32)
    tasks = [task(), task("numbers", numbers)]
    transfers = transfer([network("a"), network("b", 1)], tasks, protocol="finetune", seeds=1, folds=3, steps=4)
    assert transfers.sources == ("a", "b", "scratch")
    assert np.isfinite(transfers["accuracy"][0]).all()
    assert np.isfinite(transfers["r2"][1]).all()


def test_a_network_without_weights_to_train_is_told() -> None:
    def count(params: Any, images: jax.Array) -> jax.Array:
        return images.mean((1, 2)) * params["n"].astype(jnp.float32)

    message = "'(ints|scratch)' has no result for the task 'red': it has no floating-point weights"
    with pytest.warns(UserWarning, match=message), pytest.raises(JaxTransferError, match="No source has a result"):
        transfer([Network("ints", count, {"n": np.ones((1, 3), int)})], task(), protocol="finetune", folds=3)
