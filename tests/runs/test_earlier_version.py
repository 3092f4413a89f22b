"""Zoos and run directories of version 0.1.0, as it wrote them when all modules lay in one folder: they load and resume.

The weights are patterns that compress well. The affinity run was interrupted when one of its three networks was done;
the run of principal gradients is finished, with two tasks.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer import rooms, taskonomy
from jaxtransfer.aten import AtenProgram
from jaxtransfer.pge.options import PGEOptions
from jaxtransfer.rooms import networks as rooms_networks
from jaxtransfer.runs.load import load_run
from jaxtransfer.runs.principal_gradients import run_pge
from support.helpers import quick_cases, run_affinity

EARLIER = Path(__file__).parents[1] / "support" / "version_0_1_0"


@pytest.fixture
def photos(tmp_path):
    """The four photos of 16 x 16 pixels that the affinity run looked at."""
    folder = tmp_path / "photos"
    folder.mkdir()
    index = np.arange(16 * 16 * 3)
    for n in range(4):
        values = (index * (7 * n + 11) + n * index // 5) % 251
        Image.fromarray(values.reshape(16, 16, 3).astype(np.uint8)).save(folder / f"{n}.png")
    return folder


def tasks(folder, count):
    """Labelled images; the run of principal gradients had the first two of these tasks."""
    files = [folder / f"t{n}.npz" for n in range(count)]
    for n, file in enumerate(files):
        images = (np.arange(24 * 16 * 16 * 3) * (5 * n + 13) % 253).reshape(24, 16, 16, 3).astype(np.uint8)
        np.savez(file, x=images, y=np.arange(24) % 3)
    return files


def test_networks_of_all_own_kinds_load_and_keep_their_functions():
    zoo = jt.Zoo(EARLIER / "zoo")
    assert zoo.names == ("program", "program_too", "room")
    assert isinstance(zoo["program"].apply, AtenProgram)
    assert zoo["room"].apply is rooms_networks.encode
    assert jt.Zoo(EARLIER / "taskonomy")["encoder"].apply is taskonomy.encode


def test_networks_keep_their_names_when_they_are_stored_again(tmp_path):
    """What manifests say, and with them the keys of points, does not depend on where the modules lie."""
    again = jt.Zoo(tmp_path)
    for folder in ("zoo", "taskonomy"):
        zoo = jt.Zoo(EARLIER / folder)
        for network in zoo:
            again.add(network, source=zoo.manifest(network.name)["source"])
            manifest = again.manifest(network.name)
            manifest.pop("outputs")  # which earlier versions did not write
            assert manifest == zoo.manifest(network.name)


@pytest.mark.filterwarnings("ignore:On 4 images rsa cannot be trusted")
@pytest.mark.parametrize("zoo_in_memory", quick_cases([False, True], False))
def test_an_interrupted_run_is_resumed(tmp_path, photos, zoo_in_memory):
    out = tmp_path / "run"
    shutil.copytree(EARLIER / "affinity", out)
    zoo = jt.Zoo(EARLIER / "zoo")
    images = jt.load_probe(photos, size=16).images
    methods = ["saliency", "epsilon_lrp", "rsa"]
    if zoo_in_memory:  # points of networks in memory have the same keys
        resumed = jt.affinity_matrix(list(zoo), images, methods=methods, directory=out)
    else:
        resumed, _ = run_affinity(zoo, photos, out, command=["test"], methods=methods, size=16)
        record = json.loads((out / "run.json").read_text())
        # Representations had no places, so that of the finished network is computed again, but not its maps.
        assert set(record["batch_sizes"]) == {"program", "program_too", "room"}, "networks that were computed"
        assert len(record["starts"]) == 2
        assert record["finished"]
    key = "points/program/saliency/key.json"
    assert (out / key).stat().st_mtime == (EARLIER / "affinity" / key).stat().st_mtime, "it was not computed again"
    anew = jt.affinity_matrix(list(zoo), images, methods=methods)
    for method in methods:
        np.testing.assert_allclose(resumed[method], anew[method], atol=1e-6)


@pytest.mark.slow
def test_a_run_of_principal_gradients_loads_and_takes_a_task_more(tmp_path):
    out = tmp_path / "run"
    shutil.copytree(EARLIER / "pge", out)
    earlier = load_run(out)
    assert earlier.names == ("t0", "t1")
    before = {file.name: file.stat().st_mtime_ns for file in (out / "gradients").iterdir()}
    options = PGEOptions(size=16, restarts=16, ways=3, shots=2, queries=3, control=False)
    with_another = run_pge(tasks(tmp_path, 3), out, options, command=["test"])
    after = {file.name: file.stat().st_mtime_ns for file in (out / "gradients").iterdir()}
    assert set(after) == {"t0.npz", "t1.npz", "t2.npz"}
    assert {name: after[name] for name in before} == before, "they were not computed again"
    now = load_run(out)
    assert now.names == ("t0", "t1", "t2")
    np.testing.assert_array_equal(now["gap"][:2, :2], earlier["gap"])
    assert with_another.names == now.names


def test_shipped_manifests_load():
    """Those of Rooms were written before, too."""
    zoo = rooms.zoo()
    assert {zoo.manifest(name)["apply"]["name"] for name in zoo.names} == {"jaxtransfer.rooms.networks:encode"}
    assert zoo["normal"].apply is rooms_networks.encode
