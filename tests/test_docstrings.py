"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from support.helpers import quick_cases

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(jt.__path__, "jaxtransfer.")
    if not info.name.startswith("jaxtransfer.converters") and not info.name.endswith("__main__")
)
MAIN = (
    "attribute affinity_matrix Affinity Network Zoo load_probe Preprocess Oracle retrieval_curve retrieval_bands "
    "certain_ranking task_tree mantel_test principal_gradient gap gradient_alignment Episodes backbone device_mesh "
    "LabelledTask read_tasks score transfer"
).split() + [f"rooms.{name}" for name in ("zoo", "probe", "transfers", "examples", "render")]


# Those that train, estimate or draw for a second or longer.
SLOW = {f"jaxtransfer.{name}" for name in "pge.backbones pge.batches pge.estimator pge.gap rooms.benchmark".split()}


@pytest.mark.parametrize("name", quick_cases(MODULES, *{*MODULES} - SLOW))
def test_examples(name, tmp_path, monkeypatch, library_promotion):
    monkeypatch.chdir(tmp_path)
    globs = {"jt": jt, "jax": jax, "jnp": jnp, "np": np}
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    module = importlib.import_module(name)
    assert doctest.testmod(module, extraglobs=globs, optionflags=options).failed == 0


@pytest.mark.parametrize("name", MAIN)
def test_main_names_have_an_example(name):
    public = jt
    for part in name.split("."):
        public = getattr(public, part)
    assert ">>>" in (public.__doc__ or "")
