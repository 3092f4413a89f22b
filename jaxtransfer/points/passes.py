"""One pass: a batch of probe images through one network on each row of a mesh, and where its arrays live.

A mesh has the axes `model` and `data` (see `devices`). Nothing crosses devices in a pass.

    weights   [model, ...]                   one network's on each row
    inputs    [data * batch, h, w, channels] one share of the images on each column
    results   [model, data * batch, ...]     on the device that made them
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from jaxtransfer.attribution.diagnostics import Evidence
from jaxtransfer.attribution.maps import TargetFn, attribution_pass
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.devices import DATA, MODEL, distribute, memory_per_device
from jaxtransfer.networks.network import ApplyFn, is_key
from jaxtransfer.networks.preprocess import PreprocessFn, restore_maps
from jaxtransfer.points.directions import Similarity, directions
from jaxtransfer.points.sketch import Projection

Images = Float[np.ndarray, "images height width channels"] | UInt8[np.ndarray, "images height width channels"]

REPRESENTATION, SKETCH = "representation", "-sketch"

_ONE_NETWORK_A_ROW, _ONE_SHARE_A_COLUMN = PartitionSpec(MODEL), PartitionSpec(DATA)
_BY_BOTH = PartitionSpec(MODEL, DATA)
_EVERYWHERE = PartitionSpec()

# Of the memory of a device, what the inputs may take if they are to stay there.
_OF_INPUTS = 1 / 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which image is where: device d of a row of the mesh has `share` consecutive images, `batch` at a time.

    Attributes:
        mesh: The devices.
        images: How many there are; what fills up the last shares repeats the last one.
        batch: Images at a time on each device.
    """

    mesh: Mesh
    images: int
    batch: int

    @classmethod
    def of(cls, mesh: Mesh, images: int, most: int) -> "Layout":
        """The layout of the fewest steps of at most `most` images, as equal as can be."""
        share = -(-images // mesh.shape[DATA])
        return cls(mesh, images, -(-share // -(-share // most)))

    @property
    def steps(self) -> int:
        """Batches on each device."""
        return -(-self.images // self.at_once)

    @property
    def share(self) -> int:
        """Images of each device."""
        return self.steps * self.batch

    @property
    def at_once(self) -> int:
        """Images of one step, on all columns of the mesh."""
        return self.mesh.shape[DATA] * self.batch

    @property
    def by_share(self) -> NamedSharding:
        """Where a step's images lie: on each column its own."""
        return NamedSharding(self.mesh, _ONE_SHARE_A_COLUMN)

    def done(self, steps: int) -> int:
        """Images that so many steps have done."""
        shares = (self.images - self.first(column, 0) for column in range(self.mesh.shape[DATA]))
        return sum(min(steps * self.batch, max(0, share)) for share in shares)

    def first(self, column: int, step: int) -> int:
        """The first image of a batch on a column of the mesh."""
        return column * self.share + step * self.batch


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a compiled pass depends on, apart from shapes.

    Attributes:
        apply: The network's function.
        preprocess: How its inputs were made.
        kinds: Of points to make.
        similarity: For which sketches are made.
        target: The scalar that maps are of; None: the sum over units.
        epsilon: Stabiliser of epsilon-LRP.
        precision: Of the passes; sketches and what brings maps to probe size are float32.
        shape: Height, width and channels of the probe images.
        layout: Where images are.
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
        """The program `(params, inputs, numbers, projection, signed) -> ({kind: points}, evidence)`.

        `signed` and the evidence are those of `attribution_pass`. The program is for weights of these shapes, and
        compiled once in a process.

        Args:
            params: Weights on the mesh, see `place_weights`.
            projection: For sketches.
            own: A network's weights before they were placed: its Python numbers take part in type promotion as Python
                numbers do. None: there are none.
        """
        at_once, by_share = self.layout.at_once, self.layout.by_share
        inputs = jax.ShapeDtypeStruct(input_shape(self.preprocess, at_once, self.shape), jnp.float32, sharding=by_share)
        numbers = jax.ShapeDtypeStruct((at_once,), jnp.int32, sharding=by_share)
        arrays = jax.tree.leaves((params, projection))
        weak = [jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(own)]
        weak += [False] * (len(arrays) - len(weak))
        given = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding, weak_type=is_weak)
            for a, is_weak in zip(arrays, weak, strict=True)
        ]
        structure = jax.tree.structure((params, projection))
        return _compiled(self, structure, (*given,), inputs, numbers)


@functools.lru_cache(maxsize=256)
def _compiled(
    one: Pass,
    structure: Any,
    given: tuple[jax.ShapeDtypeStruct, ...],
    inputs: jax.ShapeDtypeStruct,
    numbers: jax.ShapeDtypeStruct,
) -> jax.stages.Compiled:
    params, projection = jax.tree.unflatten(structure, given)
    # Gradients are taken inside, of each device's own images. With `check_vma` JAX would sum them over the rows of the
    # mesh, on which the images are the same (jax #36886).
    program = jax.shard_map(
        functools.partial(_on_device, one),
        mesh=one.layout.mesh,
        in_specs=(_ONE_NETWORK_A_ROW, _ONE_SHARE_A_COLUMN, _ONE_SHARE_A_COLUMN, _EVERYWHERE, _EVERYWHERE),
        out_specs=_BY_BOTH,
        check_vma=False,
    )
    signed = jax.ShapeDtypeStruct((), jnp.bool_, sharding=NamedSharding(one.layout.mesh, _EVERYWHERE))
    return jax.jit(program).lower(params, inputs, numbers, projection, signed).compile()


def _on_device(
    one: Pass,
    params: PyTree,
    inputs: Float[Array, "images h w channels"],
    numbers: Int[Array, " images"],
    projection: Projection | None,
    signed: Bool[Array, ""],
) -> tuple[dict[str, Float[Array, "1 images ..."]], Evidence]:
    """Maps at probe size, averaged over colour channels (methods A.3), or sketches of them, and representations.

    One forward pass gives all. The sketch of a map without direction is not a number. Weights and results have an axis
    of length 1 in front: the device's part of that of networks.
    """
    params = jax.tree.map(lambda leaf: leaf[0], params)
    methods = {kind: kind.partition("-")[0] for kind in one.kinds if kind != REPRESENTATION}
    with jax.default_matmul_precision("highest"):
        maps, outputs, evidence = attribution_pass(
            one.apply, params, inputs, signed if methods else None,
            (*methods.values(),), one.target, one.epsilon, one.precision, True,
        )  # fmt: skip
        found = {}
        for kind, method in methods.items():
            found[kind] = restore_maps(one.preprocess, maps[method].mean(-1), one.shape[:2])
            if projection is not None:
                units, usable = directions(found[kind].reshape(len(numbers), -1), one.similarity)
                found[kind] = jnp.where(usable[:, None], projection(units, numbers), jnp.nan)
        if REPRESENTATION in one.kinds:
            units = [leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in jax.tree.leaves(outputs)]
            found[REPRESENTATION] = jnp.concatenate(units, axis=1)
    return jax.tree.map(lambda of_images: of_images[None], (found, evidence))


def bytes_needed(program: jax.stages.Compiled) -> int:
    """What a program takes of a device's memory, its arguments included; 0 where the compiler does not say."""
    said = program.memory_analysis()
    return said.temp_size_in_bytes + said.argument_size_in_bytes + said.output_size_in_bytes if said else 0


def preprocessed(
    preprocess: PreprocessFn | None, images: Float[Array, "images height width channels"]
) -> Float[Array, "images h w channels"]:
    """Probe images as a network wants them."""
    return images if preprocess is None else preprocess(images)


_preprocessed = jax.jit(preprocessed, static_argnums=0)


class Inputs:
    """The probe as networks of one preprocessing see it; it is preprocessed once.

    All batches stay on the devices where they take no more than a quarter of their memory, otherwise in the host's, and
    go over one at a time.
    """

    def __init__(self, images: Images, preprocess: PreprocessFn | None, layout: Layout) -> None:
        """Prepares nothing yet."""
        self.key = (preprocess, layout)
        self._images, self._preprocess, self._layout = images, preprocess, layout
        self._shape = input_shape(preprocess, layout.at_once, images.shape[1:])
        self._stay = (
            4 * layout.steps * np.prod(self._shape) / layout.mesh.shape[DATA] <= _OF_INPUTS * memory_per_device()
        )
        self._on_devices: dict[int, tuple[Array, Array]] = {}
        self._on_host: dict[int, Float[np.ndarray, "images h w channels"]] = {}

    def __getitem__(self, step: int) -> tuple[Float[Array, "images h w channels"], Int[Array, " images"]]:
        """The inputs of a step, and the numbers of their images."""
        if step in self._on_devices:
            return self._on_devices[step]

        def numbers(index: tuple[slice, ...]) -> Int[np.ndarray, " images"]:
            first = self._layout.first((index[0].start or 0) // self._layout.batch, step)
            return np.arange(first, first + self._layout.batch, dtype=np.int32).clip(max=len(self._images) - 1)

        inputs = distribute(self._shape, self._layout.by_share, lambda index: self._seen(numbers(index)))
        found = inputs, distribute(self._shape[:1], self._layout.by_share, numbers)
        if self._stay:
            self._on_devices[step] = found
            self._on_host.clear()
        return found

    def _seen(self, numbers: Int[np.ndarray, " images"]) -> Float[np.ndarray, "images h w channels"]:
        """Images as the network sees them."""
        if (first := int(numbers[0])) not in self._on_host:
            images = self._images[numbers].astype(np.float32)
            images = images / np.float32(255) if self._images.dtype == np.uint8 else images
            with jax.default_matmul_precision("highest"):
                self._on_host[first] = np.asarray(_preprocessed(self._preprocess, jax.device_put(images)))
        return self._on_host[first]


def input_shape(preprocess: PreprocessFn | None, images: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a network gets of so many probe images of a shape."""
    probe = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    return jax.eval_shape(functools.partial(preprocessed, preprocess), probe).shape


def place_weights(networks: Mapping[int, PyTree], mesh: Mesh) -> PyTree:
    """The weights of one network on each row of a mesh.

    Args:
        networks: By row, of all rows in which this process has devices; of one architecture.
        mesh: The devices.
    """
    by_row = NamedSharding(mesh, _ONE_NETWORK_A_ROW)

    def on_rows(*leaves: Any) -> Array:
        if is_key(leaves[0]):
            bits = on_rows(*(jax.random.key_data(leaf) for leaf in leaves))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaves[0]))
        own = {row: np.asarray(leaf, jnp.result_type(leaf))[None] for row, leaf in zip(networks, leaves, strict=True)}
        shape = (mesh.shape[MODEL], *np.shape(leaves[0]))
        return distribute(shape, by_row, lambda index: own[index[0].start or 0])

    return jax.tree.map(on_rows, *networks.values())
