"""Defines the networks of Taskonomy (Zamir et al., CVPR 2018) as in the PyTorch release `visualpriors`.

Attribute paths are PyTorch's (`encoder.layer1[0].conv1`), leaves are Flax's (`kernel`, `scale`, `mean`, ...).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.pooling import max_pool_3x3


def encode(
    params: PyTree, images: Float[Array, "images height width channels"]
) -> Float[Array, "images height/16 width/16 8"]:
    """Computes the representation of images: the encoder's output after its last ReLU.

    The parameter-free group normalisation that `visualpriors` can append (`normalize_outputs=True`) is not applied:
    the sum over its outputs is constant and has no gradient.

    Args:
        params: `{"encoder": ...}` as `jaxtransfer convert taskonomy` writes it; other entries are not used.
        images: Images in the range of the task's preprocessing, usually [-1, 1].
    """
    params = params["encoder"]
    graph, _ = skeleton(Encoder, params["conv1"]["kernel"].shape[2])
    return _with_params(graph, params)(images)


def decode(
    params: PyTree, images: Float[Array, "images height width channels"], *, tanh: bool = True
) -> Float[Array, "images ..."]:
    """Predicts the labels of a task from images: the decoder applied to the representation.

    Args:
        params: `{"encoder": ..., "decoder": ...}`; the architecture and width of the decoder follow from its entries.
        images: Images in the range of the task's preprocessing, usually [-1, 1].
        tanh: Whether a convolutional decoder ends with tanh (`TASKS[task].tanh`): all do except that of
            `segmentsemantic`, which returns the logits of 17 classes. A fully connected decoder never does.

    Returns:
        Predictions [images, height, width, outputs] of a convolutional decoder, or [images, outputs] of a fully
        connected one.

    Raises:
        JaxTransferError: `params` hold no decoder, or it is fully connected and the images are not 256x256.
    """
    if "decoder" not in params:
        raise JaxTransferError("These params hold no decoder; convert the task together with its decoder file.")
    representation, params = encode(params, images), params["decoder"]
    if "fc0" not in params:
        graph, _ = skeleton(ConvolutionalDecoder, params["decoder_output"]["0"]["kernel"].shape[-1])
        prediction = _with_params(graph, params)(representation)
        return jnp.tanh(prediction) if tanh else prediction
    if representation.shape[1:] != (16, 16, 8):
        raise JaxTransferError(
            f"A fully connected decoder needs images of 256x256 pixels, not {images.shape[1]}x{images.shape[2]}."
        )
    graph, _ = skeleton(FullyConnectedDecoder, params["fc2"]["kernel"].shape[-1])
    return _with_params(graph, params)(representation)


@functools.cache
def skeleton(kind: Callable[..., nnx.Module], channels: int) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns the structure of a network without its weights.

    Args:
        kind: Class of the network: `Encoder`, `ConvolutionalDecoder` or `FullyConnectedDecoder`.
        channels: Number of channels of the encoder's input, or of the decoder's output.

    Returns:
        The graph definition, and nested dicts with a `jax.ShapeDtypeStruct` for every weight.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(channels, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def _with_params(graph: nnx.GraphDef, params: PyTree) -> Any:
    """Builds the module from weights whose paths hold numbers as strings, as checkpoints do."""
    return nnx.merge(graph, nnx.restore_int_paths(params))


class Encoder(nnx.Module):
    """A ResNet-50 with its strides in the LAST block of `layer1` and `layer2`, compressed to 8 channels.

    Args:
        channels: Number of input channels.
        rngs: Random keys of the initial weights.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(channels, 64, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        self.bn1 = _batch_norm(64, rngs)
        self.layer1 = _bottlenecks(3, 64, 64, 2, rngs)
        self.layer2 = _bottlenecks(4, 256, 128, 2, rngs)
        self.layer3 = _bottlenecks(6, 512, 256, 1, rngs)
        self.layer4 = _bottlenecks(3, 1024, 512, 1, rngs)
        self.compress1 = _conv3x3(2048, 8, 1, rngs)
        self.compress_bn = _batch_norm(8, rngs)

    def __call__(
        self, images: Float[Array, "images height width channels"]
    ) -> Float[Array, "images height/16 width/16 8"]:
        """Maps images to their representation."""
        x = _max_pool(nnx.relu(self.bn1(self.conv1(images))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
        return nnx.relu(self.compress_bn(self.compress1(x)))


class Bottleneck(nnx.Module):
    """A residual block: 1x1, 3x3 and 1x1 convolutions and a shortcut.

    The 1x1 convolutions are linear layers over the channels: XLA runs matrix products faster on CPUs.

    Args:
        in_channels: Number of input channels.
        channels: Number of channels of the 3x3 convolution; the output has four times this number.
        stride: Stride of the 3x3 convolution; the shortcut keeps every `stride`-th row and column.
        rngs: Random keys of the initial weights.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.stride = stride
        self.conv1 = nnx.Linear(in_channels, channels, use_bias=False, rngs=rngs)
        self.bn1 = _batch_norm(channels, rngs)
        self.conv2 = _conv3x3(channels, channels, stride, rngs)
        self.bn2 = _batch_norm(channels, rngs)
        self.conv3 = nnx.Linear(channels, 4 * channels, use_bias=False, rngs=rngs)
        self.bn3 = _batch_norm(4 * channels, rngs)
        if in_channels == 4 * channels:
            self.downsample = nnx.List()
        else:
            shortcut = nnx.Linear(in_channels, 4 * channels, use_bias=False, rngs=rngs)
            self.downsample = nnx.List([shortcut, _batch_norm(4 * channels, rngs)])

    def __call__(self, x: Float[Array, "images h w channels"]) -> Float[Array, "images h2 w2 channels2"]:
        """Applies the block."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        for part in self.downsample:
            x = part(x)
        return nnx.relu(y + x[:, :: self.stride, :: self.stride])


class ConvolutionalDecoder(nnx.Module):
    """A decoder of convolutions that doubles height and width four times; without the final tanh.

    Args:
        channels: Number of output channels.
        rngs: Random keys of the initial weights.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv2 = _conv_layer(8, 1024, rngs)
        self.conv3 = _conv_layer(1024, 1024, rngs)
        self.conv4 = _conv_layer(1024, 512, rngs)
        self.conv5 = _conv_layer(512, 256, rngs)
        self.conv6 = _conv_layer(256, 256, rngs)
        self.conv7 = _conv_layer(256, 128, rngs)
        self.deconv8 = _deconv_layer(128, 64, rngs)
        self.conv9 = _conv_layer(64, 64, rngs)
        self.deconv10 = _deconv_layer(64, 32, rngs)
        self.conv11 = _conv_layer(32, 32, rngs)
        self.deconv12 = _deconv_layer(32, 16, rngs)
        self.conv13 = _conv_layer(16, 32, rngs)
        self.deconv14 = _deconv_layer(32, 16, rngs)
        self.decoder_output = nnx.List([nnx.Conv(16, channels, (3, 3), padding=1, rngs=rngs)])

    def __call__(self, x: Float[Array, "images h w 8"]) -> Float[Array, "images 16*h 16*w channels"]:
        """Maps representations to predictions, before tanh."""
        for layer in (
            self.conv2, self.conv3, self.conv4, self.conv5, self.conv6, self.conv7, self.deconv8, self.conv9,
            self.deconv10, self.conv11, self.deconv12, self.conv13, self.deconv14,
        ):  # fmt: skip
            for part in layer:
                x = x if part is None else part(x)
            # Not jax.nn.leaky_relu, whose derivative at 0 is 1 where PyTorch's is the slope.
            x = jnp.where(x > 0, x, 0.2 * x)
        return self.decoder_output[0](x)


class FullyConnectedDecoder(nnx.Module):
    """A decoder of two linear layers; the release's dropout between them acts in training only.

    Args:
        channels: Number of outputs.
        rngs: Random keys of the initial weights.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.fc0 = nnx.Linear(2048, 2048, use_bias=False, rngs=rngs)
        self.bn0 = _batch_norm(2048, rngs)
        self.fc2 = nnx.Linear(2048, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "images 16 16 8"]) -> Float[Array, "images channels"]:
        """Maps representations to predictions."""
        return self.fc2(nnx.relu(self.bn0(self.fc0(x.reshape(x.shape[0], -1)))))


def _bottlenecks(blocks: int, in_channels: int, channels: int, stride: int, rngs: nnx.Rngs) -> nnx.List:
    widths = [in_channels] + [4 * channels] * (blocks - 1)
    strides = [1] * (blocks - 1) + [stride]
    return nnx.List([Bottleneck(w, channels, s, rngs=rngs) for w, s in zip(widths, strides, strict=True)])


def _conv3x3(in_channels: int, channels: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(in_channels, channels, (3, 3), strides=stride, padding=1, use_bias=False, rngs=rngs)


def _batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, use_running_average=True, epsilon=1e-5, rngs=rngs)


def _conv_layer(in_channels: int, channels: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([_conv3x3(in_channels, channels, 1, rngs), _batch_norm(channels, rngs)])


def _deconv_layer(in_channels: int, channels: int, rngs: nnx.Rngs) -> nnx.List:
    """Keeps PyTorch's numbering: None stands for its layers that pad and crop, which "SAME" does here."""
    deconv = nnx.ConvTranspose(
        in_channels, channels, (3, 3), strides=2, padding="SAME", use_bias=False, transpose_kernel=True, rngs=rngs
    )
    return nnx.List([None, deconv, None, _batch_norm(channels, rngs)])


def _max_pool(x: Float[Array, "images h w channels"]) -> Float[Array, "images h2 w2 channels"]:
    """Max-pools 3x3 windows with stride 2 that may extend beyond the last row and column (`ceil_mode=True`)."""
    return max_pool_3x3(x, [(0, 1 - size % 2) for size in x.shape[1:3]])
