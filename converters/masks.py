"""Gives masks that do not depend on the images a size that is known, so that they can select in JAX."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

_SELECTING = frozenset(
    {
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten._unsafe_index_put.default,
    }
)


def fix_sizes(graph: Graph, exported: ExportedProgram) -> None:
    """Replaces masks among indices by the places where they are True, if buffers and constants decide them."""
    known = _known_inputs(graph, exported)
    for node in list(graph.nodes):
        if node.target not in _SELECTING:
            continue
        tensor, indices, *rest = node.args
        places: list[Any] = []
        for index in indices:
            value = _evaluate(index, known) if isinstance(index, Node) and _is_mask(index) else None
            if value is None:
                places.append(index)
                continue
            with graph.inserting_before(node):
                table = graph.call_function(
                    torch.ops.aten.nonzero_static.default, (index,), {"size": int(value.count_nonzero())}
                )
                columns = [
                    graph.call_function(torch.ops.aten.select.int, (table, 1, axis)) for axis in range(value.ndim)
                ]
            for new in (table, *columns):
                new.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
            places.extend(columns)
        node.args = (tensor, places, *rest)


def _is_mask(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)


def _known_inputs(graph: Graph, exported: ExportedProgram) -> dict[Node, Any]:
    """Returns the buffers and constants; trained weights may differ between networks of the same program."""
    placeholders = (node for node in graph.nodes if node.op == "placeholder")
    known = {}
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            known[node] = exported.state_dict.get(spec.target or "", exported.constants.get(spec.target or ""))
    return known


def _evaluate(mask: Node, known: Mapping[Node, Any]) -> Any:
    """Computes a mask with PyTorch; returns None if it depends on the images or on trained weights."""
    values, needed = dict(known), {mask}
    for node in reversed(mask.graph.nodes):
        if node in needed and node not in values:
            if not (isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem):
                return None
            needed.update(node.all_input_nodes)
    for node in mask.graph.nodes:
        if node in needed and node not in values:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return values[mask]
