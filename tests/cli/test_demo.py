"""`jaxtransfer demo`, with some of its networks and a few images."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jaxtransfer import Affinity, Oracle, Zoo, demo, rooms
from jaxtransfer.cli.app import app
from jaxtransfer.runs.affinity import evaluate, load_run

TASKS = (*demo._SHOWN, "autoencoding", "colorization")


def _images(count: int, seed: int = 0, size: int = 64) -> np.ndarray:
    """Of squares in random colours, which are drawn more quickly than rooms."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return colours.repeat(size // 8, 1).repeat(size // 8, 2)


@pytest.mark.slow
def test_demo_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "TASKS", {name: rooms.TASKS[name] for name in TASKS})
    monkeypatch.setattr(rooms, "probe", _images, raising=False)
    monkeypatch.setattr(demo, "_COUNT", 6)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "evaluate_run", die)
        assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")]).exit_code == 130
    monkeypatch.setattr(rooms, "probe", die)
    reported = []  # reports have tests of their own
    monkeypatch.setattr(demo, "write_report", lambda run, **given: reported.append((run, sorted(given))))
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert Zoo(tmp_path / "demo" / "zoo").names == tuple(sorted(TASKS))
    images = sorted((tmp_path / "demo" / "images").iterdir())
    np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in images], _images(6))
    run = tmp_path / "demo" / "run"
    affinity = load_run(run)
    for target in TASKS:
        source, value, error = affinity.rank(target, method=demo.METHOD)[0]
        (row,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [target]]
        assert row.split()[:5] == [target, source, f"{value:.3f}", "±", f"{error:.3f}"]
    assert "6 networks, each trained on one task of Rooms, looked at 6 rooms" in result.stdout
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


@pytest.mark.parametrize(("sign", "verdict"), [(1, "better than"), (-1, "worse than")])
def test_sentences_follow_the_numbers(sign, verdict):
    """Of affinities that are the measured ones, or the reverse of them."""
    measured, oracle = rooms.transfers(), Oracle.rooms()
    matrix = sign * np.nan_to_num(measured.affinity[:22].T)
    affinity = Affinity.of(tuple(rooms.TASKS), {demo.METHOD: matrix})
    choices = demo._choices(affinity, oracle)
    assert {each.place for each in choices} == {1 if sign > 0 else 21}
    assert all(each.source == each.best for each in choices) == (sign > 0)
    evaluations = {demo.METHOD: evaluate(affinity, oracle, demo.METHOD, 5)}
    said = " ".join(demo.sentences(demo.Found(96, choices, evaluations)))
    assert f"the nearest source {'gains' if sign > 0 else 'loses'}" in said
    assert f"{100 if sign > 0 else 0}% of the five nearest sources are among the five" in said
    assert f"{verdict} a random order's 24%" in said


def test_gains_are_shares_of_what_the_best_source_gains():
    """For a source drawn at random they are 0 on average, whatever the losses."""
    oracle, names = Oracle.rooms(), tuple(rooms.TASKS)
    gains = []
    for shift in range(1, 22):  # every source of every target comes first once
        first = np.roll(np.eye(22), shift, axis=1)
        gains += [each.gain for each in demo._choices(Affinity.of(names, {demo.METHOD: first}), oracle)]
    np.testing.assert_allclose(np.reshape(gains, (21, 22)).mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.reshape(gains, (21, 22)).max(0), 1)
