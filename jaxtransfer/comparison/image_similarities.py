"""Similarities of images to a network, tile by tile, for all images or some: cosines, and kernels of distances.

A kernel is a function of which images are kept; it returns a function that computes a tile of the matrix
images x images. Rows and columns of images that are not kept are zero.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.streaming import (
    CONSTANT_SHARE,
    Scratch,
    Units,
    inner_products,
    mean_over_images,
    pieces,
)
from jaxtransfer.errors import NetworkError
from jaxtransfer.points.store import chunks

Tile = Callable[[slice, slice], Float[np.ndarray, "rows columns"]]
Kernel = Callable[[Bool[np.ndarray, " images"]], Tile]

# Rows that a thread compares at a time.
_ROWS = 64
# Bandwidth of the Gaussian kernel as a share of the root of the median squared distance, as in the code of DDS.
_BANDWIDTH = 0.5


def cosine_kernel(
    units: Units, images: Int[np.ndarray, " images"], scratch: Scratch, *, over_units: bool = False
) -> tuple[Bool[np.ndarray, " images"], Kernel]:
    """Prepares cosines between images whose mean over the kept images is subtracted.

    Args:
        units: The representation.
        images: The images.
        scratch: Where inner products are kept.
        over_units: Whether each image's mean over units is subtracted too: Pearson correlations.

    Returns:
        Which images have a direction, and the kernel.
    """
    products, level, squares = inner_products(units, images, mean_over_images(units, images))
    gram = scratch.keep(products)
    width = units.shape[1] if over_units else 0
    usable = np.diagonal(gram) - width * level**2 > CONSTANT_SHARE * squares

    def cosines(kept: Bool[np.ndarray, " images"]) -> Tile:
        count = kept.sum()
        of_rows = gram @ kept / count
        of_all = of_rows[kept].mean()
        levels = level - level[kept].mean()
        own = np.diagonal(gram) - 2 * of_rows + of_all - width * levels**2
        scale = kept / np.sqrt(np.maximum(own, np.finfo(float).tiny))
        # What is subtracted from the inner products of i and j is a sum of products of a number of i and one of j.
        left = np.stack([scale * of_rows, scale, scale * width * levels], axis=1)
        right = np.stack([scale, scale * (of_rows - of_all), scale * levels], axis=1)

        def tile(rows: slice, columns: slice) -> Float[np.ndarray, "rows columns"]:
            return gram[rows, columns] * scale[rows, None] * scale[columns] - left[rows] @ right[columns].T

        return tile

    return usable, cosines


def laplacian_kernel(units: Units, images: Int[np.ndarray, " images"], scratch: Scratch) -> Kernel:
    """Prepares exp(-|x - y|_1 / units)."""
    from scipy.spatial.distance import cdist

    kernel = scratch.empty((len(images), len(images)))

    def fill(start: int, x: Float[np.ndarray, "rows units"], first: int, y: Float[np.ndarray, "columns units"]) -> None:
        part = np.exp(-cdist(x, y, "cityblock") / units.shape[1])
        kernel[start : start + len(x), first : first + len(y)] = part
        kernel[first : first + len(y), start : start + len(x)] = part.T

    with ThreadPoolExecutor() as pool:
        for start, stop in pieces(units, images):
            rows = units[images[start:stop]].astype(np.float64)
            for first, last in pieces(units, images[:stop]):
                columns = rows if first == start else units[images[first:last]].astype(np.float64)
                filled = [
                    pool.submit(fill, start + a, rows[a:b], first, columns[: b if first == start else None])
                    for a, b in chunks(stop - start, _ROWS)
                ]
                for part in filled:
                    part.result()
    return lambda kept: _masked(lambda rows, columns: kernel[rows, columns], kept)


def gaussian_kernel(name: str, units: Units, images: Int[np.ndarray, " images"], scratch: Scratch) -> Kernel:
    """Prepares exp(-|x - y|^2 / (2 s^2)), s half the root of the median of |x - y|^2 over all pairs of kept images.

    The median is that of the whole matrix of squared distances, with the zeros on its diagonal, as in the code of the
    paper.

    Raises:
        JaxTransferError: When the kernel is applied: half of the pairs of images have the same representation.
    """
    products, _, _ = inner_products(units, images, mean_over_images(units, images))
    own = np.diagonal(products)
    distances = scratch.keep(np.maximum(own[:, None] + own - 2 * products, 0))

    def gaussian(kept: Bool[np.ndarray, " images"]) -> Tile:
        pairs = distances[np.ix_(kept, kept)]
        median = np.median(pairs, overwrite_input=True)
        if not median > CONSTANT_SHARE * own.mean():
            raise NetworkError(
                name,
                f"Network {name!r} gives half of the pairs of probe images the same representation, so dds_rbf has no "
                "bandwidth for it; take other images.",
            )
        rate = -1 / (2 * _BANDWIDTH**2 * median)
        return _masked(lambda rows, columns: np.exp(rate * distances[rows, columns]), kept)

    return gaussian


def _masked(tile: Tile, kept: Bool[np.ndarray, " images"]) -> Tile:
    """Sets rows and columns of images that are not kept to zero."""
    if kept.all():
        return tile
    return lambda rows, columns: tile(rows, columns) * kept[rows, None] * kept[columns]
