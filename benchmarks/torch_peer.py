"""Implements the Taskonomy encoder in PyTorch, and its attribution maps in three ways."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from jaxtyping import PyTree
from torch import nn

Maps = dict[str, torch.Tensor]

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


class Bottleneck(nn.Module):
    """The residual block of the release `visualpriors`; the last block of a layer subsamples its shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        if inputs != 4 * channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return self.relu(y)


class Encoder(nn.Sequential):
    """The encoder of `visualpriors` up to its group normalisation, with the same parameter names, in inference mode."""

    def __init__(self, params: PyTree) -> None:
        """Loads weights in the format of `jaxtransfer.taskonomy.networks.encode`."""
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)
        inputs = 64
        for i, (blocks, channels, stride) in enumerate(((3, 64, 2), (4, 128, 2), (6, 256, 1), (3, 512, 1)), 1):
            widths, strides = [inputs] + [4 * channels] * (blocks - 1), [1] * (blocks - 1) + [stride]
            layer = nn.Sequential(*(Bottleneck(w, channels, s) for w, s in zip(widths, strides, strict=True)))
            self.add_module(f"layer{i}", layer)
            inputs = 4 * channels
        self.compress1, self.compress_bn = nn.Conv2d(2048, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU(inplace=True)
        state = {}
        leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params["encoder"])
        for path, leaf in leaves.items():
            values = np.asarray(leaf, np.float32)
            if path[-1] == "kernel":  # 1x1 convolutions are linear layers in Flax
                values = values.reshape((1,) * (4 - values.ndim) + values.shape).transpose(3, 2, 0, 1)
            state[".".join((*path[:-1], _NAMES.get(path[-1], path[-1])))] = torch.from_numpy(values.copy())
        counters = {name: value for name, value in self.state_dict().items() if name.endswith("num_batches_tracked")}
        self.load_state_dict(counters | state)
        self.eval().requires_grad_(False)


class _EpsilonReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z)
        return z.relu()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        (z,) = ctx.saved_tensors
        # relu(z) / (z + epsilon sign(z)) is z / (z + epsilon) where z > 0 and 0 elsewhere.
        return grad_outputs[0] * torch.where(z > 0, z / (z + 1e-4), 0)


class _Rule(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return _EpsilonReLU.apply(z)


def with_rule(module: nn.Module) -> nn.Module:
    """Returns a copy whose ReLUs follow the epsilon rule."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, _Rule())
    return module


def input_gradient(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of the sum of all outputs with respect to the images."""
    images = images.detach().requires_grad_(True)
    return torch.autograd.grad(module(images).sum(), images)[0]


def batched(encoder: nn.Module, *, compiled: bool = False) -> Callable[[torch.Tensor], Maps]:
    """Contender (a): a gradient pass and an epsilon-LRP pass over the whole batch, optionally with `torch.compile`."""
    ruled = with_rule(encoder)
    forward: list[Any] = [encoder, ruled]
    if compiled:
        forward = [torch.compile(network, dynamic=False) for network in forward]

    def maps(images: torch.Tensor) -> Maps:
        gradient, modified = (input_gradient(network, images).float() for network in forward)
        x = images.float()
        return {"saliency": gradient.abs(), "input_x_gradient": x * gradient, "epsilon_lrp": x * modified}

    return maps


def captum(encoder: nn.Module) -> Callable[[torch.Tensor], Maps]:
    """Contender (b): Captum's `Saliency` and `InputXGradient`, and the epsilon-LRP pass."""
    from captum.attr import InputXGradient, Saliency

    ruled = with_rule(encoder)

    def total(images: torch.Tensor) -> torch.Tensor:
        return encoder(images).flatten(1).sum(1)

    def maps(images: torch.Tensor) -> Maps:
        images = images.detach().requires_grad_(True)
        return {
            "saliency": Saliency(total).attribute(images),
            "input_x_gradient": InputXGradient(total).attribute(images),
            "epsilon_lrp": images.detach() * input_gradient(ruled, images),
        }

    return maps


def one_by_one(encoder: nn.Module) -> Callable[[torch.Tensor], Maps]:
    """Contender (c), as in the paper: image by image, with separate passes for every method."""
    ruled = with_rule(encoder)

    def maps(images: torch.Tensor) -> Maps:
        rows = [
            (input_gradient(encoder, x).abs(), x * input_gradient(encoder, x), x * input_gradient(ruled, x))
            for x in images.split(1)
        ]
        names = "saliency", "input_x_gradient", "epsilon_lrp"
        return {name: torch.cat(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}

    return maps
