"""Gradient alignment: what tasks' gradients have in common at the same fresh weights, averaged over weights."""

import dataclasses
import functools
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Key

from jaxtransfer.arguments import check_estimation
from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.comparison.measure import ALIGNMENT
from jaxtransfer.comparison.statistics import jackknife_stderr, stderr_of_mean
from jaxtransfer.devices import replicate
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.batches import Batches, as_sampler, draw
from jaxtransfer.pge.estimator import Init
from jaxtransfer.pge.losses import Loss, describe, with_heads
from jaxtransfer.pge.restarts import Accumulation, Progress, Sums, add_restarts
from jaxtransfer.pge.statistics import Estimate

_TINY = float(np.finfo(np.float64).tiny)


def gradient_alignment(
    init: Init,
    losses: Loss | Mapping[str, Loss],
    batches: Mapping[str, Batches],
    key: Key[Array, ""],
    *,
    restarts: int = 256,
    heads: int | None = None,
    groups: int = 32,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Affinity:
    """How tasks pull the same fresh weights, restart by restart.

    K(S, T) = E <g_S(theta), g_T(theta)> over fresh weights theta, the gradients from independent batches (for S = T
    too), and K(S, T) / sqrt(K(S, S) K(T, T)) is the affinity. Unlike the gap between expectations it keeps what differs
    from one initialisation to the next, which no symmetry averages away.

    Args:
        init: Draws the weights of a backbone.
        losses: One loss for all tasks, or one for each by name.
        batches: For each task by name, batches as `principal_gradient` takes them. Samplers are best: pairs of arrays
            use batches 2r and 2r + 1 in restart r.
        key: For everything that is drawn.
        restarts: How many.
        heads: For losses with a random head: pairs of mirrored heads; None: one head.
        groups: Groups of restarts that standard errors are taken over.
        mesh: Devices to share the restarts; None: one.
        progress: Called with restarts done and restarts to do.

    Returns:
        An `Affinity` with the method "alignment": 1 on the diagonal, jackknifed standard errors, restarts as counts.
        Noise may carry values a little beyond -1 and 1.

    Warns:
        UserWarning: Losses draw a head at random, so that labels have no influence.

    Raises:
        JaxTransferError: Arguments of a wrong kind, fewer than two tasks, tasks without a loss, fewer restarts than
            groups, or a task whose gradients have nothing in common from one batch to the next.
    """
    estimation = AlignmentEstimation(init, losses, batches, key, heads=heads, groups=groups, mesh=mesh)
    if blind := estimation.label_blind:
        warnings.warn(
            f"The head of {', '.join(blind)} is drawn without looking at the task, so this alignment does not depend "
            "on the labels.",
            stacklevel=2,
        )
    estimation.run(restarts, progress)
    return estimation.result()


class AlignmentEstimation(Accumulation):
    """A gradient alignment in the making."""

    def __init__(
        self,
        init: Init,
        losses: Loss | Mapping[str, Loss],
        batches: Mapping[str, Batches],
        key: Key[Array, ""],
        *,
        heads: int | None = None,
        groups: int = 32,
        mesh: Mesh | None = None,
    ) -> None:
        """Takes `gradient_alignment`'s arguments."""
        if not isinstance(batches, Mapping):
            raise JaxTransferError(
                f"batches must be a dictionary with the batches of each task, not a {type(batches).__name__}."
            )
        self.names = tuple(batches)
        if len(self.names) < 2:
            raise JaxTransferError("An alignment needs two tasks or more.")
        by_name = dict(losses) if isinstance(losses, Mapping) else dict.fromkeys(self.names, losses)
        if missing := [name for name in self.names if name not in by_name]:
            raise JaxTransferError(f"There is no loss for {', '.join(missing)}.")
        check_estimation(init, by_name.values(), batches.values(), key)
        of_tasks = tuple(with_heads(by_name[name], heads) for name in self.names)
        self._static = _Static(init, of_tasks, mesh and mesh.abstract_mesh)
        if few := [name for name, each in batches.items() if isinstance(each, tuple) and len(each[0]) < 2]:
            raise JaxTransferError(f"An alignment needs two batches or more of each task; {', '.join(few)} has one.")
        self._batches, self._key = replicate((tuple(as_sampler(batches[name]) for name in self.names), key), mesh)
        dtype = jax.tree.leaves(jax.eval_shape(init, key))[0].dtype
        sums = Sums.zeros(mesh, groups, (len(of_tasks),) * 2, dtype)
        super().__init__(sums, f"{self.names} {[describe(loss) for loss in of_tasks]} heads={heads}")

    def _advance(self, sums: Sums, first: Array, last: Array) -> Sums:
        return _advance(self._static, self._batches, self._key, sums, first, last)

    @property
    def label_blind(self) -> tuple[str, ...]:
        """The tasks whose loss is known not to read labels."""
        losses = zip(self.names, self._static.losses, strict=True)
        return tuple(name for name, loss in losses if getattr(loss, "label_blind", False))

    def own(self) -> dict[str, Estimate]:
        """K(T, T) of every task with its standard error: where that is not well above zero, so is no alignment."""
        products = np.diagonal(self.means(), axis1=1, axis2=2)
        return {name: _mean(of_task) for name, of_task in zip(self.names, products.T, strict=True)}

    def squared_distance(self, one: str, other: str) -> Estimate:
        """K(S, S) + K(T, T) - 2 K(S, T): how far two tasks' gradients at the same weights are apart, unbiased."""
        products = self.means()
        i, j = self.names.index(one), self.names.index(other)
        return _mean(products[:, i, i] + products[:, j, j] - products[:, i, j] - products[:, j, i])

    def signal_to_noise(self) -> float:
        """The smallest over tasks of K(T, T), squared, over its variance."""
        return min(max(value, 0) ** 2 / max(error**2, _TINY) for value, error in self.own().values())

    def result(self, names: Sequence[str] | None = None) -> Affinity:
        """The affinities from the restarts done, of all tasks or of those named."""
        names = self.names if names is None else tuple(names)
        chosen = [self.names.index(name) for name in names]
        products = self.means()[np.ix_(range(self._groups), chosen, chosen)]
        own = np.diagonal(products.mean(0))
        if unresolved := [name for name, value in zip(names, own, strict=True) if not value > 0]:
            raise JaxTransferError(
                f"After {self.done} restarts the gradients of {', '.join(unresolved)} have nothing in common from one "
                "batch to the next; ask for more restarts."
            )
        count = len(products)
        without = np.stack([_normalised((products.sum(0) - each) / (count - 1)) for each in products])
        stderr = jackknife_stderr(without)
        np.fill_diagonal(stderr, 0)
        counts = np.full(stderr.shape, self.done)
        values = _normalised(products.mean(0)).astype(np.float32)
        result = MethodResult(values, stderr.astype(np.float32), counts, measure=ALIGNMENT)
        return Affinity(names, "cosine", {"alignment": result})


def _mean(of_groups: Float[np.ndarray, " groups"]) -> Estimate:
    return Estimate(float(of_groups.mean()), float(stderr_of_mean(of_groups)))


def _normalised(products: Float[np.ndarray, "tasks tasks"]) -> Float[np.ndarray, "tasks tasks"]:
    own = np.diagonal(products)
    scale = np.sqrt(np.where(own > 0, own, np.nan))
    values = products / np.outer(scale, scale)
    np.fill_diagonal(values, 1)
    return values


@dataclasses.dataclass(frozen=True)
class _Static:
    """What the compiled program depends on."""

    init: Init
    losses: tuple[Loss, ...]
    mesh: AbstractMesh | None


@functools.partial(jax.jit, static_argnums=0, donate_argnames="sums")
def _advance(
    static: _Static, batches: tuple[Batches, ...], key: Key[Array, ""], sums: Sums, first: Array, last: Array
) -> Sums:
    keys = tuple(jax.random.fold_in(key, i) for i in range(3))
    tasks = len(batches)

    def gradients(
        restart: Array, batches: tuple[Batches, ...], keys: tuple[Array, ...]
    ) -> Float[Array, "tasks 2 dimension"]:
        for_init, for_batch, for_loss = keys
        params = static.init(jax.random.fold_in(for_init, restart))
        pairs, rows = [], [jnp.zeros(())] * tasks
        for task, each in enumerate(batches):
            within = jax.random.fold_in(for_loss, task)
            drawn = [
                (
                    *draw(each, jax.random.fold_in(for_batch, task), 2 * restart + i),
                    jax.random.fold_in(within, 2 * restart + i),
                )
                for i in range(2)
            ]
            pairs.append(jax.tree.map(lambda *two: jnp.stack(two), *drawn))
        # Tasks alike in loss and shape share one piece of program.
        alike = defaultdict(list)
        for task, pair in enumerate(pairs):
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pair))
            alike[static.losses[task], shapes].append(task)
        for (loss, _), members in alike.items():

            def gradient(batch: tuple[Array, Array, Array], loss: Loss = loss) -> Float[Array, " dimension"]:
                found = jax.grad(loss)(params, batch[:2], batch[2])
                return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(found)])

            stacked = jax.tree.map(lambda *some: jnp.concatenate(some), *(pairs[task] for task in members))
            found = jax.lax.map(gradient, stacked).reshape(len(members), 2, -1)
            for row, task in zip(found, members, strict=True):
                rows[task] = row
        return jnp.stack(rows)

    def one(restart: Array, *drawn_from: Any) -> Float[Array, "tasks tasks"]:
        found = gradients(restart, *drawn_from).reshape(2 * tasks, -1)
        products = (found @ found.T).reshape(tasks, 2, tasks, 2)
        crossed = products.sum((1, 3))
        # A batch's product with itself has its noise in it.
        itself = jnp.einsum("titi->t", products)
        diagonal = jnp.eye(tasks, dtype=bool)
        return jnp.where(diagonal, (crossed - jnp.diag(itself)) / 2, crossed / 4)

    with jax.default_matmul_precision("highest"):
        return add_restarts(one, sums, first, last, batches, keys, mesh=static.mesh)
