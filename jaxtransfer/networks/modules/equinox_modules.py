"""Modules of Equinox."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxtransfer.networks.modules.function import ModuleFunction, evaluation_arguments


class EquinoxFunction(ModuleFunction):
    """Calls an `eqx.Module` on each image with its channels first, as `eqx.nn.Conv2d` takes it.

    Outputs of three axes are returned with their channels last. `call` gets one image, [height, width, channels], and
    its outputs stay as they are. Inner layers have names like `blocks.0.conv`. The module may be a pair of a module and
    its `eqx.nn.State`.
    """

    @staticmethod
    def accepts(module: Any) -> bool:
        """Whether something is a module of Equinox, or one with its state."""
        equinox = sys.modules.get("equinox")
        if equinox is None:
            return False
        network, *state = module if type(module) is tuple and len(module) == 2 else (module,)
        return isinstance(network, equinox.Module) and all(isinstance(part, equinox.nn.State) for part in state)

    @staticmethod
    def split(module: Any) -> tuple[Any, list[Any]]:
        """Returns the module in inference mode with shapes in place of its arrays, and the arrays."""
        module = sys.modules["equinox"].nn.inference_mode(module)
        leaves, tree = jax.tree.flatten(module)
        template = jax.tree.unflatten(tree, [_shape(leaf) if _is_array(leaf) else leaf for leaf in leaves])
        return template, [leaf for leaf in leaves if _is_array(leaf)]

    @staticmethod
    def build(factory: Callable[[], Any]) -> Any:
        """Returns the module that a factory builds, without computing its arrays."""
        equinox = sys.modules["equinox"]
        return equinox.nn.inference_mode(equinox.filter_eval_shape(factory))

    def run(self, weights: PyTree, images: Array, layers: Iterable[str]) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Calls the module on each image; of several calls of a layer, the last is kept."""
        shapes, tree = jax.tree.flatten(self.module)
        arrays = iter(weights)
        module = jax.tree.unflatten(tree, [next(arrays) if _is_shape(leaf) else leaf for leaf in shapes])

        def run_one(image: Array) -> tuple[PyTree, dict[str, PyTree]]:
            records: dict[str, Any] = {}
            watched = module
            for name in layers:
                if name in _layers(_network(module)):
                    watched = _watch(watched, name, functools.partial(records.__setitem__, name))
            if self.call is not None:
                return self.call(watched, image), records
            return jax.tree.map(_channels_last, (_call(watched, image.transpose(2, 0, 1)), records))

        return jax.vmap(run_one)(images)

    def layer_names(self, weights: PyTree, images: Array) -> list[str]:
        """Returns the paths of the inner modules."""
        return [*_layers(_network(self.module))]

    def advice(self) -> str:
        """Says how to call a module with another order of axes."""
        return (
            "each image has its channels first, as eqx.nn.Conv2d takes it; if the module is called in another way, "
            "pass call=lambda module, image: ..., with one image whose channels are last"
        )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _network(module: Any) -> Any:
    """Returns a module without its state."""
    return module[0] if type(module) is tuple else module


def _call(module: Any, image: Array) -> PyTree:
    """Calls a module, or one with its state, on an image with channels first, and leaves out the new state."""
    network, *state = module if type(module) is tuple else (module,)
    options: dict[str, Any] = dict(evaluation_arguments(network.__call__))
    key = inspect.signature(network.__call__).parameters.get("key")
    if key is not None and key.default is inspect.Parameter.empty:
        options["key"] = jax.random.key(0)  # needed for the call; in inference mode nothing depends on it
    return _without_state(network(image, *state, **options))


def _without_state(outputs: PyTree) -> PyTree:
    state = sys.modules["equinox"].nn.State
    return outputs[0] if isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], state) else outputs


def _channels_last(output: Array) -> Array:
    return jnp.moveaxis(output, 0, -1) if output.ndim == 3 else output


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, list | tuple):
        return [(str(index), child) for index, child in enumerate(node)]
    if isinstance(node, dict):
        return [(key, child) for key, child in node.items() if isinstance(key, str)]
    return [*vars(node).items()] if isinstance(node, sys.modules["equinox"].Module) else []


def _layers(node: Any, path: str = "") -> dict[str, Any]:
    """Returns the inner modules by their paths."""
    layers = {}
    for name, child in _children(node):
        if isinstance(child, sys.modules["equinox"].Module) and callable(child):
            layers[path + name] = child
        layers |= _layers(child, f"{path}{name}.")
    return layers


def _watch(module: Any, path: str, record: Callable[[Any], None]) -> Any:
    """Returns a module in which the inner module at a path records its output."""

    def at(module: Any) -> Any:
        return functools.reduce(lambda node, name: dict(_children(node))[name], path.split("."), _network(module))

    return sys.modules["equinox"].tree_at(at, module, replace_fn=lambda layer: _watched_type()(layer, record))


@functools.cache
def _watched_type() -> type[Any]:
    equinox = sys.modules["equinox"]

    class Watched(equinox.nn.StatefulLayer):
        layer: Any
        record: Any = equinox.field(static=True)

        def is_stateful(self) -> bool:
            return isinstance(self.layer, equinox.nn.StatefulLayer) and self.layer.is_stateful()

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            outputs = self.layer(*args, **kwargs)
            self.record(_without_state(outputs))
            return outputs

        def __getattr__(self, name: str) -> Any:
            return getattr(self.layer, name)

    return Watched
