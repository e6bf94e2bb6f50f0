"""Progress of a training: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

SHOWN = ("train/total", "train/lr", "speed/crops_per_s")
_LABELS = {"train/total": "loss", "train/lr": "lr", "speed/crops_per_s": "crops/s"}


class TrainingProgress:
    """Shows how far a training is.

    Args:
        label: name of the run.
        total: steps of the whole run.
        start: the step training begins at (a resume); the time left is judged by this session's speed.
        shown: metrics to show, where they are given.
        every_s: seconds between two plain lines at least; the first and the last step always get one.
        stream: where to: a terminal gets the bar, anything else the lines. Default: stderr if that is a
            terminal, else stdout.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        start: int = 0,
        shown: Sequence[str] = SHOWN,
        every_s: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._first, self._shown = label, total, start, tuple(shown)
        self._every_s, self._clock = every_s, clock
        self._stream = stream or (sys.stderr if sys.stderr.isatty() else sys.stdout)
        self._began = clock()
        self._printed_at: float | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._stream.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[values]}"),
            )
            self._bar = Progress(*columns, console=Console(file=self._stream), refresh_per_second=4)
            self._task = self._bar.add_task(label, total=total, completed=start, left="", values="")
            self._bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """`step` steps are done; `values` are the newest metrics."""
        now = self._clock()
        done = step - self._first
        left_s = (now - self._began) / done * (self._total - step) if done > 0 else None
        left = f"{duration(left_s)} left" if left_s is not None and step < self._total else ""
        text = ", ".join(f"{_LABELS.get(key, key)} {values[key]:.4g}" for key in self._shown if key in values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, left=left, values=text)
            return
        due = self._printed_at is None or now - self._printed_at >= self._every_s or step >= self._total
        if due:
            self._printed_at = now
            parts = [f"step {step}/{self._total}", text, f"{duration(now - self._began)} so far", left]
            print(f"{self._label}: " + ", ".join(p for p in parts if p), file=self._stream, flush=True)

    def close(self) -> None:
        """Take the bar off the terminal, leaving its last state."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 07 min, 2 d 3 h."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"
