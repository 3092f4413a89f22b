"""`jaxtransfer demo`, with some of its networks and a few images."""

import shutil
import textwrap

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jaxtransfer import METHODS, Affinity, Oracle, Zoo, certain_ranking, demo, rooms
from jaxtransfer.cli.app import app
from jaxtransfer.cli.tables import print_demo
from jaxtransfer.evaluation.references import SECOND, evaluate_all
from jaxtransfer.evaluation.rooms_scores import best_first, percent
from jaxtransfer.report.methods import method_data, method_view
from jaxtransfer.runs.load import load_run
from jaxtransfer.runs.record import locked
from support.helpers import complaint

TASKS = (*demo._SHOWN, "autoencoding", "colorization")


COUNT = 6


@pytest.fixture
def few_images(tmp_path, monkeypatch):
    """The first of the demo's images."""
    folder = tmp_path / "few"
    folder.mkdir()
    for file in sorted(demo._IMAGES.iterdir())[:COUNT]:
        shutil.copy(file, folder)
    monkeypatch.setattr(demo, "_IMAGES", folder)
    return folder


@pytest.mark.slow
def test_the_images_are_those_of_the_probe():
    """But for pixels that another compiler rounds to the other side."""
    files = sorted(demo._IMAGES.iterdir())
    assert [file.name for file in files] == [f"room-{number:03}.png" for number in range(64)]
    shipped = np.stack([np.asarray(Image.open(file)) for file in files])
    differences = np.abs(shipped.astype(int) - rooms.probe(64))
    assert differences.max() <= 1
    assert (differences > 0).mean() < 1e-4


@pytest.mark.slow
def test_demo_goes_on_where_it_stopped(tmp_path, few_images, monkeypatch):
    monkeypatch.setattr(rooms, "TASKS", {name: rooms.TASKS[name] for name in TASKS})

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate_run", die)
        assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")]).exit_code == 130
    shutil.rmtree(few_images)  # they are not copied again
    reported = []  # reports have tests of their own
    monkeypatch.setattr(demo, "write_report", lambda run, **given: reported.append((run, sorted(given))))
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert Zoo(tmp_path / "demo" / "zoo").names == tuple(sorted(TASKS))
    assert [file.name for file in sorted((tmp_path / "demo" / "images").iterdir())] == [
        f"room-{number:03}.png" for number in range(COUNT)
    ]
    run = tmp_path / "demo" / "run"
    affinity = load_run(run)
    oracle = Oracle.rooms()
    for target in TASKS:
        ranking = certain_ranking(affinity, target, method="linear_predictivity")
        scores = {name: oracle.scores[target][name] for name in oracle.scores[target] if name in TASKS}
        measured = sorted(scores, key=scores.__getitem__, reverse=True)
        (row,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [target]]
        assert ranking[0].above_next is not None
        sure = "> 99 %" if ranking[0].above_next > 0.99 else f"{100 * ranking[0].above_next:.0f} %"
        place = measured.index(ranking[0].name) + 1
        assert row.split() == [target, ranking[0].name, *sure.split(), str(place), measured[0]]
    assert "Which network to start from, by linear_predictivity on 6 images" in result.stdout
    assert '"place": in measured transfer, of 5.' in result.stdout
    assert reported == [(run, ["groups", "oracle", "progress"])]
    assert (run / "evaluation.csv").is_file()
    with Image.open(tmp_path / "demo" / "overview.png") as figure:
        assert figure.size[0] > 1000
    # All but colorization, which has other shapes, go through one program.
    assert len({zoo_params(Zoo(tmp_path / "demo" / "zoo"), name) for name in TASKS}) == 2


def zoo_params(zoo: Zoo, name: str) -> str:
    """What a program depends on."""
    manifest = zoo.manifest(name)
    return str([manifest["apply"], manifest["params"]])


def test_a_full_disk_ends_in_one_sentence(tmp_path, monkeypatch):
    def full(source, folder, **_):
        raise shutil.Error(
            [(source, f"{folder}/{i}", f"[Errno 28] No space left on device: '{folder}'") for i in range(9)]
        )

    monkeypatch.setattr(demo.shutil, "copytree", full)
    line = complaint(CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")]))
    assert line.endswith("/0 cannot be written: [Errno 28] No space left on device.")


def test_two_demos_in_one_directory(tmp_path):
    with locked(tmp_path / "demo"):
        result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert "Another run is at work in" in complaint(result)


@pytest.mark.parametrize("sign", [1, -1])
def test_sentences_follow_the_numbers(sign):
    """Of affinities that are the measured ones, or the reverse of them."""
    measured, oracle = rooms.transfers(), Oracle.rooms()
    matrix = sign * np.nan_to_num(measured.affinity[:22].T)
    affinity = Affinity.of(tuple(rooms.TASKS), {demo.METHOD: matrix})
    choices = demo._choices(affinity, oracle)
    assert {choice.place for choice in choices} == {1 if sign > 0 else 21}
    assert all(choice.source == choice.best for choice in choices) == (sign > 0)
    evaluations = evaluate_all(affinity, oracle, affinity.methods, 5)
    printed = " ".join(demo.sentences(demo.DemoResult(96, choices, evaluations)))
    assert f"it {'gains' if sign > 0 else 'loses'}" in printed
    assert f"the best of 21 sources for {22 if sign > 0 else 0} of 22 targets" in printed
    assert f"one of the best three for {22 if sign > 0 else 0};" in printed
    assert f"{demo.METHOD} {100 if sign > 0 else 0} % (95 % band" in printed
    ceiling = evaluations.references[SECOND].curve.precision[4]
    assert f"random order 24 %, a second measurement {100 * ceiling:.0f} %" in printed


def test_the_report_opens_on_the_same_choices():
    """The report shows the method of `best_first` first, and of every target the first source."""
    rng = np.random.default_rng(0)
    matrices = {method: rng.random((22, 22)) for method in (*METHODS, demo.METHOD)}
    affinity = Affinity.of(tuple(rooms.TASKS), matrices)
    first = best_first(affinity.methods)[0]
    shown = method_data(affinity, method_view(affinity, first))
    named = [affinity.sources[rows[0][0]] for rows in shown["ranked"]]
    assert first == demo.METHOD
    assert named == [choice.source for choice in demo._choices(affinity, Oracle.rooms())]


def test_it_fits_a_terminal(capsys, monkeypatch):
    """Of 80 columns and about 30 lines."""
    monkeypatch.setenv("COLUMNS", "80")
    measured, oracle = rooms.transfers(), Oracle.rooms()
    matrix = np.nan_to_num(measured.affinity[:22].T)
    affinity = Affinity.of(tuple(rooms.TASKS), dict.fromkeys((demo.METHOD, *METHODS), matrix))
    evaluations = evaluate_all(affinity, oracle, affinity.methods, 5)
    print_demo(demo.DemoResult(64, demo._choices(affinity, oracle), evaluations))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    table = lines[: 3 + 22]
    assert max(map(len, table)) <= 80
    assert sum(max(1, len(textwrap.wrap(line, 80))) for line in lines) <= 31
    assert f"the paper's maps {percent(evaluations.by_method['saliency'].shares('precision', 5)[0])}" in lines[-1]


def test_gains_are_shares_of_what_the_best_source_gains():
    """For a source drawn at random they are 0 on average, whatever the losses."""
    oracle, names = Oracle.rooms(), tuple(rooms.TASKS)
    gains = []
    for shift in range(1, 22):  # every source of every target comes first once
        first = np.roll(np.eye(22), shift, axis=1)
        gains += [choice.gain for choice in demo._choices(Affinity.of(names, {demo.METHOD: first}), oracle)]
    np.testing.assert_allclose(np.reshape(gains, (21, 22)).mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.reshape(gains, (21, 22)).max(0), 1)
