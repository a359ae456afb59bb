"""The page in a browser: sorting, legends, the theme, a phone's width, axe-core; and not one request."""

from __future__ import annotations

import json
import shutil

import pytest
from made_results import folder

from firesteel.bench.claims import VERDICTS
from firesteel.bench.page import report

WIDTHS = {"desktop": (1280, 900), "phone": (360, 740)}
SHOWN = "all => all.filter(one => getComputedStyle(one).display !== 'none').length"
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    place = folder(tmp_path_factory.mktemp("page"), seeds=1, methods=("SyncSGD()", "AGN(window=12)", "DynSGD(window=5)"))
    claims = [
        {"text": f"A claim {verdict}", "published": "85 %", "measured": "87 %", "verdict": verdict, "why": "So it is."}
        for verdict in VERDICTS
    ]
    (place / "bench.json").write_text(
        json.dumps({"title": "A bench", "about": "What it is.", "recipe": "r.py", "claims": claims})
    )
    return report(place, date="2026-01-02")[0]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api",
        reason="THE PAGE IS NOT TESTED: pip install playwright axe-playwright-python",
        exc_type=ImportError,
    )
    if BROWSER is None:
        pytest.skip("THE PAGE IS NOT TESTED: no Chromium on the PATH; apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, page_file):
    """Opens the page; at the end nothing has been asked of any network and nothing complained of."""
    asked, said, contexts = list[str](), list[str](), []

    def open_page(width="desktop", scheme="light"):
        context = browser.new_context(
            viewport=dict(zip(("width", "height"), WIDTHS[width], strict=True)), color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: said.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {page_file.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(opened, width, scheme):
    page = opened(width, scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]


@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "dark")])
def test_axe_finds_nothing_serious(opened, width, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="THE PAGE IS NOT TESTED: pip install axe-playwright-python"
    )
    page = opened(width, scheme)
    # A picture is one image to a reader, who hears its title and description: what it is drawn of only costs time here.
    page.evaluate("document.querySelectorAll('figure svg > g').forEach((group) => group.remove())")
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_tables_are_sorted_by_click_and_by_key(opened):
    page = opened()
    table = page.locator("#ranking table").first
    head = table.locator("thead th").nth(2)
    values = "rows => rows.map(row => row.cells[2].dataset.value === undefined ? null : Number(row.cells[2].dataset.value))"

    def column():
        return table.locator("tbody tr").evaluate_all(values)

    before = column()
    known = sorted(value for value in before if value is not None)
    absent = [None] * before.count(None)
    assert absent and head.get_attribute("aria-sort") is None
    head.locator("button").click()
    assert (column(), head.get_attribute("aria-sort")) == (known + absent, "ascending")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert (column(), head.get_attribute("aria-sort")) == (known[::-1] + absent, "descending")
    name = table.locator("thead th").first
    name.locator("button").focus()
    page.keyboard.press("Space")
    assert (name.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", None)
    texts = table.locator("tbody th").all_text_contents()
    assert texts == sorted(texts) != []


def test_sorting_is_stable(opened):
    page = opened()
    table = page.locator("#ranking table").first
    table.locator("thead button").nth(2).click()
    rows = table.locator("tbody th").all_text_contents()
    workers = table.locator("tbody tr").evaluate_all("rows => rows.map(row => Number(row.cells[1].dataset.value ?? 99))")
    table.locator("thead button").nth(1).click()
    expected = [name for _, name in sorted(zip(workers, rows, strict=True), key=lambda pair: pair[0])]
    assert table.locator("tbody th").all_text_contents() == expected


def test_long_tables_begin_short(opened):
    page = opened()
    table = page.locator("table[data-long]").first
    rows, more = table.locator("tbody tr"), table.locator("xpath=../following-sibling::button[1]")
    assert (rows.evaluate_all(SHOWN), more.get_attribute("aria-expanded")) == (8, "false")
    more.click()
    assert (rows.evaluate_all(SHOWN), more.get_attribute("aria-expanded")) == (rows.count(), "true")


def test_a_line_of_the_speed_up_goes_with_the_last_of_its_family(opened):
    page = opened()
    section = page.locator("section:has(.legend)").first
    line = section.locator(".family-0")
    section.locator("[data-set=none]").click()
    assert line.evaluate_all(SHOWN) == 0
    section.locator("[data-series='0']").click()
    assert line.evaluate_all(SHOWN) == 1


def test_a_legend_button_hides_its_series_in_all_pictures_of_the_section(opened):
    page = opened()
    section = page.locator("section:has(.legend)").first
    drawn, rows = section.locator(".lines .series-0"), section.locator(".rows .series-0")
    faint = "all => all.filter(one => getComputedStyle(one).fillOpacity < 0.5).length"
    assert drawn.count() > 10 and drawn.evaluate_all(SHOWN) == drawn.count()
    assert rows.count() > 3 and rows.evaluate_all(faint) == 0
    elsewhere = page.locator("section:has(.legend)").nth(1).locator(".lines .series-0")
    button = section.locator("[data-series='0']")
    button.click()
    assert (drawn.evaluate_all(SHOWN), button.get_attribute("aria-pressed")) == (0, "false")
    assert rows.evaluate_all(faint) == rows.count()
    assert elsewhere.evaluate_all(SHOWN) == elsewhere.count() > 0
    button.focus()
    page.keyboard.press("Enter")
    assert (drawn.evaluate_all(SHOWN), button.get_attribute("aria-pressed")) == (drawn.count(), "true")


def test_the_best_are_shown_at_first_all_and_none_on_demand(opened):
    page = opened()
    section = page.locator("section:has(.legend)").first
    pressed = section.locator("[data-series][aria-pressed=true]")
    total = section.locator("[data-series]").count()
    assert pressed.count() == 9 < total  # the external one is shown too
    late = section.locator(".lines .series-8")
    assert late.count() and late.evaluate_all(SHOWN) == 0
    for name, count in (("all", total), ("none", 0), ("best", 9)):
        section.locator(f"[data-set={name}]").click()
        assert pressed.count() == count


def test_the_theme_is_kept(opened):
    page = opened("desktop", "light")
    button, paper = page.locator("#theme"), "getComputedStyle(document.body).backgroundColor"
    assert (button.get_attribute("aria-pressed"), page.evaluate(paper)) == ("false", "rgb(255, 255, 255)")
    line = "getComputedStyle(document.querySelector('figure .series-0 path')).stroke"
    light = page.evaluate(line)
    button.click()
    assert (button.get_attribute("aria-pressed"), page.evaluate(paper)) == ("true", "rgb(20, 23, 27)")
    assert page.evaluate(line) != light
    page.reload()
    assert (button.get_attribute("aria-pressed"), page.evaluate(paper)) == ("true", "rgb(20, 23, 27)")
    button.click()
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


def test_verdicts_differ_in_word_and_shape(opened):
    page = opened()
    assert page.locator(".verdict").all_inner_texts() == list(VERDICTS)
    marks = page.locator(".verdict use").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert len(set(marks)) == 4
