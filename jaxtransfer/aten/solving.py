"""Implements distances, and linear algebra on square matrices whose results are unique: solutions, determinants."""

# PyTorch documents an operation under the ATen overload that it is named for.
# ruff: noqa: D103

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxtransfer.aten.algebra import vector_norm
from jaxtransfer.aten.table import op, same_rank


@op("cdist.default", "_cdist_forward.default")
def cdist(x1: jax.Array, x2: jax.Array, p: float = 2.0, compute_mode: int | None = None) -> jax.Array:
    """Computes the distances between all rows of two matrices, with derivative 0 where a distance is 0."""
    return vector_norm(x1[..., :, None, :] - x2[..., None, :, :], p, -1)


@op("_euclidean_dist.default")
def euclidean_dist(x1: jax.Array, x2: jax.Array) -> jax.Array:
    return cdist(x1, x2)


@op("dist.default")
def dist(x: jax.Array, other: jax.Array, p: float = 2) -> jax.Array:
    return vector_norm(x - other, p)


@op("_trilinear.default")
def trilinear(
    i1: jax.Array,
    i2: jax.Array,
    i3: jax.Array,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> jax.Array:
    """Sums the products of three arrays, to which axes of size 1 are added, over some of their axes."""
    x, y, z = (jnp.expand_dims(i, tuple(e)) for i, e in ((i1, expand1), (i2, expand2), (i3, expand3)))
    axes = list(range(x.ndim))
    return jnp.einsum(x, axes, y, axes, z, axes, [axis for axis in axes if axis not in sumdim])


@op("linalg_inv_ex.default")
def inv(A: jax.Array, *, check_errors: bool = False) -> tuple[jax.Array]:
    return (jnp.linalg.inv(A),)


@op("_linalg_solve_ex.default")
def solve(A: jax.Array, B: jax.Array, *, left: bool = True, check_errors: bool = False) -> tuple[jax.Array]:
    vector = B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]
    right = B[..., None] if vector else B
    x = jnp.linalg.solve(A, right) if left else jnp.linalg.solve(A.mT, right.mT).mT
    return (x[..., 0] if vector else x,)


@op("linalg_cholesky_ex.default")
def cholesky(x: jax.Array, *, upper: bool = False, check_errors: bool = False) -> tuple[jax.Array]:
    factor = jnp.linalg.cholesky(x)
    return (factor.mT if upper else factor,)


@op("linalg_solve_triangular.default")
def solve_triangular(
    x: jax.Array, B: jax.Array, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> jax.Array:
    batch = jnp.broadcast_shapes(x.shape[:-2], B.shape[:-2])
    a, b = (jnp.broadcast_to(m, (*batch, *m.shape[-2:])) for m in same_rank(x, B))
    return jax.lax.linalg.triangular_solve(a, b, left_side=left, lower=not upper, unit_diagonal=unitriangular)


@op("triangular_solve.default")
def triangular_solve(
    x: jax.Array, A: jax.Array, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[jax.Array]:
    matrix, upper = (A.mT, not upper) if transpose else (A, upper)
    return (solve_triangular(matrix, x, upper=upper, unitriangular=unitriangular),)


@op("_linalg_det.default")
def det(A: jax.Array) -> tuple[jax.Array]:
    return (jnp.linalg.det(A),)


@op("_linalg_slogdet.default")
def slogdet(A: jax.Array) -> tuple[jax.Array, jax.Array]:
    sign, logarithm = jnp.linalg.slogdet(A)
    return sign, logarithm
