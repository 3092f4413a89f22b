"""Encoders, probe images and measured transfer that ship with Rooms."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from jaxtransfer import Affinity, JaxTransferError, Oracle, precision_at_k, retrieval_curve, rooms
from jaxtransfer.cli.app import app
from jaxtransfer.evaluation.groups import rooms_groups
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.rooms import benchmark
from support.helpers import affinity_of, complaint, finished_run, quick_jit
from support.report_runs import attribution_run

TASKS = tuple(rooms.TASKS)


def test_drawing_rooms_needs_no_zoo() -> None:
    code = "import sys, jaxtransfer.rooms; sys.exit(any('orbax' in name or 'flax' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


# The zoo


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return rooms.zoo()


def test_there_is_an_encoder_for_every_task(zoo: Zoo) -> None:
    assert set(TASKS) <= set(zoo.names)
    for name in zoo.names:
        record = zoo.manifest(name)["source"]
        assert record["task"] in TASKS
        assert name == record["task"] + (f"-seed{record['seed']}" if record["seed"] else "")


def test_every_encoder_has_learned_its_task(zoo: Zoo) -> None:
    for name in zoo.names:
        record = zoo.manifest(name)["source"]
        assert record["test_loss"] + 3 * record["test_loss_stderr"] < record["prior_loss"], name


def test_encoders_are_read_and_never_written(zoo: Zoo) -> None:
    before = {file: file.stat().st_mtime_ns for file in zoo.path.rglob("*")}
    network = zoo["colorization"]  # of one channel, unlike the others
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {np.dtype(np.float16)}
    assert network.preprocess is not None
    images = network.preprocess(jax.random.uniform(jax.random.key(0), (2, 64, 64, 3)))
    features = quick_jit(network.apply)(network.params, images)
    assert features.shape == (2, 8, 8, 64)
    assert bool(jnp.isfinite(features).all())
    assert float(features.std()) > 0
    with pytest.raises(JaxTransferError, match="cannot be added to the zoo of Rooms"):
        zoo.add(zoo["normal"])
    assert {file: file.stat().st_mtime_ns for file in zoo.path.rglob("*")} == before


# Images


@pytest.mark.slow
def test_probe_images_depend_on_seed_and_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_BATCH", 3)
    some, more = rooms.probe(2, size=16), rooms.probe(5, size=16)
    assert some.dtype == np.uint8
    assert more.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(some, more[:2])
    everything = np.concatenate([more, rooms.probe(3, seed=1, size=16)]).reshape(8, -1)
    assert len(np.unique(everything, axis=0)) == 8
    assert everything.std(1).min() > 5


# Transfers


@pytest.mark.parametrize("protocol", rooms.PROTOCOLS)
def test_affinities_are_of_other_tasks_and_follow_losses(protocol: str) -> None:
    transfers = rooms.transfers(protocol)
    assert transfers.targets == TASKS
    assert transfers.sources == (*TASKS, *(("scratch",) if protocol == "finetuned" else ("random", "scratch")))
    sources = len(transfers.sources)
    assert transfers.loss.shape == transfers.stderr.shape == transfers.affinity.shape == (sources, 22)
    assert transfers.seed_losses.shape == (0 if protocol == "frozen" else 3, sources, 22)
    assert transfers.prior.shape == (22,)
    for values in (transfers.loss, transfers.stderr, transfers.prior, transfers.seed_losses):
        assert (values > 0).all()
        assert np.isfinite(values).all()
    np.testing.assert_array_equal(
        np.isnan(transfers.affinity), np.eye(sources, 22, dtype=bool) | (np.arange(sources) > 21)[:, None]
    )
    np.testing.assert_allclose(np.nansum(transfers.affinity, axis=0), 1, atol=1e-4)
    agreements = []
    for loss, affinity in zip(transfers.loss.T, transfers.affinity.T, strict=True):
        known = ~np.isnan(affinity)
        agreements.append(spearmanr(affinity[known], -loss[known])[0])
    assert np.mean(agreements) > 0.95


@pytest.mark.parametrize("protocol", ["frozen", "larger_readout"])
def test_for_every_target_some_source_is_better_than_random_features(protocol: str) -> None:
    transfers = rooms.transfers(protocol)
    assert (transfers.loss[:22].min(0) < transfers.loss[transfers.sources.index("random")]).all()


@pytest.mark.parametrize("protocol", ["larger_readout", "finetuned"])
def test_losses_are_means_over_seeds_and_their_errors_contain_those_of_seeds(protocol: str) -> None:
    transfers = rooms.transfers(protocol)
    np.testing.assert_allclose(transfers.seed_losses.mean(0), transfers.loss, atol=2e-6)
    of_seeds = transfers.seed_losses.std(0, ddof=1) / np.sqrt(3)
    assert (transfers.stderr > of_seeds - 2e-6).all()


def test_training_from_scratch_on_the_same_examples_gives_the_same_losses() -> None:
    """`frozen` and `finetuned` train from scratch alike, and were measured apart."""
    losses, errors = zip(
        *((table.loss[-1], table.stderr[-1]) for table in map(rooms.transfers, ("frozen", "finetuned"))), strict=True
    )
    assert (np.abs(losses[0] - losses[1]) < np.minimum(*errors)).all()
    assert np.abs(losses[0] / losses[1] - 1).max() < 0.02


@pytest.mark.parametrize("function", [rooms.transfers, Oracle.rooms])
def test_an_unknown_protocol_is_reported_with_those_that_exist(function) -> None:
    sentence = "^There is no protocol 'fine_tuned' in Rooms; there are: finetuned, frozen, larger_readout.$"
    with pytest.raises(JaxTransferError, match=sentence):
        function("fine_tuned")


@pytest.mark.parametrize("protocol", rooms.PROTOCOLS)
def test_the_oracle_is_the_table(protocol: str) -> None:
    oracle = Oracle.rooms(protocol)
    assert {len(scores) for scores in oracle.scores.values()} == {21}
    names = (*TASKS, "normal-seed1", "random")
    matrix = np.zeros((24, 24))
    matrix[:22, :22] = rooms.transfers(protocol).affinity[:22].T
    truth = Affinity.of(names, {"truth": matrix, "reverse": -matrix})
    curve = retrieval_curve(truth, oracle, method="truth")
    assert curve.targets == TASKS
    assert curve.precision[:5].tolist() == [1] * 5
    np.testing.assert_allclose(curve.random_precision, 5 / 21)
    assert precision_at_k(truth, oracle, 5, method="reverse") == 0


@pytest.mark.slow
def test_commands_know_rooms(tmp_path) -> None:
    names = (*TASKS, "normal-seed1")
    values = np.random.default_rng(0).normal(size=(23, 23))
    finished_run(tmp_path / "run", affinity_of(values + values.T, names))
    for oracle in ("rooms", "rooms-larger-readout", "rooms-finetuned"):
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--oracle", oracle])
        assert result.exit_code == 0, result.output
        assert f"Against {oracle} " in result.stdout
        assert "22 of the oracle's 22 targets were scored" in result.stdout
    run = attribution_run(tmp_path / "other", TASKS[:3], maps=False)
    arguments = ["report", str(run), "--oracle", "rooms", "--groups", "rooms", "--relevant", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Against rooms" in (run / "report.html").read_text()
    seeds = attribution_run(tmp_path / "seeds", ["normal", "normal-seed1", "normal-seed2"], maps=False)
    assert "oracle rooms scores no target here" in complaint(
        CliRunner().invoke(app, ["evaluate", str(seeds), "--oracle", "rooms"])
    )


def test_groups_are_those_of_the_tasks() -> None:
    groups = rooms_groups()
    assert set(groups) == set(TASKS)
    assert {groups[name] for name in ("jigsaw", "normal", "vanishing_point", "class_scene")} == {
        "2D", "3D", "geometric", "semantic",
    }  # fmt: skip
