"""Which checkpoints wait for a verdict: after a restart, at the last step, and where validation lags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from brainfoundry.training import checkpoint
from brainfoundry.training.checkpoint import CheckpointWriter, checkpoint_uri
from brainfoundry.training.task import TrainTask
from brainfoundry.training.validate_volumes import VolumeValidator
from brainfoundry.training.verdicts import read_verdict, verdict_of, write_verdict
from tests.training.labelled import configuration
from tests.training.test_checkpoint import MODEL, STATE, card
from tests.training.test_resolve import resolve


@pytest.fixture
def task(labelled_shards: str, tmp_path: Path) -> TrainTask:
    """A run of 25 steps, judged every 10 beside the training."""
    config = configuration(tmp_path, labelled_shards)
    config = replace(
        config, optim=replace(config.optim, steps=25), keep=replace(config.keep, validate_every=10)
    )
    return replace(resolve(config), beside=True)


def saved(task: TrainTask, *steps: int, **scores: float) -> None:
    for step in steps:
        checkpoint.save(task.checkpoints, card(step, metrics=scores), MODEL, STATE)


def judged(task: TrainTask, step: int, dice: float) -> None:
    write_verdict(task.verdicts, verdict_of(step, [{"subject": "a", "session": "", "dice_mean": dice}], 1.0))


def test_a_restart_takes_in_what_came_while_nobody_looked(task: TrainTask) -> None:
    saved(task, 10, 20)
    saved(task, 15)  # a checkpoint between two validations
    judged(task, 10, 0.9)  # Ray's controller went on while the workers were down
    validator = VolumeValidator(task, rank=0, world=1)
    validator.resume()
    assert validator.waiting == [10, 20] and validator.must_report
    writer = CheckpointWriter(task.checkpoints, keep_last=1, best_by="dice_mean", higher=True)
    writer.hold(validator.waiting)
    (verdict,) = validator.verdicts()
    writer.judge(verdict.step, dict(verdict.metrics))
    assert writer.best_step == 10 and validator.waiting == [20]
    assert checkpoint.read_card(checkpoint_uri(task.checkpoints, 10)).metrics == {"val/dice_mean": 0.9}
    assert checkpoint.list_steps(task.checkpoints) == [10, 20]  # 15 was neither judged, best nor newest


@pytest.mark.parametrize("every", [10, 0])
def test_the_last_step_is_asked_for_again_too(task: TrainTask, every: int) -> None:
    config = replace(task.config, keep=replace(task.config.keep, validate_every=every))
    saved(task, 25)
    validator = VolumeValidator(replace(task, config=config), rank=0, world=1)
    validator.resume()
    assert validator.waiting == [25] and validator.must_report


def test_what_is_on_the_card_is_not_asked_for(task: TrainTask) -> None:
    saved(task, 10, **{"val/dice_mean": 0.5})
    validator = VolumeValidator(task, rank=0, world=1)
    validator.resume()
    assert not validator.waiting and not validator.must_report


def test_a_verdict_on_other_weights_is_not_taken(task: TrainTask) -> None:
    judged(task, 10, 0.9)  # of a checkpoint that was deleted by hand; its step was trained again
    validator = VolumeValidator(task, rank=0, world=1)
    assert validator.ask(10, always=False)
    assert read_verdict(task.verdicts, 10) is None and validator.verdicts() == []


def test_where_validation_lags_checkpoints_do_not_pile_up(task: TrainTask) -> None:
    validator = VolumeValidator(task, rank=0, world=1)
    assert [validator.ask(step, always=False) for step in (1, 2, 3, 4)] == [True, True, True, False]
    assert validator.ask(25, always=True)
    assert validator.waiting == [1, 2, 3, 25]
