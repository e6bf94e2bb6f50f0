"""The UK Biobank reader: every verdict, what it reads and what it leaves alone."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from brainfoundry.cohorts.exclusions import exclusion_table
from brainfoundry.cohorts.manifest import Row
from brainfoundry.cohorts.ukb import UKBRules, read_ukb, require_eligible
from brainfoundry.core.errors import ConfigError, DataError

from .builders import AFFINE, SHAPE, intake, nifti_gz, put_plain, put_subject, put_zip


def row_of(folder: Path, eid: str, rules: UKBRules | None = None) -> Row:
    return {row.subject: row for row in intake(folder, rules).rows()}[eid]


def test_a_whole_subject_is_included_with_its_identity(bulk) -> None:
    put_subject(bulk, 101)
    row = row_of(bulk, "101")
    assert (row.verdict, row.session, row.cohort, row.split) == ("included", "2", "ukb", "")
    t1w, flair = row.scans
    assert (t1w.modality, flair.modality) == ("T1w", "FLAIR")
    assert (t1w.shape, t1w.spacing, t1w.orientation, t1w.dtype) == (SHAPE, (1.0, 1.0, 1.0), "LAS", "int16")
    assert t1w.uri == str(bulk / "101_20252_2_0.zip") and t1w.member == "T1/T1_brain_to_MNI.nii.gz"
    assert flair.member == "T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz"
    with zipfile.ZipFile(t1w.uri) as archive:
        assert (t1w.size, t1w.crc32) == (len(archive.read(t1w.member)), archive.getinfo(t1w.member).CRC)
    assert t1w.mtime is None and t1w.sha256 is None


def test_unpacked_files_give_the_same_verdicts(bulk, tmp_path) -> None:
    put_subject(bulk / "deep" / "er", 101)
    put_zip(bulk, 102, "T1w")
    put_zip(bulk, 103, "T1w", nifti_gz((2, 2, 99)))
    put_zip(bulk, 103, "FLAIR", nifti_gz((2, 2, 99)))
    unpacked = tmp_path / "unpacked"
    for path in bulk.rglob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(unpacked / path.relative_to(bulk).with_suffix(""))
    zipped, plain = list(intake(bulk).rows()), list(intake(unpacked).rows())
    assert [(r.key, r.reason) for r in plain] == [(r.key, r.reason) for r in zipped]
    scan = plain[0].scans[0]
    path = unpacked / "deep" / "er" / "101_20252_2_0" / "T1" / "T1_brain_to_MNI.nii.gz"
    assert (scan.uri, scan.member, scan.crc32) == (str(path), "", None)
    assert (scan.size, scan.mtime) == (path.stat().st_size, pytest.approx(path.stat().st_mtime, abs=1e-5))


def test_remote_folder(bulk) -> None:
    import fsspec

    put_subject(bulk, 101)
    put_plain(bulk, 102, "T1w")
    memory = fsspec.filesystem("memory")
    memory.put(str(bulk), "/ukb-bulk", recursive=True)
    manifest = read_ukb("memory://ukb-bulk", "memory://ukb-out/manifest.parquet")
    rows = list(manifest.rows())
    assert [(r.subject, r.reason) for r in rows] == [("101", ""), ("102", "missing_modality")]
    for scan in (*rows[0].scans, *rows[1].scans):
        assert scan.uri.startswith("memory://") and memory.exists(scan.uri)


BAD = {
    "4D": (nifti_gz((2, 2, 100, 2)), "unsupported_image", "image is 4D"),
    "complex": (nifti_gz(dtype=np.complex64), "unsupported_image", "complex"),
    "zero-size": (nifti_gz((0, 2, 100)), "unsupported_image", "no voxels"),
    "html": (gzip.compress(b"<html>" * 100), "not_nifti", "not a NIfTI file"),
    "not gzip": (b"\0" * 400, "not_nifti", "does not begin as gzip"),
    "empty": (b"", "not_nifti", "empty"),
    "gzip cut in the header": (nifti_gz()[:60], "unreadable_archive", "ends within its first bytes"),
    "gzip damaged in the header": (nifti_gz()[:10] + b"\xff" * 300, "unreadable_archive", "damaged within"),
    "gzip cut, too short for the volume": (
        gzip.compress(nibabel.Nifti1Image(np.zeros((99, 99, 200), "f4"), AFFINE).to_bytes()[:400]),
        "unreadable_archive",
        "too short for its 99x99x200 float32 volume",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("modality", ["T1w", "FLAIR"])
def test_bad_images_cost_one_row_and_say_why(bulk, name, modality) -> None:
    data, reason, words = BAD[name]
    put_subject(bulk, 100)
    put_subject(bulk, 101)
    path = put_zip(bulk, 101, modality, data)
    put_plain(bulk, 102, modality, data)
    put_zip(bulk, 102, "FLAIR" if modality == "T1w" else "T1w")
    rows = {row.subject: row for row in intake(bulk).rows()}
    assert rows["100"].included
    assert rows["101"].reason == rows["102"].reason == reason
    assert words in rows["101"].detail and words in rows["102"].detail
    assert rows["101"].detail.startswith(f"{modality}: ") and str(path) in rows["101"].detail
    assert len(rows["101"].scans) == 1


def test_zip_trouble_is_named(bulk) -> None:
    for eid in range(201, 207):
        put_subject(bulk, eid)
    cut = bulk / "201_20252_2_0.zip"
    cut.write_bytes(cut.read_bytes()[:-30])
    (bulk / "202_20252_2_0.zip").write_bytes(b"")
    (bulk / "203_20252_2_0.zip").write_bytes(b"an error page, not a zip" * 10)
    put_zip(bulk, 204, "T1w", member="T1/unusable/T1.nii.gz")
    cut = bulk / "205_20252_2_0.zip"  # bytes lost in the middle: the directory is whole, offsets are not
    whole = cut.read_bytes()
    cut.write_bytes(whole[:200] + whole[-200:])
    (bulk / "206_20252_2_0.zip").unlink()
    (bulk / "206_20252_2_0.zip").mkdir()
    rows = {row.subject: row for row in intake(bulk).rows()}
    told = {eid: (row.reason, row.detail) for eid, row in rows.items()}
    assert (
        told["201"][0] == "unreadable_archive" and "zip is cut short: it has no directory" in told["201"][1]
    )
    assert told["202"][0] == "unreadable_archive" and "zip is empty (0 bytes)" in told["202"][1]
    assert told["203"][0] == "unreadable_archive" and "not a zip" in told["203"][1]
    assert told["204"][0] == "missing_modality"
    assert "archive holds no T1/T1_brain_to_MNI.nii.gz (it holds 2 other files)" in told["204"][1]
    assert told["205"][0] == told["206"][0] == "unreadable_archive"
    assert all("Fix: deliver it again" in told[eid][1] for eid in ("201", "202", "203", "205", "206"))


def test_missing_modality_depends_on_what_is_asked_for(bulk) -> None:
    put_zip(bulk, 101, "T1w")
    put_zip(bulk, 102, "FLAIR")
    put_subject(bulk, 103)
    both = {row.subject: row for row in intake(bulk).rows()}
    assert [both[e].reason for e in ("101", "102", "103")] == ["missing_modality", "missing_modality", ""]
    assert both["101"].detail == "FLAIR: no file of field 20253 (T2 FLAIR structural brain images - NIFTI)"
    t1w = list(intake(bulk, UKBRules(modalities=("T1w",))).rows())
    assert [(r.subject, r.included) for r in t1w] == [("101", True), ("103", True)]
    flair_first = intake(bulk, UKBRules(modalities=("FLAIR", "T1w")))
    assert [s.modality for s in list(flair_first.rows())[-1].scans] == ["FLAIR", "T1w"]
    assert flair_first.meta.modalities == ("FLAIR", "T1w")


def test_duplicates(bulk) -> None:
    put_subject(bulk, 101)
    put_zip(bulk / "again", 101, "T1w")
    put_subject(bulk, 102)
    put_plain(bulk, 102, "FLAIR")
    put_subject(bulk, 103)
    put_zip(bulk, 103, "T1w", nifti_gz(dtype=np.uint8), array=1)
    put_subject(bulk, 104)
    put_zip(bulk, 104, "T1w", instance=3)
    rows = {row.subject: row for row in intake(bulk).rows()}
    assert [rows[e].reason for e in ("101", "102", "103", "104")] == ["duplicate"] * 3 + [""]
    assert "delivered 2 times, of equal size" in rows["101"].detail
    assert str(bulk / "again" / "101_20252_2_0.zip") in rows["101"].detail
    assert "which differ" in rows["103"].detail and "Fix: keep one of them" in rows["103"].detail
    assert len(rows["102"].scans) == 3


@pytest.mark.parametrize("shift", [0.0, 0.0005, 0.01, 2.0])
def test_grids_must_agree_within_the_tolerance(bulk, shift) -> None:
    moved = AFFINE.copy()
    moved[1, 3] = shift
    put_zip(bulk, 101, "T1w")
    put_zip(bulk, 101, "FLAIR", nifti_gz(affine=moved))
    row = row_of(bulk, "101")
    assert row.reason == ("grid_mismatch" if shift > 1e-3 else "")
    if row.reason:
        assert f"their affines differ by up to {shift:.3g} mm" in row.detail
    assert row_of(bulk, "101", UKBRules(grid_tolerance_mm=3.0)).included
    assert row_of(bulk, "101", UKBRules(modalities=("FLAIR",))).included


def test_shapes_must_agree(bulk) -> None:
    put_zip(bulk, 101, "T1w")
    put_zip(bulk, 101, "FLAIR", nifti_gz((2, 3, 100)))
    row = row_of(bulk, "101")
    assert row.reason == "grid_mismatch" and "2x2x100 and 2x3x100 voxels" in row.detail


def test_header_slice_rule_and_what_the_report_says_of_it(bulk) -> None:
    for eid, slices in ((101, 99), (102, 100), (103, 20)):
        put_subject(bulk, eid, data=nifti_gz((2, 2, slices)))
    put_subject(bulk, 104, data=nifti_gz((182, 218, 182), dtype=np.uint8, fill=1))
    manifest = intake(bulk)
    rows = {row.subject: row for row in manifest.rows()}
    assert [rows[str(e)].reason for e in (101, 102, 103, 104)] == [
        "too_few_slices_header", "", "too_few_slices_header", "",
    ]  # fmt: skip
    assert "99 slices on the third axis, fewer than 100" in rows["101"].detail
    (note,) = manifest.meta.notes
    assert "1 of the 4 sessions" in note and "182x218x182 grid, where it can exclude nobody" in note
    assert "it excluded 2 of the other 3" in note
    assert manifest.meta.rules["min_slices_header"] == 100
    assert row_of(bulk, "103", UKBRules(min_slices=20)).included
    strict = intake(bulk, UKBRules(min_slices=183))
    assert "where it excludes everybody; it excluded 4 in all" in strict.meta.notes[0]


def test_instances_are_sessions_of_one_subject(bulk) -> None:
    put_subject(bulk, 101)
    put_subject(bulk, 101, instance=3)
    put_subject(bulk, 102, instance=3)
    first = intake(bulk)
    assert [row.key for row in first.rows()] == [("101", "2")]
    assert "4 of instance 3" in first.meta.notes[-1]
    both = intake(bulk, UKBRules(instances=(2, 3)))
    assert [row.key for row in both.rows()] == [("101", "2"), ("101", "3"), ("102", "3")]
    assert both.counts()["included"] == {"subjects": 2, "sessions": 3}
    assert len(both.meta.notes) == 1
    with pytest.raises(
        DataError, match=r"no UK Biobank scan of instance 4 found: only those of instance 2, 3"
    ):
        intake(bulk, UKBRules(instances=(4,)))


def test_the_first_reason_counts_and_all_are_told(bulk) -> None:
    put_zip(bulk, 101, "T1w", nifti_gz((2, 2, 100, 2)))
    put_subject(bulk, 102, data=nifti_gz((2, 2, 50)))
    put_zip(bulk, 102, "FLAIR", nifti_gz((2, 3, 50)))
    rows = {row.subject: row for row in intake(bulk).rows()}
    assert rows["101"].reason == "missing_modality"
    assert rows["101"].detail.startswith("FLAIR: no file") and "; T1w: image is 4D" in rows["101"].detail
    assert rows["102"].reason == "grid_mismatch" and "50 slices" in rows["102"].detail


def test_other_files_are_left_alone(bulk) -> None:
    put_subject(bulk, 101)
    for name in ("notes.zip", "101_20252_2_0.zip.part", "101_20252_2.zip", "101_20227_2_0.zip", "x.txt"):
        (bulk / name).write_bytes(b"junk")
    inner = bulk / "101_20227_2_0" / "102_20252_2_0.zip"  # inside a bulk folder of another field: not entered
    inner.parent.mkdir()
    inner.write_bytes(b"junk")
    (bulk / "circle").symlink_to(bulk)
    manifest = intake(bulk)
    assert [(row.subject, row.included) for row in manifest.rows()] == [("101", True)]


def test_folders_without_anything_to_read_are_refused(bulk) -> None:
    with pytest.raises(DataError, match=r"no such folder.*nowhere.*Fix: give the folder"):
        intake(bulk / "nowhere")
    with pytest.raises(
        DataError, match=r"no bulk file at all.*Fix: give the folder that holds EID_20252_2_0.zip"
    ):
        intake(bulk)
    (bulk / "101_20227_2_0.zip").write_bytes(b"")
    with pytest.raises(DataError, match="only fields 20227"):
        intake(bulk)
    assert not (bulk.parent / "manifest.parquet").exists()


def test_nobody_eligible(bulk) -> None:
    put_zip(bulk, 101, "T1w")
    put_zip(bulk, 102, "T1w")
    put_subject(bulk, 103, data=nifti_gz((2, 2, 5)))
    manifest = intake(bulk)
    with pytest.raises(
        DataError, match=r"all 3 sessions are excluded, 2 because a requested modality is missing"
    ):
        require_eligible(manifest)
    put_subject(bulk, 104)
    require_eligible(intake(bulk))


def test_participants_join_the_rows(bulk, tmp_path) -> None:
    table = tmp_path / "participants.tsv"
    table.write_text("eid\t21003-2.0\t31-0.0\t54-2.0\n101\t61\t1\t11025\n")
    put_subject(bulk, 101)
    put_subject(bulk, 102)
    manifest = intake(bulk, participants=str(table))
    one, two = manifest.rows()
    assert (one.age, one.sex, one.site) == (61.0, "M", "11025")
    assert (two.age, two.sex, two.site) == (None, None, None)
    assert manifest.meta.notes[-1].startswith("1 sessions are of subjects whom the participants table")
    table.write_text("eid\tage\n102\told\n")
    with pytest.raises(DataError, match="subject 102"):
        intake(bulk, participants=str(table))


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"modalities": ("T1w", "T2w")}, "unknown modality 'T2w'.*Fix: choose of T1w, FLAIR"),
        ({"modalities": ()}, "modalities is empty"),
        ({"modalities": ("T1w", "T1w")}, "repeats one"),
        ({"instances": ()}, "instances is empty"),
        ({"instances": (-1,)}, "cannot be negative"),
    ],
)
def test_rules_that_make_no_sense(rules, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        UKBRules(**rules)


def test_manifest_does_not_depend_on_threads_or_batches(bulk) -> None:
    for eid in range(300, 320):
        put_subject(bulk, eid)
    (bulk / "305_20252_2_0.zip").write_bytes(b"PK")
    hashes = {
        intake(bulk, threads=threads, batch=batch).hash for threads, batch in ((1, 1), (4, 7), (16, 256))
    }
    assert len(hashes) == 1
    assert exclusion_table(intake(bulk).counts())[-1].sessions == 19


def test_real_scans_in_bulk_zips(bulk) -> None:
    folder = Path(__file__).resolve().parents[2] / ".." / "shared" / "scans" / "lesion" / "ms-patient19"
    if not folder.is_dir():
        pytest.skip("no real scans beside this checkout (../shared/scans)")
    for modality in ("T1w", "FLAIR"):
        put_zip(bulk, 9990001, modality, (folder / f"ms-patient19_{modality}.nii.gz").read_bytes())
    manifest = intake(bulk)
    (row,) = manifest.rows()
    assert row.included and [scan.modality for scan in row.scans] == ["T1w", "FLAIR"]
    for scan in row.scans:
        assert (scan.shape, scan.orientation, scan.dtype) == ((182, 218, 182), "LAS", "float32")
    assert "it excluded 0 of the other 0" in manifest.meta.notes[0]
