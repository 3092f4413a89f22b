"""The encoder that every task of Rooms trains, and the readouts that make answers of its representation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtransfer.networks.preprocess import Preprocess

WIDTH = 64
"""Channels of the representation; it is 8 x 8 for images of 64 x 64."""


def preprocess(task: str) -> Preprocess:
    """What the encoder of a task wants to see: the image in [-1, 1], for `colorization` its lightness alone."""
    return Preprocess((64, 64), 0.5, 0.5, lightness=task == "colorization")


def encode(params: PyTree, images: Float[Array, "images h w c"]) -> Float[Array, "images h/8 w/8 64"]:
    """The representation of images, after the last ReLU.

    Args:
        params: Weights as nested dicts, of any floating type; they are used as float32.
        images: In [-1, 1]; of one channel for `colorization`, of three for the other tasks.
    """
    return encoder(params)(images)


def encoder(params: PyTree) -> "Encoder":
    """The encoder that has these weights, normalising by what it saw in training."""
    graph, _ = skeleton(params["conv"]["kernel"].shape[2])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return nnx.merge(graph, nnx.restore_int_paths(params))


@functools.cache
def skeleton(channels: int) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The structure of an encoder for so many input channels, and shapes where its weights belong."""
    encoder = nnx.eval_shape(lambda: Encoder(channels, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(nnx.view(encoder, use_running_average=True))
    return graph, nnx.to_pure_dict(state)


class Encoder(nnx.Module):
    """A residual network of 223,000 weights: one convolution, four blocks, an eighth of the height and width.

    Args:
        channels: Of the images.
        convolve: What computes convolutions; see `flax.nnx.Conv`.
        rngs: For the initial weights.
    """

    def __init__(
        self, channels: int, *, convolve: Callable[..., Array] = jax.lax.conv_general_dilated, rngs: nnx.Rngs
    ) -> None:
        self.conv = _conv(channels, 24, 2, convolve, rngs)
        self.norm = nnx.BatchNorm(24, rngs=rngs)
        shapes = ((24, 32, 2), (32, WIDTH, 2), (WIDTH, WIDTH, 1), (WIDTH, WIDTH, 1))
        self.blocks = nnx.List([Block(*shape, convolve, rngs=rngs) for shape in shapes])

    def __call__(self, images: Float[Array, "images h w c"]) -> Float[Array, "images h/8 w/8 64"]:
        """Maps images in [-1, 1] to their representation."""
        x = nnx.relu(self.norm(self.conv(images)))
        for block in self.blocks:
            x = block(x)
        return x


class Block(nnx.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inputs: Channels.
        outputs: Channels.
        stride: Of the first convolution.
        convolve: As of `Encoder`.
        rngs: For the initial weights.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, convolve: Callable[..., Array], *, rngs: nnx.Rngs
    ) -> None:
        self.stride = stride
        self.conv1 = _conv(inputs, outputs, stride, convolve, rngs)
        self.norm1 = nnx.BatchNorm(outputs, rngs=rngs)
        self.conv2 = _conv(outputs, outputs, 1, convolve, rngs)
        self.norm2 = nnx.BatchNorm(outputs, rngs=rngs)
        self.shortcut = None if inputs == outputs else nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "images h w inputs"]) -> Float[Array, "images h2 w2 outputs"]:
        """Applies the block."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        x = x[:, :: self.stride, :: self.stride]
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class PixelReadout(nnx.Module):
    """From a representation to answers for pixels: a convolution, then patches.

    Args:
        inputs: Channels of the representation.
        hidden: Channels between.
        outputs: Numbers for every pixel.
        kernel: Height and width of the convolution.
        side: Of a patch: how many pixels for a row or column of the representation; 8 answers for all of an image.
        convolve: As of `Encoder`.
        rngs: For the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int = 3,
        side: int = 8,
        *,
        convolve: Callable[..., Array] = jax.lax.conv_general_dilated,
        rngs: nnx.Rngs,
    ) -> None:
        self.side = side
        self.conv = _conv(inputs, hidden, 1, convolve, rngs, size=kernel, bias=True)
        self.patches = nnx.Linear(hidden, side * side * outputs, rngs=rngs)

    def __call__(
        self, representation: Float[Array, "images h w inputs"]
    ) -> Float[Array, "images side*h side*w outputs"]:
        """Answers for every pixel."""
        patches = self.patches(nnx.relu(self.conv(representation)))
        (images, h, w, _), side = patches.shape, self.side
        return patches.reshape(images, h, w, side, side, -1).swapaxes(2, 3).reshape(images, side * h, side * w, -1)


class VectorReadout(nnx.Module):
    """From a representation to one answer for the image: a 3x3 convolution of stride 2, and two layers.

    Args:
        inputs: Channels of the representation, which is 8 x 8.
        hidden: Channels and units between.
        outputs: Numbers for the image.
        convolve: As of `Encoder`.
        rngs: For the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        convolve: Callable[..., Array] = jax.lax.conv_general_dilated,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = _conv(inputs, hidden, 2, convolve, rngs, bias=True)
        self.layer = nnx.Linear(16 * hidden, hidden, rngs=rngs)
        self.answer = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, representation: Float[Array, "images 8 8 inputs"]) -> Float[Array, "images outputs"]:
        """Answers for every image."""
        x = nnx.relu(self.conv(representation))
        return self.answer(nnx.relu(self.layer(x.reshape(len(x), -1))))


def _conv(
    inputs: int,
    outputs: int,
    stride: int,
    convolve: Callable[..., Array],
    rngs: nnx.Rngs,
    *,
    size: int = 3,
    bias: bool = False,
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias,
        conv_general_dilated=convolve,
        rngs=rngs,
    )
