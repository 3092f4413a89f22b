"""Duality diagram similarity (Dwivedi et al., ECCV 2020): the alignment of U-centred similarities of images.

Each unit is z-scored over images (a unit that does not vary is divided by 1). A network's matrix of similarities,
images x images, is U-centred (Szekely and Rizzo 2014); the value for two networks is the cosine between their matrices.
The formulas are those of the paper and its code (github.com/cvai-roig-lab/duality-diagram-similarity). When the
jackknife leaves out a group of images, units keep the standard deviation of all images; everything else is computed
without the group.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison import jackknife, streaming
from jaxtransfer.comparison.alignment import chance_of_u_centred, cosines, u_centred
from jaxtransfer.comparison.image_similarities import Kernel, cosine_kernel, gaussian_kernel, laplacian_kernel
from jaxtransfer.comparison.jackknife import Comparison, grouped, jackknifed, warn_of_chance
from jaxtransfer.comparison.streaming import Representations, Scratch, Units, finite_images, flat, standardised
from jaxtransfer.points.store import chunks

# Images on a side of a tile, so that the tile of a network stays in a processor's cache.
_TILE = 512

_Prepare = Callable[
    [str, Units, Int[np.ndarray, " images"], Scratch], tuple[Bool[np.ndarray, " images"] | bool, Kernel]
]


def dds_cosine(representations: Representations) -> Comparison:
    """Compares networks by the cosines between z-scored images: -1 to 1, around 0 for unrelated networks.

    An image without a cosine, because it equals the mean in all units, is not usable. The paper's distance is one minus
    the cosine, which gives the same value. On Taskonomy its mean Spearman correlation with measured transfer was .862,
    where the target counted as its own source; without that it is .834.

    Warns:
        UserWarning: Fewer than 16 images: unrelated networks score 0.1 or more by chance.

    Raises:
        JaxTransferError: Fewer than five images that are usable for all networks, or a network of which U-centring
            leaves nothing, because all pairs of images are equally similar or one image differs from all others, which
            are identical.
    """
    comparison = _compare(representations, lambda _, *arguments: cosine_kernel(*arguments))
    warn_of_chance("dds_cosine", representations, comparison)
    return comparison


def dds_pearson(representations: Representations) -> Comparison:
    """Compares networks by the Pearson correlations, over units, between z-scored images: -1 to 1.

    Units that do not vary count as zeros in the correlation. An image without a correlation, because it is the same in
    all units, is not usable. Otherwise as `dds_cosine`, warnings and errors too.
    """
    comparison = _compare(representations, lambda _, *arguments: cosine_kernel(*arguments, over_units=True))
    warn_of_chance("dds_pearson", representations, comparison)
    return comparison


def dds_laplacian(representations: Representations) -> Comparison:
    """Compares networks by the Laplacian kernel of z-scored images, exp(-|x - y|_1 / units): -1 to 1.

    Units that do not vary count in the number of units. On Taskonomy its mean Spearman correlation with measured
    transfer was .860, where the target counted as its own source; without that it is .832. The time grows with
    images^2 x units and is the longest of the four. Otherwise as `dds_cosine`, warnings and errors too.
    """
    comparison = _compare(representations, lambda _, *arguments: (True, laplacian_kernel(*arguments)))
    warn_of_chance("dds_laplacian", representations, comparison)
    return comparison


def dds_rbf(representations: Representations) -> Comparison:
    """Compares networks by the Gaussian kernel of z-scored images, exp(-|x - y|_2^2 / (2 s^2)): -1 to 1.

    The bandwidth s is half the root of the median squared distance between images, as in the code of the paper, which
    has it from Kornblith et al. (2019); the median is that of the whole matrix, with its diagonal of zeros. Otherwise
    as `dds_cosine`, warnings and errors too.

    Raises:
        JaxTransferError: Besides: a network for which half of the pairs of images have the same representation.
    """
    comparison = _compare(representations, lambda *arguments: (True, gaussian_kernel(*arguments)))
    warn_of_chance("dds_rbf", representations, comparison)
    return comparison


def _compare(representations: Representations, prepare: _Prepare) -> Comparison:
    """Compares the U-centred matrices of a kernel."""
    views = standardised(flat(representations))
    networks = len(views)
    usable = finite_images(views)
    images = np.flatnonzero(np.all(usable, axis=0))
    with Scratch() as scratch:
        kernels = []
        for i, (name, units) in enumerate(views.items()):
            usable[i, images], kernel = prepare(name, units, images, scratch)
            kernels.append(kernel)
        # U-centring needs four images, also when the jackknife has left one out.
        order, groups = grouped(usable, views, jackknife.GROUPS, least=5)

        def alignment(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
            kept = np.isin(images, order if left_out is None else np.delete(order, groups[left_out]))
            tiles = [kernel(kept) for kernel in kernels]
            products, sums = np.zeros((networks, networks)), np.zeros((networks, len(images)))
            size = max(1, min(_TILE, int((streaming.MAX_ELEMENTS / networks) ** 0.5)))
            for start, stop in chunks(len(images), size):
                for first, last in chunks(stop, size):
                    part = np.stack([tile(slice(start, stop), slice(first, last)) for tile in tiles])
                    sides = 2  # a tile and its mirror image
                    if first == start:
                        diagonal = np.arange(stop - start)
                        part[:, diagonal, diagonal] = 0
                        sides = 1
                    else:
                        sums[:, first:last] += part.sum(1)
                    sums[:, start:stop] += part.sum(2)
                    values = part.reshape(networks, -1)
                    products += sides * (values @ values.T)
            return cosines(u_centred("DDS", views, products, sums, int(kept.sum())))

        return jackknifed(alignment, lambda: chance_of_u_centred(networks, len(order)), order, groups, usable)
