"""Compares converted networks with the same networks written by hand in Flax: time, transpositions, conversion.

Run `python -m benchmarks.converted` from the root of the checkout, after `pip install -e ".[bench]" torchvision timm`.
"""

import argparse
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.converted_networks import networks
from jaxtransfer.attribution.maps import attribution_pass
from jaxtransfer.converters.torch_export import convert, from_exported
from jaxtransfer.defaults import EPSILON, METHODS

_GOAL = 1.1  # largest ratio of our time to that of the module written by hand


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each contender")
    parser.add_argument("--networks", nargs="+", help="some of the four networks; default: all")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)
    shape = (options.batch_size, options.size, options.size, 3)
    images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    seconds, moved, conversion, memory, rows = {}, {}, {}, {}, []
    for name, (network, twin) in networks(options.size).items():
        if options.networks and name not in options.networks:
            continue
        conversion[name] = measure_conversion(network, options.size)
        memory[name] = measure_memory(network, options.size)
        contenders = {"ours": converted(network, options.size), "by hand": by_hand(twin)}
        outputs = [np.asarray(jax.jit(apply)(params, images[:2])) for apply, params in contenders.values()]
        error = float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max())
        print(f"{name}: outputs differ by at most {error:.1e} of the largest")
        for task, compiled in (("forward", _forward), ("maps", _maps)):
            programs = {who: compiled(*contender, images) for who, contender in contenders.items()}
            moved[f"{name}, {task}"] = {who: transpositions(text) for who, (_, text) in programs.items()}
            runs = {who: (run, options.batch_size) for who, (run, _) in programs.items()}
            times = seconds[f"{name}, {task}"] = harness.take_turns(runs, options.rounds, time.process_time)
            counts = {who: values["count"] for who, values in moved[f"{name}, {task}"].items()}
            (row,) = harness.rows(f"{name}, {task}", times, "by hand")
            ratio = float(np.median(np.divide(times["ours"], times["by hand"])))
            found = f"{ratio:.2f} of the time; {counts['ours']} and {counts['by hand']} transpositions"
            rows.append(row._replace(ours=row.peer, peer=row.ours, found=found, goal=f"<= {_GOAL}", met=ratio <= _GOAL))
    harness.show("Converted networks and the same by hand, processor time", {"converted": rows})
    print(conversion, memory)
    if options.out:
        record = {
            "settings": {key: value for key, value in vars(options).items() if key != "out"},
            "processor_seconds_per_image": seconds,
            "transpositions": moved,
            "processor_seconds_of_conversion": conversion,
            "peak_memory_relative_to_weights": memory,
            "rows": [row._asdict() for row in rows],
        }
        file = options.out / f"converted_{harness.device()}.json"
        harness.store(record, file, precision="float32", shapes={"images": shape})


def export(network: torch.nn.Module, size: int) -> torch.export.ExportedProgram:
    """Exports a network for batches of any size."""
    batch = torch.export.Dim.DYNAMIC
    return torch.export.export(network, (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: batch},))


def converted(network: torch.nn.Module, size: int) -> tuple[Callable[..., Any], Any]:
    """Converts a network; returns its function and weights."""
    program, params = from_exported(export(network, size))
    return program, jax.device_put(params)


def by_hand(module: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """Returns the function and the weights of a Flax module."""
    graph, state = nnx.split(module)
    return lambda state, images: nnx.merge(graph, state)(images), state


def _forward(apply: Callable[..., Any], params: Any, images: jax.Array) -> tuple[Callable[[], Any], str]:
    compiled = jax.jit(apply).lower(params, images).compile()
    return lambda: jax.block_until_ready(compiled(params, images)), compiled.as_text() or ""


def _maps(apply: Callable[..., Any], params: Any, images: jax.Array) -> tuple[Callable[[], Any], str]:
    """The three maps as `jt.attribute` computes them after its first call."""
    static = METHODS, None, EPSILON, "float32", False
    compiled = attribution_pass.lower(apply, params, images, None, *static).compile()
    return lambda: jax.block_until_ready(compiled(params, images, None)), compiled.as_text() or ""


def transpositions(text: str) -> dict[str, float]:
    """Counts the transpositions in a compiled program, and the megabytes that they move."""
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* transpose\(", text)
    entries = sum(np.prod([int(size) for size in shape.split(",")]) for shape in shapes)
    return {"count": len(shapes), "megabytes": round(4e-6 * float(entries), 1)}


def measure_conversion(network: torch.nn.Module, size: int) -> dict[str, float]:
    """Measures the processor seconds of exporting a network, converting it, storing it in a zoo and loading it."""
    seconds: dict[str, float] = {}

    def timed(step: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        seconds[step] = round(time.process_time() - start, 2)
        return result

    exported = timed("export", lambda: export(network, size))
    program, params = timed("convert", lambda: from_exported(exported))
    with tempfile.TemporaryDirectory() as folder:
        zoo = jt.Zoo(folder)
        timed("store", lambda: zoo.add(jt.Network("network", program, params)))
        timed("load", lambda: zoo["network"])
    return seconds


def measure_memory(network: torch.nn.Module, size: int) -> dict[str, float]:
    """Measures the peak memory of converting a file and of loading its network from a zoo, each in a fresh process.

    Returns:
        The peak less the memory before the step, relative to the weights; before, a tiny network was converted.
    """
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten()).eval()
    with tempfile.TemporaryDirectory() as folder:
        for name, module in (("tiny", tiny), ("network", network)):
            torch.export.save(export(module, size), f"{folder}/{name}.pt2")
        context, peaks = multiprocessing.get_context("spawn"), {}
        for step in ("convert", "load"):
            with context.Pool(1) as pool:
                peaks[step] = round(pool.apply(_peak, (step, folder)), 2)
    return peaks


def _peak(step: str, folder: str) -> float:
    zoo = jt.Zoo(folder)
    if step == "convert":
        convert(f"{folder}/tiny.pt2", zoo, "tiny")
    zoo["tiny"]  # so that all modules are imported
    before = _memory("VmRSS")
    if step == "convert":
        convert(f"{folder}/network.pt2", zoo, "network")
    else:
        zoo["network"]
    peak = _memory("VmHWM")
    return (peak - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(zoo["network"].params))


def _memory(field: str) -> int:
    """Returns a field of what Linux says about the memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(rf"{field}:\s*(\d+)", status)[0])


if __name__ == "__main__":
    main()
