"""Self-contained pages: everything escaped, nothing fetched, numbers aligned, seen in a real browser."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.reports.page import Page
from tests.browser import render

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="40" height="30"/></svg>'


def png(width: int = 64, height: int = 32) -> bytes:
    from matplotlib.figure import Figure

    out = io.BytesIO()
    Figure(figsize=(width / 32, height / 32), dpi=32).savefig(out, format="png")
    return out.getvalue()


class Walk(HTMLParser):
    """Elements with their attributes, and the text of every table cell."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data) -> None:
        if self._in_cell:
            self.cells[-1] += data


def walk(page: Page) -> Walk:
    found = Walk()
    found.feed(page.html())
    return found


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc"))))
def test_whatever_is_written_stays_text(text: str) -> None:
    page = Page(text, lead=text)
    page.heading(text)
    page.text(text)
    page.items([text])
    page.table([text, "n"], [[text, 1]], caption=text)
    page.figure(SVG, text, alt=text)
    found = walk(page)
    known = {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "div", "table",
        "caption", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption", "footer",
    }  # fmt: skip
    assert {tag for tag, _ in found.elements} <= known
    assert found.cells[0] == found.cells[2] == text
    image = next(attrs for tag, attrs in found.elements if tag == "img")
    assert set(image) == {"src", "alt"} and image["alt"] == text


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([1, 22, 3.5], True),
        (["1,234", "<5", "-", ""], True),
        (["12 (3.4 %)", "1,000 (96.6 %)", "<5 (<0.1 %)"], True),
        ([None, 7], True),
        (["T1w", 7], False),
        (["2024-01-01"], False),
        (["sub-001"], False),
        ([None, "-"], False),
    ],
)
def test_numbers_are_aligned(column, right) -> None:
    page = Page("x")
    page.table(["v"], [[cell] for cell in column])
    classes = {attrs.get("class") for tag, attrs in walk(page).elements if tag == "td"}
    assert classes == ({"n"} if right else {None})


def test_mistakes_of_the_caller() -> None:
    page = Page("x")
    with pytest.raises(ValueError, match="2 cells"):
        page.table(["a", "b"], [["only one"]])
    with pytest.raises(ValueError, match="PNG, JPEG or SVG"):
        page.figure(b"GIF89a")


def test_in_a_browser(tmp_path) -> None:
    page = Page("A page", lead="what it is about")
    page.heading("Section")
    page.text("One paragraph with <b>markup</b> that must stay text.")
    page.table(["rule", "n", "share"], [["assessed", 1234, "100 %"], ["in", 4, "0.3 %"]], caption="Counts")
    page.figure(png(), "a picture")
    page.figures([(SVG, "one"), (SVG, "two")], width=80)
    # What must never be fetched, wherever it came from: a link inside a picture.
    page.figure(SVG.replace(b"<rect", b'<image href="http://picture.invalid/x.png"/><rect'), "linked")
    file = tmp_path / "page.html"
    file.write_text(page.html())
    shown = render(file, tmp_path / "page.png", size=(800, 900))
    assert not shown.requests, shown.requests
    assert [image[:2] for image in shown.images] == [(64, 32), (40, 30), (40, 30), (40, 30)]
    assert shown.images[1][2] == 80 and shown.width <= 800
    assert "&lt;b&gt;markup&lt;/b&gt;" in shown.dom
    assert re.match(rb"\x89PNG", shown.png.read_bytes())


def test_the_browser_helper_sees_a_request(tmp_path) -> None:
    # Else "no request" above would prove nothing.
    file = tmp_path / "page.html"
    file.write_text('<p>text<img src="http://picture.invalid/x.png">')
    shown = render(file, tmp_path / "page.png", size=(300, 300))
    assert any("picture.invalid" in url for url in shown.requests), shown.requests
