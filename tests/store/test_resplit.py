"""Another split of a finished shard set: tables rewritten, shards untouched, safe against interruption."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.cohorts.splits import SplitSpec, placed, split_subjects, verify_split
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store import resplit as module
from brainfoundry.store.changing import begin
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import changing_uri, index_uri, manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.resplit import resplit
from brainfoundry.store.shard_task import ConvertSpec
from brainfoundry.store.withdraw import withdraw
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.store.builders import brain, intake, nifti, put

SPEC = ConvertSpec(min_slices=10, rows_per_shard=3, n_val=2)
SUBJECTS = [str(eid) for eid in range(9_900_001, 9_900_008)]
DEALT = SplitSpec(seed=7, test=2, folds=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven subjects of T1w and FLAIR, the first with two visits, one of the others with no voxels."""
    folder = tmp_path_factory.mktemp("resplit")
    for eid in map(int, SUBJECTS):
        empty = eid == 9_900_005
        for instance in (2, 3) if eid == 9_900_001 else (2,):
            scans = {
                name: nifti(brain(eid + k + instance) * (not empty))
                for k, name in enumerate(("T1w", "FLAIR"))
            }
            put(folder / "ukb", eid, scans, instance)
    convert(intake(folder / "ukb", instances=(2, 3)), str(folder / "out"), SPEC, executor=inline)
    return folder / "out"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """A copy to change, times of files included."""
    shutil.copytree(made, tmp_path / "set", copy_function=shutil.copy2)
    return tmp_path / "set"


def manifest_of(folder: Path) -> Manifest:
    return read_manifest(manifest_uri(str(folder)))


def state(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def parts_of(table: pa.Table) -> dict[str, set[tuple[str, int | None]]]:
    found: dict[str, set[tuple[str, int | None]]] = {}
    for row in table.select(["subject", "split", "fold"]).to_pylist():
        found.setdefault(row["subject"], set()).add((row["split"], row["fold"]))
    return found


def test_every_table_says_the_same_and_no_shard_is_touched(shards: Path) -> None:
    before, old = state(shards), ShardSet.open(str(shards))
    prints = old.fingerprints()
    split = split_subjects(manifest_of(shards), DEALT)
    meta = resplit(str(shards), split.parts, split.record)

    new, manifest = ShardSet.open(str(shards)), manifest_of(shards)
    expected = {subject: {part} for subject, part in split.parts.items()}
    assert len(expected) == 6 and parts_of(new.index) == parts_of(new.fingerprints()) == expected
    assert parts_of(manifest.table) == expected | {"9900005": {("", None)}}  # excluded: in no split
    assert manifest.meta.splits == split.record and verify_split(manifest) == []
    # Everything else in the tables is as it was.
    for one, two in ((old.index, new.index), (prints, new.fingerprints())):
        assert one.schema == two.schema and one.drop(["split", "fold"]) == two.drop(["split", "fold"])

    after = state(shards)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {
        "manifest.parquet",
        "index.parquet",
        "fingerprints.parquet",
        "shardset.json",
        "convert.json",
    }
    assert set(after) == set(before) and new.verify() == []
    assert meta == new.meta and meta.manifest_hash == manifest.hash != old.meta.manifest_hash
    (entry,) = meta.history
    assert (entry["manifest_hash"], entry["what"], entry["subjects"]) == (old.meta.manifest_hash, "split", 6)


def test_streams_and_few_follow_the_new_split(shards: Path) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    resplit(str(shards), split.parts, split.record)
    spec = PlanSpec(seed=3, crop=(8, 8, 8), groups_per_step=1, subjects_per_group=2, frame="box")
    seen = set(Plan.open(str(shards), spec).rows(0, 20)["subject"].to_pylist())
    assert seen == {subject for subject, (part, _) in split.parts.items() if part == "train"}


def test_the_same_split_again_changes_nothing(shards: Path) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    first = resplit(str(shards), split.parts, split.record)
    before = state(shards)
    assert resplit(str(shards), split.parts, split.record) == first
    assert state(shards) == before


def test_history_grows_and_subjects_left_out_are_in_no_split(shards: Path) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    first = resplit(str(shards), split.parts, split.record)
    second = resplit(str(shards), {"9900001": ("val", None)}, {"method": "by hand"})
    assert [e["manifest_hash"] for e in second.history][-1] == first.manifest_hash and len(
        second.history
    ) == 2
    found = parts_of(ShardSet.open(str(shards)).index)
    assert found.pop("9900001") == {("val", None)} and set().union(*found.values()) == {("", None)}


@pytest.mark.parametrize("step", range(1, 7))
def test_interrupted_anywhere_it_is_refused_then_finished(
    shards: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies before its step-th write: of changing, manifest, index, fingerprints, convert, shardset."""
    reference = shards.with_name("reference")
    shutil.copytree(shards, reference)
    split = split_subjects(manifest_of(shards), DEALT)
    wanted = resplit(str(reference), split.parts, split.record)
    old = ShardSet.open(str(shards)).meta

    class Dead(BaseException):
        pass

    writes = 0

    def dying(call: Callable) -> Callable:
        def write(*args: object, **more: object) -> object:
            nonlocal writes
            writes += 1
            if writes == step:
                raise Dead
            return call(*args, **more)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", dying(files.write_bytes))
        patch.setattr(module, "rewrite_manifest", dying(module.rewrite_manifest))
        with pytest.raises(Dead):
            resplit(str(shards), split.parts, split.record)
    if step == 1:
        assert ShardSet.open(str(shards)).meta == old  # nothing had been touched
    else:
        with pytest.raises(DataError, match=r"being changed \(split\).*changing.json.*Fix: .*jobs/split.py"):
            ShardSet.open(str(shards))
    # Whatever is asked for next, the interrupted split is finished first, and once.
    done = resplit(str(shards), split.parts, split.record)
    assert done.manifest_hash == wanted.manifest_hash and not files.exists(changing_uri(str(shards)))
    assert [e["manifest_hash"] for e in done.history] == [old.manifest_hash]
    assert ShardSet.open(str(shards)).index == ShardSet.open(str(reference)).index


def test_an_interrupted_split_is_finished_before_another_begins(shards: Path, monkeypatch) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    monkeypatch.setattr(module, "_rewrite", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        resplit(str(shards), split.parts, split.record)
    monkeypatch.undo()
    other = split_subjects(manifest_of(shards), SplitSpec(val=1))
    meta = resplit(str(shards), other.parts, other.record)
    assert len(meta.history) == 2 and meta.history[0]["when"] <= meta.history[1]["when"]
    assert parts_of(ShardSet.open(str(shards)).index) == {s: {part} for s, part in other.parts.items()}


def test_a_full_disk_is_one_line_and_goes_on(shards: Path, monkeypatch) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    write = files.write_bytes

    def full(uri: str, data: bytes) -> None:
        if uri == index_uri(str(shards)):
            raise OSError(28, "No space left on device")
        write(uri, data)

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left.*Fix: free space.*run again"):
        resplit(str(shards), split.parts, split.record)
    monkeypatch.undo()
    assert resplit(str(shards), split.parts, split.record).history
    assert ShardSet.open(str(shards)).meta.manifest_hash == manifest_of(shards).hash


def test_withdrawal_and_split_do_not_mix(shards: Path) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    begin(str(shards), "withdrawal", {"subjects": ["9900001"]})
    with pytest.raises(DataError, match=r"another change .*\(withdrawal\) was interrupted.*jobs/withdraw.py"):
        resplit(str(shards), split.parts, split.record)


def test_after_a_withdrawal_the_split_stays_and_a_new_one_leaves_the_tombstone(shards: Path) -> None:
    split = split_subjects(manifest_of(shards), DEALT)
    resplit(str(shards), split.parts, split.record)
    withdraw(str(shards), {"9900003"})
    manifest = manifest_of(shards)
    left = {s: {part} for s, part in split.parts.items() if s != "9900003"}
    assert parts_of(ShardSet.open(str(shards)).index) == left and verify_split(manifest) == []
    again = split_subjects(manifest, DEALT)
    assert "9900003" not in again.parts
    meta = resplit(str(shards), again.parts, again.record)
    assert [entry["what"] for entry in meta.history] == ["split", "withdrawal", "split"]
    assert parts_of(manifest_of(shards).table)["9900003"] == {("", None)}
    assert verify_split(manifest_of(shards)) == []


def test_a_split_made_before_conversion_is_the_one_afterwards(made: Path, tmp_path: Path) -> None:
    before = read_manifest(str(made.parent / "ukb" / "intake.parquet"))
    split = split_subjects(before, DEALT)
    write_manifest(
        str(tmp_path / "split.parquet"),
        [placed(row, split.parts) for row in before.rows()],
        replace(before.meta, splits=split.record),
    )
    done = convert(
        read_manifest(str(tmp_path / "split.parquet")), str(tmp_path / "out"), SPEC, executor=inline
    )
    stored = {s: {part} for s, part in split.parts.items() if s != "9900005"}  # its volumes are empty
    assert parts_of(ShardSet.open(str(tmp_path / "out")).index) == stored
    assert done.manifest.meta.splits == split.record and verify_split(done.manifest) == []


def test_wrong_calls(shards: Path, tmp_path: Path) -> None:
    before = state(shards)
    with pytest.raises(DataError, match=r"not in the shard set \[subject 42; file .*manifest.parquet\]. Fix"):
        resplit(str(shards), {"42": ("train", None)}, {})
    for part in (("dev", None), ("train", -1)):
        with pytest.raises(ValueError, match="no such split or fold"):
            resplit(str(shards), {"9900001": part}, {})
    assert state(shards) == before
    with pytest.raises(DataError, match="no shard set here"):
        resplit(str(tmp_path / "none"), {}, {})


def test_the_index_keeps_its_own_columns(shards: Path) -> None:
    """Columns that a later version of the index adds are carried through."""
    where = Path(index_uri(str(shards)))
    table = pq.read_table(io.BytesIO(where.read_bytes()))
    table = table.append_column("new", pa.array(range(len(table))))
    pq.write_table(table, where)
    module._rewrite(str(where), {"9900001": ("test", 1)})
    found = pq.read_table(where)
    assert found["new"].to_pylist() == list(range(len(table)))
    mine = [row for row in found.to_pylist() if row["subject"] == "9900001"]
    assert len(mine) == 2 and {(row["split"], row["fold"]) for row in mine} == {("test", 1)}
