"""Defines the 22 tasks and makes examples with the labels of all of them."""

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
    """Returns the maps x -> a x + b of the field of nine elements with a a nonzero square.

    Any two of them agree on at most one tile.
    """
    field = [(row, column) for row in range(3) for column in range(3)]
    products = [[_multiply(a, x) for x in field] for a in ((1, 0), (0, 1), (2, 0), (0, 2))]
    return np.array(
        [[(p + b) % 3 * 3 + (q + c) % 3 for p, q in product] for product in products for b, c in field], np.int32
    )


PERMUTATIONS = _permutations()
"""Permutations of the nine tiles of a jigsaw, [36, 9]: the tile that is shown at each place, both row by row."""


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
    """Permutes the nine tiles of the image; rows and columns beyond three tiles repeat the border."""
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
    """A task: what the network sees, what it predicts, and with which loss.

    Attributes:
        name: The task's name in Taskonomy.
        group: "2D", "3D", "geometric" or "semantic".
        label: Key of the label in an example.
        outputs: Number of outputs: channels of a pixel, components of a vector, or classes.
        pixels: Whether the outputs are predicted at every pixel instead of once for the image.
        loss: "squared" for numbers, "logistic" for yes-no labels, "softmax" for classes; the last two ignore negative
            labels.
        views: Number of images that the network sees.
        input: Function from one example to the network's input, [size, size, 3] in [0, 1]; [2, size, size, 3] for two
            views.
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
"""All tasks by name."""


def labels(scene: Scene, view: View) -> Example:
    """Computes all labels of a view.

    Args:
        scene: The scene.
        view: The view of the scene's camera (`scene.camera`).

    Returns:
        Labels under the names of their functions in `rooms.definitions`, and `jigsaw`, an index in `PERMUTATIONS`.
    """
    image_labels = (
        definitions.colorization,
        definitions.edge_texture,
        definitions.keypoints2d,
        definitions.segment_unsup2d,
    )
    view_labels = (
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
    scene_labels = (
        definitions.room_layout,
        definitions.vanishing_point,
        definitions.nonfixated_pose,
        definitions.class_scene,
    )
    return {
        "jigsaw": (scene.seed % len(PERMUTATIONS)).astype(jnp.int32),
        "class_object": definitions.class_object(view, scene),
        **{define.__name__: define(view.image) for define in image_labels},
        **{define.__name__: define(view) for define in view_labels},
        **{define.__name__: define(scene) for define in scene_labels},
    }


def example(key: PRNGKeyArray, size: int = 64) -> Example:
    """Renders one example with the labels of all tasks.

    Args:
        key: Random key; the same key gives the same example.
        size: Height and width of the images in pixels.

    Returns:
        `image` and `second_image` (the view of the second camera), [size, size, 3] in [0, 1]; `seed`, the seed of the
        noise of denoising; and all labels (see `labels`).
    """
    scene = sample_scene(key)
    cameras = jax.tree.map(lambda *leaves: jnp.stack(leaves), scene.camera, scene.second_camera)
    views = jax.lax.map(lambda camera: render(scene, camera, size), cameras)
    view = jax.tree.map(lambda leaf: leaf[0], views)
    return {"image": view.image, "second_image": views.image[1], "seed": scene.seed, **labels(scene, view)}


@functools.partial(jax.jit, static_argnames=("count", "size"))
def examples(key: PRNGKeyArray, count: int, size: int = 64) -> Example:
    """Renders examples with the labels of all tasks.

    Args:
        key: Random key; example i depends only on the key and on i.
        count: Number of examples; an example of 64 x 64 pixels takes 0.7 MB.
        size: Height and width of the images in pixels.

    Returns:
        The entries of `example`, with a leading axis of length `count`.

    Compiling the renderer takes seconds; the shapes alone are known without it.

    Examples:
        >>> from jaxtransfer import rooms
        >>> shapes = jax.eval_shape(lambda key: rooms.examples(key, count=5, size=16), jax.random.key(0))
        >>> shapes["image"].shape, shapes["normal"].shape, shapes["class_scene"].shape
        ((5, 16, 16, 3), (5, 16, 16, 3), (5,))
        >>> inputs = jax.eval_shape(jax.vmap(rooms.TASKS["denoising"].input), shapes)
        >>> inputs.shape
        (5, 16, 16, 3)
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.lax.map(functools.partial(example, size=size), keys)
