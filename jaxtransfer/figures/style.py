"""The look that all figures share: colours, the legend of groups, text widths, and how a figure is saved.

Text and axes are black, faint lines black with little opacity, so that whoever puts an SVG into a page can give them
the colour of the page's text.
"""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from jaxtransfer.files import atomic_write

OTHER = "other"
"""The group of networks that belong to no named group."""
VALUE_COLOURS = mpl.colormaps["viridis"]  # perceptually uniform, legible to colour-blind readers, without grey
SIGNED_COLOURS = mpl.colormaps["PuOr"]
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, likewise
_MARKERS = "osD^vPX"  # one more than there are colours, so that 42 pairs differ


@contextlib.contextmanager
def fixed_style() -> Iterator[None]:
    """Draws with Matplotlib's default style, whatever style the program uses elsewhere."""
    with mpl.rc_context():
        mpl.rcdefaults()  # leaves the backend alone
        # With a fixed salt the same figure has the same bytes. Text stays text: it can be searched. Names may hold
        # dollar signs.
        mpl.rcParams.update({"svg.hashsalt": "jaxtransfer", "svg.fonttype": "none", "text.parse_math": False})
        yield


def signed_colours(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Returns the colours (8-bit RGB) of values from -1 to 1."""
    return SIGNED_COLOURS((np.asarray(values) + 1) / 2, bytes=True)[..., :3]


def value_colours(count: int) -> list[str]:
    """Returns `count` colours from the lowest to the highest value of a heat map, as `#rrggbb`."""
    return [to_hex(VALUE_COLOURS(share)) for share in np.linspace(0, 1, count)]


def group_colours(groups: Iterable[str]) -> dict[str, str]:
    """Returns the colour of every group as `#rrggbb`, in alphabetical order; `OTHER` comes last and is grey."""
    return {group: colour for group, (colour, _) in group_styles(groups).items()}


def group_styles(groups: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the colour and the marker of every group."""
    groups = set(groups)
    styles = {
        group: (SERIES_COLOURS[i % len(SERIES_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, group in enumerate(sorted(groups - {OTHER}))
    }
    return styles | ({OTHER: ("#8c8c8c", ".")} if OTHER in groups else {})


def draw_group_strip(axes: Axes, names: Sequence[str], groups: Mapping[str, str], width: float) -> None:
    """Draws the groups of a heat map's rows as a strip of colours to its left; `width` is in columns of the map."""
    colour_of = group_colours(groups.values())
    for row, name in enumerate(names):
        cell = Rectangle(
            (-1.6 * width, row), width, 1, facecolor=colour_of[groups[name]], edgecolor="white", linewidth=0.3,
            clip_on=False,
        )  # fmt: skip
        axes.add_patch(cell)
    axes.tick_params(axis="y", pad=0.2 * 72)


def draw_group_legend(figure: Figure, groups: Iterable[str], corner: tuple[float, float], columns: int = 1) -> None:
    """Draws a legend of the groups; `corner` is its upper left corner, as a share of the figure's width and height."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=group)
        for group, (colour, marker) in group_styles(groups).items()
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=corner, ncols=columns, frameon=False, fontsize=8,
        borderaxespad=0, handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip


def text_width(figure: Figure, texts: Iterable[str], fontsize: float) -> float:
    """Returns the width of the widest text in inches."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    longest = sorted(texts, key=len)[-20:]
    drawn = [Text(0, 0, text, figure=figure, fontsize=fontsize) for text in longest]
    return max((text.get_window_extent(renderer).width for text in drawn), default=0.0) / figure.dpi


def tiled(rows: Sequence[UInt8[np.ndarray, "columns size size 3"]]) -> UInt8[np.ndarray, "height width 3"]:
    """Returns one image of images in rows and columns, with white between and after them."""
    size, columns = rows[0].shape[1], len(rows[0])
    pitch = size + max(2, size // 32)
    canvas = np.full((len(rows) * pitch, columns * pitch, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            canvas[i * pitch : i * pitch + size, j * pitch : j * pitch + size] = tile
    return canvas


def save(figure: Figure, path: str | Path, *, svg: bool = False, cropped: bool = True) -> None:
    """Writes a figure as a PNG file, and with `svg` as an SVG file of the same name; each appears only when complete.

    Args:
        figure: The figure.
        path: The PNG file to write.
        svg: Whether to write the SVG file as well.
        cropped: Whether to cut the margins off, which takes as long as drawing the figure.
    """
    # The canvas is named, not looked up, so that the program's own choice of backend does not matter.
    canvas, path = FigureCanvasAgg(figure), Path(path)
    with warnings.catch_warnings():
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
