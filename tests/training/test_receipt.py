"""The receipt says who was in which step: as delivered, after kills, over replays, or not at all."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.stream.plan import Plan
from brainfoundry.training import receipt_log
from brainfoundry.training.receipt import runs_that_saw, when, who
from brainfoundry.training.receipt_log import ReceiptWriter, attempt_name, attempts, write_plan
from brainfoundry.training.receipt_read import check, read_receipt
from tests.training.receipts import (
    SPEC,
    about,
    attempt,
    batch,
    make_index,
    save_checkpoint,
    seen_by,
    writer_of,
)

INDEX = make_index(7, sessions=2)


def brute(steps: range, index: pa.Table = INDEX) -> Counter[str]:
    """Visits by subject, from the plan's rows: slot 0 and 2 of each group are the first crops of a visit."""
    rows = Plan.from_index(index, SPEC).rows(steps.start, steps.stop).to_pylist()
    return Counter(r["subject"] for r in rows if r["slot"] % SPEC.crops_per_subject == 0)


def counted(table: pa.Table, column: str = "visits") -> Counter[str]:
    return Counter({r["subject"]: r[column] for r in table.to_pylist() if r[column]})


@settings(deadline=None, max_examples=15)
@given(
    world=st.sampled_from([1, 2, 3, 6]),
    first=st.integers(0, 30),
    steps=st.integers(1, 40),
    every=st.integers(1, 9),
)
def test_any_number_of_workers_gives_the_plans_visits(world: int, first: int, steps: int, every: int) -> None:
    with tempfile.TemporaryDirectory() as run:
        attempt(run, INDEX, 1, range(first, first + steps), world=world, flush_every=every)
        receipt = read_receipt(run)
        assert check(receipt) == [] and receipt.problems == []
        table = who(receipt)
        assert counted(table) == brute(range(first, first + steps))
        assert sum(table["not_kept"].to_pylist()) == sum(table["possible"].to_pylist()) == 0
        (found,) = receipt.attempts
        assert (found.state, found.first, found.last, found.world) == (
            "finished",
            first,
            first + steps,
            world,
        )


def test_when_names_step_epoch_session_and_time(tmp_path: Path) -> None:
    attempt(str(tmp_path), INDEX, 1, range(0, 10))
    subject = "9900003"
    table = when(read_receipt(str(tmp_path)), {subject})
    rows = Plan.from_index(INDEX, SPEC).rows(0, 10).to_pylist()
    want = [(r["step"], r["session"]) for r in rows if r["subject"] == subject and r["slot"] % 2 == 0]
    assert [(r["step"], r["session"]) for r in table.to_pylist()] == want
    assert [r["epoch"] for r in table.to_pylist()] == list(range(len(want)))  # once an epoch
    assert all(r["written"].endswith("+00:00") and r["kept"] and r["certain"] for r in table.to_pylist())


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_killed_workers_last_steps_are_possible(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path) if place == "local" else f"memory://{uuid.uuid4().hex}"
    monkeypatch.setattr(receipt_log, "_REMOTE_STEPS", 4)
    attempt(run, INDEX, 1, range(0, 10), end="")  # steps 8 and 9 were done, but the line ends at 8
    receipt = read_receipt(run)
    assert check(receipt) == []
    table = who(receipt)
    if place == "local":
        assert counted(table) == brute(range(0, 8))
        assert counted(table, "possible") == brute(range(8, 12))
    possible = when(receipt, {"9900000", "9900001"}).filter(~pc.field("certain"))
    assert possible.num_rows and set(possible["written"].to_pylist()) == {""}
    assert min(possible["step"].to_pylist()) <= 8
    assert receipt.attempts[0].state == "killed"


def test_no_step_past_the_last_is_possible(tmp_path: Path) -> None:
    attempt(str(tmp_path), INDEX, 1, range(0, 10), end="", stop=10)
    assert counted(who(read_receipt(str(tmp_path))), "possible") == brute(range(8, 10))


def test_replays_after_a_crash_are_counted_twice(tmp_path: Path) -> None:
    run = str(tmp_path)
    attempt(run, INDEX, 1, range(0, 10), end="failed")
    attempt(run, INDEX, 2, range(6, 12), world=2)  # went on from the checkpoint of step 6
    receipt = read_receipt(run)
    assert check(receipt) == []
    table = who(receipt)
    assert counted(table) == brute(range(0, 10)) + brute(range(6, 12))
    assert counted(table, "not_kept") == brute(range(6, 10))
    assert [(a.state, a.kept_until) for a in receipt.attempts] == [("failed", 6), ("finished", None)]
    assert set(counted(table, "attempts").values()) <= {1, 2}


def test_steps_before_a_resume_are_certain_though_the_line_was_lost(tmp_path: Path) -> None:
    """On an object store lines may come later than the checkpoint that a run goes on from."""
    run = str(tmp_path)
    attempt(run, INDEX, 1, range(0, 10), end="", flush_every=8)
    attempt(run, INDEX, 2, range(10, 12))
    table = who(read_receipt(run))
    assert counted(table) == brute(range(0, 12))
    assert counted(table, "possible") == brute(range(10, 16))


def test_a_worker_that_left_no_file_is_possible_too(tmp_path: Path) -> None:
    attempt(str(tmp_path), INDEX, 1, range(0, 8), world=2, ranks=[1])
    receipt = read_receipt(str(tmp_path))
    table = who(receipt)
    assert counted(table) + counted(table, "possible") >= brute(range(0, 8))
    assert receipt.attempts[0].state == "killed" and receipt.attempts[0].last == 0


def test_a_torn_line_costs_itself(tmp_path: Path) -> None:
    attempt(str(tmp_path), INDEX, 1, range(0, 8), end="")
    with (tmp_path / "receipt" / attempt_name(1) / "rank-00000.jsonl").open("ab") as file:
        file.write(b'{"kind": "steps", "first": 8, "la')
    receipt = read_receipt(str(tmp_path))
    assert check(receipt) == [] and receipt.problems == []
    assert counted(who(receipt)) == brute(range(0, 8))


def test_other_subjects_than_planned_are_an_error_line(tmp_path: Path) -> None:
    plan = Plan.from_index(INDEX, SPEC)
    write_plan(str(tmp_path), INDEX, SPEC, about())
    writer = writer_of(str(tmp_path), plan)
    for step in range(3):
        subjects = batch(plan, step).subjects
        writer.consumed(batch(plan, step, subjects=subjects[::-1] if step == 1 else subjects))
        writer.flush()
    writer.close("finished")
    (line,) = check(read_receipt(str(tmp_path)))
    assert "steps 1 to 1 of worker 0" in line and "rank-00000.jsonl" in line and "Fix:" in line


def test_an_edited_line_and_a_changed_plan_are_error_lines(tmp_path: Path) -> None:
    attempt(str(tmp_path), INDEX, 1, range(0, 8))
    path = tmp_path / "receipt" / attempt_name(1) / "rank-00000.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line.get("first") != 0))
    receipt = read_receipt(str(tmp_path))
    assert any("steps 0 to 3 are not written down" in p for p in receipt.problems)
    assert counted(who(receipt)) == brute(range(4, 8)) and counted(who(receipt), "possible") == brute(
        range(0, 4)
    )
    path.write_text(json.dumps({**lines[0], "world": "many"}) + "\n")
    assert any("not a receipt's lines" in p for p in read_receipt(str(tmp_path)).problems)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    (plan,) = (tmp_path / "receipt").glob("plan-*.parquet")
    other = make_index(6, sessions=2)
    write_plan(str(tmp_path / "other"), other, SPEC, about())
    (stranger,) = (tmp_path / "other" / "receipt").glob("plan-*.parquet")
    plan.write_bytes(stranger.read_bytes())
    problems = read_receipt(str(tmp_path)).problems
    assert any("do not have the hash in its name" in p and plan.name in p for p in problems)
    plan.unlink()
    assert any("plan of some steps is missing" in p for p in read_receipt(str(tmp_path)).problems)


def test_validations_are_looks_not_visits(tmp_path: Path) -> None:
    run = str(tmp_path)
    held_out = make_index(11).slice(7).set_column(2, "split", pa.array(["val"] * 4))
    spec = replace(SPEC, split="val", groups_per_step=1)
    plan = Plan.from_index(INDEX, SPEC)
    write_plan(run, INDEX, SPEC, about())
    val = write_plan(run, held_out, spec, about(role="val"))
    writer = writer_of(run, plan, flush_every=4)
    for step in range(8):
        writer.consumed(batch(plan, step))
    writer.validated(4, val, 2)
    writer.validated(8, val, 2)
    writer.close("finished")
    table = who(read_receipt(run))
    looked = table.filter(pc.equal(table["role"], "val")).to_pylist()
    assert [(r["visits"], r["validations"]) for r in looked] == [(0, 2)] * 4
    rows = when(read_receipt(run), {looked[0]["subject"]}).to_pylist()
    assert [(r["what"], r["step"]) for r in rows] == [("validated", 4), ("validated", 8)]


def test_storage_that_fails_for_a_while_costs_nothing(tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    plan = Plan.from_index(INDEX, SPEC)
    write_plan(str(tmp_path), INDEX, SPEC, about())
    writer = writer_of(str(tmp_path), plan)
    uri, writer.uri = writer.uri, str(tmp_path / "gone" / "x.jsonl")
    for step in range(6):
        if step == 3:
            writer.uri = uri
        writer.consumed(batch(plan, step))
        writer.flush()
    writer.close("finished")
    assert sum("cannot be written for now" in r.message for r in caplog.records) == 1
    receipt = read_receipt(str(tmp_path))
    assert check(receipt) == [] and counted(who(receipt)) == brute(range(0, 6))


def test_a_receipt_that_cannot_begin_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "receipt").write_text("not a folder")
    with pytest.raises(DataError, match="Fix:"):
        ReceiptWriter(
            str(tmp_path),
            attempt=attempt_name(1),
            rank=0,
            world=1,
            first_step=0,
            stop_step=9,
            plan="p",
            flush_every=1,
        )


def test_it_stays_small(tmp_path: Path) -> None:
    attempt(str(tmp_path), INDEX, 1, range(0, 400), flush_every=20)
    (file,) = (tmp_path / "receipt" / attempt_name(1)).iterdir()
    assert file.stat().st_size < 400 / 20 * 200
    assert attempts(str(tmp_path)) == [attempt_name(1)]


def test_no_receipt_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no receipt here.*Fix:"):
        read_receipt(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------
# Which runs and checkpoints saw somebody


def test_runs_and_checkpoints_that_saw_a_subject(tmp_path: Path) -> None:
    saw, not_yet, child = (str(tmp_path / name) for name in ("a-saw", "b-not-yet", "c-child"))
    index = make_index(40)
    everybody = sorted(set(index["subject"].to_pylist()))
    attempt(saw, index, 1, range(0, 8))
    firsts = {r["subject"]: r["first_step"] for r in who(read_receipt(saw)).to_pylist()}
    subject = next(s for s, step in firsts.items() if step == 2)
    others = index.filter(pc.not_equal(index["subject"], subject))
    attempt(not_yet, others, 1, range(0, 8))
    _before, after, later = (save_checkpoint(saw, step, seen_by("r", everybody)) for step in (2, 3, 8))
    attempt(child, make_index(42).slice(40), 1, range(0, 3))
    family = pa.concat_tables([seen_by("r", everybody), seen_by("kid", ["9900041"])])
    inherits = save_checkpoint(child, 3, family, "kid")
    found = runs_that_saw(str(tmp_path), {subject, "1234567"})
    assert [(f.run, f.inherited) for f in found] == [(saw, False), (child, True)]
    assert found[0].subjects == (subject,) and found[0].visits == brute(range(0, 8), index)[subject]
    assert found[0].checkpoints == (after, later)  # that of step 2 was written before step 2 was done
    assert found[0].first_step == 2 and found[0].last_step is not None and found[0].stage == "pretrain-1"
    assert found[1].checkpoints == (inherits,) and found[1].via == "r" and found[1].visits == 0
    assert runs_that_saw(saw, [subject]) == [found[0]]
    assert runs_that_saw(str(tmp_path), ["1234567"]) == []


def test_an_id_of_another_cohort_is_somebody_else(tmp_path: Path) -> None:
    run = str(tmp_path / "r")
    attempt(run, INDEX, 1, range(0, 8), cohort="brats")
    save_checkpoint(run, 8, seen_by("r", ["9900000"], "brats"))
    assert runs_that_saw(str(tmp_path), ["9900000"], "ukb") == []
    assert len(runs_that_saw(str(tmp_path), ["9900000"], "brats")) == 1


def test_a_run_without_a_receipt_answers_by_its_table(tmp_path: Path) -> None:
    run = str(tmp_path / "r")
    uris = tuple(save_checkpoint(run, step, seen_by("r", ["9900000"])) for step in (4, 8))
    (found,) = runs_that_saw(str(tmp_path), ["9900000"])
    assert found.checkpoints == uris and found.first_step is None and "without a receipt" in found.problem
    blind = str(tmp_path / "s")
    save_checkpoint(blind, 4, None, "s")
    found, unknown = runs_that_saw(str(tmp_path), ["9900000"])
    assert unknown.run == blind and unknown.subjects == () and "cannot prove whom" in unknown.problem


def test_runs_are_found_in_folders_of_folders(tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "pretrain" / "r")
    attempt(run, INDEX, 1, range(0, 8))
    (tmp_path / "runs" / "demo").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_text("no folder")
    assert [f.run for f in runs_that_saw(str(tmp_path / "runs"), ["9900000"])] == [run]
    with pytest.raises(DataError, match="no such folder of runs"):
        runs_that_saw(str(tmp_path / "rums"), ["9900000"])


def test_a_withdrawn_subject_is_found_in_the_plans_before(tmp_path: Path) -> None:
    run = str(tmp_path / "r")
    gone = INDEX.filter(pc.not_equal(INDEX["subject"], "9900004"))
    attempt(run, INDEX, 1, range(0, 6), end="failed")
    attempt(run, gone, 2, range(4, 12))
    receipt = read_receipt(run)
    assert check(receipt) == [] and len(receipt.plans) == 2
    assert counted(who(receipt)) == brute(range(0, 6)) + brute(range(4, 12), gone)
    (found,) = runs_that_saw(str(tmp_path), ["9900004"])
    assert (
        found.visits == brute(range(0, 6))["9900004"] and found.last_step is not None and found.last_step < 6
    )
    assert files.exists(found.run)
