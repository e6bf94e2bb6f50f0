"""Converting a manifest: counts, bad volumes, splits, resuming, refusing; on Ray and without."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.cohorts.manifest import Manifest, assign_split, read_manifest
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.store.convert import convert, inline, on_ray, plan_shards
from brainfoundry.store.estimate import estimate
from brainfoundry.store.meta import manifest_uri, meta_uri, report_uri, shard_uri, sidecar_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec, ShardTask, convert_shard
from brainfoundry.store.source import load_scan
from tests.store.builders import brain, intake, nifti, put

SPEC = ConvertSpec(min_slices=10, rows_per_shard=2, n_val=1, seed=3)
ROOT = Path(__file__).parents[2]


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def bad_cohort(folder: Path) -> Manifest:
    """Five good sessions and one of each kind that only the voxels give away."""
    for eid in range(9_900_001, 9_900_006):
        put(folder, eid, {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500))})
    thin = brain(1)
    thin[:, :, 6:] = 0
    nan = brain(2).astype(np.float32)
    nan[20, 20, 20] = np.nan
    put(folder, 9_900_006, {"T1w": nifti(thin), "FLAIR": nifti(thin)})
    put(folder, 9_900_007, {"T1w": nifti(brain(2)), "FLAIR": nifti(nan)})
    put(folder, 9_900_008, {"T1w": nifti(np.zeros_like(thin)), "FLAIR": nifti(brain(1))})
    put(folder, 9_900_009, {"T1w": nifti(brain(3)), "FLAIR": nifti(brain(4))})
    damage_gzip(folder / "9900009_20253_2_0.zip")
    return intake(folder)


def damage_gzip(path: Path) -> None:
    """Damage in the middle of the gzip stream, in a zip whose own checksum fits the damage."""
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
        data = bytearray(archive.read(name))
    data[len(data) // 2] ^= 0xFF
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, bytes(data))


def assert_bad_cohort(folder: Path, out: Path) -> None:
    manifest = read_manifest(manifest_uri(str(out)))
    reasons = {row.subject: row.reason for row in manifest.rows()}
    assert [reasons[str(eid)] for eid in range(9_900_001, 9_900_010)] == [
        *[""] * 5, "too_few_slices_content", "not_finite", "empty_volume", "damaged_data",
    ]  # fmt: skip
    assert manifest.meta.stage == "converted" and manifest.counts()["included"]["sessions"] == 5
    for row in manifest.rows():
        assert row.split == ("" if row.reason else "val" if row.subject in held_out(manifest) else "train")
        for scan in row.scans:
            if row.included:
                with zipfile.ZipFile(scan.uri) as archive:
                    raw = __import__("gzip").decompress(archive.read(scan.member))
                assert scan.sha256 == hashlib.sha256(raw).hexdigest()
    report = json.loads((out / "report.json").read_text())
    lines = {b["subject"]: b for b in report["bad_volumes"]}
    assert sorted(lines) == ["9900006", "9900007", "9900008", "9900009"]
    assert "9900009_20253_2_0.zip:T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz" in lines["9900009"]["detail"]
    assert "Fix: deliver it again" in lines["9900009"]["detail"]
    counts = {line["reason"]: line["sessions"] for line in report["counts"]}
    assert counts["assessed"] == 9 == counts["included"] + 4 and counts["not_finite"] == 1
    shards = ShardSet.open(str(out))
    assert shards.verify() == [] and shards.meta.manifest_hash == manifest.hash
    assert shards.meta.counts["included"] == {"subjects": 5, "sessions": 5}
    for row in shards.index.to_pylist():
        for name in shards.meta.modalities:
            scan = next(
                s
                for r in manifest.rows()
                if r.subject == row["subject"]
                for s in r.scans
                if s.modality == name
            )
            restored = shards.nifti_bytes(row["shard"], row["row"], name)
            assert hashlib.sha256(restored).hexdigest() == scan.sha256
        assert row["split"] == next(r.split for r in manifest.rows() if r.subject == row["subject"])


def held_out(manifest: Manifest) -> set[str]:
    split = assign_split({r.subject for r in manifest.rows() if r.included}, SPEC.n_val, SPEC.seed)
    return {subject for subject, name in split.items() if name == "val"}


def test_a_bad_volume_costs_one_row(tmp_path: Path) -> None:
    convert(bad_cohort(tmp_path / "ukb"), str(tmp_path / "out"), SPEC, executor=inline)
    assert_bad_cohort(tmp_path / "ukb", tmp_path / "out")


def test_ray_makes_the_same_files(tmp_path: Path, ray_local: int) -> None:
    manifest = bad_cohort(tmp_path / "ukb")
    done = convert(manifest, str(tmp_path / "ray"), SPEC, executor=on_ray(2))
    assert_bad_cohort(tmp_path / "ukb", tmp_path / "ray")
    convert(manifest, str(tmp_path / "inline"), SPEC, executor=inline)
    ours, ray = tree(tmp_path / "inline"), tree(tmp_path / "ray")
    for name in ours:
        if "shards/" in name and name.endswith(".json"):  # holds the folder nowhere: equal too
            assert (tmp_path / "inline" / name).read_text() == (tmp_path / "ray" / name).read_text()
    assert ours == ray
    assert done.rows_skipped == 0 and done.shard_bytes > 0


def test_a_storage_error_on_ray_is_one_line(
    cohort: Callable[[int], Manifest], tmp_path: Path, ray_local: int
) -> None:
    (tmp_path / "out" / "shards").mkdir(parents=True)
    (tmp_path / "out" / "convert.json").write_text("{}")
    with pytest.raises(DataError, match=r"another version|another spec"):
        convert(cohort(2), str(tmp_path / "out"), SPEC, executor=on_ray())
    tasks = plan_shards(cohort(2), "/proc/nowhere", SPEC)
    with pytest.raises(
        DataError, match=r"^shard cannot be written: .*shard-00000\.arrow\]\. Fix: free space"
    ):
        list(on_ray()(tasks))


def test_float_modes_say_what_they_promise(tmp_path: Path) -> None:
    data = {"T1w": nifti(brain(1) * np.float32(0.37)), "FLAIR": nifti(brain(2))}
    put(tmp_path / "ukb", 9_900_001, data)
    manifest = intake(tmp_path / "ukb")
    spec = replace(SPEC, n_val=0)
    q = convert(manifest, str(tmp_path / "q"), spec, executor=inline).meta
    exact = convert(manifest, str(tmp_path / "e"), replace(spec, float_mode="lossless"), executor=inline).meta
    assert (q.code_dtype, exact.code_dtype) == ("int16", "float32")
    assert q.bound == "abs(restored - source) <= (max - min) / 131070 for every voxel of every quantised scan"
    assert exact.bound == "restored = source, bit for bit"
    scan = ShardSet.open(str(tmp_path / "q")).index["scans"][0].as_py()[0]
    span = float((brain(1) * np.float32(0.37)).max())
    assert scan["coding"] == "affine" and scan["error_bound"] == pytest.approx(span / 131_070)
    assert 0 < scan["max_error"] <= scan["error_bound"]
    assert ShardSet.open(str(tmp_path / "e")).nifti_bytes(0, 0, "T1w") == data["T1w"]


def test_header_rule_counts_but_keeps(tmp_path: Path) -> None:
    thin = brain(1)
    thin[:, :, 6:] = 0
    put(tmp_path / "ukb", 9_900_001, {"T1w": nifti(thin), "FLAIR": nifti(thin)})
    manifest = intake(tmp_path / "ukb")
    done = convert(
        manifest, str(tmp_path / "out"), ConvertSpec(min_slices=10, slice_rule="header"), executor=inline
    )
    assert done.meta.rows == 1
    report = json.loads(Path(report_uri(str(tmp_path / "out"))).read_text())
    assert report["content_rule"] == {"min_slices": 10, "applied": False, "below": 1}
    assert "it would exclude 1 sessions" in done.manifest.meta.notes[-1]
    with pytest.raises(
        DataError, match=r"no eligible subject is left after reading the voxels.*axial slices"
    ):
        convert(manifest, str(tmp_path / "none"), ConvertSpec(min_slices=10), executor=inline)
    assert not Path(meta_uri(str(tmp_path / "none"))).exists()


def test_visits_of_a_subject_stay_in_one_split(tmp_path: Path) -> None:
    for eid in range(9_900_001, 9_900_005):
        for instance in (2, 3):
            scans = {"T1w": nifti(brain(eid + instance)), "FLAIR": nifti(brain(eid))}
            put(tmp_path / "ukb", eid, scans, instance)
    manifest = intake(tmp_path / "ukb", instances=(2, 3))
    convert(manifest, str(tmp_path / "out"), replace(SPEC, n_val=0, val_fraction=0.25), executor=inline)
    rows = ShardSet.open(str(tmp_path / "out")).index.to_pylist()
    assert sorted(r["split"] for r in rows) == ["train"] * 6 + ["val"] * 2
    assert len({r["subject"] for r in rows if r["split"] == "val"}) == 1


def test_an_interrupted_conversion_resumes(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    manifest, out = cohort(5), tmp_path / "out"

    def stop_after_one(tasks: Sequence[ShardTask]) -> Iterator[int]:
        convert_shard(tasks[0])
        yield 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(manifest, str(out), SPEC, executor=stop_after_one)
    assert not (out / "shardset.json").exists()
    with pytest.raises(DataError, match="did not finish"):
        ShardSet.open(str(out))
    first = Path(shard_uri(str(out), 0))
    made = first.stat().st_mtime_ns
    (out / "shards" / ".shard-00001.arrow.dead0000.tmp").write_bytes(b"half")
    # a shard whose summary never came, and one that lost its end after it was made
    Path(shard_uri(str(out), 2)).write_bytes(b"half")
    done = convert(manifest, str(out), SPEC, executor=inline)
    assert done.rows_skipped == 2 and first.stat().st_mtime_ns == made
    convert(manifest, str(tmp_path / "straight"), SPEC, executor=inline)
    assert tree(out) == tree(tmp_path / "straight")


def test_a_shard_that_lost_its_end_is_made_again(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    manifest, out = cohort(3), tmp_path / "out"
    convert(manifest, str(out), SPEC, executor=inline)
    before = tree(out)
    path = Path(shard_uri(str(out), 1))
    path.write_bytes(path.read_bytes()[:-100])
    (out / "shardset.json").unlink()
    assert convert(manifest, str(out), SPEC, executor=inline).rows_skipped == 2
    assert tree(out) == before


def test_a_finished_set_is_left_alone_and_another_refused(
    cohort: Callable[[int], Manifest], tmp_path: Path
) -> None:
    manifest, out = cohort(3), str(tmp_path / "out")
    convert(manifest, out, SPEC, executor=inline)
    before = tree(tmp_path / "out")
    assert convert(manifest, out, SPEC, executor=inline).rows_skipped == 3
    other = (
        r"holds a shard set of another spec \(spacing_mm None instead of 2\.0\).*Fix: choose another folder"
    )
    with pytest.raises(DataError, match=other):
        convert(manifest, out, replace(SPEC, spacing_mm=2.0), executor=inline)
    with pytest.raises(DataError, match=r"finished shard set of another spec \(seed 3 instead of 4\)"):
        convert(manifest, out, replace(SPEC, seed=4), executor=inline)
    with pytest.raises(DataError, match="another intake manifest"):
        convert(cohort(4), out, SPEC, executor=inline)
    assert tree(tmp_path / "out") == before


def test_settings_out_of_range(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    for bad, words in (
        ({"spacing_mm": 0.0}, "spacing_mm"), ({"rows_per_shard": 0}, "rows_per_shard"),
        ({"float_mode": "half"}, "float_mode"), ({"n_val": 2, "val_fraction": 0.1}, "give one of them"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            ConvertSpec(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot hold out 3 of 3 subjects"):
        convert(cohort(3), str(tmp_path / "out"), replace(SPEC, n_val=3), executor=inline)
    assert not (tmp_path / "out").exists()


def test_files_that_changed_since_the_intake(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    manifest = cohort(2)
    put(tmp_path / "ukb", 9_900_002, {"T1w": nifti(brain(77))})
    (tmp_path / "ukb" / "9900001_20253_2_0.zip").unlink()
    with pytest.raises(DataError, match="no eligible subject is left"):
        convert(manifest, str(tmp_path / "out"), replace(SPEC, n_val=0), executor=inline)
    outcomes = files.read_json(sidecar_uri(str(tmp_path / "out"), 0))["outcomes"]
    assert [o["reason"] for o in outcomes] == ["damaged_data"] * 2
    assert (
        "gone since the intake" in outcomes[0]["detail"]
        and "changed since the intake" in outcomes[1]["detail"]
    )


def test_unpacked_files(tmp_path: Path) -> None:
    for name, field in (("T1w", "20252"), ("FLAIR", "20253")):
        put(tmp_path / "zips", 9_900_001, {name: nifti(brain(1))})
        with zipfile.ZipFile(tmp_path / "zips" / f"9900001_{field}_2_0.zip") as archive:
            archive.extractall(tmp_path / "ukb" / f"9900001_{field}_2_0")
    manifest = intake(tmp_path / "ukb")
    (row,) = manifest.rows()
    assert (load_scan(row.scans[0], row.subject).raw_XYZ == brain(1)[::-1]).all()
    convert(manifest, str(tmp_path / "out"), replace(SPEC, n_val=0), executor=inline)
    assert ShardSet.open(str(tmp_path / "out")).nifti_bytes(0, 0, "FLAIR") == nifti(brain(1))


def test_resampled_set(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    meta = convert(cohort(2), str(tmp_path / "out"), replace(SPEC, spacing_mm=2.0), executor=inline).meta
    shards = ShardSet.open(str(tmp_path / "out"))
    row = shards.index.to_pylist()[0]
    assert meta.spacing_mm == 2.0 and row["spacing"] == [2.0] * 3 and row["shape"] == [20, 22, 19]
    assert row["slices"] > 30  # counted on the files' own grid
    np.testing.assert_allclose(np.diag(shards.affine(0, 0))[:3], 2.0)
    with pytest.raises(DataError, match="was resampled"):
        shards.to_nifti(0, 0, "T1w")


def test_estimate_is_of_what_conversion_makes(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    manifest = cohort(4)
    found = estimate(manifest, SPEC, samples=2)
    done = convert(manifest, str(tmp_path / "out"), SPEC, executor=inline)
    assert (found.sessions, found.sampled, found.unusable) == (4, 2, 0)
    assert found.source_bytes == done.source_bytes and found.cpu_seconds > 0
    assert found.shard_bytes == pytest.approx(done.shard_bytes, rel=0.1)


_KILLED = """
import sys, time
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.store import shard_task
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.shard_task import ConvertSpec
slow = shard_task.convert_row
def convert_row(task, row):
    print("row", row.subject, flush=True)
    time.sleep(0.05)
    return slow(task, row)
shard_task.convert_row = convert_row
spec = ConvertSpec(min_slices=10, rows_per_shard=2, n_val=1, seed=3)
convert(read_manifest(sys.argv[1]), sys.argv[2], spec, executor=inline)
"""


@pytest.mark.slow
def test_a_killed_conversion_resumes(cohort: Callable[[int], Manifest], tmp_path: Path) -> None:
    manifest = cohort(8)
    intake_file, out = tmp_path / "ukb" / "intake.parquet", tmp_path / "out"
    for rows_before_kill in (2, 3, 2):  # of what is left: within a shard, then in the next one
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(intake_file), str(out)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith("row")
            if seen >= rows_before_kill:
                break
        time.sleep(0.06)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "shardset.json").exists()
        for path in (out / "shards").glob("shard-*.json"):  # whatever is committed is whole
            assert path.with_suffix(".arrow").stat().st_size == json.loads(path.read_text())["size"]
    done = convert(manifest, str(out), SPEC, executor=inline)
    assert done.rows_skipped >= 2
    convert(manifest, str(tmp_path / "straight"), SPEC, executor=inline)
    assert tree(out) == tree(tmp_path / "straight")
