"""Implements Fourier transforms, and complex numbers and their parts."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.aten.table import op, same_rank


@op("complex.default")
def complex_(real: jax.Array, imag: jax.Array) -> jax.Array:
    return lax.complex(*jnp.broadcast_arrays(*same_rank(real, imag)))


@op("polar.default")
def polar(abs: jax.Array, angle: jax.Array) -> jax.Array:
    abs, angle = same_rank(abs, angle)
    return complex_(abs * jnp.cos(angle), abs * jnp.sin(angle))


@op("view_as_complex.default")
def view_as_complex(x: jax.Array) -> jax.Array:
    return lax.complex(x[..., 0], x[..., 1])


@op("view_as_real.default")
def view_as_real(x: jax.Array) -> jax.Array:
    return jnp.stack([x.real, x.imag], -1)


@op("real.default")
def real(x: jax.Array) -> jax.Array:
    return x.real if jnp.iscomplexobj(x) else x


@op("imag.default")
def imag(x: jax.Array) -> jax.Array:
    return x.imag


@op("_conj.default", "_conj_physical.default", "conj_physical.default", "conj.default")
def conj(x: jax.Array) -> jax.Array:
    return jnp.conj(x) if jnp.iscomplexobj(x) else x


@op("resolve_conj.default", "resolve_neg.default")
def resolve(x: jax.Array) -> jax.Array:
    return x


@op("angle.default")
def angle(x: jax.Array) -> jax.Array:
    """Computes angles, whose derivative at 0 is 0."""
    if not jnp.iscomplexobj(x):
        return jnp.where(jnp.isnan(x), x, jnp.where(x < 0, math.pi, 0.0)).astype(x.dtype)
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.angle(jnp.where(zero, 1.0, x)))


def _normalised(x: jax.Array, count: int, normalization: int) -> jax.Array:
    """Divides by nothing (0), by the root of the number of terms (1) or by their number (2)."""
    return x if normalization == 0 else x / (math.sqrt(count) if normalization == 1 else count)


@op("_fft_c2c.default")
def fft_c2c(x: jax.Array, dim: Sequence[int], normalization: int, forward: bool) -> jax.Array:
    count = math.prod(x.shape[d] for d in dim)
    transform = jnp.fft.fftn if forward else jnp.fft.ifftn
    y = transform(x, axes=dim)
    return _normalised(y if forward else y * count, count, normalization)


@op("_fft_r2c.default")
def fft_r2c(x: jax.Array, dim: Sequence[int], normalization: int, onesided: bool) -> jax.Array:
    count = math.prod(x.shape[d] for d in dim)
    return _normalised((jnp.fft.rfftn if onesided else jnp.fft.fftn)(x, axes=dim), count, normalization)


@op("_fft_c2r.default")
def fft_c2r(x: jax.Array, dim: Sequence[int], normalization: int, last_dim_size: int) -> jax.Array:
    sizes = [*(x.shape[d] for d in dim[:-1]), last_dim_size]
    count = math.prod(sizes)
    return _normalised(jnp.fft.irfftn(x, sizes, axes=dim) * count, count, normalization)
