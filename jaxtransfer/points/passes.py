"""Compiled passes of a batch of probe images through one network on each row of a mesh, and where their arrays lie.

A mesh has the axes `model` and `data` (see `devices`). No data crosses devices in a pass.

    weights   [model, ...]                   those of one network on each row
    inputs    [data * batch, h, w, channels] one share of the images on each column
    outputs   [model, data * batch, ...]     on the device that computed them
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from jaxtransfer.attribution.diagnostics import Evidence
from jaxtransfer.attribution.maps import TargetFn, attribution_pass
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.defaults import ATTRIBUTIONS
from jaxtransfer.devices import DATA, MODEL, compiler_options, distribute, memory_per_device
from jaxtransfer.networks.network import ApplyFn, is_key
from jaxtransfer.networks.outputs import named_outputs
from jaxtransfer.networks.preprocess import PreprocessFn, restore_maps
from jaxtransfer.points.directions import Similarity, directions
from jaxtransfer.points.sketch import Projection

Images = Float[np.ndarray, "images height width channels"] | UInt8[np.ndarray, "images height width channels"]

# The kind of a point is the name of an attribution method (a sketch of its maps has an ending), `REPRESENTATION`, all
# outputs of a network together, `LAYER` and the name of one output, or `PROBABILITIES`, those of classes.
REPRESENTATION, SKETCH = "representation", "-sketch"
LAYER, PROBABILITIES = f"{REPRESENTATION}-", "probabilities"
LOGITS = "logits"

_BY_ROW, _BY_COLUMN, _BY_BOTH = PartitionSpec(MODEL), PartitionSpec(DATA), PartitionSpec(MODEL, DATA)
_REPLICATED = PartitionSpec()

# Fraction of a device's memory that all inputs may use to stay there.
_INPUTS_MEMORY_FRACTION = 1 / 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """Assigns images to devices and steps: each device of a row of the mesh has `share` consecutive images.

    Attributes:
        mesh: The devices.
        images: Number of images; the last one is repeated to fill the last shares.
        batch: Images in a batch on each device.
    """

    mesh: Mesh
    images: int
    batch: int

    @classmethod
    def of(cls, mesh: Mesh, images: int, max_batch: int) -> "Layout":
        """Returns the layout with the fewest steps for batches of at most `max_batch` images, as equal as possible."""
        share = -(-images // mesh.shape[DATA])
        return cls(mesh, images, -(-share // -(-share // max_batch)))

    @property
    def steps(self) -> int:
        """Number of batches on each device."""
        return -(-self.images // self.step_images)

    @property
    def share(self) -> int:
        """Number of images of each device."""
        return self.steps * self.batch

    @property
    def step_images(self) -> int:
        """Number of images in one step, on all columns of the mesh."""
        return self.mesh.shape[DATA] * self.batch

    @property
    def by_share(self) -> NamedSharding:
        """The sharding of a step's images: each column of the mesh has its own."""
        return NamedSharding(self.mesh, _BY_COLUMN)

    def done(self, steps: int) -> int:
        """Number of images that are done after the first `steps` steps."""
        shares = (self.images - self.first(column, 0) for column in range(self.mesh.shape[DATA]))
        return sum(min(steps * self.batch, max(0, share)) for share in shares)

    def first(self, column: int, step: int) -> int:
        """Number of the first image of a batch on a column of the mesh."""
        return column * self.share + step * self.batch


@dataclasses.dataclass(frozen=True)
class Pass:
    """Describes a compiled pass: everything it depends on, apart from the shapes of the weights.

    Attributes:
        apply: The network's function.
        preprocess: Made the inputs from probe images; None: probe images are the inputs.
        kinds: Kinds of points to compute.
        similarity: Similarity that sketches preserve.
        target: The scalar that maps attribute; None: the sum over units.
        epsilon: Stabiliser of epsilon-LRP.
        precision: Precision of matrix products in the network; maps are resized and sketched in float32.
        shape: Height, width and channels of the probe images.
        layout: Which device computes which images.
    """

    apply: ApplyFn
    preprocess: PreprocessFn | None
    kinds: tuple[str, ...]
    similarity: Similarity
    target: TargetFn | None
    epsilon: float
    precision: Precision
    shape: tuple[int, int, int]
    layout: Layout

    def compiled(self, params: PyTree, projection: Projection | None, own: PyTree | None = None) -> jax.stages.Compiled:
        """Compiles the program `(params, inputs, numbers, projection, signed) -> ({kind: points}, evidence)`.

        `signed` and the evidence are those of `attribution_pass`. A process compiles the program once for weights of
        these shapes.

        Args:
            params: Weights on the mesh, see `place_weights`.
            projection: Makes sketches of maps; None: maps are kept whole.
            own: The network's weights before they were placed: Python numbers among them stay weakly typed. None: no
                weight is a Python number.
        """
        count, by_share = self.layout.step_images, self.layout.by_share
        inputs = jax.ShapeDtypeStruct(input_shape(self.preprocess, count, self.shape), jnp.float32, sharding=by_share)
        numbers = jax.ShapeDtypeStruct((count,), jnp.int32, sharding=by_share)
        arrays = jax.tree.leaves((params, projection))
        weak = [jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(own)]
        weak += [False] * (len(arrays) - len(weak))
        specs = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding, weak_type=is_weak)
            for a, is_weak in zip(arrays, weak, strict=True)
        ]
        structure = jax.tree.structure((params, projection))
        return _compiled(self, structure, (*specs,), inputs, numbers)


@functools.lru_cache(maxsize=256)
def _compiled(
    forward_pass: Pass,
    structure: Any,
    specs: tuple[jax.ShapeDtypeStruct, ...],
    inputs: jax.ShapeDtypeStruct,
    numbers: jax.ShapeDtypeStruct,
) -> jax.stages.Compiled:
    params, projection = jax.tree.unflatten(structure, specs)
    # Gradients are taken inside, of each device's own images. With `check_vma` JAX would sum them over the rows of the
    # mesh, on which the images are the same (jax #36886).
    program = jax.shard_map(
        functools.partial(_on_device, forward_pass),
        mesh=forward_pass.layout.mesh,
        in_specs=(_BY_ROW, _BY_COLUMN, _BY_COLUMN, _REPLICATED, _REPLICATED),
        out_specs=_BY_BOTH,
        check_vma=False,
    )
    signed = jax.ShapeDtypeStruct((), jnp.bool_, sharding=NamedSharding(forward_pass.layout.mesh, _REPLICATED))
    lowered = jax.jit(program).lower(params, inputs, numbers, projection, signed)
    return lowered.compile(compiler_options=compiler_options(forward_pass.layout.mesh))


def _on_device(
    forward_pass: Pass,
    params: PyTree,
    inputs: Float[Array, "images h w channels"],
    numbers: Int[Array, " images"],
    projection: Projection | None,
    signed: Bool[Array, ""],
) -> tuple[dict[str, Float[Array, "1 images ..."]], Evidence]:
    """Computes a device's points: maps, or sketches of them, and representations, from one forward pass.

    Maps are brought to probe size and averaged over colour channels. The sketch of a map without direction is NaN. The
    first axis of weights and outputs is the device's part of the axis of networks, of length 1.
    """
    params = jax.tree.map(lambda leaf: leaf[0], params)
    methods = {kind: method_of(kind) for kind in forward_pass.kinds if is_map(kind)}
    with jax.default_matmul_precision("highest"):
        maps, outputs, evidence = attribution_pass(
            forward_pass.apply, params, inputs, signed if methods else None,
            (*methods.values(),), forward_pass.target, forward_pass.epsilon, forward_pass.precision, True,
        )  # fmt: skip
        points = {}
        for kind, method in methods.items():
            if method == "modelgif":
                points[kind] = _curves(forward_pass, maps[method], numbers, projection)
                continue
            points[kind] = restore_maps(forward_pass.preprocess, maps[method].mean(-1), forward_pass.shape[:2])
            if projection is not None:
                units, usable = directions(points[kind].reshape(len(numbers), -1), forward_pass.similarity)
                points[kind] = jnp.where(usable[:, None], projection(units, numbers), jnp.nan)
        if REPRESENTATION in forward_pass.kinds:
            leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(outputs)]
            has_places = len(leaves) == 1 and leaves[0].ndim in (3, 4)
            units = leaves if has_places else [leaf.reshape(len(numbers), -1) for leaf in leaves]
            points[REPRESENTATION] = jnp.concatenate(units, axis=-1)
        points |= _layers(forward_pass.kinds, outputs)
    return jax.tree.map(lambda of_images: of_images[None], (points, evidence))


def method_of(kind: str) -> str:
    """Returns the attribution method of a kind of maps, or `REPRESENTATION` of a layer."""
    return kind.partition("-")[0]


def is_map(kind: str) -> bool:
    """Whether points of a kind are attribution maps, or sketches of them."""
    return method_of(kind) in ATTRIBUTIONS


def _layers(kinds: Sequence[str], outputs: PyTree) -> dict[str, Float[Array, "images ..."]]:
    """Returns the outputs that kinds name, and probabilities of classes."""
    by_name = named_outputs(outputs)
    points = {}
    for kind in kinds:
        if kind.startswith(LAYER):
            leaf = by_name[kind.removeprefix(LAYER)]
            points[kind] = (leaf if leaf.ndim in (3, 4) else leaf.reshape(len(leaf), -1)).astype(jnp.float32)
        elif kind == PROBABILITIES:
            is_softmax = PROBABILITIES in by_name
            leaf = by_name[PROBABILITIES if is_softmax else LOGITS].astype(jnp.float32)
            leaf = leaf.reshape(len(leaf), -1)
            points[kind] = leaf if is_softmax else jax.nn.softmax(leaf)
    return points


def _curves(
    forward_pass: Pass,
    curves: Float[Array, "images steps h w channels"],
    numbers: Int[Array, " images"],
    projection: Projection | None,
) -> Float[Array, "images ..."]:
    """Makes points of curves of maps, so that the cosine of two points is the mean of the cosines of their maps.

    Every map is treated as a map of its own and scaled to one length. Whole curves are [images, steps * height, width];
    a sketch is the sum of sketches of the maps. A curve is NaN if one of its maps has no direction.
    """
    steps = curves.shape[1]

    def of_step(step: Int[Array, ""], maps: Float[Array, "images h w channels"]) -> tuple[Array, Array]:
        maps = restore_maps(forward_pass.preprocess, maps.mean(-1), forward_pass.shape[:2])
        units, usable = directions(maps.reshape(len(numbers), -1), forward_pass.similarity)
        if projection is not None:
            # Signs differ between maps, and a pixel has another bucket in every map.
            units = jnp.roll(projection(units, steps * numbers + step), step, axis=1)
        return units / math.sqrt(steps), usable

    by_step = jnp.arange(steps, dtype=numbers.dtype), jnp.moveaxis(curves, 1, 0)
    units, usable = jax.lax.map(lambda step: of_step(*step), by_step)
    if projection is not None:
        points = units.sum(0)
    else:
        points = jnp.moveaxis(units, 0, 1).reshape(len(numbers), -1, forward_pass.shape[1])
    return jnp.where(usable.all(0).reshape(-1, *[1] * (points.ndim - 1)), points, jnp.nan)


def evidence_of_row(evidence: Evidence, row: int) -> Evidence:
    """Copies the evidence of the first device of a row of the mesh to the host; this process must have that device."""

    def first(array: Array) -> Float[np.ndarray, " images"]:
        shards = {(shard.index[0].start or 0, shard.index[1].start or 0): shard for shard in array.addressable_shards}
        return jax.device_get(shards[row, 0].data)[0]

    return jax.tree.map(first, evidence)


@functools.lru_cache(maxsize=256)
def bytes_needed(program: jax.stages.Compiled) -> int:
    """Returns the memory that a program uses on a device, with its arguments; 0 where the compiler does not say.

    The compiler takes up to a tenth of a second to say it, so it is asked once about a program.
    """
    sizes = program.memory_analysis()
    return sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes if sizes else 0


def preprocessed(
    preprocess: PreprocessFn | None, images: Float[Array, "images height width channels"]
) -> Float[Array, "images h w channels"]:
    """Makes a network's input from probe images."""
    return images if preprocess is None else preprocess(images)


_preprocessed = jax.jit(preprocessed, static_argnums=0)


class Inputs:
    """Preprocesses the probe images once for all networks with the same preprocessing.

    All batches stay on the devices if they fit in a quarter of their memory; otherwise they stay on the host, and each
    is copied when it is needed.
    """

    def __init__(self, images: Images, preprocess: PreprocessFn | None, layout: Layout) -> None:
        """Takes images, preprocessing and layout; preprocesses nothing yet."""
        self.key = (preprocess, layout)
        self._images, self._preprocess, self._layout = images, preprocess, layout
        self._shape = input_shape(preprocess, layout.step_images, images.shape[1:])
        size = 4 * layout.steps * np.prod(self._shape) / layout.mesh.shape[DATA]
        self._stay_on_devices = size <= _INPUTS_MEMORY_FRACTION * memory_per_device()
        self._on_devices: dict[int, tuple[Array, Array]] = {}
        self._on_host: dict[int, Float[np.ndarray, "images h w channels"]] = {}

    def __getitem__(self, step: int) -> tuple[Float[Array, "images h w channels"], Int[Array, " images"]]:
        """Returns the inputs of a step, and the numbers of their images."""
        if step in self._on_devices:
            return self._on_devices[step]

        def numbers(index: tuple[slice, ...]) -> Int[np.ndarray, " images"]:
            first = self._layout.first((index[0].start or 0) // self._layout.batch, step)
            return np.arange(first, first + self._layout.batch, dtype=np.int32).clip(max=len(self._images) - 1)

        inputs = distribute(self._shape, self._layout.by_share, lambda index: self._inputs_of(numbers(index)))
        batch = inputs, distribute(self._shape[:1], self._layout.by_share, numbers)
        if self._stay_on_devices:
            self._on_devices[step] = batch
            self._on_host.clear()
        return batch

    def _inputs_of(self, numbers: Int[np.ndarray, " images"]) -> Float[np.ndarray, "images h w channels"]:
        """The inputs for some images, preprocessed when they are first asked for."""
        if (first := int(numbers[0])) not in self._on_host:
            images = self._images[numbers].astype(np.float32)
            images = images / np.float32(255) if self._images.dtype == np.uint8 else images
            with jax.default_matmul_precision("highest"):
                self._on_host[first] = np.asarray(_preprocessed(self._preprocess, jax.device_put(images)))
        return self._on_host[first]


def input_shape(preprocess: PreprocessFn | None, images: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a network's input for a number of probe images of a shape [height, width, channels]."""
    probe = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    return jax.eval_shape(functools.partial(preprocessed, preprocess), probe).shape


def place_weights(networks: Mapping[int, PyTree], mesh: Mesh) -> PyTree:
    """Puts the weights of one network on each row of a mesh.

    Args:
        networks: Weights of networks of one architecture, by row; all rows in which this process has devices.
        mesh: The devices.

    Returns:
        The weights with an axis of networks in front, one for each row.
    """
    by_row = NamedSharding(mesh, _BY_ROW)

    def on_rows(*leaves: Any) -> Array:
        if is_key(leaves[0]):
            bits = on_rows(*(jax.random.key_data(leaf) for leaf in leaves))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaves[0]))
        own = {row: np.asarray(leaf, jnp.result_type(leaf))[None] for row, leaf in zip(networks, leaves, strict=True)}
        shape = (mesh.shape[MODEL], *np.shape(leaves[0]))
        return distribute(shape, by_row, lambda index: own[index[0].start or 0])

    return jax.tree.map(on_rows, *networks.values())
