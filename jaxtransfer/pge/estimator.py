"""The principal gradient: the expected gradient of a loss at freshly initialised weights."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Key, PyTree

from jaxtransfer.arguments import check_estimation
from jaxtransfer.devices import replicate
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays, write_arrays
from jaxtransfer.pge.batches import Batches, as_sampler, draw, shuffled
from jaxtransfer.pge.losses import Loss, describe, with_heads
from jaxtransfer.pge.remarks import label_dependence, unresolved
from jaxtransfer.pge.restarts import Accumulation, Progress, Sums, add_restarts
from jaxtransfer.pge.statistics import Estimate, inner_products, jackknife, unbiased
from jaxtransfer.pge.symmetry import Orbits, check_symmetry, orbits

Init = Callable[[Key[Array, ""]], PyTree]


class Recipe(NamedTuple):
    """Names everything that two principal gradients must share to be compared."""

    backbone: str
    initialiser: str
    loss: str
    symmetry: str
    batching: str


@dataclasses.dataclass(frozen=True, eq=False)
class PrincipalGradient:
    """Holds the estimated expectation of a task's gradient at fresh weights: means of independent groups of restarts.

    Squared norms and inner products are formed between different groups, whose noise is independent, so they are
    unbiased at any number of restarts fixed beforehand; standard errors are jackknifed over the groups. Signal and
    noise are squared norms: that of the expectation, and the variance of the mean over `restarts`.

    Attributes:
        groups: Mean gradient of every group, in the coordinates that `orbits` describes; float32.
        restarts: Number of restarts.
        recipe: Backbone, initialiser, loss, symmetry and batching; gradients are comparable where it is the same.
        orbits: Maps coordinates to weights.
        label_blind: Whether the expectation is known not to depend on the labels (a random linear head).
        control: The gradient with permuted labels, from the same restarts; None: it was not computed.
    """

    groups: Float[np.ndarray, "groups dimension"]
    restarts: int
    recipe: Recipe
    orbits: Orbits
    label_blind: bool = False
    control: "PrincipalGradient | None" = None

    @property
    def mean(self) -> Float[np.ndarray, " dimension"]:
        """Mean over groups, in coordinates; float64."""
        return self.groups.astype(np.float64).mean(0)

    @property
    def gradient(self) -> PyTree:
        """Mean over groups, in the structure of the weights."""
        return self.orbits.lift(jnp.asarray(self.groups.mean(0)))

    @functools.cached_property
    def _products(self) -> Float[np.ndarray, "groups groups"]:
        return inner_products(self.groups, self.groups)

    @property
    def squared_norm(self) -> Estimate:
        """Unbiased squared norm of the expected gradient, with its standard error; noise can make it negative."""
        return jackknife(lambda product: unbiased(product), self._products)

    @property
    def noise_per_restart(self) -> float:
        """Variance of the gradient of a single restart, summed over coordinates.

        With several restarts per batch: that of the mean over restarts, times their number.
        """
        count = len(self.groups)
        spread = np.trace(self._products) / count - unbiased(self._products)
        return float(spread * self.restarts / count)

    @property
    def signal_to_noise(self) -> float:
        """Squared norm of the expectation divided by the variance of the mean: a ratio of powers."""
        noise = self.noise_per_restart / self.restarts
        signal = self.squared_norm.value
        if noise > 0:
            return signal / noise
        return np.inf if signal > 0 else 0.0

    @property
    def split_half(self) -> float:
        """Cosine between the means of two halves of the groups, averaged over all halvings (a ratio of means)."""
        signal = unbiased(self._products)
        own = np.trace(self._products) / len(self.groups)
        half = 2 / len(self.groups)
        norm = half * own + (1 - half) * signal
        return float(signal / norm) if norm > 0 else 0.0

    def restarts_needed(self, signal_to_noise: float = 10) -> float:
        """Estimates the total number of restarts for a signal-to-noise; infinite where no signal is visible yet."""
        signal = self.squared_norm.value
        return signal_to_noise * self.noise_per_restart / signal if signal > 0 else np.inf

    @property
    def label_signal(self) -> Estimate | None:
        """Unbiased squared distance between the expected gradients with true and permuted labels; None: no control."""
        if self.control is None:
            return None
        a, b, c = self._products, self.control._products, inner_products(self.groups, self.control.groups)
        return jackknife(lambda a, b, c: unbiased(a) + unbiased(b) - 2 * unbiased(c), a, b, c)

    @property
    def reads_labels(self) -> bool | None:
        """Whether the squared distance to the control exceeds twice its standard error; None: no control."""
        signal = self.label_signal
        if signal is None:
            return None
        return not self.label_blind and signal.value > 2 * signal.stderr

    def summary(self, signal_to_noise: float = 10) -> str:
        """Returns the numbers, and the remarks on them, as sentences."""
        signal = self.squared_norm
        numbers = (
            f"{self.restarts} restarts: squared norm {signal.value:.4g} ± {signal.stderr:.2g} "
            f"(unbiased), noise per restart {self.noise_per_restart:.4g}, signal-to-noise {self.signal_to_noise:.3g}, "
            f"split-half cosine {self.split_half:.3f}."
        )
        return " ".join([numbers, *self.remarks(signal_to_noise)])

    def remarks(self, signal_to_noise: float = 10) -> list[str]:
        """Returns sentences on whether a signal-to-noise is reached, and whether the gradient depends on the labels."""
        remarks = []
        if self.signal_to_noise < signal_to_noise:
            needed = self.restarts_needed(signal_to_noise)
            remarks.append(unresolved(signal_to_noise, needed - self.restarts))
        if self.label_blind:
            remarks.append(
                "The head is drawn at random for every restart, so the expected gradient does not depend on the "
                "labels; it describes only the images and how they are sampled."
            )
        elif (distance := self.label_signal) is not None:
            remarks.append(label_dependence(distance, depends=self.reads_labels))
        return remarks

    def save(self, file: str | Path, note: str = "") -> None:
        """Writes an `.npz` file, whole or not at all; `load` needs the weights' shapes to read it.

        Args:
            file: The file.
            note: Text that is stored in the file, for example the data and settings the gradient comes from.
        """
        arrays = {"groups": self.groups, "restarts": self.restarts, "recipe": list(self.recipe), "note": note}
        if self.control is not None:
            arrays["control"] = self.control.groups
        write_arrays(Path(file), arrays | {"label_blind": self.label_blind})

    @classmethod
    def load(cls, file: str | Path, init: Init, symmetry: PyTree | None = None) -> Self:
        """Reads a file that `save` wrote.

        Args:
            file: The file.
            init: The initialiser that the gradient was computed with.
            symmetry: The specification of exchangeable units that it was computed with; None: none.

        Raises:
            JaxTransferError: The file is damaged, or comes from another backbone or symmetry.
        """
        try:
            arrays = read_arrays(Path(file))
            recipe = Recipe(*map(str, arrays["recipe"]))
            common = (int(arrays["restarts"]), recipe, _orbits(init, symmetry), bool(arrays["label_blind"]))
            control = cls(arrays["control"], *common) if "control" in arrays else None
            gradient = cls(arrays["groups"], *common, control)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JaxTransferError(f"{file} holds no principal gradient that can be read: {error}") from error
        if gradient.groups.shape[1] != gradient.orbits.dimension or recipe.backbone != _shapes(init):
            raise JaxTransferError(f"{file} comes from another backbone or symmetry; load it with its own.")
        return gradient


def principal_gradient(
    init: Init,
    loss: Loss,
    batches: Batches,
    key: Key[Array, ""],
    *,
    restarts: int | Literal["auto"] = "auto",
    symmetry: PyTree | None = None,
    heads: int | None = None,
    control: bool = True,
    restarts_per_batch: int = 1,
    groups: int = 16,
    tolerance: float = 10,
    cap: int = 100_000,
    together: int = 1,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> PrincipalGradient:
    """Estimates the expected gradient of a loss at freshly initialised weights (PGE, arXiv 2211.16299).

    A restart draws fresh weights and a batch (and a head, if the loss has a random one) and adds one gradient, all in
    one compiled program whose memory does not grow with the number of restarts. Without `symmetry` and `heads` this is
    the published estimator. Both reduce its noise and leave its expectation unchanged (`docs/principal-gradients.md`).

    Use the same key for all tasks that are to be compared: they then share their restarts, which reduces the noise of
    the gap between tasks with similar gradients.

    Args:
        init: Draws the weights of a backbone: `init(key) -> params`. Pass the same function for all tasks.
        loss: `loss(params, batch, key) -> scalar`, such as `Prototypical` or `RandomHead`.
        batches: A sampler such as `Episodes` or `Minibatches`, or images and labels [batches, n, ...], used in order.
        key: Random key for weights, batches and heads.
        restarts: Number of restarts, rounded up to whole batches; or "auto": until the signal-to-noise reaches
            `tolerance`.
        symmetry: For every weight a tuple with the name of a permutation group, or None, for each axis: gradients are
            averaged over the orbits. The specification is checked against the loss first.
        heads: Number of pairs of mirrored heads that share a pass through the backbone, for a loss with a random head;
            None: one head.
        control: Whether the gradient with permuted labels is computed too, at the same restarts; doubles the time.
        restarts_per_batch: Number of fresh networks for every batch.
        groups: Number of independent groups of restarts, over which standard errors are jackknifed; >= 3.
        tolerance: Signal-to-noise, a ratio of powers, at which "auto" stops.
        cap: Number of restarts at which "auto" gives up.
        together: Number of restarts computed at the same time by `vmap`; 1, a loop, is faster on CPUs.
        mesh: Devices that share the restarts; None: one device.
        progress: Called with restarts done, and restarts to do as far as is known.

    Returns:
        The mean gradients of the groups, with norms, noise and control.

    Raises:
        JaxTransferError: An argument has a wrong type, the symmetry is wrong, heads are given for a loss that has no
            random head, or there are too few restarts for the groups.

    A linear backbone with five features, and images of three classes:

    Examples:
        >>> def init(key):
        ...     return jax.random.normal(key, (12, 5))
        >>> def features(params, images):
        ...     return jax.nn.relu(images.reshape(len(images), -1) @ params)
        >>> labels = np.repeat(["cat", "dog", "fox"], 8)
        >>> patterns = np.random.default_rng(0).normal(size=(3, 2, 2, 3)).astype(np.float32)
        >>> episodes = jt.Episodes.of(patterns.repeat(8, axis=0), labels, ways=3, shots=2, queries=2)
        >>> loss = jt.Prototypical(features, ways=3, shots=2)
        >>> gradient = jt.principal_gradient(init, loss, episodes, jax.random.key(0), restarts=64)
        >>> gradient.groups.shape
        (16, 60)
        >>> gradient.gradient.shape
        (12, 5)
        >>> gradient.squared_norm.stderr > 0
        True
    """
    if restarts != "auto" and (isinstance(restarts, bool) or not isinstance(restarts, int | np.integer)):
        raise JaxTransferError(f'restarts must be a number or "auto", not {restarts!r}.')
    estimation = Estimation(
        init, loss, batches, key, symmetry=symmetry, heads=heads, control=control,
        restarts_per_batch=restarts_per_batch, groups=groups, vmap_size=together, mesh=mesh,
    )  # fmt: skip
    if restarts == "auto":
        estimation.run_until(tolerance, cap, progress)
    else:
        estimation.run(restarts, progress)
    return estimation.result()


class Estimation(Accumulation):
    """Estimates a principal gradient step by step."""

    def __init__(
        self,
        init: Init,
        loss: Loss,
        batches: Batches,
        key: Key[Array, ""],
        *,
        symmetry: PyTree | None = None,
        heads: int | None = None,
        control: bool = True,
        restarts_per_batch: int = 1,
        groups: int = 16,
        vmap_size: int = 1,
        mesh: Mesh | None = None,
        check: bool = True,
    ) -> None:
        """Takes `principal_gradient`'s arguments and, with `check`, checks the symmetry."""
        check_estimation(init, [loss], [batches], key)
        loss = with_heads(loss, heads)
        self._batches, self._key = replicate((as_sampler(batches), key), mesh)
        orbits = _orbits(init, symmetry)
        if symmetry is not None and check:
            check_symmetry(init, loss, as_sampler(batches), symmetry, jax.random.fold_in(key, 4))
        self._static = _Static(init, loss, orbits, control, restarts_per_batch, vmap_size, mesh and mesh.abstract_mesh)
        self._recipe = Recipe(
            _shapes(init), _initialiser(init), describe(loss), _symmetry(orbits), f"{restarts_per_batch} per batch"
        )
        dtype = jax.eval_shape(orbits.project, jax.eval_shape(init, key)).dtype
        sums = Sums.zeros(mesh, groups, (1 + control, orbits.dimension), dtype)
        super().__init__(sums, f"{self._recipe} heads={heads}", restarts_per_batch)

    def _advance(self, sums: Sums, first: Array, last: Array) -> Sums:
        return _advance(self._static, self._batches, self._key, sums, first, last)

    def signal_to_noise(self) -> float:
        """Returns the squared norm of the expectation divided by the variance of the mean."""
        return self.result().signal_to_noise

    def result(self) -> PrincipalGradient:
        """Returns the principal gradient of the restarts done so far."""
        means = self.means().astype(self._sums.high.dtype)
        blind = bool(getattr(self._static.loss, "label_blind", False))
        common = (self.done, self._recipe, self._static.orbits, blind)
        control = PrincipalGradient(means[:, 1], *common) if self._static.control else None
        return PrincipalGradient(means[:, 0], *common, control)


@dataclasses.dataclass(frozen=True)
class _Static:
    """Holds the static arguments of the compiled program."""

    init: Init
    loss: Loss
    orbits: Orbits
    control: bool
    restarts_per_batch: int
    vmap_size: int
    mesh: AbstractMesh | None


@functools.partial(jax.jit, static_argnums=0, donate_argnames="sums")
def _advance(static: _Static, batches: Batches, key: Key[Array, ""], sums: Sums, first: Array, last: Array) -> Sums:
    keys = tuple(jax.random.fold_in(key, i) for i in range(4))

    def per_restart(restart: Array, batches: Batches, keys: tuple[Array, ...]) -> Float[Array, "1+control dimension"]:
        for_init, for_batch, for_loss, for_control = keys
        params = static.init(jax.random.fold_in(for_init, restart))
        index = restart // static.restarts_per_batch
        images, labels = draw(batches, for_batch, index)
        within = jax.random.fold_in(for_loss, restart)

        def coordinates(images: Array) -> Array:
            gradient = jax.grad(static.loss)(params, (images, labels), within)
            return static.orbits.project(gradient)

        if not static.control:
            return coordinates(images)[None]
        permuted, _ = shuffled((images, labels), jax.random.fold_in(for_control, index))
        return jax.lax.map(coordinates, jnp.stack([images, permuted]))

    with jax.default_matmul_precision("highest"):
        return add_restarts(
            per_restart, sums, first, last, batches, keys,
            per_block=static.restarts_per_batch, vmap_size=static.vmap_size, mesh=static.mesh,
        )  # fmt: skip


def _orbits(init: Init, symmetry: PyTree | None) -> Orbits:
    return orbits(jax.eval_shape(init, jax.random.key(0)), symmetry)


def _shapes(init: Init) -> str:
    """Returns the names and shapes of the weights."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0)))
    return ", ".join(f"{jax.tree_util.keystr(path)} {'x'.join(map(str, leaf.shape))}" for path, leaf in leaves)


def _initialiser(init: Init) -> str:
    """Returns the root mean square of every weight as `init` draws it, to two digits."""
    leaves = jax.tree.leaves(jax.jit(init)(jax.random.key(0)))
    return " ".join(f"{float(np.sqrt(np.square(np.asarray(leaf, np.float64)).mean())):.2g}" for leaf in leaves)


def _symmetry(orbits: Orbits) -> str:
    return "none" if orbits.groups is None else repr(orbits.groups)


def same_recipe(a: PrincipalGradient, b: PrincipalGradient) -> None:
    """Checks that two principal gradients are comparable.

    Raises:
        JaxTransferError: Backbones, initialisers, losses, symmetries, restarts per batch or numbers of groups differ.
    """
    differing = [name for name in Recipe._fields if getattr(a.recipe, name) != getattr(b.recipe, name)]
    if differing:
        values = "; ".join(
            f"{name}: {_short(getattr(a.recipe, name))} and {_short(getattr(b.recipe, name))}" for name in differing
        )
        raise JaxTransferError(f"Principal gradients must be computed alike to be compared; these differ in {values}.")
    if len(a.groups) != len(b.groups):
        raise JaxTransferError(
            f"Principal gradients with {len(a.groups)} and {len(b.groups)} groups cannot be compared; use one number."
        )


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= 60 else f"{text[:57]}..."
