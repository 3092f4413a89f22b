"""`jaxtransfer report`: the page, its figures, and what cannot be reported."""

import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

import jaxtransfer as jt
from jaxtransfer import FAULTS, JaxTransferError, Oracle, figures
from jaxtransfer.cli.app import app
from jaxtransfer.evaluation.groups import load_groups, taskonomy_groups
from jaxtransfer.evaluation.tree import task_tree
from jaxtransfer.figures import style
from jaxtransfer.report import drawings, gallery, write_report
from jaxtransfer.report import page as page_module
from jaxtransfer.report.measures import measure_table, measured_transfer
from jaxtransfer.report.svg import inline_svg
from jaxtransfer.runs.load import load_run
from jaxtransfer.taskonomy.tasks import TASKS
from support.helpers import affinity_of, complaint
from support.report_runs import AWKWARD, MEASURES, METHODS, attribution_run, gap_run, score_run

VOID = {"meta", "link", "input", "img", "br", "wbr", "path", "use"}


class Page(HTMLParser):
    """The elements of a page, all of which must be closed, and its embedded data."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.data = {}
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script" and self.elements[-1][1].get("type") == "application/json":
            self.data = json.loads(data)
        elif data.strip():
            self.words.append(data)


def _check_self_contained(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name) or ""
            assert not address.startswith(("http:", "https:", "//")), (tag, address)
            if address.startswith("#"):
                assert address[1:] in ids


def _pairs(folder: Path) -> set[str]:
    """Names of the figures, each of which is there as PNG and SVG."""
    names = {kind: {file.stem for file in folder.glob(f"*.{kind}")} for kind in ("png", "svg")}
    assert names["png"] == names["svg"]
    return names["png"]


def test_networks_whose_maps_mean_little_are_marked(tmp_path):
    faults = {AWKWARD[0]: ("constant_scalar", "random_numbers"), "two": ("coupled_images",)}
    page = Page(write_report(attribution_run(tmp_path / "run", ["one", *faults], maps=False, faults=faults)))
    text = "".join(page.words)
    for name, codes in faults.items():
        for code in codes:
            assert f"Network {name}: {FAULTS[code]}." in text
    assert [bool(fault) for fault in page.data["faults"]] == [False, True, True]
    assert FAULTS["coupled_images"] in page.data["faults"][2]


@pytest.mark.slow
def test_attribution_run(tmp_path):
    names = list(TASKS)[:20]
    run = attribution_run(tmp_path / "run", names, unusable=[(names[0], "a.png")])
    page = Page(write_report(run, oracle=Oracle.taskonomy(), groups=taskonomy_groups()))
    _check_self_contained(page)
    kinds = ("heat_map", "tree", "sources", "gallery")
    assert _pairs(run / "figures") == {"curves", *(f"{kind}_{method}" for kind in kinds for method in METHODS)}
    for file in (run / "figures").glob("*.png"):
        with Image.open(file) as figure:
            assert min(figure.size) > 300
    text = " ".join(page.words)
    for expected in (
        "broken.png",
        "it is not an image of a known format",
        "jaxtransfer affinity",
        "18 targets",
        "a.png",
    ):
        assert expected in text
    data = page.data
    assert data["names"] == names
    assert set(data["groups"]) == {"2D", "3D", "geometric", "semantic"}
    values = [row[1] for row in data["methods"][0]["ranked"][3]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 19
    assert sorted(data["methods"][1]["order"]) == list(range(20))
    assert len(data["gallery"]["strips"]["saliency"]) == 20
    assert not list(run.glob("*.partial"))


def test_gaps(tmp_path):
    run = gap_run(tmp_path / "run", [*"abcdef", "lost"], unknown=6)
    page = Page(write_report(run))
    _check_self_contained(page)
    assert _pairs(run / "figures") == {"heat_map_gap", "tree_gap", "sources_gap"}
    assert "Not in the tree, because values are missing: lost." in " ".join(page.words)
    assert any("it depends on the labels" in words for words in page.words)
    (method,) = page.data["methods"]
    assert [row[1] for row in method["ranked"][0]] == [1, 2, 3, 4, 5]
    assert method["ranked"][6] == []
    assert [row["reads"] for row in page.data["control"]][:3] == ["yes", "no", "not known"]


def test_names_are_text_wherever_they_stand(tmp_path):
    run = gap_run(tmp_path / "run", AWKWARD)
    page = Page(write_report(run, groups={name: name for name in AWKWARD}))
    _check_self_contained(page)
    assert page.data["names"] == list(AWKWARD)
    assert not [tag for tag, _ in page.elements if tag in ("img", "b")]
    assert {attributes["value"] for tag, attributes in page.elements if tag == "option"} == set(AWKWARD)


def test_few_networks_and_no_maps(tmp_path):
    run = attribution_run(tmp_path / "run", ["one", "two"], maps=False)
    page = Page(write_report(run))
    assert _pairs(run / "figures") == {f"{kind}_{method}" for kind in ("heat_map", "sources") for method in METHODS}
    text = " ".join(page.words)
    assert "A tree needs three networks or more" in text
    assert "maps of this run are no longer stored with it" in text
    assert page.data["gallery"] is None


def test_scores_of_labelled_tasks(tmp_path):
    """Targets and sources have their own names; one task has that of a network."""
    networks = [f"network {j}" for j in range(22)] + ["flowers"]
    run = score_run(tmp_path / "run", ["flowers", "signs"], networks, measured=True)
    page = Page(write_report(run, groups={"flowers": "plants"}))
    _check_self_contained(page)
    assert _pairs(run / "figures") == {f"{kind}_{method}" for kind in ("heat_map", "sources") for method in MEASURES}
    data, affinity = page.data, load_run(run)
    assert (data["names"], data["targets"]) == (networks, ["flowers", "signs"])
    assert [len(rows) for rows in data["methods"][0]["ranked"]] == [23, 23]
    assert [len(rows) for rows in data["methods"][2]["ranked"]] == [23, 0], "a measure that a task does not allow"
    for rows, target in zip(data["methods"][0]["ranked"], affinity.targets, strict=True):
        assert [networks[row[0]] for row in rows] == [name for name, *_ in affinity.rank(target, method="ridge")]
        (measured,) = data["measured"]
        known = [networks[j] for j, pair in enumerate(measured["values"][affinity.row(target)]) if pair is not None]
        assert {*known} == {name for name, *_ in affinity.rank(target, method="ridge")[:3]} - {target}
    assert data["methods"][0]["sampled"] == "labelled examples"
    text = " ".join(page.words)
    for expected in (
        "2 tasks",
        "23 networks",
        "measured (frozen)",
        "took 1.88 seconds",
        "class tulip",
        "signs: column 2",
    ):
        assert expected in text
    assert not {attributes.get("id") for _, attributes in page.elements} & {"trees", "gallery", "control"}


def test_measures_agree_by_the_definition(tmp_path):
    run = score_run(tmp_path / "run", ["flowers", "signs"], [f"n{j}" for j in range(8)], measured=True)
    affinity, measured = load_run(run), measured_transfer(run, load_run(run), None)
    header, rows = measure_table(affinity, MEASURES, measured)
    assert header == ["measure", *MEASURES, "measured (frozen)"]
    assert [row[0] for row in rows] == [*MEASURES]

    def mean(pairs):
        return f"{np.mean([np.asarray(stats.spearmanr(a, b))[0] for a, b in pairs]):.2f}"

    ridge, knn, leep = (affinity[method].astype(float) for method in MEASURES)
    assert rows[0][1:4] == ["", mean(zip(ridge, knn, strict=True)), mean([(ridge[0], leep[0])])]
    of_targets = measured["frozen"].scores.values()
    columns = [[affinity.column(name) for name in of_target] for of_target in of_targets]
    scores = [[*of_target.values()] for of_target in of_targets]
    assert rows[1][4] == mean((knn[i, columns[i]], scores[i]) for i in range(2))
    single = jt.Affinity.of("ab", {"m": np.eye(2)}, targets="xy")
    assert measure_table(single, ["m"], {}) == (["measure"], [["m"]])


def test_a_report_of_scores_against_an_oracle(tmp_path):
    networks = [f"n{j}" for j in range(8)]
    run = score_run(tmp_path / "run", ["flowers", "signs", "n2"], networks)
    rows = [f"{s},{t},{i * j % 5}" for i, s in enumerate(networks) for j, t in enumerate(["flowers", "signs", "n2"])]
    (tmp_path / "oracle.csv").write_text("\n".join(["source,target,score", *rows]))
    result = CliRunner().invoke(app, ["report", str(run), "--oracle", str(tmp_path / "oracle.csv"), "--relevant", "2"])
    assert result.exit_code == 0, result.output
    text = " ".join(Page(run / "report.html").words)
    assert "other labelled examples, the same networks" in text
    assert "measured (oracle)" in text
    assert "curves" in _pairs(run / "figures")
    (run / "measured_ridge.csv").write_text((tmp_path / "oracle.csv").read_text())
    assert measured_transfer(run, load_run(run), None) == {}, "the values of a method are not shown beside it"
    ranked = CliRunner().invoke(app, ["rank", str(run), "n2", "--method", "ridge"])
    assert ranked.exit_code == 0, ranked.output
    assert "more labelled examples" in " ".join(ranked.stdout.split())
    assert " n2 " in ranked.stdout.split("Sources for n2")[1]
    judged = CliRunner().invoke(app, ["evaluate", str(run), "--oracle", str(tmp_path / "oracle.csv")])
    assert judged.exit_code == 0, judged.output
    assert "networks and labelled examples like these" in " ".join(judged.stdout.split())
    assert "There is no target 'n9'" in complaint(CliRunner().invoke(app, ["rank", str(run), "n9"]))


def test_photos_that_are_gone(tmp_path):
    run = attribution_run(tmp_path / "run", ["one", "two", "three"])
    (tmp_path / "photos" / "b.png").unlink()
    page = Page(write_report(run))
    assert "photos are no longer in the folder that the run read" in " ".join(page.words)
    assert page.data["gallery"]["photos"] is None
    assert len(page.data["gallery"]["strips"]["saliency"]) == 3


@pytest.mark.slow
def test_many_networks_come_on_pages(tmp_path, monkeypatch):
    for name in ("heat_map", "tree", "gallery"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    pages = []
    monkeypatch.setattr(
        figures, "ranked_sources", lambda rankings, path, *_, **__: pages.append((path.name, len(rankings)))
    )
    run = attribution_run(tmp_path / "run", [f"network-{i}" for i in range(100)])
    page = write_report(run)
    assert pages[:5] == [(f"sources_saliency_{number}.png", 20) for number in range(1, 6)]
    assert page.stat().st_size < 25e6
    assert len(Page(page).data["methods"][0]["ranked"][0]) == 99


def test_more_networks_than_can_be_read_have_tables_and_a_heat_map(tmp_path, monkeypatch):
    monkeypatch.setattr(drawings, "MAX_DRAWN", 3)
    for module in (page_module, gallery):
        monkeypatch.setattr(module, "MAX_DRAWN", 3)
    run = attribution_run(tmp_path / "run", ["a", "b", "c", "d"])
    page = Page(write_report(run))
    assert {file.name for file in (run / "figures").glob("*.png")} == {
        "heat_map_saliency.png",
        "heat_map_epsilon_lrp.png",
    }
    text = " ".join(page.words)
    assert "A tree of so many networks cannot be read" in text
    assert "Attribution maps are shown of up to 3 networks" in text
    assert len(page.data["methods"][0]["ranked"][0]) == 3


def test_two_reports_of_one_run_at_once(tmp_path):
    run = attribution_run(tmp_path / "run", ["one", "two", "three"], maps=False)
    with ThreadPoolExecutor(2) as pool:
        first, second = (pool.submit(write_report, run) for _ in range(2))
        assert first.result().read_bytes() == second.result().read_bytes()
    assert sorted(file.name for file in run.glob(".*.partial")) == []


def test_a_report_is_written_again(tmp_path):
    run = attribution_run(tmp_path / "run", ["one", "two", "three"], maps=False)
    first = write_report(run).read_bytes()
    (run / "figures" / "old.png").touch()
    assert write_report(run).read_bytes() == first
    assert not (run / "figures" / "old.png").exists()


def test_failure_leaves_what_was_there(tmp_path, monkeypatch):
    run = attribution_run(tmp_path / "run", ["one", "two", "three"], maps=False)
    page = write_report(run)
    before = page.read_bytes(), sorted(file.name for file in (run / "figures").iterdir())

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "ranked_sources", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (page.read_bytes(), sorted(file.name for file in (run / "figures").iterdir())) == before
    assert not list(run.glob("*.partial"))


def test_command(tmp_path):
    run = attribution_run(tmp_path / "run", ["one", "two", "three"], maps=False)
    (tmp_path / "groups.csv").write_text("name,group\none,first\nelsewhere,second\n")
    (tmp_path / "bad.csv").write_text("name,group\none,first\none,second\n")
    (tmp_path / "header.csv").write_text("one,first\n")
    invoke = lambda *arguments: CliRunner().invoke(app, ["report", *map(str, arguments)])  # noqa: E731
    for arguments, message in [
        ([tmp_path / "nowhere"], "is not a run directory"),
        ([run, "--oracle", "taskonomy"], "scores no target here"),
        ([run, "--oracle", tmp_path / "no.csv"], "is not an oracle that can be read"),
        ([run, "--groups", tmp_path / "no.csv"], "is not a file of groups that can be read"),
        ([run, "--groups", tmp_path / "bad.csv"], "puts one into two groups, first and second"),
        ([run, "--groups", tmp_path / "header.csv"], "needs the header name,group"),
    ]:
        assert message in complaint(invoke(*arguments))
        assert not (run / "report.html").exists()
        assert not (run / "figures").exists()
    result = invoke(run, "--groups", tmp_path / "groups.csv")
    assert result.exit_code == 0, result.output
    assert "report.html in a browser" in result.stdout
    assert Page(run / "report.html").data["groups"] == ["first", "other", "other"]


def test_groups(tmp_path):
    groups = taskonomy_groups()
    assert len({name for name in TASKS if name in groups}) == 20
    assert all(groups[TASKS[name].release] == groups[name] for name in TASKS if name in groups)
    (tmp_path / "groups.csv").write_text("\ufeffname, group\na, x\n\nb, y\n", encoding="utf-8")
    assert load_groups(tmp_path / "groups.csv") == {"a": "x", "b": "y"}
    (tmp_path / "groups.csv").write_text("name,group\na\n")
    with pytest.raises(JaxTransferError, match="needs name,group in every row"):
        load_groups(tmp_path / "groups.csv")


# Figures: no text may leave the picture or lie on another.


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are drawn, kept instead of written."""
    kept: list[Figure] = []
    monkeypatch.setattr(style, "save", lambda figure, *_, **__: kept.append(figure))
    return kept


def _check_texts(figure: Figure, *, cropped: bool = True) -> None:
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    area = figure.get_tightbbox(renderer).padded(0.15) if cropped else figure.bbox_inches
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    for text in texts:
        text.set_parse_math(False)
    boxes = [(text, text.get_window_extent(renderer)) for text in texts]
    beyond = set()  # axes keep ticks beyond their ends, which they do not draw
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
        beyond |= {tick.label2 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    # The boxes of slanted texts overlap where the texts do not.
    drawn = [(text, box) for text, box in boxes if text not in beyond and text.get_rotation() in (0, 90)]
    for text, box in drawn:
        assert box.x0 >= area.x0 * figure.dpi - 1, text
        assert box.x1 <= area.x1 * figure.dpi + 1, text
        assert box.y0 >= area.y0 * figure.dpi - 1, text
        assert box.y1 <= area.y1 * figure.dpi + 1, text
    edges = np.array([[box.x0, box.x1, box.y0, box.y1] for _, box in drawn])
    for i, j in itertools.combinations(range(len(edges)), 2):
        (a0, a1, b0, b1), (c0, c1, d0, d1) = edges[i], edges[j]
        apart = a1 <= c0 + 1 or c1 <= a0 + 1 or b1 <= d0 + 1 or d1 <= b0 + 1
        assert apart, (drawn[i][0], drawn[j][0])


def _long_names(count: int) -> list[str]:
    return [f"network-{i}-{'with-a-name-that-is-long-and-has-about-sixty-letters'[: i * 7 % 53]}" for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 20, 200])
def test_texts_of_figures(tmp_path, drawn, count):
    names = _long_names(count)
    rng = np.random.default_rng(count)
    points = rng.normal(size=(count, 8))
    affinity = affinity_of(points @ points.T, names)
    groups = {name: "abcde"[i % 5] for i, name in enumerate(names)}
    clustering = task_tree(affinity)
    figures.heat_map(affinity["method"], names, tmp_path / "heat.png", "title", groups=groups)
    figures.tree(clustering, tmp_path / "tree.png", "title", groups=groups)
    rankings = {name: affinity.rank(name) for name in names[:20]}
    figures.ranked_sources(rankings, tmp_path / "sources.png", "title")
    maps = {name: np.zeros((3, 32, 32)) for name in names[:20]}
    figures.gallery(maps, None, tmp_path / "gallery.png", "title")
    for figure, cropped in zip(drawn, (True, True, False, False), strict=True):
        _check_texts(figure, cropped=cropped)


def test_scaled_maps():
    values = np.random.default_rng(0).normal(size=(50, 50))
    scaled = figures.scaled_map(values)
    assert np.abs(scaled).max() == 1
    np.testing.assert_allclose(np.mean(np.abs(scaled) == 1), 0.01, atol=0.002)
    np.testing.assert_array_equal(np.sign(scaled), np.sign(values))
    sparse = np.zeros((50, 50))
    sparse[0, 0], sparse[1, 1] = -2, np.nan
    assert figures.scaled_map(sparse)[0, 0] == -1
    assert not figures.scaled_map(np.zeros((3, 3))).any()
    middle, low, high = figures.signed_colours(np.array([0.0, -1.0, 1.0])).astype(int)
    assert middle.min() > 240
    assert low[0] > low[2]
    assert high[2] > high[1]


def test_svg_in_the_page_follows_its_colours(tmp_path):
    clustering = task_tree(affinity_of(np.eye(4), ["url(#a)", "#000000", "c", "d"]))
    figures.tree(clustering, tmp_path / "tree.png", "title", svg=True)
    element = inline_svg(tmp_path / "tree.svg")
    assert "currentColor" in element
    assert not re.search(r"fill: #ffffff|<style|<metadata", element)
    assert {"url(#a)", "#000000"} <= {text.strip() for text in re.findall(r">([^<]+)<", element)}
