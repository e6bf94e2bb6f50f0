"""What a running study tells: one line a trial that ended, with its score and what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from brainfoundry.experiments.records import TrialRecord
from brainfoundry.training.tracking.progress import duration


class Board:
    """Counts the nodes of a study as they end; a bar below the lines where there is a terminal.

    Args:
        label: name of the study.
        total: nodes to run in this session.
        by: the metric shown of a trial.
        stream: where to; default: stdout.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        by: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._by, self._clock = label, total, by, clock
        self._stream = stream or sys.stdout
        self._began, self._done = clock(), 0
        self._running: set[str] = set()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._stream.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, console=Console(file=self._stream))
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Board:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def more(self, n: int) -> None:
        """There are n further nodes to run."""
        self._total += n

    def started(self, node: str) -> None:
        """A node has begun (again)."""
        self._running.add(node)
        self._show()

    def ended(self, record: TrialRecord) -> None:
        """A node has its record."""
        self._running.discard(record.id)
        self._done += 1
        self.line(f"[{self._done}/{self._total}] {record.id}: {outcome(record, self._by)}{self._left()}")
        self._show()

    def line(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def _left(self) -> str:
        left = self._total - self._done
        if left <= 0:
            return ""
        seconds = (self._clock() - self._began) / self._done * left
        return f"; {left} left, about {duration(seconds)}"

    def _show(self) -> None:
        if self._bar is not None:
            running = ", ".join(sorted(self._running)[:3]) + (", ..." if len(self._running) > 3 else "")
            text = f"{self._label} ({running})" if running else self._label
            self._bar.update(self._task, completed=self._done, total=self._total, description=text)


def outcome(record: TrialRecord, by: str) -> str:
    """What came of a node, in a few words.

    Args:
        by: the metric to show.
    """
    if record.state == "failed":
        return f"FAILED: {record.error}"
    if record.state == "unfit":
        return f"out of the running: {record.error}"
    parts = [record.state if record.state == "finished" else f"stopped early at step {record.steps}"]
    if by in record.metrics:
        parts.append(
            f"{by} {record.metrics[by]:.4f} on {(record.test or {}).get('subjects', 0)} test subjects"
        )
    for name in (by, "total"):
        if f"val/{name}" in record.validation:
            parts.append(f"{record.validation[f'val/{name}']:.4f} in validation ({name})")
            break
    if record.seconds is not None:
        parts.append(f"trained in {duration(record.seconds)}")
    return ", ".join(parts)
