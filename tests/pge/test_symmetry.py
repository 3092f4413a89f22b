import copy
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer import Episodes, JaxTransferError, Prototypical, RandomHead, backbone
from jaxtransfer.pge import symmetry
from jaxtransfer.pge.symmetry import check_symmetry, orbits, permute
from support.tiny_backbones import BACKBONES, blobs

_SIZES = {
    "a": (None, "p"),
    "b": ("p", "q"),
    "c": ("p", "p"),
    "d": ("q", None, "p", "q"),
    "e": (None,),
}
_SHAPES = {"a": (2, 3), "b": (3, 2), "c": (3, 3), "d": (2, 2, 3, 2), "e": (4,)}


def example(seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in _SHAPES.items()}


def inner(a, b):
    return sum(float(jnp.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_projection_is_the_average_over_all_permutations():
    """The definition: the mean over the whole group, 3! x 2! permutations."""
    gradient = example()
    weight_orbits = orbits(gradient, _SIZES)
    permuted = jax.jit(lambda p, q: permute(gradient, _SIZES, {"p": p, "q": q}))
    images = [
        permuted(np.array(p, np.int32), np.array(q, np.int32))
        for p, q in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(2)))
    ]
    average = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *images)
    coordinates = weight_orbits.project(gradient)
    assert coordinates.shape == (weight_orbits.dimension,)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weight_orbits.lift(coordinates), average)


def test_coordinates_keep_inner_products():
    a, b = example(1), example(2)
    weight_orbits = orbits(a, _SIZES)
    x, y = weight_orbits.project(a), weight_orbits.project(b)
    np.testing.assert_allclose(jnp.vdot(x, y), inner(weight_orbits.lift(x), b), rtol=1e-5)
    np.testing.assert_allclose(jnp.vdot(x, y), inner(weight_orbits.lift(x), weight_orbits.lift(y)), rtol=1e-5)
    np.testing.assert_allclose(weight_orbits.project(weight_orbits.lift(x)), x, rtol=1e-5)


def test_without_symmetry_all_entries_stay():
    gradient = example()
    weight_orbits = orbits(gradient, None)
    assert weight_orbits.dimension == sum(leaf.size for leaf in gradient.values())
    jax.tree.map(np.testing.assert_array_equal, weight_orbits.lift(weight_orbits.project(gradient)), gradient)


def test_orbits_of_conv4():
    b = backbone("conv4", 1)
    shapes = jax.eval_shape(b.init, jax.random.key(0))
    # 9 offsets for each convolution, a scale and a bias for each normalisation: 4 x (9 + 2).
    assert orbits(shapes, b.symmetry).dimension == 44


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": (None,)}, "one group or None per axis"),
        ({"a": ("p", "p")}, "'p' has 2 units, but"),
        ({"d": ("q", "q", "p", "q")}, "none on three"),
        ({"f": (None,)}, "structure of the weights"),
    ],
)
def test_malformed_specifications(change, message):
    with pytest.raises(JaxTransferError, match=message):
        orbits(example(), {**_SIZES, **change})


def own(features, params, batch, key):
    return jnp.square(features(params, batch[0])).sum(1).std()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [(Prototypical, "residual"), (RandomHead, "dense"), (own, "residual")])
def test_right_and_wrong_specifications(kind, name):
    init, features, symmetry = BACKBONES[name]
    batches = Episodes.of(*blobs(), ways=3, shots=3, queries=4)
    loss = functools.partial(own, features) if kind is own else kind(features, 3)
    check_symmetry(init, loss, batches, symmetry, jax.random.key(1))

    leaves, structure = jax.tree.flatten(symmetry, is_leaf=lambda node: isinstance(node, tuple))
    grouped = [(i, j, group) for i, axes in enumerate(leaves) for j, group in enumerate(axes) if group is not None]
    for position, axis, group in grouped if kind is own else grouped[:1]:
        # One axis is taken out of its group: its units stay while the others move.
        wrong = list(leaves)
        wrong[position] = tuple(None if i == axis else entry for i, entry in enumerate(leaves[position]))
        with pytest.raises(JaxTransferError, match=f"units of {group}"):
            check_symmetry(init, loss, batches, jax.tree.unflatten(structure, wrong), jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv4", "resnet12", "resnet18", "resnet50"])
def test_backbones_that_come_along(name, monkeypatch):
    if name != "conv4":
        monkeypatch.setattr(symmetry, "_DRAWS", 4)  # of up to 25 million weights
    b = backbone(name)
    size = 32 if name in ("resnet18", "resnet50") else 16
    images = np.random.default_rng(0).normal(size=(8, size, size, 3)).astype(np.float32)
    batches = (images[None], np.zeros((1, 8), np.int32))
    loss = RandomHead(b.features, 2)
    # Of the generators this one is quick to draw millions of numbers.
    check_symmetry(b.init, loss, batches, b.symmetry, jax.random.key(0, impl="rbg"))


@pytest.mark.slow
def test_a_mistake_in_a_backbones_specification():
    b = backbone("conv4")
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)
    batches = (images[None], np.zeros((1, 8), np.int32))
    wrong = copy.deepcopy(b.symmetry)
    wrong["block2"]["norm"]["bias"] = ("elsewhere",)
    with pytest.raises(JaxTransferError, match="units of block2, elsewhere are permuted"):
        check_symmetry(b.init, RandomHead(b.features, 2), batches, wrong, jax.random.key(0))


def dirac(kernel):
    return kernel.at[...].set(0).at[1, 1, jnp.arange(64), jnp.arange(64)].set(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "change"),
    [
        (("block1", "conv"), dirac),
        (("block2", "conv"), lambda kernel: kernel * jnp.tile(jnp.array([0.0, 1.0]), 32)[None, None, :, None]),
        (("block3", "conv"), lambda kernel: kernel.at[..., 5].multiply(3)),
        (("block1", "norm", "bias"), lambda bias: jnp.linspace(0, 1, len(bias))),
        (("block0", "norm", "scale"), lambda scale: scale.at[7].set(0)),
    ],
)
def test_initialisers_that_tell_units_apart_are_refused(weight, change):
    b = backbone("conv4")

    def init(key):
        params = copy.deepcopy(b.init(key))
        node = params
        for name in weight[:-1]:
            node = node[name]
        node[weight[-1]] = change(node[weight[-1]])
        return params

    images = np.random.default_rng(0).normal(size=(1, 8, 16, 16, 3)).astype(np.float32)
    batches = (images, np.zeros((1, 8), np.int32))
    message = "draws units that the symmetry exchanges from different distributions, in " + "".join(
        rf"\['{name}'\]" for name in weight
    )
    with pytest.raises(JaxTransferError, match=message + ";"):
        check_symmetry(init, RandomHead(b.features, 2), batches, b.symmetry, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        jax.random.normal,
        lambda key, shape: 3 + 1e-4 * jax.random.normal(key, shape),
        lambda key, shape: jax.random.normal(key, shape) ** 5,
        lambda key, shape: jax.random.bernoulli(key, 0.03, shape).astype(jnp.float32),
        lambda key, shape: jax.nn.initializers.orthogonal()(key, shape),
        lambda key, shape: jnp.full(shape, 0.1),
    ],
)
def test_initialisers_that_treat_units_alike(draw):
    """One alarm in 60 keys would be a rate a million times too high; few units and many, and every kind of axis."""
    shapes = {"a": (2, 60), "b": (60, 2), "c": (2, 2), "d": (60, 60)}
    groups = {"a": ("p", "q"), "b": ("q", "p"), "c": ("p", "p"), "d": ("q", "q")}

    def init(key):
        return {name: draw(jax.random.fold_in(key, i), shape) for i, (name, shape) in enumerate(shapes.items())}

    weight_orbits = orbits(jax.eval_shape(init, jax.random.key(0)), groups)
    for seed in range(60):
        symmetry._check_initialiser(init, weight_orbits, list(shapes), jax.random.key(seed))
