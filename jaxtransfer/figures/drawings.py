"""Figures of affinities, as PNG files and SVG files.

Text and axes are black, faint lines black with little opacity, so that whoever puts an SVG into a page can give them
the colour of the page's text.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from jaxtransfer.evaluation.confidence import RetrievalBands
from jaxtransfer.evaluation.retrieval import Quantity, RetrievalCurve
from jaxtransfer.evaluation.tree import TaskTree
from jaxtransfer.files import atomic_write

_COLOURS = mpl.colormaps["viridis"]  # perceptually uniform, legible to colour-blind readers, without grey
_ANNOTATED = 12
_FEW = 20  # up to so many names are slanted, and all sources of a target are shown
_BEST = 10
_MANY = 60  # from so many on a heat map is an image, without lines between its cells
_NAMED, _OF_MORE = 300, 16  # with more names a heat map has none, and is so wide, in inches
_LEAST = (99.95, 9.995, 0.095, 0.0095, 0.00095)  # the largest value that is written with 0, 1, ... decimals
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, for colour-blind readers
_MARKERS = "osD^vPX"  # one more than there are colours, so that 42 pairs differ
OTHER = "other"
"""The group of networks without one."""
_SIGNED = mpl.colormaps["PuOr"]
_DPI = 120  # of galleries


def heat_map(
    values: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    path: str | Path,
    title: str,
    *,
    quantity: str = "affinity",
    smaller_is_nearer: bool = False,
    groups: Mapping[str, str] | None = None,
    svg: bool = False,
) -> None:
    """Draws a matrix of affinities, or of distances, as a heat map; what is nearer is brighter.

    The colours span the values off the diagonal, which would otherwise take the range for itself; it is left
    grey, and so is what is missing. Up to 12 networks the values are written into the cells; more than 300 have no
    names.

    Args:
        values: 1 on the diagonal, or 0 where smaller is nearer; NaN where there is no value.
        names: The networks or tasks, in the order of the rows.
        path: The PNG file to write.
        title: Stands above the map.
        quantity: What the values are; stands beside the colours.
        smaller_is_nearer: Whether they are distances.
        groups: The group of every name; stands as a strip of colours beside the rows.
        svg: Whether an SVG file of the same name is written too.

    Raises:
        OSError: The file cannot be written.
    """
    count = len(names)
    hidden = np.eye(count, dtype=bool) | np.isnan(values)
    others = values[~hidden]
    low, high = (float(others.min()), float(others.max())) if others.size else (0.0, 1.0)
    if high - low < 1e-6:
        low, high = low - 0.01, high + 0.01

    cell = 0.62 if count <= _ANNOTATED else max(0.15, 6 / count)
    side = max(cell * count, 3.2) if count <= _NAMED else _OF_MORE
    cell = side / count
    fontsize = 9 if count <= _FEW else 7.5
    figure = Figure(figsize=(side, side), dpi=150 if count <= _MANY else 120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("0.85")
    shown = np.ma.masked_array(values, hidden)
    colours = _COLOURS.reversed() if smaller_is_nearer else _COLOURS
    looks = {"cmap": colours, "vmin": low, "vmax": high}
    if count > _MANY:
        mesh = axes.imshow(shown, extent=(0, count, count, 0), interpolation="nearest", **looks)
    else:
        mesh = axes.pcolormesh(shown, edgecolors="white", linewidth=0.5, **looks)
    axes.set(xlim=(0, count), ylim=(count, 0), aspect="equal")
    centres = np.arange(count) + 0.5
    ticks = (centres, names) if count <= _NAMED else ([], [])
    if count <= _FEW:
        axes.set_xticks(*ticks, rotation=45, ha="right", rotation_mode="anchor", fontsize=fontsize)
    else:
        axes.set_xticks(*ticks, rotation=90, fontsize=fontsize)
    axes.set_yticks(*ticks, fontsize=fontsize)
    axes.tick_params(length=0)
    if groups is not None:
        _strip(axes, names, groups, 0.1 / cell)
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
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    height = min(1.0, 8 / side)  # beside many networks a scale as high as they are would be out of sight
    colour_axes = figure.add_axes((1 + 0.2 / side, 1 - height, 0.18 / side, height))
    bar = figure.colorbar(mesh, cax=colour_axes)
    bar.set_label(f"{quantity} (colours span the values off the diagonal)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if groups is not None:
        _group_legend(figure, groups, (1 + 1.0 / side, 1))
    _save(figure, Path(path), svg=svg)


def retrieval_curves(
    curves: Mapping[str, RetrievalCurve],
    path: str | Path,
    title: str,
    *,
    bands: Mapping[str, RetrievalBands] | None = None,
    svg: bool = False,
) -> None:
    """Draws precision and recall at K of several methods, with what a random order gets.

    Args:
        curves: By method; all of the same targets and sources.
        path: The PNG file to write.
        title: Stands above the figure.
        bands: Where other probe images (dark) and other networks (light) would have put the curves; by method.
        svg: Whether an SVG file of the same name is written too.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(9, 3.8), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    plots = figure.subplots(1, 2)
    for axes, quantity in zip(plots, ("precision", "recall"), strict=True):
        _curves(axes, quantity, curves, bands)
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    _save(figure, Path(path), svg=svg)


def tree(
    found: TaskTree,
    path: str | Path,
    title: str,
    *,
    groups: Mapping[str, str] | None = None,
    svg: bool = False,
) -> None:
    """Draws a tree from left to right, with its leaves on the right.

    Args:
        found: The tree.
        path: The PNG file to write.
        title: Stands above the tree; the cophenetic correlation is added.
        groups: The group of every name; marks the leaves.
        svg: Whether an SVG file of the same name is written too.

    Raises:
        OSError: The files cannot be written.
    """
    from scipy.cluster import hierarchy

    count = len(found.names)
    branches = hierarchy.dendrogram(found.linkage, no_plot=True)
    height = max(0.2 * count, 1.0)
    figure = Figure(figsize=(6, height), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    # SciPy's leaves lie at 5, 15, 25, ...
    lines = [
        np.column_stack([distances, (np.array(places) - 5) / 10])
        for distances, places in zip(branches["dcoord"], branches["icoord"], strict=True)
    ]
    axes.add_collection(LineCollection(lines, colors="black", linewidths=1.1))
    most = float(found.linkage[:, 2].max()) or 1.0
    axes.set(xlim=(1.03 * most, 0), ylim=(count - 0.5, -0.5), xlabel="distance between rows of affinities")
    axes.set_yticks(range(count), found.ordered, fontsize=9)
    axes.yaxis.tick_right()
    axes.tick_params(axis="y", length=0, pad=16 if groups is not None else 6)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="black", alpha=0.08)
    axes.set_axisbelow(True)
    if groups is not None:
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(found.ordered):
            rows.setdefault(groups[name], []).append(row)
        looks = _looks(groups.values())
        for group, places in rows.items():
            colour, marker = looks[group]
            across = [1 + 0.13 / 6] * len(places)
            axes.plot(
                across, places, transform=axes.get_yaxis_transform(), color=colour, marker=marker, linestyle="",
                clip_on=False,
            )  # fmt: skip
        _group_legend(figure, groups, (0, -0.62 / height), columns=6)
    agreement = "unknown" if math.isnan(found.cophenetic_correlation) else f"{found.cophenetic_correlation:.2f}"
    axes.set_title(f"{title}\ncophenetic correlation {agreement}", loc="left", fontsize=11, pad=10)
    _save(figure, Path(path), svg=svg)


def ranked_sources(
    rankings: Mapping[str, Sequence[tuple[str, float, float]]],
    path: str | Path,
    title: str,
    *,
    svg: bool = False,
) -> None:
    """Draws the sources of targets with their standard errors, one panel a target.

    Up to 20 sources are shown, of more the ten best.

    Args:
        rankings: By target (name, value, standard error) of its sources, best first; about 20 targets fit on a page.
        path: The PNG file to write.
        title: Stands above the panels.
        svg: Whether an SVG file of the same name is written too.

    Raises:
        OSError: The files cannot be written.
    """
    shown = {target: sources if len(sources) <= _FEW else sources[:_BEST] for target, sources in rankings.items()}
    rows = max(map(len, shown.values()), default=0) or 1
    figure = Figure(dpi=120)
    labels = _text_width(figure, {name for sources in shown.values() for name, _, _ in sources}, 8) + 0.1
    # All in inches: one pair of axes for all panels is ten times faster than a pair for each.
    plot, row_height, head = 1.8, 0.165, 0.55
    wide = max(labels + plot, _text_width(figure, shown, 9.5)) + 0.4
    high = row_height * rows + 0.75
    columns = max(1, min(len(shown), 4, int(17 // wide)))
    width = max(columns * wide, _text_width(figure, [title], 12)) + 0.1
    height = math.ceil(len(shown) / columns) * high + head
    figure.set_size_inches(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(0.15, 0.15, title, va="top", fontsize=12)
    bars, dots, grid = [], [], []
    for place, (target, sources) in enumerate(shown.items()):
        line, column = divmod(place, columns)
        left, top = 0.15 + column * wide, head + line * high
        axes.text(left, top + 0.12, target, va="center", fontsize=9.5, weight="bold")
        first, last = left + labels, top + 0.35 + row_height * rows
        if not sources:
            axes.text(left, top + 0.4, "no source is known", va="center", fontsize=8)
            continue
        values = np.array([value for _, value, _ in sources])
        errors = np.array([error if math.isfinite(error) else 0 for _, _, error in sources])
        low, high_end = float((values - errors).min()), float((values + errors).max())
        room = 0.05 * (high_end - low) or 0.05 * abs(low) or 0.05
        low, high_end = low - room, high_end + room
        scale = plot / (high_end - low)
        for row, ((name, _, _), value, error) in enumerate(zip(sources, values, errors, strict=True)):
            y = top + 0.35 + row_height * (row + 0.5)
            axes.text(first - 0.08, y, name, ha="right", va="center_baseline", fontsize=8)
            x = first + (value - low) * scale
            bars.append([(x - error * scale, y), (x + error * scale, y)])
            dots.append((x, y))
        ticks = [tick for tick in MaxNLocator(2).tick_values(low, high_end) if low <= tick <= high_end]
        for tick in ticks:
            x = first + (tick - low) * scale
            grid.append([(x, top + 0.35), (x, last)])
            axes.text(x, last + 0.05, f"{tick:.6g}", ha="center", va="top", fontsize=7)
    axes.add_collection(LineCollection(grid, colors="black", alpha=0.12, linewidths=0.8))
    axes.add_collection(LineCollection(bars, colors=_SERIES[0], linewidths=1.3))
    if dots:
        axes.plot(*np.transpose(dots), "o", color=_SERIES[0], markersize=3.5)
    _save(figure, Path(path), svg=svg, cropped=False)


def gallery(
    maps: Mapping[str, Float[np.ndarray, "photos size size"]],
    photos: UInt8[np.ndarray, "photos size size 3"] | None,
    path: str | Path,
    title: str,
    *,
    svg: bool = False,
) -> None:
    """Draws attribution maps as rows of networks and columns of photos.

    Args:
        maps: By network; values from -1 to 1, as `scaled_map` gives them.
        photos: What the maps are of; the first row. None: without it.
        path: The PNG file to write.
        title: Stands above the maps.
        svg: Whether an SVG file of the same name is written too.

    Raises:
        OSError: The files cannot be written.
    """
    tiles = {name: signed_colours(row) for name, row in maps.items()}
    rows = [*([photos] if photos is not None else []), *tiles.values()]
    names = [*(["probe photos"] if photos is not None else []), *tiles]
    canvas = _tiled(rows)
    height, width = (pixels / _DPI for pixels in canvas.shape[:2])  # a pixel of the figure for each of a map
    pitch = height / len(rows)
    figure = Figure(dpi=_DPI)
    left, right, top, bottom = _text_width(figure, names, 9) + 0.25, 0.95, 0.5, 0.15
    across = max(left + width + right, left + _text_width(figure, [title], 11) + 0.15)
    scale = 3.1  # holds its label
    down = top + max(height, scale) + bottom
    figure.set_size_inches(across, down)
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.imshow(canvas, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    axes.set_yticks(np.arange(len(rows)) * pitch + rows[0].shape[1] / _DPI / 2, names, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    beside = ((left + width + 0.12) / across, 1 - (top + scale) / down, 0.14 / across, scale / down)
    colour_axes = figure.add_axes(beside)
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), _SIGNED), cax=colour_axes)
    bar.set_label("share of each map's 99th percentile of |value|", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    _save(figure, Path(path), svg=svg, cropped=False)


def overview(
    maps: Mapping[str, Float[np.ndarray, "photos size size"]],
    photos: UInt8[np.ndarray, "photos size size 3"],
    affinity: Float[np.ndarray, "networks networks"],
    names: Sequence[str],
    groups: Mapping[str, str],
    curves: Mapping[str, RetrievalCurve],
    bands: Mapping[str, RetrievalBands],
    path: str | Path,
    *,
    method: str,
) -> None:
    """Draws the way from maps to a judgement in three steps: maps, the matrix of affinities, precision at K.

    Args:
        maps: By network, four or so; values from -1 to 1, as `scaled_map` gives them.
        photos: What the maps are of, three or so.
        affinity: Of about 20 networks.
        names: The networks, in the order of the rows.
        groups: The group of every name.
        curves: By method.
        bands: Where other images (dark) and other networks (light) would have put the curves; by method.
        path: The PNG file to write.
        method: Of the maps and the matrix.

    Raises:
        OSError: The file cannot be written.
    """
    width, height = 13.6, 5.0
    figure = Figure(figsize=(width, height), dpi=120)

    def panel(left: float, bottom: float, across: float, up: float, title: str) -> Axes:
        axes = figure.add_axes((left / width, bottom / height, across / width, up / height))
        axes.set_title(title, loc="left", fontsize=12, pad=8)
        return axes

    rows = {"image": photos, **{name: signed_colours(row) for name, row in maps.items()}}
    canvas = _tiled([*rows.values()])
    across = 4.0 * canvas.shape[1] / canvas.shape[0]
    axes = panel(0, 0.5, across, 4.0, "1. What networks look at")
    axes.imshow(canvas, extent=(0, canvas.shape[1], len(rows), 0), aspect="auto", interpolation="nearest")
    axes.set_yticks(np.arange(len(rows)) + 0.48, [*rows], fontsize=10)
    axes.set_xticks([])
    axes.set_xlabel(f"{method}: purple is positive, orange negative", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

    count = len(names)
    axes = panel(across + 1.65, 0.5, 4.0, 4.0, "2. Which of them look alike")
    axes.set_facecolor("0.85")
    diagonal = np.eye(count, dtype=bool)
    low, high = np.quantile(affinity[~diagonal], (0.1, 1))  # one network unlike all others must not take the range
    looks = {"cmap": _COLOURS, "vmin": low, "vmax": high}
    axes.pcolormesh(np.ma.masked_array(affinity, diagonal), edgecolors="white", linewidth=0.4, **looks)
    axes.set(xlim=(0, count), ylim=(count, 0), xticks=[])
    axes.set_yticks(np.arange(count) + 0.5, names, fontsize=9)
    axes.set_xlabel(f"affinity by {method}, from {low:.2f} or less (dark) to {high:.2f}", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _strip(axes, names, groups, 0.1 * count / 4.0)
    _group_legend(figure, {name: groups[name] for name in names}, ((across + 1.65) / width, 0.1 / height), columns=4)

    axes = panel(across + 6.5, 0.5, 3.3, 4.0, "3. Does that predict transfer?")
    _curves(axes, "precision", curves, bands)
    axes.legend(frameon=False, fontsize=9, title="shaded: 95 % bands", title_fontsize=9)
    _save(figure, Path(path))


def scaled_map(values: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """A map divided by the 99th percentile of its absolute values, cut off at -1 and 1; 0 where it is not finite."""
    finite = np.where(np.isfinite(values), values, 0)
    most = float(np.percentile(np.abs(finite), 99))
    # A map with few values that are not zero has no such percentile.
    return np.clip(finite / (most or float(np.abs(finite).max()) or 1), -1, 1)


def signed_colours(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """The colours of values from -1 to 1."""
    return _SIGNED((np.asarray(values) + 1) / 2, bytes=True)[..., :3]


def viridis(count: int) -> list[str]:
    """Colours from the lowest to the highest value of a heat map, as `#rrggbb`."""
    return [to_hex(_COLOURS(share)) for share in np.linspace(0, 1, count)]


def group_colours(groups: Iterable[str]) -> dict[str, str]:
    """A colour for every group, as `#rrggbb`: in the order of the alphabet, grey for `OTHER`."""
    return {group: colour for group, (colour, _) in _looks(groups).items()}


def _curves(
    axes: Axes, quantity: Quantity, curves: Mapping[str, RetrievalCurve], bands: Mapping[str, RetrievalBands] | None
) -> None:
    """Precision or recall at K of every method, with its bands, and of a random order."""
    for (method, curve), colour, marker in zip(
        curves.items(), itertools.cycle(_SERIES), itertools.cycle("osD^v"), strict=False
    ):
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


def _tiled(rows: Sequence[UInt8[np.ndarray, "columns size size 3"]]) -> UInt8[np.ndarray, "height width 3"]:
    """Images in rows and columns, with white between and after them."""
    size, columns = rows[0].shape[1], len(rows[0])
    pitch = size + max(2, size // 32)
    canvas = np.full((len(rows) * pitch, columns * pitch, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            canvas[i * pitch : i * pitch + size, j * pitch : j * pitch + size] = tile
    return canvas


def _strip(axes: Axes, names: Sequence[str], groups: Mapping[str, str], width: float) -> None:
    """The groups of the rows of a heat map as a strip of colours on its left, so many columns wide."""
    colour_of = group_colours(groups.values())
    for row, name in enumerate(names):
        looks = {"facecolor": colour_of[groups[name]], "edgecolor": "white", "linewidth": 0.3, "clip_on": False}
        axes.add_patch(Rectangle((-1.6 * width, row), width, 1, **looks))
    axes.tick_params(axis="y", pad=0.2 * 72)


def _looks(groups: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every group."""
    named = sorted(set(groups) - {OTHER})
    looks = {
        group: (_SERIES[i % len(_SERIES)], _MARKERS[(i + i // len(_SERIES)) % len(_MARKERS)])
        for i, group in enumerate(named)
    }
    return looks | ({OTHER: ("#8c8c8c", ".")} if OTHER in groups else {})


def _group_legend(figure: Figure, groups: Mapping[str, str], place: tuple[float, float], columns: int = 1) -> None:
    """Names the groups; `place` is the legend's upper left corner."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=group)
        for group, (colour, marker) in _looks([*groups.values()]).items()
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncols=columns, frameon=False, fontsize=8,
        borderaxespad=0, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip


def _text_width(figure: Figure, texts: Iterable[str], size: float) -> float:
    """Inches of the longest text."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    longest = sorted(texts, key=len)[-20:]
    drawn = [Text(0, 0, each, figure=figure, fontsize=size, parse_math=False) for each in longest]
    return max((text.get_window_extent(renderer).width for text in drawn), default=0.0) / figure.dpi


def _save(figure: Figure, path: Path, *, svg: bool = False, cropped: bool = True) -> None:
    """Writes a figure, each file whole or not at all; `cropped` to what is drawn, which takes as long as drawing it."""
    # The canvas is named, not looked up, so that the program's own choice of backend does not matter.
    canvas = FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name may hold dollar signs
    # Without a date and with a fixed salt the same figure has the same bytes. Text stays text: it can be searched.
    settings = mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "jaxtransfer", "svg.fonttype": "none"})
    with settings, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names may hold letters the font lacks
        area = None
        if cropped:
            figure.draw_without_rendering()
            area = figure.get_tightbbox(canvas.get_renderer()).padded(0.15)
        with atomic_write(path) as partial:
            canvas.print_figure(partial, format="png", bbox_inches=area, pil_kwargs={"compress_level": 3})
        if svg:
            with atomic_write(path.with_suffix(".svg")) as partial:
                canvas.print_figure(partial, format="svg", bbox_inches=area, metadata={"Date": None})
