"""Features and labels of examples, with the decompositions that the measures share.

The measures do not change when features are rotated. So features of many more units than examples are first rotated
into as many coordinates as there are examples, and one eigendecomposition of the covariance serves all measures. Sums
over a part of the examples are those over the whole, less those over the examples left out.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxtransfer.errors import JaxTransferError

_WIDE = 1.05  # units per example from which a rotation costs less than the decomposition of further units


@dataclasses.dataclass(eq=False)
class Examples:
    """Holds features and labels of examples; what is computed from them is computed once, when it is first used.

    `of` takes features, `without` takes a part of other examples. A coordinate is a unit, or a direction in the space
    of the units.

    Attributes:
        units: Number of units of the features.
        origin: Coordinates of the point that was subtracted from all examples.
        values: Coordinates of the examples less the origin.
        labels: Class of each example as an integer, or float64 numbers [examples, outputs], NaN where missing.
        whole: The examples of which these are a part; None: these are no part.
        kept: Which examples of the whole these are.
    """

    units: int
    origin: Float[np.ndarray, " coordinates"]
    values: Float[np.ndarray, "examples coordinates"]
    labels: Shaped[np.ndarray, "examples ..."]
    whole: "Examples | None" = None
    kept: Bool[np.ndarray, " examples_of_whole"] | None = None

    @classmethod
    def of(
        cls, features: Shaped[np.ndarray, "examples units"], labels: Shaped[np.ndarray, "examples ..."]
    ) -> "Examples":
        """Takes features and labels, which stay as they are.

        Args:
            features: Features of the examples.
            labels: Class of each example as an integer, or numbers [examples, outputs], NaN where missing.

        Raises:
            JaxTransferError: The shapes do not fit together, a feature is not finite, or there are fewer than two
                examples or classes.
        """
        features, labels = checked(features, labels, "Features")
        units = features.shape[1]
        if units > _WIDE * len(features):
            features = np.asarray(np.linalg.qr(features.T, mode="r")).T
        origin = features.mean(0)
        return cls(units, origin, features - origin, labels)

    def __len__(self) -> int:
        return len(self.values)

    def without(self, left_out: Bool[np.ndarray, " examples"]) -> "Examples":
        """Returns the examples that are not left out."""
        kept = ~left_out
        return Examples(self.units, self.origin, self.values[kept], self.labels[kept], self, kept)

    def shared(self, compute: Callable[["Examples"], Shaped[np.ndarray, "examples ..."]]) -> Any:
        """Returns the rows of an array that is computed once, for the whole, and has a row for each example.

        Random choices and starts of iterations are such arrays: a part then differs from the whole by what is left
        out, and not by chance.
        """
        if self.whole is not None and self.kept is not None:
            return self.whole.shared(compute)[self.kept]
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        return self._shared[compute]

    @cached_property
    def _shared(self) -> dict[Callable, np.ndarray]:
        return {}

    @cached_property
    def _products(self) -> Float[np.ndarray, "coordinates coordinates"]:
        """Sums of products of the coordinates."""
        if self.whole is None or self.kept is None or 2 * len(self) < len(self.whole):
            return self.values.T @ self.values
        left_out = self.whole.values[~self.kept]
        return self.whole._products - left_out.T @ left_out

    @cached_property
    def mean(self) -> Float[np.ndarray, " coordinates"]:
        """Mean of `values`."""
        return self.values.mean(0)

    @cached_property
    def _spectrum(self) -> tuple[Float[np.ndarray, " axes"], Float[np.ndarray, "coordinates axes"]]:
        variances, axes = np.linalg.eigh(self._products / len(self) - np.outer(self.mean, self.mean))
        variances, axes = variances[::-1], axes[:, ::-1]
        # Below this an eigenvalue is rounding, of float32 features too: a standard deviation of 5e-7 of the largest.
        least = len(variances) * np.finfo(float).eps * max(variances[0], 0)
        return np.where(variances > least, variances, 0), axes

    @property
    def variances(self) -> Float[np.ndarray, " axes"]:
        """Variances along the principal axes, the largest first; 0 where they are rounding."""
        return self._spectrum[0]

    @property
    def axes(self) -> Float[np.ndarray, "coordinates axes"]:
        """Principal axes, orthonormal; those of variance 0 complete the space."""
        return self._spectrum[1]

    @property
    def rank(self) -> int:
        """Number of axes along which the examples vary."""
        return int(np.count_nonzero(self.variances))

    @cached_property
    def coordinates(self) -> Float[np.ndarray, "examples axes"]:
        """The examples less their mean, along the principal axes."""
        return (self.values - self.mean) @ self.axes

    @cached_property
    def class_number(self) -> Int[np.ndarray, " examples"]:
        """Class of each example, 0 to C-1 for the C classes that these examples have."""
        return np.unique(self.labels, return_inverse=True)[1]

    @cached_property
    def class_counts(self) -> Int[np.ndarray, " classes"]:
        """Number of examples of each class."""
        return np.bincount(self.class_number)

    @cached_property
    def one_hot(self) -> Float[np.ndarray, "examples classes"]:
        """1 for the class of an example, 0 for the others."""
        return np.eye(len(self.class_counts))[self.class_number]

    @cached_property
    def class_means(self) -> Float[np.ndarray, "classes axes"]:
        """Mean of each class less the mean of all examples, along the principal axes."""
        sums = self.one_hot.T @ (self.values - self.mean)
        return sums / self.class_counts[:, None] @ self.axes


def checked(
    values: Shaped[np.ndarray, "examples columns"], labels: Shaped[np.ndarray, "examples ..."], what: str
) -> tuple[Float[np.ndarray, "examples columns"], Shaped[np.ndarray, "examples ..."]]:
    """Returns values of examples as float64, and labels as integers or float64.

    Args:
        values: Values of the examples.
        labels: Class of each example as an integer, or numbers [examples, outputs].
        what: What the values are, for errors: "Features".

    Raises:
        JaxTransferError: As for `Examples.of`.
    """
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.ndim not in (1, 2) or len(values) != len(labels):
        raise JaxTransferError(
            f"{what} are [examples, columns], and labels [examples] or [examples, outputs] for the same examples; the "
            f"shapes are {values.shape} and {labels.shape}."
        )
    if not np.isfinite(values).all():
        raise JaxTransferError(f"{what} must be finite; leave out the examples for which they are not.")
    if labels.ndim == 2:
        labels = labels.astype(np.float64)
    elif not np.issubdtype(labels.dtype, np.integer):
        raise JaxTransferError(f"Classes are integers, not {labels.dtype}; give numbers as [examples, outputs].")
    elif len(np.unique(labels)) < 2:
        raise JaxTransferError("A score needs labels of two classes or more.")
    if len(values) < 2:
        raise JaxTransferError(f"A score needs two examples or more; there are {len(values)}.")
    return values, labels
