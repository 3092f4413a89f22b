"""Principal subspaces of representations (SVCCA), and their alignment by a rotation (Procrustes)."""

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison import jackknife
from jaxtransfer.comparison.jackknife import Comparison, grouped, jackknifed, warn_of_chance
from jaxtransfer.comparison.streaming import (
    CONSTANT_SHARE,
    Representations,
    Scratch,
    Units,
    centred,
    check_varies,
    finite_images,
    flat,
    inner_products,
    mean_over_images,
    pieces,
)


def svcca(representations: Representations, *, variance: float = 0.99) -> Comparison:
    """Singular vector canonical correlation analysis (Raghu et al., NeurIPS 2017): 0 to 1.

    Every representation, its mean over images removed, is reduced to the fewest principal directions that hold
    `variance` of its variance; the value is the mean canonical correlation of the reduced representations. The smaller
    of the matrices images x images and units x units is decomposed; the latter is summed over chunks of images. The
    number of directions is discontinuous, so the jackknife overestimates the error rather than underestimating it. For
    unrelated networks that keep p and q directions the mean squared correlation is max(p, q) / (images - 1).

    Warns:
        UserWarning: The root of that is 0.1 or more. It is 1 for a network that keeps images - 1 directions, the most
            there can be, and so correlates perfectly with every network.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    views = flat(representations)
    usable = finite_images(views)
    order, groups = grouped(usable, views, jackknife.FEWER_GROUPS)
    directions: list[int] = []

    def correlation(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
        kept = order if left_out is None else np.delete(order, groups[left_out])
        values = np.eye(len(representations))
        with Scratch() as scratch:
            bases = []
            for name, units in views.items():
                basis = _principal(units, kept, variance)
                check_varies(name, basis.size > 0)
                if left_out is None:
                    directions.append(basis.shape[1])
                bases.append(scratch.keep(basis))
            for i, basis in enumerate(bases):
                for j, other in enumerate(bases[:i]):
                    product = basis.T @ other if basis.shape[1] <= other.shape[1] else other.T @ basis
                    squares = np.linalg.eigvalsh(product @ product.T)
                    values[i, j] = values[j, i] = np.sqrt(np.clip(squares, 0, 1)).mean()
        return values

    def chance() -> Float[np.ndarray, "networks networks"]:
        return np.sqrt(np.maximum.outer(directions, directions) / (len(order) - 1))

    comparison = jackknifed(correlation, chance, order, groups, usable)
    warn_of_chance("svcca", representations, comparison)
    return comparison


def _principal(units: Units, images: Int[np.ndarray, " kept"], variance: float) -> Float[np.ndarray, "kept directions"]:
    """Returns orthonormal coordinates of images along the principal directions; none if the images are all the same."""
    mean = mean_over_images(units, images)
    width = units.shape[1]
    if width < len(images):
        squares, products = 0.0, np.zeros((width, width))
        for start, stop in pieces(units, images):
            piece = centred(units, images[start:stop], mean)
            products += piece.T @ piece
            squares += np.square(piece + mean).sum()
    else:
        products, _, before = inner_products(units, images, mean)
        squares = before.sum()
    variances, vectors = np.linalg.eigh(products)
    variances, vectors = np.maximum(variances[::-1], 0), vectors[:, ::-1]
    if variances.sum() <= CONSTANT_SHARE * squares:
        return np.empty((len(images), 0))
    count = 1 + int(np.searchsorted(np.cumsum(variances), variance * variances.sum()))
    if width >= len(images):
        return vectors[:, :count]
    directions = vectors[:, :count] / np.sqrt(variances[:count])
    ranges = pieces(units, images)
    return np.concatenate([centred(units, images[start:stop], mean) @ directions for start, stop in ranges])


def procrustes(representations: Representations) -> Comparison:
    """Computes how well an orthogonal map turns one representation into another: 0 to 1.

    The nuclear norm of X'Y, for representations X and Y whose mean over images is removed and which are scaled to
    Frobenius norm 1; the squared distance after the best orthogonal map is 2 (1 - value) (Williams et al., NeurIPS
    2021; Ding et al., NeurIPS 2021). It is biased upwards for few images: for unrelated networks its mean is at most
    min(|X|, |Y|) / sqrt(images - 1), in nuclear norms. The time for a pair of networks grows with the cube of
    the number of images or of units, whichever is smaller, and ten groups of images are left out in turn.

    Warns:
        UserWarning: That bound is 0.1 or more.

    Raises:
        JaxTransferError: Fewer than four images that are usable (finite) for all networks, or a network whose
            representation is the same for all of them.
    """
    views = flat(representations)
    usable = finite_images(views)
    order, groups = grouped(usable, views, jackknife.FEWER_GROUPS)
    nuclear_norms: list[float] = []
    with Scratch() as scratch:
        coordinates = [scratch.keep(_coordinates(name, units, order)) for name, units in views.items()]

        def similarity(left_out: int | None) -> Float[np.ndarray, "networks networks"]:
            values = np.eye(len(views))
            with Scratch() as centred_coordinates:
                scaled = []
                for name, whole in zip(views, coordinates, strict=True):
                    kept = whole if left_out is None else np.delete(whole, groups[left_out], axis=0)
                    kept = kept - kept.mean(0)
                    norm = np.linalg.norm(kept)
                    check_varies(name, norm**2 > CONSTANT_SHARE * np.square(whole).sum())
                    scaled.append(centred_coordinates.keep(kept / norm))
                    if left_out is None:
                        nuclear_norms.append(float(np.linalg.norm(scaled[-1], "nuc")))
                for i, x in enumerate(scaled):
                    for j, y in enumerate(scaled[:i]):
                        values[i, j] = values[j, i] = np.linalg.norm(x.T @ y, "nuc")
            return values

        def chance() -> Float[np.ndarray, "networks networks"]:
            return np.minimum.outer(nuclear_norms, nuclear_norms) / np.sqrt(len(order) - 1)

        comparison = jackknifed(similarity, chance, order, groups, usable)
    warn_of_chance("procrustes", representations, comparison)
    return comparison


def _coordinates(name: str, units: Units, images: Int[np.ndarray, " kept"]) -> Float[np.ndarray, "kept coordinates"]:
    """Returns centred images in an orthonormal basis of no more directions than there are images or units."""
    mean = mean_over_images(units, images)
    if units.shape[1] < len(images):
        parts = [centred(units, images[start:stop], mean) for start, stop in pieces(units, images)]
        coordinates = np.concatenate(parts)
        check_varies(name, np.square(coordinates).sum() > CONSTANT_SHARE * np.square(coordinates + mean).sum())
        return coordinates
    products, _, before = inner_products(units, images, mean)
    variances, vectors = np.linalg.eigh(products)
    check_varies(name, variances.sum() > CONSTANT_SHARE * before.sum())
    kept = variances > len(images) * np.finfo(float).eps * variances[-1]
    return vectors[:, kept] * np.sqrt(variances[kept])
