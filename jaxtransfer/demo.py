"""Rooms from end to end: which of 22 trained networks to start from, and how good the choice is."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxtransfer import rooms
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.data.probe import Probe
from jaxtransfer.defaults import LINEAR_PREDICTIVITY, METHODS, RELEVANT
from jaxtransfer.evaluation.confidence import certain_ranking
from jaxtransfer.evaluation.groups import rooms_groups
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import SECOND
from jaxtransfer.evaluation.rooms_scores import RANDOM, percent
from jaxtransfer.evaluation.summary import Evaluations
from jaxtransfer.evaluation.tree import task_tree
from jaxtransfer.figures import scaled_map
from jaxtransfer.figures.overview import Answer, Share, overview
from jaxtransfer.files import atomic_directory
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.store import Points
from jaxtransfer.report import write_report
from jaxtransfer.runs.affinity import run_affinity
from jaxtransfer.runs.evaluation import evaluate_run
from jaxtransfer.runs.record import locked

METHOD = LINEAR_PREDICTIVITY
"""The method whose rankings are shown: the one that predicts transfer best on Rooms."""
_MAPS = "epsilon_lrp"
_SHOWN = ("edge_texture", "normal", "vanishing_point", "class_scene")  # one of each group
_PHOTOS, _SIZE = 5, 64  # photos shown; height and width of all images in pixels
# The first images of `rooms.probe`: compiling the renderer takes as long as everything else.
_IMAGES = Path(rooms.__file__).with_name("images")


@dataclasses.dataclass(frozen=True)
class SourceChoice:
    """The source that a ranking puts first, and how well it really transfers.

    Attributes:
        target: The target task.
        source: The task of the network that is nearest to the target's.
        above_next: Probability that the source truly ranks above the next one; None where it is not known.
        place: Rank of the source by measured transfer to the target; 1 is the best.
        best: The source of rank 1.
        gain: Measured loss of the source on a scale from 0, the mean over all sources, to 1, the best source; below 0
            where the source is worse than the mean.
    """

    target: str
    source: str
    above_next: float | None
    place: int
    best: str
    gain: float

    @property
    def sure(self) -> str:
        """Writes `above_next` as text; a probability is never 100 %."""
        if self.above_next is None:
            return "not known"
        return "> 99 %" if self.above_next > 0.99 else percent(self.above_next)


@dataclasses.dataclass(frozen=True, eq=False)
class DemoResult:
    """The results of the demo.

    Attributes:
        images: Number of probe images.
        choices: The nearest source of every task by `METHOD`.
        evaluations: The agreement of each method with measured transfer, and that of the references.
    """

    images: int
    choices: tuple[SourceChoice, ...]
    evaluations: Evaluations


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
        JaxTransferError: `out` holds a run with other settings or images, or another demo is at work there.
        OSError: A file cannot be written.
    """
    out = Path(out)
    with locked(out):
        return _run(out, command, progress)


def _run(out: Path, command: Sequence[str], progress: Callable[[int, int, str], None]) -> DemoResult:
    if not (out / "zoo").exists():
        with atomic_directory(out / "zoo") as folder:
            for task in rooms.TASKS:
                shutil.copytree(rooms.zoo().path / task, folder / task)
    if not (out / "images").exists():
        with atomic_directory(out / "images") as folder:
            shutil.copytree(_IMAGES, folder, dirs_exist_ok=True)
    run = out / "run"
    affinity, probe = run_affinity(
        Zoo(out / "zoo"),
        out / "images",
        run,
        AffinityOptions(),
        command=command,
        size=_SIZE,
        progress=lambda done, total, name: progress(done, total, f"Comparing {name}"),
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
    result = DemoResult(len(probe.images), _choices(affinity, oracle), evaluations)
    _draw(out, affinity, probe, result)
    return result


def _choices(affinity: Affinity, oracle: Oracle) -> tuple[SourceChoice, ...]:
    """Returns the nearest source of every task."""
    measured = rooms.transfers()
    losses = {
        target: dict(zip(measured.sources, column.tolist(), strict=True))
        for target, column in zip(measured.targets, measured.loss.T, strict=True)
    }
    choices = []
    for target in affinity.names:
        nearest = certain_ranking(affinity, target, method=METHOD)[0]
        source = nearest.name
        scores = {name: score for name, score in oracle.scores[target].items() if name in affinity.names}
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        known = [losses[target][other] for other in ranked]
        mean = float(np.mean(known))
        gain = (mean - losses[target][source]) / (mean - min(known))
        choices.append(SourceChoice(target, source, nearest.above_next, ranked.index(source) + 1, ranked[0], gain))
    return tuple(choices)


def sentences(result: DemoResult) -> list[str]:
    """Returns the conclusions of the demo, one sentence each."""
    count = len(result.choices)
    places = np.array([choice.place for choice in result.choices])
    gains = np.array([choice.gain for choice in result.choices])
    gain, error = gains.mean(), gains.std(ddof=1) / np.sqrt(count)
    shares = _shares(result.evaluations)
    texts = {name: percent(share.value) for name, share in shares.items()}
    maps = sorted(shares[method].value for method in METHODS if method in shares)
    own = shares[METHOD]
    if own.low is not None and own.high is not None:
        texts[METHOD] += f" (95 % band: {percent(own.low)} to {percent(own.high)})"
    listed = [f"{METHOD} {texts[METHOD]}"]
    if maps:
        low, high = percent(maps[0]), percent(maps[-1])
        listed.append(f"the paper's maps {low if low == high else f'{low} to {high}'}")
    listed += [f"{name} {texts[name]}" for name in (RANDOM, SECOND) if name in shares]
    return [
        f"The choice is the best of {count - 1} sources for {(places == 1).sum()} of {count} targets, one of the best "
        f"three for {(places <= 3).sum()}; it {'gains' if gain >= 0 else 'loses'} {percent(abs(gain))} ± "
        f"{percent(error)} of what the best gains over an average one.",
        f"Share of the {RELEVANT} best sources found: {', '.join(listed)}.",
    ]


def _shares(evaluations: Evaluations) -> dict[str, Share]:
    """Returns the share of the best sources that each method finds, that of a random order, and the noise ceiling."""
    shares = {}
    for name, evaluation in (evaluations.by_method | evaluations.references).items():
        value, band = evaluation.shares("precision", RELEVANT)
        if name in evaluations.by_method or name == SECOND:
            shares[name] = Share(value, *(band or (None, None)))
    curve = evaluations.by_method[METHOD].curve
    return shares | {RANDOM: Share(float(curve.random_precision[RELEVANT - 1]), None, None)}


def _draw(out: Path, affinity: Affinity, probe: Probe, result: DemoResult) -> None:
    """Draws the overview of the answers, how good they are, and maps of some networks."""
    points = Points(out / "run" / "points")
    maps = {name: np.stack([scaled_map(values) for values in points.open(name, _MAPS)[:_PHOTOS]]) for name in _SHOWN}
    ordered = affinity.only(task_tree(affinity, method=METHOD).ordered)
    overview(
        ordered[METHOD],
        ordered.names,
        {choice.target: Answer(choice.source, choice.sure, choice.place) for choice in result.choices},
        rooms_groups(),
        _shares(result.evaluations),
        maps,
        probe.images[:_PHOTOS],
        out / "overview.png",
        method=METHOD,
        map_method=_MAPS,
    )
