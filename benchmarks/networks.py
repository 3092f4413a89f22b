"""Networks with random weights, which cost as much as trained ones, and ways over several of them."""

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
    """Weights of a Taskonomy encoder whose activations keep their size from layer to layer."""
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
    """3x3 convolutions of stride 2, each followed by a ReLU."""
    x = images
    for kernel in params:
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x)
    return x


def convolutional(name: str, widths: Sequence[int], seed: int) -> jt.Network:
    """A network of `convolutions`; those of equal widths share an architecture."""
    rng = np.random.default_rng(seed)
    channels = zip((3, *widths[:-1]), widths, strict=True)
    kernels = [rng.normal(0, (2 / (9 * a)) ** 0.5, (3, 3, a, b)).astype(np.float32) for a, b in channels]
    return jt.Network(name, convolutions, kernels)


def over_networks(
    one: Callable[[PyTree, Array], PyTree],
    compiled: Callable[[PyTree, Array], PyTree],
    params: Sequence[PyTree],
    images: Array,
) -> dict[str, tuple[Callable[[], Any], int]]:
    """A loop over the compiled function, `lax.map` and `vmap`, with about as many maps at a time; see `take_turns`.

    The loop and the map take all images of one network at a time, `vmap` their share of all networks.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    few = images[: max(1, len(images) // len(params))]
    mapped = jax.jit(lambda stacked, images: jax.lax.map(lambda each: one(each, images), stacked))
    vmapped = jax.jit(jax.vmap(one, in_axes=(0, None)))
    units = len(params) * len(images)
    return {
        "loop": (lambda: jax.block_until_ready([compiled(each, images) for each in params]), units),
        "lax.map": (lambda: jax.block_until_ready(mapped(stacked, images)), units),
        "vmap": (lambda: jax.block_until_ready(vmapped(stacked, few)), len(params) * len(few)),
    }
