"""Holds and reads measured transfer from sources to targets."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float

from jaxtransfer import rooms
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.files import read_csv, read_records, shortened
from jaxtransfer.taskonomy.tasks import TASKS

_FOLDER = Path(__file__).parent / "oracles"
WILD = _FOLDER / "wild.csv"
_FORMS = (
    "An oracle has the columns source, target and score (and perhaps stderr) and a row for every pair, or the names of "
    "the targets in its first row and those of the sources in its first column."
)
Scores = Mapping[str, Mapping[str, float]]
"""For every target a value of every source."""


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """Holds measured transfer from sources to targets.

    Attributes:
        name: Its name in tables and messages.
        scores: For every target the score of every source; larger is better. Retrieval uses only their order. Sources
            need not be targets.
        aliases: The name in `scores` of sources and targets that have another name as well.
        stderr: For every target the standard error of every source's score, nested as `scores` are. Errors that the
            sources of a target have in common should not be in it, since they do not change the order. Empty where
            errors are not known.

    Examples:
        >>> oracle = jt.Oracle("mine", {"depth": {"edges": 0.3, "normals": 0.8}}, {"surface_normals": "normals"})
        >>> oracle.own_name("surface_normals")
        'normals'
        >>> len(jt.Oracle.taskonomy().scores)
        18
    """

    name: str
    scores: Scores
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stderr: Scores = dataclasses.field(default_factory=dict)

    @classmethod
    def taskonomy(cls, order: int = 1, *, score: Literal["affinity", "gain", "quality"] = "affinity") -> Self:
        """Returns Taskonomy's measured transfer with 16k images: 18 targets.

        The numbers were published with the code of Zamir et al., CVPR 2018. The affinities of first order, with 19
        sources for each target, are the oracle of Song et al., NeurIPS 2019. Tasks may have the names of either paper.

        Args:
            order: Number of tasks whose representations are a source together, 1 to 4. Sources of a higher order are
                named as their tasks are, "curvature+edge3d"; for each target only 10 to 25 of them were measured,
                some of them with `random`, a network without training.
            score: "affinity": ordinal affinity; "gain": share of images on which the transfer beats training from
                scratch on the same images; "quality": share on which it beats the network trained on all images.

        Raises:
            JaxTransferError: Another order or score.
        """
        if order not in (1, 2, 3, 4) or score not in ("affinity", "gain", "quality"):
            raise JaxTransferError(
                f"Taskonomy has orders 1 to 4 of affinity, gain and quality, not order {order!r} of {score!r}."
            )
        stored = cls._built_in("taskonomy", score=score)
        scores = {
            target: {source: value for source, value in of_target.items() if source.count("+") == order - 1}
            for target, of_target in stored.scores.items()
        }
        suffix = "" if score == "affinity" else f"-{score}"
        return dataclasses.replace(stored, name=f"taskonomy{suffix}", scores=scores)

    @classmethod
    def rooms(cls, protocol: str = "frozen") -> Self:
        """Returns the transfers of Rooms' encoders as ordinal affinities: 22 targets, 21 sources each.

        Losses and their errors are in `jaxtransfer.rooms.transfers`. Encoders of further seeds (`normal-seed1`) are not
        tasks and have no scores.

        Standard errors of the affinities are those of the losses, scaled by the ratio of the standard deviations of log
        affinities and losses over a target's sources. First the smallest squared error among the sources is subtracted
        from all: that much is due to test images that are hard for every source, and does not change their order. What
        remains is still too large: by it 71 % of the orders of two sources are significant, in tests image by image
        78 % are (`larger_readout`: 80 % and 88 %; `finetuned`: 52 % and 63 %).

        Args:
            protocol: How transfer was measured: "frozen", "larger_readout" or "finetuned"; see
                `jaxtransfer.rooms.transfers`.

        Raises:
            JaxTransferError: Another protocol.
        """
        transfers = rooms.transfers(protocol)
        scores: dict[str, dict[str, float]] = {}
        stderr: dict[str, dict[str, float]] = {}
        columns = (transfers.affinity.T, transfers.loss.T, transfers.stderr.T)
        for target, affinity, loss, error in zip(transfers.targets, *columns, strict=True):
            known = np.flatnonzero(~np.isnan(affinity))
            sources = [transfers.sources[i] for i in known]
            errors = _affinity_errors(affinity[known], loss[known], error[known])
            scores[target] = dict(zip(sources, affinity[known].tolist(), strict=True))
            stderr[target] = dict(zip(sources, errors.tolist(), strict=True))
        suffix = "" if protocol == "frozen" else f"-{protocol.replace('_', '-')}"
        return cls(f"rooms{suffix}", scores, stderr=stderr)

    @classmethod
    def medmnist(cls) -> Self:
        """Returns the AUC of networks that were pretrained on one data set and finetuned on another.

        The 12 targets are data sets of MedMNIST, the 15 sources these, ImageNet, RadImageNet and all of MedMNIST; 14
        sources for each target. From the study of transferability in medical imaging of
        github.com/DovileDo/transferability-in-medical-imaging (2025).
        """
        return cls._built_in("medmnist")

    @classmethod
    def hear(cls) -> Self:
        """Returns the scores of 34 audio networks, the sources, on the 19 tasks of HEAR (Turian et al. 2022).

        No network is a task. A score is in the measure of its task: accuracy, mean average precision or another.
        """
        return cls._built_in("hear")

    @classmethod
    def wild(cls, labels: int | None = None) -> Self:
        """Returns the accuracies that readouts of published networks reach on published sets of labelled images.

        The sources are networks for tasks from edges to text, the targets sets of images from blood cells to emoji; no
        target has a network of its own. Each readout is linear, on the frozen features of a network, and its accuracy
        is cross-validated. Standard errors are without what all sources of a target have in common.
        `python -m benchmarks.wild` measures them.

        Args:
            labels: Number of labelled examples: 30, 100, 300 or 500. Targets with fewer are left out. None: the largest
                of these numbers that a target has.

        Raises:
            JaxTransferError: Another number of examples.
        """
        rows = read_records(WILD)
        numbers = sorted({int(row["labels"]) for row in rows})
        if labels is not None and labels not in numbers:
            known = ", ".join(map(str, numbers))
            raise JaxTransferError(f"The accuracies of wild are with {known} labelled examples, not with {labels}.")
        scores, stderr = scores_with(labels, rows)
        return cls("wild", scores, stderr=stderr)

    @classmethod
    def load(
        cls,
        file: str | Path,
        *,
        source: str | Sequence[str] = "source",
        target: str = "target",
        score: str = "score",
        ignore: Sequence[str] = (),
    ) -> Self:
        """Reads a CSV file: a row for every pair, or a matrix. Larger scores are better.

        A file with a row for every pair has a header with the columns `source`, `target`, `score` and perhaps `stderr`,
        the standard error of a score, in any order and among others.

        A matrix has targets in its first row, and sources in the column `source`, or the first where there is none.
        Other columns without a name hold no target.

        Empty cells are unknown; a task's score for itself is ignored. Taskonomy's tasks may have the names of either
        release.

        Args:
            file: The file.
            source: Name of the column of sources. Several columns: a source has the names in them, joined by "+".
            target: Name of the column of targets in a file with a row for every pair.
            score: Name of the column of scores there.
            ignore: Columns of a matrix that hold no target.

        Raises:
            JaxTransferError: The file cannot be read, lacks a column, a cell is not a number, or a pair occurs twice.
        """
        file = Path(file)
        lines = [[cell.strip() for cell in row] for row in read_csv(file, "an oracle") if any(row)]
        header, *rows = lines or [[]]
        for delimiter, plural in {";": "semicolons", "\t": "tabs"}.items():
            if len(header) == 1 and delimiter in header[0]:
                raise JaxTransferError(f"{file} has {plural} between its cells; write it with commas. {_FORMS}")
        sources = [source] if isinstance(source, str) else [*source]
        hint = ""
        if (target, score) != ("target", "score") or {target, score} <= {*header}:
            cells = _from_rows(header, rows, (sources, target, score), file)
        else:
            if sources == ["source"] and "source" not in header:
                sources = header[:1]
            hint = f" Its first row, {shortened(','.join(header))}, is taken for the names of targets. {_FORMS}"
            cells = _from_matrix(header, rows, sources, ignore, file)
        scores: dict[str, dict[str, float]] = {}
        stderr: dict[str, dict[str, float]] = {}
        for own, other, text, error in cells:
            if own in scores.get(other, {}):
                raise JaxTransferError(f"{file} says twice how {own} transfers to {other}.")
            if text and own != other:
                scores.setdefault(other, {})[own] = _number(text, "score", file, hint=hint)
                if error:
                    stderr.setdefault(other, {})[own] = _number(error, "standard error", file, at_least=0)
        if not scores:
            raise JaxTransferError(f"{file} holds no score of a source for another target. {_FORMS}")
        known = {*scores, *(own for of_target in scores.values() for own in of_target)}
        pairs = [pair for name, task in TASKS.items() for pair in ((name, task.release), (task.release, name))]
        aliases = {other: own for own, other in pairs if own in known and other not in known}
        return cls(file.name, scores, aliases, stderr)

    @classmethod
    def _built_in(cls, name: str, score: str = "score") -> Self:
        return dataclasses.replace(cls.load(_FOLDER / f"{name}.csv", score=score), name=name)

    def own_name(self, name: str) -> str:
        """Returns the name of a task in `scores`."""
        return self.aliases.get(name, name)

    def table(
        self, values: Scores, names: Sequence[str], *, targets: Sequence[str] | None = None
    ) -> Float[np.ndarray, "targets sources"]:
        """Tabulates `scores` or `stderr`, a row for each target; NaN where not known and for a target with itself.

        Args:
            values: `scores` or `stderr`.
            names: Sources under any of their names.
            targets: Targets, likewise; None: the sources.
        """
        own = [self.own_name(name) for name in names]
        rows = own if targets is None else [self.own_name(name) for name in targets]
        empty: Mapping[str, float] = {}
        cells = [
            math.nan if source == target else values.get(target, empty).get(source, math.nan)
            for target in rows
            for source in own
        ]
        return np.array(cells, np.float64).reshape(len(rows), len(own))


def scores_with(labels: int | None, rows: Sequence[Mapping[str, Any]]) -> tuple[Scores, Scores]:
    """Returns the scores that were measured with a number of labelled examples, and their standard errors.

    Args:
        labels: The number of labelled examples; None: the largest of each target.
        rows: Measured scores: the entries source, target, labels, score and stderr.
    """
    most = {row["target"]: int(row["labels"]) for row in sorted(rows, key=lambda row: int(row["labels"]))}
    scores: dict[str, dict[str, float]] = {}
    stderr: dict[str, dict[str, float]] = {}
    for row in rows:
        if int(row["labels"]) == (most[row["target"]] if labels is None else labels):
            scores.setdefault(row["target"], {})[row["source"]] = float(row["score"])
            stderr.setdefault(row["target"], {})[row["source"]] = float(row["stderr"])
    return scores, stderr


def _from_rows(
    header: list[str], rows: list[list[str]], columns: tuple[list[str], str, str], file: Path
) -> list[tuple[str, str, str, str]]:
    """Returns source, target, score and standard error of each row, as text."""
    sources, target, score = columns
    *of_source, of_target, of_score = _positions(header, [*sources, target, score], file)
    of_error = header.index("stderr") if "stderr" in header else None
    cells = []
    for row in rows:
        if len(row) != len(header):
            raise JaxTransferError(
                f"{file} needs {shortened(','.join(header))} in every row, not {shortened(','.join(row))!r}."
            )
        error = "" if of_error is None else row[of_error]
        cells.append(("+".join(row[i] for i in of_source), row[of_target], row[of_score], error))
    return cells


def _from_matrix(
    header: list[str], rows: list[list[str]], sources: list[str], ignore: Sequence[str], file: Path
) -> list[tuple[str, str, str, str]]:
    """Returns source, target, score and an empty standard error of each cell, as text."""
    of_source = _positions(header, sources, file)
    ignored = {*of_source, *_positions(header, ignore, file)}
    targets = [(i, name) for i, name in enumerate(header) if name and i not in ignored]
    cells = []
    for row in rows:
        if len(row) != len(header):
            cells_of_row = len(row) - len(header) + len(targets)
            raise JaxTransferError(
                f"{file} names {len(targets)} targets, but the row {row[0]} has {cells_of_row} cells."
            )
        source = "+".join(row[i] for i in of_source)
        cells += [(source, target, row[i], "") for i, target in targets]
    return cells


def _positions(header: list[str], names: Sequence[str], file: Path) -> list[int]:
    if missing := [name for name in names if name not in header]:
        raise unknown_name("column", missing[0], header, where=f"in {file}")
    return [header.index(name) for name in names]


def _number(text: str, what: str, file: Path, *, at_least: float = -math.inf, hint: str = "") -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < at_least:
        raise JaxTransferError(
            f"{file} holds {shortened(text)!r} where a {what} should be; leave a cell empty if it is not known.{hint}"
        )
    return number


def _affinity_errors(
    affinity: Float[np.ndarray, " sources"], loss: Float[np.ndarray, " sources"], stderr: Float[np.ndarray, " sources"]
) -> Float[np.ndarray, " sources"]:
    """Carries the standard errors of losses over to ordinal affinities; see `Oracle.rooms`."""
    own = np.sqrt(np.square(stderr) - np.square(stderr).min())
    return affinity * own * np.log(affinity).std() / loss.std()
