"""Many networks in one process: does the time of a network, or the memory, grow with the networks before it?

Networks of three architectures in one call of `jaxtransfer.affinity_matrix`, which takes one architecture after the
other; what it compares at its end is not part of it. Time is that of the processors, so that other programs do not
count. Memory is what is allocated; what is free but still resident grows for a while with the arenas of glibc.
TensorStore keeps the latest points that were written, up to a size: memory counts from where that is full. Compilations
are those `jax.monitoring` tells of. Run with `python -m benchmarks.long_run --out DIRECTORY` from the root of the
checkout.
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
    """What one more network adds."""

    value: float
    stderr: float

    @property
    def is_growth(self) -> bool:
        """Whether it is more than noise makes of nothing."""
        return self.value > 2 * self.stderr


def slope(groups: Sequence[Sequence[float] | np.ndarray]) -> Slope:
    """The slope that lines through groups of values have in common, each at a height of its own.

    Lines go through the medians of up to six stretches of each group. Neighbours are alike (memory comes in pieces), so
    that errors that take every value for independent would be too small.

    Args:
        groups: Values, one after the other; at least four in one of them.
    """
    x, y = [], []
    for values in groups:
        stretches = np.array_split(np.arange(len(values)), min(6, len(values)))
        places = np.array([each.mean() for each in stretches])
        medians = np.array([np.median(np.take(values, each)) for each in stretches])
        x.append(places - places.mean())
        y.append(medians - medians.mean())
    x, y = np.concatenate(x), np.concatenate(y)
    value = x @ y / (x @ x)
    residuals = y - value * x
    variance = residuals @ residuals / (len(x) - len(groups) - 1)
    return Slope(float(value), float(np.sqrt(variance / (x @ x))))


class _MallInfo(ctypes.Structure):
    """The `mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    )


def allocated() -> int:
    """Bytes that are allocated; where there is no glibc of 2.33 or newer, those that are resident."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return psutil.Process().memory_info().rss
    library.mallinfo2.restype = _MallInfo
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd


def run(
    networks: int, images: int, size: int, architectures: Sequence[Sequence[int]] = ARCHITECTURES
) -> dict[str, Any]:
    """Seconds and bytes after every network, and how often each program was compiled until the last of them."""
    probe = np.random.default_rng(0).random((images, size, size, 3), np.float32)
    made = [convolutional(f"n{i}", architectures[i % len(architectures)], i) for i in range(networks)]
    times, on_processors = [time.perf_counter()], [time.process_time()]
    memory: list[int] = []
    resident: list[int] = []
    compiled: list[tuple[int, str, float]] = []

    def progress(done: int, total: int, name: str) -> None:
        if len(times) <= networks and done % images == 0:  # afterwards come the rows of the matrix
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
            jt.affinity_matrix(made, probe, directory=directory, progress=progress)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)

    longest: defaultdict[str, float] = defaultdict(float)
    for _, program, seconds in compiled:
        longest[program] += seconds
    attribution = max(longest, key=lambda program: longest[program])
    points = 12 * images * size**2
    firsts = [sum(len(made[j :: len(architectures)]) for j in range(i)) for i in range(len(architectures))]
    # A quarter more than fill what TensorStore keeps, if there are so many.
    settled = min(firsts[-1], -(-5 * CACHE_BYTES // (4 * points)))
    ends = [*firsts[1:], networks]
    counted = [(max(first + 2, settled), end) for first, end in zip(firsts, ends, strict=True)]
    counted = [(first, end) for first, end in counted if end - first >= 4]
    cost = np.diff(on_processors)
    shares = [cost[first:end] / np.median(cost[first:end]) for first, end in counted]
    return {
        "networks": networks,
        "architectures": len(architectures),
        "bytes_of_weights": int(np.mean([sum(leaf.nbytes for leaf in each.params) for each in made])),
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
    parser.add_argument("--networks", type=int, default=500, help="at least 18")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)
    found = run(options.networks, options.images, options.size)
    seconds, memory = found["relative_seconds_slope"], found["memory_slope"]
    first = found["counted"][0][0]
    after = f"{options.networks} networks, from the {first + 1}th on"
    each = np.median(found["processor_seconds"][first:])
    # Errors as large as the weights say nothing.
    resolved = found["cache_is_full"] and 2 * memory.stderr < found["bytes_of_weights"]
    elsewhere = len(found["compilations_elsewhere"])
    rows = [
        harness.Row(
            f"{after}: processors' time of a network",
            f"{1e3 * each:.0f} ms",
            "",
            f"{100 * seconds.value:+.3f} ± {100 * seconds.stderr:.3f} % per network",
            "0 within 2 errors",
            not seconds.is_growth,
        ),
        harness.Row(
            f"{after}: memory",
            f"{found['memory'][-1] >> 20} MiB in use, {found['resident'][-1] >> 20} MiB resident",
            f"a network: weights {found['bytes_of_weights'] >> 10}, points {found['bytes_of_points'] >> 10} KiB",
            f"{memory.value / 2**10:+.1f} ± {memory.stderr / 2**10:.1f} KiB per network",
            "0 within 2 errors",
            not memory.is_growth if resolved else None,
        ),
        harness.Row(
            f"compilations of {found['program']}",
            str(found["compilations"]),
            f"{found['architectures']} architectures",
            f"{elsewhere} programs compiled later than for the first of an architecture",
            "as many, and 0",
            found["compilations"] == found["architectures"] and not elsewhere,
        ),
    ]
    harness.show("One process", {"long run": rows})
    if options.out:
        record = found | {"rows": [row._asdict() for row in rows]}
        shapes = {"images": (options.images, options.size, options.size, 3)}
        harness.store(record, options.out / f"long_run_{harness.device()}.json", precision="float32", shapes=shapes)


if __name__ == "__main__":
    main()
