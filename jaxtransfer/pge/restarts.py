"""Sums over restarts: on the device, over several devices, in independent groups, in twice the precision."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from jaxtransfer.devices import allgather, gather_to_host, replicate
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

    @property
    def mesh(self) -> Mesh | None:
        """The devices; None: one."""
        sharding = self.high.sharding
        return cast(Mesh, sharding.mesh) if isinstance(sharding, NamedSharding) else None

    def gather_to_host(self) -> tuple[Float[np.ndarray, "devices groups ..."], Float[np.ndarray, "devices groups ..."]]:
        """High and low of all devices; all processes that hold some have to ask for it."""
        if self.high.is_fully_addressable:
            return np.asarray(self.high), np.asarray(self.low)
        # Group by group: what is gathered lies on every device for a moment.
        groups = range(self.high.shape[1])
        high, low = (np.stack([gather_to_host(each[:, i]) for i in groups], axis=1) for each in (self.high, self.low))
        return high, low

    def total(self) -> Float[np.ndarray, "groups ..."]:
        """The sums over all devices, float64; all processes that hold some have to ask for it."""
        return _total(*self.gather_to_host())


def _total(*parts: Float[np.ndarray, "devices groups ..."]) -> Float[np.ndarray, "groups ..."]:
    total = np.zeros(parts[0].shape[1:])
    for part in parts:
        for of_device in part:
            total += of_device
    return total


def add_restarts(
    one: Callable[..., Float[Array, "..."]],
    sums: Sums,
    first: Int[Array, ""],
    last: Int[Array, ""],
    *shared: PyTree,
    per_block: int = 1,
    together: int = 1,
    mesh: Mesh | AbstractMesh | None = None,
) -> Sums:
    """Adds `one(restart, *shared)` for the restarts from `first` to before `last`; to be called under `jit`.

    Restarts come in blocks of `per_block`. Block b belongs to group b % groups, and is computed by device
    (b // groups) % devices, so that every group, and every device, has its share from the start.

    Args:
        one: What a restart contributes; draws all it needs from the restart's number.
        sums: To add to.
        first: A multiple of `per_block`.
        last: A multiple of `per_block`.
        *shared: What `one` needs; what it closes over must not lie on the mesh.
        per_block: Restarts per block.
        together: Blocks computed at once, by `vmap`; 1 is a plain loop.
        mesh: Devices to spread blocks over, all its axes taken as one; abstract, where one trace is to serve several
            meshes of one shape. None: no sharding.
    """
    groups = sums.high.shape[1]

    def on_device(
        sums: Sums, first: Array, last: Array, device: Array | int, devices: int, shared: tuple[PyTree, ...]
    ) -> Sums:
        def block(number: Int[Array, ""]) -> Array:
            restarts = (number * per_block + i for i in range(per_block))
            return functools.reduce(jnp.add, (one(restart, *shared) for restart in restarts))

        def blocks(start: Int[Array, ""], stop: Int[Array, ""], stride: int) -> Array:
            if together == 1:
                return block(start)
            numbers = start + stride * jnp.arange(together)
            values = jax.vmap(block)(jnp.minimum(numbers, stop - 1))
            inside = (numbers < stop).reshape(-1, *[1] * (values.ndim - 1))
            return jnp.where(inside, values, 0).sum(0)

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
        added = on_device(jax.tree.map(lambda each: each[0], sums), first, last, 0, 1, shared)
        return jax.tree.map(lambda each: each[None], added)

    axes = mesh.axis_names
    devices = mesh.size

    def shard(sums: Sums, first: Array, last: Array, *shared: PyTree) -> Sums:
        mine = jax.tree.map(lambda each: each[0], sums)
        added = on_device(mine, first, last, jax.lax.axis_index(axes), devices, shared)
        return jax.tree.map(lambda each: each[None], added)

    over = PartitionSpec(axes)
    alike = [PartitionSpec()] * (2 + len(shared))
    # What is shared is the same on all devices, and nothing is summed over them here: unchecked.
    spread = jax.shard_map(shard, mesh=mesh, in_specs=(over, *alike), out_specs=over, check_vma=False)
    return spread(sums, first, last, *shared)


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
        self.mesh = sums.mesh
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
            counts = replicate((np.int32(self.done), np.int32(last)), self.mesh)
            self._sums = self._advance(self._sums, *counts)
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
            # Processors of other kinds may differ in the last digit, but all processes have to go on alike.
            reached = float(allgather(np.asarray(self.signal_to_noise()), self.mesh)[0])
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
        """All that was computed, as arrays; all processes that share the restarts have to ask for it."""
        high, low = self._sums.gather_to_host()
        sums = {"high": high.copy(), "low": low.copy()}  # what goes on from here reuses the sums' memory
        counts = {"done": np.asarray(self.done), "look": np.asarray(self._look)}
        return {"settings": np.asarray(self._settings), **counts, **sums}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a `state`, with the same bits if it comes from as many devices.

        Raises:
            JaxTransferError: It comes from other settings.
        """
        high, low = state["high"], state["low"]
        if str(state["settings"]) != self._settings or high.shape[1:] != self._sums.high.shape[1:]:
            raise JaxTransferError("What was begun here comes from other settings and cannot be gone on with.")
        if high.shape != self._sums.high.shape:  # of other devices: the first one takes it all
            total = _total(high, low)
            high, low = (np.zeros(self._sums.high.shape, high.dtype) for _ in range(2))
            high[0] = total
            low[0] = total - high[0]
        sharding = self._sums.high.sharding
        self._sums = Sums(
            *(jax.make_array_from_callback(each.shape, sharding, each.__getitem__) for each in (high, low))
        )
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
