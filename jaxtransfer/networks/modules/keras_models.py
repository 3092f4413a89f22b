"""Models of Keras on its JAX backend."""

import functools
import json
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from jaxtyping import Array, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.modules.function import ModuleFunction
from jaxtransfer.networks.modules.structure import structure

# Keys of a configuration that hold names of layers, which Keras numbers anew for every model.
_NAMES = "name", "keras_history", "input_layers", "output_layers"


class KerasFunction(ModuleFunction):
    """Calls a `keras.Model`; inner layers have their own names, and those of a model in it `outer/inner`."""

    @staticmethod
    def accepts(module: Any) -> bool:
        """Whether something is a model of Keras."""
        keras = sys.modules.get("keras")
        return keras is not None and isinstance(module, keras.Model)

    @staticmethod
    def split(module: Any) -> tuple[Any, PyTree]:
        """Returns the model and the values of its variables."""
        if (backend := sys.modules["keras"].backend.backend()) != "jax":
            raise JaxTransferError(
                f"Keras runs on {backend}; set the environment variable KERAS_BACKEND=jax before it is imported."
            )
        if not module.built:
            raise JaxTransferError(f"The Keras model {module.name} has no weights yet; call it with images first.")
        trainable, others = ([variable.value for variable in variables] for variables in _variables(module))
        return module, {"trainable": trainable, "other": others}

    @staticmethod
    def build(factory: Callable[[], Any]) -> Any:
        """Returns the model that a factory builds."""
        return factory()

    def run(self, weights: PyTree, images: Array, layers: Iterable[str]) -> tuple[PyTree, Mapping[str, PyTree]]:
        """Calls the model; of several calls of a layer, the last is kept."""
        keras, model, records = sys.modules["keras"], self.module, {}
        watched = {name: layer for name, layer in _layers(model) if name in layers}
        trainable, others = _variables(model)
        values = [*zip(trainable, weights["trainable"], strict=True), *zip(others, weights["other"], strict=True)]
        try:
            for name, layer in watched.items():
                object.__setattr__(layer, "call", _recorded(layer.call, functools.partial(records.__setitem__, name)))
            with keras.StatelessScope(state_mapping=values):
                outputs = self.call(model, images) if self.call is not None else model(images, training=False)
        finally:
            for layer in watched.values():
                object.__delattr__(layer, "call")
        return outputs, records

    def layer_names(self, weights: PyTree, images: Array) -> list[str]:
        """Returns the names of the layers."""
        return [name for name, _ in _layers(self.module)]

    def describe(self) -> Hashable:
        """Describes the model by its configuration and by the functions in its layers; without one, by itself."""
        try:
            config = sys.modules["keras"].saving.serialize_keras_object(self.module)
        except (NotImplementedError, TypeError, ValueError):
            return id(self.module), self.module.name
        layers = [self.module, *(layer for _, layer in _layers(self.module))]
        names = {name: str(number) for number, name in enumerate(dict.fromkeys(layer.name for layer in layers))}
        # A configuration has only the names of functions.
        functions = [(type(layer), *filter(_is_function, vars(layer).values())) for layer in layers]
        return json.dumps(_renamed(config, names), sort_keys=True), structure(functions)


def _variables(model: Any) -> tuple[list[Any], list[Any]]:
    return model.trainable_variables, model.non_trainable_variables


def _layers(model: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the layers of a model, and those of the models in it, with their names."""
    for layer in model.layers:
        yield path + layer.name, layer
        if isinstance(layer, sys.modules["keras"].Model):
            yield from _layers(layer, f"{path}{layer.name}/")


def _recorded(call: Callable[..., Any], record: Callable[[Any], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        record(outputs)
        return outputs

    return recorded


def _is_function(value: Any) -> bool:
    """Whether something is a function of the user's."""
    is_layer = isinstance(value, sys.modules["keras"].Layer)
    return callable(value) and not is_layer and value.__module__.partition(".")[0] != "keras"


def _renamed(config: Any, names: dict[str, str], key: str = "") -> Any:
    """Replaces the names of layers in a configuration by numbers, and leaves out how the model was trained.

    Args:
        config: The configuration or a part of it.
        names: The numbers of layers by their names, to which inputs and operations are added.
        key: The key of this part.
    """
    if key == "dtype":
        return config
    if isinstance(config, dict):
        if config.get("class_name") == "InputLayer" or "inbound_nodes" in config:
            names.setdefault(config["config"]["name"], str(len(names)))
        return {key: _renamed(value, names, key) for key, value in config.items() if key != "compile_config"}
    if isinstance(config, list | tuple):
        return [_renamed(value, names, key) for value in config]
    return names.get(config, config) if isinstance(config, str) and key in _NAMES else config
