"""Panels of ranked sources."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxtransfer.figures import style

_MAX_SOURCES = 20  # a target with more of them shows the best ones only
_BEST = 10
# Inches.
_PLOT_WIDTH, _ROW_HEIGHT, _HEAD_HEIGHT = 1.8, 0.165, 0.55
_PAGE_WIDTH = 17


@style.fixed_style()
def ranked_sources(
    rankings: Mapping[str, Sequence[tuple[str, float, float]]],
    path: str | Path,
    title: str,
    *,
    svg: bool = False,
) -> None:
    """Draws the sources of targets with their standard errors, one panel for each target.

    A panel shows up to 20 sources; where there are more, it shows the ten best.

    Args:
        rankings: For each target (name, value, standard error) of its sources, best first. About 20 targets fit on a
            page.
        path: The PNG file to write.
        title: The title above the panels.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The files cannot be written.
    """
    shown = {
        target: sources if len(sources) <= _MAX_SOURCES else sources[:_BEST] for target, sources in rankings.items()
    }
    rows = max(map(len, shown.values()), default=0) or 1
    figure = Figure(dpi=120)
    label_width = style.text_width(figure, {name for sources in shown.values() for name, _, _ in sources}, 8) + 0.1
    # All in inches: one pair of axes for all panels is ten times faster than a pair for each.
    panel_width = max(label_width + _PLOT_WIDTH, style.text_width(figure, shown, 9.5)) + 0.4
    panel_height = _ROW_HEIGHT * rows + 0.75
    columns = max(1, min(len(shown), 4, int(_PAGE_WIDTH // panel_width)))
    width = max(columns * panel_width, style.text_width(figure, [title], 12)) + 0.1
    height = math.ceil(len(shown) / columns) * panel_height + _HEAD_HEIGHT
    figure.set_size_inches(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(0.15, 0.15, title, va="top", fontsize=12)
    marks = _Marks()
    for panel, (target, sources) in enumerate(shown.items()):
        panel_row, panel_column = divmod(panel, columns)
        left, top = 0.15 + panel_column * panel_width, _HEAD_HEIGHT + panel_row * panel_height
        axes.text(left, top + 0.12, target, va="center", fontsize=9.5, weight="bold")
        if sources:
            _draw_panel(axes, marks, sources, left + label_width, top + 0.35, rows)
        else:
            axes.text(left, top + 0.4, "no source is known", va="center", fontsize=8)
    axes.add_collection(LineCollection(marks.grid, colors="black", alpha=0.12, linewidths=0.8))
    axes.add_collection(LineCollection(marks.bars, colors=style.SERIES_COLOURS[0], linewidths=1.3))
    if marks.dots:
        axes.plot(*np.transpose(marks.dots), "o", color=style.SERIES_COLOURS[0], markersize=3.5)
    style.save(figure, path, svg=svg, cropped=False)


@dataclasses.dataclass
class _Marks:
    """Lines and dots of all panels, which are added to the axes in one step."""

    bars: list[list[tuple[float, float]]] = dataclasses.field(default_factory=list)
    dots: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    grid: list[list[tuple[float, float]]] = dataclasses.field(default_factory=list)


def _draw_panel(
    axes: Axes, marks: _Marks, sources: Sequence[tuple[str, float, float]], left: float, top: float, rows: int
) -> None:
    """Draws the names and ticks of a panel with its plot at `left`, `top`, and adds its lines and dots to `marks`."""
    bottom = top + _ROW_HEIGHT * rows
    values = np.array([value for _, value, _ in sources])
    errors = np.array([error if math.isfinite(error) else 0 for _, _, error in sources])
    low, high = float((values - errors).min()), float((values + errors).max())
    margin = 0.05 * (high - low) or 0.05 * abs(low) or 0.05
    low, high = low - margin, high + margin
    scale = _PLOT_WIDTH / (high - low)
    for row, ((name, _, _), value, error) in enumerate(zip(sources, values, errors, strict=True)):
        y = top + _ROW_HEIGHT * (row + 0.5)
        axes.text(left - 0.08, y, name, ha="right", va="center_baseline", fontsize=8)
        x = left + (value - low) * scale
        marks.bars.append([(x - error * scale, y), (x + error * scale, y)])
        marks.dots.append((x, y))
    for tick in MaxNLocator(2).tick_values(low, high):
        if low <= tick <= high:
            x = left + (tick - low) * scale
            marks.grid.append([(x, top), (x, bottom)])
            axes.text(x, bottom + 0.05, f"{tick:.6g}", ha="center", va="top", fontsize=7)
