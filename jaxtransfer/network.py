"""A network: a name, a pure function, its weights, and how it wants its images."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtransfer import arguments
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.preprocess import PreprocessFn

ApplyFn = Callable[[Any, Float[Array, "images h w channels"]], Float[Array, "images ..."]]


@runtime_checkable
class Storable(Protocol):
    """A callable that a zoo can write as plain data and make again."""

    def to_json(self) -> Any:
        """What JSON can hold of it."""
        ...

    @classmethod
    def from_json(cls, config: Any) -> Self:
        """The same callable again."""
        ...


# A name becomes a folder's name in a zoo and in a run.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """One pre-trained network.

    Attributes:
        name: Letters, digits and `. _ + -`; the first a letter or digit.
        apply: Pure function `apply(params, images) -> [images, ...]`, the representation to compare. Networks
            that share an architecture should share this object: they are then compiled once.
        params: Its weights, any pytree of arrays.
        preprocess: Maps probe images with values in [0, 1] to the network's input; usually a
            `jaxtransfer.Preprocess`. None: the network takes the probe images as they are. Networks with equal
            preprocessings share one preprocessed copy of the probe.

    Raises:
        JaxTransferError: The name could not be the name of a folder, `apply` cannot be called with weights and images,
            the weights hold something that is no array, or `preprocess` is no function.
    """

    name: str
    apply: ApplyFn
    params: PyTree
    preprocess: PreprocessFn | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise JaxTransferError(
                f"{self.name!r} cannot be the name of a network: use letters, digits and . _ + - only, "
                "beginning with a letter or digit."
            )
        try:
            arguments.check_apply(self.apply)
            arguments.check_params(self.params)
        except JaxTransferError as error:
            raise JaxTransferError(f"Network {self.name!r}: {error}") from None
        if self.preprocess is not None and not callable(self.preprocess):
            raise JaxTransferError(
                f"Network {self.name!r}: preprocess must be a jaxtransfer.Preprocess or another function of images, "
                f"not {self.preprocess!r}."
            )


def weights_hash(params: PyTree) -> str:
    """SHA-256 over the paths, types, shapes and bytes of all weights, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.dtype.kind in "biufc" else array.tobytes())
    return digest.hexdigest()
