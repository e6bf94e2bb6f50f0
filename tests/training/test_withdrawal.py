"""A participant withdraws while a run is unfinished: the run goes on without them, and says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.compute as pc
import pytest

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, CheckpointError
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.withdraw import withdraw
from brainfoundry.training import checkpoint
from brainfoundry.training.card import Card, withdrawn_since
from brainfoundry.training.config import ClusterConfig, PretrainConfig
from brainfoundry.training.launch import train
from brainfoundry.training.leak_gate import gate, open_test_set
from brainfoundry.training.presets import DEMO
from brainfoundry.training.receipt import runs_that_saw, who
from brainfoundry.training.receipt_read import check, read_receipt
from brainfoundry.training.resolve import resolve_task
from brainfoundry.training.runs import default_name, find_place, identity_hash
from brainfoundry.training.seen import encode_seen, load_seen, own_scans, seen_table
from tests.training.test_checkpoint import MODEL, STATE
from tests.training.test_resume import train_workers, when_saved

GONE = {"manifest_hash": "a", "what": "withdrawal", "subjects": 2, "when": "t"}
GONE_TOO = {"manifest_hash": "b", "what": "withdrawal", "subjects": 1, "when": "t"}
SPLIT = {"manifest_hash": "b", "what": "split", "subjects": 9, "when": "t"}


@pytest.mark.parametrize(
    ("history", "then", "count"),
    [
        ((GONE,), "a", 2),
        ((GONE, GONE_TOO), "a", 3),
        ((GONE, GONE_TOO), "b", 1),
        ((GONE, SPLIT), "a", None),
        ((GONE, SPLIT), "b", None),
        ((SPLIT, {**GONE, "manifest_hash": "c"}), "c", 2),
        ((GONE,), "z", None),
        ((), "a", None),
    ],
)
def test_only_withdrawals_may_lie_between(
    history: tuple[dict[str, Any], ...], then: str, count: int | None
) -> None:
    assert withdrawn_since(then, history) == count


@pytest.fixture
def shards(small_shards: str, tmp_path: Path) -> str:
    """A copy of the small shard set, to be changed."""
    shutil.copytree(small_shards, tmp_path / "shards")
    return str(tmp_path / "shards")


def someone(shards: str) -> str:
    """A participant of the training split."""
    index = ShardSet.open(shards).index
    return str(index.filter(pc.equal(index["split"], "train"))["subject"][0].as_py())


def configuration(storage: Path, shards: str, **changes: Any) -> PretrainConfig:
    return replace(
        DEMO,
        storage=str(storage),
        data=replace(DEMO.data, shards=shards, groups_per_step=2),
        optim=replace(DEMO.optim, steps=12, warmup=2),
        cluster=ClusterConfig(workers=1, cpus_per_worker=0.5, fetch_cpus=0.25, threads=1, max_failures=0),
        keep=replace(DEMO.keep, checkpoint_every=3, validate_every=6, log_every=1, keep_last=99, pictures=0),
        tracking=replace(DEMO.tracking, uri=f"sqlite:///{storage}/mlflow.db"),
        **changes,
    )


def resolve(config: PretrainConfig):  # type: ignore[no-untyped-def]
    opened = ShardSet.open(str(config.data.shards))
    return resolve_task(config, opened, find_place(config, str(config.storage), identity_hash(opened.meta)))


def begin(config: PretrainConfig, step: int = 3) -> str:
    """A run that got as far as a checkpoint."""
    task = resolve(config)
    opened = ShardSet.open(task.shards)
    seen = seen_table(own_scans(opened, task.modalities, run=task.name, stage="pretrain-1"))
    files.write_bytes(files.join(task.run_dir, "config.yaml"), b"")
    return checkpoint.save(task.checkpoints, Card(**task.card, step=step), MODEL, STATE, encode_seen(seen))


def test_the_job_finds_its_run_and_says_that_it_goes_on_without_them(shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "runs", shards)
    begin(config)
    before = ShardSet.open(shards).meta
    withdraw(shards, [someone(shards)])
    after = ShardSet.open(shards).meta
    assert after.manifest_hash != before.manifest_hash == identity_hash(after)
    assert default_name(config, identity_hash(after)) == default_name(config, before.manifest_hash)
    task = resolve(config)
    (note,) = task.notes
    assert task.tags["withdrawal"] == note
    for words in ("from step 3", "without 1 withdrawn", before.manifest_hash[:12], after.manifest_hash[:12]):
        assert words in note
    assert task.card["manifest_hash"] == after.manifest_hash


def test_other_changes_are_refused_before_anything_starts(shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "runs", shards, name="r")
    begin(config)
    withdraw(shards, [someone(shards)])
    with pytest.raises(CheckpointError, match=r"has plan .*'seed': 20240614.*Fix:"):
        resolve(replace(config, data=replace(config.data, seed=1)))
    with pytest.raises(CheckpointError, match="has steps 12"):
        resolve(replace(config, optim=replace(config.optim, steps=24)))
    card = Card(**resolve(config).card, step=3)
    mine = replace(card, manifest_hash="now", plan_hash="now")
    with pytest.raises(CheckpointError, match="manifest_hash"):
        mine.refuse_mismatch(replace(card, manifest_hash="b"), "uri", (GONE, SPLIT))
    with pytest.raises(CheckpointError, match="manifest_hash"):  # an older card cannot show its plan
        mine.refuse_mismatch(replace(card, manifest_hash="a", plan={}), "uri", (GONE,))
    assert mine.refuse_mismatch(replace(card, manifest_hash="a"), "uri", (GONE, GONE_TOO)) == {
        "subjects": 3,
        "from": "a",
        "to": "now",
    }
    with pytest.raises(CheckpointError, match="plan_hash"):  # the same scans in another order: no withdrawal
        replace(card, plan_hash="now").refuse_mismatch(card, "uri", (GONE,))


def test_who_withdrew_stays_in_the_table_by_id_without_the_image(shards: str, tmp_path: Path) -> None:
    opened, gone = ShardSet.open(shards), someone(shards)
    before = seen_table(own_scans(opened, ("T1w", "FLAIR"), run="r", stage="s"))
    withdraw(shards, [gone])
    opened = ShardSet.open(shards)
    own = own_scans(opened, ("T1w", "FLAIR"), run="r", stage="s")
    table = seen_table(own, earlier=before, run="r")
    theirs = table.filter(pc.equal(table["subject"], gone))
    assert gone not in own["subject"].to_pylist() and theirs.num_rows == 2
    assert theirs["fingerprint"].null_count == 2 and table["fingerprint"].null_count == 2
    assert table.num_rows == before.num_rows
    assert seen_table(own, earlier=table, run="r").equals(table)  # and at the next resume, and the next


def test_a_leak_let_pass_once_stays_on_the_card(shards: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "runs", shards, name="r")
    data = replace(config.data, guard=(f"{shards}#split=val",), allow_leak=True)
    begin(replace(config, data=data))
    assert default_name(replace(config, data=data), "m") == default_name(config, "m")
    with pytest.raises(BrainFoundryError, match=r"2 of 2 test subjects.*--data\.allow-leak"):
        resolve(replace(config, data=replace(data, allow_leak=False)))
    again = resolve(config)  # submitted without the guard
    (record,) = again.card["leaks"]
    assert (record["selection"], record["leaked"]) == ("split val", 2)
    assert "leaks" not in again.tags and "2 of 2" in resolve(replace(config, data=data)).tags["leaks"]


@pytest.mark.slow
def test_a_run_killed_goes_on_after_a_withdrawal(shards: str, tmp_path: Path, ray_local: int) -> None:
    storage = tmp_path / "runs"
    config = configuration(storage, shards)
    task = resolve(config)
    kill: Callable[[], None] = lambda: train_workers(psutil.Process())[-1].kill()  # noqa: E731
    thread = when_saved(storage, task.name, kill)
    with pytest.raises(BrainFoundryError):
        train(task)
    thread.join()
    reached = checkpoint.latest_step(task.checkpoints)
    assert 3 <= reached < 12
    gone = someone(shards)
    everybody = set(ShardSet.open(shards).index["subject"].to_pylist())
    withdraw(shards, [gone])
    again = resolve(config)
    assert again.run_dir == task.run_dir and again.notes
    summary = train(again)
    assert summary["first_step"] == reached and summary["notes"] == list(again.notes)

    receipt = read_receipt(task.run_dir)
    assert receipt.problems == [] and check(receipt) == []
    assert [a.state for a in receipt.attempts] == ["killed", "finished"]
    rows = {r["subject"]: r for r in who(receipt).to_pylist()}
    # Everybody is seen once an epoch: 7 subjects, 4 a step, then 6 of them.
    assert sum(r["visits"] - r["not_kept"] for r in rows.values()) == 12 * 4
    assert rows[gone]["last_step"] is None or rows[gone]["last_step"] < receipt.attempts[0].last
    final = checkpoint.read_card(summary["checkpoint"])
    assert final.manifest_hash == ShardSet.open(shards).meta.manifest_hash and final.plan == _json(again.plan)
    table = load_seen(summary["checkpoint"])
    assert set(table["subject"].to_pylist()) == everybody
    theirs = table.filter(pc.equal(table["subject"], gone))
    assert theirs.num_rows == 2 and theirs["fingerprint"].null_count == 2
    (saw,) = runs_that_saw(str(storage), [gone], "ukb") or [None]
    if rows[gone]["visits"] + rows[gone]["possible"]:
        assert saw is not None and summary["checkpoint"] in saw.checkpoints
    # And the finished checkpoint is held against a test set: its own validation subjects.
    with pytest.raises(BrainFoundryError, match="2 of 2 test subjects"):
        gate([open_test_set(shards, split="val")], [summary["checkpoint"]])


def _json(spec: Any) -> dict[str, Any]:
    return {**spec.to_dict(), "crop": list(spec.crop)}
