"""Attribution maps of any JAX function: which pixels does a representation look at?"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from jaxtransfer import arguments
from jaxtransfer.attribution.diagnostics import (
    Evidence,
    coarsest_epsilon,
    describe_fault,
    draws_random_numbers,
    faults_of,
    signed_images,
    sum_of_units,
    unit_signs,
    with_places,
)
from jaxtransfer.attribution.precision import Precision, matmul_precision, products_in_bfloat16
from jaxtransfer.attribution.relevance import rule_vjp
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import ApplyFn, check_weights

METHODS = ("saliency", "input_x_gradient", "epsilon_lrp")

TargetFn = Callable[[Any], Float[Array, " images"]]


Maps = dict[str, Float[Array, "images height width channels"]]


@overload
def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: str | Sequence[str] = METHODS,
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
    methods: str | Sequence[str] = METHODS,
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
    methods: str | Sequence[str] = METHODS,
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

    The first call with a function, target and shape of images runs the pass twice and warns of what `find_faults`
    finds, and of epsilon-LRP that explodes; later calls do not, whatever their weights, nor do calls under `jit` or
    `vmap`.

    Args:
        apply: Pure function `apply(params, images) -> [images, ...]` that treats its images independently.
        params: Weights: a pytree of arrays, with or without PRNG keys and Python numbers.
        images: The network's input: floating point, [images, height, width, channels].
        methods: Any of `METHODS`, one or several.
        target: Maps the network's output to one scalar per image, [images], from that image's outputs alone; default:
            the sum over all units. `jaxtransfer.random_signs` is another.
        epsilon: Stabiliser of epsilon-LRP, in units of the pre-activations; > 0.
        precision: Of matrix products that say nothing of it themselves: "float32", "tf32" (on an NVIDIA GPU), or
            "bfloat16" for those of the backward passes; see `docs/precision.md`.
        with_outputs: Return the network's output too: a pair of the maps and what `apply` returned.

    Returns:
        One map per method, of the shape of `images`; float32, or float64 for float64 images.

    Raises:
        JaxTransferError: Unknown method or precision, params that are not arrays, images that are not floating point or
            not four-dimensional, or none, epsilon <= 0, outputs that are not floating point or have no axis of images,
            a target without one scalar per image or one that mixes images, or (for `epsilon_lrp`) a primitive without
            a rule.
    """
    methods = arguments.checked_methods(methods)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise JaxTransferError(
            f"{', '.join(map(repr, unknown)) or 'Nothing'} is not an attribution method; "
            f"choose from {', '.join(METHODS)}."
        )
    arguments.check_positive("epsilon", epsilon)
    images = _checked(apply, params, images, target)
    matmul_precision(precision)  # there is such a one
    static = methods, target, float(epsilon), precision, with_outputs
    unsigned = jax.device_put(False)
    inside = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, images, unsigned)))
    maps, outputs, evidence = attribution_pass(apply, params, images, None if inside else unsigned, *static)
    if not inside and not isinstance(evidence.gradient, Tracer):
        faults = _faults_at_first_sight(apply, target, images.shape, images.dtype)
        if not faults:
            *_, signed = attribution_pass(apply, params, images, jax.device_put(True), *static)
            faults.append(_faults(evidence, signed))
            for fault in with_places(faults[0], apply, params, images):
                warnings.warn(f"The maps of this network mean little: {describe_fault(fault)}.", stacklevel=2)
    maps = {method: maps[method] for method in methods}
    return (maps, outputs) if with_outputs else maps


def find_faults(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    target: TargetFn | None = None,
) -> tuple[str, ...]:
    """Looks for faults of a network that make its attribution maps meaningless.

    Two backward passes are compared: that of the attributed scalar, and that of the units that enter it with random
    signs, on every second image. The scalar does not depend on the images if its gradient is to the other's, on each of
    them, as rounding errors are to 1: less than the square root of the machine epsilon. Images of a batch are coupled
    if those without a cotangent have a gradient. Random numbers are found in the function's jaxpr.

    Args:
        apply: As for `attribute`.
        params: Weights.
        images: The network's input; two or more, or coupled images are not found. A few will do.
        target: As for `attribute`.

    Returns:
        Codes of faults, none where all is well: "constant_scalar", "coupled_images", "random_numbers".
        `jaxtransfer.FAULTS` says of each what it means and what to do.

    Raises:
        JaxTransferError: As for `attribute`.
    """
    images = _checked(apply, params, images, target)
    static = ("saliency",), target, 1e-4, "float32", False
    usual, signed = (attribution_pass(apply, params, images, jax.device_put(on), *static)[2] for on in (False, True))
    return _faults(usual, signed)


def _checked(apply: ApplyFn, params: PyTree, images: Any, target: TargetFn | None) -> Array:
    """The images as a JAX array, once all that `attribute` and `find_faults` are given is of the right kind."""
    arguments.check_apply(apply)
    check_weights(params)
    arguments.check_target(target)
    arguments.check_array(images)
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise JaxTransferError(
            "images must be floating point, [images, height, width, channels], "
            f"not {images.dtype} of shape {images.shape}."
        )
    return jnp.asarray(images)


@functools.lru_cache(maxsize=256)
def _faults_at_first_sight(
    apply: ApplyFn, target: TargetFn | None, shape: tuple[int, ...], dtype: Any
) -> list[tuple[str, ...]]:
    """Where the faults of a function are noted; empty until then."""
    return []


def _faults(usual: Evidence, signed: Evidence) -> tuple[str, ...]:
    usual, signed = jax.device_get((usual, signed))
    if (signed.strays > 0).any():
        raise JaxTransferError(
            "The target mixes images: its scalar for one image depends on the outputs for others; compute each image's "
            "scalar from that image's outputs alone, without statistics over the first axis."
        )
    return faults_of(usual, signed)


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7, 8))
def attribution_pass(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array, "images height width channels"],
    signed: Bool[Array, ""] | None,
    methods: tuple[str, ...],
    target: TargetFn | None,
    epsilon: float,
    precision: Precision,
    with_outputs: bool,
) -> tuple[Maps, PyTree, Evidence]:
    """Makes maps, or evidence of faults, from one forward pass; the same program does both.

    Args:
        apply: The network's function.
        params: Its weights.
        images: Its inputs.
        signed: False: backward passes are of the target and give maps. True: they are of the units that enter it, with
            random signs on the images of `signed_images`; the maps are not to be used, the evidence is for `faults_of`.
            None: as False, in a program that can do nothing else.
        methods: Any of `METHODS`.
        target: One scalar per image; None: the sum over units.
        epsilon: Stabiliser of epsilon-LRP.
        precision: Of products.
        with_outputs: Whether the network's output is wanted.

    Returns:
        Maps by method, the network's output or None, and the evidence.
    """
    count = len(images)
    with jax.default_matmul_precision(matmul_precision(precision)):
        closed, shapes = _traced(apply, params, images, floating=bool(methods), chosen=target is not None)
        every_image = functools.partial(jnp.full, count, dtype=jnp.float32)
        known = (every_image(coarsest_epsilon(closed) ** 0.5), every_image(float(draws_random_numbers(closed))))
        network = jex.jaxpr_as_fun(closed)
        units = [arguments.is_representation(leaf, count) for leaf in jax.tree.leaves(shapes)]
        if not methods:
            nothing = every_image(0)
            outputs = jax.tree.unflatten(jax.tree.structure(shapes), network(*jax.tree.leaves((params, images))))
            return {}, outputs, Evidence(nothing, nothing, nothing, *known, nothing)

        def outputs_of(attributed: list[Array], others: list[Array]) -> PyTree:
            some, rest = iter(attributed), iter(others)
            leaves = [next(some) if unit else next(rest) for unit in units]
            return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

        def scalars_of(attributed: list[Array], others: list[Array]) -> Array:
            outputs = outputs_of(attributed, others)
            scalars = sum_of_units(outputs) if target is None else target(outputs)
            arguments.check_scalars(scalars, count)
            return scalars

        def function(params: PyTree, images: Array) -> tuple[tuple[Array, list[Array]], list[Array]]:
            leaves = network(*jax.tree.leaves((params, images)))
            attributed = [leaf for leaf, unit in zip(leaves, units, strict=True) if unit]
            others = [leaf for leaf, unit in zip(leaves, units, strict=True) if not unit]
            return (scalars_of(attributed, others), attributed), others

        if "epsilon_lrp" in methods:
            passes = rule_vjp(function, params, images, epsilon)
            (scalars, attributed), others = passes.output, passes.aux
            gradient, modified = passes.gradient, passes.modified
        else:
            (scalars, attributed), pull, others = jax.vjp(functools.partial(function, params), images, has_aux=True)
            gradient, modified = (lambda cotangent: pull(cotangent)[0]), None
        if precision == "bfloat16":
            gradient, modified = products_in_bfloat16(gradient), modified and products_in_bfloat16(modified)
        usual = functools.partial(_of_target, scalars, attributed)
        other = functools.partial(_of_signs, scalars, attributed, lambda leaves: scalars_of(leaves, others))
        cotangent, value, strays = usual() if signed is None else jax.lax.cond(signed, other, usual)
        maps, seen, enlargement = _maps(images, methods, cotangent, gradient, modified)
    evidence = Evidence(_largest(seen), value, strays, *known, enlargement)
    return maps, outputs_of(attributed, others) if with_outputs else None, evidence


# Cotangents of one scalar per image, and of the units that it is made of.
_Cotangents = tuple[Float[Array, " images"], list[Float[Array, "images ..."]]]


def _of_target(
    scalars: Float[Array, " images"], units: list[Float[Array, "images ..."]]
) -> tuple[_Cotangents, Float[Array, " images"], Float[Array, " images"]]:
    """The cotangents that make maps, what they are of, and zeros."""
    cotangents = jnp.ones_like(scalars), [jnp.zeros_like(leaf) for leaf in units]
    return cotangents, _wide(scalars), jnp.zeros(len(scalars), jnp.float32)


def _of_signs(
    scalars: Float[Array, " images"], units: list[Float[Array, "images ..."]], target: TargetFn
) -> tuple[_Cotangents, Float[Array, " images"], Float[Array, " images"]]:
    """Every unit's derivative of the target with a random sign, on every second image, and zeros on the others.

    Also each image's sum of units so weighted, and the largest derivative of the scalars of every second image with
    respect to the outputs for each of the others.
    """
    every_second = signed_images(len(scalars))
    _, pull = jax.vjp(target, units)
    (weights,), (derivatives,) = pull(jnp.ones_like(scalars)), pull(every_second.astype(scalars.dtype))
    signs = unit_signs([leaf.shape[1:] for leaf in units])
    signed = [jnp.abs(weight) * sign.astype(weight.dtype)[None] for weight, sign in zip(weights, signs, strict=True)]
    cotangents = [leaf * every_second.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1)) for leaf in signed]
    value = sum_of_units([_wide(leaf) * _wide(unit) for leaf, unit in zip(signed, units, strict=True)])
    strays = functools.reduce(jnp.maximum, map(_largest, derivatives))
    return (jnp.zeros_like(scalars), cotangents), value.astype(_wide(scalars).dtype), strays * (1 - every_second)


def _maps(
    images: Float[Array, "images height width channels"],
    methods: Sequence[str],
    cotangent: _Cotangents,
    gradient: Callable[[_Cotangents], Array],
    modified: Callable[[_Cotangents], Array] | None,
) -> tuple[Maps, Float[Array, "images height width channels"], Float[Array, " images"]]:
    """Maps by method, a gradient that was computed for them, and `Evidence.enlargement`."""
    dtype = jnp.float64 if images.dtype == jnp.float64 else jnp.float32
    maps, seen = {}, jnp.zeros_like(images)
    if modified is not None:
        seen = modified(cotangent).astype(dtype)
        maps["epsilon_lrp"] = images.astype(dtype) * seen
    if "saliency" in methods or "input_x_gradient" in methods:
        seen = gradient(cotangent).astype(dtype)
        maps["saliency"] = jnp.abs(seen)
        maps["input_x_gradient"] = images.astype(dtype) * seen
    enlargement = jnp.zeros(len(images), jnp.float32)
    if len(maps) == len(METHODS):
        flat = {method: values.reshape(len(images), -1) for method, values in maps.items()}
        relevance, reference = (jnp.linalg.norm(flat[name], axis=1) for name in ("epsilon_lrp", "input_x_gradient"))
        ratio = (relevance / reference).astype(jnp.float32)
        enlargement = jnp.where(jnp.isfinite(ratio), ratio, enlargement)
    return {method: maps[method] for method in methods}, seen, enlargement


def _traced(
    apply: ApplyFn, params: PyTree, images: Array, *, floating: bool, chosen: bool
) -> tuple[jex.ClosedJaxpr, PyTree]:
    """Traces a network to its jaxpr and the shapes and types of its output, which are checked.

    Raises:
        JaxTransferError: See `arguments.call` and `arguments.check_outputs`.
    """
    closed, shapes = jax.make_jaxpr(functools.partial(arguments.call, apply), return_shape=True)(params, images)
    arguments.check_outputs(shapes, len(images), floating=floating, chosen=chosen)
    return closed, shapes


def _wide(values: Float[Array, "..."]) -> Float[Array, "..."]:
    return values.astype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)


def _largest(values: Float[Array, "images ..."]) -> Float[Array, " images"]:
    return jnp.abs(values).reshape(len(values), -1).max(1, initial=0).astype(jnp.float32)
