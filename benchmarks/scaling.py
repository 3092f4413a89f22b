"""Cost against the number of images, networks, devices and restarts, and the exponents it grows with.

Images and networks through `jaxtransfer.affinity_matrix` with a small convolutional network, restarts through
`jaxtransfer.principal_gradient`, and both over meshes of devices. On a CPU costs are seconds of its processors, so that
other programs do not count, and devices are made up and share its cores: more of them cost the same at best, and show
what sharding adds. Run with
`python -m benchmarks.scaling --out DIRECTORY` from the root of the checkout.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from scipy import optimize

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.networks import convolutional
from jaxtransfer.devices import device_mesh

WIDTHS, SIZE, BATCH = (32, 32, 32), 64, 16
COLOURS = ("#0072b2", "#d55e00")


class Growth(NamedTuple):
    """Cost = fixed + factor * size^exponent.

    Attributes:
        exponent: Its power.
        stderr: Of the exponent.
        factor: In seconds.
        fixed: In seconds.
    """

    exponent: float
    stderr: float
    factor: float
    fixed: float


def growth(sizes: Sequence[float], seconds: Float[np.ndarray, "sizes rounds"], *, with_fixed: bool = True) -> Growth:
    """Fits the growth of a cost: to the medians over rounds, and again to those of rounds drawn anew for its error.

    Costs are compared as ratios, and a round that is slower as a whole says nothing.

    Args:
        sizes: At least four.
        seconds: What they cost.
        with_fixed: Whether there may be a fixed cost.
    """
    x = np.asarray(sizes, float)
    # A round that is slower as a whole says nothing.
    seconds = seconds / np.exp(np.log(seconds).mean(0) - np.log(seconds).mean())

    def parts(exponent: float, costs: Float[np.ndarray, " sizes"]) -> tuple[Float[np.ndarray, " 2"], float]:
        """Factor and fixed cost, neither below 0, and what is left, in shares of the costs."""
        columns = [x**exponent / costs, with_fixed / costs]
        return optimize.nnls(np.stack(columns, axis=1), np.ones(len(sizes)))

    def exponent(costs: Float[np.ndarray, " sizes"]) -> float:
        return optimize.minimize_scalar(lambda e: parts(e, costs)[1], bounds=(-4, 4), method="bounded").x

    medians = np.median(seconds, axis=1)
    found = exponent(medians)
    rng, rounds = np.random.default_rng(0), seconds.shape[1]
    again = [exponent(np.median(seconds[:, rng.integers(rounds, size=rounds)], axis=1)) for _ in range(100)]
    (factor, fixed), _ = parts(found, medians)
    return Growth(float(found), float(np.std(again, ddof=1)), float(factor), float(fixed))


def affinities(networks: int, images: int, mesh: Mesh | None = None) -> None:
    """Compares networks over images, points in a temporary directory."""
    made = [convolutional(f"n{i}", WIDTHS, i) for i in range(networks)]
    probe = np.random.default_rng(0).random((images, SIZE, SIZE, 3), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        jt.affinity_matrix(made, probe, batch_size=BATCH, directory=directory, mesh=mesh)


@functools.cache
def task() -> tuple[Any, Any, Any]:
    """A backbone's initialiser, a loss and episodes of noise."""
    backbone = jt.backbone("conv4", 3)
    images = np.random.default_rng(0).normal(size=(60, 16, 16, 3)).astype(np.float32)
    batches = jt.Episodes.of(images, np.arange(60) % 5, ways=5, shots=1, queries=3)
    return backbone.init, jt.Prototypical(backbone.features, 5, 1), batches


def restarts(count: int, mesh: Mesh | None = None) -> None:
    """Estimates a principal gradient."""
    jt.principal_gradient(*task(), jax.random.key(0), restarts=count, control=False, mesh=mesh)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="all sizes are so many times as large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the JSON file and the figure")
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", 8)
    on_cpu = jax.default_backend() == "cpu"
    t = options.times
    meshes = {count: device_mesh(data=count) for count in (1, 2, 4, 8) if count <= jax.device_count()}
    series = {
        "images": ([32 * t * 2**i for i in range(4)], lambda n: affinities(2, n)),
        "networks": ([2 * t * 2**i for i in range(4)], lambda n: affinities(n, 32)),
        "restarts": ([16 * t * 2**i for i in range(4)], restarts),
        "devices, affinities": (list(meshes), lambda n: affinities(2, 64 * t, meshes[n])),
        "devices, restarts": (list(meshes), lambda n: restarts(32 * t, meshes[n])),
    }
    record: dict[str, Any] = {
        "settings": {"times": t, "rounds": options.rounds},
        "seconds_are_of": "the processors" if on_cpu else "the clock",
        "series": {},
    }
    rows = []
    for name, (sizes, run) in series.items():
        turns = {str(n): (functools.partial(run, n), 1) for n in sizes}
        clock = time.process_time if on_cpu else time.perf_counter
        seconds = np.array(list(harness.take_turns(turns, options.rounds, clock).values()))
        devices = name.startswith("devices")
        found = growth(sizes, seconds, with_fixed=not devices) if len(sizes) > 1 else None
        record["series"][name] = {"sizes": sizes, "seconds": seconds.tolist(), "growth": found and found._asdict()}
        if found:
            rows.append(
                _row(name, sizes, np.median(seconds, axis=1).tolist(), found, (0 if on_cpu else -1) if devices else 1)
            )
    harness.show("What grows how", {"scaling": rows})
    if options.out:
        record["rows"] = [row._asdict() for row in rows]
        shapes = {"image": (SIZE, SIZE, 3), "image of an episode": (16, 16, 3)}
        harness.store(record, options.out / f"scaling_{harness.device()}.json", precision="float32", shapes=shapes)
        plot(record["series"], options.out / f"scaling_{harness.device()}.png", on_cpu=on_cpu)


def _row(name: str, sizes: Sequence[int], medians: Sequence[float], found: Growth, exponent: int) -> harness.Row:
    return harness.Row(
        f"{sizes[0]} to {sizes[-1]} {name}",
        f"{medians[0]:.3g} to {medians[-1]:.3g} s",
        f"fixed: {found.fixed:.2g} s" if found.fixed else "",
        f"exponent {found.exponent:.2f} ± {found.stderr:.2f}",
        f"exponent {exponent}",
        abs(found.exponent - exponent) <= max(2 * found.stderr, 0.1) if exponent == 1 else None,
    )


def plot(series: Mapping[str, Mapping[str, Any]], file: Path, *, on_cpu: bool) -> None:
    """Draws the costs with their fits, one panel each for images, networks, devices and restarts."""
    figure = Figure(figsize=(9, 6.6), dpi=150, layout="constrained")
    panels = dict(zip(("images", "networks", "devices", "restarts"), figure.subplots(2, 2).flat, strict=True))
    for unit, axes in panels.items():
        some = {name: each for name, each in series.items() if name.split(", ")[0] == unit}
        for (name, each), colour, marker in zip(some.items(), COLOURS, "os", strict=False):
            _draw(axes, name.removeprefix(f"{unit}, "), each, colour, marker)
        axes.set(xscale="log", yscale="log", xlabel=unit, ylabel="seconds of the processors" if on_cpu else "seconds")
        axes.set_xticks(next(iter(some.values()))["sizes"])
        axes.xaxis.set_minor_locator(NullLocator())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
        axes.tick_params(labelsize=8, which="both")
        axes.grid(color="black", alpha=0.08)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    if on_cpu:
        panels["devices"].set_title("all devices share the same cores", fontsize=9, loc="left")
    figure.suptitle(f"Cost on {jax.devices()[0].device_kind}: medians, ranges and fits", x=0.01, ha="left", fontsize=11)
    FigureCanvasAgg(figure).print_figure(file)


def _draw(axes: Axes, name: str, each: Mapping[str, Any], colour: str, marker: str) -> None:
    seconds = np.array(each["seconds"])
    medians = np.median(seconds, axis=1)
    spread = np.abs(np.stack([seconds.min(1), seconds.max(1)]) - medians)
    found = each["growth"]
    label = name
    if found:
        label = f"{name}: exponent {found['exponent']:.2f} ± {found['stderr']:.2f}"
        x = np.geomspace(each["sizes"][0], each["sizes"][-1], 50)
        y = found["fixed"] + found["factor"] * x ** found["exponent"]
        axes.plot(x, y, color=colour, linestyle="--", linewidth=1)
    axes.errorbar(each["sizes"], medians, yerr=spread, fmt=marker, color=colour, capsize=3, markersize=5, label=label)


if __name__ == "__main__":
    main()
