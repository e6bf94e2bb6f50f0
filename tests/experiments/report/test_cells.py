"""Tables of a study: kinds kept apart, numbers as people read them, footnotes, CSV, LaTeX, HTML."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.experiments.report import cells, export
from brainfoundry.experiments.report.cells import Cell, Estimate, Table, table_of
from brainfoundry.experiments.report.table_html import StudyPage

DICE = Estimate(value=0.91234, low=0.9051, high=0.9194, n=250)
COMMAND = "ray job submit -- python jobs/study.py table4 --only fold=2"


def table() -> Table:
    return table_of(
        "table4",
        "Table 4: 100 % of folds & models_x",
        [
            Cell(row="BSF", column="Fold 1", measured=DICE, published="0.9032", notes=("leaky",)),
            Cell(row="BSF", column="Fold 2", published="0.9182", published_note="misprint", command=COMMAND),
            Cell(row="SwinU <scratch>", column="Fold 1", measured=Estimate(value=-0.012, n=1, signed=True)),
            Cell(
                row="SwinU <scratch>", column="Fold 2", command=COMMAND, notes=("it failed: out of memory",)
            ),
            Cell(row="HeRN", column="Fold 1", published="0.718", published_note="misprint"),
            Cell(row="GPU-hours", column="Fold 1", measured="1.5"),
        ],
        corner="model",
        notes=("All of it is made up.",),
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.91234, "0.912"),
        (-0.0041, "−0.004"),
        (8993.85, "8,993.9"),
        (62191.2, "62,191"),
        (math.nan, "–"),
        (-0.0001, "0.000"),
    ],
)
def test_numbers_are_short_and_have_a_real_minus(value: float, text: str) -> None:
    assert cells.number(value) == text


def test_a_difference_shows_its_sign() -> None:
    estimate = Estimate(value=0.012, low=-0.004, high=0.028, n=200, draws=5, sd=0.01, signed=True)
    cell = Cell(row="a", column="b", measured=estimate)
    assert cells.main_text(cell, "measured", 3) == "+0.012"
    assert cells.details(cell, "measured", 3) == ("−0.004 to 0.028", "SD 0.0100, n = 5 × 200")


def test_measured_and_published_have_lines_of_their_own() -> None:
    assert [(line.row, line.kind) for line in table().lines()] == [
        ("BSF", "measured"), ("BSF", "published"), ("SwinU <scratch>", "measured"), ("HeRN", "published"),
        ("GPU-hours", "measured"),
    ]  # fmt: skip


def test_footnotes_are_numbered_in_order_and_shared() -> None:
    assert table().footnotes() == {"leaky": "a", "misprint": "b", "it failed: out of memory": "c"}
    assert [cells.mark(i) for i in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


def test_missing_cells_are_grouped_by_the_command_that_fills_them() -> None:
    (command,) = table().missing()
    assert [(cell.row, cell.column) for cell in table().missing()[command]] == [
        ("BSF", "Fold 2"), ("SwinU <scratch>", "Fold 2")
    ]  # fmt: skip


def test_a_cell_twice_is_a_mistake_of_the_program() -> None:
    twice = [Cell(row="a", column="b"), Cell(row="a", column="b")]
    with pytest.raises(ValueError, match="cells twice"):
        table_of("t", "t", twice)


def test_csv_keeps_precision_kinds_and_commands() -> None:
    rows = list(csv.DictReader(io.StringIO(export.to_csv(table()).decode())))
    by = {(row["row"], row["column"], row["kind"]): row for row in rows}
    assert by["BSF", "Fold 1", "measured"]["value"] == "0.91234"
    assert by["BSF", "Fold 1", "measured"]["n"] == "250"
    assert by["BSF", "Fold 1", "published"]["value"] == "0.9032"
    assert by["BSF", "Fold 1", "published"]["low"] == ""
    assert by["BSF", "Fold 2", "missing"]["command"] == COMMAND
    assert by["GPU-hours", "Fold 1", "measured"]["value"] == "1.5"
    assert ("HeRN", "Fold 1", "measured") not in by


def test_latex_has_the_structure_of_booktabs() -> None:
    text = export.to_latex(table())
    rules = [line for line in text.splitlines() if line.startswith((r"\top", r"\mid", r"\bottom"))]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    for line in body:
        if not line.startswith(r"\addlinespace"):
            assert line.endswith(r" \\")
            assert line.replace(r"\&", "").count("&") == 2
    assert r"100 \% of folds \& models\_x" in text
    assert r"\textit{0.9032}" in text and r"\textit{BSF, published}" in text
    assert r"\textbf" not in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=("Cc",))))
def test_no_text_is_a_command_to_latex(text: str) -> None:
    done = export.latex(text)
    bare = done
    for safe in sorted(export._TEX.values(), key=len, reverse=True):
        bare = bare.replace(safe, "")
    assert not set(bare) & set("\\&%$#_{}~^")


def test_latex_compiles(tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex is installed")
    tex = (
        ""
        "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    )
    tex += export.to_latex(table()) + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(tex)
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


class Rows(HTMLParser):
    """Class of each table row, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.text = ""
        self.strong = 0

    def handle_starttag(self, tag, attrs) -> None:
        if tag == "tr":
            self.rows.append(dict(attrs).get("class") or "")
        self.strong += tag == "strong"

    def handle_data(self, data) -> None:
        self.text += data


def test_the_page_tells_the_kinds_apart_and_folds_up_the_commands() -> None:
    page = StudyPage("Study")
    page.first_screen("why?", "a < b", [], b"", "")
    page.cells(table())
    found = Rows()
    found.feed(page.html())
    assert found.rows == ["", "first", "published", "first", "published", "first"]
    assert "2 cells are missing or rest on a part of the trials" in found.text
    assert COMMAND in found.text and "published: HeRN" in found.text and "a < b" in found.text
    assert found.strong == 0


def test_what_is_better_is_bold() -> None:
    page = StudyPage("Study")
    better = Estimate(value=0.9, low=0.89, high=0.91, n=9, better=True)
    bold = table_of("t", "t", [Cell(row="a", column="b", measured=better, published="0.95")])
    page.cells(bold)
    found = Rows()
    found.feed(page.html())
    assert found.strong == 1
    assert export.to_latex(bold).count(r"\textbf") == 1
