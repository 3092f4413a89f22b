import csv
import errno
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import jaxtransfer
from jaxtransfer import JaxTransferError, Network, Preprocess, Zoo
from jaxtransfer.cli.app import app
from jaxtransfer.networks.network import weights_hash
from jaxtransfer.report import write_report
from jaxtransfer.report.gallery import Gallery
from jaxtransfer.runs.evaluation import evaluate_run
from jaxtransfer.runs.load import load_run
from jaxtransfer.runs.record import read
from support import helpers

run_affinity = functools.partial(helpers.run_affinity, size=32)  # enough for images of 20 pixels


def tiny(params, images):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.nn.relu(jax.lax.conv_general_dilated(images, params["w"], (2, 2), "SAME", dimension_numbers=dimensions))


def network(name: str, seed: int) -> Network:
    weights = np.random.default_rng(seed).normal(size=(3, 3, 3, 4)).astype(np.float32)
    return Network(name, tiny, {"w": weights}, Preprocess((16, 16), mean=0.5, std=0.5))


@pytest.fixture
def zoo(tmp_path) -> Zoo:
    zoo = Zoo(tmp_path / "zoo")
    for seed, name in enumerate(["one", "two", "three"]):
        zoo.add(network(name, seed))
    return zoo


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(7)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def _record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def _files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.csv")}


def test_run_directory(tmp_path, zoo, images):
    out = tmp_path / "run"
    command = ["jaxtransfer", "affinity", "zoo", "images", "--out", "run"]
    affinity, probe = run_affinity(zoo, images, out, command=command, batch_size=2)

    record = _record(out)
    assert record["starts"][0]["command"] == command
    assert record["starts"][0]["versions"]["jax"] == jax.__version__
    assert record["starts"][0]["versions"]["jaxtransfer"] == jaxtransfer.__version__
    assert record["starts"][0]["device"].startswith("cpu")
    assert record["starts"][0]["time"] <= record["finished"]
    assert record["settings"]["similarity"] == "cosine"
    assert record["settings"]["precision"].startswith("float32")
    assert record["networks"]["one"]["weights_sha256"] == weights_hash(network("one", 0).params)
    assert record["networks"]["one"]["preprocess"]["size"] == [16, 16]
    assert record["probe"]["images"] == [f"{i}.png" for i in range(5)]
    assert record["probe"]["sha256"] == probe.sha256
    assert record["probe"]["skipped"] == [["broken.png", "it is not an image of a known format"]]
    assert record["unusable"] == {method: [] for method in affinity.methods}

    for method in affinity.methods:
        with (out / f"affinity_{method}.csv").open() as file:
            rows = list(csv.reader(file))
        assert rows[0][1:] == [row[0] for row in rows[1:]] == ["one", "three", "two"]
        np.testing.assert_array_equal(np.array([row[1:] for row in rows[1:]], np.float32), affinity[method])
        assert (out / f"affinity_{method}.png").read_bytes().startswith(b"\x89PNG")
    assert load_run(out).names == affinity.names
    assert not list(out.glob("*.partial"))


def test_same_run_again_and_a_network_more(tmp_path, zoo, images):
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=["first"], batch_size=2)
    before = _files(out)
    run_affinity(zoo, images, out, command=["second"], batch_size=3)
    assert _files(out) == before
    assert [start["command"] for start in _record(out)["starts"]] == [["first"], ["second"]]

    zoo.add(network("four", 4))
    points = {file: file.stat().st_mtime_ns for file in (out / "points").rglob("*") if file.is_file()}
    columns = {file for file in points if "_columns" in file.parts}  # each is written again, with an entry more
    points = {file: time for file, time in points.items() if file not in columns}
    affinity, _ = run_affinity(zoo, images, out, command=["third"], batch_size=5)
    assert affinity.names == ("four", "one", "three", "two")
    assert {file: file.stat().st_mtime_ns for file in points} == points
    assert set(_record(out)["networks"]) == set(affinity.names)


def test_another_configuration_is_refused(tmp_path, zoo, images):
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=["first"], batch_size=5)
    before = _files(out), _record(out)
    for change, message in (
        ({"similarity": "correlation"}, "similarity: cosine there, correlation here"),
        ({"methods": ("saliency", "epsilon_lrp")}, "methods: "),
        ({"limit": 4}, "the probe images differ: 5 images of 32 pixels there, 4 images of 32 pixels here"),
        ({"size": 64}, "the probe images differ: 5 images of 32 pixels there, 5 images of 64 pixels here"),
    ):
        with pytest.raises(JaxTransferError, match=message):
            run_affinity(zoo, images, out, command=["second"], batch_size=5, **change)
        assert (_files(out), _record(out)) == before


def test_changed_weights_are_computed_again(tmp_path, zoo, images):
    """And nothing else is; the result is that of a new run."""
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=[], methods=["saliency"])
    keys = {name: out / "points" / name / "saliency" / "key.json" for name in zoo.names}
    before = {name: key.stat().st_mtime_ns for name, key in keys.items()}
    other = Zoo(tmp_path / "other")
    for seed, name in [(0, "one"), (9, "two"), (2, "three")]:
        other.add(network(name, seed))
    affinity, _ = run_affinity(other, images, out, command=[], methods=["saliency"])
    after = {name: key.stat().st_mtime_ns for name, key in keys.items()}
    assert [name for name in before if before[name] != after[name]] == ["two"]
    anew, _ = run_affinity(other, images, tmp_path / "new", command=[], methods=["saliency"])
    np.testing.assert_allclose(affinity["saliency"], anew["saliency"], atol=3e-6)  # a row alone sums in another order
    assert _record(out)["networks"] == _record(tmp_path / "new")["networks"]


def test_two_runs_exclude_each_other(tmp_path, zoo, images):
    out = tmp_path / "run"
    complaints = []

    def second(*_):
        if not complaints:
            with pytest.raises(JaxTransferError, match="Another run is at work in") as caught:
                run_affinity(zoo, images, out, command=["second"], batch_size=5)
            complaints.append(str(caught.value))

    run_affinity(zoo, images, out, command=["first"], progress=second, batch_size=5)
    assert complaints
    assert [start["command"] for start in _record(out)["starts"]] == [["first"]]
    run_affinity(zoo, images, out, command=["third"], batch_size=5)  # afterwards it is free


def test_order_of_methods_does_not_matter(tmp_path, zoo, images):
    for methods in (["epsilon_lrp", "saliency"], ["saliency", "epsilon_lrp"]):
        affinity, _ = run_affinity(zoo, images, tmp_path / "run", command=[], methods=methods)
        assert affinity.methods == ("saliency", "epsilon_lrp")


def _as_an_earlier_version_wrote_it(out: Path) -> None:
    """Turns a run of cka_biased into one of the version in which it was called cka."""
    for file in out.glob("*_cka_biased.*"):
        file.rename(out / file.name.replace("cka_biased", "cka"))
    for file in (out / "run.json", out / "affinity.json"):
        file.write_text(file.read_text().replace("cka_biased", "cka"))
    description = json.loads((out / "affinity.json").read_text())
    del description["format"]
    (out / "affinity.json").write_text(json.dumps(description))


def test_a_run_with_the_earlier_default(tmp_path, zoo, images):
    """It is refused in a sentence that says how to resume it, and resumes so."""
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=["test"], methods=jaxtransfer.METHODS)
    files = _files(out)
    with pytest.raises(JaxTransferError, match="`jaxtransfer affinity` with --method paper resumes the run there"):
        run_affinity(zoo, images, out, command=["test"])
    run_affinity(zoo, images, out, command=["test"], methods="paper")
    assert _record(out)["settings"]["methods"] == list(jaxtransfer.METHODS)
    assert len(_record(out)["starts"]) == 2
    assert _files(out) == files


def test_a_run_whose_record_has_another_order_of_methods(tmp_path, zoo, images):
    """Linear predictivity once came after the maps."""
    out, methods = tmp_path / "run", ["saliency", "linear_predictivity", "rsa"]
    run = functools.partial(run_affinity, zoo, images, out, command=["test"])
    with pytest.warns(UserWarning, match="rsa cannot be trusted"):
        run(methods=methods)
    record = _record(out)
    assert record["settings"]["methods"] == ["linear_predictivity", "saliency", "rsa"]
    record["settings"]["methods"] = methods
    (out / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="rsa cannot be trusted"):
        run(methods=methods)
    assert len(_record(out)["starts"]) == 2
    with pytest.raises(JaxTransferError, match="with --method linear_predictivity --method saliency --method rsa res"):
        run(methods="cka")


@pytest.mark.filterwarnings("ignore:On 5 images cka")
def test_biased_cka_of_an_earlier_version_keeps_its_meaning(tmp_path, zoo, images):
    out = tmp_path / "run"
    affinity, _ = run_affinity(zoo, images, out, command=[], methods=("cka_biased", "saliency"))
    _as_an_earlier_version_wrote_it(out)
    loaded = load_run(out)
    assert loaded.methods == ("saliency", "cka_biased")
    np.testing.assert_array_equal(loaded["cka_biased"], affinity["cka_biased"])
    np.testing.assert_array_equal(loaded.pseudo_values("cka_biased"), affinity.pseudo_values("cka_biased"))
    about = read(out)
    assert about is not None
    assert about["settings"]["methods"] == ["saliency", "cka_biased"]
    assert about["unusable"] == {"saliency": [], "cka_biased": []}

    with pytest.raises(JaxTransferError, match=r"another configuration .*cka: biased there, unbiased here"):
        run_affinity(zoo, images, out, command=[], methods=("cka", "saliency"))
    zoo.add(network("four", 4))
    resumed, _ = run_affinity(zoo, images, out, command=[], methods=("cka_biased", "saliency"))
    assert resumed.names == ("four", *affinity.names)
    np.testing.assert_array_equal(resumed.only(affinity.names)["cka_biased"], affinity["cka_biased"])


@pytest.mark.filterwarnings("ignore:On 5 images cka")
def test_cka_of_this_version_is_found_again(tmp_path, zoo, images):
    affinity, _ = run_affinity(zoo, images, tmp_path / "run", command=[], methods=("cka",))
    run_affinity(zoo, images, tmp_path / "run", command=[], methods=("cka",))
    assert load_run(tmp_path / "run").methods == ("cka",)
    np.testing.assert_array_equal(load_run(tmp_path / "run")["cka"], affinity["cka"])


def constant(params, images):
    return jax.nn.softmax(tiny(params, images))


@pytest.fixture
def faulty(tmp_path) -> Zoo:
    """Two networks whose sum does not depend on the image, and one whose sum does."""
    zoo = Zoo(tmp_path / "faulty")
    for seed, (name, apply) in enumerate([("one", constant), ("two", tiny), ("three", constant)]):
        zoo.add(Network(name, apply, network(name, seed).params))
    return zoo


@pytest.mark.slow
@pytest.mark.filterwarnings("always:Networks one, three")
def test_faults_are_warned_of_recorded_and_shown(tmp_path, faulty, images):
    out, expected = tmp_path / "run", {"one": ("constant_scalar",), "three": ("constant_scalar",)}
    arguments = ["affinity", str(faulty.path), str(images), "--method", "saliency", "--size", "16"]
    arguments += ["--import", __name__]
    for _ in range(2):  # the second time all points are there
        result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
        assert result.exit_code == 0
        assert result.stderr.count("Warning: Networks one, three: the sum of its units") == 1
        assert "!! Networks one, three: the sum of its units" in result.stdout
        assert load_run(out).faults == expected
        assert _record(out)["faults"] == {name: list(codes) for name, codes in expected.items()}
    ranked = CliRunner().invoke(app, ["rank", str(out), "two"]).stdout
    assert "!! Networks one, three: the sum of its units" in ranked
    page = write_report(out).read_text()
    assert "Maps that mean little" in page
    assert "<li>Networks one, three: the sum of its units" in page

    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "signs"), "--target", "random-signs"])
    assert result.exit_code == 0
    assert "Warning" not in result.stderr
    assert "!!" not in result.stdout
    assert load_run(tmp_path / "signs").faults == {}
    assert _record(tmp_path / "signs")["settings"]["target"] == "random_signs"
    assert "Maps that mean little" not in write_report(tmp_path / "signs").read_text()


def test_further_attribution_methods(tmp_path, zoo, images):
    out = tmp_path / "run"
    arguments = ["affinity", str(zoo.path), str(images), "--out", str(out), "--size", "16", "--import", __name__]
    for method in ("modelgif", "unit_saliency", "integrated_gradients"):
        arguments += ["--method", method]
    arguments += ["--target", "spatial-maximum"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    settings = _record(out)["settings"]
    assert settings["target"] == "spatial_maximum"
    assert settings["methods"] == ["unit_saliency", "integrated_gradients", "modelgif"]
    for method in settings["methods"]:
        assert len(load_run(out).rank("one", method=method)) == 2
    names = {name for name, _ in Gallery(out, _record(out), load_run(out)).drawings()}
    assert names == {"gallery_unit_saliency", "gallery_integrated_gradients"}
    assert "modelgif" in write_report(out).read_text()


def test_runs_of_other_targets_and_from_before_there_was_a_choice(tmp_path, zoo, images):
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=[], methods=["saliency"], target="random_signs")
    with pytest.raises(JaxTransferError, match="target: random_signs there, sum here"):
        run_affinity(zoo, images, out, command=[], methods=["saliency"])

    earlier = tmp_path / "earlier"
    run_affinity(zoo, images, earlier, command=[], methods=["saliency"])
    record = _record(earlier)
    del record["settings"]["target"], record["faults"]
    (earlier / "run.json").write_text(json.dumps(record))
    with pytest.raises(JaxTransferError, match="target: sum there, random_signs here"):
        run_affinity(zoo, images, earlier, command=[], methods=["saliency"], target="random_signs")
    run_affinity(zoo, images, earlier, command=[], methods=["saliency"])


def test_unfinished_run_is_not_ranked(tmp_path, zoo, images, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_affinity(zoo, images, out, command=[], progress=stop, batch_size=5)
    with pytest.raises(JaxTransferError, match="has not finished"):
        load_run(out)
    run_affinity(zoo, images, out, command=[], batch_size=5)
    assert load_run(out).names == zoo.names


def test_old_evaluations_and_reports_do_not_outlive_their_results(tmp_path, zoo, images):
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=["first"], methods=["saliency"])
    oracle = jaxtransfer.Oracle("mine", {"one": {"two": 1, "three": 2}, "two": {"one": 1, "three": 2}})
    evaluate_run(out, oracle)
    write_report(out, oracle=oracle)
    kept = {*out.iterdir()}
    assert {out / "evaluation.csv", out / "evaluation.png", out / "report.html", out / "figures"} <= kept
    run_affinity(zoo, images, out, command=["second"], methods=["saliency"])
    assert {*out.iterdir()} == kept
    zoo.add(network("four", 4))
    run_affinity(zoo, images, out, command=["third"], methods=["saliency"])
    gone = {file.name for file in kept - {*out.iterdir()}}
    assert gone == {"evaluation.csv", "evaluation_by_target.csv", "evaluation.png", "report.html", "figures"}


def dead(params, images):
    return tiny(params, images) * 0


@pytest.mark.filterwarnings("ignore:1 of 4 networks cannot")
def test_a_dead_network_is_named_and_counted(tmp_path, zoo, images):
    zoo.add(Network("dead", dead, network("two", 1).params))
    zoo = Zoo(zoo.path, modules=[__name__])
    out, arguments = tmp_path / "run", ["affinity", zoo.path, images, "--size", 32, "--method", "saliency"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(out), "--import", __name__])
    assert result.exit_code == 0
    assert "!! 1 of 4 networks cannot be compared and is left out: dead." in result.stdout
    assert load_run(out).names == ("one", "three", "two")
    (sentence,) = _record(out)["left_out"].values()
    assert sentence.startswith("Network 'dead' has no usable saliency map")
    page = write_report(out).read_text()
    assert "1 network could not be compared" in page
    assert "&#39;dead&#39; has no usable saliency map" in page


def test_tables_stay_while_a_run_is_started_again(tmp_path, zoo, images):
    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=["first"], methods=["saliency"])
    before, record = _files(out), _record(out)
    zoo.add(network("four", 4))
    with pytest.raises(KeyboardInterrupt):
        run_affinity(zoo, images, out, command=["second"], methods=["saliency"], progress=stop)
    assert load_run(out).names == ("one", "three", "two")
    assert _files(out) == before
    assert [start["command"] for start in _record(out)["starts"]] == [["first"], ["second"]]
    assert _record(out) | {"starts": []} == record | {"starts": []}
    affinity, _ = run_affinity(zoo, images, out, command=["third"], methods=["saliency"])
    assert load_run(out).names == affinity.names == ("four", "one", "three", "two")
    assert {*_record(out)["networks"]} == {*affinity.names}


def test_what_is_no_run_directory(tmp_path, zoo, images):
    (tmp_path / "file").touch()
    with pytest.raises(JaxTransferError, match="is not a directory"):
        run_affinity(zoo, images, tmp_path / "file", command=[])
    with pytest.raises(JaxTransferError, match="is not empty and not a run directory"):
        run_affinity(zoo, images, images, command=[])
    with pytest.raises(JaxTransferError, match="is not a run directory"):
        load_run(images)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    for use in (load_run, lambda out: run_affinity(zoo, images, out, command=[])):
        with pytest.raises(JaxTransferError, match=r"run\.json cannot be used: it is not JSON"):
            use(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text('{"format": 99}')
    with pytest.raises(JaxTransferError, match="has format 99"):
        load_run(tmp_path / "run")


def test_bad_arguments_leave_no_directory(tmp_path, zoo, images):
    empty, single = Zoo(tmp_path / "empty"), Zoo(tmp_path / "single")
    single.add(network("one", 0))
    empty.path.mkdir()
    for arguments, message in [
        ({"zoo": Zoo(tmp_path / "nowhere")}, "There is no zoo"),
        ({"size": 10**9}, "up to 8192 pixels a side, not 1000000000"),
        ({"zoo": empty}, "has no networks"),
        ({"zoo": single}, "has only one network"),
        ({"methods": ["magic"]}, "'magic'"),
        ({"methods": 3}, "methods must be names"),
        ({"target": "magic"}, "There is no target 'magic'"),
        ({"similarity": "magic"}, "'magic'"),
        ({"limit": 0}, "limit"),
        ({"images": tmp_path / "empty"}, "holds no files"),
        ({"strict": True}, r"broken\.png"),
    ]:
        with pytest.raises(JaxTransferError, match=message):
            run_affinity(**{"zoo": zoo, "images": images, "out": tmp_path / "run", "command": []} | arguments)
        assert not (tmp_path / "run").exists()


def test_full_disk_leaves_the_record_whole(tmp_path, zoo, images, monkeypatch):
    out = tmp_path / "run"
    run_affinity(zoo, images, out, command=["first"], methods=["saliency"])
    before = (out / "run.json").read_bytes()

    def write_text(self, text):
        self.write_bytes(text[:100].encode())
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        with pytest.raises(OSError, match="No space left"):
            run_affinity(zoo, images, out, command=["second"], methods=["saliency"])
    assert (out / "run.json").read_bytes() == before
    run_affinity(zoo, images, out, command=["third"], methods=["saliency"])
