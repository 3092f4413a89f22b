"""Recognises the library of a module and splits it into its function and its weights."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from jaxtransfer.arguments import checked_names
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.functions import function_named
from jaxtransfer.networks.modules.equinox_modules import EquinoxFunction
from jaxtransfer.networks.modules.function import ModuleFunction
from jaxtransfer.networks.modules.haiku_functions import HaikuFunction
from jaxtransfer.networks.modules.keras_models import KerasFunction
from jaxtransfer.networks.modules.linen_modules import LinenFunction
from jaxtransfer.networks.modules.nnx_modules import NnxFunction

_LIBRARIES: tuple[type[ModuleFunction], ...] = NnxFunction, LinenFunction, EquinoxFunction, HaikuFunction, KerasFunction
_MODULES = (
    "an nnx.Module, a pair (module, variables) of Flax Linen, an eqx.Module or a pair (module, state), a tuple "
    "(transformed, params) or (transformed, params, state) of Haiku, or a keras.Model"
)


def split_module(
    module: Any,
    *,
    layer: str | Sequence[str] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    factory: Callable[[], Any] | str | None = None,
) -> tuple[ModuleFunction, PyTree]:
    """Splits a module into a pure function, in evaluation mode, and its weights; see `Network.of`.

    Raises:
        JaxTransferError: It is no module of a library that is known here, or an argument has a wrong type.
    """
    of_library = next((library for library in _LIBRARIES if library.accepts(module)), None)
    if of_library is None:
        raise JaxTransferError(f"The module must be {_MODULES}, not {_in_words(module)}.")
    build = function_named(factory) if isinstance(factory, str) else factory
    if build is None and factory is not None:
        raise JaxTransferError(
            f"There is no factory {factory!r}; import its module first, and name the function as module:function."
        )
    for name, function in (("call", call), ("factory", build)):
        if function is not None and not callable(function):
            raise JaxTransferError(f"{name} must be a function, not {function!r}.")
    if layer is not None and not isinstance(layer, str):
        layer = checked_names("layer", layer, "blocks.0") or None
    template, weights = of_library.split(module)
    if build is not None:
        return of_library.of_factory(build, layer, call), weights
    return of_library(template, layer, call), weights


def _in_words(module: Any) -> str:
    """Describes what is no module with its weights, and what is missing."""
    type_name = f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}".removeprefix("builtins.")
    if isinstance(module, nn.Module):
        return f"{type_name} alone; give (module, variables)"
    if type_name.startswith("haiku."):
        return f"{type_name} alone; give (transformed, params), and the state if it has one"
    if any(base.__module__.startswith("torch.") for base in type(module).__mro__):
        return f"the PyTorch module {type_name}; convert it with jaxtransfer convert torch"
    return f"a {type_name}; for anything else, give jaxtransfer.Network a function of weights and images"
