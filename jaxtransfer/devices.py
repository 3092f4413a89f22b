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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree, Shaped

from jaxtransfer.errors import JaxTransferError, in_words

MODEL, DATA = "model", "data"

# The longest complaint that processes tell each other, in bytes, and the mark of an error that all have heard of.
_LONGEST, _HEARD = 2048, "_heard"


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


def default_mesh() -> Mesh:
    """What is used where no mesh is asked for: one device, or all where there are several processes."""
    return device_mesh(1, 1 if jax.process_count() == 1 else None)


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
    shape: tuple[int, ...], sharding: Sharding, part: Callable[[tuple[slice, ...]], Shaped[Array | np.ndarray, "..."]]
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
    """Bytes that a device has for all that is on it, the least of any process; all processes have to ask for it."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = statistics.get("bytes_limit", host // jax.local_device_count())
    return int(allgather(np.array(own)).min())


def is_first() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return jax.process_index() == 0


def is_writer(mesh: Mesh, row: int = 0) -> bool:
    """Whether this process is the one that writes for a mesh, or for a row of it: it holds the first device."""
    return mesh.devices[row, 0].process_index == jax.process_index()


def own_rows(mesh: Mesh) -> list[int]:
    """The rows of a mesh in which this process has devices."""
    process = jax.process_index()
    return [row for row, some in enumerate(mesh.devices) if process in {device.process_index for device in some}]


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """A tree's arrays, which all processes of a mesh hold alike, on each of its devices; None: on one."""
    if mesh is None:
        return jax.device_put(tree)
    everyone = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: distribute(np.shape(leaf), everyone, lambda _: leaf), tree)


def gather_to_host(array: Array) -> Shaped[np.ndarray, "..."]:
    """All of an array, also where other processes hold parts of it; they have to ask for it too."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        assert isinstance(array.sharding, NamedSharding)
        everyone = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(_same, out_shardings=everyone)(array)
    return np.asarray(array)


def _same(array: Array) -> Array:
    return array


def allgather(value: Shaped[np.ndarray, "..."], mesh: Mesh | None = None) -> Shaped[np.ndarray, "devices ..."]:
    """What the processes of a mesh each have to say, in every one of them.

    Args:
        value: Of the same shape and type in all.
        mesh: None: all devices.

    Returns:
        For each device, in the order of the mesh, what its process says; once where there is only one process.
    """
    devices = np.array(jax.devices()) if mesh is None else mesh.devices.reshape(-1)
    if {device.process_index for device in devices} == {jax.process_index()}:
        return value[None]
    said = np.frombuffer(value.tobytes(), np.uint8)[None]
    each = NamedSharding(Mesh(devices, (DATA,)), PartitionSpec(DATA))
    everyone = gather_to_host(distribute((len(devices), said.size), each, lambda _: said))
    return everyone.copy().view(value.dtype).reshape(-1, *value.shape)


@contextlib.contextmanager
def synchronised(mesh: Mesh | None = None) -> Iterator[None]:
    """A step that ends for all processes of a mesh at once, and in the same error if it fails in one.

    Within a step for all devices there may be others: whichever they are in, all processes hear of an error and leave.

    Args:
        mesh: None: all devices.

    Raises:
        JaxTransferError: The step failed in another process.
    """
    problem = None
    try:
        yield
    except (JaxTransferError, OSError) as error:
        if hasattr(error, _HEARD):
            raise
        problem = error
    text = f"Process {jax.process_index()}: {in_words(problem)}".encode()[:_LONGEST] if problem else b""
    everyone = allgather(np.frombuffer(text.ljust(_LONGEST, b"\0"), np.uint8), mesh)
    heard = [JaxTransferError(bytes(each[each > 0]).decode(errors="ignore")) for each in everyone if each.any()]
    if heard:
        error = problem or heard[0]
        if mesh is None:
            setattr(error, _HEARD, True)
        raise error
