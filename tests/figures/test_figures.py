import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from jaxtransfer import Affinity, Oracle
from jaxtransfer.evaluation.references import evaluate_all
from jaxtransfer.figures import heat_map, style
from jaxtransfer.figures.curves import draw_curves
from support.helpers import quick_cases


def _affinity(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    points = rng.normal(size=(count, 20)) + 1
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return (points @ points.T).astype(np.float32)


@pytest.mark.parametrize("count", quick_cases([1, 2, 3, 12, 40], 1, 12))
def test_heat_map_of_any_size(tmp_path, count):
    names = [f"a-network-with-a-long-name-{i}" for i in range(count)]
    heat_map(_affinity(count), names, tmp_path / "map.png", "Affinity by saliency")
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("L"))
    assert min(pixels.shape) > 300
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 255).all()  # no label is cut off
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.slow
def test_heat_map_of_thousands(tmp_path):
    names = [f"n{i}" for i in range(1500)]
    heat_map(np.eye(1500, dtype=np.float32), names, tmp_path / "map.png", "many")
    with Image.open(tmp_path / "map.png") as picture:
        assert 1_500 < max(picture.size) < 3_000


def test_colours_span_the_values_off_the_diagonal(tmp_path):
    small = np.array([[1, 0.001, 0.002], [0.001, 1, 0.003], [0.002, 0.003, 1]], np.float32)
    heat_map(small, "abc", tmp_path / "map.png", "small affinities")
    colours = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).reshape(-1, 3)}
    lowest, highest = (tuple(round(255 * part) for part in mpl.colormaps["viridis"](end)[:3]) for end in (0.0, 1.0))
    assert {lowest, highest} <= colours


def test_equal_affinities_and_signs(tmp_path):
    equal = np.full((4, 4), -0.25, np.float32) + 1.25 * np.eye(4, dtype=np.float32)
    heat_map(equal, "abcd", tmp_path / "map.png", "equal")
    assert (tmp_path / "map.png").stat().st_size > 0


def test_same_bytes_again(tmp_path):
    for name in ("a.png", "b.png"):
        heat_map(_affinity(5), "abcde", tmp_path / name, "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_leaves_the_backend_alone(tmp_path):
    mpl.use("svg")
    try:
        heat_map(_affinity(3), "abc", tmp_path / "map.png", "title")
        assert mpl.get_backend() == "svg"
    finally:
        mpl.use("agg")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_failure_leaves_nothing(tmp_path):
    (tmp_path / "map.png").mkdir()
    with pytest.raises(OSError, match=r"map\.png"):
        heat_map(_affinity(3), "abc", tmp_path / "map.png", "title")
    assert [file.name for file in tmp_path.iterdir()] == ["map.png"]


def test_distances_are_brighter_the_smaller_and_gaps_stay_grey(tmp_path):
    distances = np.array([[0, 1, np.nan], [1, 0, 500], [np.nan, 500, 0]], np.float32)
    heat_map(distances, "abc", tmp_path / "map.png", "gaps", quantity="gap", smaller_is_nearer=True)
    heat_map(np.full((2, 2), np.nan), "ab", tmp_path / "none.png", "nothing", quantity="gap", smaller_is_nearer=True)
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    pixels = pixels[:, : int(0.75 * pixels.shape[1])]  # without the scale of colours
    brightest, darkest = ([round(255 * part) for part in mpl.colormaps["viridis"](end)[:3]] for end in (1.0, 0.0))
    near, far = ((pixels == colour).all(-1).nonzero()[0] for colour in (brightest, darkest))
    assert near.size > 1000
    assert far.size > 1000
    assert near.max() < far.max()
    assert near.min() < far.min()


def test_the_style_of_the_program_changes_nothing(tmp_path):
    heat_map(_affinity(3), "abc", tmp_path / "plain.png", "title", svg=True)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "axes.titlecolor": "blue", "xtick.bottom": False}):
        heat_map(_affinity(3), "abc", tmp_path / "styled.png", "title", svg=True)
        assert mpl.rcParams["font.size"] == 30
    for kind in (".png", ".svg"):
        assert (tmp_path / f"plain{kind}").read_bytes() == (tmp_path / f"styled{kind}").read_bytes()


@pytest.mark.parametrize(("targets", "sources"), [(1, 30), (30, 5), (3, 3), (2, 400)])
def test_heat_map_of_targets_and_sources(tmp_path, targets, sources):
    """Wide or tall, and no value is hidden, not even where a target has the number of a source."""
    values = np.random.default_rng(0).normal(size=(targets, sources)) + 1
    rows, columns = [f"task {i}" for i in range(targets)], [f"network {j}" for j in range(sources)]
    heat_map(values, columns, tmp_path / "map.png", "Score", targets=rows, quantity="score", directed=True, svg=True)
    with Image.open(tmp_path / "map.png") as figure:
        assert min(figure.size) > 250
        assert (figure.size[0] > figure.size[1]) == (sources > targets or targets == 3)
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "map.svg").read_text())
    assert {*rows} <= {*texts}
    assert ({*columns} <= {*texts}) == (sources <= 300)
    written = [text for text in texts if re.fullmatch(r"-?\d\.\d\d", text)]
    assert len(written) == (targets * sources if sources <= 12 else 0)
    assert {"lowest", "highest"} <= {*texts}


def test_colours_of_a_target_span_its_values(tmp_path):
    """Values of two targets on different scales look alike, equal values are halfway, and missing ones are grey."""
    values = np.array([[0.0, 0.5, 1.0, np.nan], [300.0, 200.0, 100.0, 200.0], [7.0, 7.0, 7.0, 7.0]])
    heat_map(values, "abcd", tmp_path / "map.png", "", targets="xyz", svg=True)
    cells = re.findall(r'fill: #(\w{6})[^"]*stroke: #ffffff', (tmp_path / "map.svg").read_text())
    low, half, high = (style.value_colours(3)[i][1:] for i in range(3))
    assert cells == [low, half, high, high, half, low, half, *[half] * 4]


def test_equal_curves_do_not_hide_each_other():
    """All colours are seen where the curves of three methods are the same."""
    rng = np.random.default_rng(0)
    names = [f"n{i}" for i in range(8)]
    oracle = Oracle("measured", {a: {b: rng.random() for b in names if b != a} for a in names})
    affinity = Affinity.of(names, dict.fromkeys("abc", _affinity(8)))
    evaluations = evaluate_all(affinity, oracle, affinity.methods, 3).by_method
    figure = Figure(figsize=(4, 3), dpi=150)
    with style.fixed_style():
        draw_curves(figure.add_subplot(), "precision", evaluations)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    for colour in style.SERIES_COLOURS[:3]:
        assert (pixels == [round(255 * part) for part in to_rgb(colour)]).all(-1).sum() > 300


def test_forty_two_groups_look_different():
    names = [f"group {i:02}" for i in range(42)]
    assert len(set(style.group_styles(names).values())) == 42
    assert style.group_styles(names[:3]) == {name: style.group_styles(names)[name] for name in names[:3]}
