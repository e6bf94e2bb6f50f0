"""The paper's figures as data: complete, parsed, mapped to axes, and never compared with measured ones."""

from __future__ import annotations

import ast
import csv
import math
import pickle
from collections import Counter
from pathlib import Path

import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments import published as module
from brainfoundry.experiments.published import TABLE_NOTES, Published, elsewhere, published, published_cell
from brainfoundry.reports import paper

PACKAGE = Path(module.__file__).parent
SHEET = Path(__file__).parents[2] / "../shared/reference/paper_tables.csv"
COUNTS = {
    "1": 12, "2": 45, "3": 18, "4": 54, "5": 12, "6": 20, "7": 36, "8": 42, "9": 48, "fig3": 4, "text": 3,
}  # fmt: skip
"""Figures of each table."""


def every() -> list[Published]:
    return [cell for table in COUNTS for cell in published(table)]


@pytest.mark.skipif(
    not SHEET.is_file(), reason="the reference sheet is not on this machine: ../shared/reference"
)
def test_figures_are_those_of_the_reference_sheet() -> None:
    with SHEET.open() as file:
        rows = [(row["table"], row["row"], row["column"], row["value"]) for row in csv.DictReader(file)]
    assert Counter(row[0] for row in rows) == COUNTS
    assert sorted(rows) == sorted((cell.table, cell.row, cell.column, cell.text) for cell in every())


def test_counts_and_no_figure_twice() -> None:
    assert {table: len(published(table)) for table in COUNTS} == COUNTS
    assert len({(cell.table, cell.row, cell.column) for cell in every()}) == sum(COUNTS.values())


def test_every_value_parses() -> None:
    for cell in every():
        if isinstance(cell.value, str):
            assert cell.value == cell.text and cell.text and cell.table in ("1", "2", "3", "text"), cell
        else:
            assert math.isfinite(cell.value) and float(cell.text) == cell.value, cell
    for table in ("4", "5", "8", "9"):
        assert all(isinstance(cell.value, float) and 0.6 < cell.value < 0.95 for cell in published(table))
    assert published_cell(2, "encoder parameters", "big").value == 26_636_839
    assert published_cell(2, "level 1 output", "tiny").value == "48x48x48x48"
    stage1 = "Stage 1 pretraining (encoder), UKB"
    assert published_cell(3, stage1, "learning rate").value == 1e-6
    assert published_cell(3, stage1, "steps").value == 200_000
    assert published_cell(3, stage1, "GPU").value == "64 x A100"


def test_known_cells() -> None:
    assert published_cell("9", "repeat 1", "SwinU 5%").value == 0.7437
    assert published_cell(8, "Fold 2", "One-Stage (64M)").value == 0.9186
    assert published_cell(6, "Volume difference", "HeRN").value == 6162.0
    assert {c.column for c in published(6)} >= {"CTRL", "HeRN", "POBOTRI"}
    assert all("ensemble" in c.note for c in published(6) if c.column in ("CTRL", "HeRN", "POBOTRI"))
    assert published_cell("fig3", "at least 100 slices in both", "UK Biobank").value == 41_400


def test_misprints_have_footnotes() -> None:
    wrong = published_cell(4, "Fold 2", "BSF-1-S (64M)")
    assert wrong.value == published_cell(8, "Fold 2", "One-Stage (69M)").value == 0.9055
    assert "0.9186" in wrong.note
    folds = [c.value for c in published(8) if c.column == "One-Stage (64M)" and c.row != "Average"]
    assert sum(map(float, folds)) / 5 == pytest.approx(
        0.9110, abs=5e-5
    )  # only the other value gives the mean
    other = published_cell(4, "Fold 5", "BSF-S (64M)"), published_cell(8, "Fold 5", "BSF-S (64M)")
    assert (other[0].value, other[1].value) == (0.9139, 0.9141) and "0.9141" in other[0].note
    assert "misprint" in published_cell(1, "modalities", "ATLAS").note
    for rows in ("Age", "ale"):  # ages; male, female, and gender unanswered
        entire = [c for c in published(7) if c.column == paper.ENTIRE and rows in c.row]
        entire += [
            c for c in published(7) if c.column == paper.ENTIRE and rows == "ale" and "Gender" in c.row
        ]
        assert sum(int(c.value) for c in entire) == 502_410
    assert any("502,410" in note for note in TABLE_NOTES["7"])


def test_every_table_of_dice_states_its_rule() -> None:
    for table in ("4", "5", "8", "9"):
        assert any("not thresholded" in note for note in TABLE_NOTES[table])
        assert {cell.metric for cell in published(table)} == {"dice_mean"}
    assert any("does not name" in note and "training set" in note for note in TABLE_NOTES["6"])
    assert TABLE_NOTES.keys() <= {*COUNTS, "brats2021"}
    words = " ".join(note for notes in TABLE_NOTES.values() for note in notes)
    assert "FACTS" not in words + " ".join(cell.note for cell in every())


def test_axes_of_a_study() -> None:
    assert published_cell(9, "repeat 3", "BSF 20%").axes == {
        "family": "swinunetr", "size": "small", "init": "stage1+2", "share": 20, "draw": 2,
    }  # fmt: skip
    assert published_cell(9, "Average", "SwinU 5%").axes == {
        "family": "swinunetr", "init": "scratch", "share": 5,
    }  # fmt: skip
    assert published_cell(8, "Fold 1", "One-Stage (69M)").axes == {
        "family": "swinunetr", "size": "big", "init": "stage1", "fold": 0,
    }  # fmt: skip
    assert published_cell(4, "Fold 5", "TransBTS").axes == {"family": "transbts", "fold": 4}
    assert published_cell(5, "Average", "SwinUNETR (T1w only)").axes["modalities"] == "T1w"
    assert published_cell(6, "Lesion-wise F1", "BrainSegFounder").metric == "lesion_f1"
    assert published_cell(6, "Dice", "CTRL").axes == {}
    for table in ("4", "5", "8", "9"):
        places = [tuple(sorted(cell.axes.items())) for cell in published(table)]
        assert all(places) and len(set(places)) == len(places), f"two figures of Table {table} at one place"


def test_sums_of_the_other_room_agree() -> None:
    # reports/ has a part of the same figures for its pages about cohorts.
    assert paper.table7(paper.COHORT) == {c.row: c.value for c in published(7) if c.column == paper.COHORT}
    assert paper.fig3() == {cell.row: cell.value for cell in published("fig3")}


def test_published_elsewhere_has_a_source_each() -> None:
    found = {cell.row: cell for cell in elsewhere("brats2021")}
    assert found["nnU-Net"].value == 0.9124 and found["SwinUNETR"].value == 0.9068
    assert found["MedNeXt L, kernel 5"].value == 0.915 and found["nnU-Net ResEnc M"].value == 0.9126
    for cell in (*found.values(), *elsewhere("intervals")):
        assert "arXiv" in cell.source and cell.axes == {}
    assert {cell.source for cell in every()} == {paper.SOURCE}


def test_unknown_tables_rows_and_columns() -> None:
    with pytest.raises(ConfigError, match=r"no published table 10.*Fix: choose one of 1, 2, 3"):
        published(10)
    with pytest.raises(ConfigError, match=r"Table 4 of the paper: no row 'Fold 6'.*Fold 1, Fold 2"):
        published_cell(4, "Fold 6", "nnU-Net")
    with pytest.raises(ConfigError, match=r"row 'Fold 1' has no column 'nnunet'.*SegResNet"):
        published_cell(4, "Fold 1", "nnunet")
    with pytest.raises(ConfigError, match="choose one of brats2021, intervals"):
        elsewhere("9")


def test_a_figure_travels_between_processes() -> None:
    cell = published_cell(9, "repeat 1", "BSF 5%")
    assert pickle.loads(pickle.dumps(cell)) == cell


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_nothing_compares_published_with_measured() -> None:
    # The figures know no statistics and no scores, the statistics no published figure.
    own = {name for name in imported(PACKAGE / "published.py") if name.startswith("brainfoundry.experiments")}
    assert not own
    assert not any(name.startswith("brainfoundry.tasks") for name in imported(PACKAGE / "published.py"))
    files = sorted((PACKAGE / "stats").glob("*.py"))
    assert files
    for file in files:
        assert not any("published" in name for name in imported(file)), file.name
    with pytest.raises(TypeError):
        _ = published_cell(9, "repeat 1", "BSF 5%") < 0.8  # type: ignore[operator]
