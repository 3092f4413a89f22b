"""Small ONNX models, and what onnxruntime computes of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

onnxruntime.set_default_logger_severity(3)

IR_VERSION = 10


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> Any:
    return rng(seed).normal(size=shape).astype(np.float32)


def node(op: str, *inputs: str, outputs: Sequence[str] = ("y",), domain: str = "", **attributes: Any) -> Any:
    """A node that has the name of its operator and its first output."""
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op} of {outputs[0]}", domain=domain, **attributes)


def model(nodes, weights=(), *, opset=21, image=("N", 3, 8, 8), outputs=("y",), kind=TensorProto.FLOAT, inputs=()):
    """A model with the input x and these nodes; weights by name."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, image), *inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def save(made, path):
    path.write_bytes(made.SerializeToString())
    return path


def reference(made: Any, *names: str, **inputs: Any) -> list[Any]:
    """The values of a model that onnxruntime computes, as float32 where they are floats."""
    data = made if isinstance(made, bytes) else made.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options)
    return list(session.run(list(names) or None, inputs))


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))
