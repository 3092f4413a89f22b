"""Measures time, memory and disk of the matrix of thousands of networks, and checks its values.

Small convolutional networks with random weights see images of noise. For a random sample of pairs the affinities are
also computed directly: whole maps must give the same values, sketches the same within their standard errors.
Run `python -m benchmarks.many_networks` from the root of the checkout.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import psutil
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.filesize import decimal
from rich.progress import Progress

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.networks import convolutional, convolutions

WIDTHS = (8,)
PAIRS = 40


def networks(count: int) -> Iterator[jt.Network]:
    """Yields networks of the same architecture."""
    return (convolutional(f"n{i}", WIDTHS, i) for i in range(count))


def maps(
    number: int, images: UInt8[np.ndarray, "images size size 3"], method: str
) -> Float[np.ndarray, "images pixels"]:
    """Computes the maps of a network directly, as unit vectors."""
    inputs = jnp.asarray(images, jnp.float32) / 255
    attributions = jt.attribute(convolutions, convolutional("n", WIDTHS, number).params, inputs, methods=[method])[
        method
    ]
    vectors = np.asarray(attributions, np.float64).mean(-1).reshape(len(images), -1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Peak:
    """A context that records the peak of this process's resident memory, and its value at the start."""

    def __enter__(self) -> "Peak":
        """Starts watching the memory."""
        self.highest = self.before = psutil.Process().memory_info().rss
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops watching the memory."""
        self._stopped.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stopped.wait(0.05):
            self.highest = max(self.highest, psutil.Process().memory_info().rss)


def run(
    count: int, images: UInt8[np.ndarray, "images size size 3"], methods: Sequence[str], sketch: int | None
) -> tuple[dict[str, Any], jt.Affinity]:
    """Computes the matrix and returns a record of its costs, and the affinity."""
    ended: dict[str, float] = {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar, Peak() as peak:
        line = bar.add_task("")

        def progress(done: int, total: int, name: str) -> None:
            bar.update(line, completed=done, total=total, description=name)
            ended["rows" if name.startswith("rows of") else "points"] = time.perf_counter()

        affinity = jt.affinity_matrix(
            networks(count), images, methods=methods, sketch=sketch, directory=folder, progress=progress
        )
        disk = {
            what: sum(file.stat().st_size for file in Path(folder, "points").glob(pattern) if file.is_file())
            for what, pattern in (("points", "n*/**/*"), ("rows", "_rows/**/*"))
        }
    record = {
        "sketch": sketch,
        "seconds_of_points": ended["points"] - began,
        "seconds_of_rows": ended["rows"] - ended["points"],
        "peak_bytes": peak.highest - peak.before,
        "bytes_on_disk": disk,
    }
    return record, affinity


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=2000, help="number of networks")
    parser.add_argument("--images", type=int, default=256, help="number of images")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--sketch", type=int, default=256, help="buckets of a sketch")
    parser.add_argument("--methods", nargs="+", choices=jt.METHODS, default=["saliency"])
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.images, options.size, options.size, 3), dtype=np.uint8)
    pairs = [rng.choice(options.networks, 2, replace=False) for _ in range(PAIRS)]
    dense = {
        method: np.array([(maps(i, images, method) * maps(j, images, method)).sum(1).mean() for i, j in pairs])
        for method in options.methods
    }
    what = f"{options.networks} networks x {options.images} images of {options.size}x{options.size}"
    records, rows = {}, []
    for name, sketch in (("whole maps", None), (f"sketches of {options.sketch}", options.sketch)):
        record, affinity = run(options.networks, images, options.methods, sketch)
        i, j = np.transpose(pairs)
        errors = np.array([affinity[method][i, j] - expected for method, expected in dense.items()])
        if sketch is None:
            record["largest_error"] = worst = float(np.abs(errors).max())
            result, goal, met = f"largest error {worst:.1g}", "<= 1e-6", worst <= 1e-6
        else:
            errors /= np.array([np.asarray(affinity.sketch_stderr(method))[i, j] for method in dense])
            record["errors_in_stated_errors"] = errors.tolist()
            worst, typical = float(np.abs(errors).max()), float(np.sqrt(np.square(errors).mean()))
            result = f"errors of {typical:.2f} standard errors, at most {worst:.1f}"
            goal, met = "1, at most 3", worst <= 3
        spent = f"points {record['seconds_of_points']:.0f} s, rows {record['seconds_of_rows']:.0f} s"
        memory = f"memory {decimal(record['peak_bytes'])}"
        disk = (f"{part} on disk {decimal(size)}" for part, size in record["bytes_on_disk"].items())
        rows.append(harness.Row(f"{what}, {name}", spent, ", ".join((memory, *disk)), result, goal, met))
        records[name] = record
    harness.show("Many networks", {"many networks": rows})
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        record = {"settings": settings, "sweeps": records, "rows": [row._asdict() for row in rows]}
        file = options.out / f"many_networks_{harness.device()}.json"
        harness.store(record, file, precision="float32", shapes={"images": images.shape})


if __name__ == "__main__":
    main()
