"""The commands `jaxtransfer convert ...`, which bring networks into a zoo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxtransfer.cli.arguments import import_modules, parse_rgb, parse_size
from jaxtransfer.cli.console import print_error, print_line, progress_bar, require_extra
from jaxtransfer.cli.options import Import, WeightsDir, ZooDir

if TYPE_CHECKING:
    import torch

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

_Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAMES...",
        help="Names of networks in the hub, directories in the hub's layout, or text files (.txt) with a name a line.",
    ),
]
_OneName = Annotated[
    str | None, typer.Option(help="Name of the network in the zoo, if there is one.", show_default="that in the hub")
]
_Representation = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYER",
        help="What the network returns: the path of a submodule, the name of an output, or pre-head; may be repeated.",
        show_default="what goes into the head; for files their output",
    ),
]
_Tokens = Annotated[
    Literal["all", "class", "mean", "grid"] | None,
    typer.Option(
        help="What is kept of tokens: all, the class token, the mean of the image's patches, or their grid.",
        show_default="all",
    ),
]
_List = Annotated[bool, typer.Option("--list", help="Print the layers that can be chosen, and add nothing.")]
_RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights", help="Draw fresh weights with a fixed seed, as a control, instead of loading them."
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
    representation: _Representation = None,
    tokens: _Tokens = None,
    list_: _List = False,
    mean: _Mean = None,
    std: _Std = None,
    import_: Import = None,
) -> None:
    """Convert a program that torch.export has saved."""
    import_modules(import_ or ())
    scaling = _scaling(mean, std)
    with require_extra("torch", "torch"):
        from jaxtransfer.converters import torch_export
        from jaxtransfer.networks.zoo import Zoo

        if list_:
            _print_layers(torch_export.layers_of_file(file))
            return
        torch_export.convert(
            file, Zoo(zoo), name, representation=representation or (), tokens=tokens or "all", **scaling
        )
    print_line(f"The zoo {zoo} now has {name}.")


def _add_hub(hub: Literal["timm", "torchvision", "transformers"], description: str) -> None:
    """Adds the command of a hub; those of all hubs have the same arguments."""

    @convert.command(hub, help=description)
    def convert_hub(
        names: _Names,
        zoo: ZooDir,
        representation: _Representation = None,
        tokens: _Tokens = None,
        name: _OneName = None,
        random_weights: _RandomWeights = False,
        list_: _List = False,
    ) -> None:
        names = [name for given in names for name in _read_names(given)]
        with require_extra(hub, hub, "torch"):
            from jaxtransfer.converters import hubs
            from jaxtransfer.networks.zoo import Zoo

            if list_:
                for hub_name in names:
                    _print_layers(hubs.layers_of(hub, hub_name, random_weights=random_weights))
                return
            with progress_bar("Converting") as advance:
                added, kept, failed = hubs.convert(
                    hub,
                    names,
                    Zoo(zoo),
                    representation=representation or (),
                    tokens=tokens,
                    random_weights=random_weights,
                    name=name,
                    progress=advance,
                )
        if added or kept:
            already = f" It already had: {', '.join(kept)}." if kept else ""
            print_line(f"Added to the zoo {zoo}: {', '.join(added) or 'nothing'}.{already}")
        for reason in failed.values():
            print_error(f"Error: {reason}")
        if failed:
            raise typer.Exit(1 if added or kept else 2)


_add_hub("timm", "Convert networks of timm by name, with the preprocessing that timm has for them.")
_add_hub("torchvision", "Convert networks of torchvision by name, with the preprocessing of their weights.")
_add_hub(
    "transformers",
    "Convert networks of Hugging Face transformers, by repository or directory, with their image processors.",
)


def _read_names(given: str) -> list[str]:
    """Returns a name, or those in a text file: one a line, after a `#` comments."""
    if not given.endswith(".txt"):
        return [given]
    lines = [line.partition("#")[0].strip() for line in Path(given).read_text().splitlines()]
    return [line for line in lines if line]


def _scaling(mean: str | None, std: str | None) -> dict[str, Any]:
    """Returns the mean and standard deviation that are given; for others the converters have ImageNet's."""
    given = {"mean": parse_rgb("--mean", mean), "std": parse_rgb("--std", std)}
    return {key: value for key, value in given.items() if value is not None}


def _print_layers(layers: "dict[str, torch.Tensor]") -> None:
    for name, value in layers.items():
        print_line(_layer(name, value.shape))


def _layer(name: str, shape: tuple[int, ...]) -> str:
    from jaxtransfer.networks.outputs import kind_of_shape

    return f"{name}  {'x'.join(map(str, shape[1:]))}  {kind_of_shape(shape)}"


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
            help="Value or node of the graph that the network gives, or deepest, the last value with the fewest "
            "places; may be repeated.",
            show_default="what a classifier's last layer reads, or the output",
        ),
    ] = None,
    list_: _List = False,
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
    scaling = _scaling(mean, std)
    with require_extra("onnx", "onnx", "google"):
        from jaxtransfer.converters.onnx_network import read_onnx
        from jaxtransfer.networks.zoo import Zoo

        read = read_onnx(file, size=pixels)
    if list_:
        for value, shape in read.layers().items():
            print_line(f"{value}  {shape}" if isinstance(shape, str) else _layer(value, (1, *shape)))
        return
    chosen = representation and (representation if len(representation) > 1 else representation[0])
    network = read.network(name or file.stem, chosen, read.preprocess(**scaling))
    Zoo(zoo).add(network, source=read.source)
    print_line(" ".join([f"The zoo {zoo} now has {network.name}.", *read.source["notes"]]))
