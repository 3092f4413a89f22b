"""Sums over restarts, in independent groups, on one or several devices, in twice the precision of the arrays."""

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

_BLOCKS_BEFORE_FIRST_CHECK = 4  # per group, before `run_until` computes the signal-to-noise for the first time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """Holds the sums of arrays over restarts, one for each device and group; `high + low` is the sum.

    The low part collects the rounding errors of the high one (Knuth's TwoSum), so that the sum of 1e5 terms is exact to
    the precision of float32.
    """

    high: Float[Array, "devices groups ..."]
    low: Float[Array, "devices groups ..."]

    @classmethod
    def zeros(cls, mesh: Mesh | None, groups: int, shape: tuple[int, ...], dtype: jnp.dtype) -> Self:
        """Returns sums that are zero, on the devices of `mesh` or on one."""
        if mesh is None:
            return cls(*(jnp.zeros((1, groups, *shape), dtype) for _ in range(2)))
        over_devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        return cls(*(jnp.zeros((mesh.size, groups, *shape), dtype, device=over_devices) for _ in range(2)))

    @property
    def mesh(self) -> Mesh | None:
        """The devices that hold the sums; None: one."""
        sharding = self.high.sharding
        return cast(Mesh, sharding.mesh) if isinstance(sharding, NamedSharding) else None

    def gather_to_host(self) -> tuple[Float[np.ndarray, "devices groups ..."], Float[np.ndarray, "devices groups ..."]]:
        """Returns the high and low parts of all devices; all processes that hold some call this together."""
        if self.high.is_fully_addressable:
            return np.asarray(self.high), np.asarray(self.low)
        # Group by group, since every device holds all that is gathered at the same time.
        groups = range(self.high.shape[1])
        high, low = (np.stack([gather_to_host(part[:, i]) for i in groups], axis=1) for part in (self.high, self.low))
        return high, low

    def total(self) -> Float[np.ndarray, "groups ..."]:
        """Returns the sums over all devices, float64; all processes that hold some call this together."""
        return _total(*self.gather_to_host())

    def of_first_device(self) -> Self:
        """Returns the sums without their axis of devices, those of the first device."""
        return jax.tree.map(lambda leaf: leaf[0], self)


def _total(*parts: Float[np.ndarray, "devices groups ..."]) -> Float[np.ndarray, "groups ..."]:
    total = np.zeros(parts[0].shape[1:])
    for part in parts:
        for of_device in part:
            total += of_device
    return total


def add_restarts(
    contribution: Callable[..., Float[Array, "..."]],
    sums: Sums,
    first: Int[Array, ""],
    last: Int[Array, ""],
    *shared: PyTree,
    per_block: int = 1,
    vmap_size: int = 1,
    mesh: Mesh | AbstractMesh | None = None,
) -> Sums:
    """Adds `contribution(restart, *shared)` of the restarts from `first` up to, without, `last`; for use under `jit`.

    Restarts come in blocks of `per_block`. Block b belongs to group b % groups, and is computed by device
    (b // groups) % devices, so that groups, and devices, have equal shares from the start.

    Args:
        contribution: Computes what a restart adds; all its random draws depend on the restart's number.
        sums: Sums to which the contributions are added.
        first: Number of the first restart; a multiple of `per_block`.
        last: Number after that of the last restart; a multiple of `per_block`.
        *shared: Further arguments of `contribution`; arrays that it closes over must not lie on the mesh.
        per_block: Restarts per block.
        vmap_size: Blocks computed at the same time by `vmap`; 1 is a plain loop.
        mesh: Devices among which the blocks are divided, all axes taken as one; an abstract mesh lets several meshes of
            one shape share a trace. None: no sharding.
    """

    def block(number: Int[Array, ""], shared: tuple[PyTree, ...]) -> Array:
        restarts = (number * per_block + i for i in range(per_block))
        return functools.reduce(jnp.add, (contribution(restart, *shared) for restart in restarts))

    def on_device(device: Array | int, sums: Sums, first: Array, last: Array, *shared: PyTree) -> Sums:
        share = _Share(device, 1 if mesh is None else mesh.size, per_block, vmap_size)
        added = share.add(functools.partial(block, shared=shared), sums.of_first_device(), first, last)
        return jax.tree.map(lambda leaf: leaf[None], added)

    if mesh is None:
        return on_device(0, sums, first, last, *shared)
    axes = mesh.axis_names
    sharded = jax.shard_map(
        lambda *arguments: on_device(jax.lax.axis_index(axes), *arguments),
        mesh=mesh,
        in_specs=(PartitionSpec(axes), *[PartitionSpec()] * (2 + len(shared))),
        out_specs=PartitionSpec(axes),
        check_vma=False,  # the shared arguments are the same on all devices, over which nothing is summed here
    )
    return sharded(sums, first, last, *shared)


@dataclasses.dataclass(frozen=True)
class _Share:
    """Adds the blocks that one of the devices computes."""

    device: Array | int
    devices: int
    per_block: int
    vmap_size: int

    def add(self, block: Callable[[Array], Array], sums: Sums, first: Array, last: Array) -> Sums:
        """Adds this device's blocks of restarts `first` to `last` to its sums [groups, ...]."""
        groups = len(sums.high)

        def add_to_group(group: Array, sums: Sums) -> Sums:
            # The blocks of a group are group + groups * round; those of a device have round % devices == device.
            start, stop = (-((group - restart // self.per_block) // groups) for restart in (first, last))
            begin = start + (self.device - start) % self.devices

            def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                turn, high, low = state
                value = self._sum(block, group + groups * turn, group + groups * stop, groups * self.devices)
                high, error = _two_sum(high, value)
                return turn + self.devices * self.vmap_size, high, low + error

            state = (begin, sums.high[group], sums.low[group])
            _, high, low = jax.lax.while_loop(lambda state: state[0] < stop, step, state)
            return Sums(sums.high.at[group].set(high), sums.low.at[group].set(low))

        return jax.lax.fori_loop(0, groups, add_to_group, sums)

    def _sum(self, block: Callable[[Array], Array], start: Array, stop: Array, stride: int) -> Array:
        """Sums the next `vmap_size` blocks of start, start + stride, ... that come before `stop`."""
        if self.vmap_size == 1:
            return block(start)
        numbers = start + stride * jnp.arange(self.vmap_size)
        values = jax.vmap(block)(jnp.minimum(numbers, stop - 1))
        is_inside = (numbers < stop).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(is_inside, values, 0).sum(0)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Returns the rounded sum a + b, and its rounding error."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


class Accumulation:
    """Sums restarts step by step, and can be saved and resumed; the base class of estimations."""

    def __init__(self, sums: Sums, settings: str, per_block: int = 1) -> None:
        """Starts with no restart done; a state is only restored where `settings`, a description, is the same."""
        self.done = 0
        self.mesh = sums.mesh
        self._sums = sums
        self._settings = settings
        self._per_block = per_block
        self._next_check = sums.high.shape[1] * per_block * _BLOCKS_BEFORE_FIRST_CHECK

    def _advance(self, sums: Sums, first: Int[Array, ""], last: Int[Array, ""]) -> Sums:
        """Adds the restarts from `first` up to, without, `last`."""
        raise NotImplementedError

    def run(self, restarts: int, progress: Progress | None = None) -> None:
        """Runs until `restarts` are done; with `progress`, returns to the host after every per cent to call it."""
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
        """Runs until `signal_to_noise` reaches `tolerance`, or `cap` restarts are done.

        The signal-to-noise is computed after numbers of restarts that follow from its earlier values. A state holds the
        next of these numbers, so that a resumed estimation ends after the same restarts as an uninterrupted one.
        """
        while True:
            target = min(self._next_check, cap)
            self.run(target, progress)
            # Other processors may differ in the last digit, but all processes must take the same decision.
            reached = float(allgather(np.asarray(self.signal_to_noise()), self.mesh)[0])
            if target >= cap or reached >= tolerance:
                return
            needed = self.done * tolerance / reached if reached > 0 else np.inf
            self._next_check = int(np.clip(1.1 * needed, 1.25 * target, 4 * target))

    def signal_to_noise(self) -> float:
        """Returns the squared signal over the variance of its estimate, which `run_until` awaits."""
        raise NotImplementedError

    def means(self) -> Float[np.ndarray, "groups ..."]:
        """Returns the mean of every group, float64.

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
        """Returns all that was computed, as arrays; all processes that share the restarts call this together."""
        high, low = self._sums.gather_to_host()
        sums = {"high": high.copy(), "low": low.copy()}  # later restarts reuse the memory of the sums
        counts = {"done": np.asarray(self.done), "look": np.asarray(self._next_check)}
        return {"settings": np.asarray(self._settings), **counts, **sums}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues from a `state`; the results have the same bits if the number of devices is the same.

        Raises:
            JaxTransferError: The state comes from other settings.
        """
        high, low = state["high"], state["low"]
        if str(state["settings"]) != self._settings or high.shape[1:] != self._sums.high.shape[1:]:
            raise JaxTransferError(
                "The saved state comes from other settings, so it cannot be resumed; start without it."
            )
        if high.shape != self._sums.high.shape:  # from another number of devices: the first one takes all
            total = _total(high, low)
            high, low = (np.zeros(self._sums.high.shape, high.dtype) for _ in range(2))
            high[0] = total
            low[0] = total - high[0]
        sharding = self._sums.high.sharding
        self._sums = Sums(
            *(jax.make_array_from_callback(part.shape, sharding, part.__getitem__) for part in (high, low))
        )
        self.done, self._next_check = int(state["done"]), int(state["look"])

    @property
    def _groups(self) -> int:
        return self._sums.high.shape[1]


def check_counts(restarts: int, groups: int, per_block: int) -> int:
    """Returns the number of restarts, rounded up to whole blocks.

    Raises:
        JaxTransferError: There are fewer than three groups, or fewer blocks than groups.
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
