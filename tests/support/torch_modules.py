"""PyTorch modules, exported and run as PyTorch runs them."""

import warnings

import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

IMAGE = torch.zeros(2, 3, 8, 8)


def export(module, *inputs, dynamic=True, train=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
        return torch.export.export(module.train(train), inputs, dynamic_shapes=shapes)


def save(program, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)
    return path


def images(n, size, channels=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, size, size, channels)), jnp.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def outputs(module, x):
    with torch.no_grad():
        return module.eval()(channels_first(x)).numpy()


def seeded(module, seed=0):
    """Weights that are not small, and batch norms that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 10
            tensor.data = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
            if name.endswith("running_var") or ("weight" in name and tensor.ndim == 1):
                tensor.data = tensor.data.abs() + 0.5
    return module


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.relu(self.conv(x)).mean((2, 3))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, width=6, dropout=0.0, **options):
        super().__init__()
        self.attention, self.options = nn.MultiheadAttention(width, 2, dropout, batch_first=True), options

    def forward(self, x):
        x = x.flatten(1, 2)
        return self.attention(x, x + 1, 2 * x, **self.options)[0]
