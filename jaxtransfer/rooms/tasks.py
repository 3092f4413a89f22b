"""The 22 tasks, and examples for all of them at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxtransfer.rooms import definitions
from jaxtransfer.rooms.furniture import CATEGORIES, OBJECTS
from jaxtransfer.rooms.room_types import ROOMS
from jaxtransfer.rooms.sampling import sample_scene
from jaxtransfer.rooms.scene import Scene
from jaxtransfer.rooms.view import View, render

NOISE = 0.15
"""Standard deviation of the noise that denoising removes."""

Example = dict[str, Array]


def _multiply(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return (a[0] * b[0] - a[1] * b[1]) % 3, (a[0] * b[1] + a[1] * b[0]) % 3


def _permutations() -> np.ndarray:
    """The maps x -> a x + b of the field of nine elements, a a square: two of them agree on one tile at most."""
    field = [(row, column) for row in range(3) for column in range(3)]
    products = [[_multiply(a, x) for x in field] for a in ((1, 0), (0, 1), (2, 0), (0, 2))]
    return np.array(
        [[(p + b) % 3 * 3 + (q + c) % 3 for p, q in product] for product in products for b, c in field], np.int32
    )


PERMUTATIONS = _permutations()
"""Arrangements of the nine tiles of a jigsaw, [36, 9]: which tile of the image, row by row, each place shows."""


def _image(example: Example) -> Float[Array, "size size 3"]:
    return example["image"]


def _noisy(example: Example) -> Float[Array, "size size 3"]:
    image = example["image"]
    noise = jax.random.normal(jax.random.key(example["seed"]), image.shape)
    return jnp.clip(image + NOISE * noise, 0, 1)


def _masked(example: Example) -> Float[Array, "size size 3"]:
    size = example["image"].shape[0]
    return example["image"].at[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4].set(0.5)


def _grey(example: Example) -> Float[Array, "size size 3"]:
    return jnp.repeat(definitions.grey(example["image"])[..., None], 3, axis=-1)


def _shuffled(example: Example) -> Float[Array, "size size 3"]:
    """Nine tiles of a third of the image, rounded down, in another order; what is left over repeats the border."""
    size = example["image"].shape[0]
    side = size // 3
    tiles = (
        example["image"][: 3 * side, : 3 * side].reshape(3, side, 3, side, 3).swapaxes(1, 2).reshape(9, side, side, 3)
    )
    tiles = tiles[jnp.asarray(PERMUTATIONS)[example["jigsaw"]]]
    image = tiles.reshape(3, 3, side, side, 3).swapaxes(1, 2).reshape(3 * side, 3 * side, 3)
    rest = size - 3 * side
    return jnp.pad(image, ((0, rest), (0, rest), (0, 0)), mode="edge")


def _pair(example: Example) -> Float[Array, "2 size size 3"]:
    return jnp.stack([example["image"], example["second_image"]])


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is asked.

    Attributes:
        name: Taskonomy's.
        group: "2D", "3D", "geometric" or "semantic".
        label: The entry of an example that is to be predicted.
        outputs: How many numbers are predicted: channels of a pixel, components of a vector, classes.
        pixels: Whether that many for every pixel.
        loss: "squared" for numbers, "logistic" for yes-no questions, "softmax" for classes; of the last two, negative
            labels are left out.
        views: Images that the network sees.
        input: From one example to what the network sees, [size, size, 3] in [0, 1]; [2, size, size, 3] for two views.
    """

    name: str
    group: Literal["2D", "3D", "geometric", "semantic"]
    label: str
    outputs: int
    pixels: bool = True
    loss: Literal["squared", "logistic", "softmax"] = "squared"
    views: int = 1
    input: Callable[[Example], Float[Array, "..."]] = _image


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("autoencoding", "2D", "image", 3),
        Task("denoising", "2D", "image", 3, input=_noisy),
        Task("inpainting", "2D", "image", 3, input=_masked),
        Task("colorization", "2D", "colorization", 2, input=_grey),
        Task("edge_texture", "2D", "edge_texture", 1),
        Task("keypoints2d", "2D", "keypoints2d", 1),
        Task("segment_unsup2d", "2D", "segment_unsup2d", 6, loss="logistic"),
        Task("jigsaw", "2D", "jigsaw", len(PERMUTATIONS), pixels=False, loss="softmax", input=_shuffled),
        Task("depth_zbuffer", "3D", "depth_zbuffer", 1),
        Task("depth_euclidean", "3D", "depth_euclidean", 1),
        Task("normal", "3D", "normal", 3),
        Task("reshading", "3D", "reshading", 1),
        Task("edge_occlusion", "3D", "edge_occlusion", 1),
        Task("keypoints3d", "3D", "keypoints3d", 1),
        Task("curvature", "3D", "curvature", 2),
        Task("segment_unsup25d", "3D", "segment_unsup25d", 6, loss="logistic"),
        Task("room_layout", "geometric", "room_layout", 6, pixels=False),
        Task("vanishing_point", "geometric", "vanishing_point", 9, pixels=False),
        Task("nonfixated_pose", "geometric", "nonfixated_pose", 6, pixels=False, views=2, input=_pair),
        Task("segment_semantic", "semantic", "segment_semantic", len(CATEGORIES), loss="softmax"),
        Task("class_object", "semantic", "class_object", len(OBJECTS), pixels=False, loss="softmax"),
        Task("class_scene", "semantic", "class_scene", len(ROOMS), pixels=False, loss="softmax"),
    )
}
"""The tasks by name."""


def labels(scene: Scene, view: View) -> Example:
    """All labels of a view, by the names of their functions in `rooms.definitions`.

    And `jigsaw`, the number of an arrangement in `PERMUTATIONS`.

    Args:
        scene: The room.
        view: What the scene's camera sees.
    """
    of_image = (
        definitions.colorization,
        definitions.edge_texture,
        definitions.keypoints2d,
        definitions.segment_unsup2d,
    )
    of_view = (
        definitions.depth_zbuffer,
        definitions.depth_euclidean,
        definitions.normal,
        definitions.reshading,
        definitions.edge_occlusion,
        definitions.keypoints3d,
        definitions.curvature,
        definitions.segment_unsup25d,
        definitions.segment_semantic,
    )
    of_scene = (
        definitions.room_layout,
        definitions.vanishing_point,
        definitions.nonfixated_pose,
        definitions.class_scene,
    )
    return {
        "jigsaw": (scene.seed % len(PERMUTATIONS)).astype(jnp.int32),
        "class_object": definitions.class_object(view, scene),
        **{define.__name__: define(view.image) for define in of_image},
        **{define.__name__: define(view) for define in of_view},
        **{define.__name__: define(scene) for define in of_scene},
    }


def example(key: PRNGKeyArray, size: int = 64) -> Example:
    """One example for every task.

    Args:
        key: The same key gives the same example.
        size: Height and width of the images in pixels.

    Returns:
        `image` and `second_image` (what the second camera sees), [size, size, 3] in [0, 1]; `seed`, which starts the
        noise of denoising; and all labels.
    """
    scene = sample_scene(key)
    cameras = jax.tree.map(lambda *leaves: jnp.stack(leaves), scene.camera, scene.second_camera)
    views = jax.lax.map(lambda camera: render(scene, camera, size), cameras)
    view = jax.tree.map(lambda leaf: leaf[0], views)
    return {"image": view.image, "second_image": views.image[1], "seed": scene.seed, **labels(scene, view)}


@functools.partial(jax.jit, static_argnames=("count", "size"))
def examples(key: PRNGKeyArray, count: int, size: int = 64) -> Example:
    """Examples for all tasks.

    Args:
        key: Example i depends on it and on i alone.
        count: How many; `image` and labels of one example at 64 pixels take 0.7 MB.
        size: Height and width of the images in pixels.

    Returns:
        As of `example`, with an axis for the examples in front.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.lax.map(functools.partial(example, size=size), keys)
