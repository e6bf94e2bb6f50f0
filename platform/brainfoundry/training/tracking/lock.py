"""One deliverer at a time: a lock file with its owner's name in it.

Not `flock`: a child that forked off the owner would keep it, and not every shared file system has it.
Where a lock is taken over, or lies on an object store, two processes could in principle both believe
they hold it for a moment; the owner therefore looks again before every request it sends, and a metric
sent twice carries the same timestamp, which MLflow's database stores only once.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from brainfoundry.core import files
from brainfoundry.core.errors import DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.training.tracking.spool import spool_of


class LockHeld(Exception):
    """Another live process has the lock."""


class FileLock:
    """A lock file.

    Args:
        uri: of the file.
        stale_s: seconds of silence after which an owner counts as dead. A dead process of the same
            machine is noticed at once.
        settle_s: seconds to wait after taking over, to see whether somebody else did too.
        clock: seconds since 1970, the same for all machines to well below `stale_s`.
    """

    def __init__(
        self,
        uri: str,
        *,
        stale_s: float = 180.0,
        settle_s: float = 0.3,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._uri = files.absolute(uri)
        self._local = files.is_local(uri)
        self._stale_s, self._settle_s, self._clock = stale_s, settle_s, clock
        self._token = uuid.uuid4().hex
        self._beat_at = 0.0

    def acquire(self) -> None:
        """Take the lock, or keep it.

        Raises:
            LockHeld: names the owner.
        """
        owner = self._read()
        if owner is not None and owner.get("token") == self._token:
            self._write()
            return
        if owner is not None and not self._is_stale(owner):
            raise LockHeld(f"process {owner.get('pid')} on {owner.get('host')}")
        if owner is None and self._local:
            try:
                with Path(self._uri).open("x") as handle:
                    handle.write(self._content())
            except FileExistsError as error:
                raise LockHeld("a process that was faster") from error
            return
        self._write()
        time.sleep(self._settle_s)
        if not self.held():
            raise LockHeld("a process that was faster")

    def held(self) -> bool:
        """True while the lock is ours."""
        owner = self._read()
        return owner is not None and owner.get("token") == self._token

    def beat(self) -> bool:
        """Show that we live; False if the lock is not ours (any more)."""
        if not self.held():
            return False
        if self._clock() - self._beat_at > self._stale_s / 10:
            self._write()
        return True

    def release(self) -> None:
        """Give the lock back if it is ours."""
        if self.held():
            files.delete_file(self._uri)

    def _content(self) -> str:
        self._beat_at = self._clock()
        started = psutil.Process().create_time()
        owner = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "started": started}
        return json.dumps({**owner, "time": self._beat_at})

    def _write(self) -> None:
        files.write_bytes(self._uri, self._content().encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            content = files.read_bytes(self._uri)
        except StorageError:  # an outage: not the same as nothing there
            raise
        except DataError:
            return None
        try:
            owner = json.loads(content)
        except ValueError:
            owner = None
        if isinstance(owner, dict):
            return owner
        # Caught between creation and content (or torn by a crash): age tells which.
        fs, path = files.filesystem(self._uri)
        changed = fs.get_file_info(path).mtime
        return {"pid": "?", "host": "?", "time": changed.timestamp() if changed else 0.0}

    def _is_stale(self, owner: dict[str, Any]) -> bool:
        if self._clock() - float(owner.get("time", 0.0)) > self._stale_s:
            return True
        if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
            return False
        try:  # the start time tells a process from a later one that was given the same number
            return abs(psutil.Process(owner["pid"]).create_time() - float(owner.get("started", 0.0))) > 1.0
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False


class DeliveryLock(FileLock):
    """`RUN/spool/delivery.lock`.

    Args:
        run_dir: RUN.
        options: of `FileLock`.
    """

    def __init__(self, run_dir: str, **options: Any) -> None:
        super().__init__(files.join(spool_of(files.absolute(run_dir)), "delivery.lock"), **options)
