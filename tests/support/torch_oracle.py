"""The three attribution maps in PyTorch, written from the definitions and sharing nothing with jaxtransfer.

Ancona et al. 2018 (ICLR), equation for the modified chain rule: the derivative of every non-linearity f is
replaced by f(z) / (z + epsilon * sign(z)) with sign(0) = +1. Every other operation keeps its gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor], epsilon: float):
        y = f(z)
        ctx.save_for_backward(z, y)
        ctx.epsilon = epsilon
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        z, y = ctx.saved_tensors
        sign = torch.where(z >= 0, 1.0, -1.0).to(z.dtype)
        return grad_outputs[0] * y / (z + ctx.epsilon * sign), None, None


_ACTIVATIONS = {
    F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu6, F.hardtanh, F.leaky_relu,
    F.elu, F.celu, F.selu, F.softplus, torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid, torch.tanh,
    torch.Tensor.tanh, F.tanh, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.mish,
}  # fmt: skip


class EpsilonRule(TorchFunctionMode):
    """Within this context every activation function follows the rule in the backward pass."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _ACTIVATIONS:
            return func(*args, **kwargs)
        if "inplace" in kwargs:
            kwargs["inplace"] = False
        out_of_place: Any = torch.relu if func in (torch.relu_, torch.Tensor.relu_) else func
        return _Rule.apply(args[0], lambda z: out_of_place(z, *args[1:], **kwargs), self.epsilon)


def torch_maps(
    module: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, epsilon: float = 1e-4
) -> dict[str, torch.Tensor]:
    """Maps of the sum of all outputs of `module` at `images` [N, C, H, W], each [N, C, H, W]."""

    def gradient() -> torch.Tensor:
        x = images.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(module(x).sum(), x)
        return grad

    plain = gradient()
    with EpsilonRule(epsilon):
        modified = gradient()
    return {"saliency": plain.abs(), "input_x_gradient": images * plain, "epsilon_lrp": images * modified}
