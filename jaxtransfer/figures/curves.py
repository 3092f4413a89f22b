"""Curves of precision and recall at K."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxtransfer.evaluation.confidence import RetrievalBands
from jaxtransfer.evaluation.retrieval import Quantity, RetrievalCurve
from jaxtransfer.figures import style


@style.fixed_style()
def retrieval_curves(
    curves: Mapping[str, RetrievalCurve],
    path: str | Path,
    title: str,
    *,
    bands: Mapping[str, RetrievalBands] | None = None,
    svg: bool = False,
) -> None:
    """Draws precision and recall at K of several methods, with those of a random order.

    Args:
        curves: The curve of each method; all curves have the same targets and sources.
        path: The PNG file to write.
        title: The title above the figure.
        bands: For each method, the bands over other probe images (dark) and over other networks (light); None: no
            bands.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    plots = figure.subplots(1, 2)
    for axes, quantity in zip(plots, ("precision", "recall"), strict=True):
        draw_curves(axes, quantity, curves, bands)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    style.save(figure, path, svg=svg)


def draw_curves(
    axes: Axes, quantity: Quantity, curves: Mapping[str, RetrievalCurve], bands: Mapping[str, RetrievalBands] | None
) -> None:
    """Draws precision or recall at K of every method, with its bands, and of a random order."""
    looks = zip(itertools.cycle(style.SERIES_COLOURS), itertools.cycle("osD^v"), strict=False)
    for (method, curve), (colour, marker) in zip(curves.items(), looks, strict=False):
        values = getattr(curve, quantity)
        ks = np.arange(1, len(values) + 1)
        spread = (bands[method].networks, bands[method].images) if bands else ()
        for band, opacity in zip(spread, (0.12, 0.28), strict=False):
            if band is not None:
                low, high = (curve.share(quantity, edge) for edge in band)
                axes.fill_between(ks, low, high, color=colour, alpha=opacity, linewidth=0)
        axes.plot(ks, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=method)
    random = getattr(next(iter(curves.values())), f"random_{quantity}")
    axes.plot(np.arange(1, len(random) + 1), random, color="0.45", linestyle="--", linewidth=1.2, label="random")
    axes.set(xlabel="K", ylabel=f"{quantity[0].upper()}@K", ylim=(0, 1.03))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="black", alpha=0.08)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
