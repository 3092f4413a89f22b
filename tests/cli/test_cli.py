import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import jaxtransfer
import jaxtransfer.converters as converters
from jaxtransfer import Network, Preprocess, Zoo
from jaxtransfer.aten import AtenProgram
from jaxtransfer.cli.app import app
from jaxtransfer.networks.program import Node, Value, Weight
from jaxtransfer.runs.load import load_run
from support.helpers import complaint, free_port


def tiny(params, images):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.nn.relu(jax.lax.conv_general_dilated(images, params["w"], (2, 2), "SAME", dimension_numbers=dimensions))


def _fill(zoo: Zoo, names) -> None:
    for seed, name in enumerate(names):
        weights = np.random.default_rng(seed).normal(size=(3, 3, 3, 4)).astype(np.float32)
        zoo.add(Network(name, tiny, {"w": weights}, Preprocess((16, 16), mean=0.5, std=0.5)))


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A zoo, a folder of images of every kind, and a finished run."""
    here = tmp_path_factory.mktemp("cli")
    _fill(Zoo(here / "zoo"), ["one", "two", "three"])
    images = here / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (24, 30, 4)).astype(np.uint8)
    picture = Image.fromarray(noise)
    picture.convert("RGB").save(images / "colour.png")
    picture.convert("L").save(images / "grey.png")
    picture.save(images / "alpha.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(images / "sixteen.png")
    picture.convert("CMYK").save(images / "cmyk.jpg")
    (images / "truncated.png").write_bytes((images / "colour.png").read_bytes()[:900])
    (images / "notes.txt").write_text("not an image")
    run = _run("affinity", here / "zoo", images, "--out", here / "run", "--batch-size", "3")
    assert run.exit_code == 0, run.output
    (here / "run.txt").write_text(run.stdout)
    return here


def _run(*arguments):
    named = ["--import", __name__] if arguments[0] == "affinity" else []
    return CliRunner().invoke(app, [str(argument) for argument in (*arguments, *named)])


def _refused(*arguments) -> str:
    return complaint(_run(*arguments))


def test_affinity_prints_the_result(here):
    printed = (here / "run.txt").read_text()
    for expected in ("one", "three", "saliency", "±", "5 images were used and 2 files skipped"):
        assert expected in printed
    header = next(line for line in printed.splitlines() if "linear" in line)  # names may be folded
    assert header.split("┃")[2].strip().startswith("linear")
    assert "linear_predictivity comes first because it predicts transfer best on Rooms (rank correlation " in printed
    assert "truncated.png: it is damaged" in printed
    assert "notes.txt: it is not an image" in printed
    record = json.loads((here / "run" / "run.json").read_text())
    assert len(record["probe"]["skipped"]) == 2


def test_rank(here):
    result = _run("rank", here / "run", "two")
    assert result.exit_code == 0
    for expected in ("saliency", "input_x_gradient", "epsilon_lrp", "standard error", "one", "three"):
        assert expected in result.stdout
    first, *others = [line.split()[4] for line in result.stdout.splitlines() if line.startswith("Sources for two by")]
    assert (first, others) == ("linear_predictivity", ["saliency", "input_x_gradient", "epsilon_lrp"])
    assert (
        "linear_predictivity comes first because it predicts transfer best on Rooms (rank correlation " in result.stdout
    )
    result = _run("rank", here / "run", "two", "--method", "saliency", "--top", "1")
    assert result.stdout.count("0.") == 2  # an affinity and its standard error
    table, _ = result.stdout.split("On Rooms saliency finds")
    assert table.count("%") == 2  # how sure its place is, and what is aimed at
    assert "epsilon_lrp" not in result.stdout


def test_rank_of_unknown_things_lists_what_there_is(here):
    assert "one, three, two" in _refused("rank", here / "run", "four")
    assert "input_x_gradient" in _refused("rank", here / "run", "two", "--method", "magic")
    assert "is not a run directory" in _refused("rank", here / "images", "two")


def test_strict(here, tmp_path):
    sentence = _refused("affinity", here / "zoo", here / "images", "--out", tmp_path / "run", "--strict")
    assert "notes.txt" in sentence
    assert not (tmp_path / "run").exists()


def test_bad_zoos_and_folders(here, tmp_path):
    def refused(zoo, images=here / "images", out=tmp_path / "run"):
        return _refused("affinity", zoo, images, "--out", out)

    (tmp_path / "empty").mkdir()
    assert "There is no zoo" in refused(tmp_path / "nowhere")
    assert "has no networks" in refused(tmp_path / "empty")
    assert "is not a directory" in refused(here / "run.txt")
    assert "does not exist" in refused(here / "zoo", tmp_path / "nowhere")
    assert "holds no files" in refused(here / "zoo", tmp_path / "empty")
    assert "is not a folder" in refused(here / "zoo", here / "run.txt")
    assert "is not a directory" in refused(here / "zoo", out=here / "run.txt")
    assert "not a run directory" in refused(here / "zoo", out=here / "images")
    assert str(here / "run.txt") in refused(here / "zoo", out=here / "run.txt" / "run")
    assert "similarity: cosine there, correlation here" in _refused(
        "affinity", here / "zoo", here / "images", "--out", here / "run", "--similarity", "correlation"
    )


def test_damaged_zoo(here, tmp_path):
    zoo = Zoo(tmp_path / "zoo")
    _fill(zoo, ["good", "bad"])
    for file in (zoo.path / "bad" / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    sentence = _refused("affinity", zoo.path, here / "images", "--out", tmp_path / "run")
    assert "'bad'" in sentence
    assert "damaged" in sentence
    (zoo.path / "bad" / "network.json").write_text("{")
    assert "network.json" in _refused("affinity", zoo.path, here / "images", "--out", tmp_path / "run2")


def test_full_disk(here, tmp_path, monkeypatch):
    def write_text(self, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        sentence = _refused("affinity", here / "zoo", here / "images", "--out", tmp_path / "run")
    assert "The disk is full" in sentence
    assert str(tmp_path / "run") in sentence


def test_interrupt(here, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxtransfer.comparison.matrix.Sweep.run", interrupt)
    result = _run("affinity", here / "zoo", here / "images", "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(here, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("jaxtransfer.comparison.matrix.Sweep.run", fail)
    result = _run("affinity", here / "zoo", here / "images", "--out", tmp_path / "run")
    assert isinstance(result.exception, ZeroDivisionError)


def test_missing_torch(tmp_path, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("jaxtransfer.converters"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    sentence = _refused("convert", "torch", tmp_path / "a.pt2", tmp_path / "zoo", "--name", "a")
    assert 'pip install "jaxtransfer[torch]"' in sentence


def test_numbers_of_convert(tmp_path):
    sentence = _refused("convert", "torch", "a.pt2", tmp_path, "--name", "a", "--mean", "0.5;0.5;0.5")
    assert "--mean takes three numbers" in sentence


def _process(*arguments, **options):
    command = [sys.executable, "-m", "jaxtransfer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.slow
def test_as_a_process(here, tmp_path):
    version = _process("--version")
    assert (version.returncode, version.stdout) == (0, f"jaxtransfer {jaxtransfer.__version__}\n")

    ranked = _process("rank", here / "run", "one", "--method", "saliency")
    assert ranked.returncode == 0
    assert "three" in ranked.stdout
    assert ranked.stderr == ""

    failed = _process("affinity", tmp_path / "nowhere", here / "images", "--out", tmp_path / "run")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert "Error: There is no zoo" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture
def module_of_my_own(tmp_path) -> Path:
    """A folder with a module, and a zoo with functions of it; nothing has imported the module."""
    function = "def apply(params, x):\n    return x[..., :1] * params['w'][0, 0, 0, 0]\n"
    marks = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (tmp_path / "my_nets_for_a_test.py").write_text(marks + function)
    _fill(Zoo(tmp_path / "zoo"), ["one", "two"])
    for manifest in (tmp_path / "zoo").glob("*/network.json"):
        manifest.write_text(manifest.read_text().replace(f"{__name__}:tiny", "my_nets_for_a_test:apply"))
    return tmp_path


@pytest.mark.slow
def test_functions_of_ones_own(here, module_of_my_own):
    """As a user does: from a shell, in the folder of the module; and nothing runs that was not asked for."""
    ran, options = module_of_my_own / "ran", {"cwd": module_of_my_own}
    command = ("affinity", "zoo", here / "images", "--out", "run", "--size", "8", "--method", "saliency")
    refused = _process(*command, **options)
    assert refused.returncode == 2
    assert refused.stdout == ""
    (sentence,) = refused.stderr.strip().splitlines()
    assert sentence.endswith("on the command line with --import my_nets_for_a_test.")
    assert not ran.exists()
    assert not (module_of_my_own / "run").exists()
    done = _process(*command, "--import", "my_nets_for_a_test", **options)
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout
    assert ran.exists()


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("nothing_like_that", None, "There is no module nothing_like_that, installed or in the directory /"),
        ("no_package.nets", None, "There is no module no_package.nets, installed"),
        ("wants_another", "import nothing_like_that", "wants_another cannot be imported: it needs nothing_like_that."),
        ("fails", "x = 1\nx / 0", r"fails cannot be imported in .*fails.py, line 2: ZeroDivisionError: division by"),
        ("misspelt", "def f(:", r"misspelt cannot be imported: SyntaxError: .*misspelt.py, line 1"),
        ("leaves", "import sys\nsys.exit('usage: leaves.py')", "leaves cannot be imported.*SystemExit: usage"),
        ("fails.py", "", "takes the name of a module, such as my_nets for the file my_nets.py, not 'fails.py'"),
        ("./fails", "", "takes the name of a module"),
        ("", None, "takes the name of a module"),
    ],
)
def test_modules_that_cannot_be_imported(here, tmp_path, monkeypatch, module, text, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text is not None:
        Path(f"{module.removesuffix('.py')}.py").write_text(text)
    sentence = _refused("affinity", here / "zoo", here / "images", "--out", "run", "--import", module)
    assert re.search(message, sentence)
    assert not Path("run").exists()


@pytest.mark.slow
def test_two_processes_are_one_command(tmp_path):
    """Of a zoo that any process can open; the first of them speaks."""
    zoo, images = Zoo(tmp_path / "zoo"), tmp_path / "images"
    for seed, name in enumerate(["a", "b", "c"]):
        weights = np.random.default_rng(seed).normal(size=(4, 3, 3, 3)).astype(np.float32)
        arguments = (Value("x"), Weight("w"), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        convolution = Node("aten.convolution.default", arguments, {}, "c", "")
        relu = Node("aten.relu.default", (Value("c"),), {}, "y", "")
        program = AtenProgram((convolution, relu), "x", "y", (32, 32, 3), False)
        zoo.add(Network(name, program, {"w": weights}, Preprocess((32, 32), mean=0.5, std=0.5)))
    images.mkdir()
    rng = np.random.default_rng(1)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(images / f"{i}.png")

    command = ["affinity", str(zoo.path), str(images), "--mesh", "model=2,data=2", "--out"]
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jaxtransfer",
                *map(str, command),
                tmp_path / "two",
                "--distributed",
                f"{address},{i}/2",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        )
        for i in range(2)
    ]
    (printed, logged), (nothing, _) = (process.communicate(timeout=120) for process in started)
    assert [process.returncode for process in started] == [0, 0], logged
    assert "saliency" in printed
    assert re.search(r"Batches of \d+ images on each device for a, which take .*B of .*GB", logged)
    assert "saliency" not in nothing
    assert _run(*command, tmp_path / "one").exit_code == 0
    one, two = load_run(tmp_path / "one"), load_run(tmp_path / "two")
    np.testing.assert_allclose(two["saliency"], one["saliency"], atol=1e-6)


def test_help_does_not_wait_for_the_heavy_packages():
    code = "import sys, jaxtransfer.cli; print({'jax', 'torch', 'matplotlib'} & set(sys.modules))"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "set()"


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    # As if no test before had imported it.
    monkeypatch.delitem(sys.modules, "jaxtransfer.converters.torch_export", raising=False)
    monkeypatch.delattr(converters, "torch_export", raising=False)
    sentence = _refused("convert", "torch", tmp_path / "net.pt2", tmp_path / "zoo", "--name", "net")
    assert 'pip install "jaxtransfer[torch]"' in sentence
    assert not list(tmp_path.iterdir())
