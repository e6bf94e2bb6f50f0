"""A modality that a session came without, in the store: empty, marked, and not restorable."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.cohorts.manifest import Manifest, read_manifest, write_manifest
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline, plan_shards
from brainfoundry.store.meta import shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec, ShardTask
from brainfoundry.store.withdraw import withdraw
from tests.store.builders import SHAPE, brain, intake, nifti, put

FULL, NO_FLAIR, NO_T1 = "9900001", "9900002", "9900003"
SPEC = ConvertSpec(min_slices=10, rows_per_shard=2)
T1, FLAIR = 0, 1


def cohort(folder: Path) -> Manifest:
    """One participant with both scans, one with only a T1w, one with only a FLAIR (of floats)."""
    put(folder, int(FULL), {"T1w": nifti(brain(1)), "FLAIR": nifti(brain(2, top=700))})
    put(folder, int(NO_FLAIR), {"T1w": nifti(brain(3))})
    put(folder, int(NO_T1), {"FLAIR": nifti(brain(4, dtype="float32") * np.float32(0.37))})
    return intake(folder, optional=("T1w", "FLAIR"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, ShardSet]:
    folder = tmp_path_factory.mktemp("absent")
    manifest = cohort(folder / "ukb")
    convert(manifest, str(folder / "out"), SPEC, executor=inline)
    return manifest, ShardSet.open(str(folder / "out"))


def place(shards: ShardSet, subject: str) -> dict:
    return next(row for row in shards.index.to_pylist() if row["subject"] == subject)


def test_the_index_says_which_scans_are_there(made: tuple[Manifest, ShardSet]) -> None:
    _, shards = made
    assert [[(s["modality"], s["present"]) for s in row["scans"]] for row in shards.index.to_pylist()] == [
        [("T1w", True), ("FLAIR", True)],
        [("T1w", True), ("FLAIR", False)],
        [("T1w", False), ("FLAIR", True)],
    ]
    nothing = place(shards, NO_FLAIR)["scans"][FLAIR]
    assert (nothing["slope"], nothing["inter"], nothing["zero_code"]) == (1.0, 0.0, 0.0)
    assert (nothing["mean"], nothing["sd"], nothing["nonzero"]) == (0.0, 0.0, 0)
    assert shards.verify() == []
    there = {(r["subject"], r["modality"]) for r in shards.fingerprints().to_pylist()}
    assert there == {(FULL, "T1w"), (FULL, "FLAIR"), (NO_FLAIR, "T1w"), (NO_T1, "FLAIR")}
    rows = {row.subject: row for row in read_manifest(f"{shards.uri}/manifest.parquet").rows()}
    assert [scan.modality for scan in rows[NO_FLAIR].scans] == ["T1w"]
    assert all(scan.sha256 for row in rows.values() for scan in row.scans)


def test_box_and_slices_are_those_of_the_scans_that_are_there(made: tuple[Manifest, ShardSet]) -> None:
    _, shards = made
    for subject, volume in ((NO_FLAIR, brain(3)), (NO_T1, brain(4))):
        row, shown = place(shards, subject), volume[::-1] != 0  # the file's x runs to the left
        ends = [np.flatnonzero(shown.any(axis=axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))]
        assert [row["box_lo"], row["box_hi"]] == [[a for a, _ in ends], [b + 1 for _, b in ends]]
        assert row["slices"] == np.count_nonzero(shown.any(axis=(0, 1)))


def test_an_absent_modality_reads_as_zeros_and_takes_no_bytes(made: tuple[Manifest, ShardSet]) -> None:
    _, shards = made
    row = place(shards, NO_FLAIR)
    codes = shards.read_crop(row["shard"], row["row"], (-3, 2, 5), (40, 40, 40))
    assert codes[T1].any() and not codes[FLAIR].any()
    assert not shards.read_volume(row["shard"], row["row"], "FLAIR").any()
    assert np.array_equal(shards.read_volume(row["shard"], row["row"], "T1w"), brain(3)[::-1])
    assert row["length"] < 0.6 * place(shards, FULL)["length"]


def test_what_is_there_restores_and_what_is_not_is_one_clear_error(made: tuple[Manifest, ShardSet]) -> None:
    _, shards = made
    row = place(shards, NO_FLAIR)
    data = shards.nifti_bytes(row["shard"], row["row"], "T1w")
    assert hashlib.sha256(data).digest() == hashlib.sha256(nifti(brain(3))).digest()
    with pytest.raises(DataError, match="session came without FLAIR: there is no file to restore") as caught:
        shards.to_nifti(row["shard"], row["row"], "FLAIR")
    assert caught.value.subject == NO_FLAIR and caught.value.file and "present" in (caught.value.fix or "")


@pytest.mark.parametrize("options", [{"spacing_mm": 2.0, "min_slices": 5}, {"float_mode": "lossless"}])
def test_other_ways_of_storing(tmp_path: Path, options: dict) -> None:
    out = str(tmp_path / "out")
    convert(cohort(tmp_path / "ukb"), out, replace(SPEC, **options), executor=inline)
    shards = ShardSet.open(out)
    row = place(shards, NO_T1)
    codes = shards.read_crop(row["shard"], row["row"], (0, 0, 0), row["shape"])
    assert codes.dtype == shards.dtype and not codes[T1].any() and codes[FLAIR].any()
    with pytest.raises(DataError, match="session came without T1w"):
        shards.nifti_bytes(row["shard"], row["row"], "T1w")
    assert shards.verify() == []


def test_a_set_without_optional_ones_is_unchanged(tmp_path: Path) -> None:
    put(tmp_path / "ukb", int(FULL), {"T1w": nifti(brain(1)), "FLAIR": nifti(brain(2, top=700))})
    found = []
    for optional in ((), ("FLAIR",)):
        manifest = intake(tmp_path / "ukb", optional=optional)
        out = tmp_path / f"out{len(optional)}"
        convert(manifest, str(out), SPEC, executor=inline)
        row = ShardSet.open(str(out)).index.to_pylist()[0]
        assert all(scan["present"] for scan in row["scans"])
        found.append((row, Path(shard_uri(str(out), 0)).read_bytes()))
    assert found[0] == found[1]


def test_what_a_session_may_lack_goes_with_the_task(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "ukb")
    task = plan_shards(manifest, "", SPEC)[0]
    assert task.optional == ("T1w", "FLAIR") and ShardTask.from_json(task.to_json()) == task
    assert replace(task, optional=()).hash() != task.hash()


def test_a_manifest_that_lacks_a_scan_without_leave_costs_one_row(tmp_path: Path) -> None:
    manifest = cohort(tmp_path / "ukb")
    uri = str(tmp_path / "strict.parquet")
    write_manifest(uri, manifest.rows(), replace(manifest.meta, rules={"optional_modalities": ["FLAIR"]}))
    done = convert(read_manifest(uri), str(tmp_path / "out"), SPEC, executor=inline)
    rows = {row.subject: row for row in done.manifest.rows()}
    assert [rows[s].reason for s in (FULL, NO_FLAIR, NO_T1)] == ["", "", "missing_modality"]
    assert rows[NO_T1].detail.startswith("the manifest names no scan of T1w. Fix: ")


def test_withdrawal_keeps_the_others_marks(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    convert(cohort(tmp_path / "ukb"), out, SPEC, executor=inline)
    withdraw(out, [FULL])
    shards = ShardSet.open(out)
    row = place(shards, NO_FLAIR)
    assert [scan["present"] for scan in row["scans"]] == [True, False] and shards.verify() == []
    assert shards.read_crop(row["shard"], row["row"], (0, 0, 0), SHAPE)[T1].any()
