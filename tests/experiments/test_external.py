"""A trial that the study's driver does not run, filled by jobs/evaluate.py with a network of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainfoundry.core.errors import ConfigError
from brainfoundry.experiments.external import find_external
from brainfoundry.experiments.freeze import freeze
from brainfoundry.experiments.records import StudyFolder, read_records
from brainfoundry.experiments.report.results import open_study
from brainfoundry.experiments.spec import read_study
from tests.experiments.cohort_infos import study
from tests.jobs.in_process import load_job, runner
from tests.prediction.builders import save_checkpoint

JOB = load_job("evaluate")


def submitted(folder: Path, shards: str) -> str:
    """A study of a bundle's two folds that was submitted once; its folder."""
    content = study(
        name="mine", grid=[{"family": ["bundle"], "fold": [0, 1]}],
        externals={"bundle": "python jobs/evaluate.py"}, test={"on": "fold"},
        stages={}, inits={"scratch": []},
        finetune={"cohort": "brats", "recipe": "brats", "preset": "demo", "options": {"optim.steps": 40}},
    )  # fmt: skip
    made = StudyFolder(name="mine", uri=str(folder / "mine"))
    freeze(made, read_study(content), {"brats": shards})
    return made.uri


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, labelled_shards: str) -> Any:
    job = runner(JOB, JOB.EvaluateConfig, capsys)
    checkpoint = save_checkpoint(tmp_path / "bundle", modalities=("T1w", "FLAIR"))

    def call(*options: object) -> tuple[int, str, str]:
        return job(
            "--checkpoints", checkpoint, "--shards", labelled_shards, "--out", tmp_path / "out",
            "--pictures", 0, "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db", *options,
        )  # fmt: skip

    return call


def test_its_scores_become_the_trials_record(
    run: Any, labelled_shards: str, tmp_path: Path, ray_local: None
) -> None:
    folder = submitted(tmp_path, labelled_shards)
    trial = find_external(folder, point=["fold=0"])
    status, out, err = run("--fold", 0, "--allow-leak", "--study", folder, "--node", trial.node.id)
    assert status == 0, err
    assert f"recorded as trial {trial.node.id}" in out
    record = read_records(folder)[trial.node.id]
    assert record.done and record.kind == "external" and record.test is not None
    assert (record.test["fold"], record.test["subjects"]) == (0, 2)
    assert any(leak.get("unproved") for leak in record.leaks)
    assert [t.point["fold"] for t in open_study(folder).trials if t.scored] == [0]


@pytest.mark.parametrize("options", [("--fold", 1), ("--split", "test"), ("--fold", 0, "--limit", 1)])
def test_other_volumes_are_refused(
    run: Any, labelled_shards: str, tmp_path: Path, options: tuple[object, ...]
) -> None:
    folder = submitted(tmp_path, labelled_shards)
    trial = find_external(folder, point=["fold=0"])
    status, _, err = run(*options, "--allow-leak", "--study", folder, "--node", trial.node.id)
    assert status == 2 and f"trial {trial.node.id} is scored on all of" in err
    assert not read_records(folder)


def test_a_trial_that_is_not_there(labelled_shards: str, tmp_path: Path) -> None:
    folder = submitted(tmp_path, labelled_shards)
    with pytest.raises(ConfigError, match="0 external trials are elsewhere"):
        find_external(folder, node="elsewhere")
    with pytest.raises(ConfigError, match="no trials of family nnunetv2"):
        find_external(folder, family="nnunetv2")
