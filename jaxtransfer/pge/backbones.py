"""Backbones as pure functions: initialiser, features, and the units that may be exchanged.

Weights are nested dicts. Convolutions have no bias, since batch normalisation in training mode would remove it and its
gradient is exactly zero; they are drawn Kaiming-normal, fan-out, and normalisation starts at scale 1 and bias 0.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxtransfer.arguments import check_name
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.layers import batch_norm, convolution, max_pool, max_pool_3x3, norm_max_pool

Features = Callable[[PyTree, Float[Array, "n h w c"]], Float[Array, "n features"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """Holds a network without a head, as functions of weights that are freshly drawn.

    Attributes:
        name: Name by which `backbone` returns it.
        init: Draws weights: `init(key) -> params`.
        features: Computes features: `features(params, images) -> [n, features]`. Batch normalisation uses the
            statistics of these images.
        maps: Computes the features before pooling or flattening, for dense targets:
            `maps(params, images) -> [n, h, w, channels]`.
        symmetry: For every weight a tuple with the name of a permutation group, or None, for each axis, see
            `principal_gradient`.
    """

    name: str
    init: Callable[[Key[Array, ""]], PyTree]
    features: Features
    maps: Callable[[PyTree, Float[Array, "n h w c"]], Float[Array, "n h2 w2 channels"]]
    symmetry: PyTree


@functools.cache
def backbone(name: str, channels: int = 3) -> Backbone:
    """Returns one of the package's backbones; the same object for the same arguments.

    * `conv4`: four blocks of 64 channels (3x3 convolution, normalisation, 2x2 max-pooling, ReLU), flattened; images
      of 16x16 pixels or more. Vinyals et al. (NeurIPS 2016).
    * `resnet12`: stages of 64, 160, 320 and 640 channels, leaky ReLU of slope 0.1; 16x16 or more. Lee et al.
      (CVPR 2019), without DropBlock.
    * `resnet18`, `resnet50`: He et al. (CVPR 2016), the stride of a bottleneck in its 3x3 convolution; 32x32 or more.

    Args:
        name: One of `BACKBONES`.
        channels: Number of channels of the images.

    Raises:
        JaxTransferError: There is no backbone of this name.

    Examples:
        >>> conv4 = jt.backbone("conv4", channels=1)
        >>> params = conv4.init(jax.random.key(0))
        >>> params["block0"]["conv"].shape
        (3, 3, 1, 64)
        >>> jax.eval_shape(conv4.features, params, jnp.zeros((8, 16, 16, 1))).shape
        (8, 64)
    """
    check_name("backbone", name, BACKBONES)
    spec, maps, is_pooled = _ARCHITECTURES[name](channels)

    def init(key: Key[Array, ""]) -> PyTree:
        return _init(spec, key)

    def features(params: PyTree, images: Float[Array, "n h w c"]) -> Float[Array, "n features"]:
        last = maps(params, images)
        return last.mean((1, 2)) if is_pooled else last.reshape(len(last), -1)

    symmetry = _map_spec(lambda weight: weight.groups, spec)
    return Backbone(name, init, features, maps, symmetry)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """Describes a weight: its shape, its initialiser ("normal", "ones" or "zeros"), and the group of every axis."""

    shape: tuple[int, ...]
    start: str
    groups: tuple[str | None, ...]


def _map_spec(function: Callable[[_Weight], Any], spec: PyTree) -> PyTree:
    return jax.tree.map(function, spec, is_leaf=lambda node: isinstance(node, _Weight))


def _init(spec: PyTree, key: Key[Array, ""]) -> PyTree:
    weights, structure = jax.tree.flatten(spec, is_leaf=lambda node: isinstance(node, _Weight))
    sizes = [math.prod(weight.shape) if weight.start == "normal" else 0 for weight in weights]
    # A single draw for all weights, since XLA takes nearly a second to compile each draw.
    normal = jnp.split(_normal(key, sum(sizes)), list(itertools.accumulate(sizes))[:-1])
    drawn = []
    for weight, values in zip(weights, normal, strict=True):
        if weight.start == "normal":
            height, width, _, outputs = weight.shape
            drawn.append(values.reshape(weight.shape) * (2 / (height * width * outputs)) ** 0.5)
        else:
            drawn.append(jnp.full(weight.shape, 1.0 if weight.start == "ones" else 0.0))
    return jax.tree.unflatten(structure, drawn)


def _normal(key: Key[Array, ""], count: int) -> Float[Array, " count"]:
    """Draws standard normal values in pieces, which stay in a CPU's cache while they are computed."""
    piece = min(count, 1 << 19)
    keys = jax.random.split(key, -(-count // piece))
    return jax.lax.map(lambda key: jax.random.normal(key, (piece,)), keys).reshape(-1)[:count]


def _conv(size: int, inputs: int, outputs: int, source: str | None, target: str | None) -> _Weight:
    return _Weight((size, size, inputs, outputs), "normal", (None, None, source, target))


def _norm(channels: int, group: str | None) -> dict[str, _Weight]:
    return {"scale": _Weight((channels,), "ones", (group,)), "bias": _Weight((channels,), "zeros", (group,))}


def _conv4(channels: int) -> tuple[PyTree, Callable[..., Array], bool]:
    spec, source = {}, None
    for block in range(4):
        group = f"block{block}"
        spec[group] = {"conv": _conv(3, 64 if block else channels, 64, source, group), "norm": _norm(64, group)}
        source = group

    def maps(params: PyTree, x: Array) -> Array:
        _check_size("conv4", x, 16)
        for block in range(4):
            p = params[f"block{block}"]
            x = jax.nn.relu(norm_max_pool(convolution(x, p["conv"], 1, 1), p["norm"]["scale"], p["norm"]["bias"]))
        return x

    return spec, maps, False


def _resnet12(channels: int) -> tuple[PyTree, Callable[..., Array], bool]:
    spec, source, inputs = {}, None, channels
    for stage, outputs in enumerate((64, 160, 320, 640)):
        name = f"stage{stage}"
        groups = [f"{name}.a", f"{name}.b", name]
        sources, widths = [source, *groups[:2]], [inputs, outputs, outputs]
        spec[name] = {
            "shortcut": _conv(1, inputs, outputs, source, name),
            "shortcut_norm": _norm(outputs, name),
        }
        for i, (width, before, group) in enumerate(zip(widths, sources, groups, strict=True)):
            spec[name] |= {f"conv{i}": _conv(3, width, outputs, before, group), f"norm{i}": _norm(outputs, group)}
        source, inputs = name, outputs

    def maps(params: PyTree, x: Array) -> Array:
        _check_size("resnet12", x, 16)
        for stage in range(4):
            p, y = params[f"stage{stage}"], x
            for i in range(3):
                y = _normed(p, f"norm{i}", convolution(y, p[f"conv{i}"], 1, 1))
                y = _leaky_relu(y) if i < 2 else y
            x = max_pool(_leaky_relu(y + _normed(p, "shortcut_norm", convolution(x, p["shortcut"]))))
        return x

    return spec, maps, True


def _resnet18(channels: int) -> tuple[PyTree, Callable[..., Array], bool]:
    return _resnet("resnet18", channels, (2, 2, 2, 2), sizes=(3, 3), widening=1)


def _resnet50(channels: int) -> tuple[PyTree, Callable[..., Array], bool]:
    return _resnet("resnet50", channels, (3, 4, 6, 3), sizes=(1, 3, 1), widening=4)


def _resnet(
    name: str, channels: int, blocks: tuple[int, ...], sizes: tuple[int, ...], widening: int
) -> tuple[PyTree, Callable[..., Array], bool]:
    """Builds a ResNet of He et al. with kernels of `sizes` in a block; from stage 1 on the first 3x3 has stride 2."""
    spec: dict[str, Any] = {"stem": _conv(7, channels, 64, None, "stem"), "stem_norm": _norm(64, "stem")}
    strided = sizes.index(3)
    inputs, source = 64, "stem"
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        # Where neither size nor channels change, the stage adds to its input, so its output has the input's group.
        projected = stage > 0 or inputs != width * widening
        target = f"stage{stage}" if projected else source
        for block in range(count):
            key = f"stage{stage}.{block}"
            groups = [source, *(f"{key}.{i}" for i in range(len(sizes) - 1)), target]
            widths = [inputs, *[width] * (len(sizes) - 1), width * widening]
            part = spec[key] = {}
            for i, size in enumerate(sizes):
                part[f"conv{i}"] = _conv(size, widths[i], widths[i + 1], groups[i], groups[i + 1])
                part[f"norm{i}"] = _norm(widths[i + 1], groups[i + 1])
            if projected and block == 0:
                part |= {"shortcut": _conv(1, inputs, widths[-1], source, target)}
                part |= {"shortcut_norm": _norm(widths[-1], target)}
            inputs, source = widths[-1], target

    def maps(params: PyTree, x: Array) -> Array:
        _check_size(name, x, 32)
        x = max_pool_3x3(jax.nn.relu(_normed(params, "stem_norm", convolution(x, params["stem"], 2, 3))))
        for stage, count in enumerate(blocks):
            for block in range(count):
                p, y = params[f"stage{stage}.{block}"], x
                stride = 2 if stage and not block else 1
                for i, size in enumerate(sizes):
                    y = convolution(y, p[f"conv{i}"], stride if i == strided else 1, size // 2)
                    y = _normed(p, f"norm{i}", y)
                    y = jax.nn.relu(y) if i < len(sizes) - 1 else y
                if "shortcut" in p:
                    x = _normed(p, "shortcut_norm", convolution(x, p["shortcut"], stride))
                x = jax.nn.relu(x + y)
        return x

    return spec, maps, True


def _normed(params: PyTree, name: str, x: Any) -> Array:
    return batch_norm(x, params[name]["scale"], params[name]["bias"])


def _leaky_relu(x: Array) -> Array:
    # Not jax.nn.leaky_relu, whose derivative at 0 is 1 where PyTorch's is the slope.
    return jnp.where(x > 0, x, 0.1 * x)


def _check_size(name: str, images: Array, size: int) -> None:
    if min(images.shape[1:3]) < size:
        raise JaxTransferError(
            f"{name} needs images of {size}x{size} pixels or more, not {images.shape[1]}x{images.shape[2]}."
        )


_ARCHITECTURES = {"conv4": _conv4, "resnet12": _resnet12, "resnet18": _resnet18, "resnet50": _resnet50}
BACKBONES = tuple(_ARCHITECTURES)
"""Names of the backbones, as `backbone` takes them."""
