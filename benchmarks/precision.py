"""Measures how much affinities and rankings change when attribution maps are computed in lower precision.

Run `python -m benchmarks.precision --out benchmarks/results` from the root of the checkout, after
`pip install -e ".[bench]"`. Two groups of networks are compared, on the crops of `examples/efficientnets.py` or on the
photos of `--images`: EfficientNet-Lite0, 1 and 2 with published weights, together with untrained controls (that example
makes both), and Taskonomy encoders with random weights.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kendalltau

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.networks import taskonomy_params
from jaxtransfer import taskonomy
from jaxtransfer.attribution.relevance._graph import Value, build
from jaxtransfer.comparison.similarity import similarities
from jaxtransfer.data.probe import files_below, read_images
from jaxtransfer.networks.network import ApplyFn
from jaxtransfer.points.directions import SIMILARITIES, Similarity

REFERENCE = "float32"
EXAMPLE = Path(__file__).parents[1] / "examples" / "efficientnets.py"
Maps = dict[str, np.ndarray]


def brighter(apply: ApplyFn, params: PyTree, images: Array) -> dict[str, Array]:
    """Attributes in float32, with images one unit in the last place brighter: the effect of rounding in float32."""
    return jt.attribute(apply, params, jnp.nextafter(images, jnp.float32(jnp.inf)))


def backward_bfloat16(apply: ApplyFn, params: PyTree, images: Array) -> dict[str, Array]:
    """Attributes with the package's `precision="bfloat16"`, which rounds in the backward passes only."""
    return jt.attribute(apply, params, images, precision="bfloat16")


@functools.partial(jax.jit, static_argnums=0)
def both_passes(apply: ApplyFn, params: PyTree, images: Array) -> dict[str, Array]:
    """Attributes with the operands of products and convolutions rounded to bfloat16, also in the forward pass."""

    def rounded(params: PyTree, images: Array) -> Array:
        leaves = [*jax.tree.leaves(params), images]
        graph = build(jax.make_jaxpr(apply)(params, images), [True] * len(leaves))
        env: dict[Value, Any] = dict(zip(graph.inputs, leaves, strict=True))
        for node in graph.nodes:
            inputs = [env.get(value, value.constant) for value in node.inputs]
            if node.name in ("dot_general", "conv_general_dilated"):
                inputs = [jax.lax.reduce_precision(array, exponent_bits=8, mantissa_bits=7) for array in inputs]
            env.update(zip(node.outputs, node.bind(*inputs), strict=True))
        return env[graph.outputs[0]]

    return jt.attribute(rounded, params, images)


COMPUTED: dict[str, Callable[[ApplyFn, PyTree, Array], dict[str, Array]]] = {
    REFERENCE: jt.attribute,
    "float32, images 1 ulp brighter": brighter,
    "bfloat16": backward_bfloat16,
    "bfloat16 in both passes": both_passes,
}


def encoders(count: int, size: int) -> Iterator[jt.Network]:
    """Yields Taskonomy encoders with random weights."""
    preprocess = jt.Preprocess((size, size), 0.5, 0.5)
    for seed in range(count):
        yield jt.Network(f"random{seed}", taskonomy.encode, taskonomy_params(seed), preprocess)


def all_maps(networks: Iterator[jt.Network], images: np.ndarray, batch_size: int) -> dict[str, Maps]:
    """Computes maps at probe size, [networks, images, pixels], by key of `COMPUTED` and by method."""
    lists: dict[str, dict[str, list[np.ndarray]]] = {way: {} for way in COMPUTED}
    for network in networks:
        assert isinstance(network.preprocess, jt.Preprocess)
        inputs, params = network.preprocess(jnp.asarray(images)), jax.device_put(network.params)
        for way, compute in track(COMPUTED.items(), description=network.name, console=Console(stderr=True)):
            starts = range(0, len(inputs), batch_size)
            batches = [compute(network.apply, params, inputs[i : i + batch_size]) for i in starts]
            for method in jt.METHODS:
                maps = jnp.concatenate([batch[method].mean(-1) for batch in batches])
                restored = network.preprocess.restore(maps, images.shape[1:3])
                lists[way].setdefault(method, []).append(np.asarray(restored).reshape(len(images), -1))
    return {way: {method: np.stack(maps) for method, maps in by_method.items()} for way, by_method in lists.items()}


def compare(reference: np.ndarray, maps: np.ndarray, similarity: Similarity) -> dict[str, float]:
    """Measures how affinities and rankings differ between two sets of maps of the same networks."""
    count, images = reference.shape[:2]
    by_image = np.asarray(similarities(jnp.concatenate([reference, maps]), similarity)[0], np.float64)
    before, after = by_image[:, :count, :count], by_image[:, count:, count:]
    others = ~np.eye(count, dtype=bool)
    change = np.abs((after - before).mean(0))[others]
    stderr = before.std(0, ddof=1)[others] / np.sqrt(images)
    rankings: list[Any] = [  # of the other networks, for each target
        kendalltau(before.mean(0)[row][others[row]], after.mean(0)[row][others[row]])[0] for row in range(count)
    ]
    return {
        "smallest_affinity": before.mean(0)[others].min(),
        "largest_affinity": before.mean(0)[others].max(),
        "median_standard_error": float(np.median(stderr)),
        "largest_change": change.max(),
        "largest_change_in_standard_errors": (change / stderr).max(),
        "smallest_tau": float(min(rankings)),
        "mean_tau": float(np.mean(rankings)),
        "mean_similarity_to_reference": by_image[:, range(count), range(count, 2 * count)].mean(),
    }


def report(title: str, maps_by_way: dict[str, Maps]) -> list[dict[str, Any]]:
    """Compares all maps with those of the reference, prints a table and returns its rows."""
    rows = [
        {"computed": way, "method": method, "similarity": similarity}
        | compare(maps_by_way[REFERENCE][method], maps[method], similarity)
        for way, maps in maps_by_way.items()
        if way != REFERENCE
        for method in jt.METHODS
        for similarity in SIMILARITIES
    ]
    table = Table(title=title)
    for heading in rows[0]:
        table.add_column(heading.replace("_", " "))
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.5f}" for value in row.values()))
    Console(width=200).print(table)
    return rows


def goals(changes: Mapping[str, list[dict[str, Any]]]) -> list[harness.Row]:
    """Compares bfloat16 with its goals, for every group of networks."""
    rows = []
    for title, changes_of_group in changes.items():
        ours = [row for row in changes_of_group if row["computed"] == "bfloat16"]
        change, tau = max(row["largest_change"] for row in ours), min(row["smallest_tau"] for row in ours)
        what = f"{title}: bfloat16 against float32"
        rows.append(
            harness.Row(what, "", "", f"affinities change by at most {change:.2g}", "<= 0.005", bool(change <= 0.005))
        )
        rows.append(harness.Row(what, "", "", f"smallest tau {tau:.2f}", ">= 0.98", bool(tau >= 0.98)))
    return rows


def times(size: int, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Measures seconds per image of an encoder in float32 and in bfloat16."""
    params = jax.device_put(taskonomy_params(0))
    images = jax.random.uniform(jax.random.key(0), (batch_size, size, size, 3), minval=-1)

    def run(precision: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(jt.attribute(taskonomy.encode, params, images, precision=precision))

    return harness.take_turns({name: (run(name), batch_size) for name in (REFERENCE, "bfloat16")}, rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of photos; default: the crops of the example")
    parser.add_argument("--limit", type=int, default=24, help="number of photos, evenly spaced over the sorted folder")
    parser.add_argument(
        "--example", type=Path, help="output folder of examples/efficientnets.py; default: the example is run"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images per batch")
    parser.add_argument(
        "--encoders", type=int, default=6, help="number of Taskonomy encoders with random weights; at least 3"
    )
    parser.add_argument("--size", type=int, default=256, help="height and width of their input")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each precision")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)
    if options.encoders < 3:
        parser.error("a ranking needs two sources: --encoders must be at least 3")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.example or Path(temporary)
        if options.example is None:
            subprocess.run([sys.executable, EXAMPLE, "--out", folder], check=True)
        photos = options.images or folder / "images"
        names = [path.as_posix() for path in files_below(photos)]
        names = [names[i] for i in np.linspace(0, len(names) - 1, min(options.limit, len(names))).astype(int)]
        images = read_images(photos, names).astype(np.float32) / 255
        groups = {
            f"Taskonomy encoders with random weights, {options.size} x {options.size}": encoders(
                options.encoders, options.size
            ),
            "EfficientNet-Lite0, 1, 2 and their controls": iter(jt.Zoo(folder / "zoo")),
        }
        changes = {
            title: report(f"{title}; {len(images)} photos", all_maps(networks, images, options.batch_size))
            for title, networks in groups.items()
        }
    seconds = times(options.size, options.batch_size, options.rounds)
    title = "Three maps of one encoder, images per second"
    harness.show_ratios(title, seconds, REFERENCE)
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key not in ("out", "example")}
        settings |= {"images": photos.name, "photos": names}
        record = {"settings": settings, "reference": REFERENCE, "changes": changes, "seconds_per_image": seconds}
        rows = [*goals(changes), *harness.rows(title, seconds, REFERENCE)]
        record["rows"] = [row._asdict() for row in rows]
        file = options.out / f"precision_{harness.device()}.json"
        harness.store(record, file, precision="bfloat16", shapes={"images": images.shape})


if __name__ == "__main__":
    main()
