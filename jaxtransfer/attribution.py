"""Attribution maps of any JAX function: which pixels does a representation look at?"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.network import ApplyFn, check_weights
from jaxtransfer.precision import Precision, matmul_precision, products_in_bfloat16
from jaxtransfer.relevance import rule_vjp

METHODS = ("saliency", "input_x_gradient", "epsilon_lrp")

TargetFn = Callable[[Any], Float[Array, " images"]]


Maps = dict[str, Float[Array, "images height width channels"]]


@overload
def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: Sequence[str] = METHODS,
    target: TargetFn | None = None,
    epsilon: float = 1e-4,
    precision: Precision = "float32",
    with_outputs: Literal[False] = False,
) -> Maps: ...


@overload
def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: Sequence[str] = METHODS,
    target: TargetFn | None = None,
    epsilon: float = 1e-4,
    precision: Precision = "float32",
    with_outputs: Literal[True],
) -> tuple[Maps, PyTree]: ...


def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: Sequence[str] = METHODS,
    target: TargetFn | None = None,
    epsilon: float = 1e-4,
    precision: Precision = "float32",
    with_outputs: bool = False,
) -> Maps | tuple[Maps, PyTree]:
    """Computes attribution maps of a scalar of the network's output, all in one compiled pass.

    With r the scalar of one image x (Song et al., NeurIPS 2019, section 3.2; their code attributes the sum of all
    units of a representation, which is the default here):

    * `saliency`: |dr/dx|
    * `input_x_gradient`: x * dr/dx
    * `epsilon_lrp`: x * d^g r/dx, where the modified chain rule replaces the derivative of every non-linearity f by
      f(z) / (z + epsilon sign(z)), sign(0) = +1 (Ancona et al., ICLR 2018). The function is rewritten for it; it
      needs no change. What happens at products, softmax and normalisation is in `docs/attribution.md`.

    The forward pass runs once whatever methods are asked for, and what it gave can be had as well. The function is
    compiled once per `apply`, `target`, `methods`, `epsilon`, `precision` and shape, so hand over the same function
    objects again and pass weights in `params`; it may itself be called under `jit`, `vmap` and with sharded arrays.

    Args:
        apply: Pure function `apply(params, images) -> [images, ...]` that treats its images independently.
        params: Weights: a pytree of arrays, with or without PRNG keys and Python numbers.
        images: The network's input: floating point, [images, height, width, channels].
        methods: Any of `METHODS`.
        target: Maps the network's output to one scalar per image, [images]; default: the sum over all units.
        epsilon: Stabiliser of epsilon-LRP, in units of the pre-activations; > 0.
        precision: Of matrix products that say nothing of it themselves: "float32", "tf32" (on an NVIDIA GPU), or
            "bfloat16" for those of the backward passes; see `docs/precision.md`.
        with_outputs: Return the network's output too: a pair of the maps and what `apply` returned.

    Returns:
        One map per method, of the shape of `images`; float32, or float64 for float64 images.

    Raises:
        JaxTransferError: Unknown method or precision, params that are not arrays, images that are not floating point or
            not four-dimensional, epsilon <= 0, a target without one scalar per image, or (for `epsilon_lrp`) a
            primitive without a rule.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise JaxTransferError(
            f"{', '.join(map(repr, unknown)) or 'Nothing'} is not an attribution method; "
            f"choose from {', '.join(METHODS)}."
        )
    if not epsilon > 0:
        raise JaxTransferError(f"epsilon must be greater than 0, not {epsilon}.")
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise JaxTransferError(
            "images must be floating point, [images, height, width, channels], "
            f"not {images.dtype} of shape {images.shape}."
        )
    check_weights(params)
    static = tuple(methods), target, float(epsilon), precision, with_outputs
    with jax.default_matmul_precision(matmul_precision(precision)):
        maps, outputs = _attribute(apply, params, jnp.asarray(images), *static)
    maps = {method: maps[method] for method in methods}
    return (maps, outputs) if with_outputs else maps


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6, 7))
def _attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array, "images height width channels"],
    methods: tuple[str, ...],
    target: TargetFn | None,
    epsilon: float,
    precision: Precision,
    with_outputs: bool,
) -> tuple[Maps, PyTree]:
    def scalar(params: PyTree, images: Array) -> tuple[Array, PyTree]:
        # Made again, because a variable of Flax can be changed only in the trace that made it, here a derivative's.
        outputs = apply(jax.tree.map(lambda leaf: leaf, params), images)
        scalars = _sum_of_units(outputs) if target is None else target(outputs)
        if scalars.shape != images.shape[:1]:
            raise JaxTransferError(
                f"The target must give one scalar per image, shape {images.shape[:1]}, not {scalars.shape}."
            )
        return scalars.sum(), outputs if with_outputs else None

    if "epsilon_lrp" in methods:
        passes = rule_vjp(scalar, params, images, epsilon)
        one, outputs = jnp.ones_like(passes.output), passes.aux
        gradient, modified = passes.gradient, passes.modified
    else:
        output, pull, outputs = jax.vjp(lambda images: scalar(params, images), images, has_aux=True)
        one = jnp.ones_like(output)
        gradient, modified = (lambda cotangent: pull(cotangent)[0]), None
    if precision == "bfloat16":
        gradient, modified = products_in_bfloat16(gradient), modified and products_in_bfloat16(modified)

    dtype = jnp.float64 if images.dtype == jnp.float64 else jnp.float32
    maps = {}
    if "saliency" in methods or "input_x_gradient" in methods:
        g = gradient(one).astype(dtype)
        maps["saliency"] = jnp.abs(g)
        maps["input_x_gradient"] = images.astype(dtype) * g
    if modified is not None:
        maps["epsilon_lrp"] = images.astype(dtype) * modified(one).astype(dtype)
    return {method: maps[method] for method in methods}, outputs


def _sum_of_units(outputs: PyTree) -> Float[Array, " images"]:
    sums = [leaf.reshape(leaf.shape[0], -1).sum(1) for leaf in jax.tree.leaves(outputs)]
    return functools.reduce(jnp.add, sums)
