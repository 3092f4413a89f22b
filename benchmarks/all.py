"""Runs every benchmark and prints a table of all results, peers and goals.

Run `python -m benchmarks.all` from the root of the checkout, after `pip install -e ".[bench]"`. The default sizes are
small: minutes on two cores. `--full --out benchmarks/results` writes the record of a machine,
`all_<device>_<cores>_cores.json`, and figures.
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
    """A module of this package and its arguments other than `--out`.

    Attributes:
        name: Name of the module.
        small: Arguments for a run of about a minute.
        full: Arguments for the record of a machine, on a CPU.
        on_gpu: Arguments for the record on a GPU; None means those of `full`.
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
    Benchmark("predictivity", "--rounds 2 --networks 60 --columns 20", ""),
    Benchmark("scores", "--rounds 1 --examples 200 --units 256", "--rounds 2"),
    Benchmark("long_run", "--networks 48 --size 128", ""),
    Benchmark(
        "accelerator",
        "--networks 2 --images 4 --size 64 --batch-sizes 2 --modes float32 --library-images 4",
        "--networks 2 --images 16 --batch-sizes 4 8 --modes float32 --library-images 8",
        "",
    ),
)


def run(benchmark: Benchmark, arguments: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """Runs a benchmark in a process of its own and returns its records by file name, or None if it failed."""
    command = ["-m", f"benchmarks.{benchmark.name}", *arguments]
    Console().rule(" ".join(["python", *command]))
    process = subprocess.run([sys.executable, *command, "--out", str(folder)], check=False)
    if process.returncode:
        return None
    records = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
    return {name: record | {"command": ["python", *command]} for name, record in records.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run at the sizes of the record of a machine")
    parser.add_argument("--out", type=Path, help="folder for the JSON file and the figures")
    options = parser.parse_args(arguments)
    # A child process looks for the GPU, because JAX would reserve the GPU's memory in this one.
    code = "import jax; print(jax.default_backend())"
    on_gpu = subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "gpu"
    all_records: dict[str, Any] = {}
    rows: dict[str, list[harness.Row]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for benchmark in BENCHMARKS:
            arguments_of_run = benchmark.small
            if options.full:
                arguments_of_run = benchmark.on_gpu if on_gpu and benchmark.on_gpu is not None else benchmark.full
            folder = Path(temporary) / benchmark.name
            folder.mkdir()
            records = run(benchmark, arguments_of_run.split(), folder)
            if records is None:
                rows[benchmark.name] = [harness.Row(" ".join(["failed:", arguments_of_run]), "", "", "", met=False)]
                continue
            all_records[benchmark.name] = records
            rows[benchmark.name] = [harness.Row(**row) for record in records.values() for row in record.get("rows", ())]
        if all_records and options.out:
            write(all_records, Path(temporary), options.out)
    harness.show("All benchmarks" if options.full else "All benchmarks, small", rows)
    if len(all_records) < len(BENCHMARKS):
        sys.exit(1)


def write(all_records: dict[str, Any], temporary: Path, out: Path) -> None:
    """Writes the records of all benchmarks to the file of this machine, and copies their figures next to it."""
    machine = next(iter(next(iter(all_records.values())).values()))["machine"]
    name = re.sub(r"\W+", "_", f"all_{machine['device']}_{machine['cores']}_cores").lower()
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(all_records, indent=1) + "\n")
    for figure in temporary.glob("*/*.png"):
        (out / f"all_{figure.name}").write_bytes(figure.read_bytes())


if __name__ == "__main__":
    main()
