from types import SimpleNamespace
from typing import cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image
from typer.testing import CliRunner

from jaxtransfer import JaxTransferError, Zoo, devices, rooms
from jaxtransfer.cli.app import app
from jaxtransfer.devices import connect, device_mesh, parse_mesh
from jaxtransfer.networks import zoo as zoos
from support import helpers


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("model=2,data=4", (2, 4)),
        ("data=2,model=4", (4, 2)),
        ("model=8", (8, 1)),
        ("data=3", (1, 3)),
        ("model=1,data=1", (1, 1)),
    ],
)
def test_mesh_of_a_text(text, shape):
    mesh = parse_mesh(text)
    assert mesh.axis_names == ("model", "data")
    assert mesh.devices.shape == shape


def test_all_devices_share_the_images_of_one_network():
    assert device_mesh().devices.shape == (1, jax.device_count())
    assert device_mesh(model=2).devices.shape == (2, jax.device_count() // 2)


@pytest.mark.parametrize("text", ["", "2x4", "model=2;data=4", "model=0", "model=2,model=2", "pixels=2", "model=-1"])
def test_texts_that_describe_no_mesh(text):
    with pytest.raises(JaxTransferError, match="is written like model=2,data=4"):
        parse_mesh(text)


def test_a_mesh_of_more_devices_than_there_are():
    with pytest.raises(JaxTransferError, match="model=4,data=4 needs 16 devices, but JAX sees 8"):
        parse_mesh("model=4,data=4")


@pytest.mark.parametrize("text", ["", "host", "host:1", "host:1,2", "host:1,2/"])
def test_texts_that_describe_no_processes(text):
    with pytest.raises(JaxTransferError, match=r"like 10\.0\.0\.1:1234,0/4"):
        connect(text)


def test_programs_need_an_option_on_gpus_alone():
    assert devices.compiler_options(devices.default_mesh()) == {}
    gpu = SimpleNamespace(devices=np.array([[SimpleNamespace(platform="gpu")]]))
    assert devices.compiler_options(cast(Mesh, gpu)) == {"xla_gpu_enable_triton_gemm": False}


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(devices, "_CONTAINER_LIMIT", limit)
    machine = devices.host_memory()
    limit.write_text("max\n")
    assert devices.host_memory() == machine
    limit.write_text("1000000\n")
    assert devices.host_memory() == 1_000_000
    with pytest.raises(
        JaxTransferError, match=r"^Ten images would take 2\.0 GB of memory, but there are 1\.0 MB; take"
    ):
        devices.check_memory(2 * 10**9, "Ten images", "take fewer")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["affinity", "ZOO", "IMAGES", "--size", "8192"], "images of 8192 x 8192 pixels would take"),
        (["score", "ZOO", "TASKS", "--size", "8192"], "images of 8192 x 8192 pixels would take"),
        (
            ["affinity", "ZOO", "IMAGES", "--size", "64", "--method", "saliency"],
            "'edge_texture' with an image on a device would take",
        ),
        (["transfer", "ZOO", "TASKS", "--seeds", "1000000"], "seeds may be up to 1,000, not 1,000,000"),
        (["transfer", "ZOO", "TASKS", "--steps", "1000000000"], "steps may be up to 10,000,000"),
        (["pge", "TASKS", "--restarts", "10000000000"], "up to 1,000,000,000 restarts"),
        (["pge", "TASKS", "--heads", "1000000000", "--loss", "random-head"], "up to 10,000 pairs of heads"),
        (["pge", "TASKS", "--batch-size", "100000000", "--loss", "random-head"], "The gradient at 100,000,000 images"),
        (["pge", "TASKS", "--ways", "1000000", "--size", "8192"], "images of 8192 x 8192 pixels would take"),
    ],
)
def test_what_memory_does_not_hold_is_refused(tmp_path, monkeypatch, command, complaint):
    for folder, colours in {"images": ["red"], "tasks/a": ["red", "blue"], "tasks/b": ["lime", "blue"]}.items():
        for colour in colours:
            place = tmp_path / folder / (colour if "tasks" in folder else "")
            place.mkdir(parents=True, exist_ok=True)
            for i in range(3):
                Image.new("RGB", (8, 8), colour).save(place / f"{i}.png")
    zoo = Zoo(tmp_path / "zoo")
    for name in ("normal", "edge_texture"):
        zoo.add(rooms.zoo()[name])
    places = {"ZOO": zoo.path, "IMAGES": tmp_path / "images", "TASKS": tmp_path / "tasks"}
    monkeypatch.setattr(devices, "host_memory", lambda: 2**20)
    monkeypatch.setattr(zoos, "host_memory", lambda: 2**30)
    arguments = [str(places.get(word, word)) for word in command]
    assert complaint in helpers.complaint(CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")]))
