"""Rooms from end to end: which of 22 trained networks look alike, and does that say which transfers to which?"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxtransfer import rooms
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.data.probe import Probe
from jaxtransfer.evaluation.groups import rooms_groups
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.tree import task_tree
from jaxtransfer.figures import scaled_map
from jaxtransfer.figures.overview import overview
from jaxtransfer.files import atomic_directory
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.store import Points
from jaxtransfer.report import write_report
from jaxtransfer.runs.affinity import Evaluation, evaluate_run, run_affinity

METHOD = "epsilon_lrp"
"""Whose rankings are told; none did better in Song et al. (NeurIPS 2019)."""
_COUNT, _SIZE = 64, 64  # images, and pixels a side
_SHOWN = ("edge_texture", "normal", "vanishing_point", "class_scene")  # one of each group
_PHOTOS = 3


@dataclasses.dataclass(frozen=True)
class SourceChoice:
    """The source that a ranking puts first, and what measured transfer says of it.

    Attributes:
        target: A task.
        source: The network nearest to the target's.
        affinity: Of the two, within [-1, 1].
        stderr: Of that, over images.
        place: Of the source in measured transfer to the target; 1 is the best.
        best: The source with place 1.
        gain: How far its loss lies from the mean over sources, 0, to the best one's, 1; below 0 where it is worse
            than the mean.
    """

    target: str
    source: str
    affinity: float
    stderr: float
    place: int
    best: str
    gain: float


@dataclasses.dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration found.

    Attributes:
        images: How many the networks looked at.
        choices: For every task, by `METHOD`.
        evaluations: Of every method, against measured transfer.
    """

    images: int
    choices: tuple[SourceChoice, ...]
    evaluations: dict[str, Evaluation]


def run_demo(out: str | Path, *, command: Sequence[str], progress: Callable[[int, int, str], None]) -> DemoResult:
    """Compares the encoders of Rooms, or goes on with what is there of that.

    Args:
        out: Receives `zoo/` (the encoder of every task) and `images/`, both of which may be used and added to; the run
            directory `run/` with its evaluation and its report; and the figure `overview.png`.
        command: What the user typed, for the run directory.
        progress: Called with work done, work to do and what is at hand.

    Returns:
        What is to be said.

    Raises:
        JaxTransferError: `out` holds a run of something else.
        OSError: Something cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "zoo").exists():
        with atomic_directory(out / "zoo") as folder:
            for task in rooms.TASKS:
                shutil.copytree(rooms.zoo().path / task, folder / task)
    if not (out / "images").exists():
        progress(0, _COUNT, "Drawing rooms")
        with atomic_directory(out / "images") as folder:
            for number, image in enumerate(rooms.probe(_COUNT, size=_SIZE)):
                Image.fromarray(image).save(folder / f"room-{number:03}.png")
    run = out / "run"
    affinity, probe = run_affinity(
        Zoo(out / "zoo"),
        out / "images",
        run,
        command=command,
        size=_SIZE,
        progress=lambda done, total, name: progress(done, total, f"Attributing {name}"),
    )
    oracle = Oracle.rooms()
    evaluations = evaluate_run(run, oracle)
    write_report(
        run,
        oracle=oracle,
        groups=rooms_groups(),
        progress=lambda done, total, name: progress(done, total, f"Drawing {name}"),
    )
    affinity = affinity.only([*rooms.TASKS])
    _draw(out, affinity, probe, evaluations)
    return DemoResult(len(probe.images), _choices(affinity, oracle), evaluations)


def _choices(affinity: Affinity, oracle: Oracle) -> tuple[SourceChoice, ...]:
    """The nearest source of every task."""
    measured = rooms.transfers()
    losses = {
        target: dict(zip(measured.sources, column.tolist(), strict=True))
        for target, column in zip(measured.targets, measured.loss.T, strict=True)
    }
    choices = []
    for target in affinity.names:
        source, value, error = affinity.rank(target, method=METHOD)[0]
        scores = oracle.scores[target]
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        known = [losses[target][each] for each in ranked]
        mean = float(np.mean(known))
        gain = (mean - losses[target][source]) / (mean - min(known))
        choices.append(SourceChoice(target, source, value, error, ranked.index(source) + 1, ranked[0], gain))
    return tuple(choices)


def sentences(found: DemoResult) -> list[str]:
    """What was found, in words."""
    count = len(found.choices)
    gains = np.array([each.gain for each in found.choices])
    gain, error = gains.mean(), gains.std(ddof=1) / np.sqrt(count)
    groups = rooms_groups()
    own = sum(groups[each.target] == groups[each.source] for each in found.choices)
    sizes = [list(groups.values()).count(group) for group in groups.values()]
    said = [
        f"{count} networks, each trained on one task of Rooms, looked at {found.images} rooms that were new to them.",
        f"By {METHOD}, the nearest source {'gains' if gain >= 0 else 'loses'} {abs(gain):.0%} ± {error:.0%} of what "
        "the best one gains over the mean of all (in measured loss; ± is the standard error over targets).",
        f"It is of the target's own group (2D, 3D, geometric, semantic) for {own} of {count} targets; "
        f"chance would make it {(sum(sizes) - count) / (count - 1):.1f}.",
    ]
    for method, each in found.evaluations.items():
        (share, band), chance = each.shares("precision", 5), each.curve.random_precision[4]
        assert band is not None
        verdict = "better than" if band[0] > chance else "worse than" if band[1] < chance else "not to be told from"
        said.append(
            f"By {method}, {share:.0%} of the five nearest sources are among the five that transfer best, {verdict} "
            f"a random order's {chance:.0%} (95 % band: {band[0]:.0%} to {band[1]:.0%})."
        )
    return said


def _draw(out: Path, affinity: Affinity, probe: Probe, evaluations: dict[str, Evaluation]) -> None:
    """The figure of it all."""
    points = Points(out / "run" / "points")
    maps = {name: np.stack([scaled_map(each) for each in points.open(name, METHOD)[:_PHOTOS]]) for name in _SHOWN}
    ordered = affinity.only(task_tree(affinity, method=METHOD).ordered)
    overview(
        maps,
        probe.images[:_PHOTOS],
        ordered[METHOD],
        ordered.names,
        rooms_groups(),
        {method: each.curve for method, each in evaluations.items()},
        {method: each.bands for method, each in evaluations.items()},
        out / "overview.png",
        method=METHOD,
    )
