"""The spool: everything a run wants tracked, in its own storage before any server hears of it.

    RUN/spool/00001-3f9c2a7b/000000.jsonl      one session = one process that tracked the run
    RUN/spool/00001-3f9c2a7b/files/00000004-config.yaml
    RUN/spool/delivered.json                   what which server has (see marker.py)

A session is written by one process only, so that a line torn by a kill is always the last one and
never runs into somebody else's. On local storage a session is one file, appended to and flushed; an
object store cannot append, so there the newest segment is rewritten whole (at most every few seconds)
until it is full, and the next one begun: a week's run leaves tens of objects, not thousands.

Each line is a JSON object with `seq` (0, 1, 2, ... in the session), `kind` and `time` (ms since 1970):
`start` (tags, params, experiment, run_name, run_key, uri), `metrics` (step, values), `artifact`
(file below RUN/spool, path among the run's artifacts) and `end` (status).
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from brainfoundry.core import files

Event = dict[str, Any]
log = logging.getLogger("brainfoundry.tracking")

_CHUNK = 1 << 20  # bytes read from a local segment at a time


def spool_of(run_dir: str) -> str:
    """URI of a run's spool."""
    return files.join(run_dir, "spool")


def sessions(run_dir: str) -> list[str]:
    """Names of the sessions that have tracked the run, in the order they began."""
    return [n for n in files.list_names(spool_of(run_dir)) if n[:5].isdigit() and n[5:6] == "-"]


def _encode(event: Event) -> bytes:
    if (
        event["kind"] == "metrics"
    ):  # JSON has no NaN and no infinity: those travel as strings that float() reads
        values = {k: v if math.isfinite(v) else str(v) for k, v in event["values"].items()}
        event = {**event, "values": values}
    return json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
        if event["kind"] == "metrics":
            event["values"] = {k: float(v) for k, v in event["values"].items()}
            event["step"] = int(event["step"])
        event["seq"] = int(event["seq"])
        return event
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class SpoolWriter:
    """Writes one session; used by one thread.

    Args:
        run_dir: RUN, a folder or URI.
        rewrite_s: seconds between two rewrites of the newest segment (object stores only).
        segment_bytes: size from which a segment is full (object stores only).
        clock: monotonic seconds.

    Raises:
        DataError: the storage cannot be written.
    """

    def __init__(
        self,
        run_dir: str,
        *,
        rewrite_s: float = 5.0,
        segment_bytes: int = 256 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._local = files.is_local(run_dir)
        self._spool = spool_of(files.absolute(run_dir))
        files.make_folder(self._spool)
        numbers = [int(name[:5]) for name in sessions(run_dir)]
        self.session = f"{max(numbers, default=0) + 1:05d}-{uuid.uuid4().hex[:8]}"
        self._folder = files.join(self._spool, self.session)
        files.make_folder(self._folder)
        self._seq = 0
        self._file: io.FileIO | None = None
        self._rewrite_s, self._segment_bytes, self._clock = rewrite_s, segment_bytes, clock
        self._segment, self._lines, self._unwritten = 0, b"", False
        self._written_at = -math.inf

    def append(self, events: list[Event]) -> None:
        """Number the events and write them; on an object store they wait for the next `flush`.

        Raises:
            OSError: nothing of these events counts as written; hand them in again.
        """
        lines = b"".join(_encode({"seq": self._seq + i, **event}) for i, event in enumerate(events))
        if self._local:
            self._append_local(lines)
        else:
            self._lines += lines
            self._unwritten = True
        self._seq += len(events)

    def _append_local(self, lines: bytes) -> None:
        if self._file is None:  # unbuffered: what is written survives a kill of this process
            self._file = Path(self._folder, "000000.jsonl").open("ab", buffering=0)  # noqa: SIM115
        start = os.fstat(self._file.fileno()).st_size
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # A full disk may have taken half a line: cut it off, so that the next try does not run into it.
            os.ftruncate(self._file.fileno(), start)
            raise

    def flush(self, *, force: bool = False) -> None:
        """Rewrite the newest segment if it is time to (object stores only).

        Raises:
            OSError: the storage did not take it; the events are kept for the next flush.
        """
        if not self._unwritten or (not force and self._clock() - self._written_at < self._rewrite_s):
            return
        files.write_bytes(files.join(self._folder, f"{self._segment:06d}.jsonl"), self._lines)
        self._unwritten, self._written_at = False, self._clock()
        if len(self._lines) >= self._segment_bytes:
            self._segment, self._lines = self._segment + 1, b""

    def add_file(self, data: bytes, name: str) -> str:
        """Keep a copy of an artifact; returns its path below RUN/spool.

        Raises:
            OSError: the storage did not take it.
        """
        folder = files.join(self._folder, "files")
        files.make_folder(folder)
        relative = f"{self.session}/files/{self._seq:08d}-{PurePosixPath(name).name}"
        files.write_bytes(files.join(self._spool, relative), data)
        return relative

    def close(self) -> None:
        """Write what is left."""
        self.flush(force=True)
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class SpoolReader:
    """Follows one session, also while it is being written.

    Args:
        run_dir: RUN.
        session: name of the session.
        after: events up to this sequence number are passed over.
    """

    def __init__(self, run_dir: str, session: str, *, after: int = -1) -> None:
        self.session = session
        self._local = files.is_local(run_dir)
        self._folder = files.join(spool_of(files.absolute(run_dir)), session)
        self._segment, self._offset, self._last = 0, 0, after

    def read(self) -> list[Event]:
        """The next events that are completely written; empty when there are none yet.

        A torn last line is left for the next call (and for good, if its writer is dead). A damaged
        line in the middle is passed over with a warning.
        """
        while True:
            following = files.exists(self._uri(self._segment + 1))  # asked first: then this one is complete
            events, moved = self._read_segment()
            if events:
                return events
            if not moved:
                if not following:
                    return []
                self._segment, self._offset = self._segment + 1, 0

    def _uri(self, segment: int) -> str:
        return files.join(self._folder, f"{segment:06d}.jsonl")

    def _read_segment(self) -> tuple[list[Event], bool]:
        data = self._bytes()
        end = data.rfind(b"\n") + 1
        self._offset += end
        events = []
        for line in data[:end].splitlines():
            event = _decode(line)
            if event is None:
                log.warning("damaged line passed over in %s", self._uri(self._segment))
            elif event["seq"] > self._last:
                self._last = event["seq"]
                events.append(event)
        return events, end > 0

    def _bytes(self) -> bytes:
        uri = self._uri(self._segment)
        if self._local:
            try:
                with Path(uri).open("rb") as handle:
                    handle.seek(self._offset)
                    data = handle.read(_CHUNK)
                    while data and b"\n" not in data and (more := handle.read(_CHUNK)):
                        data += more
                    return data
            except FileNotFoundError:
                return b""
        fs, path = files.filesystem(uri)
        size = fs.get_file_info(path).size
        if not size or size <= self._offset:  # no need to fetch what has not grown
            return b""
        return files.read_bytes(uri)[self._offset :]


def read_events(run_dir: str) -> Iterator[tuple[str, Event]]:
    """(session, event) of all sessions in order."""
    for session in sessions(run_dir):
        reader = SpoolReader(run_dir, session)
        while events := reader.read():
            for event in events:
                yield session, event


def read_file(run_dir: str, relative: str) -> bytes:
    """An artifact's copy.

    Raises:
        DataError: it is not there.
    """
    return files.read_bytes(files.join(spool_of(files.absolute(run_dir)), relative))


def read_history(run_dir: str) -> list[dict[str, float]]:
    """One row a step: `step` and its metrics; of a step that ran twice the first values, as in MLflow."""
    rows: dict[int, dict[str, float]] = {}
    for _, event in read_events(run_dir):
        if event["kind"] == "metrics":
            row = rows.setdefault(event["step"], {"step": float(event["step"])})
            for key, value in event["values"].items():
                row.setdefault(key, value)
    return [rows[step] for step in sorted(rows)]


def last_start(run_dir: str) -> Event | None:
    """The newest session's `start` event; None for a run that was never tracked."""
    for session in reversed(sessions(run_dir)):
        for event in SpoolReader(run_dir, session).read():
            if event["kind"] == "start":
                return event
    return None
