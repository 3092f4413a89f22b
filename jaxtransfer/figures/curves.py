"""Curves of precision and recall at K."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxtransfer.evaluation.retrieval import Quantity
from jaxtransfer.evaluation.summary import Evaluation
from jaxtransfer.figures import style


@style.fixed_style()
def retrieval_curves(
    evaluations: Mapping[str, Evaluation], path: str | Path, oracle_name: str, *, svg: bool = False
) -> None:
    """Draws precision and recall at K of several methods, with bands, and those of a random order.

    Bands over other probe images are dark, bands over other networks light. Where curves are equal, the later ones are
    thinner and lie on the others.

    Args:
        evaluations: The evaluation of each method; all of them have the same targets and sources.
        path: The PNG file to write.
        oracle_name: Name of the oracle, for the title.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    targets = next(iter(evaluations.values())).curve.targets
    figure.suptitle(f"Against {oracle_name}, {len(targets)} targets", x=0.01, ha="left", fontsize=11)
    plots = figure.subplots(1, 2)
    for axes, quantity in zip(plots, ("precision", "recall"), strict=True):
        draw_curves(axes, quantity, evaluations)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    style.save(figure, path, svg=svg)


def draw_curves(axes: Axes, quantity: Quantity, evaluations: Mapping[str, Evaluation]) -> None:
    """Draws precision or recall at K of every method, with its bands, and of a random order."""
    looks = zip(itertools.cycle(style.SERIES_COLOURS), itertools.cycle("osD^v"), strict=False)
    values_of = {method: getattr(evaluation.curve, quantity) for method, evaluation in evaluations.items()}
    hidden = dict.fromkeys(values_of, 0)  # the number of equal curves that are drawn later
    for earlier, later in itertools.combinations(values_of, 2):
        hidden[earlier] += np.array_equal(values_of[earlier], values_of[later])
    for (method, evaluation), (colour, marker) in zip(evaluations.items(), looks, strict=False):
        curve, bands, values = evaluation.curve, evaluation.bands, values_of[method]
        ks = np.arange(1, len(values) + 1)
        for band, opacity in ((bands.networks, 0.12), (bands.images, 0.28)):
            if band is not None:
                low, high = (curve.share(quantity, edge) for edge in band)
                axes.fill_between(ks, low, high, color=colour, alpha=opacity, linewidth=0)
        size, width = 4 + 3 * hidden[method], 1.5 + 2.5 * hidden[method]
        axes.plot(ks, values, color=colour, marker=marker, markersize=size, linewidth=width, label=method)
    random = getattr(next(iter(evaluations.values())).curve, f"random_{quantity}")
    axes.plot(np.arange(1, len(random) + 1), random, color="0.45", linestyle="--", linewidth=1.2, label="random")
    axes.set(xlabel="K", ylabel=f"{quantity[0].upper()}@K", ylim=(0, 1.03))
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="black", alpha=0.08)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
