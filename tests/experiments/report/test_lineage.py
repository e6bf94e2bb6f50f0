"""The picture of the lineage: who stands behind whom, how many subjects, and lines that cross no box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report.figures_lineage import Box, lanes
from brainfoundry.experiments.report.lineage import boxes
from brainfoundry.experiments.report.results import StudyResults
from tests.experiments.report.builders import study, write_study

STAGES = {
    "stage1": {"cohort": "ukb", "recipe": "ukb", "preset": "demo"},
    "stage2": {"cohort": "brats", "recipe": "brats", "preset": "demo"},
}
LEAK = {"source": "stage2", "selection": "split test", "leaked": 7, "tested": 40}


def test_every_box_stands_behind_what_it_began_with(tmp_path: Path) -> None:
    def leaky(record: TrialRecord) -> TrialRecord:
        return (
            replace(record, leaks=(LEAK,)) if record.point["init"] == "stage1+2" and record.scores else record
        )

    content = study(
        stages=STAGES, inits={"scratch": [], "stage1": ["stage1"], "stage1+2": ["stage1", "stage2"]},
        grid=[{"size": "nano", "init": ["scratch", "stage1", "stage1+2"], "share": [5, 100], "draw": [0, 1]}],
    )  # fmt: skip
    (found,) = StudyResults.open([write_study(tmp_path, content, change=leaky)]).studies
    by_name = {box.name: box for box in boxes(found)}
    assert by_name["stage1+2, nano"].parents == ("stage1, nano",)
    assert by_name["stage1, nano"].lines == ("60 training subjects", "400 steps")
    assert by_name["stage1+2"].parents == ("stage1+2, nano",)
    assert by_name["scratch"].parents == (by_name["random weights"].id,)
    assert by_name["stage1"].lines == ("4 trials", "3 to 60 training subjects")
    assert by_name["stage1+2"].leak.startswith("7 of 40 subjects") and not by_name["stage1"].leak
    assert by_name["split test"].lines == ("40 subjects",)
    assert len(by_name["split test"].parents) == 3


def test_a_checkpoint_that_is_gone_costs_its_count_alone(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    for seen in Path(folder).glob("runs/stage1-*/checkpoints/*/seen.parquet"):
        seen.unlink()
    (found,) = StudyResults.open([folder]).studies
    (stage,) = (box for box in boxes(found) if box.kind == "pretrain")
    assert "training subjects not known" in stage.lines


@st.composite
def trees(draw: st.DrawFn) -> list[Box]:
    """Chains of pretraining from one start, each with any number of arms in the last column."""
    made = [Box(id="0", kind="start", column=0, name="0")]
    for i in range(1, draw(st.integers(1, 8))):
        parent = made[draw(st.integers(0, len(made) - 1))]
        made.append(Box(id=str(i), kind="pretrain", column=parent.column + 1, name="", parents=(parent.id,)))
    last, pretrained = max(box.column for box in made) + 1, len(made)
    for i in range(draw(st.integers(1, 8))):
        parent = made[draw(st.integers(0, pretrained - 1))]
        made.append(Box(id=f"arm{i}", kind="finetune", column=last, name="", parents=(parent.id,)))
    return made


@given(trees())
def test_no_line_runs_behind_a_box_that_it_has_nothing_to_do_with(made: Sequence[Box]) -> None:
    row = lanes(made)
    column = {box.id: box.column for box in made}
    assert len({(row[box.id], box.column) for box in made}) == len(made)
    for box in made:
        for parent in box.parents:  # a line turns right behind its parent, and then keeps to the box's lane
            between = range(column[parent] + 1, box.column)
            assert not [b.id for b in made if row[b.id] == row[box.id] and b.column in between]
