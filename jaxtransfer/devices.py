"""Arranges devices in a mesh, distributes arrays over it, and keeps its processes in step.

A mesh has the axes `model` and `data`. Networks are spread over the rows (`model`) and images over the columns
(`data`); for principal gradients, data sets over the rows and restarts over the columns. Every row of the mesh holds
one copy of a network's weights, every column one copy of its images.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import threadpoolctl
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, PyTree, Shaped
from rich.filesize import decimal

from jaxtransfer.errors import JaxTransferError, in_words

MODEL, DATA = "model", "data"

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Bytes of an error message that processes exchange, and the attribute of an error that all processes know of.
_MESSAGE_BYTES, _SHARED = 2048, "_shared"


def device_mesh(model: int = 1, data: int | None = None) -> Mesh:
    """Makes a mesh of devices for `affinity_matrix` and `principal_gradient`.

    Args:
        model: Number of networks (or data sets) that are computed at the same time; rows of the mesh.
        data: Number of devices that share the images (or restarts) of a network; columns of the mesh. None: as many
            as there are devices for.

    Returns:
        The mesh [model, data], over the devices of all processes.

    Raises:
        JaxTransferError: JAX has fewer devices, or there are several processes and the mesh leaves some devices out.

    Examples:
        >>> dict(jt.device_mesh(model=1, data=1).shape)
        {'model': 1, 'data': 1}
    """
    devices = jax.devices()
    data = max(1, len(devices) // max(1, model)) if data is None else data
    wanted = model * data
    if min(model, data) < 1 or wanted > len(devices) or (jax.process_count() > 1 and wanted < len(devices)):
        raise JaxTransferError(
            f"A mesh of model={model},data={data} needs {wanted} devices, but JAX sees {len(devices)} "
            f"({devices[0].device_kind}); ask for fewer, or with several processes for all of them."
        )
    return jax.make_mesh((model, data), (MODEL, DATA), axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted])


def is_cpu(mesh: Mesh) -> bool:
    """Says whether a mesh is of CPUs, on which XLA's gradient of convolutions is many times slower inside a loop."""
    return mesh.devices.flat[0].platform == "cpu"


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
    """Returns options of XLA for programs that run on a mesh.

    On GPUs XLA's fusion of matrix products aborts the whole process on some programs: on an H100 with jaxlib 0.11.2 on
    passes of the encoders of Rooms, and on training them ("Check failed: subdim_size_accumulator == dim_size").
    """
    return {"xla_gpu_enable_triton_gemm": False} if mesh.devices.flat[0].platform == "gpu" else {}


def default_mesh() -> Mesh:
    """Returns the mesh for calls that name none: one device, or all devices if there are several processes."""
    return device_mesh(1, 1 if jax.process_count() == 1 else None)


def parse_mesh(text: str) -> Mesh:
    """Makes the mesh that a text such as `model=2,data=4` describes; an axis that is left out has size 1.

    Raises:
        JaxTransferError: The text has another form, or the mesh does not fit the devices.
    """
    axes = dict(part.split("=") for part in text.split(",") if re.fullmatch(r"(model|data)=[1-9]\d*", part))
    if len(axes) != len(text.split(",")):
        raise JaxTransferError(f"A mesh is written like model=2,data=4, not {text!r}.")
    return device_mesh(**{MODEL: 1, DATA: 1} | {axis: int(size) for axis, size in axes.items()})


def connect(text: str) -> None:
    """Connects this process with the others that share a mesh; call it before JAX is asked for devices.

    Args:
        text: "auto" where JAX finds the other processes by itself (Cloud TPU, GKE, Slurm, Open MPI), or
            `HOST:PORT,PROCESS/PROCESSES`: the address of process 0, the number of this process, and the number of
            processes.

    Raises:
        JaxTransferError: The text has another form, or the processes do not connect.
    """
    explicit = re.fullmatch(r"(.+:\d+),(\d+)/(\d+)", text)
    if explicit is None and text != "auto":
        raise JaxTransferError(f"Processes are written as auto or like 10.0.0.1:1234,0/4, not {text!r}.")
    try:
        if explicit is None:
            jax.distributed.initialize()
        else:
            address, process, processes = explicit.groups()
            jax.distributed.initialize(address, num_processes=int(processes), process_id=int(process))
    except (RuntimeError, ValueError) as error:
        raise JaxTransferError(f"The processes could not connect: {str(error).splitlines()[0]}") from error


def distribute(
    shape: tuple[int, ...], sharding: Sharding, shard: Callable[[tuple[slice, ...]], Shaped[Array | np.ndarray, "..."]]
) -> Shaped[Array, "..."]:
    """Makes a sharded array; every device of this process receives its own shard alone.

    Args:
        shape: Shape of the whole array.
        sharding: How the array is divided among the devices.
        shard: Returns the part of the array at an index.
    """
    indices = sharding.addressable_devices_indices_map(shape)
    # Not jax.make_array_from_callback, whose transfers jax.transfer_guard("disallow") takes for implicit ones.
    shards = [jax.device_put(shard(index), device) for device, index in indices.items() if index is not None]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def single_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Lets NumPy and SciPy compute with one thread.

    Threads of small products wait for each other: with 30 examples logistic regression took 6 s instead of 1 s on two
    cores of a busy machine, and linear predictivity 0.36 s instead of 0.25 s on 16, with 23 times the processor time.
    """
    return threadpoolctl.threadpool_limits(1, user_api="blas")


def host_memory() -> int:
    """Returns the bytes of memory of this machine, or of the container that this process may not exceed."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # ValueError: there is no limit
        return min(memory, int(_CONTAINER_LIMIT.read_text()))
    return memory


def check_memory(size: int, what: str, advice: str, memory: int | None = None) -> None:
    """Checks that something fits in memory before it is made.

    Args:
        size: The bytes that it takes.
        what: What it is, as the beginning of a sentence.
        advice: What else to do, as an imperative.
        memory: The bytes that there are; None: those of this machine.

    Raises:
        JaxTransferError: It does not fit.
    """
    memory = host_memory() if memory is None else memory
    if size > memory:
        raise JaxTransferError(
            f"{what} would take {decimal(size)} of memory, but there are {decimal(memory)}; {advice}."
        )


def memory_per_device() -> int:
    """Returns the bytes of memory of a device, the minimum over all processes; all processes must call it."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    own = statistics.get("bytes_limit", host_memory() // jax.local_device_count())
    return int(allgather(np.array(own)).min())


def is_first() -> bool:
    """Whether this is process 0, which prints and writes for all processes."""
    return jax.process_index() == 0


def is_writer(mesh: Mesh, row: int = 0) -> bool:
    """Whether this process writes for a row of a mesh: the process that holds the first device of the row."""
    return mesh.devices[row, 0].process_index == jax.process_index()


def own_rows(mesh: Mesh) -> list[int]:
    """Returns the rows of a mesh in which this process has devices."""
    process = jax.process_index()
    return [row for row, devices in enumerate(mesh.devices) if process in {device.process_index for device in devices}]


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copies the arrays of a tree to every device of a mesh.

    Args:
        tree: A tree of arrays, the same in all processes of the mesh.
        mesh: The mesh; None: JAX's default device alone.
    """
    if mesh is None:
        return jax.device_put(tree)
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: distribute(np.shape(leaf), replicated, lambda _: leaf), tree)


def gather_to_host(array: Array) -> Shaped[np.ndarray, "..."]:
    """Returns a whole array as NumPy; if other processes hold parts of it, they must call this too."""
    if not (array.is_fully_addressable or array.is_fully_replicated):
        assert isinstance(array.sharding, NamedSharding)
        replicated = NamedSharding(array.sharding.mesh, PartitionSpec())
        array = jax.jit(_identity, out_shardings=replicated)(array)
    return np.asarray(array)


def _identity(array: Array) -> Array:
    return array


def allgather(value: Shaped[np.ndarray, "..."], mesh: Mesh | None = None) -> Shaped[np.ndarray, "devices ..."]:
    """All-gathers a host array over the processes of a mesh.

    Args:
        value: The array of this process; it has the same shape and type in all processes.
        mesh: The mesh; None: all devices.

    Returns:
        The array of every device's process, in the order of the mesh; with a single process, one array [1, ...].
    """
    devices = np.array(jax.devices()) if mesh is None else mesh.devices.reshape(-1)
    if {device.process_index for device in devices} == {jax.process_index()}:
        return value[None]
    content = np.frombuffer(value.tobytes(), np.uint8)[None]
    by_device = NamedSharding(Mesh(devices, (DATA,)), PartitionSpec(DATA))
    gathered = gather_to_host(distribute((len(devices), content.size), by_device, lambda _: content))
    return gathered.copy().view(value.dtype).reshape(-1, *value.shape)


@contextlib.contextmanager
def synchronised(mesh: Mesh | None = None) -> Iterator[None]:
    """Ends a step in all processes of a mesh at once, with the same error in all if it failed in any.

    Steps may be nested in a step for all devices: whichever of them a process is in, it receives the error and leaves.

    Args:
        mesh: The mesh; None: all devices.

    Raises:
        JaxTransferError: The step failed in another process.
    """
    own_error = None
    try:
        yield
    except (JaxTransferError, OSError) as error:
        if hasattr(error, _SHARED):
            raise
        own_error = error
    text = f"Process {jax.process_index()}: {in_words(own_error)}".encode()[:_MESSAGE_BYTES] if own_error else b""
    messages = allgather(np.frombuffer(text.ljust(_MESSAGE_BYTES, b"\0"), np.uint8), mesh)
    errors = [JaxTransferError(bytes(m[m > 0]).decode(errors="ignore")) for m in messages if m.any()]
    if errors:
        error = own_error or errors[0]
        if mesh is None:
            setattr(error, _SHARED, True)
        raise error
