"""The answer of a study: its sentence for every place an interval can have, and the command that goes on."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from brainfoundry.core.config import parse
from brainfoundry.experiments.axes import matches, parse_only
from brainfoundry.experiments.records import TrialRecord
from brainfoundry.experiments.report import commands
from brainfoundry.experiments.report.answer import answer_of, verdict
from brainfoundry.experiments.report.cells import Estimate
from brainfoundry.experiments.report.compare import Difference
from brainfoundry.experiments.report.results import Study, StudyResults
from brainfoundry.experiments.stats import paired_difference
from brainfoundry.experiments.study import PrimarySpec
from brainfoundry.experiments.study_job import StudyConfig, _whole
from tests.experiments.report.builders import FOLDS, study, write_study

TEST = paired_difference({"a": 1.0, "b": 2.0, "c": 1.5}, {"a": 0.5, "b": 1.0, "c": 1.0})
PRIMARY = PrimarySpec(metric="dice_mean", axis="init", arms=("scratch", "stage1"), smallest_effect=0.01)


def said(low: float, high: float, primary: PrimarySpec = PRIMARY) -> str:
    e = Estimate(value=(low + high) / 2, low=low, high=high, n=200, signed=True)
    return verdict(Difference(estimate=e, test=TEST, draws=None, better=False), primary)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.004, 0.028, "the interval contains 0, and differences of interest (±0.01) are not ruled out."),
        (
            -0.004,
            0.009,
            "the interval contains 0 and lies within ±0.01, the smallest difference of interest.",
        ),
        (0.012, 0.02, "the interval lies above 0, in favour of stage1, and wholly beyond the smallest"),
        (0.002, 0.02, "the interval lies above 0, in favour of stage1, and partly within the smallest"),
        (-0.008, -0.001, "the interval lies below 0, in favour of scratch, and wholly within the smallest"),
        (float("nan"), float("nan"), "without an interval nothing can be concluded."),
    ],
)
def test_the_verdict_is_where_the_interval_lies(low: float, high: float, words: str) -> None:
    assert said(low, high).startswith(words)


def test_less_distance_favours_the_lower_arm() -> None:
    distance = replace(PRIMARY, metric="hd95_wt", smallest_effect=None)
    assert said(-3.0, -1.0, distance) == "the interval lies below 0, in favour of stage1."
    assert said(1.0, 3.0, distance) == "the interval lies above 0, in favour of scratch."


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_nothing_is_favoured_by_an_interval_with_0(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert ("in favour" in said(low, high)) is not (low <= 0 <= high)


def open_one(folder: str) -> Study:
    (found,) = StudyResults.open([folder]).studies
    return found


def test_an_axis_that_the_endpoint_leaves_open_is_the_same_in_both_arms(tmp_path: Path) -> None:
    open_size = {**FOLDS, "primary": {"metric": "dice_mean", "axis": "init", "arms": ["scratch", "stage1"]},
                 "grid": [{"size": ["tiny", "small"], "init": ["scratch"], "fold": [0, 1]},
                          {"size": ["small"], "init": ["stage1"], "fold": [0, 1]}]}  # fmt: skip
    answer = answer_of(open_one(write_study(tmp_path, open_size)))
    assert answer.sentence.startswith("stage1 minus scratch at size small: ")
    assert "80 test subjects" in answer.sentence


def test_pretraining_seeds_are_told_apart_from_draws(tmp_path: Path) -> None:
    seeds = study(grid=[{"size": "nano", "init": ["scratch", "stage1"], "share": 5, "draw": [0, 1, 2],
                         "pretrain_seed": [0, 1]}])  # fmt: skip
    answer = answer_of(open_one(write_study(tmp_path, seeds)))
    assert "2 pretraining seeds × 3 draws × 40 test subjects" in answer.sentence
    assert any("2 pretraining seeds" in caution for caution in answer.cautions)


def without(**where: object) -> Callable[[TrialRecord], TrialRecord | None]:
    """Leaves out the trials with these values."""

    def change(record: TrialRecord) -> TrialRecord | None:
        gone = record.kind == "finetune" and matches(record.point, {a: [v] for a, v in where.items()})
        return None if gone else record

    return change


def test_a_study_that_has_not_begun_says_so(tmp_path: Path) -> None:
    answer = answer_of(open_one(write_study(tmp_path, change=without())))
    assert answer.sentence == "Not answered yet: 0 of 6 trials of the primary endpoint are done."
    assert answer.command


def test_a_part_of_the_draws_is_preliminary(tmp_path: Path) -> None:
    answer = answer_of(open_one(write_study(tmp_path, change=without(share=5, draw=1))))
    assert "2 draws × 40 test subjects" in answer.sentence
    assert answer.cautions[0] == "Preliminary: 2 of 6 trials of the primary endpoint are missing."


@pytest.mark.parametrize(
    "gone", [{"share": 5, "draw": 1}, {"init": "stage1"}, {"init": "scratch", "share": 100}]
)
def test_the_command_makes_what_is_missing_and_nothing_else(gone: dict[str, object], tmp_path: Path) -> None:
    found = open_one(write_study(tmp_path, change=without(**gone)))
    missing = [trial for trial in found.trials if not trial.scored]
    words = shlex.split(commands.fill(found, missing))
    assert words[:6] == ["ray", "job", "submit", "--", "python", "jobs/study.py"]
    config = parse(StudyConfig, words[6:])
    assert config.study == "few.yaml"  # the user's own file
    assert config.storage == found.folder.uri.rpartition("/")[0]
    assert dict(text.split("=") for text in config.cohorts) == found.cohorts
    points = found.spec.points()
    only = parse_only(_whole(config.only), points)
    assert [point for point in points if matches(point, only)] == [dict(trial.point) for trial in missing]


def test_the_command_is_the_one_that_was_submitted(tmp_path: Path) -> None:
    folder = write_study(tmp_path, change=without(draw=2))
    frozen = yaml.safe_load(Path(folder, "study.yaml").read_text())
    named = ["studies/mine.yaml", "--preset", "large", "--weights", "ct=/w.pt"]
    Path(folder, "study.yaml").write_text(yaml.safe_dump({**frozen, "submitted": named}))
    found = open_one(folder)
    words = shlex.split(commands.fill(found, [trial for trial in found.trials if not trial.scored]))
    assert words[6:11] == named


def test_the_command_names_our_studies_with_their_preset(tmp_path: Path) -> None:
    found = open_one(write_study(tmp_path, study(name="table9-reference"), change=without(draw=2)))
    words = shlex.split(commands.fill(found, [trial for trial in found.trials if not trial.scored]))
    assert words[6:9] == ["table9", "--preset", "reference"]
