"""The trial on real data, `benchmarks/labelled.py`, on small images."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import jaxtransfer as jt
from benchmarks import agreement

labelled = pytest.importorskip("benchmarks.labelled", reason="needs jaxtransfer[bench]", exc_type=ImportError)


def _photos(folder: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (8, 8, 3)) + 30 * (i % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return folder


def _oracle(accuracies: np.ndarray, names: list[str]) -> jt.Oracle:
    return jt.Oracle(
        "accuracy", {f"t{i}": dict(zip(names, row, strict=True)) for i, row in enumerate(accuracies.tolist())}
    )


def test_agreement_is_of_the_orders():
    rng, names = np.random.default_rng(0), list("abcdefg")
    accuracies, scores = rng.random((3, 7)), rng.normal(size=(3, 7)).astype(np.float32)
    scores[1, 2] = np.nan
    table = jt.Affinity.of(names, {"m": scores}, targets=["t0", "t1", "t2"])
    result = agreement.agreement(table, _oracle(accuracies, names), "m")
    spearman, regret = [], []
    for row, truth in zip(scores, accuracies, strict=True):
        known = np.isfinite(row)
        spearman.append(stats.spearmanr(row[known], truth[known])[0])
        regret.append(truth[known].max() - truth[np.nanargmax(row)])
    assert [*result["spearman"].values()] == pytest.approx(spearman)
    assert (result["mean"], result["stderr"]) == pytest.approx((np.mean(spearman), stats.sem(spearman)))
    assert [*result["regret_by_task"].values()] == pytest.approx(regret)
    assert result["precision_at_1"] == np.mean(np.array(regret) == 0)
    assert result["networks"] == 7


def test_equal_scores_are_in_no_order():
    names = list("abcd")
    oracle = _oracle(np.array([[0.1, 0.9, 0.4, 0.2], [0.5, 0.7, 0.3, 0.1]]), names)
    table = jt.Affinity.of(names, {"m": np.array([[1.0, 1, 1, 1], [2, 2, 1, 0]])}, targets=["t0", "t1"])
    result = agreement.agreement(table, oracle, "m")
    assert result["spearman"]["t0"] == 0
    assert result["regret_by_task"] == pytest.approx({"t0": 0.5, "t1": 0.1})
    assert result["precision_at_1"] == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_static_scores_do_not_look_at_the_task():
    accuracies = np.random.default_rng(0).random((4, 5))
    for task, scores in enumerate(agreement.static_scores(accuracies)):
        np.testing.assert_allclose(scores, np.delete(accuracies, task, 0).mean(0))


def test_data_are_read_and_divided(tmp_path):
    crops = [f"{kind}/{film}_{crop}.png" for kind in ("red", "white") for film in range(15) for crop in range(2)]
    folder = _photos(tmp_path / "cells", crops)
    photos = _photos(tmp_path / "photos", [f"{kind}_{i}.png" for kind in ("cat", "dog") for i in range(10)])
    (tmp_path / "work").mkdir()
    data = labelled.read_data([folder], photos, ["cells"], tmp_path / "work", 8, 60)
    cells, animals, digits = data
    assert [task.name for task in data] == ["cells", "photos", "digits"]
    assert {task.images.shape[-1] for task in data} == {3}
    assert {*animals.labels.tolist()} == {"cat", "dog"}
    assert len({*digits.labels.tolist()}) == 10
    for task, share in ((cells, 0.3), (animals, 0.5), (digits, 0.3)):
        parts = labelled.divide(task, round(0.3 * len(task.images)) if task is not animals else 19)
        names = [{*part.image_names} for part in parts]
        assert names[0] | names[1] == {*task.image_names}
        assert not names[0] & names[1]
        assert abs(len(parts[0].images) / len(task.images) - share) < 0.11
        if task is cells:
            films = [{name.partition("/")[2].partition("_")[0] for name in part} for part in names]
            assert not films[0] & films[1]


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_the_trial_runs_from_data_to_results(tmp_path, capsys):
    folder = _photos(tmp_path / "shades", [f"{kind}/{i}.png" for i in range(20) for kind in ("black", "grey", "white")])
    arguments = [str(folder), "--networks", "normal", "jigsaw", "--limit", "60", "--examples", "30", "--size", "16"]
    labelled.main([*arguments, "--steps", "4", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    assert "logme" in capsys.readouterr().out
    with (tmp_path / "out" / "labelled.csv").open() as stream:
        rows = [*csv.DictReader(stream)]
    networks = ["jigsaw", "normal", "random"]
    assert [(row["task"], row["network"]) for row in rows] == [(t, n) for t in ("shades", "digits") for n in networks]
    assert all(math.isfinite(float(row["ridge"])) and float(row["ridge_stderr"]) > 0 for row in rows)
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    record = json.loads((tmp_path / "out" / "labelled.json").read_text())
    assert record["agreement"]["ridge"]["networks"] == 3
