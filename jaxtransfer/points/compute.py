"""Computes the points of many networks over one set of probe images, and finds the networks' faults on the way."""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from rich.filesize import decimal

from jaxtransfer.attribution.diagnostics import concerns, faults_of, with_places
from jaxtransfer.attribution.maps import TargetFn
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.attribution.relevance import RULES
from jaxtransfer.attribution.targets import random_signs, spatial_maximum
from jaxtransfer.defaults import EPSILON
from jaxtransfer.devices import (
    DATA,
    MODEL,
    allgather,
    check_memory,
    is_writer,
    memory_per_device,
    replicate,
    synchronised,
)
from jaxtransfer.errors import JaxTransferError, NetworkError
from jaxtransfer.networks.network import Network
from jaxtransfer.points.directions import Similarity
from jaxtransfer.points.network_refs import NetworkRef, prefetch_weights
from jaxtransfer.points.passes import (
    Images,
    Inputs,
    Layout,
    Pass,
    bytes_needed,
    evidence_of_row,
    input_shape,
    is_map,
    method_of,
)
from jaxtransfer.points.sketch import Projection
from jaxtransfer.points.store import Key, Points, chunks
from jaxtransfer.points.writer import Writer

ProgressFn = Callable[[int, int, str], None]

Target = Literal["sum", "random_signs", "spatial_maximum"]
TARGETS: tuple[Target, ...] = get_args(Target)
_TARGET_FUNCTIONS: dict[Target, TargetFn | None] = {
    "sum": None,
    "random_signs": random_signs,
    "spatial_maximum": spatial_maximum,
}

# Pixels of an automatically chosen batch on each device; more gained nothing on CPUs.
_BATCH_PIXELS = {"cpu": 2**19}
_BATCH_PIXELS_ELSEWHERE = 2**22
# Steps into which automatically chosen batches divide the images, at least: the first batch is computed twice.
_MIN_STEPS = 8
# Fraction of a device's memory that an automatically chosen batch may use.
_MEMORY_FRACTION = 0.8

_LOG = logging.getLogger("jaxtransfer")


@dataclasses.dataclass(frozen=True)
class PointSettings:
    """Holds the settings that points depend on, besides the network and the images.

    Attributes:
        kinds: Kinds of points, see `Points`.
        similarity: Similarity that sketches preserve; whole maps do not depend on it.
        target: The scalar that maps attribute.
        epsilon: Stabiliser of epsilon-LRP.
        precision: Precision of matrix products in the networks' passes.
        sketch: Numbers in the sketch of a map; None: whole maps.
    """

    kinds: tuple[str, ...]
    similarity: Similarity = "cosine"
    target: Target = "sum"
    epsilon: float = EPSILON
    precision: Precision = "float32"
    sketch: int | None = None


class PointComputation:
    """Computes those points of some networks that are not stored yet.

    Networks are distributed over the rows of a mesh and images over its columns. Networks of one architecture share a
    compiled pass, networks of one preprocessing the preprocessed images.

    Attributes:
        keys: For each network and kind, the key of its point: everything that the point depends on.
        projection: The random projection that makes sketches, on all devices; None: points are whole maps.
        batch_sizes: For each network that was computed, the number of images in a batch on each device.
    """

    def __init__(
        self,
        networks: Sequence[NetworkRef],
        images: Images,
        settings: PointSettings,
        *,
        batch_size: int | None,
        mesh: Mesh,
    ) -> None:
        """Computes the keys; nothing runs on devices yet.

        Args:
            networks: The networks, by reference.
            images: Probe images.
            settings: What to compute.
            batch_size: Images in a batch on each device; None: chosen by use and memory.
            mesh: The devices.
        """
        self._networks, self._images, self._settings = networks, images, settings
        self._batch_size, self._mesh = batch_size, mesh
        self.projection = None if settings.sketch is None else _projection(images, settings.sketch, mesh)
        probe_hash = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
        self.keys = {
            network.name: {kind: _key(network, kind, settings, probe_hash) for kind in settings.kinds}
            for network in networks
        }
        self.batch_sizes: dict[str, int] = {}
        self._inputs: Inputs | None = None
        self._max_batch: dict[Hashable, int] = {}  # by architecture

    def run(self, points: Points, progress: ProgressFn | None = None) -> None:
        """Computes the missing points and writes them.

        Args:
            points: The store.
            progress: Called as `progress(done, total, name)`, counted in images times networks.
        """
        missing = self._missing(points)
        images, total, done = len(self._images), len(self._images) * len(self._networks), 0
        for network in self._networks:
            if not missing[network.name] and progress is not None:
                progress(done := done + images, total, network.name)
        for batch_of_networks, loading in prefetch_weights(self._batches_of_networks(missing), self._mesh):
            with synchronised():
                network, params = loading.result()

            def report_progress(count: int, before: int = done, name: str = batch_of_networks[-1].name) -> None:
                if progress is not None:
                    progress(before + count, total, name)

            keys = {
                ref.name: {kind: self.keys[ref.name][kind] for kind in missing[ref.name]} for ref in batch_of_networks
            }
            self._compute(points, keys, network, params, batch_of_networks[0].architecture, report_progress)
            done += images * len(batch_of_networks)

    def leave_out(self, name: str) -> None:
        """Forgets a network."""
        self._networks = [network for network in self._networks if network.name != name]
        del self.keys[name]

    def _missing(self, points: Points) -> dict[str, tuple[str, ...]]:
        """For each network the kinds of its points that are not stored."""
        kinds = self._settings.kinds
        with synchronised():
            own = [[kind in points.missing(name, keys) for kind in kinds] for name, keys in self.keys.items()]
        missing = np.asarray(allgather(np.array(own)).any(0))  # processes may see files at different times
        return {name: tuple(np.array(kinds)[row].tolist()) for name, row in zip(self.keys, missing, strict=True)}

    def _batches_of_networks(self, missing: Mapping[str, tuple[str, ...]]) -> list[list[NetworkRef]]:
        """Networks of one architecture that lack the same points, at most one for each row of the mesh."""
        # Networks of one preprocessing follow each other, so that the inputs of only one are held.
        by_architecture: dict[Hashable, dict[Hashable, list[NetworkRef]]] = {}
        for network in self._networks:
            if missing[network.name]:
                of_preprocess = by_architecture.setdefault(network.preprocess, {})
                of_preprocess.setdefault((network.architecture, missing[network.name]), []).append(network)
        groups = [group for of_preprocess in by_architecture.values() for group in of_preprocess.values()]
        rows = self._mesh.shape[MODEL]
        return [group[start:stop] for group in groups for start, stop in chunks(len(group), rows)]

    def _compute(
        self,
        points: Points,
        keys: Mapping[str, Mapping[str, Key]],
        network: Network,
        params: PyTree,
        architecture: Hashable,
        report_progress: Callable[[int], None],
    ) -> None:
        """Computes the points of one network on each row of the mesh, in smaller batches if memory runs out."""
        kinds = tuple(next(iter(keys.values())))
        while True:
            forward_pass, program = self._compiled_pass(network, kinds, params, architecture)
            batch = forward_pass.layout.batch
            try:
                self._run_pass(points, keys, forward_pass, program, params, report_progress)
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if self._batch_size is not None or batch == 1 or jax.process_count() > 1:
                    raise JaxTransferError(
                        f"The memory of a device does not hold {batch} images of network {network.name!r}; ask for a "
                        "smaller batch size, or more devices for the images."
                    ) from error
                _LOG.warning("Memory ran out at batches of %d images; trying batches of half the size.", batch)
                self._max_batch[architecture] = batch // 2
        self.batch_sizes |= dict.fromkeys(keys, batch)

    def _compiled_pass(
        self, network: Network, kinds: tuple[str, ...], params: PyTree, architecture: Hashable
    ) -> tuple[Pass, jax.stages.Compiled]:
        """Compiles the pass for the batch size asked for, or for the largest one that is useful and fits in memory."""
        settings, probe_shape = self._settings, self._images.shape[1:]
        with naming_network(network.name):
            height, width = input_shape(network.preprocess, 1, probe_shape)[1:3]
        useful = max(1, _BATCH_PIXELS.get(jax.default_backend(), _BATCH_PIXELS_ELSEWHERE) // (height * width))
        useful = min(useful, max(2, -(-len(self._images) // (_MIN_STEPS * self._mesh.shape[DATA]))))
        max_batch = self._max_batch.get(architecture, self._batch_size or useful)
        memory = memory_per_device()
        while True:
            forward_pass = Pass(
                apply=network.apply,
                preprocess=network.preprocess,
                kinds=kinds,
                similarity=settings.similarity,
                target=_TARGET_FUNCTIONS[settings.target],
                epsilon=settings.epsilon,
                precision=settings.precision,
                shape=probe_shape,
                layout=Layout.of(self._mesh, len(self._images), max_batch),
            )
            with naming_network(network.name):
                program = forward_pass.compiled(params, self.projection, network.params)
            batch, size = forward_pass.layout.batch, bytes_needed(program)
            if self._batch_size is not None or size <= _MEMORY_FRACTION * memory or batch == 1:
                break
            max_batch = max(1, min(batch // 2, int(batch * _MEMORY_FRACTION * memory / size)))
        images = "an image" if batch == 1 else f"{batch} images"
        advice = "ask for smaller images, a smaller batch size, or more devices for the images"
        check_memory(size, f"Network {network.name!r} with {images} on a device", advice, memory)
        if self._batch_size is None and architecture not in self._max_batch:
            self._max_batch[architecture] = max_batch
            share = f"{decimal(size)} of {decimal(memory)}"
            _LOG.info("Batches of %d images on each device for %s, which take %s.", batch, network.name, share)
        return forward_pass, program

    def _run_pass(
        self,
        points: Points,
        keys: Mapping[str, Mapping[str, Key]],
        forward_pass: Pass,
        program: jax.stages.Compiled,
        params: PyTree,
        report_progress: Callable[[int], None],
    ) -> None:
        """Runs a compiled pass over all batches, writes the points, and marks them finished with their faults."""
        layout = forward_pass.layout
        if self._inputs is None or self._inputs.key != (forward_pass.preprocess, layout):
            self._inputs = Inputs(self._images, forward_pass.preprocess, layout)
        inputs = self._inputs
        writer = Writer(points, list(keys), layout, program.out_info[0])
        with synchronised():
            writer.create()
        off, on = (replicate(np.bool_(signed), self._mesh) for signed in (False, True))
        # One step is computed while the one before it is written.
        next_outputs, usual = program(params, *inputs[0], self.projection, off)
        has_maps = any(map(is_map, forward_pass.kinds))
        signed = program(params, *inputs[0], self.projection, on)[1] if has_maps else usual
        for step in range(layout.steps):
            outputs = next_outputs
            if step + 1 < layout.steps:
                next_outputs, _ = program(params, *inputs[step + 1], self.projection, off)
            writer.take(step, outputs)
            report_progress(len(keys) * layout.done(step + 1))
        with synchronised():
            writer.close()
        with synchronised():
            for row, (name, of_kinds) in enumerate(keys.items()):
                if is_writer(self._mesh, row):
                    faults = faults_of(*(evidence_of_row(evidence, row) for evidence in (usual, signed)))
                    faults = with_places(faults, forward_pass.apply, *_shapes_of_one(params, inputs[0][0]))
                    points.finish(name, of_kinds, {kind: _faults_of_kind(kind, faults) for kind in of_kinds})


def _key(network: NetworkRef, kind: str, settings: PointSettings, probe_hash: str) -> Key:
    """Everything that a point depends on."""
    method, of_map = method_of(kind), is_map(kind)
    is_relevance = method == "epsilon_lrp"
    # The target "sum" and the first version of the rules have no entry, so that points of older versions keep their
    # keys.
    has_target = of_map and method != "unit_saliency"
    of_target = {"target": settings.target} if has_target and settings.target != "sum" else {}
    of_rules = {"rules": RULES} if is_relevance else {}
    # Representations of older versions have no places, or no tokens.
    of_places = {} if of_map else {"places": 2}
    return {
        **network.identity,
        "probe_sha256": probe_hash,
        "kind": kind,
        "epsilon": settings.epsilon if is_relevance else None,
        "precision": settings.precision,
        "sketch": settings.sketch if of_map else None,
        **of_target,
        **of_rules,
        **of_places,
    }


def _projection(images: Images, size: int, mesh: Mesh) -> Projection:
    """The projection for images of this size, the same in every computation, on all devices."""
    pixels = images.shape[1] * images.shape[2]
    return replicate(Projection.of(pixels, size, jax.random.key(0)), mesh)


@contextlib.contextmanager
def naming_network(name: str) -> Iterator[None]:
    """Names the network in errors that its function raises; errors of JAX's runtime (memory) and of files stay."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, OSError):
        raise
    except JaxTransferError as error:
        raise NetworkError(name, f"Network {name!r}: {error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        problem = f"its function failed: {type(error).__name__}: {lines[0]}"
        raise NetworkError(name, f"Network {name!r}: {problem}") from error


def _faults_of_kind(kind: str, faults: Sequence[str]) -> list[str]:
    """The faults of a network that make its points of one kind meaningless."""
    return [fault for fault in faults if concerns(fault, method_of(kind))]


def _shapes_of_one(params: PyTree, inputs: Array) -> tuple[PyTree, jax.ShapeDtypeStruct]:
    """Shapes and types of one network's weights, and of its input for one image."""
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    return weights, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
