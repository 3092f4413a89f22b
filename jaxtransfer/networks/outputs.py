"""Says what a network returns: the names of its layers, their shapes, and whether they have places."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxtransfer.networks.network import Network
from jaxtransfer.networks.preprocess import Preprocess
from jaxtransfer.networks.program import Program

_KINDS = {4: "grid", 3: "tokens"}


def named_outputs(outputs: PyTree) -> dict[str, Any]:
    """Returns the outputs of a network by name: keys of dicts and indices, joined by dots; "" for a single one."""
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def describe_outputs(network: Network) -> dict[str, dict[str, Any]]:
    """Describes what a network returns for one image, without running it.

    Returns:
        For each layer ("representation" if the network returns a single array) its "kind" and its "shape" without the
        images: "grid" [h, w, units], "tokens" [tokens, units], "logits" if it has that name, or "vector". Nothing
        where the size of the images is not known, or the network cannot be traced for one image.
    """
    if isinstance(network.apply, Program):
        shape = network.apply.shape
    elif isinstance(network.preprocess, Preprocess):
        shape = (*network.preprocess.size, 1 if network.preprocess.lightness else 3)
    else:
        return {}
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        outputs = named_outputs(jax.eval_shape(network.apply, network.params, image))
    except Exception:  # any that the network's own function raises
        return {}
    return {
        name or "representation": {
            "kind": "logits" if name == "logits" else kind_of_shape(output.shape),
            "shape": [*output.shape[1:]],
        }
        for name, output in outputs.items()
    }


def kind_of_shape(shape: tuple[int, ...]) -> str:
    """Returns what an output [images, ...] is by its axes: "grid", "tokens" or "vector"."""
    return _KINDS.get(len(shape), "vector")
