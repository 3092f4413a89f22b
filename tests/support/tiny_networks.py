"""Small networks of three architectures, and runs of them in processes of their own."""

import multiprocessing
import resource
import signal
import unittest.mock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxtransfer import JaxTransferError, Network, Preprocess, Zoo
from jaxtransfer.devices import connect, parse_mesh
from jaxtransfer.errors import in_words
from jaxtransfer.points.store import Points
from support.helpers import free_port, run_affinity

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["jaxtransfer.runs.affinity"])


def _conv(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def relu(params: Any, x: jax.Array) -> jax.Array:
    return _conv(jax.nn.relu(_conv(x, params["a"], 2)), params["b"])


def gelu(params: Any, x: jax.Array) -> jax.Array:
    return _conv(jax.nn.gelu(_conv(x, params["a"])), params["b"]).mean((1, 2))


def softmax(params: Any, x: jax.Array) -> jax.Array:
    """Its sum does not depend on the image."""
    return jax.nn.softmax(relu(params, x))


def network(seed: int) -> Network:
    """Of seeds 0, 1, 2, ... the architectures take turns: two functions, two preprocessings, two widths."""
    rng = np.random.default_rng(seed)
    width, apply, preprocess = [(6, relu, None), (6, gelu, Preprocess((8, 8), 0.5, 0.5)), (4, relu, None)][seed % 3]
    params = {"a": rng.normal(size=(3, 3, 3, width)), "b": rng.normal(size=(3, 3, width, 4))}
    return Network(f"n{seed:02}", apply, {k: v.astype(np.float32) for k, v in params.items()}, preprocess)


def fill(zoo: Zoo, seeds: Sequence[int]) -> Zoo:
    for seed in seeds:
        zoo.add(network(seed))
    return zoo


def run(
    place: str | None, devices: int, largest_file: int, to_fail: bool,
    zoo: Path, images: Path, out: Path, mesh: str, **options: Any
) -> None:  # fmt: skip
    """Runs `run_affinity` as one of several processes, or alone.

    Says in files beside `out` which points were finished here, and what went wrong.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    # All programs are kept for the processes that come next, but by none that fails, perhaps while it writes them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9 if to_fail else 0)
    if place is not None:
        connect(place)
    finish = Points.finish

    def finish_and_say(points: Points, name: str, keys: Any, faults: Any) -> None:
        finish(points, name, keys, faults)
        with (out.parent / f"finished{jax.process_index()}").open("a") as file:
            file.write(f"{name}\n")

    unittest.mock.patch.object(Points, "finish", finish_and_say).start()
    devices_of_mesh = parse_mesh(mesh)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        own = Zoo(zoo, modules=[__name__])
        run_affinity(own, images, out, command=["test"], mesh=devices_of_mesh, size=64, **options)
    except (JaxTransferError, OSError) as error:
        (out.parent / f"error{jax.process_index()}").write_text(in_words(error))
        raise SystemExit(2) from None
    finally:
        if place is not None:
            jax.distributed.shutdown()  # which processes of `multiprocessing` would leave out at their exit


def start(
    count: int,
    *arguments: Any,
    devices: int,
    largest_file: int = resource.RLIM_INFINITY,
    to_fail: bool = False,
    **options: Any,
) -> list[Any]:
    """Starts so many processes of one run; of an argument that is a list each gets its own."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for i in range(count):
        own = [argument[i] if isinstance(argument, list) else argument for argument in arguments]
        place = None if count == 1 else f"{address},{i}/{count}"
        given = place, devices, largest_file, to_fail, *own
        started.append(PROCESSES.Process(target=run, args=given, kwargs=options))
        started[-1].start()
    return started
