"""Arguments that commands of several modules take."""

from pathlib import Path
from typing import Annotated

import typer

ZooDir = Annotated[Path, typer.Argument(metavar="ZOO", help="Directory of the zoo (a collection of networks).")]
WeightsDir = Annotated[Path, typer.Argument(metavar="WEIGHTS_DIR", help="Directory for the .pth files.")]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module that defines functions or operations of the zoo's networks, installed or in the current "
        "directory; may be repeated. No other module is imported for a zoo.",
        show_default="jaxtransfer only",
    ),
]
