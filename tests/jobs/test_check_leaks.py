"""jobs/check_leaks.py: 0 clean, 3 leak, one line where it cannot be told; and the gate before pretraining."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from brainfoundry.training import checkpoint
from tests.jobs.test_bad_input import call
from tests.training.leak_builders import disguised, image, make_checkpoint, make_set
from tests.training.test_checkpoint import MODEL, STATE, card

IMAGES = {str(9_910_001 + i): image(i) for i in range(4)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A set with a test split and folds, the same set all for training, and checkpoints on both."""
    folder = tmp_path_factory.mktemp("leaks")
    split, fold = {"9910004": "test"}, {s: i % 2 for i, s in enumerate(IMAGES)}
    honest = make_set(folder / "honest", "atlas", IMAGES, split, fold)
    everything = make_set(folder / "everything", "atlas", IMAGES)
    stage2 = make_checkpoint(folder, everything, run="all", stage="pretrain-2")
    return {
        "set": honest.uri,
        "all": everything.uri,
        "clean": make_checkpoint(folder, honest, run="train-only", stage="pretrain-2"),
        "leaky": make_checkpoint(folder, honest, run="child", stage="finetune", parents=[stage2]),
        "bare": checkpoint.save(str(folder / "bare"), card(), MODEL, STATE),
    }


def test_clean_and_leaky(made: dict[str, str], tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    argv = ["--test", made["set"], "--checkpoint", made["clean"]]
    assert call("check_leaks.py", *argv, monkeypatch=monkeypatch) == 0
    assert "clean: " in capsys.readouterr().out
    report = tmp_path / "leaks.csv"
    assert call("check_leaks.py", *argv, made["leaky"], "--report", str(report), monkeypatch=monkeypatch) == 3
    out = capsys.readouterr().out
    assert (
        "clean: " in out
        and "LEAK: " in out
        and "1 of 1 test subjects" in out
        and "run all (pretrain-2)" in out
    )
    with report.open() as file:
        (row,) = csv.DictReader(file)
    assert (row["checkpoint"], row["kind"], row["subject"], row["run"]) == (
        made["leaky"],
        "id",
        "9910004",
        "all",
    )


def test_a_fold(made: dict[str, str], monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    argv = ["--test", made["set"], "--fold", "0", "--checkpoint", made["clean"]]
    assert call("check_leaks.py", *argv, monkeypatch=monkeypatch) == 3
    assert "2 of 2 test subjects (fold 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoint", "options", "code", "words"),
    [
        ("bare", [], 1, "cannot prove whom these weights have seen"),
        ("/nonexistent", [], 1, "no whole checkpoint here"),
        ("clean", ["--split", "vall"], 1, "nobody is in split vall"),
        ("clean", ["--fold", "7"], 1, "choose one of 0, 1"),
        (None, [], 2, "a checkpoint and a test set are needed"),
    ],
)
def test_questions_without_an_answer(made, checkpoint, options, code, words, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    named = [] if checkpoint is None else ["--checkpoint", made.get(checkpoint, checkpoint)]
    assert call("check_leaks.py", "--test", made["set"], *named, *options, monkeypatch=monkeypatch) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and words in err and "Fix:" in err


def test_pretraining_refuses_before_it_starts(
    made: dict[str, str], tmp_path: Path, monkeypatch, capsys
) -> None:  # type: ignore[no-untyped-def]
    base = [
        "--storage",
        str(tmp_path),
        "--dry-run",
        "--data.groups-per-step",
        "1",
        "--data.shards",
        made["all"],
    ]
    assert call("pretrain_ukb.py", *base, "--data.guard", made["set"], monkeypatch=monkeypatch) == 1
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: 1 of 1 test subjects") and "\n" not in err and "--data.allow-leak" in err
    argv = [*base, "--data.guard", made["set"], "--data.allow-leak"]
    assert call("pretrain_ukb.py", *argv, monkeypatch=monkeypatch) == 0
    assert "note:        1 of 1 test subjects" in capsys.readouterr().out
    clean = [made["set"] if a == made["all"] else a for a in base]
    assert call("pretrain_ukb.py", *clean, monkeypatch=monkeypatch) == 0
    assert "note:        none of 1 subjects in split test" in capsys.readouterr().out
    assert call("pretrain_ukb.py", *base, "--data.guard", made["all"], monkeypatch=monkeypatch) == 1
    assert "nobody is in split test" in capsys.readouterr().err


def test_a_duplicate_under_another_id_in_the_runs_own_test_split(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    images = {"9910001": image(1), "9910002": image(2), "9910003": disguised(image(1))}
    shards = make_set(tmp_path / "s", "atlas", images, {"9910003": "test"})
    argv = [
        "--storage",
        str(tmp_path),
        "--dry-run",
        "--data.groups-per-step",
        "1",
        "--data.shards",
        shards.uri,
    ]
    assert call("pretrain_ukb.py", *argv, monkeypatch=monkeypatch) == 1
    assert "9910003 (as 9910001)" in capsys.readouterr().err
