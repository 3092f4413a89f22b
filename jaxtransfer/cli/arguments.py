"""From the text of an argument to the object that it names."""

import contextlib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtransfer.errors import JaxTransferError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxtransfer.evaluation.oracle import Oracle


def connect_devices(mesh: str | None, distributed: str | None) -> "Mesh":
    """Connects the processes of `--distributed`, if there are several, and returns the device mesh of `--mesh`."""
    from jaxtransfer.devices import connect, device_mesh, parse_mesh

    if distributed is not None:
        connect(distributed)
    return device_mesh() if mesh is None else parse_mesh(mesh)


def import_modules(names: Sequence[str]) -> None:
    """Imports modules by name, from the current directory too.

    Raises:
        JaxTransferError: There is no such module, or it cannot be imported.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            raise JaxTransferError(
                f"--import takes the name of a module, such as my_nets for the file my_nets.py, not {name!r}."
            )
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise JaxTransferError(f"The module {name} cannot be imported: it needs {error.name}.") from error
            raise JaxTransferError(f"There is no module {name}, installed or in the directory {here}.") from error
        except (Exception, SystemExit) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if "importlib" in place.filename else f" in {place.filename}, line {place.lineno}"
            raise JaxTransferError(
                f"The module {name} cannot be imported{where}: {type(error).__name__}: {' '.join(str(error).split())}."
            ) from error


def load_oracle(name: str) -> "Oracle":
    """Returns an oracle that comes with the package, or reads one from a CSV file."""
    from jaxtransfer.evaluation.oracle import Oracle

    built_in = {
        "taskonomy": Oracle.taskonomy,
        "taskonomy-gain": functools.partial(Oracle.taskonomy, score="gain"),
        "taskonomy-quality": functools.partial(Oracle.taskonomy, score="quality"),
        "rooms": Oracle.rooms,
        "rooms-larger-readout": functools.partial(Oracle.rooms, "larger_readout"),
        "rooms-finetuned": functools.partial(Oracle.rooms, "finetuned"),
        "wild": Oracle.wild,
        "medmnist": Oracle.medmnist,
        "hear": Oracle.hear,
    }
    return built_in[name]() if name in built_in else Oracle.load(name)


def load_groups(name: str) -> dict[str, str]:
    """Returns groups that come with the package, or reads them from a CSV file."""
    from jaxtransfer.evaluation import groups

    built_in = {"taskonomy": groups.taskonomy_groups, "rooms": groups.rooms_groups}
    return built_in[name]() if name in built_in else groups.load_groups(name)


def resolve_task_name(target: str, names: Sequence[str]) -> str:
    """Returns the name that a Taskonomy task has in `names`, whichever of its two names is given; else `target`."""
    from jaxtransfer.taskonomy.tasks import task_name

    with contextlib.suppress(JaxTransferError):
        if task_name(target) in names:
            return task_name(target)
    return target


def parse_rgb(option: str, text: str | None) -> tuple[float, ...] | None:
    """Returns the numbers for red, green and blue in `text`.

    Raises:
        JaxTransferError: There are not three numbers.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        numbers = tuple(float(part) for part in text.split(","))
        if len(numbers) == 3:
            return numbers
    raise JaxTransferError(f"{option} takes three numbers, such as 0.485,0.456,0.406, not {text!r}.")


def parse_size(option: str, text: str | None) -> tuple[int, int] | None:
    """Returns the height and width in `text`.

    Raises:
        JaxTransferError: There are not two whole numbers, or one for both.
    """
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        numbers = [int(part) for part in text.split(",")]
        if len(numbers) in (1, 2):
            return numbers[0], numbers[-1]
    raise JaxTransferError(f"{option} takes height and width in pixels, such as 224,224, not {text!r}.")
