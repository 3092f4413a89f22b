"""Losses, units and metrics of every type of labels against slow rewrites, and what they must not depend on."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, log_loss

from jaxtransfer.training.metrics import METRICS, judge
from jaxtransfer.training.readout import Readout, Units, label_units

COUNT, OUTPUTS, SIZE = 30, 3, (4, 4)
TYPES = ("classes", "numbers", "multilabel", "dense", "dense_classes")


def labels_of(target_type: str, seed: int = 0) -> np.ndarray:
    """Labels of which a third are missing."""
    rng = np.random.default_rng(seed)
    shape = (COUNT, *SIZE) if target_type.startswith("dense") else (COUNT,)
    missing = rng.random(shape) < 1 / 3
    if target_type.endswith("classes"):
        return np.where(missing, -1, rng.integers(0, OUTPUTS, shape)).astype(np.int32)
    missing = rng.random((*shape, OUTPUTS)) < 1 / 3
    values = rng.normal(2, 3, missing.shape) if target_type != "multilabel" else rng.integers(0, 2, missing.shape)
    return np.where(missing, np.nan, values).astype(np.float32)


def predictions_of(labels: np.ndarray, target_type: str) -> np.ndarray:
    shape = (*labels.shape, OUTPUTS) if target_type.endswith("classes") else labels.shape
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def readout_of(target_type: Any) -> Readout:
    return Readout(target_type, OUTPUTS, SIZE if target_type.startswith("dense") else None)


def slow_loss(target_type: str, units: Units, prediction: np.ndarray, label: np.ndarray) -> float:
    """The loss of one example in float64; NaN if it has no label."""
    prediction = prediction.astype(np.float64).reshape(-1, OUTPUTS)
    values = []
    for place, wanted in enumerate(label.reshape(len(prediction), -1)):
        if target_type.endswith("classes"):
            if wanted[0] >= 0:
                odds = np.exp(prediction[place])
                values.append(-np.log(odds[wanted[0]] / odds.sum()))
            continue
        for i, value in enumerate(wanted):
            if np.isnan(value):
                continue
            if target_type == "multilabel":
                right = 1 / (1 + np.exp(-prediction[place, i] * (2 * value - 1)))
                values.append(-np.log(right))
            else:
                values.append(((prediction[place, i] - value) / units.spread[i]) ** 2)
    return float(np.mean(values)) if values else np.nan


@pytest.mark.parametrize("target_type", TYPES)
def test_losses_are_those_of_known_labels(target_type: Any) -> None:
    labels = labels_of(target_type)
    predictions = predictions_of(labels, target_type)
    units = Units(np.ones((), np.float32), *label_units(target_type, OUTPUTS, labels))
    values, counts = readout_of(target_type).losses(units, predictions, labels)  # pyright: ignore[reportArgumentType]
    expected = [slow_loss(target_type, units, p, y) for p, y in zip(predictions, labels, strict=True)]
    np.testing.assert_array_equal(counts, ~np.isnan(expected))
    np.testing.assert_allclose(values, np.nan_to_num(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target_type", TYPES)
def test_an_untrained_readout_predicts_the_best_constant(target_type: Any) -> None:
    """No other constant has a smaller loss; shares of classes and labels are smoothed, so those move a little."""
    labels, readout = labels_of(target_type), readout_of(target_type)
    units = Units(np.ones((), np.float32), *label_units(target_type, OUTPUTS, labels))
    features = np.random.default_rng(0).normal(size=(COUNT, *((2, 2) if readout.size else ()), 5)).astype(np.float32)
    weights = readout.init(5)

    def loss(bias: np.ndarray) -> float:
        predictions = np.asarray(readout({**weights, "bias": bias}, units, features))  # pyright: ignore
        single = [slow_loss(target_type, units, p, y) for p, y in zip(predictions, labels, strict=True)]
        number = [np.sum(y >= 0) if target_type.endswith("classes") else np.sum(~np.isnan(y)) for y in labels]
        return float(np.average(np.nan_to_num(single), weights=number))

    constant = loss(weights["bias"])
    for i in range(OUTPUTS):
        for step in (-0.3, 0.3):
            assert constant < loss(weights["bias"] + step * np.eye(OUTPUTS, dtype=np.float32)[i])


def test_labels_of_pixels_are_predicted_place_by_place() -> None:
    """A change of a feature moves predictions only near its place."""
    readout, rng = Readout("dense", 2, (8, 8)), np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": np.zeros(2, np.float32)}
    units = Units(np.ones((), np.float32), np.zeros(2, np.float32), np.ones(2, np.float32))  # pyright: ignore
    features = rng.normal(size=(1, 4, 4, 3)).astype(np.float32)
    changed = features.copy()
    changed[0, 0, 0] += 1
    moved = np.asarray(readout(weights, units, changed) - readout(weights, units, features))  # pyright: ignore
    assert np.abs(moved[0, :2, :2]).min() > 0
    np.testing.assert_allclose(moved[0, 3:, 3:], 0, atol=1e-6)


def test_metrics_of_classes_and_labels_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(50, OUTPUTS)), rng.integers(0, OUTPUTS, 50)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    metrics = judge("classes", logits, classes, np.zeros(OUTPUTS))
    assert metrics["accuracy"] == np.mean(logits.argmax(1) == classes)
    assert metrics["cross_entropy"] == pytest.approx(log_loss(classes, probabilities))
    logits = logits.round(1)  # ties
    several = rng.integers(0, 2, logits.shape).astype(float)
    metrics = judge("multilabel", logits, several, np.zeros(OUTPUTS))
    assert metrics["average_precision"] == pytest.approx(average_precision_score(several, logits))
    assert metrics["label_accuracy"] == np.mean((logits > 0) == several)
    expected = log_loss(several.ravel(), 1 / (1 + np.exp(-logits.ravel())))
    assert metrics["binary_cross_entropy"] == pytest.approx(expected)


def test_r2_compares_with_the_mean_of_the_training_examples() -> None:
    rng = np.random.default_rng(0)
    labels, centre = rng.normal(size=(40, 2)), np.array([0.5, -1])
    assert judge("numbers", np.broadcast_to(centre, labels.shape), labels, centre)["r2"] == pytest.approx(0)
    assert judge("numbers", labels, labels, centre) == {"r2": 1, "squared_error": 0}
    half = (labels + centre) / 2
    assert judge("numbers", half, labels, centre)["r2"] == pytest.approx(0.75)


@pytest.mark.parametrize("target_type", TYPES)
def test_missing_labels_have_no_part_in_metrics(target_type: Any) -> None:
    labels = labels_of(target_type)
    predictions = predictions_of(labels, target_type)
    is_classes = target_type.endswith("classes")
    other = predictions.copy()
    other[labels < 0 if is_classes else np.isnan(labels)] += 1
    centre = np.zeros(OUTPUTS)
    assert judge(target_type, predictions, labels, centre) == judge(target_type, other, labels, centre)
    nothing = np.full_like(labels, -1 if is_classes else np.nan)
    assert all(np.isnan(value) for value in judge(target_type, predictions, nothing, centre).values())
    assert [*judge(target_type, predictions, labels, centre)] == [*METRICS[target_type]]
