"""The trained encoders, probe images and measured transfer of Rooms, for trying measures."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.files import read_records
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.rooms.sampling import sample_scene
from jaxtransfer.rooms.tasks import TASKS
from jaxtransfer.rooms.view import render

PROTOCOLS = ("frozen", "larger_readout", "finetuned")
"""Names of the ways in which transfer was measured; docs/rooms.md describes them."""

_FOLDER = Path(__file__).parent
# The data for training, testing and transfer come from other keys: hashes of the names of the splits.
_PROBE_SEED = int.from_bytes(b"look")
_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Transfers:
    """The measured transfer from every source to every target: the test loss after training on few examples.

    Squared losses are in variances of the label, all other losses in nats. docs/rooms.md describes how they were
    measured.

    Attributes:
        sources: Names of the source tasks, then "random" (an encoder with untrained weights; not in `finetuned`) and
            "scratch" (encoder and readout both trained on the target's few examples).
        targets: Names of the target tasks.
        loss: Mean loss on held-out examples, averaged over seeds; >= 0.
        stderr: Standard error of `loss` over seeds and examples.
        prior: Loss of the best constant prediction, which ignores the image.
        affinity: Taskonomy's ordinal affinity in [0, 1], larger is better; for each target it sums to 1 over the
            encoders of the other tasks. NaN for the target's own encoder, "random" and "scratch".
        seed_losses: Mean loss of each seed, which has training examples of its own; no seeds for `frozen`, of which
            only the mean was kept.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    loss: Float[np.ndarray, "sources targets"]
    stderr: Float[np.ndarray, "sources targets"]
    prior: Float[np.ndarray, " targets"]
    affinity: Float[np.ndarray, "sources targets"]
    seed_losses: Float[np.ndarray, "seeds sources targets"]


class _ReadOnlyZoo(Zoo):
    """The zoo that ships with the package and cannot be changed."""

    def add(self, network: Network, *, source: Mapping[str, Any] | None = None) -> None:
        """Raises `JaxTransferError`: the zoo is a part of the package."""
        raise JaxTransferError(
            f"Network {network.name!r} cannot be added to the zoo of Rooms, which is a part of jaxtransfer; add it to "
            "a zoo of your own: Zoo(DIRECTORY)."
        )


def zoo() -> Zoo:
    """Returns the zoo of trained encoders: one for every task, and further seeds named `<task>-seed1`, `<task>-seed2`.

    All encoders have the same architecture (`jaxtransfer.rooms.networks`), except that the input of `colorization` has
    one channel instead of three. Each maps [images, 64, 64, channels] to a representation [images, 8, 8, 64]. Weights
    are float16; a network's manifest records its settings and its test loss. The zoo is read-only.

    Examples:
        >>> from jaxtransfer import rooms
        >>> zoo = rooms.zoo()
        >>> "normal" in zoo, "normal-seed2" in zoo
        (True, True)
        >>> network = zoo["normal"]
        >>> images = jnp.zeros((2, 64, 64, 3))
        >>> jax.eval_shape(network.apply, network.params, network.preprocess(images)).shape
        (2, 8, 8, 64)
    """
    return _ReadOnlyZoo(_FOLDER / "zoo")


def probe(count: int, seed: int = 0, size: int = 64) -> UInt8[np.ndarray, "count size size 3"]:
    """Renders probe images: rooms that no encoder was trained or tested on.

    Args:
        count: Number of images; 1 or more.
        seed: Selects the rooms: different seeds give different rooms. Image i depends only on the seed and on i.
        size: Height and width of the images in pixels. Each size compiles a program of its own, which takes seconds.

    Returns:
        sRGB values, 0 to 255.

    Examples:
        >>> from jaxtransfer import rooms
        >>> images = rooms.probe(2)
        >>> images.shape, images.dtype
        ((2, 64, 64, 3), dtype('uint8'))
    """
    key = jax.random.fold_in(jax.random.key(_PROBE_SEED), seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(-(-count // _BATCH) * _BATCH))
    return np.concatenate([_images(batch, size) for batch in keys.reshape(-1, _BATCH)])[:count]


@functools.partial(jax.jit, static_argnames="size")
def _images(keys: PRNGKeyArray, size: int) -> UInt8[Array, "images size size 3"]:
    def image(key: PRNGKeyArray) -> UInt8[Array, "size size 3"]:
        scene = sample_scene(key)
        return jnp.round(255 * render(scene, scene.camera, size).image).astype(jnp.uint8)

    return jax.lax.map(image, keys)


def transfers(protocol: str = "frozen") -> Transfers:
    """Returns the measured transfer from every encoder of Rooms to every task.

    The numbers ship with the package; `python -m benchmarks.rooms transfer` measured them.

    Args:
        protocol: How it was measured: "frozen" (a small readout of the frozen encoder is trained on 500 examples),
            "larger_readout" (a readout like those that the encoders were trained with, on 2,000), or "finetuned"
            (encoder and small readout are trained on 500, from the source's weights).

    Raises:
        JaxTransferError: Another protocol.

    Examples:
        >>> from jaxtransfer import rooms
        >>> measured = rooms.transfers()
        >>> measured.loss.shape
        (24, 22)
        >>> target = measured.targets.index("reshading")
        >>> best = np.nanargmax(measured.affinity[:, target])
        >>> measured.sources[best]
        'normal'
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS, where="in Rooms")
    file = _FOLDER / ("transfers.csv" if protocol == "frozen" else f"transfers_{protocol}.csv")
    rows = {(row["source"], row["target"]): row for row in read_records(file)}
    sources = tuple(dict.fromkeys((*TASKS, *(source for source, _ in rows))))

    def table(column: str) -> Float[np.ndarray, "sources targets"]:
        return np.array([[float(rows[source, target][column] or "nan") for target in TASKS] for source in sources])

    loss = table("loss")
    seeds = [column for column in next(iter(rows.values())) if column.startswith("loss_seed")]
    return Transfers(
        sources,
        tuple(TASKS),
        loss,
        table("stderr"),
        table("prior")[0],
        table("affinity"),
        np.array([table(column) for column in seeds]).reshape(-1, *loss.shape),
    )
