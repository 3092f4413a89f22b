"""Faults of a network that make its attribution maps meaningless, found by a second backward pass.

The second pass has other cotangents than the pass that gives maps: units with random signs on every second image, zeros
on the others. If the gradient of the attributed scalar is negligible compared with that of the signed units, or its
differences between images compared with theirs, the scalar does not depend on the image (a sum after a softmax). If
images with zero cotangents have a gradient, images of a batch are coupled (batch normalisation in training mode).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxtransfer.attribution.relevance import unbounded_ratios

FAULTS: dict[str, str] = {
    "constant_scalar": "the sum of its units (or other target) does not depend on the image beyond rounding, so its "
    "maps are noise; attribute what comes before the softmax or the normalisation, or a sum with random signs "
    '(target="random_signs", --target random-signs; for attribute target=jaxtransfer.random_signs)',
    "coupled_images": "its output for an image depends on the other images of the batch, as in batch normalisation in "
    "training mode; use running statistics (model.eval(), use_running_average=True, is_training=False)",
    "random_numbers": "it draws random numbers; if that is dropout in training mode, switch it off (model.eval(), "
    "deterministic=True)",
    "exploding_relevance": "its epsilon-LRP maps are more than 100 times larger than input x gradient, where "
    "activations that are not 0 at 0 are divided by inputs near 0; use input_x_gradient",
}
"""By code, what makes a network's maps meaningless, and what to do about it."""

# How many times larger epsilon-LRP may be than input x gradient; networks without unbounded ratios stay below 2.
_MAX_ENLARGEMENT = 100
# Places in the program that a fault names.
_MAX_PLACES = 3

_RANDOM_PRIMITIVES = frozenset({"random_bits", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform"})


class Evidence(NamedTuple):
    """Holds what one backward pass shows about every image.

    Attributes:
        gradient: Largest absolute entry of the gradient of the scalar with respect to the image.
        value: The scalar.
        strays: Largest absolute derivative of the target for other images with respect to this image's outputs.
        tolerance: Square root of the machine epsilon of the coarsest floating-point type in the network: a number that
            is smaller than this share of comparable numbers has lost at least half of its digits to cancellation.
        draws: 1 if the output depends on random numbers that the network draws, else 0.
        enlargement: Ratio of the Euclidean norms of the epsilon-LRP map and input x gradient; 0 where one of them is
            not computed, or the ratio is not finite.
    """

    gradient: Float[Array | np.ndarray, " images"]
    value: Float[Array | np.ndarray, " images"]
    strays: Float[Array | np.ndarray, " images"]
    tolerance: Float[Array | np.ndarray, " images"]
    draws: Float[Array | np.ndarray, " images"]
    enlargement: Float[Array | np.ndarray, " images"]


def signed_images(count: int) -> Float[Array, " images"]:
    """Returns 1 for every second image, beginning with the first, and 0 for the others."""
    return 1 - (jnp.arange(count) % 2).astype(jnp.float32)


def faults_of(usual: Evidence, signed: Evidence) -> tuple[str, ...]:
    """Returns the codes of `FAULTS` that the evidence of two passes over the same images shows.

    Args:
        usual: Evidence of the pass that gives maps; NumPy arrays.
        signed: Evidence of the pass with random signs on the images of `signed_images`, zeros on the others.
    """
    tolerance = usual.tolerance.max(initial=0)
    maps, signs = usual.gradient[::2], signed.gradient[::2]
    compared = np.isfinite(maps) & np.isfinite(signs) & (signs > 0)
    flat = compared.any() and (maps <= tolerance * signs)[compared].all()
    # A saturated softmax has hardly any gradient, whatever the weights of its units, so values are compared as well.
    finite = np.isfinite(usual.value) & np.isfinite(signed.value)
    spread = [np.ptp(evidence.value[finite]) if finite.any() else 0 for evidence in (usual, signed)]
    constant = flat or spread[0] <= tolerance * spread[1] > 0
    shown = {
        "constant_scalar": constant,
        "coupled_images": (signed.gradient[1::2] > 0).any(),
        "random_numbers": (usual.draws > 0).any(),
        "exploding_relevance": not constant and np.median(usual.enlargement) > _MAX_ENLARGEMENT,
    }
    return tuple(code for code in FAULTS if shown[code])


def concerns(fault: str, method: str) -> bool:
    """Returns whether a fault makes the maps of an attribution method, or representations, meaningless."""
    code = fault.partition(":")[0]
    if code == "constant_scalar":
        return method not in ("unit_saliency", "representation", "probabilities")
    return code != "exploding_relevance" or method == "epsilon_lrp"


def with_places(
    faults: Sequence[str], apply: Callable[[PyTree, Array], PyTree], params: PyTree, images: Any
) -> tuple[str, ...]:
    """Returns faults with the places in the program that cause them, like "exploding_relevance: net.py:12 (apply)".

    Args:
        faults: Codes of `FAULTS`.
        apply: The network's function.
        params: Its weights, or their shapes and types.
        images: Its input, or the shape and type of that.
    """
    if "exploding_relevance" not in faults:
        return tuple(faults)
    places = unbounded_ratios(apply, params, images)
    named = ", ".join(places[:_MAX_PLACES]) + (
        f" and {len(places) - _MAX_PLACES} more" if len(places) > _MAX_PLACES else ""
    )
    return tuple(f"{code}: {named}" if code == "exploding_relevance" and named else code for code in faults)


def describe_fault(fault: str) -> str:
    """Explains a fault: what it means, what to do about it, and where in the program it arises if that is known."""
    code, _, places = fault.partition(": ")
    return FAULTS[code] + (f" (at {places})" if places else "")


def in_sentences(faults: Mapping[str, Sequence[str]]) -> list[str]:
    """Writes a sentence for each fault, which names the networks that have it."""
    networks: dict[str, list[str]] = {}
    for name, of_network in faults.items():
        for fault in of_network:
            networks.setdefault(fault, []).append(name)
    sentences = []
    for fault in sorted(networks, key=lambda fault: list(FAULTS).index(fault.partition(": ")[0])):
        names = networks[fault]
        subject = "Network" if len(names) == 1 else "Networks"
        sentences.append(f"{subject} {', '.join(names)}: {describe_fault(fault)}.")
    return sentences


def draws_random_numbers(closed: jex.ClosedJaxpr) -> bool:
    """Returns whether an output of a function depends on random numbers that the function draws."""
    return _draws(closed.jaxpr, [True] * len(closed.jaxpr.outvars))


def _draws(jaxpr: jex.Jaxpr, wanted: Sequence[bool]) -> bool:
    """Whether the wanted outputs depend on random numbers; follows them backwards through the equations."""
    needed = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and isinstance(var, jex.Var)}
    for eqn in reversed(jaxpr.eqns):
        outputs = [var in needed for var in eqn.outvars]
        if not any(outputs):
            continue
        if eqn.primitive.name in _RANDOM_PRIMITIVES:
            return True
        for inner in _bodies(eqn):
            same = len(inner.outvars) == len(outputs) and eqn.primitive.name not in ("scan", "while")
            if _draws(inner, outputs if same else [True] * len(inner.outvars)):
                return True
        needed.update(var for var in eqn.invars if isinstance(var, jex.Var))
    return False


def coarsest_epsilon(closed: jex.ClosedJaxpr) -> float:
    """Returns the machine epsilon of the coarsest floating-point type in which a function computes."""
    return max(_epsilons(closed.jaxpr), default=float(jnp.finfo(jnp.float32).eps))


def _epsilons(jaxpr: jex.Jaxpr) -> Iterable[float]:
    for eqn in jaxpr.eqns:
        for var in eqn.outvars:
            dtype = getattr(var.aval, "dtype", np.dtype(np.int32))
            if jnp.issubdtype(dtype, jnp.floating):
                yield float(jnp.finfo(dtype).eps)
        for inner in _bodies(eqn):
            yield from _epsilons(inner)


def _bodies(eqn: jex.JaxprEqn) -> Iterable[jex.Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for value in eqn.params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, jex.ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, jex.Jaxpr):
                yield entry
