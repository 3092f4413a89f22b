"""Epsilon-LRP written out by hand: the rules of `docs/attribution.md` as functions to build a network from.

Shares nothing with the rewriting in `jaxtransfer.attribution.relevance`. A network written with these functions has the
values of the ordinary network, and its ordinary gradient, by `jax.grad`, is the modified one. Every rule keeps the
value and changes the derivative with `lax.stop_gradient`, so that the rules hold under any transformation.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxtransfer as jt

EPSILON = 1e-4

# Compiling is nearly all of the time: this takes a third of it, where there is a choice. (With these fusions XLA's
# gradient of a large network in float64 was another one, so they are for this alone, where the reference is in the same
# program.)
_FUSIONS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, **_FUSIONS})

hold = lax.stop_gradient


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def activation(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """`f` with the derivative f(z) / (z + epsilon sign(z)), sign(0) = +1."""

    def rule(z: jax.Array) -> jax.Array:
        stabiliser = jnp.where(z >= 0, EPSILON, -EPSILON).astype(z.dtype)
        return hold(f(z)) + hold(f(z) / (z + stabiliser)) * (z - hold(z))

    return rule


gelu = activation(jax.nn.gelu)
silu = activation(jax.nn.silu)
relu = activation(jax.nn.relu)
hard_swish = activation(jax.nn.hard_swish)
tanh = activation(jnp.tanh)


def shared(product: jax.Array) -> jax.Array:
    """A product of two arrays that depend on the images: half of the relevance to each."""
    return 0.5 * product + hold(0.5 * product)


def gated(gate: jax.Array, signal: jax.Array) -> jax.Array:
    """A product of a gate, an activation with f(0) != 0, and a signal: the signal takes all the relevance."""
    return hold(gate) * signal


def normalise(
    x: jax.Array, axes: int | Sequence[int], epsilon: float = 1e-6, scale: Any = 1.0, bias: Any = 0.0, centred=True
) -> jax.Array:
    """Normalises over axes; the mean is linear, and one over the standard deviation is held."""
    if centred:
        x = x - x.mean(axes, keepdims=True)
    return x * hold(1 / jnp.sqrt(jnp.square(x).mean(axes, keepdims=True) + epsilon)) * scale + bias


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any = True, constant_query: bool = False) -> jax.Array:
    """Attention over [..., tokens, heads, channels]: products shared, softmax with its ordinary derivative."""
    scores = jnp.einsum("...qhc,...khc->...hqk", q / np.sqrt(q.shape[-1]), k)
    weights = jax.nn.softmax(jnp.where(mask, scores if constant_query else shared(scores), -1e30))
    return shared(jnp.einsum("...hqk,...khc->...qhc", weights, v))


def relevance(apply: Callable[[Any, jax.Array], jax.Array], params: Any, images: jax.Array) -> jax.Array:
    """Input times modified gradient, where `apply` is written with the rules above."""
    return images * jax.grad(lambda x: apply(params, x).sum().astype(jnp.float32))(images).astype(images.dtype)


def relative_error(actual: Any, expected: Any) -> float:
    expected = np.asarray(expected, np.float64)
    return float(abs(np.asarray(actual, np.float64) - expected).max() / abs(expected).max())


def assert_follows(
    apply: Callable[[Any, jax.Array], jax.Array],
    reference: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    images: jax.Array,
    tolerance: float = 1e-8,
) -> None:
    """Asserts that `apply` has the values of `reference`, and its epsilon-LRP by the rules written out in it."""

    # Both in one program, since compiling is most of the time.
    @quick_jit
    def run(params: Any, images: jax.Array) -> Any:
        maps, outputs = jt.attribute(apply, params, images, methods=["epsilon_lrp"], with_outputs=True)
        return maps["epsilon_lrp"], outputs, relevance(reference, params, images), reference(params, images)

    actual, outputs, expected, expected_outputs = run(params, images)
    error = relative_error(outputs, expected_outputs)
    assert error <= tolerance, f"the reference is another function: {error:.1e}"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relevance is another: {error:.1e}"
