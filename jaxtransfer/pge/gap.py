"""The gap between two tasks: the distance between their expected gradients; a smaller gap means nearer tasks."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from jaxtransfer.arguments import check_name
from jaxtransfer.errors import JaxTransferError
from jaxtransfer.pge.estimator import PrincipalGradient, same_recipe
from jaxtransfer.pge.statistics import Estimate, Products, inner_products, jackknife, plain, unbiased

Form = Literal["pge", "normalized", "cosine"]
FORMS: tuple[Form, ...] = ("pge", "normalized", "cosine")


def gap(source: PrincipalGradient, target: PrincipalGradient, form: Form = "pge", *, biased: bool = False) -> Estimate:
    """Computes the gap between two tasks from unbiased norms and inner products, with its standard error.

    With S and T the expected gradients:

    * "pge": ||S - T|| / (||S|| ||T||), as in the authors' code (arXiv 2211.16299); depends on the scale of the loss.
    * "normalized": ||S/||S|| - T/||T||||, between 0 and 2, as in their abstract.
    * "cosine": 1 - cos(S, T), between 0 and 2: half the square of "normalized".

    A squared distance that noise makes negative counts as 0. The standard error is infinite where a squared norm is
    positive over all groups, but not when a group is left out.

    Args:
        source: Principal gradient of the source task.
        target: Principal gradient of the target task; the gap is symmetric.
        form: Form of the gap: "pge", "normalized" or "cosine".
        biased: Whether to use the norms of the means, as the authors' code does. Such a gap depends on the number of
            restarts and serves only to compare with published numbers.

    Returns:
        The gap and its standard error.

    Raises:
        JaxTransferError: The two come from different backbones, initialisers, losses or symmetries, or one of them is
            so noisy that its squared norm is not positive.

    A task is at distance 0 from itself:

    Examples:
        >>> def init(key):
        ...     return jax.random.normal(key, (12, 5))
        >>> def loss(params, batch, key):
        ...     images, labels = batch
        ...     return jnp.tanh(images.reshape(len(images), -1).astype(jnp.float32) @ params).mean()
        >>> def task(value):
        ...     return jt.Minibatches.of(np.full((9, 2, 2, 3), value, np.float32), np.arange(9), size=6)
        >>> gradients = [
        ...     jt.principal_gradient(init, loss, task(value), jax.random.key(0), restarts=64, control=False)
        ...     for value in (0.1, 1.0)
        ... ]
        >>> jt.gap(gradients[0], gradients[0], "cosine").value < 1e-6
        True
        >>> value, stderr = jt.gap(*gradients, "cosine")
        >>> 0 < value < 2
        True
    """
    check_name("form of gap", form, FORMS)
    same_recipe(source, target)
    own, other = source._products, target._products
    between = inner_products(source.groups, target.groups)
    product = plain if biased else unbiased
    for name, products in (("source", own), ("target", other)):
        if product(products) <= 0:
            raise JaxTransferError(
                f"The {name}'s principal gradient is not resolved: its squared norm is estimated as "
                f"{product(products):.2g}; compute it with more restarts."
            )
    if form == "cosine":
        return jackknife(lambda *products: 1 - _cosine(product, *products), own, other, between)
    squared = _squared_pge if form == "pge" else _squared_normalized
    value, stderr = jackknife(lambda *products: squared(product, *products), own, other, between)
    value = float(np.sqrt(max(value, 0)))
    if not 0 < stderr < np.inf:
        return Estimate(value, stderr)
    # By the delta method; for a distance of 0 the standard error is the root of that of the square.
    return Estimate(value, stderr / max(2 * value, np.sqrt(stderr)))


def _squared_pge(product: Callable[[Products], float], own: Products, other: Products, between: Products) -> float:
    a, b = product(own), product(other)
    return (a + b - 2 * product(between)) / (a * b) if min(a, b) > 0 else np.inf


def _squared_normalized(product: Callable[[Products], float], *products: Products) -> float:
    return 2 - 2 * _cosine(product, *products)


def _cosine(product: Callable[[Products], float], own: Products, other: Products, between: Products) -> float:
    a, b = product(own), product(other)
    return product(between) / float(np.sqrt(a * b)) if min(a, b) > 0 else np.inf
