"""Rewrites an exported graph to operations of `jaxtransfer.aten` that change nothing in place.

Most networks consist of operations that are in the table and only need rewriting. The others go through PyTorch's own
decomposition, which takes a hundred times as long.
"""

import copy
import operator
import warnings
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, GraphModule, Node

from jaxtransfer.aten import OPS
from jaxtransfer.converters.masks import fix_sizes
from jaxtransfer.errors import JaxTransferError

# These return their argument itself if there is nothing to do, which their schemas do not always declare.
_MAY_RETURN_THEIR_ARGUMENT = frozenset(
    "aten::" + name
    for name in (
        "dropout feature_dropout alpha_dropout feature_alpha_dropout to type_as flatten positive real resolve_conj "
        "resolve_neg atleast_1d atleast_2d atleast_3d"
    ).split()
)
_UNDECLARED_VIEWS = _MAY_RETURN_THEIR_ARGUMENT | {"aten::_unsafe_view", "aten::conj_physical", "aten::_conj_physical"}


def lower(exported: ExportedProgram) -> tuple[Graph, ExportedProgram]:
    """Rewrites a program so that no operation changes its arguments and, if possible, all are in the table.

    Values that leave a `torch.no_grad` region are detached, which PyTorch's decomposition would not do.

    Returns:
        The graph, and the program with its signature and weights.

    Raises:
        JaxTransferError: A value is changed in place without its gradient, or the program does not say which values
            have gradients; PyTorch cannot decompose it; or it reads memory in an order that is not known.
    """
    graph, exported = _lower(exported)
    fix_sizes(graph, exported)
    _refuse_unknown_memory(graph)
    return graph, exported


def _lower(exported: ExportedProgram) -> tuple[Graph, ExportedProgram]:
    module = copy.deepcopy(exported.graph_module)
    rewritten = _keep_identity_and_gradients(module)
    functional = copy.deepcopy(module).graph
    if _remove_mutation(functional):
        outputs = user_outputs(functional, exported)
        if all(operation(node) in OPS for node in needed(*outputs)):
            return functional, exported
    table = torch.export.default_decompositions()
    for name in OPS:
        packet, _, overload = name.removeprefix("aten.").partition(".")
        for packet_name in (packet, packet + "_"):
            known = getattr(getattr(torch.ops.aten, packet_name, None), overload, None)
            if known is not None:
                table.pop(known, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        if rewritten:
            weights = {id(tensor): tensor for tensor in (*exported.state_dict.values(), *exported.constants.values())}
            exported = copy.deepcopy(exported, weights)
            exported.graph_module.graph = module.graph
        try:
            exported = exported.run_decompositions(table)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise JaxTransferError(f"PyTorch cannot rewrite the network to simpler operations: {reason}") from error
    return exported.graph, exported


def _refuse_unknown_memory(graph: Graph) -> None:
    for node in graph.nodes:
        if operation(node).startswith("aten.as_strided") and not _value(node.args[0]).is_contiguous():
            raise JaxTransferError(
                f"the operation {node.target} {where(node)} reads memory in which axes were permuted before: "
                "call .contiguous() first."
            )


def user_outputs(graph: Graph, exported: ExportedProgram) -> list[Any]:
    """Returns what the network itself returns: the nodes of tensors, and constants."""
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    outputs: Any = graph.output_node().args[0]
    return [output for output, kind in zip(outputs, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]


def needed(*outputs: Node) -> list[Node]:
    """Returns the operations that outputs depend on, in order; checks and unused values are left out."""
    wanted = {*outputs}
    for node in reversed(outputs[0].graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return [node for node in outputs[0].graph.nodes if node in wanted and node.op != "placeholder"]


def operation(node: Node) -> str:
    """Returns the name of a node's operation in the table."""
    name = getattr(node.target, "__name__", "")
    return f"operator.{name}" if getattr(operator, name, None) is node.target else str(node.target)


def arguments(node: Node) -> dict[str, Any]:
    """Returns the arguments of a node by name; without a schema, the keyword arguments alone."""
    schema = _schema(node)
    names = () if schema is None else (argument.name for argument in schema.arguments)
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def where(node: Node) -> str:
    """Describes the module that a node comes from, for error messages."""
    path = module_path(node)
    return f"in module {path}" if path else "in the outermost module"


def module_path(node: Node) -> str:
    """Returns the path of the innermost module of a node, such as `blocks.0.bn1`; empty for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def _schema(node: Node) -> Any:
    return getattr(node.target, "_schema", None)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, Node) else None


# --- Information that a decomposition loses ---------------------------------------------------------------------


def _keep_identity_and_gradients(module: GraphModule) -> bool:
    """Rewrites what PyTorch's decomposition would lose: which values are one tensor, and which have no gradient.

    Operations that return their argument itself are removed, `detach_` becomes `detach`, and the operations of
    `torch.no_grad` and `torch.enable_grad` regions replace the calls of the regions.

    Returns:
        Whether anything was rewritten.
    """
    inside = [_keep_identity_and_gradients(child) for child in module.children() if isinstance(child, GraphModule)]
    rewritten = any(inside)
    _refuse_cut_regions(module.graph)
    for node in list(module.graph.nodes):
        argument: Any = node.args[0] if node.args else None
        if _returns_its_argument(node):
            node.replace_all_uses_with(argument)
            module.graph.erase_node(node)
        elif node.target is torch.ops.aten.detach_.default:
            node.target = torch.ops.aten.detach.default
            for user in list(argument.users):
                if user > node:
                    user.replace_input_with(argument, node)
        elif node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            _inline(module, node)
        else:
            continue
        rewritten = True
    module.recompile()
    return rewritten


def _refuse_cut_regions(graph: Graph) -> None:
    """Refuses graphs in which `torch.export` has lost a `torch.no_grad` region within `torch.autocast`.

    It cuts the autocast region into three or more consecutive ones and does not keep which of them had no gradient.
    """
    pieces, last = 0, None
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            mode = node.args[:4] if node.target is torch.ops.higher_order.wrap_with_autocast else None
            pieces, last = (pieces + 1 if mode is not None and mode == last else 1), mode
            if pieces == 3:
                raise JaxTransferError(
                    "a torch.autocast region seems to hold a torch.no_grad region, which torch.export does not keep: "
                    "export the network without autocast."
                )


def _inline(module: GraphModule, call: Node) -> None:
    given: Any = call.args
    enabled, region, *inputs = given
    graph, name = module.graph, region.target
    inside: Any = module.get_submodule(name)
    copies = dict(zip((node for node in inside.graph.nodes if node.op == "placeholder"), inputs, strict=True))
    with graph.inserting_before(call):
        for node in inside.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta["no_grad"] = not enabled
            if node.op == "get_attr":
                copies[node].target = f"{name}.{node.target}"
        for user in list(call.users):  # a user takes one output of the region
            output = copies[inside.graph.output_node().args[0][user.args[1]]]
            user.replace_all_uses_with(output if enabled else _detach(graph, output))
            graph.erase_node(user)
    graph.erase_node(call)


def _detach(graph: Graph, output: Node) -> Node:
    """Detaches the output of a region, unless it comes from outside the region."""
    if not output.meta.get("no_grad") or not isinstance(_value(output), torch.Tensor):
        return output
    detached = graph.call_function(torch.ops.aten.detach.default, (output,))
    detached.meta = {**output.meta, "no_grad": False}
    return detached


def _returns_its_argument(node: Node) -> bool:
    schema, given = _schema(node), arguments(node)
    if schema is None or schema.name not in _MAY_RETURN_THEIR_ARGUMENT:
        return False
    if given.get("copy") or given.get("memory_format") not in (None, torch.preserve_format):
        return False
    old, new = _value(node.args[0]), _value(node)
    return old.dtype == new.dtype and old.ndim == new.ndim


# --- Changes in place ------------------------------------------------------------------------------------------


def _remove_mutation(graph: Graph) -> bool:
    """Replaces operations that change their first argument by operations that return a new value.

    Returns:
        False if that is not enough: the memory belongs to a weight, or to another value that is used later.
    """
    owner: dict[Node, Node] = {}  # the node in whose memory a value lies
    without_gradient: set[Node] = set()
    for node in list(graph.nodes):
        source = shares_memory_with(node)
        owner[node] = node if source is None else owner[source]
        if node.meta.get("no_grad") or node.target is torch.ops.aten.detach.default or source in without_gradient:
            without_gradient.add(node)
        schema = _schema(node)
        if schema is None or not schema.is_mutable:
            continue
        if source is None or owner[node].op == "placeholder":
            return False
        later = {n for n in owner if owner[n] is owner[node] and any(user > node for user in n.users)}
        later -= {source, node}
        if later - without_gradient if source in without_gradient else node in without_gradient:
            raise JaxTransferError(
                f"the operation {node.target} {where(node)} changes a value in place but not its gradient: "
                "let it make a new value."
            )
        functional = _functional(node)
        if later or functional is None:
            return False
        with graph.inserting_before(node):
            new = graph.call_function(functional, node.args, node.kwargs)
        new.meta = node.meta
        owner[new] = new
        if node in without_gradient:
            without_gradient.add(new)
        for user in list(source.users):
            if user > node:
                user.replace_input_with(source, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        del owner[node]
    return True


def shares_memory_with(node: Any) -> Node | None:
    """Returns the argument that a value is or may be a view of, or None."""
    schema = _schema(node)
    if schema is not None:
        views = schema.name in _UNDECLARED_VIEWS or any(a.alias_info for a in schema.arguments[:1])
    else:
        views = node.target is operator.getitem
    return node.args[0] if views and isinstance(node.args[0], Node) else None


def _functional(node: Any) -> Any:
    """Returns the operation that computes a new value instead of changing the first argument; None if there is none."""
    packet, _, overload = node.target.__name__.partition(".")
    functional = getattr(getattr(torch.ops.aten, packet.removesuffix("_"), None), overload, None)
    # In place, the result is cast to the dtype of the first argument.
    dtypes = {value.dtype for value in map(_value, node.args) if isinstance(value, torch.Tensor)} - {torch.bool}
    return functional if packet.endswith("_") and len(dtypes) <= 1 else None
