"""Writing one shard: rows into a temporary file, then the shard and its summary, whole or not at all."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.store import bricks
from brainfoundry.store.meta import SHARD_SCHEMA, VERSION, shard_uri, sidecar_uri
from brainfoundry.store.row import EncodedRow


class ShardWriter:
    """One shard of the set at `uri`; use as a context manager, `commit` at the end.

    Rows go to a temporary file (beside the shard, or in the local temporary folder for remote storage).
    `commit` reads them back, fills in checksums, moves the file into place and writes the summary
    `shard-NNNNN.json` last: a shard without a summary is not there.

    Raises:
        DataError: storage cannot be written.
    """

    def __init__(self, uri: str, shard: int) -> None:
        self.uri, self.shard = uri, shard
        self._final = shard_uri(uri, shard)
        self._fs, self._path = files.filesystem(self._final)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)
        folder = Path(self._path).parent if self._local else Path(tempfile.gettempdir())
        self._temporary = folder / f"{self._prefix()}{uuid.uuid4().hex[:8]}.tmp"
        self._rows: list[dict[str, Any]] = []
        try:
            if self._local:
                folder.mkdir(parents=True, exist_ok=True)
                for stale in folder.glob(f"{self._prefix()}*.tmp"):  # of an attempt that was killed
                    stale.unlink(missing_ok=True)
            self._sink = pa.OSFile(str(self._temporary), "wb")
            self._writer = pa.ipc.new_file(self._sink, SHARD_SCHEMA)
        except OSError as error:
            raise self._unwritable(error) from error

    def _prefix(self) -> str:
        return f".shard-{self.shard:05d}.arrow."

    def _unwritable(self, error: Exception) -> DataError:
        fix = "free space or choose a folder you may write to, then run again: it resumes"
        return DataError(f"shard cannot be written: {error}", file=self._final, fix=fix)

    def add(self, row: EncodedRow) -> None:
        """Append a session."""
        try:
            self._writer.write_batch(row.batch)
            length = pa.ipc.get_record_batch_size(row.batch)
            place = {"offset": self._sink.tell() - length, "length": length}
        except OSError as error:
            raise self._unwritable(error) from error
        self._rows.append(row.index | {"shard": self.shard, "row": len(self._rows)} | place)

    def commit(
        self, task_hash: str, outcomes: Sequence[dict[str, Any]], *, check_bricks: bool = True
    ) -> dict[str, Any]:
        """Put the shard and then its summary in place.

        Args:
            task_hash: of everything the shard was made from, for resuming.
            outcomes: what became of each manifest row, excluded ones included.
            check_bricks: False for rows copied from a shard: damage that was there comes along, for the
                reader's checksums to find.

        Returns:
            The summary.
        """
        try:
            self._writer.close()
            self._sink.close()
            size = self._seal(check_bricks)
            if self._local:
                self._temporary.replace(self._path)
            else:
                with self._temporary.open("rb") as source, self._fs.open_output_stream(self._path) as target:
                    shutil.copyfileobj(source, target, 4 << 20)
            summary = {
                "version": VERSION,
                "shard": self.shard,
                "task_hash": task_hash,
                "size": size,
                "rows": self._rows,
                "outcomes": list(outcomes),
            }
            files.write_json(sidecar_uri(self.uri, self.shard), summary)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._temporary.unlink(missing_ok=True)
        return summary

    def _seal(self, check_bricks: bool) -> int:
        """Read every row back: where its head ends, the head's checksum, the bricks' checksums."""
        with self._temporary.open("rb") as handle:
            os.fsync(handle.fileno())
            size = os.fstat(handle.fileno()).st_size
            if self._rows:
                whole = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
                for row in self._rows:
                    message = whole[row["offset"] : row["offset"] + row["length"]]
                    row["head_length"], row["head_crc"] = head_of(message, check_bricks)
        return size

    def abort(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._sink.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()


def head_of(message: memoryview, check_bricks: bool) -> tuple[int, int]:
    """Bytes of a record batch before its bricks' data, and their checksum; checks the bricks on the way."""
    buffer = pa.py_buffer(message)
    batch = pa.ipc.read_record_batch(buffer, SHARD_SCHEMA)
    flat = batch.column("bricks").values
    data = flat.buffers()[2]
    head = len(message) if data is None or data.size == 0 else data.address - buffer.address
    for payload, crc in zip(flat, batch.column("brick_crc")[0].as_py(), strict=True):
        if check_bricks and len(payload.as_buffer()) and bricks.crc32(payload.as_buffer()) != crc:
            raise OSError("what was written does not read back")
    return head, bricks.crc32(message[:head])
