"""Measures the cost of linear predictivity: against maps fitted one by one, and how it grows.

    python -m benchmarks.predictivity

The peer fits each ridge map to the images themselves, pair by pair and fold by fold, with one ridge and without
errors; ours chooses among twelve ridges and has jackknife errors. Growth is measured against images, places, units and
networks. At the end stands the memory for many networks, of which only a few columns are computed. Times are processor
time.
Run from the root of the checkout.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.filesize import decimal

from benchmarks import harness
from benchmarks.many_networks import Peak
from benchmarks.scaling import growth
from jaxtransfer.comparison.predictivity import FOLDS, folds_of, linear_predictivity, predictivities

_BASE = {"networks": 6, "images": 128, "side": 4, "units": 32}
_FACTORS = (1, 2, 4)
_RIDGE = 1e-2


def representations(networks: int, images: int, side: int, units: int) -> dict[str, Float[np.ndarray, "n h w units"]]:
    """Makes networks that see partly the same."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(images, side, side, 8)).astype(np.float32)
    return {
        f"n{i}": seen @ rng.normal(size=(8, units)).astype(np.float32)
        + rng.normal(size=(images, side, side, units)).astype(np.float32)
        for i in range(networks)
    }


def one_by_one(networks: dict[str, Float[np.ndarray, "n h w units"]]) -> Float[np.ndarray, "targets sources"]:
    """Computes linear predictivities by maps fitted to the images."""
    flat = [x.astype(np.float64).reshape(len(x), -1, x.shape[-1]) for x in networks.values()]
    fold = np.random.default_rng(0).permutation(len(flat[0])) % FOLDS
    values = np.eye(len(flat))
    for i, target in enumerate(flat):
        for j, source in enumerate(flat):
            error = deviation = 0.0
            for k in range(FOLDS) if i != j else ():
                kept, held_out = fold != k, fold == k
                x_mean, y_mean = source[kept].mean(0), target[kept].mean(0)
                x, y = np.concatenate(source[kept] - x_mean), np.concatenate(target[kept] - y_mean)
                ridge = _RIDGE * np.square(x).sum() / x.shape[1]
                linear_map = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
                y = target[held_out] - y_mean
                error += np.square(y - (source[held_out] - x_mean) @ linear_map).sum()
                deviation += np.square(y).sum()
            values[i, j] = 1 - error / deviation if deviation else 1
    return values


def many(networks: int, columns: int) -> tuple[float, int]:
    """Computes a few columns of many networks of 500 images, 16 places and 64 units.

    Returns:
        Seconds for each pair, and the peak of memory beyond the representations.
    """
    of_networks = representations(networks, 500, 4, 64)
    folds = folds_of(np.ones(500, bool))
    wanted = np.zeros((networks, networks), bool)
    wanted[:, :columns] = True
    began = time.process_time()
    with Peak() as peak:
        for _ in predictivities(of_networks, folds, wanted & ~np.eye(networks, dtype=bool)):
            pass
    return (time.process_time() - began) / (columns * networks), peak.highest - peak.before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted calls of each contender")
    parser.add_argument("--networks", type=int, default=1000, help="networks in the measurement of memory")
    parser.add_argument("--columns", type=int, default=28, help="columns computed there")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)

    networks = representations(**_BASE)
    difference = float(np.abs(linear_predictivity(networks).values - one_by_one(networks)).max())
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "from second moments": (lambda: linear_predictivity(networks), 1),
        "one by one": (lambda: one_by_one(networks), 1),
    }
    seconds = harness.take_turns(contenders, options.rounds, time.process_time)
    harness.show_ratios("Linear predictivity", seconds, "from second moments")
    rows = harness.rows("predictivity", seconds, "from second moments")
    record: dict[str, object] = {"seconds": seconds, "largest_difference": difference}
    for quantity in _BASE:
        sizes = [_BASE[quantity] * factor for factor in _FACTORS]
        inputs = [representations(**{**_BASE, quantity: size}) for size in sizes]
        timed = harness.take_turns(
            {str(size): (lambda x=x: linear_predictivity(x), 1) for size, x in zip(sizes, inputs, strict=True)},
            options.rounds,
            time.process_time,
        )
        counts = [size**2 if quantity == "side" else size for size in sizes]
        fit = growth(counts, np.array([*timed.values()]))
        name = "places" if quantity == "side" else quantity
        record[name] = {"sizes": counts, "seconds": timed, "exponent": fit.exponent, "stderr": fit.stderr}
        rows.append(
            harness.Row(name, f"{counts[0]} to {counts[-1]}", "", f"exponent {fit.exponent:.2f} ± {fit.stderr:.2f}")
        )
    per_pair, memory = many(options.networks, options.columns)
    record["many"] = {"networks": options.networks, "seconds_per_pair": per_pair, "peak_bytes": memory}
    what = f"{options.networks} networks of 64 units x 500 images x 16 places"
    rows.append(
        harness.Row(
            what,
            f"{per_pair * 1e3:.2f} ms a pair",
            f"one column: {per_pair * options.networks:.1f} s",
            decimal(memory),
            "<= 4 GB",
            memory <= 4e9,
        )
    )
    harness.show("Linear predictivity", {"predictivity": rows})
    if options.out:
        record["rows"] = [row._asdict() for row in rows]
        record["settings"] = {key: value for key, value in vars(options).items() if key != "out"}
        file = options.out / f"predictivity_{harness.device()}.json"
        harness.store(record, file, precision="float64", shapes={"representation": [128, 4, 4, 32]})


if __name__ == "__main__":
    main()
