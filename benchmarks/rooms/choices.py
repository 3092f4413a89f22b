"""Compares variants of the measures of representations, and judges the choice among them on other targets.

Linear predictivity is computed here in its simplest form, fitted on one half of the images and judged on the other, so
that each choice (places, centring, scale, ridge, layer, weights) can be changed alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from scipy import stats

from benchmarks.rooms import scores
from benchmarks.rooms.scores import Matrix
from benchmarks.rooms.variants import early
from jaxtransfer.attribution.maps import attribute
from jaxtransfer.comparison.places import resample
from jaxtransfer.comparison.representations import BY_NAME
from jaxtransfer.networks.network import Network

_BATCH = 100
_RIDGE = 1e-2
_FAMILIES = {
    "rsa": ("rsa", "rsa_raw", "rsa_zscored"),
    "dds": ("dds_cosine", "dds_pearson", "dds_laplacian", "dds_rbf"),
}

Layer = Float[np.ndarray, "images height width units"]
Weights = Float[np.ndarray, "images height width"]


class Layers(NamedTuple):
    """What the variants need of a network.

    Attributes:
        last: Its representation.
        earlier: Its features after two of four blocks, on the same grid.
        looked_at: Weights of the places: its unit saliency there, over its mean.
    """

    last: Layer
    earlier: Layer
    looked_at: Weights


def layers(network: Network, images: UInt8[np.ndarray, "images 64 64 3"]) -> Layers:
    """Computes the layers of an encoder for some images."""
    last, earlier = jax.jit(network.apply), jax.jit(early)
    parts: list[list[np.ndarray]] = [[], [], []]
    for start in range(0, len(images), _BATCH):
        batch = jnp.asarray(images[start : start + _BATCH], jnp.float32) / 255
        batch = network.preprocess(batch) if network.preprocess else batch
        maps = attribute(network.apply, network.params, batch, methods="unit_saliency")["unit_saliency"].mean(-1)
        for part, values in zip(
            parts, (last(network.params, batch), earlier(network.params, batch), maps), strict=True
        ):
            part.append(np.asarray(values, np.float64))
    of_last, of_earlier, saliency = (np.concatenate(part) for part in parts)
    looked_at = resample(saliency[..., None], of_last.shape[1:3])[..., 0]
    return Layers(of_last, of_earlier, looked_at / looked_at.mean())


def predict(
    sources: Sequence[Layer],
    targets: Sequence[Layer],
    *,
    centre: bool = True,
    ridge: float = _RIDGE,
    weights: Sequence[Weights] | None = None,
) -> Matrix:
    """Computes linear predictivities, fitted on a random half of the images and judged on the other.

    Args:
        sources: Representations of the sources.
        targets: Representations of the targets, on the same grid.
        centre: Whether the mean over the images of the fit is removed at every place.
        ridge: The ridge, in units of the mean variance of the source's units.
        weights: Weights of the places of each target; None: all are equal.
    """
    images = len(sources[0])
    order = np.random.default_rng(0).permutation(images)
    halves = order[: images // 2], order[images // 2 :]

    def divided(layer: Layer) -> list[Float[np.ndarray, "samples units"]]:
        centred = layer - layer[halves[0]].mean(0) if centre else layer
        return [centred[half].reshape(-1, layer.shape[-1]) for half in halves]

    divided_sources = [divided(layer) for layer in sources]
    unweighted = [x.T @ x for x, _ in divided_sources] if weights is None else []
    values = np.eye(len(targets))
    for row, target in enumerate(map(divided, targets)):
        weight = [np.ones((1, 1))] * 2 if weights is None else [weights[row][half].reshape(-1, 1) for half in halves]
        (fitted, tested), (fit_weight, test_weight) = target, weight
        deviation = (test_weight * tested**2).sum()
        for column, (x_fitted, x_tested) in enumerate(divided_sources):
            if row == column:
                continue
            products = (fit_weight * x_fitted).T @ x_fitted if weights else unweighted[column]
            scaled = ridge * np.trace(products) / len(products)
            linear_map = np.linalg.solve(products + scaled * np.eye(len(products)), x_fitted.T @ (fit_weight * fitted))
            values[row, column] = 1 - (test_weight * (tested - x_tested @ linear_map) ** 2).sum() / deviation
    return values


def variants(of_networks: Sequence[Layers]) -> dict[str, Matrix]:
    """Computes the variants of linear predictivity; the first is the reference."""
    last, earlier = [layer.last for layer in of_networks], [layer.earlier for layer in of_networks]
    both = [np.concatenate([_scaled(x), _scaled(e)], 3) for x, e in zip(last, earlier, strict=True)]
    energy = [np.square(x - x.mean(0)).sum(3) for x in last]
    by_change: dict[str, Callable[[], Matrix]] = {
        "by place, mean over images removed, ridge 0.01": lambda: predict(last, last),
        **{f"ridge {ridge:g}": lambda ridge=ridge: predict(last, last, ridge=ridge) for ridge in (1e-4, 1e-3, 0.1, 1)},
        "mean over images and places removed": lambda: predict(
            *[[x - x.mean((0, 1, 2)) for x in last]] * 2, centre=False
        ),
        "nothing removed": lambda: predict(last, last, centre=False),
        **{
            f"{side} x {side} places": lambda side=side: predict(*[[resample(x, (side, side)) for x in last]] * 2)
            for side in (4, 2, 1)
        },
        "source's units of variance 1": lambda: predict([_standardised(x) for x in last], last),
        "target's units of variance 1": lambda: predict(last, [_standardised(x) for x in last]),
        **{
            f"target's {count} principal components": lambda count=count: predict(
                last, [_components(x, count) for x in last]
            )
            for count in (4, 16)
        },
        "target's 16 principal components of variance 1": lambda: predict(
            last, [_standardised(_components(x, 16)) for x in last]
        ),
        "earlier layer of both": lambda: predict(earlier, earlier),
        "earlier layer of the source": lambda: predict(earlier, last),
        "earlier layer of the target": lambda: predict(last, earlier),
        "both layers of the source": lambda: predict(both, last),
        "both layers of both": lambda: predict(both, both),
        "places weighted by the target's attribution": lambda: predict(
            last, last, weights=[layer.looked_at for layer in of_networks]
        ),
        "places weighted by the target's deviation": lambda: predict(
            last, last, weights=[part / part.mean() for part in energy]
        ),
        "half of the images, where networks disagree most": lambda: _on_images(last, _disagreement(last)),
        "half of the images, where networks agree most": lambda: _on_images(last, -_disagreement(last)),
        "half of the images, at random": lambda: _on_images(last, np.random.default_rng(1).random(len(last[0]))),
    }
    return {name: compute() for name, compute in by_change.items()}


def families(of_networks: Mapping[str, Layers]) -> dict[str, dict[str, Matrix]]:
    """Computes the variants of RSA and of DDS."""
    last = {name: layer.last.astype(np.float32) for name, layer in of_networks.items()}
    return {
        family: {method: BY_NAME[method](last).values for method in methods} for family, methods in _FAMILIES.items()
    }


class Difference(NamedTuple):
    """A difference of Spearman correlations on targets that had no part in the choice of the variants.

    Attributes:
        mean: Mean over targets.
        stderr: Its standard error over targets.
        low: Lower end of the 95 % interval of Student's t.
        high: Its upper end.
    """

    mean: float
    stderr: float
    low: float
    high: float


def held_out_difference(
    first: Mapping[str, Matrix], second: Mapping[str, Matrix], transfer: Matrix, splits: int = 500, seed: int = 0
) -> Difference:
    """Chooses the best variant of two families on one half of the targets, and compares them on the other.

    The difference of a target is its mean over the splits in which it had no part in the choice.
    """
    tables = [
        np.stack([scores.agreement(values, transfer) for values in family.values()]) for family in (first, second)
    ]
    rng, count = np.random.default_rng(seed), len(transfer)
    sums, times = np.zeros(count), np.zeros(count)
    for _ in range(splits):
        half, other_half = np.split(rng.permutation(count), [count // 2])
        chosen = [table[table[:, half].mean(1).argmax(), other_half] for table in tables]
        sums[other_half] += chosen[0] - chosen[1]
        times[other_half] += 1
    return difference(sums / times)


def difference(of_targets: Float[np.ndarray, " targets"]) -> Difference:
    """Summarises differences of targets."""
    count = len(of_targets)
    mean, stderr = float(of_targets.mean()), float(of_targets.std(ddof=1) / np.sqrt(count))
    reach = float(stats.t.ppf(0.975, count - 1)) * stderr
    return Difference(mean, stderr, mean - reach, mean + reach)


def _scaled(layer: Layer) -> Layer:
    return layer / np.sqrt(np.square(layer).mean())


def _standardised(layer: Layer) -> Layer:
    deviation = layer.std((0, 1, 2))
    return layer / np.where(deviation > 0, deviation, 1)


def _components(layer: Layer, count: int) -> Layer:
    flat = layer.reshape(-1, layer.shape[3])
    _, axes = np.linalg.eigh(np.cov(flat.T))
    return (layer - flat.mean(0)) @ axes[:, -count:]


def _disagreement(representations: Sequence[Layer]) -> Float[np.ndarray, " images"]:
    """Measures for every image how differently networks see its similarity to the other images."""
    profiles = []
    for layer in representations:
        flat = (layer - layer.mean(0)).reshape(len(layer), -1)
        products = flat @ flat.T
        profiles.append(products / np.linalg.norm(products, axis=1, keepdims=True))
    total = np.sum(profiles, axis=0)
    return 1 - np.square(total).sum(1) / len(profiles) ** 2


def _on_images(representations: Sequence[Layer], priority: Float[np.ndarray, " images"]) -> Matrix:
    chosen = np.argsort(-priority)[: len(priority) // 2]
    return predict(*[[layer[chosen] for layer in representations]] * 2)
