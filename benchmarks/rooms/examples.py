"""Stores rendered examples on disk: they are rendered in order, once, and read as memory-mapped arrays."""

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

_BATCH = 64
_IMAGES = ("image", "second_image")
_INPUT_ENTRIES = (*_IMAGES, "seed", "jigsaw")  # entries that `Task.input` reads

Progress = Callable[[int, int], None]


class Examples:
    """A split of the examples of Rooms: a memory-mapped array for every entry.

    Images are stored as bytes, other values of pixels as float16, and yes-no labels as int8.
    """

    def __init__(self, folder: Path, split: str, count: int, size: int, progress: Progress) -> None:
        """Renders the examples that the folder lacks.

        Args:
            folder: Folder of all splits.
            split: Name of the split ("train", "test", ...); every split has scenes of its own.
            count: Number of examples.
            size: Height and width of the images in pixels.
            progress: Called with the number of finished examples and of all examples.
        """
        key = jax.random.key(int.from_bytes(hashlib.sha256(split.encode()).digest()[:4]))
        split_folder = folder / f"{split}-{size}-{_code_hash()}"
        split_folder.mkdir(parents=True, exist_ok=True)
        finished = split_folder / "finished.json"
        done = json.loads(finished.read_text()) if finished.exists() else 0
        self._arrays: dict[str, np.ndarray] = {}
        for name, entry in _stored_entries(size).items():
            file = split_folder / f"{name}.npy"
            array = np.load(file, mmap_mode="r+") if file.exists() else np.zeros(0)
            if len(array) < count:
                array, done = np.lib.format.open_memmap(file, "w+", entry.dtype, (count, *entry.shape)), 0
            self._arrays[name] = array
        while done < count:
            batch = rooms.examples(jax.random.fold_in(key, done), _BATCH, size)
            rendered = min(_BATCH, count - done)
            for name, array in self._arrays.items():
                array[done : done + rendered] = _packed(name, np.asarray(batch[name]))[:rendered]
            done += rendered
            finished.write_text(json.dumps(done))
            progress(done, count)
        self._first, self._count = 0, count

    def part(self, first: int, count: int) -> "Examples":
        """Returns `count` consecutive examples, beginning with number `first`."""
        examples = copy.copy(self)
        examples._first, examples._count = self._first + first, count
        return examples

    def of(self, task: rooms.Task, every: int = 1) -> "Examples":
        """Returns the same examples for a task: the entries of its input, and its label as `label`.

        Args:
            task: The task.
            every: Stride of the rows and columns of pixels whose labels are taken.
        """
        examples = copy.copy(self)
        examples._arrays = {name: array for name, array in self._arrays.items() if name in _INPUT_ENTRIES}
        label = self._arrays[task.label]
        examples._arrays["label"] = label[:, ::every, ::every] if task.pixels else label
        return examples

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "examples ..."]:
        """Returns an entry of all examples in stored form."""
        return self._arrays[name][self._first : self._first + self._count]

    def all(self) -> dict[str, Shaped[np.ndarray, "examples ..."]]:
        """Returns all examples in stored form."""
        return self.take(np.arange(len(self)))

    def take(self, numbers: Int[np.ndarray, " taken"]) -> dict[str, Shaped[np.ndarray, "taken ..."]]:
        """Returns the examples with these numbers in stored form."""
        return {name: np.asarray(array[self._first + numbers]) for name, array in self._arrays.items()}


def unpacked(example: dict[str, Array]) -> dict[str, Array]:
    """Converts an example from stored form: floating point to float32 and images to [0, 1]."""

    def unpack(array: Array) -> Array:
        if array.dtype == jnp.uint8:
            return array.astype(jnp.float32) / 255
        return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return {name: unpack(array) for name, array in example.items()}


def _packed(name: str, array: np.ndarray) -> np.ndarray:
    """Converts an entry to stored form."""
    if name in _IMAGES:
        return np.round(255 * array).astype(np.uint8)
    if name.startswith("segment"):
        return array.astype(np.int8)
    return array.astype(np.float16) if array.dtype == np.float32 and array.ndim > 2 else array


def _stored_entries(size: int) -> dict[str, np.ndarray]:
    """Returns zeros with the shape and type of every entry in stored form."""
    shapes = jax.eval_shape(lambda key: rooms.example(key, size), jax.random.key(0))
    return {name: _packed(name, np.zeros((1, *entry.shape), entry.dtype))[0] for name, entry in shapes.items()}


def _code_hash() -> str:
    """Hashes the source code of the renderer, so that examples are rendered again when it changes."""
    files = sorted(Path(rooms.__file__).parent.glob("*.py"))
    of_renderer = [file for file in files if file.stem not in ("networks", "benchmark", "__init__")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in of_renderer)).hexdigest()[:12]
