"""Reports of made-up studies: what the tables, the answer, the figures and the page say."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException

from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report.cells import Estimate, Table
from brainfoundry.experiments.report.contents import Contents, contents_of
from brainfoundry.experiments.report.mlflow_check import check_runs
from brainfoundry.experiments.report.page import report_page
from brainfoundry.experiments.report.pictures import strata
from brainfoundry.experiments.report.results import StudyResults
from brainfoundry.experiments.stats import by_group
from tests.experiments.report.builders import FOLDS, study, write_study
from tests.jobs.in_process import load_job, runner

JOB = load_job("report_study")


def unfinished(record: TrialRecord) -> TrialRecord | None:
    """Two trials of stage1 at 5 %: draw 0 was not run, draw 1 failed."""
    if record.kind != "finetune" or record.point["share"] != 5 or record.point["init"] != "stage1":
        return record
    if record.point["draw"] == 0:
        return None
    return replace(record, state="failed", error="the loss is nan") if record.point["draw"] == 1 else record


@cache
def contents(folder: str) -> Contents:
    return contents_of(StudyResults.open([folder]))


def table(found: Contents, name: str) -> Table:
    made = found.studies[0].table(name)
    assert made is not None, [t.name for t in found.studies[0].tables]
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("whole"), undefined=0.2)


@pytest.fixture(scope="module")
def holed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("holed"), change=unfinished)


@pytest.fixture(scope="module")
def nothing_gained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_study(tmp_path_factory.mktemp("null"), gain=0.0)


def estimate(found: Table, row: str, column: str) -> Estimate:
    measured = found.cell(row, column).measured
    assert isinstance(measured, Estimate), found.cell(row, column)
    return measured


def test_a_cell_is_the_mean_of_its_score_tables(whole: str) -> None:
    scores = [pq.read_table(p).to_pandas() for p in Path(whole, "scores").glob("ft-*stage1-*-s5-*.parquet")]
    assert len(scores) == 3
    made = estimate(table(contents(whole), "table9-means"), "5 %, mean of 3 draws", "stage1")
    assert made.value == pytest.approx(np.mean([one["dice_mean"].mean() for one in scores]))
    assert (made.n, made.draws) == (40, 3)
    assert made.low < made.value < made.high


def test_the_difference_is_paired_by_draw_and_subject(whole: str) -> None:
    by_draw = []
    for draw in range(3):
        one, other = (
            pq.read_table(next(Path(whole, "scores").glob(f"ft-*{arm}-*-s5-d{draw}-*.parquet")))
            .to_pandas().set_index("subject")["dice_mean"]
            for arm in ("stage1", "scratch")
        )  # fmt: skip
        by_draw.append((one - other).mean())
    made = estimate(table(contents(whole), "table9-means"), "5 %, mean of 3 draws", "stage1 minus scratch")
    assert made.value == pytest.approx(np.mean(by_draw))
    assert made.signed and made.better


def test_published_figures_have_columns_of_their_own(whole: str) -> None:
    made = table(contents(whole), "table9-means")
    assert made.published_columns == ("published: BSF", "published: SwinU")
    cell = made.cell("5 %, mean of 3 draws", "published: BSF")
    assert cell.published and cell.measured is None
    differences = [column for column in made.columns if "minus" in column]
    assert all("published" not in column for column in differences)


def test_the_comparison_that_is_asked_for_comes_first(tmp_path: Path) -> None:
    """A page shows the first columns of a wide table."""
    variants = {"longer": {"optim.steps": 400}}
    grid = [{"size": ["nano"], "share": [5], "draw": [0], "variant": "longer"}, *study()["grid"]]
    made = table(contents(write_study(tmp_path, study(grid=grid, variants=variants))), "table9-means")
    arms = [column for column in made.columns if "minus" not in column and "detect" not in column][:3]
    assert arms == ["scratch, longer", "scratch", "stage1"]
    assert list(made.columns[3:]) == [
        "stage1 minus scratch", "smallest detectable, stage1", "scratch, longer minus scratch",
        "smallest detectable, scratch, longer", *made.published_columns,
    ]  # fmt: skip


def test_no_column_is_kept_for_shares_that_the_paper_has_not(tmp_path: Path) -> None:
    grid = [{"size": ["nano"], "init": ["scratch", "stage1"], "share": [50], "draw": [0, 1]}]
    primary = {**study()["primary"], "where": {"share": 50}}
    made = table(contents(write_study(tmp_path, study(grid=grid, primary=primary))), "table9-means")
    assert not any("published" in column for column in made.columns)


def test_missing_cells_say_what_fills_them(holed: str) -> None:
    found = contents(holed)
    each = table(found, "table9")
    for draw in (1, 2):
        cell = each.cell(f"5 %, repeat {draw}", "stage1")
        cell = cell if cell.command else each.cell(f"5 %, draw {draw - 1}", "stage1")
        assert cell.missing, each.rows
        assert f"draw={draw - 1}" in cell.command and "init=stage1" in cell.command
        assert "jobs/study.py" in cell.command
    page = report_page(found)
    assert "the loss is nan" in page
    assert "2 of 12 trials are missing" in page


def test_the_answer_never_says_more_than_its_interval(nothing_gained: str, whole: str) -> None:
    sentence = contents(nothing_gained).studies[0].answer.sentence
    assert "contains 0" in sentence and "smallest detectable difference" in sentence
    assert "3 draws × 40 test subjects" in sentence
    assert "above 0" in contents(whole).studies[0].answer.sentence


def test_nothing_is_bold_where_the_interval_contains_0(nothing_gained: str) -> None:
    for made in contents(nothing_gained).studies[0].tables:
        for cell in made.cells:
            if isinstance(cell.measured, Estimate) and cell.measured.signed and cell.measured.better:
                assert not cell.measured.low <= 0 <= cell.measured.high, (made.name, cell)


def test_scores_that_leaked_are_footnoted(tmp_path: Path) -> None:
    leak = {"source": "s", "test": "t", "selection": "split=test", "leaked": 3, "tested": 40}

    def leaky(record: TrialRecord) -> TrialRecord:
        return replace(record, leaks=(leak,)) if record.kind == "finetune" else record

    page = report_page(contents(write_study(tmp_path, change=leaky)))
    assert "3 of 40" in page


def test_folds_are_pooled_and_stand_beside_the_papers(tmp_path: Path) -> None:
    made = table(contents(write_study(tmp_path, FOLDS)), "table8")
    assert [c for c in made.columns if c.startswith("Fold")][:2] == ["Fold 1", "Fold 2"]
    folds = [cell for cell in made.cells if cell.column == "Fold 1" and isinstance(cell.measured, Estimate)]
    assert len(folds) == 4
    assert any(cell.published for cell in made.cells)


def test_lesion_metrics_stand_beside_the_leaderboards(tmp_path: Path) -> None:
    content = {
        **FOLDS, "name": "strokes", "task": "atlas", "tables": ["table6"], "test": {"on": "test"},
        "finetune": {"cohort": "brats", "recipe": "atlas", "preset": "demo"},
        "grid": [{"size": ["tiny"], "init": ["scratch", "stage1"]}],
        "primary": {"metric": "dice", "axis": "init", "arms": ["scratch", "stage1"]},
    }  # fmt: skip
    made = table(contents(write_study(tmp_path, content)), "table6")
    measured = [cell for cell in made.cells if isinstance(cell.measured, Estimate) and cell.column == "Dice"]
    assert len(measured) == 2, made.columns
    assert {line.row for line in made.lines() if line.kind == "published"} >= {"CTRL", "POBOTRI"}


def test_a_study_of_one_draw_says_that_draws_are_not_covered(tmp_path: Path) -> None:
    once = study(grid=[{"size": ["nano"], "init": ["scratch", "stage1"], "share": [5], "draw": [0]}])
    found = contents(write_study(tmp_path, once))
    assert any("trained once" in caution for caution in found.studies[0].answer.cautions)


def test_files_are_whole_and_the_page_stands_alone(holed: str, tmp_path: Path) -> None:
    found = contents(holed)
    written = found.write(str(tmp_path), report_page(found))
    assert written[-1].endswith("report.html")
    for uri in written:
        data = Path(uri).read_bytes()
        if uri.endswith(".png"):
            assert data.startswith(b"\x89PNG")
        elif uri.endswith(".svg"):
            ElementTree.fromstring(data)
        elif uri.endswith(".tex"):
            assert data.count(rb"\begin{tabular}") == data.count(rb"\end{tabular}") == 1
    page = Path(written[-1]).read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    names = {Path(uri).name for uri in written}
    assert {"table9.csv", "table9.tex", "fig5.png", "fig5.svg", "lineage.png", "fig4.svg"} <= names


def test_cohorts_that_cannot_be_read_cost_only_their_tables(tmp_path: Path) -> None:
    found = contents(write_study(tmp_path, cohorts=False))
    assert estimate(table(found, "table9-means"), "5 %, mean of 3 draws", "scratch").n == 40
    report_page(found)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    return runner(JOB, JOB.ReportStudyConfig, capsys)


def test_the_job_prints_the_answer_and_where_the_page_is(
    run: Callable[..., tuple[int, str, str]], whole: str, tmp_path: Path
) -> None:
    status, out, _ = run(whole, "--out", tmp_path / "report")
    assert status == 0
    assert "few: stage1 minus scratch at 5 % labels" in out
    assert (tmp_path / "report" / "report.html").exists() and "report.html" in out


def test_the_job_refuses_what_is_no_study(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, _, err = run()
    assert status == 2 and "no study was named" in err
    status, _, err = run(tmp_path)
    assert status != 0 and str(tmp_path) in err and "Traceback" not in err
    with pytest.raises(BrainFoundryError, match=re.escape(str(tmp_path))):
        StudyResults.open([str(tmp_path)])


def test_options_that_were_tried_are_listed_best_first(tmp_path: Path) -> None:
    def tried(record: TrialRecord) -> TrialRecord:
        if record.kind == "pretrain" or record.point["draw"] != 2:
            return record
        score = {"val/dice_mean": 0.7 if record.point["init"] == "scratch" else 0.8}
        return replace(record, role="choice", chosen={"optim.lr": 0.0005}, validation=score)

    made = table(contents(write_study(tmp_path, change=tried)), "choices")
    scores = [made.cell(row, "validation, mean Dice").measured for row in made.rows]
    assert scores == ["0.800", "0.800", "0.700", "0.700"]
    assert made.cell(made.rows[0], "optim.lr").measured == "0.0005"


def test_several_studies_share_a_page_and_no_file(whole: str, nothing_gained: str, tmp_path: Path) -> None:
    other = write_study(tmp_path, FOLDS)
    found = contents_of(StudyResults.open([whole, other]))
    names = list(found.parts())
    assert len(set(names)) == len(names)
    assert {"tables/few-table9.csv", "tables/folds-table8.csv", "tables/table1.csv"} <= set(names)
    page = report_page(found)
    assert page.count('class="answer"') == 2


def test_every_table_compiles(holed: str, tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex is installed")
    tables = [data.decode() for name, data in contents(holed).parts().items() if name.endswith(".tex")]
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx}\n"
    text = head + "\\begin{document}\n" + "\\clearpage\n".join(tables) + "\\end{document}\n"
    (tmp_path / "all.tex").write_text(text)
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in done.stdout


def test_groups_of_few_subjects_are_hidden(tmp_path: Path) -> None:
    (found,) = StudyResults.open([write_study(tmp_path)]).studies
    manifest = found.manifests["brats"]
    assert not isinstance(manifest, str)
    subjects = {f"brats-{i:04d}" for i in range(40)}
    by = strata(manifest, subjects)
    assert set(by) == {"sex", "age", "site or scanner"}
    assert set(by["sex"].values()) == {"female", "male"}
    rare = min(Counter(by["site or scanner"].values()).items(), key=lambda pair: pair[1])
    assert rare[1] < 5
    rows = {row.group: row for row in by_group(dict.fromkeys(subjects, 0.5), by["site or scanner"])}
    assert rows[rare[0]].interval is None and rows[rare[0]].count == "<5"


def test_scores_of_another_manifest_are_not_grouped(tmp_path: Path) -> None:
    def older(record: TrialRecord) -> TrialRecord:
        test = record.test and {**record.test, "manifest_hash": "of before a withdrawal"}
        return replace(record, test=test)

    names = [picture.name for picture in contents(write_study(tmp_path, change=older)).studies[0].pictures]
    assert "groups" not in names and "fig5" in names


def test_damaged_scores_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    broken = next(Path(folder, "scores").glob("*.parquet"))
    broken.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=re.escape(broken.name)) as error:
        StudyResults.open([folder])
    assert error.value.fix == "delete its trial's record and submit the study again"


def test_mlflow_is_asked_for_ids_alone(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            assert tracking_uri == "http://tracking"

        def get_run(self, run_id: str) -> None:
            asked.append(run_id)
            if "stage1" in run_id:
                raise MlflowException("no such run")

    monkeypatch.setattr("mlflow.tracking.MlflowClient", Client)
    (line,) = check_runs(StudyResults.open([whole]), "http://tracking")
    assert line.startswith("Study few: 6 of 13 MLflow runs are at http://tracking; not there: ")
    assert len(asked) == 13
