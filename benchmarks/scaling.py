"""Measures how cost grows with the number of images, networks, restarts and devices, and fits the exponents.

Images and networks are measured by `jaxtransfer.affinity_matrix` with a small convolutional network, restarts by
`jaxtransfer.principal_gradient`, and both also on meshes of devices. On a CPU, cost is processor time, which other
programs do not affect. The devices of a CPU are simulated and share its cores: more devices cost the same at best, and
the difference is the cost of sharding. Run `python -m benchmarks.scaling --out DIRECTORY` from the root of the
checkout.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

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
        exponent: The exponent of growth.
        stderr: Standard error of the exponent.
        factor: The factor in seconds.
        fixed: The fixed cost in seconds.
    """

    exponent: float
    stderr: float
    factor: float
    fixed: float


def growth(sizes: Sequence[float], seconds: Float[np.ndarray, "sizes rounds"], *, with_fixed: bool = True) -> Growth:
    """Fits the growth of a cost to the medians over rounds; the standard error is a bootstrap over rounds.

    The fit minimises relative errors. Differences in speed between whole rounds are removed first.

    Args:
        sizes: Sizes; at least four.
        seconds: Cost of every size in every round.
        with_fixed: Whether to fit a fixed cost.
    """
    x = np.asarray(sizes, float)
    # A round in which everything is slower carries no information on growth.
    seconds = seconds / np.exp(np.log(seconds).mean(0) - np.log(seconds).mean())

    def parts(exponent: float, costs: Float[np.ndarray, " sizes"]) -> tuple[Float[np.ndarray, " 2"], float]:
        """Fits factor and fixed cost, both >= 0, and returns them with the norm of the relative errors."""
        columns = [x**exponent / costs, with_fixed / costs]
        return optimize.nnls(np.stack(columns, axis=1), np.ones(len(sizes)))

    def exponent(costs: Float[np.ndarray, " sizes"]) -> float:
        smallest = optimize.minimize_scalar(lambda e: parts(e, costs)[1], bounds=(-4, 4), method="bounded")
        return cast(Any, smallest).x

    medians = np.median(seconds, axis=1)
    fitted = exponent(medians)
    rng, rounds = np.random.default_rng(0), seconds.shape[1]
    resampled = [exponent(np.median(seconds[:, rng.integers(rounds, size=rounds)], axis=1)) for _ in range(100)]
    (factor, fixed), _ = parts(fitted, medians)
    return Growth(float(fitted), float(np.std(resampled, ddof=1)), float(factor), float(fixed))


def affinities(networks: int, images: int, mesh: Mesh | None = None) -> None:
    """Computes the affinities of networks over images, with points in a temporary directory."""
    all_networks = [convolutional(f"n{i}", WIDTHS, i) for i in range(networks)]
    probe = np.random.default_rng(0).random((images, SIZE, SIZE, 3), np.float32)
    with tempfile.TemporaryDirectory() as directory:
        jt.affinity_matrix(all_networks, probe, methods=jt.METHODS, batch_size=BATCH, directory=directory, mesh=mesh)


@functools.cache
def task() -> tuple[Any, Any, Any]:
    """Returns the initialiser of a backbone, a loss, and episodes of noise."""
    backbone = jt.backbone("conv4", 3)
    images = np.random.default_rng(0).normal(size=(60, 16, 16, 3)).astype(np.float32)
    batches = jt.Episodes.of(images, np.arange(60) % 5, ways=5, shots=1, queries=3)
    return backbone.init, jt.Prototypical(backbone.features, 5, 1), batches


def restarts(count: int, mesh: Mesh | None = None) -> None:
    """Estimates a principal gradient."""
    jt.principal_gradient(*task(), jax.random.key(0), restarts=count, control=False, mesh=mesh)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1, help="factor that multiplies all sizes")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each size")
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
        contenders = {str(n): (functools.partial(run, n), 1) for n in sizes}
        clock = time.process_time if on_cpu else time.perf_counter
        seconds = np.array(list(harness.take_turns(contenders, options.rounds, clock).values()))
        devices = name.startswith("devices")
        fit = growth(sizes, seconds, with_fixed=not devices) if len(sizes) > 1 else None
        record["series"][name] = {"sizes": sizes, "seconds": seconds.tolist(), "growth": fit and fit._asdict()}
        if fit:
            rows.append(
                _row(name, sizes, np.median(seconds, axis=1).tolist(), fit, (0 if on_cpu else -1) if devices else 1)
            )
    harness.show("Growth of costs", {"scaling": rows})
    if options.out:
        record["rows"] = [row._asdict() for row in rows]
        shapes = {"image": (SIZE, SIZE, 3), "image of an episode": (16, 16, 3)}
        harness.store(record, options.out / f"scaling_{harness.device()}.json", precision="float32", shapes=shapes)
        plot(record["series"], options.out / f"scaling_{harness.device()}.png", on_cpu=on_cpu)


def _row(name: str, sizes: Sequence[int], medians: Sequence[float], fit: Growth, exponent: int) -> harness.Row:
    return harness.Row(
        f"{sizes[0]} to {sizes[-1]} {name}",
        f"{medians[0]:.3g} to {medians[-1]:.3g} s",
        f"fixed: {fit.fixed:.2g} s" if fit.fixed else "",
        f"exponent {fit.exponent:.2f} ± {fit.stderr:.2f}",
        f"exponent {exponent}",
        abs(fit.exponent - exponent) <= max(2 * fit.stderr, 0.1) if exponent == 1 else None,
    )


def plot(series: Mapping[str, Mapping[str, Any]], file: Path, *, on_cpu: bool) -> None:
    """Draws costs and fits, in a panel for images, networks, devices and restarts each."""
    figure = Figure(figsize=(9, 6.6), dpi=150, layout="constrained")
    panels = dict(zip(("images", "networks", "devices", "restarts"), figure.subplots(2, 2).flat, strict=True))
    for unit, axes in panels.items():
        of_unit = {name: result for name, result in series.items() if name.split(", ")[0] == unit}
        for (name, result), colour, marker in zip(of_unit.items(), COLOURS, "os", strict=False):
            _draw(axes, name.removeprefix(f"{unit}, "), result, colour, marker)
        axes.set(xscale="log", yscale="log", xlabel=unit, ylabel="processor seconds" if on_cpu else "seconds")
        axes.set_xticks(next(iter(of_unit.values()))["sizes"])
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


def _draw(axes: Axes, name: str, result: Mapping[str, Any], colour: str, marker: str) -> None:
    seconds = np.array(result["seconds"])
    medians = np.median(seconds, axis=1)
    spread = np.abs(np.stack([seconds.min(1), seconds.max(1)]) - medians)
    fit = result["growth"]
    label = name
    if fit:
        label = f"{name}: exponent {fit['exponent']:.2f} ± {fit['stderr']:.2f}"
        x = np.geomspace(result["sizes"][0], result["sizes"][-1], 50)
        y = fit["fixed"] + fit["factor"] * x ** fit["exponent"]
        axes.plot(x, y, color=colour, linestyle="--", linewidth=1)
    axes.errorbar(result["sizes"], medians, yerr=spread, fmt=marker, color=colour, capsize=3, markersize=5, label=label)


if __name__ == "__main__":
    main()
