"""Heat maps of affinities or distances."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtransfer.figures import style

_MAX_ANNOTATED = 12  # networks, up to which the values are written into the cells
_MAX_SLANTED = 20  # networks, up to which the names of columns are slanted
_MAX_CELLS_WITH_EDGES = 60  # networks, up to which there are white lines between cells
_MAX_NAMED = 300  # networks, up to which rows and columns have names
_UNNAMED_SIDE = 16  # inches a side of a map without names
_LARGEST_BY_DECIMALS = (99.95, 9.995, 0.095, 0.0095, 0.00095)  # from these values on 0, 1, ... decimals are enough


@style.fixed_style()
def heat_map(
    values: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    path: str | Path,
    title: str,
    *,
    quantity: str = "affinity",
    smaller_is_nearer: bool = False,
    directed: bool = False,
    groups: Mapping[str, str] | None = None,
    svg: bool = False,
) -> None:
    """Draws a matrix of affinities, or of distances, as a heat map; what is nearer is brighter.

    The colours span the values off the diagonal. The diagonal, which would take most of the range for itself, is grey,
    and so are missing values. The values are written into the cells for up to 12 networks; more than 300 networks have
    no names.

    Args:
        values: Affinities with 1 on the diagonal, or distances with 0; NaN where there is no value.
        names: The networks or tasks, in the order of the rows.
        path: The PNG file to write.
        title: The title above the map.
        quantity: The name of the values, for the colour bar.
        smaller_is_nearer: Whether the values are distances.
        directed: Whether rows are targets and columns sources, which the axes then say.
        groups: The group of every name, drawn as a strip of colours beside the rows; None: no strip.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The file cannot be written.
    """
    count = len(names)
    hidden = np.eye(count, dtype=bool) | np.isnan(values)
    low, high = _colour_range(values[~hidden])
    cell = 0.62 if count <= _MAX_ANNOTATED else max(0.15, 6 / count)
    side = max(cell * count, 3.2) if count <= _MAX_NAMED else _UNNAMED_SIDE
    figure = Figure(figsize=(side, side), dpi=150 if count <= _MAX_CELLS_WITH_EDGES else 120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("0.85")
    colours = style.VALUE_COLOURS.reversed() if smaller_is_nearer else style.VALUE_COLOURS
    colouring = {"cmap": colours, "vmin": low, "vmax": high}
    shown = np.ma.masked_array(values, hidden)
    if count > _MAX_CELLS_WITH_EDGES:
        cells = axes.imshow(shown, extent=(0, count, count, 0), interpolation="nearest", **colouring)
    else:
        cells = axes.pcolormesh(shown, edgecolors="white", linewidth=0.5, **colouring)
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal")
    _name_rows_and_columns(axes, names)
    if directed:
        axes.set(xlabel="source", ylabel="target")
    if groups is not None:
        style.draw_group_strip(axes, names, groups, 0.1 * count / side)
    axes.spines[:].set_visible(False)
    if count <= _MAX_ANNOTATED:
        nearness = (high - values if smaller_is_nearer else values - low) / (high - low)
        _annotate(axes, values, hidden, nearness)
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    height = min(1.0, 8 / side)  # beside many networks a colour bar of the map's height would be out of sight
    bar = figure.colorbar(cells, cax=figure.add_axes((1 + 0.2 / side, 1 - height, 0.18 / side, height)))
    bar.set_label(f"{quantity} (colours span the values off the diagonal)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if groups is not None:
        style.draw_group_legend(figure, groups.values(), (1 + 1.0 / side, 1))
    style.save(figure, path, svg=svg)


def _colour_range(values: Float[np.ndarray, " values"]) -> tuple[float, float]:
    """Returns the lowest and the highest value, a little apart where they are equal."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low - 0.01, high + 0.01) if high - low < 1e-6 else (low, high)


def _name_rows_and_columns(axes: Axes, names: Sequence[str]) -> None:
    count = len(names)
    ticks = (np.arange(count) + 0.5, names) if count <= _MAX_NAMED else ([], [])
    if count <= _MAX_SLANTED:
        fontsize = 9
        axes.set_xticks(*ticks, rotation=45, ha="right", rotation_mode="anchor", fontsize=fontsize)
    else:
        fontsize = 7.5
        axes.set_xticks(*ticks, rotation=90, fontsize=fontsize)
    axes.set_yticks(*ticks, fontsize=fontsize)
    axes.tick_params(length=0)


def _annotate(
    axes: Axes,
    values: Float[np.ndarray, "networks networks"],
    hidden: Bool[np.ndarray, "networks networks"],
    nearness: Float[np.ndarray, "networks networks"],
) -> None:
    """Writes the values into their cells, with as many decimals as the largest of them needs."""
    largest = np.abs(values[~hidden]).max(initial=0)
    decimals = next((n for n, least in enumerate(_LARGEST_BY_DECIMALS) if largest >= least), len(_LARGEST_BY_DECIMALS))
    for (row, column), value in np.ndenumerate(values):
        if row != column and hidden[row, column]:
            continue
        text = f"{value:.0f}" if row == column else f"{value:z.{decimals}f}"
        colour = "white" if row != column and nearness[row, column] < 0.6 else "black"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=colour)
