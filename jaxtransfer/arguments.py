"""Checks of what users hand over, each of which ends in one sentence that says what to do."""

import inspect
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxtransfer.errors import JaxTransferError, unknown_name

# How a model of a library becomes a function of weights and images, by the library's first name.
_MODELS = {
    "equinox": "`params, static = eqx.partition(model, eqx.is_array)` and "
    "`apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)`",
    "flax": "of Linen `apply = model.apply` and its variables as params; of NNX `graph, params = nnx.split(model)` and "
    "`apply = lambda params, x: nnx.merge(graph, params)(x)`",
    "haiku": "`apply = hk.without_apply_rng(hk.transform(model)).apply`",
    "keras": "`params = [v.value for v in model.variables]` and a function that calls `model.stateless_call` with them",
    "torch": "save it with `torch.export.save` and convert it with `jaxtransfer convert torch`",
}
_CALL = "apply must be a function called as apply(params, images)"
_ARRAYS = np.ndarray, jax.Array
# What libraries call an attempt to change a model's state during a call.
_UPDATES = ("TraceContextError", "ModifyScopeVariableError", "UnexpectedTracerError", "LeakedTracer")


def checked_methods(methods: str | Sequence[str]) -> tuple[str, ...]:
    """Names of methods as a tuple; a single name stands for itself.

    Raises:
        JaxTransferError: They are not names.
    """
    names = (methods,) if isinstance(methods, str) else methods
    if not isinstance(names, Sequence | set | frozenset | dict) or not all(isinstance(name, str) for name in names):
        raise JaxTransferError(f'methods must be names, like methods=("saliency",), not {methods!r}.')
    return tuple(names)


def check_name(kind: str, name: Any, known: Sequence[str]) -> None:
    """Checks that a setting has one of the values there are.

    Args:
        kind: What is named, in the singular: "method", "target".
        name: The name that was given.
        known: The names there are.

    Raises:
        JaxTransferError: It is not a name, or not one of them.
    """
    if not isinstance(name, str):
        raise JaxTransferError(f"The {kind} must be a name, one of {', '.join(known)}, not {name!r}.")
    if name not in known:
        raise unknown_name(kind, name, known)


def check_positive(name: str, value: Any) -> None:
    """Checks that an argument is a finite number greater than 0.

    Raises:
        JaxTransferError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < np.inf:
        raise JaxTransferError(f"{name} must be greater than 0, not {value!r}.")


def check_array(images: Any, name: str = "images") -> None:
    """Checks that images are one array with at least one image.

    Raises:
        JaxTransferError: They are a list, a tensor of another library or a picture, or there are none.
    """
    if not isinstance(images, _ARRAYS):
        kind = f"{type(images).__module__.partition('.')[0]}.{type(images).__name__}".removeprefix("builtins.")
        how = {
            "torch": "take images.numpy(), with channels last: images.permute(0, 2, 3, 1)",
            "PIL": "stack them as np.stack([np.asarray(image) for image in images])",
        }.get(type(images).__module__.partition(".")[0], "make one with np.stack or np.asarray")
        raise JaxTransferError(
            f"{name} must be a NumPy or JAX array, [images, height, width, channels], not a {kind}; {how}."
        )
    if images.ndim == 4 and 0 in images.shape:
        raise JaxTransferError(f"There are no {name}: the shape is {images.shape}.")


def check_apply(apply: Any) -> None:
    """Checks that a network's function can be called with weights and images.

    Raises:
        JaxTransferError: It cannot.
    """
    _check_call(apply, 2, _CALL)


def check_estimation(init: Any, losses: Iterable[Any], batches: Iterable[Any], key: Any) -> None:
    """Checks what principal gradients are computed from.

    Raises:
        JaxTransferError: The initialiser or a loss is no such function, batches are neither a sampler nor a pair of
            arrays, or the key is no key.
    """
    _check_call(init, 1, 'init must be a function called as init(key), like jaxtransfer.backbone("conv4").init')
    for loss in losses:
        _check_call(loss, 3, "loss must be a function called as loss(params, batch, key), like Prototypical")
    for each in batches:
        if callable(each):
            continue
        arrays = [part for part in each if isinstance(part, _ARRAYS)] if isinstance(each, tuple | list) else []
        if len(arrays) != 2 or len(each) != 2:
            raise JaxTransferError(
                "batches must be a sampler, like Episodes.of(images, labels), or a pair of arrays (images, labels), "
                f"each [batches, n, ...], not {_named(each)}."
            )
        counts = [len(array) for array in arrays]
        if counts[0] != counts[1] or not counts[0]:
            raise JaxTransferError(
                f"There are {counts[0]} batches of images and {counts[1]} of labels; there must be one of each."
            )
    if not isinstance(key, _ARRAYS):
        raise JaxTransferError(f"key must be a key, like jax.random.key(0), not {_named(key)}.")


def check_target(target: Any) -> None:
    """Checks that a target is a function.

    Raises:
        JaxTransferError: It is not.
    """
    if target is not None and not callable(target):
        raise JaxTransferError(
            f"target must be a function of the network's output, like target=lambda outputs: outputs[:, 3], not "
            f"{target!r}."
        )


def call(apply: Callable[[Any, Any], Any], params: PyTree, images: Array) -> PyTree:
    """Calls a network's function; what goes wrong with a library's model is said in one sentence.

    Raises:
        JaxTransferError: The function changes the model's state, or is a model and no function of weights and images.
    """
    try:
        outputs = apply(params, images)
    except Exception as error:
        if any(each.__name__ in _UPDATES for each in type(error).__mro__):
            raise JaxTransferError(
                "apply changes the model's state, as batch normalisation in training mode does; use running "
                f"statistics (model.eval(), use_running_average=True) ({type(error).__name__})."
            ) from error
        if _library(apply) is not None:
            raise JaxTransferError(f"{_CALL}, not {_named(apply)}{_hint(apply)}.") from error
        raise
    for leaf in jax.tree.leaves(outputs):
        if not hasattr(leaf, "dtype"):
            raise JaxTransferError(f"apply must return arrays, [images, ...], not {_named(leaf)}.")
    return outputs


def check_outputs(outputs: PyTree, images: int, *, floating: bool, chosen: bool) -> None:
    """Checks what a network returned.

    Args:
        outputs: Arrays, or their shapes and types.
        images: How many there were.
        floating: They must be of a real floating-point type.
        chosen: A target chooses among the outputs; otherwise all of them are attributed.

    Raises:
        JaxTransferError: There is no output, or (of those that are attributed) one whose first axis is not that of the
            images or that is of a wrong type.
    """
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    if not leaves:
        raise JaxTransferError("apply returned no arrays; it must return the representation, [images, ...].")
    first, suitable = None, 0
    for path, leaf in leaves:
        where = f"{jax.tree_util.keystr(path)} of its output" if path else "its output"
        problem = None
        if leaf.shape[:1] != (images,):
            problem = (
                f"apply must return arrays whose first axis is that of the {images} images, but {where} has the shape "
                f"{leaf.shape}; return the representation alone, before any mean over images and without state"
            )
        elif floating and not jnp.issubdtype(leaf.dtype, jnp.floating):
            problem = (
                f"Only floating-point outputs can be attributed, but {where} is {leaf.dtype}; return what it is made "
                "from, scores instead of classes for example"
            )
        suitable += is_representation(leaf, images)
        first = first or problem
    if first is not None and not (chosen and suitable):
        raise JaxTransferError(f"{first}.")


def is_representation(output: Any, images: int) -> bool:
    """Whether an output has an axis of images in front and can be differentiated."""
    return output.shape[:1] == (images,) and jnp.issubdtype(output.dtype, jnp.floating)


def check_scalars(scalars: Any, images: int) -> None:
    """Checks what a target returned.

    Raises:
        JaxTransferError: It is not one floating-point number for each image.
    """
    if not hasattr(scalars, "dtype") or scalars.shape != (images,):
        what = getattr(scalars, "shape", _named(scalars))
        raise JaxTransferError(f"The target must give one scalar per image, shape {(images,)}, not {what}.")
    if not jnp.issubdtype(scalars.dtype, jnp.floating):
        raise JaxTransferError(f"The target must give floating-point numbers, not {scalars.dtype}.")


def _check_call(function: Any, count: int, must: str) -> None:
    if not callable(function):
        raise JaxTransferError(f"{must}, not {_named(function)}.")
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise JaxTransferError(f"{must}, which {_named(function)} is not{_hint(function)}.") from None
    except ValueError:
        pass  # it does not say what it takes
    try:
        hash(function)
    except TypeError:
        raise JaxTransferError(f"{must}, and hashable, which {_named(function)} is not{_hint(function)}.") from None


def _library(value: Any) -> str | None:
    """The library whose model a value is; None where it is none's."""
    if inspect.isroutine(value) or type(value).__name__.startswith("_"):  # wrappers of functions, eqx.filter_jit's
        return None
    for each in type(value).__mro__:
        library = each.__module__.partition(".")[0]
        if library in _MODELS and each.__name__ in ("Module", "Layer", "Model"):
            return library
    return None


def _hint(value: Any) -> str:
    library = _library(value)
    return "" if library is None else f"; from a model of {library}: {_MODELS[library]}"


def _named(value: Any) -> str:
    if isinstance(value, str | int | float | None):
        return repr(value)
    if (library := _library(value)) is not None:
        return f"the {library} model {type(value).__name__}"
    return getattr(value, "__qualname__", None) or f"a {type(value).__name__}"
