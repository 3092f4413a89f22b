"""Where the networks of a sweep come from: at hand, or in a zoo from which each is loaded when its turn comes."""

import dataclasses
import hashlib
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
from jaxtransfer.networks.network import Network, Storable, weights_hash
from jaxtransfer.networks.preprocess import PreprocessFn
from jaxtransfer.networks.zoo import Zoo, function_name
from jaxtransfer.points.passes import place_weights
from jaxtransfer.points.store import Key


@dataclasses.dataclass(frozen=True)
class Source:
    """A network whose weights need not be at hand.

    Attributes:
        name: Of the network.
        preprocess: How it wants its images.
        architecture: Networks with equal ones share a compiled program.
        identity: What its points depend on besides the images.
        load: Gives the network.
    """

    name: str
    preprocess: PreprocessFn | None
    architecture: Hashable
    identity: Key
    load: Callable[[], Network]


def sources_of(networks: Zoo | Iterable[Network]) -> list[Source]:
    """What there is to know of networks without their weights.

    Raises:
        JaxTransferError: They are no networks.
    """
    if isinstance(networks, Zoo):
        manifests = {name: networks.manifest(name) for name in networks.names}
        networks.check_modules(manifests.values())
        return [_in_zoo(networks, name, manifest) for name, manifest in manifests.items()]
    if not isinstance(networks, Iterable) or isinstance(networks, str | Path):
        raise JaxTransferError(f"networks must be a Zoo or a list of Network, not a {type(networks).__name__}.")
    networks = list(networks)
    if strangers := [each for each in networks if not isinstance(each, Network)]:
        kind = type(strangers[0]).__name__
        raise JaxTransferError(f"networks must hold Network(name, apply, params) only, not a {kind}.")
    return [_at_hand(network) for network in networks]


def _in_zoo(zoo: Zoo, name: str, manifest: Mapping[str, Any]) -> Source:
    """A network that is loaded when its turn comes; its manifest says what it is."""
    preprocess = zoo.preprocess(name)
    architecture = json.dumps([manifest[key] for key in ("apply", "preprocess", "params")], sort_keys=True)
    apply = manifest["apply"]
    described = _described(apply["name"], apply["config"]) if "config" in apply else apply["name"]
    identity = {"weights_sha256": manifest["weights_sha256"], "apply": described, "preprocess": repr(preprocess)}
    return Source(name, preprocess, architecture, identity, lambda: zoo[name])


def _at_hand(network: Network) -> Source:
    leaves, structure = jax.tree.flatten(network.params)
    kinds = ((np.shape(leaf), jnp.result_type(leaf), jax.typeof(leaf).weak_type) for leaf in leaves)
    architecture = network.apply, structure, (*kinds,)
    apply = network.apply
    owner = apply if hasattr(apply, "__qualname__") else type(apply)
    described = function_name(owner)
    if isinstance(apply, Storable):
        described = _described(described, apply.to_json())
    weights = weights_hash(network.params)
    identity = {"weights_sha256": weights, "apply": described, "preprocess": repr(network.preprocess)}
    return Source(network.name, network.preprocess, architecture, identity, lambda: network)


def _described(name: str, config: Any) -> str:
    """A function's name, with a hash of its configuration."""
    return f"{name} {hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()}"


def loaded_ahead(
    teams: Sequence[Sequence[Source]], mesh: Mesh
) -> Iterator[tuple[Sequence[Source], Future[tuple[Network, PyTree]]]]:
    """Teams with one of their networks and the weights of all, on the devices before those ahead have done their work.

    The last network of a team fills rows up.
    """

    def load(team: Sequence[Source]) -> tuple[Network, PyTree]:
        members = {row: team[min(row, len(team) - 1)] for row in own_rows(mesh)}
        loaded = {source.name: source.load() for source in members.values()}
        weights = {row: loaded[source.name].params for row, source in members.items()}
        return next(iter(loaded.values())), place_weights(weights, mesh)

    with ThreadPoolExecutor(1) as pool:
        futures = (pool.submit(load, team) for team in teams)
        upcoming = next(futures, None)
        for team in teams:
            assert upcoming is not None
            now, upcoming = upcoming, next(futures, None)
            yield team, now
