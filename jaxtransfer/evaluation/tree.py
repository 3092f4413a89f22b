"""Clusters networks into a task similarity tree, and tests the agreement of two matrices."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.measure import pair_indices
from jaxtransfer.errors import JaxTransferError


@dataclasses.dataclass(frozen=True, eq=False)
class TaskTree:
    """Holds a tree of networks by single linkage (Song et al., NeurIPS 2019, section 4.2).

    Attributes:
        names: The leaves, in the order of the affinity's names.
        linkage: SciPy's linkage matrix [networks - 1, 4]: for every merge the two clusters, their distance, the size.
        leaves: Indices of `names` from left to right, in the order that puts near leaves side by side.
        cophenetic_correlation: Correlation of the distances with those along the tree; 1 where the tree keeps them all.
    """

    names: tuple[str, ...]
    linkage: Float[np.ndarray, "merges 4"]
    leaves: Int[np.ndarray, " networks"]
    cophenetic_correlation: float

    @property
    def ordered(self) -> tuple[str, ...]:
        """Lists the names from left to right."""
        return tuple(self.names[i] for i in self.leaves)


class MantelTest(NamedTuple):
    """Holds the agreement of two matrices.

    Attributes:
        correlation: Pearson correlation of the values off the diagonal.
        p_value: Share of relabellings (the given one included) with a correlation at least as large: one-sided.
    """

    correlation: float
    p_value: float


def task_tree(affinity: Affinity, *, method: str | None = None) -> TaskTree:
    """Clusters networks by the Euclidean distance of their rows of values, with the best order of leaves.

    The distance of two rows is the same whether larger or smaller values are nearer. Of a directed measure the tree is
    that of the symmetric part, the mean of the matrix and its transpose.

    Args:
        affinity: The affinities of three networks or more.
        method: The method to cluster by; may be omitted where there is only one.

    Raises:
        JaxTransferError: Fewer than three networks, targets that are not the sources, or an unknown method.

    Examples:
        >>> affinity = jt.Affinity.of(["edges", "depth", "texture", "normals"],
        ...                           {"m": [[1, 0.2, 0.9, 0.1], [0.2, 1, 0.1, 0.8], [0.9, 0.1, 1, 0.2],
        ...                                  [0.1, 0.8, 0.2, 1]]})
        >>> sorted(map(sorted, (jt.task_tree(affinity).ordered[:2], jt.task_tree(affinity).ordered[2:])))
        [['depth', 'normals'], ['edges', 'texture']]
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import pdist

    if len(affinity.names) < 3:
        raise JaxTransferError(f"A tree needs three networks or more, not {len(affinity.names)}.")
    values = affinity[method].astype(np.float64)
    distances = pdist((values + values.T) / 2 if affinity.measure(method).directed else values)
    linkage = hierarchy.linkage(distances, "single", optimal_ordering=True)
    along = hierarchy.cophenet(linkage)
    agreement = np.corrcoef(distances, along)[0, 1] if np.ptp(distances) > 0 < np.ptp(along) else np.nan
    return TaskTree(affinity.names, linkage, hierarchy.leaves_list(linkage), float(agreement))


def mantel_test(
    a: Float[np.ndarray, "networks networks"],
    b: Float[np.ndarray, "networks networks"],
    *,
    directed: bool = False,
    permutations: int = 9999,
    seed: int = 0,
) -> MantelTest:
    """Tests whether two matrices of the same networks agree more than relabelled ones (Mantel 1967).

    A relabelling permutes rows and columns together.

    Args:
        a: Affinities or distances; the diagonal is not used.
        b: Values of the same kind for the same networks; of a measure whose smaller values are nearer and one whose
            larger are, pass `Affinity.nearness` of both.
        directed: Whether the matrices need not be symmetric, so that all ordered pairs count; otherwise only those
            above the diagonal.
        permutations: Number of random relabellings.
        seed: Seed of the relabellings.

    Raises:
        JaxTransferError: The matrices differ in size, have fewer than four networks, or one is constant.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> a = rng.normal(size=(8, 8))
        >>> result = jt.mantel_test(a + a.T, a + a.T + 0.1, permutations=99)
        >>> print(f"{result.correlation:.3f} {result.p_value:.2f}")
        1.000 0.01
    """
    if np.shape(a) != np.shape(b) or np.ndim(a) != 2 or len(a) != len(a[0]) or len(a) < 4:
        raise JaxTransferError(
            f"A Mantel test needs two square matrices of the same four networks or more, not {np.shape(a)} and "
            f"{np.shape(b)}."
        )
    x, y = (np.asarray(matrix, np.float64) for matrix in (a, b))
    pairs = pair_indices(len(x), directed=directed)
    if not np.ptp(x[pairs]) > 0 or not np.ptp(y[pairs]) > 0:
        raise JaxTransferError("A Mantel test needs values that differ, and all of them finite.")
    fixed = x[pairs] - x[pairs].mean()
    fixed /= np.linalg.norm(fixed) * y[pairs].std() * np.sqrt(len(fixed))
    centred = y - y[pairs].mean()

    generator = np.random.default_rng(seed)
    correlation = fixed @ centred[pairs]
    orders = (generator.permutation(len(a)) for _ in range(permutations))
    # Rounding must not hide a relabelling that gives the same.
    as_large = sum(fixed @ centred[np.ix_(order, order)][pairs] >= correlation - 1e-12 for order in orders)
    return MantelTest(float(correlation), float((as_large + 1) / (permutations + 1)))
