import errno
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer import JaxTransferError
from jaxtransfer.data import probe as probe_module
from jaxtransfer.data.probe import load_probe
from support.helpers import random_pixels


def _gradient(height=40, width=60) -> np.ndarray:
    """A smooth colour picture, different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], -1).astype(np.uint8)


def _only(folder: Path, size=32) -> np.ndarray:
    probe = load_probe(folder, size=size)
    assert probe.images.shape == (1, size, size, 3)
    assert probe.images.dtype == np.uint8
    assert probe.skipped == ()
    return probe.images[0].astype(int)


def test_order_names_and_hash(tmp_path):
    for name in ["b.png", "a.jpg", "sub/c.png", ".hidden.png", ".git/d.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(_gradient()).save(tmp_path / name)
    probe = load_probe(tmp_path, size=16)
    assert probe.names == ("a.jpg", "b.png", "sub/c.png")
    np.testing.assert_array_equal(probe.images[1], probe.images[2])  # equal content is kept
    again = load_probe(tmp_path, size=16)
    np.testing.assert_array_equal(again.images, probe.images)
    assert again.sha256 == probe.sha256
    assert load_probe(tmp_path, size=16, limit=2).names == ("a.jpg", "b.png")
    assert load_probe(tmp_path, size=16, limit=2).sha256 != probe.sha256
    (tmp_path / "b.png").rename(tmp_path / "bb.png")
    assert load_probe(tmp_path, size=16).sha256 != probe.sha256


def test_is_the_centre_resized(tmp_path):
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (_only(tmp_path) == 200).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (700, 3), (256, 256)])
def test_any_size(tmp_path, shape):
    Image.fromarray(_gradient(*shape)).save(tmp_path / "a.png")
    _only(tmp_path)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"),
        ("L", "a.jpg"),
        ("LA", "a.png"),
        ("RGBA", "a.webp"),
        ("P", "a.gif"),
        ("P", "a.png"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("YCbCr", "a.jpg"),
        ("RGB", "a.bmp"),
        ("RGB", "a.ppm"),
        ("RGB", "a.tif"),
    ],
)
def test_modes_keep_the_picture(tmp_path, mode, name):
    picture = Image.fromarray(_gradient(40, 40))
    (picture.quantize(256) if mode == "P" else picture.convert(mode)).save(tmp_path / name)
    image = _only(tmp_path, size=40)
    expected = np.asarray(picture.convert("L").convert("RGB") if mode[0] == "L" else picture).astype(int)
    assert np.abs(image - expected).mean() < 10


def test_one_bit(tmp_path):
    Image.fromarray(np.tile([[True, False]], (20, 10))).save(tmp_path / "a.png")
    image = _only(tmp_path, size=20)
    np.testing.assert_array_equal(image[:, ::2], 255)
    np.testing.assert_array_equal(image[:, 1::2], 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(_only(tmp_path, size=16)[..., 0].ravel(), np.arange(256))


def test_floating_point(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(_only(tmp_path, size=16)[..., 2].ravel(), np.arange(256))
    Image.fromarray(values * 3).save(tmp_path / "b.tif")
    Image.fromarray(values * np.nan).save(tmp_path / "c.tif")
    assert [name for name, reason in load_probe(tmp_path).skipped if "within 0 to 1" in reason] == [
        "b.tif",
        "c.tif",
    ]


def test_transparency_lies_on_white(tmp_path):
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[:10] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = _only(tmp_path, size=20)
    assert (image[:10] == (255, 0, 0)).all()
    assert (image[10:] == 255).all()


def test_transparent_palette(tmp_path):
    picture = Image.fromarray(np.repeat([[0], [1]], 20, axis=0).astype(np.uint8).repeat(40, axis=1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=1)
    image = _only(tmp_path, size=40)
    assert (image[:20] == (10, 20, 30)).all()
    assert (image[20:] == 255).all()


def test_orientation(tmp_path):
    upright = _gradient(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(_only(tmp_path, size=40), upright)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (_only(tmp_path, size=8) == (255, 0, 0)).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.tif", "a.webp", "a.bmp", "a.ppm"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_skipped(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(_gradient()).save(tmp_path / "good.png")
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    probe = load_probe(tmp_path, size=16)
    assert probe.names == ("good.png",)
    assert [skipped for skipped, _ in probe.skipped] == [name]
    with pytest.raises(JaxTransferError, match=name):
        load_probe(tmp_path, size=16, strict=True)


def test_copies_are_counted(tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1, "d": 0}.items():
        Image.fromarray(random_pixels(seed)).save(tmp_path / f"{name}.png")
    assert load_probe(tmp_path, size=8).copies == 2
    assert load_probe(tmp_path, size=8, limit=1).copies == 0


def test_folders_of_runs_are_ignored(tmp_path):
    for folder in ("", "run", "run/figures", "sub"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(random_pixels(0)).save(tmp_path / folder / "a.png")
    (tmp_path / "run" / "run.json").write_text("{}")
    assert load_probe(tmp_path, size=8).names == ("a.png", "sub/a.png")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    Image.fromarray(random_pixels(0)).save(tmp_path / "a.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="^The folder .*locked is left out: Permission denied"):
        assert load_probe(tmp_path, size=8).names == ("a.png",)


def test_large_images_are_decoded_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "_LARGE_PIXELS", 99)
    monkeypatch.setattr(probe_module, "_THREADS", 4)
    square, at_once, most = probe_module._square, [], []

    def spied(image, size):
        at_once.append(image)
        most.append(len(at_once))
        time.sleep(0.02)
        result = square(image, size)
        at_once.pop()
        return result

    monkeypatch.setattr(probe_module, "_square", spied)
    for i in range(4):
        Image.fromarray(random_pixels(i, (10, 10, 3))).save(tmp_path / f"{i}.png")
    assert len(load_probe(tmp_path, size=8).names) == 4
    assert most == [1, 1, 1, 1]


def test_files_that_are_no_images_are_skipped(tmp_path):
    Image.fromarray(_gradient()).save(tmp_path / "good.png")
    Image.fromarray(_gradient()).save(tmp_path / "drawing.eps")  # Pillow would run Ghostscript
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    probe = load_probe(tmp_path, size=16)
    assert probe.names == ("good.png",)
    assert dict(probe.skipped) == {
        "drawing.eps": "it is not an image of a known format",
        "notes.txt": "it is not an image of a known format",
        "empty.jpg": "it is not an image of a known format",
        "gone.png": "it is not a regular file",
        "pipe.png": "it is not a regular file",
    }


@pytest.mark.parametrize("pixels", [60 * 40 - 1, 60 * 40 // 2 - 1])
def test_too_many_pixels(tmp_path, monkeypatch, pixels):
    Image.fromarray(_gradient(8, 8)).save(tmp_path / "good.png")
    Image.fromarray(_gradient()).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert load_probe(tmp_path, size=16).skipped == (("bomb.png", f"it has more than {pixels} pixels"),)


def test_limit_counts_what_can_be_used(tmp_path):
    for i in range(40):
        if i % 2:
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
        else:
            (tmp_path / f"{i:02}.png").write_bytes(b"nothing")
    probe = load_probe(tmp_path, size=8, limit=18)
    np.testing.assert_array_equal(probe.images[:, 0, 0, 0], np.arange(1, 37, 2))
    assert len(probe.skipped) == 18


def test_links(tmp_path):
    photos, probe_folder = tmp_path / "photos", tmp_path / "probe"
    photos.mkdir()
    probe_folder.mkdir()
    Image.fromarray(_gradient()).save(photos / "a.png")
    (probe_folder / "photos").symlink_to(photos)
    (photos / "loop").symlink_to(probe_folder)
    assert load_probe(probe_folder, size=8).names == ("photos/a.png",)


def test_unusable_folders(tmp_path):
    with pytest.raises(JaxTransferError, match="holds no files"):
        load_probe(tmp_path)
    with pytest.raises(JaxTransferError, match="does not exist"):
        load_probe(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(JaxTransferError, match="is not a folder"):
        load_probe(tmp_path / "a.txt")
    with pytest.raises(JaxTransferError, match=r"None of the 1 files .* a.txt"):
        load_probe(tmp_path)
    with pytest.raises(JaxTransferError, match="1 or more, not 0"):
        load_probe(tmp_path, limit=0)
    with pytest.raises(JaxTransferError, match="1 pixel or more"):
        load_probe(tmp_path, size=0)


def test_leaves_the_warning_filters_alone(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    before = list(warnings.filters)
    with pytest.raises(JaxTransferError):
        load_probe(tmp_path, strict=True)
    assert list(warnings.filters) == before


def test_real_photos(shared_data):
    probe = load_probe(shared_data / "probe_photos", limit=8)
    assert probe.images.shape == (8, 256, 256, 3)
    assert probe.images.std() > 20
