"""Converts trained networks of packages into a zoo, and compares each with its own runtime."""

import io
import tempfile
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float
from onnx import helper, numpy_helper

import jaxtransfer as jt
from benchmarks.wild.architectures import build
from benchmarks.wild.settings import Source
from jaxtransfer.converters.onnx_network import from_onnx
from jaxtransfer.converters.torch_module import from_torch

TOLERANCE = 1e-4
"""Largest difference of a converted network from its own runtime, as a share of its largest output."""


def convert(source: Source, content: bytes) -> jt.Network:
    """Converts a network to one that takes RGB images and returns its representation, channels last.

    Args:
        source: The network.
        content: Its file.

    Raises:
        JaxTransferError: The network cannot be converted.
    """
    preprocess = jt.Preprocess(source.size, source.mean, source.std)
    if source.format == "onnx":
        model, node = _edited(source, content)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            onnx.save(model, file)
            inputs = _constants(source, model)
            return from_onnx(file, name=source.name, representation=node, preprocess=preprocess, inputs=inputs)
    module, example = build(source.node, content), torch.zeros(2, 3, *source.size)
    return from_torch(module, example, name=source.name, preprocess=preprocess)


def differences(
    network: jt.Network, source: Source, content: bytes, images: Float[np.ndarray, "n h w 3"]
) -> tuple[float, float]:
    """Compares a converted network with its own runtime.

    Args:
        network: The converted network.
        source: Where it comes from.
        content: Its file.
        images: Images in [0, 1].

    Returns:
        The largest difference of their outputs, as a share of the largest output; and the same where the runtime also
        rounds activations to 8 bits, as some networks ask, and converted ones never do.
    """
    assert network.preprocess is not None
    inputs = np.asarray(network.preprocess(jnp.asarray(images)))
    outputs = np.asarray(jax.jit(network.apply)(network.params, inputs))
    unrounded, rounded = (run(source, content, inputs, rounded=rounded) for rounded in (False, True))
    return _difference(outputs, unrounded), _difference(outputs, rounded)


def _difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(outputs - expected).max() / np.abs(expected).max())


def run(source: Source, content: bytes, inputs: Float[np.ndarray, "n h w 3"], *, rounded: bool) -> np.ndarray:
    """Runs a network as its package does, and returns its representation with channels last.

    Args:
        source: The network.
        content: Its file.
        inputs: Its preprocessed input, with the channels red, green and blue.
        rounded: Whether activations are rounded to 8 bits where an ONNX network asks for it; otherwise they are
            limited to what 8 bits can hold.
    """
    match source.format:
        case "onnx":
            return _run_onnx(source, content, inputs, rounded)
        case "torch":
            return _run_torch(source, content, inputs)
        case "keras":
            return _run_keras(content, inputs)


def _edited(source: Source, content: bytes) -> tuple[onnx.ModelProto, str]:
    """Makes an ONNX network one for RGB images, and returns the name of its representation."""
    model, node = onnx.load_from_string(content), source.node
    graph = model.graph
    if source.bgr:
        (image,) = (value.name for value in graph.input if value.name not in source.constants)
        for reader in graph.node:
            reader.input[:] = ["turned" if name == image else name for name in reader.input]
        graph.node.insert(0, helper.make_node("Gather", [image, "order"], ["turned"], axis=_channel_axis(model, image)))
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    if source.token is not None:
        graph.node.append(helper.make_node("Gather", [node, "token"], ["representation"], axis=1))
        graph.initializer.append(numpy_helper.from_array(np.array(source.token), "token"))
        node = "representation"
    return model, node


def _channel_axis(model: onnx.ModelProto, image: str) -> int:
    (shape,) = (value.type.tensor_type.shape.dim for value in model.graph.input if value.name == image)
    return 3 if shape[3].dim_value in (3, 4) else 1


def _constants(source: Source, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Returns the values of the inputs other than the image."""
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in model.graph.input}
    return {name: np.full(shapes[name], value, np.float32) for name, value in source.constants.items()}


def _run_onnx(source: Source, content: bytes, images: Float[np.ndarray, "n h w 3"], rounded: bool) -> np.ndarray:
    """Runs a network with onnxruntime, image by image, since some take one at a time."""
    model = onnx.load_from_string(content)
    if not rounded:
        _leave_unrounded(model.graph)
    model.graph.output.append(helper.make_empty_tensor_value_info(source.node))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    constants = _constants(source, model)
    (image,) = (value.name for value in session.get_inputs() if value.name not in constants)
    if source.bgr:
        images = images[..., ::-1]
    if source.opacity:
        images = np.concatenate([images, np.ones_like(images[..., :1])], -1)
    images = np.ascontiguousarray(np.moveaxis(images, -1, _channel_axis(model, image)))
    runs = [session.run([source.node], {image: one[None], **constants}) for one in images]
    outputs = np.concatenate([np.asarray(representation) for representation, *_ in runs])
    if source.token is not None:
        return outputs[:, source.token]
    return outputs if source.channels_last or outputs.ndim != 4 else np.moveaxis(outputs, 1, -1)


def _leave_unrounded(graph: onnx.GraphProto) -> None:
    """Where activations are rounded to 8 bits and back, only limits them to what 8 bits can hold."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounding = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in rounding:
            x, scale, zero = rounding[node.input[0]].input
            limits = np.iinfo(constants[zero].dtype)
            names = [f"{node.output[0]} {end}" for end in ("least", "most")]
            for name, limit in zip(names, (limits.min, limits.max), strict=True):
                bound = np.array((limit - int(constants[zero])) * constants[scale], np.float32)
                graph.initializer.append(numpy_helper.from_array(bound, name))
            node.op_type, node.input[:] = "Clip", [x, *names]


def _run_torch(source: Source, content: bytes, images: Float[np.ndarray, "n h w 3"]) -> np.ndarray:
    with torch.inference_mode():
        outputs = build(source.node, content)(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
    return np.moveaxis(outputs.numpy(), 1, -1)


def _run_keras(content: bytes, images: Float[np.ndarray, "n h w 3"]) -> np.ndarray:
    """Runs the VGG-16 of HED in float64, as its package writes it: blocks of convolutions with ReLU, pools between."""
    values = images[..., ::-1].astype(np.float64)
    with h5py.File(io.BytesIO(content)) as weights:
        for block in range(1, 6):
            prefix = f"block{block}/layers"
            group = weights[prefix]
            assert isinstance(group, h5py.Group)
            layers = [name for name in map(str, group) if name.startswith("conv2d")]
            if block > 1:
                n, h, w, c = values.shape
                values = values.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
            for layer in sorted(layers):
                kernel, bias = (np.asarray(weights[f"{prefix}/{layer}/vars/{i}"], np.float64) for i in range(2))
                padded = np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))
                windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
                values = np.maximum(np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2))) + bias, 0)
    return values
