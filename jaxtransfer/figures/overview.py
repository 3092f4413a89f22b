"""One figure from maps to a judgement."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtransfer.evaluation.summary import Evaluation
from jaxtransfer.figures import style
from jaxtransfer.figures.curves import draw_curves

_WIDTH, _HEIGHT = 13.6, 5.0  # inches, of the figure
_BOTTOM, _PANEL_HEIGHT = 0.5, 4.0  # inches


@style.fixed_style()
def overview(
    maps: Mapping[str, Float[np.ndarray, "photos size size"]],
    photos: UInt8[np.ndarray, "photos size size 3"],
    affinity: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    groups: Mapping[str, str],
    evaluations: Mapping[str, Evaluation],
    path: str | Path,
    *,
    method: str,
) -> None:
    """Draws the way from maps to a judgement in three steps: maps, the matrix of affinities, precision at K.

    Args:
        maps: The maps of about four networks; values from -1 to 1, as `scaled_map` returns them.
        photos: The photos that the maps belong to, about three.
        affinity: The affinities of about 20 networks.
        names: The networks, in the order of the rows.
        groups: The group of every network.
        evaluations: The evaluation of each method; bands over other images are dark, over other networks light.
        path: The PNG file to write.
        method: The method of the maps and of the matrix.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=120)
    map_rows = {"image": photos, **{name: style.signed_colours(row) for name, row in maps.items()}}
    canvas = style.tiled([*map_rows.values()])
    maps_width = _PANEL_HEIGHT * canvas.shape[1] / canvas.shape[0]

    axes = _panel(figure, 0, maps_width, "1. What networks look at")
    axes.imshow(canvas, extent=(0, canvas.shape[1], len(map_rows), 0), aspect="auto", interpolation="nearest")
    axes.set_yticks(np.arange(len(map_rows)) + 0.48, [*map_rows], fontsize=10)
    axes.set_xticks([])
    axes.set_xlabel(f"{method}: purple is positive, orange negative", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

    axes = _panel(figure, maps_width + 1.65, _PANEL_HEIGHT, "2. Which of them look alike")
    low, high = _draw_matrix(axes, affinity, names)
    axes.set_xlabel(f"affinity by {method}, from {low:.2f} or less (dark) to {high:.2f}", fontsize=9)
    style.draw_group_strip(axes, names, groups, 0.1 * len(names) / _PANEL_HEIGHT)
    corner = ((maps_width + 1.65) / _WIDTH, 0.1 / _HEIGHT)
    style.draw_group_legend(figure, [groups[name] for name in names], corner, columns=4)

    axes = _panel(figure, maps_width + 6.5, 3.3, "3. Does that predict transfer?")
    draw_curves(axes, "precision", evaluations)
    axes.legend(frameon=False, fontsize=9, title="shaded: 95 % bands", title_fontsize=9)
    style.save(figure, path)


def _panel(figure: Figure, left: float, width: float, title: str) -> Axes:
    """Adds axes at `left`, of width `width`, both in inches."""
    axes = figure.add_axes((left / _WIDTH, _BOTTOM / _HEIGHT, width / _WIDTH, _PANEL_HEIGHT / _HEIGHT))
    axes.set_title(title, loc="left", fontsize=12, pad=8)
    return axes


def _draw_matrix(
    axes: Axes, affinity: Float[np.ndarray, "networks networks"], names: Sequence[str]
) -> tuple[float, float]:
    """Draws the matrix and returns the lowest and the highest affinity of its colours."""
    count = len(names)
    axes.set_facecolor("0.85")
    diagonal = np.eye(count, dtype=bool)
    # One network that is unlike all others must not take the range of colours.
    low, high = np.quantile(affinity[~diagonal], (0.1, 1))
    axes.pcolormesh(
        np.ma.masked_array(affinity, diagonal), edgecolors="white", linewidth=0.4, cmap=style.VALUE_COLOURS, vmin=low,
        vmax=high,
    )  # fmt: skip
    axes.set(xlim=(0, count), ylim=(count, 0), xticks=[])
    axes.set_yticks(np.arange(count) + 0.5, names, fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return low, high
