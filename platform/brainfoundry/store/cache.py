"""A local cache of what was read from remote shards: bounded, shared by processes, never stale.

    BRAINFOUNDRY_CACHE_GB   size in GB (10^9 bytes), default 20; 0 switches it off
    BRAINFOUNDRY_CACHE      folder, best on a disk of this machine; default `cache/` in $BRAINFOUNDRY_HOME

An entry is one stored session (a few MB): `CACHE/<set>/<shard file>/<version>-<offset>-<length>`, where the
version is the remote file's ETag, or its size and time where the storage has none. It is asked for at every
read (one small request), so a shard that was rewritten or withdrawn is never served from here, and its old
entries go at the next read. Every entry carries a checksum of all its bytes: a damaged one is fetched again.
The entries used least recently go first. Files appear by renaming; what several processes count and fetch is
behind locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import struct
import time
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from brainfoundry.core import files, paths
from brainfoundry.core.environment import number
from brainfoundry.store import bricks

log = logging.getLogger(__name__)

DEFAULT_GB = 20.0
"""About 4,000 sessions of two modalities at 1 mm."""
_HEAD = struct.Struct("<4sIQ")
_MAGIC = b"BFC1"
_AFTER_EVICTION = 0.9
_LOCKS = 64
_STALE_S = 3600.0
"""Age at which a half-written file belongs to a process that was killed."""


def read_range(uri: str, offset: int, length: int, *, fresh: bool = False) -> bytes:
    """Part of a remote shard, from the cache of this machine where it holds the file's present version.

    Args:
        fresh: pass the cache by, to check what the storage really holds.

    Raises:
        FileNotFoundError, StorageError: as for `files.read_range`.
        ConfigError: the size of the cache is not a number.
    """
    cache = None if fresh else from_environment()
    return files.read_range(uri, offset, length) if cache is None else cache.read_range(uri, offset, length)


def forget(shards_uri: str) -> None:
    """Delete what this machine's cache holds of a shard set; for withdrawals, which leave no copy behind."""
    cache = from_environment()
    if cache is not None:
        cache.forget(shards_uri)


def from_environment() -> ShardCache | None:
    """The cache the environment asks for; None where it is switched off.

    Raises:
        ConfigError: the size is not a number.
    """
    fix = "give gigabytes, such as 20, or 0 for none"
    gigabytes = number("BRAINFOUNDRY_CACHE_GB", DEFAULT_GB, fix=fix)
    folder = os.environ.get("BRAINFOUNDRY_CACHE") or str(paths.home() / "cache")
    return _cache(str(Path(folder).expanduser()), int(gigabytes * 1e9)) if gigabytes else None


@lru_cache(maxsize=8)
def _cache(folder: str, limit: int) -> ShardCache:
    return ShardCache(Path(folder), limit)


class ShardCache:
    """Ranges of remote files on a local disk. Threads and processes may share the folder.

    Args:
        folder: made when it is first written to.
        limit: most bytes all entries together may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        self._warned = False

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        """Bytes of the file as it is now; see `read_range`."""
        place = self._place(uri)
        try:
            version = hashlib.sha256(files.version(uri).encode()).hexdigest()[:24]
        except FileNotFoundError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        entry = place / f"{version}-{offset}-{length}"
        data = self._get(entry, length)
        if data is None:
            with self._locked(f"fetch-{int(entry_hash(uri, offset), 16) % _LOCKS:02d}"):
                data = self._get(entry, length)  # somebody may have fetched it while we waited
                if data is None:
                    data = files.read_range(uri, offset, length)
                    self.misses += 1
                    now = hashlib.sha256(files.version(uri).encode()).hexdigest()[:24]
                    if len(data) == length and now == version:  # not what a withdrawal has just replaced
                        self._put(entry, data, version)
                    return data
        self.hits += 1
        return data

    def forget(self, shards_uri: str) -> None:
        """Delete all entries of the shard set at `shards_uri`."""
        shutil.rmtree(
            self._place(files.join(files.absolute(shards_uri), "shards", "any")).parent, ignore_errors=True
        )

    def used(self) -> int:
        """What the entries take now."""
        return sum(size for _, size, _ in self._entries())

    def _place(self, uri: str) -> Path:
        """The folder of one remote file."""
        parent, _, name = uri.rpartition("/")
        return self.folder / hashlib.sha256(parent.encode()).hexdigest()[:24] / name

    def _get(self, entry: Path, length: int) -> bytes | None:
        try:
            data = entry.read_bytes()
        except OSError:
            return None
        body = memoryview(data)[_HEAD.size :]
        if len(data) < _HEAD.size or _HEAD.unpack_from(data) != (_MAGIC, bricks.crc32(body), length):
            log.warning("damaged cache entry is fetched again: %s", entry)
            with contextlib.suppress(OSError):
                entry.unlink()
            return None
        if len(body) != length:
            return None
        with contextlib.suppress(OSError):
            os.utime(entry)  # used now
        return data[_HEAD.size :]

    def _put(self, entry: Path, data: bytes, version: str) -> None:
        size = _HEAD.size + len(data)
        if size > self.limit:
            return
        temporary = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            for other in entry.parent.iterdir():  # of the file before it was rewritten
                if not other.name.startswith((version, ".")):
                    other.unlink(missing_ok=True)
            with self._locked("size"):  # until it is there: what is not seen is not counted
                self._make_room(size)
                with temporary.open("wb") as handle:
                    handle.write(_HEAD.pack(_MAGIC, bricks.crc32(data), len(data)))
                    handle.write(data)
                temporary.replace(entry)
        except OSError as error:  # a full disk costs the copy, not the read
            self._warn(error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Count `size` more bytes, after deleting what was not used for longest where they do not fit.

        The count lies in a file and may only be too high (entries replaced or withdrawn, a process killed
        before its copy was there): it is made right whenever the folder is looked through.
        """
        counter = self.folder / "bytes"
        try:
            total = int(counter.read_text())
        except (OSError, ValueError):
            total = self.used()
        if total + size > self.limit:
            total = self._evict(int(self.limit * _AFTER_EVICTION) - size)
        counter.write_text(str(total + size))

    def _evict(self, room: int) -> int:
        """Delete the oldest entries until at most `room` bytes are left; the bytes left."""
        found = sorted(self._entries())
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= max(room, 0):
                break
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
        return total

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry; sweeps away what killed processes left half-written."""
        found = []
        for path in self.folder.glob("*/*/*"):
            try:
                info = path.stat()
                if not path.name.endswith(".tmp"):
                    found.append((info.st_mtime, info.st_size, path))
                elif time.time() - info.st_mtime > _STALE_S:
                    path.unlink()
            except OSError:  # gone meanwhile
                continue
        return found

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Alone among processes and threads; the lock of a killed process is free."""
        try:
            folder = self.folder / ".locks"
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / name).open("w")
        except OSError as error:  # a folder that cannot be written: nothing is cached, reading goes on
            self._warn(error)
            yield
            return
        with handle:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "shard cache %s cannot be written: %s. Fix: set BRAINFOUNDRY_CACHE to a local folder",
                self.folder,
                error,
            )


def entry_hash(uri: str, offset: int) -> str:
    """A hash of a place in a file."""
    return hashlib.sha256(f"{uri}:{offset}".encode()).hexdigest()
