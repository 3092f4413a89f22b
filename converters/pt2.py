"""Reads `.pt2` files without running anything that is in them.

`torch.export.load` unpickles objects and evaluates expressions without checks. Therefore the archive is read here
first. PyTorch receives a new archive that holds the graph, after a check of every name and expression that it would
look up or evaluate, and the raw bytes of the weights; pickles are left out. Sizes are bounded before anything of that
size exists: what the archive holds, the number of operations, how deep they are nested, expressions, and tensors.
"""

import contextlib
import io
import json
import logging
import math
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch.export import ExportedProgram

from jaxtransfer.aten import OPS
from jaxtransfer.converters.sizes import is_size
from jaxtransfer.devices import host_memory
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
_MAX_JSON_BYTES, _MAX_DEPTH, _MAX_NODES = 64 * 2**20, 100, 20_000
_MAX_INTEGER = 2**63
# A file is held several times: as it is, in its checked form, and as PyTorch's and as JAX's tensors.
_MEMORY_SHARE = 1 / 4
# Tensors may repeat their values, without storing the copies; all together may be larger than the file by this.
_MAX_REPEATED_BYTES = 2**28
# Bytes of a number of each of PyTorch's types, by the type's number in a file.
_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 12: 1, 13: 2}
# Containers in which inputs and outputs may be nested.
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def load_program(file: BinaryIO) -> ExportedProgram:
    """Loads an open `.pt2` file.

    Raises:
        JaxTransferError: The data are something else or damaged, come from another version of PyTorch, or hold more
            than a graph of PyTorch's own operations and plain tensors.
    """
    size = file.seek(0, io.SEEK_END)
    if size > _MEMORY_SHARE * host_memory():
        raise JaxTransferError(
            f"it has {size:,} bytes, and converting it takes four times as many, but the memory has "
            f"{host_memory():,}: convert it on a larger machine."
        )
    try:
        archive = _checked(file, size)
    except RecursionError as error:
        raise JaxTransferError("its graph is nested too deeply.") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        if isinstance(error, JaxTransferError):
            raise
        raise JaxTransferError(
            "this is not a .pt2 file as torch.export.save writes it, or it is damaged: save the network again."
        ) from error
    with warnings.catch_warnings(), _without_log():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        try:
            return torch.export.load(archive)
        except Exception as error:  # PyTorch raises many types; all mean the same to a user.
            raise JaxTransferError(
                f"PyTorch {torch.__version__} cannot load this program: export it again with this version, and import "
                "the modules that define its operations (--import)."
            ) from error


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Silences logs: PyTorch's has tracebacks of programs that it cannot load."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _checked(file: BinaryIO, size: int) -> io.BytesIO:
    """Builds a new archive from the safe parts of an archive of `size` bytes."""
    source = zipfile.ZipFile(file)
    root = next((n.removesuffix(_GRAPH) for n in source.namelist() if n.endswith("/" + _GRAPH)), None)
    if root is None:
        raise JaxTransferError(
            "this is not a .pt2 file: use torch.export.save(torch.export.export(network.eval(), ...), file)."
        )
    _check_members(source, size)
    graph = json.dumps(_checked_graph(json.loads(source.read(root + _GRAPH)))).encode()
    target, stored, dense_bytes = io.BytesIO(), dict[str, int](), 0
    with zipfile.ZipFile(target, "w") as archive:

        def copy(name: str, content: bytes) -> bytes:
            archive.writestr("model/" + name, content)
            return content

        for name in _FORMAT:
            copy(name, source.read(root + name))
        copy(_GRAPH, graph)
        copy("data/sample_inputs/model.pt", b"")
        for folder in _TENSORS:
            name = f"{folder}/model_{folder.removeprefix('data/')}_config.json"
            for tensor, entry in json.loads(copy(name, source.read(root + name)))["config"].items():
                _check(entry)
                if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                    raise JaxTransferError(f"{tensor} is stored as a pickle, which could run code when it is read.")
                path = f"{folder}/{entry['path_name']}"
                if path not in stored:  # several tensors may share one
                    stored[path] = len(copy(path, source.read(root + path)))
                dense_bytes += _checked_bytes(tensor, entry["tensor_meta"], stored[path])
    if dense_bytes > size + _MAX_REPEATED_BYTES:
        raise JaxTransferError(f"its tensors would take {dense_bytes:,} bytes, but the file has only {size:,}.")
    target.seek(0)
    return target


def _check_members(source: zipfile.ZipFile, size: int) -> None:
    """Refuses an archive whose files are larger than it is."""
    members = source.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise JaxTransferError("its contents are compressed, which torch.export.save does not do: save it again.")
    if sum(member.file_size for member in members) > size:
        raise JaxTransferError("its contents are larger than the file, so it is damaged: save it again.")
    for member in members:
        if member.filename.endswith(".json") and member.file_size > _MAX_JSON_BYTES:
            raise JaxTransferError(f"its {member.filename} has more than {_MAX_JSON_BYTES >> 20} MiB.")


def _checked_bytes(tensor: str, meta: dict[str, Any], stored: int) -> int:
    """Returns how many bytes a tensor takes; refuses one that needs more than are stored of it."""
    sizes, strides = ([entry["as_int"] for entry in meta[field]] for field in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    if meta["dtype"] not in _ITEM_BYTES:
        raise JaxTransferError(f"the tensor {tensor} has a type that is not supported.")
    if min(*sizes, *strides, offset, 0) < 0 or len(sizes) != len(strides):
        raise ValueError(f"{tensor} has negative sizes")
    item = _ITEM_BYTES[meta["dtype"]]
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if 0 not in sizes and item * (last + 1) > stored:
        raise JaxTransferError(
            f"the tensor {tensor} needs {item * (last + 1):,} bytes, but {stored:,} are stored: save the network again."
        )
    return item * math.prod(sizes)


def _checked_graph(program: dict[str, Any]) -> dict[str, Any]:
    """Returns the graph without the parts that are not needed; refuses parts that are unknown."""
    module = program["graph_module"]
    call = module["module_call_graph"][0]
    for spec in (call["signature"]["in_spec"], call["signature"]["out_spec"]):
        _check_container(json.loads(spec)[1])
    program["guards_code"] = []
    module |= {"module_call_graph": [call], "treespec_namedtuple_fields": {}, "metadata": {}}
    if (nodes := _check(program)) > _MAX_NODES:
        raise JaxTransferError(f"the network has {nodes:,} operations; up to {_MAX_NODES:,} are supported.")
    return program


def _check_container(spec: dict[str, Any]) -> None:
    if spec["type"] not in _CONTAINERS or "__enum__" in str(spec["context"]):
        raise JaxTransferError(
            f"the network takes or returns a {spec['type']}: export a module from one array to one array."
        )
    for child in spec["children_spec"]:
        _check_container(child)


def _check(data: Any, depth: int = 0) -> int:
    """Checks every name, number and expression in JSON data that PyTorch would look up or evaluate.

    Returns:
        The number of operations.
    """
    if depth > _MAX_DEPTH:
        raise RecursionError
    if isinstance(data, list):
        return sum(_check(item, depth + 1) for item in data)
    if isinstance(data, int) and not -_MAX_INTEGER <= data < _MAX_INTEGER:
        raise JaxTransferError("the network holds integers beyond 64 bits.")
    if not isinstance(data, dict):
        return 0
    if "target" in data and "inputs" in data:
        target = data["target"]
        if not _TARGET.fullmatch(target) and not (target.startswith("torch.ops.") and target[10:] in OPS):
            raise JaxTransferError(
                f"the operation {str(target)[:100]} is not one of PyTorch's own: rewrite the network without it, or "
                "import the module that registers it (--import), see docs/unsupported-operations.md."
            )
        stack = data["metadata"].get("nn_module_stack")
        data["metadata"] = {"nn_module_stack": stack} if stack else {}
    if "expr_str" in data and not is_size(data["expr_str"]):
        raise JaxTransferError(f"the size {str(data['expr_str'])[:100]!r} is not understood.")
    if data.keys() & {"as_operator", "as_custom_obj"} or data.get("custom_obj_values"):
        raise JaxTransferError("the network holds objects that are not tensors: rewrite it without them.")
    return ("target" in data and "inputs" in data) + sum(_check(item, depth + 1) for item in data.values())
