"""What the tests of delivery do again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from brainfoundry.training.tracking import spool
from brainfoundry.training.tracking.tracker import Tracker

MakeTracker = Callable[..., Tracker]


def log_steps(tracker: Tracker, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        tracker.metrics(step, {"train/total": step + offset, "train/lr": 1e-3 / step})


def write_session(run_dir: str, steps: range, *, ended: str | None = None, offset: float = 0.0) -> None:
    """A session as a process leaves it behind that never reached a server."""
    writer = spool.SpoolWriter(run_dir)
    start = {"kind": "start", "time": 1_700_000_000_000, "experiment": "test", "run_name": "demo", "uri": ""}
    writer.append([{**start, "run_key": "key", "tags": {}, "params": {"steps": "40"}}])
    base = 1_700_000_000_000 + int(1000 * offset)
    for step in steps:
        values = {"train/total": step + offset}
        writer.append([{"kind": "metrics", "time": base + step, "step": step, "values": values}])
    if ended:
        writer.append([{"kind": "end", "time": base + 10_000, "status": ended}])
    writer.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Give other threads up to a minute."""
    for _ in range(1200):
        if true():
            return
        threading.Event().wait(0.05)
    raise AssertionError("a minute has gone by")


def wait_for_spool(run_dir: str, steps: int) -> None:
    wait_until(lambda: len(spool.read_history(run_dir)) >= steps)
