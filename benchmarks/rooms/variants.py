"""Compares variants of attribution maps: sign, pooling, units, layer, and removal of the mean map of all networks."""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtransfer.attribution.maps import METHODS, attribute
from jaxtransfer.comparison.similarity import similarities
from jaxtransfer.networks.network import Network
from jaxtransfer.points.directions import SIMILARITIES, Similarity, directions
from jaxtransfer.rooms.networks import encoder

_BATCH = 64

Maps = Float[Array, "networks images height width"]


def early(params: PyTree, images: Float[Array, "images h w c"]) -> Float[Array, "images h/8 w/8 64"]:
    """Computes an encoder's features after two of its four blocks."""
    network = encoder(params)
    network.blocks = nnx.List(network.blocks[:2])
    return network(images)


def bases(networks: Sequence[Network], images: Float[Array, "images h w 3"]) -> dict[str, Maps]:
    """Computes all maps, averaged over colour channels.

    They are those of the three methods, the saliency of units, and those of methods at an earlier layer; signed maps
    also as absolute values.
    """
    by_name: dict[str, list] = {}
    for network in networks:
        inputs = network.preprocess(images) if network.preprocess else images
        of_network: dict[str, list] = {}
        for start in range(0, len(inputs), _BATCH):
            batch = inputs[start : start + _BATCH]
            maps_of_batch = attribute(network.apply, network.params, batch, methods=(*METHODS, "unit_saliency"))
            maps_of_batch["unit saliency"] = maps_of_batch.pop("unit_saliency")
            earlier = attribute(early, network.params, batch, methods=METHODS[1:])
            maps_of_batch |= {f"{method} of block 2": maps for method, maps in earlier.items()}
            for name, maps in maps_of_batch.items():
                of_network.setdefault(name, []).append(np.asarray(maps.mean(-1)))
        for name, parts in of_network.items():
            by_name.setdefault(name, []).append(np.concatenate(parts))
    stacked = {name: jnp.asarray(np.stack(maps)) for name, maps in by_name.items()}
    absolute = {f"|{name}|": jnp.abs(maps) for name, maps in stacked.items() if "saliency" not in name}
    return stacked | absolute


def _pooled(side: int, maps: Maps) -> Maps:
    networks, images, height, width = maps.shape
    return maps.reshape(networks, images, height // side, side, width // side, side).mean((3, 5))


def _without_mean(maps: Maps) -> Maps:
    """Scales every map to length 1 and subtracts the mean over the networks, image by image."""
    units, _ = directions(maps.reshape(*maps.shape[:2], -1), "cosine")
    return (units - units.mean(0, keepdims=True)).reshape(maps.shape)


CHANGES: dict[str, tuple[Callable[[Maps], Maps], tuple[Similarity, ...]]] = {
    "": (lambda maps: maps, SIMILARITIES),
    "pooled 4 x 4": (functools.partial(_pooled, 4), SIMILARITIES),
    "pooled 8 x 8": (functools.partial(_pooled, 8), SIMILARITIES),
    "less the mean map": (_without_mean, ("cosine",)),
    "pooled 8 x 8, less the mean map": (lambda maps: _without_mean(_pooled(8, maps)), ("cosine",)),
}
"""Changes of the maps, with the similarities that compare the changed maps."""


def columns() -> list[str]:
    """Returns the names of all changes with their similarities."""
    return [f"{change}, {way}".removeprefix(", ") for change, (_, ways) in CHANGES.items() for way in ways]


def affinities(maps_by_name: dict[str, Maps]) -> dict[str, Float[np.ndarray, "networks networks"]]:
    """Computes the affinities of all maps with all changes."""
    result = {}
    for base, maps in maps_by_name.items():
        for change, (function, ways) in CHANGES.items():
            changed = function(maps)
            flat = changed.reshape(*changed.shape[:2], -1)
            for similarity in ways:
                cosines, _ = similarities(flat, similarity)
                result[", ".join(filter(None, (base, change, similarity)))] = np.asarray(cosines.mean(0))
    return result
