"""Thousands of networks: how long points and rows take, in how much memory and disk, and whether the matrix is right.

Small convolutional networks with random weights over images of noise. A sample of pairs is computed again without the
sweep: whole maps must give the same numbers, sketches numbers within their stated error. Run with
`python -m benchmarks.many_networks` from the root of the checkout.
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
    """Of one architecture."""
    return (convolutional(f"n{i}", WIDTHS, i) for i in range(count))


def maps(
    number: int, images: UInt8[np.ndarray, "images size size 3"], method: str
) -> Float[np.ndarray, "images pixels"]:
    """A network's maps as unit vectors, without the sweep."""
    inputs = jnp.asarray(images, jnp.float32) / 255
    found = jt.attribute(convolutions, convolutional("n", WIDTHS, number).params, inputs, methods=[method])[method]
    vectors = np.asarray(found, np.float64).mean(-1).reshape(len(images), -1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Peak:
    """The most memory this process had, beyond what it began with."""

    def __enter__(self) -> "Peak":
        """Begins to watch."""
        self.most = self.before = psutil.Process().memory_info().rss
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends watching."""
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, psutil.Process().memory_info().rss)


def run(
    count: int, images: UInt8[np.ndarray, "images size size 3"], methods: Sequence[str], sketch: int | None
) -> tuple[dict[str, Any], jt.Affinity]:
    """One sweep, as a record and its affinity."""
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
        "peak_bytes": peak.most - peak.before,
        "bytes_on_disk": disk,
    }
    return record, affinity


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--sketch", type=int, default=256)
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
            found, goal, met = f"off by {worst:.1g} at most", "<= 1e-6", worst <= 1e-6
        else:
            errors /= np.array([np.asarray(affinity.sketch_stderr(method))[i, j] for method in dense])
            record["errors_in_stated_errors"] = errors.tolist()
            worst, usual = float(np.abs(errors).max()), float(np.sqrt(np.square(errors).mean()))
            found = f"off by {usual:.2f} stated errors, {worst:.1f} at most"
            goal, met = "1, and <= 3 at most", worst <= 3
        spent = f"points {record['seconds_of_points']:.0f} s, rows {record['seconds_of_rows']:.0f} s"
        memory = f"memory {decimal(record['peak_bytes'])}"
        disk = (f"{kind} on disk {decimal(size)}" for kind, size in record["bytes_on_disk"].items())
        rows.append(harness.Row(f"{what}, {name}", spent, ", ".join((memory, *disk)), found, goal, met))
        records[name] = record
    harness.show("Many networks", {"many networks": rows})
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        found = {"settings": settings, "sweeps": records, "rows": [row._asdict() for row in rows]}
        file = options.out / f"many_networks_{harness.device()}.json"
        harness.store(found, file, precision="float32", shapes={"images": images.shape})


if __name__ == "__main__":
    main()
