"""Attribution maps of any JAX function: which pixels does a representation depend on?"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import chex
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
    concerns,
    describe_fault,
    draws_random_numbers,
    faults_of,
    signed_images,
    with_places,
)
from jaxtransfer.attribution.precision import PRECISIONS, Precision, matmul_precision, products_in_bfloat16
from jaxtransfer.attribution.relevance import rule_vjp
from jaxtransfer.attribution.targets import spatial_maximum, sum_of_units, unit_signs
from jaxtransfer.defaults import ATTRIBUTIONS, EPSILON, METHODS
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.networks.network import ApplyFn, check_weights

TargetFn = Callable[[Any], Float[Array, " images"]]

Maps = dict[str, Float[Array, "images ... height width channels"]]

PATH_POINTS = 50
"""Points of the path along which gradients are integrated."""

_SIGN_VECTORS = 8


@overload
def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: str | Sequence[str] = ...,
    target: TargetFn | None = ...,
    epsilon: float = ...,
    precision: Precision = ...,
    with_outputs: Literal[False] = ...,
) -> Maps: ...


@overload
def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: str | Sequence[str] = ...,
    target: TargetFn | None = ...,
    epsilon: float = ...,
    precision: Precision = ...,
    with_outputs: Literal[True],
) -> tuple[Maps, PyTree]: ...


def attribute(
    apply: ApplyFn,
    params: PyTree,
    images: Float[Array | np.ndarray, "images height width channels"],
    *,
    methods: str | Sequence[str] = METHODS,
    target: TargetFn | None = None,
    epsilon: float = EPSILON,
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

    Further methods, which are computed only if they are named:

    * `unit_saliency`: the mean of |d(v . u)/dx| over eight fixed vectors v of random signs, where u are all units of
      the representation; it does not depend on `target`. Compare these maps by correlation.
    * `integrated_gradients`: x * the integral of dr/dx along the straight path from zero to x, by Gauss-Legendre
      quadrature at 50 points (Sundararajan et al., ICML 2017).
    * `modelgif`: the same map with the integral only up to each of the 50 points: a curve of 50 maps, of which the last
      is that of `integrated_gradients`. With `target=jaxtransfer.spatial_maximum` it is the curve of Song et al. (ICCV
      2023).

    The forward pass runs once for all methods. It is compiled once per `apply`, `target`, `methods`, `epsilon`,
    `precision` and shape, so pass the same function objects in every call, and weights in `params`. `attribute` may be
    called under `jit` and `vmap`, and with sharded arrays.

    The first call with a function, target and shape of images runs the pass a second time, to warn of the faults that
    `find_faults` looks for and of epsilon-LRP that explodes; later calls do not, whatever their weights, nor do calls
    under `jit` or `vmap`.

    Args:
        apply: Pure function `apply(params, images) -> [images, ...]` that treats its images independently.
        params: Weights: a pytree of arrays, with or without PRNG keys and Python numbers.
        images: The network's input: floating point, [images, height, width, channels].
        methods: One or several of `ATTRIBUTIONS`.
        target: Function from the network's output to one scalar per image, [images], which depends on that image's
            outputs alone; None: the sum over all units. `jaxtransfer.random_signs` and `jaxtransfer.spatial_maximum`
            are others.
        epsilon: Stabiliser of epsilon-LRP, in units of the pre-activations; > 0.
        precision: Precision of the matrix products for which the network sets none itself: "float32", "tf32" (on an
            NVIDIA GPU), or "bfloat16" for those of the backward passes; see `docs/precision.md`.
        with_outputs: Return a pair: the maps, and what `apply` returned.

    Returns:
        One map per method, of the shape of `images`, or for `modelgif` [images, 50, height, width, channels]; float32,
        or float64 for float64 images.

    Raises:
        JaxTransferError: Unknown method or precision, params that are not arrays, images that are not floating point or
            not four-dimensional, or none, epsilon <= 0, outputs that are not floating point or have no axis of images,
            a target without one scalar per image or one that mixes images, or (for `epsilon_lrp`) a primitive without
            a rule.

    Examples:
        >>> def apply(params, x):
        ...     return jax.nn.relu(x.reshape(len(x), -1) @ params)
        >>> images = np.array([[0.5, 1.0]], np.float32).reshape(1, 1, 2, 1)  # one image of two pixels
        >>> maps = jt.attribute(apply, np.array([[2.0], [-0.5]], np.float32), images)
        >>> maps["saliency"].shape
        (1, 1, 2, 1)
        >>> maps["saliency"].ravel().tolist(), maps["input_x_gradient"].ravel().tolist()
        ([2.0, 0.5], [1.0, -0.5])
    """
    methods = arguments.checked_methods(methods)
    if not methods:
        raise JaxTransferError(f"No attribution method is named; there are: {', '.join(ATTRIBUTIONS)}.")
    for method in methods:
        arguments.check_name("attribution method", method, ATTRIBUTIONS)
    arguments.check_positive("epsilon", epsilon)
    images = _checked(apply, params, images, target)
    arguments.check_name("precision", precision, PRECISIONS)
    static = methods, target, float(epsilon), precision, with_outputs
    unsigned = jax.device_put(False)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, images, unsigned)))
    maps, outputs, evidence = attribution_pass(apply, params, images, None if traced else unsigned, *static)
    if not traced and not isinstance(evidence.gradient, Tracer):
        faults = _faults_of_first_call(apply, target, images.shape, images.dtype)
        if not faults:
            *_, signed = attribution_pass(apply, params, images, jax.device_put(True), *static)
            faults.append(_faults(evidence, signed))
            relevant = [fault for fault in faults[0] if any(concerns(fault, method) for method in methods)]
            for fault in with_places(relevant, apply, params, images):
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

    Two backward passes are compared: that of the attributed scalar, and, on every second image, that of its units with
    random signs. The scalar does not depend on the images if on each of them the ratio of the two gradients is at the
    level of rounding errors: at most the square root of the machine epsilon. Images of a batch are coupled if images
    without a cotangent have a gradient. Random numbers are found in the function's jaxpr.

    Args:
        apply: As for `attribute`.
        params: Weights.
        images: The network's input. Two images or more are needed to find coupled images; a few are enough.
        target: As for `attribute`.

    Returns:
        Codes of faults, empty if there are none: "constant_scalar", "coupled_images", "random_numbers".
        `jaxtransfer.FAULTS` explains each of them and what to do about it.

    Raises:
        JaxTransferError: As for `attribute`.
    """
    images = _checked(apply, params, images, target)
    epsilon = 1.0  # saliency does not depend on it
    static = ("saliency",), target, epsilon, "float32", False
    usual, signed = (attribution_pass(apply, params, images, jax.device_put(on), *static)[2] for on in (False, True))
    return _faults(usual, signed)


def _checked(apply: ApplyFn, params: PyTree, images: Any, target: TargetFn | None) -> Array:
    """Checks the arguments of `attribute` and `find_faults`, and returns the images as a JAX array."""
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
def _faults_of_first_call(
    apply: ApplyFn, target: TargetFn | None, shape: tuple[int, ...], dtype: Any
) -> list[tuple[str, ...]]:
    """Returns the list in which the faults of a function are stored after its first call; empty before."""
    return []


def _faults(usual: Evidence, signed: Evidence) -> tuple[str, ...]:
    """Returns the faults that evidence on devices shows; raises an error if the target mixes images."""
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
    """Computes maps, or evidence of faults, from one forward pass; one program does both.

    Args:
        apply: The network's function.
        params: Its weights.
        images: Its input.
        signed: False: the backward passes are those of the target and give maps. True: they are those of its units with
            random signs, on the images of `signed_images`, and give evidence for `faults_of`; the maps are meaningless.
            None: as False, in a program without the choice.
        methods: Some of `ATTRIBUTIONS`, or none.
        target: Function from the output to one scalar per image; None: the sum over units.
        epsilon: Stabiliser of epsilon-LRP.
        precision: Precision of matrix products.
        with_outputs: Whether to return the network's output.

    Returns:
        Maps by method, the network's output or None, and the evidence.
    """
    chex.assert_rank(images, 4)
    count = len(images)
    with jax.default_matmul_precision(matmul_precision(precision)):
        closed, shapes = _traced(apply, params, images, floating=bool(methods), chosen=target is not None)
        every_image = functools.partial(jnp.full, count, dtype=jnp.float32)
        known = (every_image(coarsest_epsilon(closed) ** 0.5), every_image(float(draws_random_numbers(closed))))
        network = jex.jaxpr_as_fun(closed)
        units = [arguments.is_representation(leaf, count) for leaf in jax.tree.leaves(shapes)]
        if not methods:
            zeros = every_image(0)
            outputs = jax.tree.unflatten(jax.tree.structure(shapes), network(*jax.tree.leaves((params, images))))
            return {}, outputs, Evidence(zeros, zeros, zeros, *known, zeros)

        def outputs_of(attributed: list[Array], others: list[Array]) -> PyTree:
            next_attributed, next_other = iter(attributed), iter(others)
            leaves = [next(next_attributed) if unit else next(next_other) for unit in units]
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

        narrowed = products_in_bfloat16 if precision == "bfloat16" else lambda pull: pull

        def differentiate(images: Array) -> tuple[Any, Callable[[_Cotangents], Array], list[Array]]:
            output, pull, others = jax.vjp(functools.partial(function, params), images, has_aux=True)
            return output, narrowed(lambda cotangent: pull(cotangent)[0]), others

        if "epsilon_lrp" in methods:
            passes = rule_vjp(function, params, images, epsilon)
            (scalars, attributed), others = passes.output, passes.aux
            gradient, modified = narrowed(passes.gradient), narrowed(passes.modified)
        else:
            ((scalars, attributed), gradient, others), modified = differentiate(images), None
        usual = functools.partial(_target_cotangents, scalars, attributed)
        other = functools.partial(_signed_cotangents, scalars, attributed, lambda leaves: scalars_of(leaves, others))
        cotangent, value, strays = usual() if signed is None else jax.lax.cond(signed, other, usual)
        maps, last_gradient, enlargement = _maps(images, methods, cotangent, gradient, modified)
        if "unit_saliency" in methods:
            maps["unit_saliency"] = _unit_saliency(images, scalars, attributed, gradient)
        if "integrated_gradients" in methods or "modelgif" in methods:
            on_path = usual()[0]
            if target is spatial_maximum:  # the places of the maxima stay those of the image
                _, pull = jax.vjp(lambda leaves: scalars_of(leaves, others), attributed)
                on_path = jnp.zeros_like(scalars), *pull(jnp.ones_like(scalars))
            maps |= _path_maps(images, lambda images: differentiate(images)[1](on_path), curve="modelgif" in methods)
        maps = {method: maps[method] for method in methods}
    evidence = Evidence(_largest(last_gradient), value, strays, *known, enlargement)
    return maps, outputs_of(attributed, others) if with_outputs else None, evidence


# Cotangents of the scalars, one per image, and of the units they are computed from.
_Cotangents = tuple[Float[Array, " images"], list[Float[Array, "images ..."]]]


def _target_cotangents(
    scalars: Float[Array, " images"], units: list[Float[Array, "images ..."]]
) -> tuple[_Cotangents, Float[Array, " images"], Float[Array, " images"]]:
    """Returns the cotangents that give maps, the scalars, and zeros (for `Evidence.strays`)."""
    cotangents = jnp.ones_like(scalars), [jnp.zeros_like(leaf) for leaf in units]
    return cotangents, _wide(scalars), jnp.zeros(len(scalars), jnp.float32)


def _signed_cotangents(
    scalars: Float[Array, " images"], units: list[Float[Array, "images ..."]], target: TargetFn
) -> tuple[_Cotangents, Float[Array, " images"], Float[Array, " images"]]:
    """Returns the target's derivative by each unit with a random sign, on every second image; zeros on the others.

    Also returns each image's sum of units with these weights, and for each of the other images the largest derivative
    of the scalars of every second image with respect to its outputs.
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
    """Computes the maps of `METHODS`; also returns one of the gradients, and `Evidence.enlargement`."""
    dtype = _wide(images).dtype
    maps: Maps = {}
    last_gradient = jnp.zeros_like(images)
    if modified is not None:
        last_gradient = modified(cotangent).astype(dtype)
        maps["epsilon_lrp"] = images.astype(dtype) * last_gradient
    if set(methods) != {"epsilon_lrp"}:
        last_gradient = gradient(cotangent).astype(dtype)
        maps["saliency"] = jnp.abs(last_gradient)
        maps["input_x_gradient"] = images.astype(dtype) * last_gradient
    enlargement = jnp.zeros(len(images), jnp.float32)
    if len(maps) == len(METHODS):
        flat = {method: values.reshape(len(images), -1) for method, values in maps.items()}
        relevance, reference = (jnp.linalg.norm(flat[name], axis=1) for name in ("epsilon_lrp", "input_x_gradient"))
        ratio = (relevance / reference).astype(jnp.float32)
        enlargement = jnp.where(jnp.isfinite(ratio), ratio, enlargement)
    return maps, last_gradient, enlargement


def _unit_saliency(
    images: Float[Array, "images height width channels"],
    scalars: Float[Array, " images"],
    units: list[Float[Array, "images ..."]],
    gradient: Callable[[_Cotangents], Array],
) -> Float[Array, "images height width channels"]:
    """Computes the mean of |d(v . units)/dx| over vectors v of random signs, one backward pass after the other."""

    def add(total: Array, vector: Array) -> tuple[Array, None]:
        signs = unit_signs([leaf.shape[1:] for leaf in units], vector)
        signed = [
            jnp.broadcast_to(sign[None], leaf.shape).astype(leaf.dtype) for sign, leaf in zip(signs, units, strict=True)
        ]
        return total + jnp.abs(_wide(gradient((jnp.zeros_like(scalars), signed)))), None

    return jax.lax.scan(add, _wide(jnp.zeros_like(images)), jnp.arange(_SIGN_VECTORS))[0] / _SIGN_VECTORS


def _path_maps(
    images: Float[Array, "images height width channels"], gradient: Callable[[Array], Array], *, curve: bool
) -> Maps:
    """Integrates gradients along the straight path from zero to the images, one point after the other.

    Args:
        images: The network's input.
        gradient: Computes the gradient at other images.
        curve: Whether to return the curve of `modelgif`, too.
    """
    places, weights = np.polynomial.legendre.leggauss(PATH_POINTS)  # of the interval from -1 to 1
    wide = _wide(images)

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, Array | None]:
        place, weight = point
        total = total + weight * gradient(place * images).astype(wide.dtype)
        return total, total if curve else None

    points = jnp.asarray((places + 1) / 2, images.dtype), jnp.asarray(weights / 2, wide.dtype)
    integral, integrals = jax.lax.scan(add, jnp.zeros_like(wide), points)
    maps = {"integrated_gradients": wide * integral}
    return maps | ({} if integrals is None else {"modelgif": wide[:, None] * jnp.moveaxis(integrals, 0, 1)})


def _traced(
    apply: ApplyFn, params: PyTree, images: Array, *, floating: bool, chosen: bool
) -> tuple[jex.ClosedJaxpr, PyTree]:
    """Traces a network to its jaxpr, and checks the shapes and types of its output.

    Raises:
        JaxTransferError: See `arguments.call` and `arguments.check_outputs`.
    """
    closed, shapes = jax.make_jaxpr(functools.partial(arguments.call, apply), return_shape=True)(params, images)
    arguments.check_outputs(shapes, len(images), floating=floating, chosen=chosen)
    return closed, shapes


def _wide(values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Converts to float32, unless values are float64."""
    return values.astype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)


def _largest(values: Float[Array, "images ..."]) -> Float[Array, " images"]:
    """Returns the largest absolute value of each image."""
    return jnp.abs(values).reshape(len(values), -1).max(1, initial=0).astype(jnp.float32)
