"""Tests the features of networks: layers, tokens and the probabilities of a head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.points.compute import PointComputation, PointSettings
from jaxtransfer.points.network_refs import network_refs
from jaxtransfer.points.store import Points
from jaxtransfer.scores.features import Features, kinds_of_networks
from jaxtransfer.scores.target import Target

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), np.uint8)


def several(params, images):
    grid = images @ params
    return {"early": grid, "late": {"tokens": grid.reshape(len(grid), 36, 5)[:, ::3]}, "logits": grid.mean((1, 2))}


def single(params, images):
    return (images @ params).mean((1, 2))


NETWORKS = [jt.Network(name, several, np.random.default_rng(i).normal(size=(3, 5))) for i, name in enumerate("ab")]
SINGLE = jt.Network("single", single, np.ones((3, 5), np.float32))


def features_of(networks, tmp_path, layers=None, mesh=None):
    refs = network_refs(networks)
    kinds = kinds_of_networks(refs, IMAGES.shape[1:], layers, with_head=True)
    settings = PointSettings(kinds[refs[0].name])
    points = Points(tmp_path)
    computation = PointComputation(refs, IMAGES, settings, batch_size=3, mesh=mesh or jt.device_mesh(1, 1))
    computation.run(points)
    return [Features(ref.name, computation.keys[ref.name], points) for ref in refs]


@pytest.mark.parametrize("devices", [(1, 1), (2, 4)])
def test_layers_and_probabilities_are_the_outputs_of_the_function(devices, tmp_path):
    features = features_of(NETWORKS, tmp_path, mesh=jt.device_mesh(*devices))
    for network, of_network in zip(NETWORKS, features, strict=True):
        outputs = several(network.params, jnp.asarray(IMAGES, jnp.float32) / 255)
        early, tokens = of_network.open(of_head=False)
        np.testing.assert_allclose(early[:], outputs["early"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(tokens[2:5], outputs["late"]["tokens"][2:5, :, None], rtol=1e-5, atol=1e-5)
        assert (early.shape, tokens.shape) == ((7, 6, 6, 5), (7, 12, 1, 5))
        (probabilities,) = of_network.open(of_head=True)
        np.testing.assert_allclose(probabilities[:][:, 0, 0], jax.nn.softmax(outputs["logits"]), rtol=1e-5)


def test_a_layer_is_chosen_by_its_name(tmp_path):
    (features,) = features_of(NETWORKS[:1], tmp_path, layers=["late.tokens"])
    assert features.kinds(of_head=False) == ["representation-late.tokens"]
    with pytest.raises(jt.JaxTransferError, match=r"no layer 'late' in network 'a'; there are: .*late\.tokens"):
        features_of(NETWORKS[:1], tmp_path, layers=["late"])
    with pytest.raises(jt.JaxTransferError, match=r"no layer 'early' in network 'single'; there are: \(one without"):
        features_of([SINGLE], tmp_path, layers=["early"])


def test_a_vector_has_one_place_and_no_head(tmp_path):
    (features,) = features_of([SINGLE], tmp_path)
    (layer,) = features.open(of_head=False)
    assert layer.shape == (7, 1, 1, 5)
    assert features.kinds(of_head=True) == []


def test_examples_with_features_that_are_not_finite_are_not_counted(tmp_path):
    means = IMAGES.mean((1, 2, 3)) / 255
    limit = np.sort(means)[-2:].mean()

    def undefined(params, images):
        brightness = images.mean((1, 2, 3))
        return jnp.where(brightness > limit, jnp.nan, brightness)[:, None] * params[None]

    (features,) = features_of([jt.Network("undefined", undefined, np.ones(2, np.float32))], tmp_path)
    target = Target("numbers", np.arange(7.0)[:, None], np.array([0, 1, 2, 3, 4, 5, -1]))
    usable = 6 if means.argmax() == 6 else 5
    assert features.usable(target) == usable
    (whole,) = features_of([SINGLE], tmp_path)
    assert whole.usable(target) == 6


def test_only_a_head_is_no_feature(tmp_path):
    def head(params, images):
        return {"logits": images.mean((1, 2)) @ params}

    network = dataclasses.replace(SINGLE, apply=head)
    with pytest.raises(jt.JaxTransferError, match="'single' returns no features, only logits"):
        features_of([network], tmp_path)
