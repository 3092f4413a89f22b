"""Max pooling whose gradient is fast on CPUs and follows PyTorch's."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def max_pool_3x3(
    x: Float[Array, "images h w channels"], padding: Sequence[tuple[int, int]]
) -> Float[Array, "images h2 w2 channels"]:
    """Max-pools 3x3 windows with stride 2 of values that are not negative, such as those after a ReLU.

    Slices, because the gradient of `nnx.max_pool` took 30 ms instead of 7 ms per image of 256x256 on two CPU cores.
    Columns before rows and `>=` give the gradient to the first of equal maxima, as PyTorch does.

    Args:
        x: Values >= 0.
        padding: Rows of zeros before and after the image, then columns of zeros before and after it.
    """
    for axis in (2, 1):
        amounts = [(0, 0)] * 4
        amounts[axis] = padding[axis - 1]
        x = jnp.pad(x, amounts)
        last = (x.shape[axis] - 3) // 2 * 2 + 1
        windows = (jax.lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(3))
        x = functools.reduce(lambda a, b: jnp.where(a >= b, a, b), windows)
    return x
