"""Examples of the world on disk: rendered once, in order, and read where they are needed."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from jaxtransfer import rooms

_AT_ONCE = 64
_IMAGES = ("image", "second_image")
_SHOWN = (*_IMAGES, "seed", "jigsaw")  # what the inputs of tasks are made of

Progress = Callable[[int, int], None]


class Examples:
    """A part of the world's examples, one memory-mapped array for each entry.

    Images are kept as bytes, other numbers of pixels as float16, and answers to yes-no questions as int8.
    """

    def __init__(self, folder: Path, split: str, count: int, size: int, progress: Progress) -> None:
        """Renders what is not in the folder yet.

        Args:
            folder: Where to.
            split: "train", "test", ...: each has scenes of its own.
            count: How many.
            size: Height and width of the images in pixels.
            progress: Called with examples there and examples wanted.
        """
        key = jax.random.key(int.from_bytes(hashlib.sha256(split.encode()).digest()[:4]))
        place = folder / f"{split}-{size}-{_world()}"
        place.mkdir(parents=True, exist_ok=True)
        finished = place / "finished.json"
        done = json.loads(finished.read_text()) if finished.exists() else 0
        self._arrays: dict[str, np.ndarray] = {}
        for name, kind in _kinds(size).items():
            file = place / f"{name}.npy"
            array = np.load(file, mmap_mode="r+") if file.exists() else np.zeros(0)
            if len(array) < count:
                array, done = np.lib.format.open_memmap(file, "w+", kind.dtype, (count, *kind.shape)), 0
            self._arrays[name] = array
        while done < count:
            batch = rooms.examples(jax.random.fold_in(key, done), _AT_ONCE, size)
            some = min(_AT_ONCE, count - done)
            for name, array in self._arrays.items():
                array[done : done + some] = _packed(name, np.asarray(batch[name]))[:some]
            done += some
            finished.write_text(json.dumps(done))
            progress(done, count)
        self._first, self._count = 0, count

    def part(self, first: int, count: int) -> "Examples":
        """Some consecutive ones of them."""
        some = copy.copy(self)
        some._first, some._count = self._first + first, count
        return some

    def of(self, task: rooms.Task, every: int = 1) -> "Examples":
        """The same ones for one task: what inputs are made of, and its own label as `label`.

        Args:
            task: Which.
            every: Of labels of pixels, every such row and column.
        """
        same = copy.copy(self)
        same._arrays = {name: array for name, array in self._arrays.items() if name in _SHOWN}
        label = self._arrays[task.label]
        same._arrays["label"] = label[:, ::every, ::every] if task.pixels else label
        return same

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "examples ..."]:
        """An entry of all examples, as it is kept."""
        return self._arrays[name][self._first : self._first + self._count]

    def all(self) -> dict[str, Shaped[np.ndarray, "examples ..."]]:
        """All of the examples, as they are kept."""
        return self.some(np.arange(len(self)))

    def some(self, numbers: Int[np.ndarray, " some"]) -> dict[str, Shaped[np.ndarray, "some ..."]]:
        """Some of the examples, as they are kept."""
        return {name: np.asarray(array[self._first + numbers]) for name, array in self._arrays.items()}


def unpacked(example: dict[str, Array]) -> dict[str, Array]:
    """What was kept as the world made it: floating point is float32 and images are in [0, 1]."""

    def one(array: Array) -> Array:
        if array.dtype == jnp.uint8:
            return array.astype(jnp.float32) / 255
        return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return {name: one(array) for name, array in example.items()}


def _packed(name: str, array: np.ndarray) -> np.ndarray:
    if name in _IMAGES:
        return np.round(255 * array).astype(np.uint8)
    if name.startswith("segment"):
        return array.astype(np.int8)
    return array.astype(np.float16) if array.dtype == np.float32 and array.ndim > 2 else array


def _kinds(size: int) -> dict[str, np.ndarray]:
    """Of every entry an example of no numbers, with the shape and type it is kept in."""
    shapes = jax.eval_shape(lambda key: rooms.example(key, size), jax.random.key(0))
    return {name: _packed(name, np.zeros((1, *each.shape), each.dtype))[0] for name, each in shapes.items()}


def _world() -> str:
    """What changes when the code of the world does."""
    files = sorted(Path(rooms.__file__).parent.glob("*.py"))
    of_world = [file for file in files if file.stem not in ("networks", "benchmark", "__init__")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in of_world)).hexdigest()[:12]
