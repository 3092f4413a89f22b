"""LogME: the largest evidence of a Bayesian linear regression from features to labels (You et al., ICML 2021)."""

import numpy as np
import scipy.optimize
from jaxtyping import Float, Shaped

from jaxtransfer.scores.examples import by_missing
from jaxtransfer.scores.spectra import Examples

# The ratio a / b is searched from the first to the last of these shares of the sum of all squared features.
_SHARES = 10.0 ** np.linspace(-13, 4, 171)


def logme(features: Shaped[np.ndarray, "examples units"], labels: Shaped[np.ndarray, "examples ..."]) -> float:
    """Computes LogME, the log evidence per example, averaged over the columns of labels.

    The labels y of a column are F w + noise with weights of variance 1/a and noise of variance 1/b, both unknown, so
    y ~ N(0, F F'/a + I/b); the evidence is the largest density of y over a and b. The paper iterates from a = b = 1,
    at most eleven times and to a relative change of 0.001; here the maximum itself is computed, for each column on its
    own: over b in closed form, over a / b on a grid and then by Brent's method. Features are neither centred nor
    scaled, as in the paper.

    Where features fit a column without error, its evidence has no bound; a / b is then at the lower end of the search,
    1e-13 of the sum of squared features.

    Args:
        features: Features of the examples.
        labels: Class of each example as an integer, which stands for one column of 0 and 1 per class; or numbers or
            0/1 labels [examples, outputs], NaN where missing: an output uses the examples that have it.

    Returns:
        The score in nats per example. It does not change when units are rotated. With all features multiplied by one
        number it does not change either: a absorbs it.

    Raises:
        JaxTransferError: The shapes do not fit together, a feature is not finite, or there are fewer than two examples
            or classes.

    Source:
        arXiv 2102.11005. The evidence has all units: released code drops (D - rank)/2 log a where examples are fewer
        than units.
    """
    return log_evidence(Examples.of(features, labels))


def log_evidence(examples: Examples) -> float:
    """Computes LogME of examples; columns that are 0 for all of them are left out."""
    if examples.labels.ndim == 1:
        return float(np.mean(_evidences(examples, examples.one_hot)))
    evidences = []
    for known, columns in by_missing(examples.labels):
        part = examples if known.all() else examples.without(~known)
        targets = part.labels[:, columns]
        if (targets := targets[:, targets.any(0)]).size:
            evidences.extend(_evidences(part, targets))
    return float(np.mean(evidences)) if evidences else 0.0


def _evidences(examples: Examples, targets: Float[np.ndarray, "examples columns"]) -> list[float]:
    """Returns the log evidence per example of each column."""
    count = len(examples)
    squares = count * examples.variances
    mean = (examples.origin + examples.mean) @ examples.axes
    target_means = targets.mean(0)
    centred = targets - target_means
    products = examples.axes.T @ ((examples.values - examples.mean).T @ centred)
    varying = squares > 0
    explained = np.square(products[varying]) / squares[varying, None]
    residuals = np.maximum(np.square(centred).sum(0) - explained.sum(0), 0)
    least = np.finfo(float).eps * np.square(targets).sum(0)
    ratios = _SHARES * ((squares.sum() + count * mean @ mean) or 1)

    def evidence(ratio: Float[np.ndarray, " ratios"], column: int | slice) -> Float[np.ndarray, "ratios columns"]:
        """Maximises the log evidence over b for ratios a / b.

        F F' is that of centred features and of a constant column `mean`; the latter is one more example of weight
        `count`. Everything added is positive, so nothing cancels.
        """
        gains = 1 / (ratio[:, None] + squares)
        lever = 1 + count * gains @ np.square(mean)
        of_mean = target_means[column] - gains @ (mean[:, None] * products)[:, column]
        errors = residuals[column] + ratio[:, None] * (gains[:, varying] @ explained[:, column])
        errors = np.maximum(errors + count * np.square(of_mean) / lever[:, None], least[column])
        log_determinant = np.log1p(squares / ratio[:, None]).sum(1) + np.log(lever)
        return 0.5 * (np.log(count / (2 * np.pi * errors)) - 1 - log_determinant[:, None] / count)

    on_grid = evidence(ratios, slice(None))
    logs = np.log(ratios)
    evidences = []
    for column, index in enumerate(on_grid.argmax(0)):
        only = slice(column, column + 1)
        around = (logs[max(index - 1, 0)], logs[min(index + 1, len(logs) - 1)])
        refined = scipy.optimize.fminbound(
            lambda log_ratio, only=only: -evidence(np.exp([log_ratio]), only)[0, 0], *around, xtol=1e-7
        )
        evidences.append(max(evidence(np.exp([refined]), only)[0, 0], on_grid[index, column]))
    return evidences
