"""Defines the pure function of a module, which networks of the same architecture share."""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Self

import jax
from jaxtyping import Array, Float, PyTree

from jaxtransfer.arguments import is_state_error
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.networks.functions import findable_name, function_named
from jaxtransfer.networks.modules.structure import structure, structure_hash

# Arguments by which modules of all libraries are told that they are not trained.
_EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleFunction(abc.ABC):
    """Calls a module as a pure function of weights and images.

    Functions of modules that differ only in their weights are equal, so that they share a compiled program. A subclass
    knows the modules of one library.

    Attributes:
        module: The module without its weights.
        layer: Name of the inner layer to return, or several for a dict of layers; None: what the module returns.
        call: Called as `call(module, images)` instead of the module; None: the module is called.
        factory: Builds the module without arguments, so that a zoo need not store it; None: there is no such function.
    """

    module: Any
    layer: str | tuple[str, ...] | None = None
    call: Callable[[Any, Any], Any] | None = None
    factory: Callable[[], Any] | None = None

    @staticmethod
    @abc.abstractmethod
    def accepts(module: Any) -> bool:
        """Whether something is a module of this library, with its weights."""

    @staticmethod
    @abc.abstractmethod
    def split(module: Any) -> tuple[Any, PyTree]:
        """Returns a module without its weights, and as in evaluation, and the weights."""

    @staticmethod
    @abc.abstractmethod
    def build(factory: Callable[[], Any]) -> Any:
        """Builds a module without its weights, and as in evaluation."""

    @abc.abstractmethod
    def run(self, weights: PyTree, images: Array, layers: Iterable[str]) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Returns what the module returns, and the outputs of those of the inner layers that exist."""

    @abc.abstractmethod
    def layer_names(self, weights: PyTree, images: Array) -> list[str]:
        """Returns the names of all inner layers."""

    def __call__(
        self, weights: PyTree, images: Float[Array, "images height width channels"]
    ) -> PyTree[Float[Array, "images ..."]]:
        """Computes the representation.

        Raises:
            JaxTransferError: The module cannot be called so, or has no layer of that name.
        """
        names = (self.layer,) if isinstance(self.layer, str) else self.layer or ()
        try:
            outputs, layers = self.run(weights, images, names)
            for name in names:
                if name not in layers:
                    raise unknown_name("layer", name, self.layer_names(weights, images), where="in the module")
        except JaxTransferError:
            raise
        except Exception as error:
            if names and isinstance(error, jax.errors.UnexpectedTracerError):
                raise JaxTransferError(
                    f"The layers {', '.join(names)} cannot be taken, since one of them is called inside a "
                    "transformation such as jax.jit, jax.checkpoint or jax.lax.scan; take a layer outside."
                ) from error
            if self.call is not None or is_state_error(error):
                raise
            raise JaxTransferError(
                f"The module cannot be called with images of shape {images.shape} ({type(error).__name__}: "
                f"{(str(error).strip().splitlines() or [''])[0]}); {self.advice()}."
            ) from error
        if self.layer is None:
            return outputs
        return layers[self.layer] if isinstance(self.layer, str) else {name: layers[name] for name in names}

    def describe(self) -> Hashable:
        """Describes the module, so that modules built alike have equal descriptions."""
        return structure(self.module)

    def advice(self) -> str:
        """Says in a clause how to call a module that takes its images in another way."""
        return "if it is called in another way, pass call=lambda module, images: ..., with the batch of images"

    def to_json(self) -> dict[str, Any]:
        """Returns the names of the functions that make this one, as JSON data."""
        if self.factory is None:
            return {"structure": structure_hash(self._key)}
        call = {} if self.call is None else {"call": findable_name(self.call)}
        return {"factory": findable_name(self.factory), "layer": self.layer, **call}

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Restores the function from the names that `to_json` returned.

        The caller has checked that the functions may be used.
        """
        layer = config["layer"]
        call = _function(config["call"]) if "call" in config else None
        return cls.of_factory(_function(config["factory"]), tuple(layer) if isinstance(layer, list) else layer, call)

    @classmethod
    def of_factory(
        cls, factory: Callable[[], Any], layer: str | tuple[str, ...] | None, call: Callable[[Any, Any], Any] | None
    ) -> Self:
        """Returns the function of the module that a factory builds.

        Raises:
            JaxTransferError: The factory fails.
        """
        try:
            return cls(cls.build(factory), layer, call, factory)
        except Exception as error:
            raise JaxTransferError(
                f"The factory {factory.__module__}:{factory.__qualname__} must build the module when it is called "
                f"without arguments, but it fails: {type(error).__name__}: {error}."
            ) from error

    @functools.cached_property
    def _key(self) -> Any:
        what = self.describe() if self.factory is None else self.factory
        return type(self), what, self.layer, structure(self.call)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleFunction) and (self is other or self._key == other._key)

    def __hash__(self) -> int:
        return self._hash


def evaluation_arguments(function: Callable[..., Any]) -> dict[str, bool]:
    """Returns the arguments that a function takes to be told that the network is not trained."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in _EVALUATION.items() if name in parameters}


def _function(name: str) -> Any:
    if (function := function_named(name)) is None:
        raise JaxTransferError(f"its function {name} no longer exists.")
    return function
