"""What the profile counts, against closed forms, against counts by convolving ones, and against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import profile
from jaxtransfer.pge.layers import convolution


def zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


def conv(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": [(1, 1)] * 2} | options
    return lax.conv_general_dilated(x, kernel, **options, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_a_product_costs_what_its_shape_says() -> None:
    assert profile.necessary(jnp.matmul, zeros(5, 7), zeros(7, 3), wrt=0) == (2 * 5 * 7 * 3, 4 * (35 + 21 + 15))


def test_a_pass_back_costs_one_product_for_every_operand_that_depends() -> None:
    def two_layers(weights, x):
        hidden = jax.nn.relu(x @ weights[0])
        return (jax.jit(jnp.matmul)(hidden, weights[1])).sum()

    weights, x = (zeros(7, 11), zeros(11, 3)), zeros(5, 7)
    first, second = 2 * 5 * 7 * 11, 2 * 5 * 11 * 3
    assert profile.necessary(two_layers, weights, x, wrt=1).flops == first + second
    assert profile.necessary(two_layers, weights, x, wrt=1, backward=2).flops == 3 * first + 3 * second
    assert profile.necessary(two_layers, weights, x, wrt=0, backward=1).flops == 2 * first + 3 * second


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (4, {}),
        (4, {"window_strides": (2, 3), "padding": [(3, 0), (0, 2)]}),
        (4, {"lhs_dilation": (2, 3), "rhs_dilation": (1, 2)}),
        (2, {"feature_group_count": 2}),
    ],
)
def test_a_convolution_costs_its_terms_and_none_for_zeros_around_the_image(channels: int, options: dict) -> None:
    x, kernel = zeros(2, 9, 8, 4), zeros(3, 3, channels, 6)
    terms = conv(jnp.ones_like(x), jnp.ones_like(kernel), **options).sum()
    flops = profile.necessary(lambda x, kernel: conv(x, kernel, **options), x, kernel, wrt=0).flops
    assert flops == 2 * terms
    spent = jax.jit(lambda x, kernel: conv(x, kernel, **options)).lower(x, kernel).cost_analysis()
    assert spent is not None
    assert spent["flops"] == flops


def test_loops_count_every_turn_and_of_ways_for_platforms_the_cheapest_counts() -> None:
    x, kernel = zeros(2, 8, 8, 4), zeros(3, 3, 4, 4)

    def turns(x, kernel):
        return lax.scan(lambda x, _: (convolution(x, kernel, 1, 1), None), x, length=3)[0]

    assert profile.necessary(turns, x, kernel, wrt=0) == tuple(3 * np.array(profile.necessary(conv, x, kernel, wrt=0)))


def test_xla_spends_a_little_more_and_its_operations_are_told_apart() -> None:
    def net(kernel, x):
        return jax.nn.relu(jax.nn.relu(conv(jax.nn.relu(conv(x, kernel)), kernel)) @ kernel[0, 0])

    work = profile.maps_of(net, jnp.ones((3, 3, 16, 16)), jnp.ones((2, 16, 16, 16)))
    spent = work.compiled.cost_analysis()["flops"]
    assert work.necessary.flops < spent < 1.05 * work.necessary.flops
    seconds = profile.time_by_kind(work)
    assert {"convolutions, forward", "convolutions, backward", "matrix products, forward"} <= seconds.keys()
    assert min(seconds.values()) > 0
