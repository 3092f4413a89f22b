"""Converts any trained PyTorch network: a `torch.export` program becomes a pure JAX function.

In PyTorch, once:

    program = torch.export.export(
        network.eval(), (torch.zeros(2, 3, 224, 224),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, "network.pt2")

The program is rewritten to the operations of `jaxtransfer.aten`, which become the nodes of an `AtenProgram`. PyTorch
is needed for the conversion alone.

Gradients are those of PyTorch: none flow through `detach` and `torch.no_grad`. A program holds only the forward pass of
a `torch.autograd.Function`, so its gradient is the derivative of that pass; it does not record
`torch.inference_mode`.
"""

import contextlib
import dataclasses
import gc
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind

from jaxtransfer.aten import AtenProgram
from jaxtransfer.converters.grids import is_channels_first
from jaxtransfer.converters.kernels import with_kernels_as_used
from jaxtransfer.converters.layers import Tokens, layers, output_names, with_outputs
from jaxtransfer.converters.lower import arguments, lower, module_path, needed, operation, user_outputs, where
from jaxtransfer.converters.pt2 import load_program
from jaxtransfer.devices import host_memory
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.preprocess import Preprocess
from jaxtransfer.networks.program import Node, Value, Weight
from jaxtransfer.networks.zoo import Zoo

# Arguments that say where and how a result is stored, not what it is.
_STORAGE = frozenset({"device", "layout", "memory_format", "pin_memory", "non_blocking", "requires_grad"})

_DYNAMIC = "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"


def convert(
    file: str | Path,
    zoo: Zoo,
    name: str,
    *,
    representation: Sequence[str] = (),
    tokens: Tokens = "all",
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> Network:
    """Reads a `.pt2` file and adds its network to a zoo; an output with places is stored with its channels last.

    Args:
        file: A file written by `torch.export.save`. Nothing in it is run.
        zoo: The zoo that receives the network.
        name: Name of the network in the zoo.
        representation: The values that the network returns, see `layers`; none: its output.
        tokens: What is kept of their tokens, see `layers.with_outputs`.
        mean: Mean of every colour channel, values in [0, 1], that the network was trained with. Default: ImageNet's.
        std: Standard deviation of every colour channel, likewise.

    Raises:
        JaxTransferError: The file is not a `.pt2` file or is damaged, the network does not map RGB images to one
            array of floats, an operation is not supported, a weight is not finite, or the zoo cannot store the
            network.
    """
    file = Path(file)
    with _opened(file) as opened, naming(file), _in_one_sentence():
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        exported = with_outputs(load_program(opened), representation, tokens)
        program, params = from_exported(exported, representation or ("",))
        program = with_channels_last(program, params)
        del exported
        gc.collect()  # PyTorch's graphs are cycles, and hold the kernels in their own order
    *size, channels = program.shape
    if channels != 3:
        raise JaxTransferError(f"{file}: the network takes images of {channels} channels, not the 3 of RGB.")
    network = Network(name, program, params, Preprocess((size[0], size[1]), mean, std))
    source: dict[str, Any] = {
        "file": file.name,
        "sha256": digest,
        "torch": str(torch.__version__),
    }
    if representation:
        source |= {"representation": [*representation], "tokens": tokens}
    zoo.add(network, source=source)
    return network


def layers_of_file(file: str | Path) -> dict[str, torch.Tensor]:
    """Returns the values of a `.pt2` file's network that can be chosen as its representation, see `layers.layers`.

    Raises:
        JaxTransferError: The file is not a `.pt2` file or is damaged, or its network does not take images.
    """
    with _opened(Path(file)) as opened, naming(file), _in_one_sentence():
        return layers(load_program(opened))


def _opened(file: Path) -> io.BufferedReader:
    try:
        return file.open("rb")
    except OSError as error:
        raise JaxTransferError(f"{file} cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Reports what PyTorch and JAX raise for graphs that no network has."""
    try:
        yield
    except JaxTransferError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise JaxTransferError(
            f"this program cannot be converted ({type(error).__name__}: {reason}): export the network again."
        ) from error


@contextlib.contextmanager
def naming(place: object) -> Iterator[None]:
    """Puts the name of a file or network before the errors of what is done with it."""
    try:
        yield
    except JaxTransferError as error:
        raise JaxTransferError(f"{place}: {error}") from error


def from_exported(exported: ExportedProgram, names: Sequence[str] = ("",)) -> tuple[AtenProgram, dict[str, np.ndarray]]:
    """Converts an exported network to a program for JAX and its weights by their PyTorch names.

    The kernels of convolutions are stored as XLA uses them, see `kernels.with_kernels_as_used`.

    Args:
        exported: A program with one input, float32 images [N, C, H, W] with fixed height and width and N dynamic or
            1, and one output, a float array [N, ...], or several.
        names: Names of the outputs, by which the program returns them where there are several.

    Raises:
        JaxTransferError: The network has other inputs or outputs, is in training mode, has weights that are not
            finite, or uses an operation or an argument that is not supported.
    """
    image = _image(exported, len(names))
    _refuse_training(exported)
    graph, exported = lower(exported)
    signature = exported.graph_signature
    for spec in signature.output_specs:
        if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.TOKEN):  # tokens are checks
            changed = "input" if spec.kind == OutputKind.USER_INPUT_MUTATION else f"buffer {spec.target}"
            raise JaxTransferError(f"the network changes its {changed} when it runs: export a network that does not.")
    placeholders = (node for node in graph.nodes if node.op == "placeholder")
    specs = dict(zip(placeholders, signature.input_specs, strict=True))
    (image_node,) = (node for node, spec in specs.items() if spec.kind == InputKind.USER_INPUT)
    outputs = user_outputs(graph, exported)
    nodes = _translate(outputs, specs)
    used = {a.name for n in nodes for a in jax.tree.leaves((n.args, n.kwargs)) if isinstance(a, Weight)}
    params = {name: _weight(exported, name) for name in sorted(used)}
    batch, channels, height, width = image.shape
    shape = (height, width, channels)
    output = dict(zip(names, (node.name for node in outputs), strict=True)) if len(outputs) > 1 else outputs[0].name
    program = AtenProgram(tuple(nodes), image_node.name, output, shape, isinstance(batch, int))
    program, params = with_kernels_as_used(program, params)
    _check(program, params, outputs)
    return program, params


def with_channels_last(program: AtenProgram, params: dict[str, np.ndarray]) -> AtenProgram:
    """Returns a program whose outputs have their channels last, if they are grids [images, channels, h, w]."""
    outputs = jax.eval_shape(program, params, jax.ShapeDtypeStruct((1, *program.shape), np.float32))
    moved: list[Node] = []

    def move(name: str, output: jax.ShapeDtypeStruct) -> str:
        if not is_channels_first(output.shape, program.shape):
            return name
        moved.append(Node("aten.permute.default", (Value(name), [0, 2, 3, 1]), {}, f"{name}_channels_last", ""))
        return moved[-1].output

    if isinstance(program.output, str):
        output = move(program.output, outputs)
    else:
        output = {layer: move(name, outputs[layer]) for layer, name in program.output.items()}
    return dataclasses.replace(program, nodes=(*program.nodes, *moved), output=output)


def _image(exported: ExportedProgram, outputs: int) -> torch.Tensor:
    """Returns the network's input, without values; refuses inputs that are not images, and other outputs."""
    signature = exported.graph_signature
    if len(signature.user_inputs) != 1:
        raise JaxTransferError(f"the network has {len(signature.user_inputs)} inputs, not one batch of images.")
    if len(signature.user_outputs) != outputs:
        raise JaxTransferError(
            f"the network has {len(signature.user_outputs)} outputs, not one: choose a representation among them, "
            f"{', '.join(output_names(exported))}, or a layer."
        )
    (name,) = signature.user_inputs
    image = next(n.meta.get("val") for n in exported.graph.nodes if n.name == name)
    if not isinstance(image, torch.Tensor):
        raise JaxTransferError(f"the network's input is {image!r}, not a batch of images.")
    if image.dtype != torch.float32:
        raise JaxTransferError(f"the network's input is {image.dtype}: export it with float32 images.")
    if image.ndim != 4:
        raise JaxTransferError(
            f"the network's input has {image.ndim} axes, not the four of a batch of images [N, C, H, W]."
        )
    if not all(isinstance(size, int) for size in image.shape[1:]):
        raise JaxTransferError(
            f"the network was exported for images of any size: export it with {_DYNAMIC} alone, "
            "so that height and width are fixed."
        )
    if isinstance(image.shape[0], int) and image.shape[0] != 1:
        raise JaxTransferError(
            f"the network was exported for batches of exactly {image.shape[0]} images: export it with {_DYNAMIC}, "
            "or with one image."
        )
    return image


def _refuse_training(exported: ExportedProgram) -> None:
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            given = arguments(node)
            training = given.get("train") or given.get("training") or given.get("use_input_stats")
            if "momentum" in given:  # without running statistics, normalisation is the same in training
                training = training and given.get("running_mean") is not None
            if training or given.get("dropout_p"):
                raise JaxTransferError(
                    f"the operation {node.target} {where(node)} is in training mode: "
                    "call .eval() on the network before torch.export.export."
                )


def _translate(outputs: list[torch.fx.Node], specs: dict[torch.fx.Node, InputSpec]) -> list[Node]:
    def argument(value: Any) -> Any:
        if isinstance(value, torch.fx.Node):
            spec = specs.get(value)
            if spec is None or spec.kind == InputKind.USER_INPUT:
                return Value(value.name)
            return Weight(spec.target or value.name)
        if isinstance(value, list | tuple):
            return [argument(item) for item in value]
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        if isinstance(value, torch.device | torch.memory_format | torch.layout):
            return None
        return value

    def translate(node: torch.fx.Node) -> Node:
        kwargs = {k: argument(v) for k, v in node.kwargs.items() if k not in _STORAGE}
        return Node(operation(node), tuple(argument(node.args)), kwargs, node.name, module_path(node))

    return [translate(node) for node in needed(*outputs) if node.op == "call_function"]


def _weight(exported: ExportedProgram, name: str) -> np.ndarray:
    tensor = exported.state_dict[name] if name in exported.state_dict else exported.constants.get(name)
    if not isinstance(tensor, torch.Tensor):
        raise JaxTransferError(f"the constant {name} is not a tensor but {type(tensor).__name__}.")
    trained = name in exported.graph_signature.parameters  # others may be bounds or masks for attention
    if bool((~tensor.isfinite() if trained else tensor.isnan()).any()):
        raise JaxTransferError(f"the weight {name} holds values that are not finite.")
    if tensor.dtype == torch.bfloat16 or tensor.dtype == torch.float16:
        raise JaxTransferError(f"the weight {name} is {tensor.dtype}: export the network in float32.")
    array = tensor.detach().cpu().contiguous().numpy()
    if array.dtype == np.int64:
        if array.size and np.abs(array).max() > np.iinfo(np.int32).max:
            raise JaxTransferError(f"the constant {name} holds integers beyond 32 bits.")
        return array.astype(np.int32)
    return array


def _check(program: AtenProgram, params: dict[str, np.ndarray], outputs: list[torch.fx.Node]) -> None:
    """Traces the program for three images, which reveals unsupported arguments, and checks the shapes."""
    images = 3
    given = params, jax.ShapeDtypeStruct((images, *program.shape), np.float32)
    jaxpr, results = jax.make_jaxpr(program, return_shape=True)(*given)
    largest = max((_bytes_of(variable) for equation in jaxpr.eqns for variable in equation.outvars), default=0)
    if largest > host_memory():
        raise JaxTransferError(
            f"for {images} images one of its values takes {largest:,} bytes, but the memory has {host_memory():,}."
        )
    in_order = [results] if isinstance(program.output, str) else [results[layer] for layer in program.output]
    for result, node in zip(in_order, outputs, strict=True):
        expected = node.meta["val"].shape
        if not expected or (isinstance(expected[0], int) and (not program.one_by_one or expected[0] != 1)):
            raise JaxTransferError(
                f"the network's output has shape {tuple(expected)}: its first axis must be the images."
            )
        known = tuple(n if isinstance(n, int) else m for n, m in zip(expected[1:], result.shape[1:], strict=True))
        if result.shape != (images, *known) or not np.issubdtype(result.dtype, np.floating):
            raise JaxTransferError(
                f"the network's output for {images} images is {result.dtype} {result.shape}: it must be an array of "
                "floats whose first axis is the images."
            )


def _bytes_of(variable: Any) -> int:
    return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
