"""Makes networks with random weights, which cost as much as trained ones, and compares loops over networks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PyTree

import jaxtransfer as jt
from jaxtransfer import taskonomy


def taskonomy_params(seed: int) -> PyTree:
    """Draws weights of a Taskonomy encoder that keep the scale of activations from layer to layer."""
    rng = np.random.default_rng(seed)
    _, shapes = taskonomy.skeleton(taskonomy.Encoder, 3)
    params = {}
    leaves: dict[tuple[Any, ...], Any] = traverse_util.flatten_dict(shapes)
    for path, leaf in leaves.items():
        match path[-1]:
            case "kernel":
                values = rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
            case "scale":
                values = rng.uniform(0.5, 1, leaf.shape)
            case "var":
                values = rng.uniform(0.8, 1.5, leaf.shape)
            case _:
                values = rng.normal(0, 0.1, leaf.shape)
        params["encoder", *map(str, path)] = values.astype(np.float32)
    return traverse_util.unflatten_dict(params)


def convolutions(
    params: Sequence[Float[Array, "3 3 inputs outputs"]], images: Float[Array, "images height width channels"]
) -> Float[Array, "images h w outputs"]:
    """Applies 3x3 convolutions of stride 2, each followed by a ReLU."""
    x = images
    for kernel in params:
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x)
    return x


def convolutional(name: str, widths: Sequence[int], seed: int) -> jt.Network:
    """Makes a network of `convolutions`; networks with the same widths have the same architecture."""
    rng = np.random.default_rng(seed)
    channels = zip((3, *widths[:-1]), widths, strict=True)
    kernels = [rng.normal(0, (2 / (9 * a)) ** 0.5, (3, 3, a, b)).astype(np.float32) for a, b in channels]
    return jt.Network(name, convolutions, kernels)


def over_networks(
    function: Callable[[PyTree, Array], PyTree],
    compiled: Callable[[PyTree, Array], PyTree],
    params: Sequence[PyTree],
    images: Array,
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Returns the contenders loop, `lax.map` and `vmap` for `harness.take_turns`.

    The loop and `lax.map` take all images for a network at a time. `vmap` takes all networks at a time, with fewer
    images, so that about equally many maps are computed at a time.

    Args:
        function: Function of weights and images.
        compiled: The same function, compiled, for the loop.
        params: Weights of every network.
        images: Images for the networks.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    share = images[: max(1, len(images) // len(params))]
    mapped = jax.jit(lambda stacked, images: jax.lax.map(lambda weights: function(weights, images), stacked))
    vmapped = jax.jit(jax.vmap(function, in_axes=(0, None)))
    units = len(params) * len(images)
    return {
        "loop": (lambda: jax.block_until_ready([compiled(weights, images) for weights in params]), units),
        "lax.map": (lambda: jax.block_until_ready(mapped(stacked, images)), units),
        "vmap": (lambda: jax.block_until_ready(vmapped(stacked, share)), len(params) * len(share)),
    }
