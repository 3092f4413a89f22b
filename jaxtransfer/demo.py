"""Rooms from end to end: which of 22 trained networks are alike, and does that predict transfer between them?"""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxtransfer import rooms
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.data.probe import Probe
from jaxtransfer.evaluation.groups import rooms_groups
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.summary import Evaluation
from jaxtransfer.evaluation.tree import task_tree
from jaxtransfer.figures import scaled_map
from jaxtransfer.figures.overview import overview
from jaxtransfer.files import atomic_directory
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.store import Points
from jaxtransfer.report import write_report
from jaxtransfer.runs.affinity import run_affinity
from jaxtransfer.runs.evaluation import evaluate_run

METHOD = "epsilon_lrp"
"""The method whose rankings are shown; none did better in Song et al. (NeurIPS 2019)."""
_COUNT, _SIZE = 64, 64  # number of images; their height and width in pixels
_SHOWN = ("edge_texture", "normal", "vanishing_point", "class_scene")  # one of each group
_PHOTOS = 3


@dataclasses.dataclass(frozen=True)
class SourceChoice:
    """The source that a ranking puts first, and how well it really transfers.

    Attributes:
        target: The target task.
        source: The task of the network that is nearest to the target's.
        affinity: Affinity of the two networks, within [-1, 1].
        stderr: Standard error of the affinity over images.
        place: Rank of the source by measured transfer to the target; 1 is the best.
        best: The source of rank 1.
        gain: Measured loss of the source on a scale from 0, the mean over all sources, to 1, the best source; below 0
            where the source is worse than the mean.
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
    """The results of the demo.

    Attributes:
        images: Number of probe images.
        choices: The nearest source of every task by `METHOD`.
        evaluations: For each method, its agreement with measured transfer.
    """

    images: int
    choices: tuple[SourceChoice, ...]
    evaluations: dict[str, Evaluation]


def run_demo(out: str | Path, *, command: Sequence[str], progress: Callable[[int, int, str], None]) -> DemoResult:
    """Compares the encoders of Rooms and judges the result by measured transfer; resumes an unfinished demo.

    Args:
        out: The directory that receives `zoo/` (the encoder of every task) and `images/`, to both of which users may
            add; the run directory `run/` with its evaluation and its report; and the figure `overview.png`.
        command: The command line, for the record of the run.
        progress: Called with the work done, all work and the name of the current step.

    Returns:
        The results.

    Raises:
        JaxTransferError: `out` holds a run with other settings or images.
        OSError: A file cannot be written.
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
        AffinityOptions(),
        command=command,
        size=_SIZE,
        progress=lambda done, total, name: progress(done, total, f"Attributing {name}"),
    )
    oracle = Oracle.rooms()
    evaluations = evaluate_run(run, oracle).by_method
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
    """Returns the nearest source of every task."""
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
        known = [losses[target][other] for other in ranked]
        mean = float(np.mean(known))
        gain = (mean - losses[target][source]) / (mean - min(known))
        choices.append(SourceChoice(target, source, value, error, ranked.index(source) + 1, ranked[0], gain))
    return tuple(choices)


def sentences(result: DemoResult) -> list[str]:
    """Returns the conclusions of the demo, one sentence each."""
    count = len(result.choices)
    gains = np.array([choice.gain for choice in result.choices])
    gain, error = gains.mean(), gains.std(ddof=1) / np.sqrt(count)
    groups = rooms_groups()
    own = sum(groups[choice.target] == groups[choice.source] for choice in result.choices)
    sizes = [list(groups.values()).count(group) for group in groups.values()]
    lines = [
        f"{count} networks, each trained on one task of Rooms, were compared on {result.images} new images of rooms.",
        f"By {METHOD}, starting from the nearest source {'gains' if gain >= 0 else 'loses'} {abs(gain):.0%} ± "
        f"{error:.0%} of what the best source gains over an average one (in measured loss; ± is the standard error "
        "over targets).",
        f"The nearest source belongs to the target's own group (2D, 3D, geometric, semantic) for {own} of {count} "
        f"targets; a random source would for {(sum(sizes) - count) / (count - 1):.1f}.",
    ]
    for method, evaluation in result.evaluations.items():
        (share, band), chance = evaluation.shares("precision", 5), evaluation.curve.random_precision[4]
        assert band is not None
        verdict = (
            "better than" if band[0] > chance else "worse than" if band[1] < chance else "not clearly different from"
        )
        lines.append(
            f"By {method}, {share:.0%} of the five nearest sources are among the five that transfer best (95 % band: "
            f"{band[0]:.0%} to {band[1]:.0%}), {verdict} the {chance:.0%} of a random order."
        )
    return lines


def _draw(out: Path, affinity: Affinity, probe: Probe, evaluations: dict[str, Evaluation]) -> None:
    """Draws the overview of all steps."""
    points = Points(out / "run" / "points")
    maps = {name: np.stack([scaled_map(values) for values in points.open(name, METHOD)[:_PHOTOS]]) for name in _SHOWN}
    ordered = affinity.only(task_tree(affinity, method=METHOD).ordered)
    overview(
        maps,
        probe.images[:_PHOTOS],
        ordered[METHOD],
        ordered.names,
        rooms_groups(),
        evaluations,
        out / "overview.png",
        method=METHOD,
    )
