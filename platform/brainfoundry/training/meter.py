"""Speed of a run, measured between two looks at the losses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Wall-clock time of an interval, and the part of it spent waiting for data."""

    crops_per_step: int
    """Over all workers."""
    workers: int
    gpus: int
    flops_per_step: float | None = None
    """Of this worker; needed for the MFU."""
    peak: float | None = None
    _start: float = field(default_factory=time.perf_counter)
    _waited: float = 0.0
    _steps: int = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def step(self) -> None:
        """One more step was issued."""
        self._steps += 1

    def reset(self) -> None:
        """Start a new interval (also after validation, which is not training time)."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def read(self) -> dict[str, float]:
        """Figures of the interval; call after the device was waited for."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        steps = max(self._steps, 1)
        rate = self.crops_per_step * self._steps / seconds
        values = {
            "speed/step_s": seconds / steps,
            "speed/crops_per_s": rate,
            "speed/crops_per_s_per_worker": rate / self.workers,
            "speed/data_wait_share": min(1.0, self._waited / seconds),
        }
        if self.gpus:
            values["speed/crops_per_s_per_gpu"] = rate / self.gpus
        if self.flops_per_step and self.peak:
            values["speed/mfu"] = self.flops_per_step * self._steps / seconds / self.peak
        return values
