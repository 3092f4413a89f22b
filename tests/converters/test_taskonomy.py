"""The converter on files that are right, and on files that are not. The weights are constants: small files."""

import os
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer import taskonomy

torch = pytest.importorskip("torch")
network = pytest.importorskip("visualpriors.taskonomy_network")

from jaxtransfer.converters.taskonomy import convert  # noqa: E402
from support.taskonomy_release import constant_weights, name_by_hash, save  # noqa: E402

SOME_HASH = "0" * 64


@pytest.fixture(scope="module")
def encoder() -> dict[str, Any]:
    return constant_weights(network.TaskonomyEncoder())


@pytest.fixture(scope="module")
def fully_connected() -> dict[str, Any]:
    return constant_weights(network.TaskonomyDecoder(out_channels=63, is_decoder_mlp=True))


@pytest.fixture
def zoo(tmp_path: Path) -> jt.Zoo:
    return jt.Zoo(tmp_path / "zoo")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "weights"


def refuse(weights: Path, zoo: jt.Zoo, *parts: str) -> None:
    """The conversion ends with one sentence that has all `parts`, and leaves the zoo as it was."""
    before = zoo.names
    with pytest.raises(jt.JaxTransferError) as raised:
        convert(weights, zoo)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert zoo.names == before
    if zoo.path.exists():
        assert sorted(path.name for path in zoo.path.iterdir()) == sorted(before)


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_old_and_new_formats(
    encoder: Any, fully_connected: Any, weights: Path, zoo: jt.Zoo, legacy: bool, wrapped: bool
) -> None:
    one = save(weights, "class_scene_encoder", {"state_dict": encoder} if wrapped else encoder, legacy=legacy)
    two = save(
        weights, "class_places_decoder", {"state_dict": fully_connected} if wrapped else fully_connected, legacy=legacy
    )
    (weights / "notes.txt").write_text("not weights")
    seen = []
    assert convert(weights, zoo, lambda *what: seen.append(what)) == ["class_places"]
    assert seen == [(done, 4, "class_places") for done in (1, 2, 3, 4)]
    opened = zoo["class_places"]
    assert opened.apply is taskonomy.encode
    assert opened.preprocess == taskonomy.TASKS["class_places"].preprocess
    assert opened.params["decoder"]["fc2"]["kernel"].shape == (2048, 63)
    assert all((np.asarray(leaf) == 0.5).all() for leaf in jax.tree.leaves(opened.params))
    hashes = {"encoder": one.stem.split("-")[1], "decoder": two.stem.split("-")[1]}
    assert zoo.manifest("class_places")["source"] == {"release": "visualpriors", "sha256": hashes}


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_first_convolution_of_other_widths(encoder: Any, weights: Path, zoo: jt.Zoo, channels: int) -> None:
    save(weights, "colorization_encoder", {**encoder, "conv1.weight": torch.zeros(64, channels, 7, 7)})
    assert convert(weights, zoo) == ["colorization"]
    shape = jax.eval_shape(taskonomy.encode, zoo["colorization"].params, jnp.zeros((1, 64, 64, channels))).shape
    assert shape == (1, 4, 4, 8)
    assert zoo["colorization"].preprocess == jt.Preprocess((256, 256), 0.5, 0.5, lightness=True)


@pytest.mark.slow
def test_batch_counters_may_be_absent(encoder: Any, weights: Path, zoo: jt.Zoo) -> None:
    old = {name: tensor for name, tensor in encoder.items() if "num_batches" not in name}
    assert len(old) < len(encoder)
    save(weights, "normal_encoder", old)
    assert convert(weights, zoo) == ["rgb2sfnorm"]


def test_resumes(encoder: Any, weights: Path, zoo: jt.Zoo) -> None:
    save(weights, "curvature_encoder", encoder)
    assert convert(weights, zoo) == ["curvature"]
    manifest = zoo.path / "curvature" / "network.json"
    written = manifest.stat().st_mtime_ns
    save(weights, "jigsaw_encoder", encoder)
    assert convert(weights, zoo) == ["jigsaw"]
    assert convert(weights, zoo) == []
    assert manifest.stat().st_mtime_ns == written
    file = next(weights.glob("curvature*"))
    file.unlink()
    save(weights, "curvature_encoder", {**encoder, "bn1.bias": torch.zeros(64)})
    save(weights, "reshading_encoder", encoder)
    refuse(weights, zoo, "already has a network 'curvature'", "curvature_encoder-", "convert into another zoo")


def test_checks_everything_first(encoder: Any, weights: Path, zoo: jt.Zoo) -> None:
    save(weights, "autoencoding_encoder", encoder)
    save(weights, "vanishing_point_encoder", {**encoder, "bn1.bias": torch.full((64,), torch.nan)})
    refuse(weights, zoo, "vanishing_point_encoder-", "bn1.bias has values that are not finite")
    assert not zoo.path.exists()


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("layer3.5.conv2.weight", None, "it lacks layer3.5.conv2.weight."),
        ("layer3.6.conv2.weight", torch.zeros(1), "it has unknown entries: layer3.6.conv2.weight."),
        ("layer3.num_batches_tracked", torch.tensor(0), "it has unknown entries: layer3.num_batches_tracked."),
        ("conv1.weight", torch.zeros(64), "conv1.weight has shape (64,), not (64, 1, 7, 7)."),
        ("conv1.weight", torch.zeros(64, 0, 7, 7), "conv1.weight has shape (64, 0, 7, 7), not (64, 1, 7, 7)."),
        (
            "layer1.0.conv1.weight",
            torch.zeros(65, 64, 1, 1),
            "layer1.0.conv1.weight has shape (65, 64, 1, 1), not (64, 64, 1, 1).",
        ),
        ("layer1.0.bn1.weight", torch.zeros(64, 1), "layer1.0.bn1.weight has shape (64, 1), not (64,)."),
        ("bn1.running_var", torch.full((64,), torch.inf), "bn1.running_var has values that are not finite."),
        ("bn1.running_var", torch.full((64,), 1e300, dtype=torch.float64), "bn1.running_var has values that are"),
        ("bn1.running_var", torch.full((64,), -1.0), "bn1.running_var has negative variances."),
        ("bn1.bias", torch.zeros(64, dtype=torch.int32), "bn1.bias is not an array of floating-point numbers."),
        ("bn1.bias", torch.zeros(64).to_sparse(), "bn1.bias is not an array of floating-point numbers."),
        ("bn1.bias", "zeros", "bn1.bias is not an array of floating-point numbers."),
    ],
)
def test_entries_that_do_not_fit(
    encoder: Any, weights: Path, zoo: jt.Zoo, name: str, tensor: Any, complaint: str
) -> None:
    state = {**encoder, name: tensor}
    if tensor is None:
        del state[name]
    file = save(weights, "denoising_encoder", {"state_dict": state})
    refuse(weights, zoo, f"{file} does not fit the encoder of Taskonomy: {complaint}")


def test_many_entries_are_counted(weights: Path, zoo: jt.Zoo) -> None:
    save(weights, "denoise_encoder", {})
    refuse(weights, zoo, "it lacks bn1.bias, bn1.running_mean,", " more.")


def test_decoder_of_another_kind_of_network(encoder: Any, weights: Path, zoo: jt.Zoo) -> None:
    save(weights, "normal_encoder", encoder)
    file = save(weights, "normal_decoder", encoder)
    refuse(weights, zoo, f"{file} does not fit the decoder of Taskonomy: it lacks conv11.0.weight", "more.")


class Malice:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["new", "legacy", "pickle"])
def test_code_is_never_run(weights: Path, zoo: jt.Zoo, form: str) -> None:
    trace = weights / "it-ran"
    content = {"state_dict": Malice(f"touch '{trace}'")}
    if form == "pickle":
        (weights / "unnamed").write_bytes(pickle.dumps(content, protocol=2))
        file = name_by_hash(weights / "unnamed", "denoising_encoder")
    else:
        file = save(weights, "denoising_encoder", content, legacy=form == "legacy")
    refuse(weights, zoo, f"{file} holds something other than tensors")
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(encoder: Any, weights: Path, zoo: jt.Zoo, legacy: bool) -> None:
    file = save(weights, "denoising_encoder", encoder, legacy=legacy)
    file.write_bytes(file.read_bytes()[:-1000])
    refuse(weights, zoo, f"{file} does not have the SHA-256 in its name", "download it again")
    refuse(weights, zoo, str(name_by_hash(file, "denoising_encoder")))


@pytest.mark.parametrize("content", [b"", b"not a file of PyTorch", b"PK\x03\x04"])
def test_files_of_something_else(weights: Path, zoo: jt.Zoo, content: bytes) -> None:
    (weights / "unnamed").write_bytes(content)
    refuse(weights, zoo, str(name_by_hash(weights / "unnamed", "denoising_encoder")))


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"state_dict": 3}])
def test_no_state_dict(weights: Path, zoo: jt.Zoo, content: Any) -> None:
    refuse(weights, zoo, f"{save(weights, 'denoising_encoder', content)} holds no state dict")


def test_directories(weights: Path, zoo: jt.Zoo) -> None:
    refuse(weights / "absent", zoo, "absent is not a directory")
    refuse(weights, zoo, f"{weights} holds no .pth files", "jaxtransfer download taskonomy")
    (weights / f"denoising_decoder-{SOME_HASH}.pth").write_bytes(b"")
    refuse(weights, zoo, f"denoising_decoder-{SOME_HASH}.pth is a decoder without its encoder", "--task denoise")
    for name in ("denoising", "denoise"):
        (weights / f"{name}_encoder-{SOME_HASH}.pth").write_bytes(b"")
    refuse(weights, zoo, f"denoise_encoder-{SOME_HASH}.pth and denoising_encoder", "are both the encoder of denoise")


@pytest.mark.parametrize("name", ["denoising_encoder.pth", f"denoising-{SOME_HASH}.pth", "resnet50-0676ba61.pth"])
def test_names_of_something_else(weights: Path, zoo: jt.Zoo, name: str) -> None:
    (weights / name).write_bytes(b"")
    refuse(weights, zoo, f"{name} is not named like a file of the release")


def test_unknown_task(weights: Path, zoo: jt.Zoo) -> None:
    (weights / f"juggling_encoder-{SOME_HASH}.pth").write_bytes(b"")
    refuse(weights, zoo, f"juggling_encoder-{SOME_HASH}.pth: There is no task 'juggling' in Taskonomy")
