"""One node from its run to its record: what is judged, where it was chosen, what a resumption leaves out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from brainfoundry.core import files
from brainfoundry.core.errors import ConfigError, DataError
from brainfoundry.experiments import trial
from brainfoundry.experiments.records import read_record
from brainfoundry.experiments.trial import (
    failed,
    judged,
    one_line,
    open_run,
    run_node,
    score_so_far,
    stopped,
    write_losses,
)
from brainfoundry.training.checkpoint import checkpoint_uri
from tests.experiments.trained import held_out_fold, node, study_folder, train_as_if


def never(*_: Any) -> None:
    raise AssertionError("nothing was left to train")


def test_a_run_that_is_trained_is_only_evaluated(
    labelled_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "train", never)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # scored in this process
    study = study_folder(tmp_path)
    one = node(study, labelled_shards)
    task = train_as_if(one.config, {2: 0.3, 4: 0.2})
    made = run_node(one, one.config, study, chosen={"optim.lr": 0.002})
    assert made == read_record(study, one.id)
    # The best by validation, not the last; judged on the test set, which has one case.
    assert made.checkpoint == checkpoint_uri(task.checkpoints, 2) and made.chosen_on == "val"
    assert made.validation == {"val/dice_mean": 0.3}
    assert made.test is not None and made.test["subjects"] == 1 and made.test["split"] == "test"
    assert 0 <= made.metrics["dice_wt"] <= 1 and "dice_et" not in made.metrics  # nobody has an enhancing part
    table = pq.read_table(io.BytesIO(files.read_bytes(study.absolute(str(made.scores)))))
    assert table["subject"].to_pylist() == ["BraTS2021_00009"]
    assert table["dice_wt"].to_pylist() == [made.metrics["dice_wt"]]
    assert (made.steps, made.seconds, made.device_hours, made.cpu_hours) == (4, 60.0, 0.5, 0.025)
    assert (made.parameters, made.device, made.energy_kwh) == (7, "a chip", None)
    assert made.state == "finished" and made.error == "" and made.chosen == {"optim.lr": 0.002}
    assert not made.leaks and made.started <= made.ended
    # Once more, as after a kill before the record: the same record.
    again = run_node(one, one.config, study, chosen={"optim.lr": 0.002})
    assert replace(again, started="", ended="") == replace(made, started="", ended="")


def test_the_checkpoint_is_never_chosen_on_the_test_set(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    one = node(study, labelled_shards)
    task = train_as_if(one.config, {2: 0.9, 4: 0.1})
    assert judged(task, one.test) == (checkpoint_uri(task.checkpoints, 2), "val")
    # A test set that is the very split the best was chosen on: the last one stands.
    assert one.test is not None
    assert judged(task, replace(one.test, split="val")) == (checkpoint_uri(task.checkpoints, 4), "")


def test_a_fold_that_is_tested_does_not_choose(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    one = held_out_fold(node(study, labelled_shards), 0)
    task = train_as_if(one.config, {2: 0.9, 4: 0.1})
    assert task.card["chosen_on"] == "val"  # there is a val split besides the fold
    assert judged(task, one.test)[1] == "val"
    on_fold = replace(task, card={**task.card, "chosen_on": "held_out"})
    assert judged(on_fold, one.test) == (checkpoint_uri(task.checkpoints, 4), "")
    # Chosen on the fold held out, tested on the test split: that is validation.
    assert one.test is not None
    assert judged(on_fold, replace(one.test, fold=None))[1] == "held_out"


def test_a_test_subject_that_was_seen_is_refused(
    labelled_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    study = study_folder(tmp_path)
    one = node(study, labelled_shards)
    assert one.test is not None
    one = replace(one, test=replace(one.test, split="train"))
    train_as_if(one.config, {4: 0.5})
    with pytest.raises(DataError, match="BraTS2021_0000"):
        run_node(one, one.config, study)
    allowed = replace(one.config, data=replace(one.config.data, allow_leak=True))
    made = run_node(one, allowed, study)
    assert [leak["leaked"] for leak in made.leaks] == [7]


def test_a_trial_validates_with_its_own_workers(labelled_shards: str, tmp_path: Path) -> None:
    config = node(study_folder(tmp_path), labelled_shards).config
    task, state = open_run(replace(config, keep=replace(config.keep, validation="async")))
    assert task.config.keep.validation == "inline" and state == "new"


def test_losses_are_a_table_of_every_step(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    task = train_as_if(node(study, labelled_shards).config, {2: 0.3, 4: 0.2})
    write_losses(study.absolute("losses/x.parquet"), task.run_dir)
    rows = pq.read_table(io.BytesIO(files.read_bytes(study.absolute("losses/x.parquet")))).to_pylist()
    assert rows == [
        {"step": 2, "name": "train/total", "value": 0.5},
        {"step": 2, "name": "val/dice_mean", "value": 0.3},
        {"step": 4, "name": "train/total", "value": 0.25},
        {"step": 4, "name": "val/dice_mean", "value": 0.2},
    ]
    write_losses(study.absolute("losses/none.parquet"), str(tmp_path / "nothing"))
    assert pq.read_table(io.BytesIO(files.read_bytes(study.absolute("losses/none.parquet")))).num_rows == 0


def test_the_score_so_far(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    one = node(study, labelled_shards)
    run_dir = files.join(study.runs, one.id)
    assert score_so_far(run_dir, "dice_mean", higher=True) is None
    train_as_if(one.config, {1: 0.3, 2: 0.2}, finished=False)
    assert score_so_far(run_dir, "dice_mean", higher=True) == (50.0, 0.3)
    assert score_so_far(run_dir, "dice_mean", higher=False) == (50.0, 0.2)
    assert score_so_far(run_dir, "hd95_mean", higher=False) is None


def test_a_trial_that_was_given_up_names_its_best(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    one = node(study, labelled_shards)
    task = train_as_if(one.config, {1: 0.3, 2: 0.2}, finished=False)
    made = stopped(one, one.config, study, chosen={"optim.lr": 1.0})
    assert made == read_record(study, one.id) and made.done
    assert (made.state, made.steps, made.validation) == ("stopped", 2, {"val/dice_mean": 0.3})
    assert made.checkpoint == checkpoint_uri(task.checkpoints, 1) and made.scores is None and not made.metrics


def test_a_trial_that_failed_keeps_its_one_line(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    one = node(study, labelled_shards)
    made = failed(one, one.config, study, "out of memory")
    assert made == read_record(study, one.id) and not made.done and made.error == "out of memory"


def test_the_innermost_message_in_one_line() -> None:
    try:
        try:
            raise ConfigError("a crop of 5", fix="use 32")
        except ConfigError as error:
            raise RuntimeError("a task failed\nwith a traceback") from error
    except RuntimeError as error:
        assert one_line(error) == "a crop of 5. Fix: use 32"
    assert one_line(MemoryError("many lines\nthe last")) == "MemoryError: the last"
