"""How the report shows each method of a run."""

import dataclasses
import math
from typing import Any

import numpy as np

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.measure import Measure
from jaxtransfer.evaluation.confidence import certain_ranking
from jaxtransfer.evaluation.tree import TaskTree, task_tree


@dataclasses.dataclass(frozen=True, eq=False)
class MethodView:
    """What the figures and tables of one method need.

    Attributes:
        name: The method.
        measure: What its values are.
        tree: The tree of the networks whose affinities are all known; None where they are fewer than three, and where
            targets have names of their own.
        order: Indices of the sources in the order of the tree, followed by those that are not in it.
    """

    name: str
    measure: Measure
    tree: TaskTree | None
    order: list[int]

    @property
    def by(self) -> str:
        """Returns " by METHOD" for titles; nothing where the measure has the method's name."""
        return "" if self.measure.name == self.name else f" by {self.name}"


def method_view(affinity: Affinity, method: str) -> MethodView:
    """Returns what the figures and tables of a method need."""
    tree = None
    if affinity.square and len((known := affinity.complete(method)).names) > 2:
        tree = task_tree(known, method=method)
    ordered = () if tree is None else tree.ordered
    others = [name for name in affinity.sources if name not in ordered]
    order = [affinity.sources.index(name) for name in (*ordered, *others)]
    return MethodView(method, affinity.measure(method), tree, order)


def method_data(affinity: Affinity, view: MethodView) -> dict[str, Any]:
    """Returns what the page's script needs to know of a method.

    Every ranked source is [index, value, standard error, probability to rank above the next, more images needed].
    """
    index = {name: i for i, name in enumerate(affinity.sources)}
    counts = affinity.counts(view.name)
    of_targets = counts.max(axis=1, initial=0)
    if affinity.square:
        off_diagonal = counts[~np.eye(len(counts), dtype=bool)].reshape(len(counts), -1)
        of_targets = off_diagonal.min(axis=1, initial=int(counts.max(initial=0)))
    unusable = [network for network, _ in affinity.unusable[view.name]]
    return {
        "name": view.name,
        "quantity": view.measure.name,
        "sampled": view.measure.sampled,
        "directed": view.measure.directed,
        "sign": -1 if view.measure.smaller_is_nearer else 1,
        "tree": view.tree is not None,
        "order": view.order,
        "ranked": [
            [
                [
                    index[source.name],
                    _rounded(source.affinity, 6),
                    _rounded(source.stderr, 4),
                    _rounded(source.above_next, 4),
                    source.more_images,
                ]
                for source in certain_ranking(affinity, target, method=view.name)
            ]
            for target in affinity.targets
        ],
        "counts": of_targets.tolist(),
        "unusable": [unusable.count(name) for name in affinity.targets],
    }


def _rounded(value: float | None, digits: int) -> float | None:
    """Returns a number with `digits` significant digits; None where it is unknown or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
