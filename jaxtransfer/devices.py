"""Which devices share the work, and how the processes that hold them stay in step.

Devices form a mesh with the axes `model` and `data`. Networks are spread over the one and images over the other; of
principal gradients, data sets and restarts. Weights lie once for each row of the mesh, images once for each column.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, Sharding
from jaxtyping import Array, Shaped

from jaxtransfer.errors import JaxTransferError

MODEL, DATA = "model", "data"

# The longest complaint that processes tell each other, in bytes.
_LONGEST = 2048


def device_mesh(model: int = 1, data: int | None = None) -> Mesh:
    """A mesh over the devices of all processes.

    Args:
        model: Networks at a time.
        data: Devices that share the images of each; None: all there are.

    Raises:
        JaxTransferError: There are not so many devices, or (with several processes) there are more.
    """
    devices = jax.devices()
    data = max(1, len(devices) // max(1, model)) if data is None else data
    wanted = model * data
    if min(model, data) < 1 or wanted > len(devices) or (jax.process_count() > 1 and wanted < len(devices)):
        raise JaxTransferError(
            f"A mesh of model={model},data={data} needs {wanted} devices, but JAX sees {len(devices)} "
            f"({devices[0].device_kind}); several processes have to use all of them."
        )
    return jax.make_mesh((model, data), (MODEL, DATA), axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted])


def parse_mesh(text: str) -> Mesh:
    """The mesh that `model=A,data=B` describes; an axis that is left out is 1.

    Raises:
        JaxTransferError: It does not read like that, or does not fit the devices there are.
    """
    axes = dict(part.split("=") for part in text.split(",") if re.fullmatch(r"(model|data)=[1-9]\d*", part))
    if len(axes) != len(text.split(",")):
        raise JaxTransferError(f"A mesh reads like model=2,data=4, not {text!r}.")
    return device_mesh(**{MODEL: 1, DATA: 1} | {axis: int(size) for axis, size in axes.items()})


def connect(text: str) -> None:
    """Makes this process one of several that share a mesh; to be called before anything asks for devices.

    Args:
        text: "auto" where JAX finds the others by itself (Cloud TPU, GKE, Slurm, Open MPI), or
            `HOST:PORT,PROCESS/PROCESSES` with the address of process 0, this one's number, and how many there are.

    Raises:
        JaxTransferError: It does not read like that, or the processes do not come together.
    """
    explicit = re.fullmatch(r"(.+:\d+),(\d+)/(\d+)", text)
    if explicit is None and text != "auto":
        raise JaxTransferError(f"Processes are given as auto or like 10.0.0.1:1234,0/4, not {text!r}.")
    try:
        if explicit is None:
            jax.distributed.initialize()
        else:
            address, process, processes = explicit.groups()
            jax.distributed.initialize(address, num_processes=int(processes), process_id=int(process))
    except (RuntimeError, ValueError) as error:
        raise JaxTransferError(f"The processes did not come together: {str(error).splitlines()[0]}") from error


def distribute(
    shape: tuple[int, ...], sharding: Sharding, part: Callable[[tuple[slice, ...]], np.ndarray]
) -> Shaped[Array, "..."]:
    """An array of which each device of this process gets the part that is its own, and nothing else.

    Args:
        shape: Of the whole.
        sharding: What lies where.
        part: Gives what lies at an index.
    """
    indices = sharding.addressable_devices_indices_map(shape)
    parts = [jax.device_put(part(index), device) for device, index in indices.items() if index is not None]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def memory_per_device() -> int:
    """Bytes that a device of this process has for all that is on it."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // jax.local_device_count()


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A step that ends for all processes at once, and in the same error if it fails in one; it may hold no collectives.

    Raises:
        JaxTransferError: The step failed in another process.
    """
    if jax.process_count() == 1:
        yield
        return
    problem = None
    try:
        yield
    except (JaxTransferError, OSError) as error:
        problem = error
    said = np.zeros(_LONGEST, np.uint8)
    text = f"Process {jax.process_index()}: {problem}".encode()[:_LONGEST] if problem else b""
    said[: len(text)] = np.frombuffer(text, np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(said))
    if problem is not None:
        raise problem
    for each in everyone:
        if each.any():
            raise JaxTransferError(bytes(each[each > 0]).decode(errors="ignore"))
