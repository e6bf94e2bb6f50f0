"""Withdrawal: nothing of a participant stays but the tombstone, and nothing of anybody else changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.fingerprint import LENGTH, fingerprint
from brainfoundry.cohorts.left_out import LeftOut
from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store import withdraw as module
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import intake_uri, manifest_uri, meta_uri, shard_uri, sidecar_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.withdraw import withdraw
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.store.builders import SHAPE, brain, brats_intake, intake, nifti, put, put_brats
from tests.store.withdrawals import SPEC, SUBJECTS, digests, never, state, tumour

CONTENT = ("shardset.json", "index.parquet", "manifest.parquet", "fingerprints.parquet", "intake.parquet")


def bricks_of(shards: ShardSet, subject: str) -> list[bytes]:
    """The longest brick of every scan of a subject."""
    at = shards.index["subject"].to_pylist().index(subject)
    place = shards.index.slice(at, 1).to_pylist()[0]
    row = shards._row(place["shard"], place["row"])
    found = []
    for channel in range(len(row.code_dtypes)):
        spans = [
            (row.ends[channel * row.per_scan + i], row.ends[channel * row.per_scan + i + 1])
            for i in range(row.per_scan)
        ]
        lo, hi = max(spans, key=lambda span: span[1] - span[0])
        found.append(bytes(row.data[lo:hi]))
    return found


def words_of(path: Path) -> bytes:
    """A file's bytes, and for Parquet its cells and metadata in plain text besides."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        data += json.dumps(table.to_pylist(), default=str).encode() + str(table.schema.metadata).encode()
        data += b"".join(v for row in table.to_pylist() for v in row.values() if isinstance(v, bytes))
    return data


def test_only_the_touched_shards_are_written_again(shards: Path, made: tuple[Path, Manifest]) -> None:
    before, old = state(shards), ShardSet.open(str(made[0]))
    went = withdraw(str(shards), ["BraTS2021_00003", "BraTS2021_99999"])
    after, new = state(shards), ShardSet.open(str(shards))
    assert (went.subjects, went.unknown, went.earlier) == (("BraTS2021_00003",), ("BraTS2021_99999",), ())
    assert (went.shards, went.sessions, went.resumed) == ((1,), 1, False)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "shards/shard-00001.arrow", "shards/shard-00001.json", "convert.json", "report.json",
        "exclusions.json", "exclusions.md", *CONTENT,
    }  # fmt: skip
    assert set(after) == set(before)
    assert new.verify() == []
    assert new.index["subject"].to_pylist() == [
        s for s in old.index["subject"].to_pylist() if s not in went.subjects
    ]
    for row in new.index.to_pylist():  # every voxel, statistic and split of the others is as it was
        was = next(r for r in old.index.to_pylist() if r["subject"] == row["subject"])
        places = ("row", "offset", "length", "head_length", "head_crc")
        assert {k: v for k, v in row.items() if k not in places} == {
            k: v for k, v in was.items() if k not in places
        }
        for name in ("FLAIR", "T1w", "label"):
            ours = new.nifti_bytes(row["shard"], row["row"], name)
            assert ours == old.nifti_bytes(was["shard"], was["row"], name)


def test_a_set_opened_before_is_changed_not_damaged(shards: Path) -> None:
    """Nobody may be told to restore from a copy what a withdrawal has just taken out."""
    opened = ShardSet.open(str(shards))
    gone = opened.index["subject"].to_pylist().index(SUBJECTS[2])
    shard = opened.index["shard"][gone].as_py()
    withdraw(str(shards), [SUBJECTS[2]])
    for n, place in enumerate(opened.index.to_pylist()):
        if place["shard"] == shard and n != gone:
            with pytest.raises(DataError, match=r"changed .* since it was opened.*submit the job again"):
                opened.read_crop(shard, place["row"], (0, 0, 0), (8, 8, 8))


def test_hashes_and_history(shards: Path) -> None:
    old = ShardSet.open(str(shards)).meta
    new = withdraw(str(shards), [SUBJECTS[2]]).meta
    assert new == ShardSet.open(str(shards)).meta
    manifest = read_manifest(manifest_uri(str(shards)))
    assert new.manifest_hash == manifest.hash != old.manifest_hash
    assert (new.rows, new.shards, new.intake_hash) == (old.rows - 1, old.shards, old.intake_hash)
    assert new.counts["withdrawn"] == {"subjects": 1, "sessions": 1}
    (entry,) = new.history
    assert entry["when"].endswith("+00:00")
    assert {k: v for k, v in entry.items() if k != "when"} == {
        "manifest_hash": old.manifest_hash, "what": "withdrawal", "subjects": 1,
    }  # fmt: skip
    later = withdraw(str(shards), [SUBJECTS[0]]).meta
    assert [e["manifest_hash"] for e in later.history] == [old.manifest_hash, new.manifest_hash]
    report = json.loads((shards / "report.json").read_text())
    assert report["rows"] == later.rows == old.rows - 2
    assert {line["reason"]: line["sessions"] for line in report["counts"]}["withdrawn"] == 2


def test_a_tombstone_is_all_that_stays(shards: Path) -> None:
    opened = ShardSet.open(str(shards))
    stored, refused = SUBJECTS[2], SUBJECTS[5]
    bricks = bricks_of(opened, stored)
    table = opened.fingerprints()
    prints = table.filter(pa.compute.equal(table["subject"], stored))["fingerprint"].to_pylist()
    digest = next(
        s.sha256
        for r in read_manifest(manifest_uri(str(shards))).rows()
        if r.subject == stored
        for s in r.scans
    )
    secrets = [*bricks, *prints, prints[0].hex().encode(), str(digest).encode()]
    everything = b"".join(words_of(p) for p in shards.rglob("*") if p.is_file())
    assert all(secret in everything for secret in secrets)
    del opened
    withdraw(str(shards), [stored, refused])
    for path in (p for p in shards.rglob("*") if p.is_file()):
        words = words_of(path)
        assert not any(secret in words for secret in secrets), path
        if path.name not in ("manifest.parquet", "intake.parquet"):
            assert stored.encode() not in words and refused.encode() not in words, path
    for uri in (manifest_uri(str(shards)), intake_uri(str(shards))):
        manifest = read_manifest(uri)
        rows = {row.subject: row for row in manifest.rows()}
        assert list(rows) == SUBJECTS
        for subject in (stored, refused):
            row = rows[subject]
            assert (row.verdict, row.reason, row.scans, row.label) == ("excluded", "withdrawn", (), None)
            assert (row.age, row.sex, row.site, row.split, row.fold) == (None, None, None, "", None)
            assert subject not in manifest.meta.to_json()
        assert manifest.meta.notes == ("(withdrawn) looks odd",)


def test_all_visits_of_a_participant_go(tmp_path: Path) -> None:
    for eid in (9_900_001, 9_900_002):
        for instance in (2, 3):
            scans = {"T1w": nifti(brain(eid + instance)), "FLAIR": nifti(brain(eid))}
            put(tmp_path / "ukb", eid, scans, instance)
    manifest = intake(tmp_path / "ukb", instances=(2, 3))
    convert(manifest, str(tmp_path / "out"), replace(SPEC, rows_per_shard=1, n_val=0), executor=inline)
    went = withdraw(str(tmp_path / "out"), ["9900001"])
    assert (went.subjects, went.sessions, went.shards) == (("9900001",), 2, (0, 1))
    assert ShardSet.open(str(tmp_path / "out")).index["subject"].to_pylist() == ["9900002"] * 2
    tombs = [r.key for r in read_manifest(manifest_uri(str(tmp_path / "out"))).rows() if not r.included]
    assert tombs == [("9900001", "2"), ("9900001", "3")]


def test_twice_is_harmless_and_strangers_change_nothing(shards: Path) -> None:
    before = state(shards)
    assert withdraw(str(shards), ["nobody"]).unknown == ("nobody",)
    assert withdraw(str(shards), [SUBJECTS[1]], dry_run=True).subjects == (SUBJECTS[1],)
    assert state(shards) == before
    withdraw(str(shards), SUBJECTS[1:3])
    once = state(shards)
    again = withdraw(str(shards), SUBJECTS[1:3])
    assert (again.subjects, again.earlier, again.shards) == ((), tuple(SUBJECTS[1:3]), ())
    assert state(shards) == once


def test_an_emptied_shard_stays_as_an_empty_one(shards: Path) -> None:
    withdraw(str(shards), [SUBJECTS[2], SUBJECTS[3]])  # all of shard 1
    opened = ShardSet.open(str(shards))
    assert opened.meta.shards == 4 and opened.verify() == []
    assert set(opened.index["shard"].to_pylist()) == {0, 2, 3}
    with pa.ipc.open_file(shard_uri(str(shards), 1)) as shard:
        assert shard.num_record_batches == 0
    with pytest.raises(DataError, match="no row 0 in shard 1"):
        opened.position(1, 0)
    assert opened.read_crop(2, 0, (0, 0, 0), SHAPE).any()
    withdraw(str(shards), SUBJECTS)
    assert len(ShardSet.open(str(shards))) == 0


def test_preparing_again_finds_a_finished_set(
    shards: Path, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """With the intake as it was, and with one that knows the list: the same people are in."""
    withdraw(str(shards), [SUBJECTS[2], SUBJECTS[5]])
    before = state(shards)
    assert convert(made[1], str(shards), SPEC, executor=never).meta.rows == 5
    listed = LeftOut(withdrawn=frozenset({SUBJECTS[2], SUBJECTS[5], "BraTS2021_99999"}))
    later = brats_intake(made[0].parent / "brats", left_out=listed)
    assert convert(later, str(shards), SPEC, executor=never).meta.rows == 5
    assert state(shards) == before
    ours = list(read_manifest(intake_uri(str(shards))).rows())
    assert ours == list(later.rows())
    fresh = convert(later, str(tmp_path / "fresh"), SPEC, executor=inline)
    kept = read_manifest(manifest_uri(str(shards)))
    assert [r.key for r in fresh.manifest.rows(included_only=True)] == [
        r.key for r in kept.rows(included_only=True)
    ]
    shorter = brats_intake(made[0].parent / "brats", left_out=LeftOut(withdrawn=frozenset({SUBJECTS[2]})))
    shutil.rmtree(made[0].parent / "brats" / SUBJECTS[6])
    try:
        other = brats_intake(made[0].parent / "brats", left_out=listed)
    finally:
        put_brats(made[0].parent / "brats", 7, tumour(7))
    for unlike in (shorter, other):  # somebody else is in it, or not in it: another set
        with pytest.raises(DataError, match="another intake manifest"):
            convert(unlike, str(shards), SPEC, executor=never)


def test_a_mended_shard_does_not_bring_them_back(shards: Path, made: tuple[Path, Manifest]) -> None:
    """Their scans are still in the source folder; the shard they were in is lost and made again."""
    held_out = next(r for r in ShardSet.open(str(shards)).index.to_pylist() if r["split"] == "val")
    meta = withdraw(str(shards), [held_out["subject"]]).meta
    before = digests(shards)
    Path(shard_uri(str(shards), held_out["shard"])).unlink()
    Path(meta_uri(str(shards))).unlink()
    done = convert(made[1], str(shards), SPEC, executor=inline)
    assert done.meta == meta  # split and history too, though fewer subjects would be split otherwise
    assert digests(shards) == before


@pytest.mark.parametrize("resplit", [False, True])
def test_the_others_keep_their_split(shards: Path, resplit: bool) -> None:
    opened = ShardSet.open(str(shards))
    if resplit:
        from brainfoundry.store.resplit import resplit as apply

        subjects = opened.index["subject"].to_pylist()
        parts = {s: ("test" if i % 3 == 0 else "train", i % 2) for i, s in enumerate(subjects)}
        apply(str(shards), parts, {"by": "hand", "test": [SUBJECTS[0]]})
        opened = ShardSet.open(str(shards))
    split = {r["subject"]: (r["split"], r["fold"]) for r in opened.index.to_pylist()}
    gone = next(s for s in split if split[s][0] in ("val", "test"))
    meta = withdraw(str(shards), [gone]).meta
    opened = ShardSet.open(str(shards))
    assert {r["subject"]: (r["split"], r["fold"]) for r in opened.index.to_pylist()} == {
        s: part for s, part in split.items() if s != gone
    }
    prints = opened.fingerprints().to_pylist()
    assert {(p["subject"], p["split"], p["fold"]) for p in prints} == {
        (s, *part) for s, part in split.items() if s != gone
    }
    assert [e["what"] for e in meta.history] == ["split", "withdrawal"][not resplit :]
    assert gone not in read_manifest(manifest_uri(str(shards))).meta.to_json()


# ---------------------------------------------------------------------------------------------------------
# Plans and fingerprints


@cache
def _plain(folder: str) -> pa.Table:
    return ShardSet.open(folder).index


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gone=st.sets(st.sampled_from(SUBJECTS), min_size=1, max_size=3),
    seed=st.integers(0, 2**62),
    split=st.sampled_from(["train", "val"]),
)
def test_the_withdrawn_are_unreachable_and_the_rest_keep_their_order(
    made: tuple[Path, Manifest],
    tmp_path_factory: pytest.TempPathFactory,
    gone: set[str],
    seed: int,
    split: str,
) -> None:
    folder = tmp_path_factory.mktemp("plan") / "set"
    shutil.copytree(made[0], folder)
    withdraw(str(folder), gone)
    index = ShardSet.open(str(folder)).index
    assert not gone & set(index["subject"].to_pylist())
    if split not in index["split"].to_pylist():
        return
    spec = PlanSpec(
        seed=seed, crop=(8, 8, 8), groups_per_step=6, frame="box", split=split, subjects_per_group=1
    )
    before, after = Plan.from_index(_plain(str(made[0])), spec), Plan.from_index(index, spec)
    rows = after.rows(0, 12)
    assert not gone & set(rows["subject"].to_pylist())
    for plan, n in ((before, before.n_subjects), (after, after.n_subjects)):
        assert n == plan.n_subjects
    for epoch in range(3):  # the same people, in the same order, those who went left out
        orders = [
            p.rows(0, 12)["subject"].to_pylist()[:: spec.crops_per_subject][
                epoch * p.n_subjects : (epoch + 1) * p.n_subjects
            ]
            for p in (before, after)
        ]
        assert [s for s in orders[0] if s not in gone] == orders[1]
    for world in (2, 3, 6):
        parts = pa.concat_tables([after.rows(0, 12, rank, world) for rank in range(world)])
        assert parts.sort_by([("group", "ascending"), ("slot", "ascending")]).equals(rows)


def test_fingerprints_of_every_scan(made: tuple[Path, Manifest]) -> None:
    shards = ShardSet.open(str(made[0]))
    table = shards.fingerprints()
    assert table.schema.names == ["subject", "session", "split", "fold", "modality", "fingerprint"]
    index = shards.index.to_pylist()
    assert [(r["subject"], r["modality"], r["split"]) for r in table.to_pylist()] == [
        (r["subject"], m, r["split"]) for r in index for m in ("FLAIR", "T1w")
    ]
    first = table.to_pylist()[0]["fingerprint"]
    assert len(first) == LENGTH
    codes = shards.read_volume(0, 0, "FLAIR").astype(np.int16)
    assert first == fingerprint(codes)
    assert len(set(table["fingerprint"].to_pylist())) == table.num_rows


def test_fingerprints_are_those_of_this_set(shards: Path) -> None:
    path = shards / "fingerprints.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"fingerprints do not belong.*fingerprints\.parquet"):
        ShardSet.open(str(shards)).fingerprints()


def test_resampled_sets_have_the_fingerprints_of_the_files(
    made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    convert(made[1], str(tmp_path / "out"), replace(SPEC, spacing_mm=2.0), executor=inline)
    ours = ShardSet.open(str(tmp_path / "out")).fingerprints()
    assert ours.equals(ShardSet.open(str(made[0])).fingerprints())


def test_rewriting_is_of_the_same_bytes(shards: Path) -> None:
    """A row copied to another place in its shard keeps its head, so that damage to it cannot be sealed in."""
    rows = files.read_json(sidecar_uri(str(shards), 1))["rows"]
    for batch, row in zip(module._batches(str(shards), 1), rows, strict=True):
        assert module.head_of(memoryview(batch.serialize()), True) == (row["head_length"], row["head_crc"])
