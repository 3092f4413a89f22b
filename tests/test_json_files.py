"""JSON files that somebody damaged or altered: each is read as it stands, or refused in one sentence."""

import contextlib
import functools
import json
import operator
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.attribution.diagnostics import in_sentences
from jaxtransfer.files import JsonObject, read_json
from jaxtransfer.points.network_refs import network_refs
from jaxtransfer.points.store import Points
from jaxtransfer.report.measures import task_table
from jaxtransfer.report.provenance import hash_rows, headline_facts, provenance_rows, skipped_rows, unusable_rows
from jaxtransfer.runs import affinity as affinity_runs
from jaxtransfer.runs.load import affinity_of, finished_record
from jaxtransfer.runs.record import diff_settings
from support.report_runs import attribution_run, gap_run, score_run

NAMES = ("a", "b", "c")
WRONG = 'null true 0 -1 1.5 1000000000 1e400 NaN Infinity [] [1] {} [["a"]] [1000000,1000000,1000000]'.split()
WRONG += ["1" + 400 * "0", '""', '"x"', '"../x"', '"a\\nb"', '"float64"', '{"x":{"y":[]}}', f'"{10_000 * "x"}"']
WRONG += [400 * "[" + 400 * "]", 150 * "[" + 150 * "]"]


def apply(params: Any, images: jax.Array) -> jax.Array:
    return images.mean((1, 2)) @ params["w"]


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """The text of a JSON file with one to three places deleted or replaced, or cut off."""
    if draw(st.integers(0, 9)) == 0:
        return text[: draw(st.integers(0, len(text) - 1))]
    tree = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(json.loads(text))))
        value = json.loads(draw(st.sampled_from(WRONG)))
        if not path:
            return json.dumps(value)
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change may have removed the place
            node = functools.reduce(operator.getitem, path[:-1], tree)
            if draw(st.booleans()):
                del node[path[-1]]
            else:
                node[path[-1]] = value
    return json.dumps(tree)


def _read_zoo(zoo: Path) -> None:
    network_refs(jt.Zoo(zoo))
    jt.Zoo(zoo)["a"].apply  # noqa: B018


def _read_run(run: Path) -> None:
    record = finished_record(run)
    affinity = affinity_of(run, record)
    for rows in (provenance_rows, hash_rows, skipped_rows, unusable_rows, task_table):
        rows(record)
    headline_facts(record, affinity)
    sound = {"settings": {"methods": ["saliency"]}, "probe": {"size": [8, 8], "sha256": "", "images": ["x"]}}
    if record["kind"] == "affinity":
        affinity_runs._diff(record, sound)
    diff_settings(record, sound)


def _read_affinity(run: Path) -> None:
    affinity = jt.Affinity.load(run)
    in_sentences(affinity.faults)
    for method in affinity.methods:
        affinity.rank(affinity.targets[0], method=method)


def _read_key(points: Path) -> None:
    assert isinstance(Points(points).missing("a", {"saliency": {"weights": "1"}}), tuple)
    in_sentences({"a": Points(points).faults("a", ["saliency"])})


def _make_zoo(folder: Path) -> Path:
    zoo = jt.Zoo(folder / "zoo")
    params = {"w": np.ones((3, 4), np.float32), "key": jax.random.key(1), "more": [(1, 2.5, None), {0: jnp.ones(2)}]}
    zoo.add(jt.Network("a", apply, params, jt.Preprocess((4, 4), mean=(0.5, 0.4, 0.3), clip=(0.1, 0.9))))
    return zoo.path


def _make_points(folder: Path) -> Path:
    points = Points(folder / "points")
    points.create("a", "saliency", (1, 2), 1)
    points.finish("a", {"saliency": {"weights": "1"}}, {"saliency": ["random_numbers"]})
    return folder / "points"


def _faulty_run(folder: Path) -> Path:
    unusable = [("a", "a.png")]
    return attribution_run(folder / "run", NAMES, maps=False, unusable=unusable, faults={"a": ["random_numbers"]})


FILES: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], None]]] = {
    "zoo": (_make_zoo, "a/network.json", _read_zoo),
    "affinity run": (_faulty_run, "run.json", _read_run),
    "pge run": (lambda folder: gap_run(folder / "run", NAMES), "run.json", _read_run),
    "score run": (lambda folder: score_run(folder / "run", ["x", "y"], NAMES), "run.json", _read_run),
    "affinity": (_faulty_run, "affinity.json", _read_affinity),
    "scores": (lambda folder: score_run(folder / "run", ["x", "y"], NAMES), "affinity.json", _read_affinity),
    "key": (_make_points, "a/saliency/key.json", _read_key),
}


@pytest.fixture(scope="module", params=FILES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    make, file, read = FILES[request.param]
    folder = make(tmp_path_factory.mktemp("json"))
    read(folder)
    return folder, folder / file, read, (folder / file).read_text()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(case: Any, data: st.DataObject) -> None:
    folder, file, read, text = case
    file.write_text(data.draw(damaged(text)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(folder)
    except jt.JaxTransferError as error:
        (sentence,) = str(error).splitlines()
        assert sentence.endswith(".")
        assert len(sentence) < 1500
        assert str(folder) in sentence
    finally:
        file.write_text(text)


class _Schema(JsonObject):
    numbers: list[int]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{}", "it has no numbers"),
        ('{"numbers": 3}', "its numbers should be a valid array, not 3"),
        ('{"numbers": [0, "x"]}', "its numbers.1 should be a valid integer, not 'x'"),
        ('{"numbers": [0, true]}', "its numbers.1 should be a valid integer, not True"),
        ("[]", "it does not hold an object"),
        ('{"numbers": [0', "it is not JSON "),
        ("[" * 10_000, "it is not JSON .recursion limit exceeded"),
        (" " * (64 * 2**20 + 1), "it has more than 64 MiB"),
    ],
)
def test_a_complaint_names_the_file_the_field_and_what_was_expected(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "some.json"
    file.write_text(text)
    with pytest.raises(jt.JaxTransferError, match=f"some.json cannot be used: {complaint}"):
        read_json(file, _Schema)
    file.write_text('{"numbers": [1], "other": NaN}')
    assert read_json(file, _Schema)["numbers"] == [1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"points": "http://127.0.0.1:1/points"}, "its points should be a directory, gs:// or s3://, not 'http://"),
        (
            {"probe": {"images": ["a.png", "../../b.png"]}},
            "its probe.images.1 should be a path inside the probe's folder",
        ),
        ({"probe": {"images": ["/etc/b.png"]}}, "its probe.images.0 should be a path inside the probe's folder"),
    ],
)
def test_a_record_leads_to_no_other_places(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    file = _faulty_run(tmp_path) / "run.json"
    record = json.loads(file.read_text())
    for name, value in change.items():
        record[name] = record[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(record))
    with pytest.raises(jt.JaxTransferError, match=complaint):
        finished_record(file.parent)


def test_a_zoo_reads_what_it_accepts(tmp_path: Path) -> None:
    params: Any = {"w": np.ones((3, 4), np.float32)}
    for _ in range(300):
        params = {"inner": params}
    with pytest.raises(jt.JaxTransferError, match=r"'deep' cannot be stored in a zoo: it is not JSON .recursion limit"):
        jt.Zoo(tmp_path).add(jt.Network("deep", apply, params))
    assert jt.Zoo(tmp_path).names == ()


def test_weights_larger_than_the_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    zoo = _make_zoo(tmp_path)
    file = zoo / "a" / "network.json"
    manifest = json.loads(file.read_text())
    manifest["params"]["w"]["shape"] = [10**9, 10**9]
    file.write_text(json.dumps(manifest))
    with pytest.raises(jt.JaxTransferError, match=r"its params describes weights of 4,000,000,000,000,000,\d+ bytes"):
        jt.Zoo(zoo).manifest("a")
