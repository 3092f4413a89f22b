"""Sums over restarts: on the device, over several devices, in independent groups, in twice the precision."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxtransfer.errors import JaxTransferError

Progress = Callable[[int, int], None]
"""Called with restarts done and restarts to do."""

_FIRST_LOOK = 4  # restarts per group before `run_until` looks for the first time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """Sums of arrays over restarts, one for each device and group; `high + low` is the sum.

    The low part takes what rounding takes from the high one (Knuth's TwoSum), so that 1e5 terms lose nothing float32
    can show.
    """

    high: Float[Array, "devices groups ..."]
    low: Float[Array, "devices groups ..."]

    @classmethod
    def zeros(cls, mesh: Mesh | None, groups: int, shape: tuple[int, ...], dtype: jnp.dtype) -> Self:
        """Sums of nothing, on the devices of `mesh` or on one."""
        if mesh is None:
            return cls(*(jnp.zeros((1, groups, *shape), dtype) for _ in range(2)))
        over_devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        return cls(*(jnp.zeros((mesh.size, groups, *shape), dtype, device=over_devices) for _ in range(2)))

    def total(self) -> Float[np.ndarray, "groups ..."]:
        """The sums over all devices, also those of other processes, float64."""
        total = np.zeros(self.high.shape[1:])
        for part in (self.high, self.low):
            for shard in part.addressable_shards:
                total += np.asarray(shard.data, np.float64).sum(0)
        if jax.process_count() == 1:
            return total
        bits = multihost_utils.process_allgather(total.view(np.uint32))
        return np.asarray(bits).view(np.float64).sum(0)


def add_restarts(
    one: Callable[[Int[Array, ""]], Float[Array, "..."]],
    sums: Sums,
    first: Int[Array, ""],
    last: Int[Array, ""],
    *,
    per_block: int = 1,
    together: int = 1,
    mesh: Mesh | None = None,
) -> Sums:
    """Adds `one(restart)` for the restarts from `first` to before `last`; to be called under `jit`.

    Restarts come in blocks of `per_block`. Block b belongs to group b % groups, and is computed by device
    (b // groups) % devices, so that every group, and every device, has its share from the start.

    Args:
        one: What a restart contributes; draws all it needs from the restart's number.
        sums: To add to.
        first: A multiple of `per_block`.
        last: A multiple of `per_block`.
        per_block: Restarts per block.
        together: Blocks computed at once, by `vmap`; 1 is a plain loop.
        mesh: Devices to spread blocks over, all its axes taken as one; None: no sharding.
    """
    groups = sums.high.shape[1]

    def block(number: Int[Array, ""]) -> Array:
        total = one(number * per_block)
        return functools.reduce(jnp.add, (one(number * per_block + i) for i in range(1, per_block)), total)

    def blocks(start: Int[Array, ""], stop: Int[Array, ""], stride: int) -> Array:
        if together == 1:
            return block(start)
        numbers = start + stride * jnp.arange(together)
        values = jax.vmap(block)(jnp.minimum(numbers, stop - 1))
        inside = (numbers < stop).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(inside, values, 0).sum(0)

    def on_device(sums: Sums, first: Array, last: Array, device: Array | int, devices: int) -> Sums:
        def of_group(group: Array, sums: Sums) -> Sums:
            # The blocks of a group are group + groups * round; those of a device have round % devices == device.
            start, stop = (-((group - each // per_block) // groups) for each in (first, last))
            begin = start + (device - start) % devices

            def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                turn, high, low = state
                value = blocks(group + groups * turn, group + groups * stop, groups * devices)
                high, error = _two_sum(high, value)
                return turn + devices * together, high, low + error

            state = (begin, sums.high[group], sums.low[group])
            _, high, low = jax.lax.while_loop(lambda state: state[0] < stop, step, state)
            return Sums(sums.high.at[group].set(high), sums.low.at[group].set(low))

        return jax.lax.fori_loop(0, groups, of_group, sums)

    if mesh is None:
        added = on_device(jax.tree.map(lambda each: each[0], sums), first, last, 0, 1)
        return jax.tree.map(lambda each: each[None], added)

    axes = mesh.axis_names
    devices = mesh.size

    def shard(sums: Sums, first: Array, last: Array) -> Sums:
        mine = jax.tree.map(lambda each: each[0], sums)
        added = on_device(mine, first, last, jax.lax.axis_index(axes), devices)
        return jax.tree.map(lambda each: each[None], added)

    over = PartitionSpec(axes)
    # What `one` closes over is the same on all devices, and nothing is summed over them here: unchecked.
    return jax.shard_map(
        shard, mesh=mesh, in_specs=(over, PartitionSpec(), PartitionSpec()), out_specs=over, check_vma=False
    )(sums, first, last)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum a + b, and what rounding took from it."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


class Accumulation:
    """Sums over restarts in the making, which can be put aside and taken up again; the base of what is estimated."""

    def __init__(self, sums: Sums, settings: str, per_block: int = 1) -> None:
        """Begins with nothing done; `settings` says in words what another run must share to go on with a state."""
        self.done = 0
        self._sums = sums
        self._settings = settings
        self._per_block = per_block
        self._look = sums.high.shape[1] * per_block * _FIRST_LOOK

    def _advance(self, sums: Sums, first: Int[Array, ""], last: Int[Array, ""]) -> Sums:
        """Adds the restarts from `first` to before `last`."""
        raise NotImplementedError

    def run(self, restarts: int, progress: Progress | None = None) -> None:
        """Goes on until `restarts` are done; with `progress`, coming back to the host for every per cent."""
        restarts = check_counts(restarts, self._groups, self._per_block)
        per_round = self._groups * self._per_block
        chunk = -(-restarts // (1 if progress is None else 100) // per_round) * per_round
        while self.done < restarts:
            last = min(self.done + chunk, restarts)
            self._sums = self._advance(self._sums, jnp.int32(self.done), jnp.int32(last))
            self.done = last
            if progress is not None:
                jax.block_until_ready(self._sums)
                progress(self.done, restarts)

    def run_until(self, tolerance: float, cap: int, progress: Progress | None = None) -> None:
        """Goes on until `signal_to_noise` is `tolerance`, or `cap` restarts are done.

        It looks after numbers of restarts that follow from what it saw before; a state holds the next of them, so that
        what is taken up again ends where it would have ended.
        """
        while True:
            target = min(self._look, cap)
            self.run(target, progress)
            reached = self.signal_to_noise()
            if target >= cap or reached >= tolerance:
                return
            needed = self.done * tolerance / reached if reached > 0 else np.inf
            self._look = int(np.clip(1.1 * needed, 1.25 * target, 4 * target))

    def signal_to_noise(self) -> float:
        """What `run_until` waits for: a signal squared over the variance of its estimate."""
        raise NotImplementedError

    def means(self) -> Float[np.ndarray, "groups ..."]:
        """The mean of every group, float64.

        Raises:
            JaxTransferError: A gradient was not finite.
        """
        blocks = self.done // self._per_block
        counts = [len(range(group, blocks, self._groups)) * self._per_block for group in range(self._groups)]
        total = self._sums.total()
        if not np.isfinite(total).all():
            raise JaxTransferError("The gradients are not finite; look for huge values in the images or targets.")
        return total / np.reshape(counts, (-1, *[1] * (total.ndim - 1)))

    def state(self) -> dict[str, np.ndarray]:
        """All that was computed, as arrays."""
        # Copies: what goes on from here reuses the sums' memory.
        sums = {"high": np.array(self._sums.high), "low": np.array(self._sums.low)}
        counts = {"done": np.asarray(self.done), "look": np.asarray(self._look)}
        return {"settings": np.asarray(self._settings), **counts, **sums}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a `state`.

        Raises:
            JaxTransferError: It comes from other settings.
        """
        if str(state["settings"]) != self._settings or state["high"].shape != self._sums.high.shape:
            raise JaxTransferError("What was begun here comes from other settings and cannot be gone on with.")
        high, low = (jax.device_put(state[each], self._sums.high.sharding) for each in ("high", "low"))
        self._sums = Sums(high, low)
        self.done, self._look = int(state["done"]), int(state["look"])

    @property
    def _groups(self) -> int:
        return self._sums.high.shape[1]


def check_counts(restarts: int, groups: int, per_block: int) -> int:
    """The number of restarts, rounded up to whole blocks.

    Raises:
        JaxTransferError: Fewer than three groups, or fewer blocks than groups.
    """
    if groups < 3:
        raise JaxTransferError(f"Standard errors need 3 groups of restarts or more, not {groups}.")
    if per_block < 1:
        raise JaxTransferError(f"There must be one restart per batch or more, not {per_block}.")
    rounded = -(-restarts // per_block) * per_block
    if rounded < groups * per_block:
        raise JaxTransferError(
            f"{groups} groups need {groups * per_block} restarts or more, not {restarts}; ask for more restarts."
        )
    return rounded
