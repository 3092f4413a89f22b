"""Layers against PyTorch in float64: values and gradients of all inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jaxtransfer.pge import layers
from support.helpers import quick_cases, quick_jit

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

# Kernel size, stride, padding, height, width.
CONVOLUTIONS = [
    (1, 1, 0, 5, 6),
    (1, 1, 1, 4, 5),
    (1, 2, 0, 5, 6),
    (1, 2, 0, 7, 8),
    (3, 1, 0, 7, 4),
    (3, 1, 1, 6, 5),
    (3, 1, 2, 3, 4),
    (3, 1, 4, 3, 2),
    (3, 2, 0, 6, 7),
    (3, 2, 1, 5, 6),
    (7, 1, 3, 5, 8),
    (7, 2, 3, 9, 10),
    (7, 2, 0, 8, 11),
    (7, 2, 3, 1, 2),
]


pytestmark = pytest.mark.usefixtures("whole_precision")


@pytest.fixture
def dtype():
    with jax.enable_x64(True):
        yield "float64"


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def ours(function: Callable[..., Any], dtype: str, cotangent: np.ndarray, *inputs: np.ndarray) -> list[np.ndarray]:
    """Value and gradients."""

    @quick_jit
    def run(cotangent: jax.Array, *inputs: jax.Array) -> Any:
        value, pull = jax.vjp(function, *inputs)
        return value, *pull(cotangent)

    return [np.asarray(array) for array in run(*(jnp.asarray(array, dtype) for array in (cotangent, *inputs)))]


def theirs(function: Callable[..., Any], cotangent: np.ndarray, *inputs: np.ndarray) -> list[np.ndarray]:
    """The same in PyTorch, in float64; a function of images takes and gives them as NHWC here."""
    tensors = [torch.from_numpy(np.array(array)).requires_grad_() for array in inputs]
    value = function(tensors[0].permute(0, 3, 1, 2), *tensors[1:]).permute(0, 2, 3, 1)
    gradients = torch.autograd.grad(value, tensors, torch.from_numpy(np.array(cotangent)), allow_unused=True)
    return [value.detach().numpy(), *(array.numpy() for array in gradients if array is not None)]


def same(actual: list[np.ndarray], expected: list[np.ndarray], dtype: str) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * max(1, np.abs(b).max()))


def torch_convolution(stride: int, padding: int) -> Callable[..., Any]:
    return lambda x, kernel: F.conv2d(x, kernel.permute(3, 2, 0, 1), stride=stride, padding=padding)


def problem(size: int, stride: int, padding: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    return normal(0, 3, rows, columns, 5), normal(1, 3, height, width, 2), normal(2, size, size, 2, 5)


@pytest.mark.parametrize("few_pixels", [0, 8000])
@pytest.mark.parametrize("case", quick_cases(CONVOLUTIONS, *CONVOLUTIONS[1::2]))
def test_convolution(case, few_pixels, dtype, monkeypatch):
    monkeypatch.setattr(layers, "_FEW_PIXELS", few_pixels)
    _, stride, padding, *_ = case
    cotangent, *inputs = problem(*case)
    expected = theirs(torch_convolution(stride, padding), cotangent, *inputs)
    same(ours(lambda x, k: layers.convolution(x, k, stride, padding), dtype, cotangent, *inputs), expected, dtype)


@pytest.mark.parametrize("few_pixels", [0, 8000])
def test_convolution_in_float32(few_pixels, monkeypatch):
    monkeypatch.setattr(layers, "_FEW_PIXELS", few_pixels)
    cotangent, *inputs = problem(3, 1, 1, 6, 5)
    expected = theirs(torch_convolution(1, 1), cotangent, *inputs)
    same(ours(lambda x, k: layers.convolution(x, k, 1, 1), "float32", cotangent, *inputs), expected, "float32")


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_what_gpus_are_given_is_the_same_convolution(case, dtype):
    _, stride, padding, *_ = case
    cotangent, *inputs = problem(*case)

    @quick_jit
    def library(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        value = layers._library(x, kernel, stride=stride, padding=padding)
        return value, *layers._library_backward(x, kernel, cotangent, stride=stride, padding=padding)

    result = library(*(jnp.asarray(array, dtype) for array in (*inputs, cotangent)))
    expected = theirs(torch_convolution(stride, padding), cotangent, *inputs)
    same([np.asarray(array) for array in result], expected, dtype)


@pytest.mark.parametrize("outputs", [4, 40])
def test_either_order_of_the_product_for_the_kernel(outputs, dtype, monkeypatch):
    monkeypatch.setattr(layers, "_FEW_PIXELS", 0)
    cotangent, x, kernel = normal(0, 2, 5, 6, outputs), normal(1, 2, 5, 6, 2), normal(2, 3, 3, 2, outputs)
    expected = theirs(torch_convolution(1, 1), cotangent, x, kernel)
    same(ours(lambda x, k: layers.convolution(x, k, 1, 1), dtype, cotangent, x, kernel), expected, dtype)


@pytest.mark.parametrize(("case", "few_pixels"), [((3, 1, 1, 6, 5), 0), ((3, 1, 1, 6, 5), 8000), ((3, 2, 1, 5, 4), 0)])
def test_convolution_under_vmap(case, few_pixels, dtype, monkeypatch):
    monkeypatch.setattr(layers, "_FEW_PIXELS", few_pixels)
    _, stride, padding, *_ = case
    many = [np.stack([(i + 1) * array for i in range(3)]) for array in problem(*case)]

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return layers.convolution(x, kernel, stride, padding)

    one_by_one = [theirs(torch_convolution(stride, padding), *arrays) for arrays in zip(*many, strict=True)]
    expected = [np.stack(arrays) for arrays in zip(*one_by_one, strict=True)]
    same(ours(jax.vmap(convolution), dtype, *many), expected, dtype)

    cotangents, images, kernels = many
    pairs = zip(cotangents, images, strict=True)
    shared = [theirs(torch_convolution(stride, padding), *pair, kernels[0]) for pair in pairs]
    value, of_images, of_kernel = (np.stack(arrays) for arrays in zip(*shared, strict=True))
    result = ours(jax.vmap(convolution, (0, None)), dtype, cotangents, images, kernels[0])
    same(result, [value, of_images, of_kernel.sum(0)], dtype)


def torch_norm(x: Any, scale: Any, bias: Any) -> Any:
    return F.batch_norm(x, None, None, scale, bias, training=True)


def torch_norm_max_pool(x: Any, scale: Any, bias: Any) -> Any:
    return F.max_pool2d(torch_norm(x, scale, bias), 2)


SCALE, BIAS = np.array([1.0, -0.7, 2.5, -1e-3]), np.array([0.0, 0.4, -3.0, 0.1])
SHAPES = [(6, 4, 6), (5, 7, 5), (9, 2, 3), (2, 8, 9)]


@pytest.mark.parametrize("shape", [*SHAPES, (12, 1, 1)])
def test_batch_norm(shape, dtype):
    x, cotangent = 3 * normal(0, *shape, 4) + 2, normal(1, *shape, 4)
    expected = theirs(torch_norm, cotangent, x, SCALE, BIAS)
    same(ours(layers.batch_norm, dtype, cotangent, x, SCALE, BIAS), expected, dtype)


@pytest.mark.parametrize("function", [layers.batch_norm, layers.norm_max_pool])
def test_norm_of_a_constant_channel_is_finite(function):
    with jax.enable_x64(True):
        x = normal(0, 3, 4, 4, 4)
        x[..., 1:3] = 0.25
        cotangent = normal(1, *jax.eval_shape(function, x, SCALE, BIAS).shape)
        theirs_too = torch_norm if function is layers.batch_norm else torch_norm_max_pool
        expected = theirs(theirs_too, cotangent, x, SCALE, BIAS)
        same(ours(function, "float64", cotangent, x, SCALE, BIAS), expected, "float64")


def test_norm_keeps_what_float32_has_left_beside_a_large_mean():
    x, cotangent = normal(0, 8, 4, 4, 4) + 100, normal(1, 8, 4, 4, 4)
    x = x.astype(np.float32).astype(np.float64)
    expected = theirs(torch_norm, cotangent, x, SCALE, BIAS)
    for a, b in zip(ours(layers.batch_norm, "float32", cotangent, x, SCALE, BIAS), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_max_pool(shape, dtype):
    x = 3 * normal(0, *shape, 4) + 2
    cotangent = normal(1, shape[0], shape[1] // 2, shape[2] // 2, 4)
    expected = theirs(torch_norm_max_pool, cotangent, x, SCALE, BIAS)
    same(ours(layers.norm_max_pool, dtype, cotangent, x, SCALE, BIAS), expected, dtype)

    def in_two_steps(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return layers.max_pool(layers.batch_norm(x, scale, bias))

    same(ours(in_two_steps, dtype, cotangent, x, SCALE, BIAS), expected, dtype)


def test_norm_max_pool_at_scale_zero(dtype):
    """There it has a kink in the scale: the gradient is that of a scale a little larger."""
    x, cotangent = normal(0, 4, 4, 6, 4), normal(1, 4, 2, 3, 4)
    scale = np.array([0.0, 1.0, 0.0, -1.0])
    result = ours(layers.norm_max_pool, dtype, cotangent, x, scale, BIAS)
    exact = theirs(torch_norm_max_pool, cotangent, x, scale, BIAS)
    above = theirs(torch_norm_max_pool, cotangent, x, np.where(scale == 0, 1e-9, scale), BIAS)
    for i in (0, 1, 3):
        same([result[i]], [exact[i]], dtype)
    same([result[2]], [above[2]], dtype)


def few_values(seed: int, *shape: int) -> np.ndarray:
    """Many are equal."""
    return np.random.default_rng(seed).integers(1, 4, size=shape).astype(np.float64)


@pytest.mark.parametrize("draw", [normal, few_values])
@pytest.mark.parametrize("shape", SHAPES)
def test_max_pool(shape, draw, dtype):
    x, cotangent = draw(0, *shape, 4), normal(1, shape[0], shape[1] // 2, shape[2] // 2, 4)
    expected = theirs(lambda x: F.max_pool2d(x, 2), cotangent, x)
    same(ours(layers.max_pool, dtype, cotangent, x), expected, dtype)


@pytest.mark.parametrize("sign", [1, -1])
def test_norm_max_pool_of_equal_values(sign):
    x, cotangent, scale = few_values(0, 5, 6, 7, 4), normal(1, 5, 3, 3, 4), sign * np.ones(4)
    with jax.enable_x64(True):
        expected = theirs(torch_norm_max_pool, cotangent, x, scale, BIAS)
        same(ours(layers.norm_max_pool, "float64", cotangent, x, scale, BIAS), expected, "float64")


@pytest.mark.parametrize("draw", [normal, few_values])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 1)])
def test_max_pool_3x3_after_relu(shape, draw, dtype):
    x = draw(0, *shape, 4) - (0 if draw is normal else 2)
    cotangent = normal(1, shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2, 4)
    expected = theirs(lambda x: F.max_pool2d(F.relu(x), 3, 2, 1), cotangent, x)
    same(ours(lambda x: layers.max_pool_3x3(jax.nn.relu(x)), dtype, cotangent, x), expected, dtype)


LAYERS = pytest.mark.parametrize(
    ("function", "reference"),
    [
        (layers.batch_norm, torch_norm),
        (layers.norm_max_pool, torch_norm_max_pool),
        (lambda x, *_: layers.max_pool(x), lambda x, *_: F.max_pool2d(x, 2)),
        (lambda x, *_: layers.max_pool_3x3(abs(x)), lambda x, *_: F.max_pool2d(abs(x), 3, 2, 1)),
    ],
    ids=["batch_norm", "norm_max_pool", "max_pool", "max_pool_3x3"],
)


@LAYERS
def test_float32(function, reference):
    x = normal(0, 5, 4, 6, 4)
    cotangent = normal(1, *jax.eval_shape(function, x, SCALE, BIAS).shape)
    expected = theirs(reference, cotangent, x, SCALE, BIAS)
    same(ours(function, "float32", cotangent, x, SCALE, BIAS)[: len(expected)], expected, "float32")


@LAYERS
def test_under_vmap(function, reference, dtype):
    x, scale, bias = normal(0, 3, 5, 4, 6, 4), np.stack([SCALE, -SCALE, SCALE[::-1]]), normal(2, 3, 4)
    shape = jax.eval_shape(function, x[0], scale[0], bias[0]).shape
    inputs = (normal(1, 3, *shape), x, scale, bias)
    one_by_one = [theirs(reference, *arrays) for arrays in zip(*inputs, strict=True)]
    expected = [np.stack(arrays) for arrays in zip(*one_by_one, strict=True)]
    same(ours(jax.vmap(function), dtype, *inputs)[: len(expected)], expected, dtype)


def test_gradients_inside_a_compiled_loop():
    """The way an estimator uses them: jit, loop, grad."""
    x, kernel = normal(0, 4, 9, 8, 3), normal(1, 3, 3, 3, 4)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        images = layers.convolution(x, kernel, 1, 1)
        return jnp.square(layers.norm_max_pool(images, jnp.ones(4), jnp.zeros(4)) - 1).sum()

    @quick_jit
    def total(kernel: jax.Array, x: jax.Array) -> jax.Array:
        step = jax.grad(loss)
        return jax.lax.fori_loop(0, 3, lambda i, result: result + step(kernel, x + i), jnp.zeros_like(kernel))

    with jax.enable_x64(True):
        result = np.asarray(total(jnp.asarray(kernel), jnp.asarray(x)))
    weights = torch.from_numpy(kernel).requires_grad_()
    for i in range(3):
        images = F.conv2d(torch.from_numpy(x + i).permute(0, 3, 1, 2), weights.permute(3, 2, 0, 1), padding=1)
        (torch_norm_max_pool(images, torch.ones(4).double(), torch.zeros(4).double()) - 1).square().sum().backward()
    assert weights.grad is not None
    np.testing.assert_allclose(result, weights.grad.numpy(), rtol=1e-10, atol=1e-10)
