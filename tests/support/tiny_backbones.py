"""Two backbones small enough for thousands of restarts in a second, and data to go with them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.pge.layers import batch_norm, convolution


def dense_init(key):
    first, second = jax.random.split(key)
    return {
        "first": {"kernel": jax.random.normal(first, (12, 6)), "bias": jnp.zeros(6)},
        "second": {"kernel": jax.random.normal(second, (6, 5)) / 2, "bias": jnp.zeros(5)},
    }


def dense_features(params, images):
    x = images.reshape(len(images), -1)
    x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return x @ params["second"]["kernel"] + params["second"]["bias"][None]


DENSE_SYMMETRY = {
    "first": {"kernel": (None, "hidden"), "bias": ("hidden",)},
    "second": {"kernel": ("hidden", "out"), "bias": ("out",)},
}


def residual_init(key):
    """A convolution, and one that is added to its own input: both its axes are of one group."""
    first, second = jax.random.split(key)
    norm = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    return {
        "stem": jax.random.normal(first, (3, 3, 1, 4)) / 2,
        "inner": jax.random.normal(second, (3, 3, 4, 4)) / 3,
        "norm": norm,
    }


def residual_features(params, images):
    x = convolution(images, params["stem"], 1, 1)
    x = jax.nn.relu(batch_norm(x, params["norm"]["scale"], params["norm"]["bias"]))
    inner = jnp.asarray(convolution(x, params["inner"], 1, 1))
    return jax.nn.relu(x + inner).mean((1, 2))


RESIDUAL_SYMMETRY = {
    "stem": (None, None, None, "stream"),
    "inner": (None, None, "stream", "stream"),
    "norm": {"scale": ("stream",), "bias": ("stream",)},
}

BACKBONES = {
    "dense": (dense_init, dense_features, DENSE_SYMMETRY),
    "residual": (residual_init, residual_features, RESIDUAL_SYMMETRY),
}


def blobs(seed: int = 0, classes: int = 3, each: int = 12, spread: float = 0.7):
    """Images [n, 4, 3, 1] scattered around a pattern for every class, and their labels."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(classes, 4, 3, 1))
    labels = np.repeat(np.arange(classes), each)
    images = patterns[labels] + spread * rng.normal(size=(len(labels), 4, 3, 1))
    return images.astype(np.float32), labels
