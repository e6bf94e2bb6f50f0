"""Withdrawal from a shard set on remote storage: as on a disk, and no copy left in this machine's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import manifest_uri, shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.withdraw import withdraw
from tests.core.s3_server import BUCKET, Proxy
from tests.store.withdrawals import SPEC, SUBJECTS

pytestmark = pytest.mark.slow  # a server


def modified(uri: str, shards: int) -> list[int]:
    return [
        files.filesystem(shard_uri(uri, n))[0].get_file_info(files.filesystem(shard_uri(uri, n))[1]).mtime_ns
        for n in range(shards)
    ]


def test_as_on_a_disk(
    proxy: Proxy, made: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", "1")
    monkeypatch.setattr("brainfoundry.store.changing.now", lambda: "2026-01-01T00:00:00+00:00")
    here, there = str(tmp_path / "here"), f"s3://{BUCKET}/{tmp_path.name}"
    for uri in (here, there):
        convert(made[1], uri, SPEC, executor=inline)
    gone = SUBJECTS[2]
    before = ShardSet.open(there)
    before.read_crop(1, 0, (0, 0, 0), (40, 44, 38))
    cached = [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and gone.encode() in p.read_bytes()]
    assert cached
    times = modified(there, 4)
    versions = [files.version(shard_uri(there, n)) for n in range(4)]
    withdraw(here, [gone])
    withdraw(there, [gone])
    now = [files.version(shard_uri(there, n)) for n in range(4)]
    assert [a == b for a, b in zip(versions, now, strict=True)] == [True, False, True, True]
    untouched = (0, 2, 3)
    assert [modified(there, 4)[n] for n in untouched] == [times[n] for n in untouched]
    assert not [p for p in cached if p.exists()]
    one, other = ShardSet.open(here), ShardSet.open(there)
    assert one.meta == other.meta and other.verify() == []
    for n in range(4):
        assert files.read_bytes(shard_uri(there, n)) == files.read_bytes(shard_uri(here, n))
    assert files.read_bytes(manifest_uri(there)) == files.read_bytes(manifest_uri(here))


def test_an_outage_midway_is_finished_later(
    proxy: Proxy, made: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", "0")
    uri = f"s3://{BUCKET}/{tmp_path.name}"
    convert(made[1], uri, SPEC, executor=inline)
    proxy.count()
    withdraw(uri, [SUBJECTS[0]])
    needed = proxy.seen
    monkeypatch.setenv("BRAINFOUNDRY_RETRY_S", "0.2")
    proxy.count()
    proxy.fault = lambda number: "503" if number > needed // 2 else ""
    with pytest.raises(StorageError, match="storage does not answer"):
        withdraw(uri, [SUBJECTS[2]])
    proxy.fault = lambda number: ""
    with pytest.raises(DataError, match="being changed"):
        ShardSet.open(uri)
    done = withdraw(uri, [SUBJECTS[2]])
    assert done.resumed
    found = ShardSet.open(uri)
    assert found.verify() == [] and not {SUBJECTS[0], SUBJECTS[2]} & set(found.index["subject"].to_pylist())
    assert [entry["what"] for entry in found.meta.history] == ["withdrawal", "withdrawal"]
