"""Computes the affinities of networks from their points, and the points that are missing."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float
from scipy.spatial.distance import squareform

from jaxtransfer import arguments
from jaxtransfer.attribution.diagnostics import in_sentences
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.comparison.affinity import Affinity, MethodResult, counted_left_out
from jaxtransfer.comparison.columns import compare_predictivities
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.comparison.representations import (
    BY_NAME,
    RELATIVES,
    Representations,
    depara,
)
from jaxtransfer.comparison.rows import compare_maps
from jaxtransfer.comparison.statistics import stderr_of_mean
from jaxtransfer.defaults import ATTRIBUTIONS, LINEAR_PREDICTIVITY
from jaxtransfer.devices import default_mesh, is_first, single_blas_thread
from jaxtransfer.errors import JaxTransferError, NetworkError
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.compute import PointComputation, PointSettings, ProgressFn, Target
from jaxtransfer.points.directions import Similarity
from jaxtransfer.points.network_refs import network_refs
from jaxtransfer.points.passes import REPRESENTATION, SKETCH, Images
from jaxtransfer.points.store import Points, given_or_temporary, recomputing_damaged

# DEPARA compares networks by these maps, beside their representations.
_DEPARA_NODES = "input_x_gradient"
_LEAST_NETWORKS = 2  # that are compared


def affinity_matrix(
    networks: Zoo | Iterable[Network],
    images: Images | Float[Array, "images height width channels"],
    *,
    methods: str | Sequence[str] = AffinityOptions.methods,
    target: Target = AffinityOptions.target,
    similarity: Similarity = AffinityOptions.similarity,
    epsilon: float = AffinityOptions.epsilon,
    edge_weight: float = AffinityOptions.edge_weight,
    sketch: int | None = AffinityOptions.sketch,
    precision: Precision = AffinityOptions.precision,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    image_names: Sequence[str] | None = None,
    progress: ProgressFn | None = None,
) -> Affinity:
    """Compares networks by their representations of the same images, and by where they look in them.

    Linear predictivity, which predicts transfer best where it was measured, says how well a source's representation
    predicts the target's (row = target); the other methods of `RELATIVES` compare representations too. Attribution
    methods make one map of every image (Song et al., NeurIPS 2019, section 3). Maps are brought back to the size of
    the images and averaged over colour channels; the affinity of two networks is the mean over images of the cosine
    between their maps. All come from the same forward pass. Points (maps and representations) are written to disk as
    they are computed, and rows of the matrix as they are compared: memory holds the networks being computed and the
    next ones, one batch and a few maps, whatever the number of networks. Networks of equal `apply` and shapes are
    compiled once; each distinct preprocessing runs once per image. Networks run in `precision`; maps are compared in
    float32 at the highest matrix product precision, representations in float64 on the host.

    The first batch of every network goes through the same program a second time, to find faults that make its maps
    meaningless (see `find_faults`; coupled images are found where a device has two or more images in a batch). One
    warning names the networks, and `Affinity.faults` lists them; faults are stored with the points.

    A network that cannot be compared, because its function fails, its maps are zero or its representations are all the
    same, is left out while two or more others remain: a warning says why, and `Affinity.left_out` has the reasons.

    Args:
        networks: A zoo, or networks with different names.
        images: Probe images, [images, height, width, channels]: uint8, or floating point in [0, 1].
        methods: One or several of `ATTRIBUTIONS` and `RELATIVES`; "paper" stands for the three maps of Song et al.
        target: The scalar that maps attribute: "sum" of all units of a representation (as in the paper), or
            "random_signs", their sum with fixed random signs (`jaxtransfer.random_signs`), for networks whose sum does
            not depend on the image, or "spatial_maximum", the sum of every channel's largest value
            (`jaxtransfer.spatial_maximum`).
        similarity: Similarity of two maps: "cosine" (as in the paper), or "correlation", which removes each map's mean
            over pixels first.
        epsilon: Stabiliser of epsilon-LRP; > 0.
        edge_weight: Weight of DEPARA's edges, where its nodes have the weight 1; >= 0.
        sketch: Keep this many numbers of each map, a random projection (see `Projection`), instead of all pixels:
            affinities are unbiased, and the error that sketching adds is in `Affinity.sketch_stderr`. None: whole maps.
        precision: Precision of matrix products in the networks' passes: "float32", "tf32" or "bfloat16" (see
            `attribute`).
        batch_size: Images in a batch on each device; the result does not depend on it beyond rounding. None: the
            largest batch that is useful and fits in memory.
        mesh: Devices with the axes "model" and "data" (`jaxtransfer.device_mesh`): networks are distributed over the
            first, images over the second. None: one device, or all of them if there are several processes.
        directory: Where points and rows are kept, a directory or the URL of a folder in an object store (`gs://`,
            `s3://`); finished ones are reused. None: a temporary directory.
        image_names: Names of the images in messages and in `Affinity.unusable`; default: "0", "1", ...
        progress: Called as `progress(done, total, name)`: for points, counted in images times networks, with the name
            of a network; then for rows or columns of the matrix that were not stored, with "rows of" and a method.

    Returns:
        The affinities, their standard errors over images, and the (network, image) pairs that were left out.

    Raises:
        JaxTransferError: No networks or images, two networks with the same name, images of the wrong type, an unknown
            method, target, similarity or precision, fewer than two networks that can be compared, a batch that does not
            fit in memory, several processes without a directory, or what `attribute` raises.
        OSError: A file cannot be written, because the disk is full for example.

    Examples:
        >>> def apply(params, x):
        ...     return jax.nn.relu(x.reshape(len(x), -1) @ params)
        >>> rng = np.random.default_rng(0)
        >>> weights = rng.normal(size=(3, 48, 5)).astype(np.float32)
        >>> networks = [jt.Network(name, apply, w) for name, w in zip(["a", "b", "c"], weights)]
        >>> images = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
        >>> affinity = jt.affinity_matrix(networks, images, methods="saliency")
        >>> affinity["saliency"].shape
        (3, 3)
        >>> [name for name, value, stderr in affinity.rank("a")]  # the best sources for "a" first
        ['...', '...']
    """
    options = AffinityOptions(
        methods=methods,
        target=target,
        similarity=similarity,
        epsilon=epsilon,
        edge_weight=edge_weight,
        sketch=sketch,
        precision=precision,
    )
    sweep = Sweep(networks, images, options, batch_size=batch_size, mesh=mesh, image_names=image_names)
    with given_or_temporary(directory, "points") as place:
        return sweep.run(place, progress)


class Sweep:
    """Computes affinities: `affinity_matrix` without a temporary directory, and with access to what it chose.

    Attributes:
        mesh: The devices.
    """

    def __init__(
        self,
        networks: Zoo | Iterable[Network],
        images: Images | Float[Array, "images height width channels"],
        options: AffinityOptions,
        *,
        batch_size: int | None,
        mesh: Mesh | None,
        image_names: Sequence[str] | None,
    ) -> None:
        """Checks and takes `affinity_matrix`'s arguments."""
        images = _checked_images(images)
        self._options = options
        self._image_names = [str(n) for n in range(len(images))] if image_names is None else list(image_names)
        refs = network_refs(networks)
        _check_networks([ref.name for ref in refs])
        arguments.check_batch_size(batch_size)
        pixels = images.shape[1] * images.shape[2]
        if options.sketch is not None and options.sketch >= pixels:
            raise JaxTransferError(
                f"A sketch must have fewer numbers than a map has pixels, {pixels}, not {options.sketch}."
            )
        if len(self._image_names) != len(images):
            raise JaxTransferError(f"There are {len(images)} images but {len(self._image_names)} image names.")
        self.mesh = default_mesh() if mesh is None else mesh
        self._kinds = _point_kinds(options)
        settings = PointSettings(
            kinds=(*self._kinds.values(),),
            similarity=options.similarity,
            target=options.target,
            epsilon=options.epsilon,
            precision=options.precision,
            sketch=options.sketch,
        )
        self._computation = PointComputation(refs, images, settings, batch_size=batch_size, mesh=self.mesh)

    @property
    def batch_sizes(self) -> dict[str, int]:
        """For each network that was computed, the number of images in a batch on each device."""
        return self._computation.batch_sizes

    def run(self, directory: str | Path, progress: ProgressFn | None = None) -> Affinity:
        """Computes the points that a directory lacks, and compares all."""
        points = Points(f"{str(directory).rstrip('/')}/points")
        keys = self._computation.keys
        left_out: dict[str, str] = {}
        total = len(keys)
        while True:
            try:
                results = recomputing_damaged(lambda: self._results(points, progress))
                break
            except NetworkError as error:
                if len(keys) <= _LEAST_NETWORKS:
                    raise
                left_out[error.network] = str(error)
                self._computation.leave_out(error.network)
        faults = {name: points.faults(name, of_kinds) for name, of_kinds in keys.items()}
        faults = {name: codes for name, codes in faults.items() if codes}
        if faults and is_first():
            warnings.warn(" ".join(in_sentences(faults)), stacklevel=3)
        if left_out and is_first():
            warnings.warn(f"{counted_left_out(left_out, total)}: {' '.join(left_out.values())}", stacklevel=3)
        results = {method: results[method] for method in self._options.methods}
        return Affinity((*keys,), self._options.similarity, results, faults, left_out=left_out)

    def _results(self, points: Points, progress: ProgressFn | None) -> dict[str, MethodResult]:
        """Computes the points that are missing, and compares all."""
        self._computation.run(points, progress)
        results = self._compare_maps(points, progress)
        with single_blas_thread():
            return results | self._compare_representations(points, results.get(_DEPARA_NODES), progress)

    def _compare_maps(self, points: Points, progress: ProgressFn | None) -> dict[str, MethodResult]:
        """Compares maps, for each method that makes them."""
        keys, projection = self._computation.keys, self._computation.projection
        results = {}
        for method, kind in self._kinds.items():
            if kind == REPRESENTATION:
                continue
            result, usable = compare_maps(
                points,
                kind,
                {name: of_kinds[kind] for name, of_kinds in keys.items()},
                len(self._image_names),
                self._options.similarity,
                self.mesh,
                variance=projection and (projection.curve_variance if method == "modelgif" else projection.variance),
                every_image="depara" in self._options.methods,
                progress=_named(progress, f"rows of {method}"),
            )
            _check_usable((*keys,), method, usable, result.counts)
            results[method] = dataclasses.replace(result, unusable=_unusable((*keys,), self._image_names, usable))
        return results

    def _compare_representations(
        self, points: Points, nodes: MethodResult | None, progress: ProgressFn | None
    ) -> dict[str, MethodResult]:
        """Compares representations, for each method that does so; `nodes` are DEPARA's, compared before."""
        names = list(self._computation.keys)
        methods = [method for method in self._options.methods if method in RELATIVES]
        representations = {name: points.open(name, REPRESENTATION) for name in names if methods}
        results = {}
        for method in methods:
            if method == LINEAR_PREDICTIVITY:
                keys = {name: of_kinds[REPRESENTATION] for name, of_kinds in self._computation.keys.items()}
                result, usable = compare_predictivities(
                    points, REPRESENTATION, keys, progress=_named(progress, f"columns of {method}")
                )
                unusable = _unusable(names, self._image_names, usable)
                results[method] = dataclasses.replace(result, unusable=unusable)
            else:
                of_depara = nodes if method == "depara" else None
                results[method] = _compare_representations(
                    method, representations, self._image_names, of_depara, self._options.edge_weight
                )
        return results


def _named(progress: ProgressFn | None, name: str) -> Callable[[int, int], None] | None:
    """Reports the progress of a step under its name."""
    return None if progress is None else lambda done, total: progress(done, total, name)


def _point_kinds(options: AffinityOptions) -> dict[str, str]:
    """The kinds of points to compute: for each method of maps its kind, and that of representations if needed."""
    ending = "" if options.sketch is None else f"-{options.similarity}{SKETCH}"
    methods = options.methods
    maps = [method for method in ATTRIBUTIONS if method in methods or (method == _DEPARA_NODES and "depara" in methods)]
    kinds = {method: f"{method}{ending}" for method in maps}
    if "modelgif" in kinds and options.sketch is None:
        kinds["modelgif"] = f"modelgif-{options.similarity}"  # every map of a curve has been scaled
    return kinds | ({REPRESENTATION: REPRESENTATION} if any(method in RELATIVES for method in methods) else {})


def _checked_images(images: Images | Float[Array, "images height width channels"]) -> Images:
    arguments.check_array(images, "probe images")
    array = np.asarray(images)
    if array.ndim != 4 or not (array.dtype == np.uint8 or jnp.issubdtype(array.dtype, jnp.floating)):
        raise JaxTransferError(
            "Probe images must be uint8 or floating point, [images, height, width, channels], "
            f"not {array.dtype} of shape {array.shape}."
        )
    return array


def _check_networks(names: Sequence[str]) -> None:
    if not names:
        raise JaxTransferError("There are no networks to compare.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise JaxTransferError(f"Several networks have the name {', '.join(repeated)}; names must differ.")


def _compare_representations(
    method: str,
    representations: Representations,
    image_names: Sequence[str],
    nodes: MethodResult | None,
    edge_weight: float,
) -> MethodResult:
    """Computes one of `RELATIVES`, with jackknife standard errors."""
    if nodes is not None and nodes.pseudo_values is not None:
        comparison = depara(representations, nodes.pseudo_values, edge_weight=edge_weight)
    else:
        comparison = BY_NAME[method](representations)
    stderr = squareform(stderr_of_mean(comparison.pseudo_values))
    counts = np.full(stderr.shape, comparison.usable.all(0).sum())
    unusable = _unusable(list(representations), image_names, comparison.usable)
    if nodes is not None:
        unusable = tuple(dict.fromkeys((*nodes.unusable, *unusable)))
    return MethodResult(
        comparison.values.astype(np.float32),
        stderr.astype(np.float32),
        counts,
        unusable,
        comparison.pseudo_values.astype(np.float32),
    )


def _unusable(
    names: Sequence[str], image_names: Sequence[str], usable: Bool[np.ndarray, "networks images"]
) -> tuple[tuple[str, str], ...]:
    """The (network, image) pairs that are not usable."""
    return tuple((str(names[i]), str(image_names[n])) for i, n in np.argwhere(~usable))


def _check_usable(names: Sequence[str], method: str, usable: np.ndarray, counts: np.ndarray) -> None:
    for name, row in zip(names, usable, strict=True):
        if not row.any():
            raise NetworkError(
                name,
                f"Network {name!r} has no usable {method} map: on every probe image it is zero, constant or not "
                "finite.",
            )
    if not counts.all():
        first, second = (names[int(i)] for i in np.argwhere(counts == 0)[0])
        fewer = min(first, second, key=lambda name: usable[names.index(name)].sum())
        raise NetworkError(
            fewer, f"Networks {first!r} and {second!r} have no probe image on which both {method} maps are usable."
        )
