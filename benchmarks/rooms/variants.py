"""What could be changed about attribution maps: signs, mean, pooling, units, layer, and what all networks share."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtransfer.attribution.maps import METHODS, attribute
from jaxtransfer.comparison.similarity import similarities
from jaxtransfer.networks.network import Network
from jaxtransfer.points.directions import SIMILARITIES, Similarity, directions
from jaxtransfer.rooms.networks import encoder

_AT_ONCE = 64
_PROBES_OF_UNITS = 8

Maps = Float[Array, "networks images height width"]


def early(params: PyTree, images: Float[Array, "images h w c"]) -> Float[Array, "images h/8 w/8 64"]:
    """What an encoder has made of images after two of its four blocks."""
    network = encoder(params)
    network.blocks = nnx.List(network.blocks[:2])
    return network(images)


@functools.partial(jax.jit, static_argnums=0)
def _unit_saliency(apply: Callable, params: PyTree, images: Float[Array, "images h w c"]) -> Array:
    """Mean of |d(v . representation)/dx| over random signs v: no unit's gradient cancels another's."""
    outputs, pull = jax.vjp(lambda images: apply(params, images), images)
    keys = jax.random.split(jax.random.key(0), _PROBES_OF_UNITS)
    signs = jax.vmap(lambda key: jax.random.rademacher(key, outputs.shape[1:], outputs.dtype))(keys)
    each = jax.lax.map(lambda sign: jnp.abs(pull(jnp.broadcast_to(sign, outputs.shape))[0]), signs)
    return each.mean(0)


def bases(networks: Sequence[Network], images: Float[Array, "images h w 3"]) -> dict[str, Maps]:
    """Kinds of maps, averaged over colour channels.

    The three methods, per-unit saliency, and methods for an earlier layer; where maps have signs, with and without.
    """
    made: dict[str, list] = {}
    for network in networks:
        inputs = network.preprocess(images) if network.preprocess else images
        of_network: dict[str, list] = {}
        for start in range(0, len(inputs), _AT_ONCE):
            batch = inputs[start : start + _AT_ONCE]
            some = dict(attribute(network.apply, network.params, batch))
            some["unit saliency"] = _unit_saliency(network.apply, network.params, batch)
            earlier = attribute(early, network.params, batch, methods=METHODS[1:])
            some |= {f"{method} of block 2": maps for method, maps in earlier.items()}
            for name, maps in some.items():
                of_network.setdefault(name, []).append(np.asarray(maps.mean(-1)))
        for name, parts in of_network.items():
            made.setdefault(name, []).append(np.concatenate(parts))
    stacked = {name: jnp.asarray(np.stack(maps)) for name, maps in made.items()}
    signed = {f"|{name}|": jnp.abs(maps) for name, maps in stacked.items() if "saliency" not in name}
    return stacked | signed


def _pooled(side: int, maps: Maps) -> Maps:
    networks, images, height, width = maps.shape
    return maps.reshape(networks, images, height // side, side, width // side, side).mean((3, 5))


def _own(maps: Maps) -> Maps:
    """Each map at length 1, less the mean of all networks' maps of the image."""
    units, _ = directions(maps.reshape(*maps.shape[:2], -1), "cosine")
    return (units - units.mean(0, keepdims=True)).reshape(maps.shape)


CHANGES: dict[str, tuple[Callable[[Maps], Maps], tuple[Similarity, ...]]] = {
    "": (lambda maps: maps, SIMILARITIES),
    "pooled 4 x 4": (functools.partial(_pooled, 4), SIMILARITIES),
    "pooled 8 x 8": (functools.partial(_pooled, 8), SIMILARITIES),
    "less the mean map": (_own, ("cosine",)),
    "pooled 8 x 8, less the mean map": (lambda maps: _own(_pooled(8, maps)), ("cosine",)),
}
"""Ways to change maps, and the similarities they are then compared by."""


def columns() -> list[str]:
    """The names of all changes, with the similarity."""
    return [f"{change}, {way}".removeprefix(", ") for change, (_, ways) in CHANGES.items() for way in ways]


def affinities(made: dict[str, Maps]) -> dict[str, Float[np.ndarray, "networks networks"]]:
    """Of every kind of maps, changed in every way."""
    found = {}
    for base, maps in made.items():
        for change, (function, ways) in CHANGES.items():
            changed = function(maps)
            flat = changed.reshape(*changed.shape[:2], -1)
            for similarity in ways:
                cosines, _ = similarities(flat, similarity)
                found[", ".join(filter(None, (base, change, similarity)))] = np.asarray(cosines.mean(0))
    return found
