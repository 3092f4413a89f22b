"""Affinity: how alike two networks look at the same images, with its standard error, and the ranking it gives."""

import csv
import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxtransfer.errors import JaxTransferError

Similarity = Literal["cosine", "correlation"]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "correlation")

# A map whose entries differ from their mean by less than this share of its largest entry is constant up to rounding.
_FLAT = 1e-6


@functools.partial(jax.jit, static_argnames="similarity")
def similarities(
    maps: Float[Array, "networks images pixels"], similarity: Similarity = "cosine"
) -> tuple[Float[Array, "images networks networks"], Bool[Array, "networks images"]]:
    """Cosines between the maps that each two networks make of the same image.

    Song et al. (NeurIPS 2019), section 3.3; `similarity="correlation"` removes each map's mean over pixels first.

    Args:
        maps: One map per network and image, flattened.
        similarity: "cosine" or "correlation".

    Returns:
        The cosines, in [-1, 1] and symmetric, 0 where one of the maps has no direction; and which maps have one. A map
        has none if it holds a value that is not finite, if it is zero, or, for the correlation, if it is constant.
    """
    finite = jnp.isfinite(maps).all(-1, keepdims=True)
    maps = jnp.where(finite, maps, 0)
    # Scaled first, so that squares neither overflow nor vanish.
    largest = jnp.abs(maps).max(-1, keepdims=True)
    maps = maps / jnp.where(largest > 0, largest, 1)
    if similarity == "correlation":
        maps = maps - maps.mean(-1, keepdims=True)
    norm = jnp.sqrt(jnp.square(maps).sum(-1, keepdims=True))
    usable = finite & (norm > _FLAT * math.sqrt(maps.shape[-1]))
    units = jnp.where(usable, maps / jnp.where(usable, norm, 1), 0)
    cosines = jnp.einsum("inp,jnp->nij", units, units, precision="highest")
    return jnp.clip((cosines + cosines.swapaxes(1, 2)) / 2, -1, 1), usable[..., 0]


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """What one attribution method says about all pairs of networks.

    Attributes:
        affinity: Mean cosine over the usable images; symmetric, diagonal 1.
        stderr: Its standard error over the images: sample standard deviation / sqrt(count); infinite where only one
            image is usable, 0 on the diagonal.
        counts: How many images are usable for both networks.
        unusable: (network, image) of every map that has no direction.
    """

    affinity: Float[np.ndarray, "networks networks"]
    stderr: Float[np.ndarray, "networks networks"]
    counts: Int[np.ndarray, "networks networks"]
    unusable: tuple[tuple[str, str], ...] = ()


class Affinity:
    """The affinities of M networks under one or several attribution methods.

    `affinity[method]` is the float32 [M, M] matrix, rows and columns in the order of `names`; larger is nearer. None
    stands for the only method there is.
    """

    def __init__(self, names: Sequence[str], similarity: Similarity, results: Mapping[str, MethodResult]) -> None:
        """Holds results; `affinity_matrix` and `Affinity.load` make them."""
        self.names = tuple(names)
        self.similarity: Similarity = similarity
        self._results = dict(results)

    @property
    def methods(self) -> tuple[str, ...]:
        """The attribution methods there are results for."""
        return tuple(self._results)

    def __getitem__(self, method: str | None) -> Float[np.ndarray, "networks networks"]:
        return self._result(method).affinity

    def stderr(self, method: str) -> Float[np.ndarray, "networks networks"]:
        """Standard error of every affinity over the probe images, float32 [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).stderr

    def counts(self, method: str) -> Int[np.ndarray, "networks networks"]:
        """How many probe images every affinity is the mean of, int [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).counts

    @property
    def unusable(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """For each method the (network, image) pairs whose map has no direction and was left out."""
        return {method: result.unusable for method, result in self._results.items()}

    def rank(self, target: str, *, method: str | None = None) -> list[tuple[str, float, float]]:
        """The other networks in order of falling affinity with `target`.

        Args:
            target: Name of a network.
            method: May be omitted where there is only one.

        Returns:
            (name, affinity, standard error), best first, without what is missing; equal affinities in the order of
            `names`.

        Raises:
            JaxTransferError: Unknown target or method.
        """
        if target not in self.names:
            raise JaxTransferError(f"There is no network {target!r}; there are: {', '.join(self.names)}.")
        row, result = self.names.index(target), self._result(method)
        order = np.argsort(-result.affinity[row], kind="stable")
        return [
            (self.names[i], float(result.affinity[row, i]), float(result.stderr[row, i]))
            for i in order
            if i != row and not math.isnan(result.affinity[row, i])
        ]

    def save(self, directory: str | Path) -> None:
        """Writes `affinity_`, `stderr_` and `counts_<method>.csv`, and `affinity.json` with what else there is.

        The tables are square, with the names in the first row and column; numbers are written so that reading them
        gives the same bits.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for method, result in self._results.items():
            for kind, file in _files(directory, method).items():
                _write_table(file, self.names, getattr(result, kind))
        description = {"similarity": self.similarity, "methods": list(self.methods), "unusable": self.unusable}
        (directory / "affinity.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "Affinity":
        """Reads what `save` wrote.

        Raises:
            JaxTransferError: The directory holds no saved affinity, or a damaged one.
        """
        directory = Path(directory)
        try:
            description = json.loads((directory / "affinity.json").read_text())
            names: tuple[str, ...] = ()
            results = {}
            for method in description["methods"]:
                files = _files(directory, method)
                names, affinity = _read_table(files["affinity"], np.float32)
                results[method] = MethodResult(
                    affinity,
                    _read_table(files["stderr"], np.float32)[1],
                    _read_table(files["counts"], np.int64)[1],
                    tuple((network, image) for network, image in description["unusable"][method]),
                )
            return cls(names, description["similarity"], results)
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise JaxTransferError(
                f"{directory} does not hold a finished affinity run: {type(error).__name__}: {error}"
            ) from error

    def _result(self, method: str | None) -> MethodResult:
        if method is None:
            if len(self.methods) != 1:
                raise JaxTransferError(f"Say which method: {', '.join(self.methods)}.")
            (method,) = self.methods
        if method not in self._results:
            raise JaxTransferError(
                f"There is no result for the method {method!r}; there is: {', '.join(self.methods)}."
            )
        return self._results[method]


def _files(directory: Path, method: str) -> dict[str, Path]:
    return {kind: directory / f"{kind}_{method}.csv" for kind in ("affinity", "stderr", "counts")}


def _write_table(file: Path, names: Sequence[str], table: np.ndarray) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["", *names])
        # str() of a NumPy scalar is the shortest text that reads back as the same number.
        writer.writerows([name, *map(str, row)] for name, row in zip(names, table, strict=True))


def _read_table(file: Path, dtype: type) -> tuple[tuple[str, ...], np.ndarray]:
    with file.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    names = tuple(header[1:])
    if tuple(row[0] for row in rows) != names:
        raise ValueError(f"rows and columns of {file.name} differ")
    return names, np.array([row[1:] for row in rows], dtype=dtype).reshape(len(names), len(names))
