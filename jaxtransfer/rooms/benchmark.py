"""What it takes to try a measure of transferability: trained networks, images to look at, and the transfer measured."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import read_records
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.rooms.sampling import sample_scene
from jaxtransfer.rooms.tasks import TASKS
from jaxtransfer.rooms.view import render

_PLACE = Path(__file__).parent
# Training, test and transfer draw their rooms from hashes of those words.
_PROBE = int.from_bytes(b"look")
_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Transfers:
    """How well sources transferred to targets: a small readout on the frozen encoder, trained on few examples.

    Losses are in units of the target: of squared losses, variances of the label; else nats. How they were measured is
    in docs/rooms.md.

    Attributes:
        sources: The tasks of the encoders; then "random", an encoder with fresh weights, and "scratch": encoder and
            readout learn from the target's examples alone.
        targets: The tasks.
        loss: On examples that nobody was trained on, mean over seeds; >= 0.
        stderr: Standard errors of that, over seeds and examples.
        prior: The loss of the best answer that knows nothing of the image.
        affinity: Taskonomy's ordinal affinity of the other tasks' encoders: they sum to 1 for a target, and larger is
            better. NaN where there is none: of a target's own encoder, "random" and "scratch".
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    loss: Float[np.ndarray, "sources targets"]
    stderr: Float[np.ndarray, "sources targets"]
    prior: Float[np.ndarray, " targets"]
    affinity: Float[np.ndarray, "sources targets"]


class _Shipped(Zoo):
    """The zoo in the package, which all programs share."""

    def add(self, network: Network, *, source: Mapping[str, Any] | None = None) -> None:
        """Refuses."""
        raise JaxTransferError(
            f"Network {network.name!r} cannot be added to the zoo of Rooms, which is a part of jaxtransfer; make one "
            "of your own: Zoo(DIRECTORY)."
        )


def zoo() -> Zoo:
    """The trained encoders of Rooms: one for every task, and further seeds as `<task>-seed1`, `<task>-seed2`.

    All have one architecture (`jaxtransfer.rooms.networks`), but that `colorization` sees one channel. A network's
    representation is [images, 8, 8, 64], its weights are float16, and its manifest says how it was trained and what it
    has learned. Nothing can be added.
    """
    return _Shipped(_PLACE / "zoo")


def probe(count: int, seed: int = 0, size: int = 64) -> UInt8[np.ndarray, "count size size 3"]:
    """Images of rooms that no network was trained or tested on.

    Args:
        count: How many; 1 or more.
        seed: Each has rooms of its own; image i depends on the seed and on i alone.
        size: Height and width in pixels. The program is compiled once for each.

    Returns:
        sRGB, 0 to 255.
    """
    key = jax.random.fold_in(jax.random.key(_PROBE), seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(-(-count // _AT_ONCE) * _AT_ONCE))
    return np.concatenate([_images(some, size) for some in keys.reshape(-1, _AT_ONCE)])[:count]


@functools.partial(jax.jit, static_argnames="size")
def _images(keys: PRNGKeyArray, size: int) -> UInt8[Array, "images size size 3"]:
    def image(key: PRNGKeyArray) -> UInt8[Array, "size size 3"]:
        scene = sample_scene(key)
        return jnp.round(255 * render(scene, scene.camera, size).image).astype(jnp.uint8)

    return jax.lax.map(image, keys)


def transfers() -> Transfers:
    """The transfers of Rooms' encoders as they were measured (`python -m benchmarks.rooms transfer`)."""
    rows = {(row["source"], row["target"]): row for row in read_records(_PLACE / "transfers.csv")}
    sources = tuple(dict.fromkeys((*TASKS, *(source for source, _ in rows))))

    def table(column: str) -> Float[np.ndarray, "sources targets"]:
        return np.array([[float(rows[source, target][column] or "nan") for target in TASKS] for source in sources])

    return Transfers(sources, tuple(TASKS), table("loss"), table("stderr"), table("prior")[0], table("affinity"))
