"""Many Taskonomy encoders over many images on one device: seconds for maps and matrix, and what of the device they use.

Fit for a machine that is held for minutes: every step writes all that is known so far, one JSON file per mode.
Needs JAX, and PyTorch for the peer; weights are random, which costs the same. Run with
`python -m benchmarks.accelerator --out DIRECTORY` from the root of the checkout; `--modes` splits it over
several calls.
"""

import argparse
import functools
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

import jaxtransfer as jt
from benchmarks import harness
from benchmarks.networks import over_networks, taskonomy_params
from jaxtransfer import taskonomy
from jaxtransfer.attribution.precision import Precision
from jaxtransfer.comparison.similarity import similarities
from jaxtransfer.networks.network import ApplyFn

if TYPE_CHECKING:
    import torch

    from benchmarks import torch_peer


class Mode(NamedTuple):
    """How precisely a pass is computed; maps and their comparison are float32.

    Attributes:
        dtype: Of weights and images.
        precision: What `jaxtransfer.attribute` is asked for.
        products: Type and precision of the matrix products it is held against.
        peer: Whether PyTorch can do the same.
    """

    dtype: Any
    precision: Precision
    products: tuple[Any, str]
    peer: bool = True


MODES = {
    "all_bfloat16": Mode(jnp.bfloat16, "float32", (jnp.bfloat16, "default")),
    "bfloat16": Mode(jnp.float32, "bfloat16", (jnp.bfloat16, "default"), peer=False),
    "tf32": Mode(jnp.float32, "tf32", (jnp.float32, "tensorfloat32")),
    "float32": Mode(jnp.float32, "float32", (jnp.float32, "highest")),
}
Maps = dict[str, Float[Array, "images pixels"]]


def maps(apply: ApplyFn, precision: Precision, params: PyTree, images: Float[Array, "images height width 3"]) -> Maps:
    """All three maps as the matrix needs them: float32, averaged over colour channels, flattened."""
    found = jt.attribute(apply, params, images, precision=precision)
    return {method: each.mean(-1).reshape(len(images), -1) for method, each in found.items()}


@functools.partial(jax.jit, static_argnames="dtype")
def _as_input(images: UInt8[Array, "images height width 3"], dtype: Any) -> Float[Array, "images height width 3"]:
    return (images.astype(jnp.float32) / 255).astype(dtype)


@jax.jit
def _cosines(of_networks: Sequence[Maps]) -> dict[str, Float[Array, "images networks networks"]]:
    return {method: similarities(jnp.stack([each[method] for each in of_networks]))[0] for method in of_networks[0]}


def affinities(
    attributed: Callable[[PyTree, Array], Maps],
    params: Sequence[PyTree],
    images: UInt8[np.ndarray, "images height width 3"],
    batch_size: int,
    dtype: Any,
) -> dict[str, Float[np.ndarray, "networks networks"]]:
    """The whole job, `batch_size` images of all networks at a time: their maps never leave the device.

    Images start in the host's memory, weights on the device.
    """
    found = []
    for batch, _ in _batches(images, batch_size):
        inputs = _as_input(jnp.asarray(batch), dtype)
        found.append(_cosines([attributed(each, inputs) for each in params]))
    counts = [count for _, count in _batches(images, batch_size)]
    result = {}
    for method in found[0]:
        cosines = np.concatenate([np.asarray(each[method])[:n] for each, n in zip(found, counts, strict=True)])
        result[method] = cosines.mean(0, dtype=np.float64)
    return result


def _batches(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one size, the last one filled up with its last image, and how many of it count."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]), len(batch)


def torch_contenders(
    module: "torch.nn.Module", images: Float[Array, "images height width 3"], mode: Mode
) -> dict[str, Callable[[], "torch_peer.Maps"]]:
    """PyTorch on the same device, channels last, in the same precision: eager, and on a GPU compiled."""
    import torch

    from benchmarks import torch_peer

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    allowed = mode.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    dtype = torch.bfloat16 if mode.dtype == jnp.bfloat16 else torch.float32
    module = module.to(device, dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    x = torch.from_numpy(np.asarray(images, np.float32).transpose(0, 3, 1, 2).copy())
    x = x.to(device, dtype, memory_format=torch.channels_last)

    def contender(all_maps: Callable[[torch.Tensor], torch_peer.Maps]) -> Callable[[], torch_peer.Maps]:
        def run() -> torch_peer.Maps:
            found = {method: each.mean(1).flatten(1) for method, each in all_maps(x).items()}
            if device == "cuda":
                torch.cuda.synchronize()
            return found

        return run

    contenders = {"PyTorch": contender(torch_peer.batched(module))}
    if device == "cuda":
        contenders["PyTorch, compiled"] = contender(torch_peer.batched(module, compiled=True))
    return contenders


def operations(apply: ApplyFn, params: PyTree, shape: tuple[int, ...]) -> float:
    """Floating-point operations of one image's forward pass, by XLA's count for a CPU: a GPU's compiler gives none.

    Two for every multiplication and addition, none for what padding adds.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        lowered = jax.jit(apply).lower(weights, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        return lowered.cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript]


def measure(
    name: str,
    apply: ApplyFn,
    module: "Callable[[PyTree], torch.nn.Module] | None",
    params: Sequence[PyTree],
    images: UInt8[np.ndarray, "images height width 3"],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """All steps in one mode.

    Args:
        name: Of the mode.
        apply: The networks' function.
        module: From one network's weights to the same in PyTorch; None: there is no PyTorch.
        params: Every network's weights.
        images: What they are to look at.
        options: `batch_sizes`, `rounds` and `out`, as the command line has them.

    Returns:
        The record that was written.
    """
    mode = MODES[name]
    one = functools.partial(maps, apply, mode.precision)
    on_gpu = jax.default_backend() == "gpu"
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "modes")}
    record: dict[str, Any] = {"title": f"Taskonomy encoders, {name}", "settings": settings}
    rows: list[harness.Row] = []

    def keep(**found: Any) -> None:
        record.update(found, rows=[row._asdict() for row in rows])
        if options.out:
            file = options.out / f"accelerator_{harness.device()}_{name}.json"
            harness.store(record, file, precision=name, shapes={"images": images.shape})

    side = 8192 if on_gpu else 512
    key = jax.random.key(0)
    a, b = (jax.random.normal(jax.random.fold_in(key, i), (side, side), mode.products[0]) for i in range(2))
    product = jax.jit(functools.partial(jnp.matmul, precision=mode.products[1]))
    seconds = harness.take_turns({"": (lambda: jax.block_until_ready([product(a, b) for _ in range(10)]), 10)}, 5)
    product_rate = 2 * side**3 / statistics.median(seconds[""])
    work = 3 * operations(apply, params[0], images.shape[1:])
    keep(product_rate=product_rate, product_side=side, operations_per_image=work)
    print(f"{name}: matrix products at {product_rate / 1e12:.3g} TFLOP/s; {work / 1e9:.3g} GFLOP per image and network")

    params = jax.device_put([jax.tree.map(lambda leaf: jnp.asarray(leaf, mode.dtype), each) for each in params])
    compiled: dict[int, Callable[[PyTree, Array], Maps]] = {}
    passes = []
    for size in options.batch_sizes:
        inputs = _as_input(jnp.asarray(next(_batches(images, size))[0]), mode.dtype)
        start = time.perf_counter()
        try:
            compiled[size] = jax.jit(one).lower(params[0], inputs).compile()
            compile_seconds = time.perf_counter() - start
            run = functools.partial(compiled[size], params[0], inputs)
            seconds = harness.take_turns({"": (lambda run=run: jax.block_until_ready(run()), size)}, options.rounds)[""]
        except jax.errors.JaxRuntimeError as error:  # larger ones will not fit either
            compiled.pop(size, None)
            keep(too_large={"batch_size": size, "error": str(error).splitlines()[0]})
            break
        passes.append({"batch_size": size, "compile_seconds": compile_seconds, "seconds_per_image": seconds})
        keep(passes=passes)
        rate = 1 / statistics.median(seconds)
        print(f"{name}: batches of {size}: {rate:.4g} images/s, {rate * work / 1e12:.3g} TFLOP/s, "
              f"compiled in {compile_seconds:.1f} s")  # fmt: skip
    best = min(passes, key=lambda each: statistics.median(each["seconds_per_image"]))["batch_size"]

    whole = functools.partial(affinities, compiled[best], params, batch_size=best, dtype=mode.dtype)
    found = whole(images[:best])  # compiles the comparison
    seconds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        found = whole(images)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    rate = work * len(params) * len(images) / median
    job = {"batch_size": best, "seconds": seconds, "operations_per_second": rate,
           "share_of_product_rate": rate / product_rate,
           "affinity": {method: matrix.tolist() for method, matrix in found.items()},
           "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}  # fmt: skip
    full_size = on_gpu and (len(params), *images.shape[:3]) == (20, 1000, 256, 256)
    # The seconds are a goal for one kind of GPU in one mode, the share is one for any.
    timed = full_size and name == "all_bfloat16" and "H200" in jax.devices()[0].device_kind
    what = f"{len(params)} encoders x {len(images)} images of {images.shape[1]}x{images.shape[2]}, {name}"
    goal = "20 x 1000 of 256x256 on one"
    rows.append(harness.Row(f"{what}: maps and matrix", f"{median:.3g} s", "", f"{median:.3g} s",
                            f"{goal} H200, all_bfloat16: < 5 s", median < 5 if timed else None))  # fmt: skip
    rows.append(harness.Row(f"{what}: share of the matrix products' rate", f"{rate / 1e12:.3g} TFLOP/s",
                            f"{product_rate / 1e12:.3g} TFLOP/s", f"{rate / product_rate:.0%}", f"{goal} GPU: >= 40 %",
                            rate >= 0.4 * product_rate if full_size else None))  # fmt: skip
    keep(job=job)
    print(f"{what}: {median:.3g} s, {rate / 1e12:.3g} TFLOP/s, {rate / product_rate:.0%} of matrix products")

    inputs = _as_input(jnp.asarray(next(_batches(images, best))[0]), mode.dtype)
    if module is not None and mode.peer:
        ours = functools.partial(compiled[best], params[0], inputs)
        wanted = {method: np.asarray(each) for method, each in ours().items()}
        contenders: dict[str, tuple[Callable[[], Any], int]] = {"ours": (lambda: jax.block_until_ready(ours()), best)}
        agreement, failed = {}, {}
        for label, run in torch_contenders(module(params[0]), inputs, mode).items():
            try:
                theirs = {method: each.cpu().numpy() for method, each in run().items()}
            except Exception as error:  # whatever the peer fails at must not end a run on a borrowed machine
                failed[label] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
            agreement[label] = {method: _smallest_cosine(wanted[method], theirs[method]) for method in wanted}
            contenders[label] = run, best
        seconds = harness.take_turns(contenders, options.rounds)
        title = f"Maps of one encoder, {best} x {images.shape[1]}x{images.shape[2]}, {name}, channels last in PyTorch"
        goals = {"PyTorch, compiled": 2.0} if on_gpu else {}
        harness.show_ratios(title, seconds, "ours")
        rows += harness.rows(title, seconds, "ours", goals)
        keep(peer={"seconds_per_image": seconds, "smallest_cosine_to_ours": agreement, "failed": failed})

    seconds = harness.take_turns(over_networks(one, compiled[best], params, inputs), options.rounds)
    title = f"Over {len(params)} encoders, {best} images or their share, {name}"
    harness.show_ratios(title, seconds, "loop")
    rows += harness.rows(title, seconds, "loop")
    keep(over_networks=seconds)

    if name != "all_bfloat16":  # which the library does not offer
        some = images[: options.library_images]
        networks = [jt.Network(f"n{i}", apply, each) for i, each in enumerate(params)]
        contenders = {"loop, maps stay on the device": (lambda: whole(some), len(networks) * len(some))}
        fewer = min(1024, some[0, :, :, 0].size // 4)
        for label, sketch in (("affinity_matrix", None), ("affinity_matrix, sketches", fewer)):
            run = functools.partial(jt.affinity_matrix, networks, some, sketch=sketch, precision=mode.precision)
            contenders[label] = run, len(networks) * len(some)
        seconds = harness.take_turns(contenders, options.rounds)
        title = f"The whole job over {len(networks)} encoders, {len(some)} images, {name}; points on disk or not"
        reference = next(iter(contenders))
        harness.show_ratios(title, seconds, reference)
        rows += harness.rows(title, seconds, reference)
        keep(library=seconds)
    return record


def _smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Over the rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[40, 100, 200], help="images at a time, rising")
    parser.add_argument("--library-images", type=int, default=100, help="for affinity_matrix, whose points go to disk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    options = parser.parse_args(arguments)
    # JAX would take three quarters of the memory before PyTorch can have any.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.55")
    images = np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8)
    params = [taskonomy_params(seed) for seed in range(options.networks)]
    module = None
    if importlib.util.find_spec("torch"):
        from benchmarks.torch_peer import Encoder as module
    rows = []
    for name in options.modes:
        record = measure(name, taskonomy.encode, module, params, images, options)
        rows += [harness.Row(**row) for row in record["rows"]]
    harness.show("One device", {"accelerator": rows})


if __name__ == "__main__":
    main()
