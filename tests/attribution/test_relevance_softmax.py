"""One softmax, one relevance: however softmax, log-sum-exp and attention are written, they are what they compute.

The reference is `jax.nn.softmax` with its ordinary derivative, and half of the relevance to each factor of a product.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from support.helpers import quick_cases
from support.relevance_reference import assert_follows, gelu, hold, normal, shared

pytestmark = pytest.mark.usefixtures("float64")

TOKENS, CHANNELS, BLOCK = 6, 4, 2
LOG2_E = math.log2(math.e)
MASK = np.arange(TOKENS) != 2  # hides one key


def images(dtype: Any = np.float64) -> jax.Array:
    return normal(0, 2, 2, 3, 3).astype(dtype)


def params() -> list[jax.Array]:
    return [normal(1, 3, 8), *(normal(seed, 8, CHANNELS) for seed in (2, 3, 4)), 0.5 * normal(5, 8, TOKENS)]


def tokens(params: Any, x: jax.Array, activation: Any) -> jax.Array:
    return activation(x.reshape(x.shape[0], TOKENS, -1) @ params[0])


def total(e: jax.Array) -> jax.Array:
    return e.sum(-1, keepdims=True)


def mask(u: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(MASK), u.shape)


def shifted(u: jax.Array) -> jax.Array:
    return jnp.exp(u - u.max(-1, keepdims=True))


def softmax1(u: jax.Array) -> jax.Array:
    return jnp.exp(u) / (1 + total(jnp.exp(u)))


def softmax1_shifted(u: jax.Array) -> jax.Array:
    largest = jnp.maximum(u.max(-1, keepdims=True), 0)
    e = jnp.exp(u - largest)
    return e / (jnp.exp(-largest) + total(e))


def stabilised(u: jax.Array) -> jax.Array:
    return jnp.exp(u) / (total(jnp.exp(u)) + 1e-6)


def masked(u: jax.Array) -> jax.Array:
    return jax.nn.softmax(u, where=mask(u))


def over_sum(e: jax.Array) -> jax.Array:
    return e / total(e)


def logsumexp(u: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(u, axis=-1, keepdims=True)


# Name: the spelling, and the function it computes, whose ordinary derivative is the rule.
SOFTMAX: dict[str, tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]] = {
    "named": (jax.nn.softmax, jax.nn.softmax),
    "quotient": (lambda u: over_sum(jnp.exp(u)), jax.nn.softmax),
    "quotient, shifted": (lambda u: over_sum(shifted(u)), jax.nn.softmax),
    "quotient, held shift": (lambda u: over_sum(jnp.exp(u - hold(u.max(-1, keepdims=True)))), jax.nn.softmax),
    "times the reciprocal": (lambda u: jnp.exp(u) * (1 / total(jnp.exp(u))), jax.nn.softmax),
    "times the power": (lambda u: shifted(u) * total(shifted(u)) ** -1, jax.nn.softmax),
    "one exponential, times the reciprocal": (lambda u: (lambda e: e * (1 / total(e)))(shifted(u)), jax.nn.softmax),
    "exp of log-softmax": (lambda u: jnp.exp(jax.nn.log_softmax(u)), jax.nn.softmax),
    "exp of the difference": (lambda u: jnp.exp(u - jax.nn.logsumexp(u, axis=-1, keepdims=True)), jax.nn.softmax),
    "exp2": (lambda u: over_sum(jnp.exp2(u * LOG2_E)), jax.nn.softmax),
    "exp2, shifted": (
        lambda u: over_sum(jnp.exp2(u * LOG2_E - (u * LOG2_E).max(-1, keepdims=True))),
        jax.nn.softmax,
    ),
    "sum by einsum": (lambda u: (lambda e: e / jnp.einsum("...j->...", e)[..., None])(jnp.exp(u)), jax.nn.softmax),
    "sum by a product with ones": (
        lambda u: (lambda e: e / (e @ jnp.ones((TOKENS, 1))))(shifted(u)),
        jax.nn.softmax,
    ),
    "other axis": (
        lambda u: (lambda e: e / e.sum(1, keepdims=True))(jnp.exp(u.swapaxes(1, 2))).swapaxes(1, 2),
        jax.nn.softmax,
    ),
    "temperature": (lambda u: over_sum(jnp.exp(u / 0.7)), lambda u: jax.nn.softmax(u / 0.7)),
    "temperature after the shift": (
        lambda u: over_sum(jnp.exp((u - u.max(-1, keepdims=True)) / 0.7)),
        lambda u: jax.nn.softmax(u / 0.7),
    ),
    "named, masked": (masked, masked),
    "masked exponentials": (lambda u: over_sum(jnp.where(mask(u), jnp.exp(u), 0.0)), masked),
    "exponentials times a mask": (lambda u: over_sum(jnp.exp(u) * mask(u).astype(u.dtype)), masked),
    "masked scores": (lambda u: jax.nn.softmax(jnp.where(mask(u), u, -1e9)), masked),
    "masked scores, by hand": (lambda u: over_sum(shifted(jnp.where(mask(u), u, -1e9))), masked),
    "mask added": (lambda u: over_sum(shifted(u + jnp.where(mask(u), 0.0, -1e9))), masked),
    "a little added to the sum": (stabilised, stabilised),
    "a little added to the sum, reciprocal": (lambda u: jnp.exp(u) * (1 / (total(jnp.exp(u)) + 1e-6)), stabilised),
    "softmax1": (softmax1, softmax1),
    "softmax1, shifted": (softmax1_shifted, softmax1),
    "log-softmax": (jax.nn.log_softmax, jax.nn.log_softmax),
    "log-softmax by difference": (
        lambda u: u - jax.nn.logsumexp(u, axis=-1, keepdims=True),
        jax.nn.log_softmax,
    ),
    "log-softmax by hand": (
        lambda u: (lambda c: c - jnp.log(total(jnp.exp(c))))(u - u.max(-1, keepdims=True)),
        jax.nn.log_softmax,
    ),
    "log of softmax": (lambda u: jnp.log(jax.nn.softmax(u)), jax.nn.log_softmax),
    "log-sum-exp": (logsumexp, logsumexp),
    "log-sum-exp by hand": (lambda u: jnp.log(total(jnp.exp(u))), logsumexp),
    "log-sum-exp by hand, shifted": (
        lambda u: (lambda m: m + jnp.log(total(jnp.exp(u - m))))(u.max(-1, keepdims=True)),
        logsumexp,
    ),
    "log-sum-exp by hand, held shift": (
        lambda u: (lambda m: m + jnp.log(total(jnp.exp(u - m))))(hold(u.max(-1, keepdims=True))),
        logsumexp,
    ),
    "jit": (jax.jit(lambda u: over_sum(shifted(u))), jax.nn.softmax),
    "checkpoint": (jax.checkpoint(lambda u: over_sum(shifted(u))), jax.nn.softmax),
    "vmap": (jax.vmap(jax.vmap(lambda u: jnp.exp(u) / jnp.exp(u).sum())), jax.nn.softmax),
    "map": (lambda u: lax.map(lambda row: over_sum(shifted(row)), u), jax.nn.softmax),
}


def of_one_array(weigh: Callable[[jax.Array], jax.Array], activation: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """Between a network and constant values."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        p = weigh(tokens(params, x, activation) @ params[4])
        return activation(p @ params[4][:4].T[: p.shape[-1]])

    return apply


@pytest.mark.slow
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_with_constant_values(name: str) -> None:
    spelled, whole = SOFTMAX[name]
    assert_follows(of_one_array(spelled, jax.nn.gelu), of_one_array(whole, gelu), params(), images())


def with_values(weigh: Callable[[jax.Array], jax.Array], activation: Any, product: Any) -> Any:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = tokens(params, x, activation)
        return activation(product(weigh(h @ params[4]) @ (h @ params[3])))

    return apply


VALUES = [
    "named", "quotient, shifted", "times the reciprocal", "one exponential, times the reciprocal", "exp of log-softmax",
    "exp of the difference", "exp2", "sum by einsum", "sum by a product with ones", "named, masked",
    "masked exponentials", "masked scores, by hand", "a little added to the sum", "softmax1, shifted", "checkpoint",
    "map",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_softmax_with_values_of_the_images(name: str) -> None:
    spelled, whole = SOFTMAX[name]
    ours = with_values(spelled, jax.nn.gelu, lambda y: y)
    assert_follows(ours, with_values(whole, gelu, shared), params(), images())


Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # [N, T, C] three times


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    return q @ k.swapaxes(-1, -2) / math.sqrt(CHANNELS)


def divided_last(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    e = jnp.exp(scores(q, k))
    return (e @ v) / total(e)


def divided_last_shifted(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    e = shifted(scores(q, k))
    return (e @ v) * (1 / total(e))


def divided_last_by_einsum(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    s = jnp.einsum("nqc,nkc->nqk", q, k) / math.sqrt(CHANNELS)
    e = jnp.exp(s - hold(s.max(-1, keepdims=True)))
    return jnp.einsum("nqk,nkc->nqc", e, v) / jnp.einsum("nqk->nq", e)[..., None]


State = tuple[jax.Array, jax.Array, jax.Array]  # largest score so far, sum of exponentials, weighted sum of values


def online(state: State, q: jax.Array, k: jax.Array, v: jax.Array, held: bool = False, power: Any = jnp.exp) -> State:
    """One block of keys: Milakov and Gimelshein 2018; Dao et al. 2022 (FlashAttention), algorithm 1."""
    largest, sums, values = state
    s = scores(q, k)
    s = s if power is jnp.exp else s * LOG2_E
    new = jnp.maximum(largest, s.max(-1, keepdims=True))
    new = hold(new) if held else new
    e, rescale = power(s - new), power(largest - new)
    return new, sums * rescale + total(e), values * rescale + e @ v


def start(q: jax.Array, lowest: float = -1e30) -> State:
    column = jnp.zeros((*q.shape[:-1], 1), q.dtype)
    return column + lowest, column, jnp.zeros_like(q)


def blocks(k: jax.Array) -> jax.Array:
    return jnp.moveaxis(k.reshape(*k.shape[:-2], -1, BLOCK, CHANNELS), -3, 0)


def by_python_loop(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    state = start(q)
    for i in range(0, TOKENS, BLOCK):
        state = online(state, q, k[:, i : i + BLOCK], v[:, i : i + BLOCK], **options)
    return state[2] / state[1]


def by_scan(q: jax.Array, k: jax.Array, v: jax.Array, turn: Any = online, lowest: float = -1e30) -> jax.Array:
    def step(state: State, block: Any) -> tuple[State, None]:
        return turn(state, q, *block), None

    (_, sums, values), _ = lax.scan(step, start(q, lowest), (blocks(k), blocks(v)))
    return values / sums


def by_fori_loop(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    def step(i: jax.Array, state: State) -> State:
        at = functools.partial(lax.dynamic_slice_in_dim, start_index=i * BLOCK, slice_size=BLOCK, axis=-2)
        return online(state, q, at(k), at(v))

    _, sums, values = lax.fori_loop(0, TOKENS // BLOCK, step, start(q))
    return values * (1 / sums)


def written_out(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return shared(jax.nn.softmax(shared(scores(q, k))) @ v)


def written_out_on_constant_values(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return jax.nn.softmax(shared(scores(q, k))) @ v


ATTENTION: dict[str, Attend] = {
    "named": lambda q, k, v: jax.nn.softmax(scores(q, k)) @ v,
    "quotient": lambda q, k, v: over_sum(jnp.exp(scores(q, k))) @ v,
    "divided last": divided_last,
    "divided last, shifted": divided_last_shifted,
    "divided last, by einsum": divided_last_by_einsum,
    "divided last, jit": jax.jit(divided_last),
    "divided last, checkpoint": jax.checkpoint(divided_last_shifted),  # pyright: ignore[reportAssignmentType]
    "divided last, vmap": jax.vmap(divided_last_shifted),
    "online, Python loop": by_python_loop,
    "online, held maximum": functools.partial(by_python_loop, held=True),
    "online, exp2": functools.partial(by_python_loop, power=jnp.exp2),
    "online, scan": by_scan,
    "online, scan from minus infinity": functools.partial(by_scan, lowest=-math.inf),
    "online, scan, held maximum": functools.partial(by_scan, turn=functools.partial(online, held=True)),
    "online, scan of checkpoint": functools.partial(by_scan, turn=jax.checkpoint(online)),
    "online, vmap of scan": jax.vmap(by_scan),
    "online, fori_loop": by_fori_loop,
    "online, jit of fori_loop": jax.jit(by_fori_loop),
}


CONSTANT = ["named", "divided last", "divided last, shifted", "online, Python loop", "online, scan"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "constant"), [*((name, False) for name in ATTENTION), *((name, True) for name in CONSTANT)]
)
def test_attention_in_one_go_or_block_by_block(name: str, constant: bool) -> None:
    """With values that depend on the images, or are constant."""

    def network(attend: Attend, activation: Any) -> Any:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            h = tokens(params, x, activation)
            q, k, v = (h @ params[i] for i in (1, 2, 3))
            return activation(attend(q, k, jnp.broadcast_to(params[4][:TOKENS, :CHANNELS], v.shape) if constant else v))

        return apply

    expected = written_out_on_constant_values if constant else written_out
    assert_follows(network(ATTENTION[name], jax.nn.gelu), network(expected, gelu), params(), images())


@pytest.mark.parametrize(
    "name",
    quick_cases(["named", "quotient, shifted", "times the reciprocal", "exp of log-softmax"], "quotient, shifted"),
)
def test_softmax_in_float32_of_scores_in_bfloat16(name: str) -> None:
    spelled, _ = SOFTMAX[name]
    low = jnp.bfloat16

    def network(weigh: Any, activation: Any, product: Any) -> Any:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            h = tokens(params, x.astype(low), activation)
            p = weigh((h @ params[4]).astype(jnp.float32)).astype(low)
            return activation(product(p @ (h @ params[3]))).astype(jnp.float32)

        return apply

    weights = [w.astype(low) for w in params()]
    ours, reference = network(spelled, jax.nn.gelu, lambda y: y), network(jax.nn.softmax, gelu, shared)
    assert_follows(ours, reference, weights, images(np.float32), tolerance=0.02)
