"""Writes files that appear whole or not at all, and reads tables, JSON and arrays with errors a user understands."""

import contextlib
import csv
import hashlib
import json
import re
import shutil
import tokenize
import tomllib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pydantic

from jaxtransfer.errors import JaxTransferError

# What NumPy raises for damaged `.npz` and `.npy` files and for files of other formats.
_DAMAGED = (
    EOFError, MemoryError, ValueError, TypeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    NotImplementedError,
)  # fmt: skip

# Cells that spreadsheets take for formulas, and such cells with an apostrophe. One that a text has itself is doubled.
_FORMULA, _QUOTED = re.compile("'*[=+@\t\r-]"), re.compile("'+[=+@\t\r-]")

_MAX_JSON_BYTES, _MAX_TOML_BYTES = 64 * 2**20, 2**20
_MAX_SHOWN = 100  # characters of a wrong value in an error message


class JsonObject(pydantic.BaseModel):
    """The base of the schemas of JSON files, and of the objects in them; fields that a schema does not name are kept.

    Schemas only check: what is read is the data as it stands in the file.
    """

    model_config = pydantic.ConfigDict(strict=True, extra="allow")


def partial_path(file: Path) -> Path:
    """Returns the path under which a file is written before it takes its place."""
    return file.with_name(f".{file.name}.partial")


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Yields a path to write to; on success what was written becomes `file`, after an error nothing is left."""
    partial = partial_path(file)
    try:
        yield partial
        partial.replace(file)
    except OSError as error:
        error.filename = error.filename or str(file)  # the error of a full disk does not name the file
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yields a new directory to write into; on success it replaces `directory`, after an error nothing is left."""
    partial = partial_path(directory)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if directory.exists():
            shutil.rmtree(directory)
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes named arrays to an `.npz` file."""
    with atomic_write(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def read_arrays(
    file: Path | IO[bytes], names: Iterable[str] | None = None, *, optional: Iterable[str] = ()
) -> dict[str, Any]:
    """Reads arrays from an `.npz` file; nothing is ever unpickled.

    Args:
        file: The file, or an open stream of its bytes.
        names: Names of the arrays to read; None: all.
        optional: Names of more arrays to read if the file has them.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, has another format, holds Python objects, or lacks one of the names. The
            message is a clause that begins with "it", for the caller to put after the name of the file.
    """
    with file.open("rb") if isinstance(file, Path) else contextlib.nullcontext(file) as stream:
        with _damage_as_value_error():
            stored = np.load(stream, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        arrays = {}
        present = [name for name in optional if name in stored]
        for name in stored.files if names is None else [*names, *present]:
            if name not in stored:
                raise ValueError(f"it has no {name}, only {', '.join(stored) or 'nothing'}")
            with _damage_as_value_error():
                arrays[name] = stored[name]
        return arrays


def read_array(file: Path) -> np.ndarray:
    """Reads an `.npy` file; nothing is ever unpickled.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, has another format, or holds Python objects.
    """
    try:
        with file.open("rb") as stream, _damage_as_value_error():
            return np.lib.format.read_array(stream, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{file.name} cannot be used: {error}") from error


def read_json(file: Path, schema: type[JsonObject]) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        file: The file, at most 64 MiB.
        schema: What it must hold.

    Raises:
        OSError: The file cannot be read.
        JaxTransferError: The file is not JSON, is too large or too deeply nested, or does not fit the schema; the
            message names the file, the field and what was expected.
    """
    with file.open("rb") as stream:
        content = stream.read(_MAX_JSON_BYTES + 1)
    try:
        return parse_json(content, schema)
    except ValueError as error:
        raise JaxTransferError(f"{file} cannot be used: {error}.") from error


def parse_json(content: bytes, schema: type[JsonObject]) -> dict[str, Any]:
    """Parses a JSON object and checks it, see `read_json`.

    Raises:
        ValueError: It does not fit the schema. The message is a clause for the caller to put after the name of the
            file.
    """
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"it has more than {_MAX_JSON_BYTES >> 20} MiB")
    try:
        schema.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise ValueError(_complaint(error)) from error
    return json.loads(content)


def parse_toml(content: bytes) -> dict[str, Any]:
    """Parses a TOML file.

    Raises:
        ValueError: It is not TOML, or too large or too deeply nested. The message is a clause for the caller to put
            after the name of the file.
    """
    if len(content) > _MAX_TOML_BYTES:
        raise ValueError(f"has more than {_MAX_TOML_BYTES >> 20} MiB")
    try:
        return tomllib.loads(content.decode())
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"is not valid TOML: {shortened(str(error), 3 * _MAX_SHOWN)}") from error


def check_fields(fields: Mapping[str, Any], schema: type[JsonObject]) -> None:
    """Checks what a file holds by a schema.

    Raises:
        ValueError: It does not fit. The message is a clause for the caller to put after the name of the file.
    """
    try:
        schema.model_validate(fields)
    except pydantic.ValidationError as error:
        raise ValueError(_complaint(error)) from error


def _complaint(error: pydantic.ValidationError) -> str:
    """Says in a clause what the first thing is that does not fit a schema."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    field, value, message = shortened(".".join(map(str, first["loc"]))), first["input"], first["msg"]
    if first["type"] == "json_invalid":
        return f"it is not JSON ({context['error']})"
    if first["type"] == "value_error":
        return f"{field and f'its {field} '}{shortened(str(context['error']), 3 * _MAX_SHOWN)}"
    if not field:
        return "it does not hold an object"
    if first["type"] == "missing":
        return f"it has no {field}"
    if field == "format" and first["type"] == "literal_error":
        return f"it has format {shortened(repr(value))}, but this version of jaxtransfer reads {context['expected']}"
    expected = message.partition(" should ")[2]
    return f"its {field} should {expected}, not {shortened(repr(value))}" if expected else f"its {field}: {message}"


def shortened(text: str, length: int = _MAX_SHOWN) -> str:
    """Returns a text from a file as messages show it: on one line, and cut after `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}..."


def write_csv(file: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; numbers read back exactly, and None and values that are not finite become empty cells.

    Texts that a spreadsheet would take for a formula get an apostrophe in front, which `read_csv` removes.
    """
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)


def read_csv(file: Path, content: str = "a table", *, delimiter: str = ",") -> list[list[str]]:
    """Reads the rows of a CSV file as text, without blank lines, and without the apostrophes of `write_csv`.

    Args:
        file: The file, in UTF-8.
        content: What the file should hold, as error messages call it: "an oracle".
        delimiter: Character between two cells.

    Raises:
        JaxTransferError: The file cannot be read, or is not a CSV file in UTF-8.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream, delimiter=delimiter) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise JaxTransferError(f"{file} is not {content} that can be read: {reason}.") from error
    return [[cell[_QUOTED.match(cell) is not None :] for cell in row] for row in rows]


def read_records(file: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """Reads a CSV file with a header: each further row as a dict from the name of a column to the text of its cell.

    Args:
        file: The file.
        columns: Names of columns that it must have.

    Raises:
        JaxTransferError: The file cannot be read, lacks a column, or a row does not have the length of the header.
    """
    header, *rows = read_csv(file) or [[]]
    if missing := [name for name in columns if name not in header]:
        raise JaxTransferError(f"{file} has no column {missing[0]!r}.")
    if wrong := [row for row in rows if len(row) != len(header)]:
        raise JaxTransferError(f"{file} has {len(header)} columns, but a row has {len(wrong[0])} cells.")
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_table(
    file: Path, dtype: type, *, missing: str = "", targets: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Reads a table that has names in its first row and its first column.

    Args:
        file: The table, a CSV file.
        dtype: Type of the values.
        missing: Text that stands for the value of an empty cell.
        targets: The names that its first column must hold; None: those of its first row.

    Returns:
        The names [n] in the first row and the values [targets, n].

    Raises:
        JaxTransferError: The file cannot be read.
        ValueError: The first column holds other names, or a cell holds no value.
    """
    header, *rows = read_csv(file) or [[]]
    names = tuple(header[1:])
    if len({*names}) < len(names):
        raise ValueError(f"{file.name} has several columns of one name")
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"the rows of {file.name} do not have the length of its first row")
    if tuple(row[0] for row in rows) != (names if targets is None else tuple(targets)):
        raise ValueError(f"rows {'and columns ' if targets is None else ''}of {file.name} differ")
    values = np.array([[cell or missing for cell in row[1:]] for row in rows], dtype=dtype)
    return names, values.reshape(len(rows), len(names))


def json_hash(value: Any) -> str:
    """Returns the SHA-256 of data that JSON can hold, as 64 hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def text_cell(text: str) -> str:
    """Returns the text of a cell, with an apostrophe in front where a spreadsheet would take it for a formula."""
    if not _FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return text_cell(value)
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"


@contextlib.contextmanager
def _damage_as_value_error() -> Iterator[None]:
    """Turns NumPy's errors for files that it cannot read into one `ValueError` that gives the reason."""
    try:
        yield
    except _DAMAGED as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise ValueError("it holds Python objects, which are not unpickled") from error
        raise ValueError(f"it is damaged or has another format ({' '.join(str(error).split())[:200]})") from error


def check_checkpoint_path(path: Path) -> None:
    """Checks that Orbax can keep checkpoints in a folder.

    Raises:
        JaxTransferError: Its path has a backslash, which TensorStore takes for a slash, or a square bracket, which
            Orbax takes for a pattern: what it had written there could not be read.
    """
    if special := set(path.as_posix()) & {"\\", "["}:
        raise JaxTransferError(
            f"{path} cannot hold weights, since its path has the character {min(special)}; choose another path."
        )
