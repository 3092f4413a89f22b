"""Compares runs of the same networks with other methods, probe images or measures."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import references
from jaxtransfer.evaluation.summary import Evaluations, evaluate
from jaxtransfer.evaluation.tree import mantel_test
from jaxtransfer.figures import heat_map
from jaxtransfer.files import write_csv
from jaxtransfer.runs.evaluation import write_evaluation
from jaxtransfer.runs.load import load_run


class Agreement(NamedTuple):
    """Holds the agreement of two matrices.

    Attributes:
        rank_correlation: Spearman correlation of the rankings of a target's sources, mean over targets.
        matrix_correlation: Pearson correlation of all pairs.
        p_value: Share of relabellings that correlate as much, see `mantel_test`; NaN with fewer than four networks.
    """

    rank_correlation: float
    matrix_correlation: float
    p_value: float


class Disagreement(NamedTuple):
    """Holds the ranks of a source for a target in several matrices.

    Attributes:
        target: The target.
        source: The source.
        places: Rank of the source in each matrix, 1 the nearest.
    """

    target: str
    source: str
    places: tuple[int, ...]

    @property
    def spread(self) -> int:
        """Computes the difference of the highest and the lowest rank."""
        return max(self.places) - min(self.places)


class Comparison(NamedTuple):
    """Holds the comparison of several matrices of the same networks.

    Attributes:
        names: The networks that are in all matrices with all values.
        labels: Labels of the matrices.
        agreements: The agreement of every two matrices, by their labels.
        disagreements: The ranks of every source for every target, those first that differ most.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    agreements: dict[tuple[str, str], Agreement]
    disagreements: list[Disagreement]


def compare(affinities: Mapping[str, Affinity]) -> Comparison:
    """Compares matrices with one another.

    Args:
        affinities: Affinities by label, each with one method or more. A matrix has the label `label/method`. Gaps and
            other measures whose smaller values are nearer are compared by nearness.

    Raises:
        JaxTransferError: Fewer than two matrices, or fewer than three networks that are in all of them.
    """
    if sum(len(affinity.methods) for affinity in affinities.values()) < 2:
        raise JaxTransferError("There is only one matrix; comparing needs two runs, or a run of two methods.")
    names = _common_names(affinities)
    common = {label: affinity.only(names) for label, affinity in affinities.items()}
    matrices = {
        f"{label}/{method}": (affinity.nearness(method).astype(np.float64), affinity.measure(method).directed)
        for label, affinity in common.items()
        for method in affinity.methods
    }
    places = np.stack([_places(matrix) for matrix, _ in matrices.values()])
    agreements = {}
    for pair in itertools.combinations(matrices, 2):
        (one, one_directed), (other, other_directed) = (matrices[label] for label in pair)
        agreements[pair] = _agreement(one, other, directed=one_directed or other_directed)
    disagreements = [
        Disagreement(names[t], names[s], tuple(map(int, places[:, t, s])))
        for t, s in itertools.permutations(range(len(names)), 2)
    ]
    disagreements.sort(key=lambda disagreement: -disagreement.spread)
    return Comparison(names, tuple(matrices), agreements, disagreements)


def compare_runs(
    directories: list[Path], out: Path, *, oracle: Oracle | None = None, relevant: int = RELEVANT
) -> tuple[Comparison, Evaluations | None]:
    """Compares finished runs and writes the results into a directory.

    The directory receives `agreement.csv` and `agreement.png`, `disagreements.csv`, and with an oracle the files that
    `evaluate_run` writes, for all matrices and the networks that they share.

    Args:
        directories: The run directories, each named once.
        out: The directory to write to; created if it does not exist.
        oracle: Measured transfer; None: no evaluation.
        relevant: Number of sources of each target that count as relevant.

    Returns:
        The comparison, and the evaluations of the matrices by their labels; None without an oracle.

    Raises:
        JaxTransferError: A directory without a finished run, two of one name, or what `compare` raises.
        OSError: Something cannot be written.
    """
    from scipy.spatial.distance import squareform

    labels = [directory.absolute().name for directory in directories]
    if len(set(labels)) < len(labels):
        labels = [str(directory) for directory in directories]
    affinities = dict(zip(labels, map(load_run, directories), strict=True))
    if len(affinities) < len(directories):
        raise JaxTransferError("A run is named twice; name each once.")
    comparison = compare(affinities)
    evaluations = None
    if oracle is not None:
        common = {label: affinity.only(comparison.names) for label, affinity in affinities.items()}
        by_label = {
            f"{label}/{method}": evaluate(affinity, oracle, method, relevant)
            for label, affinity in common.items()
            for method in affinity.methods
        }
        first = next(iter(common.values()))
        evaluations = Evaluations(by_label, references(first, oracle, first.methods[0], relevant))
    out.mkdir(parents=True, exist_ok=True)
    rows = [[*pair, *agreement] for pair, agreement in comparison.agreements.items()]
    write_csv(out / "agreement.csv", [["one", "other", *Agreement._fields], *rows])
    places = [[entry.target, entry.source, entry.spread, *entry.places] for entry in comparison.disagreements]
    write_csv(out / "disagreements.csv", [["target", "source", "spread", *comparison.labels], *places])
    correlations = [agreement.rank_correlation for agreement in comparison.agreements.values()]
    matrix = squareform(correlations) + np.eye(len(comparison.labels))
    title = f"Agreement of rankings, {len(comparison.names)} networks"
    quantity = "mean Spearman correlation over targets"
    heat_map(matrix, comparison.labels, out / "agreement.png", title, quantity=quantity)
    if oracle is not None and evaluations is not None:
        write_evaluation(out, evaluations, oracle)
    return comparison, evaluations


def _common_names(affinities: Mapping[str, Affinity]) -> tuple[str, ...]:
    """Lists the networks that are in all affinities with all values, in the order of the first."""
    first, *others = affinities.values()
    names = [name for name in first.names if all(name in other.names for other in others)]
    for affinity in affinities.values():
        for method in affinity.methods:
            names = list(affinity.only(names).complete(method).names)
    if len(names) < 3:
        raise JaxTransferError(
            f"Comparing needs three networks or more that are in all runs; in common are: {', '.join(names) or 'none'}."
        )
    return tuple(names)


def _places(matrix: Float[np.ndarray, "networks networks"]) -> Int[np.ndarray, "networks networks"]:
    """Ranks the columns of each row, 1 the largest; the diagonal is 0."""
    values = matrix.copy()
    np.fill_diagonal(values, np.inf)
    return np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)


def _agreement(
    one: Float[np.ndarray, "networks networks"], other: Float[np.ndarray, "networks networks"], *, directed: bool
) -> Agreement:
    """Computes how far two matrices agree, of which larger values are nearer."""
    from scipy.stats import spearmanr

    off = ~np.eye(len(one), dtype=bool)
    by_target = [
        float(np.asarray(spearmanr(a[kept], b[kept]))[0])
        for a, b, kept in zip(one, other, off, strict=True)
        if np.ptp(a[kept]) > 0 and np.ptp(b[kept]) > 0
    ]
    mean = float(np.mean(by_target)) if by_target else math.nan
    varies = min(np.ptp(one[off]), np.ptp(other[off])) > 0
    if len(one) < 4 or not varies:
        pearson = float(np.corrcoef(one[off], other[off])[0, 1]) if varies else math.nan
        return Agreement(mean, pearson, math.nan)
    return Agreement(mean, *mantel_test(one, other, directed=directed))
