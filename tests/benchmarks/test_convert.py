"""The benchmark `convert` on tiny scans: both sides keep the same, and figures keep their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.benchmarks import convert, plain_convert
from brainfoundry.cohorts.manifest import read_manifest
from brainfoundry.core.errors import DataError
from brainfoundry.store.convert import convert as convert_cohort
from brainfoundry.store.convert import inline
from brainfoundry.store.meta import manifest_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec
from tests.store.builders import brain, intake, nifti, put


@pytest.fixture
def ukb(tmp_path: Path) -> Path:
    for eid in (9_900_001, 9_900_002):
        scans = {"T1w": nifti(brain(eid)), "FLAIR": nifti(brain(eid + 500, top=700))}
        put(tmp_path / "ukb", eid, scans)
    return tmp_path / "ukb"


def test_the_plain_conversion_keeps_the_same(
    ukb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = convert.against_plain(ukb, tmp_path, 1)
    assert figures["convert_subjects"] == 2 and figures["convert_max_difference"] <= 1e-3
    assert figures["convert_vs_nibabel"] > 0
    monkeypatch.setattr(plain_convert, "_bricks", lambda volume: [b""])
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match="keep different voxels"):
        convert.against_plain(ukb, tmp_path / "again", 1)


def test_opening_a_simulated_shard_set(ukb: Path, tmp_path: Path) -> None:
    manifest = intake(ukb, min_slices=1)
    convert_cohort(manifest, str(tmp_path / "shards"), ConvertSpec(min_slices=1), executor=inline)
    figures = convert.opening(tmp_path / "shards", tmp_path, 1, 300)
    assert figures["open_subjects"] == 300
    parts = sum(figures[f"open_{name}_s"] for name in ("manifest_index", "plan", "look_ups"))
    assert figures["open_41400_s"] == pytest.approx(parts, rel=0.01)
    target = str(tmp_path / "simulated")
    shards = ShardSet.open(target)
    assert len(shards) == 300 and shards.meta.shards == 5
    rows = list(read_manifest(manifest_uri(target)).rows())
    assert len({row.subject for row in rows}) == 300
    assert {row.split for row in rows} == {"train", "val"}


@pytest.mark.slow
def test_over_cores(ukb: Path, tmp_path: Path, ray_local: int) -> None:
    figures = convert.over_cores(ukb, tmp_path, 1, 4)
    assert figures["convert_ray_subjects"] == 4
    assert figures["convert_2_cores_vs_1"] > 0
    assert not list(tmp_path.glob("cores-*")), "temporary shard sets are left"
