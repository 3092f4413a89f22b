"""Tests `score`: features shared by tasks, layers, what is reused, devices, and bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

import jaxtransfer as jt
from jaxtransfer.scores import compute
from jaxtransfer.scores.measures import run_measures
from jaxtransfer.scores.target import Target

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 6, 6, 3), np.uint8)
CENTRES = IMAGES[:, 2:4, 2:4].mean((1, 2)) / 255


def dense(params, images):
    return jax.nn.relu(images.reshape(len(images), -1) @ params)


def layered(params, images):
    """Layers of which one sees the centre and one a corner, and a head."""
    centre, corner = images[:, 2:4, 2:4].mean((1, 2)), images[:, 0, 0]
    return {"centre": centre * params, "corner": corner * params, "logits": centre @ jnp.eye(3) * 9}


def network(name, seed):
    return jt.Network(name, dense, np.random.default_rng(seed).normal(size=(108, 8)).astype(np.float32))


NETWORKS = [network("a", 0), network("b", 1), network("c", 2)]
LAYERED = jt.Network("layered", layered, np.ones((1, 3), np.float32))
COLOURS = jt.LabelledTask.of(IMAGES, np.array(["red", "green", "blue"])[CENTRES.argmax(1)], name="colours")
NUMBERS = jt.LabelledTask.of(IMAGES, CENTRES, name="numbers")


def test_scores_are_those_of_the_features():
    scores = jt.score(NETWORKS, [COLOURS, NUMBERS], measures=["ridge", "logme"])
    assert (scores.targets, scores.sources) == (("colours", "numbers"), ("a", "b", "c"))
    for column, of_network in enumerate(NETWORKS):
        features = np.asarray(dense(of_network.params, jnp.asarray(IMAGES, jnp.float32) / 255))
        for row, task in enumerate([COLOURS, NUMBERS]):
            expected = run_measures(["ridge", "logme"], Target.of(task), features=features)
            for measure in ("ridge", "logme"):
                np.testing.assert_allclose(scores[measure][row, column], expected[measure].value, rtol=1e-4, atol=1e-5)
                samples = expected[measure].pseudo_values
                error = samples.std(ddof=1) / np.sqrt(len(samples))
                np.testing.assert_allclose(scores.stderr(measure)[row, column], error, rtol=1e-3)
    assert (scores.counts("ridge") == 60).all()


def test_tasks_on_the_same_images_share_the_passes_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    from jaxtransfer.points import compute

    passes = []
    run = compute.PointComputation._run_pass
    monkeypatch.setattr(
        compute.PointComputation, "_run_pass", lambda self, *rest: (passes.append(1), run(self, *rest))[1]
    )
    first = jt.score(NETWORKS, [COLOURS, NUMBERS], directory=tmp_path)
    assert len(passes) == 3
    more = jt.score([*NETWORKS, network("d", 3)], [NUMBERS, COLOURS], measures=["ridge", "knn"], directory=tmp_path)
    assert len(passes) == 4
    np.testing.assert_array_equal(more["ridge"][::-1, :3], first["ridge"])
    other_labels = dataclasses.replace(NUMBERS, labels=1 - NUMBERS.labels**2, sha256="other")
    changed = jt.score(NETWORKS, other_labels, directory=tmp_path)
    assert len(passes) == 4
    assert (changed["ridge"] != first["ridge"][1:]).all()


def test_a_copied_network_ties_and_the_order_of_networks_does_not_matter():
    copy = dataclasses.replace(NETWORKS[0], name="copy")
    measures = ["ridge", "logistic", "knn", "logme", "hscore"]
    scores = jt.score([*NETWORKS, copy], COLOURS, measures=measures)
    reversed_scores = jt.score([copy, *NETWORKS[::-1]], COLOURS, measures=measures)
    for measure in measures:
        assert scores[measure][0, 0] == scores[measure][0, 3]
        np.testing.assert_array_equal(scores[measure][0, :3], reversed_scores[measure][0, :0:-1])
    probability = jt.probability_above(scores, "colours", "a", "copy", method="ridge")
    assert probability == 0.5


def test_the_layer_that_suits_the_task_is_used():
    best, worst = (
        jt.score([LAYERED], COLOURS, layers=layer, measures=["ridge", "logme"]) for layer in ("centre", "corner")
    )
    both = jt.score([LAYERED], COLOURS, measures=["ridge", "logme"])
    for measure in ("ridge", "logme"):
        assert best[measure][0, 0] > worst[measure][0, 0]
        assert both[measure][0, 0] == best[measure][0, 0]


def test_layers_without_information_do_not_raise_the_score_by_their_number():
    def noise(params, images):
        hashes = jnp.sin(1e3 * images.reshape(len(images), -1) @ params)
        return {str(layer): hashes[:, 3 * layer : 3 * layer + 3] for layer in range(12)}

    random_network = jt.Network("noise", noise, RNG.normal(size=(108, 36)).astype(np.float32))
    labels = RNG.choice(["yes", "no"], 60)
    task = jt.LabelledTask.of(IMAGES, labels, name="coin")
    together = jt.score([random_network], task, measures="logme")
    alone = [jt.score([random_network], task, measures="logme", layers=str(i))["logme"][0, 0] for i in range(12)]
    assert together["logme"][0, 0] < max(alone)


def test_measures_of_a_head_use_its_probabilities():
    scores = jt.score([LAYERED, NETWORKS[0]], COLOURS, measures=["leep", "ridge"])
    assert np.isnan(scores["leep"][0, 1])
    assert not np.isnan(scores["ridge"]).any()
    logits = CENTRES * 9
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = run_measures(["leep"], Target.of(COLOURS), probabilities=probabilities.astype(np.float32))
    np.testing.assert_allclose(scores["leep"][0, 0], expected["leep"].value, rtol=1e-4)
    assert jt.score(NETWORKS, COLOURS, measures="all").methods == tuple(
        name for name, spec in jt.MEASURES.items() if "classes" in spec.target_types and not spec.needs_probabilities
    )
    with pytest.raises(jt.JaxTransferError, match="leep needs a network that also returns scores of the classes"):
        jt.score(NETWORKS, COLOURS, measures="leep")


def test_eight_devices_give_the_scores_of_one():
    one = jt.score(NETWORKS, [COLOURS, NUMBERS])
    many = jt.score(NETWORKS, [COLOURS, NUMBERS], mesh=jt.device_mesh(2, 4))
    np.testing.assert_allclose(many["ridge"], one["ridge"], rtol=1e-5, atol=1e-6)


def test_missing_labels_are_left_out():
    labels = COLOURS.labels.copy()
    labels[:20] = ""
    scores = jt.score(NETWORKS, jt.LabelledTask.of(IMAGES, labels, name="some"))
    assert (scores.counts("ridge") == 40).all()


def test_grey_images_are_scored_in_colour():
    labels = np.where(IMAGES[..., 0].mean((1, 2)) > 127.5, "bright", "dark")
    grey, colour = (
        jt.LabelledTask.of(images, labels, name="brightness")
        for images in (IMAGES[..., 0], np.repeat(IMAGES[..., :1], 3, -1))
    )
    scores = [jt.score(NETWORKS[:1], task) for task in (grey, colour)]
    np.testing.assert_array_equal(scores[0]["ridge"], scores[1]["ridge"])


def test_bad_input():
    with pytest.raises(jt.JaxTransferError, match="no measure 'rigde'; there are: ridge"):
        jt.score(NETWORKS, COLOURS, measures="rigde")
    with pytest.raises(jt.JaxTransferError, match="The measure hscore needs labels that are classes"):
        jt.score(NETWORKS, NUMBERS, measures="hscore")
    with pytest.raises(jt.JaxTransferError, match="Several networks have the name 'a'"):
        jt.score([NETWORKS[0]] * 2, COLOURS)
    with pytest.raises(jt.JaxTransferError, match="There are no tasks"):
        jt.score(NETWORKS, [])
    with pytest.raises(jt.JaxTransferError, match="no layer 'early' in network 'layered'; there are: "):
        jt.score([LAYERED], COLOURS, layers="early")


def pixel(bound):
    """A network whose features are finite for images whose mean is less than a bound."""

    def apply(params, images):
        return jnp.where(images.mean((1, 2, 3))[:, None] < bound, images[:, 2, 2], jnp.nan) * params[None]

    return apply


def test_a_network_that_cannot_be_scored_does_not_end_the_scores_of_others():
    undefined = jt.Network("undefined", pixel(0), np.ones(3, np.float32))
    constant = jt.Network("constant", dense, np.zeros((108, 8), np.float32))
    with pytest.warns() as warned:
        scores = jt.score([undefined, *NETWORKS, constant], COLOURS, measures=["ridge", "pactran"])
    assert sorted(str(warning.message) for warning in warned) == [
        "The network 'constant' has no score by ridge, pactran for the task 'colours': The features are the same for "
        "all labelled examples.",
        "The network 'undefined' has no score by ridge, pactran for the task 'colours': The features are finite for 0 "
        "of 60 labelled examples, which lie in 0 groups; a score needs examples of 4 groups.",
    ]
    alone = jt.score(NETWORKS, COLOURS, measures=["ridge", "pactran"])
    for measure in scores.methods:
        assert np.isnan(scores[measure][0, [0, 4]]).all()
        np.testing.assert_array_equal(scores[measure][:, 1:4], alone[measure])
        np.testing.assert_array_equal(scores.counts(measure), [[0, 60, 60, 60, 0]])
    with pytest.warns(UserWarning, match="finite for 0 of 60"), pytest.raises(jt.JaxTransferError, match="No network"):
        jt.score([undefined], COLOURS)


def test_a_layer_without_information_is_left_out():
    def layers(params, images):
        return {"same": jnp.ones((len(images), 2)), "centre": images[:, 2:4, 2:4].mean((1, 2)) * params}

    both = jt.Network("both", layers, np.ones((1, 3), np.float32))
    with_constant, without = (jt.score([both], COLOURS, measures="pactran", layers=name) for name in (None, "centre"))
    assert with_constant["pactran"][0, 0] == without["pactran"][0, 0]


def test_examples_without_finite_features_are_reported():
    bound = float(np.quantile(IMAGES.mean((1, 2, 3)) / 255, 0.75))
    some = jt.Network("some", pixel(bound), np.ones(3, np.float32))
    with pytest.warns(UserWarning, match="'some' for the task 'colours' are of 45 of 60 labelled examples"):
        scores = jt.score([some, NETWORKS[0]], COLOURS)
    np.testing.assert_array_equal(scores.counts("ridge"), [[45, 60]])


def test_measures_compute_with_one_thread_of_blas(monkeypatch):
    threads = []
    monkeypatch.setattr(compute, "score_layers", lambda *_: threads.append(blas_threads()) or {})
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(jt.JaxTransferError, match="No network has a score"):
            jt.score(NETWORKS[:1], COLOURS)
        assert blas_threads() == before
    assert max(threads[0]) == 1


def blas_threads():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
