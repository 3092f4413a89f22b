"""Brings the operators of all opsets, and those of quantised networks, into the one form that the table has."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from onnx import TensorProto, helper

from jaxtransfer.converters.onnx_graph import Call, Failure, Graph, Known
from jaxtransfer.errors import JaxTransferError

_Form = Callable[[Graph, Call], Sequence[Known]]
_FORMS: dict[str, _Form] = {}

# The operators of onnxruntime that networks have which it has quantised; others of the same names differ.
_ONNXRUNTIME = frozenset(
    "DequantizeLinear Gelu QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu "
    "QLinearMul QLinearSigmoid QLinearSoftmax QuantizeLinear".split()
)

_QUANTISED = "It is quantised: weights are used as the floats they stand for, and activations are not rounded."


def _form(*names: str) -> Callable[[_Form], _Form]:
    def register(function: _Form) -> _Form:
        _FORMS.update(dict.fromkeys(names, function))
        return function

    return register


def translate(
    graph: Graph, call: Call, domain: str, values: Mapping[str, Known | Failure]
) -> Sequence[Known | Failure]:
    """Adds a node to the program of a graph, and returns what is known of its outputs.

    Args:
        graph: The graph, to which operators are added.
        call: The node.
        domain: Domain of its operator.
        values: What is known of the values around it.

    Raises:
        JaxTransferError: The operator or its arguments are not supported.
    """
    if domain not in ("", "ai.onnx") and not (domain == "com.microsoft" and call.op in _ONNXRUNTIME):
        raise JaxTransferError(f"the operators of {domain!r} are not ONNX's own")
    if call.op == "If":
        return _if(graph, call, values)
    if call.op in ("Loop", "Scan"):
        raise JaxTransferError("loops are not supported; choose a representation that is computed before it")
    if call.op in _FORMS:
        return _FORMS[call.op](graph, call)
    return graph.apply(call.op, call, *call.inputs, **call.attributes)


def _if(graph: Graph, call: Call, values: Mapping[str, Known | Failure]) -> Sequence[Known | Failure]:
    condition = call.required(0).value
    if not isinstance(condition, np.ndarray):
        raise JaxTransferError(
            "its condition depends on the values of the images; choose a representation that is computed before it"
        )
    branch = call.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"]
    inner = graph.follow(branch, values, call.name)
    return [inner[output.name] for output in branch.output]


def _type_name(number: int) -> str:
    """Returns the dtype of a number of ONNX's types; floating-point numbers of any precision are float32."""
    if number in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        return "float32"
    return str(helper.tensor_dtype_to_np_dtype(number))


def _literal(known: Known | None) -> Any:
    """Returns a constant as numbers that are part of the program, and any other value as it is."""
    if known is None or not known.constant:
        return known
    return known.value.tolist() if known.value.size != 1 or known.value.ndim > 1 else known.value.reshape(()).item()


def _list(known: Known | None) -> Any:
    """Returns a constant list as numbers that are part of the program, and any other value as it is."""
    if known is None or not known.constant:
        return known
    return known.value.reshape(-1).tolist() or None


@_form("Identity", "Dropout")
def _identity(graph: Graph, call: Call) -> Sequence[Known]:
    training = call.input(2)
    if training is not None and (not training.constant or training.value.any()):
        raise JaxTransferError("it is in training mode, in which it drops values at random")
    return [call.required(0)]


@_form("Constant")
def _constant(graph: Graph, call: Call) -> Sequence[Known]:
    ((kind, value),) = call.attributes.items()
    if kind == "value":
        return [graph.tensor(value)]
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if kind not in types:
        raise JaxTransferError(f"its {kind} is not supported")
    return [graph.constant(np.array(value, types[kind]))]


@_form("ConstantOfShape")
def _constant_of_shape(graph: Graph, call: Call) -> Sequence[Known]:
    given = call.attributes.get("value")
    value = np.zeros(1, np.float32) if given is None else graph.tensor(given).value
    return graph.apply(call.op, call, *call.inputs, value=value.item(), dtype=str(value.dtype))


@_form("Cast")
def _cast(graph: Graph, call: Call) -> Sequence[Known]:
    return graph.apply(call.op, call, *call.inputs, to=_type_name(call.attributes["to"]))


@_form("EyeLike")
def _eye_like(graph: Graph, call: Call) -> Sequence[Known]:
    number = call.attributes.get("dtype")
    dtype = None if number is None else _type_name(number)
    return graph.apply(call.op, call, *call.inputs, k=call.attributes.get("k", 0), dtype=dtype)


@_form("Clip")
def _clip(graph: Graph, call: Call) -> Sequence[Known]:
    x, low, high = call.required(0), _literal(call.input(1)), _literal(call.input(2))
    return graph.apply(call.op, call, x, call.attributes.get("min", low), call.attributes.get("max", high))


@_form("Pow")
def _pow(graph: Graph, call: Call) -> Sequence[Known]:
    x, exponent = call.required(0), call.required(1)
    if exponent.constant and exponent.value.size == 1 and np.ndim(x.value) >= exponent.value.ndim:
        exponent = graph.constant(exponent.value.reshape(()))
    return graph.apply(call.op, call, x, exponent)


def _moved(*names: str) -> _Form:
    """Returns the form of an operator whose attributes have become inputs, in the order of the names."""

    def form(graph: Graph, call: Call) -> Sequence[Known]:
        attributes = dict(call.attributes)
        moved = [attributes.pop(name, None) for name in names]
        inputs = call.inputs if all(value is None for value in moved) else (call.required(0), *moved)
        return graph.apply(call.op, call, *inputs, **attributes)

    return form


_FORMS |= dict.fromkeys(("Squeeze", "Unsqueeze"), _moved("axes"))
_FORMS["Slice"] = _moved("starts", "ends", "axes")
_FORMS["TopK"] = _moved("k")
_FORMS |= dict.fromkeys(
    (
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare"
    ).split(),
    _moved("axes"),
)


@_form("Pad")
def _pad(graph: Graph, call: Call) -> Sequence[Known]:
    x, mode = call.required(0), call.attributes.get("mode", "constant")
    pads = call.attributes.get("pads", call.input(1))
    value = call.attributes.get("value", _literal(call.input(2)))
    return graph.apply(call.op, call, x, pads, value, call.input(3), mode=mode)


@_form("Split")
def _split(graph: Graph, call: Call) -> Sequence[Known]:
    sizes = call.attributes.get("split", call.input(1))
    axis = call.attributes.get("axis", 0)
    return graph.apply(call.op, call, call.required(0), sizes, axis=axis, num_outputs=len(call.outputs))


@_form("Softmax", "LogSoftmax", "Hardmax")
def _softmax(graph: Graph, call: Call) -> Sequence[Known]:
    """Before opset 13, all axes from the given one on are taken together."""
    x = call.required(0)
    rank = np.ndim(x.value) if isinstance(x.value, np.ndarray) else len(x.value.shape)
    axis = call.attributes.get("axis", -1 if call.opset >= 13 else 1) % rank
    if call.opset >= 13 or all(size == 1 for size in x.value.shape[axis + 1 :]):
        return graph.apply(call.op, call, x, axis=axis)
    (flat,) = graph.apply("Flatten", call, x, axis=axis)
    (y,) = graph.apply(call.op, call, flat, axis=1)
    (shape,) = graph.apply("Shape", call, x)
    return graph.apply("Reshape", call, y, shape)


@_form("BatchNormalization")
def _batch_norm(graph: Graph, call: Call) -> Sequence[Known]:
    if call.attributes.get("training_mode") or not call.attributes.get("spatial", 1):
        raise JaxTransferError("it is in training mode, in which it mixes the images of a batch")
    return graph.apply(call.op, call, *call.inputs, epsilon=call.attributes.get("epsilon", 1e-5))


@_form("Upsample")
def _upsample(graph: Graph, call: Call) -> Sequence[Known]:
    scales = call.attributes.get("scales", _list(call.input(1)))
    return _resized(graph, call, None, scales, None, call.attributes.get("mode", "nearest"))


@_form("Resize")
def _resize(graph: Graph, call: Call) -> Sequence[Known]:
    if call.opset < 11:
        return _resized(graph, call, None, _list(call.input(1)), None, call.attributes.get("mode", "nearest"))
    roi, scales, sizes = (_list(call.input(i)) for i in (1, 2, 3))
    if call.attributes.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        roi = None
    return graph.apply(call.op, call, call.required(0), roi, scales, sizes, **call.attributes)


def _resized(graph: Graph, call: Call, roi: Any, scales: Any, sizes: Any, mode: str) -> Sequence[Known]:
    return graph.apply(
        "Resize",
        call,
        call.required(0),
        roi,
        scales,
        sizes,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        mode=mode.replace("bilinear", "linear"),
    )


def _real(graph: Graph, call: Call, x: Known, scale: Known, zero: Known | None, axis: int = 1) -> Known:
    """Returns the numbers that quantised numbers stand for."""
    if x.quantised:
        return Known(x.name, x.value)
    graph.notes[_QUANTISED] = None
    (y,) = graph.apply("DequantizeLinear", call, x, scale, zero, axis=axis)
    return y


def _saturated(graph: Graph, call: Call, y: Known, scale: Known, zero: Known | None, dtype: Any = None) -> Known:
    """Returns numbers limited to what their quantised type can hold, which may stand for a ReLU."""
    graph.notes[_QUANTISED] = None
    if not scale.constant or (zero is not None and not zero.constant):
        raise JaxTransferError("its scale is computed from the values of the images")
    dtype = np.dtype(np.uint8) if zero is None and dtype is None else (zero.value.dtype if zero else dtype)
    if scale.value.size != 1 or dtype.kind not in "iu":
        return Known(y.name, y.value, y.constant, quantised=True)
    offset = 0 if zero is None else int(zero.value.reshape(()))
    low, high = ((bound - offset) * float(scale.value.reshape(())) for bound in _limits(dtype))
    (y,) = graph.apply("Clip", call, y, low, high)
    return Known(y.name, y.value, y.constant, quantised=True)


def _limits(dtype: np.dtype) -> tuple[int, int]:
    limits = jnp.iinfo(dtype)
    return int(limits.min), int(limits.max)


@_form("QuantizeLinear")
def _quantise(graph: Graph, call: Call) -> Sequence[Known]:
    number = call.attributes.get("output_dtype")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(number)) if number else None
    return [_saturated(graph, call, call.required(0), call.required(1), call.input(2), dtype)]


@_form("DequantizeLinear")
def _dequantise(graph: Graph, call: Call) -> Sequence[Known]:
    x = call.required(0)
    if x.quantised:
        return [Known(x.name, x.value, x.constant)]
    graph.notes[_QUANTISED] = None
    attributes = {key: call.attributes[key] for key in ("axis", "block_size") if key in call.attributes}
    return graph.apply(call.op, call, x, call.required(1), call.input(2), **attributes)


@_form("DynamicQuantizeLinear")
def _dynamic_quantise(graph: Graph, call: Call) -> Sequence[Known]:
    graph.notes[_QUANTISED] = None
    x = call.required(0)
    unrounded = Known(x.name, x.value, x.constant, quantised=True)
    return [unrounded, graph.constant(np.float32(1)), graph.constant(np.uint8(0))]


def _in_floats(
    graph: Graph, call: Call, op: str, inputs: Sequence[Known | None], scale: Known | None, zero: Known | None
) -> Sequence[Known]:
    """Adds the operator that a quantised one stands for; a scale says how its result is quantised."""
    attributes = {key: value for key, value in call.attributes.items() if key not in ("opset", "channels_last")}
    if call.attributes.get("channels_last"):
        raise JaxTransferError("its channels are last")
    version = call.attributes.get("opset", call.opset)
    meant = dataclasses.replace(call, op=op, opset=version, inputs=tuple(inputs), attributes=attributes)
    (y, *_) = _FORMS[op](graph, meant) if op in _FORMS else graph.apply(op, meant, *inputs, **attributes)
    return [y if scale is None else _saturated(graph, call, y, scale, zero)]


@_form("QLinearConv", "QGemm")
def _quantised_layer(graph: Graph, call: Call) -> Sequence[Known]:
    """Takes a bias whose scale is the product of those of the images and the weights."""
    x, xs, xz, w, ws, wz = (call.required(i) for i in range(6))
    gemm = call.op == "QGemm"
    bias, ys, yz = (call.input(i) for i in ((6, 7, 8) if gemm else (8, 6, 7)))
    if bias is not None:
        (scale,) = graph.apply("Mul", call, xs, ws)
        bias = _real(graph, call, bias, scale, None, axis=0)
    columns = 0 if not gemm or call.attributes.get("transB") else -1
    operands = [_real(graph, call, x, xs, xz), _real(graph, call, w, ws, wz, axis=columns), bias]
    return _in_floats(graph, call, "Gemm" if gemm else "Conv", operands, ys, yz)


@_form("QLinearMatMul", "QLinearAdd", "QLinearMul")
def _quantised_pair(graph: Graph, call: Call) -> Sequence[Known]:
    x, xs, xz, w, ws, wz, ys, yz = (call.required(i) for i in range(8))
    operands = [_real(graph, call, x, xs, xz), _real(graph, call, w, ws, wz, axis=-1)]
    return _in_floats(graph, call, call.op.removeprefix("QLinear"), operands, ys, yz)


@_form("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool", "QLinearAveragePool")
def _quantised_function(graph: Graph, call: Call) -> Sequence[Known]:
    x, xs, xz, ys, yz = (call.required(i) for i in range(5))
    return _in_floats(graph, call, call.op.removeprefix("QLinear"), [_real(graph, call, x, xs, xz)], ys, yz)


@_form("QLinearConcat")
def _quantised_concat(graph: Graph, call: Call) -> Sequence[Known]:
    parts = [
        _real(graph, call, call.required(i), call.required(i + 1), call.required(i + 2))
        for i in range(2, len(call.inputs), 3)
    ]
    return _in_floats(graph, call, "Concat", parts, call.required(0), call.input(1))


@_form("ConvInteger", "MatMulInteger")
def _integer_product(graph: Graph, call: Call) -> Sequence[Known]:
    axes = (0, 0) if call.op == "ConvInteger" else (-2, -1)
    unit = graph.constant(np.float32(1))
    operands = [_real(graph, call, call.required(i), unit, call.input(i + 2), axes[i]) for i in range(2)]
    return graph.apply(call.op.removesuffix("Integer"), call, *operands, **call.attributes)
