"""The manifest comes back as it was written, has one hash, and says what is wrong with a foreign file."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainfoundry.cohorts.manifest import (
    SCHEMA,
    ManifestWriter,
    Row,
    Scan,
    read_manifest,
    rewrite_manifest,
    write_manifest,
)
from brainfoundry.core.errors import DataError

from .builders import ALL_REASONS, meta, rows, scan

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBER = st.none() | st.floats(allow_nan=False, allow_infinity=False)
INT64 = st.integers(0, 2**63 - 1)
SCANS = st.builds(
    Scan,
    modality=TEXT,
    uri=TEXT,
    member=TEXT,
    shape=st.tuples(*[st.integers(0, 2**31 - 1)] * 3),
    spacing=st.tuples(*[st.floats(0, 100)] * 3),
    orientation=TEXT,
    dtype=TEXT,
    size=INT64,
    crc32=st.none() | st.integers(0, 2**32 - 1),
    mtime=NUMBER,
    sha256=st.none() | TEXT,
)
VERDICTS = st.sampled_from([("included", ""), *[("excluded", reason) for reason in ALL_REASONS]])


@st.composite
def any_row(draw: st.DrawFn) -> Row:
    verdict, reason = draw(VERDICTS)
    return Row(
        subject=draw(st.text("0123456789", min_size=1, max_size=6)), session=draw(st.text("234", max_size=2)),
        cohort=draw(TEXT), verdict=verdict, reason=reason, detail=draw(TEXT),
        split=draw(st.sampled_from(["", "train", "val", "test"])),
        fold=draw(st.none() | st.integers(-(2**31), 2**31 - 1)), age=draw(NUMBER), sex=draw(st.none() | TEXT),
        site=draw(st.none() | TEXT), label=draw(st.none() | SCANS),
        scans=tuple(draw(st.lists(SCANS, max_size=3))),
    )  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(any_row(), unique_by=lambda row: row.key, max_size=6), group=st.integers(1, 3))
def test_rows_come_back_as_written_whatever_the_row_groups(tmp_path, made: list[Row], group: int) -> None:
    made.sort(key=lambda row: row.key)
    uri = str(tmp_path / "m.parquet")
    with ManifestWriter(uri, meta(), rows_per_group=group) as writer:
        for row in made:
            writer.write(row)
    manifest = read_manifest(uri)
    assert list(manifest.rows()) == made
    assert [r.key for r in manifest.rows(included_only=True)] == [r.key for r in made if r.included]
    assert manifest.hash == writer.hash == write_manifest(str(tmp_path / "n.parquet"), made, meta())
    assert manifest.counts()["assessed"]["sessions"] == len(made)


def test_hash_is_the_documented_one(tmp_path) -> None:
    import hashlib

    uri = str(tmp_path / "m.parquet")
    digest = write_manifest(uri, rows(2), meta(notes=("a note",)))
    # Spelled out from the contract, without the code under test.
    sha = hashlib.sha256()
    empty = {
        "age": 60.5,
        "cohort": "test",
        "detail": "",
        "fold": None,
        "label": None,
        "reason": "",
        "sex": "F",
    }
    one_scan = {
        "crc32": 4294967295, "dtype": "int16", "member": "T1/T1_brain_to_MNI.nii.gz", "modality": "T1w",
        "mtime": None, "orientation": "LAS", "sha256": None, "shape": [182, 218, 182], "size": 2745353,
        "spacing": [1.0, 1.0, 1.0], "uri": "/data/1_20252_2_0.zip",
    }  # fmt: skip
    for subject in ("s0000", "s0001"):
        row = {
            **empty,
            "session": "2",
            "site": "11025",
            "split": "",
            "subject": subject,
            "verdict": "included",
        }
        sha.update(
            json.dumps({**row, "scans": [one_scan]}, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        )
    counted = {code: {"sessions": 0, "subjects": 0} for code in ALL_REASONS}
    counted |= {code: {"sessions": 2, "subjects": 2} for code in ("assessed", "included")}
    described = {
        "cohort": "test", "counts": counted, "labels": "", "modalities": ["T1w"], "notes": ["a note"],
        "rules": {"min_slices_header": 100}, "skull_stripped": True, "source": "/data",
        "splits": {}, "stage": "intake", "template_space": "MNI152", "version": 1,
    }  # fmt: skip
    sha.update(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    assert digest == sha.hexdigest()
    assert json.loads(pq.read_schema(uri).metadata[b"brainfoundry"]) == described


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "s0003x"},
        {"split": "train"},
        {"age": 60.25},
        {"detail": "x"},
        {"scans": (scan(crc32=1),)},
        {"scans": (scan(sha256="00"),)},
    ],
)
def test_hash_depends_on_every_value(tmp_path, change) -> None:
    first = write_manifest(str(tmp_path / "a"), rows(4), meta())
    made = rows(4)
    made[3] = replace(made[3], **change)
    assert write_manifest(str(tmp_path / "b"), made, meta()) != first
    assert write_manifest(str(tmp_path / "c"), rows(4), meta(source="/other")) != first


def test_rows_out_of_order_or_twice_are_refused_and_nothing_is_left(tmp_path) -> None:
    a, b = rows(2)
    for wrong in ([b, a], [a, a]):
        with pytest.raises(ValueError, match="ascend"):
            write_manifest(str(tmp_path / "m.parquet"), wrong, meta())
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writer_keeps_the_earlier_manifest(tmp_path) -> None:
    uri = str(tmp_path / "m.parquet")
    digest = write_manifest(uri, rows(3), meta())
    with pytest.raises(RuntimeError), ManifestWriter(uri, meta()) as writer:
        writer.write(rows(1)[0])
        raise RuntimeError("stopped")
    assert read_manifest(uri).hash == digest
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]


def test_remote_storage(tmp_path) -> None:
    uri = "memory://manifests/m.parquet"
    digest = write_manifest(uri, rows(3), meta())
    assert read_manifest(uri).hash == digest


def test_conversion_updates_rows(tmp_path) -> None:
    before = read_manifest_of(tmp_path, rows(3))
    bad = "s0001"

    def update(row: Row) -> Row:
        if row.subject == bad:
            return replace(row, split="val", fold=1).excluded("damaged_data", "gzip CRC does not match")
        return replace(row.with_sha256({"T1w": "ab" * 32, "FLAIR": "cd" * 32}), split="train")

    uri = str(tmp_path / "converted.parquet")
    assert rewrite_manifest(before, uri, update, meta=replace(before.meta, stage="converted")) != before.hash
    after = read_manifest(uri)
    assert after.meta.stage == "converted"
    assert after.counts()["damaged_data"] == {"subjects": 1, "sessions": 1}
    by_subject = {row.subject: row for row in after.rows()}
    assert (by_subject[bad].split, by_subject[bad].fold, by_subject[bad].verdict) == ("", None, "excluded")
    assert by_subject[bad].scans[0].sha256 is None
    assert by_subject["s0000"].scans[0].sha256 == "ab" * 32


def read_manifest_of(tmp_path, made):
    uri = str(tmp_path / "m.parquet")
    write_manifest(uri, made, meta())
    return read_manifest(uri)


def _rewritten(tmp_path, *, metadata=None, edit=None) -> str:
    """A manifest whose Parquet file somebody wrote anew with other metadata or values."""
    manifest = read_manifest_of(tmp_path, rows(3))
    stored = dict(pq.read_schema(tmp_path / "m.parquet").metadata)
    stored.update(metadata(stored) if metadata else {})
    table = manifest.table
    if edit:
        table = edit(table)
    path = tmp_path / "edited.parquet"
    pq.write_table(table.replace_schema_metadata(stored), path)
    return str(path)


def test_other_version_is_refused_with_the_fix(tmp_path) -> None:
    def newer(stored):
        return {b"brainfoundry": json.dumps({**json.loads(stored[b"brainfoundry"]), "version": 2})}

    with pytest.raises(
        DataError, match=r"version 2; this code reads version 1 .*edited.parquet.*Fix: make the"
    ):
        read_manifest(_rewritten(tmp_path, metadata=newer))


def test_edited_manifest_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="changed after it was written"):
        read_manifest(_rewritten(tmp_path, edit=lambda table: table.slice(1)))


def test_other_columns_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="other columns"):
        read_manifest(_rewritten(tmp_path, edit=lambda table: table.drop_columns(["age"])))


def test_files_that_are_no_manifest_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no such manifest.*Fix"):
        read_manifest(str(tmp_path / "none.parquet"))
    (tmp_path / "junk.parquet").write_bytes(b"junk" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(str(tmp_path / "junk.parquet"))
    pq.write_table(SCHEMA.empty_table(), tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="not a cohort manifest"):
        read_manifest(str(tmp_path / "plain.parquet"))
    with pytest.raises(DataError, match="metadata cannot be read"):
        read_manifest(_rewritten(tmp_path, metadata=lambda stored: {b"brainfoundry": b"{"}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_whole(tmp_path, data) -> None:
    path = tmp_path / "m.parquet"
    digest = write_manifest(str(path), rows(3), meta())
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    try:
        assert read_manifest(str(path)).hash == digest  # a byte nobody reads
    except DataError as error:
        assert str(path) in error.line()


def test_folder_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"manifest cannot be written.*Fix"):
        write_manifest(str(tmp_path / "file" / "m.parquet"), rows(1), meta())


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "excluded"},
        {"reason": "duplicate"},
        {"verdict": "excluded", "reason": "bad luck"},
        {"split": "dev"},
    ],
)
def test_rows_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"verdict|unknown"):
        Row(subject="1", session="2", cohort="c", **wrong)
