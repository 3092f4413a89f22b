"""Represents a network as data: a list of operations of a closed table, which JAX executes."""

import dataclasses
import difflib
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.layout import without_transpositions


@dataclasses.dataclass(frozen=True)
class Value:
    """An argument that is the result of an earlier node, or the images."""

    name: str


@dataclasses.dataclass(frozen=True)
class Weight:
    """An argument that is a parameter, a buffer or a constant with its name in the original network.

    Attributes:
        name: The name.
        axes: Axis i of the stored array is axis `axes[i]` of the weight. None: the axes are in their own order.
    """

    name: str
    axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Node:
    """An operation of a program with its arguments.

    Attributes:
        op: Name of the operation in the table, such as `aten.add.Tensor`.
        args: Positional arguments: `Value`, `Weight`, numbers, booleans, strings, None, and lists of these.
        kwargs: Keyword arguments of the same types.
        output: Name of the result.
        module: Path of the module that the operation comes from, such as `blocks.0.bn1`; empty for the outermost.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: str
    module: str


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Runs a network as a pure function `program(params, images)`; it holds data only, and no weights.

    Programs with equal contents are equal, so networks that differ only in their weights share a compiled function.
    A subclass has the table of its operations as `ops`.

    Attributes:
        nodes: The operations in order of execution.
        input: Name of the value that holds the images.
        output: Name of the value that holds the result; or names of several, by the names of the layers that they are.
        shape: Height, width and channels of the images.
        one_by_one: Whether the program was made for a batch of one, so that it is mapped over the images.

    Raises:
        JaxTransferError: An operation is not in the table.
    """

    nodes: tuple[Node, ...]
    input: str
    output: str | Mapping[str, str]
    shape: tuple[int, int, int]
    one_by_one: bool

    ops: ClassVar[Mapping[str, Callable[..., Any]]] = {}

    def __post_init__(self) -> None:
        for node in self.nodes:
            if node.op not in self.ops:
                closest = difflib.get_close_matches(node.op, self.ops, n=3)
                raise JaxTransferError(
                    f"The operation {node.op} {_where(node)} is not supported; "
                    f"the closest that are: {', '.join(closest) or 'none'}. If it is yours, import the module that "
                    "registers it (--import); otherwise see docs/unsupported-operations.md."
                )

    def __call__(
        self, params: Mapping[str, Array | np.ndarray], images: Float[Array, "images height width channels"]
    ) -> PyTree[Float[Array, "images ..."]]:
        """Executes the program.

        Args:
            params: The weights by their names in the original network, with their axes in the stored order.
            images: Preprocessed images of the size that the program was made for.

        Returns:
            The result, or a dict of several by their names.

        Raises:
            JaxTransferError: The images have another size, or an operation has arguments that are not supported.
        """
        if images.ndim != 4 or images.shape[1:] != self.shape:
            raise JaxTransferError(
                f"This network takes images of height, width and channels {self.shape}, "
                f"not an array of shape {images.shape}."
            )
        return without_transpositions(self._of_each if self.one_by_one else self._run, params, images)

    def arrange(self, images: Float[Array, "images h w channels"]) -> Array:
        """Arranges the axes of the images as the first operation expects them."""
        return images

    def _of_each(self, params: Mapping[str, Array | np.ndarray], images: Array) -> Any:
        return jax.vmap(lambda image: jax.tree.map(lambda x: x[0], self._run(params, image[None])))(images)

    def _run(self, params: Mapping[str, Array | np.ndarray], images: Array) -> Any:
        values: dict[str, Any] = {self.input: self.arrange(images)}

        def resolve(argument: Any) -> Any:
            if isinstance(argument, Value):
                return values[argument.name]
            if not isinstance(argument, Weight):
                return argument
            array = jnp.asarray(params[argument.name])
            return array if argument.axes is None else array.transpose(np.argsort(argument.axes))

        for node in self.nodes:
            try:
                args, kwargs = _map(resolve, node.args), _map(resolve, node.kwargs)
                values[node.output] = self.ops[node.op](*args, **kwargs)
            except (TypeError, ValueError, IndexError, NotImplementedError) as error:
                raise JaxTransferError(f"The operation {node.op} {_where(node)} failed: {error}.") from error
        return _map(values.__getitem__, self.output)

    def to_json(self) -> dict[str, Any]:
        """Returns the program as data that JSON can hold."""
        nodes = [[n.op, _map(_encode, n.args), _map(_encode, n.kwargs), n.output, n.module] for n in self.nodes]
        return {
            "nodes": nodes,
            "input": self.input,
            "output": self.output if isinstance(self.output, str) else dict(self.output),
            "shape": list(self.shape),
            "one_by_one": self.one_by_one,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Restores the program from the data that `to_json` returned."""
        nodes = tuple(
            Node(op, tuple(_decode(args)), {k: _decode(v) for k, v in kwargs.items()}, output, module)
            for op, args, kwargs, output, module in data["nodes"]
        )
        return cls(nodes, data["input"], data["output"], tuple(data["shape"]), data["one_by_one"])

    # Compared as text, because in Python 1 == 1.0 == True, and because text caches its hash.
    @functools.cached_property
    def _text(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self is other or self._text == other._text)

    def __hash__(self) -> int:
        return hash(self._text)


def _where(node: Node) -> str:
    return f"in module {node.module}" if node.module else "in the outermost module"


def _map(function: Callable[[Any], Any], argument: Any) -> Any:
    """Applies a function to the leaves of nested lists and dicts."""
    if isinstance(argument, list | tuple):
        return [_map(function, item) for item in argument]
    if isinstance(argument, Mapping):
        return {key: _map(function, item) for key, item in argument.items()}
    return function(argument)


def _encode(argument: Any) -> Any:
    if isinstance(argument, Value):
        return {"value": argument.name}
    if isinstance(argument, Weight):
        return {"weight": argument.name} | ({"axes": list(argument.axes)} if argument.axes is not None else {})
    return argument


def _decode(argument: Any) -> Any:
    if isinstance(argument, dict):
        if "value" in argument:
            return Value(argument["value"])
        return Weight(argument["weight"], tuple(argument["axes"]) if "axes" in argument else None)
    return [_decode(item) for item in argument] if isinstance(argument, list) else argument
