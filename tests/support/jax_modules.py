"""Small networks of five JAX libraries, as their users write them, and calls of them by hand."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

IMAGES = np.random.default_rng(0).random((3, 16, 16, 3), dtype=np.float32)


class Block(nnx.Module):
    """A transformer's block."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, dropout_rate=0.1, decode=False, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(width, width, rngs=rngs), functools.partial(jax.nn.gelu, approximate=False)
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm(x))
        return x + self.dropout(self.mlp(x))


class VisionTransformer(nnx.Module):
    """A vision transformer whose tokens are sown."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, width, (4, 4), strides=4, rngs=rngs)
        self.batch_norm = nnx.BatchNorm(width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(2)])
        self.activation = lambda x: jnp.tanh(x)  # not the same object in two networks

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.batch_norm(self.patches(images))
        x = x.reshape(len(images), -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        self.sow(nnx.Intermediate, "tokens", x)
        return self.activation(x.mean(1))


def vision_transformer() -> VisionTransformer:
    return VisionTransformer(8, nnx.Rngs(0))


class Residual(nn.Module):
    """A bottleneck block of a ResNet."""

    width: int
    strides: int
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(nn.Conv(self.width, (1, 1), use_bias=False)(x)))
        y = nn.relu(self.norm()(nn.Conv(self.width, (3, 3), self.strides, use_bias=False)(y)))
        y = self.norm(scale_init=nn.initializers.zeros)(nn.Conv(4 * self.width, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = self.norm(name="shortcut_norm")(
                nn.Conv(4 * self.width, (1, 1), self.strides, use_bias=False, name="shortcut")(x)
            )
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet as in Flax's example for ImageNet."""

    stages: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = True) -> jax.Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.Conv(self.width, (7, 7), 2, use_bias=False, name="stem")(images)
        x = nn.max_pool(nn.relu(norm(name="stem_norm")(x)), (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Residual(self.width * 2**stage, 2 if stage and not block else 1, norm)(x)
        self.sow("intermediates", "features", x)
        return nn.Dense(5, name="head")(nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2))))


def resnet() -> ResNet:
    return ResNet((1, 1), 4)


class Convolutions(eqx.Module):
    """Convolutions with batch normalisation, which has a state, and dropout, which takes a key."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    more: list[eqx.nn.Conv2d]
    activation: Callable[[jax.Array], jax.Array]

    def __init__(self, key: Any) -> None:
        self.first = eqx.nn.Conv2d(3, 6, 3, stride=2, key=key)
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="ema")
        self.dropout = eqx.nn.Dropout(0.5)
        self.more = [eqx.nn.Conv2d(6, 5, 3, key=key)]
        self.activation = lambda x: jax.nn.silu(x)

    def __call__(self, image: jax.Array, state: eqx.nn.State, key: Any) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.norm(self.first(image), state)
        return self.more[0](self.dropout(self.activation(x), key=key)), state


def convolutions(seed: int = 0) -> tuple[Convolutions, eqx.nn.State]:
    return eqx.nn.make_with_state(Convolutions)(jax.random.key(seed))


def _forward(images: jax.Array, is_training: bool) -> jax.Array:
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(6, 3, 2)(images), is_training)
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
    return hk.Linear(4)(jax.nn.gelu(x))


def haiku_function() -> hk.TransformedWithState:
    return hk.transform_with_state(_forward)


def keras_model() -> Any:
    """A model of Keras, some of whose layers are named by it."""
    import keras

    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, activation="gelu", name="first")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Activation("relu", name="relu")(x))
    return keras.Model(inputs, keras.layers.Dense(4)(x) + 1.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A module of a library.

    Attributes:
        make: Builds a trained module from a seed.
        by_hand: Calls such a module in evaluation mode.
        layers: Names of inner layers.
        factory: Builds the module for a zoo.
    """

    make: Callable[[int], Any]
    by_hand: Callable[[Any, jax.Array], jax.Array]
    layers: tuple[str, ...]
    factory: Callable[[], Any]


def _nnx(seed: int) -> Any:
    module = VisionTransformer(8, nnx.Rngs(seed))
    module.batch_norm.mean[...] = jnp.full(8, 0.5)
    return module


def _nnx_by_hand(module: Any, images: jax.Array) -> jax.Array:
    view = nnx.view(module, deterministic=True, use_running_average=True)
    return nnx.capture(view, nnx.Intermediate)(images)[0]


def _linen(seed: int) -> Any:
    variables = resnet().init(jax.random.key(seed), IMAGES, train=False)
    return resnet(), jax.tree.map(lambda x: x + 0.25, variables)


def _equinox_by_hand(pair: Any, images: jax.Array) -> jax.Array:
    module, state = pair
    module = eqx.nn.inference_mode(module)
    outputs = jax.vmap(lambda image: module(image, state, jax.random.key(1))[0])(images.transpose(0, 3, 1, 2))
    return outputs.transpose(0, 2, 3, 1)


def _haiku(seed: int) -> Any:
    network = haiku_function()
    params, state = network.init(jax.random.key(seed), IMAGES, True)
    return network, params, jax.tree.map(lambda x: x + 0.25, state)


def _keras(seed: int) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    return keras_model()


def _keras_by_hand(model: Any, images: jax.Array) -> jax.Array:
    values = ([variable.value for variable in of] for of in (model.trainable_variables, model.non_trainable_variables))
    return model.stateless_call(*values, images, training=False)[0]


CASES = {
    "nnx": Case(_nnx, _nnx_by_hand, ("patches", "blocks.1.attention", "tokens"), vision_transformer),
    "linen": Case(
        _linen,
        lambda module, images: module[0].apply(module[1], images, train=False),
        ("stem", "Residual_1.shortcut", "features"),
        resnet,
    ),
    "equinox": Case(convolutions, _equinox_by_hand, ("first", "norm", "more.0"), convolutions),
    "haiku": Case(
        _haiku,
        lambda module, images: module[0].apply(*module[1:], None, images, is_training=False)[0],
        ("conv2_d", "batch_norm"),
        haiku_function,
    ),
    "keras": Case(_keras, _keras_by_hand, ("first", "relu"), keras_model),
}
