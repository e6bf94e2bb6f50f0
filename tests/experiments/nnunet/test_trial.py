"""nnU-Net as a trial of a study: found in its plan, run, and in its tables."""

from pathlib import Path
from typing import Any

import pytest

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments.freeze import freeze
from brainfoundry.experiments.nnunet.cases import Selection
from brainfoundry.experiments.nnunet.environment import find_environment
from brainfoundry.experiments.nnunet.export import Export, export_dataset, plan_export
from brainfoundry.experiments.nnunet.run import NnunetRun, RunSpec
from brainfoundry.experiments.nnunet.score import score_predictions
from brainfoundry.experiments.nnunet.trial import find_trial, record_trial
from brainfoundry.experiments.records import StudyFolder, read_records
from brainfoundry.experiments.report.results import open_study
from brainfoundry.experiments.spec import read_study
from tests.experiments.cohort_infos import study
from tests.experiments.nnunet.stand_in import make_python

GRID = [{"family": ["nnunetv2"], "fold": [0, 1]}]


def submitted(folder: Path, shards: str, **changes: Any) -> str:
    """A study that was submitted once; its folder."""
    command = "python jobs/nnunet.py --study {study} --node {id}"
    content = study(
        name="mine", grid=GRID, externals={"nnunetv2": command}, test={"on": "fold"}, stages={},
        inits={"scratch": []},
        finetune={"cohort": "brats", "recipe": "brats", "preset": "demo", "options": {"optim.steps": 40}},
    )  # fmt: skip
    made = StudyFolder(name="mine", uri=str(folder / "mine"))
    freeze(made, read_study({**content, **changes}), {"brats": shards})
    return made.uri


def test_the_trial_says_whose_scans(shards: str, tmp_path: Path) -> None:
    folder = submitted(tmp_path, shards)
    trial = find_trial(folder, point=["family=nnunetv2", "fold=0"])
    assert trial.selection == Selection(shards=shards, task="brats", fold=0, test="fold")
    assert trial.steps == 40
    assert trial.folder == f"{folder}/runs/{trial.node.id}"
    assert find_trial(folder, node=trial.node.id) == trial
    few_grid = [{"family": ["nnunetv2"], "share": [50], "draw": [1]}]
    few = find_trial(submitted(tmp_path / "few", shards, grid=few_grid, test={"on": "test"})).selection
    assert (few.share, few.draw, few.fold, few.test) == (50.0, 1, None, "test")


def test_channels_are_the_trials(shards: str, tmp_path: Path) -> None:
    grid = [{"family": ["nnunetv2"], "modalities": ["T1w+FLAIR=T1w"]}]
    found = find_trial(submitted(tmp_path, shards, grid=grid, test={"on": "test"})).selection
    assert (found.modalities, found.feed) == (("T1w", "FLAIR"), ("FLAIR=T1w",))


def test_a_finished_trial_is_in_the_studys_tables(shards: str, tmp_path: Path) -> None:
    folder = submitted(tmp_path, shards)
    trial = find_trial(folder, point=["fold=1"])
    export = export_dataset(plan_export(trial.selection, trial.folder))
    environment = find_environment(make_python(tmp_path / "env"))
    done = NnunetRun(export, RunSpec(steps=trial.steps), environment).run()
    table = score_predictions(export)
    record = record_trial(trial, export, done, table)

    assert read_records(folder) == {trial.node.id: record}
    assert (record.kind, record.state, record.done) == ("external", "finished", True)
    assert (record.steps, record.parameters, record.seconds, record.device_hours) == (40, 12, 36.0, 0.01)
    assert record.test is not None
    assert (record.test["fold"], record.test["subjects"], record.attempts) == (1, 3, 1)
    assert record.metrics["dice_wt"] == pytest.approx(table.column("dice_wt").mean())
    (shown,) = [t for t in open_study(folder).trials if t.scored]
    assert (shown.point["family"], shown.point["fold"]) == ("nnunetv2", 1)
    assert shown.values("dice_wt").keys() == {f"BraTS2021_{n:05d}" for n in (1, 4, 7)}
    losses = open_study(folder).losses(record)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in losses.items()} == {
        "train/total": ([40], [0.5]), "val/total": ([40], [0.5]),
    }  # fmt: skip


def test_trials_that_are_not_there(shards: str, tmp_path: Path) -> None:
    folder = submitted(tmp_path, shards)
    with pytest.raises(DataError, match="there is no study here"):
        find_trial(str(tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"2 trials of nnunetv2 are in the study.*--node ft-nnunetv2-fold0"):
        find_trial(folder)
    with pytest.raises(ConfigError, match="0 trials of nnunetv2 are ft-tiny"):
        find_trial(folder, node="ft-tiny")
    with pytest.raises(ConfigError, match="no trial of the study has fold '7'"):
        find_trial(folder, point=["fold=7"])
    plain = submitted(tmp_path / "plain", shards, grid=[{"fold": [0]}], externals={})
    with pytest.raises(ConfigError, match="no trials of family nnunetv2"):
        find_trial(plain)
    trial = find_trial(folder, point=["fold=0"])
    export = export_dataset(plan_export(trial.selection, str(tmp_path / "out")))
    trial.check_export(Export.open(export.folder))
    with pytest.raises(ConfigError, match="is not of trial ft-nnunetv2-fold1"):
        find_trial(folder, point=["fold=1"]).check_export(export)
    trial.check(Selection(shards=shards, fold=0))
    with pytest.raises(
        ConfigError, match=r"--fold 1, and trial ft-nnunetv2-fold0-\w+ has 0.*leave --fold out"
    ):
        trial.check(Selection(fold=1))
