"""A page is one well-formed file that asks for nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detrove.reporting import Bar, Number, Page, Series, bar_chart, line_chart

CHROMIUM = Path("/usr/bin/chromium")
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Checker(HTMLParser):
    """Follows the tags of a page; fails where one is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(page: Page) -> Checker:
    checker = Checker()
    checker.feed(page.to_html())
    checker.close()
    assert not checker.open
    return checker


@pytest.fixture
def page() -> Page:
    page = Page("Title & <b>", "lead")
    page.section("First <section>", "text")
    page.bullets(["one", "two"])
    page.numbers({"AP": 0.5, "AP50": None})
    page.table(["class", "boxes", "AP", "note"], [["cat", 1234, Bar("0.500", 0.5), "a & b"]], "a caption")
    page.matrix(["cat", "none"], ["cat", "missed"], np.array([[3, 1], [0, 0]]), "true / found", "confusion")
    page.charts([(line_chart([Series("loss", [1, 2], [2.0, 1.0])], "Loss", "epoch", "loss"), "a chart")] * 2)
    page.pictures([(Image.new("RGB", (20, 10)), 'a "picture"')])
    page.legend([((1, 2, 3), True, "missed")])
    return page


def test_the_page_is_well_formed_and_escapes_text(page):
    checker = check(page)
    assert "Title & <b>" in checker.text
    assert "First <section>" in checker.text
    assert not [tag for tag, _ in checker.seen if tag in ("b", "script", "link", "iframe")]


def test_an_option_is_not_torn_apart():
    page = Page("a", "Choose with --head-count.")
    page.paragraph("x--y <--z>, --query 3")
    text = page.to_html()
    assert 'Choose with <span class="option">--head-count</span>.' in text
    assert 'x--y &lt;--z&gt;, <span class="option">--query</span> 3' in text


def test_numbers_are_written_for_people(page):
    text = check(page).text
    assert "1,234" in text
    assert "0.500" in text
    assert "–" in text


def test_the_page_asks_for_nothing_outside_itself(page):
    content = page.to_html()
    assert "default-src 'none'" in content
    # XML namespaces are names, not addresses to fetch.
    content = re.sub(r'xmlns(:\w+)?="[^"]*"', "", content)
    assert not re.findall(r"https?://|@import|url\((?!#)", content)
    sources = [attributes.get("src") for tag, attributes in check(page).seen if tag == "img"]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_the_page_suits_telephones_paper_and_the_dark(page):
    content = page.to_html()
    assert "width=device-width" in content
    assert "prefers-color-scheme: dark" in content
    assert "@media print" in content


def sortable_page() -> Page:
    page = Page("t")
    rows = [["b", Bar("0.200", 0.2), Number("9 M", 9e6)], ["a", Bar("0.100", 0.1), Number("10 M", 1e7)]]
    page.table(["model", "AP", "size"], [*rows, ["c", None, None]], sortable=True)
    return page


def test_a_sortable_table_brings_the_one_script_that_the_page_permits():
    content = sortable_page().to_html()
    [script] = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in content
    assert [attributes["type"] for tag, attributes in check(sortable_page()).seen if tag == "button"] == ["button"] * 3
    assert "script-src" not in Page("t").to_html()


@pytest.mark.slow
def test_a_click_sorts_and_another_turns_the_order():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=str(CHROMIUM))
        view = browser.new_page()
        view.set_content(sortable_page().to_html())
        orders = []
        for head in ("AP", "AP", "size", "model", "model"):
            view.get_by_role("button", name=head).click()
            orders.append("".join(view.locator("tbody th").all_inner_texts()))
        browser.close()
    assert orders == ["bac", "abc", "abc", "abc", "cba"]


def test_a_table_without_rows_keeps_its_header():
    page = Page("t")
    page.table(["a", "b"], [])
    assert "ab" in check(page).text


def chart(**options) -> str:
    return line_chart([Series("a", [1, 2, 3], [1.0, None, 3.0]), Series("b", [2], [2.0])], "Two", "x", "y", **options)


def test_a_chart_is_an_element_that_fits_its_place_and_takes_the_ink_of_the_page():
    element = ElementTree.fromstring(chart())
    assert element.tag.endswith("svg")
    assert "viewBox" in element.attrib
    assert "width" not in element.attrib
    assert element.attrib["aria-label"] == "Two"
    assert "currentColor" in chart()
    texts = {text.text for text in element.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Two", "x", "y", "a", "b"} <= texts


def test_bars_stand_in_their_groups_and_none_leaves_a_gap():
    svg = bar_chart(["small", "large"], [("a", [0.1, 0.2]), ("b", [None, 0.4])], "Sizes", "AP", (0, 1))
    texts = {text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"Sizes", "AP", "small", "large", "a", "b"} <= texts


def test_whole_numbers_are_told_as_such():
    def told(xs) -> set:
        svg = line_chart([Series("a", xs, [0.0] * len(xs))], "t", "x", "y", (0, 1))
        return {text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}

    assert {"1", "2", "3"} <= told([1, 2, 3])
    assert "1.5" not in told([1, 2, 3])
    assert "1.50" in told([1.0, 2.0, 3.0])
    assert {label for label in told([2]) if label and label[0] in "12"} == {"1.0", "2"}  # y ends at 1.0


def test_a_band_is_drawn_where_there_is_one():
    with_band = line_chart([Series("a", [1, 2], [1.0, 2.0], low=[0.5, 1.5], high=[1.5, 2.5])], "t", "x", "y")
    assert "PolyCollection" in with_band or "FillBetween" in with_band
    assert "PolyCollection" not in chart()
    assert "FillBetween" not in chart()


def test_charts_of_one_page_share_no_ids():
    first, second = chart(), chart(logarithmic=True)
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= own
        assert set(re.findall(r'href="#([^"]+)"', svg)) <= own


def test_the_same_chart_is_the_same_text():
    assert chart() == chart()


def test_every_line_of_many_looks_different():
    svg = line_chart([Series(f"class {i}", [0, 1], [0, i]) for i in range(12)], "Many", "x", "y")
    lines = re.findall(r'<g id="[^"]*line2d[^"]*">\s*<path d="[^"]*" clip-path[^>]* style="([^"]*)"', svg)
    # Grid lines are alike; the twelve curves are not.
    assert len({style for style in lines if "stroke-opacity" not in style}) == 12
