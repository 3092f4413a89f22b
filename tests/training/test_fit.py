"""The training function against closed forms, and what it must not depend on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from jaxtransfer.devices import default_mesh, device_mesh
from jaxtransfer.training.fit import Problem, State, Validation, fit, map_examples, start

COUNT, UNITS = 60, 3


def squared(weights: Any, statistics: Any, examples: Any) -> tuple[jax.Array, jax.Array, Any]:
    errors = examples["x"] @ weights - examples["y"]
    return jnp.square(errors), jnp.ones(len(errors)), statistics


def logistic(weights: Any, statistics: Any, examples: Any) -> tuple[jax.Array, jax.Array, Any]:
    logits = examples["x"] @ weights["kernel"] + weights["bias"]
    return optax.sigmoid_binary_cross_entropy(logits, examples["y"]), jnp.ones(len(logits)), statistics


def examples(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(COUNT, UNITS)).astype(np.float32)
    y = x @ np.array([1, -2, 0.5], np.float32) + rng.normal(size=COUNT).astype(np.float32)
    return {"x": x, "y": y}


def everything(runs: int) -> Any:
    """Batches that hold all examples."""
    return lambda first, last: np.broadcast_to(np.arange(COUNT, dtype=np.int32), (runs, last - first, COUNT))


def last(problem: Problem, weights: Any, data: Any, steps: int, rates: Any, **options: Any) -> State:
    batches = everything(len(rates))
    mesh = options.pop("mesh", default_mesh())
    state = start(problem, weights, (), mesh, validated="validation" in options)
    trainings = fit(
        problem,
        state,
        np.array(rates, np.float32),
        lambda a, b: (data, batches(a, b)),
        mesh,
        steps=steps,
        chunk=10,
        **options,
    )
    return [state for _, state in trainings][-1]


def test_least_squares_are_the_closed_form(whole_precision: None) -> None:
    data = examples()
    state = last(Problem(squared, optax.sgd(1.0)), np.zeros((2, UNITS), np.float32), data, 200, [0.1, 0.3])
    expected = np.linalg.lstsq(data["x"].astype(float), data["y"].astype(float))[0]
    np.testing.assert_allclose(state.weights, [expected] * 2, atol=1e-5)


def test_logistic_regression_is_that_of_scikit_learn(whole_precision: None) -> None:
    data = examples()
    data["y"] = (data["y"] > 0).astype(np.float32)
    zeros = {"kernel": np.zeros((1, UNITS), np.float32), "bias": np.zeros(1, np.float32)}
    state = last(Problem(logistic, optax.sgd(1.0, momentum=0.9)), zeros, data, 400, [0.3])
    expected = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(data["x"], data["y"])
    np.testing.assert_allclose(state.weights["kernel"][0], expected.coef_[0], rtol=2e-3)
    np.testing.assert_allclose(state.weights["bias"], expected.intercept_, atol=2e-3)


def test_the_rate_is_that_of_the_optimiser() -> None:
    data, zeros = examples(), np.zeros((1, UNITS), np.float32)
    scaled = last(Problem(squared, optax.adam(1.0)), zeros, data, 10, [0.05])
    given = last(Problem(squared, optax.adam(0.05)), zeros, data, 10, [1])
    np.testing.assert_allclose(scaled.weights, given.weights, rtol=1e-5)


@pytest.mark.parametrize("rate", [0.01, 1.2])
def test_the_best_step_is_kept(rate: float) -> None:
    """With a rate that converges it is the last, with one that diverges an early one."""
    problem, data, other = Problem(squared, optax.sgd(1.0)), examples(), examples(1)
    held = np.arange(COUNT, dtype=np.int32)[None]
    validation = Validation(other, held, np.ones_like(held, bool), 10, COUNT)
    mesh, batches = default_mesh(), everything(1)
    first = start(problem, np.ones((1, UNITS), np.float32), (), mesh, validated=True)
    losses, weights, state = [], [], first
    trainings = fit(problem, first, np.array([rate], np.float32), lambda a, b: (data, batches(a, b)), mesh, steps=60,
                    chunk=10, validation=validation)  # fmt: skip
    for _, state in trainings:
        weights.append(np.asarray(state.weights[0]))
        losses.append(np.mean((other["x"].astype(float) @ weights[-1] - other["y"]) ** 2))
    best = int(np.nanargmin(losses))
    assert best == (5 if rate < 1 else 0)
    assert state.best is not None
    assert state.best.step[0] == 10 * (best + 1)
    np.testing.assert_array_equal(state.best.weights[0], weights[best])
    np.testing.assert_allclose(state.best.loss[0], losses[best], rtol=1e-4)


def test_validation_examples_that_only_fill_up_do_not_count() -> None:
    problem, data = Problem(squared, optax.sgd(1.0)), examples()
    losses = []
    for held in ([3, 4, 5], [3, 4, 5, 3, 9]):
        indices, counted = np.array([held], np.int32), np.arange(len(held))[None] < 3
        validation = Validation(data, indices, counted, 10, 2)
        best = last(problem, np.zeros((1, UNITS), np.float32), data, 10, [0.1], validation=validation).best
        assert best is not None
        losses.append(best.loss)
    np.testing.assert_array_equal(*losses)


def test_resuming_from_any_state_gives_the_same_bits() -> None:
    problem, data, batches, mesh = Problem(squared, optax.adam(0.1)), examples(), everything(1), default_mesh()

    def states(state: State, done: int) -> dict[int, State]:
        trainings = fit(problem, state, np.ones(1, np.float32), lambda a, b: (data, batches(a, b)), mesh, steps=40,
                        chunk=10, done=done)  # fmt: skip
        return dict(trainings)

    whole = states(start(problem, np.zeros((1, UNITS), np.float32), (), mesh, validated=False), 0)
    resumed = states(jax.tree.map(np.asarray, whole[20]), 20)
    jax.tree.map(np.testing.assert_array_equal, whole[40], resumed[40])


def test_devices_share_trainings() -> None:
    problem, data = Problem(squared, optax.adam(1.0)), examples()
    rates, zeros = np.linspace(0.01, 0.3, 8), np.zeros((8, UNITS), np.float32)
    alone = last(problem, zeros, data, 20, rates)
    shared = last(problem, zeros, data, 20, rates, mesh=device_mesh(2, 4))
    assert len(shared.weights.sharding.device_set) == 8
    np.testing.assert_allclose(shared.weights, alone.weights, rtol=1e-5)


def test_functions_of_examples_are_the_same_in_batches_of_any_size() -> None:
    data, indices = examples(), np.array([[0, 5, 7, 7, 2]], np.int32)

    def function(weights: Any, statistics: Any, examples: Any) -> jax.Array:
        return examples["x"] @ weights

    weights = np.ones((1, UNITS), np.float32)
    for batch in (1, 2, 5, 9):
        values = map_examples(function, weights, (), data, indices, default_mesh(), batch=batch)
        np.testing.assert_allclose(values, data["x"][indices].sum(-1), rtol=1e-5)
