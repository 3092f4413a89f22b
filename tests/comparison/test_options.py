"""The settings of affinities: checked once, with their defaults in one place, and as run.json holds them."""

import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.comparison.options import AffinityOptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": []}, "No method is named; there are: saliency, .*svcca"),
        ({"methods": ("saliency", "pca")}, "There is no method 'pca'; there are: .*saliency"),
        ({"methods": 3}, "methods must be names"),
        ({"target": "max"}, "There is no target 'max'; there are: sum, random_signs, spatial_maximum"),
        ({"target": jt.random_signs}, "The target must be a name, one of sum, random_signs, spatial_maximum"),
        ({"similarity": "cosin"}, "There is no similarity 'cosin'; there are: cosine, correlation"),
        ({"precision": "half"}, "There is no precision 'half'; there are: float32, tf32, bfloat16"),
        ({"epsilon": 0}, "epsilon must be greater than 0"),
        ({"edge_weight": np.inf}, "weight of edges must be 0 or more, not inf"),
        ({"sketch": 0}, "at least 1 number, not 0"),
    ],
)
def test_wrong_settings_end_in_a_sentence(change, message):
    with pytest.raises(jt.JaxTransferError, match=message):
        AffinityOptions(**{"methods": jt.METHODS} | change)


@pytest.mark.parametrize(
    ("named", "methods"),
    [
        ("paper", jt.METHODS),
        (("paper",), jt.METHODS),
        (("rsa", "paper", "saliency"), ("rsa", *jt.METHODS)),
        (("epsilon_lrp", "paper"), ("epsilon_lrp", "saliency", "input_x_gradient")),
    ],
)
def test_paper_stands_for_the_maps_of_song_et_al(named, methods):
    options = AffinityOptions(methods=named)
    assert options.methods == options.as_settings()["methods"] == methods


def test_settings_are_the_fields():
    options = AffinityOptions(methods=("depara", "cka"), sketch=7)
    assert options.as_settings() == dataclasses.asdict(options) | {"cka": "unbiased"}
    settings = AffinityOptions(methods="saliency").as_settings()
    assert settings == {
        "methods": ("saliency",),
        "target": "sum",
        "similarity": "cosine",
        "epsilon": 1e-4,
        "sketch": None,
        "precision": "float32",
    }


@pytest.mark.parametrize("function", [jt.affinity_matrix, jt.attribute])
def test_public_functions_have_these_defaults(function):
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    methods = defaults.pop("methods")
    if function is jt.attribute:
        assert methods == jt.METHODS
        del defaults["target"]  # a function
    else:
        assert methods == AffinityOptions().methods == ("linear_predictivity", *jt.METHODS)
    fields = {field.name: field.default for field in dataclasses.fields(AffinityOptions)}
    shared = fields.keys() & defaults.keys()
    assert {"precision"} <= shared
    assert {name: defaults[name] for name in shared} == {name: fields[name] for name in shared}


def test_defaults_are_known_without_jax():
    code = "import sys, jaxtransfer.comparison.options; assert not {'jax', 'tensorstore'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
