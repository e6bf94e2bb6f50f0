"""Two drivers never run one study: a lock file with a heartbeat, taken over where its owner has died."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from brainfoundry.core import files
from brainfoundry.core.errors import ClusterError
from brainfoundry.experiments.records import StudyFolder
from brainfoundry.training.tracking.lock import FileLock, LockHeld

log = logging.getLogger("brainfoundry.experiments")

STALE_S = 180.0
"""Silence after which a driver on another machine counts as dead; one of this machine is noticed at once."""


class StudyLock(FileLock):
    """`STUDY/lock`."""

    def __init__(self, study: StudyFolder, *, stale_s: float = STALE_S) -> None:
        super().__init__(files.join(study.uri, "lock"), stale_s=stale_s)

    def owner(self) -> tuple[str, float]:
        """Machine and last heartbeat of whoever holds it."""
        found = self._read() or {}
        return str(found.get("host", "")), float(found.get("time", 0.0))


@contextmanager
def driving(study: StudyFolder, *, stale_s: float = STALE_S) -> Iterator[Callable[[], None]]:
    """The only driver of the study while the `with` block runs.

    Yields:
        What raises ClusterError once another driver has taken over, because this one was silent for too long.

    Raises:
        ClusterError: another driver is at it.
    """
    files.make_folder(study.uri)
    lock = StudyLock(study, stale_s=stale_s)
    _acquire(lock, study, stale_s)
    stop, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not stop.wait(stale_s / 12):
            try:
                if not lock.beat():
                    lost.set()
                    return
            except Exception as error:  # storage that blinks; if it lasts, the others see silence
                log.warning("the heartbeat of study %s was not written: %s", study.name, error)

    def check() -> None:
        if lost.is_set():
            raise ClusterError(
                f"another driver took study {study.name} over, while this one was silent", file=study.uri,
                fix="look at its output; submit this job again when it has ended",
            )  # fmt: skip

    thread = threading.Thread(target=beat, name="study-lock", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        stop.set()
        thread.join()
        lock.release()


def _acquire(lock: StudyLock, study: StudyFolder, stale_s: float) -> None:
    """At once, or after the silence that a dead driver of another machine (a moved pod) leaves behind."""
    first: tuple[str, float] | None = None
    while True:
        try:
            lock.acquire()
            return
        except LockHeld as error:
            owner = lock.owner()
            if owner[0] == socket.gethostname() or first not in (None, owner):  # it lives
                raise ClusterError(
                    f"study {study.name} is being run by {error}", file=study.uri,
                    fix="wait for it to end, or give this one another name or --storage",
                ) from None  # fmt: skip
            if first is None:
                first = owner
                print(f"study {study.name} was run by {error}: waiting to see whether it lives", flush=True)
            time.sleep(min(5.0, stale_s / 12))
