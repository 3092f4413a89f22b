"""Converts networks in ONNX files: the graph becomes a pure JAX function, and nothing in the file is run.

Floating-point numbers of any precision become float32. Quantised networks are used with the weights that their integers
stand for and without rounding activations, so that they have gradients.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jaxtyping import ArrayLike
from onnx import NodeProto, TensorProto, ValueInfoProto

from jaxtransfer.converters.grids import is_channels_first, is_grid
from jaxtransfer.converters.kernels import with_kernels_as_used
from jaxtransfer.converters.onnx_file import opset, read_model
from jaxtransfer.converters.onnx_graph import Failure, Graph, Known
from jaxtransfer.converters.onnx_operators import translate
from jaxtransfer.defaults import MAX_SIDE
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.preprocess import Preprocess, PreprocessFn
from jaxtransfer.networks.program import Node, Value, Weight
from jaxtransfer.onnx import OnnxProgram

# Images of the trace; no other axis has this length by itself.
_IMAGES = 7
_IMAGE_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8)
# What may stand between a classifier's last matrix product and the output of the network.
_AFTER_HEAD = frozenset(
    "Add Cast DequantizeLinear Dropout Flatten Identity LogSoftmax QuantizeLinear Reshape Sigmoid Softmax "
    "Squeeze".split()
)
DEEPEST = "deepest"
# Operators whose results have places, whatever the proportions of these.
_OVER_PLACES = ("onnx.Conv", "onnx.MaxPool", "onnx.AveragePool")


def from_onnx(
    file: str | Path,
    *,
    name: str,
    representation: str | Sequence[str] | None = None,
    preprocess: PreprocessFn | None = None,
    size: tuple[int, int] | None = None,
    inputs: Mapping[str, ArrayLike] | None = None,
) -> Network:
    """Reads the network in an ONNX file; nothing in the file is run.

    The network takes one batch of images, channels first or last, of three channels, of one (lightness) or of four (the
    fourth, opacity, is filled with ones). A representation with places is returned with its channels last.

    Args:
        file: The file. Weights in other files must be in its folder.
        name: Name of the network.
        representation: Name of the value to return, or of the node that computes it; several: the network returns a
            dict of them. "deepest": the last value with the fewest places, but more than one. Default: what a
            classifier's last matrix product reads, if the network ends with one; otherwise the network's output.
        preprocess: Maps images with values in [0, 1] to the network's input. A network for values from 0 to 255 takes
            the mean and standard deviation divided by 255. Default: `Preprocess` with ImageNet's mean and standard
            deviation; for a single channel, lightness from 0 to 1.
        size: Height and width of the images, for a network that takes any.
        inputs: Values of the network's other inputs, by name.

    Raises:
        JaxTransferError: The file is damaged or too large, its network does not map images to arrays of floats, an
            operator that the representation needs is not supported, or the representation does not exist.
    """
    return read_onnx(file, size=_size(size, preprocess), inputs=inputs).network(name, representation, preprocess)


def _size(size: tuple[int, int] | None, preprocess: PreprocessFn | None) -> tuple[int, int] | None:
    return preprocess.size if size is None and isinstance(preprocess, Preprocess) else size


@dataclasses.dataclass(frozen=True)
class _Image:
    """The input that takes the images: its name, and its sizes, of which height, width and images may be unknown."""

    name: str
    height: int | None
    width: int | None
    channels: int
    first: bool
    images: int | None


class OnnxNetworkFile:
    """Holds the graph of an ONNX file, of which networks with different representations can be made.

    Attributes:
        source: Origin of the weights, for the manifest of a zoo.
    """

    def __init__(self, file: Path, size: tuple[int, int] | None, inputs: Mapping[str, ArrayLike] | None = None) -> None:
        """Reads the file; see `read_onnx`."""
        self._file = file
        self._model, digest = read_model(file)
        self._folder, self._opset = file.parent, opset(self._model)
        self._inputs = {name: np.asarray(value) for name, value in (inputs or {}).items()}
        self._image = _image(self._model.graph.input, self._initialised | set(self._inputs))
        self._shape = _shape(self._image, size)
        self._one_by_one = self._image.images is not None
        self._graph = self._follow(1 if self._one_by_one else _IMAGES)
        self.source: dict[str, Any] = {
            "file": file.name,
            "sha256": digest,
            "onnx": onnx.__version__,
            "notes": list(self._graph.notes),
        }

    @functools.cached_property
    def _initialised(self) -> set[str]:
        return {tensor.name for tensor in self._model.graph.initializer}

    def layers(self) -> dict[str, tuple[int, ...] | str]:
        """Returns the shape of every value for one image, without images, or why it cannot be computed."""
        return {
            name: known.reason if isinstance(known, Failure) else known.value.shape[1:]
            for name, known in self._graph.layers.items()
        }

    def _follow(self, images: int) -> Graph:
        graph = Graph(self._folder, self._opset, translate)
        values: dict[str, Known | Failure] = {}
        for given in self._model.graph.input:
            if given.name == self._image.name or given.name in self._initialised:
                continue
            values[given.name] = (
                graph.constant(_float32(self._inputs[given.name]), given.name)
                if given.name in self._inputs
                else Failure(f"the input {given.name!r} has no value: give it one with inputs={{{given.name!r}: ...}}.")
            )
        values[self._image.name] = self._add_image(graph, images)
        graph.follow(self._model.graph, values)
        return graph

    def _add_image(self, graph: Graph, images: int) -> Known:
        """Adds the operators that bring images, channels last, into the order that the graph expects."""
        *size, channels = self._shape
        shape = (images, *size, min(channels, 3))
        name, nodes = graph.unique("images"), graph.nodes
        self._input = name
        if channels == 4:
            padded = graph.unique("images with opacity")
            nodes.append(Node("onnx.Pad", (Value(name), [0] * 7 + [1], 1.0), {}, padded, ""))
            name, shape = padded, (images, *size, 4)
        if self._image.first:
            turned = graph.unique(self._image.name)
            nodes.append(Node("onnx.Transpose", (Value(name),), {"perm": [0, 3, 1, 2]}, turned, ""))
            name, shape = turned, (shape[0], shape[3], *shape[1:3])
        return Known(name, jax.ShapeDtypeStruct(shape, np.float32))

    def network(
        self, name: str, representation: str | Sequence[str] | None = None, preprocess: PreprocessFn | None = None
    ) -> Network:
        """Returns the network with a representation; the arguments are those of `from_onnx`.

        Raises:
            JaxTransferError: The representation does not exist, is not an array of floats for each image, or needs an
                operator that is not supported.
        """
        try:
            program, params = self._chosen(representation)
        except JaxTransferError as error:
            raise JaxTransferError(f"{self._file}: {error}") from error
        return Network(name, program, params, self.preprocess() if preprocess is None else preprocess)

    def preprocess(
        self,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
    ) -> Preprocess:
        """Returns the preprocessing to the size of the network's images; a single channel is lightness from 0 to 1."""
        height, width, channels = self._shape
        if channels == 1:
            return Preprocess((height, width), lightness=True)
        return Preprocess((height, width), mean, std)

    def _chosen(self, representation: str | Sequence[str] | None) -> tuple[OnnxProgram, dict[str, np.ndarray]]:
        try:
            return self._program(representation)
        except JaxTransferError:
            if self._one_by_one:
                raise
            # What was exported for one image may still declare that it takes any number.
            before = self._graph
            self._graph = self._follow(1)
            self._one_by_one = True
            try:
                return self._program(representation)
            except JaxTransferError:
                self._graph = before
                self._one_by_one = False
                return self._program(representation)

    def _program(self, representation: str | Sequence[str] | None) -> tuple[OnnxProgram, dict[str, np.ndarray]]:
        several = not isinstance(representation, str | None)
        names = (
            list(representation) if not isinstance(representation, str | None) else [representation or self._default()]
        )
        nodes = list(self._graph.nodes)
        outputs = {name: self._output(name, nodes) for name in names}
        nodes, used = _needed(nodes, set(outputs.values()))
        height, width, channels = self._shape
        program = OnnxProgram(
            tuple(nodes),
            self._input,
            outputs if several else outputs[names[0]],
            (height, width, min(channels, 3)),
            self._one_by_one,
        )
        params = {key: value for key, value in self._graph.params.items() if key in used}
        program, params = with_kernels_as_used(program, params)
        jax.eval_shape(program, params, jax.ShapeDtypeStruct((_IMAGES, *program.shape), np.float32))
        return program, params

    def _output(self, name: str, nodes: list[Node]) -> str:
        """Returns the name in the program of a representation, with its channels last."""
        images = 1 if self._one_by_one else _IMAGES
        known = self._named(name)
        if isinstance(known, Failure):
            raise JaxTransferError(f"the representation {name!r} cannot be computed: {known.reason}")
        value = known.value
        if not isinstance(value, jax.ShapeDtypeStruct) or not jnp.issubdtype(value.dtype, np.floating):
            raise JaxTransferError(f"the representation {name!r} is not an array of floats computed from images.")
        if not value.shape or value.shape[0] != images:
            raise JaxTransferError(
                f"the representation {name!r} has the shape {value.shape} for {images} images: its first axis must be "
                "the images."
            )
        if not is_channels_first(value.shape, self._shape):
            return known.name
        turned = f"{known.name}_channels_last"
        nodes.append(Node("onnx.Transpose", (Value(known.name),), {"perm": [0, 2, 3, 1]}, turned, ""))
        return turned

    def _named(self, name: str) -> Known | Failure:
        layers = self._graph.layers
        if name == DEEPEST:
            name = self._deepest()
        name = self._graph.first_outputs.get(name, name) if name not in layers else name
        if name not in layers:
            raise unknown_name("value or node", name, layers, where="in the graph", at_most=20)
        return layers[name]

    def _deepest(self) -> str:
        """Returns the last of the values that have the fewest places, but more than one."""
        layers = {node.output for node in self._graph.nodes if node.op in _OVER_PLACES}
        best: tuple[int, str] | None = None
        for name, known in self._graph.layers.items():
            shape = known.value.shape if isinstance(known, Known) else ()
            if isinstance(known, Failure) or len(shape) != 4 or not jnp.issubdtype(known.value.dtype, np.floating):
                continue
            h, w = shape[2:] if is_channels_first(shape, self._shape) else shape[1:3]
            grid = is_grid((h, w), self._shape[:2]) or known.name in layers
            if grid and h * w > 1 and (best is None or h * w <= best[0]):
                best = h * w, name
        if best is None:
            raise JaxTransferError("no value of the graph has places: choose a representation by its name.")
        return best[1]

    def _default(self) -> str:
        """Returns the name of what the last matrix product of a classifier reads, or of the output."""
        outputs = [output.name for output in self._model.graph.output]
        if len(outputs) != 1:
            raise JaxTransferError(
                f"the network has {len(outputs)} outputs, {', '.join(outputs[:20])}: choose a representation."
            )
        producers = {output: node for node in self._model.graph.node for output in node.output}
        node = producers.get(outputs[0])
        while node is not None and node.op_type in _AFTER_HEAD:
            node = producers.get(_main_input(node, producers))
        if node is not None and node.op_type in ("Gemm", "MatMul", "QLinearMatMul", "QGemm"):
            read = self._graph.layers.get(node.input[0])
            if isinstance(read, Known) and len(read.value.shape) == 2 and node.input[0] in producers:
                return node.input[0]
        return outputs[0]


def _main_input(node: NodeProto, producers: Mapping[str, NodeProto]) -> str:
    """Returns the input of a node that is computed, the first if there are several."""
    return next((name for name in node.input if name in producers and producers[name].op_type != "Constant"), "")


def read_onnx(
    file: str | Path, *, size: tuple[int, int] | None = None, inputs: Mapping[str, ArrayLike] | None = None
) -> OnnxNetworkFile:
    """Reads an ONNX file without choosing a representation; the arguments are those of `from_onnx`.

    Raises:
        JaxTransferError: The file is damaged or too large, or its network does not take images.
    """
    file = Path(file)
    try:
        return OnnxNetworkFile(file, size, inputs)
    except JaxTransferError as error:
        raise JaxTransferError(f"{file}: {error}") from error
    except (MemoryError, RecursionError) as error:
        raise JaxTransferError(f"{file}: the graph is too large for this machine.") from error


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _image(given: Sequence[ValueInfoProto], constants: set[str]) -> _Image:
    """Returns the input that takes images; refuses inputs that are not images."""
    free = [value for value in given if value.name not in constants]
    with_axes = [value for value in free if len(value.type.tensor_type.shape.dim) == 4]
    if len(with_axes) != 1:
        inputs = ", ".join(value.name for value in free[:20]) or "none"
        raise JaxTransferError(
            f"the network does not have one input of four axes, which takes images; its inputs are: {inputs}."
        )
    (value,) = with_axes
    kind = value.type.tensor_type
    if kind.elem_type not in _IMAGE_TYPES:
        raise JaxTransferError(f"the input {value.name!r} does not hold floats.")
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim]
    images, *rest = sizes
    if images not in (None, 1):
        raise JaxTransferError(
            f"the network takes batches of exactly {images} images: export it for any number, or one."
        )
    first = rest[0] in (1, 3, 4) or (rest[0] is None and rest[2] not in (1, 3, 4))
    channels, (height, width) = (rest[0], rest[1:]) if first else (rest[2], rest[:2])
    channels = 3 if channels is None else channels
    if channels not in (1, 3, 4):
        raise JaxTransferError(f"the input {value.name!r} has the shape {sizes}: neither axis has 1, 3 or 4 channels.")
    return _Image(value.name, height, width, channels, first, images)


def _shape(image: _Image, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Returns height, width and channels of the images."""
    if size is None and (image.height is None or image.width is None):
        raise JaxTransferError("the network takes images of any size: choose one with size=(height, width) or --size.")
    height, width = (image.height, image.width) if size is None else size
    for side, own in ((height, image.height), (width, image.width)):
        if own not in (None, side):
            raise JaxTransferError(
                f"the network takes images of {image.height} x {image.width} pixels, not of {height} x {width}."
            )
        if side is None or not 1 <= side <= MAX_SIDE:
            raise JaxTransferError(f"images must have from 1 to {MAX_SIDE} pixels a side, not {side}.")
    return int(height or 0), int(width or 0), image.channels


def _needed(nodes: Sequence[Node], outputs: set[str]) -> tuple[list[Node], set[str]]:
    """Returns the nodes that outputs depend on, and the names of the weights that these use."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if node.output in wanted:
            kept.append(node)
            wanted.update(a.name for a in node.args if isinstance(a, Value))
    used = {a.name for node in kept for a in node.args if isinstance(a, Weight)}
    return kept[::-1], used
