"""Checks the arguments of public functions; every check fails with one sentence that says what to do."""

import inspect
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxtransfer.defaults import METHODS, PAPER
from jaxtransfer.errors import JaxTransferError, unknown_name

# How to turn a library's model into a function of weights and images, by the name of the library's package.
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
# Names of the exceptions that libraries raise when a call changes a model's state.
_STATE_ERRORS = ("TraceContextError", "ModifyScopeVariableError", "UnexpectedTracerError", "LeakedTracer")


def checked_methods(methods: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names of methods as a tuple without repetitions; a single name may be given as text.

    The name "paper" is replaced by the three attribution methods of Song et al. (NeurIPS 2019).

    Raises:
        JaxTransferError: `methods` holds something other than names.
    """
    names = checked_names("methods", methods, "saliency")
    return tuple(dict.fromkeys(name for given in names for name in (METHODS if given == PAPER else (given,))))


def checked_names(argument: str, names: Any, example: str) -> tuple[str, ...]:
    """Returns names as a tuple without repetitions; a single name may be given as text.

    Args:
        argument: The argument that holds them, for the message.
        names: The names.
        example: One of the names there are, for the message.

    Raises:
        JaxTransferError: `names` holds something other than names.
    """
    listed = (names,) if isinstance(names, str) else names
    if not isinstance(listed, Sequence | set | frozenset | dict) or not all(isinstance(name, str) for name in listed):
        raise JaxTransferError(f'{argument} must be names, like {argument}=("{example}",), not {names!r}.')
    return tuple(dict.fromkeys(listed))


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
        JaxTransferError: The argument is something else.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < np.inf:
        raise JaxTransferError(f"{name} must be greater than 0, not {value!r}.")


def check_array(images: Any, name: str = "images") -> None:
    """Checks that images are one array with at least one image.

    Raises:
        JaxTransferError: The images are a list, a tensor of another library or a PIL image, or there are none.
    """
    if not isinstance(images, _ARRAYS):
        library = type(images).__module__.partition(".")[0]
        type_name = f"{library}.{type(images).__name__}".removeprefix("builtins.")
        advice = {
            "torch": "take images.numpy(), with channels last: images.permute(0, 2, 3, 1)",
            "PIL": "stack them as np.stack([np.asarray(image) for image in images])",
        }.get(library, "make one with np.stack or np.asarray")
        raise JaxTransferError(
            f"{name} must be a NumPy or JAX array, [images, height, width, channels], not a {type_name}; {advice}."
        )
    if images.ndim == 4 and 0 in images.shape:
        raise JaxTransferError(f"There are no {name}: the shape is {images.shape}.")


def check_apply(apply: Any) -> None:
    """Checks that a network's function can be called with weights and images.

    Raises:
        JaxTransferError: It cannot be called so, or it is not hashable.
    """
    _check_call(apply, 2, _CALL)


def check_estimation(init: Any, losses: Iterable[Any], batches: Iterable[Any], key: Any) -> None:
    """Checks the arguments that principal gradients are computed from.

    Args:
        init: Called as `init(key)`, returns the weights of a backbone.
        losses: Called as `loss(params, batch, key)`.
        batches: For every task a sampler, or a pair of arrays (images, labels), each [batches, n, ...].
        key: A PRNG key.

    Raises:
        JaxTransferError: `init` or a loss cannot be called so, batches are neither a sampler nor a pair of arrays of
            equal length, or `key` is not an array.
    """
    _check_call(init, 1, 'init must be a function called as init(key), like jaxtransfer.backbone("conv4").init')
    for loss in losses:
        _check_call(loss, 3, "loss must be a function called as loss(params, batch, key), like Prototypical")
    for of_task in batches:
        if not callable(of_task):
            _check_pair(of_task)
    if not isinstance(key, _ARRAYS):
        raise JaxTransferError(f"key must be a key, like jax.random.key(0), not {_in_words(key)}.")


def _check_pair(batches: Any) -> None:
    arrays = [part for part in batches if isinstance(part, _ARRAYS)] if isinstance(batches, tuple | list) else []
    if len(arrays) != 2 or len(batches) != 2:
        raise JaxTransferError(
            "batches must be a sampler, like Episodes.of(images, labels), or a pair of arrays (images, labels), "
            f"each [batches, n, ...], not {_in_words(batches)}."
        )
    images, labels = (len(array) for array in arrays)
    if images != labels or not images:
        raise JaxTransferError(
            f"There are {images} batches of images and {labels} of labels; give equal numbers, 1 or more."
        )


def check_target(target: Any) -> None:
    """Checks that a target is a function or None.

    Raises:
        JaxTransferError: The target is something else.
    """
    if target is not None and not callable(target):
        raise JaxTransferError(
            f"target must be a function of the network's output, like target=lambda outputs: outputs[:, 3], not "
            f"{target!r}."
        )


def call(apply: Callable[[Any, Any], Any], params: PyTree, images: Array) -> PyTree:
    """Calls a network's function and explains the errors that models of libraries raise.

    Raises:
        JaxTransferError: The function changes the model's state, is a model instead of a function of weights and
            images, or returns something other than arrays.
    """
    try:
        outputs = apply(params, images)
    except Exception as error:
        if is_state_error(error):
            raise JaxTransferError(
                "apply changes the model's state, as batch normalisation in training mode does; use running "
                f"statistics (model.eval(), use_running_average=True) ({type(error).__name__})."
            ) from error
        if _library(apply) is not None:
            raise JaxTransferError(f"{_CALL}, not {_in_words(apply)}{_hint(apply)}.") from error
        raise
    for leaf in jax.tree.leaves(outputs):
        if not hasattr(leaf, "dtype"):
            raise JaxTransferError(f"apply must return arrays, [images, ...], not {_in_words(leaf)}.")
    return outputs


def is_state_error(error: Exception) -> bool:
    """Whether a library raised an error because a call changes the state of its model."""
    return any(base.__name__ in _STATE_ERRORS for base in type(error).__mro__)


def check_outputs(outputs: PyTree, images: int, *, floating: bool, chosen: bool) -> None:
    """Checks the shapes and types of a network's outputs.

    Args:
        outputs: A tree of arrays, or of their shapes and types.
        images: Number of images that the network was called with.
        floating: Whether the outputs must have a real floating-point type.
        chosen: Whether a target chooses among the outputs, so that one suitable output is enough; otherwise all
            outputs are attributed and must be suitable.

    Raises:
        JaxTransferError: There is no output, or an output has a first axis other than the images or a wrong type.
    """
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    if not leaves:
        raise JaxTransferError("apply returned no arrays; it must return the representation, [images, ...].")
    first_problem, suitable = None, 0
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
                f"Only floating-point outputs can be attributed, but {where} is {leaf.dtype}; return the values that "
                "it is computed from, for example scores instead of classes"
            )
        suitable += is_representation(leaf, images)
        first_problem = first_problem or problem
    if first_problem is not None and not (chosen and suitable):
        raise JaxTransferError(f"{first_problem}.")


def is_representation(output: Any, images: int) -> bool:
    """Whether the first axis of an output is the images and its type can be differentiated."""
    return output.shape[:1] == (images,) and jnp.issubdtype(output.dtype, jnp.floating)


def check_scalars(scalars: Any, images: int) -> None:
    """Checks that a target returned one floating-point number for each image.

    Raises:
        JaxTransferError: The target returned something else.
    """
    if not hasattr(scalars, "dtype") or scalars.shape != (images,):
        returned = getattr(scalars, "shape", _in_words(scalars))
        raise JaxTransferError(f"The target must return one scalar per image, shape {(images,)}, not {returned}.")
    if not jnp.issubdtype(scalars.dtype, jnp.floating):
        raise JaxTransferError(f"The target must return floating-point numbers, not {scalars.dtype}.")


def _check_call(function: Any, count: int, requirement: str) -> None:
    """Checks that a function takes `count` positional arguments and is hashable, as `jax.jit` wants it."""
    if not callable(function):
        raise JaxTransferError(f"{requirement}, not {_in_words(function)}.")
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise JaxTransferError(f"{requirement}, which {_in_words(function)} is not{_hint(function)}.") from None
    except ValueError:
        pass  # a builtin without a signature
    try:
        hash(function)
    except TypeError:
        raise JaxTransferError(
            f"{requirement}, and hashable, which {_in_words(function)} is not{_hint(function)}."
        ) from None


def _library(value: Any) -> str | None:
    """Returns the library whose model a value is, or None if it is no model."""
    if inspect.isroutine(value) or type(value).__name__.startswith("_"):  # such as the wrapper of eqx.filter_jit
        return None
    for base in type(value).__mro__:
        library = base.__module__.partition(".")[0]
        if library in _MODELS and base.__name__ in ("Module", "Layer", "Model"):
            return library
    return None


def _hint(value: Any) -> str:
    library = _library(value)
    return "" if library is None else f"; from a model of {library}: {_MODELS[library]}"


def _in_words(value: Any) -> str:
    """Describes a value for an error message: a short literal itself, otherwise its name or type."""
    if isinstance(value, str | int | float | None):
        return repr(value)
    if (library := _library(value)) is not None:
        return f"the {library} model {type(value).__name__}"
    return getattr(value, "__qualname__", None) or f"a {type(value).__name__}"


def check_batch_size(size: int | None) -> None:
    """Raises an error if batches are to have no images; None stands for a size that is chosen later."""
    if size is not None and size < 1:
        raise JaxTransferError(f"The batch size must be at least 1, not {size}.")


def check_unique(kind: str, names: Sequence[str]) -> None:
    """Raises an error if there are no names, or two are equal; `kind` says in the singular what has the names."""
    if not names:
        raise JaxTransferError(f"There are no {kind}s.")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise JaxTransferError(f"Several {kind}s have the name {repeated[0]!r}; names must differ.")
