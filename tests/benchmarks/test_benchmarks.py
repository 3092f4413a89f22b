"""Benchmarks at their smallest sizes: they run and write their records, and their fits recover known values."""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from benchmarks import accelerator, harness, long_run, scaling, scores
from benchmarks import all as all_benchmarks
from benchmarks.networks import convolutional, convolutions, taskonomy_params
from jaxtransfer import taskonomy

SHAPE = {"images": (4, 16, 16, 3)}


def read(folder: Path) -> list[dict[str, Any]]:
    """Reads the records of a folder, and checks that each one says where it comes from."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    for record in records:
        assert record["machine"].keys() == {"device", "processor", "cores", "platform"}
        assert record["versions"]["jax"] == jax.__version__
        assert record["precision"] in accelerator.MODES
        assert all_integers(record["shapes"])
        assert record["command"][:2] == ["python", "-m"]
    return records


def all_integers(shapes: dict[str, list[int]]) -> bool:
    return bool(shapes) and {type(n) for shape in shapes.values() for n in shape} == {int}


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("fixed", [0.0, 0.3])
def test_growth_finds_exponents_in_rounds_of_different_speed(exponent: float, fixed: float) -> None:
    rng = np.random.default_rng(0)
    sizes = [10, 20, 40, 80, 160]
    costs = fixed + 0.01 * np.array(sizes) ** exponent
    seconds = costs[:, None] * np.exp(0.01 * rng.normal(size=(5, 9)) + rng.normal(size=9))
    fit = scaling.growth(sizes, seconds)
    assert abs(fit.exponent - exponent) < 5 * fit.stderr
    assert fit.stderr < 0.4


def test_growth_without_noise_is_exact() -> None:
    sizes = [1, 2, 4, 8]
    costs = 0.3 + 0.01 * np.array(sizes, float) ** 1.5
    fit = scaling.growth(sizes, costs[:, None])
    np.testing.assert_allclose([fit.exponent, fit.factor, fit.fixed], [1.5, 0.01, 0.3], rtol=1e-3)
    falling = scaling.growth(sizes, 1 / np.array(sizes, float)[:, None], with_fixed=False)
    np.testing.assert_allclose([falling.exponent, falling.fixed], [-1, 0], atol=1e-3)


@pytest.mark.parametrize("planted", [-0.02, 0.0, 0.05])
def test_slope_finds_what_was_planted_in_groups_of_different_height(planted: float) -> None:
    rng = np.random.default_rng(1)
    values = 1 + planted * np.arange(300) + 0.3 * rng.normal(size=300)
    fit = long_run.slope([values[:90], 5 + values[90:200], values[200:] - 7])
    assert abs(fit.value - planted) < 4 * fit.stderr
    assert fit.stderr < 0.005
    assert fit.is_growth == (planted > 0)


def test_a_leak_is_seen() -> None:
    kept = []
    before = long_run.allocated()
    for _ in range(8):
        kept.append(np.ones(2**20, np.uint8))
    assert long_run.allocated() - before >= 7 * 2**20


@pytest.mark.slow
def test_long_run_compiles_once_for_each_architecture() -> None:
    record = long_run.run(18, images=2, size=8, architectures=((3, 5), (5, 3), (3,)))
    assert (record["compilations"], record["compilations_elsewhere"]) == (3, [])
    assert len(record["processor_seconds"]) == len(record["memory"]) == 18
    weights = [sum(leaf.nbytes for leaf in convolutional("n", widths, 0).params) for widths in ((3, 5), (5, 3), (3,))]
    assert record["bytes_of_weights"] == int(np.mean(weights))


def test_scaling_of_affinities_and_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaling.affinities(2, 3)
    calls = []
    monkeypatch.setattr(scaling, "affinities", lambda *arguments: calls.append(sum(range(4000))))
    monkeypatch.setattr(scaling, "restarts", lambda *arguments: calls.append(sum(range(4000))))
    scaling.main(["--rounds", "2", "--out", str(tmp_path)])
    (record,) = read(tmp_path)
    assert record["series"].keys() == {"images", "networks", "restarts", "devices, affinities", "devices, restarts"}
    assert len(calls) == 3 * sum(len(series["sizes"]) for series in record["series"].values())
    assert (tmp_path / f"scaling_{harness.device()}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["float32", "bfloat16", "all_bfloat16"])
def test_accelerator(mode: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    networks = [convolutional(f"n{i}", (4, 6), i) for i in range(3)]
    options = argparse.Namespace(batch_sizes=[2, 3], steps=accelerator.STEPS, rounds=1, library_images=2, out=tmp_path)
    params = [network.params for network in networks]
    module = twin if importlib.util.find_spec("torch") else None
    record = accelerator.measure(mode, convolutions, module, params, images, options)
    assert read(tmp_path)[0]["job"] == record["job"]
    assert ("library" in record) == (mode != "all_bfloat16")
    if "library" in record:  # the loop beside it computes no more images than there are
        assert "the loop takes batches of 2" in record["rows"][-1]["what"]
    assert [len(result["seconds_per_image"]) for result in record["passes"]] == [1, 1]
    if module is not None and mode != "bfloat16":
        least = 0.99999 if mode == "float32" else 0.99
        assert min(record["peer"]["smallest_cosine_to_ours"]["PyTorch"].values()) > least
    expected = jt.affinity_matrix(networks, images, methods=jt.METHODS)
    for method, matrix in record["job"]["affinity"].items():
        np.testing.assert_allclose(matrix, expected[method], atol=1e-5 if mode == "float32" else 0.05)


@pytest.mark.slow
def test_the_peer_is_the_encoder(whole_precision: None) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.torch_peer import Encoder

    params = taskonomy_params(0)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    theirs = Encoder(params)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy().transpose(0, 2, 3, 1)
    ours = jax.jit(taskonomy.encode)(params, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def twin(params: Any) -> Any:
    """Builds the network of `convolutions` in PyTorch."""
    from torch import from_numpy, nn

    layers = []
    for kernel in params:
        weights = np.array(kernel, np.float32).transpose(3, 2, 0, 1).copy()
        layers += [
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(weights.shape[1], weights.shape[0], 3, 2, bias=False),
            nn.ReLU(),
        ]
        layers[-2].weight.data = from_numpy(weights)
    return nn.Sequential(*layers).requires_grad_(False)


def test_attribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("captum")
    from benchmarks import attribution

    monkeypatch.setattr(attribution, "taskonomy_params", lambda seed: convolutional("n", (4, 6), seed).params)
    monkeypatch.setattr(attribution.torch_peer, "Encoder", twin)
    monkeypatch.setattr(taskonomy, "encode", convolutions)
    attribution.main([*"--size 12 --batch-size 2 --networks 2 --rounds 1 --out".split(), str(tmp_path)])
    single, several = sorted(read(tmp_path), key=lambda record: record["reference"], reverse=True)
    assert single["seconds_per_unit"].keys() == {"ours", "(a) PyTorch, batched", "(b) Captum", "(c) one by one"}
    assert several["seconds_per_unit"].keys() == {"loop", "lax.map", "vmap"}
    assert capsys.readouterr().out.count("over the images 1.0000") == 3


@pytest.mark.slow
def test_all_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = all_benchmarks.Benchmark("long_run", "--networks 18 --images 1 --size 8", "")
    failing = small._replace(name="none")
    monkeypatch.setattr(all_benchmarks, "BENCHMARKS", (small, failing))
    monkeypatch.chdir(Path(all_benchmarks.__file__).parents[1])
    with pytest.raises(SystemExit):
        all_benchmarks.main(["--out", str(tmp_path)])
    (file,) = tmp_path.glob("*.json")
    assert "--networks 18" in " ".join(
        json.loads(file.read_text())["long_run"][f"long_run_{harness.device()}"]["command"]
    )
    assert "failed" in capsys.readouterr().out


def test_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores.main([*"--examples 60 --units 16 --rounds 1 --out".split(), str(tmp_path)])
    record = json.loads((tmp_path / f"scores_{harness.device()}.json").read_text())
    assert record["seconds"].keys() == record["values"].keys() == {"logme", "hscore", "hscore_shrunk"}
    assert "all measures with errors" in capsys.readouterr().out


def test_only_a_folder_of_a_peer_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_peer"
    (package / "part").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError")
    (package / "part" / "__init__.py").write_text("value = 3")
    monkeypatch.syspath_prepend(tmp_path)
    module = scores.peer("a_peer", "part")
    assert module is not None
    assert module.value == 3
    assert scores.peer("no_such_peer", "part") is None
