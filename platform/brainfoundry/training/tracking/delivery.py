"""Bringing a spool to MLflow: every metric once, in order, however often it is tried.

A request that failed may still have been carried out, and a process may die between a server's answer
and noting it. So nothing is sent on the strength of our own notes alone: when a spool is opened, and
after a failed request, the server is asked which steps it has of each metric, and those are not sent
again. A step that ran twice, because a run resumed from an earlier checkpoint, counts once: the first
time it is accepted.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError, DataError
from brainfoundry.training.tracking import spool
from brainfoundry.training.tracking.lock import DeliveryLock, LockHeld
from brainfoundry.training.tracking.marker import Destination, Marker, reason_of, without_secrets
from brainfoundry.training.tracking.mlflow_run import MlflowRun, Point, Refused, RunGone

log = logging.getLogger("brainfoundry.tracking")

_POINTS = 1000  # metrics a request may carry (MLflow's REST API, runs/log-batch)
_READ_AHEAD = 2000  # events held in memory while a server is away, about
_LIST_EVERY_S = 60.0  # between two looks for new sessions on an object store
_ARTIFACT_PAUSE_S = 30.0  # an artifact store that fails is left alone for this long; metrics go on


class Stopped(Exception):
    """The owner of this delivery has given up on it."""


class Delivery:
    """Delivers one run's spool to one destination; used by one thread.

    Artifacts have a lane of their own, so that an artifact store that is away holds up no metric.

    Args:
        run_dir: RUN.
        uri: tracking URI.
        stopped: asked before every request; True ends the attempt with `Stopped`.
    """

    def __init__(self, run_dir: str, uri: str, *, stopped: Callable[[], bool] = lambda: False) -> None:
        self._run_dir, self._uri, self._stopped = run_dir, uri, stopped
        self._lock = DeliveryLock(run_dir)
        self._marker = Marker(run_dir)
        self._run = MlflowRun(uri, run_dir, check=self._check)
        self._open = False
        self._state = Destination()
        self._readers: list[spool.SpoolReader] = []
        self._events: deque[tuple[str, spool.Event]] = deque()
        self._artifacts: deque[tuple[str, spool.Event]] = deque()
        self._read_to: dict[str, int] = {}
        self._listed_at = -math.inf
        self._artifacts_after = -math.inf
        self.accepted = 0
        """Metric points this object has sent."""
        self.problem: str | None = None
        """Why the last attempt did not deliver everything."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, once known."""
        return self._run.run_id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment, once known."""
        return self._run.experiment_id

    @property
    def refused(self) -> list[dict[str, Any]]:
        """What the server would not take for good."""
        return self._state.refused

    def attempt(self, *, patient: bool = False) -> bool:
        """Send what the spool holds; True if nothing is left.

        Args:
            patient: try artifacts again even if they failed a moment ago.

        Raises:
            LockHeld: another process is at it.
            Stopped: see `stopped`.
            Exception: whatever the server or the network answered; try again later.
        """
        if patient:
            self._artifacts_after = -math.inf
        self.problem = None
        try:
            if not self._open and not self._start():
                return True
            self._check()
            self._follow_sessions()
            while self._events or self._read():
                self._send_events()
            self._send_artifacts()
        except Exception as error:
            self.problem = reason_of(error)
            log.debug("delivery to MLflow failed", exc_info=True)
            if isinstance(error, RunGone):
                self._open = False  # look for it anew, or make another
            raise
        return not self._artifacts

    def end_if_cut_short(self, status: str) -> None:
        """Give the run a status if its newest session left none (after a complete `attempt`).

        Raises:
            Exception: whatever the server or the network answered.
        """
        newest = spool.sessions(self._run_dir)[-1:]
        ended = any(e["kind"] == "end" for s, e in spool.read_events(self._run_dir) if s in newest)
        if self._open and not ended:
            self._run.end(status)

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def _check(self) -> None:
        if self._stopped():
            raise Stopped
        if not self._lock.beat():
            self._open = False
            raise LockHeld("a process that took over")

    # Opening.

    def _start(self) -> bool:
        start = spool.last_start(self._run_dir)
        if start is None:
            return False
        self._lock.acquire()
        self._state = self._marker.load(self._uri)
        # The first session's random part tells a run from one begun anew in its emptied folder.
        run_key = re.sub(r"[\"'`]", "_", f"{start['run_key']}#{spool.sessions(self._run_dir)[0]}")
        if not self._run.open(start, run_key, self._state.run_id):
            self._state = Destination()
        self._state.run_id, self._state.experiment_id = self._run.run_id, self._run.experiment_id
        self._save()
        self._events.clear()
        self._artifacts.clear()
        self._read_to.clear()
        self._readers = []
        self._listed_at = -math.inf
        self._open = True
        return True

    def _follow_sessions(self) -> None:
        """Read sessions that began since the last look, too (another process may track the run by now)."""
        if not files.is_local(self._run_dir) and time.monotonic() - self._listed_at < _LIST_EVERY_S:
            return
        self._listed_at = time.monotonic()
        for session in spool.sessions(self._run_dir):
            if session not in self._read_to:
                first = min(self._state.position(session, lane) for lane in ("events", "artifacts"))
                self._read_to[session] = first
                self._readers.append(spool.SpoolReader(self._run_dir, session, after=first - 1))

    # Reading.

    def _read(self) -> bool:
        """Fill the lanes; True if anything was read."""
        got = False
        for reader in self._readers:
            while len(self._events) < _READ_AHEAD and (events := reader.read()):
                got = True
                for event in events:
                    self._sort_in(reader.session, event)
        self._settle_idle_lanes()
        return got

    def _sort_in(self, session: str, event: spool.Event) -> None:
        lane = "artifacts" if event["kind"] == "artifact" else "events"
        if event["seq"] >= self._state.position(session, lane):
            (self._artifacts if lane == "artifacts" else self._events).append((session, event))
        self._read_to[session] = event["seq"] + 1

    def _settle_idle_lanes(self) -> None:
        """A lane in which nothing of a session waits is done up to what was read of the session."""
        for lane, waiting in (("events", self._events), ("artifacts", self._artifacts)):
            busy = {session for session, _ in waiting}
            for session, count in self._read_to.items():
                if session not in busy and count > self._state.position(session, lane):
                    self._state.advance(session, lane, count)

    # Sending.

    def _send_events(self) -> None:
        while self._events:
            session, event = self._events[0]
            if event["kind"] == "metrics":
                count = self._send_metrics()
            else:
                self._send_start_or_end(session, event)
                count = 1
            for _ in range(count):
                session, event = self._events.popleft()
                self._state.advance(session, "events", event["seq"] + 1)
            self._settle_idle_lanes()
            self._save()

    def _send_metrics(self) -> int:
        """Send the metrics at the head of the lane; returns how many events that finishes."""
        self._run.settle_doubt()
        points: dict[tuple[str, int], Point] = {}
        count = 0
        for session, event in self._events:
            if event["kind"] != "metrics" or (points and len(points) + len(event["values"]) > _POINTS):
                break
            count += 1
            step = event["step"]
            for key, value in event["values"].items():
                if (key, step) not in points and not self._run.has(key, step):
                    points[key, step] = Point(key, value, step, event["time"], session, event["seq"])
        batch = list(points.values())
        for start in range(0, len(batch), _POINTS):
            self._run.log_points(batch[start : start + _POINTS], self._refuse_point)
        self.accepted += len(batch)
        return count

    def _refuse_point(self, point: Point, reason: str) -> None:
        self.accepted -= 1
        self._state.refuse(point.session, point.seq, f"metric {point.key} at step {point.step}: {reason}")

    def _send_start_or_end(self, session: str, event: spool.Event) -> None:
        try:
            if event["kind"] == "start":
                self._run.start(event)
            elif event["kind"] == "end":
                self._run.end(event["status"], event["time"])
        except Refused as error:
            self._state.refuse(session, event["seq"], f"{event['kind']}: {error}")

    def _send_artifacts(self) -> None:
        if time.monotonic() < self._artifacts_after:
            return
        while self._artifacts:
            session, event = self._artifacts[0]
            try:
                self._run.artifact(spool.read_file(self._run_dir, event["file"]), event["path"])
            except (DataError, Refused) as error:
                self._state.refuse(session, event["seq"], f"artifact {event['path']}: {error}")
            except (LockHeld, Stopped, RunGone):
                raise
            except Exception as error:
                # The server may be well and only its artifact store away: metrics must not wait for it.
                self._artifacts_after = time.monotonic() + _ARTIFACT_PAUSE_S
                self.problem = f"artifact {event['path']}: {reason_of(error)}"
                log.warning("MLflow did not take an artifact, will try again: %s", self.problem)
                return
            self._artifacts.popleft()
            self._state.advance(session, "artifacts", event["seq"] + 1)
            self._settle_idle_lanes()
            self._save()

    def _save(self) -> None:
        if self._lock.held():
            self._marker.save(self._uri, self._state)


def deliver(
    run_dir: str, uri: str, *, timeout_s: float, end_status: str | None = None, pause_s: float = 2.0
) -> Delivery:
    """Deliver what a run's spool holds, trying again until it is done or time is up.

    Args:
        run_dir: RUN.
        uri: tracking URI.
        timeout_s: seconds to keep trying.
        end_status: status for a run whose last process died without leaving one.
        pause_s: seconds between two tries.

    Raises:
        BrainFoundryError: no such run, another process at it, or time is up: says why.
    """
    run_dir = files.absolute(run_dir)
    if not spool.sessions(run_dir):
        raise DataError("not a run folder: it holds no spool", file=run_dir, fix="give STORAGE/NAME of a run")
    delivery = Delivery(run_dir, uri)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                if delivery.attempt(patient=True):
                    if end_status is not None:
                        delivery.end_if_cut_short(end_status)
                    return delivery
                reason = delivery.problem
            except LockHeld as error:
                raise BrainFoundryError(
                    f"{error} is delivering this run's metrics already",
                    file=run_dir,
                    fix="let it; once it is gone, a lock it left behind expires after three minutes",
                ) from error
            except Exception as error:
                reason = delivery.problem or reason_of(error)
            if time.monotonic() + pause_s > deadline:
                raise BrainFoundryError(
                    f"MLflow at {without_secrets(uri)} does not take it all: {reason}",
                    file=run_dir,
                    fix="nothing is lost: see that the server runs, and start this again",
                )
            time.sleep(pause_s)
    finally:
        delivery.close()
