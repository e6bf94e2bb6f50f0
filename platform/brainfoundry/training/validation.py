"""Validation as the step loop sees it, whatever is validated: crops at once, volumes at once or beside."""

from __future__ import annotations

import logging

from brainfoundry.core.errors import DataError
from brainfoundry.store.reader import ShardSet
from brainfoundry.stream.plan import Plan
from brainfoundry.training.checkpoint import CheckpointWriter
from brainfoundry.training.engine import Engine
from brainfoundry.training.receipt_log import ReceiptWriter
from brainfoundry.training.reporter import Reporter
from brainfoundry.training.task import TrainTask
from brainfoundry.training.validate import Validator
from brainfoundry.training.validate_volumes import VolumeValidator
from brainfoundry.training.verdicts import Verdict

log = logging.getLogger("brainfoundry.training")


class Validation:
    """What a run validates, on one worker. Every worker calls every method.

    Args:
        receipt: where each look at held-out subjects is noted.
        reporter, writer: of rank 0; None on the others.
    """

    def __init__(
        self,
        task: TrainTask,
        shards: ShardSet,
        engine: Engine,
        *,
        rank: int,
        world: int,
        receipt: ReceiptWriter,
        reporter: Reporter | None,
        writer: CheckpointWriter | None,
    ) -> None:
        self.task, self.engine = task, engine
        self.receipt, self.reporter, self.writer = receipt, reporter, writer
        self.metrics: dict[str, float] = {}
        """The newest."""
        self._crops: Validator | None = None
        self._volumes: VolumeValidator | None = None
        if task.validation is None:
            return
        held_out = Plan.open(shards, task.validation)
        self._plan_hash = held_out.hash
        if task.volumes is not None:
            self._volumes = VolumeValidator(task, rank=rank, world=world)
        else:
            groups = task.validation_groups
            self._crops = Validator(shards, held_out, task.channels, groups=groups, rank=rank, world=world)

    @property
    def possible(self) -> bool:
        """Whether anybody is held out."""
        return self._crops is not None or self._volumes is not None

    @property
    def of_checkpoints(self) -> bool:
        """Whether each validation goes with a checkpoint."""
        return self._volumes is not None

    def resume(self) -> None:
        """Before the first step: ask again for verdicts that an earlier attempt did not get."""
        if self._volumes is not None:
            self._volumes.resume()
            if self.writer:
                self.writer.hold(self._volumes.waiting)

    def between(self) -> None:
        """At each look at the losses: hand over the checkpoint before, take in what has come."""
        if self._volumes is None or not self._volumes.beside:
            return
        if self._volumes.must_report:
            if self.writer:
                self.writer.wait()
            self._volumes.report()
        if self.reporter and self._volumes.waiting:
            for verdict in self._volumes.verdicts():
                self._take(verdict)

    def at(self, done: int) -> dict[str, float]:
        """Validate after `done` steps; returns what is known at once, for the card."""
        if self._crops is not None:
            self.metrics = self._crops.losses(self.engine)
            if self.reporter:
                self.receipt.validated(done, self._plan_hash, self.task.validation_groups)
                shown = self._crops.pictures(self.engine, self.task.config.keep.pictures)
                self.reporter.validation(done, self.metrics, shown)
            return self.metrics
        assert self._volumes is not None
        if self.reporter:
            self.receipt.validated(done, self._plan_hash, self.task.validation_groups)
        if self._volumes.beside:
            asked = self._volumes.ask(done, always=done == self.task.config.optim.steps)
            if asked and self.writer:
                self.writer.hold([done])
            if not asked and self.reporter:
                log.warning("validation of step %d left out: it lags behind the training", done)
            return {}
        verdict = self._volumes.at_once(self.engine, done)
        if verdict is None:
            return {}
        self.metrics = dict(verdict.metrics)
        if self.reporter:
            self.reporter.verdict(verdict)
        return self.metrics

    def end(self) -> None:
        """After the last step: everything written, every verdict taken in."""
        self.between()
        if self.writer:
            self.writer.wait()
        if self.reporter and self._volumes is not None and self._volumes.beside:
            for verdict in self._volumes.rest():
                self._take(verdict)

    def _take(self, verdict: Verdict) -> None:
        assert self.reporter is not None and self.writer is not None and self._volumes is not None
        self.reporter.verdict(verdict)
        try:
            self.writer.judge(verdict.step, dict(verdict.metrics))
        except (OSError, DataError) as error:  # storage that blinks costs a look, not the workers' restart
            log.warning("the verdict on step %d cannot be put on its card for now: %s", verdict.step, error)
            self._volumes.waiting.append(verdict.step)
        if verdict.metrics:
            self.metrics = dict(verdict.metrics)
