"""Tables and arrays on disk: what is written reads back, and what cannot be read is named."""

import csv
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer import JaxTransferError
from jaxtransfer.files import read_arrays, read_csv, read_records, read_table, write_arrays, write_csv


def test_tables_read_back_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    values[0, 1] = np.nan
    names = ("a", " b", 'c "d", e')
    write_csv(tmp_path / "table.csv", [["", *names], *([name, *row] for name, row in zip(names, values, strict=True))])
    again, read = read_table(tmp_path / "table.csv", np.float32, missing="nan")
    assert again == names
    np.testing.assert_array_equal(read, values)
    with pytest.raises(ValueError, match="could not convert"):
        read_table(tmp_path / "table.csv", np.float32)


@given(st.lists(st.text(st.sampled_from("=+-@'\t\n1.e,;\"aü"), max_size=6), min_size=1, unique=True))
def test_no_cell_is_a_formula_and_every_name_reads_back(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.csv"
        write_csv(file, [["", *names], *([name, *[-0.5] * len(names)] for name in names)])
        assert read_table(file, np.float32)[0] == tuple(names)
        with file.open(newline="", encoding="utf-8") as stream:
            for cell in (cell for row in csv.reader(stream) for cell in row if cell[:1] in tuple("=+-@\t\r")):
                float(cell)


def test_records_are_named_by_the_header(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufeffname,group\r\n\r\nx,1\r\n,\r\n".encode())
    assert read_records(tmp_path / "a.csv") == [{"name": "x", "group": "1"}, {"name": "", "group": ""}]
    (tmp_path / "a.csv").write_text("name,group\nx,1,2\n")
    with pytest.raises(JaxTransferError, match=r"a\.csv has 2 columns, but a row has 3 cells"):
        read_records(tmp_path / "a.csv")


def test_tables_that_cannot_be_read(tmp_path):
    with pytest.raises(JaxTransferError, match=r"gone\.csv is not an oracle that can be read: No such file"):
        read_csv(tmp_path / "gone.csv", "an oracle")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JaxTransferError, match=r"binary\.csv is not a table that can be read"):
        read_csv(tmp_path / "binary.csv")
    write_csv(tmp_path / "other.csv", [["", "a", "b"], ["b", 1, 2], ["a", 3, 4]])
    with pytest.raises(ValueError, match=r"rows and columns of other\.csv differ"):
        read_table(tmp_path / "other.csv", np.float32)


def test_arrays_are_read_by_name(tmp_path):
    arrays = {"x": np.arange(3), "y": np.array("text")}
    write_arrays(tmp_path / "a.npz", arrays)
    for file in (tmp_path / "a.npz", io.BytesIO((tmp_path / "a.npz").read_bytes())):
        again = read_arrays(file)
        assert again.keys() == arrays.keys()
        assert all((again[name] == arrays[name]).all() for name in arrays)
    assert [*read_arrays(tmp_path / "a.npz", ["y"])] == ["y"]
    with pytest.raises(ValueError, match="it has no z, only x, y"):
        read_arrays(tmp_path / "a.npz", ["x", "z"])
