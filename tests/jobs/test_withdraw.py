"""jobs/withdraw.py: out of the shard sets, and who saw them, from one command."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.stream.plan import PlanSpec
from tests.jobs.test_bad_input import call
from tests.store.builders import brain, brats_intake, intake, lesion, nifti, put, put_brats
from tests.training.receipts import attempt, save_checkpoint, seen_by

SPEC = PlanSpec(seed=3, crop=(8, 8, 8), groups_per_step=1, subjects_per_group=2, frame="box")
Withdraw = Callable[..., int]


@pytest.fixture
def withdraw(monkeypatch: pytest.MonkeyPatch) -> Withdraw:
    return lambda *argv: call("withdraw.py", *map(str, argv), monkeypatch=monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A UK Biobank set and a BraTS one, a run on each, and a list with a stranger."""
    spec = ConvertSpec(min_slices=10, rows_per_shard=2)
    for eid in range(9_900_001, 9_900_006):
        put(tmp_path / "ukb", eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500))})
    convert(intake(tmp_path / "ukb"), str(tmp_path / "ukb-shards"), spec, executor=inline)
    for case in (1, 2):
        put_brats(tmp_path / "brats", case, lesion(1))
    convert(brats_intake(tmp_path / "brats"), str(tmp_path / "brats-shards"), spec, executor=inline)
    for name, cohort in (("ukb", "ukb"), ("brats", "brats")):
        index = ShardSet.open(str(tmp_path / f"{name}-shards")).index
        run = str(tmp_path / "runs" / f"run-{name}")
        attempt(run, index, 1, range(0, 6), spec=SPEC, cohort=cohort)
        save_checkpoint(run, 6, seen_by(f"run-{name}", index["subject"].to_pylist(), cohort), f"run-{name}")
    (tmp_path / "ids.txt").write_text("# by letter\n9900002\n\n9900009\n")
    return tmp_path


def test_out_of_the_set_and_a_list_of_what_saw_them(
    withdraw: Withdraw, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("--ids", place / "ids.txt", "--shards", place / "ukb-shards", "--runs", place / "runs")
    report = place / "saw.csv"
    capsys.readouterr()
    assert withdraw(*argv, "--dry-run") == 0
    dry = capsys.readouterr().out
    assert "1 participants with 1 stored sessions would go" in dry and "nothing was changed" in dry
    assert len(ShardSet.open(str(place / "ukb-shards"))) == 5
    assert withdraw(*argv, "--report", report) == 0
    told = capsys.readouterr().out
    assert "1 participants with 1 stored sessions gone; 1 of 3 shards rewritten" in told
    assert "1 of 2 ids are of nobody in these shard sets: 9900009" in told
    (line,) = [line for line in told.splitlines() if "run-ukb" in line]
    assert "itself" in line and line.split()[-2] == "6"
    assert "9900002" not in ShardSet.open(str(place / "ukb-shards")).index["subject"].to_pylist()
    with report.open() as text:
        (row,) = csv.DictReader(text)
    assert row["run"] == str(place / "runs" / "run-ukb") and row["subjects"] == "9900002"
    assert row["checkpoints"].endswith("step-00000006") and int(row["visits"]) > 0
    assert withdraw(*argv) == 0  # again: nothing left to do, the list is the same
    assert "0 participants" in (again := capsys.readouterr().out) and "1 had gone before" in again
    assert line in again


def test_several_sets_and_one_that_fails(
    withdraw: Withdraw, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "ids.txt").write_text("subject\n9900001\nBraTS2021_00002\n")
    sets = (place / "ukb-shards", place / "nowhere", place / "brats-shards")
    assert withdraw("--ids", place / "ids.txt", "--shards", *sets, "--runs", place / "runs") == 1
    out, err = capsys.readouterr()
    assert "no shard set here" in err and "nowhere" in err and err.count("\n") == err.count("error: ")
    assert len(ShardSet.open(str(sets[0]))) == 4 and len(ShardSet.open(str(sets[2]))) == 1
    assert "run-ukb" in out.replace("\n", "") and "run-brats" in out.replace("\n", "")
    assert "are of nobody" not in out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, ["nothing to do", "--ids FILE"]),
        (["--ids", "ids.txt"], 2, ["nothing to do"]),
        (["--ids", "nothere.txt", "--shards", "x"], 1, ["no such file", "nothere.txt"]),
        (["--ids", "empty.txt", "--shards", "x"], 1, ["holds no id", "empty.txt"]),
    ],
)
def test_wrong_calls_are_one_line(
    withdraw: Withdraw,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("1\n")
    (tmp_path / "empty.txt").write_text("# nobody\n")
    assert withdraw(*argv) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and "Fix:" in err
    assert all(word in err for word in words)


def test_runs_are_searched_under_every_spelling_of_an_id(
    withdraw: Withdraw, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(place / "runs" / "run-atlas")
    save_checkpoint(run, 6, seen_by("run-atlas", ["sub-r901s001"], "atlas"), "run-atlas")
    (place / "ids.txt").write_text("r901s001\n")
    assert withdraw("--ids", place / "ids.txt", "--runs", place / "runs") == 0
    assert "run-atlas" in capsys.readouterr().out


def test_a_run_that_saw_nobody(withdraw: Withdraw, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "ids.txt").write_text("9900009\n")
    assert withdraw("--ids", place / "ids.txt", "--runs", place / "runs") == 0
    assert "no run saw any of them" in capsys.readouterr().out
