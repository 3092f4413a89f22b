"""Measures the cost of the measures of labelled tasks, beside those of TLlib and transformer-ranker.

    python -m benchmarks.scores

The peers compute one value; ours too where they are compared, and beside that all measures with their pseudo-values,
which takes eleven evaluations of each. Scores are compared on features of fewer and of more units than examples, and
of units that depend on each other. A peer that is not installed is left out. Only the files of a peer's measures are
loaded, so its own dependencies are not needed, except numba for TLlib's LogME. Times are processor time.
Run from the root of the checkout.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int

from benchmarks import harness
from jaxtransfer import scores
from jaxtransfer.scores.measures import MEASURES, run_measures
from jaxtransfer.scores.target import Target

_CLASSES, _SOURCE_CLASSES = 10, 1000
_SECONDS_OF_PASSES = 280.0  # processor time of 2,000 images at 70 ms on two cores, in ResNet-50 on a CPU

Features = Float[np.ndarray, "examples units"]
Labels = Int[np.ndarray, " examples"]


def task(examples: int, units: int, rank: int = 300) -> tuple[Features, Labels]:
    """Makes features as of a network's last layer: not negative, not centred, of falling variance, with noise."""
    random = np.random.default_rng(0)
    labels = np.arange(examples) % _CLASSES
    hidden = random.normal(size=(examples, rank)) + 0.4 * random.normal(size=(_CLASSES, rank))[labels]
    maps = random.normal(size=(rank, units)) / np.sqrt(np.arange(1, rank + 1))[:, None]
    features = 0.3 * (hidden @ maps + random.normal(size=(examples, units)))
    return np.maximum(features, 0).astype(np.float32), labels


def dependent(features: Features) -> Features:
    """Repeats units with other scales: the covariance has half the rank, apart from the rounding of float32."""
    return np.hstack([features, 0.1 * features + np.roll(features, 1, 1)]).astype(np.float32)


def peer(package: str, folder: str) -> ModuleType | None:
    """Loads a folder of a package without running the package's own start; None: it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    name = f"{package}_{folder}"
    file = Path(found.submodule_search_locations[0]) / folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    if spec is None or spec.loader is None:
        return None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]
        return None
    return module


def contenders() -> dict[str, dict[str, Callable[[Features, Labels], float]]]:
    """Returns for each measure who computes it."""
    by_measure: dict[str, dict[str, Callable[[Features, Labels], float]]] = {
        name: {"jaxtransfer": getattr(scores, name)} for name in ("logme", "hscore", "hscore_shrunk")
    }
    if (tllib := peer("tllib", "ranking")) is not None:
        by_measure["logme"]["TLlib"] = tllib.log_maximum_evidence
        by_measure["hscore"]["TLlib"] = tllib.h_score
        by_measure["hscore_shrunk"]["TLlib"] = sys.modules[f"{tllib.__name__}.hscore"].regularized_h_score
    if (ranker := peer("transformer_ranker", "estimators")) is not None:
        import torch

        def ranked(measure: Callable[[], object], features: Features, labels: Labels) -> float:
            return float(measure().fit(torch.from_numpy(features), torch.from_numpy(labels)))  # pyright: ignore

        by_measure["logme"]["transformer-ranker"] = partial(ranked, ranker.LogME)
        by_measure["hscore_shrunk"]["transformer-ranker"] = partial(ranked, ranker.HScore)
    return by_measure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="counted calls of each contender")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)

    features, labels = task(options.examples, options.units)
    few = slice(options.examples // 4)
    inputs = {
        "same as above": (features, labels),
        "a quarter of the examples": (features[few], labels[few]),
        "a quarter of the units": (features[:, : options.units // 4], labels),
        "dependent units": (dependent(features[:, : options.units // 8]), labels),
    }
    rows, seconds, values = [], {}, {}
    for measure, by_name in contenders().items():
        what = f"{measure}, {options.examples} x {options.units}"
        seconds[measure] = harness.take_turns(
            {name: (partial(run, features, labels), 1) for name, run in by_name.items()},
            options.rounds,
            time.process_time,
        )
        harness.show_ratios(what, seconds[measure], "jaxtransfer")
        goals = {name: 3.0 for name in by_name if name != "jaxtransfer"}
        rows += harness.rows(what, seconds[measure], "jaxtransfer", goals)
        values[measure] = {
            label: {name: float(run(*of_input)) for name, run in by_name.items()} for label, of_input in inputs.items()
        }
        for label, by_contender in values[measure].items():
            for name in by_contender.keys() - {"jaxtransfer"}:
                ours, theirs = by_contender["jaxtransfer"], by_contender[name]
                rows.append(
                    harness.Row(f"{measure}, {label}", f"{ours:.6g}", f"{name}: {theirs:.6g}", f"{theirs - ours:.2g}")
                )

    target = Target.of_labels(labels)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(_SOURCE_CLASSES), len(labels))
    spent = {}
    for takes in ("features", "examples", "predictions"):
        names = [name for name, spec in MEASURES.items() if spec.takes == takes]
        began = time.process_time()
        run_measures(names, target, features=features, probabilities=probabilities)
        spent[", ".join(names)] = time.process_time() - began
    together = sum(spent.values())
    rows += [
        harness.Row(f"{names}, with errors", f"{seconds_spent:.1f} s", "", "") for names, seconds_spent in spent.items()
    ]
    rows.append(
        harness.Row(
            "all measures with errors",
            f"{together:.1f} s",
            f"the network's passes: {_SECONDS_OF_PASSES:.0f} s",
            f"{together / _SECONDS_OF_PASSES:.2f} times",
            "< 1 times",
            together < _SECONDS_OF_PASSES if (options.examples, options.units) == (2000, 2048) else None,
        )
    )
    harness.show("Scores of labelled tasks", {"scores": rows})
    if options.out:
        record = {
            "rows": [row._asdict() for row in rows],
            "settings": {key: value for key, value in vars(options).items() if key != "out"},
            "seconds": seconds,
            "values": values,
            "seconds_with_errors": {**spent, "all": together},
        }
        file = options.out / f"scores_{harness.device()}.json"
        harness.store(record, file, precision="float64", shapes={"features": features.shape})


if __name__ == "__main__":
    main()
