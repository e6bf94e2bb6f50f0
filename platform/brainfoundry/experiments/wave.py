"""Several nodes at once over Ray Tune: each trial is an actor without resources that drives a training.

Tune sees nothing of what the trainings take, so it may never run more at once than the cluster holds whole
(`capacity.py`). Where to go on is read from records and checkpoints: Tune's own state is thrown away.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from brainfoundry.core import files
from brainfoundry.core.errors import CheckpointError, ConfigError, DataError
from brainfoundry.core.remote import StorageError
from brainfoundry.experiments.board import Board
from brainfoundry.experiments.leases import Lease, leases
from brainfoundry.experiments.node import Node
from brainfoundry.experiments.records import StudyFolder, TrialRecord, read_record
from brainfoundry.experiments.trial import failed, run_dir_of, run_node, score_so_far, stopped
from brainfoundry.training.checkpoint import CheckpointWriter
from brainfoundry.training.config import TrainConfig

SCORE, PERCENT = "score", "percent"
"""What a trial reports: its best validation score so far, and how much of its steps are done."""

NOTHING = {"memory": 1.0}
"""What a trial itself takes: a byte, because Tune knows no trial without resources, and any share of a CPU or
GPU would be missing where a training needs all there are."""

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its files and messages would only repeat ours
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed has no score
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the job, not only the wave
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A node with everything that is picked for it."""

    node: Node
    config: TrainConfig
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> str:
        """Folder of its training run."""
        return run_dir_of(self.config)


Make = Callable[[Mapping[str, Any]], Work]
"""What the parameters that Tune draws for a trial mean."""


class Trial(tune.Trainable):
    """One node. Runs `run_node` in a thread, so that it can be stopped; trying again is no use where the user
    has to mend something."""

    def setup(  # type: ignore[override]  # Tune hands over what `with_parameters` binds
        self, config: dict[str, Any], *, study: StudyFolder, make: Make, scored: bool, higher: bool
    ) -> None:
        """Begin, after clearing what a predecessor that died may have left in the cluster.

        Args:
            scored: report validation scores as they come in.
            higher: the highest is the best.
        """
        self._work, self._study, self._scored, self._higher = make(config), study, scored, higher
        self._leases = leases()
        ray.get(self._leases.release.remote(self._work.run_dir))
        self._told, self._every_s = 0.0, 1.0 if files.is_local(study.uri) else 10.0
        self._result: Future[TrialRecord] = Future()
        threading.Thread(target=self._run, name="trial", daemon=True).start()

    def _run(self) -> None:
        work = self._work
        try:
            record = run_node(work.node, work.config, self._study, chosen=work.chosen, callbacks=[Lease()])
            self._result.set_result(record)
        except BaseException as error:
            self._result.set_exception(error)

    def step(self) -> dict[str, Any]:
        """The next validation score, or the end."""
        while True:
            try:
                return self._end(self._result.result(timeout=self._every_s))
            except NotYet:
                if self._result.done():  # the run itself waited too long for something
                    raise
            except StorageError:
                raise
            except (ConfigError, DataError, CheckpointError) as error:
                return self._end(self._failed(error))
            found = self._look() if self._scored else None
            if found is not None:
                return found

    def _look(self) -> dict[str, Any] | None:
        by = self._work.config.keep.best_by
        found = score_so_far(self._work.run_dir, by, higher=self._higher)
        if found is None or not self._told < found[0] < 100.0:
            return None
        self._told = found[0]
        return {PERCENT: found[0], SCORE: found[1]}

    def _failed(self, error: BaseException) -> TrialRecord:
        work = self._work
        return failed(work.node, work.config, self._study, error, chosen=work.chosen)

    def _end(self, record: TrialRecord) -> dict[str, Any]:
        score = record.validation.get(f"val/{self._work.config.keep.best_by}")
        return {
            "state": record.state, PERCENT: 100.0, tune.result.DONE: True,
            **({SCORE: score} if score is not None else {}),
        }  # fmt: skip

    def cleanup(self) -> None:
        """Tune stops the trial, or it has ended."""
        if not self._result.done():
            ray.get(self._leases.release.remote(self._work.run_dir))


class _Told(tune.Callback):
    """Tune's events, for the board, and the records of trials that cannot write their own."""

    def __init__(self, study: StudyFolder, make: Make, board: Board, check: Callable[[], None]) -> None:
        self._study, self._make, self._board, self._check = study, make, board, check

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, to restore what we never restore; a board cannot be pickled

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._check()  # what it raises ends the wave, and leaves no record of what was running

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._board.started(self._make(trial.config).node.id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        work = self._make(trial.config)
        if trial.last_result.get("state"):
            self._board.ended(read_record(self._study, work.node.id))
            return
        # Given up by the scheduler: first its workers end, then what they were writing is swept away.
        ray.get(leases().release.remote(work.run_dir))
        sweep(work)
        self._board.ended(stopped(work.node, work.config, self._study, chosen=work.chosen))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        work = self._make(trial.config)
        error = trial.get_pickled_error() or trial.get_error() or "ended without a word"
        self._board.ended(failed(work.node, work.config, self._study, error, chosen=work.chosen))


def run_wave(
    study: StudyFolder,
    make: Make,
    board: Board,
    *,
    at_once: int,
    retries: int,
    check: Callable[[], None] = lambda: None,
    space: Mapping[str, Any],
    samples: int = 1,
    searcher: Any = None,
    scheduler: Any = None,
    scored: bool = False,
    higher: bool = True,
) -> None:
    """Run trials until each has its record.

    Args:
        at_once: trials that run at the same time, at most.
        retries: how often a trial that died is begun again (it goes on from its newest checkpoint).
        check: called again and again; raises where the wave must end at once, with nothing said of its
            trials.
        space: Tune's parameter space; `make` turns a draw of it into work.
        samples: draws of the space.
        scored: trials report validation scores, for `searcher` and `scheduler`.
        higher: the highest score is the best.
    """
    os.environ.update(_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    keeper = leases()  # lives as long as this handle
    trainable = tune.with_parameters(Trial, study=study, make=make, scored=scored, higher=higher)
    where = files.join(study.uri, "ray")
    files.make_folder(where)
    tuner = tune.Tuner(
        tune.with_resources(trainable, NOTHING),
        param_space=dict(space),
        tune_config=tune.TuneConfig(
            num_samples=samples, max_concurrent_trials=at_once, scheduler=scheduler, search_alg=searcher,
            metric=SCORE if scored else None, mode=("max" if higher else "min") if scored else None,
        ),
        run_config=tune.RunConfig(
            name=f"wave-{time.time_ns()}",
            storage_path=where,
            failure_config=tune.FailureConfig(max_failures=retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Told(study, make, board, check)],
            verbose=0,
        ),
    )  # fmt: skip
    tuner.fit()
    del keeper


def sweep(work: Work) -> None:
    """Delete half-written checkpoints of a trial that was stopped; nobody else would come by."""
    folder, keep = files.join(work.run_dir, "checkpoints"), work.config.keep
    if files.exists(folder):
        CheckpointWriter(folder, keep_last=keep.keep_last, best_by=keep.best_by)
