"""The whole report: its files, what must not be in them, and the page in a real browser."""

from __future__ import annotations

import random
from html.parser import HTMLParser

import pytest

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.cohorts.participants import read_participants
from brainfoundry.core.errors import DataError
from brainfoundry.reports.cohort_report import FILES, Report, make_report
from tests.browser import render
from tests.reports.builders import FIRST, manifest, person

N = 160


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> tuple[Manifest, str]:
    """160 participants, 12 of them left out, three splits; and the path of their table."""
    folder = tmp_path_factory.mktemp("cohort")
    out = {3: "missing_modality", 4: "brain_tumour", 5: "brain_tumour", 6: "damaged_data"}
    rnd = random.Random(0)
    rows = [
        person(i, rnd.choice(["train", "train", "val", "test"]), reason=out.get(i % 53, "")) for i in range(N)
    ]
    rows.append(person(0, rows[0].split, session="3"))
    notes = ("2 sessions of another instance were left out", f"something about {FIRST + 7}, by name")
    lines = ["eid,p31,p21022,p21000_i0"]
    for i in range(N):
        code = rnd.choice([1001] * 20 + [3001, 4001, -3])
        lines.append(f"{FIRST + i},{rnd.randint(0, 1)},{rnd.randint(40, 69)},{code}")
    (folder / "ukb.csv").write_text("\n".join(lines))
    return manifest(folder, rows, notes=notes), str(folder / "ukb.csv")


def table(cohort):
    return read_participants(cohort[1], {str(FIRST + i) for i in range(N)})


@pytest.fixture(scope="module")
def closed(cohort) -> Report:
    """Its report, small counts hidden, with one brain tumour on record."""
    return make_report(cohort[0], participants=table(cohort), tumours={str(FIRST + 1)}, notes=["a note"])


class Text(HTMLParser):
    """The text of a page, and every attribute that could make a browser fetch something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.links, self.headings = "", [], []
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self._tag = tag
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data) -> None:
        self.text += data
        if self._tag in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data)


def test_every_file_and_no_id_in_any(closed, tmp_path) -> None:
    written = closed.write(str(tmp_path / "report"))
    assert [uri.rpartition("/")[2] for uri in written] == list(FILES)
    for name in FILES:
        data = (tmp_path / "report" / name).read_bytes()
        assert data == closed.parts[name] and len(data) > 50
        # Ids have seven digits; the outlines of an SVG and base64 may hold any digits, so look for words.
        if name.endswith((".csv", ".html")):
            found = [i for i in range(N) if str(FIRST + i).encode() in data]
            assert not found, (name, found)
    page = Text(closed.parts["report.html"].decode())
    assert "A note." in page.text
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links) and len(page.links) == 2
    for words in ("Who was left out", "The paper's cohort", "Who is in it", "Are the splits alike?"):
        assert any(words in heading for heading in page.headings)
    assert "43,367" in page.text and "502,410" in page.text  # the paper's misprints


def test_all_counts_when_asked(cohort, closed) -> None:
    opened = make_report(cohort[0], participants=table(cohort), show_small_counts=True).parts
    assert b"<5" in closed.parts["consort.csv"] and b"<5" in closed.parts["table1.csv"]
    for name in ("consort.csv", "table1.csv", "demographics.csv", "balance.csv"):
        own = [line for line in opened[name].splitlines() if b"paper" not in line]
        assert not any(b"<5" in line or "≥5".encode() in line for line in own)
    all_shown, some_shown = opened["report.html"].decode(), closed.parts["report.html"].decode()
    assert "not for publication" in all_shown and "not for publication" not in some_shown
    # The manifest's notes hold counts, and may hold an id.
    assert "2 sessions of another instance" in all_shown and "something about" not in all_shown
    assert "2 sessions of another instance" not in some_shown


def test_a_wrong_cell_is_one_line(cohort, tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"eid,p21000_i0\n{FIRST},77\n")
    wrong = read_participants(str(path), {str(FIRST)})
    with pytest.raises(DataError, match=rf"'77' is not known \[subject {FIRST}; file .*t\.csv\]\. Fix: "):
        make_report(cohort[0], participants=wrong)


def test_another_cohort_without_anything_known(tmp_path) -> None:
    made = manifest(tmp_path, [person(i, "") for i in range(6)], cohort="brats", skull_stripped=True)
    page = Text(make_report(made).parts["report.html"].decode())
    assert "The paper used 1,251 subjects of BraTS" in page.text
    assert "Nothing is known of the participants" in page.text and "nothing to compare" in page.text
    assert "UK Biobank" not in page.text


@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(closed, tmp_path, width) -> None:
    closed.write(str(tmp_path))
    shown = render(tmp_path / "report.html", tmp_path / "page.png", size=(width, 4000))
    assert not shown.requests, shown.requests
    assert len(shown.images) == 2
    for natural_width, natural_height, w, h in shown.images:
        assert natural_width > 700 and natural_height > 400  # drawn, not broken
        assert w / h == pytest.approx(natural_width / natural_height, rel=0.02) and w <= width
    assert shown.width <= width, "the page must not need scrolling sideways"
    assert "Are the splits alike?" in shown.dom
    assert shown.png.stat().st_size > 50_000
