"""Galleries of attribution maps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from jaxtransfer.figures import style

_DPI = 120


@style.fixed_style()
def gallery(
    maps: Mapping[str, Float[np.ndarray, "photos size size"]],
    photos: UInt8[np.ndarray, "photos size size 3"] | None,
    path: str | Path,
    title: str,
    *,
    svg: bool = False,
) -> None:
    """Draws attribution maps with a row for each network and a column for each photo.

    Args:
        maps: The maps of each network; values from -1 to 1, as `scaled_map` returns them.
        photos: The photos that the maps belong to, drawn as the first row; None: no such row.
        path: The PNG file to write.
        title: The title above the maps.
        svg: Whether to write an SVG file of the same name as well.

    Raises:
        OSError: The files cannot be written.
    """
    tiles = {name: style.signed_colours(row) for name, row in maps.items()}
    rows = [*([photos] if photos is not None else []), *tiles.values()]
    names = [*(["probe photos"] if photos is not None else []), *tiles]
    canvas = style.tiled(rows)
    # Everything in inches, so that a pixel of a map is a pixel of the figure.
    height, width = (pixels / _DPI for pixels in canvas.shape[:2])
    row_height, image_height = height / len(rows), rows[0].shape[1] / _DPI
    bar_height = 3.1  # enough for its label
    figure = Figure(dpi=_DPI)
    left, right, top, bottom = style.text_width(figure, names, 9) + 0.25, 0.95, 0.5, 0.15
    figure_width = max(left + width + right, left + style.text_width(figure, [title], 11) + 0.15)
    figure_height = top + max(height, bar_height) + bottom
    figure.set_size_inches(figure_width, figure_height)
    axes = figure.add_axes(
        (
            left / figure_width,
            1 - (top + height) / figure_height,
            width / figure_width,
            height / figure_height,
        )
    )
    axes.imshow(canvas, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    axes.set_yticks(np.arange(len(rows)) * row_height + image_height / 2, names, fontsize=9)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, pad=10)
    bar_axes = figure.add_axes(
        (
            (left + width + 0.12) / figure_width,
            1 - (top + bar_height) / figure_height,
            0.14 / figure_width,
            bar_height / figure_height,
        )
    )
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), style.SIGNED_COLOURS), cax=bar_axes)
    bar.set_label("share of each map's 99th percentile of |value|", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    style.save(figure, path, svg=svg, cropped=False)


def scaled_map(values: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Divides a map by the 99th percentile of its absolute values and clips it to [-1, 1].

    Values that are not finite become 0.
    """
    finite = np.where(np.isfinite(values), values, 0)
    percentile = float(np.percentile(np.abs(finite), 99))
    # In a map of almost only zeros the percentile is zero; the largest value takes its place.
    return np.clip(finite / (percentile or float(np.abs(finite).max()) or 1), -1, 1)
