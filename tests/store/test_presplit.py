"""Splits and folds made before conversion: the manifest's are kept, and travel to index and fingerprints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import Manifest, Row, read_manifest, rewrite_manifest
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec

SPEC = ConvertSpec(min_slices=10, rows_per_shard=2, n_val=2, seed=3)
Cohort = Callable[[int], Manifest]


def placed(manifest: Manifest, folder: Path, place: Callable[[Row], tuple[str, int | None]]) -> Manifest:
    where = str(folder / "placed.parquet")
    rewrite_manifest(manifest, where, lambda row: replace(row, split=place(row)[0], fold=place(row)[1]))
    return read_manifest(where)


def test_the_manifests_split_is_kept(cohort: Cohort, tmp_path: Path) -> None:
    places: dict[str, tuple[str, int | None]] = {
        "9900001": ("train", 0), "9900002": ("test", None), "9900003": ("train", 1), "9900004": ("", None),
    }  # fmt: skip
    manifest = placed(cohort(4), tmp_path, lambda row: places[row.subject])
    done = convert(manifest, str(tmp_path / "out"), SPEC, executor=inline)
    assert {r.subject: (r.split, r.fold) for r in done.manifest.rows()} == places
    shards = ShardSet.open(str(tmp_path / "out"))
    for table in (shards.index, shards.fingerprints()):
        assert {r["subject"]: (r["split"], r["fold"]) for r in table.to_pylist()} == places


def test_folds_alone_leave_the_split_to_the_conversion(cohort: Cohort, tmp_path: Path) -> None:
    manifest = placed(cohort(4), tmp_path, lambda row: ("", int(row.subject) % 2))
    convert(manifest, str(tmp_path / "out"), SPEC, executor=inline)
    rows = ShardSet.open(str(tmp_path / "out")).index.to_pylist()
    assert sorted(r["split"] for r in rows) == ["train", "train", "val", "val"]
    assert [r["fold"] for r in rows] == [1, 0, 1, 0]


def test_sessions_of_one_subject_in_two_splits(cohort: Cohort, tmp_path: Path) -> None:
    from tests.store.builders import brain, intake, nifti, put

    cohort(2)
    put(tmp_path / "ukb", 9_900_001, {"T1w": nifti(brain(8)), "FLAIR": nifti(brain(9))}, instance=3)
    manifest = intake(tmp_path / "ukb", instances=(2, 3))
    torn = placed(manifest, tmp_path, lambda row: ("val" if row.session == "3" else "train", None))
    with pytest.raises(DataError, match=r"in two splits or folds.*subject 9900001"):
        convert(torn, str(tmp_path / "out"), SPEC, executor=inline)
    assert not (tmp_path / "out").exists()


def test_an_excluded_session_has_no_split(cohort: Cohort, tmp_path: Path) -> None:
    manifest = placed(cohort(3), tmp_path, lambda row: ("train", 2))
    damaged = tmp_path / "ukb" / "9900002_20253_2_0.zip"
    damaged.unlink()
    done = convert(manifest, str(tmp_path / "out"), SPEC, executor=inline)
    rows = {r.subject: (r.reason, r.split, r.fold) for r in done.manifest.rows()}
    assert rows["9900002"] == ("damaged_data", "", None) and rows["9900001"] == ("", "train", 2)
