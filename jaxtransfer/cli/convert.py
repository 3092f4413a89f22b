"""The commands `jaxtransfer convert ...`, which bring networks into a zoo."""

from pathlib import Path
from typing import Annotated

import typer

from jaxtransfer.cli.arguments import parse_rgb, parse_size
from jaxtransfer.cli.console import print_line, progress_bar, require_extra
from jaxtransfer.cli.options import WeightsDir, ZooDir

_Name = Annotated[str, typer.Option(help="Name of the network in the zoo.")]
_Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean of each colour, subtracted from images with values in [0, 1].",
        show_default="ImageNet's",
    ),
]
_Std = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Standard deviation of each colour, by which images are then divided.",
        show_default="ImageNet's",
    ),
]

convert = typer.Typer(no_args_is_help=True, help="Convert networks and add them to a zoo.")


@convert.command("taskonomy")
def convert_taskonomy(weights_dir: WeightsDir, zoo: ZooDir) -> None:
    """Convert the .pth files of the visualpriors release."""
    with require_extra("torch", "torch"):
        from jaxtransfer.converters import taskonomy
        from jaxtransfer.networks.zoo import Zoo

        with progress_bar("Converting") as advance:
            added = taskonomy.convert(weights_dir, Zoo(zoo), advance)
    print_line(f"Added to the zoo {zoo}: {', '.join(added) or 'nothing, since it already has all of them'}.")


@convert.command("torch")
def convert_torch(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt2", help="The file that torch.export.save wrote.")],
    zoo: ZooDir,
    name: _Name,
    mean: _Mean = None,
    std: _Std = None,
) -> None:
    """Convert a program that torch.export has saved."""
    scaling = {"mean": parse_rgb("--mean", mean), "std": parse_rgb("--std", std)}
    with require_extra("torch", "torch"):
        from jaxtransfer.converters import torch_export
        from jaxtransfer.networks.zoo import Zoo

        given = {key: value for key, value in scaling.items() if value is not None}
        torch_export.convert(file, Zoo(zoo), name, **given)
    print_line(f"The zoo {zoo} now has {name}.")


@convert.command("onnx")
def convert_onnx(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The file; weights in other files lie beside it.")],
    zoo: ZooDir,
    name: Annotated[
        str | None, typer.Option(help="Name of the network in the zoo.", show_default="that of the file")
    ] = None,
    representation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VALUE",
            help="Value or node of the graph that the network gives, or deepest, the last value with the fewest places; "
            "may be repeated.",
            show_default="what a classifier's last layer reads, or the output",
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Print the values of the graph and their shapes, and add nothing.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HEIGHT,WIDTH",
            help="Pixels of the images, for a network that takes any.",
            show_default="the file's",
        ),
    ] = None,
    mean: _Mean = None,
    std: _Std = None,
) -> None:
    """Convert a network in an ONNX file."""
    pixels = parse_size("--size", size)
    scaling = {"mean": parse_rgb("--mean", mean), "std": parse_rgb("--std", std)}
    with require_extra("onnx", "onnx", "google"):
        from jaxtransfer.converters.onnx_network import read_onnx
        from jaxtransfer.networks.zoo import Zoo

        read = read_onnx(file, size=pixels)
    if list_:
        for value, shape in read.layers().items():
            print_line(f"{value}  {shape if isinstance(shape, str) else 'x'.join(map(str, shape)) or 'a number'}")
        return
    chosen = representation and (representation if len(representation) > 1 else representation[0])
    given = {key: value for key, value in scaling.items() if value is not None}
    network = read.network(name or file.stem, chosen, read.preprocess(**given))
    Zoo(zoo).add(network, source=read.source)
    print_line(" ".join([f"The zoo {zoo} now has {network.name}.", *read.source["notes"]]))
