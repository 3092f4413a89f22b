"""The notebooks of the site: what is stored was run from top to bottom, and they still run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """How many pictures each cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code_cells(notebook)]


def test_there_are_notebooks() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["first-matrix", "five-libraries", "measure-on-rooms"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_stored_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {output.get("name", output.output_type) for cell in cells for output in cell.outputs}
    assert kinds <= {"stdout", "display_data"}, "only printed lines and pictures, no warnings and errors"
    assert sum(pictures(notebook)) >= 2
    printed = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert not re.search(r"(?<!\S)/\w", printed), "a path of the machine that it ran on"


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND")  # pictures go into the notebook
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")  # drawing rooms is most of the time
    stored = nbformat.read(file, as_version=4)
    notebook = nbformat.read(file, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert pictures(notebook) == pictures(stored)
