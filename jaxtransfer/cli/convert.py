"""The commands `jaxtransfer convert ...`, which bring networks into a zoo."""

from pathlib import Path
from typing import Annotated

import typer

from jaxtransfer.cli.arguments import parse_rgb
from jaxtransfer.cli.console import print_line, progress_bar, require_extra
from jaxtransfer.cli.options import WeightsDir, ZooDir

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
    name: Annotated[str, typer.Option(help="Name of the network in the zoo.")],
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Mean of each colour, subtracted from images with values in [0, 1].",
            show_default="ImageNet's",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Standard deviation of each colour, by which images are then divided.",
            show_default="ImageNet's",
        ),
    ] = None,
) -> None:
    """Convert a program that torch.export has saved."""
    scaling = {"mean": parse_rgb("--mean", mean), "std": parse_rgb("--std", std)}
    with require_extra("torch", "torch"):
        from jaxtransfer.converters import torch_export
        from jaxtransfer.networks.zoo import Zoo

        given = {key: value for key, value in scaling.items() if value is not None}
        torch_export.convert(file, Zoo(zoo), name, **given)
    print_line(f"The zoo {zoo} now has {name}.")
