"""Networks of hubs: local snapshots in the hubs' own layout and random weights, compared with PyTorch."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import jaxtransfer as jt  # noqa: E402
from jaxtransfer.cli.app import app  # noqa: E402
from jaxtransfer.converters import hubs  # noqa: E402
from support.torch_modules import outputs  # noqa: E402

hubs._import("timm")
hubs._import("transformers")

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def _photograph(height, width):
    with get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _as_array(image):
    return jnp.asarray(np.asarray(image), jnp.float32)[None] / 255


def _random(module):
    """Fresh weights with batch norms that are not trivial."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.normal_(layer.running_mean)
    return module.eval()


def _close(ours, theirs):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A network of timm as its hub stores it, and the module."""
    folder = tmp_path_factory.mktemp("hub") / "my-resnet"
    folder.mkdir()
    module = _random(timm.create_model("test_resnet", num_classes=7))
    settings = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3],
                "std": [0.3, 0.2, 0.1], "pool_size": [2, 2], "first_conv": "conv1.0", "classifier": "fc"}  # fmt: skip
    config = {"architecture": "test_resnet", "num_classes": 7, "num_features": 96, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(module.state_dict(), folder / "model.safetensors")
    return folder, module


def test_timm(timm_folder, tmp_path):
    folder, module = timm_folder
    result = _run("timm", folder, "no_such_network", tmp_path)
    assert result.exit_code == 1, result.output
    assert "Added to the zoo" in result.stdout
    assert "Error: timm cannot load no_such_network: Unknown model (no_such_network)." in result.stderr
    network = jt.Zoo(tmp_path)["my-resnet"]
    assert network.preprocess == jt.Preprocess(
        (64, 64), (0.5, 0.4, 0.3), (0.3, 0.2, 0.1), resize=(71, 71), interpolation="cubic"
    )
    x = network.preprocess(_as_array(_photograph(90, 90)))
    with torch.no_grad():
        features = module.forward_features(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2)))
        _close(network.apply(network.params, x), module.forward_head(features, pre_logits=True))
    manifest = jt.Zoo(tmp_path).manifest("my-resnet")
    assert manifest["outputs"] == {"representation": {"kind": "vector", "shape": [96]}}
    assert {**manifest["source"], "name": ""}.items() >= {"hub": "timm", "timm": timm.__version__, "name": ""}.items()

    again = _run("timm", folder, tmp_path)
    assert again.exit_code == 0
    assert "nothing. It already had: my-resnet" in again.stdout
    other = _run("timm", folder, tmp_path, "--representation", "layer3")
    assert other.exit_code == 2
    assert "already has another network 'my-resnet'" in other.stderr


def test_names_in_a_file_and_layers_of_timm(timm_folder, tmp_path):
    (tmp_path / "nets.txt").write_text(f"# mine\n{timm_folder[0]}  # small\n\n")
    options = ["--name", "two", "--representation", "layer3", "--representation", "pre-head", "--random-weights"]
    result = _run("timm", tmp_path / "nets.txt", tmp_path / "zoo", *options)
    assert result.exit_code == 0, result.output
    assert jt.Zoo(tmp_path / "zoo").manifest("two")["outputs"] == {
        "layer3": {"kind": "grid", "shape": [4, 4, 192]},
        "pre-head": {"kind": "vector", "shape": [96]},
    }
    listed = _run("timm", timm_folder[0], tmp_path / "none", "--list")
    assert "\nlayer3  192x4x4  grid\n" in listed.stdout
    assert listed.stdout.endswith("fc  7  vector\n")
    assert not (tmp_path / "none").exists()
    refused = _run("timm", timm_folder[0], tmp_path / "none", "--representation", "layer33")
    assert refused.exit_code == 2
    assert "There is no layer 'layer33' in this network; there are: layer3, " in refused.stderr


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    """A ViT as the hub stores it, without the weights of its pooler, and the module."""
    folder = tmp_path_factory.mktemp("hub") / "vit"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
    )
    module = transformers.ViTModel(config, add_pooling_layer=False).eval()
    module.save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2,
                 "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_resize": True}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, module


def test_transformers(transformers_folder, tmp_path):
    folder, module = transformers_folder
    assert _run("transformers", folder, tmp_path).exit_code == 0
    network = jt.Zoo(tmp_path)["vit"]
    assert network.preprocess == jt.Preprocess((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    x = network.preprocess(_as_array(_photograph(50, 50)))
    with torch.no_grad():
        tokens = module(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    _close(network.apply(network.params, x), tokens[:, 0])  # the pooler's weights would be random


def test_representations_of_transformers(transformers_folder, tmp_path):
    folder, module = transformers_folder
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    with torch.no_grad():
        tokens = module(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    options = ["--name", "grid", "--representation", "last_hidden_state", "--tokens", "grid"]
    assert _run("transformers", folder, tmp_path, *options).exit_code == 0
    grid = jt.Zoo(tmp_path)["grid"]
    _close(grid.apply(grid.params, x), tokens[:, 1:].reshape(2, 4, 4, 32))
    refused = _run("transformers", folder, tmp_path, "--name", "pooled", "--representation", "pooler_output")
    assert refused.exit_code == 2
    assert "does not come with the weights pooler.dense.bias, pooler.dense.weight" in refused.stderr


def test_a_pooler_that_is_trained_is_used():
    config = transformers.ConvNextConfig(num_stages=1, hidden_sizes=[8], depths=[1])
    processor = hubs._preprocess_of_processor(
        {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, "rescale_factor": 1 / 255,
         "do_normalize": True, "image_mean": IMAGENET[0], "image_std": IMAGENET[1]}
    )  # fmt: skip
    assert processor == jt.Preprocess((224, 224), *IMAGENET, resize=(256, 256), interpolation="cubic")
    module = transformers.ConvNextModel(config).eval()
    network = jt.from_torch(module, torch.zeros(1, 3, 32, 32), name="x", representation="pooler_output")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    with torch.no_grad():
        theirs = module(torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())).pooler_output
    _close(network.apply(network.params, x), theirs)


def test_torchvision_from_its_cache(tmp_path, monkeypatch):
    """The file that torchvision would download is used from where it would be put."""
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    module = _random(torchvision.models.squeezenet1_1())
    torch.save(module.state_dict(), tmp_path / "hub" / "checkpoints" / Path(weights.url).name)
    assert _run("torchvision", "squeezenet1_1", tmp_path / "zoo").exit_code == 0
    network = jt.Zoo(tmp_path / "zoo")["squeezenet1_1"]
    assert network.preprocess == jt.Preprocess((224, 224), *IMAGENET, resize=(256, 256))
    x = network.preprocess(_as_array(_photograph(256, 256)))
    _close(jax.jit(network.apply)(network.params, x), outputs(module.features, x).mean((2, 3)))


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("We couldn't connect.\nCheck your internet connection.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    result = _run("transformers", "some/network", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.strip() == "Error: transformers cannot load some/network: We couldn't connect."


@pytest.mark.parametrize("hub", ["timm", "torchvision", "transformers"])
def test_missing_packages(hub, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == hub]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, hub, None)
    result = _run(hub, "a", tmp_path)
    assert result.exit_code == 2
    assert f'pip install "jaxtransfer[{hub}]"' in result.stderr


def test_names_in_a_zoo():
    assert hubs.zoo_name("facebook/dinov2-small") == "facebook--dinov2-small"
    assert hubs.zoo_name("hf-hub:timm/vit.augreg") == "timm--vit.augreg"
    assert hubs.zoo_name("resnet18", random_weights=True) == "resnet18-random"
    with pytest.raises(jt.JaxTransferError, match="One network can be named 'x', but 2 are given"):
        hubs.convert("timm", ["a", "b"], jt.Zoo("zoo"), name="x")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("side", "size", "crop"), [(256, 64, 0.875), (300, 80, 0.95), (256, 96, 1.0), (300, 224, 0.875)]
)
def test_preprocessing_is_that_of_timm(side, size, crop, interpolation):
    """To 1.3 of 255 levels: Pillow rounds to 8 bits after each of its two passes."""
    options = {"input_size": (3, size, size), "interpolation": interpolation, "crop_pct": crop}
    transform = timm.data.create_transform(**options, mean=(0, 0, 0), std=(1, 1, 1))
    photograph = _photograph(side, side)
    theirs = transform(photograph).numpy().transpose(1, 2, 0)
    resize = (int(size / crop),) * 2
    ours = hubs._preprocess((size, size), resize, interpolation, (0, 0, 0), (1, 1, 1))(_as_array(photograph))
    assert 255 * np.abs(np.asarray(ours[0]) - theirs).max() < 1.3


def test_preprocessing_is_that_of_torchvision():
    transform = torchvision.models.EfficientNet_B1_Weights.DEFAULT.transforms()
    photograph = _photograph(400, 400)
    ours = hubs._preprocess(
        hubs._pair(transform.crop_size), hubs._pair(transform.resize_size), transform.interpolation.value,
        transform.mean, transform.std,
    )(_as_array(photograph))  # fmt: skip
    difference = np.abs(np.asarray(ours[0]) - transform(photograph).numpy().transpose(1, 2, 0))
    assert difference.max() < 1.3 / 255 / min(transform.std)


def test_preprocessing_is_that_of_transformers(transformers_folder):
    processor = transformers.AutoImageProcessor.from_pretrained(transformers_folder[0])
    photograph = _photograph(90, 90)
    theirs = processor(photograph, return_tensors="pt")["pixel_values"][0].numpy().transpose(1, 2, 0)
    ours = hubs._preprocess_of_processor(processor.to_dict())(_as_array(photograph))
    assert np.abs(np.asarray(ours[0]) - theirs).max() < 1.3 / 255 / 0.5
