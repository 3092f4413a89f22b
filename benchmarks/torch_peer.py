"""PyTorch's side: the Taskonomy encoder with random weights, and three ways to its attribution maps."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import InputXGradient, Saliency
from torch import nn
from visualpriors.taskonomy_network import TaskonomyEncoder

Maps = dict[str, torch.Tensor]


def random_encoder(seed: int) -> TaskonomyEncoder:
    """An encoder whose activations keep their size from layer to layer, with batch statistics of its own."""
    generator = torch.Generator().manual_seed(seed)
    encoder = TaskonomyEncoder(normalize_outputs=False)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.get_buffer("running_mean").normal_(0, 0.1, generator=generator)
            module.get_buffer("running_var").uniform_(0.8, 1.5, generator=generator)
    return encoder


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
    """A copy whose ReLUs follow the epsilon rule."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, _Rule())
    return module


def input_gradient(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Gradient of the sum of all outputs."""
    images = images.detach().requires_grad_(True)
    return torch.autograd.grad(module(images).sum(), images)[0]


def batched(encoder: nn.Module) -> Callable[[torch.Tensor], Maps]:
    """(a) One gradient pass and one epsilon-LRP pass, all images at once."""
    ruled = with_rule(encoder)

    def maps(images: torch.Tensor) -> Maps:
        gradient, modified = input_gradient(encoder, images), input_gradient(ruled, images)
        return {"saliency": gradient.abs(), "input_x_gradient": images * gradient, "epsilon_lrp": images * modified}

    return maps


def captum(encoder: nn.Module) -> Callable[[torch.Tensor], Maps]:
    """(b) Captum's `Saliency` and `InputXGradient`, and the epsilon-LRP pass."""
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
    """(c) The paper's way: one image at a time, one execution for every method."""
    ruled = with_rule(encoder)

    def maps(images: torch.Tensor) -> Maps:
        rows = [
            (input_gradient(encoder, x).abs(), x * input_gradient(encoder, x), x * input_gradient(ruled, x))
            for x in images.split(1)
        ]
        names = "saliency", "input_x_gradient", "epsilon_lrp"
        return {name: torch.cat(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}

    return maps
