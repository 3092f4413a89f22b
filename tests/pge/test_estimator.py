import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtransfer import (
    Episodes,
    JaxTransferError,
    Minibatches,
    Prototypical,
    RandomHead,
    RidgeHead,
    SquaredError,
    gap,
    principal_gradient,
)
from jaxtransfer.pge.estimator import Estimation, PrincipalGradient
from jaxtransfer.pge.statistics import inner_products, jackknife, unbiased
from jaxtransfer.pge.symmetry import orbits
from support.tiny_backbones import BACKBONES, blobs, dense_features, dense_init

_KEY = jax.random.key(3)


def task(kind, features, seed=0):
    """A loss and its batches."""
    images, labels = blobs(seed)
    if kind == "prototypical":
        return Prototypical(features, ways=3, shots=3), Episodes.of(images, labels, ways=3, shots=3, queries=4)
    if kind == "random head":
        return RandomHead(features, 3), Minibatches.of(images, labels, size=16)
    targets = np.stack([np.cos(labels), labels + 1.0], axis=1).astype(np.float32)
    return SquaredError(features, 2), Minibatches.of(images, targets, size=16)


def distance(a: PrincipalGradient, b: PrincipalGradient):
    """Unbiased squared distance of two expectations estimated with different keys, and its standard error."""
    lifted = [
        np.stack(
            [
                np.concatenate([np.ravel(x) for x in jax.tree.leaves(estimate.orbits.lift(row))])
                for row in estimate.groups
            ]
        )
        for estimate in (a, b)
    ]
    products = [inner_products(x, y) for x, y in [(lifted[0],) * 2, (lifted[1],) * 2, lifted]]
    squared_distance = jackknife(lambda x, y, z: unbiased(x) + unbiased(y) - 2 * unbiased(z), *products)
    return squared_distance, unbiased(products[0])


def projected(estimate: PrincipalGradient, symmetry):
    """What would have been found with a symmetry of more orbits' entries in common."""
    coarser = orbits(estimate.gradient, symmetry)
    groups = np.stack([coarser.project(estimate.orbits.lift(row)) for row in estimate.groups])
    return dataclasses.replace(estimate, groups=groups, orbits=coarser)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("prototypical", "dense"),
        ("prototypical", "residual"),
        ("random head", "residual"),
        ("squared error", "dense"),
    ],
)
def test_reductions_keep_the_expectation(kind, name):
    """Against the published estimator run long, with other random numbers: the squared distance is 0 within errors."""
    init, features, symmetry = BACKBONES[name]
    loss, batches = task(kind, features)
    heads = None if kind == "prototypical" else 4
    published = Estimation(init, loss, batches, jax.random.key(1), control=False)
    reduced = Estimation(
        init, loss, batches, jax.random.key(2), symmetry=symmetry, heads=heads, control=False, check=False
    )
    published.run(6_000)
    reduced.run(1_500)
    a, b = published.result(), reduced.result()
    (squared, error), signal = distance(a, b)
    assert abs(squared) < 3 * error
    assert error < 0.1 * signal, "too noisy to tell"
    assert b.noise_per_restart < 0.5 * a.noise_per_restart

    # A projection that is none of this loss's moves the expectation, and this is seen.
    (squared, error), _ = distance(a, projected(b, _too_much(symmetry)))
    assert squared > 4 * error


def _too_much(symmetry):
    """Exchanges inputs, which are not alike, with everything else."""
    return jax.tree.map(
        lambda axes: tuple(f"{i}{axes}" for i in range(len(axes))),
        symmetry,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random head", "squared error"])
def test_mirrored_heads_do_not_see_labels(kind):
    init, features, _ = BACKBONES["dense"]
    loss, batches = task(kind, features)
    gradient = principal_gradient(init, loss, batches, _KEY, restarts=16, heads=2)
    assert gradient.control is not None
    scale = np.abs(gradient.groups).max()
    np.testing.assert_allclose(gradient.groups, gradient.control.groups, atol=1e-5 * scale)
    assert gradient.label_blind
    assert gradient.reads_labels is False
    assert "does not depend on the labels" in gradient.summary()
    once = principal_gradient(init, loss, batches, _KEY, restarts=16)
    assert np.abs(once.groups - once.control.groups).max() > 0.01 * scale  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.slow
def test_prototypical_episodes_read_labels():
    init, features, symmetry = BACKBONES["dense"]
    loss, batches = task("prototypical", features)
    gradient = principal_gradient(init, loss, batches, _KEY, restarts=4000, symmetry=symmetry)
    assert gradient.reads_labels
    assert "it depends on the labels" in gradient.summary()
    images, labels = blobs()
    labels = np.random.default_rng(0).permutation(labels)
    noise = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    nothing = Episodes.of(noise, labels, ways=3, shots=3, queries=4)
    assert not principal_gradient(init, loss, nothing, _KEY, restarts=4000, symmetry=symmetry).reads_labels


@pytest.mark.slow
def test_auto_stops_at_the_tolerance_or_at_the_cap():
    init, features, symmetry = BACKBONES["dense"]
    loss, batches = task("random head", features)
    gradient = principal_gradient(init, loss, batches, _KEY, symmetry=symmetry, tolerance=30)
    assert gradient.signal_to_noise >= 30
    assert gradient.restarts < 20_000
    capped = principal_gradient(init, loss, batches, _KEY, symmetry=symmetry, tolerance=1e9, cap=200)
    assert capped.restarts == 200
    assert capped.summary(1e9).count("Not resolved") == 1


@pytest.mark.slow
def test_same_key_same_bits_on_any_number_of_devices():
    init, features, _ = BACKBONES["residual"]
    loss, batches = task("prototypical", features)
    first, again = (principal_gradient(init, loss, batches, _KEY, restarts=50) for _ in range(2))
    np.testing.assert_array_equal(first.groups, again.groups)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = principal_gradient(init, loss, batches, _KEY, restarts=50, mesh=mesh, together=3)
    scale = np.abs(first.groups).max()
    np.testing.assert_allclose(spread.groups, first.groups, atol=1e-5 * scale)
    other = principal_gradient(init, loss, batches, jax.random.key(4), restarts=50)
    assert np.abs(other.groups - first.groups).max() > 0.01 * scale


@pytest.mark.slow
def test_a_state_stays_what_it_was():
    init, features, _ = BACKBONES["dense"]
    estimation = Estimation(init, *task("prototypical", features), _KEY)
    estimation.run(16)
    state = estimation.state()
    before = state["high"].copy()
    estimation.run(64)
    np.testing.assert_array_equal(state["high"], before)
    again = Estimation(init, *task("prototypical", features), _KEY)
    again.restore(state)
    again.run(64)
    np.testing.assert_array_equal(again.result().groups, estimation.result().groups)
    np.testing.assert_array_equal(state["high"], before)


@pytest.mark.slow
def test_gradient_has_the_structure_of_the_weights():
    init, features, symmetry = BACKBONES["dense"]
    loss, batches = task("random head", features)
    full = principal_gradient(init, loss, batches, _KEY, restarts=16, control=False)
    assert jax.tree.map(jnp.shape, full.gradient) == jax.tree.map(jnp.shape, dense_init(_KEY))
    averaged = principal_gradient(init, loss, batches, _KEY, restarts=16, control=False, symmetry=symmetry)
    over_units = full.gradient["first"]["kernel"].mean(1)[:, None]
    np.testing.assert_allclose(
        averaged.gradient["first"]["kernel"], np.broadcast_to(over_units, (12, 6)), rtol=1e-4, atol=1e-6
    )


def test_a_flax_module_as_a_backbone():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(12, 6, rngs=rngs)
            self.second = nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, images):
            return self.second(nnx.relu(self.first(images.reshape(len(images), -1))))

    graph, _ = nnx.split(Model(nnx.Rngs(0)))

    def init(key):
        return nnx.split(Model(nnx.Rngs(key)))[1]

    def features(params, images):
        return nnx.merge(graph, params)(images)

    _, batches = task("prototypical", features)
    gradient = principal_gradient(init, Prototypical(features, 3, 3), batches, _KEY, restarts=16)
    assert gradient.groups.shape == (16, 12 * 6 + 6 + 6 * 4 + 4)


@pytest.mark.parametrize(("images", "width", "dense"), [(10, 30, False), (60, 7, False), (8, 5, True)])
def test_ridge_heads_are_ridge_regressions(images, width, dense):
    """Fitted in float64 to one half, by the normal equations, and tried on the other; features wide and narrow."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, 3, 3, width) if dense else (images, width))
    y = rng.normal(size=(*x.shape[:-1], 2)) + 3
    loss = RidgeHead(lambda scale, images: scale * images, ridge=0.3)
    value = loss(jnp.float32(2), (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)), _KEY)
    half = images // 2
    (a, b), (c, d) = ((2 * x[part].reshape(-1, width), y[part].reshape(-1, 2)) for part in np.s_[:half, half:])
    a, c = a - a.mean(0), c - a.mean(0)
    penalty = 0.3 * np.square(a).sum(1).mean() * np.eye(width)
    weights = np.linalg.solve(a.T @ a + penalty, a.T @ (b - b.mean(0)))
    np.testing.assert_allclose(value, np.square(c @ weights + b.mean(0) - d).mean(), rtol=1e-5)


def test_ridge_heads_read_labels():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5))
    numbers = features @ rng.normal(size=(5, 2))
    loss = RidgeHead(lambda _, images: images, ridge=0.01)
    true, other = (loss(None, (jnp.asarray(features), jnp.asarray(y)), _KEY) for y in (numbers, numbers[::-1].copy()))
    assert float(true) < 0.01 * float(other)
    assert not loss.label_blind


@pytest.mark.slow
def test_a_loss_of_ones_own():
    def loss(params, batch, key):
        images, labels = batch
        noise = jax.random.normal(key, (5, 3))
        return jnp.square(dense_features(params, images) @ noise - jax.nn.one_hot(labels, 3)).mean()

    _, batches = task("random head", dense_features)
    gradient = principal_gradient(dense_init, loss, batches, _KEY, restarts=64)
    assert gradient.label_blind is False
    assert "test_estimator" in gradient.recipe.loss
    images, labels = blobs()
    stacked = (images[:32].reshape(4, 8, 4, 3, 1), labels[:32].reshape(4, 8))
    assert gap(gradient, principal_gradient(dense_init, loss, stacked, _KEY, restarts=64), "cosine").value < 2


@pytest.mark.slow
def test_gap_refuses_other_losses_backbones_and_initialisers():
    loss, batches = task("random head", dense_features)
    own = principal_gradient(dense_init, loss, batches, _KEY, restarts=16, control=False)
    prototypical, episodes = task("prototypical", dense_features)
    other_loss = principal_gradient(dense_init, prototypical, episodes, _KEY, restarts=16, control=False)
    with pytest.raises(JaxTransferError, match="differ in loss"):
        gap(own, other_loss)

    def wider(key):
        return jax.tree.map(lambda weight: 2 * weight, dense_init(key))

    other_init = principal_gradient(wider, loss, batches, _KEY, restarts=16, control=False)
    with pytest.raises(JaxTransferError, match="differ in initialiser"):
        gap(own, other_init)
    more_heads = principal_gradient(dense_init, loss, batches, _KEY, restarts=16, control=False, heads=4)
    assert own.recipe == more_heads.recipe


def test_wrong_requests():
    init, features, symmetry = BACKBONES["dense"]
    loss, batches = task("prototypical", features)
    with pytest.raises(JaxTransferError, match="no random linear head"):
        principal_gradient(init, loss, batches, _KEY, restarts=16, heads=2)
    with pytest.raises(JaxTransferError, match="16 groups need 16 restarts"):
        principal_gradient(init, loss, batches, _KEY, restarts=10)
    wrong = symmetry | {"second": {"kernel": (None, "out"), "bias": ("out",)}}
    with pytest.raises(JaxTransferError, match="symmetry is wrong"):
        principal_gradient(init, loss, batches, _KEY, restarts=16, symmetry=wrong)
    _, minibatches = task("random head", features)
    with pytest.raises(JaxTransferError, match="cannot have 16 images"):
        principal_gradient(init, loss, minibatches, _KEY, restarts=16)
    _, targets = task("squared error", features)
    wrong_loss = SquaredError(features, 3)
    with pytest.raises(JaxTransferError, match="do not fit targets"):
        principal_gradient(init, wrong_loss, targets, _KEY, restarts=16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init": 3}, r"init must be a function called as init\(key\), .* not 3"),
        ({"init": lambda: 3}, r"init must be a function called as init\(key\)"),
        (
            {"loss": "prototypical"},
            r"loss must be .* loss\(params, batch, key\), .* not 'prototypical'",
        ),
        ({"loss": lambda params, batch: 0.0}, "loss must be a function called as"),
        ({"batches": [[1, 2], [3, 4]]}, "batches must be a sampler, .* not a list"),
        ({"batches": (np.zeros((0, 4)), np.zeros((0, 4)))}, "There are 0 batches of images"),
        ({"batches": (np.zeros((3, 4)), np.zeros((2, 4)))}, "3 batches of images and 2 of labels"),
        ({"key": 0}, r"key must be a key, like jax.random.key\(0\), not 0"),
        ({"restarts": "many"}, "restarts must be a number or \"auto\", not 'many'"),
        ({"restarts": 2.5}, "not 2.5"),
    ],
)
def test_arguments_of_a_wrong_kind_are_said(changed, message):
    loss, batches = task("prototypical", dense_features)
    arguments = {"init": dense_init, "loss": loss, "batches": batches, "key": _KEY, "restarts": 16} | changed
    with pytest.raises(JaxTransferError, match=message):
        principal_gradient(
            arguments["init"], arguments["loss"], arguments["batches"], arguments["key"], restarts=arguments["restarts"]
        )
