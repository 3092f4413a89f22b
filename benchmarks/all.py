"""Runs every benchmark, and ends in one table: what was measured, beside whom, and what it should be.

Run with `python -m benchmarks.all` from the root of the checkout, after `pip install -e ".[bench]"`: small, minutes on
two cores. `--full --out benchmarks/results` makes the record of a machine: `all_<device>_<cores>_cores.json`, and
figures.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import harness


class Benchmark(NamedTuple):
    """A module of this package, and its arguments beside `--out`.

    Attributes:
        name: Of the module.
        small: Arguments of a run that takes a minute.
        full: Arguments for the record, on a CPU.
        on_gpu: Arguments for the record on a GPU; None: as on a CPU.
    """

    name: str
    small: str
    full: str
    on_gpu: str | None = None


BENCHMARKS = (
    Benchmark("attribution", "--size 128 --batch-size 2 --rounds 3 --networks 2", "--batch-size 4"),
    Benchmark("pge", "--parts speed --rounds 2", "--restarts 32 --rounds 3 --most 1024"),
    Benchmark("precision", "--limit 4 --encoders 3 --size 64 --rounds 2", "--size 128"),
    Benchmark("profile", "--size 64 --batch-size 1 --rounds 2 --product 1024", ""),
    Benchmark("scaling", "--rounds 2", "--times 2"),
    Benchmark("many_networks", "--networks 60 --images 16 --sketch 64", ""),
    Benchmark("long_run", "--networks 48 --size 128", ""),
    Benchmark(
        "accelerator",
        "--networks 2 --images 4 --size 64 --batch-sizes 2 --modes float32 --library-images 4",
        "--networks 2 --images 16 --batch-sizes 4 8 --modes float32 --library-images 8",
        "",
    ),
)


def run(benchmark: Benchmark, arguments: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """Runs a benchmark in a process of its own; what it wrote, by file, or None if it failed."""
    command = ["-m", f"benchmarks.{benchmark.name}", *arguments]
    Console().rule(" ".join(["python", *command]))
    done = subprocess.run([sys.executable, *command, "--out", str(folder)], check=False)
    if done.returncode:
        return None
    records = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return {name: record | {"command": ["python", *command]} for name, record in records.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="what the record is made with")
    parser.add_argument("--out", type=Path, help="folder for the JSON file and the figures")
    options = parser.parse_args(arguments)
    # Not asked here: a process that has seen a GPU holds its memory.
    ask = "import jax; print(jax.default_backend())"
    on_gpu = subprocess.check_output([sys.executable, "-c", ask], text=True).strip() == "gpu"
    found: dict[str, Any] = {}
    rows: dict[str, list[harness.Row]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for benchmark in BENCHMARKS:
            chosen = benchmark.small
            if options.full:
                chosen = benchmark.on_gpu if on_gpu and benchmark.on_gpu is not None else benchmark.full
            folder = Path(temporary) / benchmark.name
            folder.mkdir()
            records = run(benchmark, chosen.split(), folder)
            if records is None:
                rows[benchmark.name] = [harness.Row(" ".join(["failed:", chosen]), "", "", "", met=False)]
                continue
            found[benchmark.name] = records
            rows[benchmark.name] = [harness.Row(**row) for each in records.values() for row in each.get("rows", ())]
        if found and options.out:
            write(found, Path(temporary), options.out)
    harness.show("All benchmarks" if options.full else "All benchmarks, small", rows)
    if len(found) < len(BENCHMARKS):
        sys.exit(1)


def write(found: dict[str, Any], temporary: Path, out: Path) -> None:
    """Writes what all benchmarks found to the file of this machine, and their figures beside it."""
    machine = next(iter(next(iter(found.values())).values()))["machine"]
    name = re.sub(r"\W+", "_", f"all_{machine['device']}_{machine['cores']}_cores").lower()
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    for figure in temporary.glob("*/*.png"):
        (out / f"all_{figure.name}").write_bytes(figure.read_bytes())


if __name__ == "__main__":
    main()
