import jax
import pytest

from jaxtransfer import JaxTransferError
from jaxtransfer.devices import connect, device_mesh, parse_mesh


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
