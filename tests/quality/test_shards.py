"""Shard sets: stored rows are checked against their checksums, the manifest, and what it claims."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import read_manifest, rewrite_manifest
from brainfoundry.core.errors import DataError
from brainfoundry.quality.verify import of_shard_set, verify
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import manifest_uri, shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from tests.quality.builders import SLICES, Image, Session, brain, cohort, session


def converted(folder: Path, sessions: list[Session], **spec: object) -> str:
    options = {"min_slices": SLICES, "rows_per_shard": 4} | spec
    manifest = cohort(folder / "files", sessions)
    out = str(folder / "shards")
    convert(manifest, out, ConvertSpec(**options), executor=inline)  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    sessions = [session(n) for n in range(10)]
    sessions[4].images["FLAIR"] = Image(brain(4, "FLAIR") * 0.9371)  # float32: stored with a bound
    return converted(tmp_path_factory.mktemp("set"), sessions)


@pytest.fixture
def shards(whole: str, tmp_path: Path) -> str:
    shutil.copytree(whole, tmp_path / "copy")
    return str(tmp_path / "copy")


def test_a_whole_set_has_no_finding(whole: str) -> None:
    done = verify(of_shard_set(whole))
    assert done.findings == ()
    assert (done.sessions, done.scans) == (10, 20)


def test_a_resampled_set_has_no_finding(tmp_path: Path) -> None:
    out = converted(tmp_path, [session(n) for n in range(3)], spacing_mm=5.0, min_slices=20)
    assert verify(of_shard_set(out)).findings == ()


def test_a_damaged_brick_costs_one_finding(shards: str) -> None:
    assert verify(of_shard_set(shards)).findings == ()
    opened = ShardSet.open(shards)
    place = opened.index.slice(5, 1).to_pylist()[0]
    path = Path(shard_uri(shards, place["shard"]))
    data = bytearray(path.read_bytes())
    middle = place["offset"] + place["head_length"] + (place["length"] - place["head_length"]) // 4
    data[middle : middle + 8] = bytes(b ^ 0xFF for b in data[middle : middle + 8])
    path.write_bytes(data)
    (one,) = verify(of_shard_set(shards)).findings
    assert (one.code, one.severity, one.subject) == ("damaged_shard", "error", place["subject"])
    assert one.modality in ("T1w", "FLAIR") and path.name in one.file and "checksum" in one.detail and one.fix


def test_a_shard_cut_short_or_gone(shards: str) -> None:
    path = Path(shard_uri(shards, 1))
    path.write_bytes(path.read_bytes()[:1000])
    Path(shard_uri(shards, 2)).unlink()
    found = verify(of_shard_set(shards)).findings
    assert {f.code for f in found} == {"damaged_shard"}
    assert {f.subject for f in found} == {f"s{n:03d}" for n in range(4, 10)}


def test_another_manifest(shards: str) -> None:
    manifest = read_manifest(manifest_uri(shards))
    rewrite_manifest(
        manifest,
        manifest_uri(shards),
        lambda row: row.excluded("grid_mismatch", "by hand") if row.subject == "s003" else row,
    )
    found = verify(of_shard_set(shards)).findings
    assert {(f.code, f.subject) for f in found} == {("not_stored", ""), ("not_stored", "s003")}


def test_duplicates_and_faults_in_a_set(tmp_path: Path) -> None:
    sessions = [session(n) for n in range(9)]
    sessions[8].images["T1w"] = Image(brain(2, "T1w") * 0.9371)  # stored as float, quantised
    sessions[7].images["label"].data[:] = 0
    for image in sessions[6].images.values():
        image.affine[1, 3] += 90
    found = verify(of_shard_set(converted(tmp_path, sessions))).findings
    assert {(f.code, f.subject, f.modality) for f in found} == {
        ("duplicate_subjects", "s008", "T1w"),
        ("label_empty", "s007", "label"),
        ("not_in_template", "s006", "T1w"),
        ("not_in_template", "s006", "FLAIR"),
    }


def test_no_set_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shard set here"):
        of_shard_set(str(tmp_path))
