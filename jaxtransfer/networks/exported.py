"""Represents a network as exported StableHLO, for modules that no factory can build again."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import ApplyFn
from jaxtransfer.networks.preprocess import Preprocess

_MAX_BYTES = 2**28  # of the file of a program, which has no weights
_PLATFORMS = "cpu", "cuda", "tpu"
# Custom calls run code of XLA's by its name. These only check shapes, place arrays and draw random numbers.
_CUSTOM_CALLS = {
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "cu_threefry2x32_ffi",
    "shape_assertion",
    "stablehlo.dynamic_reduce_window",
    "stablehlo.dynamic_rng_bit_generator",
    "stablehlo.dynamic_top_k",
}
_CUSTOM_CALL = re.compile(r"custom_call( @([\w.]+)\()?")


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedProgram:
    """Runs a program that `jax.export` has made of a network, as a pure function of weights and images.

    A program is for any number of images, or for one if the network's code does not run without knowing their number;
    then images are mapped one after the other.

    Programs with the same bytes are equal. Gradients are of the first order, and epsilon-LRP is not possible.

    Attributes:
        content: The program and its gradient, as `jax.export` serialises them.
    """

    content: bytes

    @classmethod
    def of(cls, apply: ApplyFn, params: PyTree, preprocess: Any) -> Self:
        """Exports a network's function for CPUs, CUDA and TPUs and for any number of images.

        Args:
            apply: The function.
            params: The weights, whose values are not exported.
            preprocess: The preprocessing, a `Preprocess`, which knows the size of the input.

        Raises:
            JaxTransferError: The size of the input is not known, or the function cannot be exported.
        """
        if not isinstance(preprocess, Preprocess):
            raise JaxTransferError(
                "without a factory its program is exported for images of one size: give jaxtransfer.Network.of a "
                "factory or a jaxtransfer.Preprocess."
            )
        leaves, tree = jax.tree.flatten(params)
        shapes = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in map(jax.typeof, leaves)
        ]
        channels = 1 if preprocess.lightness else 3

        def function(leaves: list[Array], images: Array) -> PyTree:
            return apply(jax.tree.unflatten(tree, leaves), images)

        def exported(count: Any) -> Self:
            images = jax.ShapeDtypeStruct((count, *preprocess.size, channels), jnp.float32)
            with _without_source_lines():
                program = export.export(jax.jit(function), platforms=_PLATFORMS)(shapes, images)
                return cls(bytes(program.serialize(vjp_order=1)))

        try:
            try:
                program = exported(*export.symbolic_shape("images"))
            except Exception:  # whatever code raises that asks for the number of images, as len(images) does
                program = exported(1)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
            raise JaxTransferError(
                f"its program cannot be exported ({reason}); give jaxtransfer.Network.of a factory."
            ) from error
        program.check()
        return program

    def check(self) -> None:
        """Checks that the content is a program, and that it calls nothing but computations.

        Raises:
            JaxTransferError: It is not, or it does.
        """
        with _damage_as_error():
            texts = [program.mlir_module() for program in self._programs()]
        called = {name or "something" for text in texts for _, name in _CUSTOM_CALL.findall(text)}
        if refused := sorted(called - _CUSTOM_CALLS):
            raise JaxTransferError(
                f"its exported program calls {', '.join(refused)}, which is no operation of StableHLO, so that a zoo "
                "does not run it; give jaxtransfer.Network.of a factory."
            )

    def __call__(
        self, params: PyTree, images: Float[Array, "images height width channels"]
    ) -> PyTree[Float[Array, "images ..."]]:
        """Runs the program.

        Raises:
            JaxTransferError: The weights or the images have other shapes or types than those that it was exported for.
        """
        arrays = [*map(jnp.asarray, jax.tree.leaves(params)), images]
        expected = self._exported.in_avals
        if len(arrays) != len(expected) or any(map(_differ, [*arrays[:-1], images[:1]], expected)):
            raise JaxTransferError(
                f"This network's exported program takes its own weights, and {expected[-1].dtype} images of height, "
                f"width and channels {expected[-1].shape[1:]}, not {images.dtype} images of shape {images.shape}."
            )
        weights, call = arrays[:-1], self._exported.call
        if expected[-1].shape[0] == 1:
            return jax.lax.map(lambda image: jax.tree.map(lambda output: output[0], call(weights, image[None])), images)
        return call(weights, images)

    def to_json(self) -> dict[str, str]:
        """Returns the hash of the program, whose bytes are in a file of their own."""
        return {"sha256": self.sha256}

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Reads the program from the path `file`, and checks that it has the hash that `to_json` returned.

        Raises:
            JaxTransferError: It has changed, is too large, is no program, or calls more than computations.
            OSError: The file cannot be read.
        """
        file: Path = config["file"]
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise JaxTransferError(f"its exported program has {size:,} bytes, but at most {_MAX_BYTES:,} are read.")
        program = cls(file.read_bytes())
        if program.sha256 != config["sha256"]:
            raise JaxTransferError("its exported program has changed since it was added; add the network again.")
        program.check()
        return program

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the program, as 64 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    @functools.cached_property
    def _exported(self) -> export.Exported:
        with _damage_as_error():
            return export.deserialize(bytearray(self.content))

    def _programs(self) -> Iterator[export.Exported]:
        """Yields the program and its gradient, and whatever further gradients a stranger has added."""
        program: export.Exported | None = self._exported
        while program is not None:
            yield program
            program = program.vjp() if program.has_vjp() else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExportedProgram) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)


def _differ(array: Array, expected: Any) -> bool:
    """Whether an array has another type or shape than a program expects, whose number of images may be a symbol."""
    lengths = [length for length in expected.shape if isinstance(length, int)]
    return (
        array.dtype != expected.dtype or array.ndim != len(expected.shape) or [*array.shape][-len(lengths) :] != lengths
    )


@contextmanager
def _without_source_lines() -> Iterator[None]:
    """Leaves the names of source files out of programs, so that the same network gives the same bytes anywhere."""
    limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


@contextmanager
def _damage_as_error() -> Iterator[None]:
    """Turns whatever is raised for bytes that are no program into one sentence."""
    try:
        yield
    except Exception as error:  # flatbuffers and XLA raise many types
        raise JaxTransferError(
            f"its exported program is damaged, or of a version of JAX that {jax.__version__} cannot read "
            f"({type(error).__name__}); add the network again."
        ) from error
