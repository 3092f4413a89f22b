"""Transformed functions of Haiku."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import Array, PyTree

from jaxtransfer.networks.modules.function import ModuleFunction, evaluation_arguments


class HaikuFunction(ModuleFunction):
    """Calls a transformed function; inner layers are modules by their names, such as `res_net18/~/initial_conv`.

    `call` gets the function with its weights, as `call(function, images)`.
    """

    @staticmethod
    def accepts(module: Any) -> bool:
        """Whether something is a transformed function with its parameters, and its state if it has one."""
        haiku = sys.modules.get("haiku")
        if haiku is None or not isinstance(module, tuple) or not module:
            return False
        lengths = {haiku.Transformed: 2, haiku.TransformedWithState: 3}
        return len(module) == lengths.get(type(module[0]))

    @staticmethod
    def split(module: tuple[Any, ...]) -> tuple[Any, PyTree]:
        """Returns the transformed function, and its parameters, or the pair of parameters and state."""
        transformed, *weights = module
        return transformed, weights[0] if len(weights) == 1 else tuple(weights)

    @staticmethod
    def build(factory: Callable[[], Any]) -> Any:
        """Returns the transformed function that a factory builds."""
        return factory()

    def run(self, weights: PyTree, images: Array, layers: Iterable[str]) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Calls the function; of several calls of a layer, the last is kept."""
        return self._intercepted(weights, images, lambda name: name in layers)

    def layer_names(self, weights: PyTree, images: Array) -> list[str]:
        """Returns the names of the modules."""
        return [*self._intercepted(weights, images, lambda _: True)[1]]

    def _intercepted(
        self, weights: PyTree, images: Array, wanted: Callable[[str], bool]
    ) -> tuple[PyTree, Mapping[str, PyTree]]:
        haiku = sys.modules["haiku"]
        records: dict[str, PyTree] = {}

        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            outputs = call(*args, **kwargs)
            if context.method_name == "__call__" and wanted(name := context.module.module_name):
                records[name] = outputs
            return outputs

        with haiku.intercept_methods(intercept):
            return self._apply(weights, images), records

    def _apply(self, weights: PyTree, images: Array) -> PyTree:
        with_state = isinstance(self.module, sys.modules["haiku"].TransformedWithState)
        without_key = (None,) if "rng" in inspect.signature(self.module.apply).parameters else ()
        arguments = *(weights if with_state else (weights,)), *without_key

        @functools.wraps(self.module.apply)
        def function(*args: Any, **kwargs: Any) -> PyTree:
            outputs = self.module.apply(*arguments, *args, **kwargs)
            return outputs[0] if with_state else outputs

        if self.call is not None:
            return self.call(function, images)
        return function(images, **evaluation_arguments(self.module.apply))
