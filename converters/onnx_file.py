"""Reads ONNX files without running anything that is in them, and without allocating what they merely declare."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, inliner, numpy_helper

from jaxtransfer.devices import host_memory
from jaxtransfer.errors import JaxTransferError, first_line

OPSETS = range(7, 26)
_MOST_NODES = 100_000
_DEEPEST_GRAPHS = 20

# Bits of a value, and the fields other than raw_data that may hold values. Other types cannot be computed with.
_TYPES: dict[int, tuple[int, str]] = {
    TensorProto.FLOAT: (32, "float_data"),
    TensorProto.DOUBLE: (64, "double_data"),
    TensorProto.FLOAT16: (16, "int32_data"),
    TensorProto.BFLOAT16: (16, "int32_data"),
    TensorProto.BOOL: (8, "int32_data"),
    TensorProto.INT4: (4, "int32_data"),
    TensorProto.INT8: (8, "int32_data"),
    TensorProto.INT16: (16, "int32_data"),
    TensorProto.INT32: (32, "int32_data"),
    TensorProto.INT64: (64, "int64_data"),
    TensorProto.UINT4: (4, "int32_data"),
    TensorProto.UINT8: (8, "int32_data"),
    TensorProto.UINT16: (16, "int32_data"),
    TensorProto.UINT32: (32, "uint64_data"),
    TensorProto.UINT64: (64, "uint64_data"),
}
_FLOATS = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64))


def read_model(file: Path) -> tuple[ModelProto, str]:
    """Reads the graph of an ONNX file, with its functions put in place, and the SHA-256 of the file.

    Raises:
        JaxTransferError: The file is not an ONNX file, is damaged or too large, or needs operators of others than ONNX.
    """
    try:
        if not file.is_file():
            raise JaxTransferError("this is not a file.")
        if (size := file.stat().st_size) > host_memory() // 2:
            raise JaxTransferError(f"the file has {size:,} bytes, which is too much for this machine's memory.")
        data = file.read_bytes()
    except OSError as error:
        raise JaxTransferError(f"the file cannot be read: {error.strerror}.") from error
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise JaxTransferError("this is not an ONNX file, or it is damaged.") from error
    if not model.graph.node:
        raise JaxTransferError("this is not an ONNX file, or its graph is empty.")
    return _inlined(model), hashlib.sha256(data).hexdigest()


def opset(model: ModelProto) -> int:
    """Returns the version of ONNX's operators that a model uses.

    Raises:
        JaxTransferError: The version is not supported.
    """
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise JaxTransferError(
            f"the operators are of ONNX opset {', '.join(map(str, versions)) or 'unknown'}; supported are "
            f"{OPSETS.start} to {OPSETS.stop - 1}."
        )
    return versions[0]


def _subgraphs(node: NodeProto) -> Iterable[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _count(nodes: Iterable[NodeProto], functions: Mapping[tuple[str, str], int], depth: int = 0) -> int:
    """Counts nodes as they are once functions, whose counts are given, and graphs inside nodes are in place."""
    if depth > _DEEPEST_GRAPHS:
        raise JaxTransferError(f"the graphs inside its nodes are nested more than {_DEEPEST_GRAPHS} deep.")
    total = 0
    for node in nodes:
        total += functions.get((node.domain, node.op_type), 1)
        total += sum(_count(graph.node, functions, depth + 1) for graph in _subgraphs(node))
        if total > _MOST_NODES:
            raise JaxTransferError(f"the graph has more than {_MOST_NODES:,} nodes.")
    return total


def _inlined(model: ModelProto) -> ModelProto:
    """Puts the functions of a model in the place of their calls, if they do not call themselves."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(key: tuple[str, str], callers: tuple[tuple[str, str], ...]) -> int:
        if key in callers or len(callers) > _DEEPEST_GRAPHS:
            raise JaxTransferError(f"the function {key[1]} calls itself, or functions are nested too deep.")
        if key not in counts:
            for called in sorted(set(_called(functions[key])) & set(functions)):
                count(called, (*callers, key))
            counts[key] = _count(functions[key].node, counts)
        return counts[key]

    for key in functions:
        count(key, ())
    _count(model.graph.node, counts)
    if not functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the library raises several types
        raise JaxTransferError(f"the functions of the model cannot be put in place: {first_line(error)}") from error


def _called(part: FunctionProto | GraphProto) -> Iterable[tuple[str, str]]:
    for node in part.node:
        yield node.domain, node.op_type
        for graph in _subgraphs(node):
            yield from _called(graph)


def attribute(given: AttributeProto) -> Any:
    """Returns the value of an attribute: a number, a string, a list of these, a tensor or a graph.

    Raises:
        JaxTransferError: The attribute is of another type.
    """
    kinds = AttributeProto
    if given.type in (kinds.FLOAT, kinds.INT):
        return given.f if given.type == kinds.FLOAT else given.i
    if given.type in (kinds.STRING, kinds.STRINGS):
        texts = [
            text.decode("utf-8", "replace") for text in ([given.s] if given.type == kinds.STRING else given.strings)
        ]
        return texts[0] if given.type == kinds.STRING else texts
    if given.type == kinds.STRINGS:
        return [text.decode("utf-8", "replace") for text in given.strings]
    if given.type in (kinds.FLOATS, kinds.INTS):
        return list(given.floats if given.type == kinds.FLOATS else given.ints)
    if given.type in (kinds.TENSOR, kinds.GRAPH):
        return given.t if given.type == kinds.TENSOR else given.g
    raise JaxTransferError(f"the attribute {given.name} is of a type that is not supported")


def byte_size(tensor: TensorProto) -> int:
    """Returns the bytes of a tensor in memory, in which numbers of fewer than 32 bits become float32 or int32."""
    if tensor.data_type not in _TYPES:
        return 0
    return _length(tensor) * max(32, _TYPES[tensor.data_type][0]) // 8


def _length(tensor: TensorProto) -> int:
    if len(tensor.dims) > 16 or any(size < 0 for size in tensor.dims):
        raise JaxTransferError(f"the tensor {tensor.name} has the shape {tuple(tensor.dims)[:17]}.")
    return math.prod(tensor.dims)


def read_tensor(tensor: TensorProto, folder: Path) -> np.ndarray:
    """Returns the values of a tensor; floating-point numbers of any precision become float32.

    Args:
        tensor: The tensor, which may say that its values are in another file.
        folder: Folder that such a file must be in.

    Raises:
        JaxTransferError: The tensor does not have as many values as it declares, or its file is elsewhere or too short.
    """
    name = tensor.name or "of a constant"
    if tensor.data_type not in _TYPES:
        raise JaxTransferError(
            f"the tensor {name} has values of ONNX's type {tensor.data_type}, which is not supported."
        )
    bits, field = _TYPES[tensor.data_type]
    expected = -(-_length(tensor) * bits // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _external(tensor, folder, expected)
        tensor = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name, raw_data=raw)
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data)
    else:
        per_entry = 8 // bits if bits == 4 else 1
        held, expected = len(getattr(tensor, field)), -(-_length(tensor) // per_entry)
    if held != expected:
        raise JaxTransferError(f"the tensor {name} declares the shape {tuple(tensor.dims)} but holds other values.")
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:  # the library raises several types
        raise JaxTransferError(f"the tensor {name} cannot be read: {first_line(error)}") from error
    if array.dtype in _FLOATS:
        return array.astype(np.float32)
    return array.astype(np.int8 if tensor.data_type == TensorProto.INT4 else np.uint8) if bits == 4 else array


def _external(tensor: TensorProto, folder: Path, expected: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts
    where = f"the values of the tensor {tensor.name} are in the file {location!r}"
    if not parts or ".." in parts or "\\" in location or os.path.isabs(location) or ":" in parts[0]:
        raise JaxTransferError(f"{where}, which is not inside the folder of the ONNX file.")
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise JaxTransferError(f"{where}, which is a link: put a copy of the file itself beside the ONNX file.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
        if not path.is_file() or offset < 0 or length != expected or offset + length > path.stat().st_size:
            raise JaxTransferError(f"{where}, which is missing or too short.")
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except (OSError, ValueError) as error:
        if isinstance(error, JaxTransferError):
            raise
        raise JaxTransferError(f"{where}, which cannot be read.") from error
