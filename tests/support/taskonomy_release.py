"""Files like those of the `visualpriors` release, with random weights."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from visualpriors.taskonomy_network import TaskonomyDecoder, TaskonomyEncoder


def randomise(module: Any, seed: int, example: tuple[int, ...]) -> Any:
    """Random weights, and batch-norm statistics near those of random inputs of shape `example`."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    norms = []
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.weight.copy_(uniform(layer.weight, 0.2, 0.5))
            # Away from 0, where rounding decides whether a ReLU passes a gradient.
            layer.bias.copy_(uniform(layer.bias, 1, 2) * uniform(layer.bias, -1, 1).sign())
            layer.momentum, layer.training = 1.0, True
            norms.append(layer)
        elif isinstance(weight := getattr(layer, "weight", None), torch.Tensor):
            torch.nn.init.kaiming_normal_(weight, generator=generator)
    with torch.no_grad():
        module(torch.rand(example, generator=generator) * 2 - 1)
    for layer in norms:
        layer.training = False
        layer.running_mean += uniform(layer.running_mean, -0.5, 0.5) * layer.running_var.sqrt()
        layer.running_var *= uniform(layer.running_var, 0.5, 1.5)
    return module


def random_encoder(seed: int) -> Any:
    return randomise(TaskonomyEncoder(normalize_outputs=False), seed, (4, 3, 64, 64))


def random_decoder(seed: int, **options: Any) -> Any:
    module = randomise(TaskonomyDecoder(**options), seed, (4, 8, 16, 16))
    if not module.is_decoder_mlp:
        # Not far into the flat ends of tanh.
        module.decoder_output[0].weight.mul_(0.1)
    return module


def constant_weights(module: torch.nn.Module, value: float = 0.5) -> dict[str, torch.Tensor]:
    """A complete state dict whose file is small: every tensor is one number, expanded."""
    return {
        name: torch.tensor(value).expand(tensor.shape) if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


def save(directory: Path, stem: str, content: Any, *, legacy: bool = False) -> Path:
    """Writes `{stem}-{sha256}.pth`."""
    beside = directory / "unnamed"
    torch.save(content, beside, _use_new_zipfile_serialization=not legacy)
    return name_by_hash(beside, stem)


def name_by_hash(file: Path, stem: str) -> Path:
    return file.rename(file.with_name(f"{stem}-{hashlib.sha256(file.read_bytes()).hexdigest()}.pth"))
