"""The sweep: many networks over one set of probe images, their points, and the affinities between them."""

import contextlib
import dataclasses
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree
from rich.filesize import decimal

from jaxtransfer import arguments
from jaxtransfer.attribution.diagnostics import Evidence, faults_of, in_sentences, random_signs, with_places
from jaxtransfer.attribution.maps import METHODS, TargetFn
from jaxtransfer.attribution.precision import Precision, matmul_precision
from jaxtransfer.attribution.relevance import RULES
from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.comparison.representations import RELATIVES, Representations, cka, cka_biased, depara, rsa, svcca
from jaxtransfer.comparison.rows import compare_maps
from jaxtransfer.comparison.statistics import stderr_of_mean
from jaxtransfer.devices import (
    DATA,
    MODEL,
    allgather,
    default_mesh,
    is_first,
    is_writer,
    memory_per_device,
    replicate,
    synchronised,
)
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.directions import SIMILARITIES, Similarity
from jaxtransfer.points.passes import REPRESENTATION, SKETCH, Images, Inputs, Layout, Pass, bytes_needed, input_shape
from jaxtransfer.points.sketch import Projection
from jaxtransfer.points.sources import Source, loaded_ahead, sources_of
from jaxtransfer.points.store import Key, Points, chunks
from jaxtransfer.points.writer import Writer

ProgressFn = Callable[[int, int, str], None]

Target = Literal["sum", "random_signs"]
TARGETS: tuple[Target, ...] = get_args(Target)

_TARGETS: dict[Target, TargetFn | None] = {"sum": None, "random_signs": random_signs}
_NODES = "input_x_gradient"

# Pixels of a batch that picks itself, on each device; more gained nothing on CPUs.
_PIXELS = {"cpu": 2**19}
_PIXELS_OF_OTHERS = 2**22
# Steps at least, of a batch that picks itself and has two images or more: the first batch goes through twice.
_STEPS = 8
# Of a device's memory, what a batch that picks itself may take.
_OF_MEMORY = 0.8

_LOG = logging.getLogger("jaxtransfer")


def affinity_matrix(
    networks: Zoo | Iterable[Network],
    images: Images | Float[Array, "images height width channels"],
    *,
    methods: str | Sequence[str] = METHODS,
    target: Target = "sum",
    similarity: Similarity = "cosine",
    epsilon: float = 1e-4,
    edge_weight: float = 0.25,
    sketch: int | None = None,
    precision: Precision = "float32",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    image_names: Sequence[str] | None = None,
    progress: ProgressFn | None = None,
) -> Affinity:
    """Compares networks by where they look in the same images (Song et al., NeurIPS 2019, section 3).

    Every network makes one map per method of every image. Maps are brought back to the size of the images and averaged
    over colour channels; the affinity of two networks is the mean over images of the cosine between their maps. The
    methods of `RELATIVES` compare representations instead, from the same forward pass. Points go to disk as they are
    made, and rows of the matrix as they are compared: memory holds the networks at work and the next ones, a batch and
    a few maps, however many networks there are. Networks of equal `apply` and shapes are compiled once; each distinct
    preprocessing runs once per image. Networks run in `precision`; all else is computed in float32 at the highest
    matrix product precision.

    The first batch of every network goes through the same program once more, to see what would make its maps mean
    little (see `find_faults`; coupled images are seen where a device has two or more at a time). One warning names the
    networks, and `Affinity.faults` has them; they are kept with the points.

    Args:
        networks: A zoo, or networks with different names.
        images: Probe images, [images, height, width, channels]: uint8, or floating point in [0, 1].
        methods: Any of `METHODS` and `RELATIVES`, one or several.
        target: What maps are of: "sum" of all units of a representation (the paper's) or "random_signs", their sum with
            fixed random signs (`jaxtransfer.random_signs`), for networks whose sum does not depend on the image.
        similarity: Of maps: "cosine" (the paper's) or "correlation" (each map's mean over pixels removed first).
        epsilon: Stabiliser of epsilon-LRP; > 0.
        edge_weight: How much the edges of DEPARA count beside its nodes; >= 0.
        sketch: Keep so many numbers of each map, a random projection (see `Projection`), instead of all: affinities are
            right on average, and the error this adds is in `Affinity.sketch_stderr`. None: whole maps.
        precision: Of the networks' passes: "float32", "tf32" or "bfloat16" (see `attribute`).
        batch_size: Images at a time on each device; the result does not depend on it beyond rounding. None: as many as
            are useful and fit into its memory.
        mesh: Devices with the axes "model" and "data" (`jaxtransfer.device_mesh`): networks are spread over the one,
            images over the other. None: one device, or all where there are several processes.
        directory: Where points and rows are kept, a directory or the URL of an object store's folder (`gs://`,
            `s3://`); finished ones found there are not computed again. Default: a temporary directory.
        image_names: Names for messages and for `Affinity.unusable`; default: "0", "1", ...
        progress: Called as `progress(done, total, name)`: for points counted in images times networks, with the name of
            a network; then for rows of the matrix that were not kept, with "rows of" and a method.

    Returns:
        The affinities, their standard errors over images, and what was left out.

    Raises:
        JaxTransferError: No networks or images, two networks of one name, images of the wrong kind, an unknown method,
            target, similarity or precision, a network whose function fails, or without any usable map, or with too few
            usable representations, a batch that does not fit into memory, several processes without a directory, or
            what `attribute` raises.
        OSError: Something cannot be written, because the disk is full for example.
    """
    sweep = Sweep(
        networks, images, methods=methods, target=target, similarity=similarity, epsilon=epsilon,
        edge_weight=edge_weight, sketch=sketch, precision=precision, batch_size=batch_size, mesh=mesh,
        image_names=image_names,
    )  # fmt: skip
    if directory is not None:
        return sweep.run(directory, progress)
    if jax.process_count() > 1:
        raise JaxTransferError("Several processes need a directory that all of them see, for the points.")
    with tempfile.TemporaryDirectory(prefix="jaxtransfer-") as temporary:
        return sweep.run(temporary, progress)


class Sweep:
    """What `affinity_matrix` does, in steps.

    Attributes:
        mesh: The devices.
        batch_sizes: Of the networks that were computed, by name, how many images at a time on each device.
    """

    def __init__(
        self,
        networks: Zoo | Iterable[Network],
        images: Images | Float[Array, "images height width channels"],
        *,
        methods: str | Sequence[str],
        target: Target,
        similarity: Similarity,
        epsilon: float,
        edge_weight: float,
        sketch: int | None,
        precision: Precision,
        batch_size: int | None,
        mesh: Mesh | None,
        image_names: Sequence[str] | None,
    ) -> None:
        """Takes `affinity_matrix`'s arguments."""
        self._images = _checked_images(images)
        self._image_names = [str(n) for n in range(len(self._images))] if image_names is None else list(image_names)
        self._methods = methods = arguments.checked_methods(methods)
        self._sources = sources_of(networks)
        names = [source.name for source in self._sources]
        _check_arguments(names, methods, similarity, edge_weight, batch_size, sketch, self._images, self._image_names)
        if target not in TARGETS:
            raise JaxTransferError(f"The target must be one of {', '.join(TARGETS)}, not {target!r}.")
        arguments.check_positive("epsilon", epsilon)
        self._target: Target = target
        matmul_precision(precision)  # there is such a one
        self._precision: Precision = precision
        self._kinds = _kinds(methods, similarity, sketch)
        self._similarity: Similarity = similarity
        self._epsilon, self._edge_weight, self._batch_size = epsilon, edge_weight, batch_size
        self.mesh = default_mesh() if mesh is None else mesh
        self._projection = None if sketch is None else _projection(self._images, sketch, self.mesh)
        self._probe_hash = hashlib.sha256(np.ascontiguousarray(self._images).data).hexdigest()
        self.batch_sizes: dict[str, int] = {}
        self._inputs: Inputs | None = None
        self._most: dict[Hashable, int] = {}

    def run(self, directory: str | Path, progress: ProgressFn | None = None) -> Affinity:
        """Makes the points that are missing in a directory and compares all."""
        points = Points(f"{str(directory).rstrip('/')}/points")
        keys = {
            source.name: {kind: self._key(source, kind) for kind in self._kinds.values()} for source in self._sources
        }
        self._make_points(points, keys, progress)
        faults = {name: points.faults(name, of_kinds) for name, of_kinds in keys.items()}
        faults = {name: codes for name, codes in faults.items() if codes}
        if faults and is_first():
            warnings.warn(" ".join(in_sentences(faults)), stacklevel=3)
        return self._compare(points, keys, faults, progress)

    def _make_points(self, points: Points, keys: Mapping[str, Mapping[str, Key]], progress: ProgressFn | None) -> None:
        """Makes what is missing; networks of one architecture go over the rows of the mesh together."""
        kinds = tuple(self._kinds.values())
        with synchronised():
            own = [[kind in points.missing(name, of_kinds) for kind in kinds] for name, of_kinds in keys.items()]
        anywhere = np.asarray(allgather(np.array(own)).any(0))  # processes may see files at different times
        missing = {name: tuple(np.array(kinds)[row].tolist()) for name, row in zip(keys, anywhere, strict=True)}
        images, total, done = len(self._images), len(self._images) * len(keys), 0
        # One preprocessing after the other, so that the inputs of only one are held.
        alike: dict[Hashable, dict[Hashable, list[Source]]] = {}
        for source in self._sources:
            if missing[source.name]:
                of_preprocess = alike.setdefault(source.preprocess, {})
                of_preprocess.setdefault((source.architecture, missing[source.name]), []).append(source)
            elif progress is not None:
                progress(done := done + images, total, source.name)
        everyone = [sources for of_preprocess in alike.values() for sources in of_preprocess.values()]
        rows = self.mesh.shape[MODEL]
        teams = [some[start:stop] for some in everyone for start, stop in chunks(len(some), rows)]
        for team, loading in loaded_ahead(teams, self.mesh):
            with synchronised():
                network, params = loading.result()

            def tell(count: int, before: int = done, name: str = team[-1].name) -> None:
                if progress is not None:
                    progress(before + count, total, name)

            wanted = {source.name: {kind: keys[source.name][kind] for kind in missing[source.name]} for source in team}
            self._make(points, wanted, network, params, team[0].architecture, tell)
            done += images * len(team)

    def _make(
        self,
        points: Points,
        keys: Mapping[str, Mapping[str, Key]],
        network: Network,
        params: PyTree,
        architecture: Hashable,
        tell: Callable[[int], None],
    ) -> None:
        """Makes the points of one network on each row of the mesh, in smaller batches if memory runs out."""
        kinds = tuple(next(iter(keys.values())))
        while True:
            one, program = self._program(network, kinds, params, architecture)
            batch = one.layout.batch
            try:
                self._attribute(points, keys, one, program, params, tell)
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if self._batch_size is not None or batch == 1 or jax.process_count() > 1:
                    raise JaxTransferError(
                        f"The memory of a device does not hold {batch} images of network {network.name!r}; ask for a "
                        "smaller batch size, or more devices for the images."
                    ) from error
                _LOG.warning("Memory ran out at batches of %d images; half as many are tried.", batch)
                self._most[architecture] = batch // 2
        self.batch_sizes |= dict.fromkeys(keys, batch)

    def _program(
        self, network: Network, kinds: tuple[str, ...], params: PyTree, architecture: Hashable
    ) -> tuple[Pass, jax.stages.Compiled]:
        """A compiled pass over batches as large as is useful and fits, or as was asked for."""
        with _of_network(network.name):
            height, width = input_shape(network.preprocess, 1, self._images.shape[1:])[1:3]
        useful = max(1, _PIXELS.get(jax.default_backend(), _PIXELS_OF_OTHERS) // (height * width))
        useful = min(useful, max(2, -(-len(self._images) // (_STEPS * self.mesh.shape[DATA]))))
        most = self._most.get(architecture, self._batch_size or useful)
        memory = memory_per_device()
        while True:
            layout = Layout.of(self.mesh, len(self._images), most)
            static = (network.apply, network.preprocess, kinds, self._similarity, _TARGETS[self._target])
            one = Pass(*static, self._epsilon, self._precision, self._images.shape[1:], layout)
            with _of_network(network.name):
                program = one.compiled(params, self._projection, network.params)
            bytes_ = bytes_needed(program)
            if self._batch_size is not None or bytes_ <= _OF_MEMORY * memory or layout.batch == 1:
                break
            most = max(1, min(layout.batch // 2, int(layout.batch * _OF_MEMORY * memory / bytes_)))
        if self._batch_size is None and architecture not in self._most:
            self._most[architecture] = most
            size = f"{decimal(bytes_)} of {decimal(memory)}"
            _LOG.info("Batches of %d images on each device for %s, which take %s.", layout.batch, network.name, size)
        return one, program

    def _attribute(
        self,
        points: Points,
        keys: Mapping[str, Mapping[str, Key]],
        one: Pass,
        program: jax.stages.Compiled,
        params: PyTree,
        tell: Callable[[int], None],
    ) -> None:
        if self._inputs is None or self._inputs.key != (one.preprocess, one.layout):
            self._inputs = Inputs(self._images, one.preprocess, one.layout)
        inputs, layout = self._inputs, one.layout
        writer = Writer(points, list(keys), layout, program.out_info[0])
        with synchronised():
            writer.create()
        off, on = (replicate(np.bool_(signed), self.mesh) for signed in (False, True))
        # One step is computed while the one before it is written.
        ahead, usual = program(params, *inputs[0], self._projection, off)
        signed = program(params, *inputs[0], self._projection, on)[1] if set(one.kinds) != {REPRESENTATION} else usual
        for step in range(layout.steps):
            now = ahead
            if step + 1 < layout.steps:
                ahead, _ = program(params, *inputs[step + 1], self._projection, off)
            writer.take(step, now)
            tell(len(keys) * layout.done(step + 1))
        with synchronised():
            writer.close()
        with synchronised():
            for row, (name, of_kinds) in enumerate(keys.items()):
                if is_writer(self.mesh, row):
                    faults = faults_of(*(_first_of_row(evidence, row) for evidence in (usual, signed)))
                    faults = with_places(faults, one.apply, *_shapes(params, inputs[0][0]))
                    points.finish(name, of_kinds, {kind: _concerning(kind, faults) for kind in of_kinds})

    def _compare(
        self,
        points: Points,
        keys: Mapping[str, Mapping[str, Key]],
        faults: Mapping[str, tuple[str, ...]],
        progress: ProgressFn | None,
    ) -> Affinity:
        names = tuple(keys)
        results, images = {}, len(self._images)
        for method, kind in self._kinds.items():
            if kind != REPRESENTATION:
                of_kind = {name: of_kinds[kind] for name, of_kinds in keys.items()}
                variance = None if self._projection is None else self._projection.variance

                def tell(done: int, total: int, name: str = f"rows of {method}") -> None:
                    if progress is not None:
                        progress(done, total, name)

                result, usable = compare_maps(
                    points, kind, of_kind, images, self._similarity, self.mesh, variance=variance,
                    every_image="depara" in self._methods, progress=tell,
                )  # fmt: skip
                _check_usable(names, method, usable, result.counts)
                results[method] = dataclasses.replace(result, unusable=_unusable(names, self._image_names, usable))
        representations = {name: points.open(name, REPRESENTATION) for name in names if REPRESENTATION in self._kinds}
        for method in self._methods:
            if method in RELATIVES:
                nodes = results[_NODES] if method == "depara" else None
                results[method] = _compare_representations(
                    method, representations, self._image_names, nodes, self._edge_weight
                )
        return Affinity(names, self._similarity, {method: results[method] for method in self._methods}, faults)

    def _key(self, source: Source, kind: str) -> Key:
        """All that a point depends on."""
        # Of the sum, as of the first rules, nothing is said: points from before there was a choice are still known.
        of_target = {} if self._target == "sum" or kind == REPRESENTATION else {"target": self._target}
        of_rules = {"rules": RULES} if kind.startswith("epsilon_lrp") else {}
        return {
            **source.identity,
            "probe_sha256": self._probe_hash,
            "kind": kind,
            "epsilon": self._epsilon if kind.startswith("epsilon_lrp") else None,
            "precision": self._precision,
            "sketch": self._projection.size if self._projection is not None and kind != REPRESENTATION else None,
            **of_target,
            **of_rules,
        }


def _kinds(methods: Sequence[str], similarity: Similarity, sketch: int | None) -> dict[str, str]:
    """The points that methods are computed from, by the method they are for."""
    ending = "" if sketch is None else f"-{similarity}{SKETCH}"
    maps = [method for method in METHODS if method in methods or (method == _NODES and "depara" in methods)]
    kinds = {method: f"{method}{ending}" for method in maps}
    return kinds | ({REPRESENTATION: REPRESENTATION} if any(method in RELATIVES for method in methods) else {})


def _projection(images: Images, size: int, mesh: Mesh) -> Projection:
    """The same for every sweep of images of this size, on all devices."""
    pixels = images.shape[1] * images.shape[2]
    return replicate(Projection.of(pixels, size, jax.random.key(0)), mesh)


@contextlib.contextmanager
def _of_network(name: str) -> Iterator[None]:
    """Says of which network an error is; what JAX says of memory stays as it is."""
    try:
        yield
    except (JaxTransferError, jax.errors.JaxRuntimeError, OSError) as error:
        if isinstance(error, JaxTransferError):
            raise JaxTransferError(f"Network {name!r}: {error}") from error
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        raise JaxTransferError(f"Network {name!r}: its function failed: {type(error).__name__}: {said[0]}") from error


def _concerning(kind: str, faults: Sequence[str]) -> list[str]:
    """Those faults of a network that make its points of one kind meaningless."""
    others = set()
    if kind == REPRESENTATION:
        others.add("constant_scalar")
    if not kind.startswith("epsilon_lrp"):
        others.add("exploding_relevance")
    return [fault for fault in faults if fault.partition(":")[0] not in others]


def _shapes(params: PyTree, inputs: Array) -> tuple[PyTree, jax.ShapeDtypeStruct]:
    """Shapes and types of the weights of one network, and of one image as it sees it."""
    weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    return weights, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)


def _first_of_row(evidence: Evidence, row: int) -> Evidence:
    """What the first device of a row of the mesh says of its images; this process has that device."""

    def own(array: Array) -> Float[np.ndarray, " images"]:
        at = {(shard.index[0].start or 0, shard.index[1].start or 0): shard for shard in array.addressable_shards}
        return jax.device_get(at[row, 0].data)[0]

    return jax.tree.map(own, evidence)


def _checked_images(images: Images | Float[Array, "images height width channels"]) -> Images:
    arguments.check_array(images, "probe images")
    array = np.asarray(images)
    if array.ndim != 4 or not (array.dtype == np.uint8 or jnp.issubdtype(array.dtype, jnp.floating)):
        raise JaxTransferError(
            "Probe images must be uint8 or floating point, [images, height, width, channels], "
            f"not {array.dtype} of shape {array.shape}."
        )
    return array


def _check_arguments(
    names: Sequence[str],
    methods: Sequence[str],
    similarity: str,
    edge_weight: float,
    batch_size: int | None,
    sketch: int | None,
    images: Images,
    image_names: Sequence[str],
) -> None:
    if not names:
        raise JaxTransferError("There are no networks to compare.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise JaxTransferError(f"Several networks have the name {', '.join(twice)}; names must differ.")
    known = (*METHODS, *RELATIVES)
    if not methods or any(method not in known for method in methods):
        raise JaxTransferError(f"Methods must be some of {', '.join(known)}, not {', '.join(methods) or 'none'}.")
    if similarity not in SIMILARITIES:
        raise JaxTransferError(f"The similarity must be one of {', '.join(SIMILARITIES)}, not {similarity!r}.")
    if not 0 <= edge_weight < np.inf:
        raise JaxTransferError(f"The weight of edges must be 0 or more, not {edge_weight}.")
    if batch_size is not None and batch_size < 1:
        raise JaxTransferError(f"The batch size must be at least 1, not {batch_size}.")
    if sketch is not None and not 1 <= sketch < images[0, :, :, 0].size:
        raise JaxTransferError(
            f"A sketch has at least 1 number and fewer than a map has pixels, {images[0, :, :, 0].size}, not {sketch}."
        )
    if len(image_names) != len(images):
        raise JaxTransferError(f"There are {len(images)} images but {len(image_names)} image names.")


def _compare_representations(
    method: str,
    representations: Representations,
    image_names: Sequence[str],
    nodes: MethodResult | None,
    edge_weight: float,
) -> MethodResult:
    """One of the relatives, with its jackknifed standard errors."""
    from scipy.spatial.distance import squareform

    if nodes is not None and nodes.pseudo_values is not None:
        found = depara(representations, nodes.pseudo_values, edge_weight=edge_weight)
    else:
        by_name = {"rsa": rsa, "cka": cka, "cka_biased": cka_biased, "svcca": svcca}
        found = by_name[method](representations)
    stderr = squareform(stderr_of_mean(found.pseudo_values))
    counts = np.full(stderr.shape, found.usable.all(0).sum())
    unusable = _unusable(list(representations), image_names, found.usable)
    if nodes is not None:
        unusable = tuple(dict.fromkeys((*nodes.unusable, *unusable)))
    return MethodResult(
        found.values.astype(np.float32),
        stderr.astype(np.float32),
        counts,
        unusable,
        found.pseudo_values.astype(np.float32),
    )


def _unusable(
    names: Sequence[str], image_names: Sequence[str], usable: Bool[np.ndarray, "networks images"]
) -> tuple[tuple[str, str], ...]:
    return tuple((str(names[i]), str(image_names[n])) for i, n in np.argwhere(~usable))


def _check_usable(names: Sequence[str], method: str, usable: np.ndarray, counts: np.ndarray) -> None:
    for name, row in zip(names, usable, strict=True):
        if not row.any():
            raise JaxTransferError(
                f"Network {name!r} has no usable {method} map: on every probe image it is zero, constant or not finite."
            )
    if not counts.all():
        i, j = np.argwhere(counts == 0)[0]
        raise JaxTransferError(
            f"Networks {names[i]!r} and {names[j]!r} have no probe image on which both {method} maps are usable."
        )
