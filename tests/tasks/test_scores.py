"""Tables of scores: summaries against pandas, intervals, files, and the policies that go with every one."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.tasks import load_task
from brainfoundry.tasks.intervals import mean_interval
from brainfoundry.tasks.scores import ScoreTable, Summary, bounds_of, per_subject

POLICIES = {"threshold": "0.5", "empty_policy": "excluded", "hd95": "between centres"}
NONE = math.nan


def row(subject: str, session: str = "", **metrics: float) -> dict[str, Any]:
    return {"subject": subject, "session": session, **metrics}


def table_of(values: dict[str, list[float]], subjects: list[str] | None = None) -> ScoreTable:
    n = len(next(iter(values.values())))
    subjects = subjects or [f"s{i:04}" for i in range(n)]
    rows = [
        row(subjects[i], str(i), **{name: column[i] for name, column in values.items()}) for i in range(n)
    ]
    return ScoreTable.of(rows, POLICIES)


def only(table: ScoreTable) -> Summary:
    (line,) = table.summary()
    return line


def test_summary_is_that_of_pandas() -> None:
    rng = np.random.default_rng(0)
    values = {"dice_wt": rng.random(31), "hd95_wt": rng.random(31) * 50}
    values["dice_wt"][[3, 17]] = NONE
    table = table_of({name: column.tolist() for name, column in values.items()})
    described = pd.DataFrame(values).describe()
    for line in table.summary():
        theirs = described[line.metric]
        ours = (line.defined, line.mean, line.sd, line.minimum, line.q1, line.median, line.q3, line.maximum)
        assert ours == pytest.approx(tuple(theirs))
        assert line.rows == 31 and line.low < line.mean < line.high


def test_summary_of_little_and_of_nothing() -> None:
    line = only(table_of({"dice": [NONE, NONE]}))
    assert (line.rows, line.defined) == (2, 0)
    assert all(math.isnan(x) for x in (line.mean, line.low, line.high, line.sd, line.minimum, line.median))
    line = only(table_of({"dice": [0.5, NONE]}))
    assert (line.defined, line.mean, line.median, line.minimum, line.maximum) == (1, 0.5, 0.5, 0.5, 0.5)
    assert math.isnan(line.sd) and math.isnan(line.low) and math.isnan(line.high)


@pytest.mark.parametrize("sessions", [1, 3])
def test_interval_covers_the_mean_19_times_of_20(sessions: int) -> None:
    # Up to so many sessions a subject, which are alike.
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        times = rng.integers(1, sessions + 1, 60)
        subjects = np.repeat([f"s{i:04}" for i in range(60)], times).tolist()
        values = np.repeat(rng.normal(0.6, 0.1, 60), times) + rng.normal(0, 0.02, len(subjects))
        line = only(table_of({"dice": values.tolist()}, subjects))
        hits += line.low <= 0.6 <= line.high
    assert 0.925 <= hits / 400 <= 0.975


def test_interval_is_that_of_the_normal_where_there_are_many() -> None:
    values = np.random.default_rng(2).random(2000)
    line = only(table_of({"dice": values.tolist()}))
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert (line.high - line.low) / 2 == pytest.approx(half, rel=0.1)
    assert (line.high + line.low) / 2 == pytest.approx(line.mean, abs=half / 10)


def test_interval_is_over_subjects_not_sessions() -> None:
    # Ten subjects who are alike in all their sessions say no more than their first sessions do.
    values = np.random.default_rng(3).random(10)
    once = only(table_of({"dice": values.tolist()}))
    often = only(
        table_of({"dice": np.repeat(values, 8).tolist()}, [f"s{i:04}" for i in range(10) for _ in range(8)])
    )
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    several = table_of({"dice": np.repeat(values, 8).tolist()})
    assert only(several).high - only(several).low < 0.5 * (once.high - once.low)
    one = only(table_of({"dice": [0.1, 0.9]}, ["s1", "s1"]))
    assert one.mean == 0.5 and math.isnan(one.low)


def test_interval_is_that_of_a_study_in_any_order() -> None:
    values = np.random.default_rng(4).random(20).tolist()
    table = table_of({"dice": values})
    cell = mean_interval(per_subject(table, "dice"), bounds=bounds_of("dice"))
    assert (only(table).low, only(table).high) == (cell.low, cell.high)
    backwards = ScoreTable.of(
        [row(f"s{i:04}", str(i), dice=values[i]) for i in reversed(range(20))], POLICIES
    )
    assert (only(backwards).low, only(backwards).high) == pytest.approx((cell.low, cell.high))


def test_worst_and_best() -> None:
    table = table_of({"dice_et": [0.5, NONE, 0.9, 0.1, 0.5], "hd95_et": [5.0, 374.0, 1.0, NONE, 2.0]})
    worst, best = table.worst_and_best("dice_et", 2)
    assert [(s.subject, s.session, s.value) for s in worst] == [("s0003", "3", 0.1), ("s0000", "0", 0.5)]
    assert [(s.subject, s.value) for s in best] == [("s0002", 0.9), ("s0000", 0.5)]
    worst, best = table.worst_and_best("hd95_et", 10)
    assert [s.value for s in worst] == [374.0, 5.0, 2.0, 1.0]
    assert [s.value for s in best] == [1.0, 2.0, 5.0, 374.0]
    with pytest.raises(ConfigError, match=r"no metric 'dice_xx'\. Fix: choose one of dice_et, hd95_et"):
        table.worst_and_best("dice_xx")


@pytest.mark.parametrize("task", ["brats", "atlas"])
def test_every_metric_knows_which_side_is_better(task: str) -> None:
    # A perfect answer against a bad one, lesion by lesion too: the perfect one is the best in every metric.
    scheme = load_task(task).schemes[0]
    truth, bad = np.zeros((2, 30, 9, 9), np.uint8)
    label = 4 if task == "brats" else 1
    truth[:8, :8, :8], bad[6:20, :8, :8], bad[-1, -1, -1] = label, label, label
    rows = [
        row(name, **load_task(task).score(truth, of, (1, 1, 1), scheme, lesionwise=True))
        for name, of in (("bad", bad), ("perfect", truth))
    ]
    table = ScoreTable.of(rows, load_task(task).policies())
    for metric in table.metrics:
        worst, best = table.worst_and_best(metric, 1)
        assert (worst[0].subject, best[0].subject) == ("bad", "perfect"), metric


def test_csv_says_its_policies_in_every_row_and_beside_it(tmp_path: Path) -> None:
    table = table_of({"dice_et": [0.1, NONE, 1 / 3], "hd95_et": [2.0, 3.0, NONE]})
    uri = str(tmp_path / "out" / "scores.csv")
    beside = table.to_csv(uri)
    text = Path(uri).read_text()
    assert text.splitlines()[:3] == [
        "subject,session,dice_et,hd95_et,threshold,empty_policy",
        "s0000,0,0.1,2.0,0.5,excluded",
        "s0001,1,,3.0,0.5,excluded",
    ]
    read = pd.read_csv(uri)
    assert read["dice_et"].tolist() == pytest.approx([0.1, NONE, 1 / 3], nan_ok=True, rel=0, abs=0)
    assert beside == str(tmp_path / "out" / "scores.json")
    about = json.loads(Path(beside).read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert about["policies"] == POLICIES and "95 % over subjects, t with" in about["interval"]
    assert [line["metric"] for line in about["summary"]] == ["dice_et", "hd95_et"]
    assert about["summary"][1]["mean"] == 2.5


def test_parquet_has_all_policies_in_its_metadata(tmp_path: Path) -> None:
    uri = str(tmp_path / "scores.parquet")
    table_of({"dice_et": [0.1, NONE]}).to_parquet(uri)
    read = pq.read_table(uri)
    assert json.loads(read.schema.metadata[b"brainfoundry"]) == {"policies": POLICIES}
    assert read.to_pylist() == [
        {"subject": "s0000", "session": "0", "dice_et": 0.1, "threshold": "0.5", "empty_policy": "excluded"},
        {"subject": "s0001", "session": "1", "dice_et": None, "threshold": "0.5", "empty_policy": "excluded"},
    ]


def test_parquet_reads_back_and_nothing_else_does(tmp_path: Path) -> None:
    table = table_of({"dice_wt": [0.5, NONE], "hd95_wt": [3.0, 4.0]})
    uri = str(tmp_path / "scores.parquet")
    table.to_parquet(uri)
    found = ScoreTable.from_parquet(uri)
    assert (found.keys, found.metrics, found.policies) == (table.keys, table.metrics, table.policies)
    np.testing.assert_array_equal(found.values, table.values)
    pq.write_table(pq.read_table(uri).drop_columns(["subject"]), uri)
    with pytest.raises(DataError, match="not a table of scores"):
        ScoreTable.from_parquet(uri)
    Path(uri).write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="damaged table"):
        ScoreTable.from_parquet(uri)


def test_means_are_those_of_the_summary() -> None:
    table = table_of({"a": [0.25, NONE, 0.5], "b": [NONE] * 3})
    assert (
        table.means() == {line.metric: line.mean for line in table.summary() if line.defined} == {"a": 0.375}
    )


def test_printed_table_ends_with_its_policies() -> None:
    console = Console(file=io.StringIO(), width=40)
    table = table_of({"dice_et": [0.25, 0.75], "hd95_et": [NONE, NONE], "volume_diff": [12345.0, 12345.0]})
    table.print_table("fold 0", console=console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "fold 0: 2 rows"
    printed = {line.split("│")[1].strip(): line for line in lines if line.count("│") == 11}
    assert "0.5000" in printed["dice_et"] and "0.0000 to 1.0000" in printed["dice_et"]
    assert "12,345.0" in printed["volume_diff"] and "nan" not in printed["hd95_et"]
    policies = [f"- {name}: {text}" for name, text in POLICIES.items()]
    assert lines[-4:-1] == policies and lines[-1].startswith("- interval: 95 % over subjects, t with the")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "there are no scores"),
        ([row("s1", "a", dice=1.0), row("s1", "a", dice=0.0)], r"'a' was scored twice \[subject s1\]"),
        ([row("s1", dice=1.0), row("s2", dice=1.0, hd95=2.0)], r"hd95 is not in the scores .*\[subject s2\]"),
        ([row("s1", dice=1.0), row("s2")], r"dice is not in the scores of all subjects \[subject s2\]"),
        ([{"subject": "s1", "dice": 1.0}], r"session is not in the scores of all subjects \[subject s1\]"),
    ],
)
def test_rows_that_make_no_table(rows: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        ScoreTable.of(rows, POLICIES)


@pytest.mark.parametrize("missing", ["threshold", "empty_policy"])
def test_no_table_without_its_policies(missing: str) -> None:
    policies = {name: text for name, text in POLICIES.items() if name != missing}
    with pytest.raises(ConfigError, match=f"scores without the policy '{missing}'"):
        ScoreTable.of([row("s1", dice=1.0)], policies)


def test_rows_of_the_tasks_fit(tmp_path: Path) -> None:
    empty = np.zeros((2, 3, 4), np.uint8)
    for name, scheme in (("brats", "brats2021"), ("atlas", "binary")):
        task = load_task(name)
        metrics = task.score(empty, empty, (1, 1, 1), scheme)
        table = ScoreTable.of([row("s1", **metrics)], task.policies())
        assert table.metrics == task.score_names
        table.to_parquet(str(tmp_path / f"{name}.parquet"))
        assert pq.read_table(tmp_path / f"{name}.parquet")["empty_policy"].to_pylist() == [
            task.policies()["empty_policy"]
        ]
