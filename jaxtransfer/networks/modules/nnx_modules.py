"""Modules of Flax NNX."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from jaxtransfer.networks.modules.function import ModuleFunction, evaluation_arguments

_OUTPUT = "jaxtransfer_output"


class NnxFunction(ModuleFunction):
    """Calls an `nnx.Module`; inner layers are modules by their paths, such as `blocks.0.conv`, and sown values."""

    @staticmethod
    def accepts(module: Any) -> bool:
        """Whether something is a module of NNX."""
        return isinstance(module, nnx.Module)

    @staticmethod
    def split(module: nnx.Module) -> tuple[nnx.GraphDef, nnx.State]:
        """Returns the graph of a copy in evaluation mode, and its state."""
        module = nnx.clone(module)
        module.eval()
        return nnx.split(module)

    @staticmethod
    def build(factory: Callable[[], nnx.Module]) -> nnx.GraphDef:
        """Returns the graph of the module that a factory builds, without computing its weights."""
        return NnxFunction.split(nnx.eval_shape(factory))[0]

    def run(self, weights: PyTree, images: Array, layers: Iterable[str]) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Calls the module and collects outputs of modules and sown values; of several calls, that of the last."""
        module: Any = nnx.merge(self.module, weights)
        for name, layer in _layers(module).items():
            if name in layers:
                object.__setattr__(layer, "__class__", _watched(type(layer)))
        return self._captured(module, images)

    def layer_names(self, weights: PyTree, images: Array) -> list[str]:
        """Returns the paths of modules and of sown values."""
        module: Any = nnx.merge(self.module, weights)
        return [*_layers(module), *self._captured(module, images)[1]]

    def _captured(self, module: nnx.Module, images: Array) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Calls a module; also returns what was sown during the call, by its path."""
        outputs, state = nnx.capture(self._call, nnx.Intermediate)(module, images)
        sown: dict[tuple[Any, ...], Any] = flatten_dict(nnx.to_pure_dict(state))
        named = {".".join(str(key) for key in path if key != _OUTPUT): values for path, values in sown.items()}
        return outputs, {name: values[-1] for name, values in named.items()}

    def _call(self, module: Any, images: Array) -> PyTree:
        return self.call(module, images) if self.call else module(images, **evaluation_arguments(module.__call__))


def _layers(module: nnx.Module) -> dict[str, nnx.Module]:
    """Returns the inner modules that can be called, by their paths."""
    return {".".join(map(str, path)): node for path, node in nnx.iter_modules(module) if path and callable(node)}


@functools.cache
def _watched(module_type: type[Any]) -> type[Any]:
    """Returns a subclass that stores what its call returns, as `sow` does, and so also inside transformations."""

    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        output = module_type.__call__(module, *args, **kwargs)
        module.sow(nnx.Intermediate, _OUTPUT, output)
        return output

    return type(module_type.__name__, (module_type,), {"__call__": functools.wraps(module_type.__call__)(call)})
