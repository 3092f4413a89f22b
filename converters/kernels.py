"""Stores the kernels of convolutions as XLA uses them, so that no call of a network has to move them."""

import dataclasses
import math
from collections import Counter
from typing import TypeVar

import jax
import numpy as np

from jaxtransfer.networks.program import Node, Program, Weight

_Program = TypeVar("_Program", bound=Program)

_CONVOLUTIONS = frozenset(
    ["aten.convolution.default", "onnx.Conv"]
    + [f"aten.conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")]
)


def with_kernels_as_used(program: _Program, params: dict[str, np.ndarray]) -> tuple[_Program, dict[str, np.ndarray]]:
    """Returns a program and its weights, with the output channels of its kernels last.

    Kernels of a single position, those of transposed convolutions and weights with another use stay as they are.
    """
    arguments = (leaf for node in program.nodes for leaf in jax.tree.leaves((node.args, node.kwargs)))
    uses = Counter(argument.name for argument in arguments if isinstance(argument, Weight))
    stored, nodes = dict(params), list[Node]()
    for node in program.nodes:
        kernel = _kernel(node)
        if kernel is not None and uses[kernel.name] == 1 and math.prod(params[kernel.name].shape[2:]) > 1:
            array = params[kernel.name]
            axes = (*range(2, array.ndim), 1, 0)
            stored[kernel.name] = np.ascontiguousarray(array.transpose(axes))
            node = dataclasses.replace(node, args=(node.args[0], Weight(kernel.name, axes), *node.args[2:]))
        nodes.append(node)
    return dataclasses.replace(program, nodes=tuple(nodes)), stored


def _kernel(node: Node) -> Weight | None:
    """Returns the kernel of a convolution that is a weight."""
    if node.op not in _CONVOLUTIONS or len(node.args) < 2 or not isinstance(node.args[1], Weight):
        return None
    transposed = node.op == "aten.convolution.default" and node.args[6]
    return None if transposed else node.args[1]
