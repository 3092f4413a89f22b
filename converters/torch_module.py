"""Converts PyTorch modules as they are: exports them, and checks the converted network against PyTorch."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch.export import Dim, ExportedProgram

from jaxtransfer.converters.layers import Tokens, with_outputs
from jaxtransfer.converters.torch_export import from_exported, naming, with_channels_last
from jaxtransfer.errors import JaxTransferError, first_line
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.preprocess import Preprocess, PreprocessFn

TOLERANCE = 1e-4
"""Largest accepted difference from PyTorch, relative to the largest value of a layer."""


def from_torch(
    module: torch.nn.Module,
    example_input: torch.Tensor,
    *,
    name: str,
    representation: str | Sequence[str] | None = None,
    tokens: Tokens = "all",
    preprocess: PreprocessFn | None = None,
) -> Network:
    """Converts a PyTorch module to a network for JAX, and checks that both compute the same.

    The module is exported in evaluation mode; its own mode is restored. It must take one batch of images; a module
    with other inputs, such as a dict, has to be wrapped in one that takes images alone.

    Args:
        module: The module, on the CPU and in float32.
        example_input: Images [images, channels, height, width] of the size that the network will take.
        name: Name of the network.
        representation: What the network returns: the path of a submodule (`"layer4"`, `"blocks.11.norm1"`), the name
            of an output (`"last_hidden_state"`), or `"pre-head"`, the input of the last operation with weights, its
            places averaged. Several names: the network returns a dict of layers. None: the module's single output.
        tokens: What is kept of values [images, tokens, units]: `"class"`, the first token, `"mean"`, the mean of the
            tokens of the image's patches, `"grid"`, these as [images, h, w, units], or `"all"`.
        preprocess: The network's preprocessing; None: it takes images of the example's size unchanged.

    Returns:
        The network. It takes images with their channels last, and so are the grids that it returns.

    Raises:
        JaxTransferError: The module cannot be exported or uses an unsupported operation, there is no such layer, or
            an output for a photograph or for random numbers differs from PyTorch's by more than 1e-4 of its largest
            value.

    Examples:
        >>> import torch
        >>> layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)]
        >>> module = torch.nn.Sequential(*layers)
        >>> network = jt.from_torch(module, torch.zeros(1, 3, 8, 8), name="tiny", representation="1")
        >>> network.apply(network.params, jnp.ones((4, 8, 8, 3))).shape
        (4, 6, 6, 8)
    """
    names = [representation] if isinstance(representation, str) else representation or ()
    return to_network(export(module, example_input), name, names, tokens, preprocess)


def export(module: torch.nn.Module, example_input: torch.Tensor) -> ExportedProgram:
    """Exports a module in evaluation mode, for batches of any size or, if that is not possible, for one image.

    Raises:
        JaxTransferError: The example is no batch of images, or PyTorch cannot trace the module.
    """
    if not isinstance(example_input, torch.Tensor) or example_input.ndim != 4:
        raise JaxTransferError(
            "example_input must be a tensor of images [images, channels, height, width]: wrap a module that takes "
            "anything else, such as a dict, in one that takes images."
        )
    one = example_input[:1]
    with _evaluating(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations
        try:
            # Not one image: PyTorch takes 1 for a constant.
            return torch.export.export(module, (torch.cat([one, one]),), dynamic_shapes=({0: Dim.DYNAMIC},))
        except Exception:  # PyTorch raises many types
            with contextlib.suppress(Exception):
                return torch.export.export(module, (one,))
            try:
                module(one)
            except Exception as error:
                raise JaxTransferError(
                    f"The {type(module).__name__} does not take these images: {first_line(error)}"
                ) from error
            raise JaxTransferError(
                f"torch.export cannot trace this {type(module).__name__}, for example since what it does depends on "
                "the values of the image: export the part that computes the representation."
            ) from None


def to_network(
    exported: ExportedProgram,
    name: str,
    representation: Sequence[str] = (),
    tokens: Tokens = "all",
    preprocess: PreprocessFn | None = None,
) -> Network:
    """Converts an exported network and checks it against PyTorch; see `from_torch`."""
    with naming(name):
        chosen = with_outputs(exported, representation, tokens)
        program, params = from_exported(chosen, representation or ("",))
        network = Network(name, with_channels_last(program, params), params, preprocess)
        if (difference := relative_difference(chosen, network)) > TOLERANCE:
            raise JaxTransferError(
                f"the converted network differs from PyTorch by {difference:.1e} of its largest value, more than "
                f"{TOLERANCE}; it is not kept."
            )
    return network


def relative_difference(exported: ExportedProgram, network: Network) -> float:
    """Returns the largest difference between a converted network and PyTorch, for random numbers and a photograph.

    Args:
        exported: The network in PyTorch.
        network: The converted network, which returns the same layers in the same order.

    Returns:
        The difference relative to the largest value of a layer, the larger of those of the two images; infinite where
        a value is not finite.
    """
    program: Any = network.apply
    images = _test_images(program.shape, network.preprocess)
    apply = jax.jit(network.apply)
    run = exported.module()
    differences = []
    for image in images[:, None]:
        with jax.default_matmul_precision("highest"):
            outputs = apply(network.params, image)
        with torch.no_grad():
            theirs = run(torch.from_numpy(np.array(image).transpose(0, 3, 1, 2).copy()))
        # In the order of the program, since JAX sorts the keys of dicts.
        ours = [outputs] if isinstance(program.output, str) else [outputs[layer] for layer in program.output]
        for a, b in zip(ours, theirs if isinstance(theirs, tuple) else (theirs,), strict=True):
            expected = b.numpy()
            if a.shape != expected.shape:
                expected = expected.transpose(0, 2, 3, 1)
            # XLA takes numbers below the smallest normal one for zero, PyTorch does not.
            scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny) / TOLERANCE)
            difference = float(np.abs(np.asarray(a) - expected).max()) / scale
            differences.append(difference if np.isfinite(difference) else np.inf)
    return max(differences)


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode and then restores the mode of each of its parts."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _test_images(
    shape: tuple[int, int, int], preprocess: PreprocessFn | None
) -> Float[Array, "images height width channels"]:
    """Returns preprocessed images: random numbers and, if the network takes colours or grey, a photograph."""
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(1, *shape)), jnp.float32)
    file: Any = get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(file) as image:
        photograph = jnp.asarray(np.asarray(image.convert("RGB")), jnp.float32)[None] / 255
    photograph = (preprocess or Preprocess(shape[:2]))(photograph)
    return jnp.concatenate([noise, photograph]) if photograph.shape == noise.shape else noise
