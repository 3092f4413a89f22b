"""The task similarity tree, and the agreement of two matrices."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.errors import JaxTransferError


@dataclasses.dataclass(frozen=True, eq=False)
class TaskTree:
    """A tree of networks by single linkage (Song et al., NeurIPS 2019, section 4.2).

    Attributes:
        names: The leaves, in the order of the affinity's names.
        linkage: SciPy's linkage matrix [networks - 1, 4]: for every merge the two clusters, their distance, the size.
        leaves: Indices of `names` from left to right, in the order that puts near leaves side by side.
        cophenetic_correlation: Correlation of the distances with those along the tree: 1 where the tree says all.
    """

    names: tuple[str, ...]
    linkage: Float[np.ndarray, "merges 4"]
    leaves: Int[np.ndarray, " networks"]
    cophenetic_correlation: float

    @property
    def ordered(self) -> tuple[str, ...]:
        """The names from left to right."""
        return tuple(self.names[i] for i in self.leaves)


class MantelTest(NamedTuple):
    """How well two matrices agree.

    Attributes:
        correlation: Pearson's, of the values off the diagonal.
        p_value: The share of relabellings (this one included) with a correlation as large: one-sided.
    """

    correlation: float
    p_value: float


def task_tree(affinity: Affinity, *, method: str | None = None) -> TaskTree:
    """Clusters networks whose rows of affinities are near (Euclidean), with the best order of leaves.

    Args:
        affinity: Of three networks or more.
        method: May be omitted where there is only one.

    Raises:
        JaxTransferError: Fewer than three networks, or an unknown method.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import pdist

    if len(affinity.names) < 3:
        raise JaxTransferError(f"A tree needs three networks or more, not {len(affinity.names)}.")
    distances = pdist(affinity[method].astype(np.float64))
    linkage = hierarchy.linkage(distances, "single", optimal_ordering=True)
    along = hierarchy.cophenet(linkage)
    agreement = np.corrcoef(distances, along)[0, 1] if np.ptp(distances) > 0 < np.ptp(along) else np.nan
    return TaskTree(affinity.names, linkage, hierarchy.leaves_list(linkage), float(agreement))


def mantel_test(
    a: Float[np.ndarray, "networks networks"],
    b: Float[np.ndarray, "networks networks"],
    *,
    permutations: int = 9999,
    seed: int = 0,
) -> MantelTest:
    """Whether two symmetric matrices of the same networks agree more than relabelled ones (Mantel 1967).

    Args:
        a: Affinities or distances; the diagonal is not looked at.
        b: The same for the same networks.
        permutations: Relabellings tried.
        seed: Of the relabellings.

    Raises:
        JaxTransferError: The matrices differ in size, have fewer than four networks, or one is constant.
    """
    if np.shape(a) != np.shape(b) or np.ndim(a) != 2 or len(a) != len(a[0]) or len(a) < 4:
        raise JaxTransferError(
            f"A Mantel test needs two square matrices of the same four networks or more, not {np.shape(a)} and "
            f"{np.shape(b)}."
        )
    upper = np.triu_indices(len(a), 1)
    x, y = (np.asarray(each, np.float64) for each in (a, b))
    if not np.ptp(x[upper]) > 0 or not np.ptp(y[upper]) > 0:
        raise JaxTransferError("A Mantel test needs values that differ, and all of them finite.")
    fixed = x[upper] - x[upper].mean()
    fixed /= np.linalg.norm(fixed) * y[upper].std() * np.sqrt(len(fixed))
    centred = y - y[upper].mean()

    generator = np.random.default_rng(seed)
    correlation = fixed @ centred[upper]
    orders = (generator.permutation(len(a)) for _ in range(permutations))
    # Rounding must not hide a relabelling that gives the same.
    as_large = sum(fixed @ centred[np.ix_(order, order)][upper] >= correlation - 1e-12 for order in orders)
    return MantelTest(float(correlation), float((as_large + 1) / (permutations + 1)))
