"""jobs/receipt.py: who, when, how often; damage is a line and a non-zero exit, and the answer still comes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.jobs.test_bad_input import call
from tests.training.receipts import attempt, make_index, save_checkpoint, seen_by

INDEX = make_index(7, sessions=2)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run that was killed after step 9, and went on from the checkpoint of step 6."""
    folder = str(tmp_path / "r")
    attempt(folder, INDEX, 1, range(0, 10), end="")
    attempt(folder, INDEX, 2, range(6, 12))
    save_checkpoint(folder, 12, seen_by("r", ["9900000"]))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_everybody(run: str, tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "all.csv"
    assert call("receipt.py", "--run", run, "--csv", str(out), monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert "7 subjects trained on" in text and "killed, from 6 on done again" in text and "finished" in text
    table = rows(out)
    assert [r["subject"] for r in table] == [f"990000{i}" for i in range(7)]
    # 12 subjects a step: 8 steps written down, 6 more after the kill; 2 were lost, 4 possible besides.
    assert sum(int(r["visits"]) for r in table) == (8 + 6) * 12
    assert sum(int(r["not_kept"]) for r in table) == 2 * 12
    assert sum(int(r["possible"]) for r in table) == 4 * 12


def test_one_subject_over_several_runs(run: str, tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    other = str(tmp_path / "other")
    attempt(other, make_index(3), 1, range(0, 4))
    out = tmp_path / "one.csv"
    argv = ["--run", run, other, "--subject", "9900002", "--csv", str(out)]
    assert call("receipt.py", *argv, monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert (
        text.count("subject 9900002: trained on") == 2 and "possibly" in text and "done again later" in text
    )
    table = rows(out)
    assert {r["subject"] for r in table} == {"9900002"} and {r["run"] for r in table} == {run, other}
    assert sum(r["run"] == other for r in table) == 4 * 4  # 12 visits a step among 3 subjects
    assert {r["session"] for r in table if r["run"] == run} <= {"2", "3"}


def test_damage_is_a_line_and_an_exit_code(run: str, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    (file,) = (Path(run) / "receipt" / "attempt-0000000000002").iterdir()
    file.write_text(file.read_text().replace('"digest": "', '"digest": "0'))
    assert call("receipt.py", "--run", run, monkeypatch=monkeypatch) == 1
    seen = capsys.readouterr()
    assert "7 subjects trained on" in seen.out
    lines = seen.err.strip().splitlines()
    assert len(lines) == 2  # two stretches of that attempt
    for line in lines:
        assert line.startswith("error: steps ") and "not what the plan says" in line and "Fix:" in line
    assert call("receipt.py", "--run", run, "--no-check", monkeypatch=monkeypatch) == 0


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [([], 2, "no run is named"), (["--run", "/nonexistent/run"], 1, "no receipt here")],
)
def test_wrong_calls(argv, code, words, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    assert call("receipt.py", *argv, monkeypatch=monkeypatch) == code
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and words in err and "Fix:" in err
