"""Principal gradients in PyTorch as they were published: a fresh network for every batch, gradients averaged.

Shares nothing with jaxtransfer but the names of the weights, and the key a head is drawn from. Images are NHWC and
kernels HWIO.
"""

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tree = Any
Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes features and labels."""


class Conv4(nn.Module):
    """Vinyals et al. 2016; features in the order height, width, channels."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(inputs, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
            for inputs in (channels, 64, 64, 64)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 2, 3, 1).flatten(1)


class _Residual(nn.Module):
    """Convolutions of `sizes` with a shortcut; the first 3x3 one is strided."""

    def __init__(self, sizes: tuple[int, ...], widths: list[int], stride: int, slope: float, shortcut: bool) -> None:
        super().__init__()
        strided = sizes.index(3)
        self.slope = slope
        self.convs = nn.ModuleList(
            _conv(inputs, outputs, size, stride if i == strided else 1)
            for i, (size, inputs, outputs) in enumerate(zip(sizes, widths[:-1], widths[1:], strict=True))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for outputs in widths[1:])
        self.downsample = None
        if shortcut:
            self.downsample = nn.Sequential(_conv(widths[0], widths[-1], 1, stride), nn.BatchNorm2d(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(F.leaky_relu(y, self.slope) if i else y))
        return F.leaky_relu(y + (x if self.downsample is None else self.downsample(x)), self.slope)


class ResNet12(nn.Module):
    """Lee et al. 2019, without DropBlock."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        widths = [channels, 64, 160, 320, 640]
        self.layers = nn.ModuleList(
            _Residual((3, 3, 3), [before, *[width] * 3], 1, 0.1, True) for before, width in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.max_pool2d(layer(x), 2)
        return x.mean((2, 3))


class ResNet(nn.Module):
    """He et al. 2016 as torchvision lays it out; a bottleneck's stride is in its 3x3 convolution."""

    def __init__(self, depths: tuple[int, ...], sizes: tuple[int, ...], expansion: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv(channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.layers = nn.ModuleList()
        inputs = 64
        for stage, depth in enumerate(depths):
            width, outputs = 64 << stage, expansion * (64 << stage)
            blocks = []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                widths = [inputs, *[width] * (len(sizes) - 1), outputs]
                blocks.append(_Residual(sizes, widths, stride, 0.0, stride == 2 or inputs != outputs))
                inputs = outputs
            self.layers.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


MODULES: dict[str, Callable[..., nn.Module]] = {
    "conv4": Conv4,
    "resnet12": ResNet12,
    "resnet18": functools.partial(ResNet, (2, 2, 2, 2), (3, 3), 1),
    "resnet50": functools.partial(ResNet, (3, 4, 6, 3), (1, 3, 1), 4),
}

_RENAMED = [
    (r"^blocks\.(\d)\.0\.weight$", r"block\1 conv"),
    (r"^blocks\.(\d)\.1\.", r"block\1 norm "),
    (r"^conv1\.weight$", "stem"),
    (r"^bn1\.", "stem_norm "),
    (r"^layers\.(\d)\.(\d)\.", r"stage\1.\2 "),
    (r"^layers\.(\d)\.", r"stage\1 "),
    (r"convs\.(\d)\.weight$", r"conv\1"),
    (r"norms\.(\d)\.", r"norm\1 "),
    (r"downsample\.0\.weight$", "shortcut"),
    (r"downsample\.1\.", "shortcut_norm "),
    (r" weight$", " scale"),
]


def _path(parameter: str) -> list[str]:
    """Where a parameter stands in the nested dicts."""
    for pattern, replacement in _RENAMED:
        parameter = re.sub(pattern, replacement, parameter)
    return parameter.split(" ")


def network(name: str, params: Tree) -> nn.Module:
    """A new network with these weights, of their precision, in training mode."""
    module = MODULES[name]()
    weights = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), params)
    parameters = dict(module.named_parameters())
    assert len(jax.tree.leaves(weights)) == len(parameters)
    for parameter, tensor in parameters.items():
        value = functools.reduce(lambda node, key: node[key], _path(parameter), weights)
        value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
        assert value.shape == tensor.shape, f"{parameter}: {value.shape} is not {tensor.shape}"
        tensor.data = value.contiguous()
    return module.to(jax.tree.leaves(weights)[0].dtype).train()


def gradients(module: nn.Module) -> Tree:
    """The gradients of all weights, in nested dicts."""
    tree: dict[str, Any] = {}
    for parameter, tensor in module.named_parameters():
        assert tensor.grad is not None
        *above, last = _path(parameter)
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), above, tree)
        node[last] = (tensor.grad.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.grad).numpy().copy()
    return tree


def prototypical(ways: int, shots: int) -> Loss:
    """Snell et al. 2017, query by query; the labels say which images are of one class."""

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        classes = [features[labels == label] for label in range(ways)]
        prototypes = [members[:shots].mean(0) for members in classes]
        losses = []
        for label, members in enumerate(classes):
            for query in members[shots:]:
                logits = -torch.stack([((query - prototype) ** 2).sum() for prototype in prototypes])
                losses.append(torch.logsumexp(logits, 0) - logits[label])
        return torch.stack(losses).mean()

    return loss


def cross_entropy(kernel: np.ndarray, bias: np.ndarray) -> Loss:
    """Of a linear head with kernel [features, classes] and bias [classes]."""
    weight, offset = torch.from_numpy(np.array(kernel.T)), torch.from_numpy(np.array(bias))
    return lambda features, labels: F.cross_entropy(F.linear(features, weight, offset), labels)


def drawn_head(key: jax.Array, features: int, outputs: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of one random linear head: uniform within 1/sqrt(features)."""
    limit = features**-0.5
    kernel, bias = (
        np.asarray(jax.random.uniform(subkey, shape, dtype, -limit, limit))
        for subkey, shape in zip(jax.random.split(key), [(features, outputs), (outputs,)], strict=True)
    )
    return kernel, bias


def batch_gradient(
    name: str, loss: Loss, params: Tree, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float, Tree]:
    """Features, loss and gradient of a new network on one batch."""
    with _one_thread():
        module = network(name, params)
        features = module(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
        value = loss(features, torch.from_numpy(np.array(labels, np.int64)))
        value.backward()
    return features.detach().numpy(), value.item(), gradients(module)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads are many times slower where other processes want the same cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def published_estimator(
    name: str, losses: Iterable[Loss], weights: Iterable[Tree], batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Tree:
    """The running mean of the gradients of fresh networks, one for each batch."""
    mean = None
    for count, (loss, params, batch) in enumerate(zip(losses, weights, batches, strict=True), 1):
        _, _, gradient = batch_gradient(name, loss, params, *batch)
        mean = gradient if mean is None else _running(mean, gradient, count)
    return mean


def _running(mean: Tree, gradient: Tree, count: int) -> Tree:
    if isinstance(mean, dict):
        return {key: _running(mean[key], gradient[key], count) for key in mean}
    return mean + (gradient - mean) / count


def relative_error(actual: Tree, expected: Tree) -> float:
    """Norm of the difference over the norm, of all weights as one vector."""
    a, b = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (actual, expected)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
