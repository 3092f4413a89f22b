"""Names of the functions and classes that zoos store networks with, and the functions behind the names."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from jaxtransfer.errors import JaxTransferError

# The functions of jaxtransfer that a manifest may name, and where each is defined. The names are part of the format of
# manifests and of the keys of points: they stay the same when a module moves.
FUNCTIONS = {
    "jaxtransfer.aten.program:AtenProgram": "jaxtransfer.aten.program:AtenProgram",
    "jaxtransfer.networks.exported:ExportedProgram": "jaxtransfer.networks.exported:ExportedProgram",
    "jaxtransfer.networks.modules:EquinoxFunction": "jaxtransfer.networks.modules.equinox_modules:EquinoxFunction",
    "jaxtransfer.networks.modules:HaikuFunction": "jaxtransfer.networks.modules.haiku_functions:HaikuFunction",
    "jaxtransfer.networks.modules:KerasFunction": "jaxtransfer.networks.modules.keras_models:KerasFunction",
    "jaxtransfer.networks.modules:LinenFunction": "jaxtransfer.networks.modules.linen_modules:LinenFunction",
    "jaxtransfer.networks.modules:NnxFunction": "jaxtransfer.networks.modules.nnx_modules:NnxFunction",
    "jaxtransfer.onnx.program:OnnxProgram": "jaxtransfer.onnx.program:OnnxProgram",
    "jaxtransfer.rooms.networks:encode": "jaxtransfer.rooms.networks:encode",
    "jaxtransfer.taskonomy:encode": "jaxtransfer.taskonomy.networks:encode",
}
# Names of the functions that the program has registered or added to a zoo.
_registered: set[str] = set()
_STORED_NAMES = {definition: name for name, definition in FUNCTIONS.items()}

_F = TypeVar("_F", bound=Callable[..., Any])


def register(function: _F) -> _F:
    """Lets the zoos of this program use a function, wherever it is defined; may be used as a decorator.

    Args:
        function: The function of a network, or a class with `to_json` and `from_json`, at the top level of a module.

    Returns:
        The function.

    Raises:
        JaxTransferError: The function cannot be found by its name.

    Examples:
        >>> from jaxtransfer import rooms
        >>> jt.register(rooms.networks.encode) is rooms.networks.encode
        True
    """
    _registered.add(findable_name(function))
    return function


def is_registered(name: str) -> bool:
    """Whether the program has registered the function of this name."""
    return name in _registered


def findable_name(function: Any) -> str:
    """Returns the name of a function or class, checked to lead back to it."""
    if not hasattr(function, "__qualname__"):
        raise JaxTransferError(f"{function!r} is not a function; make it one at the top level of a module.")
    name = function_name(function)
    if function.__module__ == "__main__":
        raise JaxTransferError(
            f"its function {function.__qualname__} stands in the program that runs, which other programs cannot "
            "import; move it to a module of its own, a file like my_nets.py, and import it from there."
        )
    if function_named(name) is not function:
        raise JaxTransferError(
            f"its function {name} cannot be found by that name; define it with def at the top level of a module."
        )
    return name


def function_name(function: Any) -> str:
    """Returns the name `module:qualname` that manifests and the keys of points give a function or class."""
    name = f"{function.__module__}:{function.__qualname__}"
    return _STORED_NAMES.get(name, name)


def function_named(name: str) -> Any:
    """Returns what an imported module (none of Python's own) defines under a stored name, or None."""
    package = name.partition(":")[0].split(".")[0]
    if package in sys.stdlib_module_names or (package == "jaxtransfer" and name not in FUNCTIONS):
        return None
    module, _, qualname = FUNCTIONS.get(name, name).partition(":")
    value: Any = sys.modules.get(module)
    for part in qualname.split("."):
        value = getattr(value, part, None)
    # A manifest must not reach what a module merely imports.
    return value if callable(value) and getattr(value, "__module__", None) == module else None
