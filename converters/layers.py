"""Names the values inside an exported network, and lets it return those that are chosen.

A value has the name of an output of the network, such as `last_hidden_state`, or the path of the module that returns
it, such as `layer4` or `blocks.11.norm1`; the second call of a module is `relu@1`. `PRE_HEAD` is the input of the last
operation with weights. A node of the exported graph that is none of these has its own name, such as `add_3`.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputKind, OutputSpec, TensorArgument
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from jaxtransfer.converters.grids import is_grid
from jaxtransfer.converters.lower import needed, user_outputs
from jaxtransfer.errors import JaxTransferError, unknown_name

PRE_HEAD = "pre-head"

Tokens = Literal["all", "class", "mean", "grid"]

_CONVOLUTIONS = frozenset(("aten::conv2d", "aten::convolution"))
_WITH_WEIGHTS = _CONVOLUTIONS | {"aten::linear", "aten::addmm", "aten::matmul", "aten::mm"}


def layers(exported: ExportedProgram) -> dict[str, torch.Tensor]:
    """Returns the values that can be chosen, by their names in the order of computation.

    Args:
        exported: The network.

    Returns:
        The values without their numbers: dtype and shape, whose first axis is the images.
    """
    position = {node: number for number, node in enumerate(exported.graph.nodes)}
    named = _named(exported)
    return {name: named[name].meta["val"] for name in sorted(named, key=lambda name: position[named[name]]) if name}


def output_names(exported: ExportedProgram) -> list[str]:
    """Returns the names of a network's outputs: keys and indices, joined by dots; "" for a single one."""
    return [".".join(path) for path in _paths(exported.module_call_graph[0].signature.out_spec)]


def default_tokens(exported: ExportedProgram, name: str) -> Tokens:
    """Returns which tokens stand for the whole image: the class token, or the mean where there is none."""
    try:
        with_outputs(exported, [name], "class")
    except JaxTransferError:
        return "mean"
    return "class"


def with_outputs(exported: ExportedProgram, names: Sequence[str], tokens: Tokens = "all") -> ExportedProgram:
    """Returns the network that ends in the chosen values, and returns them as one tensor or as a tuple.

    Args:
        exported: The network.
        names: Names of the values; none: the network's own output.
        tokens: What is kept of a value [images, tokens, units]: `class`, the first token; `mean`, the mean of the
            tokens that stand for patches of the image; `grid`, these tokens as [images, h, w, units]; `all`. Other
            values are not changed.

    Raises:
        JaxTransferError: There is no value of that name, or its tokens are not those that are asked for.
    """
    if tokens not in get_args(Tokens):
        raise unknown_name("choice of tokens", tokens, get_args(Tokens))
    if not names and tokens == "all":
        return exported
    module, image = _copy(exported.graph_module), _image(exported).name
    exported = _rebuilt(exported, module, exported.graph_signature, exported.module_call_graph[0])
    named, by_node = _named(exported), {node.name: node for node in module.graph.nodes}
    chosen = []
    for name in names or output_names(exported):
        node = named.get(name) or (_before_head(exported) if name == PRE_HEAD else by_node.get(name))
        if node is None or not _is_layer(node, by_node[image]):
            raise unknown_name("layer", name, [*filter(None, named), PRE_HEAD], where="in this network", at_most=12)
        # Copied, since later operations may change the value in place.
        value = _insert(node, torch.ops.aten.clone.default)
        if name == PRE_HEAD and value.meta["val"].ndim == 4:
            value = _insert(value, torch.ops.aten.mean.dim, [2, 3])
        if value.meta["val"].ndim == 3 and tokens != "all":
            value = _keep_tokens(value, tokens, name, by_node[image].meta["val"].shape[2:])
        chosen.append(value)
    specs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in chosen]
    module.graph.output_node().args = (tuple(chosen),)
    module.recompile()
    call = exported.module_call_graph[0]
    structure = pytree.tree_structure(0 if len(chosen) == 1 else (0,) * len(chosen))
    returned: Any = dataclasses.replace(call.signature, outputs=[spec.arg for spec in specs], out_spec=structure)
    call = dataclasses.replace(call, signature=returned)
    signature = ExportGraphSignature(exported.graph_signature.input_specs, specs)
    return _rebuilt(exported, module, signature, call)


def _copy(module: GraphModule) -> GraphModule:
    """Copies a graph with the names of its nodes; PyTorch's own copy renames those named like a builtin function."""
    copied = copy.deepcopy(module)
    for old, new in zip(module.graph.nodes, copied.graph.nodes, strict=True):
        new.name, new.target = old.name, old.target
    return copied


def _rebuilt(exported: ExportedProgram, module: Any, signature: ExportGraphSignature, call: Any) -> ExportedProgram:
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=exported.state_dict,
        range_constraints=exported.range_constraints,
        module_call_graph=[call, *exported.module_call_graph[1:]],
        example_inputs=exported.example_inputs,
        constants=exported.constants,
        verifiers=exported.verifiers,
    )


def _insert(value: Node, operation: Any, *arguments: Any) -> Node:
    """Inserts an operation on a value right after it."""
    with value.graph.inserting_after(value):
        node = value.graph.call_function(operation, (value, *arguments))
    node.meta = {**value.meta, "val": operation(value.meta["val"], *arguments)}
    return node


def _image(exported: ExportedProgram) -> Node:
    """Returns the node of the network's single input."""
    (name,) = exported.graph_signature.user_inputs
    return next(node for node in exported.graph.nodes if node.name == name)


def _paths(spec: pytree.TreeSpec) -> Iterator[tuple[str, ...]]:
    """Yields the path of each leaf of nested dicts, tuples and the like."""
    if spec.is_leaf():
        yield ()
        return
    children = spec.children()
    keys = spec.context if isinstance(spec.context, list) else getattr(spec.context, "_fields", range(len(children)))
    for key, child in zip(keys, children, strict=True):
        yield from ((str(key), *path) for path in _paths(child))


def _is_layer(node: Any, image: Node) -> bool:
    """Whether a value is a tensor of floats [images, ...], with at least one axis besides the images."""
    value = node.meta.get("val") if isinstance(node, Node) and node.op == "call_function" else None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim < 2:
        return False
    return str(value.shape[0]) == str(image.meta["val"].shape[0])


def _named(exported: ExportedProgram) -> dict[str, Node]:
    """Returns the values that can be chosen: outputs of the network and of its modules."""
    image = _image(exported)
    outputs = dict(zip(output_names(exported), user_outputs(exported.graph, exported), strict=True))
    return _returned(exported, image) | {n: node for n, node in outputs.items() if _is_layer(node, image)}


def _returned(exported: ExportedProgram, image: Node) -> dict[str, Node]:
    """Returns what each call of a module returns: its last value that is used outside, or its last one."""
    calls = {node: {*_calls(node)} for node in exported.graph.nodes}
    last: dict[str, Node] = {}
    used_outside: dict[str, Node] = {}
    for node in exported.graph.nodes:
        for call in calls[node] if _is_layer(node, image) else ():
            last[call] = node
            if any(call not in calls[user] for user in node.users):
                used_outside[call] = node
    return last | used_outside


def _calls(node: Node) -> Iterator[str]:
    """Yields the calls of modules, from the outermost to the innermost, that a node is part of."""
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items() if node.op == "call_function" else ():
        if path and path in key:  # PyTorch adds entries for nodes that belong to no module
            _, mark, number = key.partition("@")
            yield f"{path}{mark}{number}"


def _before_head(exported: ExportedProgram) -> Node | None:
    """Returns the input of the last operation with weights that the network's first output depends on."""
    for node in reversed(needed(user_outputs(exported.graph, exported)[0])):
        name = _schema_name(node)
        if name in _WITH_WEIGHTS:
            given: Any = node.args
            return given[name == "aten::addmm"]
    return None


def _schema_name(node: Node) -> str:
    return getattr(getattr(node.target, "_schema", None), "name", "")


def _keep_tokens(value: Node, tokens: Tokens, name: str, size: tuple[int, int]) -> Node:
    _, count, units = value.meta["val"].shape
    height, width = _patches(value, count, name, size)
    prefix = count - height * width
    if tokens == "class":
        if not prefix:
            raise JaxTransferError(f"The layer {name!r} has no class token: its {count} tokens are all of the grid.")
        return _insert(value, torch.ops.aten.select.int, 1, 0)
    patches = _insert(value, torch.ops.aten.slice.Tensor, 1, prefix)
    if tokens == "mean":
        return _insert(patches, torch.ops.aten.mean.dim, [1])
    return _insert(patches, torch.ops.aten.reshape.default, [-1, height, width, units])


def _patches(value: Node, count: int, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of the largest grid of a convolution before that is no larger than the tokens."""
    convolved = [node.meta["val"].shape[2:] for node in needed(value) if _schema_name(node) in _CONVOLUTIONS]
    grids = [(h, w) for h, w in convolved if h * w <= count and is_grid((h, w), size)]
    if not grids:
        raise JaxTransferError(
            f"The {count} tokens of the layer {name!r} are no grid that a convolution before them has made: "
            "take all of them."
        )
    return max(grids)
