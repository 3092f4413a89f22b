"""The report of a run: one page that opens from disk, and its figures as files."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import jinja2
import numpy as np

from jaxtransfer import figures
from jaxtransfer.attribution.diagnostics import describe_fault, in_sentences
from jaxtransfer.comparison.affinity import Affinity
from jaxtransfer.defaults import RELEVANT
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.evaluation.rooms_scores import best_first, reason_for_first
from jaxtransfer.files import atomic_directory, atomic_write
from jaxtransfer.report.drawings import MAX_DRAWN, method_drawings
from jaxtransfer.report.gallery import Gallery
from jaxtransfer.report.measures import measure_table, measured_data, measured_transfer, task_table
from jaxtransfer.report.methods import MethodView, method_data, method_view
from jaxtransfer.report.provenance import (
    control_rows,
    hash_rows,
    headline_facts,
    provenance_rows,
    skipped_rows,
    unusable_rows,
)
from jaxtransfer.report.scores import Scores
from jaxtransfer.report.svg import inline_svg
from jaxtransfer.runs.load import affinity_of, finished_record
from jaxtransfer.runs.record import Record

_MAX_LISTED = 200  # rows of a table of what was skipped; all of them are in run.json
_VALUE_COLOURS = 64


def write_report(
    directory: str | Path,
    *,
    oracle: Oracle | None = None,
    groups: Mapping[str, str] | None = None,
    relevant: int = RELEVANT,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Writes `report.html` and the folder `figures` into the directory of a finished run.

    The page is self-contained. `figures` is replaced as a whole; it has each figure as PNG and as SVG. Nothing is
    replaced before the new files are complete.

    Args:
        directory: The directory of a run of any command.
        oracle: Measured transfer to compare the rankings with, and to show beside the scores of labelled tasks; None:
            the report has no curves.
        groups: The group of each network by name; None: no groups. Names that are not in the run are ignored.
        relevant: The number of sources of each target that count as relevant.
        progress: Called with the number of figures drawn, the number of all figures and the name of the next.

    Returns:
        The path of the page.

    Raises:
        JaxTransferError: `directory` holds no finished run, or one that shares no target with the oracle.
        OSError: A file cannot be written.
    """
    directory = Path(directory)
    finished_record(directory)  # before a file is created in somebody else's directory
    with filelock.FileLock(directory / ".report.lock"):  # another report may be at work
        return _write_report(directory, oracle, groups, relevant, progress)


def _write_report(
    directory: Path,
    oracle: Oracle | None,
    groups: Mapping[str, str] | None,
    relevant: int,
    progress: Callable[[int, int, str], None] | None,
) -> Path:
    record = finished_record(directory)
    affinity = affinity_of(directory, record)
    group_of = None if groups is None else {name: groups.get(name, figures.OTHER) for name in affinity.sources}
    methods = best_first(affinity.methods)
    views = [method_view(affinity, method) for method in methods]
    scores = None if oracle is None else Scores(affinity, methods, oracle, relevant)
    gallery = Gallery(directory, record, affinity)
    measured = {} if affinity.square else measured_transfer(directory, affinity, oracle)

    drawings = [drawing for view in views for drawing in method_drawings(affinity, view, group_of)]
    drawings += gallery.drawings()
    if scores is not None:
        drawings.append(scores.drawing())
    with atomic_directory(directory / "figures") as folder:
        for done, (name, draw) in enumerate(drawings):
            if progress is not None:
                progress(done, len(drawings), name)
            draw(path=folder / f"{name}.png", svg=True)
        if progress is not None:
            progress(len(drawings), len(drawings), "tables")
        inline = {file.stem: inline_svg(file) for stem in ("tree", "curves") for file in folder.glob(f"{stem}*.svg")}
        files = sorted(file.name for file in folder.iterdir())
    page = _template().render(
        run="/".join(Path(os.path.abspath(directory)).parts[-2:]),
        noun="task" if record["kind"] == "pge" else "network",
        pge=record["kind"] == "pge",
        square=affinity.square,
        data=_as_script(_data(directory, record, affinity, views, group_of, gallery, measured)),
        targets=affinity.targets,
        faults=in_sentences(affinity.faults),
        methods=methods,
        reason=reason_for_first(methods),
        trees={view.name: _tree_element(affinity, view, inline) for view in views if affinity.square},
        measures=None if affinity.square else measure_table(affinity, methods, measured),
        seconds=record.get("processor_seconds_of_measures"),
        tasks=None if affinity.square else task_table(record),
        scores=scores,
        curves=inline.get("curves"),
        gallery=gallery,
        colour_bar=", ".join(
            "rgb({} {} {})".format(*colour) for colour in figures.signed_colours(np.linspace(-1, 1, 21))
        ),
        groups=group_of,
        files=files,
        listed=_MAX_LISTED,
        **_run_texts(record, affinity),
    )
    with atomic_write(directory / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return directory / "report.html"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.jinja")


def _run_texts(record: Record, affinity: Affinity) -> dict[str, Any]:
    """Returns the texts that describe the run."""
    return {
        "facts": headline_facts(record, affinity),
        "remarks": record.get("remarks") or [],
        "provenance": provenance_rows(record),
        "hashes": hash_rows(record),
        "skipped": skipped_rows(record),
        "unusable": unusable_rows(record),
        "left_out": affinity.left_out,
        "starts": record["starts"],
    }


def _tree_element(affinity: Affinity, view: MethodView, inline: Mapping[str, str]) -> dict[str, Any]:
    """Returns the tree of a method as an SVG element, and the names that are not in it."""
    left_out = [] if view.tree is None else [name for name in affinity.names if name not in view.tree.names]
    too_large = view.tree is not None and len(affinity.names) > MAX_DRAWN
    svg = inline.get(f"tree_{view.name}")
    return {"svg": svg, "left_out": left_out, "directed": view.measure.directed, "too_large": too_large}


def _data(
    directory: Path,
    record: Record,
    affinity: Affinity,
    views: list[MethodView],
    groups: Mapping[str, str] | None,
    gallery: Gallery,
    measured: dict[str, Oracle],
) -> dict[str, Any]:
    """Returns what the page's script shows."""
    faults = ["; ".join(describe_fault(fault) for fault in affinity.faults.get(name, ())) for name in affinity.sources]
    pge = record["kind"] == "pge"
    return {
        "names": affinity.sources,
        "targets": None if affinity.square else affinity.targets,
        "faults": faults,
        "groups": None if groups is None else [groups[name] for name in affinity.sources],
        "colours": {} if groups is None else figures.group_colours(groups.values()),
        "scale": figures.value_colours(_VALUE_COLOURS),
        "methods": [method_data(affinity, view) for view in views],
        "gallery": gallery.data(),
        "control": control_rows(directory) if pge else [],
        "measured": measured_data(affinity, measured),
    }


def _as_script(data: dict[str, Any]) -> str:
    """Returns data as JSON in which no name can end the element that holds it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
