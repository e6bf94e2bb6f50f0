"""`Tracker`: what the training loop calls on rank 0; nothing it calls waits for a disk or a server.

Two threads do the work: one writes the spool (so that what was handed in survives a kill a moment
later), the other owns the MLflow client and delivers what the spool holds. They meet only in the
spool's files, so a delivery that hangs cannot hold up the writing.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from brainfoundry.core import files
from brainfoundry.training.tracking import spool
from brainfoundry.training.tracking.delivery import Delivery
from brainfoundry.training.tracking.lock import LockHeld
from brainfoundry.training.tracking.marker import without_secrets
from brainfoundry.training.tracking.mlflow_run import set_mlflow_environment
from brainfoundry.training.tracking.uri import is_server, view_command

Status = Literal["FINISHED", "FAILED", "KILLED"]

log = logging.getLogger("brainfoundry.tracking")

_KEY = 250  # longest key MLflow takes (mlflow.utils.validation.MAX_ENTITY_KEY_LENGTH)
_PARAM = 500  # longest parameter any of MLflow's databases takes; whole configurations go as artifacts
_TAG = 5000  # longest tag that MLflow's REST API documents
_BACKOFF_MAX_S = 60.0


@dataclass(frozen=True)
class _File:
    """An artifact on its way to the spool."""

    data: bytes
    path: str
    time: int


class Tracker:
    """One process's tracking of one run.

    Made again on the same `run_dir` (a resume, a restarted worker) it continues the same MLflow run and
    first delivers what earlier processes left behind.

    Args:
        run_dir: RUN, a folder or any URI.
        uri: MLflow tracking URI, from `resolve_uri`.
        experiment: MLflow experiment, made if there is none.
        run_name: shown by MLflow.
        run_key: names the run: the same in every process that ever tracks it. A run begun anew in an emptied
            folder is another run all the same.
        tags: tags of the MLflow run; the newest process's win.
        params: the few parameters to compare runs by. A changed one keeps its first value; a tag notes it.
        every_s: seconds between two deliveries.
    """

    def __init__(
        self,
        *,
        run_dir: str,
        uri: str,
        experiment: str,
        run_name: str,
        run_key: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        every_s: float = 3.0,
    ) -> None:
        self._run_dir, self._uri, self._run_name, self._every_s = (
            files.absolute(run_dir),
            uri,
            run_name,
            every_s,
        )
        set_mlflow_environment()
        self._keys: dict[str, str] = {}
        self._warned: set[str] = set()
        self._inbox: queue.SimpleQueue[spool.Event | _File | None] = queue.SimpleQueue()
        self._spooled = threading.Event()  # the start of this session is in the spool
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._written = threading.Event()  # everything handed in is in the spool
        self._delivered = False
        self._closed = False
        self._delivery = Delivery(self._run_dir, uri, stopped=self._abandoned.is_set)
        self._inbox.put(
            {
                "kind": "start",
                "time": _now(),
                "experiment": experiment,
                "run_name": run_name,
                "run_key": run_key,
                "uri": without_secrets(uri),
                "tags": {clean_key(k): str(v)[:_TAG] for k, v in tags.items()},
                "params": {clean_key(k): str(v)[:_PARAM] for k, v in params.items()},
            }
        )
        self._writer = threading.Thread(target=self._write_forever, name="tracking-spool", daemon=True)
        self._sender = threading.Thread(target=self._deliver_forever, name="tracking-mlflow", daemon=True)
        self._writer.start()
        self._sender.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server was reached."""
        return self._delivery.run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Hand in a step's metrics. Never blocks, never raises; given twice for a step, the first counts."""
        try:
            event = {
                "kind": "metrics",
                "time": _now(),
                "step": int(step),
                "values": {self._key(k): float(v) for k, v in values.items()},
            }
        except Exception as error:
            self._warn_once("metrics", f"metrics of step {step!r} left out: {error}")
            return
        if not self._closed:
            self._inbox.put(event)

    def artifact(self, local_path: object, artifact_path: str = "") -> None:
        """Hand in a file (any URI); it is copied, so it may change or go afterwards. Never raises.

        Args:
            local_path: the file. It is read before this returns: for small files.
            artifact_path: folder among the run's artifacts; "" = the top.
        """
        try:
            data = files.read_bytes(str(local_path))
        except Exception as error:
            self._warn_once(f"artifact {local_path}", f"artifact left out: {error}")
            return
        self.artifact_bytes(data, str(local_path).rstrip("/").rpartition("/")[2], artifact_path)

    def artifact_bytes(self, data: bytes, name: str, artifact_path: str = "") -> None:
        """Hand in an artifact's content as the file `name` in a folder. Never blocks, never raises."""
        path = "/".join(p for p in f"{artifact_path}/{name}".split("/") if p not in ("", ".", ".."))
        if not self._closed and path:
            self._inbox.put(_File(bytes(data), path, _now()))

    def history(self) -> list[dict[str, float]]:
        """One row a step, of this and all earlier sessions: what the spool holds so far. Never raises."""
        try:
            return spool.read_history(self._run_dir)
        except Exception as error:
            self._warn_once("history", f"the spool cannot be read: {error}")
            return []

    def close(self, status: Status, timeout_s: float = 30.0) -> bool:
        """End the session: write the rest to the spool and try to deliver it.

        Returns:
            True if everything is delivered. False if not within `timeout_s` seconds: it stays in the
            spool for the next resume or jobs/sync_tracking.py.
        """
        if self._closed:
            return self._delivered
        self._inbox.put({"kind": "end", "time": _now(), "status": status})
        self._closed = True
        self._inbox.put(None)
        deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._writer.join(timeout_s)
        self._sender.join(max(0.0, deadline - time.monotonic()))
        self._abandoned.set()
        self._spooled.set()
        # A sender that still hangs in a request notices when it comes back, and sends nothing more.
        try:
            self._delivery.close()
        except Exception as error:
            self._warn_once("lock", f"the delivery lock was not released: {error}")
        return self._delivered

    def where(self) -> str:
        """Where to look at this run, and what to do if not all of it is there yet."""
        run_id, experiment_id = self._delivery.run_id, self._delivery.experiment_id
        shown = without_secrets(self._uri)
        if is_server(self._uri):
            place = f"{shown}/#/experiments/{experiment_id}/runs/{run_id}" if run_id else shown
            text = f"MLflow run {self._run_name}: {place}"
        else:
            text = f"MLflow run {self._run_name} in {shown}; look at it with: {view_command(shown)}"
        if self._closed and not self._delivered:
            reason = f" ({self._delivery.problem})" if self._delivery.problem else ""
            text += f". Not all of it is delivered yet{reason}: python jobs/sync_tracking.py {self._run_dir}"
        return text

    # The spool's thread.

    def _write_forever(self) -> None:
        writer: spool.SpoolWriter | None = None
        waiting: list[spool.Event | _File] = []
        ended = False
        while True:
            ended = self._collect(waiting, wait_s=1.0) or ended
            try:
                if writer is None:
                    writer = spool.SpoolWriter(self._run_dir)
                _write(writer, waiting)
                writer.flush(force=ended or not self._spooled.is_set())
                if not self._spooled.is_set():
                    self._spooled.set()
                if ended:
                    writer.close()
                    self._written.set()
                    return
            except Exception as error:
                self._warn_once(
                    "spool", f"the run's storage does not take the spool, will try again: {error}"
                )
                if self._abandoned.wait(1.0):
                    return

    def _collect(self, waiting: list[spool.Event | _File], wait_s: float) -> bool:
        """Move what was handed in to `waiting`; True at the end of the session."""
        try:
            item = self._inbox.get(timeout=wait_s)
            while item is not None:
                waiting.append(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return False
        return True

    # MLflow's thread.

    def _deliver_forever(self) -> None:
        self._spooled.wait()
        failures = 0
        while not self._abandoned.is_set():
            complete = self._written.is_set()  # asked before the attempt: then the attempt sees all of it
            try:
                done = self._delivery.attempt(patient=complete)
                failures = 0
            except Exception as error:
                done = False
                failures += 1
                if failures == 1 and not self._abandoned.is_set():
                    self._log_failure(error)
            if done and complete:
                self._delivered = True
                return
            self._pause(failures, complete)

    def _log_failure(self, error: Exception) -> None:
        if isinstance(error, LockHeld):
            log.info("%s delivers the metrics of this run; this one only spools", error)
        else:
            log.warning(
                "MLflow at %s does not answer (%s): metrics wait in the run's spool, training goes on",
                without_secrets(self._uri),
                self._delivery.problem,
            )

    def _pause(self, failures: int, complete: bool) -> None:
        if not self._closing.is_set():
            self._closing.wait(
                min(self._every_s * 2.0 ** min(failures, 10), max(_BACKOFF_MAX_S, self._every_s))
            )
        elif not complete:
            self._written.wait(0.2)
        else:
            self._abandoned.wait(1.0)

    def _key(self, key: str) -> str:
        if key not in self._keys:
            self._keys[key] = clean_key(key)
        return self._keys[key]

    def _warn_once(self, subject: str, text: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            log.warning("%s", text)


def _write(writer: spool.SpoolWriter, waiting: list[spool.Event | _File]) -> None:
    """Write the items in order and take out those that are written."""
    while waiting:
        first = waiting[0]
        if isinstance(first, _File):
            relative = writer.add_file(first.data, first.path)
            event = {"kind": "artifact", "time": first.time, "file": relative, "path": first.path}
            waiting[0] = event
            writer.append([event])
            del waiting[0]
        else:
            events = []
            for item in waiting:
                if isinstance(item, _File):
                    break
                events.append(item)
            writer.append(events)
            del waiting[: len(events)]


def clean_key(key: str) -> str:
    """The key with what MLflow would refuse replaced by `_`."""
    parts = re.sub(r"[^\w\-. :/]", "_", str(key)).split("/")
    return "/".join(p for p in parts if p not in ("", ".", ".."))[:_KEY].rstrip("/") or "_"


def _now() -> int:
    return time.time_ns() // 1_000_000
