"""The local cache of remote shards: bounded, shared by processes, never stale, never damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from brainfoundry.cohorts.manifest import Manifest
from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError
from brainfoundry.store import cache
from brainfoundry.store.cache import ShardCache
from brainfoundry.store.convert import convert, inline
from brainfoundry.store.meta import shard_uri
from brainfoundry.store.reader import ShardSet
from brainfoundry.store.shard_task import ConvertSpec


@pytest.fixture
def remote() -> str:
    """A file of 10,000 bytes on storage that is not local."""
    uri = f"memory://{uuid.uuid4().hex}/shards/shard-00000.arrow"
    files.write_bytes(uri, bytes(i % 251 for i in range(10_000)))
    return uri


def entries(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*/*/*") if p.is_file()]


def test_what_was_read_is_read_from_disk_next_time(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ShardCache(tmp_path, 10**6)
    want = files.read_bytes(remote)[100:400]
    assert store.read_range(remote, 100, 300) == want
    monkeypatch.setattr(files, "read_range", lambda *_: pytest.fail("fetched again"))
    assert store.read_range(remote, 100, 300) == want
    assert ShardCache(tmp_path, 10**6).read_range(remote, 100, 300) == want  # another process's view
    assert (store.hits, store.misses) == (1, 1)


def test_a_rewritten_file_is_never_served_from_cache(remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 10**6)
    store.read_range(remote, 0, 500)
    store.read_range(remote, 500, 500)
    files.write_bytes(remote, b"x" * 10_000)  # the same size
    assert store.read_range(remote, 0, 500) == b"x" * 500
    assert len(entries(tmp_path)) == 1, "entries of the old file are still there"


def test_a_file_that_is_gone_leaves_nothing(remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 10**6)
    store.read_range(remote, 0, 500)
    files.delete_file(remote)
    with pytest.raises(FileNotFoundError):
        store.read_range(remote, 0, 500)
    assert entries(tmp_path) == []


def test_forgetting_a_set_deletes_its_entries_and_no_others(remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 10**6)
    other = f"memory://{uuid.uuid4().hex}/shards/shard-00000.arrow"
    files.write_bytes(other, b"abc")
    store.read_range(remote, 0, 500)
    store.read_range(other, 0, 3)
    store.forget(remote.removesuffix("/shards/shard-00000.arrow"))
    assert [p.name.split("-")[1:] for p in entries(tmp_path)] == [["0", "3"]]


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "longer"])
def test_damaged_entries_are_fetched_again(how: str, remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 10**6)
    want = store.read_range(remote, 0, 500)
    store.read_range(remote, 1000, 500)
    (path,) = [p for p in entries(tmp_path) if p.name.endswith("-0-500")]
    data = bytearray(path.read_bytes())
    data[-200] ^= 4
    path.write_bytes({"flip": bytes(data), "cut": data[:300], "empty": b"", "longer": data + b"x"}[how])
    assert store.read_range(remote, 0, 500) == want
    assert store.misses == 3
    assert store.read_range(remote, 0, 500) == want
    assert store.misses == 3


def test_size_is_bounded_and_the_least_recently_used_go(remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 5_000)
    for i in range(4):
        store.read_range(remote, 1000 * i, 1000)
        os.utime(max(entries(tmp_path), key=lambda p: p.stat().st_mtime), (i, i))  # clocks are coarse
    store.read_range(remote, 0, 1000)  # the oldest is used again
    for i in range(4, 9):
        store.read_range(remote, 1000 * i, 1000)
        assert store.used() <= 5_000
    left = {int(p.name.split("-")[1]) for p in entries(tmp_path)}
    assert 8000 in left and 1000 not in left
    assert ShardCache(tmp_path / "b", 900).read_range(remote, 0, 1000)  # larger than the cache: not kept
    assert entries(tmp_path / "b") == []


def test_the_one_used_last_stays_longest(remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 4_000)
    for i in range(3):
        store.read_range(remote, 1000 * i, 1000)
    for path in entries(tmp_path):
        os.utime(path, (1, 1))
    store.read_range(remote, 1000, 1000)
    store.read_range(remote, 3000, 1000)
    assert {int(p.name.split("-")[1]) for p in entries(tmp_path)} >= {1000, 3000}


def test_half_written_files_of_killed_processes_are_swept(remote: str, tmp_path: Path) -> None:
    store = ShardCache(tmp_path, 10**6)
    store.read_range(remote, 0, 500)
    (path,) = entries(tmp_path)
    old, young = path.with_name(".old.tmp"), path.with_name(".young.tmp")
    for file in (old, young):
        file.write_bytes(b"x")
    os.utime(old, (1, 1))
    assert store.used() == path.stat().st_size
    assert young.exists() and not old.exists()


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(remote: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = ShardCache(tmp_path / "file" / "cache", 10**6)
    assert store.read_range(remote, 0, 500) == files.read_bytes(remote)[:500]


def test_a_full_disk_costs_nothing_but_the_cache(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ShardCache(tmp_path, 10**6)

    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for i in range(3):
        assert store.read_range(remote, i, 500) == files.read_bytes(remote)[i : i + 500]
    assert entries(tmp_path) == []
    assert caplog.text.count("BRAINFOUNDRY_CACHE") == 1


def test_the_environment_decides(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_HOME", str(tmp_path / "home"))
    cache.read_range(remote, 0, 500)
    assert len(entries(tmp_path / "home" / "cache")) == 1
    assert cache.from_environment().limit == 20_000_000_000  # type: ignore[union-attr]
    monkeypatch.setenv("BRAINFOUNDRY_CACHE", str(tmp_path / "fast"))
    monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", "0.5")
    cache.read_range(remote, 0, 500)
    assert len(entries(tmp_path / "fast")) == 1
    assert cache.from_environment().limit == 500_000_000  # type: ignore[union-attr]
    monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", "0")
    assert cache.from_environment() is None
    assert cache.read_range(remote, 700, 5) == files.read_bytes(remote)[700:705]
    assert len(entries(tmp_path / "fast")) == 1
    for wrong in ("big", "-1", "nan", "inf"):
        monkeypatch.setenv("BRAINFOUNDRY_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match="BRAINFOUNDRY_CACHE_GB"):
            cache.from_environment()


# ---------------------------------------------------------------------------------------------------------
# Several processes

_READER = """
import hashlib, random, sys
from pathlib import Path
from brainfoundry.core import files
from brainfoundry.store.cache import ShardCache

source, folder, limit, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data = source.read_bytes()
fetched = 0
def fetch(uri, offset, length):
    global fetched
    fetched += 1
    return data[offset:offset + length]
files.read_range, files.version = fetch, lambda uri: "v1"
store, order = ShardCache(folder, limit), random.Random(seed)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(150):
    i = order.randrange(20)
    want = data[5000 * i:5000 * (i + 1)]
    assert store.read_range("s3://bucket/shards/shard-00000.arrow", 5000 * i, 5000) == want
    with store._locked("size"):
        assert store.used() <= limit, "too large"
print(fetched)
"""


@pytest.mark.parametrize("limit", [10**6, 40_000])
def test_processes_share_it(limit: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(100_000))
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, str(source), str(tmp_path / "cache"), str(limit), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(3)
    ]  # fmt: skip
    for reader in readers:
        assert reader.stdout is not None and reader.stdin is not None
        assert reader.stdout.readline() == "ready\n", reader.stderr and reader.stderr.read()
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
    ends = [reader.communicate(timeout=60) for reader in readers]
    assert all(reader.returncode == 0 for reader in readers), [err for _, err in ends]
    if limit == 10**6:  # each part was fetched once by all of them together
        assert sum(int(out) for out, _ in ends) == 20


def test_a_killed_process_holds_no_lock(remote: str, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom pathlib import Path\n"
         "from brainfoundry.store.cache import ShardCache\n"
         "store = ShardCache(Path(sys.argv[1]), 10**6)\n"
         "with store._locked('size'):\n    print('held', flush=True)\n    time.sleep(60)\n", str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert ShardCache(tmp_path, 10**6).read_range(remote, 0, 500)


# ---------------------------------------------------------------------------------------------------------
# In the reader


def test_a_shard_set_is_read_through_it(
    cohort: Callable[[int], Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINFOUNDRY_CACHE", str(tmp_path / "cache"))
    uri = f"memory://{uuid.uuid4().hex}/set"
    convert(cohort(2), uri, ConvertSpec(min_slices=1, rows_per_shard=2), executor=inline)
    want = ShardSet.open(uri).read_crop(0, 1, (0, 0, 0), (32, 32, 32))
    assert len(entries(tmp_path / "cache")) == 1
    again = ShardSet.open(uri)
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_range", lambda *_: pytest.fail("fetched again"))
        assert (again.read_crop(0, 1, (0, 0, 0), (32, 32, 32)) == want).all()
    # A check looks at the storage, not at the cache.
    where = shard_uri(uri, 0)
    data = bytearray(files.read_bytes(where))
    data[-2000] ^= 1
    time.sleep(0.01)
    files.write_bytes(where, bytes(data))
    assert len(ShardSet.open(uri).verify()) == 1
