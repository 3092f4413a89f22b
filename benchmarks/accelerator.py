"""Measures many Taskonomy encoders over many images on one device: seconds for maps and matrix, and use of the device.

Meant for a machine that is available for minutes only: after every step, all results so far are written to a JSON file
per mode. Needs JAX, and PyTorch for the comparison with it. Weights are random, which takes the same time as trained
ones. Run `python -m benchmarks.accelerator --out DIRECTORY` from the root of the checkout; `--modes` and `--steps`
split the work over several calls.
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
    """The precision of the passes; maps and their comparison are always float32.

    Attributes:
        dtype: Type of weights and images.
        precision: The `precision` argument of `jaxtransfer.attribute`.
        products: Type and precision of the matrix products whose rate the passes are compared with.
        peer: Whether PyTorch has the same mode.
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
STEPS = ("job", "torch", "loops", "library")
"""What is measured of each mode, after the rates of matrix products and of the passes: see `measure`."""
Maps = dict[str, Float[Array, "images pixels"]]


def maps(apply: ApplyFn, precision: Precision, params: PyTree, images: Float[Array, "images height width 3"]) -> Maps:
    """Computes all three maps as the matrix needs them: float32, averaged over colour channels, flattened."""
    attributions = jt.attribute(apply, params, images, precision=precision)
    return {method: values.mean(-1).reshape(len(images), -1) for method, values in attributions.items()}


@functools.partial(jax.jit, static_argnames="dtype")
def _as_input(images: UInt8[Array, "images height width 3"], dtype: Any) -> Float[Array, "images height width 3"]:
    return (images.astype(jnp.float32) / 255).astype(dtype)


@jax.jit
def _cosines(of_networks: Sequence[Maps]) -> dict[str, Float[Array, "images networks networks"]]:
    return {method: similarities(jnp.stack([maps[method] for maps in of_networks]))[0] for method in of_networks[0]}


def affinities(
    attribute: Callable[[PyTree, Array], Maps],
    params: Sequence[PyTree],
    images: UInt8[np.ndarray, "images height width 3"],
    batch_size: int,
    dtype: Any,
) -> dict[str, Float[np.ndarray, "networks networks"]]:
    """Computes the matrix of every method, batch by batch; the maps never leave the device.

    Args:
        attribute: Compiled function from weights and `batch_size` images to maps.
        params: Weights of every network, on the device.
        images: Images in the host's memory.
        batch_size: Images per batch.
        dtype: Type of the networks' input.
    """
    counts, cosines = [], []
    for batch, count in _batches(images, batch_size):
        inputs = _as_input(jnp.asarray(batch), dtype)
        counts.append(count)
        cosines.append(_cosines([attribute(weights, inputs) for weights in params]))
    result = {}
    for method in cosines[0]:
        by_image = [np.asarray(batch[method])[:count] for batch, count in zip(cosines, counts, strict=True)]
        result[method] = np.concatenate(by_image).mean(0, dtype=np.float64)
    return result


def _batches(images: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of equal size and how many of their images count; the last image fills up the last batch."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]), len(batch)


def torch_contenders(
    module: "torch.nn.Module", images: Float[Array, "images height width 3"], mode: Mode
) -> dict[str, Callable[[], "torch_peer.Maps"]]:
    """Returns PyTorch's contenders: eager, and on a GPU compiled; same device and precision, channels last."""
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
            result = {method: values.mean(1).flatten(1) for method, values in all_maps(x).items()}
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    contenders = {"PyTorch": contender(torch_peer.batched(module))}
    if device == "cuda":
        contenders["PyTorch, compiled"] = contender(torch_peer.batched(module, compiled=True))
    return contenders


def operations(apply: ApplyFn, params: PyTree, shape: tuple[int, ...]) -> float:
    """Counts the floating-point operations of the forward pass of an image, by XLA's analysis for a CPU.

    GPU compilers give no count. A multiplication and an addition are two operations; products with padding are not
    counted.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        weights = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        lowered = jax.jit(apply).lower(weights, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        return lowered.cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript]


class Measurement:
    """The steps of the benchmark in a given mode; each step writes all results so far."""

    def __init__(
        self,
        name: str,
        apply: ApplyFn,
        params: Sequence[PyTree],
        images: UInt8[np.ndarray, "images height width 3"],
        options: argparse.Namespace,
    ) -> None:
        """Prepares the weights; see `measure` for the arguments."""
        self.name, self.mode, self.apply, self.images, self.options = name, MODES[name], apply, images, options
        dtype = self.mode.dtype
        self.work = 3 * operations(apply, params[0], images.shape[1:])
        self.params = jax.device_put(
            [jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights) for weights in params]
        )
        self.compiled: dict[int, Callable[[PyTree, Array], Maps]] = {}
        self.rows: list[harness.Row] = []
        settings = {key: value for key, value in vars(options).items() if key not in ("out", "modes")}
        self.record: dict[str, Any] = {"title": f"Taskonomy encoders, {name}", "settings": settings}

    def write(self, **results: Any) -> None:
        """Adds results to the record and writes it."""
        self.record.update(results, rows=[row._asdict() for row in self.rows])
        if self.options.out:
            file = self.options.out / f"accelerator_{harness.device()}_{self.name}.json"
            harness.store(self.record, file, precision=self.name, shapes={"images": self.images.shape})

    def inputs(self, size: int) -> Float[Array, "size height width 3"]:
        """Returns the first batch of images on the device."""
        return _as_input(jnp.asarray(next(_batches(self.images, size))[0]), self.mode.dtype)

    def measure_products(self) -> float:
        """Measures the rate of large matrix products, in operations per second."""
        side = 8192 if jax.default_backend() == "gpu" else 512
        key = jax.random.key(0)
        dtype, precision = self.mode.products
        a, b = (jax.random.normal(jax.random.fold_in(key, i), (side, side), dtype) for i in range(2))
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        ten_products = (lambda: jax.block_until_ready([product(a, b) for _ in range(10)])), 10
        rate = 2 * side**3 / statistics.median(harness.take_turns({"": ten_products}, 5)[""])
        self.write(product_rate=rate, product_side=side, operations_per_image=self.work)
        print(f"{self.name}: matrix products at {rate / 1e12:.3g} TFLOP/s; "
              f"{self.work / 1e9:.3g} GFLOP per image and network")  # fmt: skip
        return rate

    def measure_passes(self) -> int:
        """Measures the maps of a network at every batch size that fits, and returns the fastest size."""
        passes = []
        all_maps = jax.jit(functools.partial(maps, self.apply, self.mode.precision))
        for size in self.options.batch_sizes:
            inputs = self.inputs(size)
            start = time.perf_counter()
            try:
                self.compiled[size] = all_maps.lower(self.params[0], inputs).compile()
                compile_seconds = time.perf_counter() - start
                run = functools.partial(self.compiled[size], self.params[0], inputs)
                contender = {"": (lambda run=run: jax.block_until_ready(run()), size)}
                seconds = harness.take_turns(contender, self.options.rounds)[""]
            except jax.errors.JaxRuntimeError as error:  # larger batches will not fit either
                self.compiled.pop(size, None)
                self.write(too_large={"batch_size": size, "error": str(error).splitlines()[0]})
                break
            passes.append({"batch_size": size, "compile_seconds": compile_seconds, "seconds_per_image": seconds})
            self.write(passes=passes)
            rate = 1 / statistics.median(seconds)
            print(f"{self.name}: batches of {size}: {rate:.4g} images/s, {rate * self.work / 1e12:.3g} TFLOP/s, "
                  f"compiled in {compile_seconds:.1f} s")  # fmt: skip
        return min(passes, key=lambda result: statistics.median(result["seconds_per_image"]))["batch_size"]

    def affinities(self, size: int, images: UInt8[np.ndarray, "images height width 3"]) -> dict[str, np.ndarray]:
        """Computes the matrices with the program that was compiled for batches of `size` images."""
        return affinities(self.compiled[size], self.params, images, size, self.mode.dtype)

    def measure_job(self, size: int, product_rate: float) -> None:
        """Measures the maps and matrix of all networks over all images, in batches of `size` images."""
        images, networks = self.images, len(self.params)
        result = self.affinities(size, images[:size])  # compiles the comparison
        seconds = []
        for _ in range(self.options.rounds):
            start = time.perf_counter()
            result = self.affinities(size, images)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        rate = self.work * networks * len(images) / median
        job = {"batch_size": size, "seconds": seconds, "operations_per_second": rate,
               "share_of_product_rate": rate / product_rate,
               "affinity": {method: matrix.tolist() for method, matrix in result.items()},
               "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")}  # fmt: skip
        on_gpu = jax.default_backend() == "gpu"
        full_size = on_gpu and (networks, *images.shape[:3]) == (20, 1000, 256, 256)
        # The goal in seconds is for a single kind of GPU in a single mode, the goal for the share is for any GPU.
        timed = full_size and self.name == "all_bfloat16" and "H200" in jax.devices()[0].device_kind
        what = f"{networks} encoders x {len(images)} images of {images.shape[1]}x{images.shape[2]}, {self.name}"
        goal = "20 x 1000 of 256x256 on one"
        self.rows += [
            harness.Row(f"{what}: maps and matrix", f"{median:.3g} s", "", f"{median:.3g} s",
                        f"{goal} H200, all_bfloat16: < 5 s", median < 5 if timed else None),
            harness.Row(f"{what}: share of the matrix products' rate", f"{rate / 1e12:.3g} TFLOP/s",
                        f"{product_rate / 1e12:.3g} TFLOP/s", f"{rate / product_rate:.0%}", f"{goal} GPU: >= 40 %",
                        rate >= 0.4 * product_rate if full_size else None),
        ]  # fmt: skip
        self.write(job=job)
        print(f"{what}: {median:.3g} s, {rate / 1e12:.3g} TFLOP/s, {rate / product_rate:.0%} of matrix products")

    def compare_with_torch(self, size: int, module: "torch.nn.Module") -> None:
        """Measures the maps of the first network, in turns with PyTorch; `module` is that network in PyTorch."""
        inputs = self.inputs(size)
        ours = functools.partial(self.compiled[size], self.params[0], inputs)
        our_maps = {method: np.asarray(values) for method, values in ours().items()}
        contenders: dict[str, tuple[Callable[[], Any], int]] = {"ours": (lambda: jax.block_until_ready(ours()), size)}
        agreement, failed = {}, {}
        for label, run in torch_contenders(module, inputs, self.mode).items():
            try:
                their_maps = {method: values.cpu().numpy() for method, values in run().items()}
            except Exception as error:  # no failure of the peer may end a run on a borrowed machine
                failed[label] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
            agreement[label] = {
                method: _smallest_cosine(values, their_maps[method]) for method, values in our_maps.items()
            }
            contenders[label] = run, size
        seconds = harness.take_turns(contenders, self.options.rounds)
        height, width = self.images.shape[1:3]
        title = f"Maps of one encoder, {size} x {height}x{width}, {self.name}, channels last in PyTorch"
        goals = {"PyTorch, compiled": 2.0} if jax.default_backend() == "gpu" else {}
        harness.show_ratios(title, seconds, "ours")
        self.rows += harness.rows(title, seconds, "ours", goals)
        self.write(peer={"seconds_per_image": seconds, "smallest_cosine_to_ours": agreement, "failed": failed})

    def compare_loops(self, size: int) -> None:
        """Measures a loop over the networks, `lax.map` and `vmap`."""
        attribute = functools.partial(maps, self.apply, self.mode.precision)
        contenders = over_networks(attribute, self.compiled[size], self.params, self.inputs(size))
        seconds = harness.take_turns(contenders, self.options.rounds)
        title = f"Over {len(self.params)} encoders, {size} images or their share, {self.name}"
        harness.show_ratios(title, seconds, "loop")
        self.rows += harness.rows(title, seconds, "loop")
        self.write(over_networks=seconds)

    def compare_library(self) -> None:
        """Measures `affinity_matrix`, with whole maps and sketches on disk, beside the loop of `measure_job`."""
        images = self.images[: self.options.library_images]
        # The loop fills up its last batch, so larger batches than there are images would only add work to it.
        size = max((size for size in self.compiled if size <= len(images)), default=min(self.compiled))
        networks = [jt.Network(f"n{i}", self.apply, weights) for i, weights in enumerate(self.params)]
        units = len(networks) * len(images)
        reference = "loop, maps stay on the device"
        contenders: dict[str, tuple[Callable[[], Any], int]] = {
            reference: (functools.partial(self.affinities, size, images), units)
        }
        buckets = min(1024, images[0, :, :, 0].size // 4)
        for label, sketch in (("affinity_matrix", None), ("affinity_matrix, sketches", buckets)):
            settings = {"methods": jt.METHODS, "sketch": sketch, "precision": self.mode.precision}
            run = functools.partial(jt.affinity_matrix, networks, images, **settings)
            contenders[label] = run, units
        seconds = harness.take_turns(contenders, self.options.rounds)
        title = (f"The whole job over {len(networks)} encoders, {len(images)} images, {self.name}; "
                 f"the loop takes batches of {size}, affinity_matrix writes points to disk")  # fmt: skip
        harness.show_ratios(title, seconds, reference)
        self.rows += harness.rows(title, seconds, reference)
        self.write(library=seconds)


def measure(
    name: str,
    apply: ApplyFn,
    module: "Callable[[PyTree], torch.nn.Module] | None",
    params: Sequence[PyTree],
    images: UInt8[np.ndarray, "images height width 3"],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measures one mode: matrix products, passes, then the steps asked for.

    The steps are the whole "job", the comparisons with "torch", of "loops" over networks, and with the "library".

    Args:
        name: Name of the mode.
        apply: The networks' function.
        module: Function from a network's weights to the same network in PyTorch; None if PyTorch is not installed.
        params: Weights of every network.
        images: Images that all networks see.
        options: `batch_sizes`, `steps`, `rounds`, `library_images` and `out` of the command line.

    Returns:
        The record, as it was written.
    """
    run = Measurement(name, apply, params, images, options)
    product_rate = run.measure_products()
    fastest = run.measure_passes()
    if "job" in options.steps:
        run.measure_job(fastest, product_rate)
    if "torch" in options.steps and module is not None and run.mode.peer:
        run.compare_with_torch(fastest, module(run.params[0]))
    if "loops" in options.steps:
        run.compare_loops(fastest)
    if "library" in options.steps and name != "all_bfloat16":  # a mode that the library does not have
        run.compare_library()
    return run.record


def _smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the smallest cosine between the same rows of two arrays."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="what to measure of each mode")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[40, 100, 200], help="images per batch, in increasing order"
    )
    parser.add_argument(
        "--library-images", type=int, default=100, help="images for affinity_matrix, which writes to disk"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    options = parser.parse_args(arguments)
    # By default JAX reserves three quarters of the memory, which leaves too little for PyTorch.
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
