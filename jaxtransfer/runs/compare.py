"""Compares runs of the same networks, or targets and sources, with other methods, probe images or measures."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import references
from jaxtransfer.evaluation.retrieval import methods_with_pairs
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
        p_value: Share of relabellings that correlate as much, see `mantel_test`; NaN with fewer than four networks, and
            where targets and sources have names of their own.
    """

    rank_correlation: float
    matrix_correlation: float
    p_value: float


class Disagreement(NamedTuple):
    """Holds the ranks of a source for a target in several matrices.

    Attributes:
        target: The target.
        source: The source.
        places: Rank of the source in each matrix, 1 the nearest; None in a matrix without values for the target.
    """

    target: str
    source: str
    places: tuple[int | None, ...]

    @property
    def spread(self) -> int:
        """Computes the difference of the highest and the lowest rank."""
        known = [place for place in self.places if place is not None]
        return max(known) - min(known)


class Comparison(NamedTuple):
    """Holds the comparison of several matrices of the same targets and sources.

    Attributes:
        targets: The targets that are in all matrices; of square ones, the networks that are with all values.
        sources: The sources, likewise.
        labels: Labels of the matrices.
        agreements: The agreement of every two matrices, by their labels.
        disagreements: The ranks of every source for every target, those first that differ most.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    labels: tuple[str, ...]
    agreements: dict[tuple[str, str], Agreement]
    disagreements: list[Disagreement]

    @property
    def extent(self) -> str:
        """Says in words what was compared."""
        if self.targets == self.sources:
            return f"{len(self.sources)} networks"
        return f"{len(self.targets)} target{'s' * (len(self.targets) > 1)} and {len(self.sources)} sources"


def compare(affinities: Mapping[str, Affinity]) -> Comparison:
    """Compares matrices with one another.

    Where one of them has targets apart from sources, they are compared on the targets and sources that all runs have. A
    matrix without any value for a target is left out there, since measures need not allow the labels of all tasks; the
    others are compared on the sources that all of them have a value for.

    Args:
        affinities: Affinities by label, each with one method or more. A matrix has the label `label/method`. Gaps and
            other measures whose smaller values are nearer are compared by nearness.

    Raises:
        JaxTransferError: Fewer than two matrices, fewer than three networks that are in all of them, or no target with
            two sources or more in two of them.
    """
    if sum(len(affinity.methods) for affinity in affinities.values()) < 2:
        raise JaxTransferError("There is only one matrix; comparing needs two runs, or a run of two methods.")
    common = _in_common(affinities)
    first = next(iter(common.values()))
    matrices = {
        f"{label}/{method}": (affinity.nearness(method).astype(np.float64), affinity.measure(method).directed)
        for label, affinity in common.items()
        for method in affinity.methods
    }
    known = dict(zip(matrices, _known(common), strict=True))
    places = [_places(matrix, known[label]) for label, (matrix, _) in matrices.items()]
    agreements = {}
    for pair in itertools.combinations(matrices, 2):
        (one, one_directed), (other, other_directed) = (matrices[label] for label in pair)
        agreement = _agreement(one, other, known[pair[0]] & known[pair[1]])
        if first.square and len(first.sources) > 3 and not math.isnan(agreement.matrix_correlation):
            test = mantel_test(one, other, directed=one_directed or other_directed)
            agreement = Agreement(agreement.rank_correlation, *test)
        agreements[pair] = agreement
    disagreements = [
        Disagreement(first.targets[t], first.sources[s], tuple(int(ranks[t, s]) or None for ranks in places))
        for t, s in np.argwhere(np.any([*known.values()], axis=0)).tolist()
    ]
    disagreements.sort(key=lambda disagreement: -disagreement.spread)
    return Comparison(first.targets, first.sources, tuple(matrices), agreements, disagreements)


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
        common = _in_common(affinities)
        judged = {
            label: methods_with_pairs(affinity, oracle, affinity.methods) or affinity.methods
            for label, affinity in common.items()
        }
        by_label = {
            f"{label}/{method}": evaluate(affinity, oracle, method, relevant)
            for label, affinity in common.items()
            for method in judged[label]
        }
        label, first = next(iter(common.items()))
        evaluations = Evaluations(by_label, references(first, oracle, judged[label][0], relevant))
    out.mkdir(parents=True, exist_ok=True)
    rows = [[*pair, *agreement] for pair, agreement in comparison.agreements.items()]
    write_csv(out / "agreement.csv", [["one", "other", *Agreement._fields], *rows])
    places = [[entry.target, entry.source, entry.spread, *entry.places] for entry in comparison.disagreements]
    write_csv(out / "disagreements.csv", [["target", "source", "spread", *comparison.labels], *places])
    correlations = [agreement.rank_correlation for agreement in comparison.agreements.values()]
    matrix = squareform(correlations) + np.eye(len(comparison.labels))
    title = f"Agreement of rankings, {comparison.extent}"
    quantity = "mean Spearman correlation over targets"
    heat_map(matrix, comparison.labels, out / "agreement.png", title, quantity=quantity)
    if oracle is not None and evaluations is not None:
        write_evaluation(out, evaluations, oracle, relevant)
    return comparison, evaluations


def mean_rank_correlation(
    one: Float[np.ndarray, "targets sources"],
    other: Float[np.ndarray, "targets sources"],
    known: Bool[np.ndarray, "targets sources"],
) -> float:
    """Averages Spearman's correlation of the known values of each row over the rows that have one; NaN if none has."""
    from scipy.stats import spearmanr

    by_target = [
        float(np.asarray(spearmanr(a[kept], b[kept]))[0])
        for a, b, kept in zip(one, other, known, strict=True)
        if kept.any() and np.ptp(a[kept]) > 0 and np.ptp(b[kept]) > 0
    ]
    return float(np.mean(by_target)) if by_target else math.nan


def _in_common(affinities: Mapping[str, Affinity]) -> dict[str, Affinity]:
    """Selects the networks that are in all affinities with all values, or the targets and sources that all share.

    They are in the order of the first.
    """
    first, *others = affinities.values()
    if not all(affinity.square for affinity in affinities.values()):
        targets = [name for name in first.targets if all(name in other.targets for other in others)]
        sources = [name for name in first.sources if all(name in other.sources for other in others)]
        common = {label: affinity.only(targets=targets, sources=sources) for label, affinity in affinities.items()}
        compared = (_known(common).sum(2) > 1).sum(0) > 1
        if not compared.any():
            raise JaxTransferError(
                "Comparing needs a target with two sources or more that all runs have values for; in common are the "
                f"targets: {', '.join(targets) or 'none'}, and the sources: {', '.join(sources) or 'none'}."
            )
        kept = [target for target, is_compared in zip(targets, compared, strict=True) if is_compared]
        return {label: affinity.only(targets=kept) for label, affinity in common.items()}
    names = [name for name in first.names if all(name in other.names for other in others)]
    for affinity in affinities.values():
        for method in affinity.methods:
            names = list(affinity.only(names).complete(method).names)
    if len(names) < 3:
        raise JaxTransferError(
            f"Comparing needs three networks or more that are in all runs; in common are: {', '.join(names) or 'none'}."
        )
    return {label: affinity.only(names) for label, affinity in affinities.items()}


def _known(affinities: Mapping[str, Affinity]) -> Bool[np.ndarray, "matrices targets sources"]:
    """Marks the pairs on which each matrix is compared with the others; see `compare`."""
    matrices = [(affinity, method) for affinity in affinities.values() for method in affinity.methods]
    known = np.array([~np.isnan(affinity[method]) for affinity, method in matrices])
    if matrices[0][0].square:
        return known & ~np.eye(known.shape[-1], dtype=bool)
    has_values = known.any(2, keepdims=True)
    return has_values & np.logical_and.reduce(known | ~has_values)


def _places(
    matrix: Float[np.ndarray, "targets sources"], known: Bool[np.ndarray, "targets sources"]
) -> Int[np.ndarray, "targets sources"]:
    """Ranks the known columns of each row, 1 the largest; 0 where not known."""
    values = np.where(known, matrix, -np.inf)
    return known * (1 + np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1))


def _agreement(
    one: Float[np.ndarray, "targets sources"],
    other: Float[np.ndarray, "targets sources"],
    known: Bool[np.ndarray, "targets sources"],
) -> Agreement:
    """Computes how far two matrices agree, of which larger values are nearer, without a test."""
    mean = mean_rank_correlation(one, other, known)
    varies = known.any() and min(np.ptp(one[known]), np.ptp(other[known])) > 0
    return Agreement(mean, float(np.corrcoef(one[known], other[known])[0, 1]) if varies else math.nan, math.nan)
