"""Measures the transfer of networks to labelled tasks, by training."""

import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jaxtransfer.arguments import check_unique
from jaxtransfer.comparison.affinity import Affinity, MethodResult
from jaxtransfer.comparison.statistics import stderr_of_known_mean
from jaxtransfer.data.datasets import LabelledTask
from jaxtransfer.devices import default_mesh
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.files import json_hash, read_arrays, write_arrays
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.compute import ProgressFn
from jaxtransfer.points.network_refs import NetworkRef, network_refs
from jaxtransfer.points.store import DamagedPointError, given_or_temporary, recomputing_damaged
from jaxtransfer.scores.features import Features, compute_features, kinds_of_networks, points_of_images
from jaxtransfer.scores.target import Target
from jaxtransfer.training import frozen
from jaxtransfer.training.finetune import finetune_learning, finetune_model
from jaxtransfer.training.frozen import frozen_model, read_features
from jaxtransfer.training.measurement import Outcome, StepsFn, measure
from jaxtransfer.training.metrics import MEASURES, METRICS
from jaxtransfer.training.options import Protocol, TransferOptions
from jaxtransfer.training.random_weights import random_twins
from jaxtransfer.training.readout import Readout
from jaxtransfer.training.splits import folds_of

RANDOM, SCRATCH = "random", "scratch"
_METRIC = "metric_"  # begins the names of arrays in stored results
_VERSION = 1  # of both protocols; results of another version are measured again


class Transfers(Affinity):
    """Holds measured transfer: an `Affinity` of tasks (targets) x sources, with a method for each metric.

    Standard errors are those of the mean over folds; the metrics of a fold's seeds are averaged first. `pseudo_values`
    are the folds.
    """

    def oracle(self, metric: str | None = None) -> Oracle:
        """Returns the transfers as measured truth, against which rankings can be judged.

        Args:
            metric: The metric; losses are negated, so that larger is better. May be omitted where there is only one.

        Raises:
            JaxTransferError: There is no such metric.
        """
        values, errors = self.nearness(metric), self.stderr(metric)
        scores: dict[str, dict[str, float]] = {}
        stderr: dict[str, dict[str, float]] = {}
        for row, target in enumerate(self.targets):
            known = np.flatnonzero(~np.isnan(values[row]))
            if len(known):
                scores[target] = {self.sources[i]: float(values[row, i]) for i in known}
                stderr[target] = {self.sources[i]: float(errors[row, i]) for i in known if np.isfinite(errors[row, i])}
        return Oracle(metric or self.methods[0], scores, stderr=stderr)


def transfer(
    networks: Zoo | Iterable[Network],
    tasks: LabelledTask | Iterable[LabelledTask],
    *,
    protocol: Protocol = TransferOptions.protocol,
    scores: Affinity | None = None,
    top: int | None = None,
    measure: str | None = None,
    seeds: int = TransferOptions.seeds,
    folds: int = TransferOptions.folds,
    steps: int | None = TransferOptions.steps,
    mesh: Mesh | None = None,
    directory: str | Path | None = None,
    progress: ProgressFn | None = None,
) -> Transfers:
    """Measures how well networks transfer to labelled tasks: trains on each task, and judges held-out examples.

    Every fold of a task's labelled examples is held out once. Of the others one is for validation, another one for
    each seed: the training keeps the weights of the step with the smallest validation loss, and the learning rate with
    the smallest mean of that over seeds. See docs/transfer.md for both protocols.

    Args:
        networks: A zoo, or networks with different names.
        tasks: One labelled task or several, see `read_tasks`. Grey images are repeated over three channels.
        protocol: "frozen": a linear readout of each network's features is trained, and of those of the same
            architecture with random weights, the source "random". "finetune": all weights are trained from each
            network's, and from random ones, the source "scratch". With several architectures the names are
            "random-NETWORK" or "scratch-NETWORK", after the first network of each.
        scores: Scores of the networks for the tasks, from `score`; needed for `top`.
        top: Measure only this many networks for each task, those with the best scores; None: all.
        measure: The measure of `scores` that says which are best; None: the first.
        seeds: Number of trainings for each fold and learning rate.
        folds: Number of folds, 3 or more.
        steps: Number of optimiser steps of each training; None: the protocol's.
        mesh: Devices (`jaxtransfer.device_mesh`), which share the trainings. None: one device.
        directory: Where features, unfinished trainings and results are kept; what is finished is reused. None: a
            temporary directory.
        progress: Called as `progress(done, total, name)`.

    Returns:
        The metrics of every source for every task, NaN where they were not measured. A source that cannot be measured,
        since its features are finite for too few examples or a training is not finite at any learning rate, is left
        out with a warning; so are single examples for which features are not finite.

    Raises:
        JaxTransferError: Networks, tasks, scores or settings cannot be used, a task has too few examples for the
            folds, or no source can be measured.
        OSError: A file cannot be written, because the disk is full for example.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> images = rng.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
        >>> bright = np.where(images.mean((1, 2, 3)) > 127.5, "bright", "dark")
        >>> task = jt.LabelledTask.of(images, bright, name="brightness")
        >>> networks = [jt.Network("mean", lambda w, x: x.mean((1, 2)) * w, np.ones(3, np.float32)),
        ...             jt.Network("corner", lambda w, x: x[:, 0, 0] * w, np.ones(3, np.float32))]
        >>> transfers = jt.transfer(networks, task, seeds=1, folds=3)
        >>> [name for name, value, stderr in transfers.rank("brightness", method="accuracy")][0]
        'mean'
    """
    options = TransferOptions(protocol=protocol, seeds=seeds, folds=folds, steps=steps)
    measuring = Measuring(networks, tasks, options, scores=scores, top=top, measure=measure, mesh=mesh)
    with given_or_temporary(directory, "features") as place:
        return measuring.run(place, progress)


class _Cell(NamedTuple):
    """A result: metrics by fold, averaged over seeds, and the number of examples behind them."""

    by_fold: Mapping[str, Float[np.ndarray, " folds"]]
    examples: int


class Measuring:
    """Measures transfer: `transfer` without a temporary directory.

    Attributes:
        mesh: The devices.
        targets: What is to be predicted in each task.
        chosen: For each task the names of the networks that are measured.
    """

    def __init__(
        self,
        networks: Zoo | Iterable[Network],
        tasks: LabelledTask | Iterable[LabelledTask],
        options: TransferOptions,
        *,
        scores: Affinity | None = None,
        top: int | None = None,
        measure: str | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Checks and takes `transfer`'s arguments."""
        if jax.process_count() > 1:
            raise JaxTransferError("Transfer is measured by one process, which may have several devices.")
        self._tasks = [task.in_colour() for task in ([tasks] if isinstance(tasks, LabelledTask) else tasks)]
        refs = network_refs(networks)
        self._refs = {ref.name: ref for ref in refs}
        check_unique("task", [task.name for task in self._tasks])
        check_unique("network", [ref.name for ref in refs])
        self._options = options
        self.mesh = default_mesh() if mesh is None else mesh
        self.targets = {task.name: Target.of(task) for task in self._tasks}
        for task in self._tasks:
            folds_of(self.targets[task.name].group, options.folds, task.name)
        self.chosen = {task.name: self._best(task.name, scores, top, measure) for task in self._tasks}
        control = RANDOM if options.protocol == "frozen" else SCRATCH
        self._sources = _sources_of_tasks(self.chosen, self._refs, control)
        learning = frozen.LEARNING if options.protocol == "frozen" else finetune_learning(self.mesh)
        self._learning = learning.with_steps(options.steps)

    def _best(self, task: str, scores: Affinity | None, top: int | None, measure: str | None) -> list[str]:
        """Returns the networks to measure for a task, in the order of the zoo, or that of their scores."""
        if top is None:
            return [*self._refs]
        if scores is None:
            raise JaxTransferError("The best networks are those of a score run; name one, or measure all networks.")
        if top < 1:
            raise JaxTransferError(f"The number of networks to measure must be 1 or more, not {top}.")
        measure = measure or scores.methods[0]
        ranked = [name for name, _, _ in scores.rank(task, method=measure)][:top]
        if unknown := [name for name in ranked if name not in self._refs]:
            raise unknown_name("network", unknown[0], [*self._refs], where="although it has a score")
        if not ranked:
            raise JaxTransferError(f"No network has a score by {measure} for the task {task!r}.")
        return ranked

    def run(self, directory: str | Path, progress: ProgressFn | None = None) -> Transfers:
        """Measures what a directory lacks, and returns all."""
        return recomputing_damaged(lambda: self._run(Path(directory), progress))

    def _run(self, directory: Path, progress: ProgressFn | None) -> Transfers:
        features = self._features(directory, progress) if self._options.protocol == "frozen" else {}
        pairs = [(task, ref) for task in self._tasks for ref in self._sources[task.name]]
        cells = {}
        for number, (task, ref) in enumerate(pairs):

            def report(done: int, steps: int, number: int = number, name: str = f"{task.name}, {ref.name}") -> None:
                if progress is not None:
                    progress(number * steps + done, len(pairs) * steps, name)

            try:
                of_network = features.get((task.images_sha256, ref.name))
                cell = self._cell(directory, task, ref, of_network, report)
            except DamagedPointError:
                raise
            except JaxTransferError as error:
                warnings.warn(
                    f"The source {ref.name!r} has no result for the task {task.name!r}: {error}", stacklevel=3
                )
                continue
            if cell.examples < (labelled := len(self.targets[task.name].labelled)):
                warnings.warn(
                    f"The results of the source {ref.name!r} for the task {task.name!r} are of {cell.examples} of "
                    f"{labelled} labelled examples: its features are not finite for the others.",
                    stacklevel=3,
                )
            cells[task.name, ref.name] = cell
        if not cells:
            raise JaxTransferError("No source has a result for any task; the warnings say why.")
        return self._table(cells)

    def _features(self, directory: Path, progress: ProgressFn | None) -> dict[tuple[str, str], Features]:
        """Computes the features that are missing; by images and network."""
        features = {}
        for images in dict.fromkeys(task.images_sha256 for task in self._tasks):
            tasks = [task for task in self._tasks if task.images_sha256 == images]
            refs = [*{ref.name: ref for task in tasks for ref in self._sources[task.name]}.values()]
            points = points_of_images(directory, images)
            kinds = kinds_of_networks(refs, tasks[0].images.shape[1:], None, with_head=False)
            computed, _ = compute_features(refs, kinds, tasks[0].images, points, mesh=self.mesh, progress=progress)
            features |= {(images, of_network.network): of_network for of_network in computed}
        return features

    def _cell(
        self, directory: Path, task: LabelledTask, ref: NetworkRef, features: Features | None, report: StepsFn
    ) -> _Cell:
        """Returns a result, stored or measured."""
        depends_on = [_VERSION, task.sha256, ref.identity, self._options.as_settings(), repr(self._learning)]
        fingerprint = json_hash(depends_on)
        file = directory / "transfers" / task.name / f"{ref.name}.npz"
        unfinished = directory / "unfinished" / fingerprint[:16]
        if (cell := _read(file, fingerprint)) is None:
            unfinished.mkdir(parents=True, exist_ok=True)
            outcome, examples = self._measure(task, ref, features, unfinished, report)
            cell = _Cell({name: _mean_of_seeds(values) for name, values in outcome.metrics.items()}, examples)
            file.parent.mkdir(parents=True, exist_ok=True)
            chosen = {"learning_rate": outcome.rate, "step": outcome.step}
            by_seed = {f"{_METRIC}{name}": values for name, values in outcome.metrics.items()}
            write_arrays(file, {"fingerprint": fingerprint, "examples": examples, **chosen, **by_seed})
        shutil.rmtree(unfinished, ignore_errors=True)
        report(1, 1)
        return cell

    def _measure(
        self, task: LabelledTask, ref: NetworkRef, features: Features | None, folder: Path, report: StepsFn
    ) -> tuple[Outcome, int]:
        """Measures the transfer from a source to a task; also returns the number of labelled examples."""
        target = self.targets[task.name]
        if features is not None:
            labelled = len(target.labelled)
            target = features.restrict(target)
            if len(np.unique(target.group[target.labelled])) < self._options.folds:
                raise JaxTransferError(
                    f"Its features are finite for {len(target.labelled)} of {labelled} labelled examples, too few for "
                    f"{self._options.folds} folds."
                )
            readings = read_features(features.open(of_head=False), Readout.of(target))
            model = frozen_model(readings, target, self._learning, self.mesh)
        else:
            from_scratch = ref.name not in self._refs
            model = finetune_model(
                ref.load(), task.images, target, self._learning, self.mesh, from_scratch=from_scratch
            )
        fold = folds_of(target.group, self._options.folds, task.name)
        outcome = measure(
            model, target, fold, self._learning, self._options.seeds, self.mesh, folder=folder, progress=report
        )
        return outcome, len(target.labelled)

    def _table(self, cells: Mapping[tuple[str, str], _Cell]) -> Transfers:
        """Arranges the results as tasks x sources."""
        tasks = [task.name for task in self._tasks]
        order = [*self._refs, *(ref.name for refs in self._sources.values() for ref in refs)]
        sources = [name for name in dict.fromkeys(order) if any(name == source for _, source in cells)]
        metrics = dict.fromkeys(name for target in self.targets.values() for name in METRICS[target.target_type])
        results = {}
        for metric in metrics:
            by_fold = np.full((self._options.folds, len(tasks), len(sources)), np.nan)
            counts = np.zeros(by_fold.shape[1:], int)
            for (task, source), cell in cells.items():
                if metric in cell.by_fold:
                    place = tasks.index(task), sources.index(source)
                    by_fold[:, *place], counts[place] = cell.by_fold[metric], cell.examples
            results[metric] = _result(metric, by_fold, counts)
        return Transfers(sources, "cosine", results, targets=tasks)


def _sources_of_tasks(
    chosen: Mapping[str, Sequence[str]], refs: Mapping[str, NetworkRef], control: str
) -> dict[str, list[NetworkRef]]:
    """Refers to the sources of each task: the chosen networks, and random weights for each of their architectures."""
    in_use = [ref for name, ref in refs.items() if any(name in names for names in chosen.values())]
    controls = random_twins(in_use, control, refs)
    sources = {}
    for task, names in chosen.items():
        architectures = {refs[name].architecture for name in names}
        sources[task] = [refs[name] for name in names] + [ref for ref in controls if ref.architecture in architectures]
    return sources


def _read(file: Path, fingerprint: str) -> _Cell | None:
    """Reads a stored result; None where it is missing, damaged, or depends on something else."""
    try:
        arrays = read_arrays(file)
        if str(arrays["fingerprint"]) != fingerprint:
            return None
        metrics = {name.removeprefix(_METRIC): values for name, values in arrays.items() if name.startswith(_METRIC)}
        return _Cell({name: _mean_of_seeds(values) for name, values in metrics.items()}, int(arrays["examples"]))
    except (OSError, ValueError, KeyError):
        return None


def _mean_of_seeds(values: Float[np.ndarray, "folds seeds"]) -> Float[np.ndarray, " folds"]:
    return values.mean(1)


def _result(
    metric: str, by_fold: Float[np.ndarray, "folds tasks sources"], counts: Int[np.ndarray, "tasks sources"]
) -> MethodResult:
    """Averages a metric over folds; folds in which it has no value take no part."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pairs without a value
        mean = np.nanmean(by_fold, axis=0)
    return MethodResult(
        mean.astype(np.float32),
        stderr_of_known_mean(by_fold).astype(np.float32),
        counts,
        pseudo_values=by_fold.reshape(len(by_fold), -1).astype(np.float32),
        measure=MEASURES[metric],
    )
