"""Remote storage (S3 and whatever else pyarrow or fsspec opens) that waits out passing faults, in this place.

`files.filesystem` hands out remote file systems wrapped in `Waiting`, so whoever reads or writes through it
gets the same treatment: an operation that fails for a passing reason (5xx, throttling, reset, timeout, no
connection) is tried again with growing, jittered pauses, up to `$BRAINFOUNDRY_RETRY_S` seconds (default 120).
What does not pass (403, no such bucket) fails at once. Either way the end is one `StorageError`.

Objects are uploaded when they are closed, whole: a fault in the middle of an upload repeats the upload.

S3 is told where and who by the usual variables: AWS_ENDPOINT_URL (such as "http://minio.example.org:9000"),
AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from brainfoundry.core.environment import number
from brainfoundry.core.errors import DataError

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_S = 120.0
"""Seconds an operation is tried for, unless $BRAINFOUNDRY_RETRY_S says otherwise."""
_FIRST_S, _LONGEST_S = 0.25, 20.0
_AHEAD = 1 << 20
"""Bytes fetched at least: a request costs about as much as this many bytes."""
_IN_MEMORY = 8 << 20
"""Larger objects wait for their upload in the temporary folder."""
_random = random.Random()  # of our own: pauses must not disturb anybody's seed

_PASSING = re.compile(
    r"HTTP status (5\d\d|408|429)\b|curlCode|NETWORK_CONNECTION|SLOW_DOWN|SlowDown|THROTTL|INTERNAL_FAILURE"
    r"|InternalError|SERVICE_UNAVAILABLE|ServiceUnavailable|REQUEST_TIMEOUT|RequestTimeout|REQUEST_EXPIRED"
    r"|REQUEST_LIMIT_EXCEEDED|BANDWIDTH_LIMIT|timed? ?out|reset by peer|[Cc]ould not connect"
    r"|[Cc]onnection (refused|aborted|reset|closed)|temporarily|[Bb]roken pipe|unreachable"
    r"|Server disconnected|EndpointConnectionError"
)
_LASTING = re.compile(
    r"HTTP status 4\d\d\b|ACCESS_DENIED|NO_SUCH|NOT_FOUND|INVALID_|SIGNATURE|UNRECOGNIZED_CLIENT"
)
_OURS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError)
"""What callers ask about; not a fault of the storage."""
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENOMEM}
"""The disk of this machine, not the storage."""


class StorageError(DataError):
    """Remote storage that refuses, or has not answered for as long as we wait.

    No OSError: whoever takes that for "this file is damaged" (as zipfile does) must not see it.
    """


def patience_s() -> float:
    """Seconds an operation on remote storage is tried for.

    Raises:
        ConfigError: $BRAINFOUNDRY_RETRY_S is not a number of seconds.
    """
    return number("BRAINFOUNDRY_RETRY_S", RETRY_S, fix="give a number of seconds, such as 120")


def is_passing(error: BaseException) -> bool:
    """True for a fault that may be over in a moment: 5xx, throttling, a lost connection, a timeout."""
    if isinstance(error, (*_OURS, PermissionError, DataError)):
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    text = f"{type(error).__name__} {error}"
    status = re.search(r"HTTP status (\d{3})", text)
    if status:
        return status[1][0] == "5" or status[1] in ("408", "429")
    return bool(_PASSING.search(text)) and not _LASTING.search(text)


def retry(what: Callable[[], T], *, uri: str) -> T:
    """The result of `what`, tried again while it fails for a passing reason.

    Raises:
        StorageError: it went on failing for `patience_s` seconds, or failed for a lasting reason.
        OSError: FileNotFoundError and its like, and faults of the local disk, as they are.
    """
    begun, pause, tries = time.monotonic(), _FIRST_S, 0
    while True:
        tries += 1
        try:
            return what()
        except Exception as error:
            _raise_if_lasting(error, uri)
            left = patience_s() - (time.monotonic() - begun)
            if left <= 0:
                waited = time.monotonic() - begun
                raise StorageError(
                    f"storage does not answer: tried {tries} times in {waited:.0f} s; last: {_short(error)}",
                    file=uri,
                    fix="check the network and the storage's state, then run again: what is finished is kept",
                ) from error
            wait = min(pause * _random.uniform(0.5, 1.0), left)
            if tries > 2:
                log.warning(
                    "storage does not answer (%s), trying for %.0f s more: %s", uri, left, _short(error)
                )
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_S)


def _raise_if_lasting(error: Exception, uri: str) -> None:
    """Raise what is not worth another try: as it is, or told in one line."""
    if is_passing(error):
        return
    if isinstance(error, (*_OURS, DataError)) or getattr(error, "errno", None) in _LOCAL:
        raise error
    if isinstance(error, OSError) or _LASTING.search(str(error)):
        fix = (
            "check the bucket's name, your credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and rights"
        )
        raise StorageError(f"storage refuses: {_short(error)}", file=uri, fix=fix) from error
    raise error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def waiting(fs: pafs.FileSystem, scheme: str) -> pafs.FileSystem:
    """`fs` with every operation retried; see `Waiting`."""
    return pafs.PyFileSystem(Waiting(fs, scheme))


def version(fs: pafs.FileSystem, path: str) -> str:
    """What changes whenever a file is written anew: its ETag where there is one, else size and time.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: as for `retry`.
    """
    if isinstance(fs, pafs.PyFileSystem) and isinstance(fs.handler, Waiting):
        return fs.handler.version(path)
    return _size_and_time(fs.get_file_info(path))


def _size_and_time(info: pafs.FileInfo) -> str:
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(errno.ENOENT, "no such file", info.path)
    return f"{info.size}-{info.mtime_ns}"


class Waiting(pafs.FileSystemHandler):
    """A file system whose operations wait out passing faults.

    Args:
        inner: the file system itself.
        scheme: of its URIs, for messages: "s3".
    """

    def __init__(self, inner: pafs.FileSystem, scheme: str) -> None:
        self.inner, self.scheme = inner, scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Waiting) and (self.inner, self.scheme) == (other.inner, other.scheme)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # as pyarrow's own file systems

    def uri(self, path: str) -> str:
        """For messages."""
        return f"{self.scheme}://{path}"

    def _try(self, path: str, what: Callable[[], T]) -> T:
        return retry(what, uri=self.uri(path))

    def version(self, path: str) -> str:
        """See `version`."""
        return self._try(path, lambda: self._version(path))

    def _version(self, path: str) -> str:
        handler = getattr(self.inner, "handler", None)
        if isinstance(handler, pafs.FSSpecHandler):
            return str(handler.fs.ukey(path))
        if self.inner.type_name == "s3":
            with self.inner.open_input_file(path) as handle:  # one HEAD request
                found = handle.metadata() or {}
            tag = found.get(b"ETag", found.get("ETag", b""))
            if tag:
                return f"{tag!s}-{found.get(b'Content-Length', found.get('Content-Length'))!s}"
        return _size_and_time(self.inner.get_file_info(path))

    def get_type_name(self) -> str:
        return f"waiting+{self.inner.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return self._try(paths[0] if paths else "", lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self._try(selector.base_dir, lambda: self.inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._try(path, lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._again(path, lambda: self.inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._try(path, lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("a whole storage is not emptied")

    def delete_file(self, path: str) -> None:
        self._again(path, lambda: self.inner.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        self._again(src, lambda: self.inner.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._try(src, lambda: self.inner.copy_file(src, dest))

    def _again(self, path: str, what: Callable[[], None]) -> None:
        """Retry what cannot be done twice: gone at a second try means that the first had worked."""
        tries = 0

        def attempt() -> None:
            nonlocal tries
            tries += 1
            try:
                what()
            except FileNotFoundError:
                if tries == 1:
                    raise

        self._try(path, attempt)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(self, path, ahead=_IN_MEMORY), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_Reader(self, path, ahead=_AHEAD), mode="r")

    def open_output_stream(self, path: str, metadata: Any = None) -> pa.NativeFile:
        return pa.PythonFile(_Writer(self, path, metadata), mode="w")

    def open_append_stream(self, path: str, metadata: Any = None) -> pa.NativeFile:
        raise NotImplementedError("objects cannot be appended to")


class _Reader:
    """A remote file being read: small reads are served from a window, lost connections are opened anew."""

    def __init__(self, storage: Waiting, path: str, *, ahead: int) -> None:
        self._storage, self._path, self._ahead = storage, path, ahead
        self._handle: pa.NativeFile | None = None
        self._size = -1
        self._at = self._window_at = 0
        self._window = b""
        self.closed = False
        storage._try(path, self._open)

    def _open(self) -> pa.NativeFile:
        if self._handle is None:
            handle = self._storage.inner.open_input_file(self._path)
            size = handle.size()
            if self._size not in (-1, size):
                problem = f"file changed while it was read: {self._size:,} bytes, then {size:,}"
                uri = self._storage.uri(self._path)
                raise StorageError(problem, file=uri, fix="run again when nobody writes there")
            self._handle, self._size = handle, size
        return self._handle

    def _fetch(self, count: int) -> bytes:
        try:
            return self._open().read_at(count, self._at)
        except OSError:
            self._handle = None
            raise

    def read(self, count: int | None = -1) -> bytes:
        """The next `count` bytes, fewer at the end; all that is left by default."""
        left = max(self._size - self._at, 0)
        count = left if count is None or count < 0 else min(count, left)
        offset = self._at - self._window_at
        if not 0 <= offset <= len(self._window) - count:
            wanted = min(max(count, self._ahead), left)
            self._window = self._storage._try(self._path, lambda: self._fetch(wanted))
            self._window_at, offset = self._at, 0
        part = self._window if count == len(self._window) else self._window[offset : offset + count]
        self._at += len(part)
        return part

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Let go of the connection."""
        if self._handle is not None:
            self._handle.close()
        self._handle, self._window, self.closed = None, b"", True


class _Writer:
    """A remote file being written: kept here until closed, then uploaded whole, as often as it takes."""

    def __init__(self, storage: Waiting, path: str, metadata: Any) -> None:
        self._storage, self._path, self._metadata = storage, path, metadata
        self._data = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  # closed in close()
        self.closed = False

    def write(self, data: Any) -> int:
        """Keep `data`."""
        return self._data.write(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self._data.tell()

    def flush(self) -> None:
        """Nothing is shown before the end."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Upload."""
        if self.closed:
            return
        self.closed = True
        with self._data:
            self._storage._try(self._path, self._upload)

    def _upload(self) -> None:
        self._data.seek(0)
        # pyarrow would gzip what goes into a name in .gz once more.
        inner = self._storage.inner
        with inner.open_output_stream(self._path, compression=None, metadata=self._metadata) as target:
            shutil.copyfileobj(self._data, target, 4 << 20)
