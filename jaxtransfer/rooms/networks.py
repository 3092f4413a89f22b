"""The architecture of the encoders of Rooms, and of the readouts that turn representations into predictions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtransfer.networks.preprocess import Preprocess

WIDTH = 64
"""Number of channels of the representation, which is 8 x 8 for images of 64 x 64."""


def preprocess(task: str) -> Preprocess:
    """Returns the preprocessing of a task's encoder: the image in [-1, 1]; for `colorization` only its lightness."""
    return Preprocess((64, 64), 0.5, 0.5, lightness=task == "colorization")


def encode(params: PyTree, images: Float[Array, "images h w c"]) -> Float[Array, "images h/8 w/8 64"]:
    """Computes the representation of images: the output of the encoder's last ReLU.

    Args:
        params: Weights as nested dicts, of any floating type; they are converted to float32.
        images: Images in [-1, 1]; one channel for `colorization`, three for the other tasks.
    """
    return encoder(params)(images)


def encoder(params: PyTree) -> "Encoder":
    """Builds the encoder with these weights; batch normalisation uses the running statistics of training."""
    graph, _ = skeleton(params["conv"]["kernel"].shape[2])
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return nnx.merge(graph, nnx.restore_int_paths(params))


@functools.cache
def skeleton(channels: int) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns the graph of an encoder with this number of input channels, and the shapes of its weights."""
    encoder = nnx.eval_shape(lambda: Encoder(channels, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(nnx.view(encoder, use_running_average=True))
    return graph, nnx.to_pure_dict(state)


class Encoder(nnx.Module):
    """A residual network of 223,000 weights: one convolution and four blocks; height and width shrink to an eighth.

    Args:
        channels: Number of channels of the images.
        convolve: Function that computes convolutions; see `conv_general_dilated` of `flax.nnx.Conv`.
        rngs: Random streams of the initial weights.
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
    """A residual block: two 3x3 convolutions, and a shortcut past them.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        stride: Stride of the first convolution.
        convolve: See `Encoder`.
        rngs: Random streams of the initial weights.
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
    """Predicts values for pixels from a representation: a convolution, then a linear map to patches of pixels.

    Args:
        inputs: Channels of the representation.
        hidden: Channels after the convolution.
        outputs: Values per pixel.
        kernel: Height and width of the convolution's kernel.
        side: Height and width of the patch that each place of the representation predicts; 8 covers every pixel.
        convolve: See `Encoder`.
        rngs: Random streams of the initial weights.
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
        """Returns the predictions for every pixel."""
        patches = self.patches(nnx.relu(self.conv(representation)))
        (images, h, w, _), side = patches.shape, self.side
        return patches.reshape(images, h, w, side, side, -1).swapaxes(2, 3).reshape(images, side * h, side * w, -1)


class VectorReadout(nnx.Module):
    """Predicts a vector for the image from a representation: a 3x3 convolution of stride 2 and two linear layers.

    Args:
        inputs: Channels of the representation, which is 8 x 8.
        hidden: Channels of the convolution and units of the hidden layer.
        outputs: Values per image.
        convolve: See `Encoder`.
        rngs: Random streams of the initial weights.
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
        """Returns the predictions for every image."""
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
