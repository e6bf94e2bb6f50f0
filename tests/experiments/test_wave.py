"""Trials over Ray Tune: how one ends, what is tried again, and how many run at once."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import tune

from brainfoundry.core import files
from brainfoundry.core.errors import ClusterError, ConfigError, DataError, DivergedError
from brainfoundry.core.remote import StorageError
from brainfoundry.experiments import wave
from brainfoundry.experiments.board import Board, outcome
from brainfoundry.experiments.leases import run_of
from brainfoundry.experiments.records import StudyFolder, read_record, read_records, write_record
from brainfoundry.experiments.search import Search
from brainfoundry.experiments.study import SearchSpec
from brainfoundry.experiments.wave import PERCENT, SCORE, Trial, Work, run_wave, sweep
from brainfoundry.training.checkpoint import list_steps
from tests.experiments.test_records import record
from tests.experiments.trained import node, study_folder, train_as_if


def work_of(study: StudyFolder, name: str, shards: str = "/no/shards") -> Work:
    one = node(study, shards, name)
    return Work(node=one, config=one.config, chosen={"optim.lr": 0.5})


def outcome_of(work: Work, **changes: Any) -> Any:
    values = {"validation": {"val/dice_mean": 0.7}, "role": work.node.role, "chosen": work.chosen, **changes}
    return record(work.node.id, **values)


def trial(study: StudyFolder, work: Work, *, scored: bool = False) -> Trial:
    """A trial that has begun, without an actor around it."""
    made = Trial.__new__(Trial)
    made._work, made._study, made._scored, made._higher = work, study, scored, True
    made._told, made._every_s, made._result = 0.0, 0.02, Future()
    return made


# --- one trial


def test_a_trial_that_ends_reports_its_best(tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    one = trial(study, work_of(study, "ft-a"))
    one._result.set_result(outcome_of(one._work))
    assert one.step() == {"state": "finished", PERCENT: 100.0, "done": True, SCORE: 0.7}


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_what_the_user_must_mend_is_not_tried_again(tmp_path: Path, kind: type[Exception]) -> None:
    study = study_folder(tmp_path)
    one = trial(study, work_of(study, "ft-a"))
    one._result.set_exception(kind("a crop of 5"))
    assert one.step() == {"state": "failed", PERCENT: 100.0, "done": True}
    made = read_record(study, "ft-a")
    assert (made.state, made.error, made.chosen) == ("failed", "a crop of 5", {"optim.lr": 0.5})


@pytest.mark.parametrize(("role", "state"), [("choice", "unfit"), ("trial", "failed")])
@pytest.mark.parametrize(
    "error", [DivergedError("the loss of step 3 is nan"), ConfigError("out of GPU memory")]
)
def test_options_that_do_not_train_are_out_of_the_running(
    tmp_path: Path, role: Any, state: str, error: Exception
) -> None:
    study = study_folder(tmp_path)
    work = work_of(study, "ft-a")
    one = trial(study, replace(work, node=replace(work.node, role=role)))
    one._result.set_exception(error)
    assert one.step() == {"state": state, PERCENT: 100.0, "done": True}
    made = read_record(study, "ft-a")
    assert (made.state, made.done) == (state, role == "choice")
    assert ("out of the running" in outcome(made, "dice_mean")) == (role == "choice")


@pytest.mark.parametrize(
    "error", [RuntimeError("a node is gone"), StorageError("busy"), TimeoutError("slow")]
)
def test_what_may_pass_is_left_to_tune(tmp_path: Path, error: Exception) -> None:
    study = study_folder(tmp_path)
    one = trial(study, work_of(study, "ft-a"))
    one._result.set_exception(error)
    with pytest.raises(type(error)):
        one.step()
    assert not read_records(study.uri)


def test_validation_scores_are_reported_as_they_come(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    work = work_of(study, "ft-a", labelled_shards)
    one = trial(study, work, scored=True)
    train_as_if(work.config, {1: 0.3}, finished=False)
    assert one.step() == {SCORE: 0.3, PERCENT: 25.0}
    assert one._look() is None, "a verdict was reported twice"
    train_as_if(work.config, {1: 0.3, 2: 0.2}, finished=False)
    assert one.step() == {SCORE: 0.3, PERCENT: 50.0}
    train_as_if(work.config, {1: 0.3, 2: 0.2, 4: 0.9})  # the end is told by the record, not before
    assert one._look() is None


def test_half_a_checkpoint_is_swept_away(labelled_shards: str, tmp_path: Path) -> None:
    study = study_folder(tmp_path)
    work = work_of(study, "ft-a", labelled_shards)
    sweep(work)  # nothing there
    task = train_as_if(work.config, {1: 0.3, 2: 0.2}, finished=False)
    half = Path(task.checkpoints) / "step-00000003"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    sweep(work)
    assert not half.exists() and list_steps(task.checkpoints) == [1, 2]


def test_a_lease_is_known_by_the_run() -> None:
    assert run_of("/studies/s/runs/ft-a/ray") == "/studies/s/runs/ft-a"
    assert run_of("s3://b/runs/ray/ray/") == "s3://b/runs/ray"


# --- several, over Tune


class Acted(Trial):
    """A trial that trains nothing: its name says what becomes of it."""

    def _run(self) -> None:
        name, folder = self._work.node.id, Path(self._study.uri)
        running = folder / f"{name}.running"
        running.touch()
        others = len(list(folder.glob("*.running")))
        (folder / f"{name}.{others}.at-once").touch()
        attempt = len(list(folder.glob(f"{name}.attempt-*")))
        (folder / f"{name}.attempt-{attempt}").write_text(str(os.getpid()))
        time.sleep(5.0 if name == "ft-best" else 1.0)
        running.unlink()
        if name == "ft-dies" and not attempt:
            os._exit(1)
        if name == "ft-mends":
            self._result.set_exception(ConfigError("a crop of 5", fix="use 32"))
        elif name == "ft-raises":
            self._result.set_exception(RuntimeError("no luck"))
        elif name != "ft-worst":  # that one is still at it when it is given up
            made = outcome_of(self._work)
            write_record(self._study, made)
            self._result.set_result(made)

    def _look(self) -> dict[str, Any] | None:
        """ft-best and ft-worst are judged at an eighth of their steps, the worst when the best has ended."""
        name = self._work.node.id
        if self._told or name not in ("ft-best", "ft-worst"):
            return None
        if name == "ft-worst" and "ft-best" not in read_records(self._study.uri):
            return None
        self._told = 12.5
        return {SCORE: 0.9 if name == "ft-best" else 0.1, PERCENT: 12.5}


def pick(table: Mapping[str, Work], parameters: Mapping[str, Any]) -> Work:
    return table[parameters["node"]]


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(wave, "Trial", Acted)
    yield


@pytest.mark.slow
def test_a_wave_of_trials_of_all_fates(
    acted: None, tmp_path: Path, ray_local: int, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_folder(tmp_path)
    files.make_folder(study.uri)
    names = ("ft-best", "ft-worst", "ft-dies", "ft-raises", "ft-mends")
    table = {name: work_of(study, name) for name in names}
    search = Search(
        base=table["ft-best"].node,
        spec=SearchSpec(space={"optim.lr": {"uniform": (0, 1)}}, scheduler="asha"),
    )
    with Board("s", len(table), "dice_mean") as board:
        run_wave(
            study, functools.partial(pick, table), board, at_once=2, retries=1, scored=True,
            space={"node": tune.grid_search(list(names))}, scheduler=search.scheduler(),
        )  # fmt: skip
    records = read_records(study.uri)
    assert {name: r.state for name, r in records.items()} == {
        "ft-best": "finished",
        "ft-worst": "stopped",
        "ft-dies": "finished",
        "ft-raises": "failed",
        "ft-mends": "failed",
    }
    assert records["ft-raises"].error == "RuntimeError: no luck"
    assert records["ft-mends"].error == "a crop of 5. Fix: use 32"
    attempts = {name: len(list(Path(study.uri).glob(f"{name}.attempt-*"))) for name in names}
    assert attempts == {"ft-best": 1, "ft-worst": 1, "ft-dies": 2, "ft-raises": 2, "ft-mends": 1}
    at_once = {int(p.name.split(".")[1]) for p in Path(study.uri).glob("*.at-once")}
    assert max(at_once) <= 2
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]) == 5


@pytest.mark.slow
def test_a_driver_that_lost_its_study_lets_go_at_once(acted: None, tmp_path: Path, ray_local: int) -> None:
    """What runs belongs to the other driver then: nothing is written of it, and nothing more begins."""
    study = study_folder(tmp_path)
    files.make_folder(study.uri)
    names = ("ft-worst", "ft-a", "ft-b", "ft-c")
    table = {name: work_of(study, name) for name in names}

    def check() -> None:
        if list(Path(study.uri).glob("ft-worst.attempt-*")):
            raise ClusterError("another driver took study s over")

    begun = time.monotonic()
    with Board("s", len(table), "dice_mean") as board, pytest.raises(ClusterError, match="took study s over"):
        run_wave(
            study, functools.partial(pick, table), board, at_once=1, retries=1, check=check,
            space={"node": tune.grid_search(list(names))},
        )  # fmt: skip
    assert not read_records(study.uri)
    assert not list(Path(study.uri).glob("ft-a.attempt-*")), "a trial was begun for nothing"
    assert time.monotonic() - begun < 60
    (attempt,) = Path(study.uri).glob("ft-worst.attempt-*")
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(attempt.read_text())):
        assert time.monotonic() < deadline, "the trial runs on"
        time.sleep(0.2)
