"""Networks with random weights, of any architecture: the control for what training has added."""

import dataclasses
from collections.abc import Collection, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxtransfer.networks.network import Network, is_key
from jaxtransfer.points.network_refs import NetworkRef


def shuffled(params: PyTree, seed: int) -> PyTree:
    """Shuffles the numbers of every floating-point array.

    Each array keeps its mean, its variance and all its values, so running variances stay positive and activations keep
    a usable size, while all structure within an array is lost. Running statistics of batch normalisation are shuffled
    too and not computed anew. Integers, keys and single numbers stay as they are.

    Args:
        params: Weights.
        seed: Seed of the order.
    """

    def shuffle(number: int, leaf: jax.Array) -> PyTree:
        if is_key(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating) or np.ndim(leaf) == 0:
            return leaf
        array = np.asarray(leaf)
        return np.random.default_rng([seed, number]).permutation(array.reshape(-1)).reshape(array.shape)

    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [shuffle(i, leaf) for i, leaf in enumerate(leaves)])


def random_twin(ref: NetworkRef, name: str) -> NetworkRef:
    """Refers to a network with the architecture of another one and its shuffled weights.

    Args:
        ref: The other network.
        name: Name of the new one.
    """
    identity = {**ref.identity, "weights_sha256": f"{ref.identity['weights_sha256']} shuffled"}

    def load() -> Network:
        network = ref.load()
        return dataclasses.replace(network, name=name, params=shuffled(network.params, 0))

    return dataclasses.replace(ref, name=name, identity=identity, load=load)


def random_twins(refs: Sequence[NetworkRef], name: str, taken: Collection[str]) -> list[NetworkRef]:
    """Refers to one network with random weights for each architecture.

    Args:
        refs: The networks.
        name: Name of the new network, or the beginning of the names of several: "random-NETWORK" of the first
            network with an architecture.
        taken: Names that are taken.
    """
    firsts: dict[Hashable, NetworkRef] = {}
    for ref in refs:
        firsts.setdefault(ref.architecture, ref)
    alone = len(firsts) == 1 and name not in taken
    return [random_twin(ref, name if alone else f"{name}-{ref.name}") for ref in firsts.values()]
