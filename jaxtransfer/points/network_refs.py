"""References to networks in memory or in a zoo, whose weights are loaded just before they are needed."""

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxtransfer.devices import own_rows
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import json_hash
from jaxtransfer.networks.functions import function_name
from jaxtransfer.networks.network import Network, Storable, weights_hash
from jaxtransfer.networks.preprocess import PreprocessFn
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.passes import place_weights
from jaxtransfer.points.store import Key


@dataclasses.dataclass(frozen=True)
class NetworkRef:
    """Refers to a network whose weights may not be loaded yet.

    Attributes:
        name: Name of the network.
        preprocess: Makes the network's input from probe images; None: they are its input.
        architecture: Equal for networks that share a compiled program.
        identity: What the network's points depend on besides the images and the settings.
        load: Returns the network with its weights.
    """

    name: str
    preprocess: PreprocessFn | None
    architecture: Hashable
    identity: Key
    load: Callable[[], Network]


def network_refs(networks: Zoo | Iterable[Network]) -> list[NetworkRef]:
    """Refers to the networks of a zoo, without loading their weights, or of a list.

    Raises:
        JaxTransferError: `networks` is neither, or the zoo's functions lie in modules that it may not import.
    """
    if isinstance(networks, Zoo):
        manifests = {name: networks.manifest(name) for name in networks.names}
        networks.check_modules(manifests.values())
        return [_in_zoo(networks, name, manifest) for name, manifest in manifests.items()]
    if not isinstance(networks, Iterable) or isinstance(networks, str | Path):
        raise JaxTransferError(f"networks must be a Zoo or a list of Network, not a {type(networks).__name__}.")
    networks = list(networks)
    if others := [entry for entry in networks if not isinstance(entry, Network)]:
        type_name = type(others[0]).__name__
        raise JaxTransferError(f"networks must hold Network(name, apply, params) only, not a {type_name}.")
    with ThreadPoolExecutor() as pool:  # hashing all weights on one core takes longer than a GPU's passes
        return [*pool.map(_in_memory, networks)]


def _in_zoo(zoo: Zoo, name: str, manifest: Mapping[str, Any]) -> NetworkRef:
    """Refers to a stored network, described by its manifest."""
    preprocess = zoo.preprocess(name)
    architecture = json.dumps([manifest[key] for key in ("apply", "preprocess", "params")], sort_keys=True)
    apply = manifest["apply"]
    function = _with_hash(apply["name"], apply["config"]) if "config" in apply else apply["name"]
    identity = {"weights_sha256": manifest["weights_sha256"], "apply": function, "preprocess": repr(preprocess)}
    return NetworkRef(name, preprocess, architecture, identity, lambda: zoo[name])


def _in_memory(network: Network) -> NetworkRef:
    """Refers to a network that is loaded; its identity is that of the same network in a zoo."""
    leaves, structure = jax.tree.flatten(network.params)
    types = ((np.shape(leaf), jnp.result_type(leaf), jax.typeof(leaf).weak_type) for leaf in leaves)
    architecture = network.apply, structure, (*types,)
    apply = network.apply
    function = function_name(apply if hasattr(apply, "__qualname__") else type(apply))
    if isinstance(apply, Storable):
        function = _with_hash(function, apply.to_json())
    weights = weights_hash(network.params)
    identity = {"weights_sha256": weights, "apply": function, "preprocess": repr(network.preprocess)}
    return NetworkRef(network.name, network.preprocess, architecture, identity, lambda: network)


def _with_hash(name: str, config: Any) -> str:
    """A function's name, with a hash of its configuration."""
    return f"{name} {json_hash(config)}"


def prefetch_weights(
    batches: Sequence[Sequence[NetworkRef]], mesh: Mesh
) -> Iterator[tuple[Sequence[NetworkRef], Future[tuple[Network, PyTree]]]]:
    """Loads the weights of each batch of networks while the batch before it is computed.

    Args:
        batches: Networks of one architecture, at most one for each row of the mesh; the last network of a batch fills
            the remaining rows.
        mesh: The devices.

    Yields:
        A batch, and the future of one of its networks and of the weights of all, on the devices.
    """

    def load(batch: Sequence[NetworkRef]) -> tuple[Network, PyTree]:
        by_row = {row: batch[min(row, len(batch) - 1)] for row in own_rows(mesh)}
        networks = {ref.name: ref.load() for ref in by_row.values()}
        weights = {row: networks[ref.name].params for row, ref in by_row.items()}
        return next(iter(networks.values())), place_weights(weights, mesh)

    with ThreadPoolExecutor(1) as pool:
        futures = (pool.submit(load, batch) for batch in batches)
        next_loading = next(futures, None)
        for batch in batches:
            assert next_loading is not None
            loading, next_loading = next_loading, next(futures, None)
            yield batch, loading
