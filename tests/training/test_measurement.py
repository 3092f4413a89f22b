"""What trainings on folds see, and what they choose."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxtransfer.data.labelled_task import LabelledTask
from jaxtransfer.devices import default_mesh, device_mesh
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.scores.target import Target
from jaxtransfer.training.frozen import frozen_model
from jaxtransfer.training.measurement import Learning, Outcome, Run, measure, train
from jaxtransfer.training.splits import batch_indices, folds_of, split

LEARNING = Learning(steps=40, batch=16, interval=10, chunk=10, rates=(1e-4, 0.1))
COUNT, UNITS, FOLDS = 60, 4, 4


def problem(seed: int = 0, classes: int = 3) -> tuple[np.ndarray, Target]:
    """Features from which classes can be predicted, and the classes."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(COUNT) % classes
    features = rng.normal(size=(classes, UNITS))[numbers] + rng.normal(size=(COUNT, UNITS)) / 4
    task = LabelledTask.of(np.zeros((COUNT, 1, 1, 1), np.uint8), numbers)
    return features.astype(np.float32), Target.of(task)


def measured(features: np.ndarray, target: Target, mesh: Mesh | None = None, **options: Any) -> Outcome:
    mesh = default_mesh() if mesh is None else mesh
    fold = folds_of(target.group, FOLDS, "task")
    model = frozen_model(features, target, LEARNING, mesh)
    return measure(model, target, fold, LEARNING, 2, mesh, **options)


@pytest.mark.parametrize("held_out", [0, 3])
def test_labels_of_the_held_out_fold_change_no_weights(held_out: int) -> None:
    features, target = problem()
    fold = folds_of(target.group, FOLDS, "task")
    labels = np.where(fold == held_out, (target.values + 1) % 3, target.values)
    runs, states = [Run(held_out, seed, rate) for seed in range(3) for rate in range(2)], []
    for values in (target.values, labels):
        changed = dataclasses.replace(target, values=values)
        model = frozen_model(features, changed, LEARNING, default_mesh())
        states.append(train(model, fold, LEARNING, runs, default_mesh()))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_features_of_the_held_out_fold_change_no_weights() -> None:
    features, target = problem()
    fold = folds_of(target.group, FOLDS, "task")
    other = np.where((fold == 0)[:, None], features * 100, features)
    models = (frozen_model(values, target, LEARNING, default_mesh()) for values in (features, other))
    states = [train(model, fold, LEARNING, [Run(0, 0, 1)], default_mesh()) for model in models]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_training_validation_and_held_out_examples_are_apart() -> None:
    fold = np.array([0, 1, 2, 3, 0, 1, 2, 3, -1, 2])
    seen = []
    for held_out in range(4):
        for seed in range(3):
            parts = split(fold, held_out, seed)
            np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.flatnonzero(fold >= 0))
            assert {*fold[parts.held_out]} == {held_out}
            seen.append((held_out, *{*fold[parts.validation]}))
    assert len({*seen}) == 12, "every seed validates on another fold"


def test_every_epoch_shows_every_example_once_wherever_it_is_cut() -> None:
    train_set = np.array([3, 5, 8, 9, 11, 20])
    whole = batch_indices(train_set, (0, 1), 0, 9, 4)
    np.testing.assert_array_equal(np.sort(whole.reshape(6, 6), 1), [train_set] * 6)
    pieces = [batch_indices(train_set, (0, 1), first, first + 3, 4) for first in (0, 3, 6)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert (whole != batch_indices(train_set, (1, 1), 0, 9, 4)).any()


def test_the_learning_rate_that_learns_is_chosen() -> None:
    outcome = measured(*problem())
    np.testing.assert_array_equal(outcome.rate, 0.1)
    assert outcome.metrics["accuracy"].mean() > 0.9


def test_permuted_labels_give_chance() -> None:
    accuracies = []
    for seed in range(4):
        features, target = problem(seed)
        values = np.random.default_rng(seed).permutation(target.values)
        accuracies.append(measured(features, dataclasses.replace(target, values=values)).metrics["accuracy"].mean())
    assert abs(np.mean(accuracies) - 1 / 3) < 4 * np.sqrt(2 / 9 / (4 * COUNT))


def test_scaled_features_give_the_same() -> None:
    features, target = problem()
    one, other = measured(features, target), measured(features * 1024, target)
    np.testing.assert_allclose(one.metrics["cross_entropy"], other.metrics["cross_entropy"], rtol=1e-4)


def test_devices_and_groups_of_trainings_give_the_same() -> None:
    features, target = problem()
    alone, shared = measured(features, target), measured(features, target, device_mesh(2, 4))
    np.testing.assert_array_equal(alone.step, shared.step)
    np.testing.assert_allclose(alone.metrics["cross_entropy"], shared.metrics["cross_entropy"], rtol=1e-4)
    fold = folds_of(target.group, FOLDS, "task")
    few = frozen_model(features, target, LEARNING, default_mesh())._replace(at_once=3)
    grouped = measure(few, target, fold, LEARNING, 2, default_mesh())
    np.testing.assert_allclose(alone.metrics["cross_entropy"], grouped.metrics["cross_entropy"], rtol=1e-4)


def test_a_loss_that_is_never_finite_is_an_error() -> None:
    features, target = problem()
    with pytest.raises(JaxTransferError, match="not finite at any learning rate"):
        measured(np.where(np.isfinite(features), np.float32(np.inf), features), target)


def test_too_few_examples_for_the_folds() -> None:
    task = LabelledTask.of(np.zeros((5, 1, 1, 1), np.uint8), np.array(["a", "b", "a", "b", ""]), name="few")
    with pytest.raises(JaxTransferError, match="'few' can be divided into 4 folds, not 5: it has 4 labelled examples"):
        folds_of(Target.of(task).group, 5, "few")
