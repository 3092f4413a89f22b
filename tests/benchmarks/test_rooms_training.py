"""Training of the encoders of Rooms and measurement of their transfer, on examples that need no rendering."""

import dataclasses
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.stats import norm

from benchmarks.rooms import learning, settings, training, truth
from benchmarks.rooms.__main__ import SCRATCH, _trained
from benchmarks.rooms.examples import Examples, unpacked
from benchmarks.rooms.training import Start, Trainer, untrained
from benchmarks.rooms.transfer import Target, represent
from jaxtransfer import rooms
from jaxtransfer.networks.network import Network
from jaxtransfer.networks.zoo import Zoo
from jaxtransfer.rooms.networks import encode, preprocess
from jaxtransfer.training.fit import mean_loss

SETTINGS = settings.read()


@pytest.fixture(scope="module", autouse=True)
def promotion() -> Iterator[None]:
    """Optax raises floats to integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Drawn(Examples):
    """Examples in memory: images of a single colour, and labels that follow from it."""

    def __init__(self, count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        colours = rng.integers(0, 256, (count, 1, 1, 3), np.uint8)
        bright = colours[:, 0, 0].astype(np.float32) / 255
        self._arrays = {
            "image": np.broadcast_to(colours, (count, 64, 64, 3)).copy(),
            "class_scene": bright.argmax(1).astype(np.int32),
            "class_object": np.where(bright[:, 0] > 0.5, 1, -1).astype(np.int32),
            "room_layout": np.concatenate([bright, 3 * bright + 1], 1),
            "depth_zbuffer": np.broadcast_to(bright[:, :1, None, None], (count, 64, 64, 1)).astype(np.float16),
            "segment_unsup2d": rng.integers(-1, 2, (count, 64, 64, 6)).astype(np.int8),
        }
        self._first, self._count = 0, count


# Losses and predictions


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoding", "depth_zbuffer", "room_layout", "class_scene", "segment_unsup2d"])
def test_no_constant_answer_is_better_than_the_prior(name: str) -> None:
    task, examples = rooms.TASKS[name], Drawn(40)
    prior = learning.prior(task, examples, 1)
    labels = unpacked({task.label: jnp.asarray(examples[task.label])})[task.label]

    def cost(answers: Array) -> Array:
        repeated = jnp.broadcast_to(answers, (len(labels), *answers.shape))
        return mean_loss(*learning.losses(task, prior.units, repeated, labels))

    answers = jnp.asarray(prior.predictions)
    slope = jax.grad(cost)(answers)
    # At the minimum but for the one example that is added to each class and answer.
    assert float(jnp.abs(slope).sum()) < (1e-3 if task.loss == "squared" else 0.15)
    other = answers + 0.5 * jax.random.normal(jax.random.key(0), answers.shape)
    assert float(cost(answers)) < float(cost(other))
    np.testing.assert_allclose(learning.prior_loss(task, prior, examples, 1).value, float(cost(answers)), rtol=1e-5)


def test_a_squared_loss_is_in_variances() -> None:
    """The centre costs 1 for numbers that do not differ between places."""
    task, examples = rooms.TASKS["room_layout"], Drawn(200)
    prior = learning.prior(task, examples, 1)
    np.testing.assert_allclose(learning.prior_loss(task, prior, examples, 1).value, 1, rtol=1e-5)


def test_examples_without_an_answer_do_not_count() -> None:
    task, examples = rooms.TASKS["class_object"], Drawn(40)
    labels = jnp.asarray(examples[task.label])
    answers = jax.random.normal(jax.random.key(0), (40, task.outputs))
    per_example, counts = learning.losses(task, learning.prior(task, examples, 1).units, answers, labels)
    np.testing.assert_array_equal(counts, labels >= 0)
    expected = -jax.nn.log_softmax(answers)[:, 1][labels >= 0].mean()
    np.testing.assert_allclose(mean_loss(per_example, counts), expected, rtol=1e-5)


# Training

QUICK = dataclasses.replace(SETTINGS.training, steps=12, batch=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[int]]:
    """The result of uninterrupted training, and the steps that it reported."""
    steps: list[int] = []
    examples = Drawn(64)
    task = rooms.TASKS["class_scene"]
    trainer = Trainer(task, QUICK, learning.prior(task, examples, 1))
    return trainer.run([Start(3)], examples, Drawn(32, seed=1), steps.append), steps


@pytest.mark.slow
def test_training_learns(trained) -> None:
    _, steps = trained
    assert steps == list(range(1, 13))
    task, examples = rooms.TASKS["class_scene"], Drawn(64)
    prior = learning.prior_loss(task, learning.prior(task, examples, 1), Drawn(32, seed=1), 1)
    again = Trainer(task, dataclasses.replace(QUICK, steps=40), learning.prior(task, examples, 1))
    assert again.run([Start(3)], examples, Drawn(32, seed=1), lambda _: None).losses.mean() < 0.8 * prior.value


@pytest.mark.slow
def test_normalisation_forgets_at_its_momentum() -> None:
    """Without any, a network is tested as it was just trained; the first step does not move the weights yet."""
    task, examples = rooms.TASKS["room_layout"], Drawn(8)
    settings = dataclasses.replace(QUICK, steps=1, momentum=0.0)
    trainer = Trainer(task, settings, learning.prior(task, examples, 1))
    result = trainer.run([Start(0)], examples, examples, lambda _: None)
    per_example, _ = jax.jit(lambda batch: trainer._losses(trainer._model(0), batch))(examples.of(task).all())
    np.testing.assert_allclose(result.losses[0], per_example, rtol=1e-3)


@pytest.mark.slow
def test_training_that_was_killed_goes_on_to_the_same_bits(trained, tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        import jax
        jax.config.update("jax_num_cpu_devices", 8)  # as here, so that products are split the same way
        from benchmarks.rooms import learning
        from benchmarks.rooms.training import Trainer
        from test_rooms_training import QUICK, Drawn, Start, rooms

        def kill_at_step_8(step):
            if step == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        task, examples = rooms.TASKS["class_scene"], Drawn(64)
        trainer = Trainer(task, QUICK, learning.prior(task, examples, 1))
        folder = Path({str(tmp_path)!r})
        trainer.run([Start(3)], examples, Drawn(32, seed=1), kill_at_step_8, checkpoints=folder, every=5)
    """
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    code = f"import sys; sys.path[:0] = {folders}\n{textwrap.dedent(script)}"
    died = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr
    task, examples, steps = rooms.TASKS["class_scene"], Drawn(64), []
    trainer = Trainer(task, QUICK, learning.prior(task, examples, 1))
    result = trainer.run([Start(3)], examples, Drawn(32, seed=1), steps.append, checkpoints=tmp_path, every=5)
    assert steps == list(range(6, 13))
    for a, b in zip(jax.tree.leaves(result.encoders[0]), jax.tree.leaves(trained[0].encoders[0]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_encoder_of_a_zoo_is_the_one_that_was_trained(trained, tmp_path: Path) -> None:
    """Half precision moves representations by the rounding of weights, and running averages replace the batch's."""
    images = jax.random.uniform(jax.random.key(0), (3, 64, 64, 3), minval=-1)
    exact = encode(trained[0].encoders[0], images)
    assert exact.shape == (3, 8, 8, 64)
    assert float(exact.min()) == 0
    zoo = Zoo(tmp_path)
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), trained[0].encoders[0])
    zoo.add(Network("class_scene", encode, half, preprocess("class_scene")))
    stored = zoo["class_scene"]
    np.testing.assert_allclose(stored.apply(stored.params, images), exact, atol=0.02 * float(exact.max()))
    weights = sum(leaf.size for leaf in jax.tree.leaves(half))
    assert 200_000 < weights < 300_000


@pytest.mark.slow
def test_trainings_at_once_are_those_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and in a loop, as on GPUs, and one by one and step by step, as on CPUs."""
    task, examples, held_out = rooms.TASKS["room_layout"], Drawn(48), Drawn(8, seed=1)
    settings = dataclasses.replace(SETTINGS.protocols["finetuned"], steps=3, batch=4)
    trainer = Trainer(task, settings, learning.prior(task, examples, settings.every), "normal")
    starts = [Start(0), Start(1, first=16), Start(1, first=32, encoder=rooms.zoo()["normal"].params)]
    single = [trainer.run([start], examples, held_out, lambda _: None, count=16) for start in starts]
    monkeypatch.setattr(training, "is_cpu", lambda _: False)
    steps: list[int] = []
    at_once = trainer.run(starts, examples, held_out, steps.append, count=16)
    assert steps == [3]
    losses = np.concatenate([result.losses for result in single])
    np.testing.assert_allclose(at_once.losses, losses, rtol=2e-3)
    assert np.abs(np.diff(losses, axis=0)).max(1).min() > 0.05
    for encoder, result in zip(at_once.encoders, single, strict=True):
        for a, b in zip(jax.tree.leaves(encoder), jax.tree.leaves(result.encoders[0]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_frozen_encoder() -> None:
    """Without moving, weights predict as the source's encoder and an untrained readout do; one source sees grey."""
    task, examples, held_out = rooms.TASKS["class_scene"], Drawn(16), Drawn(8, seed=1)
    protocol = dataclasses.replace(
        SETTINGS.protocols["finetuned"], steps=1, batch=4, seeds=2, examples=8, learning_rate=0.0, momentum=1.0
    )
    prior = learning.prior(task, examples, protocol.every)
    sources = {name: rooms.zoo()[name] for name in ("normal", "colorization")}
    trained = dict(_trained(task, prior, {**sources, SCRATCH: None}, examples, held_out, protocol))
    assert set(trained) == {"normal", "colorization", SCRATCH}
    batch = unpacked(jax.tree.map(jnp.asarray, held_out.of(task, protocol.every).all()))
    for name, network in sources.items():
        features = network.apply(network.params, preprocess(name)(batch["image"]))
        for seed in range(2):
            readout = Trainer(task, protocol, prior, name)._model(seed).readout
            expected, _ = learning.losses(
                task, prior.units, readout(features) + prior.predictions[None], batch["label"]
            )
            np.testing.assert_allclose(trained[name].losses[seed], expected, rtol=2e-3)
    losses = np.stack([measured.losses for measured in trained.values()])
    assert np.abs(np.diff(losses, axis=0)).max(2).min() > 0.05


# Transfer


def test_every_protocol_of_the_package_has_its_settings() -> None:
    assert tuple(SETTINGS.protocols) == rooms.PROTOCOLS


@pytest.mark.slow
def test_a_readout_finds_what_the_representation_has_and_nothing_else() -> None:
    """Targets that follow from the image's colour, from an encoder that passes colours on and from a blind one."""
    settings = dataclasses.replace(SETTINGS.protocols["frozen"], steps=60, batch=16)
    task = rooms.TASKS["room_layout"]
    few, many = Drawn(3 * 32), Drawn(64, seed=1)
    target = Target(task, settings, few, many)
    sighted = Network("sighted", _colours, {"scale": jnp.ones(())})
    blind = Network("blind", _colours, {"scale": jnp.zeros(())})
    measured = {
        network.name: target.measure(*(represent(network, task, examples) for examples in (few, many)))
        for network in (sighted, blind)
    }
    assert measured["sighted"].losses.shape == (3, 64)
    assert measured["sighted"].losses.mean() < 0.3
    assert 0.8 < measured["blind"].losses.mean() < 1.5
    assert len({float(seed) for seed in measured["sighted"].losses.mean(1)}) == 3


def _colours(params: Any, images: Array) -> Array:
    small = images.reshape(len(images), 8, 8, 8, 8, 3).mean((2, 4))
    return params["scale"] * jnp.tile(small, (1, 1, 1, 22))[..., :64] + 1e-3


@pytest.mark.slow
def test_an_untrained_encoder_sees_images_of_usual_size() -> None:
    examples = Drawn(64)
    network = untrained("random", examples)
    result = represent(network, rooms.TASKS["class_scene"], examples)
    assert result.shape == (64, 8, 8, 64)
    assert 0.1 < result.astype(np.float32).std() < 10


# The table


def test_affinities_keep_the_order_and_only_the_order() -> None:
    rng = np.random.default_rng(0)
    losses = rng.gamma(2, size=(5, 3, 400)) + 0.2 * np.arange(5)[:, None, None]
    affinity = truth.ordinal(truth.win_rates(losses))
    np.testing.assert_allclose(affinity.sum(), 1)
    assert (np.diff(affinity) < 0).all()
    np.testing.assert_allclose(truth.ordinal(truth.win_rates(np.exp(losses))), affinity, rtol=1e-6)


def test_affinities_are_the_odds_that_explain_the_wins() -> None:
    """Where win rates follow from strengths as s_i / (s_i + s_j), they are the strengths (Saaty; Bradley and Terry)."""
    strengths = np.array([0.4, 0.3, 0.2, 0.1])
    rates = strengths[:, None] / (strengths[:, None] + strengths)
    np.testing.assert_allclose(truth.ordinal(rates), strengths, rtol=1e-6)


def test_win_rates_of_ties_and_of_a_clear_winner() -> None:
    losses = np.array([[[0.0, 0.0]], [[1.0, 1.0]], [[1.0, 1.0]]])
    np.testing.assert_array_equal(truth.win_rates(losses), [[0.5, 1, 1], [0, 0.5, 0.5], [0, 0.5, 0.5]])


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.3, 0.1), (0.02, 1.0), (0.1, 0.5)])
def test_standard_errors_are_those_of_repetitions(of_seeds: float, of_images: float) -> None:
    rng = np.random.default_rng(0)
    pairs, seeds, images = 400, 3, 200
    drawn = (
        0.7
        + of_seeds * rng.normal(size=(pairs, seeds, 1))
        + of_images * rng.normal(size=(pairs, 1, images))
        + 0.2 * rng.normal(size=(pairs, seeds, images))
    )
    means, errors = truth.standard_errors(drawn)
    np.testing.assert_allclose(means.mean(), 0.7, atol=0.05)
    np.testing.assert_allclose(np.sqrt((errors**2).mean()), means.std(), rtol=0.15)
    inside = np.abs(means - 0.7) < norm.ppf(0.975) * errors
    assert 0.91 < inside.mean() < 0.99


def test_the_order_of_equal_sources_is_rarely_significant() -> None:
    rng = np.random.default_rng(0)
    equal = rng.normal(size=(30, 3, 300)) + rng.normal(size=(1, 1, 300))
    assert truth.significant(equal)[np.tril_indices(30, -1)].mean() < 0.12
    unequal = equal + np.arange(30)[:, None, None]
    assert truth.significant(unequal)[np.tril_indices(30, -1)].all()
