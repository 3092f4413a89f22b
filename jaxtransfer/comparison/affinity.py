"""Affinity: how alike two networks look at the same images, with its standard error, and the ranking it gives."""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.errors import JaxTransferError
from jaxtransfer.files import atomic_write, read_table
from jaxtransfer.points.directions import Similarity

_FORMAT = 2  # of affinity.json; files of the first format, which have no number, call biased CKA "cka"


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """What one method says about all pairs of networks.

    Attributes:
        affinity: Symmetric, diagonal 1; for maps the mean cosine over the usable images.
        stderr: Its standard error over the images: standard deviation of `pseudo_values` / sqrt(how many there are);
            infinite where it is not known, 0 on the diagonal.
        counts: How many images are usable for both networks.
        unusable: (network, image) of every map or representation that has no direction.
        pseudo_values: What each part of the images says of every pair, float32, pairs in the order of
            `scipy.spatial.distance.squareform`. For maps a part is an image and says its cosine, NaN where one of the
            maps has no direction; for what is not a mean over images, parts are groups of images and say their
            jackknife pseudo-value (Tukey 1958). None: not known.
    """

    affinity: Float[np.ndarray, "networks networks"]
    stderr: Float[np.ndarray, "networks networks"]
    counts: Int[np.ndarray, "networks networks"]
    unusable: tuple[tuple[str, str], ...] = ()
    pseudo_values: Float[np.ndarray, "parts pairs"] | None = None
    sketch_stderr: Float[np.ndarray, "networks networks"] | None = None


class Affinity:
    """The affinities of M networks under one or several methods.

    `affinity[method]` is the float32 [M, M] matrix, rows and columns in the order of `names`; larger is nearer. None
    stands for the only method there is.

    Attributes:
        names: The networks.
        similarity: Of maps.
        faults: By network, codes of what makes its maps mean little, see `jaxtransfer.FAULTS`; networks without faults,
            or that were computed before faults were looked for, are not in it.
    """

    def __init__(
        self,
        names: Sequence[str],
        similarity: Similarity,
        results: Mapping[str, MethodResult],
        faults: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Holds results; `affinity_matrix`, `Affinity.of` and `Affinity.load` make them."""
        self.names = tuple(names)
        self.faults = {name: tuple(faults[name]) for name in names if name in faults} if faults else {}
        self.similarity: Similarity = similarity
        self._results = dict(results)

    @classmethod
    def of(cls, names: Sequence[str], matrices: Mapping[str, Float[np.ndarray, "networks networks"]]) -> "Affinity":
        """Matrices that were computed elsewhere, whose errors are not known.

        Args:
            names: The networks, in the order of rows and columns.
            matrices: By method; larger is nearer. The diagonal is not looked at.

        Raises:
            JaxTransferError: A matrix does not fit the names, or two names are equal.
        """
        count = len(names)
        if len(set(names)) < count:
            raise JaxTransferError("Several networks have one name; names must differ.")
        unknown = np.where(np.eye(count, dtype=bool), 0, np.inf).astype(np.float32)
        results = {}
        for method, matrix in matrices.items():
            if np.shape(matrix) != (count, count):
                raise JaxTransferError(f"{count} names need a matrix of {count} x {count}, not {np.shape(matrix)}.")
            results[method] = MethodResult(np.array(matrix, np.float32), unknown, np.zeros((count, count), int))
        return cls(names, "cosine", results)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods there are results for."""
        return tuple(self._results)

    def __getitem__(self, method: str | None) -> Float[np.ndarray, "networks networks"]:
        return self._result(method).affinity

    def stderr(self, method: str | None) -> Float[np.ndarray, "networks networks"]:
        """Standard error of every affinity over the probe images, float32 [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).stderr

    def counts(self, method: str | None) -> Int[np.ndarray, "networks networks"]:
        """How many probe images every affinity is the mean of, int [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).counts

    def pseudo_values(self, method: str | None) -> Float[np.ndarray, "parts pairs"] | None:
        """What each part of the probe images says of every pair, see `MethodResult`; None where it is not known.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).pseudo_values

    def sketch_stderr(self, method: str | None) -> Float[np.ndarray, "networks networks"] | None:
        """What sketching the maps adds to the error of every affinity, float32 [M, M]; None: they were not sketched.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).sketch_stderr

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

    def only(self, names: Sequence[str]) -> "Affinity":
        """The affinities of some of the networks, in the order given.

        Raises:
            JaxTransferError: There is no such network.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise JaxTransferError(f"There is no network {unknown[0]!r}; there are: {', '.join(self.names)}.")
        rows = [self.names.index(name) for name in names]
        square, upper = np.ix_(rows, rows), np.array(rows, int)[np.array(np.triu_indices(len(rows), 1))]
        columns = pair_columns(len(self.names), *upper)
        results = {}
        for method, each in self._results.items():
            parts = None if each.pseudo_values is None else each.pseudo_values[:, columns]
            unusable = tuple(pair for pair in each.unusable if pair[0] in names)
            matrices = (each.affinity[square], each.stderr[square], each.counts[square])
            sketch_stderr = None if each.sketch_stderr is None else each.sketch_stderr[square]
            results[method] = MethodResult(*matrices, unusable, parts, sketch_stderr)
        return Affinity(names, self.similarity, results, self.faults)

    def complete(self, method: str | None) -> "Affinity":
        """The affinities of the networks that are left when those with most missing values go, until none is missing.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        missing = np.isnan(self[method])
        kept = np.arange(len(self.names))
        while (counts := missing[np.ix_(kept, kept)].sum(1)).any():
            kept = np.delete(kept, counts.argmax())
        return self.only([self.names[i] for i in kept])

    def save(self, directory: str | Path) -> None:
        """Writes `affinity_`, `stderr_` and `counts_<method>.csv`, `pseudo_values_<method>.npy`, and `affinity.json`.

        Where maps were sketched there is `sketch_stderr_<method>.csv` too. The tables are square, with the names in the
        first row and column; numbers are written so that reading them gives the same bits.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for method, result in self._results.items():
            for kind, file in _files(directory, method).items():
                if (table := getattr(result, kind)) is None:
                    file.unlink(missing_ok=True)
                else:
                    _write_table(file, self.names, table)
            parts = _parts_file(directory, method)
            parts.unlink(missing_ok=True)
            if result.pseudo_values is not None:
                with atomic_write(parts) as partial, partial.open("wb") as stream:
                    np.save(stream, result.pseudo_values)
        description = {
            "format": _FORMAT,
            "similarity": self.similarity,
            "methods": list(self.methods),
            "unusable": self.unusable,
            "faults": self.faults,
        }
        with atomic_write(directory / "affinity.json") as partial:
            partial.write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "Affinity":
        """Reads what `save` wrote.

        Files that an earlier version saved hold biased CKA under the name "cka"; it is read as "cka_biased".

        Raises:
            JaxTransferError: The directory holds no saved affinity, or a damaged one.
        """
        directory = Path(directory)
        try:
            description = json.loads((directory / "affinity.json").read_text())
            names: tuple[str, ...] = ()
            results = {}
            for method in description["methods"]:
                files, parts = _files(directory, method), _parts_file(directory, method)
                names, affinity = read_table(files["affinity"], np.float32)
                pseudo_values = np.load(parts, allow_pickle=False) if parts.exists() else None
                if pseudo_values is not None and pseudo_values.shape[1:] != (math.comb(len(names), 2),):
                    raise ValueError(f"{parts.name} is of other networks than {files['affinity'].name}")
                renamed = method == "cka" and "format" not in description
                results["cka_biased" if renamed else method] = MethodResult(
                    affinity,
                    read_table(files["stderr"], np.float32)[1],
                    read_table(files["counts"], np.int64)[1],
                    tuple((network, image) for network, image in description["unusable"][method]),
                    pseudo_values,
                    read_table(sketched, np.float32)[1] if (sketched := files["sketch_stderr"]).exists() else None,
                )
            return cls(names, description["similarity"], results, description.get("faults"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
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


def pair_columns(count: int, rows: Int[np.ndarray, "..."], columns: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Where pairs of `count` networks stand among `pseudo_values`; of a network with itself, anywhere."""
    first, second = np.minimum(rows, columns), np.maximum(rows, columns)
    return first * (2 * count - first - 1) // 2 + second - first - 1


def _files(directory: Path, method: str) -> dict[str, Path]:
    return {kind: directory / f"{kind}_{method}.csv" for kind in ("affinity", "stderr", "counts", "sketch_stderr")}


def _parts_file(directory: Path, method: str) -> Path:
    return directory / f"pseudo_values_{method}.npy"


def _write_table(file: Path, names: Sequence[str], table: np.ndarray) -> None:
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["", *names])
        # str() of a NumPy scalar is the shortest text that reads back as the same number.
        writer.writerows([name, *map(str, row)] for name, row in zip(names, table, strict=True))
