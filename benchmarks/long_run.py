"""Tests whether time per network or memory grows with the number of networks in a process.

A single call of `jaxtransfer.affinity_matrix` processes networks of three architectures, architecture by architecture;
the comparison at its end is not measured. Time is processor time, which other programs do not affect. Memory is
allocated memory: freed memory can stay resident, because glibc keeps it for its threads. TensorStore caches the latest
points up to a fixed size, so memory is judged only after that cache is full. Compilations are counted by
`jax.monitoring`. Run `python -m benchmarks.long_run --out DIRECTORY` from the root of the checkout.
"""

import argparse
import ctypes
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.networks import convolutional
from jaxtransfer.points.store import CACHE_BYTES

ARCHITECTURES = ((32, 64, 64, 64, 64), (48, 48, 96, 96), (64, 64, 64, 64))
COMPILED = "/jax/core/compile/backend_compile_duration"


class Slope(NamedTuple):
    """Growth per additional network, and its standard error."""

    value: float
    stderr: float

    @property
    def is_growth(self) -> bool:
        """Whether the slope is positive by more than two standard errors."""
        return self.value > 2 * self.stderr


def slope(groups: Sequence[Sequence[float] | np.ndarray]) -> Slope:
    """Fits lines with a common slope, and an offset for each group, to groups of consecutive values.

    The lines are fitted to the medians of up to six stretches of each group. Neighbouring values are correlated (memory
    grows in blocks), so errors that treat every value as independent would be too small.

    Args:
        groups: Consecutive values of each group; at least one group has four or more.
    """
    x, y = [], []
    for values in groups:
        stretches = np.array_split(np.arange(len(values)), min(6, len(values)))
        places = np.array([stretch.mean() for stretch in stretches])
        medians = np.array([np.median(np.take(values, stretch)) for stretch in stretches])
        x.append(places - places.mean())
        y.append(medians - medians.mean())
    x, y = np.concatenate(x), np.concatenate(y)
    value = x @ y / (x @ x)
    residuals = y - value * x
    variance = residuals @ residuals / (len(x) - len(groups) - 1)
    return Slope(float(value), float(np.sqrt(variance / (x @ x))))


class _MallInfo(ctypes.Structure):
    """The struct `mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )


def allocated() -> int:
    """Returns the allocated bytes; without glibc 2.33 or newer, the resident bytes."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return psutil.Process().memory_info().rss
    library.mallinfo2.restype = _MallInfo
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd


def run(
    networks: int, images: int, size: int, architectures: Sequence[Sequence[int]] = ARCHITECTURES
) -> dict[str, Any]:
    """Measures time and memory after every network, and counts the compilations of each program."""
    probe = np.random.default_rng(0).random((images, size, size, 3), np.float32)
    all_networks = [convolutional(f"n{i}", architectures[i % len(architectures)], i) for i in range(networks)]
    times, on_processors = [time.perf_counter()], [time.process_time()]
    memory: list[int] = []
    resident: list[int] = []
    compiled: list[tuple[int, str, float]] = []

    def progress(done: int, total: int, name: str) -> None:
        if len(times) <= networks and done % images == 0:  # later calls are for the rows of the matrix
            times.append(time.perf_counter())
            on_processors.append(time.process_time())
            memory.append(allocated())
            resident.append(psutil.Process().memory_info().rss)

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event == COMPILED and len(times) <= networks:
            compiled.append((len(times) - 1, str(about.get("fun_name")), duration_secs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with tempfile.TemporaryDirectory() as directory:
            jt.affinity_matrix(all_networks, probe, methods=jt.METHODS, directory=directory, progress=progress)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

    longest: defaultdict[str, float] = defaultdict(float)
    for _, program, seconds in compiled:
        longest[program] += seconds
    attribution = max(longest, key=lambda program: longest[program])
    points = 12 * images * size**2
    firsts = [sum(len(all_networks[j :: len(architectures)]) for j in range(i)) for i in range(len(architectures))]
    # Judged after 1.25 times the networks that fill the cache of TensorStore, if there are enough networks.
    settled = min(firsts[-1], -(-5 * CACHE_BYTES // (4 * points)))
    ends = [*firsts[1:], networks]
    counted = [(max(first + 2, settled), end) for first, end in zip(firsts, ends, strict=True)]
    counted = [(first, end) for first, end in counted if end - first >= 4]
    cost = np.diff(on_processors)
    shares = [cost[first:end] / np.median(cost[first:end]) for first, end in counted]
    return {
        "networks": networks,
        "architectures": len(architectures),
        "bytes_of_weights": int(np.mean([sum(leaf.nbytes for leaf in network.params) for network in all_networks])),
        "bytes_of_points": points,
        "seconds": np.diff(times).tolist(),
        "processor_seconds": cost.tolist(),
        "memory": memory,
        "resident": resident,
        "counted": counted,
        "cache_is_full": settled * points >= CACHE_BYTES,
        "relative_seconds_slope": slope(shares),
        "memory_slope": slope([memory[first:end] for first, end in counted]),
        "program": attribution,
        "compilations": sum(program == attribution for _, program, _ in compiled),
        "compilations_elsewhere": [program for at, program, _ in compiled if at not in firsts],
        "compiled": Counter(program for _, program, _ in compiled),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=500, help="number of networks; at least 18")
    parser.add_argument("--images", type=int, default=32, help="number of images")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)
    result = run(options.networks, options.images, options.size)
    seconds, memory = result["relative_seconds_slope"], result["memory_slope"]
    first = result["counted"][0][0]
    after = f"{options.networks} networks, from number {first + 1}"
    typical = np.median(result["processor_seconds"][first:])
    # With errors as large as a network's weights, even keeping all weights would go unnoticed.
    resolved = result["cache_is_full"] and 2 * memory.stderr < result["bytes_of_weights"]
    elsewhere = len(result["compilations_elsewhere"])
    rows = [
        harness.Row(
            f"{after}: processor time per network",
            f"{1e3 * typical:.0f} ms",
            "",
            f"{100 * seconds.value:+.3f} ± {100 * seconds.stderr:.3f} % per network",
            "0 within 2 standard errors",
            not seconds.is_growth,
        ),
        harness.Row(
            f"{after}: memory",
            f"{result['memory'][-1] >> 20} MiB in use, {result['resident'][-1] >> 20} MiB resident",
            f"per network: weights {result['bytes_of_weights'] >> 10}, points {result['bytes_of_points'] >> 10} KiB",
            f"{memory.value / 2**10:+.1f} ± {memory.stderr / 2**10:.1f} KiB per network",
            "0 within 2 standard errors",
            not memory.is_growth if resolved else None,
        ),
        harness.Row(
            f"compilations of {result['program']}",
            str(result["compilations"]),
            f"{result['architectures']} architectures",
            f"{elsewhere} programs compiled after the first network of an architecture",
            "one per architecture, and 0",
            result["compilations"] == result["architectures"] and not elsewhere,
        ),
    ]
    harness.show("One process", {"long run": rows})
    if options.out:
        record = result | {"rows": [row._asdict() for row in rows]}
        shapes = {"images": (options.images, options.size, options.size, 3)}
        harness.store(record, options.out / f"long_run_{harness.device()}.json", precision="float32", shapes=shapes)


if __name__ == "__main__":
    main()
