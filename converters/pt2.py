"""Reads `.pt2` files without running anything that is in them.

`torch.export.load` unpickles objects and evaluates expressions without checks. Therefore the archive is read here
first. PyTorch receives a new archive that holds the graph, after a check of every name and expression that it would
look up or evaluate, and the raw bytes of the weights; pickles are left out.
"""

import ast
import io
import json
import re
import warnings
import zipfile
import zlib
from typing import Any

import torch
from torch.export import ExportedProgram

from jaxtransfer.aten import OPS
from jaxtransfer.errors import JaxTransferError

_GRAPH = "models/model.json"
_TENSORS = ("data/weights", "data/constants")
_FORMAT = ("archive_format", "archive_version", "byteorder", ".data/version")

# Functions that the nodes of a graph may call beside those that the user has registered: PyTorch's own operations, and
# arithmetic on sizes.
_TARGET = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.sym_\w+|math\.\w+"
)
# Syntax and names allowed in sizes, such as Mul(Integer(4), Symbol('s77', positive=True, integer=True)).
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp,
    ast.operator, ast.unaryop,
)  # fmt: skip
_EXPRESSION_NAMES = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Max|Min|Abs|floor"
    r"|ceiling|Eq|Ne|Equality|Unequality|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|And|Or|Not|true|false"
    r"|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|CeilToInt|FloorToInt|RoundToInt|Identity"
)
# Containers in which inputs and outputs may be nested.
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def load_program(data: bytes) -> ExportedProgram:
    """Loads the contents of a `.pt2` file.

    Raises:
        JaxTransferError: The data are something else or damaged, come from another version of PyTorch, or hold more
            than a graph of PyTorch's own operations and plain tensors.
    """
    try:
        archive = _checked(data)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, JaxTransferError):
            raise
        raise JaxTransferError(
            "this is not a .pt2 file as torch.export.save writes it, or it is damaged: save the network again."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        try:
            return torch.export.load(io.BytesIO(archive))
        except Exception as error:  # PyTorch raises many types; all mean the same to a user.
            raise JaxTransferError(
                f"PyTorch {torch.__version__} cannot load this program: export it again with this version, and import "
                "the modules that define its operations (--import)."
            ) from error


def _checked(data: bytes) -> bytes:
    """Builds a new archive from the safe parts of the archive in `data`."""
    source = zipfile.ZipFile(io.BytesIO(data))
    root = next((n.removesuffix(_GRAPH) for n in source.namelist() if n.endswith("/" + _GRAPH)), None)
    if root is None:
        raise JaxTransferError(
            "this is not a .pt2 file: use torch.export.save(torch.export.export(network.eval(), ...), file)."
        )
    contents = {name: source.read(root + name) for name in _FORMAT}
    contents[_GRAPH] = json.dumps(_checked_graph(json.loads(source.read(root + _GRAPH)))).encode()
    contents["data/sample_inputs/model.pt"] = b""
    for folder in _TENSORS:
        name = f"{folder}/model_{folder.removeprefix('data/')}_config.json"
        contents[name] = source.read(root + name)
        for tensor, entry in json.loads(contents[name])["config"].items():
            _check(entry)
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                raise JaxTransferError(f"{tensor} is stored as a pickle, which could run code when it is read.")
            path = f"{folder}/{entry['path_name']}"
            contents[path] = source.read(root + path)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr("model/" + name, content)
    return target.getvalue()


def _checked_graph(program: dict[str, Any]) -> dict[str, Any]:
    """Returns the graph without the parts that are not needed; refuses parts that are unknown."""
    module = program["graph_module"]
    call = module["module_call_graph"][0]
    for spec in (call["signature"]["in_spec"], call["signature"]["out_spec"]):
        _check_container(json.loads(spec)[1])
    program["guards_code"] = []
    module |= {"module_call_graph": [call], "treespec_namedtuple_fields": {}, "metadata": {}}
    _check(program)
    return program


def _check_container(spec: dict[str, Any]) -> None:
    if spec["type"] not in _CONTAINERS or "__enum__" in str(spec["context"]):
        raise JaxTransferError(
            f"the network takes or returns a {spec['type']}: export a module from one array to one array."
        )
    for child in spec["children_spec"]:
        _check_container(child)


def _check(data: Any) -> None:
    """Checks every name and expression in JSON data that PyTorch would look up or evaluate."""
    if isinstance(data, list):
        for item in data:
            _check(item)
    if not isinstance(data, dict):
        return
    if "target" in data and "inputs" in data:
        target = data["target"]
        if not _TARGET.fullmatch(target) and not (target.startswith("torch.ops.") and target[10:] in OPS):
            raise JaxTransferError(
                f"the operation {target} is not one of PyTorch's own: rewrite the network without it, or import the "
                "module that registers it (--import), see docs/unsupported-operations.md."
            )
        stack = data["metadata"].get("nn_module_stack")
        data["metadata"] = {"nn_module_stack": stack} if stack else {}
    if "expr_str" in data and not _is_size(data["expr_str"]):
        raise JaxTransferError(f"the size {data['expr_str']!r} is not understood.")
    if data.keys() & {"as_operator", "as_custom_obj"} or data.get("custom_obj_values"):
        raise JaxTransferError("the network holds objects that are not tensors: rewrite it without them.")
    for item in data.values():
        _check(item)


def _is_size(expression: str) -> bool:
    nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return (
        all(isinstance(node, _EXPRESSION_NODES) for node in nodes)
        and all(_EXPRESSION_NAMES.fullmatch(name) for name in names)
        and all(re.fullmatch(r"[su]\d+", text) for text in texts)
    )
