"""Shard sets on a real S3-compatible server, end to end, through faults and outages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from brainfoundry.cohorts.manifest import Manifest, read_manifest
from brainfoundry.cohorts.ukb import UKBRules, read_ukb
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import manifest_uri, shard_uri, sidecar_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec, ShardTask, convert_shard
from brainfoundry.stream.plan import Plan, PlanSpec
from tests.core.s3_server import BUCKET, Proxy, bursts

pytestmark = pytest.mark.slow  # a server, and the pauses of the client library's own retries

SPEC = ConvertSpec(min_slices=1, rows_per_shard=1)
PLAN = PlanSpec(seed=3, crop=(16, 16, 16), groups_per_step=1, frame="box")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of the bucket; the cache is off, so that reading is reading."""
    monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", "0")
    return f"s3://{BUCKET}/{tmp_path.name}/shards"


def stops_after(n: int) -> Callable[[Sequence[ShardTask]], Iterator[int]]:
    def run(tasks: Sequence[ShardTask]) -> Iterator[int]:
        for task in tasks[:n]:
            convert_shard(task)
            yield len(task.rows)
        raise KeyboardInterrupt

    return run


def assert_equal(a: ShardSet, b: ShardSet) -> None:
    assert a.index.equals(b.index)
    assert a.meta.manifest_hash == b.meta.manifest_hash
    for shard in range(a.meta.shards):
        for corner in ((-3, 5, 2), (10, 20, 11)):
            crops = [s.read_crop(shard, 0, corner, (24, 24, 24)) for s in (a, b)]
            assert (crops[0] == crops[1]).all()


def test_a_cohort_goes_straight_to_s3(
    server: str, folder: str, cohort: Callable[[int], Manifest], tmp_path: Path
) -> None:
    manifest = cohort(3)
    local, remote = str(tmp_path / "local"), folder
    convert(manifest, local, SPEC, executor=inline)
    with pytest.raises(KeyboardInterrupt):
        convert(manifest, remote, SPEC, executor=stops_after(2))
    with pytest.raises(DataError, match=r"its conversion did not finish \[file s3://"):
        ShardSet.open(remote)
    done = convert(manifest, remote, SPEC, executor=inline)
    assert done.rows_skipped == 2
    here, there = ShardSet.open(local), ShardSet.open(remote)
    assert_equal(here, there)
    assert there.verify() == []
    plans = [Plan.open(uri, PLAN) for uri in (local, remote)]
    assert plans[0].hash == plans[1].hash
    assert plans[0].rows(0, 5).equals(plans[1].rows(0, 5))
    assert (
        read_manifest(manifest_uri(remote)).hash
        == read_manifest(manifest_uri(local)).hash
        == done.manifest.hash
    )


def test_rewritten_shards_are_read_anew(
    server: str,
    folder: str,
    cohort: Callable[[int], Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", "1")
    convert(cohort(2), folder, SPEC, executor=inline)
    first = ShardSet.open(folder)
    want = first.read_crop(0, 0, (8, 8, 8), (16, 16, 16))
    assert (ShardSet.open(folder).read_crop(0, 0, (8, 8, 8), (16, 16, 16)) == want).all()
    where = shard_uri(folder, 0)
    files.write_bytes(where, bytes(len(files.read_bytes(where))))
    with pytest.raises(DataError, match=r"shard is damaged.*\[subject 9900001; file s3://"):
        ShardSet.open(folder).read_crop(0, 0, (8, 8, 8), (16, 16, 16))
    files.delete_file(where)
    with pytest.raises(DataError, match=r"shard cannot be read.*\[subject 9900001; file s3://"):
        ShardSet.open(folder).read_crop(0, 0, (8, 8, 8), (16, 16, 16))


@pytest.mark.parametrize("kind", ["500", "reset"])
def test_faults_midway_are_outlasted(
    kind: str, proxy: Proxy, folder: str, cohort: Callable[[int], Manifest], tmp_path: Path
) -> None:
    manifest = cohort(2)
    convert(manifest, str(tmp_path / "local"), SPEC, executor=inline)
    proxy.fault = bursts(16, 4, kind)  # longer than the client library's own patience
    convert(manifest, folder, SPEC, executor=inline)
    there = ShardSet.open(folder)
    assert_equal(ShardSet.open(str(tmp_path / "local")), there)
    assert there.verify() == []
    assert proxy.failed >= 12


def test_an_outage_ends_in_one_line_and_the_next_run_goes_on(
    proxy: Proxy, folder: str, cohort: Callable[[int], Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = cohort(3)
    monkeypatch.setenv("BRAINFOUNDRY_RETRY_S", "0.2")

    def until_it_is_down(tasks: Sequence[ShardTask]) -> Iterator[int]:
        for task in tasks:
            if task.shard == 1:  # its upload has begun when the storage goes down
                proxy.count()
                proxy.fault = lambda number: "503" if number > 4 else ""
            convert_shard(task)
            yield len(task.rows)

    with pytest.raises(StorageError) as caught:
        convert(manifest, folder, SPEC, executor=until_it_is_down)
    line = caught.value.line()
    assert line.startswith("storage does not answer") and f"file {folder}" in line and ". Fix: " in line
    assert "\n" not in line
    proxy.fault = lambda number: ""
    monkeypatch.delenv("BRAINFOUNDRY_RETRY_S")
    with pytest.raises(DataError, match="did not finish"):
        ShardSet.open(folder)
    assert files.exists(sidecar_uri(folder, 0)) and not files.exists(sidecar_uri(folder, 1))
    done = convert(manifest, folder, SPEC, executor=inline)
    assert done.rows_skipped == 1
    assert done.manifest.counts() == manifest.counts() or not done.manifest.counts()
    found = ShardSet.open(folder)
    assert len(found) == 3 and found.verify() == []
    proxy.fault = lambda number: "503"
    monkeypatch.setenv("BRAINFOUNDRY_RETRY_S", "0")
    with pytest.raises(StorageError, match=r"does not answer.*\[file s3://"):
        found.read_crop(0, 0, (0, 0, 0), (8, 8, 8))


def test_scans_on_storage_that_is_down_are_not_called_damaged(
    proxy: Proxy,
    folder: str,
    cohort: Callable[[int], Manifest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort(2)
    source = folder.removesuffix("shards") + "ukb"
    for path in sorted((tmp_path / "ukb").glob("*.zip")):
        files.write_bytes(files.join(source, path.name), path.read_bytes())
    manifest = read_ukb(source, str(tmp_path / "intake.parquet"), UKBRules(min_slices=1))
    assert sum(row.included for row in manifest.rows()) == 2
    out = str(tmp_path / "out")

    def down_at_the_second(tasks: Sequence[ShardTask]) -> Iterator[int]:
        for task in tasks:
            if task.shard == 1:
                proxy.fault = lambda number: "503"
                monkeypatch.setenv("BRAINFOUNDRY_RETRY_S", "0")
            convert_shard(task)
            yield len(task.rows)

    with pytest.raises(StorageError, match=r"does not answer.*\[file s3://.*zip\]"):
        convert(manifest, out, SPEC, executor=down_at_the_second)
    proxy.fault = lambda number: ""
    done = convert(manifest, out, SPEC, executor=inline)
    assert done.rows_skipped == 1 and done.meta.rows == 2
    shutil.rmtree(tmp_path / "ukb")  # the shards came from S3 alone
    assert np.any(ShardSet.open(out).read_volume(1, 0, "T1w"))
