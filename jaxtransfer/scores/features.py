"""The features of networks: what their layers return for the images of a task, and the probabilities of a head."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from jaxtransfer.attribution.precision import Precision
from jaxtransfer.comparison.streaming import finite_rows
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.networks.outputs import named_outputs
from jaxtransfer.points.compute import PointComputation, PointSettings, ProgressFn, naming_network
from jaxtransfer.points.network_refs import NetworkRef
from jaxtransfer.points.passes import (
    LAYER,
    LOGITS,
    PROBABILITIES,
    REPRESENTATION,
    Images,
    input_shape,
)
from jaxtransfer.points.store import Key, Point, Points
from jaxtransfer.scores.target import Target

_HEADS = (LOGITS, PROBABILITIES)
_UNNAMED = "(one without a name)"


class Layer:
    """Reads the features of one layer as [images, height, width, units]; tokens have a width of 1, vectors one place.

    Attributes:
        shape: That shape.
    """

    def __init__(self, values: Point | Float[np.ndarray | Array, "images ..."]) -> None:
        """Takes features as they are stored."""
        self._values = values
        *places, units = values.shape[1:]
        self._places = (*places, 1, 1)[:2] if places else (1, 1)
        self.shape = (values.shape[0], *self._places, units)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: Any) -> Float[np.ndarray, "kept height width units"]:
        values = np.asarray(self._values[images])
        return values.reshape(len(values), *self.shape[1:])


def layers_of_outputs(outputs: PyTree) -> list[Array]:
    """Returns the outputs of a network, except those of its head, as layers [images, height, width, units]."""
    layers = [leaf for name, leaf in named_outputs(outputs).items() if name not in _HEADS]
    layers = [leaf if leaf.ndim in (3, 4) else leaf.reshape(len(leaf), -1) for leaf in layers]
    return [leaf.reshape(Layer(leaf).shape) for leaf in layers]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Refers to the features of one network for the images of a task.

    Attributes:
        network: Name of the network.
        keys: The keys of its points, by kind: a layer each, and that of a head.
        points: Where they are stored.
    """

    network: str
    keys: Mapping[str, Key]
    points: Points

    def kinds(self, *, of_head: bool) -> list[str]:
        """Returns the kinds of points that are features, or the one that holds the probabilities of the head."""
        return [kind for kind in self.keys if (kind == PROBABILITIES) == of_head]

    def open(self, *, of_head: bool) -> list[Layer]:
        """Opens the layers, or the probabilities of the head as one layer without places."""
        return [Layer(self.points.open(self.network, kind)) for kind in self.kinds(of_head=of_head)]

    def usable(self, target: Target) -> int:
        """Counts the labelled examples at which all features are finite."""
        return len(self.restrict(target).labelled)

    def restrict(self, target: Target) -> Target:
        """Returns a target without the examples at which a feature is not finite."""
        if self._finite.all():
            return target
        return dataclasses.replace(target, group=np.where(self._finite, target.group, -1))

    @functools.cached_property
    def _finite(self) -> Bool[np.ndarray, " images"]:
        """Whether all features of an image are finite; read once for all tasks."""
        return np.all([finite_rows(self.points.open(self.network, kind)) for kind in self.keys], axis=0)


def points_of_images(directory: str | Path, images_sha256: str) -> Points:
    """Returns the store of features for images with this hash, below a directory or the URL of one."""
    return Points(f"{str(directory).rstrip('/')}/points/{images_sha256[:16]}")


def compute_features(
    refs: Sequence[NetworkRef],
    kinds: Mapping[str, tuple[str, ...]],
    images: Images,
    points: Points,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    mesh: Mesh,
    progress: ProgressFn | None = None,
) -> tuple[list[Features], dict[str, int]]:
    """Computes the features that a store lacks.

    Args:
        refs: The networks.
        kinds: For each of them the kinds of its points, see `kinds_of_networks`.
        images: The images of a task.
        points: The store.
        precision: Precision of matrix products in the networks' passes.
        batch_size: Images in a batch on each device; None: the largest batch that is useful and fits in memory.
        mesh: The devices.
        progress: Called as `progress(done, total, name)`, anew for networks of other kinds.

    Returns:
        The features of the networks, in their order, and for each network that was computed the size of its batches.
    """
    keys: dict[str, dict[str, Key]] = {}
    batch_sizes: dict[str, int] = {}
    for of_group in dict.fromkeys(kinds[ref.name] for ref in refs):
        group = [ref for ref in refs if kinds[ref.name] == of_group]
        settings = PointSettings(of_group, precision=precision)
        computation = PointComputation(group, images, settings, batch_size=batch_size, mesh=mesh)
        computation.run(points, progress)
        keys |= computation.keys
        batch_sizes |= computation.batch_sizes
    return [Features(ref.name, keys[ref.name], points) for ref in refs], batch_sizes


def kinds_of_networks(
    refs: Sequence[NetworkRef], shape: tuple[int, ...], layers: Sequence[str] | None, *, with_head: bool
) -> dict[str, tuple[str, ...]]:
    """Returns for each network the kinds of points that are its layers, and that of its head.

    Args:
        refs: The networks.
        shape: Height, width and channels of the images.
        layers: Names of the outputs to use; None: all but those of the head.
        with_head: Whether the probabilities of the head are needed, where a network has one.

    Raises:
        JaxTransferError: A network's function fails, or it has no such output, or none but its head.
    """
    by_architecture: dict[Hashable, tuple[str, ...]] = {}
    for ref in refs:
        if ref.architecture not in by_architecture:
            outputs = _outputs(ref, shape)
            by_architecture[ref.architecture] = _kinds(ref.name, outputs, layers, with_head)
    return {ref.name: by_architecture[ref.architecture] for ref in refs}


def _outputs(ref: NetworkRef, shape: tuple[int, ...]) -> list[str]:
    """Returns the names of a network's outputs."""
    network = ref.load()
    with naming_network(ref.name):
        inputs = jax.ShapeDtypeStruct(input_shape(ref.preprocess, 2, shape), jnp.float32)
        return [*named_outputs(jax.eval_shape(network.apply, network.params, inputs))]


def _kinds(network: str, outputs: Sequence[str], layers: Sequence[str] | None, with_head: bool) -> tuple[str, ...]:
    heads = [name for name in outputs if name in _HEADS]
    if layers is None:
        layers = [name for name in outputs if name not in heads]
    for name in layers:
        if name not in outputs:
            known = [output or _UNNAMED for output in outputs]
            raise unknown_name("layer", name, known, where=f"in network {network!r}")
    if not layers:
        raise JaxTransferError(f"Network {network!r} returns no features, only {' and '.join(heads)}.")
    kinds = [REPRESENTATION] if [*layers] == [""] else [f"{LAYER}{name}" for name in layers]
    return (*kinds, PROBABILITIES) if heads and with_head else (*kinds,)
