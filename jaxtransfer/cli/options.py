"""Arguments that commands of several modules take."""

from pathlib import Path
from typing import Annotated

import typer

ZooDir = Annotated[Path, typer.Argument(metavar="ZOO", help="Directory of the zoo (a collection of networks).")]
WeightsDir = Annotated[Path, typer.Argument(metavar="WEIGHTS_DIR", help="Directory for the .pth files.")]
