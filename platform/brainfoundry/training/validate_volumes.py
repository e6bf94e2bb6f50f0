"""Validation of a fine-tuning run on whole volumes: by the workers, or beside them by Ray Train."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint, ValidationTaskConfig

from brainfoundry.core import files
from brainfoundry.training.checkpoint import checkpoint_uri, list_steps, read_card
from brainfoundry.training.engine import Engine
from brainfoundry.training.task import TrainTask
from brainfoundry.training.validation_task import row_of
from brainfoundry.training.verdicts import Verdict, read_verdict, verdict_of, verdict_uri, write_verdict
from brainfoundry.training.volumes import VolumeSpec, score_sessions

_MOST_WAITING = 3
"""Checkpoints without a verdict beyond which a validation is left out: each is kept with its whole state."""


class VolumeValidator:
    """Scores the run's checkpoints on whole held-out volumes.

    Beside the training, a checkpoint is handed to Ray Train one look at the losses after it was written (all
    workers report equally often), and its verdict is picked up whenever it is there. By the workers, each
    scores its share of the subjects at once.

    Args:
        task: the run, with its volumes.
    """

    def __init__(self, task: TrainTask, *, rank: int, world: int) -> None:
        assert task.volumes is not None
        self.task, self.rank, self.world = task, rank, world
        self.spec: VolumeSpec = task.volumes
        self.beside = task.beside
        self.waiting: list[int] = []
        """Steps handed over, or to be, whose verdict is not in yet, ascending."""
        self._to_report: list[int] = []

    def resume(self) -> None:
        """Checkpoints whose card an earlier attempt left without scores are waited for, and asked for again
        where there is no verdict. Every worker must call it."""
        if not self.beside:
            return
        unjudged: list[int] = []
        if self.rank == 0:
            every, last = self.task.config.keep.validate_every, self.task.config.optim.steps
            due = [s for s in list_steps(self.task.checkpoints) if s == last or (every and s % every == 0)]
            uris = {s: checkpoint_uri(self.task.checkpoints, s) for s in due}
            unjudged = [s for s in due if not read_card(uris[s]).metrics]
        missing = [s for s in unjudged if read_verdict(self.task.verdicts, s) is None]
        self.waiting, self._to_report = self._from_first((unjudged, missing))

    def _from_first(self, value: Any) -> Any:
        """Rank 0's value, on every worker."""
        values = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def at_once(self, engine: Engine, step: int) -> Verdict | None:
        """The verdict on the engine's weights, made by all workers, on rank 0. Every worker must call it."""
        began = time.perf_counter()
        network = engine.best
        training = network.training
        network.eval()
        try:
            mine = self.spec.sessions[self.rank :: self.world]
            rows = [row_of(s) for s in score_sessions([network], self.spec, mine, device=engine.device)]
        finally:
            network.train(training)
        parts: list[Any] = [None] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, rows)
        else:
            parts = [rows]
        if self.rank:
            return None
        merged = sorted((row for part in parts for row in part), key=lambda r: (r["subject"], r["session"]))
        verdict = verdict_of(step, merged, time.perf_counter() - began)
        write_verdict(self.task.verdicts, verdict)
        return verdict

    def ask(self, step: int, *, always: bool) -> bool:
        """A checkpoint of this step is being written: hand it to Ray Train at the next `report`. Every worker
        must call it.

        Args:
            always: also where validation lags so far behind that checkpoints pile up.

        Returns:
            Whether it will be judged.
        """
        if not always and self._from_first(len(self.waiting)) >= _MOST_WAITING:
            return False
        if self.rank == 0:  # of an earlier attempt at this step, with other weights
            files.delete_file(verdict_uri(self.task.verdicts, step))
        self.waiting.append(step)
        self._to_report.append(step)
        return True

    @property
    def must_report(self) -> bool:
        """Whether a checkpoint waits to be handed over: the same on every worker."""
        return bool(self._to_report)

    def report(self) -> None:
        """Hand the waiting checkpoints to Ray Train; they must be on storage. Every worker must call it."""
        for step in self._to_report:
            if self.rank:
                ray.train.report({})
                continue
            uri = checkpoint_uri(self.task.checkpoints, step)
            with tempfile.TemporaryDirectory() as folder:
                # Ray Train takes only checkpoints inside its own folder: this one points at ours.
                (Path(folder) / "pointer.json").write_text(json.dumps({"uri": uri}))
                ray.train.report(
                    {"step": step},
                    checkpoint=Checkpoint.from_directory(folder),
                    validation=ValidationTaskConfig(fn_kwargs={"uri": uri}),
                )
        self._to_report = []

    def verdicts(self) -> list[Verdict]:
        """Verdicts that have come in since the last look (rank 0)."""
        found = [read_verdict(self.task.verdicts, step) for step in self.waiting]
        verdicts = [v for v in found if v is not None]
        self.waiting = [s for s in self.waiting if s not in {v.step for v in verdicts}]
        return verdicts

    def rest(self) -> list[Verdict]:
        """At the end: wait for all verdicts (rank 0). What Ray Train gave up is left out."""
        if not self.waiting:
            return []
        ray.train.get_all_reported_checkpoints()  # returns when every validation has ended, however
        return self.verdicts()
