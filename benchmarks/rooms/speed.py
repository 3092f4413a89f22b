"""Measures the time of rendering examples."""

import time

import jax

from jaxtransfer import rooms


def speed(count: int, size: int) -> None:
    """Prints the time per example with all labels, without compilation."""
    key, start = jax.random.key(0), time.perf_counter()
    program = rooms.examples.lower(key, count=count, size=size).compile()
    compiling = time.perf_counter() - start
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(program(key))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"{count} examples of {size}x{size}: {wall:.0f} s, after {compiling:.0f} s of compilation.")
    print(f"Per example: {1e3 * wall / count:.1f} ms, and {1e3 * processor / count:.1f} ms of processor time.")
