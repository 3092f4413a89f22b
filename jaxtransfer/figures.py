"""Figures of affinities, as PNG files."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxtransfer.evaluation import RetrievalCurve
from jaxtransfer.files import whole

_COLOURS = mpl.colormaps["viridis"]  # perceptually uniform, legible to colour-blind readers, without grey
_ANNOTATED = 12
_LEAST = (99.95, 9.995, 0.095, 0.0095, 0.00095)  # the largest value that is written with 0, 1, ... decimals
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, for colour-blind readers
_TRAINED, _CONTROL = _SERIES[:2]


def heat_map(
    values: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    path: str | Path,
    title: str,
    *,
    quantity: str = "affinity",
    smaller_is_nearer: bool = False,
) -> None:
    """Draws a matrix of affinities, or of distances, as a heat map; what is nearer is brighter.

    The colours span the values off the diagonal, which would otherwise take the range for itself; it is left
    grey, and so is what is missing. Up to 12 networks the values are written into the cells.

    Args:
        values: 1 on the diagonal, or 0 where smaller is nearer; NaN where there is no value.
        names: The networks or tasks, in the order of the rows.
        path: The PNG file to write.
        title: Stands above the map.
        quantity: What the values are; stands beside the colours.
        smaller_is_nearer: Whether they are distances.

    Raises:
        OSError: The file cannot be written.
    """
    count = len(names)
    hidden = np.eye(count, dtype=bool) | np.isnan(values)
    others = values[~hidden]
    low, high = (float(others.min()), float(others.max())) if others.size else (0.0, 1.0)
    if high - low < 1e-6:
        low, high = low - 0.01, high + 0.01

    cell = 0.62 if count <= _ANNOTATED else max(0.2, 6 / count)
    side = max(cell * count, 3.2)
    fontsize = 9 if count <= 20 else 7.5
    figure = Figure(figsize=(side, side), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("0.85")
    shown = np.ma.masked_array(values, hidden)
    colours = _COLOURS.reversed() if smaller_is_nearer else _COLOURS
    mesh = axes.pcolormesh(shown, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=0.5)
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal")
    centres = np.arange(count) + 0.5
    axes.set_xticks(centres, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=fontsize)
    axes.set_yticks(centres, names, fontsize=fontsize)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if count <= _ANNOTATED:
        largest = np.abs(others).max(initial=0)
        decimals = next((digits for digits, least in enumerate(_LEAST) if largest >= least), len(_LEAST))
        for (row, column), value in np.ndenumerate(values):
            if row != column and hidden[row, column]:
                continue
            nearness = (high - value if smaller_is_nearer else value - low) / (high - low)
            text = f"{value:.0f}" if row == column else f"{value:z.{decimals}f}"
            colour = "white" if row != column and nearness < 0.6 else "black"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_title(title, loc="left", fontsize=11)
    colour_axes = figure.add_axes((1 + 0.2 / side, 0, 0.18 / side, 1))
    bar = figure.colorbar(mesh, cax=colour_axes)
    bar.set_label(f"{quantity} (colours span the values off the diagonal)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    _save(figure, Path(path))


def trained_and_control(
    affinities: Mapping[str, tuple[tuple[float, float], tuple[float, float]]], path: str | Path, title: str
) -> None:
    """Draws the mean affinity of trained networks to each other beside that to their controls.

    Args:
        affinities: By row label, from top to bottom: mean and standard error of the affinity between trained
            networks, then of that between trained networks and controls.
        path: The PNG file to write.
        title: Stands above the figure.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(7, 0.8 + 0.5 * len(affinities)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(affinities))
    for which, label, colour, marker, shift in (
        (0, "trained with trained", _TRAINED, "o", -0.13),
        (1, "trained with control", _CONTROL, "s", 0.13),
    ):
        means = [pair[which][0] for pair in affinities.values()]
        errors = [pair[which][1] for pair in affinities.values()]
        axes.errorbar(means, rows + shift, xerr=errors, fmt=marker, color=colour, label=label, capsize=3, markersize=6)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_yticks(rows, list(affinities))
    axes.set(ylim=(len(affinities) - 0.5, -0.5), xlabel="mean affinity (bars: standard error)")
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title, loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, Path(path))


def retrieval_curves(curves: Mapping[str, RetrievalCurve], path: str | Path, title: str) -> None:
    """Draws precision and recall at K of several methods, with what a random order gets.

    Args:
        curves: By method; all of the same targets and sources.
        path: The PNG file to write.
        title: Stands above the figure.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    plots = figure.subplots(1, 2)
    for axes, quantity in zip(plots, ("precision", "recall"), strict=True):
        for (method, curve), colour, marker in zip(
            curves.items(), itertools.cycle(_SERIES), itertools.cycle("osD^v"), strict=False
        ):
            values = getattr(curve, quantity)
            ks = np.arange(1, len(values) + 1)
            axes.plot(ks, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=method)
        random = getattr(next(iter(curves.values())), f"random_{quantity}")
        axes.plot(np.arange(1, len(random) + 1), random, color="0.45", linestyle="--", linewidth=1.2, label="random")
        axes.set(xlabel="K", ylabel=f"{quantity[0].upper()}@K", ylim=(0, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    _save(figure, Path(path))


def _save(figure: Figure, path: Path) -> None:
    """Writes a figure, whole or not at all."""
    with whole(path) as partial:
        # The canvas is named, not looked up, so that the program's own choice of backend does not matter.
        FigureCanvasAgg(figure).print_figure(partial, format="png", bbox_inches="tight", pad_inches=0.15)
