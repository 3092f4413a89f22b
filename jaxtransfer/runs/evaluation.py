"""Scores finished runs against measured transfer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxtransfer import rooms
from jaxtransfer.arguments import checked_methods
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.references import evaluate_all
from jaxtransfer.evaluation.retrieval import RankCorrelation
from jaxtransfer.evaluation.summary import Evaluations
from jaxtransfer.figures import retrieval_curves
from jaxtransfer.files import write_csv
from jaxtransfer.runs.load import affinity_of, finished_record, load_run
from jaxtransfer.taskonomy.tasks import TASKS

_CURVES = ("hits", "precision", "recall", "random_precision", "random_recall")
_BANDS = ("hits_low_over_images", "hits_high_over_images", "hits_low_over_networks", "hits_high_over_networks")


def evaluate_run(
    directory: str | Path, oracle: Oracle, *, relevant: int = RELEVANT, methods: str | Sequence[str] | None = None
) -> Evaluations:
    """Scores a finished run against an oracle.

    The directory receives `evaluation.csv` (hits, precision and recall at every K beside those expected of a random
    order, 95 % bands of the hits, and the oracle and `relevant`), `evaluation_by_target.csv` (rank correlations) and
    `evaluation.png`; they replace those of an earlier evaluation. In the tables, the references follow the methods.

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
    write_evaluation(directory, evaluations, oracle, relevant)
    return evaluations


def own_oracle(directory: str | Path) -> Oracle:
    """Returns the measured transfer that belongs to a run's networks: that of Rooms or of Taskonomy.

    All tasks of Rooms have names of Taskonomy's. Networks are those of Rooms if they have the weights of its encoders,
    and those of Taskonomy if there is a task that Rooms does not have.

    Raises:
        JaxTransferError: `directory` holds no finished run, or its networks may belong to either.
    """
    record = finished_record(Path(directory))
    encoders = {manifest["weights_sha256"] for manifest in map(rooms.zoo().manifest, rooms.TASKS)}
    if encoders & {network["weights_sha256"] for network in record.get("networks", {}).values()}:
        return Oracle.rooms()
    names = {*affinity_of(Path(directory), record).targets}
    of_taskonomy = {name for key, task in TASKS.items() for name in (key, task.release)}
    if names & {*rooms.TASKS} and not (names & of_taskonomy) - {*rooms.TASKS}:
        raise JaxTransferError(
            "Rooms and Taskonomy both have tasks of the names in this run; say whose transfers to use, with --oracle "
            "rooms or --oracle taskonomy."
        )
    return Oracle.taskonomy()


def write_evaluation(directory: Path, evaluations: Evaluations, oracle: Oracle, relevant: int) -> None:
    """Writes `evaluation.csv`, `evaluation_by_target.csv` and `evaluation.png` into a directory."""
    rows, by_target = [], []
    for method, evaluation in (evaluations.by_method | evaluations.references).items():
        curve, bands = evaluation.curve, (evaluation.bands.images, evaluation.bands.networks)
        edges = [edge for band in bands for edge in band or (None, None)]
        for k in range(len(curve.hits)):
            values = [getattr(curve, column)[k] for column in _CURVES]
            cells = [method, k + 1, *values, *(None if edge is None else edge[k] for edge in edges)]
            rows.append([*cells, oracle.name, relevant])
        by_target += [
            [method, target, *dataclasses.astuple(correlation), oracle.name]
            for target, correlation in evaluation.correlations.items()
        ]
    write_csv(directory / "evaluation.csv", [["method", "k", *_CURVES, *_BANDS, "oracle", "relevant"], *rows])
    fields = [field.name for field in dataclasses.fields(RankCorrelation)]
    write_csv(directory / "evaluation_by_target.csv", [["method", "target", *fields, "oracle"], *by_target])
    retrieval_curves(evaluations.by_method, directory / "evaluation.png", oracle.name)
