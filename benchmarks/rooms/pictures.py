"""Draws contact sheets: images of many rooms, and all labels of a few."""

from pathlib import Path

import jax
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxtransfer import rooms

_ROWS, _COLUMNS = 6, 8


def _picture(task: rooms.Task, example: rooms.Example) -> np.ndarray | str:
    """Shows a label as an RGB image or as text."""
    label = np.asarray(example[task.label])
    if task.label == "image" or task.name == "jigsaw":
        return np.asarray(task.input(example))
    if task.views == 2:
        return np.asarray(example["second_image"])
    if not task.pixels:
        names = {"class_object": rooms.OBJECTS, "class_scene": tuple(rooms.ROOMS)}.get(task.name)
        if names:
            return names[int(label)] if label >= 0 else "none"
        return "\n".join(" ".join(f"{value:.2f}" for value in row) for row in label.reshape(-1, 3))
    if task.name == "segment_semantic":
        return colormaps["tab20"](label % 20)[..., :3] * np.where(label < 20, 1, 0.5)[..., None]
    if task.name == "normal":
        return (label * [1, -1, -1] + 1) / 2
    if task.name == "colorization":
        return np.concatenate([label + 0.5, np.full_like(label[..., :1], 0.5)], -1).clip(0, 1)
    if task.loss == "logistic":
        return (label[..., :3] + 1) / 2
    if task.label.startswith("depth"):
        return colormaps["viridis_r"](label[..., 0] / label.max())[..., :3]
    return colormaps["magma"](label[..., 0])[..., :3]


def sheet(out: Path, seed: int, size: int) -> None:
    """Writes `OUT_images.png` with images of many rooms, and `OUT_labels.png` with all labels of a few."""
    drawn = rooms.examples(jax.random.key(seed), _ROWS * _COLUMNS, size)
    examples = {name: np.asarray(values) for name, values in drawn.items()}
    images = examples["image"].reshape(_ROWS, _COLUMNS, size, size, 3).swapaxes(1, 2)
    pixels = (255 * images.reshape(_ROWS * size, _COLUMNS * size, 3)).round().astype(np.uint8)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(f"{out}_images.png", optimize=True)

    # A room of each of four types.
    room_types = examples["class_scene"]
    present = [number for number in range(len(rooms.ROOMS)) if (room_types == number).any()]
    chosen = [int(np.flatnonzero(room_types == number)[0]) for number in present[:4]]
    figure = Figure(figsize=(1.25 * 8, 1.35 * 3 * len(chosen)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3 * len(chosen), 8)
    for axis in axes.flat:
        axis.set_axis_off()
    for block, number in enumerate(chosen):
        example = {name: jax.numpy.asarray(values[number]) for name, values in examples.items()}
        panels = {"image": np.asarray(example["image"])}
        panels |= {task.name: _picture(task, example) for task in rooms.TASKS.values() if task.name != "autoencoding"}
        for axis, (name, picture) in zip(axes[3 * block : 3 * block + 3].flat, panels.items(), strict=False):
            axis.set_title(name, fontsize=7, pad=2)
            if isinstance(picture, str):
                axis.text(0.5, 0.5, picture, ha="center", va="center", fontsize=7)
            else:
                axis.imshow(np.clip(picture, 0, 1))
    figure.savefig(f"{out}_labels.png", dpi=100)
    with Image.open(f"{out}_labels.png") as image:
        image.convert("RGB").quantize(256).save(f"{out}_labels.png", optimize=True)
