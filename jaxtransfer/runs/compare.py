"""The same networks under several methods, probes or measures: where do they agree, and where not?"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.tree import mantel_test
from jaxtransfer.figures import heat_map
from jaxtransfer.files import write_csv
from jaxtransfer.runs.affinity import Evaluation, evaluate, load_run, write_evaluation


class Agreement(NamedTuple):
    """How far two matrices agree.

    Attributes:
        rank_correlation: Spearman correlation of the rankings of a target's sources, its mean over targets.
        matrix_correlation: Pearson correlation of all pairs.
        p_value: How often relabelled networks correlate as much, see `mantel_test`; NaN with fewer than four networks.
    """

    rank_correlation: float
    matrix_correlation: float
    p_value: float


class Disagreement(NamedTuple):
    """A source that stands in very different places.

    Attributes:
        target: For this target.
        source: The source.
        places: Where each matrix ranks it, 1 the nearest.
    """

    target: str
    source: str
    places: tuple[int, ...]

    @property
    def spread(self) -> int:
        """How many places lie between."""
        return max(self.places) - min(self.places)


class Comparison(NamedTuple):
    """Several matrices of the same networks.

    Attributes:
        names: The networks that are in all of them and have all values.
        labels: Of the matrices.
        agreements: Of every two labels.
        disagreements: Every target and source, those first whose places differ most.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    agreements: dict[tuple[str, str], Agreement]
    disagreements: list[Disagreement]


def compare(affinities: Mapping[str, Affinity]) -> Comparison:
    """Compares matrices with one another.

    Args:
        affinities: By label; each with one method or more. A matrix is called `label/method`.

    Raises:
        JaxTransferError: Fewer than two matrices, or fewer than three networks that are in all of them.
    """
    if sum(len(each.methods) for each in affinities.values()) < 2:
        raise JaxTransferError("There is only one matrix; comparing needs two runs, or a run of two methods.")
    names = _common_names(affinities)
    some = {label: each.only(names) for label, each in affinities.items()}
    chosen = {f"{label}/{m}": each[m].astype(np.float64) for label, each in some.items() for m in each.methods}
    places = np.stack([_places(matrix) for matrix in chosen.values()])
    agreements = {
        (one, other): _agreement(chosen[one], chosen[other]) for one, other in itertools.combinations(chosen, 2)
    }
    disagreements = [
        Disagreement(names[t], names[s], tuple(map(int, places[:, t, s])))
        for t, s in itertools.permutations(range(len(names)), 2)
    ]
    disagreements.sort(key=lambda each: -each.spread)
    return Comparison(names, tuple(chosen), agreements, disagreements)


def compare_runs(
    directories: list[Path], out: Path, *, oracle: Oracle | None = None, relevant: int = 5
) -> tuple[Comparison, dict[str, Evaluation]]:
    """Compares finished runs and writes what comes out into a directory.

    The directory receives `agreement.csv` and `agreement.png`, `disagreements.csv`, and with an oracle the files that
    `evaluate_run` writes, of all matrices together and of the networks that are in all of them.

    Args:
        directories: The runs; of different names.
        out: Where to write; made if it is not there.
        oracle: What really happened.
        relevant: How many of a target's sources are relevant.

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
    found = compare(affinities)
    evaluations = {}
    if oracle is not None:
        for label, each in affinities.items():
            some = each.only(found.names)
            evaluations |= {f"{label}/{m}": evaluate(some, oracle, m, relevant) for m in some.methods}
    out.mkdir(parents=True, exist_ok=True)
    rows = [[*pair, *agreement] for pair, agreement in found.agreements.items()]
    write_csv(out / "agreement.csv", [["one", "other", *Agreement._fields], *rows])
    places = [[each.target, each.source, each.spread, *each.places] for each in found.disagreements]
    write_csv(out / "disagreements.csv", [["target", "source", "spread", *found.labels], *places])
    matrix = squareform([each.rank_correlation for each in found.agreements.values()]) + np.eye(len(found.labels))
    title = f"Agreement of rankings, {len(found.names)} networks"
    heat_map(matrix, found.labels, out / "agreement.png", title, quantity="mean Spearman correlation over targets")
    if oracle is not None:
        write_evaluation(out, evaluations, oracle)
    return found, evaluations


def _common_names(affinities: Mapping[str, Affinity]) -> tuple[str, ...]:
    """The networks that are in all affinities and have all values, in the order of the first."""
    first, *others = affinities.values()
    names = [name for name in first.names if all(name in other.names for other in others)]
    for each in affinities.values():
        for method in each.methods:
            names = list(each.only(names).complete(method).names)
    if len(names) < 3:
        raise JaxTransferError(
            f"Comparing needs three networks or more that are in all runs; in common are: {', '.join(names) or 'none'}."
        )
    return tuple(names)


def _places(matrix: Float[np.ndarray, "networks networks"]) -> Int[np.ndarray, "networks networks"]:
    """Where each column ranks for each row, 1 the largest; 0 on the diagonal."""
    values = matrix.copy()
    np.fill_diagonal(values, np.inf)
    return np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)


def _agreement(one: Float[np.ndarray, "networks networks"], other: Float[np.ndarray, "networks networks"]) -> Agreement:
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
    return Agreement(mean, *mantel_test(one, other))
