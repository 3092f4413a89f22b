"""The figures of a report, as functions that draw them."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxtransfer import figures
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.report.methods import MethodView

Drawing = tuple[str, Callable[..., None]]
"""The name of a figure's files, and the function that draws it to `path`."""

_NETWORKS_PER_PAGE = 20
MAX_DRAWN = 100
"""Of more networks than this only the heat map is drawn; other figures could not be read, and would take minutes."""


def method_drawings(affinity: Affinity, view: MethodView, groups: Mapping[str, str] | None) -> Iterator[Drawing]:
    """Returns the heat map, the tree and the ranked sources of a method; of many networks the heat map alone."""
    measure = view.measure
    yield (
        f"heat_map_{view.name}",
        functools.partial(
            figures.heat_map,
            affinity[view.name][np.ix_(view.order, view.order)] if affinity.square else affinity[view.name],
            [affinity.sources[i] for i in view.order],
            targets=None if affinity.square else affinity.targets,
            title=f"{measure.name.capitalize()}{view.by}{', in the order of the tree' if view.tree else ''}",
            quantity=measure.name,
            smaller_is_nearer=measure.smaller_is_nearer,
            directed=measure.directed,
            groups=groups if affinity.square else None,
        ),
    )
    if max(len(affinity.sources), len(affinity.targets)) > MAX_DRAWN:
        return
    if view.tree is not None:
        title = f"Task similarity tree{view.by}{', from the symmetric part' if measure.directed else ''}"
        yield f"tree_{view.name}", functools.partial(figures.tree, view.tree, title=title, groups=groups)
    best = "" if len(affinity.sources) - affinity.square <= _NETWORKS_PER_PAGE else ", the ten best"
    for targets, suffix, page in pages(affinity.targets):
        rankings = {target: affinity.rank(target, method=view.name) for target in targets}
        direction = measure.direction if affinity.square else measure.direction.replace("nearer", "better")
        title = f"Sources{view.by}{best} ({measure.name} ± standard error, {direction}){page}"
        yield f"sources_{view.name}{suffix}", functools.partial(figures.ranked_sources, rankings, title=title)


def pages(names: Sequence[str]) -> Iterator[tuple[Sequence[str], str, str]]:
    """Divides names into pages of a figure.

    Yields:
        The names on a page, the suffix of the figure's file ("_2"), and what its title adds (", page 2 of 5"); the
        latter two are empty where there is only one page.
    """
    starts = range(0, len(names), _NETWORKS_PER_PAGE)
    for number, start in enumerate(starts, 1):
        several = len(starts) > 1
        suffix = f"_{number:0{len(str(len(starts)))}}" if several else ""
        page = f", page {number} of {len(starts)}" if several else ""
        yield names[start : start + _NETWORKS_PER_PAGE], suffix, page
