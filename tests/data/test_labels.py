"""Tables of labels, dense labels, several labels an image, missing labels, and one folder that is a data set."""

import csv
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jaxtransfer as jt
from jaxtransfer import JaxTransferError, LabelledTask, read_tasks
from jaxtransfer.data.squares import resize_classes, resize_numbers
from support.helpers import random_pixels

FILES = [f"{letter}.png" for letter in "abcdef"]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(FILES):
        Image.fromarray(random_pixels(seed)).save(folder / name)
    return folder


def _table(folder: Path, columns: dict[str, list[str]], files=FILES, *, name="labels.csv", delimiter=",") -> Path:
    with (folder / name).open("w", newline="") as stream:
        rows = [["file", *columns], *zip(files, *columns.values(), strict=True)]
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return folder / name


def _toml(folder: Path, options: str) -> Path:
    (folder / "tasks.toml").write_text(f"[datasets.a]\n{options}")
    return folder / "tasks.toml"


def _read(path: Path, **options) -> tuple[LabelledTask, ...]:
    return read_tasks([path], size=6, **{"missing": True} | options)


def _only(path: Path, **options) -> LabelledTask:
    [task] = _read(path, **options)
    return task


# Hashes


def test_hashes_are_of_files_and_labels(tmp_path):
    for name, seed in (("x/cat/0.png", 0), ("x/dog/0.png", 1), ("x/dog/1.png", 2)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(seed)).save(tmp_path / name)
    digest = hashlib.sha256()
    for name in ("cat/0.png", "dog/0.png", "dog/1.png"):
        content = hashlib.sha256((tmp_path / "x" / name).read_bytes()).hexdigest()
        digest.update(f"{content}  {name[:3]}\n".encode())
    assert _only(tmp_path / "x").sha256 == digest.hexdigest()

    x, y = random_pixels(0, (4, 6, 6)), np.array([[0.5, 1], [2, 3], [4, 5], [6, 7]], np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    parts = (b"|u1 (4, 6, 6, 1)", x.tobytes(), b"<f4 (4, 2)", y.tobytes())
    assert _only(tmp_path / "a.npz").sha256 == hashlib.sha256(b"".join(parts)).hexdigest()


# One folder, or a folder of data sets


def test_a_folder_of_class_folders_is_one_data_set(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(0)).save(tmp_path / "pets" / name)
    (tmp_path / "pets" / "fox").mkdir()
    task = _only(tmp_path / "pets")
    assert (task.name, task.labels.tolist()) == ("pets", ["cat", "dog", "cat"])
    assert task.image_names == ("cat/1.png", "dog/1.png", "cat/2.png")
    assert task.left_out == (("fox", 0),)
    [inside] = _read(tmp_path)
    assert (inside.name, inside.sha256, inside.image_names) == ("pets", task.sha256, task.image_names)


def test_what_may_be_a_class_beside_what_may_be_a_data_set(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "fox/red/1.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(0)).save(tmp_path / "pets" / name)
    with pytest.raises(JaxTransferError, match=r"pets holds class folders, such as cat, beside .* fox; .*\.toml file"):
        _read(tmp_path / "pets")
    task = _only(_toml(tmp_path, 'path = "pets"'))
    assert sorted(task.labels.tolist()) == ["cat", "dog", "fox"]


def test_a_table_makes_a_folder_a_data_set(photos):
    _table(photos, {"kind": list("xyxyxy")})
    direct, named, inside = _only(photos), _only(photos / "labels.csv"), _only(photos.parent)
    assert direct.name == named.name == inside.name == "photos"
    assert direct.sha256 == named.sha256 == inside.sha256
    other = _table(photos, {"kind": list("xyxyxy")}, name="train.csv")
    assert _only(other).name == "train"


# Kinds of columns

KINDS = {
    "text": (["cat", "dog", "", "cat", "dog", "cat"], "classes", ["cat", "dog", "", "cat", "dog", "cat"]),
    "integers": (list("012012"), "classes", list("012012")),
    "negative": (["-1", "2", "-1", "2", "-1", ""], "classes", ["-1", "2", "-1", "2", "-1", ""]),
    "binary": (list("010101"), "classes", list("010101")),
    "text and integers": (["7", "cat", "7", "cat", "7", "7"], "classes", ["7", "cat", "7", "cat", "7", "7"]),
    "floats": (["1.5", "2", "", "-.5", "1e3", "NaN"], "numbers", [[1.5], [2], [np.nan], [-0.5], [1e3], [np.nan]]),
    "whole floats": (["1.0", "2.0", "3.0", "4.0", "5.0", "6.0"], "numbers", [[1.0], [2], [3], [4], [5], [6]]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_tells_what_its_labels_are(photos, kind):
    cells, target_type, labels = KINDS[kind]
    _table(photos, {"column": cells})
    task = _only(photos)
    by_name = dict(zip(FILES, labels, strict=True))
    expected = np.array([by_name[name] for name in task.image_names], np.float32 if target_type == "numbers" else None)
    assert (task.name, task.target_type, sorted(task.image_names)) == ("photos", target_type, FILES)
    np.testing.assert_array_equal(task.labels, expected)
    assert task.missing == sum(cell in ("", "NaN") for cell in cells)


def test_columns_of_one_kind_are_one_task(photos):
    columns = {
        "red": ["0", "1", "", "0", "1", "1"],
        "breed": ["pug", "tom", "pug", "tom", "", "pug"],
        "size": ["1.5", "2", "2.5", "", "4", "5"],
        "furry": ["True", "False", "True", "False", "True", "false"],
        "weight": ["10", "20.5", "30", "40", "50", "60"],
        "lives": ["9", "7", "9", "7", "9", "7"],
    }
    _table(photos, columns)
    tasks = {task.name: task for task in _read(photos)}
    assert [(name, task.target_type) for name, task in tasks.items()] == [
        ("photos.multilabel", "multilabel"),
        ("photos.breed", "classes"),
        ("photos.numbers", "numbers"),
        ("photos.lives", "classes"),
    ]
    order = [FILES.index(name) for name in tasks["photos.breed"].image_names]
    assert [columns["breed"][i] for i in order] == ["pug", "tom", "pug", "tom", "pug", ""]  # in turn, missing ones last
    nan = np.nan
    red_and_furry = np.array([[0, 1], [1, 0], [nan, 1], [0, 0], [1, 1], [1, 0]], np.float32)
    size_and_weight = np.array([[1.5, 10], [2, 20.5], [2.5, 30], [nan, 40], [4, 50], [5, 60]], np.float32)
    np.testing.assert_array_equal(tasks["photos.multilabel"].labels, red_and_furry[order])
    np.testing.assert_array_equal(tasks["photos.numbers"].labels, size_and_weight[order])
    assert {id(task.images) for task in tasks.values()} == {id(tasks["photos.breed"].images)}
    assert {task.image_names for task in tasks.values()} == {tasks["photos.breed"].image_names}
    assert len({task.sha256 for task in tasks.values()}) == 4
    for i, image in zip(order, tasks["photos.breed"].images, strict=True):
        expected = Image.fromarray(random_pixels(i)[:, 1:10]).resize((6, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_a_toml_file_says_what_columns_are(photos):
    _table(photos, {"a": list("010101"), "age": ["3", "4", "5", "", "7", "8"], "b": ["0", "1", "1", "", "1", "0"]})
    age = _only(_toml(photos.parent, 'path = "photos"\ncolumns = ["age"]\ntarget = "numbers"'))
    assert (age.name, age.target_type, age.missing) == ("a", "numbers", 1)
    np.testing.assert_array_equal(age.labels[:, 0], [3, 4, 5, np.nan, 7, 8])
    one = _only(_toml(photos.parent, 'path = "photos/labels.csv"\ncolumns = ["b"]\ntarget = "multilabel"'))
    assert (one.target_type, one.labels.shape) == ("multilabel", (6, 1))
    both = _read(_toml(photos.parent, 'path = "photos"\ncolumns = ["b", "a"]\ntarget = "classes"'))
    assert [(task.name, task.target_type) for task in both] == [("a.b", "classes"), ("a.a", "classes")]
    some = _only(_toml(photos.parent, 'path = "photos"\ncolumns = ["age"]\nclasses = [7, "3"]'))
    assert (some.labels.tolist(), some.image_names) == (["3", "7"], ("a.png", "e.png"))


def test_a_table_may_lie_elsewhere(photos):
    elsewhere = photos.parent / "tables"
    elsewhere.mkdir()
    _table(elsewhere, {"kind": list("xyxyxy")}, name="kinds.csv")
    task = _only(_toml(photos.parent, 'path = "photos"\nlabels = "tables/kinds.csv"'))
    assert task.labels.tolist() == list("xyxyxy")
    assert task.path == str(elsewhere / "kinds.csv")


# Forms of a table


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiters_and_byte_order_marks(photos, delimiter, mark):
    lines = [
        "name|file|age",
        *(f"n|{file}|{i},5" if delimiter == ";" else f"n|{file}|{i}.5" for i, file in enumerate(FILES)),
    ]
    text = "\r\n".join([*lines, "", "||"]).replace("|", delimiter)
    (photos / "labels.csv").write_bytes((mark + text).encode())
    name, age = _read(photos)
    assert (name.labels.tolist(), age.target_type) == (["n"] * 6, "numbers")
    np.testing.assert_array_equal(age.labels[:, 0], np.arange(6) + 0.5)


@given(order=st.permutations(range(6)), limit=st.sampled_from([None, 3]))
@settings(max_examples=8, deadline=None)
def test_the_order_of_rows_does_not_matter(tmp_path_factory, order, limit):
    folder = tmp_path_factory.mktemp("rows")
    for seed, name in enumerate(FILES):
        Image.fromarray(random_pixels(seed)).save(folder / name)
    columns = {"kind": list("xxyyzx"), "age": ["1.5", "2.5", "", "4.5", "5", "6"], "groups": list("112233")}
    _table(folder, columns)
    expected = _read(folder, limit=limit)
    _table(folder, {name: [cells[i] for i in order] for name, cells in columns.items()}, [FILES[i] for i in order])
    for before, after in zip(expected, _read(folder, limit=limit), strict=True):
        for field in dataclasses.fields(LabelledTask):
            np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))


def test_a_limit_takes_classes_in_turn(photos):
    _table(photos, {"kind": ["x", "x", "x", "", "y", "z"]})
    assert _only(photos, limit=4).labels.tolist() == ["x", "y", "z", "x"]
    short = _only(photos, limit=2)
    assert (short.labels.tolist(), short.left_out) == (["x", "y"], (("z", 0),))


def test_groups(photos):
    _table(photos, {"kind": list("xyxyxy"), "groups": ["p", "p", "q", "", "q", "r"]})
    task = _only(photos)
    assert task.groups is not None
    assert task.groups.tolist() == ["p", "p", "q", "", "q", "r"]
    _table(photos, {"kind": list("xyxyxy"), "groups": ["p", "p", "q", "", "q", "q"]})
    assert _only(photos).sha256 != task.sha256
    np.savez(photos.parent / "a.npz", x=random_pixels(0, (4, 6, 6)), y=[1, 0, 0, 1], groups=[3, 3, 4, 4])
    of_arrays = _only(photos.parent / "a.npz")
    assert of_arrays.groups is not None
    assert of_arrays.image_names == ("1", "0", "2", "3")
    assert of_arrays.groups.tolist() == ["3", "3", "4", "4"]


# Files and labels that do not fit each other


def test_files_without_labels_and_labels_without_files(photos):
    (photos / "notes.txt").write_text("no image")
    (photos / "b.png").write_bytes(b"damaged")
    _table(photos, {"kind": list("xyxyy")}, ["a.png", "b.png", "gone.png", "c.png", "./also/gone.png"])
    task = _only(photos)
    assert (task.image_names, task.labels.tolist(), task.unlabelled) == (("a.png", "c.png"), ["x", "y"], 3)
    assert dict(task.skipped) == {
        "also/gone.png": "there is no such file",
        "gone.png": "there is no such file",
        "b.png": "it is not an image of a known format",
    }
    with pytest.raises(
        JaxTransferError, match=r"labels\.csv names 2 files that do not exist in .*, the first is also/gone"
    ):
        _read(photos, strict=True)
    _table(photos, {"kind": list("xyx")}, ["a.png", "b.png", "c.png"])
    with pytest.raises(JaxTransferError, match=r"b\.png cannot be used as an image with a label"):
        _read(photos, strict=True)
    _table(photos, {"kind": list("xyx")}, ["1.png", "2.png", "3.png"])
    with pytest.raises(JaxTransferError, match=r"None of the 3 images that .*labels\.csv names can be used; of 1\.png"):
        _read(photos)


def test_labels_must_be_there_unless_they_may_be_missing(photos):
    _table(photos, {"kind": ["x", "y", "x", "y", "", ""], "age": ["1.5", "", "3", "4", "5", "6"]})
    with pytest.raises(JaxTransferError, match=r"2 labels in kind are missing, the first of e\.png; fill them in"):
        _read(photos, missing=False)
    (age,) = _read(_toml(photos.parent, 'path = "photos"\ncolumns = ["age"]'))
    assert age.missing == 1
    with pytest.raises(JaxTransferError, match=r"1 labels in age are missing, the first of b\.png"):
        _read(photos.parent / "tasks.toml", missing=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'file'"),
        ("name,kind\na.png,x\n", r"no column 'file', .*: name,kind\."),
        ("file\na.png\n", "no column of labels beside file"),
        ("file,groups\na.png,1\n", "no column of labels beside file and groups"),
        ("file,kind\n", "has no rows"),
        ("file,kind,kind\na.png,x,y\n", "must have different names: file, kind, kind"),
        ("file,kind,\na.png,x,y\n", "must have different names"),
        ("file,kind\na.png,x,y\n", "has 2 columns, but a row has 3 cells: a.png, x, y"),
        ("file,kind\na.png,x\n./a.png,y\n", "more than one row for a.png"),
        ("file,kind\n../a.png,x\n", "'../a.png' is not the path of a file in the folder"),
        ("file,kind\n/a.png,x\n", "'/a.png' is not the path of a file in the folder"),
        ("file,kind\n,x\n", "'' is not the path of a file in the folder"),
        ("file,kind\na.png,\nb.png,nan\n", "the column 'kind' is empty"),
        ("file,age\na.png,1.5\nb.png,old\n", "'old', the label of b.png in the column 'age', is not a finite number"),
        ("file,age\na.png,1.5\nb.png,-inf\n", "'-inf', the label of b.png in the column 'age', is not a finite number"),
        ("file,age\na.png,1.5\nb.png,1e60\n", "'1e60', the label of b.png"),
        ("file,age\na.png,1.5\nb.png,1_000\n", "'1_000', the label of b.png"),
        ("file,mask\na.png,b.png\nb.png,c.npy\n", "the column 'mask' names files; say in a .toml file"),
        ("file,a/b,c\na.png,x,0\nb.png,y,1\n", "the name 'photos.a/b' of a dataset cannot be part of a file name"),
        (b"file,kind\na.png,\xff\n", "is not a table of labels that can be read"),
        ("file,kind\na.png,\0\n", "is not a table of labels that can be read: it holds NUL characters"),
    ],
)
def test_bad_tables(photos, text, message):
    (photos / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JaxTransferError, match=message) as caught:
        _read(photos)
    assert "labels.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('path = "photos"\ncolumns = ["kid"]', "no column 'kid' in .*; there are: kind, age"),
        ('path = "photos"\ncolumns = []', "its columns should have at least 1 item"),
        ('path = "photos"\ntarget = "multilabel"', "'x', the label of a.png in the column 'kind', is not 0 or 1"),
        ('path = "photos"\nclasses = ["x"]', "lists classes of .*labels.csv, which has more than one task"),
        ('path = "photos"\ncolumns = ["age"]\nclasses = ["x"]', "lists classes of .*, which has more than one task or"),
        ('path = "photos"\ncolumns = ["kind"]\nclasses = ["z"]', "no class 'z' in .*; there are: x, y"),
        ('path = "photos"\nlabels = "gone.csv"', "labels must be the table .* not 'gone.csv'"),
        ('path = "photos/labels.csv"\nlabels = "photos/labels.csv"', "neither a folder nor an .npz file"),
        ('path = "a.npz"\nlabels = "photos/labels.csv"', "labels must be the table .* of a folder of images"),
        ('path = "a.npz"\ncolumns = ["kind"]', "names columns, but .*a.npz has no table"),
        ('path = "bare"\ndense = "photos"', 'dense labels in a folder need target = "dense" or'),
        ('path = "bare"\ndense = "gone"\ntarget = "dense"', "dense must be the folder .* not 'gone'"),
        ('path = "bare"\ndense = "photos"\ntarget = "dense"', "No image in .*bare has a label of the same name"),
    ],
)
def test_bad_options(photos, options, message):
    _table(photos, {"kind": list("xyxyxy"), "age": ["1.5", "2", "3", "4", "5", "6"]})
    np.savez(photos.parent / "a.npz", x=random_pixels(0, (2, 6, 6)), y=[0, 1])
    (photos.parent / "bare").mkdir()
    with pytest.raises(JaxTransferError, match=message):
        _read(_toml(photos.parent, options))


# Dense labels


def _grid_of_classes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 5, (9, 12)).astype(np.uint8)


def _nearest(labels: np.ndarray, size: int) -> np.ndarray:
    """The value at the centre of each new pixel, of a square that is cut out of the middle."""
    side = min(labels.shape)
    top, left = (labels.shape[0] - side) // 2, (labels.shape[1] - side) // 2
    centres = [int(np.floor((i + 0.5) * side / size)) for i in range(size)]
    return np.array([[labels[top + i, left + j] for j in centres] for i in centres])


@pytest.mark.parametrize("form", ["grey", "palette", "npy", "column"])
def test_dense_classes(photos, form):
    masks = photos if form == "column" else photos.parent / "masks"
    masks.mkdir(exist_ok=True)
    for seed, name in enumerate(FILES[:4]):
        values = _grid_of_classes(seed)
        file = masks / f"{'mask_' if form == 'column' else ''}{name}"
        if form == "npy":
            np.save(file.with_suffix(".npy"), np.where(values == 4, -7, values.astype(np.int64)))
            continue
        image = Image.fromarray(values)
        if form == "palette":
            image.putpalette(random_pixels(0, (15,)).tobytes())
        image.save(file)
    options = 'path = "photos"\ntarget = "dense_classes"\n'
    if form == "column":
        _table(photos, {"mask": [*(f"mask_{name}" for name in FILES[:4]), "", ""]})
        task = _only(_toml(photos.parent, f'{options}columns = ["mask"]'))
        assert (task.unlabelled, len(task.images)) == (0, 6)
        assert (task.labels[4:] == -1).all()
    else:
        task = _only(_toml(photos.parent, f'{options}dense = "masks"'))
        assert (task.unlabelled, len(task.images)) == (2, 4)
    expected = np.stack([_nearest(_grid_of_classes(seed), 6) for seed in range(4)]).astype(np.int32)
    expected = np.where(expected == 4, -1, expected) if form == "npy" else expected
    assert (task.target_type, task.labels.dtype) == ("dense_classes", np.int32)
    np.testing.assert_array_equal(task.labels[:4], expected)
    assert task.missing == (task.labels < 0).sum()


@pytest.mark.parametrize("outputs", [(), (1,), (2,)])
def test_dense_numbers(photos, outputs):
    (photos / "depth").mkdir()
    expected = []
    for seed, name in enumerate(FILES):
        values = np.random.default_rng(seed).normal(size=(9, 12, *outputs)).astype(np.float32)
        np.save((photos / "depth" / name).with_suffix(".npy"), values)
        square = values.reshape(9, 12, -1)[:, 1:10]
        channels = [Image.fromarray(np.ascontiguousarray(square[..., k])) for k in range(square.shape[-1])]
        expected.append(np.stack([np.asarray(c.resize((6, 6), Image.Resampling.BILINEAR)) for c in channels], -1))
    task = _only(_toml(photos.parent, 'path = "photos"\ndense = "photos/depth"\ntarget = "dense"'))
    assert (task.target_type, task.labels.dtype, task.unlabelled) == ("dense", np.float32, 0)
    np.testing.assert_allclose(task.labels, np.stack(expected), atol=2e-6)


def test_sixteen_bits_of_depth(photos):
    (photos / "depth").mkdir()
    values = np.arange(9 * 12, dtype=np.uint16).reshape(9, 12) * 500
    Image.fromarray(values).save(photos / "depth" / "a.png")
    options = 'path = "photos"\ndense = "photos/depth"\ntarget = "dense"'
    task = read_tasks([_toml(photos.parent, options)], size=9)[0]
    np.testing.assert_array_equal(task.labels[0, ..., 0], values[:, 1:10])


def test_missing_pixels_take_no_part_in_numbers():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.3] = np.nan
    known = ~np.isnan(labels)
    for size in (4, 16):
        resized = resize_numbers(labels, size)
        weights = np.asarray(
            Image.fromarray(known[0, ..., 0].astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        )
        np.testing.assert_array_equal(np.isnan(resized[0, ..., 0]), weights <= 0.5)
        constant = resize_numbers(np.where(known, np.float32(3), labels), size)
        np.testing.assert_allclose(constant[~np.isnan(constant)], 3, rtol=1e-6)
    assert np.isnan(resize_numbers(np.full((1, 8, 8, 1), np.nan, np.float32), 4)).all()


@pytest.mark.parametrize(("side", "size"), [(9, 6), (6, 9), (7, 7), (224, 6)])
def test_classes_are_those_of_the_nearest_pixel(side, size):
    labels = np.random.default_rng(0).integers(-3, 9, (2, side, side + 3))
    expected = np.maximum(np.stack([_nearest(label, size) for label in labels]), -1)
    np.testing.assert_array_equal(resize_classes(labels, size), expected)


@pytest.mark.parametrize(
    ("save", "target", "message"),
    [
        (
            lambda f: np.save(f.with_suffix(".npy"), np.zeros((9, 12))),
            "dense_classes",
            "holds float64 9x12; the target",
        ),
        (
            lambda f: Image.fromarray(random_pixels(0)).save(f),
            "dense_classes",
            "holds uint8 9x12x3; the target 'dense_classes' needs",
        ),
        (
            lambda f: np.save(f.with_suffix(".npy"), np.zeros((9, 11))),
            "dense",
            r"is 9x11, but its image .*a\.png is 9x12",
        ),
        (lambda f: np.save(f.with_suffix(".npy"), np.zeros(9)), "dense", r"is 9, but its image"),
        (lambda f: Image.fromarray(random_pixels(0, (12, 9))).save(f), "dense", "is 12x9, but its image"),
        (lambda f: np.save(f.with_suffix(".npy"), np.full((9, 12), np.inf)), "dense", "holds infinite numbers"),
        (
            lambda f: np.save(f.with_suffix(".npy"), np.full((9, 12), "x")),
            "dense",
            "holds <U1 9x12; the target 'dense' needs",
        ),
        (lambda f: f.write_bytes(b"nothing"), "dense", r"masks/a\.png cannot be used as a dense label; it must be"),
        (
            lambda f: Image.fromarray(random_pixels(0)).save(f.with_suffix(".jpg")),
            "dense",
            r"a\.jpg cannot be used as a dense",
        ),
        (lambda f: np.save(f.with_suffix(".npy"), np.array([[None]]), allow_pickle=True), "dense", "cannot be used"),
    ],
)
def test_bad_dense_labels(photos, save, target, message):
    (photos.parent / "masks").mkdir()
    save(photos.parent / "masks" / "a.png")
    with pytest.raises(JaxTransferError, match=message):
        _read(_toml(photos.parent, f'path = "photos"\ndense = "masks"\ntarget = "{target}"'))


def test_dense_labels_that_differ(photos):
    (photos.parent / "masks").mkdir()
    np.save(photos.parent / "masks" / "a.npy", np.zeros((9, 12, 2)))
    np.save(photos.parent / "masks" / "b.npy", np.zeros((9, 12, 3)))
    options = 'path = "photos"\ndense = "masks"\ntarget = "dense"'
    with pytest.raises(JaxTransferError, match=r"same number of outputs, but .*a\.npy has 2 and .*b\.npy has 3"):
        _read(_toml(photos.parent, options))
    Image.fromarray(random_pixels(0)).save(photos.parent / "masks" / "a.png")
    with pytest.raises(JaxTransferError, match=r"two labels of one name, a\.npy and a\.png"):
        _read(photos.parent / "tasks.toml")
    _table(photos, {"mask": [f"{name}.npy" for name in FILES]})
    with pytest.raises(JaxTransferError, match=r"a\.png\.npy of the dense labels of .*a\.png does not exist"):
        _read(_toml(photos.parent, 'path = "photos"\ntarget = "dense"'))


def test_a_photo_that_lies_on_its_side(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_pixels(0)).save(photos / "a.png", exif=exif)
    (photos.parent / "masks").mkdir()
    np.save(photos.parent / "masks" / "a.npy", np.zeros((12, 9)))
    task = _only(_toml(photos.parent, 'path = "photos"\ndense = "masks"\ntarget = "dense"'))
    assert task.labels.shape == (1, 6, 6, 1)


def test_public_names():
    assert jt.LabelledTask is LabelledTask
    assert jt.read_tasks is read_tasks


def test_small_classes_leave_images_without_a_label(photos):
    _table(photos, {"kind": ["x", "x", "y", "", "z", "x"], "groups": list("112233")})
    task = _only(photos, smallest=2)
    assert task.left_out == (("y", 1), ("z", 1))
    assert task.labels.tolist() == ["x", "x", "x", ""]
    assert task.image_names == ("a.png", "b.png", "f.png", "d.png")
    assert task.groups is not None
    assert task.groups.tolist() == ["1", "1", "3", "2"]
    for image, name in zip(task.images, task.image_names, strict=True):
        everything = _only(photos)
        np.testing.assert_array_equal(image, everything.images[everything.image_names.index(name)])


def test_a_folder_by_any_path(photos, monkeypatch):
    _table(photos, {"kind": list("xyxyxy")})
    (photos / "deep").mkdir()
    (photos.parent / "link").symlink_to(photos)
    monkeypatch.chdir(photos / "deep")
    names = [_only(Path(path)).name for path in ("..", "../labels.csv", "../../link", "../deep/../../photos")]
    assert names == ["photos", "photos", "link", "photos"]
