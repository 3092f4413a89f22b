"""Real networks and sets: the settings are complete, packages are read safely, and small ones run from end to end."""

import hashlib
import io
import itertools
import re
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

import jaxtransfer as jt
from benchmarks.wild import __main__ as wild
from benchmarks.wild import evaluate, measure, networks, packages, sets, settings
from benchmarks.wild.architectures import ARCHITECTURES
from benchmarks.wild.settings import LabelledSet, Measuring, Package, Source
from jaxtransfer.files import read_records

SETTINGS = settings.read()
REAL = [name for name, source in SETTINGS.sources.items() if name != "saliency-layer9"]  # the same network twice
SMALL = Measuring(
    images=80, classes=2, size=16, score_counts=(30,), photos=12, repeats={30: 1, 100: 1}, seeds=1, steps=20,
    random=("edges",), scratch={"steps": 3, "rate": 0.01},
    finetuned={"networks": ["edges"], "sets": ["colours"], "labels": 30, "steps": 3},
)  # fmt: skip


def test_settings_name_enough_networks_tasks_architectures_and_sets() -> None:
    sources = SETTINGS.sources.values()
    assert len(REAL) >= 14
    assert len({source.task for source in sources}) >= 10
    assert len({source.family for source in sources}) >= 5
    assert len([entry for entry in SETTINGS.sets.values() if entry.package]) >= 5
    assert {source.node for source in sources if source.format != "onnx"} == {*ARCHITECTURES}
    assert {entry.reader for entry in SETTINGS.sets.values()} == {*sets.READERS}
    assert {*SETTINGS.measuring.random} <= {*SETTINGS.sources}


def test_settings_say_where_everything_comes_from_and_on_what_terms() -> None:
    used = {entry.package for entry in (*SETTINGS.sources.values(), *SETTINGS.sets.values()) if entry.package}
    assert used == {*SETTINGS.packages}
    for package in SETTINGS.packages.values():
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
        assert package.licence
        assert package.origin
        assert package.version in " ".join(packages.client_arguments(package))
    for entry in SETTINGS.sets.values():
        assert entry.labels
        assert entry.licence
        assert entry.origin


def archives(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Writes the same files as a wheel and as an npm package."""
    with zipfile.ZipFile(folder / "small.whl", "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    with tarfile.open(folder / "small.tgz", "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return [folder / "small.whl", folder / "small.tgz"]


def test_archives_are_read_without_being_unpacked(tmp_path: Path) -> None:
    files = {"a/weights": b"123", "../outside": b"4"}
    for archive in archives(tmp_path, files):
        assert {name: read() for name, read in packages.members(archive)} == files
        assert packages.read_file(archive, "a/weights") == b"123"
        with pytest.raises(jt.JaxTransferError, match="has no file b"):
            packages.read_file(archive, "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.tgz", "small.whl"]


def test_a_package_is_fetched_once_and_its_hash_is_checked(tmp_path: Path) -> None:
    calls: list[Sequence[str]] = []

    def client(arguments: Sequence[str], folder: Path) -> None:
        calls.append(arguments)
        (folder / "small-1.whl").write_bytes(b"content")

    sha256 = hashlib.sha256(b"content").hexdigest()
    package = Package("small", "pypi", "1", "small-1.whl", sha256, "MIT", "a test")
    for _ in range(2):
        assert packages.fetch(package, tmp_path / "packages", client).read_bytes() == b"content"
    assert [arguments[-1] for arguments in calls] == ["small==1"]
    (tmp_path / "packages" / "small-1.whl").write_bytes(b"changed")
    with pytest.raises(jt.JaxTransferError, match=f"not {sha256}"):
        packages.fetch(package, tmp_path / "packages", client)
    with pytest.raises(jt.JaxTransferError, match="did not write"):
        packages.fetch(package, tmp_path / "empty", lambda *_: None)
    with pytest.raises(jt.JaxTransferError, match="is needed to fetch packages"):
        packages.run_client(["no-such-client"], tmp_path)


def onnx_network(seed: int, **changes: object) -> bytes:
    """Returns a network of one convolution on images with channels last, and a second value that nothing needs."""
    weights = np.random.default_rng(seed).normal(size=(5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["image"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["first", "factor"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w"], ["features"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["features"], ["out"]),
    ]
    inputs = [
        helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 8, 8, 3]),
        helper.make_tensor_value_info("factor", onnx.TensorProto.FLOAT, [1]),
    ]
    outputs = [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n", 5, 6, 6])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def source(name: str, task: str = "edges", **changes: object) -> Source:
    values = {"size": (8, 8), "node": "features", "constants": {"factor": 2.0}, "mean": (0.1, 0.2, 0.3)}
    return Source(name, "small", f"{name}.onnx", "onnx", task, "CNN", **(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("bgr", [False, True])
def test_a_converted_network_agrees_with_its_runtime(bgr: bool) -> None:
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    entry, content = source("edges", bgr=bgr), onnx_network(0)
    network = networks.convert(entry, content)
    assert max(networks.differences(network, entry, content, images)) < 1e-5
    other = networks.convert(source("edges", bgr=not bgr), content)
    assert min(networks.differences(other, entry, content, images)) > 0.01


def png(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(value).save(file, "png")
    return file.getvalue()


def test_samples_are_balanced_and_take_different_groups_first() -> None:
    def example(name: str, label: str, group: str = "") -> sets.Example:
        return sets.Example(name, {"class": label}, group, lambda: b"")

    frames = [example(f"frame {i} of {unit}", "a", unit) for unit in "uvw" for i in range(20)]
    others = [example(f"{label}{i}", label) for label, count in (("b", 30), ("c", 25), ("d", 19)) for i in range(count)]
    chosen = sets.sample([*frames, *others], 40, 3, 0)
    labels = {e.name: e.labels["class"] for e in (*frames, *others)}
    assert [labels[name] for name in chosen[:6]] in [[*order] * 2 for order in itertools.permutations("abc")]
    assert {name[-1] for name in chosen if labels[name] == "a"} == {*"uvw"}
    assert len({name[-1] for name in [name for name in chosen if labels[name] == "a"][:3]}) == 3
    assert sets.sample(others[-19:], 40, 3, 0) == []


def test_parts_have_no_common_example_and_use_what_there_is() -> None:
    labels = np.array([*"aabbccddee"] * 9)
    pool = np.arange(10, 90)
    chosen = [*measure.parts(labels, pool, {10: 3, 30: 9, 100: 1, 1000: 1}, 0)]
    assert [(count, len(part)) for count, part in chosen] == [(10, 10)] * 3 + [(30, 30)] * 2 + [(100, 80)]
    tens = np.concatenate([part for count, part in chosen if count == 10])
    assert len(np.unique(tens)) == 30
    assert {*tens} <= {*pool.tolist()}
    assert all(
        np.bincount(np.unique(labels[part], return_inverse=True)[1]).tolist() == [2] * 5 for _, part in chosen[:3]
    )


def test_near_copies_stay_on_one_side() -> None:
    images = np.zeros((30, 4, 4, 3), np.uint8)
    groups = np.array([f"unit {i // 3}" for i in range(30)])
    task = jt.LabelledTask.of(images, [*"ab"] * 15, name="units", groups=groups)
    scored, measured = measure.divide(task, 10)
    assert not {*groups[scored]} & {*groups[measured]}
    assert (len(scored), len(measured)) == (9, 21)


def write_colours(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            image = rng.integers(0, 200, (10, 10, 3), dtype=np.uint8)
            image[..., channel] += 25
            (folder / name / f"{i}.png").write_bytes(png(image))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a folder with a zoo of small networks and a set, as `fetch` does."""
    folder = tmp_path_factory.mktemp("wild")
    write_colours(folder / "data" / "colours")
    sets.write_set(LabelledSet("colours", "", "", ""), folder / "data" / "colours", folder / "sets", SMALL)
    zoo = jt.Zoo(folder / "zoo")
    for seed, name in enumerate(("edges", "lines", "style", "text")):
        zoo.add(networks.convert(source(name), onnx_network(seed)))
    return folder


@pytest.mark.filterwarnings("ignore:On 12 images")
def test_small_networks_and_sets_run_from_end_to_end(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("edges", "lines", "style", "text")
    tasks = dict(zip(names, ("a", "a", "b", "b"), strict=True))
    chosen = settings.Settings({}, {name: source(name, tasks[name]) for name in names}, {}, SMALL)
    [task] = jt.read_tasks([work / "sets" / "colours"], size=16)
    zoo = [jt.Zoo(work / "zoo")[name] for name in names]
    sources = measure.all_sources(zoo, SMALL.random)
    features = measure.features_of(sources, task, work, None)
    cells = [*measure.measure_task(task, features, SMALL, work / "transfers", 0)]
    rows = measure.tabulate(cells)
    assert {row.source for row in rows} == {*names, "random-edges", "pixels"}
    assert [(row.labels, row.examples) for row in rows if row.source == "edges"] == [(30, 30), (100, 50)]
    assert all(0 < row.stderr < 1 for row in rows)

    again = [*measure.measure_task(task, features, SMALL, work / "transfers", 0)]
    assert all(np.array_equal(one.accuracy, other.accuracy) for one, other in zip(cells, again, strict=True))
    _, pool = measure.divide(task, 30)
    *_, (_, part) = measure.parts(task.labels, pool, SMALL.repeats, 0)
    direct = jt.transfer([sources[1]], task.take(part), seeds=1, steps=20)
    mine = next(row for row in rows if row.source == "lines" and row.labels == 100)
    assert direct["accuracy"][0, direct.sources.index("lines")] == pytest.approx(mine.score, abs=1e-6)

    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(photo))
    monkeypatch.setattr(settings, "read", lambda _: chosen)
    wild.main(["measure", "--work", str(work)])
    assert {*rows} < {*evaluate.read_table(work / "wild.csv")}  # those of the network trained from scratch besides
    wild.main(["evaluate", "--work", str(work), "--photos", str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    judged = read_records(tmp_path / "out" / "wild_evaluation.csv")
    names_of_measures = {(row["given"], row["measure"]) for row in judged}
    assert {("30 labels", "ridge"), ("30 labels", "logme"), ("12 photos", "linear_predictivity")} <= names_of_measures
    assert ("(truth)", "a second measurement") in names_of_measures
    assert all(-1 <= float(row["spearman"]) <= 1 for row in judged)
    assert len(read_records(tmp_path / "out" / "wild_groups.csv")) > 10
    assert (tmp_path / "out" / "wild_tree.png").stat().st_size > 1000


def test_the_small_network_learns_from_scratch(work: Path) -> None:
    [task] = jt.read_tasks([work / "sets" / "colours"], size=16)
    cell = measure.measure_scratch(task, SMALL, work / "transfers", 0)
    assert cell.accuracy.shape == (1, 5, 1)
    again = measure.measure_scratch(task, SMALL, work / "transfers", 0)
    np.testing.assert_array_equal(cell.accuracy, again.accuracy)


def test_a_network_is_trained_whole_on_the_examples_of_its_readouts(work: Path) -> None:
    [task] = jt.read_tasks([work / "sets" / "colours"], size=16)
    network = jt.Zoo(work / "zoo")["edges"]
    cell = measure.measure_finetuned(network, task, SMALL, work / "transfers", 0)
    assert (cell.source, cell.labels, cell.examples) == ("edges", 30, 30)
    _, pool = measure.divide(task, 30)
    (_, part), *_ = measure.parts(task.labels, pool, SMALL.repeats, 0)
    direct = jt.transfer([network], task.take(part), protocol="finetune", seeds=1, steps=3)
    assert direct["accuracy"][0, direct.sources.index("edges")] == pytest.approx(cell.accuracy.mean(), abs=1e-6)
    again = measure.measure_finetuned(network, task, SMALL, work / "transfers", 0)
    np.testing.assert_array_equal(cell.accuracy, again.accuracy)
