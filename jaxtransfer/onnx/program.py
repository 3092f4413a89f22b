"""Represents an ONNX graph as data: a list of operators that JAX executes."""

import dataclasses

from jaxtransfer.networks.program import Program
from jaxtransfer.onnx import (  # noqa: F401  fill OPS
    algebra,
    elementwise,
    layers,
    normalisation,
    recurrent,
    shaping,
)
from jaxtransfer.onnx.table import OPS


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxProgram(Program):
    """Runs an ONNX network as a pure function `program(params, images)`; see `Program`.

    The first operators of the program bring the images, whose channels are last, into the graph's own order of axes.
    """

    ops = OPS
