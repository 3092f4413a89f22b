"""Holds affinities, gaps or scores of sources for targets with their standard errors, and ranks sources by them."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from jaxtransfer.comparison.measure import AFFINITY, Measure, Sampled, pair_columns, pair_count, pair_indices
from jaxtransfer.errors import JaxTransferError, in_words, unknown_name
from jaxtransfer.files import JsonObject, atomic_write, read_array, read_json, read_table, text_cell
from jaxtransfer.points.directions import Similarity
from jaxtransfer.points.store import Fault


class _Measure(JsonObject, extra="forbid"):
    name: str = ""
    smaller_is_nearer: bool = False
    directed: bool = False
    sampled: Sampled = "images"


class _Description(JsonObject):
    """Checks `affinity.json`; files of the first format, which have no number, call biased CKA "cka"."""

    format: Literal[2] = 2
    similarity: Similarity
    # Methods name files.
    methods: Annotated[list[Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]], Field(min_length=1)]
    measures: dict[str, _Measure] = Field({})
    unusable: dict[str, list[tuple[str, str]]]
    faults: dict[str, list[Fault]] | None = None
    left_out: dict[str, str] = Field({})
    targets: list[str] | None = None

    @model_validator(mode="after")
    def _fits_methods(self) -> Self:
        if absent := [method for method in self.methods if method not in self.unusable]:
            raise ValueError(f"its unusable has no {absent[0]}")
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class MethodResult:
    """Holds what one method computed for all pairs of a target and a source.

    Attributes:
        affinity: Values of `measure`. Affinities of networks with one another have 1 on the diagonal, and for maps are
            the mean cosine over the usable images.
        stderr: Standard error of each value over what was sampled: the standard deviation of `pseudo_values` divided
            by the root of their number. Infinite where it is not known; 0 on the diagonal of a square matrix.
        counts: Number of samples (images, for example) that are usable for both target and source.
        unusable: (network, image) of every map or representation that has no direction.
        pseudo_values: A value of each sample for each pair, float32, pairs in the order of `pair_indices`. For maps a
            sample is an image with its cosine, NaN where one of the maps has no direction; for a statistic that is not
            a mean over images, samples are groups of images with their jackknife pseudo-values (Tukey 1958). None if
            they are not known.
        sketch_stderr: Standard error that sketching the maps adds; None if they were not sketched.
        measure: What the values are. Square matrices are symmetric unless it is directed.
    """

    affinity: Float[np.ndarray, "targets sources"]
    stderr: Float[np.ndarray, "targets sources"]
    counts: Int[np.ndarray, "targets sources"]
    unusable: tuple[tuple[str, str], ...] = ()
    pseudo_values: Float[np.ndarray, "samples pairs"] | None = None
    sketch_stderr: Float[np.ndarray, "targets sources"] | None = None
    measure: Measure = AFFINITY


class Affinity:
    """Affinities, gaps, scores or other measures of T targets and S sources, from one or several methods.

    `affinity[method]` is the float32 [T, S] matrix, rows in the order of `targets`, columns in that of `sources`.
    `measure(method)` says what its values are: larger affinities are nearer, smaller gaps are. A method of None stands
    for the only one there is.

    Networks that are compared with one another are targets and sources alike: the matrix is square, no network is a
    source for itself, and only directed measures distinguish rows from columns. Where targets are given apart from
    sources, as labelled tasks are, the matrix is a rectangle, whatever the numbers and names: all its cells count, also
    that of a source with the name of the target, and its measures are directed.

    Attributes:
        targets: The networks or tasks to transfer to.
        sources: The networks or tasks to transfer from.
        square: Whether the targets are the sources, compared with one another.
        similarity: How maps were compared: "cosine" or "correlation".
        faults: By network, codes of faults that make its maps hard to interpret, see `jaxtransfer.FAULTS`. Networks
            without faults are absent, as are those whose maps were computed before faults were looked for.
        left_out: By network that could not be compared, the sentence that says why.

    Examples:
        >>> affinity = jt.Affinity.of(["edges", "depth", "normals"],
        ...                           {"saliency": [[1, 0.2, 0.3], [0.2, 1, 0.8], [0.3, 0.8, 1]]})
        >>> [name for name, value, stderr in affinity.rank("depth")]
        ['normals', 'edges']
        >>> scores = jt.Affinity.of(["edges", "depth", "normals"], {"ridge": [[0.1, 0.3, 0.2]]}, targets=["flowers"])
        >>> [name for name, value, stderr in scores.rank("flowers")]
        ['depth', 'normals', 'edges']
    """

    def __init__(
        self,
        names: Sequence[str],
        similarity: Similarity,
        results: Mapping[str, MethodResult],
        faults: Mapping[str, Sequence[str]] | None = None,
        *,
        targets: Sequence[str] | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        """Holds results of sources `names` for `targets`, or with one another where `targets` is None.

        `affinity_matrix`, `Affinity.of` and `Affinity.load` make them.
        """
        self.sources = tuple(names)
        self.square = targets is None
        self.targets = self.sources if targets is None else tuple(targets)
        known = dict.fromkeys((*self.targets, *self.sources))
        self.faults = {name: tuple(faults[name]) for name in known if name in faults} if faults else {}
        self.left_out = dict(left_out or {})
        self.similarity: Similarity = similarity
        self._results = dict(results)
        if not self.square:
            for method, result in results.items():
                directed = dataclasses.replace(result.measure, directed=True)
                self._results[method] = dataclasses.replace(result, measure=directed)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        matrices: Mapping[str, Float[np.ndarray, "targets sources"]],
        *,
        targets: Sequence[str] | None = None,
        measures: Mapping[str, Measure] | None = None,
    ) -> "Affinity":
        """Holds matrices that were computed elsewhere and whose errors are not known.

        Args:
            names: The networks, in the order of columns, and of rows where there are no `targets`.
            matrices: The matrix of each method. The diagonal of a square one is not used.
            targets: The targets, in the order of rows; None: the networks, compared with one another.
            measures: What the values of a method are; methods that are absent give affinities, larger is nearer.

        Raises:
            JaxTransferError: A matrix does not fit the names, two names are equal, or a measure has no matrix.
        """
        measures = measures or {}
        for kind, of_kind in {"networks": names, "targets": targets or ()}.items():
            if len(set(of_kind)) < len(of_kind):
                raise JaxTransferError(f"Several {kind} have one name; names must differ.")
        for method in measures:
            if method not in matrices:
                raise unknown_name("matrix of the method", method, matrices)
        rows, columns = len(names if targets is None else targets), len(names)
        unknown = np.full((rows, columns), np.inf, np.float32)
        if targets is None:
            np.fill_diagonal(unknown, 0)
        results = {}
        for method, matrix in matrices.items():
            if np.shape(matrix) != (rows, columns):
                needed = f"{columns} names" if targets is None else f"{rows} targets and {columns} sources"
                raise JaxTransferError(f"{needed} need a matrix of {rows} x {columns}, not {np.shape(matrix)}.")
            results[method] = MethodResult(
                np.array(matrix, np.float32),
                unknown,
                np.zeros((rows, columns), int),
                measure=measures.get(method, AFFINITY),
            )
        return cls(names, "cosine", results, targets=targets)

    @property
    def names(self) -> tuple[str, ...]:
        """Lists the networks or tasks of a square matrix.

        Raises:
            JaxTransferError: The matrix is a rectangle; it has `targets` and `sources`.
        """
        if not self.square:
            raise JaxTransferError(
                f"This result has {len(self.targets)} targets and {len(self.sources)} sources with names of their own; "
                "only networks that are compared with one another have a tree and one list of names."
            )
        return self.sources

    @property
    def methods(self) -> tuple[str, ...]:
        """Lists the methods there are results of."""
        return tuple(self._results)

    def __getitem__(self, method: str | None) -> Float[np.ndarray, "targets sources"]:
        return self._result(method).affinity

    def measure(self, method: str | None) -> Measure:
        """Says what the values of a method are.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).measure

    def nearness(self, method: str | None) -> Float[np.ndarray, "targets sources"]:
        """Returns the matrix of a method with the sign that makes larger values nearer, float32 [T, S].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self.measure(method).nearness(self[method])

    def stderr(self, method: str | None) -> Float[np.ndarray, "targets sources"]:
        """Returns the standard error of every value over what was sampled, float32 [T, S].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).stderr

    def counts(self, method: str | None) -> Int[np.ndarray, "targets sources"]:
        """Returns the number of samples (images, for example) behind every value, int [T, S].

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).counts

    def pseudo_values(self, method: str | None) -> Float[np.ndarray, "samples pairs"] | None:
        """Returns a value of each sample for each pair, see `MethodResult`; None where they are not known.

        Symmetric measures of M networks have M (M - 1) / 2 pairs in the order of `scipy.spatial.distance.squareform`;
        directed ones have M (M - 1) pairs (target, source), row by row without the diagonal. A rectangle has all T S
        pairs, row by row.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).pseudo_values

    def sketch_stderr(self, method: str | None) -> Float[np.ndarray, "targets sources"] | None:
        """Returns the standard error that sketching adds to every value, float32 [T, S]; None without sketches.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        return self._result(method).sketch_stderr

    @property
    def unusable(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """Lists for each method the (network, image) pairs whose map has no direction and was left out."""
        return {method: result.unusable for method, result in self._results.items()}

    def rank(self, target: str, *, method: str | None = None) -> list[tuple[str, float, float]]:
        """Ranks sources for a target, nearest first; of a square matrix all others.

        Args:
            target: Name of a target.
            method: The method to rank by; may be omitted where there is only one.

        Returns:
            (name, value, standard error) of each source: values are falling affinities or rising gaps, for example.
            Sources without a value are left out; equal values keep the order of `sources`.

        Raises:
            JaxTransferError: Unknown target or method.
        """
        row, result = self.row(target), self._result(method)
        targets = None if self.square else self.targets
        return result.measure.rank(self.sources, self.targets[row], result.affinity, result.stderr, targets=targets)

    def row(self, target: str) -> int:
        """Finds the row of a target.

        Raises:
            JaxTransferError: There is no such target.
        """
        return _index(self.targets, target, "network" if self.square else "target")

    def column(self, source: str) -> int:
        """Finds the column of a source.

        Raises:
            JaxTransferError: There is no such source.
        """
        return _index(self.sources, source, "network" if self.square else "source")

    def only(
        self,
        names: Sequence[str] | None = None,
        *,
        targets: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> "Affinity":
        """Selects some of the networks of a square matrix, or some targets and sources, in the order given.

        Args:
            names: Networks of a square matrix, which stays square.
            targets: Without `names`, the targets of a rectangle; None: all. Cut out of a square matrix, a network has
                no value (NaN) as a source for itself.
            sources: Likewise the sources.

        Raises:
            JaxTransferError: There is no such network, target or source; or `names` of a rectangle.
        """
        square = names is not None
        if square:
            if not self.square:
                raise JaxTransferError("This result has targets and sources; select them with `targets=`, `sources=`.")
            targets = sources = names
        targets = self.targets if targets is None else targets
        sources = self.sources if sources is None else sources
        rows = np.array([self.row(name) for name in targets], int)
        columns = np.array([self.column(name) for name in sources], int)
        block = np.ix_(rows, columns)
        own = np.zeros((len(rows), len(columns)), bool)
        if self.square and not square:
            own = rows[:, None] == columns
        results = {}
        for method, result in self._results.items():
            values, stderr, counts = result.affinity[block], result.stderr[block], result.counts[block]
            values[own], stderr[own], counts[own] = np.nan, np.inf, 0
            samples = result.pseudo_values
            if samples is not None:
                i, j = pair_indices(
                    len(columns), directed=result.measure.directed, targets=None if square else len(rows)
                )
                samples = samples[:, self.pair_columns(method, rows[i], columns[j])]
                samples[:, own[i, j]] = np.nan
            results[method] = dataclasses.replace(
                result,
                affinity=values,
                stderr=stderr,
                counts=counts,
                unusable=tuple(pair for pair in result.unusable if pair[0] in targets or pair[0] in sources),
                pseudo_values=samples,
                sketch_stderr=None if result.sketch_stderr is None else result.sketch_stderr[block],
            )
        return Affinity(
            sources,
            self.similarity,
            results,
            self.faults,
            targets=None if square else targets,
            left_out=self.left_out,
        )

    def pair_columns(
        self, method: str | None, rows: Int[np.ndarray, "..."], columns: Int[np.ndarray, "..."]
    ) -> Int[np.ndarray, "..."]:
        """Finds the columns of `pseudo_values` that belong to rows and columns of the matrix, broadcast to one shape.

        In a square matrix, a network with itself gets an arbitrary valid column, so that whole rows can be looked up.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        directed, targets = self.measure(method).directed, None if self.square else len(self.targets)
        return pair_columns(len(self.sources), rows, columns, directed=directed, targets=targets)

    def complete(self, method: str | None) -> "Affinity":
        """Drops networks, or targets and sources, those with most missing values first, until no value is missing.

        Of a rectangle, the target or source goes that lacks the largest share of its values.

        Raises:
            JaxTransferError: There is no result for `method`.
        """
        missing = np.isnan(self[method])
        if self.square:
            if self.measure(method).directed:
                missing |= missing.T
            kept = np.arange(len(self.names))
            while (counts := missing[np.ix_(kept, kept)].sum(1)).any():
                kept = np.delete(kept, counts.argmax())
            return self.only([self.names[i] for i in kept])
        rows, columns = (np.arange(length) for length in missing.shape)
        while (block := missing[np.ix_(rows, columns)]).any():
            of_rows, of_columns = block.mean(1), block.mean(0)
            if of_rows.max() > of_columns.max():
                rows = np.delete(rows, of_rows.argmax())
            else:
                columns = np.delete(columns, of_columns.argmax())
        return self.only(targets=[self.targets[i] for i in rows], sources=[self.sources[j] for j in columns])

    def save(self, directory: str | Path) -> None:
        """Writes `affinity_`, `stderr_` and `counts_<method>.csv`, `pseudo_values_<method>.npy`, and `affinity.json`.

        Where maps were sketched there is `sketch_stderr_<method>.csv` too. The tables have the targets in the first
        column, the sources in the first row, and values as they are in memory, gaps positive; reading them gives the
        same bits. Only the `affinity.json` of a rectangle lists its targets.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for method, result in self._results.items():
            for field, file in _files(directory, method).items():
                if (table := getattr(result, field)) is None:
                    file.unlink(missing_ok=True)
                else:
                    _write_table(file, self.targets, self.sources, table)
            samples = _samples_file(directory, method)
            samples.unlink(missing_ok=True)
            if result.pseudo_values is not None:
                with atomic_write(samples) as partial, partial.open("wb") as stream:
                    np.save(stream, result.pseudo_values)
        description = {
            "format": 2,
            "similarity": self.similarity,
            "methods": list(self.methods),
            "measures": {method: dataclasses.asdict(result.measure) for method, result in self._results.items()},
            "unusable": self.unusable,
            "faults": self.faults,
        }
        if self.left_out:
            description["left_out"] = self.left_out
        if not self.square:
            description["targets"] = list(self.targets)
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
            description = read_json(directory / "affinity.json", _Description)
            targets: list[str] | None = description.get("targets")
            names: tuple[str, ...] = ()
            results = {}
            for method in description["methods"]:
                measure = Measure(**description.get("measures", {}).get(method, {}))
                of_method, result = _load_method(directory, method, measure, targets)
                if names not in ((), of_method):
                    raise ValueError(f"the tables of {method} have other networks than those before")
                names = of_method
                unusable = tuple((network, image) for network, image in description["unusable"][method])
                renamed = method == "cka" and "format" not in description
                results["cka_biased" if renamed else method] = dataclasses.replace(result, unusable=unusable)
            return cls(
                names,
                description["similarity"],
                results,
                description.get("faults"),
                targets=targets,
                left_out=description.get("left_out"),
            )
        except FileNotFoundError as error:
            raise JaxTransferError(f"{directory} does not hold a finished affinity run: {in_words(error)}") from error
        except JaxTransferError:
            raise
        except (ValueError, EOFError) as error:
            raise JaxTransferError(f"{directory} does not hold a finished affinity run: {error}.") from error

    def _result(self, method: str | None) -> MethodResult:
        if method is None:
            if len(self.methods) != 1:
                raise JaxTransferError(f"Say which method: {', '.join(self.methods)}.")
            (method,) = self.methods
        if method not in self._results:
            raise unknown_name("result for the method", method, self.methods)
        return self._results[method]


def counted_left_out(left_out: Mapping[str, str], total: int) -> str:
    """Says how many of all networks could not be compared."""
    return (
        f"{len(left_out)} of {total} networks cannot be compared and {'is' if len(left_out) == 1 else 'are'} left out"
    )


def _files(directory: Path, method: str) -> dict[str, Path]:
    return {field: directory / f"{field}_{method}.csv" for field in ("affinity", "stderr", "counts", "sketch_stderr")}


def _load_method(
    directory: Path, method: str, measure: Measure, targets: Sequence[str] | None
) -> tuple[tuple[str, ...], MethodResult]:
    """Reads the tables of a method; returns the names of its sources, too.

    Raises:
        OSError: A table cannot be read.
        ValueError: A table is damaged or does not fit the others.
    """
    files, samples = _files(directory, method), _samples_file(directory, method)
    names, values = read_table(files["affinity"], np.float32, targets=targets)

    def table(field: str, dtype: type) -> np.ndarray:
        others, of_field = read_table(files[field], dtype, targets=targets)
        if others != names:
            raise ValueError(f"{files[field].name} has other networks than {files['affinity'].name}")
        return of_field

    if np.isinf(values).any():
        raise ValueError(f"{files['affinity'].name} holds a value that is not a number")
    if targets is None and not measure.directed and not np.allclose(values, values.T, atol=1e-4, equal_nan=True):
        raise ValueError(f"{files['affinity'].name} is not symmetric, as the values of its method are")
    pseudo_values = read_array(samples) if samples.exists() else None
    pairs = pair_count(len(names), directed=measure.directed, targets=None if targets is None else len(targets))
    if pseudo_values is not None and (pseudo_values.shape[1:] != (pairs,) or pseudo_values.dtype.kind != "f"):
        raise ValueError(f"{samples.name} is of other networks than {files['affinity'].name}")
    sketch_stderr = table("sketch_stderr", np.float32) if files["sketch_stderr"].exists() else None
    stderr, counts = table("stderr", np.float32), table("counts", np.int64)
    return names, MethodResult(values, stderr, counts, (), pseudo_values, sketch_stderr, measure)


def _samples_file(directory: Path, method: str) -> Path:
    return directory / f"pseudo_values_{method}.npy"


def _index(names: Sequence[str], name: str, kind: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise unknown_name(kind, name, names) from None


def _write_table(file: Path, targets: Sequence[str], sources: Sequence[str], table: np.ndarray) -> None:
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["", *map(text_cell, sources)])
        # str() of a NumPy scalar is the shortest text that reads back as the same number.
        writer.writerows([text_cell(name), *map(str, row)] for name, row in zip(targets, table, strict=True))
