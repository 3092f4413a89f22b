"""The sweep: many networks over one set of probe images, their points on disk, and the affinities between them."""

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from jaxtransfer.affinity import SIMILARITIES, Affinity, MethodResult, Similarity, similarities
from jaxtransfer.attribution import METHODS, attribute
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.network import ApplyFn, Network, Storable, weights_hash
from jaxtransfer.points import ArrayWriter, Key, Points, chunks, read_rows
from jaxtransfer.preprocess import PreprocessFn, restore_maps
from jaxtransfer.relatives import RELATIVES, cka, depara, rsa, svcca
from jaxtransfer.zoo import Zoo

Images = Float[np.ndarray, "images height width channels"] | UInt8[np.ndarray, "images height width channels"]
ProgressFn = Callable[[int, int, str], None]

_REPRESENTATION = "representation"
_NODES = "input_x_gradient"

# Maps held at once while networks are compared.
_COMPARISON_BYTES = 256 * 2**20


def affinity_matrix(
    networks: Zoo | Iterable[Network],
    images: Images | Float[Array, "images height width channels"],
    *,
    methods: Sequence[str] = METHODS,
    similarity: Similarity = "cosine",
    epsilon: float = 1e-4,
    edge_weight: float = 0.25,
    batch_size: int = 8,
    directory: str | Path | None = None,
    image_names: Sequence[str] | None = None,
    progress: ProgressFn | None = None,
) -> Affinity:
    """Compares networks by where they look in the same images (Song et al., NeurIPS 2019, section 3).

    Every network makes one map per method of every image. Maps are brought back to the size of the images and averaged
    over colour channels; the affinity of two networks is the mean over images of the cosine between their maps. The
    methods of `RELATIVES` compare representations instead (see `jaxtransfer.relatives`), from the same forward pass.
    Points go to disk as they are made, so memory holds one network, a batch and a few maps, however many networks there
    are. Networks of equal `apply` and shapes are compiled once; each distinct preprocessing runs once per image.
    Everything is computed in float32 at the highest matrix product precision.

    Args:
        networks: A zoo, or networks with different names.
        images: Probe images, [images, height, width, channels]: uint8, or floating point in [0, 1].
        methods: Any of `METHODS` and `RELATIVES`.
        similarity: Of maps: "cosine" (the paper's) or "correlation" (each map's mean over pixels removed first).
        epsilon: Stabiliser of epsilon-LRP; > 0.
        edge_weight: How much the edges of DEPARA count beside its nodes; >= 0.
        batch_size: Images at a time; the result does not depend on it beyond rounding.
        directory: Where the points are kept; finished ones found there are not computed again, even for another
            `similarity`. Default: a temporary directory.
        image_names: Names for messages and for `Affinity.unusable`; default: "0", "1", ...
        progress: Called as `progress(done, total, network)`, counted in images times networks.

    Returns:
        The affinities, their standard errors over images, and what was left out.

    Raises:
        JaxTransferError: No networks or images, two networks of one name, images of the wrong kind, an unknown method
            or similarity, a network without any usable map or fewer than four usable representations, or what
            `attribute` raises.
    """
    images = _checked_images(images)
    image_names = [str(n) for n in range(len(images))] if image_names is None else list(image_names)
    source = networks if isinstance(networks, Zoo) else list(networks)
    names = source.names if isinstance(source, Zoo) else tuple(network.name for network in source)
    methods = tuple(methods)
    kinds = _kinds(methods)
    _check_arguments(names, methods, similarity, edge_weight, batch_size, len(images), len(image_names))

    with tempfile.TemporaryDirectory(prefix="jaxtransfer-") as temporary:
        points = Points(Path(directory or temporary) / "points")
        # Long preprocessed arrays belong on the disk that also holds the points.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=points.directory) as scratch:
            sweep = _Sweep(points, images, Path(scratch), epsilon, batch_size)
            done, total = 0, len(names) * len(images)
            for network in source:
                for step in sweep.run(network, kinds):
                    done += step
                    if progress is not None:
                        progress(done, total, network.name)
        maps = {
            kind: _compare_maps(points, names, image_names, kind, similarity)
            for kind in kinds
            if kind != _REPRESENTATION
        }
        representations = {name: points.open(name, _REPRESENTATION) for name in names if _REPRESENTATION in kinds}
        results = {}
        for method in methods:
            if method in METHODS:
                results[method] = maps[method]
            else:
                nodes = maps[_NODES] if method == "depara" else None
                results[method] = _compare_representations(method, representations, image_names, nodes, edge_weight)
    return Affinity(names, similarity, results)


def _kinds(methods: Sequence[str]) -> tuple[str, ...]:
    """The points that methods are computed from."""
    maps = [method for method in METHODS if method in methods or (method == _NODES and "depara" in methods)]
    return (*maps, _REPRESENTATION) if any(method in RELATIVES for method in methods) else tuple(maps)


class _Sweep:
    """Makes the points that are missing, one network at a time."""

    def __init__(self, points: Points, images: Images, scratch: Path, epsilon: float, batch_size: int) -> None:
        self._points = points
        self._images = images
        self._scratch = scratch
        self._epsilon = epsilon
        self._batch_size = batch_size
        self._probe_hash = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
        self._preprocessed: dict[PreprocessFn | None, Path] = {}

    def run(self, network: Network, kinds: tuple[str, ...]) -> Iterator[int]:
        """Computes what is missing of a network's points; yields how many images were finished at a time."""
        weights = weights_hash(network.params)
        keys = {kind: self._key(network, weights, kind) for kind in kinds}
        missing = self._points.missing(network.name, keys)
        total = len(self._images)
        if not missing:
            yield total
            return
        inputs = self._inputs(network.preprocess)
        params = jax.device_put(network.params)
        static = network.apply, network.preprocess, missing, self._epsilon, self._images.shape[1:3]
        with (
            jax.default_matmul_precision("highest"),
            self._points.writing(network.name, {kind: keys[kind] for kind in missing}, total) as writers,
        ):
            # One batch is computed while the one before it is written.
            waiting: tuple[int, dict[str, Array]] | None = None
            for start, stop in [*chunks(total, self._batch_size), (total, total)]:
                ahead = None
                if start < stop:
                    batch = _padded(read_rows(inputs, start, stop), self._batch_size)
                    ahead = (stop - start, _point(*static, params, batch))
                if waiting is not None:
                    count, found = waiting
                    for kind, writer in writers.items():
                        writer.write(np.asarray(found[kind])[:count])
                    yield count
                waiting = ahead

    def _inputs(self, preprocess: PreprocessFn | None) -> Path:
        """The file with the preprocessed probe, made when it is first asked for."""
        if preprocess not in self._preprocessed:
            file = self._scratch / f"{len(self._preprocessed)}.npy"
            writer = ArrayWriter(file, len(self._images))
            for start, stop in chunks(len(self._images), self._batch_size):
                images = jnp.asarray(_padded(_as_float(self._images[start:stop]), self._batch_size))
                with jax.default_matmul_precision("highest"):
                    writer.write(np.asarray(_preprocess(preprocess, images))[: stop - start])
            writer.close()
            self._preprocessed[preprocess] = file
        return self._preprocessed[preprocess]

    def _key(self, network: Network, weights: str, kind: str) -> Key:
        """All that a point depends on."""
        return {
            "weights_sha256": weights,
            "apply": _apply_name(network.apply),
            "preprocess": repr(network.preprocess),
            "probe_sha256": self._probe_hash,
            "kind": kind,
            "epsilon": self._epsilon if kind == "epsilon_lrp" else None,
            "precision": "float32",
        }


def _apply_name(apply: ApplyFn) -> str:
    """A function's name, with a hash of its configuration if it has one."""
    owner = apply if hasattr(apply, "__qualname__") else type(apply)
    name = f"{owner.__module__}:{owner.__qualname__}"
    if not isinstance(apply, Storable):
        return name
    config = json.dumps(apply.to_json(), sort_keys=True)
    return f"{name} {hashlib.sha256(config.encode()).hexdigest()}"


def _checked_images(images: Images | Float[Array, "images height width channels"]) -> Images:
    array = np.asarray(images)
    if array.ndim != 4 or not (array.dtype == np.uint8 or jnp.issubdtype(array.dtype, jnp.floating)):
        raise JaxTransferError(
            "Probe images must be uint8 or floating point, [images, height, width, channels], "
            f"not {array.dtype} of shape {array.shape}."
        )
    if not len(array):
        raise JaxTransferError("There are no probe images.")
    return array


def _check_arguments(
    names: Sequence[str],
    methods: Sequence[str],
    similarity: str,
    edge_weight: float,
    batch_size: int,
    images: int,
    image_names: int,
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
    if batch_size < 1:
        raise JaxTransferError(f"The batch size must be at least 1, not {batch_size}.")
    if image_names != images:
        raise JaxTransferError(f"There are {images} images but {image_names} image names.")


def _as_float(images: Images) -> Float[np.ndarray, "images height width channels"]:
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)


def _padded(rows: Float[np.ndarray, "rows ..."], size: int) -> Float[np.ndarray, "{size} ..."]:
    """Repeats the last row up to `size` rows, so that all batches share one shape and one compilation."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)]) if len(rows) < size else rows


@functools.partial(jax.jit, static_argnums=0)
def _preprocess(
    preprocess: PreprocessFn | None, images: Float[Array, "images height width channels"]
) -> Float[Array, "images h w channels"]:
    return images if preprocess is None else preprocess(images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _point(
    apply: ApplyFn,
    preprocess: PreprocessFn | None,
    kinds: tuple[str, ...],
    epsilon: float,
    shape: tuple[int, int],
    params: PyTree,
    inputs: Float[Array, "images h w channels"],
) -> dict[str, Float[Array, "images ..."]]:
    """Maps at probe size, averaged over colour channels (methods A.3), and representations, from one forward pass."""
    methods = [kind for kind in kinds if kind != _REPRESENTATION]
    if methods:
        maps, outputs = attribute(apply, params, inputs, methods=methods, epsilon=epsilon, with_outputs=True)
    else:
        maps, outputs = {}, apply(params, inputs)
    found = {method: restore_maps(preprocess, m.mean(-1), shape) for method, m in maps.items()}
    if _REPRESENTATION in kinds:
        units = [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in jax.tree.leaves(outputs)]
        found[_REPRESENTATION] = jnp.concatenate(units, axis=1)
    return found


def _compare_maps(
    points: Points, names: Sequence[str], image_names: Sequence[str], method: str, similarity: Similarity
) -> MethodResult:
    """Means and standard errors over images of the similarity of every pair (methods A.4)."""
    total = np.zeros((len(names), len(names)))
    squares, counts = np.zeros_like(total), np.zeros(total.shape, np.int64)
    upper = np.triu_indices(len(names), 1)
    usable_maps, by_image = [], []
    for cosines, usable in _similarities(points, names, method, similarity):
        total += cosines.sum(0, dtype=np.float64)
        squares += np.square(cosines, dtype=np.float64).sum(0)
        counts += usable.astype(np.int64) @ usable.T.astype(np.int64)
        usable_maps.append(usable)
        both = usable[upper[0]] & usable[upper[1]]
        by_image.append(np.where(both.T, cosines[:, *upper], np.nan))
    usable = np.concatenate(usable_maps, axis=1)
    _check_usable(names, method, usable, counts)

    mean = total / counts
    variance = np.maximum(squares - counts * mean**2, 0) / np.maximum(counts - 1, 1)
    stderr = np.where(counts > 1, np.sqrt(variance / counts), np.inf)
    np.fill_diagonal(mean, 1)
    np.fill_diagonal(stderr, 0)
    unusable = _unusable(names, image_names, usable)
    return MethodResult(mean.astype(np.float32), stderr.astype(np.float32), counts, unusable, np.concatenate(by_image))


def _compare_representations(
    method: str,
    representations: dict[str, np.ndarray],
    image_names: Sequence[str],
    nodes: MethodResult | None,
    edge_weight: float,
) -> MethodResult:
    """One of the relatives, with its jackknifed standard errors."""
    from scipy.spatial.distance import squareform

    if nodes is not None and nodes.pseudo_values is not None:
        found = depara(representations, nodes.pseudo_values, edge_weight=edge_weight)
    else:
        found = {"rsa": rsa, "cka": cka, "svcca": svcca}[method](representations)
    stderr = squareform(found.pseudo_values.std(0, ddof=1) / np.sqrt(len(found.pseudo_values)))
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


def _similarities(
    points: Points, names: Sequence[str], method: str, similarity: Similarity
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cosines [images, networks, networks] and usability [networks, images], a few images at a time."""
    on_disk = [points.open(name, method) for name in names]
    total, height, width = on_disk[0].shape
    size = max(1, _COMPARISON_BYTES // (4 * height * width * len(names)))
    for start, stop in chunks(total, size):
        maps = np.stack([each[start:stop] for each in on_disk])
        cosines, usable = similarities(maps.reshape(len(names), stop - start, -1), similarity)
        yield np.asarray(cosines), np.asarray(usable)


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
