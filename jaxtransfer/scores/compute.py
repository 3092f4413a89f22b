"""Computes the scores of networks for labelled tasks from the networks' features, and the features that are missing."""

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Shaped

from jaxtransfer.arguments import check_batch_size, check_unique
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.comparison.measure import Measure
from jaxtransfer.comparison.statistics import stderr_of_known_mean
from jaxtransfer.data.datasets import LabelledTask, TargetType
from jaxtransfer.devices import allgather, default_mesh, single_blas_thread, synchronised
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import json_hash
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.compute import ProgressFn
from jaxtransfer.points.network_refs import network_refs
from jaxtransfer.points.passes import LOGITS, PROBABILITIES
from jaxtransfer.points.store import DamagedPointError, Points, given_or_temporary, recomputing_damaged
from jaxtransfer.scores.candidates import best_layer
from jaxtransfer.scores.examples import check_features
from jaxtransfer.scores.features import Features, Layer, compute_features, kinds_of_networks, points_of_images
from jaxtransfer.scores.measures import MEASURES, check_target_type, run_measures
from jaxtransfer.scores.options import ALL, ScoreOptions
from jaxtransfer.scores.score import Score
from jaxtransfer.scores.target import GROUPS, Target

_VERSION = 1  # of the measures; scores of another version are computed again


def score(
    networks: Zoo | Iterable[Network],
    tasks: LabelledTask | Iterable[LabelledTask],
    *,
    measures: str | Sequence[str] = ScoreOptions.measures,
    layers: str | Sequence[str] | None = None,
    precision: Precision = "float32",
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    progress: ProgressFn | None = None,
) -> Affinity:
    """Scores networks as starting points for labelled tasks.

    Every network runs once over the images of a task, without its labels; tasks on the same images share that pass. Its
    features (what it returns) and the labels then give the scores. Larger is better in all measures.

    The default, "ridge", predicts the labels with a linear map: its value is the share of the labels' variance that is
    predicted on held-out examples, 1 at best. On Rooms it predicts transfer best (see docs/score.md). `MEASURES` lists
    all measures with their sources.

    Args:
        networks: A zoo, or networks with different names. A network may return several arrays in a dict, its layers;
            one called "logits" or "probabilities" is the output of its head for the classes it was trained on, which
            `nce` and `leep` need.
        tasks: One labelled task or several, see `read_tasks` and `LabelledTask.of`. Grey images are repeated over three
            channels.
        measures: One or several of `MEASURES`; "all" stands for all of them.
        layers: Names of the outputs whose features are used, joined by dots where outputs are nested. None: all but
            those of the head. With several, every task is scored from the layer that suits it best; the choice for a
            group of examples is made without that group, so that it does not raise the score.
        precision: Precision of matrix products in the networks' passes.
        batch_size: Images in a batch on each device; None: the largest batch that is useful and fits in memory.
        mesh: Devices with the axes "model" and "data" (`jaxtransfer.device_mesh`): networks are distributed over the
            first, images over the second. None: one device, or all of them if there are several processes.
        directory: Where features and scores are kept; finished ones are reused. None: a temporary directory.
        progress: Called as `progress(done, total, name)`.

    Returns:
        For each measure a matrix, tasks x networks, with standard errors over the labelled examples; NaN where a
        measure does not allow the labels of a task, or needs a head that a network does not have. A network whose
        features do not vary, or are finite for too few labelled examples, is NaN too, with a warning; it does not end
        the scores of the others. Examples for which features are not finite are left out for this network, with a
        warning.

    Raises:
        JaxTransferError: No networks or tasks, two of one name, labels that cannot be used, an unknown measure or
            layer, a measure that allows the labels of no task, no network that can be scored, or what
            `affinity_matrix` raises for networks.
        OSError: A file cannot be written, because the disk is full for example.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> images = rng.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
        >>> bright = np.where(images.mean((1, 2, 3)) > 127.5, "bright", "dark")
        >>> task = jt.LabelledTask.of(images, bright, name="brightness")
        >>> networks = [jt.Network("mean", lambda w, x: x.mean((1, 2)) * w, np.float32(1)),
        ...             jt.Network("corner", lambda w, x: x[:, 0, 0] * w, np.float32(1))]
        >>> scores = jt.score(networks, task)
        >>> [name for name, value, stderr in scores.rank("brightness")]
        ['mean', 'corner']
    """
    options = ScoreOptions(measures=measures, layers=layers, precision=precision)
    scoring = Scoring(networks, tasks, options, batch_size=batch_size, mesh=mesh)
    with given_or_temporary(directory, "features") as place:
        return scoring.run(place, progress)


class Scoring:
    """Computes scores: `score` without a temporary directory, and with access to what it chose.

    Attributes:
        mesh: The devices.
        targets: What is to be predicted in each task.
        seconds: Processor time that the measures took, without those of stored scores and without the networks' passes.
        batch_sizes: For each network that was computed, the number of images in a batch on each device.
    """

    def __init__(
        self,
        networks: Zoo | Iterable[Network],
        tasks: LabelledTask | Iterable[LabelledTask],
        options: ScoreOptions,
        *,
        batch_size: int | None,
        mesh: Mesh | None,
    ) -> None:
        """Checks and takes `score`'s arguments."""
        self._tasks = [task.in_colour() for task in ([tasks] if isinstance(tasks, LabelledTask) else tasks)]
        self._refs = network_refs(networks)
        check_unique("task", [task.name for task in self._tasks])
        check_unique("network", [ref.name for ref in self._refs])
        check_batch_size(batch_size)
        self._options, self._batch_size = options, batch_size
        self.mesh = default_mesh() if mesh is None else mesh
        self.targets = {task.name: Target.of(task) for task in self._tasks}
        self._measures = self._checked_measures()
        self.seconds = 0.0
        self.batch_sizes: dict[str, int] = {}

    def _checked_measures(self) -> list[str]:
        """Returns the measures to compute; of all measures those that allow the labels of a task."""
        target_types: list[TargetType] = [target.target_type for target in self.targets.values()]
        allowed = [name for name, measure in MEASURES.items() if {*target_types} & {*measure.target_types}]
        if self._options.measures == ALL:
            return allowed
        for name in self._options.measures:
            if name not in allowed:
                check_target_type(name, target_types[0])
        return [*self._options.measures]

    def run(self, directory: str | Path, progress: ProgressFn | None = None) -> Affinity:
        """Computes the features and scores that a directory lacks, and returns all."""
        scores = recomputing_damaged(lambda: self._scored(directory, progress).affinity())
        if not scores.methods:
            raise JaxTransferError("No network has a score for any task; the warnings say why.")
        return scores

    def _scored(self, directory: str | Path, progress: ProgressFn | None) -> "_Table":
        """Computes what a directory lacks, and collects all scores of this process."""
        table = _Table(self._measures, [task.name for task in self._tasks], [ref.name for ref in self._refs])
        for images in dict.fromkeys(task.images_sha256 for task in self._tasks):
            tasks = [task for task in self._tasks if task.images_sha256 == images]
            features = self._features(points_of_images(directory, images), tasks[0].images, progress)
            own = features[jax.process_index() :: jax.process_count()]
            with synchronised():
                for done, of_network in enumerate(own, 1):
                    for task in tasks:
                        scores, examples = self._scores(of_network, task)
                        table.add(task.name, of_network.network, scores, examples)
                    if progress is not None:
                        progress(done, len(own), "scores")
        return table

    def _features(
        self, points: Points, images: Shaped[np.ndarray, "n ..."], progress: ProgressFn | None
    ) -> list[Features]:
        """Computes the features that are missing, and refers to those of all networks."""
        needy = [name for name in self._measures if MEASURES[name].needs_probabilities]
        kinds = kinds_of_networks(self._refs, images.shape[1:], self._options.layers, with_head=bool(needy))
        if needy and self._options.measures != ALL and not any(PROBABILITIES in of_one for of_one in kinds.values()):
            raise JaxTransferError(
                f"The measure {needy[0]} needs a network that also returns scores of the classes it was trained on, as "
                f"an output called {LOGITS!r} or {PROBABILITIES!r}; none of these networks does."
            )
        features, batch_sizes = compute_features(
            self._refs,
            kinds,
            images,
            points,
            precision=self._options.precision,
            batch_size=self._batch_size,
            mesh=self.mesh,
            progress=progress,
        )
        self.batch_sizes |= batch_sizes
        return features

    def _scores(self, features: Features, task: LabelledTask) -> tuple[dict[str, Score], int]:
        """Returns the scores of a network for a task, computed or stored, and the number of examples behind them."""
        target = self.targets[task.name]
        scores, fingerprints = {}, {}
        for name in self._measures:
            kinds = features.kinds(of_head=MEASURES[name].needs_probabilities)
            if target.target_type not in MEASURES[name].target_types or not kinds:
                continue
            inputs = [_VERSION, task.sha256, [features.keys[kind] for kind in kinds]]
            fingerprints[name] = json_hash(inputs)
            stored = features.points.read_arrays(f"scores/{task.name}/{name}", features.network)
            if stored is not None and str(stored["fingerprint"]) == fingerprints[name]:
                scores[name] = Score(float(stored["value"]), stored["pseudo_values"])
        start = time.process_time()
        computed: dict[str, Score] = {}
        for of_head in (False, True):
            names = [name for name in fingerprints if MEASURES[name].needs_probabilities == of_head]
            names = [name for name in names if name not in scores]
            try:
                with single_blas_thread():
                    computed |= score_layers(names, target, features.open(of_head=of_head)) if names else {}
            except DamagedPointError:
                raise
            except JaxTransferError as error:
                what = f"The network {features.network!r} has no score by {', '.join(names)} for the task {task.name!r}"
                warnings.warn(f"{what}: {error}", stacklevel=4)
        self.seconds += time.process_time() - start
        for name, score in computed.items():
            stored = {"fingerprint": np.array(fingerprints[name]), **score._asdict()}
            features.points.write_arrays(f"scores/{task.name}/{name}", features.network, stored)
        scores, usable = scores | computed, features.usable(target)
        if scores and usable < len(target.labelled):
            warnings.warn(
                f"The scores of the network {features.network!r} for the task {task.name!r} are of {usable} of "
                f"{len(target.labelled)} labelled examples: its features are not finite for the others.",
                stacklevel=4,
            )
        return scores, usable


def score_layers(measures: Sequence[str], target: Target, layers: Sequence[Layer]) -> dict[str, Score]:
    """Computes scores of a network for a task, each from the layer that suits it best; see `best_layer`.

    Layers that `check_features` refuses are left out if there are others.

    Args:
        measures: Names of measures, which all need features, or all the probabilities of a head.
        target: What is to be predicted.
        layers: The network's features, or these probabilities alone.

    Raises:
        JaxTransferError: As for `check_features`, of the first layer, or for `run_measures`.
    """
    if any(MEASURES[name].needs_probabilities for name in measures):
        return run_measures(measures, target, probabilities=layers[0])
    usable, faults = [], []
    for layer in layers:
        try:
            check_features(layer, target)
            usable.append(layer)
        except JaxTransferError as error:
            faults.append(error)
    if not usable:
        raise faults[0]
    by_layer = [run_measures(measures, target, features=layer) for layer in usable]
    return {name: best_layer([of_layer[name] for of_layer in by_layer]) for name in measures}


class _Table:
    """Collects the scores of all processes."""

    def __init__(self, measures: Sequence[str], tasks: Sequence[str], networks: Sequence[str]) -> None:
        shape = len(measures), len(tasks), len(networks)
        self._axes = measures, tasks, networks
        self._values = np.full(shape, np.nan)
        self._samples = np.full((GROUPS, *shape), np.nan)
        self._counts = np.full(shape[1:], -1)

    def add(self, task: str, network: str, scores: Mapping[str, Score], examples: int) -> None:
        """Takes the scores of a network for a task."""
        measures, tasks, networks = self._axes
        row, column = tasks.index(task), networks.index(network)
        self._counts[row, column] = examples
        for name, score in scores.items():
            self._values[measures.index(name), row, column] = score.value
            self._samples[: len(score.pseudo_values), measures.index(name), row, column] = score.pseudo_values

    def affinity(self) -> Affinity:
        """Returns the scores of all processes; each network was scored by one of them."""
        counts = allgather(self._counts)
        scored = (counts >= 0).argmax(0)
        values, samples, counts = (
            np.take_along_axis(array, scored.reshape(1, *[1] * (array.ndim - 3), *scored.shape), 0)[0]
            for array in (allgather(self._values), allgather(self._samples), counts)
        )
        measures, tasks, networks = self._axes
        results = {}
        for i, name in enumerate(measures):
            if np.isnan(values[i]).all():
                continue
            of_measure = samples[:, i]
            results[name] = MethodResult(
                values[i].astype(np.float32),
                stderr_of_known_mean(of_measure).astype(np.float32),
                np.where(np.isnan(values[i]), 0, counts),
                pseudo_values=of_measure.reshape(len(of_measure), -1).astype(np.float32),
                measure=Measure("score", directed=True, sampled="labelled examples"),
            )
        return Affinity(networks, "cosine", results, targets=tasks)
