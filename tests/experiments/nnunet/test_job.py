"""jobs/nnunet.py: its steps, its dry run, what it refuses; and the real nnU-Net where there is one."""

import json
import os
from pathlib import Path

import pytest

from brainfoundry.experiments.nnunet.export import Export
from brainfoundry.experiments.nnunet.run import trained
from brainfoundry.experiments.records import read_records
from tests.experiments.nnunet.stand_in import make_python
from tests.experiments.nnunet.test_trial import submitted
from tests.jobs.in_process import Run, load_job, runner

JOB = load_job("nnunet")
REAL = os.environ.get("NNUNET_PYTHON", "")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(JOB, JOB.NnunetConfig, capsys)


def test_step_by_step(run: Run, shards: str, tmp_path: Path) -> None:
    out, python = tmp_path / "out", make_python(tmp_path / "env")
    code, shown, _ = run("export", "--shards", shards, "--fold", 0, "--test", "fold", "--out", out)
    assert code == 0
    assert "5 training, 1 validation and 2 test cases, channels FLAIR, T1w" in shown
    code, shown, _ = run("run", "--out", out, "--python", python, "--steps", 30)
    assert code == 0 and "trained 30 steps" in shown
    code, shown, _ = run("score", "--out", out)
    assert code == 0 and "dice_wt" in shown
    assert (out / "scores.csv").read_text().count("\n") == 3


def test_a_dry_run_writes_nothing(run: Run, shards: str, tmp_path: Path) -> None:
    python = make_python(tmp_path / "env")
    code, shown, _ = run(
        "--shards", shards, "--fold", 0, "--out", tmp_path / "out", "--python", python, "--dry-run"
    )
    assert code == 0
    assert "nnUNetv2_train 137 3d_fullres 0 -tr BrainFoundryTrainer" in shown
    assert not (tmp_path / "out").exists()


def test_a_trial_of_a_study(run: Run, shards: str, tmp_path: Path) -> None:
    folder, python = submitted(tmp_path, shards), make_python(tmp_path / "env")
    code, shown, error = run("--study", folder, "--point", "fold=0", "--python", python)
    assert code == 0, error
    (record,) = read_records(folder).values()
    assert f"record: {folder}/records/{record.id}.json" in shown
    assert record.steps == 40 and record.run_dir == f"{folder}/runs/{record.id}"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--shards and --out are needed, or --study"),
        (["everything", "--out", "x"], "everything"),
        (["score", "--out", "{tmp}/nothing"], "no finished export here"),
        (["--shards", "{shards}", "--out", "{tmp}/o", "--python", "{tmp}/python"], "does not start"),
    ],
)
def test_wrong_options(argv: list[str], words: str, run: Run, shards: str, tmp_path: Path) -> None:
    code, _, error = run(*(text.format(tmp=tmp_path, shards=shards) for text in argv))
    assert code in (1, 2)
    assert words in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="NNUNET_PYTHON names no Python with nnunetv2")
def test_the_real_one(run: Run, shards: str, tmp_path: Path) -> None:
    folder = submitted(tmp_path, shards)
    options = ("--python", REAL, "--device", "cpu", "--steps", 5, "--epoch-steps", 3, "--processes", 2)
    code, _, error = run("--study", folder, "--point", "fold=0", *options)
    assert code == 0, error
    (record,) = read_records(folder).values()
    export = Export.open(record.run_dir)
    assert record.steps == trained(export).summary["steps"] == 5
    assert record.parameters is not None and record.parameters > 1_000_000
    assert record.test is not None and record.test["subjects"] == 2
    log = next(Path(record.run_dir).glob("results/*/*/fold_0/training_log_*.txt")).read_text()
    assert "This split has 5 training and 1 validation cases" in log
    plans = json.loads((export.splits.with_name("nnUNetPlans.json")).read_text())
    assert plans["image_reader_writer"] == "NibabelIO"
