"""Follows the graph of an ONNX file node by node, and makes of it the operators of a program for JAX.

Every node is traced for a few images as soon as it is read. So shapes are known when later nodes are read, what depends
on constants alone is computed once, and a node that is not supported spoils only what is computed from it.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from jaxtransfer.converters.onnx_file import attribute, byte_size, read_tensor
from jaxtransfer.devices import host_memory
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.program import Node, Value, Weight
from jaxtransfer.onnx import OPS

# Whole numbers that are not weights but shapes, axes and positions.
_MOST_LITERALS = 1024
# Operators that quantised networks use on the quantised numbers themselves.
_KEEP_QUANTISED = frozenset(
    "Concat DepthToSpace Expand Flatten Gather GlobalMaxPool MaxPool Reshape Resize Slice SpaceToDepth Split Squeeze "
    "Tile Transpose Unsqueeze".split()
)
# Operators whose functions leave NumPy arrays to NumPy, and do not make large ones of small ones.
_IN_NUMPY = frozenset(
    f"onnx.{name}"
    for name in (
        "Add And Cast Ceil Concat ConstantOfShape DequantizeLinear Div Equal Expand Floor Gather Greater "
        "GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Not Or Range ReduceMax ReduceMin ReduceProd ReduceSum "
        "Reshape Shape Size Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"
    ).split()
)


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a value of the graph.

    Attributes:
        name: Its name in the program; empty for a constant.
        value: A NumPy array if it is known without images, otherwise its shape and type for the images of the trace.
        constant: Whether it depends on constants of the graph alone, not even on the shape of the images.
        quantised: Whether it stands for quantised numbers, but holds the numbers before quantisation.
    """

    name: str
    value: Any
    constant: bool = False
    quantised: bool = False


@dataclasses.dataclass(frozen=True)
class Failure:
    """Says why a value of the graph cannot be computed."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A node of the graph whose inputs are known.

    Attributes:
        op: Name of the operator.
        opset: Version of ONNX's operators.
        inputs: What is known of the inputs; None for an optional input that is absent.
        attributes: The attributes by name.
        outputs: Names of the outputs, empty for those that are not wanted.
        name: Name of the node.
    """

    op: str
    opset: int
    inputs: tuple[Known | None, ...]
    attributes: dict[str, Any]
    outputs: tuple[str, ...]
    name: str

    def input(self, index: int) -> Known | None:
        """Returns an input, or None if it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> Known:
        """Returns an input that the operator must have.

        Raises:
            JaxTransferError: It is absent.
        """
        known = self.input(index)
        if known is None:
            raise JaxTransferError(f"its input {index + 1} is absent")
        return known


class Graph:
    """Collects the operators and weights of a program while it follows a graph.

    Attributes:
        nodes: The operators of the program.
        params: The weights by name.
        layers: What is known of every output of the graph's nodes that is computed from images, in order.
        first_outputs: Names of the first outputs of nodes, by the names of the nodes.
        notes: What was changed so that the graph can be used, in sentences.
    """

    def __init__(self, folder: Path, opset: int) -> None:
        """Begins an empty program.

        Args:
            folder: Folder that external values must be in.
            opset: Version of ONNX's operators.
        """
        self.nodes: list[Node] = []
        self.params: dict[str, np.ndarray] = {}
        self.layers: dict[str, Known | Failure] = {}
        self.first_outputs: dict[str, str] = {}
        self.notes: dict[str, None] = {}
        self._folder, self._opset = folder, opset
        self._names: Counter[str] = Counter()
        self._arguments: dict[int, tuple[Known, Value | Weight]] = {}
        self._computed = 0

    def follow(self, graph: GraphProto, values: Mapping[str, Known | Failure], inside: str = "") -> dict[str, Any]:
        """Reads the nodes of a graph in order.

        Args:
            graph: The graph.
            values: What is known of its inputs and of the values around it.
            inside: Name of the node that the graph is inside of.

        Returns:
            What is known of all values.

        Raises:
            JaxTransferError: A value is computed twice, or read before it is computed, or a tensor is damaged.
        """
        known = dict(values)
        own: set[str] = set()
        total = sum(byte_size(tensor) for tensor in graph.initializer)
        if total > host_memory() // 2:
            raise JaxTransferError(f"it declares weights of {total:,} bytes, too much for this machine's memory.")
        if graph.sparse_initializer:
            raise JaxTransferError("it has sparse weights, which are not supported.")
        for tensor in graph.initializer:
            if tensor.name in own:
                raise JaxTransferError(f"it has two weights with the name {tensor.name!r}.")
            own.add(tensor.name)
            known[tensor.name] = self.tensor(tensor)
        for node in graph.node:
            outputs = tuple(node.output)
            if repeated := [name for name in outputs if name in own]:
                raise JaxTransferError(f"it computes the value {repeated[0]!r} twice.")
            own.update(name for name in outputs if name)
            for name, result in zip(outputs, self._node(node, known, inside), strict=True):
                if name:
                    known[name] = result
                    self._record(name, node, result)
        return known

    def _record(self, name: str, node: NodeProto, result: Known | Failure) -> None:
        if isinstance(result, Failure) or isinstance(result.value, jax.ShapeDtypeStruct):
            self.layers[name] = result
            if node.name:
                self.first_outputs.setdefault(node.name, name)

    def tensor(self, tensor: TensorProto) -> Known:
        """Returns a constant of the graph."""
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            self.notes[f"Its numbers of the type {kind} are computed with in float32."] = None
        return self.constant(read_tensor(tensor, self._folder), tensor.name)

    def constant(self, array: Any, name: str = "") -> Known:
        """Returns a value that depends on nothing."""
        return Known(name, np.asarray(array), constant=True)

    def _node(self, node: NodeProto, values: Mapping[str, Known | Failure], inside: str) -> Sequence[Known | Failure]:
        """Reads one node, and returns what is known of its outputs."""
        from jaxtransfer.converters import onnx_operators

        title = node.name or next(iter(node.output), "")
        where = f"the operator {node.op_type} at {title!r}"
        missing = [name for name in node.input if name and name not in values]
        if missing:
            raise JaxTransferError(
                f"{where} reads the value {missing[0]!r}, which is not computed before it: the graph has a cycle, is "
                "not in order or is damaged."
            )
        inputs = [values[name] if name else None for name in node.input]
        for known in inputs:
            if isinstance(known, Failure):
                return [known] * len(node.output)
        try:
            call = Call(
                node.op_type,
                self._opset,
                tuple(inputs),  # pyright: ignore[reportArgumentType]
                {given.name: attribute(given) for given in node.attribute},
                tuple(node.output),
                f"{inside}/{title}" if inside else title,
            )
            with np.errstate(all="ignore"):
                results = list(onnx_operators.translate(self, call, node.domain, values))
        except JaxTransferError as error:
            return [Failure(f"{where} cannot be used: {str(error).rstrip('.')}.")] * len(node.output)
        except MemoryError:
            raise
        except Exception as error:  # NumPy and JAX raise many types for arguments that do not fit
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return [Failure(f"{where} cannot be used: {reason}.")] * len(node.output)
        lacking = len(node.output) - len(results)
        return results[: len(node.output)] + [Failure(f"{where} has outputs that are not supported.")] * lacking

    def apply(self, op: str, call: Call, *args: Any, **kwargs: Any) -> list[Known]:
        """Adds an operator to the program, or computes it if it depends on constants alone.

        Args:
            op: Name of the operator.
            call: The node that it comes from.
            args: Inputs: `Known`, None, or numbers and lists of them.
            kwargs: Attributes.

        Returns:
            What is known of the results.

        Raises:
            JaxTransferError: The operator is not supported.
        """
        name = f"onnx.{op}"
        if name not in OPS:
            raise JaxTransferError(
                "it is not supported; supported are: "
                + ", ".join(sorted(known.removeprefix("onnx.") for known in OPS if known.startswith("onnx.")))
            )
        if all(arg.constant for arg in args if isinstance(arg, Known)):
            return self._compute(name, args, kwargs)
        quantised = any(isinstance(arg, Known) and arg.quantised for arg in args)
        if quantised and op not in _KEEP_QUANTISED:
            raise JaxTransferError("it reads quantised numbers as they are")
        values = _evaluate(name, [self._traced(arg) for arg in args], kwargs)
        for value in values:
            if math.prod(value.shape) * 4 > host_memory():
                raise JaxTransferError(f"its result of shape {value.shape} is too large for this machine's memory")
        arguments = tuple(self.argument(arg) if isinstance(arg, Known) else arg for arg in args)
        output = self.unique(next(filter(None, call.outputs), call.name))
        self.nodes.append(Node(name, arguments, kwargs, output, call.name))
        if not isinstance(values, list):
            return [Known(output, values[0], quantised=quantised)]
        names = [self.unique(f"{output}[{i}]") for i in range(len(values))]
        for i, item in enumerate(names):
            self.nodes.append(Node("operator.getitem", (Value(output), i), {}, item, call.name))
        return [Known(item, value, quantised=quantised) for item, value in zip(names, values, strict=True)]

    def unique(self, name: str) -> str:
        """Returns a name that no other value or weight of the program has."""
        self._names[name] += 1
        count = self._names[name]
        return name if count == 1 else self.unique(f"{name}#{count}")

    def _compute(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Known]:
        values = [arg.value if isinstance(arg, Known) else arg for arg in args]
        arrays = _evaluate(op, values, kwargs)  # shapes come before arrays of which a small file could ask too much
        if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
            if sum(math.prod(array.shape) for array in arrays) * 4 > host_memory() // 8:
                raise JaxTransferError("its result is too large for this machine's memory")
            with jax.ensure_compile_time_eval():
                results = OPS[op](*values, **kwargs)
                arrays = [np.asarray(r) for r in (results if isinstance(results, list | tuple) else [results])]
        self._computed += sum(array.nbytes for array in arrays)
        if self._computed > host_memory() // 4:
            raise JaxTransferError("what is computed from constants is too large for this machine's memory")
        return [self.constant(array) for array in arrays]

    def _traced(self, arg: Any) -> Any:
        """Returns an argument as the program will have it when it is traced."""
        if not isinstance(arg, Known):
            return arg
        if arg.constant and not _is_literal(arg.value):
            dtype = jax.dtypes.canonicalize_dtype(arg.value.dtype)
            return jax.ShapeDtypeStruct(arg.value.shape, dtype)
        return arg.value

    def argument(self, known: Known) -> Value | Weight:
        """Returns how operators of the program refer to a value; constants are added to the program or its weights.

        Raises:
            JaxTransferError: A weight is not finite, or has integers of more than 32 bits.
        """
        if not known.constant:
            return Value(known.name)
        if id(known) not in self._arguments:
            self._arguments[id(known)] = (known, self._add_constant(known))
        return self._arguments[id(known)][1]

    def _add_constant(self, known: Known) -> Value | Weight:
        array, name = known.value, self.unique(known.name or "constant")
        if _is_literal(array):
            values = array.reshape(-1).tolist()
            self.nodes.append(Node("onnx.Constant", (values, str(array.dtype), list(array.shape)), {}, name, ""))
            return Value(name)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise JaxTransferError(f"the weight {name} holds values that are not finite")
        if array.dtype.itemsize == 8 and array.dtype.kind in "iu":
            if np.abs(array).max() > np.iinfo(np.int32).max:
                raise JaxTransferError(f"the constant {name} holds integers beyond 32 bits")
            array = array.astype(np.int32)
        # Names of weights become parts of paths in a checkpoint.
        key = base = re.sub(r"[^\w.-]", ".", name).strip(".") or "weight"
        count = 1
        while key in self.params:
            count += 1
            key = f"{base}.{count}"
        self.params[key] = np.ascontiguousarray(array)
        return Weight(key)


def _is_literal(array: np.ndarray) -> bool:
    """Whether a constant is part of the program: single numbers, and whole numbers that are shapes or positions."""
    return array.ndim == 0 or (array.dtype.kind in "iub" and array.size <= _MOST_LITERALS)


def _evaluate(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Traces an operator; returns its result as a tuple of one, or its several results as a list."""
    arrays = [arg for arg in args if isinstance(arg, jax.ShapeDtypeStruct)]
    if not arrays and op in _IN_NUMPY:
        result = OPS[op](*args, **kwargs)
        return [np.asarray(item) for item in result] if isinstance(result, list | tuple) else (np.asarray(result),)
    captured: list[Any] = []

    def run(*arrays: jax.Array) -> list[jax.Array]:
        given = iter(arrays)
        result = OPS[op](*(next(given) if isinstance(a, jax.ShapeDtypeStruct) else a for a in args), **kwargs)
        captured.append(result)
        items = result if isinstance(result, list | tuple) else [result]
        return [item if isinstance(item, jax.Array) else jnp.zeros(()) for item in items]

    shapes = jax.eval_shape(run, *arrays)
    several = isinstance(captured[0], list | tuple)
    items = captured[0] if several else [captured[0]]
    values = [
        shape if isinstance(item, jax.Array) else np.asarray(item) for item, shape in zip(items, shapes, strict=True)
    ]
    return values if several else tuple(values)
