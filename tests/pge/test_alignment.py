import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import Episodes, JaxTransferError, Prototypical, RandomHead, gradient_alignment
from support.tiny_backbones import BACKBONES, blobs

_KEY = jax.random.key(2)
_DIRECTIONS = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])


def init(key):
    return {"w": jax.random.normal(key, (3,))}


def batches(direction, noise=0.5):
    """Gradients of `loss` at the weights w: `direction` turned by the sign of the first weight, and noise."""
    return jax.tree_util.Partial(
        lambda direction, key: (direction[None] + noise * jax.random.normal(key, (1, 3)), jnp.zeros(1)),
        jnp.asarray(direction, jnp.float32),
    )


def loss(params, batch, key):
    return jnp.vdot(params["w"], batch[0][0] * jnp.sign(jax.lax.stop_gradient(params["w"][0])))


def test_known_gradients():
    """The expected gradient is 0 (the sign is), so only the alignment sees the angles between the tasks."""
    tasks = {str(i): batches(direction) for i, direction in enumerate(_DIRECTIONS)}
    affinity = gradient_alignment(init, loss, tasks, _KEY, restarts=4000)
    values, errors = affinity["alignment"], affinity.stderr("alignment")
    exact = _DIRECTIONS @ _DIRECTIONS.T
    off = ~np.eye(3, dtype=bool)
    assert (np.abs(values - exact)[off] < 4 * errors[off]).all()
    assert (errors[off] < 0.05).all()
    np.testing.assert_array_equal(np.diag(values), 1)
    np.testing.assert_array_equal(np.diag(errors), 0)
    np.testing.assert_allclose(values, values.T, atol=1e-6)
    assert (affinity.counts("alignment") == 4000).all()
    assert affinity.rank("0")[0][0] == "1"


def test_errors_are_those_of_repetition():
    tasks = {str(i): batches(direction) for i, direction in enumerate(_DIRECTIONS[:2])}
    runs = [gradient_alignment(init, loss, tasks, jax.random.key(i), restarts=128) for i in range(60)]
    values = np.array([run["alignment"][0, 1] for run in runs])
    errors = np.array([run.stderr("alignment")[0, 1] for run in runs])
    assert 0.75 < np.sqrt(np.mean(errors**2)) / values.std(ddof=1) < 1.4


@pytest.mark.slow
def test_a_float64_rewrite():
    """Gradients one by one from the same draws, products in float64."""
    _, features, _ = BACKBONES["dense"]
    init = BACKBONES["dense"][0]
    tasks = {name: Episodes.of(*blobs(seed), ways=3, shots=3, queries=4) for seed, name in enumerate("ab")}
    head = RandomHead(features, 3)
    losses = {"a": Prototypical(features, 3, 3), "b": head}
    with pytest.warns(UserWarning, match="head of b is drawn at random for every gradient"):
        affinity = gradient_alignment(init, losses, tasks, _KEY, restarts=12, groups=3)

    fold = jax.random.fold_in
    draw, gradient_of = jax.jit(init), {name: jax.jit(jax.grad(loss)) for name, loss in losses.items()}
    keys = [fold(_KEY, i) for i in range(3)]
    products = np.zeros((2, 2))
    for restart in range(12):
        params = draw(fold(keys[0], restart))
        gradients = np.stack([
            [
                np.concatenate([
                    np.ravel(x)
                    for x in jax.tree.leaves(
                        gradient_of[name](
                            params,
                            tasks[name](fold(fold(keys[1], task), 2 * restart + i)),
                            fold(fold(keys[2], task), 2 * restart + i),
                        )
                    )
                ])
                for i in range(2)
            ]
            for task, name in enumerate("ab")
        ]).astype(np.float64)  # fmt: skip
        for s in range(2):
            products[s, s] += gradients[s, 0] @ gradients[s, 1]
        products[0, 1] += (gradients[0].sum(0) @ gradients[1].sum(0)) / 4
    np.testing.assert_allclose(
        affinity["alignment"][0, 1], products[0, 1] / np.sqrt(products[0, 0] * products[1, 1]), rtol=1e-4
    )


@pytest.mark.slow
def test_on_several_devices():
    tasks = {str(i): batches(direction) for i, direction in enumerate(_DIRECTIONS)}
    one = gradient_alignment(init, loss, tasks, _KEY, restarts=50)
    mesh = jax.make_mesh((8,), ("restart",), axis_types=(jax.sharding.AxisType.Auto,))
    eight = gradient_alignment(init, loss, tasks, _KEY, restarts=50, mesh=mesh)
    np.testing.assert_allclose(one["alignment"], eight["alignment"], atol=1e-6)


def test_what_cannot_be_aligned():
    tasks = {str(i): batches(direction) for i, direction in enumerate(_DIRECTIONS)}
    with pytest.raises(JaxTransferError, match=r"batches must be a dictionary .* not a list"):
        gradient_alignment(init, loss, list(tasks.values()), _KEY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(JaxTransferError, match="two tasks or more"):
        gradient_alignment(init, loss, {"one": tasks["0"]}, _KEY)
    with pytest.raises(JaxTransferError, match="no loss for 1, 2"):
        gradient_alignment(init, {"0": loss}, tasks, _KEY)
    with pytest.raises(JaxTransferError, match="32 groups need 32 restarts"):
        gradient_alignment(init, loss, tasks, _KEY, restarts=8)
    single = (np.zeros((1, 1, 3), np.float32), np.zeros((1, 1), np.float32))
    with pytest.raises(JaxTransferError, match="alone has one"):
        gradient_alignment(init, loss, tasks | {"alone": single}, _KEY)
    nothing = {"still": batches(np.zeros(3), noise=0), "0": tasks["0"]}
    with pytest.raises(JaxTransferError, match="gradients of different batches of still do not correlate"):
        gradient_alignment(init, loss, nothing, _KEY, restarts=64)
