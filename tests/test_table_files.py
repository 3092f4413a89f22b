"""Tables and TOML files that somebody damaged or altered: each is read, or refused in one sentence."""

import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.evaluation.groups import load_groups
from jaxtransfer.report.provenance import control_rows
from jaxtransfer.runs.load import load_run
from support.helpers import affinity_of
from support.report_runs import gap_run, score_run

WRONG_CELLS = ["", " ", "x", "-1", "1.5", "inf", "nan", "1e400", "a.png", "../a.png", "/etc/passwd", "\0", "é", "=1+1"]
WRONG_CELLS += ['"', "a\nb", "9" * 400, "x" * 200_000, "[a]", "source", "file"]
WRONG_VALUES = ["", "3", "-1", "0", "1.5", "inf", "nan", "true", '""', '"x"', '"../.."', "[]", "[1]", '["a"]', "[[1]]"]
WRONG_VALUES += [
    "{}",
    "{path = 3}",
    "1979-05-27",
    "9" * 400,
    400 * "[" + 400 * "]",
    '"' + 10_000 * "x" + '"',
    '"\\u0000"',
]
WRONG_VALUES += ['"numbers"', '"dense"', '"multilabel"', '"photos"', '"kinds.csv"', "99999999999999999999"]


@st.composite
def damaged_csv(draw: st.DrawFn, text: str) -> str:
    """A table with one to three cells, rows or columns changed, removed or repeated, or cut off."""
    if draw(st.integers(0, 7)) == 0:
        return text[: draw(st.integers(0, len(text) - 1))]
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(draw(st.integers(1, 3))):
        if not rows:
            break
        i = draw(st.integers(0, len(rows) - 1))
        j = draw(st.integers(0, max(0, len(rows[i]) - 1)))
        change = draw(st.sampled_from(["cell", "cell", "row", "column", "blank", "again", "more", "swap"]))
        if change == "cell":
            rows[i][j : j + 1] = [draw(st.sampled_from(WRONG_CELLS))]
        elif change == "row":
            del rows[i]
        elif change == "column":
            rows = [row[:j] + row[j + 1 :] for row in rows]
        elif change == "blank":
            rows.insert(i, [])
        elif change == "again":
            rows.insert(i, rows[i])
        elif change == "more":
            rows[i] = [*rows[i], draw(st.sampled_from(WRONG_CELLS))]
        else:
            rows[i] = rows[i][::-1]
    stream = io.StringIO()
    delimiter = draw(st.sampled_from([",", ",", ",", ";", "\t"]))
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue()


@st.composite
def damaged_toml(draw: st.DrawFn, text: str) -> str:
    """A TOML file with one to three lines changed, removed or repeated, or cut off."""
    if draw(st.integers(0, 7)) == 0:
        return text[: draw(st.integers(0, len(text) - 1))]
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(lines) - 1))
        change = draw(st.sampled_from(["value", "value", "value", "remove", "again", "name", "blank"]))
        name = lines[i].partition(" = ")[0]
        if change == "value":
            lines[i] = f"{name} = {draw(st.sampled_from(WRONG_VALUES))}"
        elif change == "remove":
            lines[i] = ""
        elif change == "again":
            lines.insert(i, lines[i])
        elif change == "name":
            lines[i] = draw(st.sampled_from(["[", "[datasets]", "[x]", "[[datasets]]", "path", "= 1", "colour = 1"]))
        else:
            lines.insert(i, "")
    return "\n".join(lines)


def _labels(folder: Path) -> Path:
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(photos / f"{i}.png")
    rows = "".join(f"{i}.png,{'xy'[i % 2]},{i % 2},{i + 0.5},{i // 2}\n" for i in range(6))
    (photos / "labels.csv").write_text(f"file,kind,flag,age,groups\n{rows}")
    return photos


def _toml(folder: Path) -> Path:
    _labels(folder)
    (folder / "photos" / "labels.csv").rename(folder / "photos" / "kinds.csv")
    options = 'path = "photos"\nlabels = "photos/kinds.csv"\ncolumns = ["kind"]\nclasses = ["x", "y"]\nlimit = 5'
    (folder / "tasks.toml").write_text(f'[datasets.first]\n{options}\n[datasets.second]\npath = "photos/kinds.csv"\n')
    return folder


def _written(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder

    return write


def _run(folder: Path) -> Path:
    samples = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    affinity_of([[1, 0.2, 0.3], [0.2, 1, 0.8], [0.3, 0.8, 1]], "abc", samples).save(folder)
    return folder


def _load(folder: Path) -> None:
    affinity = jt.Affinity.load(folder)
    for target in affinity.targets:
        for method in affinity.methods:
            affinity.rank(target, method=method)


def _load_gaps(folder: Path) -> None:
    load_run(folder / "run")
    control_rows(folder / "run")


NAMES = ("a", "b", "c")
PAIRS = "source,target,score,stderr\na,b,0.5,0.1\nb,a,0.2,0.1\na,c,0.1,\nb,c,0.3,0.2\n"
FILES: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], object]]] = {
    "labels": (_labels, "labels.csv", lambda folder: jt.read_tasks([folder], size=8, missing=True)),
    "tasks": (_toml, "tasks.toml", lambda folder: jt.read_tasks([folder / "tasks.toml"], size=8, missing=True)),
    "oracle": (_written("o.csv", PAIRS), "o.csv", lambda folder: jt.Oracle.load(folder / "o.csv")),
    "oracle matrix": (
        _written("o.csv", "source,a,b\na,,0.5\nb,0.2,\nc,0.1,0.3\n"),
        "o.csv",
        lambda folder: jt.Oracle.load(folder / "o.csv"),
    ),
    "groups": (_written("g.csv", "name,group\na,2D\nb,3D\n"), "g.csv", lambda folder: load_groups(folder / "g.csv")),
    "affinities": (_run, "affinity_method.csv", _load),
    "errors": (_run, "stderr_method.csv", _load),
    "counts": (_run, "counts_method.csv", _load),
    "scores": (
        lambda folder: score_run(folder / "run", ["t", "u"], NAMES).parent,
        "run/affinity_ridge.csv",
        lambda folder: _load(folder / "run"),
    ),
    "gaps": (lambda folder: gap_run(folder / "run", NAMES).parent, "run/gap.csv", _load_gaps),
    "control": (lambda folder: gap_run(folder / "run", NAMES).parent, "run/control.csv", _load_gaps),
}


@pytest.fixture(scope="module", params=FILES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, file, read = FILES[request.param]
    folder = make(tmp_path_factory.mktemp("tables"))
    read(folder)
    return folder, folder / file, read, (folder / file).read_text()


def _is_read_or_refused(folder: Path, read: Callable[[Path], object]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(folder)
    except jt.JaxTransferError as error:
        (sentence,) = str(error).split("\n")
        assert sentence.endswith(".")
        assert len(sentence) < 1500
        assert str(folder) in sentence


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(case: Any, data: st.DataObject) -> None:
    folder, file, read, text = case
    file.write_text(data.draw((damaged_toml if file.suffix == ".toml" else damaged_csv)(text)))
    try:
        _is_read_or_refused(folder, read)
    finally:
        file.write_text(text)


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 200), length=st.integers(0, 200), more=st.binary(max_size=8))
def test_damaged_samples_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, start: int, length: int, more: bytes
) -> None:
    folder = _run(tmp_path_factory.mktemp("samples"))
    file = folder / "pseudo_values_method.npy"
    content = file.read_bytes()
    file.write_bytes(content[:start] + more + content[start + length :])
    _is_read_or_refused(folder, _load)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text.replace("0.8", "inf", 1), "affinity_method.csv holds a value that is not a number"),
        (lambda text: text.replace("0.8", "1e400", 1), "affinity_method.csv holds a value that is not a number"),
        (lambda text: text.replace("0.8", "0.7", 1), "affinity_method.csv is not symmetric"),
        (lambda text: text.replace("c", "b"), "has several columns of one name"),
        (lambda text: text.replace(",0.2", ""), "do not have the length of its first row"),
    ],
)
def test_tables_that_no_run_writes(tmp_path: Path, change: Callable[[str], str], complaint: str) -> None:
    file = _run(tmp_path) / "affinity_method.csv"
    file.write_text(change(file.read_text()))
    with pytest.raises(jt.JaxTransferError, match=complaint):
        jt.Affinity.load(tmp_path)


def test_blank_lines_between_rows_are_skipped(tmp_path: Path) -> None:
    file = _run(tmp_path) / "affinity_method.csv"
    before = jt.Affinity.load(tmp_path)["method"]
    file.write_text(file.read_text().replace("\n", "\n\n"))
    np.testing.assert_array_equal(jt.Affinity.load(tmp_path)["method"], before)
