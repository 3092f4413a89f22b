"""Measures transfer: readouts of every network's features on every set, with few and many labelled examples."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

import jaxtransfer as jt
from benchmarks.wild.settings import Measuring
from jaxtransfer.devices import default_mesh
from jaxtransfer.files import json_hash, read_arrays, write_arrays
from jaxtransfer.points.network_refs import network_refs
from jaxtransfer.scores.features import Features, compute_features, kinds_of_networks, points_of_images
from jaxtransfer.scores.target import Target
from jaxtransfer.training import frozen
from jaxtransfer.training.finetune import finetune_learning, finetune_model
from jaxtransfer.training.frozen import frozen_model, read_features
from jaxtransfer.training.measurement import Learning, Run, measure, train
from jaxtransfer.training.random_weights import shuffled
from jaxtransfer.training.readout import Readout
from jaxtransfer.training.splits import folds_of

Progress = Callable[[int, int, str], None]
FOLDS = 5
PIXELS, RANDOM, SCRATCH = "pixels", "random", "from-scratch"
_PLACES = 16  # height and width of the raw pixels
_CHANNELS = (3, 32, 64, 128, 128)  # of the network that is trained from scratch
_SCRATCH_SIZE = (64, 64)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Averages a network's representation over places, which is what readouts see and far smaller on disk."""

    apply: Any

    def __call__(self, params: Any, images: Float[Array, "n h w c"]) -> Float[Array, "n units"]:
        """Returns the mean over all axes but the first and the last."""
        outputs = self.apply(params, images)
        return outputs.mean(tuple(range(1, outputs.ndim - 1))) if outputs.ndim > 2 else outputs

    def to_json(self) -> Any:
        """Returns the network's function as data."""
        return self.apply.to_json()

    @classmethod
    def from_json(cls, config: Any) -> Self:
        """Is not needed: these networks are never stored."""
        raise NotImplementedError


def raw_pixels(params: Any, images: Float[Array, "n 16 16 3"]) -> Float[Array, "n 768"]:
    """Returns the pixels, less a constant, so that they have the control's place among networks."""
    return images.reshape(len(images), -1) - params["grey"]


def convolutions(params: Any, images: Float[Array, "n 64 64 3"]) -> Float[Array, "n 4 4 128"]:
    """Applies four convolutions of stride 2, each with a bias and ReLU."""
    for layer in params:
        images = jax.lax.conv_general_dilated(
            images, layer["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        images = jax.nn.relu(images + layer["bias"].reshape(1, 1, 1, -1))
    return images


def untrained(seed: int) -> jt.Network:
    """Returns the network that is trained from scratch, with the random weights of He et al. (ICCV 2015)."""
    rng, params = np.random.default_rng(seed), []
    for inputs, outputs in pairwise(_CHANNELS):
        kernel = rng.normal(scale=np.sqrt(2 / (9 * inputs)), size=(3, 3, inputs, outputs))
        params.append({"kernel": kernel.astype(np.float32), "bias": np.zeros(outputs, np.float32)})
    return jt.Network(SCRATCH, convolutions, params, jt.Preprocess(_SCRATCH_SIZE, 0.5, 0.25))


def all_sources(networks: Sequence[jt.Network], random: Sequence[str]) -> list[jt.Network]:
    """Returns the networks with their features averaged over places, and the controls: random weights, raw pixels."""
    pooled = [dataclasses.replace(network, apply=Pooled(network.apply)) for network in networks]
    twins = [
        dataclasses.replace(network, name=f"{RANDOM}-{network.name}", params=shuffled(network.params, 0))
        for network in pooled
        if network.name in random
    ]
    grey = {"grey": np.float32(0.5)}
    return [*pooled, *twins, jt.Network(PIXELS, raw_pixels, grey, jt.Preprocess((_PLACES, _PLACES)))]


def divide(task: jt.LabelledTask, scored: int) -> tuple[Int[np.ndarray, " scored"], Int[np.ndarray, " measured"]]:
    """Divides a task into examples that scores see, and those that transfer is measured with.

    Examples are in an order in which classes alternate, see `sets.sample`. Near copies stay on one side.

    Args:
        task: The task.
        scored: Number of examples for the scores, at most half of all.
    """
    units = [group or f"image {i}" for i, group in enumerate(task.groups)] if task.groups is not None else None
    units = units or [f"image {i}" for i in range(len(task.labels))]
    wanted, taken = min(scored, len(units) // 2), set[str]()
    members = {unit: units.count(unit) for unit in dict.fromkeys(units)}
    for unit, count in members.items():
        if sum(members[other] for other in taken) + count <= wanted:
            taken.add(unit)
    is_scored = np.array([unit in taken for unit in units])
    return np.flatnonzero(is_scored), np.flatnonzero(~is_scored)


def parts(
    labels: np.ndarray, pool: Int[np.ndarray, " pool"], repeats: Mapping[int, int], seed: int
) -> Iterator[tuple[int, Int[np.ndarray, " part"]]]:
    """Chooses balanced examples: for each number of examples, as many sets without a common example.

    A number takes what there is, if that is more than the number before it.

    Args:
        labels: The classes of all examples.
        pool: Indices of the examples to choose from.
        repeats: For each number of examples, the most sets.
        seed: Seed of the choice.

    Yields:
        The number of examples that the settings name, and the indices of a set.
    """
    rng = np.random.default_rng(seed)
    turn: list[tuple[int, int]] = []
    for name in np.unique(labels[pool]):
        turn += [*enumerate(rng.permutation(pool[labels[pool] == name]).tolist())]
    order = np.array([example for _, example in sorted(turn, key=lambda entry: entry[0])])
    before = 0
    for count, most in repeats.items():
        size = min(count, len(order))
        if size > before:
            for number in range(min(most, len(order) // size)):
                yield count, order[number * size : (number + 1) * size]
        before = size


class Cell(NamedTuple):
    """The transfer of a network to a task with a number of labelled examples.

    Attributes:
        task: The task.
        source: The network.
        labels: The number of labelled examples that the settings name.
        examples: The number there were.
        accuracy: Of each set of examples, fold and seed, shares of held-out examples.
    """

    task: str
    source: str
    labels: int
    examples: int
    accuracy: Float[np.ndarray, "sets folds seeds"]


def measure_task(
    task: jt.LabelledTask,
    of_networks: Sequence[Features],
    measuring: Measuring,
    folder: Path,
    seed: int,
    progress: Progress | None = None,
) -> Iterator[Cell]:
    """Measures the transfer of all networks to a task; what the folder holds is not measured again.

    A cell is what `jaxtransfer.transfer` measures with the same examples, but all numbers of examples and all tasks
    on the same images share one pass of a network, and only the chosen networks have a control.

    Args:
        task: The task.
        of_networks: The features of the networks for its images.
        measuring: The settings.
        folder: Where results are kept.
        seed: Seed of the choice of examples.
        progress: Called with the networks done, all networks, and a name.
    """
    _, pool = divide(task, max(measuring.score_counts))
    chosen = [*parts(task.labels, pool, measuring.repeats, seed)]
    for done, features in enumerate(of_networks):
        if progress is not None:
            progress(done, len(of_networks), f"readouts for {task.name}")
        depends_on = [task.sha256, [*features.keys.values()], _settings(measuring), seed]
        stored = _stored(folder / task.name / f"{features.network}.npz", json_hash(depends_on))
        if stored is None:
            results = [_readout(features, task, part, measuring) for _, part in chosen]
            stored = {
                str(count): np.stack([r for (own, _), r in zip(chosen, results, strict=True) if own == count])
                for count in dict(chosen)
            }
            file = folder / task.name / f"{features.network}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(file, {"fingerprint": json_hash(depends_on), **stored})
        for count, part in dict(chosen).items():
            yield Cell(task.name, features.network, count, len(part), stored[str(count)])


def _settings(measuring: Measuring) -> list[Any]:
    return [max(measuring.score_counts), [*measuring.repeats.items()], measuring.seeds, measuring.steps]


def _stored(file: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    if not file.exists():
        return None
    arrays = read_arrays(file)
    return arrays if str(arrays.pop("fingerprint")) == fingerprint else None


def _readout(
    features: Features, task: jt.LabelledTask, part: Int[np.ndarray, " part"], measuring: Measuring
) -> Float[np.ndarray, "folds seeds"]:
    """Trains readouts on some examples of a task, and judges them by cross-validation."""
    target, mesh = Target.of(task.take(part)), default_mesh()
    values = read_features(features.open(of_head=False), Readout.of(target))[part]
    learning = frozen.LEARNING.with_steps(measuring.steps)
    fold = folds_of(target.group, FOLDS, task.name)
    outcome = measure(frozen_model(values, target, learning, mesh), target, fold, learning, measuring.seeds, mesh)
    return outcome.metrics["accuracy"]


def features_of(
    networks: Sequence[jt.Network], task: jt.LabelledTask, work: Path, progress: Progress | None
) -> list[Features]:
    """Computes the features of networks for the images of a task, unless they are kept in `work`."""
    refs = network_refs(networks)
    kinds = kinds_of_networks(refs, task.images.shape[1:], None, with_head=False)
    points = points_of_images(work, task.images_sha256)
    features, _ = compute_features(refs, kinds, task.images, points, mesh=default_mesh(), progress=progress)
    return features


def measure_scratch(task: jt.LabelledTask, measuring: Measuring, folder: Path, seed: int) -> Cell:
    """Measures a small network that is trained from scratch on the most examples, unless the folder holds it."""
    _, pool = divide(task, max(measuring.score_counts))
    count = [*parts(task.labels, pool, measuring.repeats, seed)][-1][0]
    learning = scratch_learning(measuring, default_mesh())
    depends_on = [task.sha256, _settings(measuring), dict(measuring.scratch), seed]
    file = folder / task.name / f"{SCRATCH}.npz"
    return _measure_whole(untrained(seed), task, count, measuring, learning, file, depends_on, seed)


def measure_finetuned(
    network: jt.Network, task: jt.LabelledTask, measuring: Measuring, folder: Path, seed: int
) -> Cell:
    """Measures a network whose weights are all trained on the first examples and folds of the readouts.

    Args:
        network: The network.
        task: The task.
        measuring: The settings; those under `finetuned` are the number of examples and the steps.
        folder: Where results are kept; what it holds is not measured again.
        seed: Seed of the choice of examples.
    """
    learning = finetune_learning(default_mesh()).with_steps(measuring.finetuned["steps"])
    identity = network_refs([network])[0].identity
    depends_on = [task.sha256, identity, _settings(measuring), measuring.finetuned["steps"], seed]
    file = folder / task.name / f"{network.name}-finetuned.npz"
    labels = measuring.finetuned["labels"]
    return _measure_whole(network, task, labels, measuring, learning, file, depends_on, seed)


def _measure_whole(
    network: jt.Network,
    task: jt.LabelledTask,
    count: int,
    measuring: Measuring,
    learning: Learning,
    file: Path,
    depends_on: Sequence[Any],
    seed: int,
) -> Cell:
    """Trains all weights of a network on the first set of `count` labelled examples, unless the file holds it."""
    _, pool = divide(task, max(measuring.score_counts))
    part = next(part for own, part in parts(task.labels, pool, measuring.repeats, seed) if own == count)
    fingerprint = json_hash(depends_on)
    stored = _stored(file, fingerprint)
    if stored is None:
        own = task.take(part)
        target, mesh = Target.of(own), default_mesh()
        model = finetune_model(network, own.images, target, learning, mesh, from_scratch=False)
        outcome = measure(model, target, folds_of(target.group, FOLDS, task.name), learning, 1, mesh)
        stored = {"accuracy": outcome.metrics["accuracy"][None]}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, {"fingerprint": fingerprint, **stored})
    return Cell(task.name, network.name, count, len(part), stored["accuracy"])


def scratch_learning(measuring: Measuring, mesh: Mesh) -> Learning:
    """Returns how the network without training is trained."""
    learning = finetune_learning(mesh).with_steps(measuring.scratch["steps"])
    return dataclasses.replace(learning, rates=(measuring.scratch["rate"],))


def of_target(task: jt.LabelledTask, measuring: Measuring, folder: Path) -> jt.Network:
    """Trains the small network on the examples of a task that scores see; measures without labels compare with it."""
    scored, _ = divide(task, max(measuring.score_counts))
    network, own = untrained(0), task.take(scored)
    file = folder / f"{task.name}.npz"
    leaves, structure = jax.tree.flatten(network.params)
    fingerprint = json_hash([task.sha256, max(measuring.score_counts), dict(measuring.scratch)])
    stored = _stored(file, fingerprint)
    if stored is None:
        target, mesh = Target.of(own), default_mesh()
        learning = scratch_learning(measuring, mesh)
        model = finetune_model(network, own.images, target, learning, mesh, from_scratch=False)
        state = train(model, folds_of(target.group, FOLDS, task.name), learning, [Run(0, 0, 0)], mesh)
        assert state.best is not None
        stored = {str(i): np.asarray(leaf[0]) for i, leaf in enumerate(state.best.weights["network"])}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, {"fingerprint": fingerprint, **stored})
    params = jax.tree.unflatten(structure, [stored[str(i)] for i in range(len(leaves))])
    return dataclasses.replace(network, name=f"of-{task.name}", params=params)


class Transfer(NamedTuple):
    """A row of the table of measured transfers.

    Attributes:
        target: The task.
        source: The network or control.
        labels: Number of labelled examples that the settings name, at which rows are compared.
        examples: The number there were.
        score: Mean accuracy.
        stderr: Its standard error over sets and folds, without what all sources have in common.
        own_stderr: Its standard error, with that.
    """

    target: str
    source: str
    labels: int
    examples: int
    score: float
    stderr: float
    own_stderr: float


def tabulate(cells: Sequence[Cell]) -> list[Transfer]:
    """Averages cells. Folds share training examples, so standard errors are somewhat too small."""
    rows = []
    for key in dict.fromkeys((cell.task, cell.labels) for cell in cells):
        own = [cell for cell in cells if (cell.task, cell.labels) == key]
        by_fold = {cell.source: cell.accuracy.mean(2).ravel() for cell in own}
        common = np.mean([values for source, values in by_fold.items() if source != SCRATCH] or [0.0], axis=0)
        for cell in own:
            values = by_fold[cell.source]
            errors = [np.std(v, ddof=1) / np.sqrt(len(values)) for v in (values - common[: len(values)], values)]
            mean = float(values.mean())
            rows.append(Transfer(cell.task, cell.source, cell.labels, cell.examples, mean, *map(float, errors)))
    return rows
