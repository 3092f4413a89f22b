"""Every fenced code block of README and docs/ runs, or a comment above it says why not.

A page is one session in a folder with small files under the names that the pages use: `ZOO`, `PHOTOS`, `TASKS`, `RUN`
and so on. Blocks with a title are written to the file of that name. `<!-- skip: next "reason" -->` leaves out the block
below it, `<!-- invisible-code-block: python` ... `-->` prepares one that readers complete with something of their own.
"""

import contextlib
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from typer.testing import CliRunner

import jaxtransfer as jt
from jaxtransfer import rooms
from jaxtransfer.cli.app import app

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).random((5, 8, 8, 3), dtype=np.float32)
DATA = ("csv", "text", "toml")  # languages of blocks that are shown and cannot be run


def run_command(line: str) -> None:
    """Runs a line of a shell block: `jaxtransfer` in this process, or a script of the page."""
    match shlex.split(line, comments=True):
        case []:
            pass
        case ["jaxtransfer", *arguments]:
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{line}\n{result.output}"
        case ["python", script] if Path(script).is_file():
            runpy.run_path(script, run_name="__main__")
        case _:
            raise AssertionError(f"{line!r} is not run here: say why in a comment above its block")


def run_commands(example: Example) -> None:
    """Runs the lines of a shell block."""
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        run_command(line)


def write_file(example: Example) -> None:
    """Writes a block to the file that its title names."""
    Path(example.region.lexemes["title"]).write_text(example.parsed)


class Fences:
    """Blocks with a title, and those of the shell."""

    lexer = RawFencedCodeBlockLexer(
        re.compile(r'(?P<language>\w*)(?: title="(?P<title>[^"]+)")?[ \t]*$\n', re.MULTILINE)
    )

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in self.lexer(document):
            language, title = region.lexemes["language"], region.lexemes["title"]
            region.parsed = region.lexemes["source"]
            if title is not None:
                region.evaluator = write_file
                yield region
            elif language == "bash":
                region.evaluator = run_commands
                yield region
            elif language not in ("python", *DATA):
                raise ValueError(f"{document.path}: a block of the language {language!r} is neither run nor data")


SYBIL = Sybil([Fences(), PythonCodeBlockParser(), SkipParser()], path=str(ROOT))
PAGES = [
    pytest.param(page, marks=pytest.mark.slow, id=page.relative_to(ROOT).as_posix())
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "```" in page.read_text() and page.name != "networks.md"  # which has tests of its own, below
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call ZOO, PHOTOS and so on, as small as it can be."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    zoo = jt.Zoo(folder / "ZOO")
    for name in ("normal", "reshading", "class_scene", "edge_texture"):
        zoo.add(rooms.zoo()[name])
    for kind, count in (("PHOTOS", 17), *((f"TASKS/{task}/{name}", 3) for task in ("a", "b") for name in "xyz")):
        (folder / kind).mkdir(parents=True)
        for i, image in enumerate(random.integers(0, 256, (count, 16, 16, 3), np.uint8)):
            Image.fromarray(image).save(folder / kind / f"{i:02}.png")
    with contextlib.chdir(folder):
        run_command("jaxtransfer affinity ZOO PHOTOS --out RUN")
    return folder


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("optimised", "library_promotion")
def test_page(page: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    imported = {*sys.modules}
    for example in SYBIL.parse(page):
        try:
            example.evaluate()
        except SkipTest:
            continue
    for name in {*sys.modules} - imported:
        if Path(getattr(sys.modules[name], "__file__", None) or ROOT).is_relative_to(tmp_path):
            del sys.modules[name]


class TestNetworks:
    """The blocks of docs/networks.md, each with a model of its library."""

    document = SYBIL.parse(ROOT / "docs/networks.md")

    def run(self, heading: str, names: dict[str, Any]) -> None:
        """Runs the blocks below a heading in a session with these names."""
        start = self.document.text.index(f"\n## {heading}\n")
        end = self.document.text.find("\n## ", start + 1) % len(self.document.text)
        self.document.namespace.clear()
        self.document.namespace.update(names)
        (*examples,) = (example for example in self.document if start < example.region.start < end)
        assert examples
        for example in examples:
            example.evaluate()
        names |= self.document.namespace

    def check(self, heading: str, names: dict[str, Any], answer: Callable[[jax.Array], Any]) -> None:
        """Runs what stands below a heading; `answer` is what the model says, without the lines of the page."""
        self.run(heading, {"jt": jt, "preprocess": jt.Preprocess((8, 8), mean=0.5, std=0.25)} | names)
        network, inner = (self.document.namespace[name] for name in ("network", "inner"))
        np.testing.assert_allclose(network.apply(network.params, IMAGES), answer(jnp.asarray(IMAGES)), atol=1e-5)
        assert inner.apply(inner.params, jnp.asarray(IMAGES)).shape[-1] == 4
        maps = jt.attribute(network.apply, network.params, IMAGES, methods=["saliency"])["saliency"]
        answers = jax.grad(lambda images: answer(images).sum())(jnp.asarray(IMAGES))
        np.testing.assert_allclose(maps, np.abs(answers), atol=1e-5)
        networks = [jt.Network(name, network.apply, network.params) for name in "ab"]
        affinity = jt.affinity_matrix(networks, IMAGES, methods=["saliency"], mesh=jt.device_mesh(2, 2))
        np.testing.assert_allclose(affinity["saliency"], 1, atol=1e-6)

    @pytest.mark.slow
    def test_nnx(self) -> None:
        class Net(nnx.Module):
            def __init__(self) -> None:
                self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
                self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

            def __call__(self, images: jax.Array) -> jax.Array:
                return self.dropout(self.conv(images))

        model = Net()
        self.check("Flax NNX", {"model": model}, lambda images: model.conv(images))

    @pytest.mark.slow
    def test_linen(self) -> None:
        class Net(nn.Module):
            @nn.compact
            def __call__(self, images: jax.Array, train: bool) -> jax.Array:
                x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), name="conv")(images))
                return nn.Dropout(0.5, deterministic=not train)(x)

        model = Net()
        variables = model.init(jax.random.key(0), IMAGES, train=False)
        conv = variables["params"]["conv"]
        self.check(
            "Flax Linen",
            {"model": model, "variables": variables},
            lambda images: nn.Conv(4, (3, 3)).apply({"params": conv}, images) / np.sqrt(1 + 1e-5),
        )

    @pytest.mark.slow
    def test_equinox(self) -> None:
        keys = jax.random.split(jax.random.key(0))
        layers = [eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Lambda(jax.nn.softplus), eqx.nn.Dropout(0.5)]
        convolve = jax.vmap(layers[0])
        self.check(
            "Equinox",
            {"model": eqx.nn.Sequential(layers)},
            lambda images: jax.nn.softplus(convolve(images.transpose(0, 3, 1, 2))).transpose(0, 2, 3, 1),
        )

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning:haiku")
    def test_haiku(self) -> None:
        def forward(images: jax.Array, is_training: bool) -> jax.Array:
            return hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(images), is_training)

        transformed = hk.transform_with_state(forward)
        params, state = transformed.init(jax.random.key(0), IMAGES, is_training=True)

        def answer(images: jax.Array) -> jax.Array:
            conv = hk.without_apply_rng(hk.transform(lambda images: hk.Conv2D(4, 3)(images)))
            mean, variance = (state[f"batch_norm/~/{name}_ema"]["average"] for name in ("mean", "var"))
            return (conv.apply({"conv2_d": params["conv2_d"]}, images) - mean) / jnp.sqrt(variance + 1e-5)

        self.check("Haiku", {"transformed": transformed, "params": params, "state": state}, answer)

    @pytest.mark.slow
    def test_keras(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        import keras

        layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
        model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
        kernel = layers[0].kernel.value
        self.check(
            "Keras",
            {"model": model},
            lambda images: (
                jax.lax.conv_general_dilated(
                    images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                / np.sqrt(1 + 1e-3)
            ),
        )
        with pytest.raises(
            jt.JaxTransferError, match=r"hold a Variable at \[0\]: .*a Keras variable's array is its value"
        ):
            jt.Network("keras", lambda weights, images: images, model.trainable_variables)

    @pytest.mark.slow
    def test_torch_and_comparison(self, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(files, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU(), torch.nn.Dropout(0.5))
        self.run("PyTorch", {"model": model})
        network = jt.Zoo("ZOO")["my-net"]
        images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(network.apply(network.params, jnp.asarray(images)), expected, atol=1e-5)
        names = {"jt": jt, "preprocess": jt.Preprocess((8, 8)), "weights": {"w": np.eye(3, dtype=np.float32)}}
        self.run("Any other library", names | {"apply": lambda weights, images: images @ weights["w"]})
        self.run("Compare them", {"jt": jt, "network": self.document.namespace["network"]})

    def test_another_call(self) -> None:
        class Net(nnx.Module):
            def __init__(self) -> None:
                self.conv = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))

            def encode(self, images: jax.Array) -> jax.Array:
                return self.conv(images)

        names = {"jt": jt, "preprocess": jt.Preprocess((8, 8)), "model": Net()}
        self.run("Models that are called in another way", names)
        network = self.document.namespace["network"]
        expected = names["model"].encode(2 * jnp.asarray(IMAGES) - 1)
        np.testing.assert_allclose(network.apply(network.params, jnp.asarray(IMAGES)), expected, atol=1e-5)

    def test_no_section_is_left_out(self) -> None:
        headings = re.findall(r"^## (.*)\n(?:(?!^## )(?:.|\n))*?^```", self.document.text, re.MULTILINE)
        libraries = ["PyTorch", "Flax NNX", "Flax Linen", "Equinox", "Haiku", "Keras"]
        others = ["Models that are called in another way", "Any other library", "Compare them"]
        assert headings == [*libraries, *others]
