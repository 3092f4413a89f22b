"""Modules of Flax Linen."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
from flax.core import unfreeze
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.modules.function import ModuleFunction, evaluation_arguments


class LinenFunction(ModuleFunction):
    """Calls an `nn.Module`; inner layers are modules by their paths, such as `Block_0.Conv_1`, and sown values."""

    @staticmethod
    def accepts(module: Any) -> bool:
        """Whether something is a module of Linen with its variables."""
        return isinstance(module, tuple) and len(module) == 2 and isinstance(module[0], nn.Module)

    @staticmethod
    def split(module: tuple[nn.Module, Mapping[str, Any]]) -> tuple[nn.Module, PyTree]:
        """Returns the module, and its variables as plain dicts."""
        network, variables = module
        if not isinstance(variables, Mapping) or not isinstance(variables.get("params", {}), Mapping):
            raise JaxTransferError("The variables of a Linen module must be the dict that module.init returns.")
        return network.clone(parent=None), nn.meta.unbox(unfreeze({**variables}))

    @staticmethod
    def build(factory: Callable[[], nn.Module]) -> nn.Module:
        """Returns the module that a factory builds."""
        return factory()

    def run(self, weights: PyTree, images: Array, layers: Iterable[str]) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Calls the module and collects its intermediates; of several calls of a module, that of the last."""
        if not layers:
            return self._apply(weights, images), {}
        outputs, intermediates = self._captured(weights, images, lambda name: name in layers)
        return outputs, intermediates

    def layer_names(self, weights: PyTree, images: Array) -> list[str]:
        """Returns the paths of modules and of sown values."""
        return [*self._captured(weights, images, lambda _: True)[1]]

    def _captured(
        self, weights: PyTree, images: Array, wanted: Callable[[str], bool]
    ) -> tuple[PyTree, Mapping[str, PyTree]]:
        def capture(module: nn.Module, method: str) -> bool:
            return method == "__call__" and bool(module.path) and wanted(".".join(module.path))

        outputs, state = self._apply(weights, images, capture_intermediates=capture, mutable=["intermediates"])
        intermediates: dict[str, Any] = flatten_dict(state.get("intermediates", {}), sep=".")
        return outputs, {name.removesuffix(".__call__"): values[-1] for name, values in intermediates.items()}

    def _apply(self, weights: PyTree, images: Array, **options: Any) -> Any:
        if self.call is not None:
            return self.module.apply(weights, images, method=self.call, **options)
        return self.module.apply(weights, images, **evaluation_arguments(self.module.__call__), **options)
