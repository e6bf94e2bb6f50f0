"""What stands beside what: published figures, settings, cost, and the arms of a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report.pictures import ranks
from brainfoundry.experiments.report.results import StudyResults
from brainfoundry.experiments.report.tables_facts import settings_table
from brainfoundry.experiments.report.tables_grid import arms_of, comparators
from brainfoundry.experiments.report.tables_scores import fold_table
from brainfoundry.experiments.report.tables_study import cost_table
from tests.experiments.report.builders import FOLDS, Change, study, write_study


def test_the_papers_figures_stand_beside_its_own_objective_alone(tmp_path: Path) -> None:
    objectives = ["masked_autoencoder", "inpaint_rotate_contrast"]
    grid = [{"size": ["tiny"], "init": ["stage1"], "objective": objectives, "fold": [0, 1]}]
    content = {**FOLDS, "grid": grid, "primary": None}
    (found,) = StudyResults.open([write_study(tmp_path, content)]).studies
    made = fold_table(found, "8")
    named = [row for row in made.rows if row.startswith("One-Stage (62M)")]
    assert named == ["One-Stage (62M): inpaint_rotate_contrast"] and "masked_autoencoder" in made.rows
    assert made.cell(named[0], "Fold 1").published and not made.cell("masked_autoencoder", "Fold 1").published


def test_a_batch_of_the_paper_is_of_subjects(tmp_path: Path) -> None:
    (found,) = StudyResults.open([write_study(tmp_path)]).studies
    made = settings_table(found)
    ours = next(row for row in made.rows if row.startswith("stage1"))
    assert made.cell(ours, "subjects a step").measured == "4"  # 2 groups of 2, one crop each
    assert made.cell(ours, "subjects a step").published == "128"
    assert not made.cell(ours, "crops a step").published


def test_the_best_point_of_a_search_costs_once(tmp_path: Path) -> None:
    """The trial is its run."""
    (found,) = StudyResults.open([write_study(tmp_path)]).studies
    trial = next(record for record in found.records.values() if record.role == "trial")
    point = replace(trial, id="search-a-123456", role="choice", chosen={"optim.lr": 0.1})
    with_point = replace(found, records={**found.records, point.id: point})
    before, after = cost_table(found), cost_table(with_point)
    assert before is not None and after is not None
    for column in ("runs", "CPU-hours", "training time"):
        assert before.cell("everything", column).measured == after.cell("everything", column).measured
    assert after.cell("options tried on validation", "runs").measured == "1"


def only(*draws: int, of: str) -> Change:
    def change(record: TrialRecord) -> TrialRecord | None:
        mine = record.kind == "finetune" and record.point["init"] == of and record.point["share"] == 5
        return None if mine and record.point["draw"] not in draws else record

    return change


@pytest.mark.parametrize(("draws", "left_out"), [((0, 1, 2), False), ((0,), True)])
def test_ranks_name_the_arms_that_lack_a_draw(draws: tuple[int, ...], left_out: bool, tmp_path: Path) -> None:
    inits = {"scratch": [], "stage1": ["stage1"], "twice": ["stage1", "stage2"]}
    content = study(
        inits=inits,
        stages={**study()["stages"], "stage2": {"cohort": "brats", "recipe": "brats", "preset": "demo"}},
        grid=[{"size": ["nano"], "init": list(inits), "share": [5], "draw": [0, 1, 2]}],
    )
    folder = write_study(tmp_path, content, change=only(*draws, of="twice"))
    (found,) = StudyResults.open([folder]).studies
    picture = ranks(found)
    assert picture is not None
    assert ("Left out, without all of the same repetitions: twice" in picture.caption) == left_out


def test_a_variant_that_stands_first_is_not_what_others_are_compared_with(tmp_path: Path) -> None:
    content = study(
        variants={"longer": {"optim.steps": 400}},
        grid=[
            {"size": ["nano"], "init": ["scratch"], "share": [5], "draw": [0], "variant": ["longer"]},
            {"size": ["nano"], "init": ["scratch", "stage1"], "share": [5], "draw": [0, 1, 2]},
        ],
    )
    (found,) = StudyResults.open([write_study(tmp_path, content)]).studies
    arms = arms_of(found, ["init", "variant"])
    assert {arm: base.name for arm, base in comparators(found, arms).of.items()} == {
        "scratch, longer": "scratch", "stage1": "scratch",
    }  # fmt: skip
