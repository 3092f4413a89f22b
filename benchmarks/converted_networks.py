"""Writes four published networks by hand as Flax modules, as one would without a converter.

Each module takes its weights from the PyTorch module that it is built from.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import torchvision
from flax import nnx
from jaxtyping import Array, Float

Images = Float[Array, "images height width channels"]


def _array(tensor: torch.Tensor | None) -> Array | None:
    return None if tensor is None else jnp.asarray(tensor.detach().numpy())


def _set(module: Any, **values: Array | None) -> Any:
    """Sets the parameters of a module."""
    for name, value in values.items():
        if value is not None:
            getattr(module, name).set_value(value)
    return module


def _convolution(conv: torch.nn.Conv2d) -> nnx.Conv:
    (high, wide), (stride_high, stride_wide) = conv.kernel_size, conv.stride
    module = nnx.Conv(
        conv.in_channels,
        conv.out_channels,
        (high, wide),
        (stride_high, stride_wide),
        padding=[(int(p), int(p)) for p in conv.padding],
        feature_group_count=conv.groups,
        use_bias=conv.bias is not None,
        rngs=nnx.Rngs(0),
    )
    return _set(module, kernel=jnp.asarray(conv.weight.detach().numpy().transpose(2, 3, 1, 0)), bias=_array(conv.bias))


def _batch_norm(norm: torch.nn.BatchNorm2d) -> nnx.BatchNorm:
    module = nnx.BatchNorm(norm.num_features, use_running_average=True, epsilon=norm.eps, rngs=nnx.Rngs(0))
    statistics = {"mean": _array(norm.running_mean), "var": _array(norm.running_var)}
    return _set(module, scale=_array(norm.weight), bias=_array(norm.bias), **statistics)


def _layer_norm(norm: torch.nn.LayerNorm) -> nnx.LayerNorm:
    module = nnx.LayerNorm(norm.normalized_shape[0], epsilon=norm.eps, rngs=nnx.Rngs(0))
    return _set(module, scale=_array(norm.weight), bias=_array(norm.bias))


def _linear(linear: torch.nn.Linear) -> nnx.Linear:
    module = nnx.Linear(linear.in_features, linear.out_features, use_bias=linear.bias is not None, rngs=nnx.Rngs(0))
    return _set(module, kernel=jnp.asarray(linear.weight.detach().numpy().T), bias=_array(linear.bias))


class _ConvNorm(nnx.Module):
    def __init__(self, conv: Any, norm: Any, activation: Callable[[Array], Array] | None = None) -> None:
        self.conv, self.norm, self.activation = _convolution(conv), _batch_norm(norm), activation

    def __call__(self, x: Array) -> Array:
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class _Bottleneck(nnx.Module):
    def __init__(self, block: Any) -> None:
        self.first = _ConvNorm(block.conv1, block.bn1, jax.nn.relu)
        self.second = _ConvNorm(block.conv2, block.bn2, jax.nn.relu)
        self.third = _ConvNorm(block.conv3, block.bn3)
        self.shortcut = None if block.downsample is None else _ConvNorm(*block.downsample)

    def __call__(self, x: Array) -> Array:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(self.third(self.second(self.first(x))) + shortcut)


class ResNet(nnx.Module):
    """A ResNet of bottleneck blocks, from torchvision's."""

    def __init__(self, network: Any) -> None:
        self.stem = _ConvNorm(network.conv1, network.bn1, jax.nn.relu)
        layers = network.layer1, network.layer2, network.layer3, network.layer4
        self.blocks = nnx.List([_Bottleneck(block) for layer in layers for block in layer])
        self.head = _linear(network.fc)

    def __call__(self, images: Images) -> Float[Array, "images classes"]:
        """Computes logits."""
        x = jnp.pad(self.stem(images), ((0, 0), (1, 1), (1, 1), (0, 0)))  # zeros are no maxima after a ReLU
        x = nnx.max_pool(x, (3, 3), (2, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class _SqueezeExcitation(nnx.Module):
    def __init__(self, block: Any) -> None:
        self.reduce, self.expand = _convolution(block.fc1), _convolution(block.fc2)

    def __call__(self, x: Array) -> Array:
        squeezed = jax.nn.silu(self.reduce(x.mean((1, 2), keepdims=True)))
        return x * jax.nn.sigmoid(self.expand(squeezed))


class _MBConv(nnx.Module):
    def __init__(self, block: Any) -> None:
        *parts, project = block.block
        *conv_norms, squeeze = parts
        self.conv_norms = nnx.List([_ConvNorm(part[0], part[1], jax.nn.silu) for part in conv_norms])
        self.squeeze = _SqueezeExcitation(squeeze)
        self.project = _ConvNorm(project[0], project[1])
        self.residual = block.use_res_connect

    def __call__(self, x: Array) -> Array:
        y = x
        for part in self.conv_norms:
            y = part(y)
        y = self.project(self.squeeze(y))
        return x + y if self.residual else y


class EfficientNet(nnx.Module):
    """An EfficientNet, from torchvision's."""

    def __init__(self, network: Any) -> None:
        first, *stages, last = network.features
        self.stem = _ConvNorm(first[0], first[1], jax.nn.silu)
        self.blocks = nnx.List([_MBConv(block) for stage in stages for block in stage])
        self.last = _ConvNorm(last[0], last[1], jax.nn.silu)
        self.head = _linear(network.classifier[1])

    def __call__(self, images: Images) -> Float[Array, "images classes"]:
        """Computes logits."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x).mean((1, 2)))


def _heads(qkv: Array, heads: int) -> Array:
    """Splits queries, keys and values [..., tokens, 3 * width] into heads, [3, ..., heads, tokens, width / heads]."""
    *batch, tokens, width = qkv.shape
    return jnp.moveaxis(qkv.reshape(*batch, tokens, 3, heads, width // (3 * heads)), (-3, -2), (0, -3))


class _Mlp(nnx.Module):
    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = _linear(first), _linear(second)

    def __call__(self, x: Array) -> Array:
        return self.second(jax.nn.gelu(self.first(x), approximate=False))


class _Attention(nnx.Module):
    def __init__(self, attention: Any) -> None:
        self.qkv, self.project = _linear(attention.qkv), _linear(attention.proj)
        self.heads = attention.num_heads

    def __call__(self, x: Array) -> Array:
        query, key, value = _heads(self.qkv(x), self.heads)
        weights = jax.nn.softmax(query * query.shape[-1] ** -0.5 @ key.swapaxes(-1, -2), axis=-1)
        return self.project((weights @ value).swapaxes(1, 2).reshape(x.shape))


class _ViTBlock(nnx.Module):
    def __init__(self, block: Any) -> None:
        self.norm1, self.norm2 = _layer_norm(block.norm1), _layer_norm(block.norm2)
        self.attention = _Attention(block.attn)
        self.mlp = _Mlp(block.mlp.fc1, block.mlp.fc2)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """A Vision Transformer with a class token, from timm's."""

    def __init__(self, network: Any) -> None:
        self.patches = _convolution(network.patch_embed.proj)
        self.class_token = nnx.Param(jnp.asarray(network.cls_token.detach().numpy()))
        self.positions = nnx.Param(jnp.asarray(network.pos_embed.detach().numpy()))
        self.blocks = nnx.List([_ViTBlock(block) for block in network.blocks])
        self.norm, self.head = _layer_norm(network.norm), _linear(network.head)

    def __call__(self, images: Images) -> Float[Array, "images classes"]:
        """Computes logits."""
        x = self.patches(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        token = self.class_token.get_value()
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), *token.shape[1:])), x], 1) + self.positions.get_value()
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class _WindowAttention(nnx.Module):
    def __init__(self, attention: Any, size: int) -> None:
        self.qkv, self.project = _linear(attention.qkv), _linear(attention.proj)
        self.heads, self.window = attention.num_heads, attention.window_size[0]
        self.shift = attention.shift_size[0] if size > self.window else 0
        self.table = nnx.Param(jnp.asarray(attention.relative_position_bias_table.detach().numpy()))
        self.index = attention.relative_position_index.numpy().reshape(self.window**2, self.window**2).tolist()

    def _mask(self, size: int) -> Float[np.ndarray, "windows 1 places places"]:
        """Adds -100 where a window was put together from parts of the image that do not touch."""
        edges = [size - self.window, size - self.shift]
        region = np.digitize(np.arange(size), edges)
        regions = self._windows((region[:, None] * len(region) + region)[None, :, :, None])[..., 0]
        return np.where(regions[:, None, :, None] == regions[:, None, None, :], 0, -100).astype(np.float32)

    def _windows(self, x: Any) -> Any:
        """Cuts [images, height, width, channels] into [images * windows, places, channels]."""
        images, height, width, channels = x.shape
        x = x.reshape(images, height // self.window, self.window, width // self.window, self.window, channels)
        return x.swapaxes(2, 3).reshape(-1, self.window**2, channels)

    def __call__(self, x: Array) -> Array:
        images, size, _, channels = x.shape
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        query, key, value = _heads(self.qkv(self._windows(x)), self.heads)
        scores = query * query.shape[-1] ** -0.5 @ key.swapaxes(-1, -2)
        scores = scores + self.table.get_value()[np.array(self.index)].transpose(2, 0, 1)[None]
        if self.shift:
            masked = scores.reshape(images, -1, *scores.shape[1:]) + self._mask(size)[None]
            scores = masked.reshape(scores.shape)
        y = jax.nn.softmax(scores, axis=-1) @ value
        y = self.project(y.swapaxes(1, 2).reshape(-1, self.window**2, channels))
        side = size // self.window
        y = y.reshape(images, side, side, self.window, self.window, channels).swapaxes(2, 3)
        y = y.reshape(images, size, size, channels)
        return jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class _SwinBlock(nnx.Module):
    def __init__(self, block: Any, size: int) -> None:
        self.norm1, self.norm2 = _layer_norm(block.norm1), _layer_norm(block.norm2)
        self.attention = _WindowAttention(block.attn, size)
        self.mlp = _Mlp(block.mlp[0], block.mlp[3])

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Merging(nnx.Module):
    def __init__(self, merging: Any) -> None:
        self.norm, self.reduction = _layer_norm(merging.norm), _linear(merging.reduction)

    def __call__(self, x: Array) -> Array:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, -1)))


class Swin(nnx.Module):
    """A Swin Transformer for square images whose patches fill whole windows, from torchvision's."""

    def __init__(self, network: Any, size: int) -> None:
        (patches, *stages), layers = (network.features[0], *network.features[1:]), []
        size //= patches[0].stride[0]
        self.patches, self.first_norm = _convolution(patches[0]), _layer_norm(patches[2])
        for stage in stages:
            if isinstance(stage, torch.nn.Sequential):
                layers += [_SwinBlock(block, size) for block in stage]
            else:
                layers.append(_Merging(stage))
                size //= 2
        self.layers = nnx.List(layers)
        self.norm, self.head = _layer_norm(network.norm), _linear(network.head)

    def __call__(self, images: Images) -> Float[Array, "images classes"]:
        """Computes logits."""
        x = self.first_norm(self.patches(images))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean((1, 2)))


def _randomise(network: torch.nn.Module) -> torch.nn.Module:
    """Draws the parameters and statistics of normalisation, which are 0 and 1 in a network that was not trained."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.1, 0.1)
            tensor.uniform_(low, high, generator=generator)
    return network.eval()


def networks(size: int) -> dict[str, tuple[torch.nn.Module, nnx.Module]]:
    """Makes the four networks with random weights: in PyTorch, and by hand in Flax.

    Args:
        size: Height and width of the images; a multiple of 32, for Swin of 224.
    """
    torch.manual_seed(0)
    resnet = _randomise(torchvision.models.resnet50())
    efficientnet = _randomise(torchvision.models.efficientnet_b0())
    vit = _randomise(timm.create_model("vit_small_patch16_224", img_size=size))
    swin = _randomise(torchvision.models.swin_t())
    return {
        "ResNet-50": (resnet, ResNet(resnet)),
        "EfficientNet-B0": (efficientnet, EfficientNet(efficientnet)),
        "ViT-S": (vit, ViT(vit)),
        "Swin-T": (swin, Swin(swin, size)),
    }
