"""Task similarity trees."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from jaxtransfer.evaluation.tree import TaskTree
from jaxtransfer.figures import style

_WIDTH = 6  # inches


@style.fixed_style()
def tree(
    task_tree: TaskTree,
    path: str | Path,
    title: str,
    *,
    groups: Mapping[str, str] | None = None,
    svg: bool = False,
) -> None:
    """Draws a tree from left to right, with its leaves on the right.

    Args:
        task_tree: The tree.
        path: The PNG file to write.
        title: The title above the tree; the cophenetic correlation is added to it.
        groups: The group of every name, drawn as markers beside the leaves; None: no markers.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The files cannot be written.
    """
    from scipy.cluster import hierarchy

    count = len(task_tree.names)
    branches = hierarchy.dendrogram(task_tree.linkage, no_plot=True)
    height = max(0.2 * count, 1.0)
    figure = Figure(figsize=(_WIDTH, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    # SciPy's leaves lie at 5, 15, 25, ...
    lines = [
        np.column_stack([distances, (np.array(places) - 5) / 10])
        for distances, places in zip(branches["dcoord"], branches["icoord"], strict=True)
    ]
    axes.add_collection(LineCollection(lines, colors="black", linewidths=1.1))
    largest = float(task_tree.linkage[:, 2].max()) or 1.0
    axes.set(xlim=(1.03 * largest, 0), ylim=(count - 0.5, -0.5), xlabel="distance between rows of affinities")
    axes.set_yticks(range(count), task_tree.ordered, fontsize=9)
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0, pad=16 if groups is not None else 6)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="black", alpha=0.08)
    axes.set_axisbelow(True)
    if groups is not None:
        _mark_leaves(axes, [groups[name] for name in task_tree.ordered])
        style.draw_group_legend(figure, groups.values(), (0, -0.62 / height), columns=6)
    correlation = task_tree.cophenetic_correlation
    agreement = "unknown" if math.isnan(correlation) else f"{correlation:.2f}"
    axes.set_title(f"{title}\ncophenetic correlation {agreement}", loc="left", fontsize=11, pad=10)
    style.save(figure, path, svg=svg)


def _mark_leaves(axes: Axes, groups: list[str]) -> None:
    """Draws the markers of the leaves' groups between the leaves and their names."""
    for group, (colour, marker) in style.group_styles(groups).items():
        rows = [row for row, own in enumerate(groups) if own == group]
        axes.plot(
            [1 + 0.13 / _WIDTH] * len(rows), rows, transform=axes.get_yaxis_transform(), color=colour, marker=marker,
            linestyle="", clip_on=False,
        )  # fmt: skip
