"""Holds and reads measured transfer from sources to targets."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from jaxtransfer import rooms
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_csv
from jaxtransfer.taskonomy.tasks import TASKS


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """Holds measured transfer from sources to targets.

    Attributes:
        name: Its name in tables and messages.
        scores: For every target the score of every source; larger is better. Retrieval uses only their order.
        aliases: The name in `scores` of sources and targets that have another name as well.

    Examples:
        >>> oracle = jt.Oracle("mine", {"depth": {"edges": 0.3, "normals": 0.8}}, {"surface_normals": "normals"})
        >>> oracle.own_name("surface_normals")
        'normals'
        >>> len(jt.Oracle.taskonomy().scores)
        18
    """

    name: str
    scores: Mapping[str, Mapping[str, float]]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def taskonomy(cls) -> Self:
        """Returns Taskonomy's first-order transfers with 16k images, as ranks: 18 targets, 19 sources each.

        They are from the affinities published with the code of Zamir et al., CVPR 2018, and are the oracle of Song et
        al., NeurIPS 2019. Tasks may have the names of either paper.
        """
        scores = {}
        for line in _TASKONOMY.replace("\n    ", " ").splitlines():
            target, sources = line.split(": ")
            scores[target] = {source: -float(rank) for rank, source in enumerate(sources.split(), 1)}
        return cls("taskonomy", scores, {task.release: name for name, task in TASKS.items()})

    @classmethod
    def rooms(cls) -> Self:
        """Returns the transfers of Rooms' encoders as ordinal affinities: 22 targets, 21 sources each.

        Losses and their errors are in `jaxtransfer.rooms.transfers`. Encoders of further seeds (`normal-seed1`) are not
        tasks and have no scores.
        """
        transfers = rooms.transfers()
        scores = {
            target: {
                source: float(score)
                for source, score in zip(transfers.sources, column, strict=True)
                if not math.isnan(score)
            }
            for target, column in zip(transfers.targets, transfers.affinity.T, strict=True)
        }
        return cls("rooms", scores)

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Reads a CSV file: rows `source,target,score` under that header, or a matrix.

        A matrix has targets in its first row and sources in its first column. Empty cells are unknown scores; a task's
        score for itself is ignored. Larger scores are better. Taskonomy's tasks may have the names of either release.

        Raises:
            JaxTransferError: The file cannot be read, a cell is not a number, or a pair occurs twice.
        """
        file = Path(file)
        lines = [[cell.strip() for cell in row] for row in read_csv(file, "an oracle") if any(row)]
        header, *rows = lines or [[]]
        in_rows = header == ["source", "target", "score"]
        cells = _from_rows(rows, file) if in_rows else _from_matrix(header[1:], rows, file)
        scores: dict[str, dict[str, float]] = {}
        for source, target, text in cells:
            if source in scores.get(target, {}):
                raise JaxTransferError(f"{file} says twice how {source} transfers to {target}.")
            if text and source != target:
                scores.setdefault(target, {})[source] = _number(text, file)
        if not scores:
            raise JaxTransferError(f"{file} holds no score of a source for another target.")
        known = {*scores, *(source for of_target in scores.values() for source in of_target)}
        pairs = [pair for name, task in TASKS.items() for pair in ((name, task.release), (task.release, name))]
        return cls(file.name, scores, {other: own for own, other in pairs if own in known and other not in known})

    def own_name(self, name: str) -> str:
        """Returns the name of a task in `scores`."""
        return self.aliases.get(name, name)


def _from_rows(rows: Iterable[list[str]], file: Path) -> list[tuple[str, str, str]]:
    cells = []
    for row in rows:
        if len(row) != 3:
            raise JaxTransferError(f"{file} needs source,target,score in every row, not {','.join(row)!r}.")
        cells.append((row[0], row[1], row[2]))
    return cells


def _from_matrix(targets: list[str], rows: Iterable[list[str]], file: Path) -> list[tuple[str, str, str]]:
    cells = []
    for source, *row in rows:
        if len(row) != len(targets):
            raise JaxTransferError(f"{file} names {len(targets)} targets, but the row {source} has {len(row)} cells.")
        cells += [(source, target, text) for target, text in zip(targets, row, strict=True)]
    return cells


def _number(text: str, file: Path) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise JaxTransferError(f"{file} holds {text!r} where a score should be; leave a cell empty if it is not known.")
    return number


# Best source first.
_TASKONOMY = """\
autoencoder: denoise inpainting_whole colorization segment2d keypoint2d class_places class_1000 curvature
    segmentsemantic edge3d reshade keypoint3d rgb2mist segment25d rgb2sfnorm rgb2depth room_layout edge2d
    vanishing_point
curvature: rgb2sfnorm rgb2depth keypoint3d rgb2mist reshade edge3d segment25d inpainting_whole room_layout
    vanishing_point segmentsemantic class_1000 edge2d denoise autoencoder keypoint2d class_places segment2d
    colorization
denoise: inpainting_whole autoencoder colorization segment2d keypoint2d class_places class_1000 segmentsemantic
    curvature reshade rgb2mist edge3d keypoint3d segment25d rgb2depth rgb2sfnorm room_layout edge2d vanishing_point
edge2d: keypoint2d autoencoder segment2d denoise colorization inpainting_whole curvature keypoint3d segment25d
    segmentsemantic edge3d class_1000 class_places rgb2sfnorm rgb2mist reshade rgb2depth room_layout vanishing_point
edge3d: rgb2sfnorm keypoint3d rgb2depth curvature rgb2mist reshade segment25d room_layout class_places
    segmentsemantic vanishing_point segment2d edge2d denoise colorization keypoint2d inpainting_whole autoencoder
    class_1000
keypoint2d: denoise autoencoder colorization segment2d inpainting_whole class_1000 class_places edge2d
    segmentsemantic curvature rgb2mist keypoint3d edge3d reshade segment25d rgb2sfnorm rgb2depth room_layout
    vanishing_point
keypoint3d: curvature rgb2sfnorm segment25d edge3d reshade rgb2mist rgb2depth segment2d inpainting_whole denoise
    edge2d keypoint2d class_1000 autoencoder segmentsemantic class_places colorization vanishing_point room_layout
reshade: rgb2sfnorm rgb2mist rgb2depth edge3d keypoint3d curvature segment25d room_layout segmentsemantic
    vanishing_point class_places edge2d class_1000 keypoint2d segment2d colorization autoencoder denoise
    inpainting_whole
rgb2depth: rgb2mist reshade keypoint3d rgb2sfnorm edge3d curvature segment25d segmentsemantic room_layout
    class_places class_1000 segment2d vanishing_point colorization edge2d denoise keypoint2d autoencoder
    inpainting_whole
rgb2mist: rgb2depth reshade edge3d keypoint3d rgb2sfnorm curvature segment25d segmentsemantic room_layout
    class_places class_1000 vanishing_point colorization segment2d edge2d denoise autoencoder keypoint2d
    inpainting_whole
rgb2sfnorm: reshade edge3d keypoint3d curvature segment25d rgb2mist rgb2depth room_layout vanishing_point edge2d
    keypoint2d segment2d inpainting_whole segmentsemantic class_places autoencoder denoise colorization class_1000
room_layout: rgb2sfnorm vanishing_point reshade edge3d rgb2mist rgb2depth keypoint3d curvature segment25d
    class_places edge2d segmentsemantic class_1000 colorization segment2d keypoint2d autoencoder inpainting_whole
    denoise
segment25d: keypoint3d rgb2sfnorm curvature edge3d reshade rgb2mist rgb2depth edge2d segment2d keypoint2d
    autoencoder denoise inpainting_whole segmentsemantic colorization class_places class_1000 room_layout
    vanishing_point
segment2d: autoencoder keypoint2d denoise colorization edge2d inpainting_whole segment25d class_places curvature
    segmentsemantic edge3d class_1000 reshade rgb2mist rgb2sfnorm keypoint3d rgb2depth room_layout vanishing_point
vanishing_point: rgb2sfnorm room_layout reshade edge3d segment25d keypoint3d curvature rgb2depth rgb2mist edge2d
    keypoint2d class_places segment2d segmentsemantic class_1000 inpainting_whole autoencoder colorization denoise
segmentsemantic: curvature rgb2sfnorm keypoint3d reshade class_places edge3d segment25d rgb2mist rgb2depth
    class_1000 segment2d colorization keypoint2d denoise autoencoder edge2d inpainting_whole room_layout
    vanishing_point
class_1000: class_places segmentsemantic edge3d curvature keypoint3d rgb2sfnorm rgb2mist segment25d reshade
    room_layout denoise colorization segment2d inpainting_whole autoencoder keypoint2d edge2d vanishing_point
    rgb2depth
class_places: class_1000 segmentsemantic edge3d curvature keypoint3d rgb2sfnorm reshade rgb2mist segment25d
    colorization rgb2depth room_layout segment2d keypoint2d denoise autoencoder inpainting_whole edge2d
    vanishing_point
"""
