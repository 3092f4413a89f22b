"""One figure of answers, how good they are, and what networks look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxtransfer.evaluation.rooms_scores import percent
from jaxtransfer.figures import style

# Inches: the figure, the rows of targets on its left, and the panels on its right.
_WIDTH, _HEIGHT = 12.7, 6.3
_LEFT, _BOTTOM, _MATRIX_WIDTH, _ROWS_HEIGHT = 1.6, 0.7, 3.2, 4.85
_RIGHT, _BARS_HEIGHT, _MAPS_HEIGHT = 9.45, 1.6, 2.75
_TITLE = 0.42  # from the top of the rows to the titles, which leaves room for headings

_GOOD = 3  # the last place that is not marked


class Answer(NamedTuple):
    """The source to take for a target.

    Attributes:
        source: The source.
        sure: Probability that it truly ranks above the next source, as text.
        place: Its rank by measured transfer; 1 is the best.
    """

    source: str
    sure: str
    place: int


class Share(NamedTuple):
    """A share of the best sources that are found, and its 95 % band over networks where that is known."""

    value: float
    low: float | None
    high: float | None


@style.fixed_style()
def overview(
    values: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    answers: Mapping[str, Answer],
    groups: Mapping[str, str],
    shares: Mapping[str, Share],
    maps: Mapping[str, Float[np.ndarray, "photos size size"]],
    photos: UInt8[np.ndarray, "photos size size 3"],
    path: str | Path,
    *,
    method: str,
    map_method: str,
) -> None:
    """Draws which source to take for each target, how good a method is at that, and the maps of some networks.

    Args:
        values: The values of about 20 networks; row = target, column = source.
        names: The networks, in the order of the rows.
        answers: For every network, the source to take for it.
        groups: The group of every network.
        shares: For each method and reference, the share of a target's five best sources that it finds.
        maps: The maps of about four networks; values from -1 to 1, as `scaled_map` returns them.
        photos: The photos that the maps belong to, about three.
        path: The PNG file to write.
        method: The method of the values and answers.
        map_method: The method of the maps.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=130)
    axes = _panel(figure, _LEFT, _BOTTOM, _MATRIX_WIDTH, _ROWS_HEIGHT)
    _title(axes, "1. Which network to start from", above=_TITLE)
    low, high = _draw_matrix(axes, values, names, answers)
    axes.set_xlabel(
        f"row: target, column: source, white dot: the choice\n{method}, from {low:.2f} or less (dark) to {high:.2f}",
        fontsize=9.5,
    )
    style.draw_group_strip(axes, names, groups, 0.1 * len(names) / _MATRIX_WIDTH)
    corner = (0.1 / _WIDTH, 0.2 / _HEIGHT)
    style.draw_group_legend(figure, [groups[name] for name in names], corner, columns=4)
    _write_answers(axes, names, answers)

    top = _BOTTOM + _ROWS_HEIGHT + _TITLE - 0.12
    axes = _panel(figure, _RIGHT, top - _BARS_HEIGHT, _WIDTH - _RIGHT - 0.45, _BARS_HEIGHT)
    _title(axes, "2. Share of a target's five best sources found", above=0.12)
    _draw_shares(axes, shares, method)

    axes = _panel(figure, _RIGHT, _BOTTOM, _WIDTH - _RIGHT - 0.45, _MAPS_HEIGHT)
    _title(axes, "3. What four of the networks look at", above=0.12)
    _draw_maps(axes, maps, photos)
    axes.set_xlabel(f"{map_method}: purple is positive, orange negative", fontsize=9.5)
    style.save(figure, path)


def _panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Adds axes; all arguments are in inches."""
    return figure.add_axes((left / _WIDTH, bottom / _HEIGHT, width / _WIDTH, height / _HEIGHT))


def _title(axes: Axes, text: str, above: float) -> None:
    """Writes a title over the names at the left of a panel, `above` inches above its top."""
    axes.annotate(text, (0, 1), (-1.45 * 72, above * 72), "axes fraction", "offset points", fontsize=13, weight="bold")


def _draw_matrix(
    axes: Axes,
    values: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    answers: Mapping[str, Answer],
) -> tuple[float, float]:
    """Draws the matrix with the chosen sources, and returns the lowest and the highest value of its colours."""
    count = len(names)
    axes.set_facecolor("0.85")
    diagonal = np.eye(count, dtype=bool)
    # One network that is unlike all others must not take the range of colours.
    low, high = np.quantile(values[~diagonal], (0.1, 1))
    axes.pcolormesh(
        np.ma.masked_array(values, diagonal), edgecolors="white", linewidth=0.4, cmap=style.VALUE_COLOURS, vmin=low,
        vmax=high,
    )  # fmt: skip
    chosen = [(names.index(answers[name].source) + 0.5, row + 0.5) for row, name in enumerate(names)]
    axes.plot(*np.transpose(chosen), "o", color="white", markeredgecolor="black", markersize=4.5)
    axes.set(xlim=(0, count), ylim=(count, 0), xticks=[])
    axes.set_yticks(np.arange(count) + 0.5, names, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return low, high


def _write_answers(axes: Axes, names: Sequence[str], answers: Mapping[str, Answer]) -> None:
    """Writes the chosen source, its probability and its place beside every row."""
    columns = [(0.15, "left", "start from"), (2.15, "right", "sure"), (2.75, "right", "place")]

    def write(row: float, texts: Sequence[str], **look: Any) -> None:
        for (offset, side, _), text in zip(columns, texts, strict=True):
            x = len(names) * (1 + offset / _MATRIX_WIDTH)
            axes.text(x, row + 0.5, text, ha=side, va="center_baseline", fontsize=10, clip_on=False, **look)

    write(-1, [heading for *_, heading in columns], weight="bold")
    axes.text(-0.5, -0.5, "target", ha="right", va="center_baseline", fontsize=10, weight="bold")
    for row, name in enumerate(names):
        source, sure, place = answers[name]
        write(row, (source, sure, str(place)), color="black" if place <= _GOOD else style.SERIES_COLOURS[1])
    note = (
        f"sure: to rank above the next source\nplace: in measured transfer, of {len(names) - 1};\n"
        f"orange after place {_GOOD}"
    )
    axes.annotate(note, (1, 0), (0.15 * 72, -6), "axes fraction", "offset points", fontsize=9.5, va="top")


def _draw_shares(axes: Axes, shares: Mapping[str, Share], method: str) -> None:
    """Draws a bar for each share, with its band."""
    ordered = sorted(shares.items(), key=lambda item: item[1].value, reverse=True)
    for row, (name, share) in enumerate(ordered):
        axes.barh(row, share.value, 0.68, color=style.SERIES_COLOURS[0] if name == method else "0.75")
        if share.low is not None and share.high is not None:
            axes.plot([share.low, share.high], [row, row], color="black", linewidth=1.2)
        axes.text(1.02, row, percent(share.value), va="center_baseline", fontsize=10)
    axes.set(xlim=(0, 1), ylim=(len(ordered) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=10)
    axes.set_xlabel(
        "lines: 95 % bands over other networks and images\na second measurement: of the transfer itself", fontsize=9.5
    )
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_maps(
    axes: Axes,
    maps: Mapping[str, Float[np.ndarray, "photos size size"]],
    photos: UInt8[np.ndarray, "photos size size 3"],
) -> None:
    """Draws the photos and below them the maps of each network."""
    rows = {"image": photos, **{name: style.signed_colours(row) for name, row in maps.items()}}
    canvas = style.tiled([*rows.values()])
    axes.imshow(
        canvas, extent=(0, canvas.shape[1] / canvas.shape[0] * len(rows), len(rows), 0), interpolation="nearest"
    )
    axes.set_anchor("W")
    axes.set_yticks(np.arange(len(rows)) + 0.48, [*rows], fontsize=10)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
