"""Contenders take turns in one process; the medians and the pairwise ratios go to a table and a JSON file."""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table


def take_turns(contenders: Mapping[str, tuple[Callable[[], Any], int]], rounds: int) -> dict[str, list[float]]:
    """Seconds per unit of work of every contender in every round, after one call of each that is not counted.

    Args:
        contenders: Name to (function, units of work it does); the function returns when the work is done.
        rounds: Counted calls of each.
    """
    for run, _ in track(contenders.values(), description="warming up", console=Console(stderr=True)):
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in track(range(rounds), description="measuring", console=Console(stderr=True)):
        for name, (run, units) in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / units)
    return seconds


def report(
    title: str, seconds: Mapping[str, list[float]], reference: str, settings: Mapping[str, Any], file: Path | None
) -> None:
    """Prints a table of medians and of ratios to `reference`, round by round, and writes all of it to `file`."""
    table = Table(title=title)
    for heading in ("", "units per second", "ms per unit", f"times as long as {reference}", "(range)"):
        table.add_column(heading, justify="left" if not heading else "right")
    ratios = {name: [a / b for a, b in zip(times, seconds[reference], strict=True)] for name, times in seconds.items()}
    for name, times in seconds.items():
        median = statistics.median(times)
        low, high = min(ratios[name]), max(ratios[name])
        row = f"{1 / median:.2f}", f"{1e3 * median:.1f}", f"{statistics.median(ratios[name]):.2f}"
        table.add_row(name, *row, f"{low:.2f} to {high:.2f}")
    Console().print(table)
    if file is None:
        return
    record = {
        "title": title,
        "settings": dict(settings),
        "reference": reference,
        "seconds_per_unit": {name: list(times) for name, times in seconds.items()},
        "median_ratio_to_reference": {name: statistics.median(r) for name, r in ratios.items()},
    }
    store(record, file)


def store(record: Mapping[str, Any], file: Path) -> None:
    """Writes results to a JSON file, with the command, the machine and the versions they come from."""
    origin = {
        "command": [Path(sys.executable).name, *sys.argv[1:]],
        "machine": {
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "platform": platform.system(),
        },
        "versions": {"python": platform.python_version(), **_versions("jax", "jaxlib", "flax", "torch", "captum")},
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
