"""The report in a browser: headless Chromium, without a network.

Install it with `apt-get install chromium chromium-driver` (Debian); without it these tests are skipped.
"""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer import Affinity, Measure
from jaxtransfer.evaluation.groups import taskonomy_groups
from jaxtransfer.evaluation.oracle import Oracle
from jaxtransfer.report import write_report
from jaxtransfer.taskonomy.tasks import TASKS
from support.report_runs import AWKWARD, attribution_run, gap_run, score_run

webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
_CHROMIUM, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (_CHROMIUM and _DRIVER), reason="needs chromium and chromium-driver"),
]

NAMES = list(TASKS)[:20]
# Numbers within names are sorted as numbers.
NATURAL = sorted(
    set(NAMES) - {"autoencoder"},
    key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    # Whatever is asked of a network fails, and says so in the console.
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    run = attribution_run(tmp_path_factory.mktemp("report") / "run", NAMES)
    return write_report(run, oracle=Oracle.taskonomy(), groups=taskonomy_groups())


@pytest.fixture
def page(browser, report) -> Iterator:
    """The report, freshly loaded; nothing may have gone wrong in the end."""
    browser.get(report.as_uri())
    browser.execute_script("window.scrollTo(0, 0)")
    yield browser
    assert browser.get_log("browser") == []


def _find(page, selector: str):
    return page.find_element("css selector", selector)


def _column(page, table: str, key: str) -> list[str]:
    """The texts of a column from top to bottom."""
    return page.execute_script(
        "const [table, key] = arguments;"
        "const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.dataset.key === key);"
        "return [...table.tBodies[0].rows].map(row => row.cells[place].innerText.trim());",
        _find(page, f"#{table}"),
        key,
    )


def _heading(page, table: str, key: str):
    return _find(page, f"#{table} th[data-key={key}]")


def test_sorting_by_mouse_and_keyboard(page):
    ranks = [str(rank) for rank in range(1, 20)]
    assert _column(page, "ranking", "rank") == ranks
    _heading(page, "ranking", "rank").find_element("tag name", "button").click()
    assert _heading(page, "ranking", "rank").get_attribute("aria-sort") == "descending"
    assert _column(page, "ranking", "rank") == ranks[::-1]
    _heading(page, "ranking", "source").find_element("tag name", "button").send_keys(Keys.ENTER)
    assert _heading(page, "ranking", "rank").get_attribute("aria-sort") == "none"
    assert _column(page, "ranking", "source") == NATURAL
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert _column(page, "ranking", "source") == NATURAL[::-1]

    _heading(page, "everything", "chosen").find_element("tag name", "button").send_keys(Keys.ENTER)
    chosen = [int(text) for text in _column(page, "everything", "chosen")]
    assert chosen == sorted(chosen, reverse=True)
    assert sum(chosen) == 20


def test_search_serves_all_sections(page):
    _find(page, "#search").send_keys("segment")
    expected = ["segment2d", "segment25d", "segmentsemantic"]
    assert _column(page, "everything", "name") == expected
    assert sorted(_column(page, "ranking", "source")) == sorted(expected)
    assert len(page.find_elements("css selector", "#strips .strip:not(.photos)")) == 3
    assert _find(page, "#matches").text == "3 of 20 shown."
    _find(page, "#search").clear()
    _find(page, "#search").send_keys("geometric")
    assert _column(page, "everything", "name") == ["room_layout", "vanishing_point"]


def test_target_and_method(page):
    target, best = _find(page, "#target"), lambda: _find(page, "#answer .best").text
    first = best()
    assert first == _column(page, "ranking", "source")[0]
    target.send_keys(Keys.ARROW_DOWN)
    assert target.get_attribute("value") == NAMES[1]
    target.send_keys(Keys.ARROW_UP)
    target.send_keys(Keys.ARROW_UP)
    assert target.get_attribute("value") == NAMES[-1]
    target.send_keys(Keys.CONTROL, "a")
    target.send_keys(Keys.NULL, "reshade")
    assert "reshade" not in _column(page, "ranking", "source")
    values = _column(page, "ranking", "value")
    page.find_elements("css selector", "#methods label")[1].click()
    assert "by epsilon_lrp" in _find(page, "#answer").text
    assert _column(page, "ranking", "value") != values
    assert [part.is_displayed() for part in page.find_elements("css selector", "#trees [data-method]")] == [False, True]
    _find(page, "#everything tbody button").click()
    assert target.get_attribute("value") == "autoencoder"


def test_a_telephone_shows_values_before_groups(browser, report):
    """On a screen of 390 pixels the value is in sight; on a wide one the group stays beside the name."""

    def keys(table: str) -> list[str]:
        cells = browser.find_elements("css selector", f"#{table} thead th")
        return [cell.get_attribute("data-key") for cell in cells]

    browser.get(report.as_uri())
    assert keys("ranking")[:4] == ["rank", "source", "group", "value"]
    assert keys("everything")[:3] == ["name", "group", "best0"]
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(report.as_uri())
        assert keys("ranking")[:3] == ["rank", "source", "value"]
        assert keys("ranking")[-1] == keys("everything")[-1] == "group"
        for table, key in (("ranking", "value"), ("everything", "best0")):
            right = browser.execute_script(
                "const box = document.querySelector(arguments[0]).parentElement.getBoundingClientRect();"
                "return document.querySelector(`${arguments[0]} th[data-key=${arguments[1]}]`)"
                ".getBoundingClientRect().right - box.right;",
                f"#{table}",
                key,
            )
            assert right <= 1, table
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("width", "height"), [(320, 640), (390, 844), (844, 390), (1280, 900)])
def test_narrow_screens(browser, report, width, height):
    """Headings are in sight behind a link to them, nothing overflows, and figures and texts are large enough."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.get(report.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        for link in browser.find_elements("css selector", ".bar nav a"):
            browser.execute_script("arguments[0].click()", link)
            assert browser.execute_script(
                "const heading = document.querySelector(`${arguments[0].getAttribute('href')} h2`),"
                "      box = heading.getBoundingClientRect();"
                "return document.elementFromPoint(box.left + 5, box.top + 2) === heading;",
                link,
            ), link.get_attribute("href")
        for figure in browser.find_elements("css selector", "svg.figure"):
            assert not figure.is_displayed() or figure.rect["width"] >= 500
        for text in browser.find_elements("css selector", "#provenance > dl > dd"):
            assert text.rect["width"] >= 200
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


def test_names_of_the_heat_map_are_different(browser, tmp_path):
    """Those that differ only in the middle, or at one end, too."""
    names = [f"vit_base_patch16_224.{recipe}_in21k_ft_in1k" for recipe in ("augreg", "augreg2", "augreg3")]
    names += [name.replace("patch16", "patch16_with_a_name_that_is_longer") for name in names]
    run = attribution_run(tmp_path / "run", names, maps=False)
    browser.get(write_report(run).as_uri())
    written = browser.execute_script(
        "const written = new Set(), before = CanvasRenderingContext2D.prototype.fillText;"
        "CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {"
        "  written.add(text); before.call(this, text, ...place); };"
        "showHeat(); return [...written];"
    )
    assert len(written) == len(names)
    assert browser.get_log("browser") == []


def test_the_answer_says_what_a_row_is(browser, tmp_path):
    """Under a directed measure, and under no other."""
    run = attribution_run(tmp_path / "run", NAMES, maps=False)
    values = np.random.default_rng(0).random((20, 20))
    measures = {"linear_predictivity": Measure("predictivity", directed=True)}
    affinity = Affinity.of(NAMES, {"rsa": values + values.T, "linear_predictivity": values}, measures=measures)
    affinity.save(run)
    browser.get(write_report(run).as_uri())
    best = NAMES[int(np.where(np.eye(20), -1, values)[0].argmax())]
    answer = _find(browser, "#answer").text
    assert best in answer
    assert f"By linear_predictivity, row = target: these values are of {NAMES[0]} as the target" in answer
    assert "linear_predictivity comes first because it predicts transfer best on Rooms" in _find(browser, "main").text
    browser.find_elements("css selector", "#methods label")[1].click()
    assert "row = target" not in _find(browser, "#answer").text
    assert browser.get_log("browser") == []


def test_scores_of_labelled_tasks(browser, tmp_path):
    """A target is a task, a source a network; measured values stand beside the scores."""
    networks = [f"network_{j}" for j in range(7)] + ["signs"]
    run = score_run(tmp_path / "run", ["flowers", "signs"], networks, measured=True)
    browser.get(write_report(run).as_uri())
    ranked = _column(browser, "ranking", "source")
    assert {*ranked} == {*networks}
    assert [bool(text) for text in _column(browser, "ranking", "measured0")] == [True] * 3 + [False] * 5
    assert "Best of 3 measured (frozen)" in _find(browser, "#answer").text
    assert _column(browser, "everything", "name") == ["flowers", "signs"]
    browser.find_elements("css selector", "#everything tbody button")[1].click()
    assert _find(browser, "#target").get_attribute("value") == "signs"
    assert _column(browser, "ranking", "source") != ranked
    browser.find_elements("css selector", "#methods label")[2].click()
    assert "leep has no value for this task" in _find(browser, "#answer").text
    browser.find_elements("css selector", "#methods label")[0].click()
    assert "leep" not in _find(browser, "#elsewhere").text
    canvas = _find(browser, "#map canvas")
    canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert "network_1 for signs: 0." in _find(browser, "#readout").text
    canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)
    assert _find(browser, "#target").get_attribute("value") == "flowers"
    _find(browser, "#search").send_keys("network_3")
    assert _column(browser, "ranking", "source") == ["network_3"]
    assert browser.get_log("browser") == []


def test_images_load_and_nothing_overflows(page):
    for image in page.find_elements("css selector", "img"):
        page.execute_script("arguments[0].loading = 'eager'; return arguments[0].decode()", image)
        assert image.get_attribute("naturalWidth") != "0"
    assert len(page.find_elements("css selector", "#strips img")) == 21
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    wide = page.execute_script(
        "const box = document.querySelector('#sources .scroll'); return box.scrollWidth - box.clientWidth"
    )
    assert wide <= 0


def test_heat_map_by_keyboard(page):
    canvas = _find(page, "#map canvas")
    canvas.send_keys(Keys.ARROW_RIGHT)
    assert " for " in _find(page, "#readout").text
    row = _find(page, "#readout").text.split(" for ")[1].split(":")[0]
    canvas.send_keys(Keys.ENTER)
    assert _find(page, "#target").get_attribute("value") == row


def test_both_themes_show_something(page):
    shades = []
    for _ in range(2):
        pixels = np.asarray(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("L"), float)
        assert pixels.shape[1] >= 1200
        assert pixels.std() > 10
        shades.append(np.median(pixels))
        _find(page, "#theme").click()
    assert abs(shades[0] - shades[1]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gap", "attribution"])
def test_awkward_names(browser, tmp_path, method):
    if method == "gap":
        run = gap_run(tmp_path / "run", AWKWARD, unknown=0)
    else:
        run = attribution_run(tmp_path / "run", AWKWARD, maps=False)
    browser.get(write_report(run, groups={AWKWARD[1]: AWKWARD[0]}).as_uri())
    assert set(_column(browser, "everything", "name")) == set(AWKWARD)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    if method == "gap":
        assert set(_column(browser, "controls", "task")) == set(AWKWARD)
        assert "No source is known" in _find(browser, "#answer").text
    assert browser.get_log("browser") == []
