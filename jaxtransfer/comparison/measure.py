"""What the numbers of a matrix are, and in which order their samples are packed."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.errors import JaxTransferError

Sampled = Literal["images", "restarts", "labelled examples"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """Says what the values of a matrix are.

    Attributes:
        name: The noun for a value: "affinity", "gap", "alignment".
        smaller_is_nearer: Whether a smaller value means nearer networks, as for gaps and losses.
        directed: Whether value [i, j] is that of target i and source j and may differ from value [j, i].
        sampled: What standard errors are taken over: "images", "restarts" or "labelled examples".

    Raises:
        JaxTransferError: `sampled` is none of these.

    Examples:
        >>> jt.Measure("gap", smaller_is_nearer=True, sampled="restarts").nearness(np.array([0.5, 2]))
        array([-0.5, -2. ])
    """

    name: str = "affinity"
    smaller_is_nearer: bool = False
    directed: bool = False
    sampled: Sampled = "images"

    def __post_init__(self) -> None:
        if self.sampled not in get_args(Sampled):
            raise JaxTransferError(f"A measure samples {', '.join(get_args(Sampled))}, not {self.sampled!r}.")

    @property
    def direction(self) -> str:
        """Says in words which values are near."""
        return "smaller is nearer" if self.smaller_is_nearer else "larger is nearer"

    def nearness(self, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Returns the values with the sign that makes larger ones nearer."""
        return 0 - values if self.smaller_is_nearer else values  # 0 - 0 is 0, where -0 would be printed

    def rank(
        self,
        names: Sequence[str],
        target: str,
        values: Float[np.ndarray, "targets sources"],
        stderr: Float[np.ndarray, "targets sources"],
        *,
        targets: Sequence[str] | None = None,
    ) -> list[tuple[str, float, float]]:
        """Ranks sources for a target, nearest first; see `Affinity.rank`.

        Args:
            names: The sources, in the order of columns.
            target: A target.
            values: Values of this measure.
            stderr: Their standard errors.
            targets: The targets, in the order of rows; None: the sources, of which none is a source for itself.

        Returns:
            (name, value, standard error) of each source; those without a value are left out, equal values keep the
            order of `names`.
        """
        row = (names if targets is None else targets).index(target)
        own = row if targets is None else None
        order: list[int] = np.argsort(-self.nearness(values[row]), kind="stable").tolist()
        return [
            (names[i], float(values[row, i]), float(stderr[row, i]))
            for i in order
            if i != own and not np.isnan(values[row, i])
        ]


AFFINITY = Measure()
PREDICTIVITY = Measure("predictivity", directed=True)
GAP = Measure("gap", smaller_is_nearer=True, sampled="restarts")
ALIGNMENT = Measure("alignment", sampled="restarts")


def pair_count(networks: int, *, directed: bool = False, targets: int | None = None) -> int:
    """Counts the pairs; see `pair_indices`."""
    if targets is not None:
        return targets * networks
    return networks * (networks - 1) // (1 if directed else 2)


def pair_indices(
    networks: int, *, directed: bool = False, targets: int | None = None
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Returns row and column of every pair in the order in which `pseudo_values` are packed.

    Unordered pairs have the order of `scipy.spatial.distance.squareform`: (0, 1), (0, 2), ..., (1, 2), ...
    Ordered pairs come row by row without the diagonal: (0, 1), (0, 2), ..., (1, 0), (1, 2), ...
    The pairs of a rectangle are all its cells, row by row: (0, 0), (0, 1), ..., (1, 0), (1, 1), ...

    Args:
        networks: The number of networks, or of columns of a rectangle.
        directed: Whether (i, j) and (j, i) are two pairs.
        targets: The number of rows of a rectangle; None: a square matrix.

    Examples:
        >>> rows, columns = pair_indices(3, directed=True)
        >>> list(zip(rows.tolist(), columns.tolist()))
        [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    """
    if targets is not None:
        return np.repeat(np.arange(targets), networks), np.tile(np.arange(networks), targets)
    rows, columns = np.nonzero(~np.eye(networks, dtype=bool)) if directed else np.triu_indices(networks, 1)
    return rows, columns


def pair_columns(
    networks: int,
    rows: Int[np.ndarray, "..."],
    columns: Int[np.ndarray, "..."],
    *,
    directed: bool = False,
    targets: int | None = None,
) -> Int[np.ndarray, "..."]:
    """Finds pairs in the order of `pair_indices`.

    Args:
        networks: The number of networks, or of columns of a rectangle.
        rows: Row of each pair in the matrix.
        columns: Column of each pair; broadcast against `rows`.
        directed: Whether (i, j) and (j, i) are two pairs.
        targets: The number of rows of a rectangle; None: a square matrix.

    Returns:
        Index of each pair; in a square matrix, for a network with itself an arbitrary valid index, so that whole rows
        can be looked up.
    """
    if targets is not None:
        return rows * networks + columns
    if directed:
        return rows * (networks - 1) + columns - (columns >= rows)
    first, second = np.minimum(rows, columns), np.maximum(rows, columns)
    return first * (2 * networks - first - 1) // 2 + second - first - 1
