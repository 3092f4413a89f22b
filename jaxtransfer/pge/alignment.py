"""Gradient alignment: the cosine of tasks' gradients at the same fresh weights, averaged over weights."""

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
    """Estimates how well the gradients of tasks agree at the same fresh weights.

    K(S, T) = E <g_S(theta), g_T(theta)> over fresh weights theta, with gradients from independent batches (for S = T
    too), and K(S, T) / sqrt(K(S, S) K(T, T)) is the affinity. Unlike the gap between expected gradients it keeps what
    differs from one initialisation to the next, which no symmetry averages away.

    Args:
        init: Draws the weights of a backbone: `init(key) -> params`.
        losses: A loss for all tasks, or a dictionary from the name of a task to its loss.
        batches: Dictionary from the name of a task to its batches, as `principal_gradient` takes them. Samplers are
            best: pairs of arrays use batches 2r and 2r + 1 in restart r.
        key: Random key for weights, batches and heads.
        restarts: Number of restarts.
        heads: Number of pairs of mirrored heads, for losses with a random head; None: one head.
        groups: Number of groups of restarts, over which standard errors are jackknifed; >= 3.
        mesh: Devices that share the restarts; None: one device.
        progress: Called with restarts done and restarts to do.

    Returns:
        An `Affinity` with the method "alignment": 1 on the diagonal, jackknifed standard errors, restarts as counts.
        Noise can make values slightly larger than 1 or smaller than -1.

    Warns:
        UserWarning: A loss draws its head at random, so that the labels have no influence.

    Raises:
        JaxTransferError: An argument has a wrong type, there are fewer than two tasks or fewer restarts than groups, a
            task has no loss, or the gradients of a task's batches do not correlate with each other.

    Two tasks with the same images, and targets that differ in their sign:

    Examples:
        >>> def init(key):
        ...     return jax.random.normal(key, (12, 1))
        >>> def loss(params, batch, key):
        ...     images, targets = batch
        ...     return jnp.square(images.reshape(len(images), -1) @ params - targets).mean()
        >>> images = np.random.default_rng(0).normal(size=(8, 6, 2, 2, 3)).astype(np.float32)  # 8 batches of 6 images
        >>> sums = images.sum((2, 3, 4))[..., None]
        >>> tasks = {"sum": (images, sums), "negated": (images, -sums)}
        >>> alignment = jt.gradient_alignment(init, loss, tasks, jax.random.key(0), restarts=64)
        >>> alignment.names
        ('sum', 'negated')
        >>> bool(alignment["alignment"][0, 1] < 1)
        True
    """
    estimation = AlignmentEstimation(init, losses, batches, key, heads=heads, groups=groups, mesh=mesh)
    if blind := estimation.label_blind:
        warnings.warn(
            f"The head of {', '.join(blind)} is drawn at random for every gradient, so this alignment does not depend "
            "on the labels.",
            stacklevel=2,
        )
    estimation.run(restarts, progress)
    return estimation.result()


class AlignmentEstimation(Accumulation):
    """Estimates a gradient alignment step by step."""

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
        task_losses = tuple(with_heads(by_name[name], heads) for name in self.names)
        self._static = _Static(init, task_losses, mesh and mesh.abstract_mesh)
        if few := [name for name, arrays in batches.items() if isinstance(arrays, tuple) and len(arrays[0]) < 2]:
            raise JaxTransferError(f"An alignment needs two batches or more of each task; {', '.join(few)} has one.")
        self._batches, self._key = replicate((tuple(as_sampler(batches[name]) for name in self.names), key), mesh)
        dtype = jax.tree.leaves(jax.eval_shape(init, key))[0].dtype
        sums = Sums.zeros(mesh, groups, (len(task_losses),) * 2, dtype)
        super().__init__(sums, f"{self.names} {[describe(loss) for loss in task_losses]} heads={heads}")

    def _advance(self, sums: Sums, first: Array, last: Array) -> Sums:
        return _advance(self._static, self._batches, self._key, sums, first, last)

    @property
    def label_blind(self) -> tuple[str, ...]:
        """The tasks whose expected gradient is known not to depend on the labels."""
        losses = zip(self.names, self._static.losses, strict=True)
        return tuple(name for name, loss in losses if getattr(loss, "label_blind", False))

    def own(self) -> dict[str, Estimate]:
        """Returns K(T, T) of every task with its standard error; an alignment needs it to be clearly positive."""
        products = np.diagonal(self.means(), axis1=1, axis2=2)
        return {name: _mean(of_groups) for name, of_groups in zip(self.names, products.T, strict=True)}

    def squared_distance(self, first: str, second: str) -> Estimate:
        """Returns K(S, S) + K(T, T) - 2 K(S, T), the unbiased squared distance of gradients at the same weights."""
        products = self.means()
        i, j = self.names.index(first), self.names.index(second)
        return _mean(products[:, i, i] + products[:, j, j] - products[:, i, j] - products[:, j, i])

    def signal_to_noise(self) -> float:
        """Returns the smallest squared K(T, T) over its variance, among the tasks."""
        return min(max(value, 0) ** 2 / max(error**2, _TINY) for value, error in self.own().values())

    def result(self, names: Sequence[str] | None = None) -> Affinity:
        """Returns the affinities from the restarts done so far, of all tasks or of those named."""
        names = self.names if names is None else tuple(names)
        chosen = [self.names.index(name) for name in names]
        products = self.means()[np.ix_(range(self._groups), chosen, chosen)]
        own = np.diagonal(products.mean(0))
        if unresolved := [name for name, value in zip(names, own, strict=True) if not value > 0]:
            raise JaxTransferError(
                f"After {self.done} restarts the gradients of different batches of {', '.join(unresolved)} do not "
                "correlate; ask for more restarts."
            )
        count = len(products)
        without = np.stack([_normalised((products.sum(0) - group) / (count - 1)) for group in products])
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
    """Holds the static arguments of the compiled program."""

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
        for task, task_batches in enumerate(batches):
            within = jax.random.fold_in(for_loss, task)
            drawn = [
                (
                    *draw(task_batches, jax.random.fold_in(for_batch, task), 2 * restart + i),
                    jax.random.fold_in(within, 2 * restart + i),
                )
                for i in range(2)
            ]
            pairs.append(jax.tree.map(lambda *two: jnp.stack(two), *drawn))
        # Tasks with the same loss and shapes share one piece of the program.
        by_program = defaultdict(list)
        for task, pair in enumerate(pairs):
            shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pair))
            by_program[static.losses[task], shapes].append(task)
        for (loss, _), members in by_program.items():

            def gradient(batch: tuple[Array, Array, Array], loss: Loss = loss) -> Float[Array, " dimension"]:
                leaves = jax.tree.leaves(jax.grad(loss)(params, batch[:2], batch[2]))
                return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

            stacked = jax.tree.map(lambda *some: jnp.concatenate(some), *(pairs[task] for task in members))
            pairs_of_gradients = jax.lax.map(gradient, stacked).reshape(len(members), 2, -1)
            for row, task in zip(pairs_of_gradients, members, strict=True):
                rows[task] = row
        return jnp.stack(rows)

    def per_restart(restart: Array, *batches_and_keys: Any) -> Float[Array, "tasks tasks"]:
        rows = gradients(restart, *batches_and_keys).reshape(2 * tasks, -1)
        products = (rows @ rows.T).reshape(tasks, 2, tasks, 2)
        crossed = products.sum((1, 3))
        # The product of a batch's gradient with itself is biased by its noise.
        itself = jnp.einsum("titi->t", products)
        diagonal = jnp.eye(tasks, dtype=bool)
        return jnp.where(diagonal, (crossed - jnp.diag(itself)) / 2, crossed / 4)

    with jax.default_matmul_precision("highest"):
        return add_restarts(per_restart, sums, first, last, batches, keys, mesh=static.mesh)
