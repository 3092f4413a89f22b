"""Represents a PyTorch program as data: a list of ATen operations that JAX executes."""

import dataclasses

from jaxtyping import Array, Float

from jaxtransfer.aten import (  # noqa: F401  fill OPS
    algebra,
    elementary,
    elementwise,
    indexing,
    layers,
    normalisation,
    ordering,
    recurrent,
    sampling,
    shaping,
    solving,
    spectral,
    windows,
)
from jaxtransfer.aten.table import OPS
from jaxtransfer.networks.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class AtenProgram(Program):
    """Runs a PyTorch network as a pure function `program(params, images)`; see `Program`."""

    ops = OPS

    def arrange(self, images: Float[Array, "images h w channels"]) -> Float[Array, "images channels h w"]:
        """Arranges images with their channels first."""
        return images.transpose(0, 3, 1, 2)
