"""What it costs to draw examples."""

import time

import jax

from jaxtransfer import rooms


def speed(count: int, size: int) -> None:
    """Prints what an example costs, all labels included, once the program is compiled."""
    start = time.perf_counter()
    jax.block_until_ready(rooms.examples(jax.random.key(0), count, size))
    first = time.perf_counter() - start
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(rooms.examples(jax.random.key(1), count, size))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(
        f"{count} examples of {size}x{size}: {1e3 * wall / count:.1f} ms each, {1e3 * processor / count:.1f} ms of the"
    )
    print(f"processors; {first - wall:.0f} s to compile")
