"""Progress of a run on the driver: rank 0 leaves its last word in the run's folder, this thread shows it."""

from __future__ import annotations

import json
import threading
from types import TracebackType

from brainfoundry.core import files
from brainfoundry.core.errors import BrainFoundryError
from brainfoundry.training.task import TrainTask
from brainfoundry.training.tracking.progress import TrainingProgress


class Watcher:
    """Shows progress while the `with` block runs: a bar on a terminal, lines elsewhere."""

    def __init__(self, task: TrainTask, start: int) -> None:
        self._uri = files.join(task.run_dir, "progress.json")
        self._every = 1.0 if files.is_local(self._uri) else 10.0
        self._shown = TrainingProgress(
            task.name,
            task.config.optim.steps,
            start=start,
            shown=("train/total", "train/lr", "speed/crops_per_s"),
        )
        self._stop = threading.Event()
        self._last: float = 0.0
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def __enter__(self) -> Watcher:
        files.delete_file(self._uri)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._shown.close()

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            self._look()

    def _look(self) -> None:
        try:
            if not files.exists(self._uri):
                return
            now = json.loads(files.read_bytes(self._uri))
        except (OSError, ValueError, BrainFoundryError):  # a slow or blinking storage only costs a look
            return
        if now["time"] != self._last:
            self._last = now["time"]
            self._shown.update(now["step"], now["values"])
