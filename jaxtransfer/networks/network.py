"""Defines a network: a name, a pure function, its weights, and the preprocessing of its images."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtransfer import arguments
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.modules import split_module
from jaxtransfer.networks.preprocess import PreprocessFn

ApplyFn = Callable[[Any, Float[Array, "images h w channels"]], PyTree[Float[Array, "images ..."]]]


@runtime_checkable
class Storable(Protocol):
    """A callable that a zoo can store as plain data and restore."""

    def to_json(self) -> Any:
        """Returns the callable as data that JSON can hold."""
        ...

    @classmethod
    def from_json(cls, config: Any) -> Self:
        """Restores the callable from the data that `to_json` returned."""
        ...


# Networks name folders of zoos and of runs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """Describes a trained network: its name, function, weights and preprocessing.

    Attributes:
        name: Letters, digits and `. _ + -`, beginning with a letter or digit.
        apply: Pure function `apply(params, images) -> [images, ...]` that returns the representation to compare; for
            `score` and `transfer` it may return several arrays in a dict, its layers. Networks of one architecture
            should share this object, so that it is compiled once for all of them.
        params: The weights, any pytree of arrays. It may also hold PRNG keys and Python numbers, as the states of
            `flax.nnx.split` do.
        preprocess: Maps probe images with values in [0, 1] to the network's input; usually a
            `jaxtransfer.Preprocess`. None: the network takes the probe images unchanged. Networks with equal
            preprocessings share one preprocessed copy of the probe.

    Raises:
        JaxTransferError: The name cannot be the name of a folder, `apply` cannot be called with weights and images,
            the weights hold something other than arrays, or `preprocess` is not a function.

    Examples:
        >>> def apply(params, images):
        ...     return jax.nn.relu(images.mean((1, 2)) @ params["w"])
        >>> network = jt.Network("tiny", apply, {"w": np.ones((3, 8), np.float32)}, jt.Preprocess((32, 32)))
        >>> network.apply(network.params, jnp.ones((4, 32, 32, 3))).shape
        (4, 8)
    """

    name: str
    apply: ApplyFn
    params: PyTree
    preprocess: PreprocessFn | None = None

    @classmethod
    def of(
        cls,
        module: Any,
        *,
        name: str,
        preprocess: PreprocessFn | None = None,
        layer: str | Sequence[str] | None = None,
        call: Callable[[Any, Any], Any] | None = None,
        factory: Callable[[], Any] | str | None = None,
    ) -> Self:
        """Makes a network of a module as its library has it; the module itself is not changed.

        The module runs as in evaluation: without dropout, and with running statistics. It is called with images, and
        those of the arguments `train`, `training`, `is_training`, `deterministic`, `use_running_average` and
        `inference` that it takes. Networks of modules that differ only in their weights share a compiled program.

        Args:
            module: A `flax.nnx.Module`; of Flax Linen a pair (module, variables); an `equinox.Module`, which is called
                on one image with its channels first, or a pair of it and its `equinox.nn.State`; of Haiku
                (transformed, params) or (transformed, params, state); or a `keras.Model` on the JAX backend.
            name: Name of the network.
            preprocess: As for `Network`.
            layer: Name of an inner layer whose output is the representation, or several names for a dict of layers.
                Modules of NNX, Linen and Equinox have paths such as "blocks.0.conv", and values that `sow` stores have
                the path of their module before their own name; Haiku's modules and Keras's layers have their names. Of
                a layer that is called several times, the last output counts. The error for an unknown name lists the
                names there are.
            call: For modules that are called in another way: `call(module, images)` is called instead, with the batch
                of images, or for Equinox with one image, [height, width, channels]. Give the same function for all
                networks that share a program.
            factory: Function at the top level of a module that is called without arguments and builds the module (for
                Linen and Haiku without weights), or its name, such as "my_nets:make_resnet", so that a zoo can store
                the network by that name. None: a zoo stores it as exported StableHLO (`docs/zoos.md`).

        Raises:
            JaxTransferError: `module` is something else, or an argument has a wrong type.

        Examples:
            >>> from flax import nnx
            >>> module = nnx.Sequential(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
            >>> network = jt.Network.of(module, name="tiny", preprocess=jt.Preprocess((16, 16)))
            >>> network.apply(network.params, jnp.ones((4, 16, 16, 3))).shape
            (4, 16, 16, 8)
            >>> jt.Network.of(module, name="conv", layer="layers.7").apply(network.params, jnp.ones((4, 16, 16, 3)))
            Traceback (most recent call last):
            jaxtransfer.errors.JaxTransferError: There is no layer 'layers.7' in the module; there are: layers.0, ...
        """
        apply, params = split_module(module, layer=layer, call=call, factory=factory)
        return cls(name, apply, params, preprocess)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise JaxTransferError(
                f"{self.name!r} cannot be the name of a network: use letters, digits and . _ + - only, "
                "beginning with a letter or digit."
            )
        try:
            arguments.check_apply(self.apply)
        except JaxTransferError as error:
            raise JaxTransferError(f"Network {self.name!r}: {error}") from None
        check_weights(self.params, f"The params of network {self.name!r}")
        if self.preprocess is not None and not callable(self.preprocess):
            raise JaxTransferError(
                f"Network {self.name!r}: preprocess must be a jaxtransfer.Preprocess or another function of images, "
                f"not {self.preprocess!r}."
            )


def is_name(name: object) -> bool:
    """Whether a name can be that of a network, and so of its folder in a zoo."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_weights(params: PyTree, what: str = "params") -> None:
    """Checks that every leaf of a tree is an array, a PRNG key or a Python number.

    Args:
        params: The tree.
        what: Name of the tree in error messages.

    Raises:
        JaxTransferError: A leaf is something else, or the keys of a dict cannot be sorted.
    """
    try:
        leaves = jax.tree_util.tree_leaves_with_path(params)
    except (TypeError, ValueError) as error:
        raise JaxTransferError(f"{what} cannot be flattened by JAX: {str(error).splitlines()[0]}") from error
    for path, leaf in leaves:
        try:
            jax.typeof(leaf)
        except (TypeError, OverflowError, ValueError) as error:
            value = f"the number {leaf}, too large for JAX," if isinstance(leaf, int) else f"a {type(leaf).__name__}"
            where = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise JaxTransferError(
                f"{what} must be a pytree of arrays, but hold {value}{where}: pass arrays and keep the rest in the "
                "function (flax.nnx.split and equinox.partition separate the two; a Keras variable's array is its "
                "value)."
            ) from error


def is_key(leaf: Any) -> TypeGuard[Array]:
    """Whether a leaf is an array of typed PRNG keys (`jax.random.key`), which cannot become a NumPy array."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def weights_hash(params: PyTree) -> str:
    """Returns the SHA-256 over the paths, types, shapes and bytes of all weights, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        dtype = leaf.dtype if is_key(leaf) else array.dtype
        digest.update(f"{jax.tree_util.keystr(path)} {dtype} {array.shape}\n".encode())
        digest.update(array.data if array.dtype.kind in "biufc" else array.tobytes())
    return digest.hexdigest()
