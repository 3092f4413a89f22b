"""Runs of principal gradients: tasks on disk, compared in a directory that records how to repeat the run."""

import contextlib
import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtransfer.data.datasets import LabelledTask, read_tasks
from jaxtransfer.devices import allgather, check_memory, default_mesh, is_first, is_writer, own_rows, synchronised
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.alignment import AlignmentEstimation
from jaxtransfer.pge.backbones import Backbone, backbone
from jaxtransfer.pge.batches import Sampler, Shuffled
from jaxtransfer.pge.estimator import Estimation, PrincipalGradient
from jaxtransfer.pge.objectives import Objective, make_objectives
from jaxtransfer.pge.options import PGEOptions
from jaxtransfer.pge.restarts import Accumulation, Progress
from jaxtransfer.pge.resume import Stopped, read_noted, resume, save_state
from jaxtransfer.runs import record
from jaxtransfer.runs.gradient_results import GradientResults, alignments, gaps, shuffled_copy, write_results

ProgressFn = Callable[[int, int, str], None]

_KIND = "pge"


_LEAST_UNITS = 16  # of a backbone at each pixel, which a gradient keeps


@dataclasses.dataclass(frozen=True)
class RunContext:
    """Holds what the tasks of a run share.

    Attributes:
        out: The run directory.
        options: The options of the run.
        backbone: The backbone.
        settings: The settings that `run.json` records.
        progress: Called with restarts done, restarts to do, and the label of the task.
        stop: Set where a row of devices has failed, so that the others stop.
    """

    out: Path
    options: PGEOptions
    backbone: Backbone
    settings: Mapping[str, Any]
    progress: ProgressFn
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def key(self) -> jax.Array:
        """Random key of the run, the same for all tasks."""
        return jax.random.key(self.options.seed)

    @property
    def symmetry(self) -> Any:
        """The specification of exchangeable units; None: gradients are not averaged over them."""
        return self.backbone.symmetry if self.options.symmetry else None


def run_pge(
    paths: Sequence[str | Path],
    out: str | Path,
    options: PGEOptions,
    *,
    command: Sequence[str],
    strict: bool = False,
    mesh: Mesh | None = None,
    progress: ProgressFn | None = None,
) -> GradientResults:
    """Compares tasks by their gradients at fresh weights; writes a run directory, or resumes an unfinished one.

    The directory receives `gap.csv` and `gap_stderr.csv`, or `alignment.csv` and `alignment_stderr.csv` (square; cells
    of a task whose gradient cannot be distinguished from zero stay empty), a heat map, `ranking.csv`, `control.csv`,
    and `run.json`: the command, settings and data of the run, the software and the device, and what was left out.

    Each principal gradient is kept in `gradients/` as soon as it is finished, together with its data and settings: a
    further task costs only its own gradient, and a task whose data have changed is computed again. An alignment is
    computed from all tasks at the same time, and computed again when a task is added or changed. Unfinished
    estimations are saved about every ten seconds. An interrupted run resumes from there and ends with the same bits on
    the same machine and mesh; on another mesh it ends with the same numbers up to rounding.

    The rows of a mesh take tasks in turn and work at the same time, and the devices of a row share the restarts. An
    alignment needs the gradients of all tasks at the same weights in one place, so there all devices share the
    restarts. Several processes call this with the same arguments and see the same files. Results of a row are written
    by the process that holds its first device, all others by process 0. An error in one process ends all of them, those
    that work on other rows when they have finished their tasks.

    A directory holds runs of one measure with the same settings. Only `form` may change, since gaps of another form
    follow from the same gradients.

    Args:
        paths: The tasks, see `read_tasks`.
        out: The run directory: new, empty, or of a run with the same settings.
        options: Measure, backbone, loss, and how gradients are estimated.
        command: The command as the user typed it, for `run.json`.
        strict: Whether a file that is no usable image is an error; otherwise it is skipped.
        mesh: Devices with the axes "model" and "data" (`jaxtransfer.device_mesh`). None: one device, or all where there
            are several processes.
        progress: Called with restarts done, restarts to do as far as is known, and the names of the tasks in progress,
            added up over these tasks; by one thread at a time and in process 0 only.

    Returns:
        The gaps or alignments with their standard errors, and remarks on the tasks.

    Raises:
        JaxTransferError: The tasks cannot be used or do not fit the loss or backbone, or `out` is not a run directory
            or one of a run with other settings, or another process failed.
        OSError: A file cannot be written, because the disk is full for example.
    """
    out = Path(out)
    with synchronised():
        tasks = _read_tasks(paths, options, strict)
        images = options.ways * (options.shots + options.queries) if options.may_use_episodes else options.batch_size
        check_memory(
            _LEAST_UNITS * 4 * images * options.size**2,
            f"The gradient at {images:,} images of {options.size} pixels",
            "ask for a smaller size, or for fewer images in an episode or a batch",
        )
        network = backbone(options.backbone, _channels(tasks))
        objectives = make_objectives(tasks, options, network)
    settings = options.as_settings((objective.loss_name for objective in objectives), _channels(tasks))
    about = {
        "settings": settings,
        "form": options.form if options.measure == "gap" else None,
        "datasets": {task.name: record.dataset(task) for task in tasks},
    }
    context = RunContext(out, options, network, settings, _merged_progress(progress))
    mesh = default_mesh() if mesh is None else mesh
    with record.open_run(out, _KIND, about, record.diff_settings, command, mesh=dict(mesh.shape)) as run_results:
        if options.measure == "gap":
            results = gaps(tasks, _principal_gradients(context, objectives, mesh), options.form, options.tolerance)
            title = f"{options.form}, {options.backbone}"
        else:
            results = alignments(tasks, _alignment(context, objectives, mesh), options.tolerance)
            title = options.backbone
        if is_first():
            record.replace_tables(out)
            write_results(out, results, title)
        run_results["remarks"] = list(results.remarks)
    return results


def _read_tasks(paths: Sequence[str | Path], options: PGEOptions, strict: bool) -> tuple[LabelledTask, ...]:
    if options.may_use_episodes:
        ways, images_per_class = options.ways, options.shots + options.queries
    else:
        ways, images_per_class = 2, 1
    return read_tasks(
        paths, size=options.size, limit=options.limit, ways=ways, smallest=images_per_class, strict=strict
    )


def _channels(tasks: Sequence[LabelledTask]) -> int:
    return tasks[0].images.shape[-1]


def _note(settings: Mapping[str, Any], tasks: Sequence[LabelledTask]) -> str:
    """Returns the settings and the hashes of the data that a stored result depends on."""
    return json.dumps({"settings": settings, "data": [[task.name, task.sha256] for task in tasks]}, sort_keys=True)


def _merged_progress(progress: ProgressFn | None) -> ProgressFn:
    """Merges the progress of several threads: added up over unfinished tasks, one call at a time, in process 0."""
    lock = threading.Lock()
    unfinished: dict[str, tuple[int, int]] = {}

    def report_progress(done: int, total: int, label: str) -> None:
        if progress is not None and is_first():
            with lock:
                unfinished[label] = (done, total)
                all_done, all_restarts = (sum(counts) for counts in zip(*unfinished.values(), strict=True))
                progress(all_done, all_restarts, ", ".join(unfinished))
                if done == total:
                    del unfinished[label]

    return report_progress


def _principal_gradients(
    context: RunContext, objectives: Sequence[Objective], mesh: Mesh
) -> dict[str, PrincipalGradient]:
    """Returns the tasks' principal gradients; the rows of the mesh take tasks in turn and work at the same time."""
    rows = len(mesh.devices)
    names = [objective.task.name for objective in objectives]
    gradients: dict[str, PrincipalGradient] = {}

    def work_through_row(number: int) -> None:
        row = Mesh(mesh.devices[[number]], mesh.axis_names)
        try:
            for i in range(number, len(objectives), rows):
                label = names[i] if len(objectives) == 1 else f"{names[i]} ({i + 1} of {len(objectives)})"
                gradients[names[i]] = _principal_gradient(context, objectives[i], label, row)
        except BaseException:
            context.stop.set()
            raise

    with synchronised():
        if is_first():
            (context.out / "gradients").mkdir(exist_ok=True)
    with synchronised(), ThreadPoolExecutor(rows) as pool:
        futures = [pool.submit(work_through_row, number) for number in own_rows(mesh)]
        try:
            errors = [future.exception() for future in futures]
        finally:
            context.stop.set()  # after Ctrl-C the rows are still at work
        for error in errors:
            if error is not None and not isinstance(error, Stopped):
                raise error
    return {name: gradients.get(name) or _load(context, name) for name in names}


def _gradient_file(context: RunContext, name: str) -> Path:
    return context.out / "gradients" / f"{name}.npz"


def _load(context: RunContext, name: str) -> PrincipalGradient:
    return PrincipalGradient.load(_gradient_file(context, name), context.backbone.init, context.symmetry)


def _principal_gradient(context: RunContext, objective: Objective, label: str, row: Mesh) -> PrincipalGradient:
    """Returns the principal gradient of a task: loaded if it is finished, otherwise resumed or computed."""
    task, options = objective.task, context.options
    file, partial = _gradient_file(context, task.name), _gradient_file(context, f"{task.name}.partial")
    note = _note(context.settings, [task])
    gradient = None
    if read_noted(file, note, ["note"]) is not None:
        with contextlib.suppress(JaxTransferError):  # a damaged file is computed again
            gradient = _load(context, task.name)
    is_stored = allgather(np.array(gradient is not None), row).all()  # processes may see a file at different times
    if gradient is None or not is_stored:
        estimation = Estimation(
            context.backbone.init, objective.loss, objective.batches, context.key, symmetry=context.symmetry,
            control=options.control, groups=options.groups, mesh=row, check=False,
        )  # fmt: skip
        _resume(context, estimation, partial, note, label, task.path, row)
        gradient = estimation.result()
    with synchronised(row):
        if is_writer(row):
            if not is_stored:
                gradient.save(file, note)
            partial.unlink(missing_ok=True)
    return gradient


def _alignment(context: RunContext, objectives: Sequence[Objective], mesh: Mesh) -> AlignmentEstimation:
    """Returns the alignment of all tasks and of their controls; its state stays in `alignment.npz`."""
    mesh = Mesh(mesh.devices.reshape(1, -1), mesh.axis_names)  # one program, and the same bits, for meshes of any shape
    losses = {objective.task.name: objective.loss for objective in objectives}
    batches: dict[str, Sampler] = {objective.task.name: objective.batches for objective in objectives}
    if context.options.control:
        losses |= {shuffled_copy(name): loss for name, loss in losses.items()}
        batches |= {shuffled_copy(name): Shuffled(sampler) for name, sampler in batches.items()}
    estimation = AlignmentEstimation(
        context.backbone.init, losses, batches, context.key, groups=context.options.groups, mesh=mesh
    )
    file = context.out / "alignment.npz"
    note = _note(context.settings, [objective.task for objective in objectives])
    _resume(context, estimation, file, note, "all tasks", "The alignment", mesh)
    save_state(estimation, file, note, mesh)
    return estimation


def _resume(
    context: RunContext, estimation: Accumulation, file: Path, note: str, label: str, subject: str, mesh: Mesh
) -> None:
    """Runs an estimation to its end from the state in `file`; errors begin with the subject."""

    def progress(done: int, total: int) -> None:
        context.progress(done, total, label)

    run = functools.partial(_run, context.options)
    try:
        resume(estimation, file, note, run, mesh=mesh, stop=context.stop, progress=progress)
    except JaxTransferError as error:
        raise JaxTransferError(f"{subject}: {error}") from error


def _run(options: PGEOptions, estimation: Accumulation, progress: Progress) -> None:
    if options.restarts == "auto":
        estimation.run_until(options.tolerance, options.cap, progress)
    else:
        estimation.run(options.restarts, progress)
