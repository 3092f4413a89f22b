"""Heat maps of affinities or distances."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtransfer.figures import style

_MAX_ANNOTATED = 12  # columns, up to which the values are written into the cells
_MAX_SLANTED = 20  # networks, up to which the names of columns are slanted
_MAX_CELLS_WITH_EDGES = 60  # rows or columns, up to which there are white lines between cells
_MAX_NAMED = 300  # networks, up to which rows and columns have names
_UNNAMED_SIDE = 16  # inches a side of a map without names
_LEAST_BAR = 1.8  # inches of the colour bar
_LARGEST_BY_DECIMALS = (99.95, 9.995, 0.095, 0.0095, 0.00095)  # from these values on 0, 1, ... decimals are enough


@style.fixed_style()
def heat_map(
    values: Float[np.ndarray, "targets sources"],
    names: Sequence[str],
    path: str | Path,
    title: str,
    *,
    targets: Sequence[str] | None = None,
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

    Where targets are given apart from sources, the colours span the values of each target, since values of several
    targets need not have one scale.

    Args:
        values: Affinities with 1 on the diagonal, or distances with 0; NaN where there is no value.
        names: The networks or tasks, in the order of the columns, and of the rows where there are no `targets`.
        path: The PNG file to write.
        title: The title above the map.
        targets: The targets, in the order of the rows; None: the networks, compared with one another.
        quantity: The name of the values, for the colour bar.
        smaller_is_nearer: Whether the values are distances.
        directed: Whether rows are targets and columns sources, which the axes then say.
        groups: The group of every row, drawn as a strip of colours beside it; None: no strip.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The file cannot be written.
    """
    rows = names if targets is None else targets
    diagonal = np.eye(len(rows), len(names), dtype=bool) & (targets is None)
    hidden = diagonal | np.isnan(values)
    shades = values if targets is None else _within_rows(values)
    low, high = _colour_range(shades[~hidden]) if targets is None else (0.0, 1.0)
    width, height = _size(len(rows), len(names), square=targets is None)
    count = max(len(rows), len(names))
    figure = Figure(figsize=(width, height), dpi=150 if count <= _MAX_CELLS_WITH_EDGES else 120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("0.85")
    colours = style.VALUE_COLOURS.reversed() if smaller_is_nearer else style.VALUE_COLOURS
    colouring = {"cmap": colours, "vmin": low, "vmax": high}
    shown = np.ma.masked_array(shades, hidden)
    if count > _MAX_CELLS_WITH_EDGES:
        cells = axes.imshow(shown, extent=(0, len(names), len(rows), 0), interpolation="nearest", **colouring)
    else:
        cells = axes.pcolormesh(shown, edgecolors="white", linewidth=0.5, **colouring)
    axes.set(xlim=(0, len(names)), ylim=(len(rows), 0), aspect="equal" if targets is None else "auto")
    _name_rows_and_columns(axes, rows, names)
    if directed:
        axes.set(xlabel="source", ylabel="target")
    if groups is not None:
        style.draw_group_strip(axes, rows, groups, 0.1 * len(names) / width)
    axes.spines[:].set_visible(False)
    if len(names) <= _MAX_ANNOTATED and len(rows) <= (_MAX_ANNOTATED if targets is None else _MAX_CELLS_WITH_EDGES):
        nearness = (high - shades if smaller_is_nearer else shades - low) / (high - low)
        _annotate(axes, values, diagonal, hidden, nearness)
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    # Beside many networks a colour bar of the map's height would be out of sight, beside one too short to read.
    share = max(min(height, 8), _LEAST_BAR) / height
    bar = figure.colorbar(cells, cax=figure.add_axes((1 + 0.2 / width, 1 - share, 0.18 / width, share)))
    spanned = "the values off the diagonal" if targets is None else "the values of each target"
    bar.set_label(f"{quantity} (colours span {spanned})", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if targets is not None:
        bar.set_ticks([0, 1], labels=["lowest", "highest"])
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if groups is not None:
        style.draw_group_legend(figure, groups.values(), (1 + 1.0 / width, 1))
    style.save(figure, path, svg=svg)


def _size(rows: int, columns: int, *, square: bool) -> tuple[float, float]:
    """Returns the width and the height of a map in inches; the cells of a square matrix are square."""
    cell = 0.62 if columns <= _MAX_ANNOTATED else max(0.15, 6 / columns)
    width = max(cell * columns, 3.2) if columns <= _MAX_NAMED else _UNNAMED_SIDE
    if square:
        return width, width
    return width, max(0.18, min(0.3, 12 / rows)) * rows if rows <= _MAX_NAMED else _UNNAMED_SIDE


def _within_rows(values: Float[np.ndarray, "targets sources"]) -> Float[np.ndarray, "targets sources"]:
    """Scales the values of each row to lie between 0, the lowest, and 1; equal ones are halfway."""
    low = np.where(np.isnan(values), np.inf, values).min(1, keepdims=True, initial=np.inf)
    high = np.where(np.isnan(values), -np.inf, values).max(1, keepdims=True, initial=-np.inf)
    return np.divide(values - low, high - low, out=np.full(values.shape, 0.5), where=high > low)


def _colour_range(values: Float[np.ndarray, " values"]) -> tuple[float, float]:
    """Returns the lowest and the highest value, a little apart where they are equal."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low - 0.01, high + 0.01) if high - low < 1e-6 else (low, high)


def _name_rows_and_columns(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    x, y = ((np.arange(len(names)) + 0.5, names) if len(names) <= _MAX_NAMED else ([], []) for names in (columns, rows))
    if len(columns) <= _MAX_SLANTED:
        fontsize = 9
        axes.set_xticks(*x, rotation=45, ha="right", rotation_mode="anchor", fontsize=fontsize)
    else:
        fontsize = 7.5
        axes.set_xticks(*x, rotation=90, fontsize=fontsize)
    axes.set_yticks(*y, fontsize=fontsize)
    axes.tick_params(length=0)


def _annotate(
    axes: Axes,
    values: Float[np.ndarray, "targets sources"],
    diagonal: Bool[np.ndarray, "targets sources"],
    hidden: Bool[np.ndarray, "targets sources"],
    nearness: Float[np.ndarray, "targets sources"],
) -> None:
    """Writes the values into their cells, with as many decimals as the largest of them needs."""
    largest = np.abs(values[~hidden]).max(initial=0)
    decimals = next((n for n, least in enumerate(_LARGEST_BY_DECIMALS) if largest >= least), len(_LARGEST_BY_DECIMALS))
    for cell, value in np.ndenumerate(values):
        if hidden[cell] and not diagonal[cell]:
            continue
        text = f"{value:.0f}" if diagonal[cell] else f"{value:z.{decimals}f}"
        colour = "white" if not diagonal[cell] and nearness[cell] < 0.6 else "black"
        row, column = cell
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=colour)
