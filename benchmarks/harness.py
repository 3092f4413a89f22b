"""Contenders take turns in one process; the medians and the pairwise ratios go to a table and a JSON file."""

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

_WIDE = 160  # of a table that goes to a file


class Row(NamedTuple):
    """A line of the table that `benchmarks.all` ends with.

    Attributes:
        what: What was measured.
        ours: What it costs here, with its unit.
        peer: Who it is held against, and what it costs there.
        found: The ratio, exponent or slope.
        goal: What it should be.
        met: Whether it is; None where there is no goal, or it is for another machine.
    """

    what: str
    ours: str
    peer: str
    found: str
    goal: str = ""
    met: bool | None = None


def show(title: str, rows: Mapping[str, Sequence[Row]]) -> None:
    """Prints rows as one table, under the names of their benchmarks."""
    table = Table("", "", "ours", "peer", "found", "goal", "met", title=title)
    for name, group in rows.items():
        for row in group:
            table.add_row(name, *row[:-1], {None: "", True: "yes", False: "no"}[row.met])
        table.add_section()
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDE)
    console.print(table)


def take_turns(
    contenders: Mapping[str, tuple[Callable[[], Any], int]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per unit of work of every contender in every round, after one call of each that is not counted.

    Args:
        contenders: Name to (function, units of work it does); the function returns when the work is done.
        rounds: Counted calls of each.
        clock: What time it is, in seconds.
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
    """Prints a table of the medians of what `take_turns` returned, and of ratios to `reference`, round by round."""
    table = Table(title=title)
    for heading in ("", "units per second", "ms per unit", f"times as long as {reference}", "(range)"):
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
    """Prints the table of `show_ratios` and writes all of it to `file`.

    Args:
        title: Of the table.
        seconds: What `take_turns` returns.
        reference: The contender the others are divided by.
        settings: Written to the file.
        file: Where to; None: nowhere.
        precision: Of the numbers; see `store`.
        shapes: Of what went in; see `store`.
        goals: How many times as long as `reference` others should take at least.
    """
    show_ratios(title, seconds, reference)
    if file is None:
        return
    found = rows(title, seconds, reference, goals)
    record = {
        "title": title,
        "settings": dict(settings),
        "reference": reference,
        "seconds_per_unit": {name: list(times) for name, times in seconds.items()},
        "median_ratio_to_reference": {name: statistics.median(_ratios(seconds, name, reference)) for name in seconds},
        "rows": [row._asdict() for row in found],
    }
    store(record, file, precision=precision, shapes=shapes)


def rows(
    what: str, seconds: Mapping[str, list[float]], reference: str, goals: Mapping[str, float] | None = None
) -> list[Row]:
    """Every contender beside `reference`, as `report` compares them."""
    found = []
    for name, times in seconds.items():
        if name == reference:
            continue
        ratio = statistics.median(_ratios(seconds, name, reference))
        ours, theirs = (f"{1 / statistics.median(each):.3g} per s" for each in (seconds[reference], times))
        least = (goals or {}).get(name)
        goal, met = ("", None) if least is None else (f">= {least} times", ratio >= least)
        found.append(Row(what, f"{reference}: {ours}", f"{name}: {theirs}", f"{ratio:.2f} times", goal, met))
    return found


def _ratios(seconds: Mapping[str, list[float]], name: str, reference: str) -> list[float]:
    """How many times as long as the reference a contender took, round by round."""
    return [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]


def device() -> str:
    """The kind of device, as names of files have it."""
    return re.sub(r"\W+", "_", jax.devices()[0].device_kind.lower())


def store(record: Mapping[str, Any], file: Path, *, precision: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Writes results to a JSON file, with the command, the machine and the versions they come from.

    Args:
        record: The results.
        file: Where to.
        precision: Of the numbers: float32, bfloat16, or tf32 for float32 whose products are of that.
        shapes: Of what went in, by name.
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
