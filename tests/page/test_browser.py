"""A report in a real Chromium, from disk and with the network off: what a person does with it by mouse and by keyboard."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers.browsed import write_browsed_study

import mi_ray.page
from mi_ray.page.write import page
from mi_ray.store.blocks import Store
from mi_ray.store.read import cells_table, write_cells

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MARKS = "#frontier-chart .settings_marks path"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path, e.g. `apt-get install chromium`"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two studies: three defenses under two attacks and their worst case, for two classifiers."""
    folder = tmp_path_factory.mktemp("page")
    store = Store(folder / "results", create=True)
    for name, seed in (("one", 0), ("two", 1)):
        write_browsed_study(store, name, seed)
    file = folder / "report.html"
    file.write_text(page(store, ["one", "two"]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright for Python (the extra `test`)")
    with api.sync_playwright() as found:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        started = found.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def opened(browser: "Browser", html: Path) -> "Iterator[Page]":
    """The page, opened from disk with the network off; nothing may be said in its console, and nothing asked for."""
    yield from _opened(browser, html, viewport={"width": 1280, "height": 900})


def _opened(browser: "Browser", html: Path, **how: Any) -> "Iterator[Page]":
    context = browser.new_context(offline=True, accept_downloads=True, **how)
    shown = context.new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: said.append(request.url) if request.url.startswith(("http", "ws")) else None)
    shown.set_default_timeout(60_000)
    shown.goto(html.as_uri())
    shown.wait_for_selector(MARKS)
    yield shown
    context.close()
    assert said == []


def _mark(shown: "Page", text: str) -> Any:
    return shown.locator(f"{MARKS}[aria-label*='{text}']").first


def test_it_opens_with_an_answer_and_every_setting_of_the_frontier(opened: "Page") -> None:
    assert "Without a defense, left is right on" in opened.inner_text("#answer-text")
    assert opened.locator(MARKS).count() == 7
    assert "No defense, N = 1, 1 draw" in opened.locator("#choose-setting option").all_inner_texts()
    opened.locator("#frontier-table summary").click()
    assert opened.locator("#frontier-table tbody tr").count() == 7


def test_choosing_changes_the_answer_and_the_frontier(opened: "Page") -> None:
    before = opened.inner_text("#answer-text")
    opened.select_option("#choose-classifier", "right")
    assert "Without a defense, right is right on" in opened.inner_text("#answer-text") != before
    opened.select_option("#choose-attack", label="PGD-20, untargeted (oblivious)")
    opened.select_option("#choose-epsilon", label="16/255")
    opened.wait_for_selector(f"{MARKS}[aria-label*='ε = 16/255']")
    opened.uncheck("#legend label:has-text('MI-OL') input")
    opened.wait_for_function('document.querySelectorAll("#frontier-chart .settings_marks path").length === 4')


def test_a_setting_under_the_cursor_says_its_numbers_and_a_click_shows_it(opened: "Page") -> None:
    mark = _mark(opened, "lam=0.7")
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    told = opened.inner_text("#tip")
    assert all(part in told for part in ("MI-OL (lam=0.7)", "clean ", "N = 5", "Worst case", "checks"))
    mark.click(force=True)
    opened.wait_for_function("document.getElementById('setting-title').textContent.includes('lam=0.7')")
    said = opened.inner_text("#setting-body")
    for part in (
        "more_steps",
        "Twice the steps do not leave significantly less.",
        "What to do:",
        "lam: 0.7",
        "read_records",
        "Forward passes",
    ):
        assert part in said
    assert opened.locator("#setting-body .chart svg").count() == 2  # survival of k attempts, loss against steps
    examples = opened.locator("#examples article").count()
    assert opened.locator("#examples img").count() == examples > 0  # the clean ones: a worst case has none of its own
    opened.select_option("#choose-attack", label="PGD-10, untargeted (oblivious)")
    assert opened.locator("#examples img").count() == 3 * examples


def test_the_keyboard_alone_reaches_a_setting_and_shows_it(opened: "Page") -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "Skip to the answer"
    for _ in range(60):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.matches('#frontier-chart path')"):
            break
    first = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    opened.keyboard.press("ArrowRight")
    second = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first != second
    assert opened.inner_text("#under-cursor") == second
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "setting-title"
    assert second.split(", N =")[0] in opened.inner_text("#setting-title")


@pytest.mark.long  # What the page is made of there is held by test_facts.py without a browser.
def test_a_classifier_that_is_attacked_in_one_way_alone_stands_beside_the_worst_cases(opened: "Page") -> None:
    opened.select_option("#choose-classifier", "right")
    opened.select_option("#choose-attack", "Worst case")
    opened.select_option("#choose-epsilon", "16/255")
    assert "PGD-20" in (_mark(opened, "No defense").get_attribute("aria-label") or "")
    assert "Worst case" in (_mark(opened, "MI-OL").get_attribute("aria-label") or "")
    assert "Without a defense, right is right on" in opened.inner_text("#answer-text")
    assert "points against no defense" in opened.inner_text("#answer-text")


@pytest.mark.long  # What the page is made of there is held by test_facts.py without a browser.
def test_what_is_certified_stands_in_a_chart_and_in_a_table(opened: "Page") -> None:
    opened.get_by_role("link", name="Guarantees", exact=True).click()
    assert (
        opened.locator("#guarantees-chart svg[aria-label], #guarantees-chart canvas, #guarantees-chart svg").count()
        >= 1
    )
    heads = opened.locator("#guarantees-table th").all_inner_texts()
    assert heads[:7] == ["Classifier", "σ", "n0", "n", "α", "Radius", "Certified %"]
    rows = [row.locator("td").all_inner_texts() for row in opened.locator("#guarantees-table tbody tr").all()]
    assert [(row[0], row[5], row[6], row[-1]) for row in rows] == [
        ("left", "0", "80.0", "done"),
        ("left", "0.25", "50.0", "done"),
        ("left", "0.5", "25.0", "done"),
    ]
    opened.locator("#guarantees-table th button", has_text="Radius").click()
    assert opened.locator("#guarantees-table tbody tr").first.locator("td").nth(5).inner_text() == "0.5"


@pytest.mark.long  # What the page is made of there is held by test_facts.py without a browser.
def test_what_abstains_says_how_many_points_it_answers_and_how_many_of_these_rightly(opened: "Page") -> None:
    for lam, shown in (("0.6", ["75.0", "90.0"]), ("0.5", [])):
        _mark(opened, f"lam={lam}").click(force=True)
        opened.wait_for_function(f"document.getElementById('setting-title').textContent.includes('lam={lam}')")
        table = opened.locator("#setting-body table").first
        heads = table.locator("th").all_inner_texts()
        found = [heads.index(name) for name in ("Answered %", "Right of these %") if name in heads]
        cells = table.locator("tbody tr").first.locator("td")
        assert [cells.nth(at).inner_text() for at in found] == shown
    heads = opened.locator("#cells-table th").all_inner_texts()
    assert heads[heads.index("Answered %") + 1] == "Right of these %"


def test_tables_sort_search_and_download_what_they_show(opened: "Page", tmp_path: Path) -> None:
    field = opened.locator("#cells-table input[type=search]")
    field.fill("mi-ol pgd-10 left")
    rows = opened.locator("#cells-table tbody tr")
    assert 0 < rows.count() < 25
    header = opened.locator("#cells-table th", has_text="Accuracy %")
    for order in ("descending", "ascending"):
        header.locator("button").click()
        assert opened.locator("#cells-table th", has_text="Accuracy %").get_attribute("aria-sort") == order
    at = opened.locator("#cells-table th").all_inner_texts().index("Accuracy %")
    shown = [float(row.locator("td").nth(at).inner_text()) for row in rows.all()]
    assert shown == sorted(shown)
    with opened.expect_download() as download:
        opened.click("#cells-table button:has-text('CSV')")
    file = tmp_path / "cells.csv"
    download.value.save_as(file)
    read = list(csv.DictReader(file.open(encoding="utf-8")))
    assert [round(100 * float(row["accuracy"]), 1) for row in read] == shown
    assert download.value.suggested_filename == "one-cells.csv"


def test_numbers_are_rounded_as_tables_and_the_answer_round_them(opened: "Page") -> None:
    """400 images have shares that lie half way, such as 125 / 400; JavaScript's own toFixed writes 31.3 there."""
    source = (Path(mi_ray.page.__file__).parent / "charts.js").read_text(encoding="utf-8")
    rules = source[source.index("const fixed") : source.index("const interval")]
    for count in (400, 350, 999):
        shares = [k / count for k in range(-count, count + 1)]
        shown = opened.evaluate(f"(shares) => {{ {rules} return shares.map(percent); }}", shares)
        assert shown == [f"{100 * share:.1f}" for share in shares]
    parts = [k / 16 for k in range(17)]
    assert opened.evaluate(f"(parts) => {{ {rules} return parts.map((one) => fixed(one, 3)); }}", parts) == [
        f"{one:.3f}" for one in parts
    ]


def test_example_images_keep_their_shape_also_where_one_stands_alone(opened: "Page") -> None:
    opened.wait_for_selector("#examples img")
    sides = opened.evaluate("[...document.querySelectorAll('#examples img')].map((one) => [one.width, one.height])")
    assert sides
    assert all(abs(width - height) <= 1 for width, height in sides)


def test_points_say_which_attack_broke_them(opened: "Page") -> None:
    opened.click("#points-table th button:has-text('Broken by')")
    last = [text for text in opened.locator("#points-table tbody tr").all_inner_texts() if text]
    counts = [int(text.split("\t")[-1].split(" of ")[0]) for text in last]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 0


def test_two_studies_stand_side_by_side_with_paired_tests(opened: "Page", html: Path) -> None:
    opened.wait_for_function("document.querySelectorAll('#side-charts svg').length === 2")
    rows = opened.locator("#side-table tbody tr").all_inner_texts()
    data = json.loads(opened.inner_html("#data").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert len(rows) == min(50, len(data["comparisons"])) > 0
    assert "Shown are the first" not in opened.inner_text("#side-note")  # All are.
    opened.select_option("#choose-study", "1")
    opened.wait_for_selector(MARKS)
    assert opened.locator("#cells-table tbody tr").count() == 25


def test_other_options_of_a_study_have_an_answer_and_a_frontier_of_their_own(
    browser: "Browser", tmp_path: Path
) -> None:
    store = Store(tmp_path / "results", create=True)
    write_browsed_study(store, "one", 0)
    rows = cells_table(store, "one").to_pylist()
    write_cells(store, "one", [{**row, "variants": ["", *["v"] * (row["defense"] != "mi_ol")]} for row in rows])
    told = {"name": "one", "options": {"draws": 1}, "variants": {"v": {"draws": 3}}, "classifiers": [{"name": "left"}]}
    store.write_bytes("studies/one/study.yaml", json.dumps(told).encode())
    (file := tmp_path / "report.html").write_text(page(store, ["one"]), encoding="utf-8")
    for shown in _opened(browser, file, viewport={"width": 1280, "height": 900}):
        for variant, marks in ((None, 7), ("v", 4)):
            if variant:
                shown.select_option("#choose-variant", label=variant)
            shown.wait_for_function(
                f'document.querySelectorAll("#frontier-chart .settings_marks path").length === {marks}'
            )
            told = shown.inner_text("#answer-text")
            assert "Without a defense, left is right on" in told
            assert ("is Gaussian noise (sigma=" in told) is bool(variant)
            assert f"options:\n  draws: {3 if variant else 1}\n" in shown.inner_text("#setting-body")


def test_the_sweep_of_a_setting_with_a_smaller_n_has_the_larger_that_attacks_follow(
    browser: "Browser", tmp_path: Path
) -> None:
    store = Store(tmp_path / "results", create=True)
    write_browsed_study(store, "one", 0)
    rows = cells_table(store, "one").to_pylist()
    through = next(row for row in rows if row["defense"] == "mi_ol" and row["attack"] == "pgd")
    unknown = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "points", "selection_points", "verdict"))
    larger = {
        **through,
        **unknown,
        "cell": "larger",
        "knowledge": "adaptive",
        "executions": 9,
        "state": "missing",
        "cause": "not reached",
    }
    write_cells(store, "one", [*rows, larger])
    (file := tmp_path / "report.html").write_text(page(store, ["one"]), encoding="utf-8")
    for shown in _opened(browser, file, viewport={"width": 1280, "height": 900}):
        shown.wait_for_selector(MARKS)
        smaller = "option:has-text('MI-OL'):has-text('N = 5,')"
        shown.select_option("#choose-setting", shown.locator(f"#choose-setting {smaller}").first.get_attribute("value"))
        assert "executions: [5, 9]   # attacks follow the larger\n" in shown.inner_text("#setting-body")


@pytest.mark.parametrize(
    "how",
    [
        {"viewport": {"width": 320, "height": 256}},  # what is left of 1280 x 1024 at 400 %
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    ],
)
def test_it_fits_at_400_percent_and_in_the_dark(browser: "Browser", html: Path, how: dict[str, Any]) -> None:
    for shown in _opened(browser, html, **how):
        assert shown.evaluate("document.documentElement.scrollWidth") <= how["viewport"]["width"]
        ink = shown.evaluate("getComputedStyle(document.querySelector('#frontier-chart .role-axis-label text')).fill")
        dark = how.get("color_scheme") == "dark"
        assert (sum(map(int, ink[4:-1].split(","))) > 500) is dark


def test_paper_is_white_in_dark_mode_and_shows_no_controls(browser: "Browser", html: Path, tmp_path: Path) -> None:
    for shown in _opened(browser, html, viewport={"width": 900, "height": 900}, color_scheme="dark"):
        shown.emulate_media(media="print", color_scheme="dark")
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not shown.is_visible("form.choices")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 900
        assert len(shown.pdf(path=tmp_path / "page.pdf")) > 10_000
