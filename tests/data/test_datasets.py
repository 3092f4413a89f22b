import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer import JaxTransferError
from jaxtransfer.data.datasets import LabelledTask, read_tasks
from jaxtransfer.data.probe import load_probe


def _picture(file: Path, value: int, shape=(12, 16)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (*shape, 3)).astype(np.uint8)
    pixels[0] = value
    Image.fromarray(pixels).save(file)


def _dataset(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            _picture(folder / name / f"{i}.png", 10 * seed + i)
    return folder


def _npz(file: Path, x, y) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, x=x, y=y)
    return file


def _only(path, size=8, **options) -> LabelledTask:
    (task,) = read_tasks([path], size=size, **options)
    return task


X = np.arange(6 * 8 * 8).reshape(6, 8, 8) % 256
Y = np.array([0, 1, 0, 1, 0, 1])


def test_folder_of_datasets(tmp_path):
    _dataset(tmp_path / "b pets", {"cat": 2, "dog": 3})
    _dataset(tmp_path / "a", {"one": 2, "two": 1})
    _picture(tmp_path / "a" / "one" / "deep" / "down" / "x.png", 9)
    _picture(tmp_path / "a" / ".hidden" / "x.png", 9)
    _npz(tmp_path / "c.npz", np.stack([X] * 3, -1), Y)
    (tmp_path / "README.txt").write_text("not a dataset")
    (tmp_path / ".git").mkdir()
    a, b, c = read_tasks([tmp_path], size=8)
    assert [task.name for task in (a, b, c)] == ["a", "b pets", "c"]
    assert {task.target_type for task in (a, b, c)} == {"classes"}
    assert a.labels.tolist() == ["one", "two", "one", "one"]  # in turn
    assert sorted(b.labels.tolist()) == ["cat", "cat", "dog", "dog", "dog"]
    assert a.images.shape == (4, 8, 8, 3)
    assert a.images.dtype == c.images.dtype == np.uint8
    assert a.skipped == b.left_out == ()
    np.testing.assert_array_equal(a.images[0], load_probe(tmp_path / "a" / "one", size=8).images[0])


def test_hash_is_of_what_is_used(tmp_path):
    folder = _dataset(tmp_path / "all" / "a", {"one": 2, "two": 2}).parent
    before = _only(folder).sha256
    assert _only(folder, size=4).sha256 == before
    (folder / "a" / "one" / "0.png").rename(folder / "a" / "one" / "00.png")
    assert _only(folder).sha256 == before
    (folder / "a" / "one").rename(folder / "a" / "three")
    changed = _only(folder).sha256
    assert changed != before
    _picture(folder / "a" / "two" / "1.png", 77)
    assert _only(folder).sha256 not in (before, changed)

    first = _only(_npz(tmp_path / "x.npz", X, Y)).sha256
    assert _only(_npz(tmp_path / "x.npz", X.astype(np.uint8), Y.astype(np.int8))).sha256 == first
    assert _only(_npz(tmp_path / "x.npz", X[::-1], Y)).sha256 != first
    assert _only(_npz(tmp_path / "x.npz", X, Y[::-1])).sha256 != first


def test_files_that_are_no_images_are_listed(tmp_path):
    folder = _dataset(tmp_path / "all" / "a", {"one": 2, "two": 2}).parent
    (folder / "a" / "one" / "0.png").write_bytes(b"nothing")
    (folder / "a" / "stray.png").write_bytes((folder / "a" / "two" / "0.png").read_bytes())
    truncated = folder / "a" / "two" / "0.png"
    truncated.write_bytes(truncated.read_bytes()[:300])
    task = _only(folder)
    assert len(task.images) == 2
    reasons = dict(task.skipped)
    assert set(reasons) == {"stray.png", "one/0.png", "two/0.png"}
    assert reasons["stray.png"] == "it lies in no class folder"
    assert "damaged" in reasons["two/0.png"]
    for name in ("stray.png", "one/0.png", "two/0.png"):
        with pytest.raises(JaxTransferError, match=r"a/(stray|one/0|two/0)\.png cannot be used"):
            _only(folder, strict=True)
        (folder / "a" / name).unlink()
    assert _only(folder, strict=True).skipped == ()


def test_limit_takes_classes_in_turn(tmp_path):
    folder = _dataset(tmp_path / "all" / "a", {"one": 5, "two": 1, "three": 3}).parent
    assert sorted(_only(folder, limit=6).labels.tolist()) == ["one"] * 3 + ["three"] * 2 + ["two"]
    (folder / "a" / "one" / "0.png").write_bytes(b"nothing")
    assert sorted(_only(folder, limit=6).labels.tolist()) == ["one"] * 2 + ["three"] * 3 + ["two"]
    file = _npz(tmp_path / "x.npz", X, np.array(["b", "b", "b", "b", "a", "a"]))
    task = _only(file, limit=3)
    assert task.labels.tolist() == ["a", "b", "a"]
    np.testing.assert_array_equal(task.images[..., 0], X[[4, 0, 5]])


def test_small_classes_are_left_out(tmp_path):
    folder = _dataset(tmp_path / "all" / "a", {"large": 4, "small": 2, "other": 3, "none": 0, "broken": 1}).parent
    (folder / "a" / "broken" / "0.png").write_bytes(b"nothing")
    task = _only(folder, ways=2, smallest=3)
    assert set(task.labels) == {"large", "other"}
    assert len(task.images) == 7
    assert task.left_out == (("broken", 0), ("none", 0), ("small", 2))
    with pytest.raises(JaxTransferError, match="needs 3 classes with 3 images or more, but only 2 of its 5 classes"):
        _only(folder, ways=3, smallest=3)
    with pytest.raises(JaxTransferError, match="within the limit of 4 images"):
        _only(folder, ways=2, smallest=3, limit=4)
    with pytest.raises(JaxTransferError, match="needs 3 classes with images, but only 2"):
        _only(_npz(tmp_path / "x.npz", X, Y), ways=3)


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (Y.astype(np.uint8), "010101"),
        (Y.astype(">i4"), "010101"),
        (np.array(list("ababab")), "ababab"),
        (np.array([b"a", b"b"] * 3), "ababab"),
        (Y.astype(bool), ["False", "True"] * 3),
    ],
)
def test_classes_of_any_type(tmp_path, y, expected):
    task = _only(_npz(tmp_path / "a.npz", X, y))
    assert task.target_type == "classes"
    assert task.labels.tolist() == list(expected)


def test_numbers_and_dense_targets(tmp_path):
    rng = np.random.default_rng(0)
    numbers = _only(_npz(tmp_path / "n.npz", X, rng.normal(size=(6, 3))))
    assert (numbers.target_type, numbers.labels.shape, numbers.labels.dtype) == ("numbers", (6, 3), np.float32)
    y = np.broadcast_to(np.arange(10.0)[None, None, :, None], (6, 8, 10, 2))
    dense = _only(_npz(tmp_path / "d.npz", np.zeros((6, 8, 10), np.uint8), y), size=8)
    assert (dense.target_type, dense.labels.shape, dense.labels.dtype) == ("dense", (6, 8, 8, 2), np.float32)
    np.testing.assert_array_equal(dense.labels[0, 0, :, 0], np.arange(1.0, 9.0))
    assert _only(_npz(tmp_path / "d.npz", np.zeros((6, 8, 10), np.uint8), y), limit=2).labels.shape == (2, 8, 8, 2)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 16), (20, 14, 5), (9, 30, 9)])
def test_images_are_cropped_and_resized_as_by_pillow(tmp_path, height, width, size):
    x = np.random.default_rng(0).normal(size=(3, height, width)).astype(np.float32)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    expected = [
        Image.fromarray(image[top : top + side, left : left + side]).resize((size, size), Image.Resampling.BILINEAR)
        for image in x
    ]
    images = _only(_npz(tmp_path / "a.npz", x, Y[:3]), size=size).images
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[..., 0], np.stack([np.asarray(image) for image in expected]), atol=2e-5)
    integers = np.clip(np.rint(100 + 40 * x), 0, 255).astype(np.int16)
    images = _only(_npz(tmp_path / "a.npz", integers, Y[:3]), size=size).images
    assert images.dtype == np.uint8
    for image, resized in zip(integers.astype(np.float32), images[..., 0].astype(float), strict=True):
        cut = Image.fromarray(image[top : top + side, left : left + side])
        assert np.abs(np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)) - resized).max() <= 0.501


def test_floats_are_used_unchanged(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 5)) * 1e6
    task = _only(_npz(tmp_path / "a.npz", x, Y))
    np.testing.assert_array_equal(task.images, x.astype(np.float32))


def test_grey_beside_colour(tmp_path):
    grey = _npz(tmp_path / "grey.npz", X, Y)
    colour = _npz(tmp_path / "colour.npz", np.stack([X] * 3, -1), Y)
    alone = read_tasks([grey], size=8)
    assert alone[0].images.shape[-1] == 1
    one, two = read_tasks([grey, colour], size=8)
    np.testing.assert_array_equal(one.images, two.images)
    assert one.sha256 == alone[0].sha256
    four = _npz(tmp_path / "four.npz", np.stack([X] * 4, -1), Y)
    with pytest.raises(JaxTransferError, match="grey 1, four 4"):
        read_tasks([grey, four], size=8)


def test_toml(tmp_path):
    _dataset(tmp_path / "data" / "pets", {"cat": 3, "dog": 3, "7": 3})
    _npz(tmp_path / "data" / "a.npz", np.stack([X] * 3, -1), np.array([0.0, 1, 2, 0, 1, 2]))
    (tmp_path / "tasks.toml").write_text(
        """
        [datasets.some-pets]
        path = "data/pets"
        classes = ["dog", 7]
        limit = 4
        [datasets."all pets"]
        path = "data/pets"
        target = "classes"
        [datasets.digits]
        path = "data/a.npz"
        target = "classes"
        classes = ["0", "2"]
        [datasets.regression]
        path = "data/a.npz"
        target = "numbers"
        """
    )
    some, every, digits, regression = read_tasks([tmp_path / "tasks.toml"], size=8, limit=5)
    assert [task.name for task in (some, every, digits, regression)] == [
        "some-pets",
        "all pets",
        "digits",
        "regression",
    ]
    assert some.labels.tolist() == ["dog", "7", "dog", "7"]
    assert len(every.images) == 5
    assert digits.labels.tolist() == ["0", "2", "0", "2"]
    assert regression.target_type == "numbers"
    np.testing.assert_array_equal(regression.labels, np.array([[0, 1, 2, 0, 1]], np.float32).T)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets = 3", r"\[datasets.NAME\]"),
        ("", r"\[datasets.NAME\]"),
        ("[datasets]", r"\[datasets.NAME\]"),
        ("x = [", "not valid TOML"),
        ('[datasets.a]\npath = "a.npz"\n[other]', "nothing else"),
        ("[datasets]\na = 3", "must be a table"),
        (
            '[datasets.a]\npath = "a.npz"\ncolour = 3',
            r"no option 'colour' for .*datasets\.a; there are: columns, path, target, classes, limit, labels, dense\.$",
        ),
        ("[datasets.a]", r"datasets\.a cannot be used: it has no path\."),
        ("[datasets.a]\npath = 3", "its path should be a valid string, not 3"),
        ('[datasets.a]\npath = "nowhere"', r"nowhere is neither a folder nor an \.npz file"),
        ('[datasets.a]\npath = "tasks.toml"', "neither a folder nor"),
        (
            '[datasets.a]\npath = "a.npz"\ntarget = "words"',
            "no target 'words' for .*; there are: classes, numbers, dense",
        ),
        ('[datasets.a]\npath = "a.npz"\ntarget = "dense"', "does not fit the target 'dense'"),
        ('[datasets.a]\npath = "a.npz"\nclasses = []', "its classes should have at least 1 item"),
        ('[datasets.a]\npath = "a.npz"\nclasses = [true]', "its classes.0 should be text or an integer, not True"),
        ('[datasets.a]\npath = "a.npz"\nclasses = "0"', "its classes should be a valid list, not '0'"),
        ('[datasets.a]\npath = "a.npz"\nclasses = ["9"]', "no class '9' in .*; there are: 0, 1"),
        ('[datasets.a]\npath = "pets"\nclasses = ["9"]', "no class '9' in .*; there are: cat, dog"),
        ('[datasets.a]\npath = "pets"\ntarget = "numbers"', "its target must be classes"),
        (
            '[datasets.a]\npath = "a.npz"\ntarget = "numbers"\nclasses = ["0"]',
            "lists classes, which the target 'numbers' does not have",
        ),
        ('[datasets.a]\npath = "numbers.npz"\nclasses = ["0"]', "whose targets are numbers"),
        ('[datasets.a]\npath = "numbers.npz"\ntarget = "classes"', "does not fit the target 'classes'"),
        ('[datasets.a]\npath = "a.npz"\nlimit = 0', "its limit should be greater than or equal to 1, not 0"),
        ('[datasets.a]\npath = "a.npz"\nlimit = true', "its limit should be a valid integer, not True"),
        ('[datasets."../a"]\npath = "a.npz"', "cannot be part of a file name"),
        ('[datasets.".a"]\npath = "a.npz"', "cannot be part of a file name"),
        ('[datasets.""]\npath = "a.npz"', "cannot be part of a file name"),
        ('[datasets."a.partial"]\npath = "a.npz"', "must not end in .partial"),
    ],
)
def test_bad_toml(tmp_path, text, message):
    _npz(tmp_path / "a.npz", X, Y)
    _npz(tmp_path / "numbers.npz", X, np.zeros((6, 2)))
    _dataset(tmp_path / "pets", {"cat": 1, "dog": 1})
    (tmp_path / "tasks.toml").write_text(text)
    with pytest.raises(JaxTransferError, match=message) as caught:
        read_tasks([tmp_path / "tasks.toml"], size=8)
    assert "tasks.toml" in str(caught.value)


def test_toml_of_another_encoding(tmp_path):
    (tmp_path / "tasks.toml").write_bytes("[datasets.é]".encode("latin-1"))
    with pytest.raises(JaxTransferError, match="not valid TOML"):
        read_tasks([tmp_path / "tasks.toml"], size=8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "has no y, only x"),
        ({"y": Y}, "has no x, only y"),
        ({"x": X, "y": Y[:5]}, "6 images and y 5 labels"),
        ({"x": X[0], "y": Y}, r"x must hold images"),
        ({"x": X[:0], "y": Y[:0]}, r"x must hold images .* not 0x8x8"),
        ({"x": np.zeros((6, 3, 8, 8)), "y": Y}, "channels first"),
        ({"x": X - 1, "y": Y}, "runs from -1 to"),
        ({"x": X * 300, "y": Y}, "integers must lie in 0 to 255"),
        ({"x": X > 4, "y": Y}, "x is bool"),
        ({"x": X.astype(str), "y": Y}, "x is <U"),
        ({"x": X * 1j, "y": Y}, "x must be an array of numbers or text"),
        ({"x": np.where(X == 7, np.nan, X), "y": Y}, "x holds values that are not finite"),
        ({"x": np.where(X == 7, 1e300, X), "y": Y}, "x holds values that are not finite"),
        ({"x": X, "y": np.array([[0.0, np.inf]] * 6)}, "y holds values that are not finite"),
        ({"x": X, "y": Y.astype(float)}, r"y is float64 6; save classes as integers or text"),
        ({"x": X, "y": Y[:, None]}, "y is int64 6x1; save classes"),
        ({"x": X, "y": np.zeros((6, 8, 8))}, "y is float64 6x8x8"),
        ({"x": X, "y": np.zeros((6, 4, 4, 1))}, "must have the height and width of the images"),
        ({"x": X, "y": np.zeros((6, 0))}, "y is float64 6x0"),
        ({"x": X, "y": np.int64(3)}, "y must be an array"),
        ({"x": X, "y": np.zeros(6, [("a", int)])}, "y must be an array of numbers or text"),
    ],
)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(JaxTransferError, match=message) as caught:
        _only(tmp_path / "a.npz")
    assert "a.npz" in str(caught.value)


class _Mischief:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickles_are_not_opened(tmp_path):
    mischief = _Mischief(tmp_path / "ran")
    objects = np.array([mischief] * 6, dtype=object)
    np.savez(tmp_path / "a.npz", x=X, y=objects)
    np.savez(tmp_path / "b.npz", x=objects, y=Y)
    (tmp_path / "c.npz").write_bytes(pickle.dumps(mischief))
    for name in "abc":
        with pytest.raises(JaxTransferError, match=rf"{name}\.npz: it holds Python objects, which are not unpickled"):
            _only(tmp_path / f"{name}.npz")
    assert not (tmp_path / "ran").exists()


def test_damaged_npz(tmp_path):
    whole = _npz(tmp_path / "a.npz", X, Y).read_bytes()
    single = io.BytesIO()
    np.save(single, X)
    with zipfile.ZipFile(tmp_path / "no-arrays.npz", "w") as archive:
        archive.writestr("x", "text")
        archive.writestr("y", "text")
    huge = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }".ljust(
        118
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("x.npy", huge)
    for name, content, message in [
        ("short", whole[:200], "is damaged"),
        ("half", whole[: len(whole) // 2], "is damaged"),
        ("text", b"hello", "it is damaged|it holds Python objects"),
        ("empty", b"", "is damaged"),
        ("flipped", whole[:400] + bytes(100) + whole[500:], "is damaged"),
        ("single", single.getvalue(), "is a single array"),
        ("no-arrays", None, "x must be an array"),
        ("huge", None, "is damaged"),
    ]:
        if content is not None:
            (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(JaxTransferError, match=message) as caught:
            _only(tmp_path / f"{name}.npz")
        assert f"{name}.npz" in str(caught.value)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(JaxTransferError, match="not a regular file"):
        _only(tmp_path / "pipe.npz")


def test_bad_paths(tmp_path):
    _npz(tmp_path / "one" / "a.npz", X, Y)
    _dataset(tmp_path / "two" / "a", {"cat": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "a").mkdir(parents=True)
    (tmp_path / "hollow" / "a" / "cat").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    (tmp_path / "three" / "bad\nname").mkdir(parents=True)
    for paths, message in [
        ([], "There are no tasks"),
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "empty holds no datasets"),
        (["bare"], r"bare/a has no class folders"),
        (["two/a"], r"two/a/cat has no class folders.*the datasets lie in one folder"),
        (["hollow"], r"hollow/a hold no image that can be used"),
        (["file.txt"], r"file\.txt is neither a folder of datasets nor"),
        (["three"], "cannot be part"),
        (["one", "two"], r"Two datasets have the name 'a': .*one/a\.npz and .*two/a;"),
        (["one/a.npz", "one"], "Two datasets have the name 'a'"),
    ]:
        with pytest.raises(JaxTransferError, match=message):
            read_tasks([tmp_path / path for path in paths], size=8)
    for size, limit in ((0, None), (8, 0)):
        with pytest.raises(JaxTransferError, match=r"1 .*or more, not 0"):
            read_tasks([tmp_path / "one"], size=size, limit=limit)


def test_photos_by_the_class_in_their_names(tmp_path, shared_data):
    for photo in sorted((shared_data / "probe_photos").iterdir()):
        folder = tmp_path / "all" / "photos" / photo.stem.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    task = _only(tmp_path / "all", size=16, ways=5, smallest=15)
    assert task.images.shape == (187, 16, 16, 3)
    assert task.left_out == (("truck", 13),)
    limited = _only(tmp_path / "all", size=16, limit=24)
    assert len(set(limited.labels)) == 12
    assert {(limited.labels == name).sum() for name in set(limited.labels)} == {2}
