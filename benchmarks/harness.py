"""Times contenders that take turns in one process; writes medians and ratios to a table and a JSON file."""

import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

_WIDTH = 160  # columns of a table that is not printed to a terminal


class Row(NamedTuple):
    """A row of the table that `benchmarks.all` prints at its end.

    Attributes:
        what: What was measured.
        ours: Result of this package, with its unit.
        peer: Name and result of what it is compared with.
        found: The resulting ratio, exponent, slope or error.
        goal: The value that `found` should have.
        met: Whether the goal is met; None without a goal, or if the goal is for another machine.
    """

    what: str
    ours: str
    peer: str
    found: str
    goal: str = ""
    met: bool | None = None


def show(title: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Prints rows as a table, grouped by benchmark."""
    table = Table("", "", "ours", "peer", "result", "goal", "met", title=title)
    for name, group in rows.items():
        for row in group:
            table.add_row(name, *row[:-1], {None: "", True: "yes", False: "no"}[row.met])
        table.add_section()
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    console.print(table)


def take_turns(
    contenders: Mapping[str, tuple[Callable[[], Any], int]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Measures the seconds per unit of work of every contender in every round, after an uncounted call of each.

    Args:
        contenders: Maps a name to a function and its units of work; the function returns when the work is done.
        rounds: Number of counted calls of each contender.
        clock: Function that returns the time in seconds.
    """
    for run, _ in track(contenders.values(), description="warming up", console=Console(stderr=True)):
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in track(range(rounds), description="measuring", console=Console(stderr=True)):
        for name, (run, units) in contenders.items():
            start = clock()
            run()
            seconds[name].append((clock() - start) / units)
    return seconds


def show_ratios(title: str, seconds: Mapping[str, list[float]], reference: str) -> None:
    """Prints the medians of the seconds from `take_turns`, and the ratios to the contender `reference` by rounds."""
    table = Table(title=title)
    for heading in ("", "units per second", "ms per unit", f"time relative to {reference}", "(range)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, times in seconds.items():
        ratios = _ratios(seconds, name, reference)
        median = statistics.median(times)
        row = f"{1 / median:.2f}", f"{1e3 * median:.1f}", f"{statistics.median(ratios):.2f}"
        table.add_row(name, *row, f"{min(ratios):.2f} to {max(ratios):.2f}")
    Console().print(table)


def report(
    title: str,
    seconds: Mapping[str, list[float]],
    reference: str,
    settings: Mapping[str, Any],
    file: Path | None,
    *,
    precision: str,
    shapes: Mapping[str, Sequence[int]],
    goals: Mapping[str, float] | None = None,
) -> None:
    """Prints the table of `show_ratios` and writes all times and ratios to a file.

    Args:
        title: Title of the table.
        seconds: Result of `take_turns`.
        reference: Contender that the others are compared with.
        settings: Settings of the benchmark, for the file.
        file: File to write; None writes nothing.
        precision: Precision of the computation; see `store`.
        shapes: Shapes of the inputs; see `store`.
        goals: Smallest ratio of a contender's time to that of `reference` that meets the goal, by contender.
    """
    show_ratios(title, seconds, reference)
    if file is None:
        return
    lines = rows(title, seconds, reference, goals)
    record = {
        "title": title,
        "settings": dict(settings),
        "reference": reference,
        "seconds_per_unit": {name: list(times) for name, times in seconds.items()},
        "median_ratio_to_reference": {name: statistics.median(_ratios(seconds, name, reference)) for name in seconds},
        "rows": [row._asdict() for row in lines],
    }
    store(record, file, precision=precision, shapes=shapes)


def rows(
    what: str, seconds: Mapping[str, list[float]], reference: str, goals: Mapping[str, float] | None = None
) -> list[Row]:
    """Compares every contender with `reference`, as `report` does."""
    lines = []
    for name, times in seconds.items():
        if name == reference:
            continue
        ratio = statistics.median(_ratios(seconds, name, reference))
        ours, theirs = (f"{1 / statistics.median(values):.3g} per s" for values in (seconds[reference], times))
        least = (goals or {}).get(name)
        goal, met = ("", None) if least is None else (f">= {least} times", ratio >= least)
        lines.append(Row(what, f"{reference}: {ours}", f"{name}: {theirs}", f"{ratio:.2f} times", goal, met))
    return lines


def _ratios(seconds: Mapping[str, list[float]], name: str, reference: str) -> list[float]:
    """Returns the ratio of a contender's time to that of the reference in every round."""
    return [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]


def device() -> str:
    """Returns the kind of device in the form used in file names."""
    return re.sub(r"\W+", "_", jax.devices()[0].device_kind.lower())


def store(record: Mapping[str, Any], file: Path, *, precision: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Writes results to a JSON file, together with the command, the machine and the versions behind them.

    Args:
        record: The results.
        file: File to write.
        precision: Precision of the computation: "float32", "bfloat16", "tf32" (float32 with products in TF32),
            or a mode of `benchmarks.accelerator`.
        shapes: Shapes of the inputs by name.
    """
    origin = {
        "command": ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]],
        "machine": {
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "platform": platform.system(),
        },
        "versions": {"python": platform.python_version(), **_versions("jax", "jaxlib", "flax", "torch", "captum")},
        "precision": precision,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(origin | dict(record), indent=1, allow_nan=False) + "\n")


def _versions(*packages: str) -> dict[str, str]:
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
