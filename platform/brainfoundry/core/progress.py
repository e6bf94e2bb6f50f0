"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass
class Counter:
    """Counts finished items; `advance(n, note)` shows them."""

    label: str
    total: int
    unit: str
    every_s: float = 10.0
    done: int = 0
    _bar: Progress | None = None
    _task: TaskID | None = None
    _start: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count n more items."""
        self.done += n
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, description=f"{self.label} {note}".strip())
            return
        now = time.monotonic()
        if now - self._last >= self.every_s or (self.done >= self.total and n):
            self._last = now
            elapsed = now - self._start
            left = elapsed / max(self.done, 1) * (self.total - self.done)
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s, {left:.0f} s left"
                + (f", {note}" if note else ""),
                flush=True,
            )


@contextmanager
def progress(label: str, total: int, unit: str = "items") -> Iterator[Counter]:
    """A `Counter` drawn as a bar where stderr is a terminal, as plain lines where it is not."""
    counter = Counter(label, total, unit)
    if not sys.stderr.isatty():
        yield counter
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        counter._bar = bar
        counter._task = bar.add_task(label, total=total)
        yield counter
