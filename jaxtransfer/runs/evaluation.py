"""Scores finished runs against measured transfer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxtransfer.arguments import checked_methods
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import evaluate_all
from jaxtransfer.evaluation.retrieval import RankCorrelation
from jaxtransfer.evaluation.summary import Evaluations
from jaxtransfer.figures import retrieval_curves
from jaxtransfer.files import write_csv
from jaxtransfer.runs.load import load_run

_CURVES = ("hits", "precision", "recall", "random_precision", "random_recall")
_BANDS = ("hits_low_over_images", "hits_high_over_images", "hits_low_over_networks", "hits_high_over_networks")


def evaluate_run(
    directory: str | Path, oracle: Oracle, *, relevant: int = RELEVANT, methods: str | Sequence[str] | None = None
) -> Evaluations:
    """Scores a finished run against an oracle.

    The directory receives `evaluation.csv` (hits, precision and recall at every K beside those expected of a random
    order, and 95 % bands of the hits), `evaluation_by_target.csv` (rank correlations) and `evaluation.png`; they
    replace those of an earlier evaluation. In the tables, the references follow the methods.

    Args:
        directory: The run directory.
        oracle: Measured transfer.
        relevant: Number of sources of each target that count as relevant.
        methods: One or several methods of the run; None: all.

    Returns:
        The evaluation of every method, and of the references.

    Raises:
        JaxTransferError: `directory` holds no finished run, or one that has nothing in common with the oracle.
    """
    directory = Path(directory)
    affinity = load_run(directory)
    chosen = affinity.methods if methods is None else checked_methods(methods)
    evaluations = evaluate_all(affinity, oracle, chosen, relevant)
    write_evaluation(directory, evaluations, oracle)
    return evaluations


def write_evaluation(directory: Path, evaluations: Evaluations, oracle: Oracle) -> None:
    """Writes `evaluation.csv`, `evaluation_by_target.csv` and `evaluation.png` into a directory."""
    rows, by_target = [], []
    for method, evaluation in (evaluations.by_method | evaluations.references).items():
        curve, bands = evaluation.curve, (evaluation.bands.images, evaluation.bands.networks)
        edges = [edge for band in bands for edge in band or (None, None)]
        for k in range(len(curve.hits)):
            values = [getattr(curve, column)[k] for column in _CURVES]
            rows.append([method, k + 1, *values, *(None if edge is None else edge[k] for edge in edges)])
        by_target += [
            [method, target, *dataclasses.astuple(correlation)]
            for target, correlation in evaluation.correlations.items()
        ]
    write_csv(directory / "evaluation.csv", [["method", "k", *_CURVES, *_BANDS], *rows])
    fields = [field.name for field in dataclasses.fields(RankCorrelation)]
    write_csv(directory / "evaluation_by_target.csv", [["method", "target", *fields], *by_target])
    retrieval_curves(evaluations.by_method, directory / "evaluation.png", oracle.name)
