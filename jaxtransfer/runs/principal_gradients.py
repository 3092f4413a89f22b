"""A run of principal gradients: tasks on disk, in a directory that says how to repeat it."""

import contextlib
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxtransfer.data.datasets import LabelledTask, TargetType, read_tasks
from jaxtransfer.devices import allgather, default_mesh, is_first, is_writer, own_rows, synchronised
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_arrays, write_arrays
from jaxtransfer.pge.alignment import AlignmentEstimation
from jaxtransfer.pge.backbones import Backbone, backbone
from jaxtransfer.pge.batches import Episodes, Minibatches, Sampler, Shuffled
from jaxtransfer.pge.estimator import Estimation, PrincipalGradient
from jaxtransfer.pge.gap import FORMS, Form
from jaxtransfer.pge.losses import Loss, Prototypical, RandomHead, SquaredError
from jaxtransfer.pge.restarts import Accumulation, Progress, check_counts
from jaxtransfer.runs import record
from jaxtransfer.runs.gradient_results import (
    GradientMeasure,
    GradientResults,
    alignments,
    gaps,
    shuffled_copy,
    write_results,
)

LossName = Literal["prototypical", "random-head", "squared-error"]
ProgressFn = Callable[[int, int, str], None]

_KIND = "pge"
_MEASURES = ("gap", "alignment")
_LOSSES: dict[LossName, tuple[TargetType, ...]] = {
    "prototypical": ("classes",),
    "random-head": ("classes",),
    "squared-error": ("numbers", "dense"),
}
_USUAL: dict[TargetType, LossName] = {"classes": "prototypical", "numbers": "squared-error", "dense": "squared-error"}
_HEADS = 16
_GROUPS = {"gap": 16, "alignment": 32}

# What is under way is written down this often, and in at most a tenth of the time.
_SECONDS, _SHARE = 10.0, 0.1


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A task with its loss and its batches."""

    task: LabelledTask
    loss: Loss
    batches: Sampler


@dataclasses.dataclass(frozen=True)
class _Work:
    """What the tasks of a run have in common."""

    out: Path
    body: Backbone
    key: jax.Array
    symmetry: PyTree | None
    control: bool
    settings: Mapping[str, Any]
    run: Callable[[Accumulation, Progress], None]
    progress: ProgressFn
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set where a row of devices has failed, for the others."""


class _Stopped(Exception):
    """What ends a row where another has failed."""


def run_pge(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    command: Sequence[str],
    measure: GradientMeasure = "gap",
    network: str = "conv4",
    size: int = 32,
    loss: LossName | None = None,
    form: Form = "pge",
    restarts: int | Literal["auto"] = "auto",
    tolerance: float = 10,
    cap: int = 100_000,
    ways: int = 5,
    shots: int = 5,
    queries: int = 16,
    batch_size: int = 64,
    heads: int | None = None,
    symmetry: bool = True,
    control: bool = True,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
    mesh: Mesh | None = None,
    progress: ProgressFn | None = None,
) -> GradientResults:
    """Compares tasks by how they pull fresh weights and writes a run directory, or takes an unfinished one up.

    The directory receives `gap.csv` and `gap_stderr.csv`, or `alignment.csv` and `alignment_stderr.csv` (square; the
    cell of a task whose gradient cannot be told from none stays empty), a heat map, `ranking.csv`, `control.csv`, and
    `run.json`: what was asked, of which data, with which software on which device, and what had to be left out.

    Principal gradients are kept in `gradients/`, each as soon as it is finished, for its data and settings: a task that
    is added costs its own, one whose data have changed is computed again. An alignment is made of all tasks at once and
    is computed again when one is added or changed. What is under way is written down every ten seconds or so. A run
    that was interrupted goes on from there and ends with the same bits on the same machine and mesh; it may go on with
    any other mesh, and then ends with the same numbers up to rounding.

    The rows of a mesh take tasks in turn and work at the same time, and the devices of a row share the restarts. An
    alignment needs the gradients of all tasks at the same weights in one place, so there all devices share the
    restarts. Several processes all call this with the same arguments and see the same files. What comes of a row is
    written by the process that holds its first device, the rest by process 0. An error in one process ends all, those
    that work on other rows when they have finished their tasks.

    A directory is for one measure and one choice of settings; only `form` may change, since gaps of another form
    follow from the same gradients.

    Args:
        paths: The tasks, see `read_tasks`.
        out: The run directory: new, empty, or of a run with the same settings.
        command: What the user typed, for `run.json`.
        measure: "gap" between expected gradients, or "alignment" at the same fresh weights.
        network: Name of a backbone, see `backbone`.
        size: Height and width that images are brought to.
        loss: "prototypical" or "random-head" for classes, "squared-error" for numbers and dense targets. None: the
            first and the last.
        form: Which gap.
        restarts: How many; or "auto": until the signal-to-noise is `tolerance`.
        tolerance: Signal-to-noise (of powers) at which "auto" stops.
        cap: Restarts at which "auto" gives up.
        ways: Classes in an episode.
        shots: Images per class that make its prototype.
        queries: Images per class that are to be told.
        batch_size: Images in a batch of the losses with a random head.
        heads: Pairs of mirrored heads for the losses with one; None: 16.
        symmetry: Whether principal gradients are averaged over the backbone's exchangeable units.
        control: Whether every task is also computed with permuted labels.
        limit: Use at most so many images of a data set, of its classes in turn.
        seed: For everything that is drawn.
        strict: Whether a file that is no usable image is an error rather than skipped.
        mesh: Devices with the axes "model" and "data" (`jaxtransfer.device_mesh`). None: one device, or all where there
            are several processes.
        progress: Called with restarts done, restarts to do as far as is known, and what is at hand, added up over what
            is at hand at once; by one thread at a time and in process 0 only.

    Returns:
        The values with their errors, and what is to be said of the tasks.

    Raises:
        JaxTransferError: The tasks cannot be used or do not fit the loss or backbone, an option is out of range, or
            `out` is not a run directory or one of a run with other settings, or something failed in another process.
        OSError: Something cannot be written, because the disk is full for example.
    """
    out = Path(out)
    with synchronised():
        _check_options(measure, loss, form, restarts, tolerance, cap, seed)
        episodes = loss in (None, "prototypical")
        if episodes and min(ways - 1, shots, queries) < 1:
            raise JaxTransferError("An episode needs two or more ways, and one or more shots and queries.")
        if not episodes and batch_size < 1:
            raise JaxTransferError(f"A batch needs one image or more, not {batch_size}.")
        smallest = shots + queries if episodes else 1
        tasks = read_tasks(
            paths, size=size, limit=limit, ways=ways if episodes else 2, smallest=smallest, strict=strict
        )
        if measure == "alignment" and len(tasks) < 2:
            raise JaxTransferError(f"An alignment needs two tasks or more; {paths[0]} holds only one.")
        losses: list[LossName] = [_loss_for(task, loss) for task in tasks]
        kinds = dict.fromkeys(task.target_type for task in tasks)
        if measure == "gap" and len(kinds) > 1:
            raise JaxTransferError(
                f"Gaps compare tasks of one kind, not {' and '.join(kinds)}; name one kind, or use the measure "
                "alignment."
            )
        headed = [each for each in losses if each != "prototypical"]
        if heads is not None and heads < 1:
            raise JaxTransferError(f"There must be one pair of heads or more, not {heads}.")
        if heads is not None and not headed:
            raise JaxTransferError("The loss prototypical has no head; leave heads out.")
        body = backbone(network, tasks[0].images.shape[-1])
        ready = [
            _ready(task, each, body, (ways, shots, queries), batch_size, heads or _HEADS)
            for task, each in zip(tasks, losses, strict=True)
        ]
        images = jax.ShapeDtypeStruct((2, *tasks[0].images.shape[1:]), np.float32)
        jax.eval_shape(body.features, jax.eval_shape(body.init, jax.random.key(seed)), images)  # refuses small images

    settings = {
        "measure": measure,
        "backbone": network,
        "size": size,
        "channels": tasks[0].images.shape[-1],
        "loss": " and ".join(sorted({*losses})),
        "restarts": restarts,
        "groups": _GROUPS[measure],
        "control": control,
        "seed": seed,
        "precision": "float32, matrix products at the highest precision",
    }
    if restarts == "auto":
        settings |= {"tolerance": tolerance, "cap": cap}
    if measure == "gap":
        settings |= {"symmetry": symmetry}
    if "prototypical" in losses:
        settings |= {"ways": ways, "shots": shots, "queries": queries}
    if headed:
        settings |= {"batch_size": batch_size, "heads": heads or _HEADS}
    about = {
        "settings": settings,
        "form": form if measure == "gap" else None,
        "datasets": {task.name: _described(task) for task in tasks},
    }

    def run(estimation: Accumulation, callback: Progress) -> None:
        if restarts == "auto":
            estimation.run_until(tolerance, cap, callback)
        else:
            estimation.run(restarts, callback)

    spec = body.symmetry if symmetry else None
    work = _Work(out, body, jax.random.key(seed), spec, control, settings, run, _gathered(progress))
    mesh = default_mesh() if mesh is None else mesh
    with record.open_run(out, _KIND, about, record.diff_settings, command, mesh=dict(mesh.shape)) as results:
        if measure == "gap":
            found = gaps(tasks, _gradients(work, ready, mesh), form, tolerance)
        else:
            found = alignments(tasks, _alignment(work, ready, mesh), tolerance)
        if is_first():
            write_results(out, found, f"{form}, {network}" if measure == "gap" else network)
        results["remarks"] = list(found.remarks)
    return found


def _check_options(
    measure: str, loss: str | None, form: str, restarts: int | str, tolerance: float, cap: int, seed: int
) -> None:
    for kind, asked, known in [
        ("measure", measure, _MEASURES),
        ("loss", loss or "prototypical", tuple(_LOSSES)),
        ("form of gap", form, FORMS),
    ]:
        if asked not in known:
            raise JaxTransferError(f"There is no {kind} {asked!r}; there are: {', '.join(known)}.")
    check_counts(cap if isinstance(restarts, str) else restarts, _GROUPS[measure], 1)
    if not 0 < tolerance < math.inf:
        raise JaxTransferError(f"The tolerance is a signal-to-noise, larger than 0, not {tolerance}.")
    if not 0 <= seed < 2**32:
        raise JaxTransferError(f"The seed must be 0 or more and smaller than 2**32, not {seed}.")


def _loss_for(task: LabelledTask, asked: LossName | None) -> LossName:
    if asked is None:
        return _USUAL[task.target_type]
    if task.target_type not in _LOSSES[asked]:
        raise JaxTransferError(
            f"The loss {asked} needs {' or '.join(_LOSSES[asked])}, but the targets of {task.path} are "
            f"{task.target_type}; "
            f"use {' or '.join(name for name, kinds in _LOSSES.items() if task.target_type in kinds)}."
        )
    return asked


def _ready(
    task: LabelledTask, loss: LossName, body: Backbone, episode: tuple[int, int, int], batch_size: int, heads: int
) -> _Ready:
    ways, shots, queries = episode
    if loss == "prototypical":
        batches = Episodes.of(task.images, task.labels, ways=ways, shots=shots, queries=queries)
        return _Ready(task, Prototypical(body.features, ways, shots), batches)
    if len(task.images) < batch_size:
        raise JaxTransferError(
            f"{task.path} has {len(task.images)} images that can be used, fewer than a batch of {batch_size}; ask "
            "for smaller batches."
        )
    batches = Minibatches.of(task.images, task.labels, size=batch_size)
    if loss == "random-head":
        return _Ready(task, RandomHead(body.features, len(np.unique(task.labels)), heads), batches)
    features = body.maps if task.target_type == "dense" else body.features
    return _Ready(task, SquaredError(features, task.labels.shape[-1], heads), batches)


def _described(task: LabelledTask) -> dict[str, Any]:
    return {
        "source": str(Path(task.path).absolute()),
        "kind": task.target_type,
        "images": len(task.images),
        "classes": len(np.unique(task.labels)) if task.target_type == "classes" else None,
        "sha256": task.sha256,
        "skipped": [list(pair) for pair in task.skipped],
        "left_out": [list(pair) for pair in task.left_out],
    }


def _note(settings: Mapping[str, Any], tasks: Sequence[LabelledTask]) -> str:
    """What a stored result is the result of."""
    return json.dumps({"settings": settings, "data": [[task.name, task.sha256] for task in tasks]}, sort_keys=True)


def _gathered(progress: ProgressFn | None) -> ProgressFn:
    """Several threads' progress as that of one: added up over what is at hand, one call at a time, in process 0."""
    lock = threading.Lock()
    at_hand: dict[str, tuple[int, int]] = {}

    def report(done: int, total: int, label: str) -> None:
        if progress is not None and is_first():
            with lock:
                at_hand[label] = (done, total)
                all_done, all_told = (sum(each) for each in zip(*at_hand.values(), strict=True))
                progress(all_done, all_told, ", ".join(at_hand))
                if done == total:
                    del at_hand[label]

    return report


def _gradients(work: _Work, ready: Sequence[_Ready], mesh: Mesh) -> dict[str, PrincipalGradient]:
    """The tasks' principal gradients: the rows of the mesh take them in turn and work at the same time."""
    rows = len(mesh.devices)
    found: dict[str, PrincipalGradient] = {}

    def of_row(number: int) -> None:
        row = Mesh(mesh.devices[[number]], mesh.axis_names)
        try:
            for place in range(number, len(ready), rows):
                name = ready[place].task.name
                label = name if len(ready) == 1 else f"{name} ({place + 1} of {len(ready)})"
                found[name] = _gradient(work, ready[place], label, row)
        except BaseException:
            work.stop.set()
            raise

    with synchronised():
        if is_first():
            (work.out / "gradients").mkdir(exist_ok=True)
    with synchronised(), ThreadPoolExecutor(rows) as pool:
        of_rows = [pool.submit(of_row, number) for number in own_rows(mesh)]
        try:
            problems = [each.exception() for each in of_rows]
        finally:
            work.stop.set()  # the user may have lost patience
        for problem in problems:
            if problem is not None and not isinstance(problem, _Stopped):
                raise problem
    return {name: found.get(name) or _load(work, name) for name in (each.task.name for each in ready)}


def _file(work: _Work, name: str) -> Path:
    return work.out / "gradients" / f"{name}.npz"


def _load(work: _Work, name: str) -> PrincipalGradient:
    return PrincipalGradient.load(_file(work, name), work.body.init, work.symmetry)


def _gradient(work: _Work, ready: _Ready, label: str, row: Mesh) -> PrincipalGradient:
    """A task's principal gradient: read, gone on with, or made."""
    name = ready.task.name
    file, partial = _file(work, name), _file(work, f"{name}.partial")
    note = _note(work.settings, [ready.task])
    found = None
    if _stored(file, note, ["note"]) is not None:
        with contextlib.suppress(JaxTransferError):  # damaged: made again
            found = _load(work, name)
    known = allgather(np.array(found is not None), row).all()  # processes may see files at different times
    if found is None or not known:
        estimation = Estimation(
            work.body.init, ready.loss, ready.batches, work.key, symmetry=work.symmetry, control=work.control,
            groups=_GROUPS["gap"], mesh=row, check=False,
        )  # fmt: skip
        _go_on(work, estimation, partial, note, label, ready.task.path, row)
        found = estimation.result()
    with synchronised(row):
        if is_writer(row):
            if not known:
                found.save(file, note)
            partial.unlink(missing_ok=True)
    return found


def _alignment(work: _Work, ready: Sequence[_Ready], mesh: Mesh) -> AlignmentEstimation:
    """All tasks at the same restarts, each also with permuted labels; what was computed stays in `alignment.npz`."""
    mesh = Mesh(mesh.devices.reshape(1, -1), mesh.axis_names)  # one program, and the same bits, whatever its shape
    losses = {each.task.name: each.loss for each in ready}
    batches: dict[str, Sampler] = {each.task.name: each.batches for each in ready}
    if work.control:
        losses |= {shuffled_copy(name): loss for name, loss in losses.items()}
        batches |= {shuffled_copy(name): Shuffled(sampler) for name, sampler in batches.items()}
    estimation = AlignmentEstimation(work.body.init, losses, batches, work.key, groups=_GROUPS["alignment"], mesh=mesh)
    file, note = work.out / "alignment.npz", _note(work.settings, [each.task for each in ready])
    _go_on(work, estimation, file, note, "all tasks", "The alignment", mesh)
    _write(estimation, file, note, mesh)
    return estimation


def _go_on(work: _Work, estimation: Accumulation, file: Path, note: str, label: str, what: str, mesh: Mesh) -> None:
    """Runs an estimation from what `file` holds of it, and keeps `file` up to date."""
    state = _stored(file, note)
    begun = allgather(np.array(0 if state is None else int(state["done"])), mesh)
    if state is not None and (begun == begun[0]).all():  # all processes see the same file
        with contextlib.suppress(JaxTransferError):
            estimation.restore(state)
    took, ended = 0.0, -math.inf

    def keep(done: int, total: int) -> None:
        nonlocal took, ended
        now = time.monotonic()
        due = is_writer(mesh) and now - ended > max(_SECONDS, took / _SHARE)
        everyone = allgather(np.array([work.stop.is_set(), due]), mesh)
        if everyone[:, 0].any():
            raise _Stopped
        if everyone[:, 1].any():
            _write(estimation, file, note, mesh)
            ended = time.monotonic()
            took = ended - now
        work.progress(done, total, label)

    try:
        work.run(estimation, keep)
        estimation.means()  # refuses what is not finite
    except JaxTransferError as error:
        raise JaxTransferError(f"{what}: {error}") from error


def _write(estimation: Accumulation, file: Path, note: str, mesh: Mesh) -> None:
    state = estimation.state() | {"note": np.asarray(note)}
    with synchronised(mesh):
        if is_writer(mesh):
            write_arrays(file, state)


def _stored(file: Path, note: str, names: Sequence[str] | None = None) -> dict[str, np.ndarray] | None:
    """Arrays of a file, or those named, if it was made of the same; a damaged file holds nothing."""
    try:
        arrays = read_arrays(file, names)
        return arrays if str(arrays["note"]) == note else None
    except (OSError, ValueError, KeyError):
        return None
