"""Holds the affinities, gaps or alignments of networks with their standard errors, and ranks sources by them."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxtransfer.comparison.measure import AFFINITY, Measure, pair_columns, pair_count, pair_indices
from jaxtransfer.errors import JaxTransferError, unknown_name
from jaxtransfer.files import atomic_write, read_table
from jaxtransfer.points.directions import Similarity

_FORMAT = 2  # of affinity.json; files of the first format, which have no number, call biased CKA "cka"


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """Holds what one method computed for all pairs of networks.

    Attributes:
        affinity: Values of `measure`. Affinities have 1 on the diagonal, and for maps are the mean cosine over the
            usable images.
        stderr: Standard error of each value over what was sampled: the standard deviation of `pseudo_values` divided
            by the root of their number. Infinite where it is not known, 0 on the diagonal.
        counts: Number of samples (images, for example) that are usable for both networks.
        unusable: (network, image) of every map or representation that has no direction.
        pseudo_values: A value of each sample for each pair, float32, pairs in the order of `pair_indices`. For maps a
            sample is an image with its cosine, NaN where one of the maps has no direction; for a statistic that is not
            a mean over images, samples are groups of images with their jackknife pseudo-values (Tukey 1958). None if
            they are not known.
        sketch_stderr: Standard error that sketching the maps adds; None if they were not sketched.
        measure: What the values are. The matrices are symmetric unless it is directed.
    """

    affinity: Float[np.ndarray, "networks networks"]
    stderr: Float[np.ndarray, "networks networks"]
    counts: Int[np.ndarray, "networks networks"]
    unusable: tuple[tuple[str, str], ...] = ()
    pseudo_values: Float[np.ndarray, "samples pairs"] | None = None
    sketch_stderr: Float[np.ndarray, "networks networks"] | None = None
    measure: Measure = AFFINITY


class Affinity:
    """Affinities, gaps or other measures of M networks or tasks, from one or several methods.

    `affinity[method]` is the float32 [M, M] matrix, rows and columns in the order of `names`. `measure(method)` says
    what its values are: larger affinities are nearer, smaller gaps are; where it is directed, rows are targets and
    columns sources. A method of None stands for the only one there is.

    Attributes:
        names: The networks or tasks.
        similarity: How maps were compared: "cosine" or "correlation".
        faults: By network, codes of faults that make its maps hard to interpret, see `jaxtransfer.FAULTS`. Networks
            without faults are absent, as are those whose maps were computed before faults were looked for.

    Examples:
        >>> affinity = jt.Affinity.of(["edges", "depth", "normals"],
        ...                           {"saliency": [[1, 0.2, 0.3], [0.2, 1, 0.8], [0.3, 0.8, 1]]})
        >>> [name for name, value, stderr in affinity.rank("depth")]
        ['normals', 'edges']
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
    def of(
        cls,
        names: Sequence[str],
        matrices: Mapping[str, Float[np.ndarray, "networks networks"]],
        *,
        measures: Mapping[str, Measure] | None = None,
    ) -> "Affinity":
        """Holds matrices that were computed elsewhere and whose errors are not known.

        Args:
            names: The networks, in the order of rows and columns.
            matrices: The matrix of each method. The diagonal is not used.
            measures: What the values of a method are; methods that are absent give affinities, larger is nearer.

        Raises:
            JaxTransferError: A matrix does not fit the names, two names are equal, or a measure has no matrix.
        """
        count, measures = len(names), measures or {}
        if len(set(names)) < count:
            raise JaxTransferError("Several networks have one name; names must differ.")
        for method in measures:
            if method not in matrices:
                raise unknown_name("matrix of the method", method, matrices)
        unknown = np.where(np.eye(count, dtype=bool), 0, np.inf).astype(np.float32)
        results = {}
        for method, matrix in matrices.items():
            if np.shape(matrix) != (count, count):
                raise JaxTransferError(f"{count} names need a matrix of {count} x {count}, not {np.shape(matrix)}.")
            results[method] = MethodResult(
                np.array(matrix, np.float32),
                unknown,
                np.zeros((count, count), int),
                measure=measures.get(method, AFFINITY),
            )
        return cls(names, "cosine", results)

    @property
    def methods(self) -> tuple[str, ...]:
        """Lists the methods there are results of."""
        return tuple(self._results)

    def __getitem__(self, method: str | None) -> Float[np.ndarray, "networks networks"]:
        return self._result(method).affinity

    def measure(self, method: str | None) -> Measure:
        """Says what the values of a method are.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).measure

    def nearness(self, method: str | None) -> Float[np.ndarray, "networks networks"]:
        """Returns the matrix of a method with the sign that makes larger values nearer, float32 [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self.measure(method).nearness(self[method])

    def stderr(self, method: str | None) -> Float[np.ndarray, "networks networks"]:
        """Returns the standard error of every value over what was sampled, float32 [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).stderr

    def counts(self, method: str | None) -> Int[np.ndarray, "networks networks"]:
        """Returns the number of samples (images, for example) behind every value, int [M, M].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).counts

    def pseudo_values(self, method: str | None) -> Float[np.ndarray, "samples pairs"] | None:
        """Returns a value of each sample for each pair, see `MethodResult`; None where they are not known.

        Symmetric measures have M (M - 1) / 2 pairs in the order of `scipy.spatial.distance.squareform`; directed ones
        have M (M - 1) pairs (target, source), row by row without the diagonal.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).pseudo_values

    def sketch_stderr(self, method: str | None) -> Float[np.ndarray, "networks networks"] | None:
        """Returns the standard error that sketching adds to every value, float32 [M, M]; None without sketches.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).sketch_stderr

    @property
    def unusable(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Lists for each method the (network, image) pairs whose map has no direction and was left out."""
        return {method: result.unusable for method, result in self._results.items()}

    def rank(self, target: str, *, method: str | None = None) -> list[tuple[str, float, float]]:
        """Ranks the other networks as sources for a target, nearest first.

        Args:
            target: Name of a network.
            method: The method to rank by; may be omitted where there is only one.

        Returns:
            (name, value, standard error) of each source: values are falling affinities or rising gaps, for example.
            Sources without a value are left out; equal values keep the order of `names`.

        Raises:
            JaxTransferError: Unknown target or method.
        """
        if target not in self.names:
            raise unknown_name("network", target, self.names)
        result = self._result(method)
        return result.measure.rank(self.names, target, result.affinity, result.stderr)

    def only(self, names: Sequence[str]) -> "Affinity":
        """Selects some of the networks, in the order given.

        Raises:
            JaxTransferError: There is no such network.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise unknown_name("network", unknown[0], self.names)
        chosen = np.array([self.names.index(name) for name in names], int)
        square = np.ix_(chosen, chosen)
        results = {}
        for method, result in self._results.items():
            samples, directed = result.pseudo_values, result.measure.directed
            rows, columns = pair_indices(len(chosen), directed=directed)
            pairs = pair_columns(len(self.names), chosen[rows], chosen[columns], directed=directed)
            results[method] = dataclasses.replace(
                result,
                affinity=result.affinity[square],
                stderr=result.stderr[square],
                counts=result.counts[square],
                unusable=tuple(pair for pair in result.unusable if pair[0] in names),
                pseudo_values=None if samples is None else samples[:, pairs],
                sketch_stderr=None if result.sketch_stderr is None else result.sketch_stderr[square],
            )
        return Affinity(names, self.similarity, results, self.faults)

    def complete(self, method: str | None) -> "Affinity":
        """Drops networks, those with most missing values first, until no value is missing.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        missing = np.isnan(self[method])
        if self.measure(method).directed:
            missing |= missing.T
        kept = np.arange(len(self.names))
        while (counts := missing[np.ix_(kept, kept)].sum(1)).any():
            kept = np.delete(kept, counts.argmax())
        return self.only([self.names[i] for i in kept])

    def save(self, directory: str | Path) -> None:
        """Writes `affinity_`, `stderr_` and `counts_<method>.csv`, `pseudo_values_<method>.npy`, and `affinity.json`.

        Where maps were sketched there is `sketch_stderr_<method>.csv` too. The tables are square, with the names in the
        first row and column and values as they are in memory, gaps positive; reading them gives the same bits.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for method, result in self._results.items():
            for field, file in _files(directory, method).items():
                if (table := getattr(result, field)) is None:
                    file.unlink(missing_ok=True)
                else:
                    _write_table(file, self.names, table)
            samples = _samples_file(directory, method)
            samples.unlink(missing_ok=True)
            if result.pseudo_values is not None:
                with atomic_write(samples) as partial, partial.open("wb") as stream:
                    np.save(stream, result.pseudo_values)
        description = {
            "format": _FORMAT,
            "similarity": self.similarity,
            "methods": list(self.methods),
            "measures": {method: dataclasses.asdict(result.measure) for method, result in self._results.items()},
            "unusable": self.unusable,
            "faults": self.faults,
        }
        with atomic_write(directory / "affinity.json") as partial:
            partial.write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "Affinity":
        """Reads what `save` wrote.

        Files of earlier versions do not say what the values are: they are read as affinities, larger is nearer. Files
        of the first format hold biased CKA under the name "cka"; it is read as "cka_biased".

        Raises:
            JaxTransferError: The directory holds no saved affinity, or a damaged one.
        """
        directory = Path(directory)
        try:
            description = json.loads((directory / "affinity.json").read_text())
            names: tuple[str, ...] = ()
            results = {}
            for method in description["methods"]:
                files, samples = _files(directory, method), _samples_file(directory, method)
                measure = Measure(**description.get("measures", {}).get(method, {}))
                names, affinity = read_table(files["affinity"], np.float32)
                pseudo_values = np.load(samples, allow_pickle=False) if samples.exists() else None
                pairs = pair_count(len(names), directed=measure.directed)
                if pseudo_values is not None and pseudo_values.shape[1:] != (pairs,):
                    raise ValueError(f"{samples.name} is of other networks than {files['affinity'].name}")
                renamed = method == "cka" and "format" not in description
                results["cka_biased" if renamed else method] = MethodResult(
                    affinity,
                    read_table(files["stderr"], np.float32)[1],
                    read_table(files["counts"], np.int64)[1],
                    tuple((network, image) for network, image in description["unusable"][method]),
                    pseudo_values,
                    read_table(sketched, np.float32)[1] if (sketched := files["sketch_stderr"]).exists() else None,
                    measure,
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
            raise unknown_name("result for the method", method, self.methods)
        return self._results[method]


def _files(directory: Path, method: str) -> dict[str, Path]:
    return {field: directory / f"{field}_{method}.csv" for field in ("affinity", "stderr", "counts", "sketch_stderr")}


def _samples_file(directory: Path, method: str) -> Path:
    return directory / f"pseudo_values_{method}.npy"


def _write_table(file: Path, names: Sequence[str], table: np.ndarray) -> None:
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["", *names])
        # str() of a NumPy scalar is the shortest text that reads back as the same number.
        writer.writerows([name, *map(str, row)] for name, row in zip(names, table, strict=True))
