"""Names on the terminal: shown as they are, whole, and without effect on it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer import Measure
from jaxtransfer.cli.console import print_error, print_line, printable
from jaxtransfer.cli.tables import (
    print_affinity,
    print_comparison,
    print_evaluation,
    print_gradient_results,
    print_rankings,
    print_scores,
)
from jaxtransfer.data.probe import Probe
from jaxtransfer.evaluation.references import evaluate_all
from jaxtransfer.runs.compare import compare
from jaxtransfer.runs.gradient_results import GradientResults

AWKWARD = (
    "cats [train]",
    "q[/x]",
    "[bold]a[/bold]",
    ":smile:",
    "tab\tbell\x07",
    "red\x1b[31m",
    "\u202egnp",
    "two\nlines",
    "\udcff",
)


@pytest.mark.parametrize("name", AWKWARD)
def test_names_are_shown_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    others = ["first", "second"]
    affinity = jt.Affinity.of([name, *others], {"saliency": np.array([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]])})
    print_rankings(affinity, "first", ["saliency"], None)
    print_rankings(affinity, name, ["saliency"], None)
    print_line(f"skipped {name}: it is damaged")
    print_error(f"Error: {name}")
    printed = capsys.readouterr()
    shown = printable(name)
    assert f"skipped {shown}: it is damaged\n" in printed.out
    assert printed.err == f"Error: {shown}\n"
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))
    if "\n" not in name:  # a table keeps the ends of lines
        assert printed.out.count(shown) == 3


def test_escapes_are_those_of_python() -> None:
    assert printable("a\x1b[31m\n\u202e\udcffü 模") == r"a\x1b[31m\n\u202e\udcffü 模"


TIMM = [f"vit_base_patch16_224.{recipe}_in21k_ft_in1k" for recipe in ("augreg", "augreg2", "augreg3", "orig")]
TASKS = [f"{'task_of_a_long_name_' * 3}{i}" for i in range(2)]


def _scores(*methods: str, targets: Sequence[str] | None = None) -> jt.Affinity:
    """Scores of the networks of `TIMM` for targets, or for one another."""
    values = np.random.default_rng(0).random((len(methods), len(targets or TIMM), len(TIMM)))
    matrices = {method: value if targets else value + value.T for method, value in zip(methods, values, strict=True)}
    return jt.Affinity.of(TIMM, matrices, targets=targets)


def _tables() -> Iterator[Callable[[], None]]:
    """What prints tables, with names that are longer than a column of a terminal."""
    probe = Probe(np.zeros((0, 1, 1, 3), np.uint8), (), "", ())
    tasks = [jt.LabelledTask.of(np.zeros((4, 8, 8, 3), np.uint8), ["a", "b", "a", "b"], name=name) for name in TASKS]
    for count in (1, 8, 40):
        yield partial(print_affinity, _scores(*(f"method_{i}" for i in range(count))), probe, Path("RUN"))
    yield partial(print_rankings, _scores("saliency"), TIMM[0], ["saliency"], None)
    yield partial(print_scores, _scores("ridge", "leep", "logme", targets=TASKS), tasks, Path("RUN"))
    measured = np.random.default_rng(0).random((2, 4))
    oracle = jt.Oracle(
        "measured", {t: dict(zip(TIMM, row, strict=True)) for t, row in zip(TASKS, measured, strict=True)}
    )
    evaluations = evaluate_all(_scores(*TIMM, targets=TASKS), oracle, TIMM, 2)
    yield partial(print_evaluation, evaluations, oracle, Path("RUN"))
    yield partial(print_comparison, compare({name: _scores("rsa") for name in TASKS}))
    values = np.abs(np.subtract.outer(np.arange(2.0), np.arange(2.0)))
    control = tuple({"restarts": 64, "signal_to_noise": 12.5} for _ in tasks)
    results = GradientResults(Measure("gap", smaller_is_nearer=True), tuple(tasks), values, values, control, ())
    yield partial(print_gradient_results, results, Path("RUN"))


@pytest.mark.parametrize("width", [80, 40])
def test_nothing_of_a_table_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    """A narrow terminal shows the letters and digits of every cell that a file shows."""
    for show in _tables():
        shown = []
        for is_terminal, columns in ((True, width), (False, 80)):
            monkeypatch.setattr("rich.console.Console.is_terminal", is_terminal)
            monkeypatch.setenv("COLUMNS", str(columns))
            show()
            shown.append(Counter(filter(str.isalnum, re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out))))
        assert shown[0] == shown[1]
