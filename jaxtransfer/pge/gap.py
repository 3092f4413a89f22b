"""The gap between two tasks: how far apart they pull fresh weights; smaller means nearer."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.estimator import PrincipalGradient, same_recipe
from jaxtransfer.pge.statistics import Estimate, Products, inner_products, jackknife, plain, unbiased

Form = Literal["pge", "normalized", "cosine"]
FORMS: tuple[Form, ...] = ("pge", "normalized", "cosine")


def gap(source: PrincipalGradient, target: PrincipalGradient, form: Form = "pge", *, biased: bool = False) -> Estimate:
    """The gap between two tasks from unbiased norms and inner products, with its standard error.

    With S and T the expected gradients:

    * "pge": ||S - T|| / (||S|| ||T||), as the authors' code has it; it changes with the scale of a loss.
    * "normalized": ||S/||S|| - T/||T||||, between 0 and 2, as their abstract has it.
    * "cosine": 1 - cos(S, T), between 0 and 2: half the square of "normalized".

    A squared distance that noise has made negative counts as 0. The standard error is infinite where all groups
    together are resolved, but not when one of them is left out.

    Args:
        source: Of one task.
        target: Of the other.
        form: Which gap.
        biased: Use the norms of the means as the authors' code does. The result then falls or rises with the number of
            restarts, and only serves to compare with published numbers.

    Raises:
        JaxTransferError: The two come from different backbones, initialisers, losses or symmetries, or one of them is
            so noisy that its squared norm is not positive.
    """
    if form not in FORMS:
        raise JaxTransferError(f"There is no gap {form!r}; there are: {', '.join(FORMS)}.")
    same_recipe(source, target)
    own, other = source._products, target._products
    between = inner_products(source.groups, target.groups)
    product = plain if biased else unbiased
    for name, each in (("source", own), ("target", other)):
        if product(each) <= 0:
            raise JaxTransferError(
                f"The {name}'s principal gradient is not resolved: its squared norm came out as {product(each):.2g}. "
                "It needs more restarts."
            )
    if form == "cosine":
        return jackknife(lambda *products: 1 - _cosine(product, *products), own, other, between)
    squared = _squared_pge if form == "pge" else _squared_normalized
    value, stderr = jackknife(lambda *products: squared(product, *products), own, other, between)
    value = float(np.sqrt(max(value, 0)))
    if not 0 < stderr < np.inf:
        return Estimate(value, stderr)
    # By the delta method; a distance of 0 is one that might as well be the root of the error.
    return Estimate(value, stderr / max(2 * value, np.sqrt(stderr)))


def _squared_pge(product: Callable[[Products], float], own: Products, other: Products, between: Products) -> float:
    a, b = product(own), product(other)
    return (a + b - 2 * product(between)) / (a * b) if min(a, b) > 0 else np.inf


def _squared_normalized(product: Callable[[Products], float], *products: Products) -> float:
    return 2 - 2 * _cosine(product, *products)


def _cosine(product: Callable[[Products], float], own: Products, other: Products, between: Products) -> float:
    a, b = product(own), product(other)
    return product(between) / float(np.sqrt(a * b)) if min(a, b) > 0 else np.inf
