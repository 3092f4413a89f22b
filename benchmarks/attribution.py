"""Measures how many images per second get all three maps of a Taskonomy encoder: ours, PyTorch and Captum.

Run `python -m benchmarks.attribution` from the root of the checkout, after `pip install -e ".[bench]"`.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxtransfer as jt
from benchmarks import harness, torch_peer
from benchmarks.networks import over_networks, taskonomy_params
from jaxtransfer import taskonomy


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="height and width of the images")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each contender")
    parser.add_argument("--networks", type=int, default=3, help="networks for the comparison of loop, lax.map and vmap")
    parser.add_argument(
        "--precision", choices=("float32", "tf32"), default="float32", help="precision of matrix products"
    )
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    options = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    settings = {key: value for key, value in vars(options).items() if key != "out"} | {"torch_device": device}

    images = np.random.default_rng(0).uniform(-0.8, 0.8, (options.batch_size, options.size, options.size, 3))
    ours_images = jnp.asarray(images, jnp.float32)
    torch_images = torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2).copy()).to(device)
    params = [jax.device_put(taskonomy_params(seed)) for seed in range(options.networks)]
    encoder = torch_peer.Encoder(params[0]).to(device)

    def ours() -> Any:
        return jax.block_until_ready(
            jt.attribute(taskonomy.encode, params[0], ours_images, precision=options.precision)
        )

    def peer(maps: Callable[[torch.Tensor], torch_peer.Maps]) -> Callable[[], torch_peer.Maps]:
        def run() -> torch_peer.Maps:
            result = maps(torch_images)
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    batched = peer(torch_peer.batched(encoder))
    contenders = {
        "ours": ours,
        "(a) PyTorch, batched": batched,
        "(b) Captum": peer(torch_peer.captum(encoder)),
        "(c) one by one": peer(torch_peer.one_by_one(encoder)),
    }
    for method, theirs in batched().items():
        a = np.asarray(ours()[method]).reshape(options.batch_size, -1)
        b = theirs.cpu().numpy().transpose(0, 2, 3, 1).reshape(options.batch_size, -1)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        print(f"{method}: smallest cosine between our map and PyTorch's over the images {cosines.min():.6f}")

    seconds = harness.take_turns({k: (run, options.batch_size) for k, run in contenders.items()}, options.rounds)
    shape = " x ".join(map(str, images.shape))
    title = f"Three maps of one Taskonomy encoder, images per second; {shape}, {options.precision}, {device}"
    file = options.out and options.out / f"attribution_{device}_{options.precision}.json"
    about = {"precision": options.precision, "shapes": {"images": images.shape}}
    harness.report(title, seconds, "ours", settings, file, **about, goals={"(a) PyTorch, batched": 1.4})

    half = ours_images[: max(1, options.batch_size // 2)]
    maps = functools.partial(jt.attribute, taskonomy.encode, precision=options.precision)
    seconds = harness.take_turns(over_networks(maps, maps, params, half), options.rounds)
    title = f"Over {options.networks} encoders, {len(half)} images each or their share; images x networks per second"
    file = options.out and options.out / f"attribution_networks_{device}_{options.precision}.json"
    about["shapes"] = {"images": half.shape}
    harness.report(title, seconds, "loop", settings, file, **about)


if __name__ == "__main__":
    main()
