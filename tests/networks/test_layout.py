"""Tests that programs move no axes but those of their results, and compute the same as before."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jaxtransfer as jt
from jaxtransfer.converters import torch_export
from jaxtransfer.networks.layout import without_transpositions

_SIZE = 8


class _Convolutions(nn.Module):
    """A residual block with a pool, a squeeze, a concatenation and an interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        y = nn.functional.mish(self.second(x)) * torch.sigmoid(x.mean((2, 3), keepdim=True))
        x = torch.cat([x, nn.functional.pad(y, (1, -1, 0, 0))], 1)
        x = nn.functional.max_pool2d(x, 3, 2, 1) + nn.functional.avg_pool2d(x, 2)
        return nn.functional.interpolate(self.last(x), scale_factor=2, mode="nearest")


def _after(change):
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return change(self.conv(x))

    return Network()


_CHANGES = {
    "flatten": lambda x: x.flatten(1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
    "places apart": lambda x: x.view(-1, 4, 4, 2, 8).permute(0, 2, 4, 3, 1).softmax(-1),
    "halves of channels": lambda x: x.view(-1, 2, 2, 8, 8).sum(2),
    "channels and rows as one": lambda x: x.reshape(-1, 32, 8) * torch.arange(8.0),
    "softmax over channels": lambda x: x.softmax(1),
    "mean of rows": lambda x: x.mean(2),
    "chunks": lambda x: torch.mul(*x.chunk(2, 1)),
    "window": lambda x: x[:, 1:, 2:6, ::2].flip(3),
    "a channel alone": lambda x: x[:, 0].unsqueeze(1) + x,
    "sum with itself turned": lambda x: x + x.transpose(2, 3),
    "shuffled": lambda x: nn.functional.pixel_shuffle(x, 2),
}


def _converted(module):
    torch.manual_seed(0)
    images = torch.randn(2, 3, _SIZE, _SIZE)
    exported = torch.export.export(module.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with torch.no_grad():
        expected = module(images).numpy()
    program, params = torch_export.from_exported(exported)
    return program, params, jnp.asarray(images.numpy().transpose(0, 2, 3, 1)), expected


def _moves(function, *arguments):
    """Returns the shapes of activations that the compiled program transposes."""
    text = jax.jit(function).lower(*arguments).compile().as_text() or ""
    return [shape for shape in re.findall(r"= f32\[([\d,]*)\]\S* transpose\(", text) if shape.startswith("2,")]


def test_feature_maps_stay_where_they_are():
    program, params, images, expected = _converted(_Convolutions())
    np.testing.assert_allclose(program(params, images), expected, rtol=1e-5, atol=1e-6)
    # The result alone has its channels first.
    assert _moves(program, params, images) == ["2,4,8,8"]
    last = torch_export.with_channels_last(program, params)
    assert _moves(last, params, images) == []
    np.testing.assert_array_equal(last(params, images), program(params, images).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_axes_keep_their_meaning(change):
    program, params, images, expected = _converted(_after(change))
    np.testing.assert_allclose(program(params, images), expected, rtol=1e-5, atol=1e-6)


def test_maps_are_those_of_the_plain_program():
    program, params, images, _ = _converted(_Convolutions())
    plain = jt.attribute(lambda params, images: program._run(params, images), params, images)
    for method, values in jt.attribute(program, params, images).items():
        np.testing.assert_allclose(values, plain[method], rtol=1e-4, atol=1e-6, err_msg=method)


def test_derivatives_of_functions_with_their_own_hold_in_any_order():
    @jax.custom_jvp
    def twice(x):
        return 2 * x

    twice.defjvp(lambda primals, tangents: (twice(*primals), 5 * tangents[0]))
    x = jnp.arange(24.0).reshape(2, 3, 4)

    def function(x):
        return twice(x.transpose(1, 2, 0)) * jnp.arange(2.0)[None, None]

    value, pull = jax.vjp(lambda x: without_transpositions(function, x), x)
    np.testing.assert_array_equal(value, function(x))
    expected = np.zeros((2, 3, 4), np.float32)
    expected[1] = 5
    np.testing.assert_array_equal(pull(jnp.ones_like(value))[0], expected)
