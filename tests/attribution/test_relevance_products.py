"""Products of many factors, solutions of linear systems, and extremes that are written to places."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxtransfer as jt
from support.helpers import quick_jit
from support.relevance_reference import assert_follows, gelu, hold, normal

pytestmark = pytest.mark.usefixtures("float64")

AT = jnp.array([4, 0, 3])
UNIQUE = {"unique_indices": True}  # without which JAX has no derivative of products at places


def images() -> jax.Array:
    return normal(0, 2, 3, 3, 3)


def weights() -> list[jax.Array]:
    return [normal(seed, 3, 5) for seed in (1, 2)]


def in_shares(product: jax.Array, factors: Any) -> jax.Array:
    """A product of which every factor receives an equal share."""
    return product / factors + hold(product - product / factors)


def counts(shape: tuple[int, ...], axis: int) -> jax.Array:
    return jnp.cumsum(jnp.ones(shape), axis)


def matrices(a: jax.Array) -> jax.Array:
    """Square matrices [n, 5, 5] that can be inverted."""
    rows = a.reshape(a.shape[0], -1, 5)
    return jnp.einsum("nic,nid->ncd", rows, rows) / 10 + 3 * jnp.eye(5)[None]


def triangular(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.linalg.triangular_solve(matrices(a), b.reshape(b.shape[0], -1, 5).mT, left_side=True, lower=True)


def solution(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.linalg.solve(matrices(a), b.reshape(b.shape[0], -1, 5).mT)


def larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a > b, a, b)


# Name: a function of a = x A and b = x B, and the same with the rules.
Layer = Callable[[jax.Array, jax.Array], jax.Array]
LAYERS: dict[str, tuple[Layer, Layer]] = {
    "product": (lambda a, b: a.prod(-1), lambda a, b: in_shares(a.prod(-1), 5)),
    "product of places": (lambda a, b: a.prod((1, 2)), lambda a, b: in_shares(a.prod((1, 2)), 9)),
    "running product": (
        lambda a, b: lax.cumprod(a, 2),
        lambda a, b: in_shares(jnp.cumprod(a, 2), counts(a.shape, 2)),
    ),
    "running product from the end": (
        lambda a, b: lax.cumprod(a, 3, reverse=True),
        lambda a, b: in_shares(jnp.cumprod(a[..., ::-1], 3), counts(a.shape, 3))[..., ::-1],
    ),
    "product at places": (
        lambda a, b: a.at[..., AT].multiply(b[..., :3], **UNIQUE),
        lambda a, b: jnp.stack(
            [in_shares(a[..., 0] * b[..., 1], 2), a[..., 1], a[..., 2], in_shares(a[..., 3] * b[..., 2], 2),
             in_shares(a[..., 4] * b[..., 0], 2)], -1,
        ),
    ),
    "weights at places": (
        lambda a, b: a.at[..., AT].multiply(2.0 * jnp.ones((*a.shape[:-1], 3)), **UNIQUE),
        lambda a, b: a * jnp.array([2.0, 1, 1, 2, 2]).reshape(1, 1, 1, 5),
    ),
    "maximum at places": (
        lambda a, b: a.at[..., AT].max(b[..., :3]),
        lambda a, b: jnp.stack(
            [larger(a[..., 0], b[..., 1]), a[..., 1], a[..., 2], larger(a[..., 3], b[..., 2]),
             larger(a[..., 4], b[..., 0])], -1,
        ),
    ),
    "minimum at places": (
        lambda a, b: a.at[..., AT].min(b[..., :3]),
        lambda a, b: -jnp.stack(
            [larger(-a[..., 0], -b[..., 1]), -a[..., 1], -a[..., 2], larger(-a[..., 3], -b[..., 2]),
             larger(-a[..., 4], -b[..., 0])], -1,
        ),
    ),
    "difference at places": (
        lambda a, b: a.at[..., AT].subtract(b[..., :3]),
        lambda a, b: a - jnp.stack([b[..., 1], 0 * b[..., 0], 0 * b[..., 0], b[..., 2], b[..., 0]], -1),
    ),
    "triangular system": (triangular, lambda a, b: triangular(hold(a), b)),
    "linear system": (solution, lambda a, b: solution(hold(a), b)),
    "largest two": (
        lambda a, b: lax.top_k(a, 2)[0],
        lambda a, b: jnp.take_along_axis(a, hold(jnp.argsort(-a))[..., :2], -1),
    ),
    "sorted": (lambda a, b: jnp.sort(a), lambda a, b: jnp.take_along_axis(a, hold(jnp.argsort(a)), -1)),
    "spectrum": (
        lambda a, b: jnp.fft.fftn(a, axes=(1, 2)).real,
        lambda a, b: sum(
            sign * jnp.einsum("nhwc,hk,wl->nklc", a, wave, wave) for sign, wave in ((1.0, COSINES), (-1.0, SINES))
        ),
    ),
    "products of pairs": (
        lambda a, b: (lax.complex(a, b) * lax.complex(jnp.cos(ANGLES), jnp.sin(ANGLES))).imag,
        lambda a, b: a * jnp.sin(ANGLES) + b * jnp.cos(ANGLES),
    ),
}  # fmt: skip
ANGLES = np.arange(5.0).reshape(1, 1, 1, 5)
COSINES, SINES = (f(2 * np.pi * np.outer(np.arange(3), np.arange(3)) / 3) for f in (np.cos, np.sin))


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    def network(layer: Layer, activation: Any) -> Callable[[Any, jax.Array], jax.Array]:
        return lambda params, x: layer(activation(x @ params[0]), activation(x @ params[1]))

    ours, reference = LAYERS[name]
    assert_follows(network(ours, jax.nn.gelu), network(reference, gelu), weights(), images())


@pytest.mark.parametrize("layer", [lambda a: a.prod(-1), lambda a: lax.cumprod(a, 1), lambda a: lax.top_k(a, 3)[0]])
def test_relevance_is_conserved(layer: Callable[[jax.Array], jax.Array]) -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return layer((x @ params).reshape(x.shape[0], -1))

    run = quick_jit(lambda x: jt.attribute(apply, weights()[0], x, methods=["epsilon_lrp"], with_outputs=True))
    maps, outputs = run(images())
    expected = outputs.sum(tuple(range(1, outputs.ndim)))
    np.testing.assert_allclose(maps["epsilon_lrp"].sum((1, 2, 3)), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("triangular_solve", lambda x: triangular(x, jnp.ones((2, 3, 3, 5)))),
        ("custom_linear_solve", lambda x: jnp.linalg.inv(matrices(x))),
        ("lu", lambda x: lax.linalg.lu(matrices(x))[0]),
    ],
)
def test_functions_of_a_matrix_have_no_rule(name: str, layer: Callable[[jax.Array], jax.Array]) -> None:
    with pytest.raises(jt.JaxTransferError, match=f"no rule for the primitive '{name}'"):
        jt.attribute(lambda params, x: layer(x @ params), weights()[0], images())
