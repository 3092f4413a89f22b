"""Names on the terminal: shown as they are, whole, and without effect on it."""

from pathlib import Path

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.cli.console import print_error, print_line, printable
from jaxtransfer.cli.tables import print_affinity, print_rankings
from jaxtransfer.data.probe import Probe

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


def test_long_names_stay_different(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"{'long_' * 12}{i}" for i in range(3)]
    affinity = jt.Affinity.of(names, {"saliency": np.array([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]])})
    print_affinity(affinity, Probe(np.zeros((0, 1, 1, 3), np.uint8), (), "", ()), Path("RUN"))
    printed = capsys.readouterr().out
    assert "…" not in printed
